"""Likelihoods of labels: one of several classes, or independent binary targets."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from bitsback.errors import DataError
from bitsback.likelihoods._uncertainty import LabelMixture
from bitsback.likelihoods.base import (
    Answer,
    Likelihood,
    krichevsky_trofimov_bits,
    listed,
    match,
    numbers_per_example,
    per_example,
    require,
    whole,
)
from bitsback.units import nats_to_bits

__all__ = ["BernoulliLikelihood", "CategoricalLikelihood"]

SHOWN = 8
"""Most labels that a note lists; of more, it lists the first three and the last."""

NEVER = -(2**62)
"""Label that cross_entropy ignores. It must not occur: torch's default, -100, would cost 0 bits."""


class CategoricalLikelihood(Likelihood):
    """Likelihood of one of ``classes`` labels; the outputs are logits.

    Args:
        classes: C, two or more; targets are whole numbers from 0 to C - 1.
        labels: labels of the classes in the data; default: their numbers.
        names: names of the classes in :meth:`answers`; default: ``labels``.

    >>> import torch
    >>> CategoricalLikelihood(4).bits(torch.zeros(1, 4), torch.tensor([2])).tolist()
    [2.0]
    """

    kind = "categorical"

    def __init__(self, classes: int, labels: Sequence[int | str] | None = None, *, names: Sequence[str] | None = None) -> None:
        super().__init__()
        if classes < 2:
            raise DataError(f"a categorical likelihood needs two or more classes, got {classes}; set likelihood.classes")
        if labels is not None and len(labels) != classes:
            raise DataError(f"{len(labels)} labels were given for {classes} classes; give one for each")
        self.classes, self.labels = classes, tuple(labels) if labels is not None else None
        self.names = tuple(names) if names is not None else self.labels

    def bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each example.

        Args:
            outputs: (n, C), logits.
            targets: (n,), class numbers.

        Returns:
            (n,).

        Raises:
            DataError: for outputs of another shape, and for targets that are not class numbers.
            IndexError: if torch refuses targets for another reason.
        """
        if outputs.ndim != 2 or outputs.shape[1] != self.classes:
            raise DataError(
                f"the network gives outputs of shape {tuple(outputs.shape[1:])} but {self.classes} classes need as many "
                "logits; change the last layer"
            )
        if targets.is_floating_point():
            self.check_targets(targets, "a")
        try:
            nats = cross_entropy(outputs, targets.long(), reduction="none", ignore_index=NEVER)
        except IndexError:
            self.check_targets(targets, "a")
            raise
        return nats_to_bits(nats)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return class probabilities."""
        return outputs.softmax(-1)

    def mixture(self) -> LabelMixture:
        """Return an empty mixture of distributions of classes."""
        return LabelMixture(has_classes=True)

    def answers(self, predicted: Tensor, std: Tensor | None = None) -> list[Answer]:
        """Return the most probable class of each input.

        Args:
            predicted: (n, C), probabilities.
            std: not used.

        Returns:
            a record ``{"class": ..., "probability": ...}`` for each input.
        """
        probability, best = predicted.double().max(-1)
        names = self.names or range(self.classes)
        return [
            {"class": names[k], "probability": float(f"{p:.6g}")}
            for k, p in zip(best.tolist(), probability.tolist(), strict=True)
        ]

    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return 1 for each wrong label, 0 for each right one.

        Args:
            predicted: (n, C), probabilities.
            targets: (n,), class numbers.

        Returns:
            (n,).
        """
        return (predicted.argmax(-1) != targets).to(predicted.dtype)

    def uniform_bits(self, targets: Tensor) -> float:
        """Return n log2 C."""
        return len(targets) * math.log2(self.classes)

    def notes(self) -> list[str]:
        """Return a note on the order of the labels, unless they are class numbers."""
        if self.labels is None:
            return []
        shown = [f"'{label}'" for label in (self.labels if self.classes <= SHOWN else [*self.labels[:3], self.labels[-1]])]
        listed = ", ".join(shown if self.classes <= SHOWN else [*shown[:3], "...", shown[3]])
        return [
            f"the labels are {listed}, in this order classes 0 to {self.classes - 1}; files hold the list, the ledger does not"
        ]

    def marginal_bits(self, targets: Tensor) -> float:
        """Return the bits under the Krichevsky-Trofimov code of the labels."""
        counts = torch.bincount(targets.detach().cpu().long(), minlength=self.classes)
        return float(krichevsky_trofimov_bits(counts.double()))

    def check_targets(self, targets: Tensor, where: str) -> None:
        """Check that targets are class numbers.

        Args:
            targets: (n,).
            where: name of the split.

        Raises:
            DataError: for the first that is not.
        """
        if targets.ndim != 1:
            raise DataError(f"{where} labels have shape {tuple(targets.shape)}; give one whole number per example")
        need = (
            f"labels must be whole numbers from 0 to {self.classes - 1}; number them so, or declare no classes "
            "(likelihood.classes, size of the last layer): then the labels of the data are the classes"
        )
        require(whole(targets) & (targets >= 0) & (targets < self.classes), targets, where, need)

    def outputs(self, targets: Tensor) -> int:
        """Return the number of classes."""
        return self.classes


class BernoulliLikelihood(Likelihood):
    """Likelihood of independent binary targets, 0 or 1; the outputs are logits, in the shape of the targets.

    >>> import torch
    >>> BernoulliLikelihood().bits(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 1.0]])).tolist()
    [3.0]
    """

    kind = "bernoulli"

    def bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the binary cross-entropy of each example.

        Args:
            outputs: (n, ...), logits.
            targets: (n, ...), 0 or 1.

        Returns:
            (n,).
        """
        self.check_targets(targets, "a")
        logits = match(outputs, targets)
        nats = binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
        return nats_to_bits(per_example(nats))

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the probabilities of 1."""
        return outputs.sigmoid()

    def mixture(self) -> LabelMixture:
        """Return an empty mixture of distributions of 0 and 1."""
        return LabelMixture(has_classes=False)

    def answers(self, predicted: Tensor, std: Tensor | None = None) -> list[Answer]:
        """Return the more probable value and the probability of 1.

        Args:
            predicted: (n, ...), probabilities.
            std: not used.

        Returns:
            a record ``{"answer": ..., "probability": ...}`` for each input.
        """
        rounded = (predicted.double() * 1e6).round() / 1e6
        return [{"answer": _whole(row["probability"]), **row} for row in listed(probability=rounded)]

    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return the share of wrong values in each example.

        Args:
            predicted: (n, ...), probabilities.
            targets: (n, ...), 0 or 1.

        Returns:
            (n,).
        """
        wrong = (match(predicted, targets) > 0.5) != (targets > 0.5)
        return per_example(wrong.to(predicted.dtype)) / numbers_per_example(targets)

    def uniform_bits(self, targets: Tensor) -> float:
        """Return one bit for each target."""
        return float(targets.numel())

    def marginal_bits(self, targets: Tensor) -> float:
        """Return the bits under a Krichevsky-Trofimov code for each column of the targets."""
        yes = targets.detach().double().cpu().reshape(len(targets), -1).sum(0)
        return float(krichevsky_trofimov_bits(torch.stack([len(targets) - yes, yes], -1)).sum())

    def check_targets(self, targets: Tensor, where: str) -> None:
        """Check that targets are 0 or 1.

        Args:
            targets: (n, ...).
            where: name of the split.

        Raises:
            DataError: for the first that is not.
        """
        require((targets == 0) | (targets == 1), targets, where, "Bernoulli targets must be 0 or 1")

    def outputs(self, targets: Tensor) -> int:
        """Return the number of targets per example."""
        return numbers_per_example(targets)


def _whole(probability: Any) -> Any:
    """Return 1 for a probability above one half, else 0, in nested lists."""
    return [_whole(item) for item in probability] if isinstance(probability, list) else int(probability > 0.5)
