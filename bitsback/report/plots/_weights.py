"""Figures of weights: prior and posterior, means, signal-to-noise, bits of each."""

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
"""Of mean to std; weights below it are counted with it."""


def bells(weight: Weight, index: int = 0, factor: float = 1.0, ax: Axes | None = None) -> Axes:
    """Prior and posterior density of one weight.

    Args:
        weight: a tensor with its posterior and prior, such as ``model.weights[0]``.
        index: which of its weights, counted through the flattened tensor.
        factor: times the trained width.
        ax: where to draw; default: a new figure.

    Raises:
        RunError: for a point estimate, which has no density, an index out of range, and a factor of zero or below.

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
    points = points[np.abs(points) <= reach]  # dense where the bell is, which may be a needle
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
    """Histogram of the posterior means, or of point estimates, with the density of the prior that charges for them.

    Args:
        weights: such as ``model.weights``; several priors are mixed by how many weights each has.
        ax: where to draw; default: a new figure.

    Raises:
        RunError: without weights.
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
        points = np.linspace(low, high, 401) + 1e-9  # beside a pole
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
    """Histogram of \\|mean\\| / std on a logarithmic axis; the line marks 1, where the noise is as large as the mean.

    Args:
        weights: such as ``model.weights``.
        ax: where to draw; default: a new figure.

    Raises:
        RunError: when no weight has a Gaussian posterior.
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
    """Histogram of the net bits of each weight, their mean marked.

    Args:
        weights: such as ``model.weights``.
        ax: where to draw; default: a new figure.

    Raises:
        RunError: when no weight has a Gaussian posterior, or the prior does not code weights one by one.
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
    """Net bits of each weight against its mean, in front of the prior's density: far out is dear.

    Args:
        weights: such as ``model.weights``; of many, some are drawn.
        ax: where to draw; default: a new figure.

    Raises:
        RunError: when no weight has a Gaussian posterior, or the prior does not code weights one by one.
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
    """Mean, net bits and share of every weight, (n,) each; of a tensor whose bits cost a quadrature each, an even sample.

    A share says how many weights one of the sample stands for.

    Raises:
        RunError: when no weight has a Gaussian posterior, or the prior does not code weights one by one.
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
    """The priors' density at ``points`` (n,), mixed by how many weights each codes; None without one for single weights.

    ``index``: of that one weight of the first tensor alone.
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
    """Where nearly all means lie, with a margin."""
    low, high = np.quantile(mean, [0.001, 0.999]) if len(mean) > 5_000 else (mean.min(), mean.max())
    margin = 0.08 * (high - low) or 1.0
    return float(low - margin), float(high + margin)
