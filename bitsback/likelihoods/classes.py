"""Likelihoods of labels: one of several classes at each position, the next token, or independent binary targets."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, pad

from bitsback.data.mask import NOT_CODED
from bitsback.errors import DataError
from bitsback.likelihoods._class_weights import NO_WEIGHTS
from bitsback.likelihoods._uncertainty import LabelMixture
from bitsback.likelihoods.base import (
    Answer,
    SymbolLikelihood,
    by_column,
    chunks,
    krichevsky_trofimov_bits,
    listed,
    match,
    mean_per_example,
    numbers_per_example,
    require,
    whole,
    with_hidden,
)

__all__ = ["BernoulliLikelihood", "CategoricalLikelihood", "TokensLikelihood", "class_count"]

SHOWN = 8
"""Most labels that a note lists; of more, it lists the first three and the last."""

NEVER = -(2**62)
"""Label that cross_entropy ignores where all are coded. It must not occur: torch's default, -100, would cost 0 bits."""


class CategoricalLikelihood(SymbolLikelihood):
    """Likelihood of one of ``classes`` labels at each position of a target; the outputs are logits.

    Targets are (n,), one label for each example, or of any further shape, such as (n, t) or (n, h, w). The outputs have the
    shape of the targets and one more axis, that of the classes, anywhere behind the first: it is the axis without which both
    shapes agree.

    Args:
        classes: C, two or more; targets are whole numbers from 0 to C - 1.
        labels: labels of the classes in the data; default: their numbers.
        names: names of the classes in :meth:`answers`; default: ``labels``.
        ignore: value of targets that are not coded, such as -100; default: all are coded.
        class_axis: axis of the classes in the outputs, such as 1 or -1; default: found by comparing shapes.
        weight: refused: weights of classes would make the bits no code length.

    Raises:
        DataError: for fewer than two classes, another number of labels, the batch as axis of the classes, and for weights.

    >>> import torch
    >>> CategoricalLikelihood(4).bits(torch.zeros(1, 4), torch.tensor([2])).tolist()
    [2.0]
    >>> image = torch.tensor([[[0, 1, -100], [3, -100, -100]]])  # 2 x 3 pixels, three of them coded
    >>> CategoricalLikelihood(4, ignore=-100).bits(torch.zeros(1, 4, 2, 3), image).tolist()
    [6.0]
    """

    kind = "categorical"

    def __init__(
        self,
        classes: int,
        labels: Sequence[int | str] | None = None,
        *,
        names: Sequence[str] | None = None,
        ignore: int | None = None,
        class_axis: int | None = None,
        weight: object = None,
    ) -> None:
        super().__init__()
        if weight is not None:
            raise DataError(NO_WEIGHTS)
        if classes < 2:
            raise DataError(f"a categorical likelihood needs two or more classes, got {classes}; set likelihood.classes")
        if labels is not None and len(labels) != classes:
            raise DataError(f"{len(labels)} labels were given for {classes} classes; give one for each")
        if class_axis == 0:
            raise DataError("likelihood.class_axis 0 is the axis of the examples; give that of the classes, such as 1 or -1")
        self.classes, self.labels = classes, tuple(labels) if labels is not None else None
        self.names = tuple(names) if names is not None else self.labels
        self.ignore, self.class_axis = ignore, class_axis

    def class_axes(self, outputs: Tensor, targets: Tensor | None = None) -> list[int]:
        """List the axes behind the first that may be that of the classes.

        Args:
            outputs: (n, ...), logits.
            targets: (n, ...), whose shape is that of the outputs without the axis; default: not known.

        Returns:
            the axes, counted from the start.

        >>> CategoricalLikelihood(4).class_axes(torch.zeros(1, 4, 3, 4), torch.zeros(1, 3, 4))
        [1]
        """
        axes = range(1, outputs.ndim)
        if self.class_axis is not None:
            named = self.class_axis + outputs.ndim if self.class_axis < 0 else self.class_axis
            axes = range(named, named + 1) if named in axes else range(0)
        found = [axis for axis in axes if outputs.shape[axis] == self.classes]
        if targets is None:
            return found
        return [axis for axis in found if outputs.shape[1:axis] + outputs.shape[axis + 1 :] == targets.shape[1:]]

    def _only(self, axes: list[int], outputs: Tensor) -> int:
        """Return the axis of the classes; raises DataError if there is another number of candidates than one."""
        if not axes:
            raise DataError(
                f"the network gives outputs of shape {tuple(outputs.shape[1:])}, without an axis of {self.classes} classes; "
                "change the last layer, likelihood.classes or likelihood.class_axis"
            )
        if len(axes) > 1:
            raise DataError(
                f"{len(axes)} axes of outputs of shape {tuple(outputs.shape[1:])} are as long as there are classes, "
                f"{self.classes}; name that of the classes, such as likelihood.class_axis: 1 or -1"
            )
        return axes[0]

    def class_last(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the outputs with the axis of the classes moved to the end.

        Args:
            outputs: (n, ...), logits.
            targets: (n, ...), whose shape is that of the outputs without the axis of the classes.

        Returns:
            (n, ..., C).

        Raises:
            DataError: if the shapes do not fit, or the axis of the classes has to be named.

        >>> CategoricalLikelihood(4).class_last(torch.zeros(5, 4, 2, 3), torch.zeros(5, 2, 3)).shape
        torch.Size([5, 2, 3, 4])
        """
        axes, target = self.class_axes(outputs, targets), targets.shape[1:]
        if not axes:
            given, wanted = tuple(outputs.shape[1:]), "as many logits"
            if targets.ndim > 1:
                given = f"{given} for targets of shape {tuple(target)} per example"  # type: ignore[assignment]
                wanted = f"as many logits for each label, shape {(*target, self.classes)} or {(self.classes, *target)}"
            hint = ""
            if targets.ndim == outputs.ndim == 2:
                hint = ", use likelihood.kind=bernoulli for yes-or-no answers, or give the argmax of one-hot labels"
            raise DataError(
                f"the network gives outputs of shape {given} but {self.classes} classes need {wanted}; change the last layer"
                f"{hint}"
            )
        if len(outputs) != len(targets):
            raise DataError(f"there are {len(outputs):,} outputs for {len(targets):,} targets; give as many of both")
        return outputs.movedim(self._only(axes, outputs), -1)

    def _nats(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits = self.class_last(outputs, targets).reshape(-1, self.classes)
        if targets.is_floating_point():
            self._check_values(targets, "a")
        hidden = NEVER if self.ignore is None else self.ignore
        try:
            nats = cross_entropy(logits, targets.reshape(-1).long(), reduction="none", ignore_index=hidden)
        except IndexError:
            self._check_values(targets, "a")
            raise
        return nats.reshape(targets.shape)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return class probabilities, (n, ..., C): the axis of the classes is the last, wherever the outputs have it."""
        axis = -1 if outputs.ndim == 2 else self._only(self.class_axes(outputs), outputs)
        return outputs.movedim(axis, -1).softmax(-1)

    def mixture(self) -> LabelMixture:
        """Return an empty mixture of distributions of classes."""
        return LabelMixture(has_classes=True)

    def answers(self, predicted: Tensor, std: Tensor | None = None) -> list[Answer]:
        """Return the most probable class of each input, or at each of its positions.

        Args:
            predicted: (n, ..., C), probabilities.
            std: not used.

        Returns:
            a record ``{"class": ..., "probability": ...}`` for each input, with nested lists if a target has axes.
        """
        probability, best = predicted.double().max(-1)
        names = self.names or range(self.classes)
        return [
            {"class": _nested(names.__getitem__, k), "probability": _nested(lambda p: float(f"{p:.6g}"), p)}
            for k, p in zip(best.tolist(), probability.tolist(), strict=True)
        ]

    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return the share of wrong labels among the coded ones of each example: 0 or 1 if it has one, 0 if it has none.

        Args:
            predicted: (n, ..., C), probabilities, as :meth:`predict` gives them.
            targets: (n, ...), class numbers.

        Returns:
            (n,).
        """
        wrong = (predicted.argmax(-1) != targets).to(predicted.dtype)
        return mean_per_example(wrong, self.coded(targets))

    def uniform_bits(self, targets: Tensor) -> float:
        """Return log2 C for each coded label."""
        return self.symbols(targets) * math.log2(self.classes)

    def notes(self) -> list[str]:
        """Return a note on the order of the labels, unless they are class numbers."""
        if self.labels is None:
            return super().notes()
        shown = [repr(str(label)) for label in (self.labels if self.classes <= SHOWN else [*self.labels[:3], self.labels[-1]])]
        listed = ", ".join(shown if self.classes <= SHOWN else [*shown[:3], "...", shown[3]])
        return [
            f"the labels are {listed}, in this order classes 0 to {self.classes - 1}; files hold the list, the ledger does not",
            *super().notes(),
        ]

    def marginal_bits(self, targets: Tensor) -> float:
        """Return the bits under the Krichevsky-Trofimov code of the coded labels, those of all positions together."""
        counts = torch.zeros(self.classes, dtype=torch.float64)
        for part in chunks(targets):
            coded = self.coded(part)
            labels = part.flatten() if coded is None else part[coded]
            counts += torch.bincount(labels.detach().cpu().long(), minlength=self.classes)
        return float(krichevsky_trofimov_bits(counts))

    def _check_values(self, targets: Tensor, where: str) -> None:
        need = (
            f"labels must be whole numbers from 0 to {self.classes - 1}; number them so, or declare no classes "
            "(likelihood.classes, size of the last layer): then the labels of the data are the classes"
        )
        require(lambda y: whole(y) & (y >= 0) & (y < self.classes), targets, where, need, ignore=self.ignore)

    def outputs(self, targets: Tensor) -> int:
        """Return the number of classes."""
        return self.classes


class TokensLikelihood(CategoricalLikelihood):
    """Likelihood of texts as a network predicts them: outputs at position i are logits of the token at position i + 1.

    Targets are the token ids, (n, t), not shifted; they are usually the inputs as well. The first token of an example is not
    coded, and the outputs at its last position are not used.

    Args:
        classes: C, the size of the vocabulary.
        labels: token ids of the classes in the data; default: their numbers.
        names: texts of the tokens in :meth:`answers`; default: ``labels``.
        ignore: value of targets that are not coded.
        weight: refused, as in :class:`CategoricalLikelihood`.

    >>> TokensLikelihood(8).bits(torch.zeros(1, 4, 8), torch.tensor([[5, 1, 7, -100]])).tolist()
    [6.0]
    """

    kind = "tokens"
    described = "tokens"

    def __init__(
        self,
        classes: int,
        labels: Sequence[int | str] | None = None,
        *,
        names: Sequence[str] | None = None,
        ignore: int | None = NOT_CODED,
        weight: object = None,
    ) -> None:
        super().__init__(classes, labels, names=names, ignore=ignore, class_axis=-1, weight=weight)

    def coded(self, targets: Tensor) -> Tensor:
        """Return, for each token, whether it is coded, (n, t): none is at the first position."""
        found = super().coded(targets)
        found = torch.ones_like(targets, dtype=torch.bool) if found is None else found
        found[:, 0] = False
        return found

    def _nats(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self._check_shape(targets, "a")
        logits = self.class_last(outputs, targets)
        return pad(super()._nats(logits[:, :-1], targets[:, 1:]), (1, 0))

    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return the share of wrong tokens among the coded ones of each example; 0 if it has none.

        Args:
            predicted: (n, t, C), probabilities of the next token at each position.
            targets: (n, t), token ids.

        Returns:
            (n,).
        """
        wrong = (predicted[:, :-1].argmax(-1) != targets[:, 1:]).to(predicted.dtype)
        return mean_per_example(pad(wrong, (1, 0)), self.coded(targets))

    def notes(self) -> list[str]:
        """Return a note on the first token, and those of :class:`CategoricalLikelihood`."""
        return ["the first token of every example is not coded: the receiver holds it as an input", *super().notes()]

    def check_targets(self, targets: Tensor, where: str) -> None:
        """Check that targets are token ids, apart from those that are not coded.

        Args:
            targets: (n, t).
            where: name of the split.

        Raises:
            DataError: for another shape, and for the first that is none.
        """
        self._check_shape(targets, where)
        super().check_targets(targets, where)

    def _check_shape(self, targets: Tensor, where: str) -> None:
        if targets.ndim != 2 or targets.shape[1] < 2:
            raise DataError(
                f"{where} targets have shape {tuple(targets.shape)}; likelihood.kind=tokens needs token ids (n, t), a "
                "row of two or more for each text"
            )


class BernoulliLikelihood(SymbolLikelihood):
    """Likelihood of independent binary targets, 0 or 1; the outputs are logits, in the shape of the targets.

    Args:
        ignore: value of targets that are not coded, such as -100; default: all are coded.

    Raises:
        DataError: if the value is 0 or 1.

    >>> import torch
    >>> BernoulliLikelihood().bits(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 1.0]])).tolist()
    [3.0]
    """

    kind = "bernoulli"

    def __init__(self, *, ignore: int | None = None) -> None:
        super().__init__()
        if ignore in (0, 1):
            raise DataError(f"likelihood.ignore {ignore} is an answer; mark what is not coded by another number, such as -100")
        self.ignore = ignore

    def _nats(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_cpu:  # elsewhere a look at values waits for the device; training looked before it moved them there
            self._check_values(targets, "a")
        coded = self.coded(targets)
        logits, values = with_hidden(match(outputs, targets), coded), with_hidden(targets, coded)
        nats = binary_cross_entropy_with_logits(logits, values.to(logits.dtype), reduction="none")
        return with_hidden(nats, coded)

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
        return [{"answer": _nested(lambda p: int(p > 0.5), row["probability"]), **row} for row in listed(probability=rounded)]

    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return the share of wrong values in each example.

        Args:
            predicted: (n, ...), probabilities.
            targets: (n, ...), 0 or 1.

        Returns:
            (n,).
        """
        wrong = (match(predicted, targets) > 0.5) != (targets > 0.5)
        return mean_per_example(wrong.to(predicted.dtype), self.coded(targets))

    def uniform_bits(self, targets: Tensor) -> float:
        """Return one bit for each coded target."""
        return float(self.symbols(targets))

    def marginal_bits(self, targets: Tensor) -> float:
        """Return the bits under a Krichevsky-Trofimov code for each column of the targets."""
        counts = torch.zeros(numbers_per_example(targets), 2, dtype=torch.float64)
        for part in chunks(targets):
            coded = self.coded(part)
            values = by_column(with_hidden(part, coded))
            yes = values.sum(0)
            seen = len(values) if coded is None else by_column(coded).sum(0)
            counts += torch.stack([seen - yes, yes], -1)
        return float(krichevsky_trofimov_bits(counts).sum())

    def _check_values(self, targets: Tensor, where: str) -> None:
        require(lambda y: (y == 0) | (y == 1), targets, where, "Bernoulli targets must be 0 or 1", ignore=self.ignore)

    def outputs(self, targets: Tensor) -> int:
        """Return the number of targets per example."""
        return numbers_per_example(targets)


def class_count(outputs: Tensor, target: Sequence[int]) -> int | None:
    """Return the length of the only axis without which outputs have the shape of targets; None if there is no such axis.

    Args:
        outputs: (n, ...), of a network.
        target: shape of one target.

    Returns:
        the number of classes that the outputs are for.

    >>> class_count(torch.zeros(2, 5, 8, 8), (8, 8)), class_count(torch.zeros(2, 5), ())
    (5, 5)
    """
    shape = tuple(outputs.shape[1:])
    found = {shape[axis] for axis in range(len(shape)) if shape[:axis] + shape[axis + 1 :] == tuple(target)}
    return found.pop() if len(found) == 1 else None


def _nested(change: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to the items of nested lists."""
    return [_nested(change, item) for item in value] if isinstance(value, list) else change(value)
