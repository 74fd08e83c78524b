"""Sites of a Pyro program and its guide: one draw of both, and which sites of the guide draw which latent of the model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Distribution,
    Independent,
    TransformedDistribution,
    biject_to,
)

from bitsback.errors import LedgerError, PriorError

__all__ = [
    "Draw",
    "Group",
    "Site",
    "bare",
    "device_of",
    "draw",
    "free_places",
    "groups_of",
    "holds_data",
    "is_continuous",
    "is_latent",
    "is_plainly_made",
    "is_point",
    "of_reals",
    "said_fix",
    "same",
    "shown_elements",
    "transform_parts",
]

Site = Any
"""A site of a trace, as Pyro's messages are: a mapping with ``fn``, ``value``, ``scale``, ``mask``, ``infer`` and more."""

Draw = tuple[Mapping[str, Site], Mapping[str, Site], Mapping[str, Site]]
"""Latents and observations of the model, and drawn sites of the guide, each by name."""

OWN_PAIR = ("_unconstrained", "_aux")
"""Suffixes of the auxiliary site that AutoNormal and AutoStructured draw for each latent."""

UNOBSERVED = "_unobserved"
"""Suffix of the latent that Pyro makes of an observation with ``obs_mask``."""


@dataclass(frozen=True)
class Group:
    """Latents that one draw of the guide gives.

    Attributes:
        name: of the ledger's entry.
        latents: names of the latents.
        drawn: name of the guide's site that is drawn: a latent itself, or an auxiliary site of which the latents are made.
    """

    name: str
    latents: tuple[str, ...]
    drawn: str

    @property
    def is_direct(self) -> bool:
        """Return True if the guide draws the latent itself."""
        return self.drawn == self.latents[0]


def bare(fn: Any) -> Distribution:
    """Return the distribution within those that only declare axes, repeat it or mask it."""
    while isinstance(fn, Independent | dist.MaskedDistribution) or type(fn).__name__ == "ExpandedDistribution":
        fn = fn.base_dist
    found: Distribution = fn
    return found


def device_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """Return the device of a program's first tensor, whose generator draws; the CPU if it is given none.

    Args:
        args: arguments of the program.
        kwargs: named arguments of the program.

    Returns:
        The device.
    """
    return next((value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), torch.device("cpu"))


def of_reals(support: Any) -> bool:
    """Return whether a support is all reals, of any number of axes."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector


def transform_parts(support: Any) -> list[Any]:
    """Return the steps of the transform from the reals to a support, but for those that change nothing."""
    whole = biject_to(support)
    parts = list(whole.parts) if isinstance(whole, ComposeTransform) else [whole]
    return [part for part in parts if not (isinstance(part, AffineTransform) and part.loc == 0 and part.scale == 1)]


def is_continuous(fn: Distribution) -> bool:
    """Return whether values have a density, not a probability."""
    support: Any = fn.support
    return not support.is_discrete


def is_point(site: Site) -> bool:
    """Return whether a site is a point: its value is given, or made of other sites."""
    return isinstance(bare(site["fn"]), dist.Delta)


def holds_data(site: Site) -> bool:
    """Return whether an observed site is data, and not a factor: a value without numbers, or a ``Delta`` with a density."""
    return bool(site["value"].numel()) and not is_point(site)


def _is_computed(site: Site) -> bool:
    """Return whether an observed site is computed of others: ``pyro.deterministic``, or a reparameterisation's ``Delta``."""
    if site["infer"].get("_deterministic"):
        return True
    return is_point(site) and not bool(site["fn"].log_prob(site["value"]).any())


def is_latent(site: Site) -> bool:
    """Return whether a site of a trace is drawn."""
    return bool(site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site))


def draw(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: Any,
    kwargs: Any,
    *,
    factor: float = 1.0,
    points_step: float | None = None,
) -> tuple[Draw, dict[str, Tensor], dict[str, Tensor]]:
    """Run guide and model once, on the same values.

    Args:
        model: Pyro program.
        guide: its guide.
        args: arguments of both.
        kwargs: named arguments of both.
        factor: factor of the std of every Gaussian that the guide draws from.
        points_step: grid step to which points are rounded, on their unconstrained scale; None: they are left.

    Returns:
        The draw, and the parameters of model and guide by name.

    Raises:
        LedgerError: for programs of which no ledger can be taken, with the reason.
        PriorError: for an improper prior.
    """
    with _Widening(factor):
        drawn: Any = poutine.trace(guide).get_trace(*args, **kwargs)
    sites = {name: site for name, site in drawn.nodes.items() if is_latent(site)}
    for name, site in sites.items():
        if site["infer"].get("enumerate"):
            raise LedgerError(_enumerated(name, "guide"))
    program = poutine.replay(_watched(model, sites), trace=drawn)
    run: Any = poutine.trace(program).get_trace(*args, **kwargs)
    latents = {name: site for name, site in run.nodes.items() if is_latent(site)}
    if points_step is not None and _round_points(latents, sites, points_step):
        run = poutine.trace(program).get_trace(*args, **kwargs)
        latents = {name: site for name, site in run.nodes.items() if is_latent(site)}
    observed = {name: site for name, site in run.nodes.items() if site["type"] == "sample" and site["is_observed"]
                and not site_is_subsample(site) and not _is_computed(site)}  # fmt: skip
    extra = [name for name, site in sites.items() if name not in latents and not site["infer"].get("is_auxiliary")]
    if extra:
        raise LedgerError(f"the guide draws '{extra[0]}', which the model does not; take the site out, or mark it as auxiliary "
                          "(infer={'is_auxiliary': True}) where others are made of it")  # fmt: skip
    parameters = [
        {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "param"} for trace in (run, drawn)
    ]
    found = tuple({name: _on_the_site(site) for name, site in each.items()} for each in (latents, observed, sites))
    return (found[0], found[1], found[2]), parameters[0], parameters[1]


def _on_the_site(site: Site) -> Site:
    """Return a site whose distribution's own mask is the site's, a mask that hides nothing left out; refuses other scales."""
    plates = math.prod((frame.full_size or frame.size) / frame.size for frame in site["cond_indep_stack"])
    scale = torch.as_tensor(site["scale"], dtype=torch.float64).cpu()
    if scale.numel() != 1 or not math.isclose(float(scale), plates, rel_tol=1e-5):
        times = f"{float(scale):g}" if scale.numel() == 1 else "a tensor"
        raise LedgerError(
            f"'{site['name']}' is scaled by {times} (poutine.scale), its plates by {plates:g}: other scales weigh a loss "
            "and code nothing; give program and guide without poutine.scale"
        )
    fn, own = _unmasked(site["fn"])
    mask = None if site["mask"] is None else torch.as_tensor(site["mask"], device=site["value"].device)
    mask = own if mask is None else mask if own is None else mask & own
    return {**site, "fn": fn, "mask": None if mask is None or bool(mask.all()) else mask}


def _unmasked(fn: Any) -> tuple[Any, Tensor | None]:
    """Return a distribution without the masks that cover whole elements of its batch, and their conjunction."""
    if isinstance(fn, dist.MaskedDistribution):
        inner, mask = _unmasked(fn.base_dist)
        own = torch.as_tensor(fn._mask)
        return inner, own if mask is None else mask & own
    if isinstance(fn, Independent):
        inner, mask = _unmasked(fn.base_dist)
        if mask is None:
            return fn, None
        rows = mask.expand(inner.batch_shape).reshape(*fn.batch_shape, -1)
        if torch.equal(rows.all(-1), rows.any(-1)):
            return inner.to_event(fn.reinterpreted_batch_ndims), rows.all(-1)
    return fn, None


def _is_hidden(fn: Any) -> bool:
    """Return whether a distribution is under ``.mask(False)``, by which Pyro writes an improper prior."""
    while isinstance(fn, Independent | dist.MaskedDistribution) or type(fn).__name__ == "ExpandedDistribution":
        if getattr(fn, "_mask", None) is False:
            return True
        fn = fn.base_dist
    return False


def shown_elements(site: Site) -> Tensor:
    """Return which draws of the innermost distribution of a site count, its own masks and the site's included.

    Args:
        site: of a trace.

    Returns:
        Booleans, of the shape of the site's value less the innermost distribution's event shape.
    """
    fn, value = site["fn"], site["value"]
    events = len(bare(fn).event_shape)
    shape = torch.broadcast_shapes(fn.batch_shape + fn.event_shape, value.shape)
    shown = torch.ones(shape[: len(shape) - events], dtype=torch.bool, device=value.device)
    masks = [(fn, site["mask"])]
    while isinstance(fn, Independent | dist.MaskedDistribution) or type(fn).__name__ == "ExpandedDistribution":
        masks.append((fn, getattr(fn, "_mask", None)))
        fn = fn.base_dist
    for of, mask in masks:
        if mask is not None:
            mask = torch.as_tensor(mask, device=value.device)
            shown = shown & mask.reshape(*mask.shape, *[1] * (len(of.event_shape) - events))
    return shown


def free_places(support: Any, shape: torch.Size) -> Tensor:
    """Return which numbers of an event determine its others: K - 1 on a simplex, the lower triangle of a symmetric matrix.

    Args:
        support: constraint of the event.
        shape: of the event.

    Returns:
        Booleans of that shape; as many are true as the support has dimensions.

    Raises:
        LedgerError: for a support of unknown dimension.
    """
    free = torch.ones(shape, dtype=torch.bool)
    if isinstance(support, constraints.independent):
        inner = len(shape) - support.reinterpreted_batch_ndims
        return free_places(support.base_constraint, shape[len(shape) - max(0, inner) :]).expand(shape)
    if not shape or of_reals(support):
        return free
    if isinstance(support, type(constraints.symmetric)) or support in (
        constraints.lower_cholesky,
        constraints.lower_triangular,
    ):
        return free.tril()
    if support in (constraints.corr_cholesky, constraints.corr_matrix, constraints.unit_lower_cholesky):
        return free.tril(-1)
    if support is constraints.sphere:
        dimensions = free.numel() - 1
    else:
        try:
            dimensions = math.prod(biject_to(support).inverse_shape(shape))
        except NotImplementedError as error:
            raise LedgerError(
                f"the dimension of {support} is not known here, so its numbers have no grid; draw it by a transform "
                "of real numbers"
            ) from error
    return (torch.arange(free.numel()) < dimensions).reshape(shape)


def _round_points(latents: Mapping[str, Site], sites: Mapping[str, Site], step: float) -> bool:
    """Round the points of a guide to the grid on their unconstrained scale, in place; return whether there are any."""
    direct = [group.drawn for group in groups_of(latents, sites) if group.is_direct and is_point(sites[group.drawn])]
    points = [name for name in direct if is_continuous(latents[name]["fn"])]
    for name in points:
        transform = biject_to(latents[name]["fn"].support)
        sites[name]["value"] = transform((transform.inv(sites[name]["value"]) / step).round() * step)
    return bool(points)


def _watched(model: Callable[..., Any], sites: Mapping[str, Site]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _Watching(sites):
            return model(*args, **kwargs)

    return run


def _enumerated(name: str, where: str) -> str:
    return (
        f"'{name}' is summed over by enumeration in the {where}: no value of it is drawn, so there is nothing to send "
        "and nothing to "
        "refund; sum it out in the model (a mixture distribution), or give the guide a distribution to draw it from"
    )


def said_fix(name: str, otherwise: str) -> str:
    """Return how to draw a site in the guide: for one that Pyro made of ``obs_mask``, with which mask.

    Args:
        name: of the latent.
        otherwise: what to do with other latents.

    Returns:
        The advice.
    """
    if not name.endswith(UNOBSERVED):
        return otherwise
    return (
        f"Pyro made it of '{name.removesuffix(UNOBSERVED)}' and its obs_mask: draw '{name}' in the guide within "
        "poutine.mask(mask=~obs_mask), all of its shape"
    )


class _Watching(Messenger):
    """Checks the latents of a model, before anything else is computed of them."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        super().__init__()
        self.sites = sites

    def _pyro_sample(self, msg: Any) -> None:
        if not is_latent(msg):
            return
        name, fn = msg["name"], msg["fn"]
        if isinstance(bare(fn), dist.Delta):
            raise LedgerError(f"the prior of '{name}' is a Delta, a fixed value: nothing is drawn, so nothing is sent; write "
                              f"pyro.deterministic('{name}', value) in its place")  # fmt: skip
        if isinstance(bare(fn), dist.ImproperUniform) or msg["mask"] is False or _is_hidden(fn):
            raise PriorError(f"the prior of '{name}' is improper: its mass is not one, so it codes nothing; give it a "
                             "proper one, such as "
                             "a wide Normal")  # fmt: skip
        if name not in self.sites:
            if msg["infer"].get("enumerate") or (not is_continuous(fn) and fn.has_enumerate_support):
                raise LedgerError(_enumerated(name, "model"))
            raise LedgerError(
                f"the guide misses the site '{name}' of the model; {said_fix(name, 'draw it in the guide, or observe it')}"
            )
        site = self.sites[name]
        if is_continuous(fn) and not of_reals(fn.support) and not is_point(site) and of_reals(site["fn"].support):
            raise LedgerError(
                f"the guide draws '{name}' from a {type(bare(site['fn'])).__name__} over all reals, and the model holds "
                f"it to {fn.support}: "
                "its cost would be infinite; draw it from TransformedDistribution(Normal(...), [biject_to(support)]), "
                "or use AutoNormal, and "
                "the log of the transform's derivative is counted"
            )

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_latent(msg) and not bool(msg["fn"].support.check(msg["value"]).all()):
            raise LedgerError(f"the guide draws '{msg['name']}' outside of the model's support, {msg['fn'].support}: "
                              "its cost is infinite; "
                              "give the guide a distribution on that support")  # fmt: skip


class _Widening(Messenger):
    """Multiplies the std of every Gaussian by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def _pyro_sample(self, msg: Any) -> None:
        if self.factor != 1.0 and is_latent(msg):
            msg["fn"] = _widened(msg["fn"], self.factor)


def _widened(fn: Any, factor: float) -> Any:
    """Return a distribution with its Gaussian's std multiplied by a factor; other distributions are returned as they are."""
    if isinstance(fn, Independent):
        inner = _widened(fn.base_dist, factor)
        return fn if inner is fn.base_dist else inner.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, TransformedDistribution) and type(fn) is dist.TransformedDistribution:
        inner = _widened(fn.base_dist, factor)
        return fn if inner is fn.base_dist else dist.TransformedDistribution(inner, fn.transforms)
    if isinstance(fn, torch.distributions.Normal):
        return dist.Normal(fn.loc, fn.scale * factor)
    if isinstance(fn, torch.distributions.MultivariateNormal):
        return dist.MultivariateNormal(fn.loc, scale_tril=fn.scale_tril * factor)
    if isinstance(fn, torch.distributions.LowRankMultivariateNormal):
        return dist.LowRankMultivariateNormal(fn.loc, fn.cov_factor * factor, fn.cov_diag * factor**2)
    return fn


def groups_of(latents: Mapping[str, Site], sites: Mapping[str, Site]) -> list[Group]:
    """Return which sites of the guide draw which latents, in the order of the guide.

    A latent that the guide holds as a ``Delta`` belongs to the auxiliary site of its own name and a suffix, if there is one;
    else to the last auxiliary site before it whose numbers are not used up (a joint guide); else it is a point.

    Args:
        latents: of the model, by name.
        sites: drawn by the guide, by name.

    Returns:
        The groups; every latent is in one.

    Raises:
        LedgerError: for an auxiliary site of which no latent is made.
    """
    pairs = {name + suffix: name for name in latents for suffix in OWN_PAIR if name + suffix in sites}
    joint: list[tuple[str, int, list[str]]] = []
    groups: dict[str, Group] = {}
    for name, site in sites.items():
        if name in latents:
            own = next((aux for aux, latent in pairs.items() if latent == name), None)
            if own is not None:
                groups[own] = Group(name, (name,), own)
            elif is_point(site) and joint and joint[-1][1] > 0:
                aux, left, members = joint[-1]
                members.append(name)
                joint[-1] = (aux, left - _free_numbers(latents[name]), members)
            else:
                groups[name] = Group(name, (name,), name)
        elif name not in pairs:
            joint.append((name, site["value"].numel(), []))
    for aux, _, members in joint:
        if not members:
            raise LedgerError(
                f"no latent of the model is made of the guide's auxiliary site '{aux}', so its bits have no "
                "counterpart; make a latent of "
                "it, as a Delta after it, or take it out"
            )
        groups[aux] = Group(", ".join(members), tuple(members), aux)
    return [groups[name] for name in sites if name in groups]


def _free_numbers(site: Site) -> int:
    """Return how many real numbers a latent is made of."""
    if not is_continuous(site["fn"]):
        return int(site["value"].numel())
    transform = biject_to(site["fn"].support)
    return math.prod(transform.inverse_shape(site["value"].shape))


def is_plainly_made(group: Group, latents: Mapping[str, Site], sites: Mapping[str, Site]) -> bool:
    """Return whether latents are the drawn numbers, each through the transform of its support, and nothing else.

    Args:
        group: latents and the site of which they are made.
        latents: of the model, by name.
        sites: of the guide, by name.

    Returns:
        Whether they are.
    """
    if group.is_direct:
        return True
    made = [biject_to(latents[name]["fn"].support).inv(sites[name]["value"]).flatten() for name in group.latents]
    drawn = sites[group.drawn]["value"].flatten()
    made_of = torch.cat(made)
    return made_of.shape == drawn.shape and torch.allclose(made_of, drawn, rtol=1e-4, atol=1e-6)


def same(one: Any, other: Any) -> bool:
    """Return whether two distributions have the same kind and numbers.

    Args:
        one: a distribution.
        other: another.

    Returns:
        Whether they have.
    """
    one, other = bare(one), bare(other)
    if type(one) is not type(other) or one.batch_shape != other.batch_shape:
        return False
    if isinstance(one, TransformedDistribution):
        return same(one.base_dist, other.base_dist) and one.transforms == other.transforms
    if isinstance(one, dist.Delta):
        return True  # made of an auxiliary site, which is compared itself
    names = [name for name in one.arg_constraints if isinstance(one.__dict__.get(name), Tensor)]
    if not names:
        return False
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
