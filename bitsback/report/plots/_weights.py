"""Figures of weights: prior and posterior, means, signal-to-noise ratio, bits per weight."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from bitsback.errors import BitsbackError, RunError
from bitsback.kl import kl_each
from bitsback.model import Weight
from bitsback.posteriors import GaussianPosterior
from bitsback.report._sampled import exact, sampled
from bitsback.report.plots.style import COLOURS, new_axes, octave, plain_ticks, styled
from bitsback.units import nats_to_bits

__all__ = ["bells", "bits_and_prior", "bits_per_weight", "means", "net_bits_each", "prior_density", "signal_to_noise"]

MOST_POINTS = 2_000
BINS = 40
LOWEST_RATIO = 2.0**-8
"""Smallest |mean| / std shown; smaller ratios are counted in the lowest bin."""


def bells(weight: Weight, index: int = 0, factor: float = 1.0, ax: Axes | None = None) -> Axes:
    """Draw the prior and posterior density of one weight.

    Args:
        weight: a tensor with its posterior and prior, such as ``model.weights[0]``.
        index: of the weight in the flattened tensor.
        factor: multiplies the trained std.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        RunError: the weight is a point estimate, the index is out of range, or the factor is not positive.

    >>> import torch, bitsback
    >>> model = bitsback.bayesianize(torch.nn.Linear(3, 2), prior="laplace")
    >>> bells(model.weights[0], index=4).get_xlabel()
    'weight[1, 1]'
    """
    mean, std = _moments([weight])
    if not 0 <= index < len(mean):
        raise RunError(f"'{weight.name}' has {len(mean):,} weights; index {index} is not among them")
    if not factor > 0:
        raise RunError(f"a width factor must be above zero, got {factor:g}")
    centre, spread = float(mean[index]), float(std[index]) * factor
    reach = max(abs(centre) + 4 * float(std[index]) * max(1.0, factor), 3 * float(weight.prior.typical_scale().detach().min()))
    points = np.union1d(np.linspace(-reach, reach, 440), centre + spread * np.linspace(-6, 6, 160))
    points = points[np.abs(points) <= reach]  # dense around the posterior, which may be very narrow
    indices = ", ".join(str(axis) for axis in np.unravel_index(index, tuple(weight.posterior.mean.shape)))
    with styled():
        ax = ax or new_axes()
        prior = prior_density([weight], points, index)
        if prior is not None:
            ax.fill_between(points, prior, color=COLOURS["prior"], alpha=0.18, linewidth=0)
            ax.plot(points, prior, "--", color=COLOURS["prior"], label="prior")
        posterior = np.exp(-0.5 * ((points - centre) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
        ax.fill_between(points, posterior, color=COLOURS["posterior"], alpha=0.25, linewidth=0)
        ax.plot(
            points,
            posterior,
            color=COLOURS["posterior"],
            label="posterior" + (f", {factor:g} times as wide" if factor != 1 else ""),
        )
        ax.set(xlabel=f"{weight.name}[{indices}]", ylabel="density", ylim=(0, None))
        plain_ticks(ax.xaxis)
        plain_ticks(ax.yaxis)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return ax


def means(weights: Sequence[Weight], ax: Axes | None = None) -> Axes:
    """Draw the histogram of posterior means, or of point estimates, with the density of their prior.

    Args:
        weights: such as ``model.weights``; several priors are mixed in proportion to their weights' numbers.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        RunError: there are no weights.
    """
    if not weights:
        raise RunError("there are no weights to draw; give those of a model, such as model.weights")
    mean = _flat([weight.posterior.mean for weight in weights])
    wide = any(isinstance(weight.posterior, GaussianPosterior) for weight in weights)
    low, high = _span(mean)
    with styled():
        ax = ax or new_axes()
        ax.hist(
            np.clip(mean, low, high),
            bins=BINS,
            range=(low, high),
            density=True,
            color=COLOURS["posterior"],
            alpha=0.75,
            label="means" if wide else "weights",
        )
        points = np.linspace(low, high, 401) + 1e-9  # avoid zero, where a prior may have a pole
        prior = prior_density(weights, points)
        tallest = ax.get_ylim()[1]
        if prior is not None:
            ax.plot(points, prior, "--", color=COLOURS["prior"], linewidth=1.6, label="prior")
        ax.set(xlabel="posterior mean" if wide else "weight", ylabel="density", ylim=(0, 1.15 * tallest))
        plain_ticks(ax.xaxis)
        plain_ticks(ax.yaxis)
        ax.legend(loc="upper right", title=None if prior is not None else "the prior has no density\nfor single weights")
    return ax


def signal_to_noise(weights: Sequence[Weight], ax: Axes | None = None) -> Axes:
    """Draw the histogram of \\|mean\\| / std on a logarithmic axis, with a line at 1.

    Args:
        weights: such as ``model.weights``.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        RunError: no weight has a Gaussian posterior.
    """
    mean, std = _moments(weights)
    ratio = np.log2(np.maximum(np.abs(mean) / std, LOWEST_RATIO))
    low, high = np.floor(ratio.min()), max(np.ceil(ratio.max()), 1.0)
    with styled():
        ax = ax or new_axes()
        ax.hist(ratio, bins=BINS, range=(low, high), color=COLOURS["posterior"], alpha=0.75)
        ax.axvline(0.0, color=COLOURS["ink"], linewidth=1, linestyle="--")
        above = float((ratio > 0).mean())
        ax.annotate(f"{above:.0%} above 1", (1.0, 1.01), xycoords="axes fraction", ha="right", color=COLOURS["muted"])
        ticks = np.arange(low, high + 1, max(1, np.ceil((high - low) / 7)))
        names = [octave(2.0**tick) for tick in ticks]
        if ratio.min() == np.log2(LOWEST_RATIO):
            names[0] = f"\N{LESS-THAN OR EQUAL TO}{names[0]}"
        ax.set_xticks(ticks, names)
        ax.set(xlabel="|mean| / std", ylabel="weights")
        plain_ticks(ax.yaxis)
    return ax


def bits_per_weight(weights: Sequence[Weight], ax: Axes | None = None) -> Axes:
    """Draw the histogram of net bits per weight, with a line at their mean.

    Args:
        weights: such as ``model.weights``.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        RunError: no weight has a Gaussian posterior, or the prior does not code weights one by one.
    """
    _, bits, shares = net_bits_each(weights)
    with styled():
        ax = ax or new_axes()
        ax.hist(bits, bins=BINS, weights=shares, color=COLOURS["net"], alpha=0.8)
        middle = float(np.average(bits, weights=shares))
        ax.axvline(middle, color=COLOURS["ink"], linewidth=1, linestyle="--")
        said = f"mean {middle:.2f}"
        ax.annotate(said, (middle, 0.95), (5, 0), ("data", "axes fraction"), "offset points", color=COLOURS["muted"])
        ax.set(xlabel="net bits of a weight", ylabel="weights")
        plain_ticks(ax.xaxis)
        plain_ticks(ax.yaxis)
    return ax


def bits_and_prior(weights: Sequence[Weight], ax: Axes | None = None) -> Axes:
    """Draw the net bits of each weight against its posterior mean, with the prior's density in the background.

    Args:
        weights: such as ``model.weights``; at most 2,000 of them are drawn.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        RunError: no weight has a Gaussian posterior, or the prior does not code weights one by one.
    """
    mean, bits, _ = net_bits_each(weights)
    chosen = np.unique(np.linspace(0, len(mean) - 1, min(len(mean), MOST_POINTS)).round().astype(int))
    low, high = _span(mean)
    with styled():
        ax = ax or new_axes()
        points = np.linspace(low, high, 401) + 1e-9
        prior = prior_density(weights, points)
        top = 1.1 * float(bits.max())
        if prior is not None:
            shade = prior / np.quantile(prior, 0.995) * 0.9 * top
            ax.fill_between(
                points, np.minimum(shade, top), color=COLOURS["prior"], alpha=0.2, linewidth=0, label="prior density"
            )
        ax.plot(mean[chosen], bits[chosen], "o", markersize=2.5, color=COLOURS["net"], alpha=0.6, rasterized=len(chosen) > 300)
        ax.set(xlabel="posterior mean", ylabel="net bits", ylim=(min(0.0, float(bits.min())), top), xlim=(low, high))
        plain_ticks(ax.xaxis)
        plain_ticks(ax.yaxis)
        if prior is not None:
            ax.legend(loc="upper right")
    return ax


def net_bits_each(weights: Sequence[Weight]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute mean and net bits of single weights; an even sample of a tensor if each costs a quadrature.

    Returns:
        Means, net bits, and the number of weights that each represents, (n,) each.

    Raises:
        RunError: no weight has a Gaussian posterior, or the prior does not code weights one by one.
    """
    _moments(weights)
    means, bits, shares = [], [], []
    for weight in weights:
        if not isinstance(weight.posterior, GaussianPosterior):
            continue
        prior = exact(weight.prior)
        some = sampled(weight, prior)
        try:
            with torch.no_grad():
                bits.append(nats_to_bits(kl_each(GaussianPosterior(some.mean, some.std), prior)).flatten())
        except BitsbackError as error:
            raise RunError(f"no bits of single weights: {error}") from error
        means.append(some.mean.flatten())
        shares.append(torch.full_like(means[-1], some.scale))
    return torch.cat(means).numpy(), torch.cat(bits).numpy(), torch.cat(shares).numpy()


@torch.no_grad()
def prior_density(weights: Sequence[Weight], points: np.ndarray, index: int | None = None) -> np.ndarray | None:
    """Compute the density of the priors, mixed in proportion to their weights' numbers.

    Args:
        weights: tensors with their priors.
        points: (n,), values of a weight.
        index: use only the prior of this weight of the first tensor, an index into the flattened tensor.

    Returns:
        Density (n,); None if a prior has no density of single weights, or it would be too slow.
    """
    total, count = torch.zeros(len(points), dtype=torch.float64), 0
    x = torch.as_tensor(points, dtype=torch.float32)
    for weight in weights:
        p = weight.prior()
        if p.event_shape:
            return None
        shape = p.batch_shape
        column = x.reshape(-1, *[1] * max(len(shape), 1)).to(weight.posterior.mean.device)
        if shape.numel() * len(x) > 20_000_000:
            return None
        density = p.log_prob(column).exp().cpu().double()
        if index is not None:
            return (
                density.expand(len(x), *weight.posterior.mean.shape).flatten(1)[:, index].numpy()
                if shape
                else density.flatten().numpy()
            )
        total += density.flatten(1).mean(1) * weight.posterior.numel
        count += weight.posterior.numel
    return (total / count).numpy()


def _moments(weights: Sequence[Weight]) -> tuple[np.ndarray, np.ndarray]:
    wide = [weight.posterior for weight in weights if isinstance(weight.posterior, GaussianPosterior)]
    if not wide:
        raise RunError("no weight has a Gaussian posterior to draw; train with posterior.kind=gaussian")

    return _flat([q.mean for q in wide]), _flat([q.std() for q in wide])


def _flat(parts: list[Tensor]) -> np.ndarray:
    return torch.cat([part.detach().cpu().double().flatten() for part in parts]).numpy()


def _span(mean: np.ndarray) -> tuple[float, float]:
    """Return the interval of nearly all means, with a margin."""
    low, high = np.quantile(mean, [0.001, 0.999]) if len(mean) > 5_000 else (mean.min(), mean.max())
    margin = 0.08 * (high - low) or 1.0
    return float(low - margin), float(high + margin)
