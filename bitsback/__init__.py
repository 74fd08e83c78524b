"""Train networks counted in bits: a weight is a posterior, not a number; a ledger says gross, refund, net.

>>> import torch, bitsback
>>> model = bitsback.bayesianize(torch.nn.Linear(64, 10), prior="laplace")
>>> model.kl_bits().item() > 0
True
"""

import importlib
from typing import Any

PUBLIC = {
    "bitsback.config": ("Config", "Experiment", "load_config", "load_run"),
    "bitsback.data": ("Dataset", "Examples"),
    "bitsback.errors": ("BitsbackError",),
    "bitsback.nn": (
        "GRU", "LSTM", "RNN", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Bilinear", "Conv1d", "Conv2d", "Conv3d",
        "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Embedding", "GroupNorm", "LayerNorm", "Linear",
        "MultiheadAttention",
    ),
    "bitsback.ledger": ("Entry", "Ledger"),
    "bitsback.model": ("BayesianModel", "bayesianize", "evaluate", "take_ledger", "width_curve"),
    "bitsback.posteriors": ("GaussianPosterior", "GaussianPosteriorSettings", "PointPosterior", "PointPosteriorSettings"),
    "bitsback.formats.model_file.read": ("LoadedModel", "load"),
    "bitsback.formats.model_file.save": ("save",),
    "bitsback.formats.inspect": ("inspect",),
    "bitsback.formats.transfer": ("pack", "receive", "send", "unpack"),
    "bitsback.analysis.certify": ("certify",),
    "bitsback.analysis.codelengths": ("codelengths", "probe"),
    "bitsback.analysis.predict": ("predict",),
    "bitsback.analysis.prune": ("prune",),
    "bitsback.analysis.widen": ("widen",),
    "bitsback.report": ("write_report",),
    "bitsback.runs": ("compare", "train"),
    "bitsback.training": ("LedgerSettings", "LoggingSettings", "TrainingSettings"),
}  # fmt: skip
"""The public names and where they live; each is imported when it is first used, so that ``import bitsback`` is quick."""

SUBMODULES = ("coding", "data", "likelihoods", "nn", "optim", "priors")
"""Public name spaces."""

_HOME = {name: module for module, names in PUBLIC.items() for name in names}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in SUBMODULES:
        return importlib.import_module(f"bitsback.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'bitsback' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, *SUBMODULES, "__version__"]
