"""Contract test of a likelihood: its bits are code lengths of the targets, and its gradient is correct."""

import copy

import torch
from torch import Tensor

from bitsback.likelihoods import Likelihood
from bitsback.likelihoods.base import SymbolLikelihood, per_example

__all__ = ["check_likelihood"]


def check_likelihood(
    likelihood: Likelihood, outputs: Tensor, targets: Tensor, every_target: Tensor, *, slack: float = 1e-6
) -> None:
    """Check a likelihood on examples: total mass, independence of the batch, gradient, shapes, and reference codes.

    If it has a value of targets that are not coded, the examples are checked again with that value at every second position:
    such a position must cost nothing, in the reference codes too, and must not reach the network.

    Args:
        likelihood: likelihood to check.
        outputs: network outputs (n, ...), in float64.
        targets: targets of those examples.
        every_target: all values of a target, (k, ...), or enough of them that the rest has negligible probability.
        slack: allowed difference of the total mass from one.

    Raises:
        AssertionError: with the name of the property that fails.

    >>> from bitsback.likelihoods import CategoricalLikelihood
    >>> check_likelihood(CategoricalLikelihood(3), torch.randn(4, 3).double(), torch.tensor([0, 1, 2, 0]), torch.arange(3))
    """
    likelihood = copy.deepcopy(likelihood).double()
    name = likelihood.kind
    likelihood.check_targets(targets, "training")
    bits = likelihood.bits(outputs, targets)
    assert bits.shape == (len(targets),), f"{name}: bits have shape {tuple(bits.shape)}, one number per example is needed"
    for index in range(len(outputs)):
        same = outputs[index : index + 1].expand(len(every_target), *outputs.shape[1:])
        total = float((2.0 ** -likelihood.bits(same, every_target)).sum().detach())
        assert abs(total - 1) < slack, f"{name}: the mass over all targets is {total}, a code needs one (Kraft)"
        alone = likelihood.bits(outputs[index : index + 1], targets[index : index + 1])
        assert torch.allclose(alone, bits[index : index + 1]), f"{name}: an example's bits depend on its batch"
    leaf = outputs.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: likelihood.bits(x, targets), (leaf,)), f"{name}: wrong gradient"
    error = likelihood.error(likelihood.predict(outputs), targets)
    assert error.shape == (len(targets),), f"{name}: errors have shape {tuple(error.shape)}"
    assert len(likelihood.answers(likelihood.predict(outputs))) == len(outputs), f"{name}: wants one answer for each input"
    assert likelihood.marginal_bits(targets) > 0, f"{name}: the marginal code costs nothing"
    assert likelihood.uniform_bits(targets) > 0, f"{name}: the uniform code costs nothing"
    positions = targets[0].numel()  # labels need outputs for each of them
    wanted = (likelihood.outputs(targets), likelihood.outputs(targets) * positions)
    assert outputs[0].numel() in wanted, f"{name}: wants another number of outputs"
    if targets.ndim == 1 or isinstance(likelihood, SymbolLikelihood):
        each = likelihood.symbol_bits(outputs, targets)
        assert each.shape == targets.shape, f"{name}: symbol bits have shape {tuple(each.shape)}"
        assert torch.allclose(per_example(each), bits), f"{name}: symbol bits do not add up to the bits"
    if likelihood.ignore is not None:
        _check_hidden(likelihood, outputs, targets)


def _check_hidden(likelihood: Likelihood, outputs: Tensor, targets: Tensor) -> None:
    """Check that positions that are not coded cost nothing and have no gradient, and that no other position changes."""
    name, before = likelihood.kind, likelihood.coded(targets)
    assert likelihood.ignore is not None
    assert before is not None, f"{name}: has a value to ignore, and codes all targets"
    hidden = targets.clone()
    hidden.view(-1)[::2] = likelihood.ignore
    coded = likelihood.coded(hidden)
    assert coded is not None
    assert bool((coded <= before).all()), f"{name}: codes what it does not code"
    count = int(coded.sum())
    assert 0 < count < int(before.sum()), f"{name}: give targets of two numbers or more, coded ones at odd positions"
    likelihood.check_targets(hidden, "training")
    assert likelihood.symbols(hidden) == count, f"{name}: counts other symbols than it codes"
    leaf = outputs.clone().requires_grad_()
    each = likelihood.symbol_bits(leaf, hidden)
    full = likelihood.symbol_bits(outputs, targets)
    assert torch.allclose(each, full * coded), f"{name}: a hidden position changes the bits of another, or costs bits"
    (slope,) = torch.autograd.grad(each.sum(), leaf)
    (part,) = torch.autograd.grad((likelihood.symbol_bits(leaf, targets) * coded).sum(), leaf)
    assert torch.allclose(slope, part), f"{name}: a hidden position has a gradient"
    assert likelihood.marginal_bits(hidden) < likelihood.marginal_bits(targets), (
        f"{name}: the marginal code codes what is hidden"
    )
    assert likelihood.uniform_bits(hidden) < likelihood.uniform_bits(targets), f"{name}: the uniform code codes what is hidden"
    error = likelihood.error(likelihood.predict(outputs), hidden)
    assert bool(torch.isfinite(error).all()), f"{name}: an example that is hidden has no finite error"
