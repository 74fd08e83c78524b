"""Pruning by signal-to-noise: the curve against numpy, the ledger at threshold zero, and the pruned network as a file."""

import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors import safe_open

from bitsback.analysis.prune import KEPT_FRACTIONS, Pruner, count, mask_bits, only_kept, prune, signal_to_noise, thresholds_for
from bitsback.config import Config, Experiment, load_run
from bitsback.errors import LayerError, LedgerError
from bitsback.formats.model_file.read import load
from bitsback.model.noise import BlockNoise

TRAINING = {"epochs": 60, "batch_size": 100, "optimizer": {"name": "Adam", "lr": 0.05, "log_std_lr": 0.05}}
DRAWS = 8


def config(**sections):
    """A linear softmax on 300 digits: one weight tensor, a Gaussian prior."""
    network = {"kind": "sequential", "layers": ["Flatten", {"Linear": {"bias": False}}]}
    data, posterior = {"kind": "digits", "limit": 300}, {"kind": "gaussian", "std": 0.5, "relative_to": "prior"}
    fixed = {"data": data, "network": network, "posterior": posterior, "training": TRAINING, "ledger": {"samples": DRAWS}}
    return Config.model_validate({**fixed, **sections})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run; nobody changes it."""
    folder = tmp_path_factory.mktemp("prune") / "run"
    Experiment.build(config()).train(folder, progress=False)
    return folder


@pytest.fixture
def pruner(run):
    return Pruner(load_run(run).experiment())


@pytest.fixture
def stored(run):
    """Mean, std and prior scale as posterior.safetensors has them, float64."""
    with safe_open(run / "posterior.safetensors", framework="np") as file:
        (name,) = {key.rpartition(".")[0] for key in file.keys()}  # noqa: SIM118
        prior = json.loads(file.metadata()["priors"])[name]
        return *(file.get_tensor(f"{name}.{part}").astype(np.float64) for part in ("mean", "std")), prior["scale"]


def ledger_of(run):
    return json.loads((run / "ledger.json").read_text())


# What a mask costs


@pytest.mark.parametrize("weights", [1, 2, 7, 40])
def test_the_code_of_a_mask_is_complete(weights):
    masses = [math.comb(weights, kept) * 2.0 ** -mask_bits(kept, weights) for kept in range(weights + 1)]
    assert math.fsum(masses) == pytest.approx(1.0, abs=1e-12)


def test_a_mask_that_keeps_everything_costs_its_count_alone():
    assert mask_bits(640, 640) == mask_bits(0, 640) == math.log2(641)


# The curve


def test_threshold_zero_is_the_ledger_with_a_count_for_each_tensor(run, pruner):
    book, point = ledger_of(run), pruner.cost(pruner.keep(0.0), 0.0)
    assert point.kept == point.weights == book["weights"]
    assert point.mask_bits == math.log2(641)
    assert point.kept_bits == pytest.approx(book["net_weight_bits"], rel=1e-9)
    assert point.other_bits == book["hyperparameter_bits"]
    assert point.data_bits == pytest.approx(book["data_bits"], rel=1e-6)
    assert point.net_bits == pytest.approx(book["net_bits"] + point.mask_bits, rel=1e-6)
    assert point.test_error == json.loads((run / "summary.json").read_text())["test_error"]


def numpy_curve(examples, mean, std, scale, threshold, seed):
    """Kept weights, model bits without hyper-parameters, data bits and error of the averaged predictor, all by hand."""
    keep = np.abs(mean) / std >= threshold
    weights, kept = keep.size, int(keep.sum())
    kl_nats = np.log(scale / std) + (std**2 + mean**2) / (2 * scale**2) - 0.5
    which = math.log2(weights + 1) + math.log2(math.comb(weights, kept))
    inputs, labels = examples.inputs.flatten(1).double().numpy(), examples.targets.numpy()
    bits, average = [], 0.0
    for number in range(1, 1 + DRAWS):  # of the only weight tensor, which is stream 0
        noise = BlockNoise().fill(torch.empty(weights), seed, -number, 0).reshape(mean.shape).double().numpy()
        logits = inputs @ np.where(keep, mean + std * noise, 0.0).T
        probabilities = np.exp(logits - logits.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        bits.append(-np.log2(probabilities[np.arange(len(labels)), labels]).sum())
        average = average + probabilities
    return kept, which + kl_nats[keep].sum() / math.log(2), np.mean(bits), float((average.argmax(1) != labels).mean())


@pytest.mark.parametrize("threshold", [0.0, 0.4, 1.0, 2.5])
def test_the_curve_is_what_numpy_says(pruner, stored, threshold):
    point, dataset = pruner.cost(pruner.keep(threshold), threshold), pruner.experiment.dataset
    kept, model_bits, data_bits, error = numpy_curve(dataset.train, *stored, threshold, seed=0)
    assert point.kept == kept
    assert point.mask_bits + point.kept_bits == pytest.approx(model_bits, rel=1e-6)
    assert point.data_bits == pytest.approx(data_bits, rel=1e-5)
    assert point.train_error == pytest.approx(error, abs=1e-9)
    assert point.test_error == pytest.approx(numpy_curve(dataset.test, *stored, threshold, seed=1)[3], abs=1e-9)


def test_a_higher_threshold_keeps_fewer_weights_and_no_other_ones(pruner):
    curve = prune(pruner.experiment, samples=1).curve
    thresholds, fractions = [p.keep_snr for p in curve], [p.fraction_kept for p in curve]
    assert thresholds == sorted(set(thresholds))
    assert fractions == sorted(set(fractions), reverse=True)
    assert fractions[0] == 1.0
    assert fractions[-1] == pytest.approx(0.01, abs=0.5 / 640)
    kept_bits = [p.kept_bits for p in curve]
    assert kept_bits == sorted(kept_bits, reverse=True)
    for low, high in pairwise(thresholds):
        assert all(bool((pruner.keep(low)[name] | ~kept).all()) for name, kept in pruner.keep(high).items())


def test_thresholds_keep_the_fractions_they_are_for(pruner):
    kept = [count(pruner.keep(threshold)) for threshold in thresholds_for(pruner.ratios)]
    assert kept == [round(640 * fraction) for fraction in KEPT_FRACTIONS]
    assert count(pruner.keep(thresholds_for(pruner.ratios, [1e-9])[0])) == 1


@pytest.mark.parametrize("threshold", [0.5, 1.0, 1.5])
def test_pruning_by_signal_to_noise_beats_pruning_at_random(pruner, threshold):
    keep = pruner.keep(threshold)
    best = pruner.cost(keep)
    (name,), shuffle = keep, torch.Generator().manual_seed(0)
    for _ in range(5):
        order = torch.randperm(640, generator=shuffle)
        other = pruner.cost({name: keep[name].flatten()[order].reshape(keep[name].shape)})
        assert other.kept == best.kept
        assert other.mask_bits == best.mask_bits
        assert other.data_bits > best.data_bits
        assert other.train_error > best.train_error
        assert other.test_error > best.test_error


# The model inside and after


def test_inside_pruned_weights_are_zero_in_every_draw_and_the_others_are_drawn_as_before(pruner):
    model, keep = pruner.experiment.model, pruner.keep(1.0)
    (weight,) = model.weights
    inside = keep[weight.name]
    torch.manual_seed(3)
    before = weight.posterior.draw()
    with only_kept(model, keep):
        torch.manual_seed(3)
        drawn = weight.posterior.draw()
        assert not bool((drawn == weight.posterior.draw())[inside].any())
    assert torch.equal(drawn, torch.where(inside, before, 0.0))
    torch.manual_seed(3)
    assert torch.equal(weight.posterior.draw(), before)


NORMALISED = {
    "kind": "sequential",
    "layers": ["Flatten", {"Linear": {"out_features": 5}}, {"BatchNorm1d": {}}, "ReLU", "Linear"],
}


@pytest.mark.parametrize("prior", ["gaussian", "cauchy", "spike_and_slab", "group_gaussian"])
def test_the_model_is_left_as_it_was(prior):
    few = {**TRAINING, "epochs": 2}
    experiment = Experiment.build(config(network=NORMALISED, prior={"kind": prior}, training=few))
    book = experiment.train(None, progress=False).ledger
    state = {name: tensor.clone() for name, tensor in experiment.model.state_dict().items()}
    found = prune(experiment, 0.5, samples=1)
    assert all(torch.equal(tensor, state[name]) for name, tensor in experiment.model.state_dict().items())
    whole = found.curve[0]
    assert whole.kept_bits + whole.other_bits == pytest.approx(book.net_weight_bits + book.hyperparameter_bits, rel=1e-9)
    sizes = [entry.weights for entry in book.entries]
    assert whole.mask_bits == pytest.approx(sum(math.log2(size + 1) for size in sizes), rel=1e-12)


def test_weights_without_a_posterior_are_never_pruned_and_cost_32_bits_each():
    half = config(network=NORMALISED, bayesian={"exclude": ["linear1*"]}, training={**TRAINING, "epochs": 1})
    experiment = Experiment.build(half)
    book = experiment.train(None, progress=False).ledger
    point = prune(experiment, 0.1, curve=False, samples=1).asked
    assert point.weights == book.weights - (64 * 5 + 5)
    assert point.other_bits == pytest.approx(book.hyperparameter_bits + 32 * (64 * 5 + 5), rel=1e-12)


def test_an_earlier_run_as_prior_is_named(run, run_command, tmp_path):
    prior = {"kind": "checkpoint", "run": str(run)}
    Experiment.build(config(prior=prior, training={**TRAINING, "epochs": 2})).train(tmp_path / "next", progress=False)
    said = run_command("prune", tmp_path / "next", "--samples", 2, "--no-curve")
    assert f"; given the run '{run}'" in said.out


# The file


def test_the_file_holds_zero_where_weights_are_pruned_and_only_there_and_in_rounding(pruner):
    keep, (weight,) = pruner.keep(3.0), pruner.experiment.model.weights
    whole, pruned = (pruner.file(kept) for kept in (pruner.keep(0.0), keep))
    values, before = (packed.loaded.tensors()[weight.name] for packed in (pruned, whole))
    inside = keep[weight.name]
    assert not bool(values[~inside].any())
    assert torch.equal(values[inside], before[inside])  # the same grid
    assert bool(before[~inside].any())
    assert len(pruned.content) < len(whole.content)


def test_the_verb_writes_a_model_file_that_the_other_verbs_read(run, run_command, tmp_path):
    said = run_command("prune", run, "--keep-snr", 2, "--samples", 2, "--json", "-o", tmp_path / "out")
    assert said.code == 0, said.err
    answer, file = json.loads(said.out), tmp_path / "out" / "pruned.bb"
    assert json.loads((tmp_path / "out" / "curve.json").read_text()) == answer
    assert answer["file_bytes"] == file.stat().st_size < answer["unpruned_file_bytes"]
    assert answer["asked"] in answer["curve"]
    assert answer["asked"]["keep_snr"] == answer["keep_snr"] == 2
    test = load_run(run).experiment().dataset.test
    with torch.no_grad():
        wrong = load(file)(test.inputs).argmax(1) != test.targets
    assert answer["file_test_error"] == pytest.approx(float(wrong.double().mean()), abs=1e-9)
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 8), dtype=np.float32))
    for command in (
        ["inspect", file],
        ["unpack", file, "-o", tmp_path / "open"],
        ["predict", file, "--data", tmp_path / "images.npy"],
    ):
        assert run_command(*command).code == 0


def test_the_verb_marks_what_was_asked_for_and_what_is_cheapest(run, run_command):
    said = run_command("prune", run, "--samples", 2)
    (asked,) = re.findall(r"^1 .*", said.out, re.MULTILINE)
    assert asked.split()[-1] == "asked"
    assert said.out.count("asked") == 1
    assert said.out.count("cheapest") == 1
    assert len(re.findall(r"^[\d.e-]+ +\d", said.out, re.MULTILINE)) == len(KEPT_FRACTIONS) + 1
    assert re.search(
        r"^pruned at 1, as a quantised model file: \d+ bytes, .* data bits, test error .* %$", said.out, re.MULTILINE
    )
    alone = run_command("prune", run, "--samples", 2, "--no-curve")
    assert len(re.findall(r"^[\d.e-]+ +\d", alone.out, re.MULTILINE)) == 1


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep-snr", "-1"], "--keep-snr must be zero or a number above it, got -1; "),
        (["--keep-snr", "nan"], "--keep-snr must be zero or a number above it, got nan; "),
        (["--keep-snr", "inf"], "--keep-snr must be zero or a number above it, got inf; "),
        (["--keep-snr", "1e9"], r"--keep-snr 1e\+09 prunes every weight; set it below the largest signal-to-noise, \d"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused_before_anything_is_written(run, run_command, tmp_path, arguments, message):
    said = run_command("prune", run, *arguments, "-o", tmp_path / "out")
    assert (said.code, said.out) == (1, "")
    assert re.match(f"bitsback: {message}", said.err)
    assert list(tmp_path.iterdir()) == []


def test_places_that_make_no_sense_are_refused(run, run_command, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "full is not empty; choose another --out" in run_command("prune", run, "-o", tmp_path / "full").err
    assert "is a file, not a directory" in run_command("prune", run, "-o", tmp_path / "full" / "mine.txt").err
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    assert "is not a run directory" in run_command("prune", tmp_path / "full").err


def test_weights_without_noise_are_refused():
    point = config(posterior={"kind": "point"}, prior={"kind": "gaussian", "learn": "none"})
    with pytest.raises(LedgerError, match=r"a point estimate has no noise.*; train with posterior.kind=gaussian"):
        prune(Experiment.build(point))
    with pytest.raises(LedgerError, match=r"no weight has a posterior.*; include some with bayesian.include"):
        prune(Experiment.build(config(bayesian={"exclude": ["*"]})))


@pytest.mark.parametrize(("part", "value"), [("mean", math.nan), ("mean", math.inf), ("log_std", -math.inf)])
def test_weights_that_are_no_numbers_are_refused(part, value):
    experiment = Experiment.build(config())
    getattr(experiment.model.weights[0].posterior, part).data[0, 0] = value
    with pytest.raises(LayerError, match="has a mean that is not finite or a std not above zero; train it again"):
        signal_to_noise(experiment.model)
