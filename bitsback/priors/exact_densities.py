"""Densities of the priors in exactly reproducible floating-point arithmetic, for integer coding tables."""

import numpy as np
import torch
from torch import Tensor

from bitsback.coding.densities import NORMAL, LocatedDensity, StandardDensity, horseshoe, normal
from bitsback.coding.elementary import Floats, exp, log
from bitsback.errors import PriorError
from bitsback.priors import Prior
from bitsback.priors._heavy_tails import CauchyPrior, LogisticPrior, StudentTPrior
from bitsback.priors._horseshoe import HorseshoePrior
from bitsback.priors._laplace import LaplacePrior
from bitsback.priors._mixtures import MixturePrior
from bitsback.priors.gaussian import NormalPrior

__all__ = ["STANDARD", "density_of"]

FINE = 2.0**20
"""Inverse of the grid step, 2^-20, to which fixed numbers of a prior are rounded before use; part of the file format."""


STANDARD: dict[type[Prior], StandardDensity] = {
    NormalPrior: NORMAL,
    LaplacePrior: StandardDensity("laplace", lambda z: exp(-np.abs(z)), 6),
    LogisticPrior: StandardDensity("logistic", lambda z: exp(-np.abs(z)) / (1.0 + exp(-np.abs(z))) ** 2, 6),
    CauchyPrior: StandardDensity("cauchy", lambda z: 1.0 / (1.0 + z * z), 14),
    HorseshoePrior: StandardDensity("horseshoe", horseshoe, 14),
}


def _student_t(df: float) -> StandardDensity:
    return StandardDensity(f"student_t({df!r})", lambda z: exp(-0.5 * (df + 1.0) * log(1.0 + z * z / df)), 14 if df < 3 else 10)


def _numbers(tensor: Tensor, *, learned: bool) -> Floats:
    values = tensor.detach().cpu().double().numpy()
    return values if learned else np.rint(values * FINE) / FINE


def _mixture(prior: MixturePrior) -> LocatedDensity:
    """Return the density of a mixture, in units of the scale of its narrowest component."""
    learned = bool(prior.charges())
    scales = exp(_numbers(prior.log_scales, learned=learned))
    weights = exp(np.concatenate([[0.0], _numbers(prior.free_logits, learned=learned)]))
    means = _numbers(prior.means, learned="means" in prior._grids)
    unit = scales.min()
    means, scales = means / unit, scales / unit

    def density(w: Floats) -> Floats:
        total = np.zeros_like(w)
        for mean, scale, weight in zip(means, scales, weights, strict=True):
            total = total + weight / scale * normal((w - mean) / scale)
        return total

    reach = np.max(np.abs(means)) + 16 * np.max(scales)
    name = f"mixture({scales.tolist()}, {weights.tolist()}, {means.tolist()})"
    return LocatedDensity(StandardDensity(name, density, int(np.frexp(reach)[1])), np.zeros(()), unit)


def density_of(prior: Prior, name: str) -> LocatedDensity:
    """Return the density of a prior as a standard density with centre and scale.

    Args:
        prior: prior of a weight tensor.
        name: name of that tensor, for messages.

    Returns:
        Standard density with centre and scale, which broadcast to the tensor.

    Raises:
        PriorError: when the prior is not elementwise.
    """
    if isinstance(prior, MixturePrior):
        return _mixture(prior)
    for kind, shape in STANDARD.items():
        if isinstance(prior, kind):
            return LocatedDensity(shape, *_centre_and_scale(prior))
    if isinstance(prior, StudentTPrior):
        return LocatedDensity(_student_t(float(_numbers(prior.df, learned=False))), *_centre_and_scale(prior))
    p = prior().expand(torch.Size()) if not prior().event_shape and prior().batch_shape.numel() == 1 else None
    if p is None:
        raise PriorError(f"the prior '{prior.kind}' of '{name}' does not code its weights one by one; choose another prior")
    width = max(round(float(prior.typical_scale().detach()) * FINE), 1) / FINE

    def density(z: Floats) -> Floats:
        with torch.no_grad():
            return p.log_prob(torch.from_numpy(z * width).flatten()).exp().numpy().reshape(z.shape)

    return LocatedDensity(StandardDensity(f"{prior.kind}:{name}", density, 10, exact=False), np.zeros(()), np.full((), width))


def _centre_and_scale(prior: Prior) -> tuple[Floats, Floats]:
    log_scale: Tensor = prior.log_scale  # type: ignore[assignment]
    return _numbers(prior.mean, learned=False), exp(_numbers(log_scale, learned=bool(prior.charges())))
