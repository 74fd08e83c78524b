"""Tensors of ``posterior.safetensors``, from which the weight bits of the ledger can be recomputed with scipy alone."""

import json
from typing import Any

import torch
from torch import Tensor

from bitsback.distributed import whole
from bitsback.likelihoods import Likelihood
from bitsback.model.model import BayesianModel

__all__ = ["posterior_tensors"]


def posterior_tensors(model: BayesianModel, likelihood: Likelihood | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of ``posterior.safetensors``.

    All tensors are float32 on the CPU: ``NAME.mean`` and ``NAME.std`` (no std for a point estimate) for every weight tensor,
    ``NAME.prior_mean`` if the prior has a mean for each weight, ``NAME`` for a weight without posterior, for running
    statistics and for buffers that training changed, ``likelihood.NAME`` for learned numbers of the likelihood. The metadata
    ``priors`` is JSON: from tensor name to the prior's kind and its rounded values.

    Args:
        model: Bayesian model.
        likelihood: its likelihood; default: none, so that no ``likelihood.NAME`` is written.

    Returns:
        Tensors by name, and metadata.
    """
    model.honour_edits(everywhere=True)
    tensors: dict[str, Tensor] = {}
    priors: dict[str, Any] = {}
    for weight in model.weights:
        tensors[f"{weight.name}.mean"] = weight.whole(weight.posterior.mean)
        std = weight.posterior.std()
        if std is not None:
            tensors[f"{weight.name}.std"] = weight.whole(std)
        for key, tensor in weight.prior.tensors().items():
            tensors[f"{weight.name}.prior_{key}"] = tensor
        priors[weight.name] = {"kind": weight.prior.kind, **weight.prior.values()}
    for name, tensor in [*model.deterministic(), *model.statistics(), *model.changed_buffers()]:
        tensors[name] = whole(tensor.detach())
    if likelihood is not None:
        tensors |= {f"likelihood.{name}": value for name, value in likelihood.values().items()}
    stored = {name: tensor.detach().to("cpu", torch.float32).contiguous().clone() for name, tensor in tensors.items()}
    return stored, {"priors": json.dumps(priors)}  # one key: the library writes several in any order
