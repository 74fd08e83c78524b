"""Posteriors trained elsewhere: means and stds of other libraries as a :class:`BayesianModel`, so that its ledger can be taken.

No library is imported: each function reads the attributes by which its library stores a posterior. The guest stays as it is;
the model holds a plain copy of its network.
"""

import copy
import math
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from bitsback.errors import LayerError, PriorError
from bitsback.model import BayesianModel, bayesianize
from bitsback.model.choices import PriorChoice
from bitsback.posteriors import GaussianPosterior
from bitsback.priors import PriorSettings, WeightInfo, settings_of_distribution
from bitsback.priors.gaussian import NormalPrior
from bitsback.priors.settings import GaussianPriorSettings, ScaleMixturePriorSettings

__all__ = [
    "from_bayesian_torch",
    "from_blitz",
    "from_ivon",
    "from_laplace",
    "from_moments",
    "from_torchbnn",
    "from_tyxe",
]

CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
CONVOLUTION_SETTINGS = ("stride", "padding", "dilation", "groups")


class Found(NamedTuple):
    """Posterior of one weight tensor, and the prior that its library trained it with (None: the library has none)."""

    mean: Tensor
    std: Tensor
    prior: PriorSettings | None


def from_moments(
    network: nn.Module,
    moments: Mapping[str, tuple[Any, Any]],
    prior: PriorChoice = "gaussian",
    *,
    overrides: Mapping[str, PriorChoice] | None = None,
) -> BayesianModel:
    """Return a model of a network with the given Gaussian posteriors, trained by whatever means.

    Args:
        network: plain network; it is copied. Its other trainable weights stay deterministic, which costs 32 bits each.
        moments: mean and std by dotted name of the weight, tensors or arrays of the weight's shape.
        prior: prior of the weights, as for :func:`bitsback.bayesianize`; a learned one is fitted to the posteriors.
        overrides: other priors by weight-name pattern.

    Returns:
        The model, of which :func:`bitsback.take_ledger` counts the bits.

    Raises:
        LayerError: for a weight that the network has not, what is no pair, another shape, or a std that is not positive and
            finite.

    >>> network = nn.Linear(3, 2, bias=False)
    >>> moments = {"weight": (torch.zeros(2, 3), torch.full((2, 3), 0.5))}
    >>> model = from_moments(network, moments, {"kind": "gaussian", "scale": 0.5})
    >>> round(model.kl_bits().item(), 6)
    0.0
    """
    own = dict(network.named_parameters())
    if not moments:
        raise LayerError("no posterior was found; give the mean and the std of one weight or more")
    pairs = {name: _pair(name, pair) for name, pair in moments.items()}
    for name, (mean, std) in pairs.items():
        if name not in own:
            raise LayerError(f"the network has no weight '{name}'; its weights: {', '.join(own)}")
        if mean.shape != own[name].shape or std.shape != own[name].shape:
            raise LayerError(
                f"'{name}' has shape {tuple(own[name].shape)}, its posterior mean {tuple(mean.shape)} and std "
                f"{tuple(std.shape)}; give both in the weight's shape"
            )
        if bool((std < 0).any()):
            raise LayerError(
                f"the std of '{name}' is negative somewhere ({float(std.min()):.3g}); give stds, not their logarithms "
                "or softplus arguments"
            )
        if not (bool(torch.isfinite(mean).all()) and bool(torch.isfinite(std).all()) and bool((std > 0).all())):
            raise LayerError(
                f"the posterior of '{name}' has a mean or a std that is not finite, or a std of zero; train it again"
            )
    network = copy.deepcopy(network)
    for name, parameter in network.named_parameters():
        if name in moments:  # one that is frozen could have no posterior
            parameter.requires_grad_(True)
    model = bayesianize(network, prior, overrides=overrides, include=list(moments))
    with torch.no_grad():
        for weight in model.weights:
            mean, std = pairs[weight.name]
            assert isinstance(weight.posterior, GaussianPosterior)
            weight.posterior.mean.copy_(mean)
            weight.posterior.set_std(std)
    model.start()
    model.update_priors()
    return model


def _pair(name: str, pair: Any) -> tuple[Tensor, Tensor]:
    """Return mean and std as tensors; raises LayerError for what is not two of them or two arrays."""
    try:
        mean, std = pair
        return torch.as_tensor(mean), torch.as_tensor(std)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LayerError(
            f"the posterior of '{name}' is not a pair of mean and std ({type(pair).__name__}); give tensors or arrays of the "
            "weight's shape"
        ) from error


def from_bayesian_torch(
    module: nn.Module, prior: PriorChoice | None = None, *, network: nn.Module | None = None
) -> BayesianModel:
    """Return a model of a network of bayesian-torch, made by ``dnn_to_bnn`` or of its Reparameterization and Flipout layers.

    Their std is softplus(rho). What they call ``prior_variance`` is used there, and here, as a standard deviation.

    Layers by hand return their output and a KL, and so do those in their place, which torch has not: ``mean_network()`` of such
    a network keeps them, and its pickle needs bitsback where it is read. That of ``dnn_to_bnn`` is torch's alone.

    Args:
        module: trained network.
        prior: another prior than the one it was trained with.
        network: plain network of the same names, for layers other than linear and convolutional ones.

    Returns:
        The model, for :func:`bitsback.take_ledger`.

    Raises:
        LayerError: when the module has no such layer, or one that has no plain counterpart.
    """

    def read(layer: Any) -> dict[str, Found]:
        found = {}
        for local, own in (("weight", "weight"), ("weight", "kernel"), ("bias", "bias")):
            mean, rho = getattr(layer, f"mu_{own}", None), getattr(layer, f"rho_{own}", None)
            if isinstance(mean, Tensor) and isinstance(rho, Tensor):
                around, width = (getattr(layer, f"prior_{local}_{number}") for number in ("mu", "sigma"))
                found[local] = Found(mean, softplus(rho), _gaussian(around, width))
        return found

    def plain(layer: Any, found: Mapping[str, Found]) -> nn.Module | None:
        made = _plain_layer(layer, found)
        if made is not None and not getattr(layer, "dnn_to_bnn_flag", False):
            made.__class__ = WITH_KL[type(made)]
        return made

    return _of_layers(module, read, plain, "bayesian-torch", prior, network)


def from_blitz(module: nn.Module, prior: PriorChoice | None = None, *, network: nn.Module | None = None) -> BayesianModel:
    """Return a model of a network of blitz layers (``BayesianLinear``, ``BayesianConv1d`` to ``3d``).

    Their std is softplus(rho), their prior a mixture of two Gaussians. The 1e-6 and the -0.5 that blitz adds to its densities
    and their logarithms are no part of a distribution, and not counted.

    Args:
        module: trained network.
        prior: another prior than the one it was trained with.
        network: plain network of the same names, for other layers.

    Returns:
        The model, for :func:`bitsback.take_ledger`.

    Raises:
        LayerError: when the module has no such layer, or one that has no plain counterpart.
        PriorError: when its prior is a distribution that cannot be named; give ``prior``.
    """

    def read(layer: Any) -> dict[str, Found]:
        found = {}
        for local in ("weight", "bias"):
            # the sampler's tensors are those that training moves: a cast or a move parts them from the layer's own
            sampler = getattr(layer, f"{local}_sampler", None)
            if sampler is None or (local == "bias" and layer.bias is False):
                continue
            found[local] = Found(sampler.mu, softplus(sampler.rho), _blitz_prior(getattr(layer, f"{local}_prior_dist")))
        return found

    return _of_layers(module, read, _plain_layer, "blitz", prior, network)


def from_torchbnn(module: nn.Module, prior: PriorChoice | None = None, *, network: nn.Module | None = None) -> BayesianModel:
    """Return a model of a network of torchbnn layers (``BayesLinear``, ``BayesConv2d``, ``BayesBatchNorm2d``).

    Args:
        module: trained network.
        prior: another prior than the one it was trained with.
        network: plain network of the same names, for other layers.

    Returns:
        The model, for :func:`bitsback.take_ledger`.

    Raises:
        LayerError: when the module has no such layer, or one that has no plain counterpart.
    """

    def read(layer: Any) -> dict[str, Found]:
        found = {}
        for local in ("weight", "bias"):
            mean, log_std = getattr(layer, f"{local}_mu", None), getattr(layer, f"{local}_log_sigma", None)
            if isinstance(mean, Tensor) and isinstance(log_std, Tensor):
                prior = GaussianPriorSettings(scale=float(layer.prior_sigma), mean=float(layer.prior_mu), learn="none")
                found[local] = Found(mean, log_std.exp(), prior)
        return found

    return _of_layers(module, read, _plain_layer, "torchbnn", prior, network)


def from_tyxe(bnn: Any, network: nn.Module, prior: PriorChoice | None = None) -> BayesianModel:
    """Return a model of a ``VariationalBNN`` of TyXe with TyXe's or Pyro's ``AutoNormal`` as its guide.

    Args:
        bnn: trained network.
        network: plain network of the same names, because TyXe turned the one it was given into a Pyro module.
        prior: another prior than the one it was trained with.

    Returns:
        The model, for :func:`bitsback.take_ledger`.

    Raises:
        LayerError: for another network than TyXe's, and when the guide has no mean and std for each weight.
        PriorError: when a prior is a distribution that cannot be named; give ``prior``.
    """
    if not isinstance(getattr(bnn, "net", None), nn.Module):
        raise LayerError(
            f"{type(bnn).__name__} is no VariationalBNN of TyXe: it has no net; give the one that was trained, then its plain "
            "network"
        )
    found: dict[str, Found] = {}
    state = network.state_dict()
    for path, module in bnn.net.named_modules():
        for local, drawn in getattr(module, "_pyro_samples", {}).items():
            name = f"{path}.{local}".lstrip(".")
            site = f"{bnn.net._pyro_name}.{name}"
            mean, std = _tyxe_moments(getattr(bnn, "net_guide", None), site)
            if prior is None and not isinstance(drawn, Distribution):
                raise PriorError(f"the prior of '{name}' is a function in TyXe, not a distribution; give prior=")
            found[name] = Found(mean, std, None if prior is not None else settings_of_distribution(drawn))
    if not found:
        raise LayerError("the TyXe network samples no weight; give a VariationalBNN whose prior exposes one or more")
    plain = copy.deepcopy(network)
    own = {name: p.detach() for name, p in bnn.net.named_parameters() if name in state}
    buffers = {name: buffer for name, buffer in bnn.net.named_buffers() if name in state}
    plain.load_state_dict({**state, **own, **buffers})
    return _built(plain, found, prior)


def _tyxe_moments(guide: Any, site: str) -> tuple[Tensor, Tensor]:
    """Return mean and std that an AutoNormal of TyXe (``SITE.loc``) or of Pyro (``locs.SITE``) holds for a site."""
    for mean, std in ((f"{site}.loc", f"{site}.scale"), (f"locs.{site}", f"scales.{site}")):
        try:
            return attrgetter(mean)(guide), attrgetter(std)(guide)
        except AttributeError:
            continue
    raise LayerError(
        f"the guide {type(guide).__name__} has no mean and std for '{site}'; use AutoNormal, or count it by "
        "ledger_of(model, guide)"
    )


def from_ivon(optimizer: Any, network: nn.Module, prior: PriorChoice | None = None) -> BayesianModel:
    """Return a model of a network that the optimiser IVON trained.

    The std is 1 / sqrt(ess (hess + weight_decay)), the prior N(0, 1 / (ess weight_decay)) (Shen et al. 2024, "Variational
    learning is effective for large deep networks").

    Args:
        optimizer: ``ivon.IVON`` after training, outside of ``sampled_params``.
        network: network that it trained; its parameters are the means.
        prior: another prior than the one it was trained with.

    Returns:
        The model, for :func:`bitsback.take_ledger`.

    Raises:
        LayerError: for another optimiser than IVON, and when its parameter is not one of the network.
        PriorError: when the weight decay is zero, which is an improper prior.
    """
    groups = getattr(optimizer, "param_groups", [])
    if not groups or any("ess" not in group or "hess" not in group for group in groups):
        raise LayerError(
            f"{type(optimizer).__name__} is not IVON: it has no ess and no hess, so no std is known; give the ivon.IVON that "
            "trained the network"
        )
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found: dict[str, Found] = {}
    for group in groups:
        ess, decay = float(group["ess"]), float(group["weight_decay"])
        if decay <= 0 and prior is None:
            raise PriorError("IVON without weight decay has an improper prior, which codes nothing; give prior='gaussian'")
        settings = None if prior is not None else GaussianPriorSettings(scale=(ess * decay) ** -0.5, learn="none")
        stds = (ess * (group["hess"] + decay)).rsqrt()
        parameters = [parameter for parameter in group["params"] if parameter is not None]
        for parameter, std in zip(parameters, stds.split([p.numel() for p in parameters]), strict=True):
            if id(parameter) not in names:
                raise LayerError(
                    "IVON moves a parameter that the network has not; give the network whose parameters it was given"
                )
            found[names[id(parameter)]] = Found(parameter, std.view_as(parameter), settings)
    return _built(network, found, prior)


def from_laplace(laplace: Any, prior: PriorChoice | None = None) -> BayesianModel:
    """Return a model of a diagonal Laplace approximation of laplace-torch (``DiagLaplace``, ``DiagLLLaplace``).

    The weights of a network of which only the last layer has a posterior cost 32 bits each, unless they are frozen.

    Args:
        laplace: fitted approximation.
        prior: another prior than its own, N(prior_mean, 1 / prior_precision).

    Returns:
        The model, for :func:`bitsback.take_ledger`.

    Raises:
        LayerError: when the approximation is not diagonal, or covers part of a tensor.
        PriorError: when its prior precision differs within a tensor; give ``prior``.
    """
    precision = getattr(laplace, "posterior_precision", None)
    if not isinstance(precision, Tensor) or precision.ndim != 1 or hasattr(laplace, "subnetwork_mask"):
        raise LayerError(
            f"{type(laplace).__name__} has no diagonal posterior of whole tensors; fit Laplace(..., hessian_structure='diag')"
        )
    network, layer = laplace.model, getattr(laplace.model, "last_layer", None)
    if layer is not None:  # the feature extractor of a last-layer approximation
        network = network.model
    covered = [p for p in (layer if layer is not None else network).parameters() if layer is not None or p.requires_grad]
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    sizes = [parameter.numel() for parameter in covered]
    if sum(sizes) != len(precision):
        raise LayerError(
            f"the posterior has {len(precision):,} numbers for {sum(sizes):,} weights; fit the approximation again"
        )
    vectors = [
        laplace.mean,
        precision.rsqrt(),
        _each(laplace.prior_mean, precision),
        _each(laplace.prior_precision_diag, precision),
    ]
    parts = zip(covered, *(vector.split(sizes) for vector in vectors), strict=True)
    found = {
        names[id(p)]: Found(mean.view_as(p), std.view_as(p),
                            None if prior is not None else _gaussian(around.view_as(p), strength.rsqrt().view_as(p)))
        for p, mean, std, around, strength in parts
    }  # fmt: skip
    return _built(network, found, prior)


def _each(value: Any, like: Tensor) -> Tensor:
    """Return one number or a vector as a vector."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand_as(like)


def _built(network: nn.Module, found: Mapping[str, Found], prior: PriorChoice | None) -> BayesianModel:
    """Return the model of a plain network, under one given prior or under that of each weight's library."""
    moments = {name: (each.mean.detach(), each.std.detach()) for name, each in found.items()}
    if prior is not None:
        return from_moments(network, moments, prior)
    return from_moments(
        network, moments, overrides={name: each.prior for name, each in found.items() if each.prior is not None}
    )


def _of_layers(
    module: nn.Module,
    read: Callable[[Any], dict[str, Found]],
    plain: Callable[[Any, Mapping[str, Found]], nn.Module | None],
    library: str,
    prior: PriorChoice | None,
    network: nn.Module | None,
) -> BayesianModel:
    """Return the model of a network of variational layers, which become plain ones unless a plain network is given."""
    layers = {path: (layer, own) for path, layer in module.named_modules() if (own := read(layer))}
    if not layers:
        raise LayerError(f"the network has no layer of {library} with a mean and a std; give the one that {library} trained")
    found = {f"{path}.{local}".lstrip("."): each for path, (_, own) in layers.items() for local, each in own.items()}
    if network is not None:
        return _built(network, found, prior)
    replaced = {id(layer): _replacement(path, layer, own, plain) for path, (layer, own) in layers.items()}
    # deepcopy asks the memo first: every variational layer is copied as its plain counterpart
    copied = copy.deepcopy(module, dict(replaced))
    return _built(copied, found, prior)


def _replacement(
    path: str, layer: nn.Module, own: Mapping[str, Found], plain: Callable[[Any, Mapping[str, Found]], nn.Module | None]
) -> nn.Module:
    made = plain(layer, own)
    shapes = {local: tuple(each.mean.shape) for local, each in own.items()}
    if made is None or shapes != {local: tuple(parameter.shape) for local, parameter in made.named_parameters()}:
        raise LayerError(
            f"'{path}' is a {type(layer).__name__}, for which no plain layer is known here; give network=, a plain network of "
            "the same names and weights"
        )
    mean = next(iter(own.values())).mean
    return made.to(mean.device, mean.dtype).train(layer.training)


def _plain_layer(layer: Any, found: Mapping[str, Found]) -> nn.Module | None:
    """Return torch's layer of the same kind and sizes as a variational layer; None for other kinds."""
    bias, name = "bias" in found, type(layer).__name__
    if "Linear" in name:
        return nn.Linear(layer.in_features, layer.out_features, bias=bias)
    if "BatchNorm" in name:
        return _batch_norm(layer, found["weight"].mean.dtype)
    kinds = [kind for kind in CONVOLUTIONS if kind in name]
    if not kinds:
        return None
    settings = {key: getattr(layer, key) for key in CONVOLUTION_SETTINGS}
    if "Transpose" in name:
        settings["output_padding"] = layer.output_padding
    settings["padding_mode"] = getattr(layer, "padding_mode", "zeros")
    size = tuple(found["weight"].mean.shape[2:])
    made: nn.Module = getattr(nn, kinds[-1])(layer.in_channels, layer.out_channels, size, bias=bias, **settings)
    return made


def _batch_norm(layer: Any, dtype: torch.dtype) -> nn.Module:
    """Return torch's batch normalisation with the statistics of a variational one."""
    made = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    for name, buffer in made.named_buffers():
        buffer.data = getattr(layer, name).detach().clone()
    return made.to(dtype)


class _WithKl(nn.Module):
    """Mixin of a plain layer in the place of one that returns its output and its KL: the KL is the ledger's."""

    def forward(self, *inputs: Any, return_kl: bool = True, **more: Any) -> Any:
        """Return the output and a KL of zero, or the output alone."""
        output = super().forward(*inputs, **more)
        return (output, output.new_zeros(())) if return_kl else output


class _LinearWithKl(_WithKl, nn.Linear):
    """Linear that returns a KL as well."""


class _Conv1dWithKl(_WithKl, nn.Conv1d):
    """Conv1d that returns a KL as well."""


class _Conv2dWithKl(_WithKl, nn.Conv2d):
    """Conv2d that returns a KL as well."""


class _Conv3dWithKl(_WithKl, nn.Conv3d):
    """Conv3d that returns a KL as well."""


class _ConvTranspose1dWithKl(_WithKl, nn.ConvTranspose1d):
    """ConvTranspose1d that returns a KL as well."""


class _ConvTranspose2dWithKl(_WithKl, nn.ConvTranspose2d):
    """ConvTranspose2d that returns a KL as well."""


class _ConvTranspose3dWithKl(_WithKl, nn.ConvTranspose3d):
    """ConvTranspose3d that returns a KL as well."""


WITH_KL: dict[type[nn.Module], type[nn.Module]] = {
    kind.__bases__[1]: kind
    for kind in (
        _LinearWithKl,
        _Conv1dWithKl,
        _Conv2dWithKl,
        _Conv3dWithKl,
        _ConvTranspose1dWithKl,
        _ConvTranspose2dWithKl,
        _ConvTranspose3dWithKl,
    )
}
"""Classes by which pickle finds them again, by torch's class of the same layer."""


class _AroundSettings(PriorSettings):
    """Gaussian with a mean for each weight and one std, as a library stored them."""

    kind: Literal["around"] = "around"
    learn: Literal["none"] = "none"
    mean: Any
    scale: float

    def build(self, weight: WeightInfo) -> "_AroundPrior":
        """Build the prior of one weight tensor."""
        return _AroundPrior(self.mean, self.scale, "none")


class _AroundPrior(NormalPrior):
    """Gaussian prior with a mean for each weight, known to the receiver."""

    kind = "around"

    def values(self) -> dict[str, Any]:
        """Return the scale, and a reference to the means."""
        return {**super().values(), "mean": "one for each weight"}

    def tensors(self) -> dict[str, Tensor]:
        """Return the means."""
        return {"mean": self.mean}

    def given(self) -> str:
        """Return what the means are."""
        return "the network around which the prior was put"


def _gaussian(mean: Any, std: Any) -> PriorSettings:
    """Return the settings of a Gaussian prior; raises PriorError unless one std holds for the whole tensor."""
    mean, std = torch.as_tensor(mean).detach(), torch.as_tensor(std).detach()
    scale = float(std.flatten()[0])
    if not (math.isfinite(scale) and scale > 0 and bool((std == std.flatten()[0]).all())):
        raise PriorError(
            "the stds of this prior are not one positive number for the whole tensor; give prior=, such as 'gaussian'"
        )
    if bool((mean == mean.flatten()[0]).all()):
        return GaussianPriorSettings(scale=scale, mean=float(mean.flatten()[0]), learn="none")
    return _AroundSettings(mean=mean, scale=scale)


def _blitz_prior(prior: Any) -> PriorSettings:
    """Return the settings of a prior of blitz: one Gaussian, a mixture of two, or a distribution that it was given."""
    if prior.dist2 is None:
        return settings_of_distribution(prior.dist1)
    pi, scales = float(prior.pi), (float(prior.sigma1), float(prior.sigma2))
    if 0 < pi < 1:
        return ScaleMixturePriorSettings(scales=scales, weights=(pi, 1 - pi), learn="none")
    return GaussianPriorSettings(scale=scales[0 if pi == 1 else 1], learn="none")
