"""Base class of likelihoods, and functions that they share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bitsback.data.mask import NOT_CODED
from bitsback.errors import DataError
from bitsback.learned import Learned
from bitsback.units import bits_to_nats, nats_to_bits

if TYPE_CHECKING:
    from bitsback.likelihoods._uncertainty import Mixture

__all__ = [
    "Answer",
    "Likelihood",
    "SymbolLikelihood",
    "by_column",
    "chunks",
    "equal",
    "krichevsky_trofimov_bits",
    "listed",
    "match",
    "mean_of_judged",
    "mean_per_example",
    "numbers_per_example",
    "per_example",
    "require",
    "whole",
    "with_hidden",
]

Answer = dict[str, Any]
"""Prediction for one input, by name; nested lists if a target has axes."""

CHUNK = 1 << 22
"""Most numbers that are looked at together, so that targets larger than the memory can be counted and checked."""


class Likelihood(Learned, ABC):
    """Base class of likelihoods: codes of the targets given the network's outputs.

    Attributes:
        kind: name of the likelihood in settings.
        error_name: name of the reported error, ``error`` or ``rmse``.
        described: noun for the targets in messages.
        ignore: value of targets that are not coded; None: all are.
    """

    family = "likelihood"
    error_name: ClassVar[str] = "error"
    described: ClassVar[str] = "labels"
    finds_noise: bool = False
    """Whether training estimates a noise scale, in which case beta is warmed up."""
    ignore: int | None = None

    @abstractmethod
    def bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the bits of each example, -log2 p(target given output); differentiable in ``outputs``.

        Args:
            outputs: (n, ...), of the network.
            targets: (n, ...).

        Returns:
            (n,).
        """

    def symbol_bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the bits of each number of a target, of which :meth:`bits` is the sum; 0 where a target is not coded.

        Args:
            outputs: (n, ...), of the network.
            targets: (n, ...).

        Returns:
            in the shape of the targets.

        Raises:
            DataError: if a target has several numbers and the likelihood does not say how its bits are split over them.
        """
        if targets.ndim == 1:
            return self.bits(outputs, targets)
        raise DataError(
            f"the likelihood '{self.kind}' gives the bits of whole examples; override symbol_bits to split them over the "
            "numbers of a target"
        )

    def coded(self, targets: Tensor) -> Tensor | None:
        """Return, for each number of the targets, whether it is coded, in their shape; None if all are."""
        return None if self.ignore is None else ~equal(targets, self.ignore)

    def symbols(self, targets: Tensor) -> int:
        """Return the number of coded numbers in all targets.

        >>> from bitsback.likelihoods import CategoricalLikelihood
        >>> CategoricalLikelihood(3, ignore=-100).symbols(torch.tensor([[0, 2, -100], [1, -100, -100]]))
        3
        """
        count = 0
        for part in chunks(targets):
            mask = self.coded(part)
            count += part.numel() if mask is None else int(mask.sum())
        return count

    def judged(self, targets: Tensor) -> Tensor:
        """Return whether each example has a coded number, (n,): errors are averaged over those that have, the others have none.

        >>> from bitsback.likelihoods import CategoricalLikelihood
        >>> CategoricalLikelihood(3, ignore=-100).judged(torch.tensor([[0, -100], [-100, -100]])).tolist()
        [True, False]
        """
        judged = torch.ones(len(targets), dtype=torch.bool, device=targets.device)
        start = 0
        for part in chunks(targets):
            mask = self.coded(part)
            if mask is not None:
                judged[start : start + len(part)] = mask.reshape(len(part), -1).any(1)
            start += len(part)
        return judged

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean data cost in nats, the loss that the optimisers of :mod:`bitsback.optim` expect.

        Args:
            outputs: (n, ...), of the network.
            targets: (n, ...).

        Returns:
            a scalar.

        >>> from bitsback.likelihoods import CategoricalLikelihood
        >>> outputs, targets = torch.randn(3, 4), torch.tensor([0, 1, 1])
        >>> loss = CategoricalLikelihood(4).loss(outputs, targets)
        >>> bool(torch.isclose(loss, torch.nn.functional.cross_entropy(outputs, targets)))
        True
        """
        return bits_to_nats(self.bits(outputs, targets).mean())

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """Return predictive means (probabilities, a mean, a rate) from outputs (n, ...), to be averaged over weight draws."""

    @abstractmethod
    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return the error of each example: 0 or 1 for classes, the squared error otherwise; 0 if nothing of it is coded.

        Args:
            predicted: (n, ...), predictive means.
            targets: (n, ...).

        Returns:
            (n,).
        """

    def mean_error(self, predicted: Tensor, targets: Tensor) -> float:
        """Return the mean of :meth:`error` over the examples of which something is coded (:meth:`judged`).

        Args:
            predicted: (n, ...), predictive means.
            targets: (n, ...).

        Returns:
            the mean; NaN if nothing is coded.

        >>> from bitsback.likelihoods import CategoricalLikelihood
        >>> sure = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        >>> CategoricalLikelihood(2, ignore=-100).mean_error(sure, torch.tensor([0, 1, -100]))
        0.5
        """
        return mean_of_judged(float(self.error(predicted, targets).cpu().double().sum()), int(self.judged(targets).sum()))

    @abstractmethod
    def uniform_bits(self, targets: Tensor) -> float:
        """Return the bits of the targets under the uniform code, without a model."""

    @abstractmethod
    def check_targets(self, targets: Tensor, where: str) -> None:
        """Check that this likelihood can describe the targets.

        Args:
            targets: (n, ...).
            where: name of the split, for messages.

        Raises:
            DataError: if it cannot.
        """

    def check_split(self, targets: Tensor, where: str) -> None:
        """Check the targets of a whole split: each of them, and that not all are left out. A part may have none that is coded.

        Args:
            targets: (n, ...).
            where: name of the split, for messages.

        Raises:
            DataError: if this likelihood cannot describe them, or none is coded.
        """
        self.check_targets(targets, where)
        if self.ignore is not None and not self.symbols(targets):
            raise DataError(
                f"no {where} target is coded: likelihood.ignore={self.ignore} hides all of them; check the mask of the targets"
            )

    @abstractmethod
    def outputs(self, targets: Tensor) -> int:
        """Return the number of network outputs that such targets need, those of a last Linear layer."""

    @abstractmethod
    def marginal_bits(self, targets: Tensor) -> float:
        """Return the bits of the targets under one distribution fitted to all of them, with its parameters charged."""

    @abstractmethod
    def answers(self, predicted: Tensor, std: Tensor | None = None) -> list[Answer]:
        """Return predictions in a readable form.

        Args:
            predicted: (n, ...), predictive means.
            std: (n, ...), predictive stds, or None.

        Returns:
            a record for each input.
        """

    def fit(self, targets: Tensor) -> None:
        """Estimate what the settings leave open from the training targets, once; training and ledgers call it first."""
        return

    def variance(self, outputs: Tensor) -> Tensor | None:
        """Return the variance of the target given the outputs, in the shape of :meth:`predict`; None if it has none."""
        return None

    def mixture(self) -> "Mixture | None":
        """Return an empty mixture over weight draws, for entropies and intervals; None if there is none."""
        return None

    def notes(self) -> list[str]:
        """Return notes on this code for readers of the ledger."""
        if self.ignore is None:
            return []
        return [f"targets of {self.ignore} are not coded; the receiver is assumed to know where they are"]

    def values(self) -> dict[str, Tensor]:
        """Return the learned numbers by name, as a receiver uses them."""
        return {}

    def summary(self, mean_error: float) -> float:
        """Return the reported error from the mean of :meth:`error`: the same for classes, its root otherwise."""
        return mean_error


class SymbolLikelihood(Likelihood):
    """Base class of likelihoods whose bits are a sum over the numbers of a target, of which some may not be coded."""

    @abstractmethod
    def _nats(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return -ln p of each number in the shape of the targets, 0 where it is not coded; checks both."""

    @abstractmethod
    def _check_values(self, targets: Tensor, where: str) -> None:
        """Raise DataError for the first target that is neither valid nor left out."""

    def bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the bits of each example, the sum over its coded numbers; differentiable in ``outputs``.

        Args:
            outputs: (n, ...), of the network.
            targets: (n, ...).

        Returns:
            (n,).
        """
        return nats_to_bits(per_example(self._nats(outputs, targets)))

    def symbol_bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the bits of each number of a target, 0 where it is not coded.

        Args:
            outputs: (n, ...), of the network.
            targets: (n, ...).

        Returns:
            in the shape of the targets.
        """
        return nats_to_bits(self._nats(outputs, targets))

    def check_targets(self, targets: Tensor, where: str) -> None:
        """Check that this likelihood can describe the targets, apart from those that are not coded.

        Args:
            targets: (n, ...).
            where: name of the split, for messages.

        Raises:
            DataError: for the first that it cannot describe.
        """
        self._check_values(targets, where)


def per_example(bits: Tensor) -> Tensor:
    """Sum over all axes but the first: (n, ...) to (n,)."""
    return bits.flatten(1).sum(1) if bits.ndim > 1 else bits


def mean_of_judged(error_sum: float, judged: int) -> float:
    """Return the mean error of examples.

    Args:
        error_sum: sum of their errors.
        judged: number of those of which something is coded.

    Returns:
        the mean; NaN if there are none.
    """
    return error_sum / judged if judged else math.nan


def match(outputs: Tensor, targets: Tensor) -> Tensor:
    """Bring outputs to the shape of the targets by dropping a trailing axis of length one.

    Args:
        outputs: (n, ...) or (n, ..., 1).
        targets: (n, ...).

    Returns:
        outputs, in the shape of the targets.

    Raises:
        DataError: if the shapes still differ.
    """
    if outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 1:
        outputs = outputs.squeeze(-1)
    if outputs.shape != targets.shape:
        raise DataError(
            f"the network gives outputs of shape {tuple(outputs.shape[1:])} for targets of shape {tuple(targets.shape[1:])} "
            "per example; change the last layer"
        )
    return outputs


def listed(**columns: Tensor | None) -> list[Answer]:
    """Convert tensors to one record for each example; a trailing axis of length one is dropped.

    Args:
        columns: tensors (n, ...) by name; None is left out.

    Returns:
        n records.

    >>> listed(mean=torch.tensor([[1.5], [2.0]]), std=None)
    [{'mean': 1.5}, {'mean': 2.0}]
    """
    named = {name: tensor for name, tensor in columns.items() if tensor is not None}
    plain = [(t.squeeze(1) if t.ndim == 2 and t.shape[1] == 1 else t).detach().double().cpu().tolist() for t in named.values()]
    return [dict(zip(named, map(_short, row), strict=True)) for row in zip(*plain, strict=True)]


def _short(value: Any) -> Any:
    """Round the numbers in nested lists to 12 significant digits, so that rounding errors do not show."""
    return [_short(item) for item in value] if isinstance(value, list) else float(f"{value:.12g}")


def krichevsky_trofimov_bits(counts: Tensor) -> Tensor:
    """Return the bits of symbols coded by adaptive frequencies that start at one half.

    -log2 of Gamma(C/2) / Gamma(n + C/2) times the product of Gamma(n_c + 1/2) / Gamma(1/2), for n symbols of C classes
    (Krichevsky & Trofimov 1981): a code that does not depend on the order of the labels and has no parameters to charge.

    Args:
        counts: (..., C), float64, occurrences of each class.

    Returns:
        (...).

    >>> round(krichevsky_trofimov_bits(torch.tensor([1.0, 1.0]).double()).item(), 6)  # 1/2 * (1/2) / 2 = 1/8
    3.0
    """
    half = torch.tensor(0.5, dtype=counts.dtype)
    classes = counts.shape[-1] / 2
    start = torch.lgamma(torch.tensor(classes, dtype=counts.dtype)) - torch.lgamma(counts.sum(-1) + classes)
    nats = start + (torch.lgamma(counts + 0.5) - torch.lgamma(half)).sum(-1)
    return nats_to_bits(-nats)


def numbers_per_example(targets: Tensor) -> int:
    """Return the number of elements of one target."""
    return math.prod(targets.shape[1:])


def by_column(targets: Tensor) -> Tensor:
    """Return targets as a matrix in float64, a column for each number of an example."""
    return targets.detach().double().cpu().reshape(len(targets), -1)


def mean_per_example(values: Tensor, coded: Tensor | None) -> Tensor:
    """Return the mean over the coded numbers of each example, 0 for an example without one.

    Args:
        values: (n, ...).
        coded: which of them are coded, in the same shape; None: all are.

    Returns:
        (n,).
    """
    if coded is None:
        return per_example(values) / numbers_per_example(values)
    return per_example(with_hidden(values, coded)) / per_example(coded.to(values.dtype)).clamp_min(1)


def with_hidden(values: Tensor, coded: Tensor | None, fill: float = 0) -> Tensor:
    """Replace the values of positions that are not coded.

    Args:
        values: of any shape.
        coded: which of them are coded, in the same shape; None: all are.
        fill: put in place of the others.

    Returns:
        in the shape of ``values``.
    """
    return values if coded is None else values.masked_fill(~coded, fill)


def equal(targets: Tensor, value: int) -> Tensor:
    """Return which targets have a value; none, if their dtype cannot hold it (torch would wrap the value around).

    Args:
        targets: of any shape.
        value: compared with each.

    Returns:
        bool, in the shape of the targets.

    >>> equal(torch.tensor([156], dtype=torch.uint8), -100).tolist()
    [False]
    """
    if not targets.is_floating_point() and targets.dtype != torch.bool:
        held = torch.iinfo(targets.dtype)
        if not held.min <= value <= held.max:
            return torch.zeros_like(targets, dtype=torch.bool)
    return targets == value


def chunks(targets: Tensor) -> Iterator[Tensor]:
    """Yield rows of the targets together, in order, at most :data:`CHUNK` numbers at a time where a row is not longer.

    >>> [len(part) for part in chunks(torch.zeros(3, 1 << 21))]
    [2, 1]
    """
    rows = max(1, CHUNK // max(1, numbers_per_example(targets)))
    for start in range(0, len(targets), rows):
        yield targets[start : start + rows]


def require(valid: Callable[[Tensor], Tensor], targets: Tensor, where: str, need: str, *, ignore: int | None = None) -> None:
    """Raise DataError, with the first target that is not valid, if there is one.

    Args:
        valid: says for each target whether it is valid, in their shape.
        targets: (n, ...).
        where: name of the split.
        need: the requirement, for the message.
        ignore: value that is valid besides.

    Raises:
        DataError: if a target is not valid.
    """
    begin = 0
    for part in chunks(targets):
        fine = valid(part) if ignore is None else valid(part) | equal(part, ignore)
        wrong = (~fine).flatten().nonzero()
        if len(wrong):
            value = part.flatten()[wrong[0]].item()
            example = begin + int(wrong[0]) // numbers_per_example(targets)
            if value == NOT_CODED and ignore is None:
                need += f"; likelihood.ignore={NOT_CODED} leaves such positions out, if they are not to be coded"
            raise DataError(f"{where} target of example {example} is {value:g}; {need}")
        begin += len(part)


def whole(targets: Tensor) -> Tensor:
    """Return, for each target, whether it is a whole number."""
    return targets == targets.round() if torch.is_floating_point(targets) else torch.ones_like(targets, dtype=torch.bool)
