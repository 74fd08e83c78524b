"""Find hidden units whose order does not change the network, and the tensors that are permuted with them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from bitsback.coding.permutation import UnitGroup

__all__ = ["Linears", "exchangeable_groups"]

Linears = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
PER_UNIT = ("weight", "bias", "running_mean", "running_var")
"""Tensors with an entry for every unit. This and the lists of layers below are part of the format: changing them breaks
decoding."""

UNITWISE: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.Tanh, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid,
    nn.Hardswish, nn.Threshold, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
"""Layers that apply the same function to every unit separately."""

POOLS: dict[type[nn.Module], int] = {
    **dict.fromkeys((nn.MaxPool1d, nn.AvgPool1d, nn.LPPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d), 1),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d), 2),
    **dict.fromkeys((nn.MaxPool3d, nn.AvgPool3d, nn.LPPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d), 3),
}
"""Pooling layers, with their number of spatial axes."""
CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
"""Convolution layers, with their number of spatial axes."""
LINEARS = (nn.Linear, *CONVOLUTIONS)
NORMS: dict[type[nn.Module], tuple[int, ...]] = {nn.BatchNorm1d: (0, 1), nn.BatchNorm2d: (2,), nn.BatchNorm3d: (3,)}
"""Normalisation layers, with the numbers of spatial axes that their inputs may have."""


@dataclass
class _Open:
    """Output units of a layer whose reading layer has not been reached yet.

    Attributes:
        units: number of units.
        spatial: number of axes behind the unit axis; None if units are the last axis and the number of axes is unknown.
        outputs: names of the tensors with an entry for each unit, so far.
        parts: modules that own these tensors.
        is_flattened: whether spatial axes have been flattened, so that each unit is a block of neighbouring inputs.
    """

    units: int
    spatial: int | None
    outputs: tuple[str, ...]
    parts: list[nn.Module]
    is_flattened: bool = False

    def are_read_by(self, layer: Linears) -> bool:
        """Return whether each input, or block of inputs, of the layer is one unit."""
        if isinstance(layer, nn.Linear):
            fits = layer.in_features % self.units == 0 if self.is_flattened else layer.in_features == self.units
            return fits and not self.spatial
        return layer.groups == 1 and layer.in_channels == self.units and self.spatial == CONVOLUTIONS[_kind(layer)]


def exchangeable_groups(network: nn.Module, input_axes: int | None = None) -> list[UnitGroup]:
    """Return the groups of exchangeable hidden units of a chain of layers, first to last.

    A group goes from a Linear or convolution layer to the next, with unit-wise layers, pools, batch norm and Flatten between.
    Layers with hooks or a forward of their own, and weights or layers that are used twice, have none.

    Args:
        network: chain of torch's layers, or of those in :mod:`bitsback.nn`.
        input_axes: axes of a batch of inputs, the batch's included. It decides one case: batch norm after Linear normalises
            the units only in a batch of 2 axes; if unknown, there is no group.

    Returns:
        groups, with tensors named by their dotted paths; empty if the network is not a chain of known layers.

    >>> exchangeable_groups(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    [UnitGroup(units=8, outputs=('0.weight', '0.bias'), following='2.weight', block=1)]
    """
    chain = list(_chain(network))
    readers = Counter(identity for module in network.modules() for identity in _own(module))
    readers.update(id(module) for _, module in chain)
    groups: list[UnitGroup] = []
    now: _Open | None = None
    axes = input_axes
    for path, module in chain:
        kind = _kind(module)
        if kind in LINEARS and isinstance(module, Linears):
            if now is not None and now.are_read_by(module):
                parts = [*now.parts, module]
                # a weight or layer used twice is permuted at one place and not at the other
                if all(readers[i] == 1 for part in parts for i in (id(part), *_own(part))):
                    inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
                    groups.append(UnitGroup(now.units, now.outputs, f"{path}weight", inputs // now.units))
            now, axes = _opened(path, module, axes)
        elif kind is nn.Flatten and isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            axes = 2
            if now is not None:
                now.is_flattened, now.spatial = now.is_flattened or bool(now.spatial), 0
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and kind in NORMS:
            if now is not None and now.spatial in NORMS[kind] and module.num_features == now.units:
                now.outputs += _per_unit(path, module)
                now.parts.append(module)
            else:
                now = None
        elif kind in POOLS:
            now = now if now is not None and now.spatial == POOLS[kind] else None
        elif kind not in UNITWISE:
            now, axes = None, None
    return groups


def _opened(path: str, layer: Linears, axes: int | None) -> tuple[_Open | None, int | None]:
    """Return the output units of a layer, and the number of axes of a batch of its outputs."""
    if isinstance(layer, nn.Linear):
        return _Open(layer.out_features, 0 if axes == 2 else None, _per_unit(path, layer), [layer]), axes
    spatial = CONVOLUTIONS[_kind(layer)]
    if layer.groups > 1:
        return None, spatial + 2
    return _Open(layer.out_channels, spatial, _per_unit(path, layer), [layer]), spatial + 2


def _chain(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield prefix of names and module of every layer of nested Sequentials; any other container counts as one layer."""
    run = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    is_known = run.__module__.startswith(("torch.nn.", "bitsback."))
    if isinstance(module, nn.Sequential) and is_known and not _has_hooks(module):
        for name, child in module._modules.items():
            if child is not None:
                yield from _chain(child, f"{path}{name}.")
    else:
        yield path, module


def _kind(module: nn.Module) -> type[nn.Module]:
    """Return the torch class of a module, or from which a layer of this package derives; nn.Module for any other."""
    if not _has_hooks(module):
        for kind in type(module).__mro__:
            if kind.__module__.startswith("torch.nn.modules."):
                return kind
            if not kind.__module__.startswith(("bitsback.layers", "bitsback.nn")):
                break
    return nn.Module


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _own(module: nn.Module) -> list[int]:
    """Return the identities of a module's own parameters, by which shared weights are recognised."""
    return [id(one) for one in module._parameters.values() if one is not None]


def _per_unit(path: str, module: nn.Module) -> tuple[str, ...]:
    """Return dotted names of the module's tensors that have an entry, or a row, for each unit."""
    held = {name for name, value in (*module._parameters.items(), *module._buffers.items()) if value is not None}
    return tuple(f"{path}{name}" for name in PER_UNIT if name in held)
