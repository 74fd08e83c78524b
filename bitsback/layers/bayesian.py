"""The one rule: a torch layer stays what it is, and reading a weight reads its posterior.

A Bayesian layer is the torch layer's own class with :class:`BayesianModule` in front. Its weights leave ``_parameters`` and
live in ``posteriors``; when the layer's unchanged ``forward`` reads ``self.weight``, it is handed a draw. Nothing of a
layer's forward is copied, so every constructor option and every future torch release keeps working.
"""

import math
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitsback.errors import LayerError
from bitsback.layers.noise import with_noise
from bitsback.posterior import GaussianPosteriorSettings, Posterior, PosteriorSettings, holding

Estimator = Literal["auto", "weight", "output"]

LINEAR_IN_WEIGHTS: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
"""Layers whose output is linear in their weights, so that its mean and variance under q are two plain forward passes."""

LINEAR_OWNERS = {next(kind for kind in layer.__mro__ if "forward" in vars(kind)) for layer in LINEAR_IN_WEIGHTS}
"""The classes whose ``forward`` those layers run."""

OUTPUT_BY_DEFAULT: tuple[type[nn.Module], ...] = (nn.Linear, nn.Bilinear)
"""Where ``auto`` takes output noise: exact per example, less noisy; in convolutions it is neither (fresh noise per pixel)."""


class BayesianModule(nn.Module):
    """A torch module whose own weights have posteriors (mix-in; made by :func:`make_bayesian`).

    Attributes:
        posteriors: weight name to posterior.
        estimator: ``weight`` draws the weights once per call; ``output`` draws the outputs instead (local
            reparameterisation, Kingma, Salimans & Welling 2015, section 2), for layers linear in their weights. A dense layer
            over a sequence draws its weights all the same: its positions share them.

    ``forward`` returns the layer's output alone.
    """

    posteriors: nn.ModuleDict
    estimator: Literal["weight", "output"]

    def __getattr__(self, name: str) -> Any:
        posteriors = self.__dict__.get("_modules", {}).get("posteriors")
        if posteriors is not None and name in posteriors:
            return posteriors[name].value()
        return super().__getattr__(name)

    @property
    def own_posteriors(self) -> list[Posterior]:
        """The posteriors of this module's own weights, without those of its children."""
        return list(self._modules["posteriors"]._modules.values())  # type: ignore[arg-type, union-attr]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own = self.own_posteriors
        held = [posterior.is_holding for posterior in own]
        if all(held):
            return super().forward(*args, **kwargs)
        if self.estimator == "output" and not any(held) and not self._is_over_a_sequence((*args, *kwargs.values())):
            return self._draw_output(*args, **kwargs)
        with holding(own):
            output = super().forward(*args, **kwargs)
        return output

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (vars(type(self)).get("plain_kind", type(self)),), self.__getstate__()

    def _is_over_a_sequence(self, args: tuple[Any, ...]) -> bool:
        """True for a dense layer applied at many positions of one example, which share the weights and so their noise."""
        return isinstance(self, OUTPUT_BY_DEFAULT) and any(isinstance(arg, Tensor) and arg.ndim > 2 for arg in args)

    def extra_repr(self) -> str:
        with holding(self.own_posteriors, lambda q: q.mean):  # printing draws nothing
            return super().extra_repr()

    def _draw_output(self, *args: Any, **kwargs: Any) -> Tensor:
        """Mean f(x; m), variance f(x^2; s^2); the variance in float32 or better, unless it was prepared for mixed precision."""
        own = self.own_posteriors
        with holding(own, _mean):
            mean = super().forward(*args, **kwargs)
        if own[0].loan is not None:
            with holding(own, lambda q: q.variance()):
                variance = super().forward(*map(_squared, args), **{key: _squared(arg) for key, arg in kwargs.items()})
            return with_noise(mean, variance, own[0].loan.noise(variance))
        precise = own[0].mean.dtype
        args = tuple(_square(arg, precise) for arg in args)
        kwargs = {key: _square(arg, precise) for key, arg in kwargs.items()}
        with torch.autocast(mean.device.type, enabled=False), holding(own, lambda q: q.variance()):
            variance = super().forward(*args, **kwargs)
        std = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        return mean + (std * torch.randn_like(std)).to(mean.dtype)


def _square(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype).square() if isinstance(value, Tensor) else value


def _squared(value: Any) -> Any:
    return value.square() if isinstance(value, Tensor) else value


def _mean(posterior: Posterior) -> Tensor:
    return posterior.mean


class _RecurrentWeights:
    """Recurrent layers keep a private list of their weights; here it is always read afresh."""

    _flat_weights_names: list[str]

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return [getattr(self, name) if hasattr(self, name) else None for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor]) -> None:
        pass  # the names say where the weights are


class _PaddedWeights:
    """The padding row of an embedding is a constant, not a weight that is drawn."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)  # type: ignore[misc]
        padding, posteriors = self.__dict__.get("padding_idx"), self.__dict__.get("_modules", {}).get("posteriors", ())
        if name != "weight" or padding is None or "weight" not in posteriors:
            return value
        constant: Tensor = posteriors["weight"].mean[padding]
        row = torch.arange(len(value), device=value.device) == padding
        return torch.where(row[:, None], constant, value)


SPECIAL: dict[type[nn.Module], type] = {nn.RNNBase: _RecurrentWeights, nn.Embedding: _PaddedWeights}
"""What a kind of layer needs beyond the rule."""


@cache
def bayesian_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that is ``kind`` with :class:`BayesianModule` in front; ``kind`` itself when it is one already.

    >>> bayesian_class(nn.Linear).__mro__[-2].__name__, issubclass(bayesian_class(nn.Linear), nn.Linear)
    ('Module', True)
    """
    if issubclass(kind, BayesianModule):
        return kind
    extra = [special for base, special in SPECIAL.items() if issubclass(kind, base)]
    facts = {"__doc__": f"{kind.__name__} with posteriors.", "plain_kind": kind}
    return type(f"Bayesian{kind.__name__}", (*extra, BayesianModule, kind), facts)


def _empty(kind: type[nn.Module]) -> nn.Module:
    """A Bayesian module without contents, for copies and pickles to fill: its class is made on the spot."""
    made = bayesian_class(kind)  # type: ignore[arg-type]
    return made.__new__(made)


ONE_INPUT = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
"""Layers whose every weight is fed by one input."""


def fan_in(module: nn.Module, name: str) -> int:
    """How many inputs feed one unit of the tensor ``name``; a bias takes its layer's, a norm's weight has one.

    >>> fan_in(nn.Conv2d(3, 8, 5), "bias")
    75
    """
    shapes = {local: p.shape for local, p in module._parameters.items() if p is not None}
    if "posteriors" in module._modules:
        assert isinstance(module, BayesianModule)
        shapes |= {name: q.mean.shape for name, q in zip(module.posteriors, module.own_posteriors, strict=True)}
    matrices = [shapes[name], *shapes.values()]
    shape = next((shape for shape in matrices if len(shape) >= 2), None)
    if shape is None or isinstance(module, ONE_INPUT):
        return 1
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return shape[0] // module.groups * math.prod(shape[2:])
    return math.prod(shape[1:])


def choose_estimator(module: nn.Module, wanted: Estimator) -> Literal["weight", "output"]:
    """Resolve ``auto`` for one module, or refuse ``output`` with the reason."""
    complete = all(parameter is None for parameter in module._parameters.values())
    linear = _is_linear_in_weights(module)
    if wanted not in ("auto", "weight", "output"):
        raise LayerError(f"unknown estimator {wanted!r}; allowed: auto, weight, output")
    if wanted == "output":
        if not linear:
            raise LayerError(
                f"{type(module).__name__} is not linear in its weights: its output is not Gaussian; use estimator 'weight'"
            )
        if not complete:
            raise LayerError("estimator 'output' needs a posterior on every weight of the layer; use estimator 'weight'")
        return "output"
    return "output" if wanted == "auto" and complete and linear and isinstance(module, OUTPUT_BY_DEFAULT) else "weight"


def _is_linear_in_weights(module: nn.Module) -> bool:
    """True for torch's linear layers as they are; one with a forward or weights of its own making may be anything."""
    own = next(kind for kind in type(module).__mro__ if "forward" in vars(kind) and not issubclass(kind, BayesianModule))
    names = set(module.posteriors) if "posteriors" in module._modules else set(module._parameters)  # type: ignore[arg-type]
    inner = next((kind for kind in type(module).__mro__ if "_conv_forward" in vars(kind)), nn.Module)
    return own in LINEAR_OWNERS and inner.__module__.startswith("torch.nn") and names <= {"weight", "bias"}


def make_bayesian(
    module: nn.Module,
    posterior: PosteriorSettings | None = None,
    estimator: Estimator = "auto",
    *,
    names: tuple[str, ...] | None = None,
    known: dict[int, Posterior] | None = None,
) -> nn.Module:
    """Give the module's own trainable parameters posteriors, in place; children are left alone.

    Args:
        module: any module with parameters of its own; their values become the posterior means.
        posterior: settings of the posteriors; a std relative to the prior starts relative to a prior of scale 1.
        estimator: see :class:`BayesianModule`.
        names: which of its parameters; default all that require gradients: frozen ones stay what they are.
        known: posteriors by ``id`` of the parameter they replaced, so that tied weights share one.

    Raises:
        LayerError: for uninitialised lazy modules, parametrized modules, and ``output`` where it does not apply.

    >>> layer = make_bayesian(nn.Linear(3, 2))
    >>> layer(torch.ones(5, 3)).shape, isinstance(layer, nn.Linear)
    (torch.Size([5, 2]), True)
    """
    settings = posterior or GaussianPosteriorSettings()
    shared = known if known is not None else {}
    own = {name: p for name, p in module._parameters.items() if p is not None}
    chosen = [name for name, p in own.items() if (p.requires_grad if names is None else name in names)]
    for name in chosen:
        if isinstance(module._parameters[name], nn.parameter.UninitializedParameter):
            raise LayerError(f"'{name}' of {type(module).__name__} has no shape yet; run one batch through the network first")
        if not module._parameters[name].numel():  # type: ignore[union-attr]
            raise LayerError(f"'{name}' of {type(module).__name__} is empty; give the layer at least one input and one output")
    if isinstance(module, nn.utils.parametrize.ParametrizationList | nn.Sequential | nn.ModuleList | nn.ModuleDict):
        raise LayerError(f"{type(module).__name__} cannot hold posteriors itself; remove the parametrization, or exclude it")
    inputs = {name: fan_in(module, name) for name in chosen}
    posteriors = nn.ModuleDict()
    for name in chosen:
        parameter = module._parameters.pop(name)
        assert parameter is not None
        if id(parameter) not in shared:
            shared[id(parameter)] = settings.build(parameter.data, inputs[name], prior_scale=1.0)
        posteriors[name] = shared[id(parameter)]
    if "posteriors" in module._modules:
        module.posteriors.update(posteriors)  # type: ignore[union-attr, operator]
    else:
        module.posteriors = posteriors
        module.__class__ = bayesian_class(type(module))  # type: ignore[arg-type]
    module.estimator = choose_estimator(module, estimator)  # type: ignore[assignment]
    return module
