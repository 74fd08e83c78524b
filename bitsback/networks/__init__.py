"""Ready networks: plain modules of torch for tables, sequences and images, without dropout."""

from bitsback.networks._perceptron import MLP
from bitsback.networks._recurrent import LSTM

__all__ = ["LSTM", "MLP"]
