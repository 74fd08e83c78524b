"""The named layers: torch's own, constructor and all, with posteriors.

Each takes every argument of the torch layer of the same name, and ``posterior`` and ``estimator`` besides:

>>> Linear(3, 2, bias=False, estimator="weight").posteriors["weight"]
GaussianPosterior(shape=(2, 3))
"""

from typing import Any

from torch import nn

from bitsback.layers.bayesian import BayesianModule, Estimator, _PaddedWeights, _RecurrentWeights, make_bayesian
from bitsback.posterior import PosteriorSettings


class Face(BayesianModule):
    """A layer that becomes Bayesian at the end of its construction."""

    def __init__(
        self, *args: Any, posterior: PosteriorSettings | None = None, estimator: Estimator = "auto", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        make_bayesian(self, posterior, estimator)


class Linear(Face, nn.Linear):
    """:class:`torch.nn.Linear` with a posterior over each weight."""


class Bilinear(Face, nn.Bilinear):
    """:class:`torch.nn.Bilinear` with a posterior over each weight."""


class Conv1d(Face, nn.Conv1d):
    """:class:`torch.nn.Conv1d` with a posterior over each weight."""


class Conv2d(Face, nn.Conv2d):
    """:class:`torch.nn.Conv2d` with a posterior over each weight."""


class Conv3d(Face, nn.Conv3d):
    """:class:`torch.nn.Conv3d` with a posterior over each weight."""


class ConvTranspose1d(Face, nn.ConvTranspose1d):
    """:class:`torch.nn.ConvTranspose1d` with a posterior over each weight."""


class ConvTranspose2d(Face, nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` with a posterior over each weight."""


class ConvTranspose3d(Face, nn.ConvTranspose3d):
    """:class:`torch.nn.ConvTranspose3d` with a posterior over each weight."""


class Embedding(_PaddedWeights, Face, nn.Embedding):
    """:class:`torch.nn.Embedding` with a posterior over each weight."""


class LayerNorm(Face, nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` with a posterior over each weight."""


class GroupNorm(Face, nn.GroupNorm):
    """:class:`torch.nn.GroupNorm` with a posterior over each weight."""


class BatchNorm1d(Face, nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` with a posterior over each weight; its running statistics are charged."""


class BatchNorm2d(Face, nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` with a posterior over each weight; its running statistics are charged."""


class BatchNorm3d(Face, nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d` with a posterior over each weight; its running statistics are charged."""


class RNN(_RecurrentWeights, Face, nn.RNN):
    """:class:`torch.nn.RNN` with a posterior over each weight; one draw lasts the whole sequence."""


class LSTM(_RecurrentWeights, Face, nn.LSTM):
    """:class:`torch.nn.LSTM` with a posterior over each weight; one draw lasts the whole sequence."""


class GRU(_RecurrentWeights, Face, nn.GRU):
    """:class:`torch.nn.GRU` with a posterior over each weight; one draw lasts the whole sequence."""


class MultiheadAttention(Face, nn.MultiheadAttention):
    """:class:`torch.nn.MultiheadAttention` with a posterior over each weight, the output projection's included."""

    def __init__(
        self, *args: Any, posterior: PosteriorSettings | None = None, estimator: Estimator = "auto", **kwargs: Any
    ) -> None:
        super().__init__(*args, posterior=posterior, estimator=estimator, **kwargs)
        make_bayesian(self.out_proj, posterior, "weight")  # its weight is read by the attention, its forward never runs
