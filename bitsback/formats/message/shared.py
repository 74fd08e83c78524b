"""State that sender and receiver of a message share, and the codecs derived from it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsback.coding.ans import WORD_BITS, Integers, Stack
from bitsback.coding.combinators import Codec
from bitsback.coding.lattice import PriorCode, RoundedPosterior
from bitsback.errors import LayerError
from bitsback.formats._exact_outputs import exact_outputs, is_exact, on_lattice
from bitsback.formats._label_code import coded_digest_bytes, targets
from bitsback.formats.container import DIGEST_BITS, digest
from bitsback.formats.repeatable import RefundLostError
from bitsback.formats.side_information import densities_of
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel
from bitsback.posteriors import PointPosterior

__all__ = ["SharedContext", "emptied", "filled", "guard_of", "posterior_digest"]


@dataclass(frozen=True)
class SharedContext:
    """State that sender and receiver share.

    Attributes:
        model: model in float64, untrained or trained.
        likelihood: its likelihood.
        inputs: inputs of the training examples, (n, ...).
        blank: their targets, 0 where they are coded and -100 elsewhere, (n, ...); where labels are coded.
    """

    model: BayesianModel
    likelihood: Likelihood
    inputs: Tensor
    blank: Tensor | None = None

    def check(self) -> None:
        """Raise LayerError if a weight has a point estimate, or training changed a buffer that a message does not hold."""
        if any(isinstance(q, PointPosterior) for q in self.model.posteriors()) or not self.model.weights:
            raise LayerError("a point estimate has no bits to give back; train with posterior.kind=gaussian, or pack it with "
                             "--codec quantised")  # fmt: skip
        for name, _ in self.model.changed_buffers():
            raise LayerError(f"training changed the buffer '{name}', which a message does not hold; pack the run: a model file "
                             "holds it")  # fmt: skip

    def posterior(self) -> RoundedPosterior:
        """Return the model's posterior rounded to whole numbers, all tensors concatenated."""
        stds = [q.std() for q in self.model.posteriors()]
        moments = [q.mean for q in self.model.posteriors()], [std for std in stds if std is not None]
        flat = [torch.cat([part.detach().cpu().double().flatten() for part in parts]).numpy() for parts in moments]
        return RoundedPosterior.of(*flat)

    def prior_code(self, exponent: int) -> PriorCode:
        """Return the prior's tables for the grid step 2^-exponent, from the current learned numbers."""
        return PriorCode.build(
            densities_of(self.model), [tuple(weight.posterior.mean.shape) for weight in self.model.weights], exponent
        )

    def tensors(self, point: Integers, exponent: int) -> dict[str, Tensor]:
        """Return grid points as the network's weight tensors.

        Args:
            point: weights in units of the grid step, (weights,).
            exponent: m of the grid step 2^-m.

        Returns:
            float64 tensors by name.
        """
        sizes = [q.numel for q in self.model.posteriors()]
        parts = torch.from_numpy(np.ldexp(point.astype(np.float64), -exponent)).split(sizes)
        return {w.name: part.reshape(w.posterior.mean.shape) for w, part in zip(self.model.weights, parts, strict=True)}

    def label_code(self, point: Integers, exponent: int) -> Codec:
        """Return the codec of the labels given weights.

        Args:
            point: weights in units of the grid step, (weights,).
            exponent: m of the grid step 2^-m.

        Returns:
            codec of the labels, flattened.
        """
        return targets(self.likelihood, exact_outputs(self.model, self.tensors(point, exponent), self.inputs), self.blank)

    def coded_digest(self) -> int | None:
        """Return a 32-bit digest of which positions are coded; None if all are."""
        if self.blank is None or not bool((self.blank != 0).any()):
            return None
        return digest(coded_digest_bytes(self.blank))

    def inputs_digest(self) -> int:
        """Return 32 bits of SHA-256 over the inputs' shape and their multiples of 2^-12, as little-endian 64-bit integers."""
        inputs = (self.inputs if isinstance(self.inputs, Tensor) else self.inputs.whole()).cpu()
        whole = torch.ldexp(on_lattice(inputs), torch.tensor(12)).long() if inputs.is_floating_point() else inputs.long()
        shape = np.array(inputs.shape, dtype="<i8").tobytes()
        return digest(shape + np.ascontiguousarray(whole.numpy().astype("<i8")).tobytes())


def posterior_digest(q: RoundedPosterior) -> int:
    """Return 32 bits of the digest of the rounded means and stds."""
    return int.from_bytes(q.digest(DIGEST_BITS // 8), "little")


def guard_of(shared: SharedContext, code: PriorCode, labels: Integers) -> int | None:
    """Return a digest of the priors' tables and the labels.

    Args:
        shared: model and inputs.
        code: the priors' tables.
        labels: (n,).

    Returns:
        32 bits; None if everything that determines the labels is computed exactly on every machine.
    """
    exact = all(prior.standard.exact for prior in densities_of(shared.model))
    if exact and is_exact(shared.model.network) and not shared.model.deterministic():
        return None
    tables = b"".join(table.cumulative.astype("<i8").tobytes() for table in code.tables)
    return digest(tables + labels.astype("<i8").tobytes())


def filled(content: bytes, lanes: int) -> Stack:
    """Return a stack that holds the whole 32-bit words of ``content``: the first ones in the heads, the others below.

    Args:
        content: any bytes; up to three at the end are left out.
        lanes: number of lanes.

    Returns:
        The stack, which borrows and counts the bits that are missing.
    """
    words = np.frombuffer(content[: len(content) // 4 * 4], dtype="<u4").astype(np.uint32)
    heads = np.full(lanes, 1 << WORD_BITS, dtype=np.uint64)
    stack = Stack(heads, words[lanes:], borrows=True)
    stack.heads[: min(lanes, len(words))] |= words[:lanes].astype(np.uint64)
    stack.count_as_borrowed(lanes - len(words))
    return stack


def emptied(stack: Stack) -> bytes:
    """Return the words that the sender filled the stack with; raises RefundLostError if the stack holds anything else."""
    if bool((stack.heads >> np.uint64(WORD_BITS) != 1).any()):
        raise RefundLostError("the payload could not be recovered: the weights were not drawn from this posterior")
    return np.concatenate([stack.heads.astype(np.uint32), stack.words]).astype("<u4").tobytes()
