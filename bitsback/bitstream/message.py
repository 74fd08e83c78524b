"""The bits-back message: labels and weights inside a payload that comes out again (Hinton & van Camp 1993).

The sender draws the weights by decoding the payload's bits under q, codes the labels given the weights, and the weights under
the prior. The receiver decodes weights, then labels, trains on the labels as the sender did, finds the same q, and codes the
weights under it: the bits that chose them are the payload.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsback.bitstream.ans import LENGTH_BITS, WORD_BITS, Integers, Stack
from bitsback.bitstream.codec import Codec, bits_back, metered, raw_bits
from bitsback.bitstream.container import BitReader, BitWriter, seal
from bitsback.bitstream.density import place
from bitsback.bitstream.grid import PriorCode, RoundedPosterior, under_posterior, under_prior
from bitsback.bitstream.labels import targets
from bitsback.bitstream.outputs import exact_outputs, is_exact, on_lattice
from bitsback.bitstream.randomness import whiten
from bitsback.bitstream.settings_text import put_settings, take_settings
from bitsback.bitstream.side import SideNumbers
from bitsback.errors import FileError, LayerError
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel
from bitsback.posterior import PointPosterior, holding
from bitsback.units import nats_to_bits

DIGEST_BITS = 32
EXPONENT_BITS, EXPONENT_OFFSET = 6, 16
MOST_LANES_LOG2 = 10
WEIGHTS_PER_LANE = 1024


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


@dataclass(frozen=True)
class Setting:
    """What both sides hold: an untrained or trained model, its likelihood, and the inputs (n, ...)."""

    model: BayesianModel
    likelihood: Likelihood
    inputs: Tensor

    def check(self) -> None:
        """Raise LayerError when a weight has no posterior to give bits back."""
        if any(isinstance(q, PointPosterior) for q in self.model.posteriors()) or not self.model.weights:
            raise LayerError("a point estimate has no bits to give back; train with posterior.kind=gaussian, or pack it with "
                             "--codec quantised")  # fmt: skip

    def posterior(self) -> RoundedPosterior:
        """The model's posterior in whole numbers, all tensors after each other."""
        flat = [torch.cat([part.detach().cpu().double().flatten() for part in parts]).numpy() for parts in self._moments()]
        return RoundedPosterior.of(*flat)

    def _moments(self) -> tuple[list[Tensor], list[Tensor]]:
        stds = [q.std() for q in self.model.posteriors()]
        return [q.mean for q in self.model.posteriors()], [std for std in stds if std is not None]

    def prior_code(self, exponent: int) -> PriorCode:
        """The prior's tables, from the learned numbers as the model holds them now."""
        placed = [place(weight.prior, weight.name) for weight in self.model.weights]
        return PriorCode.build(placed, [tuple(weight.posterior.mean.shape) for weight in self.model.weights], exponent)

    def tensors(self, point: Integers, exponent: int) -> dict[str, Tensor]:
        """Lattice points as the network's weight tensors, float64."""
        sizes = [q.weights for q in self.model.posteriors()]
        parts = torch.from_numpy(np.ldexp(point.astype(np.float64), -exponent)).split(sizes)
        return {w.name: part.reshape(w.posterior.mean.shape) for w, part in zip(self.model.weights, parts, strict=True)}

    def label_code(self, point: Integers, exponent: int) -> Codec:
        """The codec of the labels given weights."""
        return targets(self.likelihood, exact_outputs(self.model, self.tensors(point, exponent), self.inputs).numpy())

    def inputs_digest(self) -> int:
        """32 bits of SHA-256 over the inputs' shape and their multiples of 2^-12, as little-endian 64-bit integers."""
        inputs = self.inputs.cpu()
        whole = torch.ldexp(on_lattice(inputs), torch.tensor(12)).long() if inputs.is_floating_point() else inputs.long()
        shape = np.array(inputs.shape, dtype="<i8").tobytes()
        return _digest(shape + np.ascontiguousarray(whole.numpy().astype("<i8")).tobytes())


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[: DIGEST_BITS // 8], "little")


@dataclass(frozen=True)
class Header:
    """What a message says before its first bit of content."""

    settings: dict[str, Any]
    exponent: int
    lanes_log2: int
    payload_bytes: int
    inputs_digest: int
    posterior_digest: int
    guard_digest: int | None
    """Of labels and prior tables, where their arithmetic is not the same on every machine."""

    def put(self, writer: BitWriter) -> None:
        """Write it."""
        put_settings(writer, self.settings)
        writer.put(self.exponent + EXPONENT_OFFSET, EXPONENT_BITS)
        writer.put(self.lanes_log2, 4)
        writer.put_count(self.payload_bytes)
        writer.put(self.inputs_digest, DIGEST_BITS)
        writer.put(self.posterior_digest, DIGEST_BITS)
        writer.put(int(self.guard_digest is not None), 1)
        if self.guard_digest is not None:
            writer.put(self.guard_digest, DIGEST_BITS)

    @classmethod
    def take(cls, reader: BitReader) -> "Header":
        """Read it; raises FileError when it makes no sense."""
        settings = take_settings(reader)
        exponent, lanes = reader.take(EXPONENT_BITS) - EXPONENT_OFFSET, reader.take(4)
        if lanes > MOST_LANES_LOG2:
            raise FileError(f"the message claims 2^{lanes} lanes, at most 2^{MOST_LANES_LOG2} are allowed; it is damaged")
        count = reader.take_count()
        digests = reader.take(DIGEST_BITS), reader.take(DIGEST_BITS)
        return cls(settings, exponent, lanes, count, *digests, reader.take(DIGEST_BITS) if reader.take(1) else None)


@dataclass(frozen=True)
class Sent:
    """A message and where its bits went, beside the ledger of the very weights that it carries."""

    content: bytes
    step: float
    payload_bits: int
    gross_weight_bits: float
    refund_bits: float
    label_bits: float
    side_bits: float
    header_bits: int
    net_bits: float
    ledger_data_bits: float
    ledger_weight_bits: float

    @property
    def message_bits(self) -> int:
        """Bits of the whole file."""
        return 8 * len(self.content)

    @property
    def stack_net_bits(self) -> float:
        """What labels, weights and learned numbers added to the stack, less what was given back."""
        return self.gross_weight_bits + self.label_bits + self.side_bits - self.refund_bits

    @property
    def overhead_bits(self) -> float:
        """Message less payload less the ledger's net bits of the transmitted weights."""
        return self.message_bits - self.payload_bits - self.net_bits

    def facts(self) -> dict[str, Any]:
        """Everything, for JSON; the overhead's parts add up to it."""
        framing = self.message_bits - self.payload_bits - self.stack_net_bits - self.header_bits
        return {
            "message_bits": self.message_bits,
            "payload_bits": self.payload_bits,
            "net_bits": self.net_bits,
            "overhead_bits": self.overhead_bits,
            "overhead": {
                "header_and_checksum_bits": self.header_bits,
                "lanes_and_padding_bits": framing,
                "coder_and_tables_bits": self.stack_net_bits - self.net_bits,
            },
            "ledger": {
                "data_bits": self.ledger_data_bits,
                "net_weight_bits": self.ledger_weight_bits,
                "hyperparameter_bits": self.side_bits,
            },
            "coded": {
                "label_bits": self.label_bits,
                "gross_weight_bits": self.gross_weight_bits,
                "refund_bits": self.refund_bits,
                "hyperparameter_bits": self.side_bits,
                "net_bits": self.stack_net_bits,
            },
            "step": self.step,
        }


def default_lanes_log2(weights: int, net_bits: float) -> int:
    """Few enough lanes that their heads cost at most 1 % of the net bits, many enough to be fast.

    >>> default_lanes_log2(130, 250.0), default_lanes_log2(266_610, 26_000.0), default_lanes_log2(10**7, 1e6)
    (0, 5, 10)
    """
    lanes = min(max(int(math.log2(max(weights / WEIGHTS_PER_LANE, 1))), 0), MOST_LANES_LOG2)
    while lanes and LENGTH_BITS * 2**lanes > 0.01 * net_bits:
        lanes -= 1
    return lanes


def send(
    setting: Setting,
    labels: Tensor,
    payload: bytes,
    settings: dict[str, Any],
    *,
    exponent: int | None = None,
) -> Sent:
    """The message for a trained model.

    Args:
        setting: the trained model in float64, its learned numbers rounded to their grids.
        labels: targets of the training examples.
        payload: any bytes, enough of them to draw the weights.
        settings: the configuration as a tree of JSON values, for the header.
        exponent: the lattice is the multiples of 2^-exponent; default: a power of two below the smallest std.

    Raises:
        PayloadTooShortError: says how many bits are missing.
        LayerError: for a point estimate, or a std that is not positive.
        PriorError: for a prior without proper mass.
        FileError: for targets that are not labels.
    """
    setting.check()
    q = setting.posterior()
    m = q.default_exponent() if exponent is None else exponent
    if not -EXPONENT_OFFSET <= m < (1 << EXPONENT_BITS) - EXPONENT_OFFSET:
        raise FileError(f"a step of 2^{-m} is out of range; choose one between 2^-40 and 2^10")
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
    header = Header(
        settings, m, lanes_log2, len(payload), setting.inputs_digest(), _posterior_digest(q), _guard(setting, code, flat)
    )
    writer = BitWriter()
    header.put(writer)
    rest = payload[len(payload) // 4 * 4 :]
    contents = writer.to_bytes() + rest + stack.to_bytes()
    file = seal("message", contents)
    return Sent(
        content=file,
        step=2.0**-m,
        payload_bits=8 * len(payload),
        gross_weight_bits=meters["gross"],
        refund_bits=-meters["refund"],
        label_bits=meters["labels"],
        side_bits=meters["side"],
        header_bits=8 * (len(file) - len(contents)) + 8 * len(writer.to_bytes()),
        net_bits=weight_bits + data_bits + float(side.widths().sum()),
        ledger_data_bits=data_bits,
        ledger_weight_bits=weight_bits,
    )


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
    exact = all(place(weight.prior, weight.name).shape.exact for weight in setting.model.weights)
    if exact and is_exact(setting.model.network) and not setting.model.deterministic():
        return None
    tables = b"".join(table.cumulative.astype("<i8").tobytes() for table in code.tables)
    return _digest(tables + labels.astype("<i8").tobytes())


@torch.no_grad()
def _sample_ledger(setting: Setting, q: RoundedPosterior, point: Integers, m: int, labels: Tensor) -> tuple[float, float]:
    """log2 q/p of the drawn weights, and their data cost: real arithmetic, nothing of the coder's."""
    values = setting.tensors(point, m)
    w = torch.from_numpy(np.ldexp(point.astype(np.float64), -m))
    mean, std = torch.from_numpy(q.mean), torch.from_numpy(q.std)
    nats = torch.distributions.Normal(mean, std).log_prob(w).sum()
    for weight in setting.model.weights:
        nats = nats - weight.prior().log_prob(values[weight.name]).sum()
    by_posterior = {id(weight.posterior): values[weight.name] for weight in setting.model.weights}
    setting.model.eval()
    data = 0.0
    with holding(setting.model.posteriors(), lambda posterior: by_posterior[id(posterior)]):
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
        retrain: from labels to the posterior that the sender's training ends with.

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
        q = retrain(labels)
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
    got[0].payload = whiten(words) + rest
    return got[0], None
