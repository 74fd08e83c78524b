"""Construction of a Bayesian model from any network."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from bitsback.errors import LayerError
from bitsback.inputs import Output
from bitsback.layers import Choice, Estimators, choose, fan_in
from bitsback.model._layer_posteriors import LayerPosteriors
from bitsback.model.choices import PosteriorChoice, PriorChoice, posterior_settings_of
from bitsback.model.model import BayesianModel
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
    output: Output = "auto",
) -> BayesianModel:
    """Return a model with a posterior and a prior for each weight of any ``nn.Module``.

    The network keeps its class, names, forward and parameters; each chosen parameter holds the current draw from now on. Tied
    weights have one posterior and are drawn and counted once.

    Frozen weights (``requires_grad`` is False) do not change and get no posterior; they are not charged, and the ledger lists
    them as known to the receiver. The same holds for the running statistics of layers in eval mode, and for every buffer that
    training does not change.

    Args:
        network: the module; its parameter values become posterior means, so it may be pretrained.
        prior: settings of a prior, a mapping with ``kind``, or a kind (see ``bitsback priors``).
        posterior: settings of the posteriors, a mapping with ``kind``, or a kind, ``"gaussian"`` or ``"point"``; default:
            Gaussian.
        overrides: other priors by weight-name pattern, ``{"*.bias": "laplace"}``; the first pattern that matches wins.
        include: shell-style patterns over dotted weight names (``"encoder.fc.weight"``) or module names (``"encoder"``); only
            weights that match get a posterior, the others stay deterministic.
        exclude: patterns of weights that get no posterior, although they match ``include``.
        estimator: whether :func:`bitsback.train` draws ``weight`` or ``output`` (local reparameterisation, for layers linear in
            their weights), for all layers or by kind, ``{"Conv2d": "weight"}``; ``auto`` uses ``output`` for dense layers if
            trial forward passes show that each row is one example.
        seed: seed of the draws; default: from torch's generator.
        output: which of the network's outputs the likelihood reads: ``auto`` (a tensor as it is, the ``logits`` of a mapping
            such as a ModelOutput of transformers, the first of a tuple), a name, or an index.

    Returns:
        The model, whose weights hold the first draw.

    Raises:
        LayerError: for a network, pattern, posterior or estimator that does not fit.
        PriorError: for a prior that does not fit.

    >>> model = bayesianize(nn.Linear(4, 3), prior={"kind": "laplace", "scale": 0.5})
    >>> [weight.name for weight in model.weights], model.kl_bits().item() > 0
    (['weight', 'bias'], True)
    """
    if any(isinstance(module, BayesianModel) for module in network.modules()):
        raise LayerError("the network holds a BayesianModel already; give bayesianize the plain network")
    settings = posterior_settings_of(posterior)
    posteriors = [(choice, _posterior(choice, settings)) for choice in choose(network, include, exclude)]
    model = BayesianModel(network, posteriors, prior, overrides, estimator, seed, output)
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
    """Write the means into weights that had a posterior before and get none here; they are deterministic from now on."""
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
    """Return the posterior of a weight, in float32 or wider; a layer of :mod:`bitsback.nn` keeps its own.

    If the weight belongs to another model, that model is released and its means are the start.

    Args:
        choice: weight.
        settings: settings of the posterior.

    Returns:
        Posterior.
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
