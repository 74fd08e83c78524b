"""Static figures of a run by name, for ``bitsback plot`` and the report."""

from collections.abc import Callable, Iterator

import torch
from matplotlib.axes import Axes

from bitsback.errors import RunError, near_miss
from bitsback.likelihoods import BernoulliLikelihood
from bitsback.report import plots
from bitsback.report._observation import MOST_EXPENSIVE, Observation

__all__ = ["FIGURES", "Figure", "drawn", "figure"]

Figure = Callable[[Observation], Axes | None]


def figure(seen: Observation, name: str) -> Axes:
    """Draw one figure of a run.

    Args:
        seen: the run, from :func:`observe`.
        name: one of :data:`FIGURES`.

    Returns:
        The Axes.

    Raises:
        RunError: the name is unknown, or this run has no such figure.
    """
    if name not in FIGURES:
        raise RunError(f"there is no figure '{name}'{near_miss(name, FIGURES)}; known: {', '.join(FIGURES)}")
    with plots.off_screen():
        axes = FIGURES[name](seen)
    if axes is None:
        raise RunError(f"{seen.run.directory} has nothing to show as '{name}'; {WHY_NOT.get(name, POINT)}")
    return axes


def drawn(seen: Observation) -> Iterator[tuple[str, Axes | None]]:
    """Yield every figure with its name; None for a figure that this run does not have."""
    for name, draw in FIGURES.items():
        with plots.off_screen():
            axes = draw(seen)
        yield name, axes


def _of_weights(name: str) -> Figure:
    def draw(seen: Observation) -> Axes | None:
        one_by_one = all(not weight.prior().event_shape for weight in seen.weights)
        return getattr(plots, name)(seen.weights) if seen.weights and (one_by_one or name not in OF_EACH) else None

    return draw


def _first(part: str, title: str) -> Figure:
    def draw(seen: Observation) -> Axes | None:
        values = getattr(seen.first, part, None)
        return None if values is None else plots.filters(values.numpy(), symmetric=part == "mean", title=title)

    return draw


def _calibration(seen: Observation) -> Axes | None:
    looked = seen.test or seen.train
    likelihood, predicted, targets = seen.experiment.likelihood, looked.predicted, looked.targets
    if (
        isinstance(likelihood, BernoulliLikelihood) and predicted.numel() == targets.numel()
    ):  # each answer has two classes: no and yes
        predicted = torch.stack([1 - predicted, predicted], -1).reshape(*targets.shape, 2)
    elif not seen.has_classes:
        return None
    coded = likelihood.coded(targets)
    coded = torch.ones_like(targets, dtype=torch.bool) if coded is None else coded
    return plots.calibration(predicted[coded].numpy(), targets[coded].numpy()) if coded.any() else None


def _examples(seen: Observation) -> Axes | None:
    if not seen.has_classes or seen.pictures is None:
        return None
    order = seen.train.most_expensive(MOST_EXPENSIVE)
    said = seen.train.predicted[order].argmax(-1).numpy()
    bits, labels = seen.train.bits[order].numpy(), seen.train.targets[order].numpy()
    return plots.examples(seen.pictures.numpy(), bits, labels, predicted=said)


POINT = "a point estimate has no width and no refund; train with posterior.kind=gaussian"
ALONE = "its prior does not code weights one by one"
OF_EACH = ("bits_per_weight", "bits_and_prior")
WHY_NOT = {
    "bits_per_weight": f"it is a point estimate, or {ALONE}",
    "bits_and_prior": f"it is a point estimate, or {ALONE}",
    "calibration": "its targets are no labels, or none that was looked at is coded",
    "means": "none of its weights is coded under a prior; name some with bayesian.include",
    "examples": "its inputs are no pictures, or its targets no labels",
    "first_bits": f"it is a point estimate, {ALONE}, or no layer has a matrix of weights",
}
FIGURES: dict[str, Figure] = {
    "training": lambda seen: plots.training(seen.metrics),
    "ledger": lambda seen: plots.ledger(seen.book),
    "width": lambda seen: plots.width(seen.widths.curve) if seen.widths else None,
    "grid": lambda seen: plots.grid(seen.book) if seen.weights else None,
    "bells": lambda seen: plots.bells(seen.weights[0]) if seen.weights else None,
    "priors": lambda seen: plots.priors(seen.other_priors) if seen.other_priors else None,
    "means": lambda seen: plots.means(weights) if (weights := seen.experiment.model.weights) else None,
    "signal_to_noise": _of_weights("signal_to_noise"),
    "bits_per_weight": _of_weights("bits_per_weight"),
    "bits_and_prior": _of_weights("bits_and_prior"),
    "first_mean": _first("mean", "mean"),
    "first_std": _first("std", "std"),
    "first_bits": _first("bits", "net bits"),
    "calibration": _calibration,
    "examples": _examples,
}
"""Functions that draw the figures, by name; they return None if a run has no such figure."""
