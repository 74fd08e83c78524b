"""Make any ``nn.Module`` Bayesian, in place."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from bitsback.errors import LayerError, near_miss
from bitsback.layers.bayesian import Estimator, make_bayesian
from bitsback.posterior import Posterior, PosteriorSettings

Estimators = Estimator | Mapping[str, Estimator]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """True when a pattern fits the dotted weight name or the name of a module it lies in.

    >>> matches("encoder.fc.weight", ["encoder"]), matches("encoder.fc.bias", ["*.weight"])
    (True, False)
    """
    parts = name.split(".")
    paths = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    return any(fnmatchcase(path, pattern) for path in paths for pattern in patterns)


def convert(
    network: nn.Module,
    posterior: PosteriorSettings | None = None,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    estimator: Estimators = "auto",
) -> nn.Module:
    """Give every chosen weight of ``network`` a posterior, in place; the rest stays deterministic.

    A frozen weight (``requires_grad`` is False) is never chosen: it stays what it is, is not charged, and the ledger names it.

    Args:
        network: any module; its parameter values become posterior means. Layers that are Bayesian already are kept.
        posterior: settings of the posteriors.
        include, exclude: shell-style patterns over dotted weight names (``"encoder.fc.weight"``) or module names
            (``"encoder"``); a weight is chosen when it matches ``include`` and not ``exclude``.
        estimator: for all layers, or by layer kind: ``{"Conv2d": "weight", "Linear": "output"}``.

    Tied weights get one posterior and are counted once; a weight that several modules read is drawn by the ``weight``
    estimator, so that all of them see one value.

    Raises:
        LayerError: when a pattern fits nothing, or only frozen weights, when every weight is frozen, or a layer refuses.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> _ = convert(net, exclude=["2"])
    >>> [name for name, _ in net.named_parameters()]
    ['0.posteriors.weight.mean', '0.posteriors.weight.log_std', '0.posteriors.bias.mean', '0.posteriors.bias.log_std', '2.weight', '2.bias']
    """  # noqa: E501
    own = list(_own_parameters(network))
    if not own and not any(isinstance(module, Posterior) for module in network.modules()):
        raise LayerError(f"{type(network).__name__} has no weights that could have a posterior")
    _check_patterns([*include, *exclude], [name for _, _, name in own])
    frozen = [name for module, local, name in own if not _requires_grad(module, local)]
    _check_frozen(network, include, frozen, [name for _, _, name in own])
    own = [place for place in own if place[2] not in frozen]
    _check_kinds(network, estimator)
    readers: dict[int, list[str]] = {}
    for module, local, name in own:
        readers.setdefault(id(module._parameters[local]), []).append(name)
    keep_alive = [module._parameters[local] for module, local, _ in own]  # ids stay unique while tensors live
    wanted = {identity: _is_chosen(names, include, exclude) for identity, names in readers.items()}
    read_elsewhere = {id(m.out_proj) for m in network.modules() if isinstance(m, nn.MultiheadAttention)}
    known: dict[int, Posterior] = {}
    locals_of: dict[nn.Module, list[str]] = {}
    for module, local, _ in own:
        if wanted[id(module._parameters[local])]:
            locals_of.setdefault(module, []).append(local)
    for module, chosen in locals_of.items():
        shared = any(len(readers[id(module._parameters[local])]) > 1 for local in chosen) or id(module) in read_elsewhere
        kind: Estimator = "weight" if shared else _estimator_of(module, estimator)
        try:
            make_bayesian(module, posterior, kind, names=tuple(chosen), known=known)
        except LayerError as fault:
            place = next(name for one, _, name in own if one is module).rpartition(".")[0]
            pattern = place.partition(".parametrizations")[0] or "*"
            raise LayerError(f"{place or 'the network'}: {fault} (exclude='{pattern}' leaves it deterministic)") from fault
    del keep_alive
    return network


def _is_chosen(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a weight gets a posterior; all names of a tied weight must agree."""
    votes = {matches(name, include) and not matches(name, exclude) for name in names}
    if len(votes) > 1:
        raise LayerError(f"{' and '.join(names)} are one tied weight; include or exclude all of its names")
    return votes.pop()


def _own_parameters(network: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """(module, local name, dotted name) of every parameter that has no posterior yet; tied ones at every place."""
    inside = {id(m) for q in network.modules() if isinstance(q, Posterior) for m in q.modules()}
    for path, module in network.named_modules():
        if id(module) not in inside:
            for local, parameter in module._parameters.items():
                if parameter is not None:
                    yield module, local, f"{path}.{local}" if path else local


def _check_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if pattern != "*" and not any(matches(name, [pattern]) for name in names):
            raise LayerError(f"no weight matches '{pattern}'{near_miss(pattern, names)}; weights: {', '.join(names)}")


def _requires_grad(module: nn.Module, local: str) -> bool:
    parameter = module._parameters[local]
    return parameter is not None and parameter.requires_grad


def _check_frozen(network: nn.Module, include: Sequence[str], frozen: list[str], names: list[str]) -> None:
    """Raise LayerError when only frozen weights are asked for."""
    bayesian = any(isinstance(module, Posterior) for module in network.modules())
    if frozen == names and not bayesian:
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
                "call requires_grad_(True) on those that shall learn, or leave the pattern out"
            )


def _check_kinds(network: nn.Module, estimator: Estimators) -> None:
    kinds = {kind.__name__ for module in network.modules() for kind in type(module).__mro__}
    for kind in estimator if isinstance(estimator, Mapping) else ():
        if kind not in kinds:
            raise LayerError(f"the network has no layer of kind '{kind}'{near_miss(kind, kinds)} to choose an estimator for")


def _estimator_of(module: nn.Module, estimator: Estimators) -> Estimator:
    if isinstance(estimator, str):
        return estimator
    for kind in type(module).__mro__:
        if kind.__name__ in estimator:
            return estimator[kind.__name__]
    return "auto"
