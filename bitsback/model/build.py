"""Make any network a Bayesian model."""

from collections.abc import Mapping, Sequence

from torch import nn

from bitsback.errors import LayerError
from bitsback.layers import convert
from bitsback.layers.convert import Estimators
from bitsback.model.choices import PosteriorChoice, PriorChoice, posterior_settings_of
from bitsback.model.model import BayesianModel
from bitsback.posterior import GaussianPosterior, GaussianPosteriorSettings


def bayesianize(
    network: nn.Module,
    prior: PriorChoice = "gaussian",
    *,
    posterior: PosteriorChoice | None = None,
    overrides: Mapping[str, PriorChoice] | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    estimator: Estimators = "auto",
) -> BayesianModel:
    """Give the weights of any ``nn.Module`` posteriors (in place) and priors.

    Frozen weights (``requires_grad`` is False) stay as they are: no posterior, no bits, named in the ledger as the receiver's.
    So do the running statistics of layers in eval mode, and every buffer that training leaves alone.

    Args:
        network: the module; its parameter values become posterior means, so a pretrained module is a fine start.
        prior: settings of a prior, a mapping with ``kind``, or a kind (see ``bitsback priors``).
        posterior: settings of the posteriors, the same as a mapping with ``kind``, or a kind: ``"gaussian"``, ``"point"``.
        overrides: other priors by weight-name pattern, ``{"*.bias": "laplace"}``; the first pattern that fits wins.
        include, exclude, estimator: see :func:`bitsback.layers.convert`.

    Raises:
        LayerError, PriorError: with the fix.

    >>> model = bayesianize(nn.Linear(4, 3), prior={"kind": "laplace", "scale": 0.5})
    >>> [weight.name for weight in model.weights], model.kl_bits().item() > 0
    (['weight', 'bias'], True)
    """
    if any(isinstance(module, BayesianModel) for module in network.modules()):
        raise LayerError("the network holds a BayesianModel already; give bayesianize the plain network")
    settings = posterior_settings_of(posterior)
    convert(network, settings, include=include, exclude=exclude, estimator=estimator)
    model = BayesianModel(network, prior, overrides)
    for weight in model.weights:
        start = weight.prior.start()
        if start is not None:
            weight.posterior.mean.data.copy_(start)
        if not (isinstance(settings, GaussianPosteriorSettings) and isinstance(weight.posterior, GaussianPosterior)):
            continue
        if settings.relative_to == "prior":
            weight.posterior.set_std(settings.std * weight.prior.width().detach())
    return model
