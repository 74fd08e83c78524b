"""Code of targets given the outputs of a network: labels and counts at all positions, or at those that are coded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitsback.coding.ans import Integers, Stack
from bitsback.coding.categorical import FRACTION_BITS, code_bits, labels
from bitsback.coding.combinators import Codec
from bitsback.coding.counts import count_bits, counts
from bitsback.data import Examples
from bitsback.data.mask import MASK_NOTE, NOT_CODED
from bitsback.errors import FileError
from bitsback.likelihoods import Likelihood
from bitsback.likelihoods.base import match
from bitsback.likelihoods.classes import CategoricalLikelihood, TokensLikelihood

if TYPE_CHECKING:
    from bitsback.config import Experiment

__all__ = [
    "blank",
    "blank_targets",
    "check_likelihood",
    "check_targets",
    "coded_digest_bytes",
    "has_exact_bits",
    "target_bits",
    "targets",
]

MOST_CLASSES = 1 << 20
"""Largest number of classes of the label code."""

COUNTS = ("poisson", "negative_binomial")
LABELS = ("categorical", "bernoulli")


def check_targets(experiment: "Experiment") -> None:
    """Raise FileError unless files code such targets, and the receiver can know which of them are coded."""
    likelihood, train = experiment.likelihood, experiment.dataset.train
    check_likelihood(likelihood, likelihood.outputs(train.targets))
    if likelihood.symbols(train.targets) < train.targets.numel() and MASK_NOTE not in train.assumed:
        raise FileError(
            f"some targets are {likelihood.ignore} and not coded, and the receiver cannot know which; put an array 'mask' into "
            "the NPZ file, 1 where a target is coded and 0 elsewhere (data.mask)"
        )


def check_likelihood(likelihood: Likelihood, outputs: int) -> None:
    """Raise FileError unless targets are counts, or labels of a moderate number of classes.

    Args:
        likelihood: likelihood of the targets.
        outputs: number of network outputs, for labels that of the classes.

    Raises:
        FileError: for another likelihood, or if there are too many classes.
    """
    if isinstance(likelihood, TokensLikelihood):
        raise FileError(
            "with likelihood.kind=tokens the inputs are the labels, so a receiver would hold what is sent; pack the network "
            "in place of sending labels"
        )
    if likelihood.kind not in (*LABELS, *COUNTS):
        raise FileError(
            f"a message codes labels and counts, and the likelihood '{likelihood.kind}' describes {likelihood.described}; "
            "use likelihood.kind=categorical or bernoulli, or poisson or negative_binomial for counts"
        )
    if likelihood.kind == "categorical" and outputs > MOST_CLASSES:
        raise FileError(f"the code of labels has at most {MOST_CLASSES:,} classes, got {outputs:,}; use fewer")


def blank(targets: Tensor) -> Tensor:
    """Return what a receiver knows of targets: 0 where they are coded, and -100 elsewhere, int64 on the CPU."""
    return torch.where(targets == NOT_CODED, NOT_CODED, 0).cpu()


def blank_targets(examples: Examples, shape: Sequence[int]) -> Tensor:
    """Return what a receiver knows of the targets that a file holds.

    Args:
        examples: the receiver's, as ``load_inputs`` of the data settings gives them.
        shape: of one target, by the file.

    Returns:
        0 where targets are coded, -100 where the receiver's mask leaves them out, int64, (n, ...).

    Raises:
        FileError: if the mask has another shape.
    """
    if MASK_NOTE not in examples.assumed:
        return torch.zeros(len(examples), *shape, dtype=torch.int64)
    if tuple(examples.targets.shape[1:]) != tuple(shape):
        raise FileError(
            f"the mask here has shape {tuple(examples.targets.shape[1:])} per example, and the file's targets {tuple(shape)}; "
            "say where the sender's data are (--data.path=...)"
        )
    return blank(examples.targets)


def coded_digest_bytes(blank: Tensor) -> bytes:
    """Return which positions are coded, a byte each, for a digest."""
    return (blank != NOT_CODED).to(torch.uint8).cpu().contiguous().numpy().tobytes()


def targets(likelihood: Likelihood, outputs: Tensor, blank: Tensor | None = None) -> Codec:
    """Return the codec of targets given whole-number outputs; values are flat arrays of whole numbers.

    Args:
        likelihood: categorical, Bernoulli, Poisson or negative binomial.
        outputs: network outputs in units of 2^-12, (n, ...), int64.
        blank: result of :func:`blank`, (n, ...); default: one target for each output, all of them coded.

    Returns:
        codec of the (n, ...) targets, flattened; those that are not coded are -100.

    Raises:
        FileError: if the targets are real numbers, or outputs are beyond the range of the code.
        DataError: if the outputs have not the shape that the targets need.
    """
    check_likelihood(likelihood, outputs.shape[1] if outputs.ndim > 1 else 1)
    known = torch.zeros_like(outputs) if blank is None else blank
    coded = None if likelihood.ignore != NOT_CODED else (known != NOT_CODED).flatten().numpy()
    given = _parameters(likelihood, outputs, known)
    code = _code(likelihood, given if coded is None else given[coded])
    return code if coded is None else _at(coded, code)


def _parameters(likelihood: Likelihood, outputs: Tensor, targets: Tensor) -> Integers:
    """Return what decides each target, flattened: logits (symbols, classes), or one number each, (symbols,)."""
    found: Integers
    if isinstance(likelihood, CategoricalLikelihood):
        found = likelihood.class_last(outputs, targets).reshape(-1, likelihood.classes).numpy()
    else:
        found = match(outputs, targets).reshape(-1).numpy()
    return found


def _code(likelihood: Likelihood, given: Integers) -> Codec:
    if likelihood.kind in COUNTS:
        return counts(given, _log_dispersion(likelihood))
    return labels(given if given.ndim > 1 else np.stack([np.zeros_like(given), given], axis=1))


def _log_dispersion(likelihood: Likelihood) -> int | None:
    """Return the log dispersion of counts in units of 2^-12 nats, of which a learned one is a multiple; None for Poisson."""
    held = getattr(likelihood, "log_dispersion", None)
    return None if held is None else round(float(held.detach()) * 2**FRACTION_BITS)


def _at(coded: NDArray[np.bool_], code: Codec) -> Codec:
    """Return the codec of an array that is -100 where ``coded`` is false, from that of its other numbers."""

    def pop(stack: Stack) -> Integers:
        values = np.full(len(coded), NOT_CODED, dtype=np.int64)
        values[coded] = code.pop(stack)
        return values

    return Codec(lambda stack, values: code.push(stack, values[coded]), pop)


def has_exact_bits(likelihood: Likelihood) -> bool:
    """Return whether :func:`target_bits` measures such targets."""
    return isinstance(likelihood, CategoricalLikelihood) or likelihood.kind in COUNTS


def target_bits(likelihood: Likelihood, outputs: Tensor, targets: Tensor) -> float:
    """Return the exact code length of targets given whole-number outputs.

    Args:
        likelihood: of classes, tokens among them, or of counts.
        outputs: network outputs in units of 2^-12, (n, ...), int64.
        targets: (n, ...).

    Returns:
        Bits, all coded targets together.

    Raises:
        FileError: if outputs or counts are beyond the range of the code.
    """
    coded = likelihood.coded(targets)
    if isinstance(likelihood, TokensLikelihood):
        outputs, targets, coded = outputs[:, :-1], targets[:, 1:], likelihood.coded(targets)[:, 1:]
    given, values = _parameters(likelihood, outputs, targets), targets.flatten().long().numpy()
    if coded is not None:
        given, values = given[coded.flatten().numpy()], values[coded.flatten().numpy()]
    if likelihood.kind in COUNTS:
        return float(count_bits(given, values, _log_dispersion(likelihood)).sum())
    return code_bits(given, values)
