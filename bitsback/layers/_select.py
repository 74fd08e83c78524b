"""Choice of the weights of a network that get a posterior."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from bitsback.errors import LayerError, near_miss

__all__ = ["Choice", "ParameterRef", "choose", "matches"]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return True if a pattern matches a dotted weight name or the name of a module that contains it.

    Args:
        name: dotted weight name.
        patterns: shell-style patterns.

    Returns:
        True if any pattern matches.

    >>> matches("encoder.fc.weight", ["encoder"]), matches("encoder.fc.bias", ["*.weight"])
    (True, False)
    """
    parts = name.split(".")
    paths = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    return any(fnmatchcase(path, pattern) for path in paths for pattern in patterns)


@dataclass(frozen=True)
class ParameterRef:
    """Location of a parameter in a network: owning module, local name in it, and dotted name in the network."""

    owner: nn.Module
    local: str
    name: str

    @property
    def parameter(self) -> nn.Parameter:
        """Return the parameter that is there now."""
        found = self.owner._parameters[self.local]
        assert found is not None
        return found


@dataclass(frozen=True)
class Choice:
    """Weight tensor that gets a posterior, with all its locations in the network; several if it is tied."""

    refs: tuple[ParameterRef, ...]

    @property
    def name(self) -> str:
        """Return the dotted name of the first location, as in torch's ``named_parameters``."""
        return self.refs[0].name


def choose(network: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> list[Choice]:
    """Return the weights that match ``include`` and not ``exclude``, in the order of torch's ``named_parameters``.

    A frozen weight (``requires_grad`` is False) is never chosen: it does not change and is not charged; the ledger lists it.

    Args:
        network: any module; it is not changed.
        include: shell-style patterns over dotted weight names (``"encoder.fc.weight"``) or module names (``"encoder"``).
        exclude: patterns of the same kind; they take precedence over ``include``.

    Returns:
        The chosen weights.

    Raises:
        LayerError: when a pattern matches nothing, or only frozen weights, when every weight is frozen, or for a weight that is
            uninitialised, empty, complex or on the meta device.

    >>> [choice.name for choice in choose(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), exclude=["2"])]
    ['0.weight', '0.bias']
    """
    refs = list(_refs(network))
    if not refs:
        raise LayerError(f"{type(network).__name__} has no weights that could have a posterior")
    names = [ref.name for ref in refs]
    _check_patterns([*include, *exclude], names)
    frozen = [ref.name for ref in refs if not ref.parameter.requires_grad]
    _check_frozen(network, include, frozen, names)
    readers: dict[int, list[ParameterRef]] = {}
    for ref in refs:
        if ref.name not in frozen:
            readers.setdefault(id(ref.parameter), []).append(ref)
    chosen = [Choice(tuple(several)) for several in readers.values() if _is_chosen(several, include, exclude)]
    for choice in chosen:
        _check_parameter(choice)
    return chosen


def _check_parameter(choice: Choice) -> None:
    parameter, name = choice.refs[0].parameter, choice.name
    kind = type(choice.refs[0].owner).__name__
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise LayerError(f"'{name}' of {kind} has no shape yet; run one batch through the network first")
    if not parameter.numel():
        raise LayerError(f"'{name}' of {kind} is empty; give the layer at least one input and one output")
    if parameter.is_complex():
        raise LayerError(f"'{name}' is complex, and a Gaussian posterior is real; split it in two, or exclude='{name}'")
    if parameter.is_meta:
        raise LayerError(f"'{name}' is on the meta device and has no numbers; materialise the network first (to_empty, load)")


def _is_chosen(refs: Sequence[ParameterRef], include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Return True if a weight gets a posterior; raise LayerError if the names of a tied weight do not agree."""
    names = [ref.name for ref in refs]
    votes = {matches(name, include) and not matches(name, exclude) for name in names}
    if len(votes) > 1:
        raise LayerError(f"{' and '.join(names)} are one tied weight; include or exclude all of its names")
    return votes.pop()


def _refs(network: nn.Module) -> Iterator[ParameterRef]:
    """Yield every location of every parameter; a module that is used twice counts once."""
    for path, module in network.named_modules():
        for local, parameter in module._parameters.items():
            if parameter is not None:
                yield ParameterRef(module, local, f"{path}.{local}" if path else local)


def _check_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if pattern != "*" and not any(matches(name, [pattern]) for name in names):
            raise LayerError(f"no weight matches '{pattern}'{near_miss(pattern, names)}; weights: {', '.join(names)}")


def _check_frozen(network: nn.Module, include: Sequence[str], frozen: list[str], names: list[str]) -> None:
    """Raise LayerError if all weights are frozen, or if an include pattern matches only frozen weights."""
    if frozen == names:
        raise LayerError(
            f"every weight of {type(network).__name__} is frozen, and a frozen weight gets no posterior; call "
            "requires_grad_(True) on those that shall learn"
        )
    for pattern in include:
        fitting = [name for name in names if matches(name, [pattern])]
        if pattern != "*" and set(fitting) <= set(frozen):
            some = f"{', '.join(fitting[:3])}{', ...' if len(fitting) > 3 else ''}"
            raise LayerError(
                f"include '{pattern}' matches only frozen weights ({some}), and a frozen weight gets no posterior; "
                "call requires_grad_(True) on those that shall learn (whole numbers cannot), or leave the pattern out"
            )
