"""Train a model in a run directory, and take its ledger."""

import copy
import functools
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import torch

from bitsback.atomic_io import write_tensors, write_text
from bitsback.data import Dataset, Examples
from bitsback.distributed import ALONE, Ranks, present, started
from bitsback.errors import ConfigError, near_miss
from bitsback.inputs import Inputs
from bitsback.kernels import Captures, captures_on
from bitsback.ledger import Ledger
from bitsback.likelihoods import Likelihood
from bitsback.locks import LOCK, exclusive, remove_left_over_files
from bitsback.model import BayesianModel, evaluate, posterior_tensors, take_ledger
from bitsback.model.accounting import check_point_grids
from bitsback.model.join import join
from bitsback.model.noise import ExactNoise
from bitsback.torch_state import seeded, using_threads
from bitsback.training._engine import check_engine, dividing, own_device, shard
from bitsback.training._graphs import StepGraphs
from bitsback.training._loggers import Logger
from bitsback.training._objective import make_objective
from bitsback.training._optimise import make_optimizer, make_schedule
from bitsback.training.beta import Beta
from bitsback.training.dashboards import check_dashboards, final_numbers, subject_of
from bitsback.training.drawn_outputs import DrawnOutputs
from bitsback.training.loop import Fit, Watch
from bitsback.training.session import Session
from bitsback.training.settings import EngineSettings, LedgerSettings, LoggingSettings, TrainingSettings

__all__ = ["Outcome", "captures_of", "device_named", "start", "threads_for", "train"]

SMALL_MODEL_WEIGHTS = 1_000_000
"""Models with fewer weights are trained on one thread."""


@dataclass(frozen=True)
class Outcome:
    """Result of a training.

    Attributes:
        ledger: of the training targets.
        test_error: of the predictive mean, or None without a test split.
        error_name: ``error`` or ``rmse``.
        training_seconds: wall-clock seconds of all epochs, those before a resumption included.
        epochs: number of epochs.
        threads: CPU threads.
        stopped_early: whether early stopping ended the training.
    """

    ledger: Ledger
    test_error: float | None
    error_name: str
    training_seconds: float
    epochs: int
    threads: int
    stopped_early: bool = False


P = ParamSpec("P")


def _one_writer(call: Callable[P, Outcome]) -> Callable[P, Outcome]:
    """Run a training with its directory locked, and remove temporary files that killed processes left there."""

    @functools.wraps(call)
    def locked(*arguments: P.args, **settings: P.kwargs) -> Outcome:
        engine = settings.get("engine")
        with started(engine.strategy if isinstance(engine, EngineSettings) else "none") as ranks:
            if settings.get("directory") is None or not ranks.is_first:  # of several processes, rank 0 alone writes
                return call(*arguments, **settings)
            directory = settings["directory"] = Path(str(settings["directory"])).expanduser()
            with exclusive(directory / LOCK, directory):
                for folder in (directory, directory / "checkpoint", directory / "profile"):
                    remove_left_over_files(folder)
                return call(*arguments, **settings)

    return locked


@_one_writer
def train(
    model: BayesianModel,
    likelihood: Likelihood,
    dataset: Dataset,
    *,
    directory: str | Path | None = None,
    config_text: str | None = None,
    training: TrainingSettings | None = None,
    ledger: LedgerSettings | None = None,
    logging: LoggingSettings | None = None,
    engine: EngineSettings | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: bool = True,
    profile_to: Path | None = None,
    loggers: Sequence[Logger] = (),
    watch: Watch | None = None,
) -> Outcome:
    """Minimise the total description length of the training targets, then take the ledger.

    Every module is trained in its current mode, and is left in it: in eval mode, normalisation keeps its statistics and dropout
    is off. Parameters without ``requires_grad`` are not changed.

    Args:
        model: trained in place.
        likelihood: of the targets, fitted and trained in place.
        dataset: training examples, and test examples that only measure.
        directory: of the run's files (docs/run.md names them); None writes nothing.
        config_text: written to ``directory/config.yaml`` after all checks.
        training: settings; default: all defaults.
        ledger: settings; default: all defaults.
        logging: settings; default: all defaults.
        engine: how the processes that ``torchrun`` started, or those of the default process group, train together; default:
            one process only.
        seed: of batches and weight draws. Equal seed, threads and machine give equal bits.
        resume: continue from ``directory``'s checkpoint; the result is the same, bit for bit, as without the interruption.
        progress: show a progress bar.
        profile_to: directory for a profile of the first steps, made on a copy by :func:`bitsback.training._profile.profile`.
        loggers: objects with the methods ``log(metrics)``, called after every epoch with the numbers of metrics.jsonl, and
            ``close()``, called after the last epoch or a failure.
        watch: called after every optimiser step with the number of steps done and the model, which it must not change; an
            exception it raises ends the training.

    Returns:
        ledger, test error and facts of the training.

    Raises:
        TrainingError: if the loss is not finite; the last good checkpoint stays.
        InUseError: if another process is writing to the directory.
        ConfigError: for unsuitable settings.
        RunError: for a directory, checkpoint or dashboard that cannot be used.
        DataError: for targets that the likelihood cannot describe.

    >>> from bitsback.data.settings import DigitsSettings
    >>> from bitsback.likelihoods import CategoricalLikelihood
    >>> from bitsback.model import bayesianize
    >>> model = bayesianize(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    >>> settings = TrainingSettings(epochs=20)
    >>> outcome = train(model, CategoricalLikelihood(10), DigitsSettings().load(), training=settings, progress=False)
    >>> outcome.ledger.net_bits < outcome.ledger.uniform_bits
    True
    """
    engine, ranks = engine or EngineSettings(), present()
    directory = None if directory is None else Path(directory)
    training, ledger = training or TrainingSettings(), ledger or LedgerSettings()
    logging = logging or LoggingSettings()
    likelihood.fit(dataset.train.targets)
    training = training.settled(len(dataset.train), likelihood)
    device = device_named(own_device(training.device, ranks))
    others = {"seed": seed, "ledger": ledger.model_dump(), "writes files": directory is not None, "resume": resume}
    check_engine(engine, ranks, training, logging, dataset, likelihood, others)
    if not ranks.is_first:  # test_every stays: all evaluate together
        progress, logging, loggers, profile_to = False, LoggingSettings(test_every=logging.test_every), (), None
    for examples in (dataset.train, dataset.test):
        if examples is not None:
            likelihood.check_split(examples.targets, examples.name)
    model.chosen_grid_step, model.likelihood = ledger.grid_step, likelihood
    check_point_grids(model, model.grid_step(), "ledger.grid_step" if ledger.grid_step else "posterior.grid_step")
    dtype = torch.float64 if training.precision == "float64" else torch.float32
    check_memory(model, device, dtype.itemsize, shards=ranks.count if engine.strategy == "fsdp" else 1)
    model.to(device, dtype)
    likelihood.to(device, dtype)
    data, test = dataset.train.to(device, dtype), dataset.test and dataset.test.to(device, dtype)
    check_dashboards(logging, directory)
    with using_threads(threads_for(training, model)), seeded(seed, device), dividing(model):
        if profile_to is not None:
            from bitsback.training._profile import STEPS, profile

            # a schedule may raise beyond its last step
            longer = training.model_copy(update={"epochs": training.passes + STEPS})
            with seeded(seed, device):
                profile(start(copy.deepcopy(model), copy.deepcopy(likelihood), data, longer, seed), profile_to)
        fit = start(model, likelihood, data, training, seed, watch=watch, engine=engine, ranks=ranks)
        subject = subject_of(model, logging, {"training": training, "ledger": ledger}, seed, config_text)
        with Session(fit, test, directory, logging, subject, loggers, progress=progress, resume=resume) as session:
            if directory is not None and not resume:
                session.save(is_first=True)
                if config_text is not None and ranks.is_first:  # written last: a directory with a configuration can be resumed
                    write_text(directory / "config.yaml", config_text)
            session.run()
            fit.end()
            model.update_priors()
            book = take_ledger(
                model,
                likelihood,
                data,
                samples=ledger.samples,
                grid_step=ledger.grid_step,
                seed=seed,
                progress=progress,
                course=session.course,
            )
            book = replace(book, notes=(*book.notes, *fit.beta.notes(book.net_weight_bits)))
            draws = ledger.samples if model.smallest_std() is not None else 0
            error = evaluate(model, likelihood, test, samples=draws, seed=seed + 1).error if test else None
            subject.final = final_numbers(book, error)
            session.bar.end(book, error, likelihood.error_name)
        threads, stopped_early = torch.get_num_threads(), fit.epoch < training.passes
    outcome = Outcome(book, error, likelihood.error_name, session.seconds, fit.epoch, threads, stopped_early)
    if directory is not None:
        session.save(finished=True)
        tensors, facts = posterior_tensors(model, likelihood)
        if ranks.is_first:
            write_tensors(directory / "posterior.safetensors", tensors, facts)
            _write_results(directory, outcome)
    return outcome


def start(
    model: BayesianModel,
    likelihood: Likelihood,
    data: Examples,
    settings: TrainingSettings,
    seed: int = 0,
    *,
    watch: Watch | None = None,
    engine: EngineSettings | None = None,
    ranks: Ranks = ALONE,
) -> Fit:
    """Prepare a training without running it, for training loops of your own.

    Call ``fit.step(number, inputs, targets)``, or ``fit.run_epoch()``. :func:`train` adds devices, logs, checkpoints and the
    ledger.

    Args:
        model: trained in place.
        likelihood: of the targets, fitted and trained in place.
        data: training examples, on the model's device.
        settings: of the training.
        seed: of batches and weight draws.
        watch: called after every optimiser step with the number of steps done and the model.
        engine: how several processes train together.
        ranks: the processes; each is given its share of every batch.

    Returns:
        the training, before its first step.

    Raises:
        ConfigError: for unsuitable settings.

    >>> from bitsback.likelihoods import CategoricalLikelihood
    >>> from bitsback.model import bayesianize
    >>> examples = Examples(torch.randn(20, 4), torch.arange(20) % 2)
    >>> fit = start(bayesianize(torch.nn.Linear(4, 2)), CategoricalLikelihood(2), examples, TrainingSettings(epochs=1))
    >>> data_bits = fit.step(0, examples.inputs[:10], examples.targets[:10])
    """
    likelihood.fit(data.targets)
    settings = settings.settled(len(data), likelihood)
    mode, model.training = model.training, True
    trials = _to_try_out(data, settings, seed)
    is_repeatable = settings.precision == "float64"
    engine = engine or EngineSettings()
    is_sharded = engine.strategy == "fsdp" and ranks.count > 1
    if ranks.count > 1:
        join(model, ranks)  # before shards are cut
    ranks.copy_first([*likelihood.parameters(), *likelihood.buffers()])
    if is_sharded:
        shard(model, ranks)
    else:
        model.lay_out(channels_last=settings.fused and not is_repeatable, example=trials[0])  # no gain in float64
    other_bits = model.deterministic_bits() + sum(charge.bits for charge in [*model.charges(), *likelihood.charges()])
    objective = make_objective(settings.objective, likelihood, data.targets, other_bits)
    objective.to(data.targets.device)
    options: dict[str, Any] = {"max_grad_norm": settings.gradient_clip, "by_pieces": settings.fused}
    options |= {"ranks": ranks, "noise": engine.noise}
    optimizer = make_optimizer(model, [likelihood, objective], settings.optimizer, len(data), **options)
    steps = -(-len(data) // settings.batch_size)
    schedule = make_schedule(optimizer, settings.schedule, settings.passes, steps)
    model.ranks = ranks
    reuse = 1 if is_repeatable or is_sharded else settings.noise_reuse
    model.set_noise(ExactNoise() if is_repeatable else None, seed=seed)
    outputs = DrawnOutputs(model, trials, reuse)
    model.set_noise(model.noise_source, reuse)
    if settings.antithetic and all(weight.noise_on_outputs or not weight.is_gaussian for weight in model.weights):
        raise ConfigError("training.antithetic: no layer draws its weights; leave it out, or set bayesian.estimator=weight")
    fit = Fit(
        model, likelihood, data, settings, seed, optimizer, schedule, Beta(settings, steps), objective, outputs, watch=watch,
        mode=mode, ranks=ranks,
    )  # fmt: skip
    model.evaluation_graphs = settings.graph == "auto"
    captures = captures_of(model.device) if model.evaluation_graphs else None
    if captures is not None:
        fit.graphs = StepGraphs(fit, captures)
        if why := fit.why_no_graph():
            fit.graphs.give_up(why)
    return fit


def captures_of(device: torch.device) -> Captures | None:
    """Return what captures steps on a device; None if nothing does."""
    return captures_on(device) if device.type == "cuda" else None


POSTERIOR_WORDS, PLAIN_WORDS = 8, 4
"""Numbers that a step holds for each weight: the draw, its gradient, mean, log std and four running averages; without a
posterior the parameter, its gradient and two averages.
"""


def check_memory(model: BayesianModel, device: torch.device, number_bytes: int = 4, *, shards: int = 1) -> None:
    """Check that a step's tensors fit into the free memory of a GPU, before anything is moved there.

    Args:
        model: model to be trained.
        device: where to; only GPUs are checked.
        number_bytes: bytes of a number in training.
        shards: processes among which the weights are divided.

    Raises:
        ConfigError: if they do not fit.
    """
    if device.type != "cuda":
        return
    drawn = {id(weight.known) for weight in model.weights if weight.is_trained}
    weights, words = 0, 0
    for p in model.network.parameters():
        weights += p.numel()
        words += p.numel() * (POSTERIOR_WORDS if id(p) in drawn else PLAIN_WORDS if p.requires_grad else 1)
    needed = number_bytes * words // shards
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    there = sum(t.nbytes for t in [*model.parameters(), *model.buffers()] if t.device == device)
    if needed > free + there:
        raise ConfigError(
            f"training.device: a step of {weights:,} weights holds {needed / 1e9:,.1f} GB besides the activations "
            f"({number_bytes * POSTERIOR_WORDS} bytes for each weight with a posterior), and {device} has {free / 1e9:,.1f} GB "
            "free; take a smaller network, or device=cpu"
        )


def _to_try_out(data: Examples, settings: TrainingSettings, seed: int) -> list[Inputs]:
    """Return the first batch and a random one, on which layers are tested for local reparameterisation."""
    size = min(settings.batch_size, len(data))
    if not data.has_random_access:
        return [data.inputs[:size]]
    some = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:size]
    return [data.inputs[:size], data.inputs[some.to(data.inputs.device)]]


def _write_results(directory: Path, outcome: Outcome) -> None:
    summary = {
        "sentence": outcome.ledger.sentence(),
        "warnings": list(outcome.ledger.warnings),
        "net_bits": outcome.ledger.net_bits,
        f"test_{outcome.error_name}": outcome.test_error,
        "training_seconds": outcome.training_seconds,
        "epochs": outcome.epochs,
        "threads": outcome.threads,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    write_text(directory / "summary.json", json.dumps(summary, indent=2))
    write_text(directory / "ledger.json", outcome.ledger.to_json())


def device_named(name: str) -> torch.device:
    """Return the device of a setting.

    Args:
        name: a device of torch, or ``auto``: an accelerator if there is one.

    Returns:
        The device, which can be used.

    Raises:
        ConfigError: for a device that cannot be used here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        kinds = ("cpu", "cuda", "mps", "xpu")
        is_known = name.partition(":")[0] in kinds
        hint = f"this torch and this machine have no {name}" if is_known else f"there is no such device{near_miss(name, kinds)}"
        raise ConfigError(f"training.device: '{name}' cannot be used here ({hint}); use cpu or auto") from error
    return device


def threads_for(settings: TrainingSettings, model: BayesianModel) -> int:
    """Return the number of CPU threads.

    Args:
        settings: a number, or ``auto``.
        model: ``auto`` is one thread below a million weights, else torch's current number.

    Returns:
        number of threads.
    """
    if settings.threads != "auto":
        return settings.threads
    small = sum(p.numel() for p in model.network.parameters()) < SMALL_MODEL_WEIGHTS
    return 1 if small else torch.get_num_threads()
