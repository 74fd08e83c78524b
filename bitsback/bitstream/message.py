"""The bits-back message: labels and weights inside a payload that comes out again (Hinton & van Camp 1993).

The sender draws the weights by decoding the payload's bits under q, codes the labels given the weights, and the weights under
the prior. The receiver decodes weights, then labels, trains on the labels as the sender did, finds the same q, and codes the
weights under it: the bits that chose them are the payload.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsback.bitstream.ans import WORD_BITS, Integers, Stack
from bitsback.bitstream.codec import Codec, bits_back, metered, raw_bits
from bitsback.bitstream.container import BitReader, BitWriter, seal
from bitsback.bitstream.grid import PriorCode, RoundedPosterior, under_posterior, under_prior
from bitsback.bitstream.header import EXPONENT_BITS, EXPONENT_OFFSET, Header, default_lanes_log2
from bitsback.bitstream.outputs import is_exact
from bitsback.bitstream.sent import Sent
from bitsback.bitstream.setting import DIGEST_BITS, Setting, digest, placed_priors
from bitsback.bitstream.side import SideNumbers
from bitsback.bitstream.state import StateDigest
from bitsback.errors import BitsbackError, FileError
from bitsback.model.modes import evaluating
from bitsback.randomness import whiten
from bitsback.units import nats_to_bits


class PayloadTooShortError(FileError):
    """A payload with fewer bits than the weights take to draw."""

    def __init__(self, missing_bits: int) -> None:
        self.missing_bits = missing_bits
        super().__init__(
            f"the payload is too short to draw all weights: {missing_bits:,} more bits ({math.ceil(missing_bits / 8):,} bytes) "
            "are needed; give a longer payload, a coarser --step, or --pad"
        )


class RefundLostError(FileError):
    """Labels and weights are there, but q could not be repeated: the payload stays locked."""


def send(
    setting: Setting,
    labels: Tensor,
    payload: bytes,
    settings: dict[str, Any],
    *,
    exponent: int | None = None,
    padding_bytes: int = 0,
    states: tuple[StateDigest, ...] = (),
) -> Sent:
    """The message for a trained model.

    Args:
        setting: the trained model in float64, its learned numbers rounded to their grids.
        labels: targets of the training examples.
        payload: any bytes, enough of them to draw the weights.
        settings: the configuration as a tree of JSON values, for the header.
        exponent: the lattice is the multiples of 2^-exponent; default: a power of two below the smallest std.
        padding_bytes: how many of the payload's last bytes are not its own: the receiver drops them.
        states: digests of the training that led here, which the receiver compares on the way.

    Raises:
        PayloadTooShortError: says how many bits are missing.
        LayerError: for a point estimate, or a std that is not positive.
        PriorError: for a prior without proper mass.
        FileError: for targets that are not labels.
    """
    setting.check()
    q = setting.posterior()
    m = q.default_exponent() if exponent is None else exponent
    check_exponent(m)
    code = setting.prior_code(m)
    side = SideNumbers.of(setting.model, setting.likelihood)
    kl_bits = float(setting.model.kl_bits().detach())
    lanes_log2 = default_lanes_log2(len(q.std_level), kl_bits)
    stack = _filled(whiten(payload), 1 << lanes_log2)
    meters: dict[str, float] = {}
    drawn: list[Integers] = []

    def label_code(point: Integers) -> Codec:
        if stack.borrowed_bits:
            raise PayloadTooShortError(stack.borrowed_bits)
        drawn.append(point)
        return metered(setting.label_code(point, m), meters, "labels")

    flat = labels.cpu().numpy().astype(np.int64).ravel()
    whole = bits_back(
        metered(under_prior(code), meters, "gross"), label_code, lambda _: metered(under_posterior(q, m), meters, "refund")
    )
    whole.push(stack, flat)
    metered(raw_bits(side.widths()), meters, "side").push(stack, side.levels())
    weight_bits, data_bits = _sample_ledger(setting, q, drawn[0], m, labels)
    digests = setting.inputs_digest(), _posterior_digest(q), _guard(setting, code, flat)
    header = Header(settings, m, lanes_log2, len(payload), padding_bytes, *digests, states)
    writer = BitWriter()
    header.put(writer)
    rest = payload[len(payload) // 4 * 4 :]
    contents = writer.to_bytes() + rest + stack.to_bytes()
    file = seal("message", contents)
    return Sent(
        content=file,
        step=2.0**-m,
        payload_bits=8 * (len(payload) - padding_bytes),
        padding_bits=8 * padding_bytes,
        gross_weight_bits=meters["gross"],
        refund_bits=-meters["refund"],
        label_bits=meters["labels"],
        side_bits=meters["side"],
        header_bits=8 * (len(file) - len(contents)) + 8 * len(writer.to_bytes()),
        net_bits=weight_bits + data_bits + float(side.widths().sum()),
        ledger_data_bits=data_bits,
        ledger_weight_bits=weight_bits,
    )


def check_exponent(exponent: int) -> None:
    """Raise FileError unless 2^-exponent is a grid that a message can name."""
    if not -EXPONENT_OFFSET <= exponent < (1 << EXPONENT_BITS) - EXPONENT_OFFSET:
        raise FileError(f"a step of 2^{-exponent} is out of range; choose one between 2^-40 and 2^10")


def _filled(content: bytes, lanes: int) -> Stack:
    """A stack that holds whole words of ``content``: the first ones in the heads, the others below."""
    words = np.frombuffer(content[: len(content) // 4 * 4], dtype="<u4").astype(np.uint32)
    heads = np.full(lanes, 1 << WORD_BITS, dtype=np.uint64)
    stack = Stack(heads, words[lanes:], borrows=True)
    stack.heads[: min(lanes, len(words))] |= words[:lanes].astype(np.uint64)
    stack.lend(lanes - len(words))
    return stack


def _emptied(stack: Stack) -> bytes:
    """The words that :func:`_filled` put there; raises RefundLostError when the stack holds anything else."""
    if bool((stack.heads >> np.uint64(WORD_BITS) != 1).any()):
        raise RefundLostError("the payload does not come out whole: the weights were not drawn from this q")
    return np.concatenate([stack.heads.astype(np.uint32), stack.words]).astype("<u4").tobytes()


def _posterior_digest(q: RoundedPosterior) -> int:
    return int.from_bytes(q.digest(DIGEST_BITS // 8), "little")


def _guard(setting: Setting, code: PriorCode, labels: Integers) -> int | None:
    exact = all(prior.shape.exact for prior in placed_priors(setting.model))
    if exact and is_exact(setting.model.network) and not setting.model.deterministic():
        return None
    tables = b"".join(table.cumulative.astype("<i8").tobytes() for table in code.tables)
    return digest(tables + labels.astype("<i8").tobytes())


@torch.no_grad()
def _sample_ledger(setting: Setting, q: RoundedPosterior, point: Integers, m: int, labels: Tensor) -> tuple[float, float]:
    """log2 q/p of the drawn weights, and their data cost: real arithmetic, nothing of the coder's."""
    values = setting.tensors(point, m)
    w = torch.from_numpy(np.ldexp(point.astype(np.float64), -m))
    mean, std = torch.from_numpy(q.mean), torch.from_numpy(q.std)
    nats = torch.distributions.Normal(mean, std).log_prob(w).sum()
    for weight in setting.model.weights:
        nats = nats - weight.prior().log_prob(values[weight.name]).sum()
    data = 0.0
    with evaluating(setting.model.network), setting.model.holding(values):
        for x, y in zip(setting.inputs.split(512), labels.split(512), strict=True):
            data += float(setting.likelihood.bits(setting.model(x), y).sum())
    return float(nats_to_bits(nats)), data


@dataclass
class Received:
    """What came out of a message; ``payload`` is None as long as q has not been repeated."""

    labels: Integers
    weights: dict[str, Tensor]
    side: list[tuple[str, Tensor]] = field(default_factory=list)
    payload: bytes | None = None


def receive(
    contents: bytes, header: Header, reader: BitReader, setting: Setting, retrain: Callable[[Integers], RoundedPosterior]
) -> tuple[Received, RefundLostError | None]:
    """Weights, labels and, when q can be repeated, the payload.

    Args:
        contents: what :func:`unseal` gave.
        header, reader: what :meth:`Header.take` read from it.
        setting: an untrained model of the header's configuration, and the inputs.
        retrain: from labels to the posterior that the sender's training ends with; may raise RefundLostError on the way.

    Raises:
        FileError: when the inputs differ from the sender's or the message is damaged.
    """
    if setting.inputs_digest() != header.inputs_digest:
        raise FileError(
            "the inputs here are not those of the sender: their digest differs; say where the right ones are "
            "(--data.root=..., --data.path=...)"
        )
    rest_bytes = header.payload_bytes % 4
    body = reader.rest()
    rest, stack = body[:rest_bytes], Stack.from_bytes(body[rest_bytes:], 1 << header.lanes_log2)
    side = SideNumbers.of(setting.model, setting.likelihood)
    side.assign(raw_bits(side.widths()).pop(stack))
    code, m = setting.prior_code(header.exponent), header.exponent
    got: list[Received] = []

    def label_code(point: Integers) -> Codec:
        weights = setting.tensors(point, m)
        got.append(Received(np.zeros(0, dtype=np.int64), weights, [(name, t.detach().clone()) for name, t, _ in side.slots]))
        return setting.label_code(point, m)

    def posterior(labels: Integers) -> Codec:
        got[0].labels = labels
        if header.guard_digest is not None and _guard(setting, code, labels) != header.guard_digest:
            raise FileError(
                "the labels cannot be decoded here: this network or prior uses functions that differ between machines; "
                "receive it on a machine like the sender's"
            )
        try:
            q = retrain(labels)
        except RefundLostError:
            raise
        except BitsbackError as fault:
            raise RefundLostError(
                f"labels and network were recovered, the payload was not: training fails here: {fault}"
            ) from fault
        if _posterior_digest(q) != header.posterior_digest:
            raise RefundLostError(
                "labels and network were recovered, the payload was not: training here does not end at the sender's posterior "
                "(another processor, torch version or thread count); receive it on a machine like the sender's"
            )
        return under_posterior(q, m)

    try:
        bits_back(under_prior(code), label_code, posterior).pop(stack)
        words = _emptied(stack)
        if len(words) + rest_bytes != header.payload_bytes:
            raise RefundLostError("the payload does not have the length that the message states; the message is damaged")
    except RefundLostError as fault:
        return got[0], fault
    payload = whiten(words) + rest
    got[0].payload = payload[: len(payload) - header.padding_bytes]
    return got[0], None
