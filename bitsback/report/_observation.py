"""Everything that a report shows of one run, gathered once."""

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
from bitsback.report._budget import affordable, operations
from bitsback.report._example_costs import Judged, judged
from bitsback.report._recoded import recoded
from bitsback.report._sampled import exact
from bitsback.report.widths import Widths, widths
from bitsback.units import nats_to_bits

__all__ = ["DEAREST", "FirstLayer", "Metrics", "Observation", "observe", "read_metrics"]

DEAREST = 32
"""How many of the most expensive examples are shown."""
SHOWN_CELLS = 1024
"""Of each axis of the first layer, at most so many are kept: a picture shows no more."""

Metrics = list[dict[str, Any]]


@dataclass(frozen=True)
class FirstLayer:
    """The first weights that meet the inputs: mean, std and net bits, as pictures (n, [channels,] h, w) or as one matrix.

    A point estimate has only its mean; under a prior that does not code weights one by one there are no bits of each.
    """

    name: str
    mean: Tensor
    std: Tensor | None
    bits: Tensor | None


class Observation:
    """One finished run, and everything that its pictures show: each part is computed when it is first asked for.

    Args:
        run: the run directory.
        experiment: the run's own, when it is at hand; otherwise it is loaded.
        progress: show bars for what takes long.
    """

    def __init__(self, run: Run, experiment: Experiment | None = None, *, progress: bool = False) -> None:
        self.run, self.progress = run, progress
        self.book: Ledger = run.ledger()
        self.metrics: Metrics = read_metrics(run.directory)
        self._given = experiment

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.run.directory.resolve().name

    @property
    def own_prior(self) -> str:
        """The kind of prior that it was trained for."""
        return self.run.config.prior.kind

    @property
    def has_classes(self) -> bool:
        """Whether the targets are labels, predicted by a probability for each."""
        return isinstance(self.experiment.likelihood, CategoricalLikelihood)

    def class_name(self, label: int) -> str:
        """What a label is called."""
        names = getattr(self.experiment.likelihood, "names", None)
        return str(names[label]) if names else str(label)

    @cached_property
    def experiment(self) -> Experiment:
        """Data, model and likelihood."""
        return self._given if self._given is not None else self.run.experiment()

    @cached_property
    def weights(self) -> list[Weight]:
        """The weights with a Gaussian posterior; none for a point estimate."""
        return [weight for weight in self.experiment.model.weights if isinstance(weight.posterior, GaussianPosterior)]

    @cached_property
    def widths(self) -> Widths | None:
        """What wider and narrower posteriors would cost; None for a point estimate."""
        if not self.weights:
            return None
        e, seed = self.experiment, self.run.config.seed
        return widths(e.model, e.likelihood, e.dataset.train, self.book, seed=seed, progress=self.progress)

    @cached_property
    def other_priors(self) -> dict[str, Ledger]:
        """The run's own ledger, and that of the same posterior under each other prior; empty for a point estimate."""
        if not self.weights:
            return {}
        others = [kind for kind in priors if kind != self.own_prior]
        return {self.own_prior: self.book, **recoded(self.experiment.model, self.book, others, progress=self.progress)}

    @cached_property
    def train(self) -> Judged:
        """What each training example costs."""
        return self._look(self.experiment.dataset.train)

    @cached_property
    def test(self) -> Judged | None:
        """The same for test examples; None where there are none."""
        test = self.experiment.dataset.test
        return self._look(test) if test is not None else None

    @cached_property
    def pictures(self) -> Tensor | None:
        """The dearest training examples as pictures (DEAREST, h, w); None when they are no pictures."""
        return _pictures(self.run, self.experiment.dataset.train, self.train.numbers[self.train.dearest(DEAREST)])

    @cached_property
    def first(self) -> FirstLayer | None:
        """The first layer's weights as pictures; None when no layer has a matrix of them."""
        return _first_layer(self.experiment.model.weights, self.experiment.dataset.train.inputs.shape[1:])

    def _look(self, split: Examples) -> Judged:
        e = self.experiment
        few, draws = affordable(split, judging.MOST_DRAWS, judging.OPERATIONS, operations(e.model, split))
        numbers = torch.linspace(0, len(split) - 1, len(few), dtype=torch.float64).round().long()
        seed = self.run.config.seed
        return judged(e.model, e.likelihood, few, draws=draws, numbers=numbers, seed=seed, progress=self.progress)


def read_metrics(directory: Path) -> Metrics:
    """The lines of a run's metrics.jsonl; raises RunError when there are none, or one is damaged."""
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
    """Look at a finished run: its ledger, its width curve, other priors, its examples and its first layer.

    Raises:
        RunError: when this is no run directory, or the run has not finished.
    """
    return Observation(run if isinstance(run, Run) else load_run(run), experiment, progress=progress)


def _pictures(run: Run, train: Examples, numbers: Tensor) -> Tensor | None:
    """The inputs of some training examples as grey pictures (n, h, w) in 0..1, or None when they are no pictures."""
    inputs = train.inputs
    if run.config.data.features is not None:  # show what was there before
        inputs = run.config.data.model_copy(update={"features": None, "fraction_bits": None}).load().train.inputs
    chosen = inputs[numbers].double()
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
        alike = prior().batch_shape.numel() == 1  # the same for every weight: only those that are shown
        some = (part[seen] if alike else part for part in (mean, std))
        bits = shown(nats_to_bits(kl_each(GaussianPosterior(*(part.cpu().double() for part in some)), prior)))
    return FirstLayer(chosen.name, shown(mean), shown(std), bits)
