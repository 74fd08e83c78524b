"""torch layers whose weights have a posterior, all by one rule; convert any ``nn.Module``."""

from bitsback.layers.bayesian import BayesianModule, Estimator, bayesian_class, fan_in, make_bayesian
from bitsback.layers.convert import convert
from bitsback.layers.faces import (
    GRU,
    LSTM,
    RNN,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    Bilinear,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Embedding,
    GroupNorm,
    LayerNorm,
    Linear,
    MultiheadAttention,
)
from bitsback.layers.smooth import SmoothConv2d

FACES = (Linear, Bilinear, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, Embedding, LayerNorm,
         GroupNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, RNN, LSTM, GRU, MultiheadAttention)  # fmt: skip
"""Every layer that has a name of its own here; any other module becomes Bayesian by :func:`convert`."""

__all__ = [
    "FACES",
    "GRU",
    "LSTM",
    "RNN",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BayesianModule",
    "Bilinear",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "Estimator",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "MultiheadAttention",
    "SmoothConv2d",
    "bayesian_class",
    "convert",
    "fan_in",
    "make_bayesian",
]
