"""Gaussian posteriors of a Pyro guide, latent by latent, with the priors of the program."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution, Normal

from bitsback.errors import LedgerError
from bitsback.interop.pyro._sites import (
    bare,
    device_of,
    draw,
    groups_of,
    is_continuous,
    is_latent,
    is_plainly_made,
    of_reals,
    same,
)
from bitsback.torch_state import seeded

__all__ = ["Latent", "Unconditional", "gaussian_latents", "unconditional"]


@dataclass(frozen=True)
class Latent:
    """Posterior and prior of one latent.

    Attributes:
        name: name of the site.
        mean: posterior mean, the shape of the latent.
        std: posterior standard deviation, the same shape.
        prior: its prior, whose batch and event shape are together that of the latent.
    """

    name: str
    mean: Tensor
    std: Tensor
    prior: Distribution


@dataclass(frozen=True)
class Unconditional:
    """Sites that a program draws without its data.

    Attributes:
        priors: distribution of each continuous latent over all reals, by name, in the order of the program.
        target: name of the one discrete site, the data that a message carries.
        shape: of the target.
        dtype: of the target.
        support: constraint of one of its labels.
    """

    priors: dict[str, Distribution]
    target: str
    shape: torch.Size
    dtype: torch.dtype
    support: Any


@torch.no_grad()
def gaussian_latents(model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Latent]:
    """Return mean, std and prior of every latent of a mean-field Gaussian guide.

    Args:
        model: Pyro program.
        guide: its guide: by hand, ``AutoNormal`` or ``AutoDiagonalNormal``.
        args: arguments of both.
        kwargs: named arguments of both.

    Returns:
        The latents, in the order of the guide.

    Raises:
        LedgerError: when a latent is not over all reals, its guide is not an independent Gaussian, or guide or prior depend on
            other latents.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> def model():
    ...     pyro.sample("mean", dist.Normal(0.0, 1.0))
    >>> def guide():
    ...     pyro.sample("mean", dist.Normal(0.5, 0.25))
    >>> [(latent.name, latent.mean.item(), latent.std.item()) for latent in gaussian_latents(model, guide)]
    [('mean', 0.5, 0.25)]
    """
    with seeded(0, device_of(args, kwargs)):
        (first, *_), (again, *_) = (draw(model, guide, args, kwargs) for _ in range(2))
    latents, _, sites = first
    found = []
    for group in groups_of(latents, sites):
        drawn = sites[group.drawn]
        q = bare(drawn["fn"])
        if not isinstance(q, Normal) or not is_plainly_made(group, latents, sites):
            raise LedgerError(f"the guide of '{group.name}' is a {type(q).__name__}, not an independent Gaussian; use "
                              "AutoNormal, or Normal "
                              "sites of your own")  # fmt: skip
        if not same(q, again[2][group.drawn]["fn"]) or float(drawn["scale"]) != 1:
            raise LedgerError(
                f"the guide of '{group.name}' changes with what is drawn; use a guide of independent Gaussians over all data"
            )
        sizes = [latents[name]["value"].numel() for name in group.latents]
        moments = [part.expand(q.batch_shape).flatten().split(sizes) for part in (q.loc.detach(), q.scale.detach())]
        for name, mean, std in zip(group.latents, *moments, strict=True):
            site = latents[name]
            if not of_reals(site["fn"].support):
                raise LedgerError(f"'{name}' is held to {site['fn'].support}; a Gaussian covers all reals: draw its "
                                  "logarithm or logit in "
                                  "the model, and transform it there")  # fmt: skip
            if not same(site["fn"], again[0][name]["fn"]):
                raise LedgerError(f"the prior of '{name}' depends on other latents; write the model with a fixed prior, "
                                  "and scale what it "
                                  "draws (a non-centred model)")  # fmt: skip
            shape = site["value"].shape
            found.append(Latent(name, mean.reshape(shape), std.reshape(shape), site["fn"]))
    return found


@torch.no_grad()
def unconditional(model: Callable[..., Any], *args: Any) -> Unconditional:
    """Return what a program draws when it is called without data: the priors of its latents, and the shape of the data.

    Args:
        model: Pyro program, whose last argument is the data, None here.
        args: its other arguments.

    Returns:
        Priors, name, shape and type of the data.

    Raises:
        LedgerError: when the program draws another number of discrete sites than one.
    """
    with seeded(0, device_of(args, {})):
        trace: Any = poutine.trace(model).get_trace(*args, None)
    sites = {name: site for name, site in trace.nodes.items() if is_latent(site)}
    discrete = [name for name, site in sites.items() if not is_continuous(site["fn"])]
    if len(discrete) != 1:
        raise LedgerError(
            f"without data the program draws {len(discrete)} discrete sites ({', '.join(discrete)}), and a message "
            "carries one; call it with "
            "None in place of the data, and let it draw one site of labels"
        )
    value = sites[discrete[0]]["value"]
    priors = {name: site["fn"] for name, site in sites.items() if name not in discrete}
    support = bare(sites[discrete[0]]["fn"]).support
    return Unconditional(priors, discrete[0], value.shape, value.dtype, support)
