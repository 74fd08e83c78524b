"""torch layers with a posterior over each weight.

Each takes all arguments of the torch layer of the same name, and ``prior``, ``posterior`` and ``seed``. A layer used alone is a
small Bayesian model; in a network, :func:`bitsback.bayesianize` takes over the posteriors of its layers.

>>> layer = Linear(3, 2, bias=False)
>>> layer.posterior["weight"], layer.kl_bits().item() > 0
(GaussianPosterior(shape=(2, 3)), True)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from bitsback.errors import LayerError
from bitsback.layers import SmoothConv2d
from bitsback.model import BayesianModel, LayerPosteriors, bayesianize
from bitsback.model.choices import PosteriorChoice, PriorChoice

__all__ = [
    "GRU", "LSTM", "RNN", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "BayesianLayer", "Bilinear", "Conv1d", "Conv2d",
    "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Embedding", "GroupNorm", "LayerNorm", "Linear",
    "MultiheadAttention", "SmoothConv2d",
]  # fmt: skip


class BayesianLayer(nn.Module):
    """Mix-in for torch layers whose weights have posteriors.

    Args:
        args, kwargs: arguments of the torch layer.
        prior: prior of the weights, as in :func:`bitsback.bayesianize`.
        posterior: posterior of the weights, as in :func:`bitsback.bayesianize`.
        seed: seed of the draws; default: from torch's generator.

    Attributes:
        posterior: posterior of each of its weights by local name; layers inside it have their own.
    """

    posterior: LayerPosteriors

    def __init__(
        self,
        *args: Any,
        prior: PriorChoice = "gaussian",
        posterior: PosteriorChoice | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not any(p.requires_grad for p in self.parameters()):  # such as Embedding.from_pretrained(freeze=True)
            self.__dict__["posterior"] = LayerPosteriors()
            return
        alone = bayesianize(self, prior, posterior=posterior, seed=seed)
        alone.is_alone = True
        self.__dict__["_alone"] = alone  # not a child: it holds this layer

    @property
    def model(self) -> BayesianModel:
        """Return the Bayesian model that consists of this layer.

        Raises:
            LayerError: when the layer belongs to a larger model, or when all its weights were frozen at construction.
        """
        alone: BayesianModel | None = self.__dict__.get("_alone")
        if alone is None:
            raise LayerError("every weight of this layer is frozen: there is nothing to draw, and nothing to count")
        if alone._is_released:
            raise LayerError("this layer belongs to a model, which draws and counts for it; call the model's methods")
        return alone

    @classmethod
    def plain_class(cls) -> type[nn.Module]:
        """Return torch's class of this layer; a class that was derived from it elsewhere is its own."""
        return cls.__mro__[2] if cls.__module__ == __name__ else cls

    def draw(self) -> None:
        """Put the next draw into the layer's weights."""
        self.model.draw()

    def kl_bits(self) -> Tensor:
        """Return KL(q||p) of the layer's weights in bits."""
        return self.model.kl_bits()

    @contextmanager
    def sample(self, seed: int | None = None) -> Iterator[Self]:
        """Hold one draw that is not a training draw inside the context."""
        with self.model.sample(seed):
            yield self

    @contextmanager
    def mean(self) -> Iterator[Self]:
        """Hold the posterior means inside the context."""
        with self.model.mean():
            yield self

    def train(self, mode: bool = True) -> Self:
        """Set the mode: in train mode the weights hold the draw, in eval mode the means, unless a larger model owns them."""
        alone: BayesianModel | None = self.__dict__.get("_alone")
        if alone is not None and not alone._is_released:
            alone.training = mode
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        alone: BayesianModel | None = self.__dict__.get("_alone")
        if alone is None or alone._is_released or alone.is_moving:
            return super()._apply(fn, recurse)
        alone._apply(fn)  # calls this method again, with is_moving set, for the layer's own tensors
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, tensor in self._numbers():
            destination[f"{prefix}{key}"] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        given = {key: state_dict.pop(f"{prefix}{key}", None) for key, _ in self._numbers()}
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if not any(tensor is not None for tensor in given.values()):
            return  # state of a plain torch layer: its weights become the means
        with torch.no_grad():
            for key, own in self._numbers():
                if given[key] is not None:
                    own.copy_(given[key])
        self.model.hold(self.model._state)

    def _numbers(self) -> list[tuple[str, Tensor]]:
        """Return posterior parameters under their keys in the layer's state; empty if a larger model saves them."""
        alone: BayesianModel | None = self.__dict__.get("_alone")
        if alone is None or alone._is_released:
            return []
        return [(f"posterior.{key}", tensor) for key, tensor in alone.posterior.named_parameters()]


class Linear(BayesianLayer, nn.Linear):
    """:class:`torch.nn.Linear` with a posterior over each weight."""


class Bilinear(BayesianLayer, nn.Bilinear):
    """:class:`torch.nn.Bilinear` with a posterior over each weight."""


class Conv1d(BayesianLayer, nn.Conv1d):
    """:class:`torch.nn.Conv1d` with a posterior over each weight."""


class Conv2d(BayesianLayer, nn.Conv2d):
    """:class:`torch.nn.Conv2d` with a posterior over each weight."""


class Conv3d(BayesianLayer, nn.Conv3d):
    """:class:`torch.nn.Conv3d` with a posterior over each weight."""


class ConvTranspose1d(BayesianLayer, nn.ConvTranspose1d):
    """:class:`torch.nn.ConvTranspose1d` with a posterior over each weight."""


class ConvTranspose2d(BayesianLayer, nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` with a posterior over each weight."""


class ConvTranspose3d(BayesianLayer, nn.ConvTranspose3d):
    """:class:`torch.nn.ConvTranspose3d` with a posterior over each weight."""


class Embedding(BayesianLayer, nn.Embedding):
    """:class:`torch.nn.Embedding` with a posterior over each weight; a padding row is not drawn."""


class LayerNorm(BayesianLayer, nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` with a posterior over each weight."""


class GroupNorm(BayesianLayer, nn.GroupNorm):
    """:class:`torch.nn.GroupNorm` with a posterior over each weight."""


class BatchNorm1d(BayesianLayer, nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` with a posterior over each weight; its running statistics are charged."""


class BatchNorm2d(BayesianLayer, nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` with a posterior over each weight; its running statistics are charged."""


class BatchNorm3d(BayesianLayer, nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d` with a posterior over each weight; its running statistics are charged."""


class RNN(BayesianLayer, nn.RNN):
    """:class:`torch.nn.RNN` with a posterior over each weight; all time steps use the same draw."""


class LSTM(BayesianLayer, nn.LSTM):
    """:class:`torch.nn.LSTM` with a posterior over each weight; all time steps use the same draw."""


class GRU(BayesianLayer, nn.GRU):
    """:class:`torch.nn.GRU` with a posterior over each weight; all time steps use the same draw."""


class MultiheadAttention(BayesianLayer, nn.MultiheadAttention):
    """:class:`torch.nn.MultiheadAttention` with a posterior over each weight, including the output projection."""
