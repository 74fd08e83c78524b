"""Local reparameterisation: noise on the outputs of a layer in place of noise on its weights, in training steps.

For a layer that is linear in its weights, the output for one example has the same distribution whether weights are drawn or
outputs are drawn from N(f(x; m), f(x^2; s^2)). Across examples, output noise is independent, which reduces the variance of
gradients (Kingma, Salimans & Welling 2015, section 2). Where rows are not examples (steps of a recurrent cell, nodes of a
graph, tokens of a text) they share one draw of the weights, and the objective would differ. So it is used only for layers for
which it was asked explicitly, or for which trial forward passes show one call with one row per example
(:func:`called_once_per_row`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsback.errors import LayerError, near_miss
from bitsback.layers._gaussian_noise import with_noise
from bitsback.layers.estimator import ESTIMATORS, Estimator, Estimators

__all__ = ["called_once_per_row", "check_kinds", "estimator_of", "is_linear_in_weights", "noise_on_outputs"]

LINEAR_IN_WEIGHTS: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
"""Layers whose output is linear in their weights, so that its mean and variance under q take one forward pass each."""

LINEAR_OWNERS = {next(kind for kind in layer.__mro__ if "forward" in vars(kind)) for layer in LINEAR_IN_WEIGHTS}
"""Classes that define the ``forward`` of those layers."""

OUTPUT_BY_DEFAULT: tuple[type[nn.Module], ...] = (nn.Linear, nn.Bilinear)
"""Layers for which ``auto`` considers output noise; in convolutions it would be independent for each pixel, not exact."""


def estimator_of(module: nn.Module, wanted: Estimators, chosen: Sequence[str]) -> Estimator:
    """Return the estimator of a module.

    Args:
        module: module that owns weights with posteriors.
        wanted: estimator of all modules, or by the name of their class or of a base class.
        chosen: local names of its weights that have a Gaussian posterior and are not tied.

    Returns:
        ``weight``, ``output`` if asked for, or ``auto`` for layers to be tested by trial forward passes.

    Raises:
        LayerError: for an unknown estimator, or when ``output`` is asked for and does not apply.

    >>> estimator_of(nn.Linear(2, 2), {"Linear": "output"}, ["weight", "bias"])
    'output'
    """
    if isinstance(wanted, str):
        found: Estimator = wanted
    else:
        found = next((wanted[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in wanted), "auto")
    if found not in ESTIMATORS:
        raise LayerError(f"unknown estimator {found!r}; allowed: {', '.join(ESTIMATORS)}")
    linear, complete = is_linear_in_weights(module), _is_complete(module, chosen)
    if found == "output" and not linear:
        raise LayerError(
            f"{type(module).__name__} is not linear in its weights: its output is not Gaussian; use estimator 'weight'"
        )
    if found == "output" and not complete:
        raise LayerError("estimator 'output' needs a posterior of its own on every weight of the layer; use estimator 'weight'")
    return found if complete and linear and (found == "output" or isinstance(module, OUTPUT_BY_DEFAULT)) else "weight"


def check_kinds(network: nn.Module, wanted: Estimators) -> None:
    """Check that every class name for which an estimator is chosen occurs in the network.

    Args:
        network: the network.
        wanted: estimator of all modules, or by class name.

    Raises:
        LayerError: for a class name that does not occur.
    """
    kinds = {kind.__name__ for module in network.modules() for kind in type(module).__mro__}
    for kind in wanted if isinstance(wanted, Mapping) else ():
        if kind not in kinds:
            raise LayerError(f"the network has no layer of kind '{kind}'{near_miss(kind, kinds)} to choose an estimator for")


def is_linear_in_weights(module: nn.Module) -> bool:
    """Return True for torch's linear layers with their original forward and with parameters ``weight`` and ``bias`` only."""
    own = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    inner = next((kind for kind in type(module).__mro__ if "_conv_forward" in vars(kind)), nn.Module)
    names = set(module._parameters)  # a parametrized weight is none of them, but computed
    return own in LINEAR_OWNERS and inner.__module__.startswith("torch.nn") and {"weight"} <= names <= {"weight", "bias"}


def _is_complete(module: nn.Module, chosen: Sequence[str]) -> bool:
    return all(name in chosen for name, parameter in module._parameters.items() if parameter is not None)


@contextmanager
def noise_on_outputs(
    layers: Sequence[tuple[nn.Module, Mapping[str, Tensor]]], noise: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Add Gaussian noise to the outputs of modules inside the context, with the variance that weight noise would cause.

    Args:
        layers: modules whose parameters hold the means, each with the variances of its parameters by local name.
        noise: function from a tensor to standard normal numbers of its shape and dtype.

    Yields:
        None.

    >>> layer = nn.Linear(2, 3)
    >>> with noise_on_outputs([(layer, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)})], torch.randn_like):
    ...     layer(torch.zeros(4, 2)).std().item() == layer.bias.expand(4, 3).std().item()
    True
    """
    handles = [module.register_forward_hook(_Hook(variances, noise), with_kwargs=True) for module, variances in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Hook:
    """Forward hook that adds the noise to one module's output."""

    def __init__(self, variances: Mapping[str, Tensor], noise: Callable[[Tensor], Tensor]) -> None:
        self.variances, self.noise, self.is_busy = dict(variances), noise, False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if self.is_busy:
            return None
        self.is_busy = True  # the module is called again below, with squared inputs and variances: that call gets no noise
        try:
            with torch.autocast(output.device.type, enabled=False):
                precise = next(iter(self.variances.values())).dtype
                if type(module).forward is nn.Linear.forward and len(args) == 1:
                    variance = F.linear(args[0].to(precise).square(), self.variances["weight"], self.variances.get("bias"))
                    return with_noise(output, variance, self.noise(variance))
                variance = torch.func.functional_call(
                    module,
                    self.variances,
                    tuple(_square(arg, precise) for arg in args),
                    {key: _square(arg, precise) for key, arg in kwargs.items()},
                )
        finally:
            self.is_busy = False
        return with_noise(output, variance, self.noise(variance))


def _square(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype).square() if isinstance(value, Tensor) else value


def called_once_per_row(call: Callable[[], Any], modules: Sequence[nn.Module], rows: int) -> dict[nn.Module, bool]:
    """Return for each module whether it is called exactly once in a forward pass, with one row for each example.

    Args:
        call: runs the network on a batch of ``rows`` examples.
        modules: modules to test.
        rows: number of examples.

    Returns:
        True or False by module.

    >>> layer = nn.Linear(2, 2)
    >>> called_once_per_row(lambda: layer(layer(torch.ones(3, 2))), [layer], 3)[layer]
    False
    """
    seen: dict[nn.Module, list[bool]] = {module: [] for module in modules}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        seen[module].append(all(arg.ndim == 2 and len(arg) == rows for arg in tensors))

    handles = [module.register_forward_pre_hook(look, with_kwargs=True) for module in modules]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return {module: calls == [True] for module, calls in seen.items()}
