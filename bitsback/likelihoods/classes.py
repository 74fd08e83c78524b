"""Labels: one of many classes, or independent yes-or-no answers."""

import math
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from bitsback.errors import DataError
from bitsback.likelihoods.base import Likelihood, LikelihoodSettings, match, per_example, registry, require, whole, width
from bitsback.units import nats_to_bits


class CategoricalLikelihood(Likelihood):
    """One of ``classes`` labels; the outputs are logits.

    >>> import torch
    >>> CategoricalLikelihood(4).bits(torch.zeros(1, 4), torch.tensor([2])).tolist()
    [2.0]
    """

    kind = "categorical"

    def __init__(self, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise DataError(f"a categorical likelihood needs two or more classes, got {classes}; set likelihood.classes")
        self.classes = classes

    def bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.ndim != 2 or outputs.shape[1] != self.classes:
            raise DataError(
                f"the network gives outputs of shape {tuple(outputs.shape[1:])} but {self.classes} classes need as many "
                "logits; change the last layer"
            )
        return nats_to_bits(cross_entropy(outputs, targets.long(), reduction="none"))

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1)

    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        return (predicted.argmax(-1) != targets).to(predicted.dtype)

    def uniform_bits(self, targets: Tensor) -> float:
        return len(targets) * math.log2(self.classes)

    def check_targets(self, targets: Tensor, where: str) -> None:
        if targets.ndim != 1:
            raise DataError(f"{where} labels have shape {tuple(targets.shape)}; give one whole number per example")
        need = f"labels must be whole numbers from 0 to {self.classes - 1}"
        require(whole(targets) & (targets >= 0) & (targets < self.classes), targets, where, need)

    def outputs(self, targets: Tensor) -> int:
        return self.classes


@registry.register("categorical")
class CategoricalSettings(LikelihoodSettings):
    """One of several classes, from logits."""

    kind: Literal["categorical"] = "categorical"
    classes: int | None = Field(None, ge=2, description="number of classes; default: as the data set says")
    class_names: tuple[str, ...] | None = Field(None, description="names of the classes, which predictions then carry")

    def build(self, classes: int | None) -> CategoricalLikelihood:
        count = self.classes if self.classes is not None else classes
        if self.class_names is not None and len(self.class_names) != count:
            raise DataError(f"likelihood.class_names has {len(self.class_names)} names for {count} classes; give one for each")
        if count is None:
            raise DataError("the data set does not say how many classes it has; set likelihood.classes")
        return CategoricalLikelihood(count)


class BernoulliLikelihood(Likelihood):
    """Independent answers, 0 or 1; the outputs are logits, in the shape of the targets.

    >>> import torch
    >>> BernoulliLikelihood().bits(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 1.0]])).tolist()
    [3.0]
    """

    kind = "bernoulli"

    def bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits = match(outputs, targets)
        nats = binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
        return nats_to_bits(per_example(nats))

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        wrong = (match(predicted, targets) > 0.5) != (targets > 0.5)
        return per_example(wrong.to(predicted.dtype)) / width(targets)

    def uniform_bits(self, targets: Tensor) -> float:
        return float(targets.numel())

    def check_targets(self, targets: Tensor, where: str) -> None:
        require((targets == 0) | (targets == 1), targets, where, "Bernoulli targets must be 0 or 1")

    def outputs(self, targets: Tensor) -> int:
        return width(targets)


@registry.register("bernoulli")
class BernoulliSettings(LikelihoodSettings):
    """Independent yes-or-no answers, from logits."""

    kind: Literal["bernoulli"] = "bernoulli"

    def build(self, classes: int | None) -> BernoulliLikelihood:
        return BernoulliLikelihood()
