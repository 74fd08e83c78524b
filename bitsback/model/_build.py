"""Make any network a Bayesian model."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from bitsback.errors import LayerError
from bitsback.layers import Choice, Estimators, choose, fan_in
from bitsback.model.choices import PosteriorChoice, PriorChoice, posterior_settings_of
from bitsback.model.model import BayesianModel, LayerPosteriors
from bitsback.posteriors import GaussianPosterior, GaussianPosteriorSettings, Posterior, PosteriorSettings

__all__ = ["bayesianize"]


def bayesianize(
    network: nn.Module,
    prior: PriorChoice = "gaussian",
    *,
    posterior: PosteriorChoice | None = None,
    overrides: Mapping[str, PriorChoice] | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    estimator: Estimators = "auto",
    seed: int | None = None,
) -> BayesianModel:
    """Return a model that holds a posterior and a prior for each weight of any ``nn.Module``.

    The network keeps its class, its names, its forward and its parameters; each chosen parameter holds the current draw from
    now on. Tied weights have one posterior, are drawn and counted once.

    Frozen weights (``requires_grad`` is False) stay as they are: no posterior, no bits, named in the ledger as the receiver's.
    So do the running statistics of layers in eval mode, and every buffer that training leaves alone.

    Args:
        network: the module; its parameter values become posterior means, so a pretrained module is a fine start.
        prior: settings of a prior, a mapping with ``kind``, or a kind (see ``bitsback priors``).
        posterior: settings of the posteriors, the same as a mapping with ``kind``, or a kind: ``"gaussian"``, ``"point"``.
        overrides: other priors by weight-name pattern, ``{"*.bias": "laplace"}``; the first pattern that fits wins.
        include, exclude: shell-style patterns over dotted weight names (``"encoder.fc.weight"``) or module names
            (``"encoder"``); a weight gets a posterior when it matches ``include`` and not ``exclude``, the others stay
            deterministic.
        estimator: whether :func:`bitsback.train` draws ``weight`` or ``output`` (local reparameterisation, for layers linear in
            their weights), for all layers or by kind, ``{"Conv2d": "weight"}``; ``auto`` draws outputs of dense layers where
            trial forwards show that rows are examples.
        seed: of the draws; default: from torch's generator.

    Raises:
        LayerError, PriorError: with the fix.

    >>> model = bayesianize(nn.Linear(4, 3), prior={"kind": "laplace", "scale": 0.5})
    >>> [weight.name for weight in model.weights], model.kl_bits().item() > 0
    (['weight', 'bias'], True)
    """
    if any(isinstance(module, BayesianModel) for module in network.modules()):
        raise LayerError("the network holds a BayesianModel already; give bayesianize the plain network")
    settings = posterior_settings_of(posterior)
    posteriors = [(choice, _posterior(choice, settings)) for choice in choose(network, include, exclude)]
    model = BayesianModel(network, posteriors, prior, overrides, estimator, seed)
    with torch.no_grad():
        for weight in model.weights:
            start = weight.prior.start()
            if start is not None:
                weight.posterior.mean.copy_(start)
            if not (isinstance(settings, GaussianPosteriorSettings) and isinstance(weight.posterior, GaussianPosterior)):
                continue
            if settings.relative_to == "prior":
                weight.posterior.set_std(settings.std * weight.prior.typical_scale().detach())
    _leave_the_rest(network, model)
    model.start()
    return model


@torch.no_grad()
def _leave_the_rest(network: nn.Module, model: BayesianModel) -> None:
    """Give weights that had a posterior, and get none here, their means: they are deterministic from now on."""
    taken = {id(weight.posterior) for weight in model.weights}
    for module in network.modules():
        shown = module.__dict__.get("posterior")
        if not isinstance(shown, LayerPosteriors):
            continue
        for local in [local for local in shown if id(shown[local]) not in taken]:
            parameter = module._parameters.get(local)
            owner = shown.owner(parameter) if parameter is not None else None
            if owner is not None:
                owner.release()
            if parameter is not None and parameter.shape == shown[local].mean.shape:
                parameter.copy_(shown[local].mean)
            del shown[local]


def _posterior(choice: Choice, settings: PosteriorSettings) -> Posterior:
    """The posterior of a weight, float32 or wider; a layer of :mod:`bitsback.nn` brings its own.

    A network that is given to a second model leaves the first, and begins with its means.
    """
    ref = choice.refs[0]
    start = ref.parameter.detach()
    shown = ref.owner.__dict__.get("posterior")
    if isinstance(shown, LayerPosteriors) and ref.local in shown:
        owner = shown.owner(ref.parameter)
        if owner is not None:
            owner.release()
        if owner is not None and owner.is_alone:
            return shown[ref.local]
        start = shown[ref.local].mean
    wide = start.to(torch.promote_types(start.dtype, torch.float32))
    return settings.build(wide, fan_in(ref.owner, ref.local), prior_scale=1.0)
