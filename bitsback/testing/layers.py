"""The contract of a Bayesian layer: torch's own layer under many weight draws."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bitsback.layers import BayesianModule
from bitsback.posterior import GaussianPosterior, Posterior, holding

DRAWS = 400


def first(output: Any) -> Tensor:
    """The tensor of an output: recurrent layers and attention return tuples."""
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def posteriors(layer: nn.Module) -> list[Posterior]:
    """Every posterior of a layer, its children's included."""
    return [module for module in layer.modules() if isinstance(module, Posterior)]


def check_layer(make: Callable[[], nn.Module], plain: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Check a Bayesian layer against the torch layer it came from.

    Args:
        make: builds the Bayesian layer; its options must be those of ``plain``.
        plain: the torch layer.
        inputs: positional inputs in float32.

    Raises:
        AssertionError: naming what broke.

    >>> import bitsback
    >>> _ = torch.manual_seed(0)
    >>> check_layer(lambda: bitsback.Linear(3, 2), nn.Linear(3, 2), (torch.randn(4, 3),))
    """
    layer = make()
    name = type(plain).__name__
    assert isinstance(layer, BayesianModule), f"{name}: not a BayesianModule"
    assert isinstance(layer, type(plain)), f"{name}: lost its own class"
    _check_means(layer, plain, inputs, name)
    _check_draws(layer, inputs, name)
    _check_gradients(make(), inputs, name)
    _check_copies(layer, make(), inputs, name)
    _check_precisions(make(), inputs, name)


def _forward(layer: nn.Module, inputs: tuple[Tensor, ...], seed: int | None = None) -> Tensor:
    if seed is not None:
        torch.manual_seed(seed)
    return first(layer(*inputs))


def _check_means(layer: nn.Module, plain: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
    """With every weight at its mean, the layer is the torch layer with those weights."""
    plain, layer = copy.deepcopy(plain), copy.deepcopy(layer)  # batch norm changes with every call
    stored = {key: parameter for key, parameter in layer.named_parameters() if key.endswith(".mean")}
    means = {key.replace("posteriors.", "").removesuffix(".mean"): parameter for key, parameter in stored.items()}
    assert set(means) == {key for key, _ in plain.named_parameters()}, f"{name}: weights {sorted(means)} differ from torch's"
    plain.load_state_dict({**dict(plain.named_buffers()), **means})
    with torch.no_grad(), holding(posteriors(layer), lambda q: q.mean):
        same = torch.allclose(_forward(layer, inputs), _forward(plain, inputs), atol=1e-6)
    assert same, f"{name}: with every weight at its mean it is not the torch layer"


def _check_draws(layer: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
    """Mean and variance of the output over calls agree with explicit draws of every weight."""
    layer = copy.deepcopy(layer).eval()
    with torch.no_grad():
        for posterior in posteriors(layer):
            assert isinstance(posterior, GaussianPosterior)
            posterior.set_std(0.05)
        called = torch.stack([_forward(layer, inputs, seed) for seed in range(DRAWS)])
        explicit = []
        for seed in range(DRAWS, 2 * DRAWS):
            torch.manual_seed(seed)
            with holding(posteriors(layer), lambda q: q.draw()):
                explicit.append(_forward(layer, inputs))
        drawn = torch.stack(explicit)
    spread = drawn.std(0)
    allowed = 6 * spread / DRAWS**0.5 * 2**0.5 + 1e-5
    assert bool(((called.mean(0) - drawn.mean(0)).abs() < allowed).all()), f"{name}: mean over calls differs from weight draws"
    ratio = float(called.var(0).mean() / drawn.var(0).mean())
    assert 0.8 < ratio < 1.25, f"{name}: variance over calls is {ratio:.2f} times that of weight draws"
    assert not torch.equal(called[0], called[1]), f"{name}: two calls saw the same draw"


def _check_gradients(layer: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
    weights = torch.randn_like(_forward(layer, inputs).detach())
    (_forward(layer, inputs) * weights).sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None, f"{name}: no gradient for {key}"
        assert torch.isfinite(parameter.grad).all(), f"{name}: gradient of {key} is not finite"


def _check_copies(layer: nn.Module, other: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
    """deepcopy and state_dict carry everything; a held draw is shared by every call."""
    copied = copy.deepcopy(layer)
    other.load_state_dict(layer.state_dict())
    wanted = _forward(layer, inputs, seed=1)
    assert torch.equal(wanted, _forward(copied, inputs, seed=1)), f"{name}: deepcopy differs"
    assert torch.equal(wanted, _forward(other, inputs, seed=1)), f"{name}: state_dict does not carry the posterior"
    with holding(posteriors(layer)):
        layer.eval()
        assert torch.equal(_forward(layer, inputs), _forward(layer, inputs)), f"{name}: a held draw changes between calls"
        layer.train()


def _check_precisions(layer: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(_forward(layer, inputs)).all(), f"{name}: not finite under autocast"
    doubled = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    assert _forward(layer.double(), doubled).dtype == torch.float64, f"{name}: loses float64"
