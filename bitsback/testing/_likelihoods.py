"""Contract test of a likelihood: its bits are code lengths of the targets, and its gradient is correct."""

import copy

import torch
from torch import Tensor

from bitsback.likelihoods import Likelihood

__all__ = ["check_likelihood"]


def check_likelihood(
    likelihood: Likelihood, outputs: Tensor, targets: Tensor, every_target: Tensor, *, slack: float = 1e-6
) -> None:
    """Check a likelihood on examples: total mass, independence of the batch, gradient, shapes, and reference codes.

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
    assert outputs[0].numel() == likelihood.outputs(targets), f"{name}: wants another number of outputs"
