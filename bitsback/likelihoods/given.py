"""Check of what is handed over as a likelihood, with the likelihood that takes the place of a loss of torch."""

from typing import Any

from bitsback.errors import ConfigError
from bitsback.likelihoods.base import Likelihood

__all__ = ["checked_likelihood"]

IN_PLACE_OF = {
    "CategoricalLikelihood(classes)": ("CrossEntropyLoss", "NLLLoss", "cross_entropy", "nll_loss"),
    "BernoulliLikelihood()": ("BCEWithLogitsLoss", "BCELoss", "binary_cross_entropy_with_logits", "binary_cross_entropy"),
    "GaussianLikelihood()": ("MSELoss", "GaussianNLLLoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "mse_loss", "l1_loss"),
    "PoissonLikelihood()": ("PoissonNLLLoss", "poisson_nll_loss"),
}
"""Likelihoods, and names of the losses of torch that they replace."""


def checked_likelihood(given: Any) -> Likelihood:
    """Return a likelihood as it is.

    Args:
        given: a likelihood, or what was given in its place.

    Returns:
        the likelihood.

    Raises:
        ConfigError: for anything else, with the likelihood to write in place of a loss.

    >>> import torch
    >>> checked_likelihood(torch.nn.MSELoss())
    Traceback (most recent call last):
    bitsback.errors.ConfigError: MSELoss is a loss, and bits need a likelihood: give bitsback.likelihoods.GaussianLikelihood()
    """
    if isinstance(given, Likelihood):
        return given
    name = getattr(given, "__name__", type(given).__name__)
    for likelihood, losses in IN_PLACE_OF.items():
        if name in losses:
            raise ConfigError(f"{name} is a loss, and bits need a likelihood: give bitsback.likelihoods.{likelihood}")
    what = f"the text '{given}'" if isinstance(given, str) else f"the class {name}" if isinstance(given, type) else f"a {name}"
    raise ConfigError(f"a likelihood is needed, such as bitsback.likelihoods.CategoricalLikelihood(classes); got {what}")
