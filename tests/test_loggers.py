"""Loggers: TensorBoard, Weights & Biases and one's own see the numbers of metrics.jsonl, and change none."""

import json
import struct
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import bitsback
from bitsback.atomic_io import read_tensors
from bitsback.config import Experiment
from bitsback.config.schema import Config
from bitsback.data.settings import DigitsSettings
from bitsback.errors import MissingExtraError, RunError, TrainingError
from bitsback.kl import kl_each
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.training import LoggingSettings, TrainingSettings
from bitsback.training._loggers import scalars
from bitsback.training.histograms import MOST_WEIGHTS, histograms
from bitsback.training.loop import Fit
from bitsback.units import nats_to_bits

EPOCHS = 5
TOY = {
    "data": {"kind": "digits", "limit": 100},
    "training": {"epochs": EPOCHS, "checkpoint_seconds": 0, "batch_size": 50},
    "ledger": {"samples": 2},
    "prior": {"kind": "laplace"},
}
DRAWN = {"mean", "log2_std", "signal_to_noise", "net_bits"}


def train(directory, resume=False, **logging):
    experiment = Experiment.build(Config.model_validate({**TOY, "logging": logging}))
    return experiment.train(directory, resume=resume, progress=False)


def interrupted(monkeypatch, directory, after, **logging):
    """Train, and be interrupted before the next epoch's numbers are logged."""
    run_epoch = Fit.run_epoch

    def stopping(fit):
        if fit.epoch == after:
            raise KeyboardInterrupt
        return run_epoch(fit)

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "run_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(directory, **logging)


def metrics_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def timeless(metrics):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in metrics]


def events_of(directory):
    return EventAccumulator(
        str(directory / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}
    ).Reload()


def hparams_of(events, tag):
    return plugin_data_pb2.HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)


def assert_scalars_are(events, directory):
    lines = metrics_of(directory)
    for place in scalars(lines[-1]):
        wanted = {line["epoch"]: scalars(line)[place] for line in lines if place in scalars(line)}
        seen = [(event.step, event.value) for event in events.Scalars(place)]
        assert [step for step, _ in seen] == list(wanted)
        assert [value for _, value in seen] == pytest.approx([*wanted.values()], rel=1e-6)


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    directory = tmp_path_factory.mktemp("silent") / "run"
    train(directory)
    return directory


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shown") / "run"
    train(directory, tensorboard=True, histograms_every=2)
    return directory


class Recorder:
    def __init__(self):
        self.seen, self.closed = [], 0

    def log(self, metrics):
        self.seen.append(dict(metrics))

    def close(self):
        self.closed += 1


def train_plainly(loggers, **more):
    model = bitsback.bayesianize(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    digits = DigitsSettings(limit=100).load()
    settings = TrainingSettings(epochs=3, **more.pop("training", {}))
    return bitsback.train(
        model, CategoricalLikelihood(10), digits, training=settings, progress=False, loggers=loggers, **more
    )  # fmt: skip


def test_a_logger_of_ones_own_sees_what_metrics_jsonl_says(tmp_path):
    first, second = Recorder(), Recorder()
    train_plainly([first, second], out=tmp_path / "run")
    assert first.seen == second.seen == metrics_of(tmp_path / "run")
    assert (first.closed, second.closed) == (1, 1)


def test_a_logger_needs_no_run_directory():
    logger = Recorder()
    train_plainly([logger])
    assert [metrics["epoch"] for metrics in logger.seen] == [1, 2, 3]


def test_loggers_are_closed_when_training_fails_and_when_another_fails_to_close():
    class Broken(Recorder):
        def close(self):
            super().close()
            raise OSError("the line is dead")

    logger, broken = Recorder(), Broken()
    with pytest.raises(TrainingError, match="not"):
        train_plainly([logger], training={"optimizer": {"name": "SGD", "lr": 1e9}})
    assert logger.closed == 1
    with pytest.raises(OSError, match="dead"):
        train_plainly([broken, logger])
    assert (broken.closed, logger.closed) == (1, 2)


def test_tensorboard_has_the_numbers_of_metrics_jsonl(shown):
    assert_scalars_are(events_of(shown), shown)


def test_results_are_the_same_with_and_without_dashboards(silent, shown):
    assert timeless(metrics_of(silent)) == timeless(metrics_of(shown))
    assert (silent / "ledger.json").read_text() == (shown / "ledger.json").read_text()
    left, right = (read_tensors(run / "checkpoint" / "state.safetensors")[0] for run in (silent, shown))
    assert all(torch.equal(left[name], right[name]) for name in left | right)


def test_histograms_of_every_tensor_at_some_epochs_and_at_the_end(shown):
    events = events_of(shown)
    assert set(events.Tags()["histograms"]) == {
        f"weights/linear1.{part}/{name}" for part in ("weight", "bias") for name in DRAWN
    }
    drawn = events.Histograms("weights/linear1.weight/mean")
    assert [event.step for event in drawn] == [2, 4, EPOCHS]
    means = read_tensors(shown / "posterior.safetensors")[0]["linear1.weight.mean"]
    last = drawn[-1].histogram_value
    assert (last.num, last.min, last.max) == pytest.approx((means.numel(), means.min().item(), means.max().item()))


def test_the_ledger_and_the_settings_are_in_the_hparams_of_the_same_run(shown):
    events, book = events_of(shown), json.loads((shown / "ledger.json").read_text())
    assert {path.name for path in (shown / "tensorboard").iterdir() if path.is_dir()} == set()
    for name in ("net", "gross", "refund", "data"):
        (event,) = events.Scalars(f"ledger/{name}")
        assert (event.step, event.value) == (EPOCHS, pytest.approx(book[f"{name}_bits"], rel=1e-6))
    told = hparams_of(events, "_hparams_/session_start_info").session_start_info.hparams
    assert told["prior.kind"].string_value == "laplace"
    assert told["posterior.kind"].string_value == "gaussian"
    assert told["training.optimizer.lr"].number_value == 0.01
    assert (told["training.batch_size"].number_value, told["seed"].number_value) == (50, 0)
    assert told["network.kind"].string_value == "sequential"
    compared = hparams_of(events, "_hparams_/experiment").experiment.metric_infos
    names = {info.name.tag for info in compared}
    assert {"bits/net", "bits/gross", "bits/refund", "bits/data", "training/test_error", "ledger/net"} <= names
    assert names <= set(events.Tags()["scalars"])
    assert "_hparams_/session_end_info" in events.summary_metadata


def test_a_resumed_run_has_every_epoch_once(tmp_path, monkeypatch, shown):
    directory = tmp_path / "run"
    interrupted(monkeypatch, directory, 3, tensorboard=True, histograms_every=2)
    assert "_hparams_/session_end_info" not in events_of(directory).summary_metadata
    train(directory, resume=True, tensorboard=True, histograms_every=2)
    events = events_of(directory)
    assert_scalars_are(events, directory)
    assert timeless(metrics_of(directory)) == timeless(metrics_of(shown))
    assert [event.step for event in events.Histograms("weights/linear1.weight/mean")] == [2, 4, EPOCHS]
    assert "_hparams_/session_end_info" in events.summary_metadata


def test_histograms_can_be_left_out(tmp_path):
    train(tmp_path / "run", tensorboard=True, histograms_every=0)
    assert not events_of(tmp_path / "run").Tags()["histograms"]


def test_without_a_configuration_the_objects_speak_for_themselves(tmp_path):
    train_plainly([], out=tmp_path / "run", logging=LoggingSettings(tensorboard=True), seed=3)
    told = hparams_of(events_of(tmp_path / "run"), "_hparams_/session_start_info").session_start_info.hparams
    assert (told["prior.kind"].string_value, told["network.kind"].string_value) == ("gaussian", "given")
    assert (told["training.epochs"].number_value, told["seed"].number_value) == (3, 3)


KINDS = ["laplace", {"kind": "group_gaussian"}, {"kind": "gaussian", "per": "tensor"}, "horseshoe", "spike_and_slab"]


@pytest.mark.parametrize("prior", KINDS, ids=str)
def test_histograms_of_small_tensors_are_exact_and_leave_the_generators_alone(prior):
    model = bitsback.bayesianize(torch.nn.Linear(20, 10), prior=prior)
    before = torch.get_rng_state()
    drawn = histograms(model)
    assert torch.equal(torch.get_rng_state(), before)
    for weight in model.weights:
        mean, std = weight.posterior.mean.detach().flatten(), weight.posterior.std().detach().flatten()
        assert torch.equal(drawn[f"weights/{weight.name}/mean"], mean)
        assert torch.allclose(drawn[f"weights/{weight.name}/log2_std"], std.log2())
        assert torch.allclose(drawn[f"weights/{weight.name}/signal_to_noise"], mean.abs() / std, rtol=1e-4)
        bits = nats_to_bits(kl_each(weight.posterior, weight.prior)).detach().flatten()
        assert torch.allclose(drawn[f"weights/{weight.name}/net_bits"], bits, atol=1e-2)


def test_large_tensors_are_thinned_to_the_same_weights_every_time():
    model = bitsback.bayesianize(torch.nn.Linear(1000, 300), prior={"kind": "group_gaussian"})
    first, again = histograms(model), histograms(model)
    assert {len(values) for name, values in first.items() if "/weight/" in name} == {MOST_WEIGHTS}
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_point_estimate_has_means_alone():
    model = bitsback.bayesianize(torch.nn.Linear(3, 2), prior={"kind": "laplace", "learn": "none"}, posterior="point")
    assert set(histograms(model)) == {"weights/weight/mean", "weights/bias/mean"}


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_extra_is_named_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setattr("bitsback.extras._is_installed", lambda module: False)
    with pytest.raises(MissingExtraError, match=rf"logging\.{name} needs {name}, .*pip install 'bitsback\[{name}\]'"):
        train(tmp_path / "run", **{name: True})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_dashboard_needs_a_run_directory(name):
    with pytest.raises(RunError, match=f"{name} needs a run directory"):
        train(None, **{name: True})


@pytest.fixture
def stub(monkeypatch):
    """A module in the place of wandb that writes down what it is told."""
    module = ModuleType("wandb")
    module.errors = SimpleNamespace(Error=type("Error", (Exception,), {}))
    module.Settings = SimpleNamespace
    module.Histogram = lambda np_histogram: np_histogram
    module.runs, module.refusal = [], None

    class Run:
        def __init__(self, **given):
            self.given, self.steps, self.summary, self.exit_code = given, {}, {}, None

        def log(self, values, step):
            self.steps.setdefault(step, {}).update(values)

        def finish(self, exit_code):
            self.exit_code = exit_code

    def init(**given):
        if module.refusal:
            raise module.errors.Error(module.refusal)
        module.runs.append(Run(**given))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_has_the_numbers_of_metrics_jsonl_and_of_the_ledger(tmp_path, stub, silent):
    settings = {"project": "digits", "entity": "team", "group": "priors", "tags": ["a", "b"]}
    outcome = train(tmp_path / "run", wandb=settings, histograms_every=4)
    (run,) = stub.runs
    assert {name: run.given[name] for name in settings} == settings
    assert run.given["name"] == "run"
    assert run.given["config"]["prior.kind"] == "laplace"
    for line in metrics_of(tmp_path / "run"):
        assert scalars(line).items() <= run.steps[line["epoch"]].items()
    with_histograms = [step for step, values in run.steps.items() if "weights/linear1.weight/net_bits" in values]
    assert with_histograms == [4, EPOCHS]
    counts, edges = run.steps[EPOCHS]["weights/linear1.weight/mean"]
    assert (counts.sum(), len(edges)) == (640, len(counts) + 1)
    assert (run.summary["ledger/net"], run.exit_code) == (outcome.ledger.net_bits, 0)
    assert timeless(metrics_of(tmp_path / "run")) == timeless(metrics_of(silent))


def test_a_resumed_training_goes_on_with_the_same_wandb_run(tmp_path, monkeypatch, stub):
    interrupted(monkeypatch, tmp_path / "run", 2, wandb=True)
    train(tmp_path / "run", resume=True, wandb=True)
    first, second = stub.runs
    assert first.given["id"] == second.given["id"]
    assert (first.given["resume"], second.given["resume"]) == (None, "allow")
    assert (sorted(first.steps), sorted(second.steps)) == ([1, 2], [3, 4, 5])
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert first.given["project"] == "bitsback"


def test_wandb_that_refuses_leaves_nothing_behind(tmp_path, stub):
    stub.refusal = "No API key configured. Use `wandb login` to log in."
    with pytest.raises(RunError, match=r"No API key configured; run `wandb login`, or set WANDB_MODE=offline"):
        train(tmp_path / "run", wandb=True)
    assert not (tmp_path / "run").exists()


def wandb_history(path):
    """The rows of a .wandb file: records of LevelDB's log format, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, part, rows = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record, part = Record.FromString(part), b""
            if record.HasField("history"):
                rows.append(
                    {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                )
    return rows


def test_a_real_wandb_run_offline(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path / "run", wandb={"project": "digits"})
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    logged = {row["_step"]: row for row in wandb_history(path)}
    for line in metrics_of(tmp_path / "run"):
        assert logged[line["epoch"]]["bits/net"] == line["net_bits"]
    assert sum(logged[EPOCHS]["weights/linear1.weight/mean/values"]) == 640
    assert capfd.readouterr().out == ""
