"""Two approximations of -log2 p(labels | model), for reference: BIC and Laplace's. Neither is a decodable code."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from bitsback.data import Examples
from bitsback.errors import LedgerError
from bitsback.inputs import Inputs, each
from bitsback.kl import kl
from bitsback.likelihoods.classes import CategoricalLikelihood
from bitsback.model import BayesianModel
from bitsback.model.draws import outputs_under
from bitsback.model.model import FLOAT32_BITS
from bitsback.model.modes import evaluating
from bitsback.posteriors import PointPosterior
from bitsback.units import nats_to_bits

__all__ = ["LaplaceBits", "bic_model_bits", "laplace_model_bits"]

FULL_WEIGHTS = 2048
"""Weights up to which the whole curvature matrix is used; above, only its diagonal."""

FULL_PRODUCTS = 2e11
"""Multiplications above which the whole matrix is not computed."""

DIAGONAL_EXAMPLES = 8192
"""Evenly spaced examples on which the diagonal is computed, then scaled to all."""

NUMBERS_AT_ONCE = 1 << 24


def bic_model_bits(weights: int, examples: int) -> float:
    """Return (k / 2) log2 n, the model part in bits of the Bayesian information criterion (Schwarz 1978).

    Args:
        weights: k, number of weights.
        examples: n, number of examples.

    Returns:
        Bits.

    >>> bic_model_bits(10, 1024)
    50.0
    """
    return weights / 2 * math.log2(examples)


@dataclass(frozen=True)
class LaplaceBits:
    """Laplace's approximation at a point estimate: bits of the model, and the curvature used (full or diagonal)."""

    model_bits: float
    curvature: str


def laplace_model_bits(
    model: BayesianModel, likelihood: CategoricalLikelihood, examples: Examples, *, full: bool | None = None
) -> LaplaceBits:
    """Return the model bits of Laplace's approximation at a point estimate w of k weights (MacKay 1992).

    They are -log2 p(w) - (k/2) log2(2 pi) + 1/2 log2 det H, where H is the generalised Gauss-Newton matrix of the labels'
    cost in nats plus the curvature of the prior's, both at w. The curvature of a prior that is flatter than a Gaussian of its
    width (Laplace, Student-t) is replaced by that Gaussian's, so that no direction is flat. Trained weights without a
    posterior and buffers that training changes are charged 32 bits each.

    Args:
        model: with a point posterior for every weight.
        likelihood: of the labels.
        examples: training examples.
        full: use the whole matrix, or only its diagonal; default: the whole one up to 2,048 weights.

    Returns:
        Model bits and the curvature used.

    Raises:
        LedgerError: a weight has a posterior of positive width.
    """
    model.honour_edits(everywhere=True)
    posteriors = [weight.posterior for weight in model.weights]
    if not all(isinstance(q, PointPosterior) for q in posteriors):
        raise LedgerError("Laplace's approximation starts from a point estimate; train with posterior.kind=point")
    weights, classes = sum(q.numel for q in posteriors), likelihood.classes
    if full is None:
        full = weights <= FULL_WEIGHTS and len(examples) * classes * weights**2 <= FULL_PRODUCTS
    flatness = torch.cat([_prior_curvature(model, index) for index in range(len(posteriors))])
    cost_nats = sum(float(kl(q, weight.prior).nats.detach()) for q, weight in zip(posteriors, model.weights, strict=True))
    if full:
        matrix = torch.diag(flatness)
        for rows in _half_hessians(model, examples):
            matrix += (rows.T @ rows).double()
        log_det = float(torch.linalg.slogdet(matrix).logabsdet)
    else:
        some = examples.spread(DIAGONAL_EXAMPLES)
        curvature = torch.zeros_like(flatness)
        for rows in _half_hessians(model, some):
            curvature += rows.double().square().sum(0)
        log_det = float((flatness + curvature * (len(examples) / len(some))).log().sum())
    nats = cost_nats - weights / 2 * math.log(2 * math.pi) + log_det / 2
    statistics = sum(tensor.numel() for _, tensor in [*model.learned_statistics(), *model.changed_buffers()])
    others = model.deterministic_bits() + FLOAT32_BITS * statistics
    return LaplaceBits(nats_to_bits(nats) + others, "full" if full else "diagonal")


def _prior_curvature(model: BayesianModel, index: int) -> Tensor:
    """Return d^2 (-log p) / dw^2 of one weight tensor, (k,) float64; at least that of a Gaussian of the prior's width."""
    weight = model.weights[index]
    point = weight.posterior.mean.detach().clone().requires_grad_()
    nats = -weight.prior().log_prob(point).sum()
    (slope,) = torch.autograd.grad(nats, point, create_graph=True)
    found = torch.autograd.grad(slope.sum(), point)[0] if slope.requires_grad else torch.zeros_like(slope)
    least = weight.prior.typical_scale().detach().expand(point.shape).double() ** -2.0
    return torch.maximum(found.detach().double(), least).flatten()


def _half_hessians(model: BayesianModel, examples: Examples) -> Iterator[Tensor]:
    """Yield rows R (examples * classes, weights) with R^T R the Gauss-Newton matrix: sqrt(p_c) (J_c - sum_k p_k J_k)."""
    means = {weight.name: weight.posterior.mean.detach() for weight in model.weights}

    def outputs(means: dict[str, Tensor], one: Inputs) -> Tensor:
        return outputs_under(model, means, each(one, lambda tensor: tensor[None]))[0]

    jacobian = vmap(jacrev(lambda means, one: (outputs(means, one),) * 2, has_aux=True), in_dims=(None, 0))
    weights = sum(mean.numel() for mean in means.values())
    with evaluating(model.network):
        classes = len(outputs_under(model, means, examples.inputs[:1])[0])
        size = max(1, NUMBERS_AT_ONCE // (weights * classes))
        for inputs, _ in examples.batches(examples.ranges(size)):
            parts, logits = jacobian(means, inputs)
            slopes = torch.cat([parts[name].flatten(2) for name in means], dim=2)
            p = logits.softmax(-1)[..., None]
            yield (p.sqrt() * (slopes - (p * slopes).sum(1, keepdim=True))).flatten(0, 1).detach()
