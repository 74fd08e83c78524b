"""Posteriors of a layer's own weights, as the layer shows them."""

import copy
import weakref
from typing import TYPE_CHECKING, Any

from torch import nn

from bitsback.posteriors import Posterior

if TYPE_CHECKING:
    from bitsback.model.model import BayesianModel

__all__ = ["LayerPosteriors"]


class LayerPosteriors(dict[str, Posterior]):
    """Posteriors of a layer's own weights by local name: ``layer.posterior["weight"].std()``.

    Attributes:
        model: weak reference to the Bayesian model whose posteriors these are; None if there is none.
    """

    model: "weakref.ref[BayesianModel] | None" = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "LayerPosteriors":
        copied = LayerPosteriors()
        memo[id(self)] = copied
        copied.update({name: copy.deepcopy(posterior, memo) for name, posterior in self.items()})
        model = self.model() if self.model is not None else None
        if model is not None and (model.is_alone or id(model) in memo):
            copied.model = weakref.ref(copy.deepcopy(model, memo))
        return copied

    def __reduce__(self) -> Any:
        model = self.model() if self.model is not None else None
        return LayerPosteriors, (), {"model": model}, None, iter(self.items())

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["model"] is not None:
            self.model = weakref.ref(state["model"])

    def owner(self, parameter: nn.Parameter) -> "BayesianModel | None":
        """Return the model whose draw a parameter holds; None if there is none."""
        model = self.model() if self.model is not None else None
        return model if model is not None and any(weight.known is parameter for weight in model.weights) else None
