"""The prequential code: nothing leaks, the number is the file's size, and another process decodes it."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from bitsback.config import Config, Experiment
from bitsback.config.coding_settings import GrowingBlocks, PrequentialSettings
from bitsback.errors import BitsbackError
from bitsback.formats.container import BitReader, BitWriter, seal, unseal
from bitsback.formats.inspect import inspect_file
from bitsback.formats.prequential._calibration import Calibration, minimum
from bitsback.formats.prequential.preamble import PREQUENTIAL, Head
from bitsback.formats.prequential.read import receive_prequential
from bitsback.formats.prequential.walk import Walk, epochs_for
from bitsback.formats.prequential.write import prequential
from bitsback.units import nats_to_bits

DATA = {"kind": "digits", "limit": 100}
TRAINING = {"epochs": 2, "batch_size": 32, "threads": 1, "optimizer": {"name": "Adam", "lr": 0.02}}
POINT = {"posterior": {"kind": "point"}, "prior": {"kind": "gaussian", "scale": 1.0, "learn": "none"}}
CONVOLUTION = {"kind": "sequential", "layers": [{"Conv2d": {"out_channels": 3, "kernel_size": 3}}, "BatchNorm2d", "ReLU", "Flatten",
                                                {"Dropout": {"p": 0.2}}, "Linear"]}  # fmt: skip
BLOCKS = {"least_steps": 30}


def config(prequential=BLOCKS, **sections):
    return Config.model_validate({"data": DATA, "training": TRAINING, **POINT, "prequential": prequential, **sections})


CONFIGS = {
    "point": config(),
    "ensemble": config(
        {"least_steps": 15, "predict": "ensemble", "members": 2}, network=CONVOLUTION,
        training={**TRAINING, "augment": {"shift_pixels": 1.0}, "precision": "bfloat16"},
    ),
    "samples": config({**BLOCKS, "predict": "samples", "members": 3}, posterior={"kind": "gaussian", "std": 0.05}),
    "fractions": config({**BLOCKS, "blocks": [0.25, 0.5, 1.0], "calibrate": False, "shuffle": False}),
    "float64": config({**BLOCKS, "blocks": [30, 100]}, training={**TRAINING, "precision": "float64"}),
    "mirrored": config(
        {**BLOCKS, "blocks": [30, 100]}, training={**TRAINING, "draws": 2, "antithetic": True}, bayesian={"estimator": "weight"},
        posterior={"kind": "gaussian"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def coded(request):
    settings = CONFIGS[request.param]
    return settings, prequential(settings, progress=False)


def labels_of(settings):
    return Experiment.build(settings).dataset.train.targets.numpy()


def predictions(settings, labels):
    """What the walk predicts for every block, when it is answered with these labels."""
    experiment = Experiment.build(settings)
    walk, found = Walk(settings, experiment.dataset.train.inputs, 10), []

    def answer(number, whole):
        found.append(whole)
        start = walk.ends[number - 1] if number else 0
        return labels[walk.order][start : walk.ends[number]]

    walk.run(answer, progress=False)
    return found


@pytest.mark.parametrize("name", ["ensemble", "samples"])
def test_predictions_of_a_block_know_nothing_of_its_labels_or_of_later_ones(name):
    settings = CONFIGS[name]
    labels, ends = labels_of(settings), settings.prequential.ends(100)
    plain = predictions(settings, labels)
    changed = labels.copy()
    order = Walk(settings, torch.zeros(100, 1), 10).order
    changed[order[ends[2] :]] = (labels[order[ends[2] :]] + 1 + np.arange(100 - ends[2]) % 9) % 10
    other = predictions(settings, changed)
    for block in range(4):
        assert np.array_equal(plain[block], other[block]), f"block {block} has seen later labels"
    assert not np.array_equal(plain[4], other[4]), "block 4 has not seen the labels of block 3"


def test_the_number_is_the_size_of_the_file_and_the_blocks_cover_the_data(coded):
    settings, code = coded
    assert code.file_bits == 8 * len(code.content)
    assert abs(code.file_bits - code.header_bits - code.bits) < 0.001 * code.bits + 64
    assert code.uniform_bits == pytest.approx(100 * math.log2(10))
    assert code.blocks[0].bits == pytest.approx(code.blocks[0].end * math.log2(10))
    ends = settings.prequential.ends(100)
    assert [(block.start, block.end) for block in code.blocks] == list(zip((0, *ends), ends, strict=False))
    assert 0 <= code.test_error < 0.9
    assert code.to_dict()["prequential_bits"] == math.fsum(block["bits"] for block in code.to_dict()["blocks"])
    json.dumps(code.to_dict())


def test_labels_come_back(coded, tmp_path):
    settings, code = coded
    (tmp_path / "message").write_bytes(code.content)
    found = receive_prequential(tmp_path / "message", tmp_path / "out", progress=False)
    assert np.array_equal(found, labels_of(settings))
    assert np.array_equal(np.load(tmp_path / "out" / "labels.npy"), found)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["labels.npy"]
    seen = inspect_file(tmp_path / "message")
    assert (seen["kind"], seen["examples"], seen["blocks"]) == ("prequential", 100, len(code.blocks))
    assert sum(part["bits"] for part in seen["parts"]) == code.file_bits


def test_another_process_decodes_and_the_number_of_threads_is_the_senders(tmp_path):
    code = prequential(CONFIGS["ensemble"], progress=False)
    (tmp_path / "message").write_bytes(code.content)
    script = (
        "import sys, torch; torch.set_num_threads(2); from bitsback.cli.app import main;"
        f"sys.argv = ['bitsback', 'receive', {str(tmp_path / 'message')!r}, '-o', {str(tmp_path / 'out')!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"100 labels are in {tmp_path / 'out'}\n"
    assert np.array_equal(np.load(tmp_path / "out" / "labels.npy"), labels_of(CONFIGS["ensemble"]))


def test_training_is_in_float64_whatever_its_precision():
    settings = CONFIGS["ensemble"]
    assert settings.training.precision == "bfloat16"
    double = settings.model_copy(update={"training": settings.training.model_copy(update={"precision": "float64"})})
    labels = labels_of(settings)
    for half, whole in zip(predictions(settings, labels), predictions(double, labels), strict=True):
        assert np.array_equal(half, whole)
        assert not (half % 2**6).any()  # multiples of 2^-6 nats, in units of 2^-12


def test_equal_configurations_give_equal_files_and_the_seed_changes_them():
    one, again = (prequential(CONFIGS["point"], progress=False) for _ in range(2))
    other = prequential(CONFIGS["point"].model_copy(update={"seed": 1}), progress=False)
    assert one.content == again.content
    assert one.content != other.content


def test_labels_without_a_pattern_cost_hardly_more_than_the_uniform_code():
    """Calibration on coded labels learns that the predictions are worth nothing."""
    settings = config({"blocks": {"first": 16, "growth": 1.5}, "least_steps": 30}, data={"kind": "digits"})
    experiment = Experiment.build(settings)
    labels = np.random.default_rng(0).integers(0, 10, len(experiment.dataset.train))
    walk = Walk(settings, experiment.dataset.train.inputs, 10)

    def answer(number, whole):
        start = walk.ends[number - 1] if number else 0
        return labels[start : walk.ends[number]]

    blocks, _ = walk.run(answer, progress=False)
    uniform = math.log2(10)
    assert sum(block.bits for block in blocks) > 0.98 * len(labels) * uniform
    assert blocks[-1].bits < 1.05 * (blocks[-1].end - blocks[-1].start) * uniform


def test_calibration_finds_the_temperature_and_the_share_of_wrong_labels():
    torch.manual_seed(0)
    truth = (3 * torch.randn(4000, 10, dtype=torch.float64)).log_softmax(1)
    labels = torch.distributions.Categorical(logits=truth).sample()
    wrong = torch.rand(4000) < 0.05
    labels[wrong] = torch.randint(0, 10, (int(wrong.sum()),))
    found = Calibration.fit(2.5 * truth, labels)
    assert found.temperature == pytest.approx(2.5, rel=0.1)
    assert found.uniform_share == pytest.approx(0.05, rel=0.3)
    assert found(2.5 * truth).exp().sum(1).allclose(torch.ones(4000, dtype=torch.float64))
    cost = [-nats_to_bits(float(c(2.5 * truth).gather(1, labels[:, None]).sum())) for c in (found, Calibration())]
    assert cost[0] < cost[1] - 400


def test_no_label_is_impossible():
    certain = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    assert float(Calibration()(certain)[0, 1].exp()) == pytest.approx(Calibration().uniform_share / 2)


def test_minimum_agrees_with_calculus():
    assert minimum(lambda x: math.exp(x) - 2 * x, -3.0, 3.0, 1e-9) == pytest.approx(math.log(2.0), abs=1e-7)


@pytest.mark.parametrize("examples", [1, 8, 9, 100, 1437])
def test_growing_blocks_rise_and_end_with_the_data(examples):
    for growth in (1.01, 1.3, 2.0, 7.5):
        ends = GrowingBlocks(first=8, growth=growth).ends(examples)
        assert ends[-1] == examples
        assert all(a < b for a, b in zip((0, *ends), ends, strict=False))


def test_small_training_sets_get_the_least_number_of_steps():
    settings = config({"least_steps": 500})
    assert [epochs_for(settings, count) for count in (8, 32, 64, 320, 32_000)] == [500, 500, 250, 50, 2]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"prequential": {"blocks": [10, 50]}}, r"blocks end at 50 of 100 examples; the last block must end at 100"),
        ({"prequential": {"blocks": [0.1, 0.5]}}, r"blocks end at 50 of 100 examples"),
        ({"prequential": {"blocks": [10, 200]}}, r"end at 200 of 100"),
        ({"prequential": {"blocks": []}}, r"blocks are none; the last block must end at 100"),
        ({"prequential": {"blocks": [0, 100]}}, r"must rise, from above 0; leave out empty blocks"),
        ({"prequential": {"blocks": [50, 20, 100]}}, r"\[50, 20, 100\] must rise"),
        ({"prequential": {"predict": "samples", "members": 2}}, r"a point has no samples .* posterior.kind=gaussian"),
        ({"likelihood": {"kind": "bernoulli"}}, r"one of labels, .*bernoulli .* use categorical"),
        ({"training": {"device": "cuda"}}, r"training.device=cuda .* set it to cpu"),
        ({"training": {"budget_bits": 100.0}}, r"training.budget_bits .* leave it out"),
        ({"training": {"early_stop": {}}}, r"training.early_stop .* leave it out"),
        ({"training": {"objective": {"kind": "quad"}}}, r"training.objective=quad .* leave it out"),
    ],
)
def test_what_makes_no_sense_is_refused(sections, message):
    with pytest.raises(BitsbackError, match=message):
        prequential(config(**sections), progress=False)


@pytest.mark.parametrize("settings", [{"members": 3}, {"predict": "ensemble"}, {"blocks": {"growth": 1.0}}])
def test_settings_that_contradict_themselves_are_refused(settings):
    with pytest.raises(ValueError, match=r"predict=point|greater than"):
        PrequentialSettings.model_validate(settings)


@pytest.fixture(scope="module")
def message(tmp_path_factory):
    """A small file."""
    path = tmp_path_factory.mktemp("prequential") / "message"
    path.write_bytes(prequential(config({**BLOCKS, "blocks": [20, 50, 100]}), progress=False).content)
    return path


def changed(message, path, change):
    """The same file with another head."""
    reader = BitReader(unseal(message.read_bytes(), "it")[1])
    head, writer = Head.take(reader), BitWriter()
    change(head.__dict__)
    head.put(writer)
    path.write_bytes(seal(PREQUENTIAL, writer.to_bytes() + reader.rest()))
    return path


def test_another_arithmetic_is_noticed_at_its_block_and_earlier_labels_are_kept(message, tmp_path):
    path = changed(message, tmp_path / "message", lambda head: head.update(tables=(*head["tables"][:2], head["tables"][2] ^ 1)))
    with pytest.raises(
        BitsbackError, match=r"arithmetic differs from the sender's at block 3 of 3; .* first 50 examples .* are in"
    ):
        receive_prequential(path, tmp_path / "out", progress=False)
    found, labels = np.load(tmp_path / "out" / "labels_so_far.npy"), labels_of(config())
    assert (found >= 0).sum() == 50
    assert np.array_equal(found[found >= 0], labels[found >= 0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda head: head.update(labels_digest=head["labels_digest"] ^ 1), "not those that went in"),
        (lambda head: head.update(inputs_digest=head["inputs_digest"] ^ 1), "inputs here are not the sender's"),
        (lambda head: head.update(examples=99), "labels of 99 examples, and here are 100"),
        (lambda head: head.update(tables=head["tables"][:2]), "digests of 2 blocks, and its schedule 3"),
        (lambda head: head.update(tables=()), "claims 0 blocks"),
        (lambda head: head["settings"]["training"].update(threads="auto"), "how many threads"),
        (lambda head: head["settings"]["training"].update(device="cuda"), "set it to cpu"),
    ],
)
def test_files_that_were_made_up_are_refused(message, tmp_path, change, said):
    path = changed(message, tmp_path / "message", change)
    with pytest.raises(BitsbackError, match=said):
        receive_prequential(path, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_the_verbs(tmp_path, run_command):
    config_file, out = tmp_path / "c.yaml", tmp_path / "message"
    config_file.write_text(json.dumps(config({**BLOCKS, "blocks": [50, 100]}).model_dump(mode="json")))
    said = run_command("send", config_file, "--code", "prequential", "-o", out)
    assert said.code == 0, said.err
    assert "0 to 50" in said.out
    assert f"has {len(out.read_bytes()):,} bytes" in said.out
    facts = json.loads(run_command("send", config_file, "--code", "prequential", "--json").out)
    assert facts["file_bits"] == 8 * len(out.read_bytes())
    assert facts["file_bits"] == facts["header_bits"] + facts["label_stream_bits"]
    assert "100 labels in the prequential code" in run_command("inspect", out).out
    assert run_command("receive", out, "-o", tmp_path / "out").out == f"100 labels are in {tmp_path / 'out'}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--payload", __file__, "-o", "m"], "no weights that a payload could choose; leave out --payload"),
        (["--step", "2^-8", "-o", "m"], "leave out --step"),
        (["--draws", "3", "-o", "m"], "leave out --draws"),
        (["--pad", "-o", "m"], "leave out --pad"),
        (["--run", "somewhere", "-o", "m"], "leave out --run"),
        ([], "say what to send, and where to"),
    ],
)
def test_options_of_other_codes_are_refused(arguments, said, tmp_path, monkeypatch, run_command):
    monkeypatch.chdir(tmp_path)
    done = run_command("send", "missing.yaml", "--code", "prequential", *arguments)
    assert (done.code, done.out) == (1, "")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_network_that_overflows_is_named():
    with pytest.raises(BitsbackError, match=r"not finite.*lower training.optimizer.lr"):
        prequential(config(training={**TRAINING, "optimizer": {"name": "SGD", "lr": 1e37}}), progress=False)


def test_the_test_split_shares_no_batch_with_the_last_block():
    """The last bits of a sum may depend on its neighbours in a batch, and a receiver has no test split."""
    settings = config({**BLOCKS, "blocks": [40, 93, 100]})
    experiment, labels = Experiment.build(settings), labels_of(settings)
    walk = Walk(settings, experiment.dataset.train.inputs, 10)
    found = []
    for test in (experiment.dataset.test, None):
        asked = []

        def answer(number, whole, asked=asked):
            asked.append(whole)
            return labels[walk.order][walk.ends[number] - len(whole) : walk.ends[number]]

        _, error = walk.run(answer, test, progress=False)
        assert (error is None) == (test is None)
        found.append(asked)
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))
