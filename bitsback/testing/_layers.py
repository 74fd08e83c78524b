"""Contract test of a layer with posteriors: it behaves as the torch layer with drawn weights."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bitsback.model import BayesianModel, Weight, bayesianize
from bitsback.nn import BayesianLayer
from bitsback.optim import Variational
from bitsback.posteriors import GaussianPosterior

__all__ = ["check_layer", "first"]

DRAWS = 400


def first(output: Any) -> Tensor:
    """Return the output tensor, the first item of a tuple (as returned by recurrent layers and attention)."""
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def check_layer(make: Callable[[], nn.Module], plain: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Check a layer with posteriors against the corresponding torch layer.

    Tests means, draws, gradients, copies and states, and precisions.

    Args:
        make: builds the layer; a layer of :mod:`bitsback.nn`, or any module, which is then given to ``bayesianize``.
        plain: the torch layer, with the same options.
        inputs: positional inputs, those of floating point in float32.

    Raises:
        AssertionError: with the name of the property that fails.

    >>> import bitsback.nn
    >>> _ = torch.manual_seed(0)
    >>> check_layer(lambda: bitsback.nn.Linear(3, 2), nn.Linear(3, 2), (torch.randn(4, 3),))
    """
    name = type(plain).__name__
    layer, model = _made(make)
    assert isinstance(layer, type(plain)), f"{name}: lost its own class"
    wanted = {key for key, _ in plain.named_parameters()}
    assert {key for key, _ in layer.named_parameters()} == wanted, f"{name}: its parameters are not torch's"
    assert {weight.name for weight in model.weights} == wanted, f"{name}: weights without a posterior"
    _check_means(layer, model, plain, inputs, name)
    _check_draws(*_made(make), inputs, name)
    _check_gradients(*_made(make), inputs, name)
    _check_copies(layer, _made(make)[0], inputs, name)
    _check_precisions(*_made(make), inputs, name)


def _made(make: Callable[[], nn.Module]) -> tuple[nn.Module, BayesianModel]:
    layer = make()
    return layer, layer.model if isinstance(layer, BayesianLayer) else bayesianize(layer)


def _forward(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return first(layer(*inputs))


def _under(layer: nn.Module, weights: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    return first(functional_call(layer, weights, inputs))


def _check_means(layer: nn.Module, model: BayesianModel, plain: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
    """Check that with every weight at its mean, outputs are those of the torch layer with those weights."""
    plain = copy.deepcopy(plain)
    means = {weight.name: weight.posterior.mean.detach().clone() for weight in model.weights}
    plain.load_state_dict({**dict(layer.named_buffers()), **means})
    before = {key: buffer.clone() for key, buffer in layer.named_buffers()}
    with torch.no_grad(), model.mean():
        same = torch.allclose(_forward(layer, inputs), _forward(plain, inputs), atol=1e-6)
    for key, buffer in layer.named_buffers():  # batch norm changes with every call
        buffer.copy_(before[key])
    assert same, f"{name}: with every weight at its mean it is not the torch layer"


def _check_draws(layer: nn.Module, model: BayesianModel, inputs: tuple[Tensor, ...], name: str) -> None:
    """Check that a draw lasts until the next, and that mean and variance of outputs agree with those of explicit draws."""
    for module in layer.modules():
        module.training = False  # sets the mode of the module, not of the model: weights still hold draws
    with torch.no_grad():
        for weight in model.weights:
            assert isinstance(weight.posterior, GaussianPosterior)
            weight.posterior.set_std(0.05)
        called, explicit = [], []
        for _ in range(DRAWS):
            model.draw()
            called.append(_forward(layer, inputs))
            explicit.append(_under(layer, {weight.name: _drawn(weight) for weight in model.weights}, inputs))
        again = _forward(layer, inputs)
    assert torch.equal(called[-1], again), f"{name}: a draw does not last"
    assert not torch.equal(called[0], called[1]), f"{name}: two draws are alike"
    drawn, given = torch.stack(explicit), torch.stack(called)
    spread = torch.cat([drawn, given]).std(0)  # pooled: a unit that is zero in nearly every draw may have std 0 in one of them
    allowed = 6 * spread * (2 / DRAWS) ** 0.5 + 1e-5
    assert bool(((given.mean(0) - drawn.mean(0)).abs() < allowed).all()), f"{name}: mean over draws differs from explicit ones"
    ratio = float(given.var(0).mean() / drawn.var(0).mean())
    assert 0.8 < ratio < 1.25, f"{name}: variance over draws is {ratio:.2f} times that of explicit ones"


def _drawn(weight: Weight) -> Tensor:
    value = weight.posterior.draw()
    if weight.constant_row is not None:
        value[weight.constant_row] = weight.posterior.mean[weight.constant_row]
    return value


def _check_gradients(layer: nn.Module, model: BayesianModel, inputs: tuple[Tensor, ...], name: str) -> None:
    """Check that the gradients of means and log stds equal those of autograd through w = m + s e, in float64."""
    model.double()
    doubled = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    targets = torch.randn_like(_forward(layer, doubled).detach())
    pairs, weights = [], {}
    for weight in model.weights:
        q = weight.posterior
        assert isinstance(q, GaussianPosterior)
        mean, log_std = q.mean.detach().clone().requires_grad_(), q.log_std.detach().clone().requires_grad_()
        noise = model.noise(weight, model.state)
        if weight.constant_row is not None:
            noise[weight.constant_row] = 0
        pairs += [mean, log_std]
        weights[weight.name] = mean + log_std.exp() * noise
    oracle = torch.autograd.grad((_under(layer, weights, doubled) * targets).mean(), pairs, materialize_grads=True)
    (_forward(layer, doubled) * targets).mean().backward()
    start = [p.detach().clone() for p in model.posterior.parameters()]
    Variational(model, torch.optim.SGD, lr=1.0, examples=1, beta=0.0).step()
    for before, after, wanted in zip(start, model.posterior.parameters(), oracle, strict=True):
        close = torch.allclose(before - after, wanted, rtol=1e-8, atol=1e-10)
        assert close, f"{name}: a gradient is not that of w = m + s e"


def _check_copies(layer: nn.Module, other: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
    """Check that deepcopy and the model's state dict preserve posterior and draw."""
    model = layer.model if isinstance(layer, BayesianLayer) else bayesianize(layer)
    second = other.model if isinstance(other, BayesianLayer) else bayesianize(other)
    model.draw()
    twin = copy.deepcopy(model)
    second.load_state_dict(model.state_dict())
    for module in (*model.network.modules(), *twin.network.modules(), *second.network.modules()):
        module.training = False
    with torch.no_grad():
        wanted = first(model(*inputs))
        assert torch.equal(wanted, first(twin(*inputs))), f"{name}: deepcopy differs"
        assert torch.equal(wanted, first(second(*inputs))), f"{name}: the state does not carry the draw"
        model.draw()
        twin.draw()
        assert torch.equal(first(model(*inputs)), first(twin(*inputs))), f"{name}: a copy draws otherwise"


def _check_precisions(layer: nn.Module, model: BayesianModel, inputs: tuple[Tensor, ...], name: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(_forward(layer, inputs)).all(), f"{name}: not finite under autocast"
    doubled = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    model.double()
    assert _forward(layer, doubled).dtype == torch.float64, f"{name}: loses float64"
