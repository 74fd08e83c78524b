"""Ready networks: plain modules of torch for tables, sequences and images, without dropout."""

from bitsback.networks._patches import ViT
from bitsback.networks._perceptron import MLP
from bitsback.networks._recurrent import LSTM
from bitsback.networks._residual import ResNet
from bitsback.networks._transformer import Transformer

__all__ = ["LSTM", "MLP", "ResNet", "Transformer", "ViT"]
