"""Ledger of any Pyro program with a guide, from draws of both."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, SupportsFloat

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    biject_to,
    kl_divergence,
)

from bitsback.errors import LedgerError, near_miss
from bitsback.interop.pyro._as_program import Targets
from bitsback.interop.pyro._sites import (
    Draw,
    Group,
    Site,
    bare,
    device_of,
    draw,
    free_places,
    groups_of,
    holds_data,
    is_continuous,
    is_plainly_made,
    is_point,
    of_reals,
    said_fix,
    same,
    shown_elements,
    transform_parts,
)
from bitsback.kl.quadrature import nodes_between
from bitsback.ledger import Entry, Ledger
from bitsback.likelihoods import BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood, Likelihood, PoissonLikelihood
from bitsback.model import WIDTH_FACTORS
from bitsback.torch_state import seeded
from bitsback.units import nats_to_bits

__all__ = ["ledger_of", "width_curve_of"]

BUCKET_NODES = 32
"""Gauss-Legendre nodes in the bucket of a point."""

MOST_WIDTHS = 16
"""Largest grid step of a point, in stds of its prior."""

Resolution = float | Mapping[str, float] | None
"""Grid step of observed real numbers, one or by the name of the site."""


def ledger_of(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    samples: int = 20,
    seed: int = 0,
    grid_step: float | None = None,
    resolution: Resolution = None,
    **kwargs: Any,
) -> Ledger:
    """Compute the ledger of a Pyro program and its guide.

    Each latent that the guide draws has an entry: gross bits -log2 p, the refund -log2 q, and their difference. Net bits are in
    closed form where the KL of guide and model is known, given what the model draws before, else averaged over the draws, with
    their standard error. A latent that is not over all reals is counted on the unconstrained scale on which the guide draws
    it, the log of the transform's derivative included. Latents of a joint guide, and latents that depend on each other in the
    guide, are one entry. Latents that are points have no refund, and are rounded to the grid. Sites in a subsampled plate count
    for the whole plate. Parameters of the model cost the bits of their type (float32: 32) each.

    Args:
        model: Pyro program whose latents are continuous or drawn by the guide, and whose observations are data.
        guide: trained guide, by hand or one of ``pyro.infer.autoguide``.
        args: arguments of model and guide.
        samples: draws for the data bits and for what has no closed form, at least 2.
        seed: seed of the draws.
        grid_step: grid step of the latents, in gross bits, refunds and points; default: a power of two below the smallest std.
        resolution: grid step of observed real numbers, one or by name of the site; without one they have no code length.
        kwargs: named arguments of model and guide.

    Returns:
        The ledger; its net bits are -ELBO in bits, but for the parameters and the grid of observed real numbers.

    Raises:
        LedgerError: for enumerated sites, sites that the guide misses or adds, a guide that leaves a support, a structure that
            changes from draw to draw, and observed real numbers without a resolution.
        PriorError: for an improper prior.

    >>> import pyro
    >>> def model(x):
    ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Poisson(mean.exp()), obs=x)
    >>> def guide(x):
    ...     pyro.sample("mean", dist.Normal(0.5, 0.25))
    >>> ledger = ledger_of(model, guide, torch.tensor([1.0, 2.0, 4.0]))
    >>> [(entry.name, round(entry.net_bits, 4), entry.method) for entry in ledger.entries]  # ln 4 + (1/16 + 1/4) / 2 - 1/2 nats
    [('mean', 1.5041, 'closed_form')]
    """
    return _ledger(model, guide, args, kwargs, samples=samples, seed=seed, grid_step=grid_step, resolution=resolution)


def width_curve_of(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    factors: Sequence[float] = WIDTH_FACTORS,
    samples: int = 20,
    seed: int = 0,
    resolution: Resolution = None,
    **kwargs: Any,
) -> dict[float, Ledger]:
    """Compute the ledger with the std of every Gaussian of the guide multiplied by each factor.

    Args:
        model: Pyro program.
        guide: trained guide.
        args: arguments of model and guide.
        factors: factors of the stds, each above zero.
        samples: draws of each ledger.
        seed: seed of the draws.
        resolution: as for :func:`ledger_of`.
        kwargs: named arguments of model and guide.

    Returns:
        Ledgers by factor, on one grid; ``bitsback.analysis.widen.WidthCurve`` of them prints a table.

    Raises:
        LedgerError: when the guide draws from no Gaussian, or a factor is not positive.
    """
    if not factors or not all(factor > 0 for factor in factors):
        raise LedgerError(f"width factors must be above zero, got {list(factors)}")
    with torch.no_grad(), seeded(seed, device_of(args, kwargs)):
        (latents, _, sites), *_ = draw(model, guide, args, kwargs)
    if not any(_is_gaussian(sites[group.drawn]["fn"]) for group in groups_of(latents, sites)):
        raise LedgerError(
            "the guide draws from no Gaussian whose width could be changed; use AutoNormal, or another Gaussian guide"
        )
    step = _default_step(latents, sites)
    more: dict[str, Any] = {"samples": samples, "seed": seed, "grid_step": step, "resolution": resolution}
    return {factor: _ledger(model, guide, args, kwargs, factor=factor, **more) for factor in factors}


@dataclass
class _Cost:
    """Cost of a group, draw by draw, in nats.

    Attributes:
        ratio: log q - log p at the draws.
        closed: KL of q and p, given the latents before; NaN where it is not known.
        refund: -log q of what is drawn, by the entropy where it is known.
        numbers: numbers that are drawn and not masked, in the whole plate; K - 1 on a simplex of K.
        counted: how many of them are on the grid.
        is_point: whether the latent is a point.
    """

    ratio: list[float] = field(default_factory=list)
    closed: list[float] = field(default_factory=list)
    refund: list[float] = field(default_factory=list)
    numbers: int = 0
    counted: float = 0.0
    is_point: bool = False
    model_moves: bool = False
    guide_moves: bool = False


@torch.no_grad()
def _ledger(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: Any,
    kwargs: Any,
    *,
    samples: int,
    seed: int,
    grid_step: float | None,
    resolution: Resolution,
    factor: float = 1.0,
) -> Ledger:
    if samples < 2:
        raise LedgerError(f"ledger_of needs samples >= 2, to see what changes from draw to draw, got samples={samples}")
    if grid_step is not None and not grid_step > 0:
        raise LedgerError(f"ledger_of needs a grid_step above zero, or None to choose it from the guide; got {grid_step}")
    _check_steps(resolution)
    with seeded(seed, device_of(args, kwargs)):
        if grid_step is None:
            (latents, _, sites), *_ = draw(model, guide, args, kwargs)
            grid_step = _default_step(latents, sites)
    with seeded(seed, device_of(args, kwargs)):
        first, own, guides = draw(model, guide, args, kwargs, factor=factor, points_step=grid_step)
        _check_names(resolution, first[1])
        groups = groups_of(first[0], first[2])
        costs = {group: _Cost() for group in groups}
        data = [_counted(groups, costs, first, first, grid_step, resolution)]
        for _ in range(samples - 1):
            again, *_ = draw(model, guide, args, kwargs, factor=factor, points_step=grid_step)
            _same_structure(first, again)
            data.append(_counted(groups, costs, again, first, grid_step, resolution))
    return _book(groups, costs, data, first, own, guides, grid_step, resolution)


def _book(
    groups: Sequence[Group],
    costs: Mapping[Group, _Cost],
    data: Sequence[float],
    first: Draw,
    own: Mapping[str, Tensor],
    guides: Mapping[str, Tensor],
    step: float,
    resolution: Resolution,
) -> Ledger:
    """Return the ledger of all draws."""
    joined = _joined(groups, costs)
    entries = [_entry(names, parts, step) for names, parts in joined if any(part.numbers for part in parts)]
    hidden = [
        f"'{names}' is masked throughout and costs nothing" for names, parts in joined if not any(p.numbers for p in parts)
    ]
    for parameter, value in own.items():
        name = parameter.replace("$$$", ".")  # of pyro.module
        bits = 8.0 * value.element_size()
        entries.append(
            Entry.of(name, weights=value.numel(), net_bits=bits * value.numel(), refund_bits=0.0, method=f"float{bits:.0f}")
        )
    latents, observed, _ = first
    if not observed:
        raise LedgerError("the model observes nothing, so there are no data whose bits could be counted; give it obs=")
    data_bits, stderr = _mean([nats_to_bits(nats) for nats in data])
    without = [_without_model(sites, resolution) for sites in _together(observed)]
    marginals = [marginal for _, marginal in without if marginal is not None]
    counts = [_count(site) for site in observed.values()]
    examples = _examples(observed)
    made = [name for group in groups for name in group.latents if not group.is_direct]
    bounded = [(name, latents[name]["fn"].support) for name in made if _is_bounded(latents[name]["fn"])]
    transforms = [
        f"'{name}' is counted on its unconstrained scale: it is {_said(support)} of what is drawn" for name, support in bounded
    ]
    reals = [name for name, site in observed.items() if holds_data(site) and is_continuous(site["fn"])]
    steps = [f"'{name}' is coded on a grid of {_step_of(name, resolution):g}" for name in reals]
    parts = [name for name, site in observed.items() if float(site["scale"]) != 1]
    scaled = [
        f"'{name}' is subsampled: its bits, and those without a model, are those of the drawn part, scaled" for name in parts
    ]
    others = [value for name, value in guides.items() if name not in own]
    numbers = sum(value.numel() for value in others)
    fits = f"the guide's parameters ({numbers:,} numbers): the receiver fits the guide to the decoded data"
    book = Ledger(
        entries=tuple(entries),
        model_weights=sum(entry.weights for entry in entries),
        data_bits=data_bits,
        data_bits_stderr=stderr,
        uniform_bits=math.fsum(uniform for uniform, _ in without),
        marginal_bits=None if len(marginals) < len(without) else math.fsum(marginals),
        examples=examples,
        symbols=max(1, round(math.fsum(counts))),
        grid_step=step,
        samples=len(data),
        described="observations",
        not_charged=("the program: model, guide, and the arguments that are not observed", *([fits] if others else [])),
        notes=(*transforms, *steps, *scaled, *hidden),
    )
    return replace(book, warnings=_warnings(book))


def _warnings(book: Ledger) -> tuple[str, ...]:
    """Return a warning if the program costs more bits than no model."""
    if book.is_worth_it:
        return ()
    name = "marginal" if book.no_model_bits < book.uniform_bits else "uniform"
    return (
        f"This model costs {book.net_bits:,.0f} bits, more than no model ({name} code: {book.no_model_bits:,.0f} bits): "
        f"{book.net_weight_bits:,.0f} bits of it are latents and parameters, {book.data_bits:,.0f} observations; fit the guide "
        "for longer, or give the model fewer latents or narrower priors.",
    )


def _joined(groups: Sequence[Group], costs: Mapping[Group, _Cost]) -> list[tuple[str, list[_Cost]]]:
    """Return the entries' names and costs: latents that depend on each other in the guide are one entry."""
    is_mean_field = not any(cost.guide_moves for cost in costs.values())
    moving = [group for group in groups if (costs[group].model_moves or costs[group].guide_moves) and not costs[group].is_point]
    tied = moving if not is_mean_field and any(costs[group].model_moves for group in moving) else []
    for cost in costs.values():
        if cost.model_moves and not is_mean_field:  # what the model draws before may depend on the latent itself
            cost.closed = [math.nan] * len(cost.closed)
    together = [(", ".join(group.name for group in tied), [costs[group] for group in tied])] if tied else []
    return [(group.name, [costs[group]]) for group in groups if group not in tied] + together


def _entry(name: str, parts: Sequence[_Cost], step: float) -> Entry:
    numbers, counted = sum(part.numbers for part in parts), math.fsum(part.counted for part in parts)
    if any(part.is_point for part in parts):
        bits, _ = _mean([nats_to_bits(nats) for nats in parts[0].ratio])
        return Entry.of(name, weights=numbers, net_bits=bits, refund_bits=0.0, method="point")
    is_closed = not any(math.isnan(nats) for part in parts for nats in part.closed)
    chosen = [part.closed if is_closed else part.ratio for part in parts]
    net, stderr = _mean([nats_to_bits(math.fsum(each)) for each in zip(*chosen, strict=True)])
    refund, _ = _mean([nats_to_bits(math.fsum(each)) for each in zip(*(part.refund for part in parts), strict=True)])
    method = "closed_form" if is_closed else "monte_carlo"
    return Entry.of(
        name, weights=numbers, net_bits=net, refund_bits=refund - counted * math.log2(step), method=method, stderr=stderr
    )


def _is_bounded(fn: Distribution) -> bool:
    return is_continuous(fn) and not of_reals(fn.support)


def _said(support: Any) -> str:
    return " of ".join(type(part).__name__ for part in reversed(transform_parts(support)))


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error; equal values have none."""
    mean = math.fsum(values) / len(values)
    if all(value == values[0] for value in values):
        return values[0], 0.0
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _counted(
    groups: Sequence[Group], costs: Mapping[Group, _Cost], now: Draw, first: Draw, step: float, resolution: Resolution
) -> float:
    """Add one draw to the costs of the groups; return the nats of the observations."""
    latents, observed, sites = now
    for group in groups:
        cost, drawn = costs[group], sites[group.drawn]
        _check_scales(group, latents, drawn)
        cost.is_point = group.is_direct and is_point(drawn)
        cost.numbers = round(_count(latents[group.drawn] if cost.is_point else drawn))
        cost.guide_moves |= not same(drawn["fn"], first[2][group.drawn]["fn"])
        cost.model_moves |= any(not same(latents[name]["fn"], first[0][name]["fn"]) for name in group.latents)
        if is_point(drawn) and not group.is_direct:
            raise LedgerError(
                f"'{group.drawn}' is a point in the guide, not a distribution; give it a width "
                "(guide.laplace_approximation(...)), or use AutoDelta, whose points are rounded to a grid"
            )
        if cost.is_point:
            cost.ratio.append(_point_nats(latents[group.drawn], step))
            continue
        log_q = _log_prob(drawn) + (0.0 if group.is_direct else math.fsum(_log_prob(sites[name]) for name in group.latents))
        cost.ratio.append(log_q - math.fsum(_log_prob(latents[name]) for name in group.latents))
        cost.closed.append(_closed_nats(group, latents, sites))
        cost.refund.append(_entropy(drawn))
        cost.counted = _count(drawn) if is_continuous(drawn["fn"]) else 0.0
    return math.fsum(_data_nats(name, site, resolution) for name, site in observed.items())


def _check_scales(group: Group, latents: Mapping[str, Site], drawn: Site) -> None:
    """Raise LedgerError unless the guide scales and masks a latent as the model does."""
    for name in group.latents:
        scales = float(latents[name]["scale"]), float(drawn["scale"])
        if scales[0] != scales[1]:
            raise LedgerError(f"'{name}' counts {scales[0]:g} times in the model and {scales[1]:g} times in the guide; "
                              "draw it in the same "
                              "subsampled plate in both")  # fmt: skip
        shown = [shown_elements(site) for site in (latents[name], drawn)]
        if not all(bool(each.all()) for each in shown) and not _alike_shown(*shown):
            advice = said_fix(name, "draw it in the guide within the poutine.mask of the model, or mask neither")
            raise LedgerError(f"'{name}' is masked differently in model and guide, so its bits do not add up; {advice}")


def _alike_shown(one: Tensor, other: Tensor) -> bool:
    """Return whether two masks hide the same, axes of events that one of them has not counted as whole."""
    axes = max(one.ndim, other.ndim)
    one, other = (mask.reshape(*mask.shape, *[1] * (axes - mask.ndim)) for mask in (one, other))
    if any(a != b and 1 not in (a, b) for a, b in zip(one.shape, other.shape, strict=True)):
        return False
    return bool((one == other).all())


def _log_prob(site: Site) -> float:
    """Return the log probability of a site's value in nats, summed, with its scale and mask."""
    log_p = site["fn"].log_prob(site["value"])
    return float(scale_and_mask(log_p, site["scale"], site["mask"]).double().sum())


def _entropy(site: Site) -> float:
    """Return -E[log q] in nats with the site's scale, in closed form if it is known, else -log q of the draw."""
    try:
        entropy = site["fn"].entropy()
    except NotImplementedError:
        return -_log_prob(site)
    return float(scale_and_mask(entropy, site["scale"], site["mask"]).double().sum())


def _closed_nats(group: Group, latents: Mapping[str, Site], sites: Mapping[str, Site]) -> float:
    """Return the KL of the guide's distribution and the model's, in nats; NaN where no closed form is known."""
    drawn = sites[group.drawn]
    q = drawn["fn"]
    priors = [_on_reals(latents[name], group.is_direct) for name in group.latents]
    if any(prior is None for prior in priors) or not is_plainly_made(group, latents, sites):
        return math.nan
    p: Any = (
        priors[0]
        if len(group.latents) == 1 and latents[group.latents[0]]["value"].shape == drawn["value"].shape
        else _row(priors)
    )
    if p is None or torch.broadcast_shapes(q.batch_shape, p.batch_shape) != q.batch_shape:
        return math.nan
    try:
        divergence = kl_divergence(*_alike(q, p)).expand(q.batch_shape)
    except NotImplementedError:
        return math.nan
    return float(scale_and_mask(divergence, drawn["scale"], drawn["mask"]).double().sum())


def _alike(q: Any, p: Any) -> tuple[Distribution, Distribution]:
    """Return two distributions in the types between which torch knows the divergence."""
    if isinstance(q, torch.distributions.MultivariateNormal | torch.distributions.LowRankMultivariateNormal):
        loc, scale = (part.expand(q.batch_shape + q.event_shape) for part in _moments(p))
        return q, MultivariateNormal(loc, scale_tril=torch.diag_embed(scale))
    return q, p


def _moments(p: Any) -> tuple[Tensor, Tensor]:
    """Return means and stds of independent normals; raises NotImplementedError for others."""
    inner = bare(p)
    if not isinstance(inner, Normal):
        raise NotImplementedError
    return inner.loc, inner.scale


def _row(priors: Sequence[Any]) -> Any:
    """Return one distribution over the numbers of several latents, flattened one after the other, if all are normal."""
    try:
        parts = [_moments(prior) for prior in priors]
    except NotImplementedError:
        return None
    shapes = [tuple(prior.batch_shape + prior.event_shape) for prior in priors]
    loc, scale = (
        torch.cat([part[i].expand(shape).flatten() for part, shape in zip(parts, shapes, strict=True)]) for i in (0, 1)
    )
    return Independent(Normal(loc, scale), 1)


def _on_reals(site: Site, is_direct: bool) -> Distribution | None:
    """Return the prior of the real numbers that a guide draws: the model's own, or that within its transform."""
    fn: Distribution = site["fn"]
    if is_direct or of_reals(fn.support):
        return fn
    inner = bare(fn)
    if isinstance(inner, TransformedDistribution) and inner.transforms == transform_parts(inner.support):
        within: Any = inner.base_dist
        events = len(fn.event_shape) - len(inner.event_shape)
        return Independent(within, events) if events else within
    return None


def _same_structure(first: Draw, again: Draw) -> None:
    """Raise LedgerError if another draw has other sites, or sites of other shapes."""
    for one, other, where in zip(first, again, ("model", "model", "guide"), strict=True):
        odd = sorted(one.keys() ^ other.keys())
        odd += [name for name in one if name in other and one[name]["value"].shape != other[name]["value"].shape]
        if odd:
            raise LedgerError(
                f"the {where} changes from draw to draw: '{odd[0]}' is not always there, or not always of one shape; a "
                "ledger has the "
                "same entries in every draw, so draw it always, and ignore its value where it is not needed"
            )


def _point_nats(site: Site, step: float) -> float:
    """Return -log of the mass of a point's bucket under the model, on its unconstrained scale, in nats; of a label, -log p."""
    if not is_continuous(site["fn"]):
        return -_log_prob(site)
    fn, inner = site["fn"], bare(site["fn"])
    transform: Any = biject_to(inner.support)
    std = _smallest_std(fn) if of_reals(fn.support) else 1.0
    if step > MOST_WIDTHS * std:
        raise LedgerError(f"grid step {step:g} is too coarse for the point '{site['name']}', whose prior has a std of "
                          f"{std:.3g}; give a "
                          f"grid_step of {std / 8:.2g} or less")  # fmt: skip
    at = transform.inv(site["value"])
    if inner.event_shape:
        derivative = transform.log_abs_det_jacobian(at, site["value"])
        event = len(inner.event_shape) - (transform.domain.event_dim or 0)
        derivative = derivative.sum(tuple(range(-event, 0))) if event > 0 else derivative
        numbers = int(free_places(inner.support, inner.event_shape).sum())
        nats = -(inner.log_prob(site["value"]) + derivative + numbers * math.log(step))
    else:
        half = torch.tensor([-step / 2, step / 2], dtype=at.dtype, device=at.device)
        places, shares = nodes_between(half, BUCKET_NODES)
        x = [at + place for place in places]
        logs = torch.stack([inner.log_prob(transform(u)) + transform.log_abs_det_jacobian(u, transform(u)) for u in x])
        nats = -torch.logsumexp(logs + shares.log().reshape(-1, *[1] * at.ndim), dim=0)
    return float(site["scale"]) * float(torch.where(shown_elements(site), nats.double(), 0.0).sum())


def _data_nats(name: str, site: Site, resolution: Resolution) -> float:
    """Return -log p of an observation in nats, on its grid if it is a real number."""
    fn, value = site["fn"], site["value"]
    if not holds_data(site):  # a factor
        nats = -_log_prob(site)
        if not math.isfinite(nats):
            raise LedgerError(
                f"'{name}' has a value of no probability, so it has no code length; observe it under a distribution other than "
                "Delta, or at the Delta's own value"
            )
        return nats
    support: Any = bare(fn).support
    if not bool((support.check(value) | ~shown_elements(site)).all()):
        raise LedgerError(
            f"'{name}' has values outside of {type(bare(fn)).__name__}'s support, {fn.support}, so they have no code "
            "length; give "
            "whole labels or counts (binarise grey values), or another distribution"
        )
    if not is_continuous(fn):
        return -_log_prob(site)
    return -_log_prob(site) - _count(site) * math.log(_step_of(name, resolution))


def _check_steps(resolution: Resolution) -> None:
    """Raise LedgerError unless every step is a positive number."""
    steps = list(resolution.values()) if isinstance(resolution, Mapping) else [] if resolution is None else [resolution]
    for step in steps:
        if not isinstance(step, SupportsFloat) or not 0 < float(step) < math.inf:
            raise LedgerError(f"resolution is the step on which real numbers were recorded, a number above zero; got {step!r}")


def _check_names(resolution: Resolution, observed: Mapping[str, Site]) -> None:
    """Raise LedgerError unless every name of a resolution is an observed site."""
    odd = sorted(resolution.keys() - observed.keys()) if isinstance(resolution, Mapping) else []
    if odd:
        raise LedgerError(
            f"resolution names '{odd[0]}', which the model does not observe{near_miss(odd[0], observed)}; "
            f"its observed sites: {', '.join(observed) or 'none'}"
        )


def _step_of(name: str, resolution: Resolution) -> float:
    found = resolution.get(name) if isinstance(resolution, Mapping) else resolution
    if found is None:
        raise LedgerError(
            f"'{name}' holds real numbers, which have a code length only on a grid; give the step on which they were recorded, "
            f"resolution=0.01 or resolution={{'{name}': 0.01}}"
        )
    return float(found)


def _count(site: Site) -> float:
    """Return the labels or free real numbers of a site, in the whole plate; those that are masked do not count."""
    fn = bare(site["fn"])
    if not site["value"].numel() or (site["is_observed"] and is_point(site)):
        return 0.0
    if isinstance(fn, Targets):
        return float(site["scale"]) * fn.likelihood.symbols(site["value"])
    each = int(free_places(fn.support, fn.event_shape).sum()) if is_continuous(fn) else 1  # a vector may be one label
    return float(site["scale"]) * int(shown_elements(site).sum()) * each


def _examples(observed: Mapping[str, Site]) -> int:
    """Return the number of examples: the size of the outermost plate of the first observation, or its first axis."""
    site = next(iter(site for site in observed.values() if holds_data(site)), None)
    if site is None:
        return 1
    plates = sorted((frame for frame in site["cond_indep_stack"] if frame.vectorized), key=lambda frame: frame.dim)
    plates += [frame for frame in site["cond_indep_stack"] if not frame.vectorized]
    if plates:
        return int(plates[0].full_size or plates[0].size)
    return int(site["value"].shape[0]) if site["value"].ndim else 1


def _together(observed: Mapping[str, Site]) -> list[list[tuple[str, Site]]]:
    """Return the observations that one code covers: each site, but for those of one loop (a sequential plate)."""
    found: dict[Any, list[tuple[str, Site]]] = {}
    for name, site in observed.items():
        if holds_data(site):
            loops = tuple(frame.name for frame in site["cond_indep_stack"] if not frame.vectorized)
            key = (loops, type(bare(site["fn"])), site["value"].shape) if loops else name
            found.setdefault(key, []).append((name, site))
    return list(found.values())


def _rows(site: Site) -> Tensor:
    """Return the values of an observation that are not masked or given by others, a row for each element of the first axis."""
    fn, shown = bare(site["fn"]), shown_elements(site)
    value = site["value"].expand(shown.shape + fn.event_shape)
    free = free_places(fn.support, fn.event_shape).to(value.device) if is_continuous(fn) else None
    if free is not None and not bool(free.all()):
        value = value[..., free]
    if not value.ndim or not value.numel():
        return value.reshape(-1, 1)
    if bool(shown.all()):
        return value.reshape(len(value), -1)
    events = len(site["fn"].event_shape) - len(fn.event_shape)
    whole = shown.flatten(shown.ndim - events).all(-1) if events else shown
    if int(shown.sum()) == int(whole.sum()) * math.prod(shown.shape[whole.ndim :]):
        shown = whole  # a mask of whole events; others hide numbers within
    return value[shown].reshape(max(1, int(shown.sum())), -1)


def _without_model(sites: Sequence[tuple[str, Site]], resolution: Resolution) -> tuple[float, float | None]:
    """Return the bits of observations under the uniform code and under the marginal code; None where there is none."""
    name, site = sites[0]
    fn, scale = bare(site["fn"]), float(site["scale"])
    if isinstance(fn, Targets):
        return scale * fn.likelihood.uniform_bits(site["value"]), scale * fn.likelihood.marginal_bits(site["value"])
    rows = torch.cat([_rows(each) for _, each in sites])
    if not rows.numel():
        return 0.0, 0.0
    likelihood: Likelihood
    if isinstance(fn, torch.distributions.Binomial):
        return math.fsum(_binomial_bits(each) for _, each in sites), None
    if isinstance(fn, torch.distributions.Categorical):
        likelihood, rows = CategoricalLikelihood(fn.logits.shape[-1]), rows.long()
    elif isinstance(fn, torch.distributions.Bernoulli):
        likelihood = BernoulliLikelihood()
    elif is_continuous(fn):
        step = _step_of(name, resolution)
        likelihood = GaussianLikelihood(std=step, target_step=step, noise="fixed")
    elif isinstance(fn, torch.distributions.Poisson | torch.distributions.NegativeBinomial | dist.GammaPoisson):
        likelihood = PoissonLikelihood()
    elif site["fn"].has_enumerate_support:
        return sum(_count(each) for _, each in sites) * math.log2(len(site["fn"].enumerate_support(expand=False))), None
    else:
        raise LedgerError(
            f"no code without a model is known for '{name}', a {type(fn).__name__}; observe labels, counts or reals"
        )
    return scale * likelihood.uniform_bits(rows), scale * likelihood.marginal_bits(rows)


def _binomial_bits(site: Site) -> float:
    """Return the bits of counts up to a known total, all alike."""
    fn: Any = bare(site["fn"])
    levels = (torch.as_tensor(fn.total_count) + 1).expand(site["fn"].batch_shape + site["fn"].event_shape)
    bits = levels.double().log2().reshape(*site["fn"].batch_shape, -1).sum(-1)
    return float(scale_and_mask(bits, site["scale"], site["mask"]).sum())


def _is_gaussian(fn: Any) -> bool:
    inner: Any = bare(fn)
    while isinstance(inner, TransformedDistribution):
        inner = inner.base_dist
    kinds = Normal | torch.distributions.MultivariateNormal | torch.distributions.LowRankMultivariateNormal
    return isinstance(bare(inner), kinds)


def _default_step(latents: Mapping[str, Site], sites: Mapping[str, Site]) -> float:
    """Return a power of two below the smallest std that the guide draws with; of points, an eighth of the prior's std."""
    limits = [1.0]
    for group in groups_of(latents, sites):
        site = sites[group.drawn]
        points = group.is_direct and is_point(site)
        fn = latents[group.drawn]["fn"] if points else site["fn"]
        if not is_continuous(fn):
            continue
        std = _smallest_std(fn) if not points or of_reals(fn.support) else 1.0
        limits.append(std / 8 if points else std)
    return 2.0 ** (math.ceil(math.log2(min(limits))) - 1)


def _smallest_std(fn: Any) -> float:
    try:
        std = float(fn.stddev.min())
    except (NotImplementedError, AttributeError):
        return 1.0
    return std if math.isfinite(std) and std > 0 else 1.0
