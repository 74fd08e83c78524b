"""Loops of other people: what `docs/loops.md` shows takes the steps of the oracle, and ends in the ledger of the plain loop."""

import copy
import importlib.util
import re
from pathlib import Path

import pytest
import torch
import zoo
from oracle import Oracle, assert_close, doubled, mlp
from torch import nn
from torch.nn.functional import cross_entropy

import bitsback
from bitsback.likelihoods import CategoricalLikelihood

PAGE = (Path(__file__).parent.parent / "docs" / "loops.md").read_text()
STEPS, ROWS = 3, 4
KEYS = ("input_ids", "attention_mask", "labels")


def needs(*packages):
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


transformers_too = needs("transformers", "accelerate")
peft_too = needs("transformers", "accelerate", "peft")
accelerate_too = needs("accelerate")
lightning_too = needs("lightning")


@pytest.fixture
def there(monkeypatch, tmp_path):
    """A directory of its own for what frameworks write."""
    monkeypatch.chdir(tmp_path)


def shown(caption):
    """The code of a block of the page."""
    (code,) = re.findall(rf"^:::{{code-block}} python\n:caption: {re.escape(caption)}\n\n(.*?)^:::$", PAGE, re.S | re.M)
    return code


def run(caption, **names):
    """Run a block of the page with what it does not make itself; returns all names."""
    names = {"torch": torch, "bitsback": bitsback, "cross_entropy": cross_entropy, "__name__": "page", **names}
    exec(compile(shown(caption), "docs/loops.md", "exec"), names)
    return names


class Recorded:
    """The training calls of a network, in order, beside a plain copy of it as it was."""

    def __init__(self, network, plain=None):
        self.plain, self.calls = copy.deepcopy(network) if plain is None else plain, []
        self.hook = network.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, network, args, kwargs):
        if network.training and torch.is_grad_enabled():
            self.calls.append((args, kwargs))

    def stop(self):
        self.hook.remove()
        return self


def check(model, optimizer, recorded, cost, likelihood, data, *, accumulated=1, share=None, schedule=None, atol=1e-5):
    """Compare a trained model with the oracle, and its ledger with that of a plain loop over the recorded calls.

    Args:
        model, optimizer, recorded: after three steps.
        cost: of a call, (network, args, kwargs, number of the call).
        likelihood, data: of the ledger.
        accumulated: calls in a step.
        share: factor of each one's cost; default: their mean is taken.
        schedule: makes a scheduler of an optimiser.
        atol: for means and stds.
    """
    recorded.stop()
    share = 1 / accumulated if share is None else share
    twin = bitsback.bayesianize(copy.deepcopy(recorded.plain), seed=model.seed)
    assert len(recorded.calls) == STEPS * accumulated
    assert model.draw_number == STEPS
    rates = {group["role"]: group.get("initial_lr", group["lr"]) for group in optimizer.param_groups}
    options = {"lr": rates["weight"], "log_std_lr": rates["log_std"]}
    options |= {"examples": optimizer.examples, "max_grad_norm": optimizer.max_grad_norm}
    oracle = Oracle(twin, recorded.plain, **options)
    plain = bitsback.optim.Adam(twin, **options)
    schedules = [schedule(oracle.optimizer), schedule(plain)] if schedule else []
    for step in range(STEPS):
        costs = [of_call(cost, *recorded.calls[number], number, share) for number in within(step, accumulated)]
        oracle.step(*[(oracle.state(step), each) for each in costs])
        plain.zero_grad()
        for number in within(step, accumulated):
            (cost(twin, *recorded.calls[number], number) * share).backward()
        plain.step()
        for each in schedules:
            each.step()
    model.train()
    assert_close(model, oracle, atol)
    found, wanted = (bitsback.take_ledger(each, likelihood, data, samples=2, seed=5) for each in (model, twin))
    for one, other in zip(found.entries, wanted.entries, strict=True):
        assert one.net_bits == pytest.approx(other.net_bits, rel=1e-4, abs=1e-3), one.name
    assert found.data_bits == pytest.approx(wanted.data_bits, rel=1e-4)
    return found


def within(step, accumulated):
    return range(step * accumulated, (step + 1) * accumulated)


def of_call(cost, args, kwargs, number, share):
    """A cost of the oracle: in float64, as its network."""
    kwargs = dict(zip(kwargs, doubled(kwargs.values()), strict=True))
    return lambda network: cost(network, doubled(args), kwargs, number) * share


def state_of(model):
    """Everything that a training goes on from."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model, wanted):
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-6, atol=1e-7, msg=name)


# networks


def moved(network):
    """All weights away from zero, and no dropout: the key's bias has no gradient but the KL's."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network.train()


def loss_of(network, args, kwargs, number):
    """The loss that a network of transformers computes itself."""
    return network(*args, **kwargs).loss


def words_of(name):
    """A data set of transformers, and the same for the ledger."""
    examples, likelihood = zoo.data_of(name)
    inputs, targets = examples.inputs[:], examples.targets[:]
    rows = [dict(zip(KEYS, row, strict=True)) for row in zip(*inputs.values(), targets, strict=True)]
    return rows, (inputs, targets), likelihood


QUIET = {
    "report_to": "none", "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": ROWS, "logging_steps": 1,
    "train_sampling_strategy": "sequential", "save_strategy": "no",
}  # fmt: skip


def by_transformers(network, name, **options):
    train, _, _ = words_of(name)
    return run("transformers", network=network, train=train, test=train, steps=STEPS, options={**QUIET, **options})


def linear(optimizer):
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=STEPS)


# transformers


@transformers_too
@pytest.mark.parametrize(("name", "accumulated"), [("bert", 1), ("gpt2", 1), ("gpt2", 2)])
def test_the_trainer_of_transformers(name, accumulated, there):
    network = moved(getattr(zoo, name)())
    recorded = Recorded(network)
    names = by_transformers(network, name, gradient_accumulation_steps=accumulated)
    _, data, likelihood = words_of(name)
    if name == "gpt2":
        assert float(names["optimizer"].grad_norm) > names["optimizer"].max_grad_norm == 1.0  # ours did clip
    # a language model takes the mean over all tokens of the step by itself
    check(
        names["model"],
        names["optimizer"],
        recorded,
        loss_of,
        likelihood,
        data,
        accumulated=accumulated,
        share=1,
        schedule=linear,
    )


@transformers_too
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated")
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_transformers(reentrant, there):
    network = moved(zoo.gpt2())
    recorded, blocks = Recorded(network), []
    network.transformer.h[0].mlp.register_forward_pre_hook(lambda *_: blocks.append(1))
    network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    names = by_transformers(network, "gpt2")
    assert len(blocks) == 2 * STEPS
    _, data, likelihood = words_of("gpt2")
    check(names["model"], names["optimizer"], recorded, loss_of, likelihood, data, schedule=linear)


@peft_too
def test_adapters_of_a_frozen_network(there):
    train, data, likelihood = words_of("gpt2")
    names = run("peft", network=moved(zoo.gpt2()), tokens=len(train) * (zoo.LENGTH - 1))
    network, model, optimizer = names["network"], names["model"], names["optimizer"]
    recorded = Recorded(network, model.mean_network())
    frozen = {name: p.clone() for name, p in network.named_parameters() if not p.requires_grad}
    trainer_of(network, optimizer, train, linear(optimizer), max_grad_norm=0).train()
    ledger = check(model, optimizer, recorded, loss_of, likelihood, data, schedule=linear)
    assert frozen
    for name, before in frozen.items():
        assert torch.equal(network.get_parameter(name), before), name
        assert any(line.startswith(f"{name} (") for line in ledger.not_charged), name
    assert {weight.name for weight in model.weights} == {name for name, p in network.named_parameters() if p.requires_grad}
    assert all("lora" in weight.name for weight in model.weights)
    with torch.no_grad(), model.mean():
        wanted = network(**data[0]).logits
    merged = model.mean_network().merge_and_unload()
    zoo.gpt2().load_state_dict(merged.state_dict())
    torch.testing.assert_close(merged(**data[0]).logits.detach(), wanted, rtol=1e-4, atol=1e-5)


def trainer_of(network, optimizer, train, schedule=None, **options):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments("out", **{**QUIET, "max_steps": STEPS, **options})
    return Trainer(network, arguments, train_dataset=train, eval_dataset=train, optimizers=(optimizer, schedule))


OF_MODEL = {"remove_unused_columns": False, "label_names": ["labels"]}
"""What the Trainer reads from the signature of a network."""


@transformers_too
@pytest.mark.parametrize("handed", ["network", "model"])
def test_a_resumed_trainer_of_transformers_goes_on_as_if_it_had_not_stopped(handed, there):
    ends, (train, _, _) = [], words_of("bert")
    for seed, go_on in ((1, {}), (2, {"resume_from_checkpoint": "out/checkpoint-3"})):
        network = moved(zoo.bert())
        model = bitsback.bayesianize(network, seed=seed)
        optimizer = bitsback.optim.Adam(model, lr=1e-3, log_std_lr=5e-3, examples=16)
        options = {**OF_MODEL, "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "max_grad_norm": 0}
        given = model if handed == "model" else network
        trainer_of(given, optimizer, train, linear(optimizer), **options).train(**go_on)
        model.train()
        ends.append(model)
    assert ends[1].draw_number == 6
    assert_same(ends[1], state_of(ends[0]))


@transformers_too
def test_the_best_model_of_the_trainer_has_its_own_widths(there):
    """The network's own file has the means alone: without the recipe the stds are those of the last step."""
    from transformers import TrainerCallback

    class Snapshots(TrainerCallback):
        def on_save(self, args, state, control, **rest):
            saved[state.global_step] = state_of(model)

    saved, network = {}, moved(zoo.bert())
    model = bitsback.bayesianize(network, seed=1)
    optimizer = bitsback.optim.Adam(model, lr=1e-2, log_std_lr=5e-2, examples=16)
    train, _, _ = words_of("bert")
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = trainer_of(network, optimizer, train, max_grad_norm=0, **options)
    trainer.add_callback(Snapshots())
    trainer.train()
    best = int(trainer.state.best_model_checkpoint.rpartition("-")[2])
    assert best < 6
    assert trainer.state.global_step == 6
    stds = [weight.posterior.log_std.clone() for weight in model.weights]
    run("transformers, the best checkpoint", trainer=trainer, optimizer=optimizer)
    assert not any(torch.equal(weight.posterior.log_std, std) for weight, std in zip(model.weights, stds, strict=True))
    assert_same(model, saved[best])
    assert model.holds == "mean"
    model.train()
    for weight in model.weights:
        assert torch.equal(weight.parameter, model.value(weight))


@transformers_too
def test_the_clipping_of_transformers_is_noticed(there):
    """It clips at a norm of 1 unless it is told otherwise."""
    network = moved(zoo.gpt2())
    model = bitsback.bayesianize(network, seed=1)
    optimizer = bitsback.optim.Adam(model, lr=1e-3, log_std_lr=5e-3, examples=16)
    train, _, _ = words_of("gpt2")
    with pytest.warns(UserWarning, match=r"something clips them before the step.*max_grad_norm=1"):
        trainer_of(network, optimizer, train).train()


@transformers_too
def test_the_trainer_may_be_handed_the_model(there):
    """It takes any arguments, and what they are called is said."""
    network = moved(zoo.bert())
    recorded = Recorded(network)
    model = bitsback.bayesianize(network, seed=1)
    optimizer = bitsback.optim.Adam(model, lr=1e-3, log_std_lr=5e-3, examples=16)
    train, data, likelihood = words_of("bert")
    trainer_of(model, optimizer, train, linear(optimizer), max_grad_norm=0, **OF_MODEL).train()
    check(model, optimizer, recorded, loss_of, likelihood, data, schedule=linear)


# Accelerate, Fabric, Lightning


def small():
    """Examples, a loader of three batches, and a network."""
    x, y = torch.randn(36, 5), torch.arange(36) % 3
    train = torch.utils.data.TensorDataset(x, y)
    return (x, y), train, mlp()


def loader_of(train, rows=12):
    return torch.utils.data.DataLoader(train, batch_size=rows)


def cost_by(labels):
    """Cross entropy with the labels of each call."""
    return lambda network, args, kwargs, number: cross_entropy(network(*args, **kwargs), labels[number])


@accelerate_too
@pytest.mark.parametrize("accumulated", [1, 2])
def test_accelerate(accumulated, there):
    data, train, network = small()
    recorded, loader = Recorded(network), loader_of(train, 12 // accumulated)
    options = {"cpu": True, "gradient_accumulation_steps": accumulated}
    names = run("Accelerate", network=network, train=train, loader=loader, options=options)
    trained, accelerator = state_of(names["model"]), names["accelerator"]
    cost = cost_by([labels for _, labels in loader])
    check(names["model"], names["optimizer"], recorded, cost, CategoricalLikelihood(3), data, accumulated=accumulated)
    model = names["model"]
    cross_entropy(model(data[0]), data[1]).backward()
    names["optimizer"].step()
    accelerator.load_state("state")
    assert_same(model, trained)


@lightning_too
def test_fabric(there):
    data, train, network = small()
    recorded, loader = Recorded(network), loader_of(train)
    options = {"accelerator": "cpu", "devices": 1}
    names = run("Fabric", network=network, train=train, loader=loader, options=options)
    model, trained = names["model"], state_of(names["model"])
    cost = cost_by([labels for _, labels in loader])
    check(model, names["optimizer"], recorded, cost, CategoricalLikelihood(3), data)
    cross_entropy(model(data[0]), data[1]).backward()
    names["stepper"].step()
    names["fabric"].load("fabric.ckpt", {"model": names["prepared"], "optimizer": names["stepper"]})
    assert_same(model, trained)


OF_LIGHTNING = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False,
}  # fmt: skip


QUIETLY = pytest.mark.filterwarnings("ignore:.*(does not have many workers|val_dataloader|is not empty)")


def watcher(held):
    """Writes down what the weights hold: in validation, the sanity check's included, and before each step."""
    from lightning.pytorch import Callback

    class Watcher(Callback):
        def on_validation_batch_start(self, trainer, module, *_):
            held.append(("sanity check" if trainer.sanity_checking else "validation", module.model.holds))

        def on_train_batch_start(self, trainer, module, *_):
            held.append(("training", module.model.holds))

    return Watcher()


@lightning_too
@QUIETLY
def test_lightning(there):
    data, train, network = small()
    recorded, loader, held = Recorded(network), loader_of(train), []
    options = {**OF_LIGHTNING, "num_sanity_val_steps": 2, "val_check_interval": 1, "callbacks": [watcher(held)]}
    names = run("Lightning", network=network, train=train, loader=loader, validation=loader_of(train, 18), options=options)
    model, optimizer = names["module"].model, names["trainer"].optimizers[0]
    assert held == [("sanity check", "mean")] * 2 + [("training", "draw"), *[("validation", "mean")] * 2] * 3
    assert model.training
    check(model, optimizer, recorded, cost_by([labels for _, labels in loader]), CategoricalLikelihood(3), data)


@lightning_too
@QUIETLY
def test_lightning_goes_on_from_a_checkpoint(there):
    from lightning.pytorch.callbacks import ModelCheckpoint

    _, train, network = small()
    options = {**OF_LIGHTNING, "num_sanity_val_steps": 0}
    names = run("Lightning", network=network, train=train, loader=loader_of(train), validation=None, options=options)
    options |= {"max_epochs": 2, "callbacks": [ModelCheckpoint(".", "{epoch}", save_top_k=-1)], "enable_checkpointing": True}
    modules = [names["Classifier"](mlp(), len(train)) for _ in range(2)]
    names["Trainer"](**options).fit(modules[0], loader_of(train))
    names["Trainer"](**options).fit(modules[1], loader_of(train), ckpt_path="epoch=0.ckpt")
    assert modules[1].model.draw_number == 2 * STEPS
    assert_same(modules[1].model, state_of(modules[0].model))


@lightning_too
@QUIETLY
def test_the_clipping_of_lightning_is_noticed(there):
    _, train, network = small()
    options = {**OF_LIGHTNING, "gradient_clip_val": 0.01, "num_sanity_val_steps": 0}
    with pytest.warns(UserWarning, match=r"something clips them before the step.*max_grad_norm=0.01"):
        run("Lightning", network=network, train=train, loader=loader_of(train), validation=None, options=options)


# plain networks


@transformers_too
def test_transformers_save_and_load_plain_networks(there):
    model, (inputs, _) = bitsback.bayesianize(moved(zoo.gpt2())), words_of("gpt2")[1]
    plain = model.sampled_network().eval()
    plain.save_pretrained("plain")
    loaded = type(plain).from_pretrained("plain").eval()
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, plain(**inputs).logits)


@needs("onnx", "onnxscript", "onnxruntime")
def test_the_page_on_onnx(there):
    import onnxruntime

    plain, x = bitsback.bayesianize(mlp()).mean_network().eval(), torch.randn(6, 5)
    names = run("onnx, onnxscript, onnxruntime", plain=plain, x=x, batch=torch.export.Dim("batch"), onnxruntime=onnxruntime)
    torch.testing.assert_close(torch.from_numpy(names["found"]), plain(x).detach(), rtol=1e-4, atol=1e-5)
