"""Neural networks trained by minimum description length: posteriors over weights, and ledgers of gross, refund and net bits.

>>> import torch, bitsback
>>> model = bitsback.bayesianize(torch.nn.Linear(64, 10), prior="laplace")
>>> model.kl_bits().item() > 0
True
"""

from bitsback.lazy import attach

PUBLIC = {
    "config": ("Config", "Experiment", "load_config", "load_run"),
    "data": ("Dataset", "Examples"),
    "errors": ("BitsbackError",),
    "nn": (
        "GRU", "LSTM", "RNN", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Bilinear", "Conv1d", "Conv2d", "Conv3d",
        "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Embedding", "GroupNorm", "LayerNorm", "Linear",
        "MultiheadAttention",
    ),
    "ledger": ("Entry", "Ledger"),
    "model": ("BayesianModel", "bayesianize", "evaluate", "take_ledger", "width_curve"),
    "posteriors": ("GaussianPosterior", "GaussianPosteriorSettings", "PointPosterior", "PointPosteriorSettings"),
    "formats.model_file.read": ("LoadedModel", "load"),
    "formats.model_file._save": ("save",),
    "formats.inspect": ("inspect",),
    "formats.transfer": ("pack", "receive", "send", "unpack"),
    "analysis.certify": ("certify",),
    "analysis.codelengths": ("codelengths", "probe"),
    "analysis.predict": ("predict",),
    "analysis.prune": ("prune",),
    "analysis.widen": ("widen",),
    "report": ("write_report",),
    "runs": ("compare", "train"),
    "training": ("EngineSettings", "LedgerSettings", "LoggingSettings", "TrainingSettings"),
}  # fmt: skip
"""Public names by module; each is imported on first use, so that ``import bitsback`` is quick."""

SUBMODULES = ("coding", "data", "interop", "likelihoods", "nn", "optim", "priors", "sklearn")
"""Public submodules."""

__version__ = "0.1.0"

__getattr__, __dir__, _ = attach(__name__, PUBLIC, SUBMODULES)
__all__ = sorted(["__version__", *(name for names in PUBLIC.values() for name in names)])
