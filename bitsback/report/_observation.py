"""Data of one run that a report shows, computed when first used."""

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitsback.config import Experiment, Run, load_run
from bitsback.data import Examples
from bitsback.errors import BitsbackError, RunError
from bitsback.kl import kl_each
from bitsback.ledger import Ledger
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import Weight
from bitsback.posteriors import GaussianPosterior
from bitsback.priors import registry as priors
from bitsback.report import _example_costs as judging
from bitsback.report._budget import operations, subsample_to_budget
from bitsback.report._example_costs import Judged, judged
from bitsback.report._recoded import recoded
from bitsback.report._sampled import exact
from bitsback.report.widths import Widths, widths
from bitsback.units import nats_to_bits

__all__ = ["MOST_EXPENSIVE", "FirstLayer", "Metrics", "Observation", "observe", "read_metrics"]

MOST_EXPENSIVE = 32
"""Number of the most expensive examples that are shown."""
SHOWN_CELLS = 1024
"""Maximum size of each axis of the first layer's picture."""

Metrics = list[dict[str, Any]]


@dataclass(frozen=True)
class FirstLayer:
    """Weights of the first layer: mean, std and net bits, as pictures (n, [channels,] h, w) or as one matrix (out, in).

    ``std`` and ``bits`` are None for a point estimate; ``bits`` is None under a prior that does not code weights one by one.
    """

    name: str
    mean: Tensor
    std: Tensor | None
    bits: Tensor | None


class Observation:
    """Finished run with the data of its figures, each computed when first used.

    Args:
        run: opened run.
        experiment: the run's own, if already loaded.
        progress: show progress bars for long computations.
    """

    def __init__(self, run: Run, experiment: Experiment | None = None, *, progress: bool = False) -> None:
        self.run, self.progress = run, progress
        self.book: Ledger = run.ledger()
        self.metrics: Metrics = read_metrics(run.directory)
        self._given = experiment

    @property
    def name(self) -> str:
        """Name of the run directory."""
        return self.run.directory.resolve().name

    @property
    def own_prior(self) -> str:
        """Kind of the prior under which the run was trained."""
        return self.run.config.prior.kind

    @property
    def has_classes(self) -> bool:
        """Whether every example has one label, with a categorical likelihood."""
        e = self.experiment
        return isinstance(e.likelihood, CategoricalLikelihood) and e.dataset.train.targets.ndim == 1

    def class_name(self, label: int) -> str:
        """Return the name of a class."""
        names = getattr(self.experiment.likelihood, "names", None)
        return str(names[label]) if names else str(label)

    @cached_property
    def experiment(self) -> Experiment:
        """Data, model and likelihood."""
        return self._given if self._given is not None else self.run.experiment()

    @cached_property
    def weights(self) -> list[Weight]:
        """Weights with a Gaussian posterior; empty for a point estimate."""
        return [weight for weight in self.experiment.model.weights if isinstance(weight.posterior, GaussianPosterior)]

    @cached_property
    def widths(self) -> Widths | None:
        """Ledgers at wider and narrower posteriors; None for a point estimate."""
        if not self.weights:
            return None
        e, seed = self.experiment, self.run.config.seed
        return widths(e.model, e.likelihood, e.dataset.train, self.book, seed=seed, progress=self.progress)

    @cached_property
    def other_priors(self) -> dict[str, Ledger]:
        """Ledgers of the posterior under its own and each other prior, by kind; empty for a point estimate."""
        if not self.weights:
            return {}
        others = [kind for kind in priors if kind != self.own_prior]
        return {self.own_prior: self.book, **recoded(self.experiment.model, self.book, others, progress=self.progress)}

    @cached_property
    def train(self) -> Judged:
        """Bits and predictions of training examples."""
        return self._look(self.experiment.dataset.train)

    @cached_property
    def test(self) -> Judged | None:
        """Bits and predictions of test examples; None without a test split."""
        test = self.experiment.dataset.test
        return self._look(test) if test is not None else None

    @cached_property
    def pictures(self) -> Tensor | None:
        """Most expensive training examples as pictures (MOST_EXPENSIVE, h, w); None if the inputs are not pictures."""
        return _pictures(self.run, self.experiment.dataset.train, self.train.numbers[self.train.most_expensive(MOST_EXPENSIVE)])

    @cached_property
    def first(self) -> FirstLayer | None:
        """Weights of the first layer as pictures; None if no layer has a weight matrix."""
        one = self.experiment.dataset.train.inputs[:1]
        return _first_layer(self.experiment.model.weights, one.shape[1:] if isinstance(one, Tensor) else torch.Size())

    def _look(self, split: Examples) -> Judged:
        e = self.experiment
        few, draws = subsample_to_budget(split, judging.MOST_DRAWS, judging.OPERATIONS, operations(e.model, split))
        numbers = torch.arange(len(few))
        if split.has_random_access:  # spread evenly
            numbers = torch.linspace(0, len(split) - 1, len(few), dtype=torch.float64).round().long()
        seed = self.run.config.seed
        return judged(e.model, e.likelihood, few, draws=draws, numbers=numbers, seed=seed, progress=self.progress)


def read_metrics(directory: Path) -> Metrics:
    """Read a run's metrics.jsonl; raises RunError if it is missing, empty or damaged."""
    path = directory / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}; train the run again to get its curves") from error
    if not found:
        raise RunError(f"{path} is empty; finish the run with `bitsback train {directory} --resume`")
    return found


def observe(run: Run | str | Path, *, experiment: Experiment | None = None, progress: bool = False) -> Observation:
    """Open a finished run for figures: ledger, widths, other priors, examples and first layer.

    Args:
        run: an opened run, or a run directory.
        experiment: the run's own, if already loaded.
        progress: show progress bars for long computations.

    Returns:
        The run; each part is computed when first used.

    Raises:
        RunError: the directory is not a run, or the run has not finished.
    """
    return Observation(run if isinstance(run, Run) else load_run(run), experiment, progress=progress)


def _pictures(run: Run, train: Examples, numbers: Tensor) -> Tensor | None:
    """Return training inputs as grey pictures (n, h, w) in [0, 1], or None if they are not pictures."""
    inputs = train.inputs
    if run.config.data.features is not None:  # show the inputs before the features
        inputs = run.config.data.model_copy(update={"features": None, "fraction_bits": None}).load().train.inputs
    if not train.has_random_access or not isinstance(chosen := inputs[numbers], Tensor):
        return None
    chosen = chosen.double()
    if chosen.ndim == 4:
        chosen = chosen.mean(1)
    if chosen.ndim != 3 or min(chosen.shape[1:]) < 4:
        return None
    low, high = chosen.min(), chosen.max()
    return (chosen - low) / (high - low).clamp_min(1e-12)


@torch.no_grad()
def _first_layer(weights: list[Weight], picture: torch.Size) -> FirstLayer | None:
    convolutions = [weight for weight in weights if weight.posterior.mean.ndim in (3, 4)]
    chosen = next(iter([*convolutions, *(weight for weight in weights if weight.posterior.mean.ndim == 2)]), None)
    if chosen is None:
        return None
    mean, std = chosen.posterior.mean.detach(), chosen.posterior.std()
    seen = (slice(0, SHOWN_CELLS),) * mean.ndim
    is_picture = mean.ndim == 2 and len(picture) == 3 and mean.shape[1] == picture.numel() <= SHOWN_CELLS

    def shown(values: Tensor) -> Tensor:
        values = values[seen].cpu().double()
        return values.reshape(-1, *picture) if is_picture else values

    if std is None:
        return FirstLayer(chosen.name, shown(mean), None, None)
    prior, bits = exact(chosen.prior), None
    with suppress(BitsbackError):  # a prior that does not code its weights one by one has no bits of each
        alike = prior().batch_shape.numel() == 1  # one prior for all weights: compute only those shown
        some = (part[seen] if alike else part for part in (mean, std))
        bits = shown(nats_to_bits(kl_each(GaussianPosterior(*(part.cpu().double() for part in some)), prior)))
    return FirstLayer(chosen.name, shown(mean), shown(std), bits)
