"""Contract test of a prior: it is a proper density, and its KL and gradients are correct."""

import copy
import math

import torch
from torch import Tensor

from bitsback.kl import kl, mass
from bitsback.kl.quadrature import Panels, gaussian_expectation, nodes_between
from bitsback.posteriors import GaussianPosterior
from bitsback.priors import Prior

__all__ = ["bucket_masses", "check_prior", "dense_kl_nats", "expected_kl_gradient", "masses_between"]

POSTERIORS = ((0.0, 0.3), (0.1, 1e-3), (-0.7, 0.05), (2.0, 0.5), (1e-4, 1e-2), (0.3, 3.0))
"""Posterior means and stds, in units of the prior's scale, for which the KL is checked."""

POINTS_A_SIDE = 6_001

GRIDS = (1 / 64, 1 / 8, 4.0)
"""Grid steps, in units of the prior's scale, for which bucket masses are summed."""

BUCKETS_A_SIDE = 600

DRAWS = 4_001
"""Draws at evenly spaced quantiles over which gradients of learned numbers are averaged."""


def dense_kl_nats(prior: Prior, mean: float, std: float) -> float:
    """Compute KL(N(mean, std^2) || prior) by brute-force quadrature in float64, dense around every breakpoint.

    Args:
        prior: elementwise prior, in float64.
        mean: posterior mean.
        std: posterior std.

    Returns:
        KL in nats.
    """
    spread = torch.linspace(-10, 10, POINTS_A_SIDE, dtype=torch.float64)
    steps = torch.logspace(-14, 1, POINTS_A_SIDE, dtype=torch.float64)
    bends = prior.breakpoints().detach().double().flatten()
    middle = bends.median()
    reach = abs(mean - float(middle)) + 10 * std
    points = [mean + std * spread, middle + reach * steps, middle - reach * steps, *(bend + std * spread for bend in bends)]
    x = torch.cat(points).unique()
    x = x[(x - mean).abs() <= 10 * std]
    low, high = x[:-1], x[1:]
    total = 0.0
    for node, weight in ((-math.sqrt(0.6), 5 / 9), (0.0, 8 / 9), (math.sqrt(0.6), 5 / 9)):  # Gauss-Legendre of order 3
        at = (low + high) / 2 + (high - low) / 2 * node
        log_q = -0.5 * ((at - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
        total += float(((high - low) / 2 * weight * log_q.exp() * (log_q - prior().log_prob(at).detach())).sum())
    return total


def bucket_masses(prior: Prior, step: float, first: int, last: int) -> Tensor:
    """Return the prior's mass in the buckets of width ``step`` around the multiples first * step, ..., last * step.

    Uses quadrature in float64, split at the prior's breakpoints and at the buckets' edges.

    Args:
        prior: prior.
        step: grid step, the width of a bucket.
        first: index of the first bucket.
        last: index of the last bucket.

    Returns:
        Masses, (last - first + 1, *batch shape of the distribution), float64.

    >>> from bitsback.priors import GaussianPrior
    >>> round(float(bucket_masses(GaussianPrior(1.0), 2.0, 0, 0)), 6)  # between -1 and 1 std
    0.682689
    """
    edges = step * (torch.arange(first, last + 2, dtype=torch.float64) - 0.5)
    return masses_between(prior, edges)


def masses_between(prior: Prior, edges: Tensor) -> Tensor:
    """Return the prior's mass between neighbouring edges.

    Args:
        prior: prior.
        edges: sorted edges, (n,), float64.

    Returns:
        Masses, (n - 1, *batch shape of the distribution), float64.
    """
    p = copy.deepcopy(prior).double()
    with torch.no_grad():
        bends = p.breakpoints().flatten()
        cuts = torch.cat([edges, bends[(bends > edges[0]) & (bends < edges[-1])]]).unique()
        nodes, weights = nodes_between(cuts, 16)
        behind = [1] * len(p().batch_shape)
        parts = weights.reshape(-1, *behind) * p().log_prob(nodes.reshape(-1, *behind)).exp()
        bucket = torch.searchsorted(edges, nodes) - 1
        return parts.new_zeros(len(edges) - 1, *parts.shape[1:]).index_add(0, bucket, parts)


def check_prior(prior: Prior, *, relative: float = 1e-6) -> None:
    """Check an elementwise prior.

    Tests mass (total and by bucket), samples, KL (value and gradient), ``kl_gradient`` and ``slope``, additivity over weights,
    rounding, and that all learned numbers are charged.

    Args:
        prior: prior to check.
        relative: relative tolerance of the KL.

    Raises:
        AssertionError: with the name of the property that fails.

    >>> from bitsback.priors import LaplacePrior
    >>> check_prior(LaplacePrior(scale=0.5))
    """
    exact = copy.deepcopy(prior).double()
    _check_mass(exact)
    _check_grids(exact)
    _check_samples(exact)
    for mean, std in POSTERIORS:
        width = float(exact.typical_scale().detach())
        _check_kl(exact, mean * width, std * width, relative)
    _check_gradient(exact)
    _check_training_gradient(exact)
    _check_sum(exact)
    _check_rounding(prior)


def _check_mass(prior: Prior) -> None:
    total = float(mass(prior(), prior.breakpoints()).detach())
    assert abs(total - 1) < 1e-7, f"{prior.kind}: the mass is {total}, a code needs one (Kraft)"


def _check_grids(prior: Prior) -> None:
    """Check that the masses of buckets, and of the intervals beyond them, sum to one."""
    width = float(prior.typical_scale().detach())
    centre = float(prior.breakpoints().detach().median())
    decades = 10.0 ** torch.arange(0.25, 10.5, 0.25, dtype=torch.float64)
    for step in (width * part for part in GRIDS):
        near = round(centre / step) + torch.arange(-BUCKETS_A_SIDE, BUCKETS_A_SIDE + 1, dtype=torch.float64) - 0.5
        far = BUCKETS_A_SIDE * step * decades
        edges = torch.cat([step * near[0] - far.flip(0), step * near, step * near[-1] + far])
        total = float(masses_between(prior, edges).sum())
        assert 1 - 1e-6 <= total <= 1 + 1e-9, f"{prior.kind}: its mass on a grid of step {step:g} adds up to {total}, not one"


def _check_samples(prior: Prior) -> None:
    """Check that samples follow the density: the mean of 1 / (1 + z^2) over samples agrees with its integral."""
    torch.manual_seed(0)
    width = prior.typical_scale().detach()
    draws = prior().sample(torch.Size([40_000])).detach()
    seen = 1 / (1 + (draws / width).square())
    grid = torch.cat([-torch.logspace(9, -14, 60_001), torch.logspace(-14, 9, 60_001)]).double() * width
    at, gaps = (grid[1:] + grid[:-1]) / 2, grid[1:] - grid[:-1]
    wanted = float((prior().log_prob(at).detach().exp() / (1 + (at / width).square()) * gaps).sum())
    error = 5 * float(seen.std()) / math.sqrt(len(seen)) + 1e-3
    assert abs(float(seen.mean()) - wanted) < error, f"{prior.kind}: samples do not follow the density"


def _check_kl(prior: Prior, mean: float, std: float, relative: float) -> None:
    posterior = GaussianPosterior(torch.tensor([mean], dtype=torch.float64), std)
    wanted = dense_kl_nats(prior, mean, std)
    for method in ("auto", "quadrature"):
        found = float(kl(posterior, prior, method=method).nats.detach())
        assert abs(found - wanted) <= relative * abs(wanted) + 1e-9, (
            f"{prior.kind}: KL by {method} at mean {mean:g}, std {std:g} is {found}, the dense integral {wanted}"
        )


def _check_gradient(prior: Prior) -> None:
    """Check the KL's gradient by q and by every learned number of p against finite differences."""
    width = float(prior.typical_scale().detach())
    posterior = GaussianPosterior(torch.tensor([0.4, -1.3], dtype=torch.float64) * width, 0.3 * width)
    parameters = [posterior.mean, posterior.log_std, *prior.parameters()]

    def value() -> Tensor:
        return kl(posterior, prior).nats

    gradients = torch.autograd.grad(value(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        flat, step = parameter.data.view(-1), 1e-5
        for index in range(len(flat)):
            start = float(flat[index])
            flat[index] = start + step
            above = float(value().detach())
            flat[index] = start - step
            below = float(value().detach())
            flat[index] = start
            wanted, found = (above - below) / (2 * step), float(gradient.reshape(-1)[index])
            assert abs(found - wanted) < 1e-5 * (1 + abs(wanted)), f"{prior.kind}: KL gradient {found}, not {wanted}"


def _check_training_gradient(prior: Prior) -> None:
    """Check that the mean of ``kl_gradient`` over draws is the KL's gradient, and ``slope`` the derivative of -log p."""
    assert prior.is_elementwise, f"{prior.kind}: does not code its weights one by one"
    width, learned = float(prior.typical_scale().detach()), list(prior.parameters())
    for mean, std in POSTERIORS:
        posterior = GaussianPosterior(torch.tensor([mean * width], dtype=torch.float64), std * width)
        wanted = torch.stack(torch.autograd.grad(kl(posterior, prior).nats, [posterior.mean, posterior.log_std]))
        found = torch.stack(expected_kl_gradient(prior, posterior.mean.detach(), posterior.log_std.detach()))
        unit = torch.tensor([[std * width], [1.0]], dtype=torch.float64)
        assert ((found - wanted) * unit).abs().max() < 1e-3 * (1 + (wanted * unit).abs().max()), (
            f"{prior.kind}: kl_gradient at mean {mean:g}, std {std:g} widths is {found.tolist()} on average, "
            f"the KL's gradient {wanted.tolist()}"
        )
    posterior = GaussianPosterior(torch.tensor([0.4 * width], dtype=torch.float64), 0.3 * width)
    draws = torch.special.ndtri((torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS)
    means, log_stds = (x.detach().expand(DRAWS) for x in (posterior.mean, posterior.log_std))
    prior.zero_grad()
    prior.kl_gradient(means, log_stds, means + log_stds.exp() * draws, 1 / DRAWS)
    wanted_each = torch.autograd.grad(kl(posterior, prior).nats, learned) if learned else ()
    for parameter, gradient in zip(learned, wanted_each, strict=True):
        assert parameter.grad is not None, f"{prior.kind}: kl_gradient leaves no gradient for a learned number"
        assert torch.allclose(parameter.grad, gradient, rtol=0.02, atol=0.02), (
            f"{prior.kind}: kl_gradient leaves {parameter.grad.tolist()} for learned numbers, not {gradient.tolist()}"
        )
    _check_slope(prior, width)
    prior.zero_grad()


def expected_kl_gradient(prior: Prior, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of ``prior.kl_gradient`` over draws, by quadrature.

    Args:
        prior: elementwise prior.
        mean: posterior means, (n,).
        log_std: posterior log stds, (n,).

    Returns:
        Gradients by mean and by log std, (n,) each.

    >>> from bitsback.priors import LogisticPrior
    >>> nothing = torch.zeros(1, dtype=torch.float64)
    >>> by_mean, by_log_std = expected_kl_gradient(LogisticPrior(1.0).double(), nothing, nothing)
    >>> abs(by_mean.item()) < 1e-12, round(by_log_std.item(), 6)
    (True, -0.586758)
    """
    bends = prior.breakpoints().detach().flatten().to(mean).expand(len(mean), -1)
    both = torch.cat([bends, 2 * mean.unsqueeze(1) - bends], dim=1)  # kl_gradient may evaluate the mirrored draw 2 m - w too

    def gradient(draws: Tensor) -> tuple[Tensor, Tensor]:
        columns = mean.unsqueeze(1).expand_as(draws), log_std.unsqueeze(1).expand_as(draws)
        return prior.kl_gradient(*columns, draws, 0.0)

    by_mean = gaussian_expectation(lambda draws: gradient(draws)[0], mean, log_std.exp(), both, Panels.exact())
    return by_mean, gaussian_expectation(lambda draws: gradient(draws)[1], mean, log_std.exp(), both, Panels.exact())


def _check_slope(prior: Prior, width: float) -> None:
    weights = width * torch.linspace(-3.1, 3.2, 8, dtype=torch.float64)
    results = []
    for slope in (prior.slope, lambda weights, rate: Prior.slope(prior, weights, rate)):
        prior.zero_grad()
        results.append([slope(weights, 0.5), *(parameter.grad for parameter in prior.parameters())])
    for found, wanted in zip(*results, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())), (
            f"{prior.kind}: slope, or what it leaves for a learned number, is {found.tolist()}, by autograd {wanted.tolist()}"
        )


def _check_sum(prior: Prior) -> None:
    """Check that the KL is additive over groups of weights."""
    means = torch.linspace(-1, 1, 7, dtype=torch.float64)
    whole = float(kl(GaussianPosterior(means, 0.2), prior).nats.detach())
    parts = sum(float(kl(GaussianPosterior(part, 0.2), prior).nats.detach()) for part in means.split(3))
    assert abs(whole - parts) < 1e-9 * (1 + abs(whole)), f"{prior.kind}: the KL {whole} is not the sum of its parts {parts}"


def _check_rounding(prior: Prior) -> None:
    """Check that rounding is idempotent and that every learned number is charged."""
    rounded = copy.deepcopy(prior)
    rounded.round_to_grid()
    again = copy.deepcopy(rounded)
    again.round_to_grid()
    for (name, once), twice in zip(rounded.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(once, twice), f"{prior.kind}: rounding {name} twice changes it"
    learned = sum(parameter.numel() for parameter in prior.parameters())
    charged = sum(charge.numbers for charge in prior.charges())
    assert charged >= learned, f"{prior.kind}: learns {learned} numbers but charges {charged}"
