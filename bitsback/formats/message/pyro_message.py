"""Bits-back messages of Pyro programs: labels and latents around a payload, for two sides that hold program, fit and inputs.

The message is that of :mod:`bitsback.formats.message.write`, with the latents of the program in the place of weights: the
payload selects the latents under the guide, the labels are coded given the latents, and the latents under the program's priors.
The receiver decodes latents and labels, fits the guide to them as the sender did, and gets the payload back. The program is no
part of the bytes, so the message is no file of FORMAT.md::

    exponent, lanes | lengths | digests of inputs, guide, tables and labels | last bytes of the payload | stack | CRC-32
"""

import binascii
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent

from bitsback.coding.ans import MOST_LANES_LOG2, Integers, Stack, default_lanes_log2
from bitsback.coding.categorical import FRACTION_BITS, labels
from bitsback.coding.combinators import Codec, bits_back, metered
from bitsback.coding.lattice import PriorCode, RoundedPosterior, under_posterior, under_prior
from bitsback.coding.philox import whiten
from bitsback.errors import DataError, FileError
from bitsback.formats.container import DIGEST_BITS, BitReader, BitWriter, digest
from bitsback.formats.message.header import EXPONENT_BITS, EXPONENT_OFFSET
from bitsback.formats.message.shared import emptied, filled, posterior_digest
from bitsback.formats.message.write import PayloadTooShortError, check_exponent
from bitsback.formats.repeatable import RefundLostError
from bitsback.interop.pyro import Unconditional, gaussian_latents, unconditional
from bitsback.priors import WeightInfo, settings_of_distribution
from bitsback.priors.exact_densities import density_of
from bitsback.result import Result, text_table
from bitsback.torch_state import seeded

__all__ = ["ReceivedProgram", "SentProgram", "receive_program", "send_program"]

Fit = Callable[..., Callable[..., Any]]
"""From the program's arguments, data last, to a trained guide."""

LARGEST_LOGIT = 2.0**20
"""Bound of logits in nats, beyond which a label has no probability."""

CHECK_BYTES = 4


@dataclass(frozen=True)
class SentProgram(Result):
    """A message and its bits.

    Attributes:
        content: the message.
        step: grid step of the latents.
        payload_bits: size of the payload.
        gross_bits: bits that the latents take under their priors.
        refund_bits: bits of the payload that drew the latents, and that the receiver recovers.
        label_bits: bits of the labels given the latents.
    """

    content: bytes
    step: float
    payload_bits: int
    gross_bits: float
    refund_bits: float
    label_bits: float

    @property
    def net_bits(self) -> float:
        """Return the bits of labels and latents, less the refund."""
        return self.label_bits + self.gross_bits - self.refund_bits

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers without the message."""
        names = ("step", "payload_bits", "gross_bits", "refund_bits", "label_bits", "net_bits")
        return {"message_bits": 8 * len(self.content), **{name: getattr(self, name) for name in names}}

    def __str__(self) -> str:
        rows = [["latents, gross", f"{self.gross_bits:,.1f}"], ["refund", f"{-self.refund_bits:,.1f}"],
                ["labels", f"{self.label_bits:,.1f}"], ["net", f"{self.net_bits:,.1f}"],
                ["message less payload", f"{8 * len(self.content) - self.payload_bits:,.1f}"]]  # fmt: skip
        return text_table(["bits", "message"], rows)


@dataclass(frozen=True)
class ReceivedProgram:
    """Contents of a message.

    Attributes:
        labels: the data, in their shape and type.
        latents: the drawn latents by name.
        payload: the payload; None if the guide could not be fitted again.
    """

    labels: Tensor
    latents: dict[str, Tensor]
    payload: bytes | None


@dataclass(frozen=True)
class _Sides:
    """Program, fit and inputs, which both sides hold."""

    model: Callable[..., Any]
    fit: Fit
    inputs: tuple[Any, ...]
    known: Unconditional

    @classmethod
    def of(cls, model: Callable[..., Any], fit: Fit, inputs: tuple[Any, ...]) -> "_Sides":
        known = unconditional(model, *inputs)
        return cls(model, fit, inputs, known)

    def sizes(self) -> list[int]:
        return [_shape(prior).numel() for prior in self.known.priors.values()]

    def prior_code(self, exponent: int) -> PriorCode:
        shapes = [_shape(prior) for prior in self.known.priors.values()]
        priors = [
            settings_of_distribution(prior).build(WeightInfo(name, shape))
            for (name, prior), shape in zip(self.known.priors.items(), shapes, strict=True)
        ]
        densities = [density_of(prior, name) for prior, name in zip(priors, self.known.priors, strict=True)]
        return PriorCode.build(densities, shapes, exponent)

    def latents(self, point: Integers, exponent: int) -> dict[str, Tensor]:
        """Return grid points as the program's latents, in their shapes and types."""
        parts = torch.from_numpy(np.ldexp(point.astype(np.float64), -exponent)).split(self.sizes())
        pairs = zip(self.known.priors.items(), parts, strict=True)
        return {name: part.reshape(_shape(prior)).to(prior.mean.dtype) for (name, prior), part in pairs}

    @torch.no_grad()
    def label_code(self, point: Integers, exponent: int) -> Codec:
        """Return the codec of the labels, flattened, given latents."""
        given = poutine.condition(self.model, data=self.latents(point, exponent))
        with seeded(0, torch.device("cpu")):
            trace: Any = poutine.trace(given).get_trace(*self.inputs, None)
        site = trace.nodes[self.known.target]
        fn = site["fn"]
        while isinstance(fn, Independent):
            fn = fn.base_dist
        if not isinstance(fn, Bernoulli | Categorical) or site["mask"] is not None or float(site["scale"]) != 1:
            raise FileError(
                f"a message codes labels of whole data, and '{self.known.target}' is a {type(fn).__name__}, masked, scaled, or "
                "in a subsampled plate; observe a Bernoulli or a Categorical of all examples"
            )
        logits = fn.logits.double().expand(*fn.batch_shape, *fn.logits.shape[fn.logits.ndim - isinstance(fn, Categorical) :])
        if not bool((logits.abs() < LARGEST_LOGIT).all()):
            raise FileError(f"'{self.known.target}' has logits that are not finite or beyond 2^20; scale the inputs down")
        whole = torch.ldexp(logits, torch.tensor(FRACTION_BITS)).round().long()
        if isinstance(fn, Categorical):
            return labels(whole.reshape(-1, whole.shape[-1]).numpy())
        flat = whole.flatten().numpy()
        return labels(np.stack([np.zeros_like(flat), flat], axis=1))

    def posterior(self, data: Tensor) -> RoundedPosterior:
        """Fit the guide to the data, and return the Gaussians of its latents, rounded, in the program's order."""
        with _apart():
            guide = self.fit(*self.inputs, data)
            found = {latent.name: latent for latent in gaussian_latents(self.model, guide, *self.inputs, data)}
        if found.keys() != self.known.priors.keys():
            odd = sorted(found.keys() ^ self.known.priors.keys())
            raise FileError(
                f"the guide and the program without data do not draw the same latents ('{odd[0]}'); a message needs both alike"
            )
        parts = [[getattr(found[name], part).double().flatten() for name in self.known.priors] for part in ("mean", "std")]
        return RoundedPosterior.of(*(torch.cat(part).numpy() for part in parts))

    def data(self, flat: Integers) -> Tensor:
        """Return labels in the shape and type of the program's data."""
        return torch.from_numpy(flat).reshape(self.known.shape).to(self.known.dtype)

    def inputs_digest(self) -> int:
        """Return 32 bits of SHA-256 over the tensors among the inputs; other inputs are not compared."""
        parts = [part.detach().cpu().contiguous() for part in self.inputs if isinstance(part, Tensor)]
        return digest(b"".join(str((part.dtype, tuple(part.shape))).encode() + part.numpy().tobytes() for part in parts))


def _whole(data: Tensor, known: Unconditional) -> Tensor:
    """Return data as whole numbers, (n, ...); raises DataError for others, and for those beyond the support of the target."""
    values = data.detach().cpu()
    whole = values.long()
    odd = ~torch.isfinite(values) | (whole.to(values.dtype) != values)
    if not bool(odd.any()):
        odd = ~known.support.check(whole)
        odd = odd.reshape(*odd.shape, *[1] * (whole.ndim - odd.ndim)).expand(whole.shape)
    if bool(odd.any()):
        raise DataError(
            f"'{known.target}' is {values[odd][0].item():g} at one place or more, which is no label of the program "
            f"({known.support}); give whole labels from 0 on (binarise grey values, replace -1 and missing labels)"
        )
    return whole


def _shape(prior: Any) -> torch.Size:
    return torch.Size(prior.batch_shape + prior.event_shape)


@contextmanager
def _apart() -> Iterator[None]:
    """Let both sides fit with the same random numbers and an empty store of parameters, and restore the caller's."""
    with pyro.get_param_store().scope(), seeded(0, torch.device("cpu")):
        yield


def send_program(
    model: Callable[..., Any], fit: Fit, *inputs: Any, data: Tensor, payload: bytes, exponent: int | None = None
) -> SentProgram:
    """Send labels and latents of a Pyro program as a bits-back message around a payload.

    ``model(*inputs, data)`` observes the data; ``model(*inputs, None)`` draws them. Its latents are real numbers with fixed
    priors, its data one Bernoulli or Categorical site. ``fit(*inputs, data)`` trains a guide of independent Gaussians and
    returns it; it runs with seed 0 and an empty parameter store on both sides.

    Args:
        model: Pyro program.
        fit: trains the guide.
        inputs: arguments of both before the data.
        data: labels, (n, ...).
        payload: any bytes, enough to draw the latents.
        exponent: m of the grid step 2^-m of the latents; default: a power of two below the smallest std.

    Returns:
        The message and its bits.

    Raises:
        PayloadTooShortError: if the payload is too short; it states the number of missing bits.
        LedgerError: for a program or a guide that a message cannot carry.
        DataError: for a payload that is not bytes, data of another shape than the program draws, and data that are no
            labels of its target.
        FileError: for a target that is no Bernoulli or Categorical of whole data, or a grid step out of range.
    """
    if not isinstance(payload, bytes | bytearray):
        raise DataError(f"a payload is bytes, got {type(payload).__name__}; give bytes, of a text: text.encode()")
    sides = _Sides.of(model, fit, inputs)
    if data.shape != sides.known.shape:
        raise DataError(
            f"the program draws data of shape {tuple(sides.known.shape)}, got {tuple(data.shape)}; give them in that shape"
        )
    flat = _whole(data, sides.known).numpy().ravel()
    q = sides.posterior(sides.data(flat))
    m = q.default_exponent() if exponent is None else exponent
    check_exponent(m)
    code = sides.prior_code(m)
    lanes_log2 = default_lanes_log2(len(q.std_level), 0.0)
    stack = filled(whiten(payload), 1 << lanes_log2)
    meters: dict[str, float] = {}

    def label_code(point: Integers) -> Codec:
        if stack.borrowed_bits:  # all latents are drawn, nothing is pushed: all missing bits are known
            raise PayloadTooShortError(stack.borrowed_bits)
        return metered(sides.label_code(point, m), meters, "labels")

    message = bits_back(
        metered(under_prior(code), meters, "gross"), label_code, lambda _: metered(under_posterior(q, m), meters, "refund")
    )
    message.push(stack, flat)
    writer = BitWriter()
    writer.put(m + EXPONENT_OFFSET, EXPONENT_BITS)
    writer.put(lanes_log2, 4)
    writer.put_count(len(payload))
    for each in (sides.inputs_digest(), posterior_digest(q), _guard(code, flat)):
        writer.put(each, DIGEST_BITS)
    body = writer.to_bytes() + payload[len(payload) // 4 * 4 :] + stack.to_bytes()
    content = body + binascii.crc32(body).to_bytes(CHECK_BYTES, "little")
    return SentProgram(content, 2.0**-m, 8 * len(payload), meters["gross"], -meters["refund"], meters["labels"])


def receive_program(
    content: bytes, model: Callable[..., Any], fit: Fit, *inputs: Any
) -> tuple[ReceivedProgram, RefundLostError | None]:
    """Decode a message of a Pyro program: its latents, its labels, and the payload.

    Args:
        content: the message.
        model: the sender's program.
        fit: the sender's way to train the guide.
        inputs: the sender's inputs.

    Returns:
        The contents, and the error that prevented recovering the payload, or None.

    Raises:
        FileError: if the message is damaged, the inputs differ from the sender's, or the labels cannot be decoded here.
        RefundLostError: not to the caller: it is the second result, so that labels and latents are kept without the payload.
    """
    if (
        len(content) <= CHECK_BYTES
        or binascii.crc32(content[:-CHECK_BYTES]).to_bytes(CHECK_BYTES, "little") != content[-CHECK_BYTES:]
    ):
        raise FileError("the message is damaged: its checksum does not fit; copy it again")
    sides = _Sides.of(model, fit, inputs)
    reader = BitReader(content[:-CHECK_BYTES])
    m, lanes_log2, payload_bytes = reader.take(EXPONENT_BITS) - EXPONENT_OFFSET, reader.take(4), reader.take_count()
    inputs_digest, guide_digest, guard = (reader.take(DIGEST_BITS) for _ in range(3))
    if lanes_log2 > MOST_LANES_LOG2:
        raise FileError(f"the message claims 2^{lanes_log2} lanes, at most 2^{MOST_LANES_LOG2} are allowed; it is damaged")
    if sides.inputs_digest() != inputs_digest:
        raise FileError("the inputs here are not those of the sender: their digest differs; give the sender's")
    rest_bytes, body = payload_bytes % 4, reader.rest()
    rest, stack = body[:rest_bytes], Stack.from_bytes(body[rest_bytes:], 1 << lanes_log2)
    code = sides.prior_code(m)
    point = under_prior(code).pop(stack)
    flat = sides.label_code(point, m).pop(stack)
    if _guard(code, flat) != guard:
        raise FileError(
            "the labels cannot be decoded here: the program or its priors compute something else than on the sender's machine"
        )
    got = ReceivedProgram(sides.data(flat), sides.latents(point, m), None)
    try:
        q = sides.posterior(got.labels)
        if posterior_digest(q) != guide_digest:
            raise RefundLostError("labels and latents were recovered, the payload was not: the fit here does not end "
                                  "at the sender's "
                                  "guide (another fit, processor or version of torch)")  # fmt: skip
        under_posterior(q, m).push(stack, point)
        words = emptied(stack)
        if len(words) + rest_bytes != payload_bytes:
            raise RefundLostError("the payload does not have the length that the message states; the message is damaged")
    except RefundLostError as error:
        return got, error
    return ReceivedProgram(got.labels, got.latents, whiten(words) + rest), None


def _guard(code: PriorCode, flat: Sequence[int] | Integers) -> int:
    """Return 32 bits of the digest of the priors' tables and the labels."""
    tables = b"".join(table.cumulative.astype("<i8").tobytes() for table in code.tables)
    return digest(tables + np.asarray(flat).astype("<i8").tobytes())
