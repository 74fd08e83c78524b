"""Model and text in one file: a model file, and the tokens of a text coded under its network, all windows in lock-step::

windows     1: T h e .        step 0    1    2    3         the outputs of step t need the tokens of the steps before
            2: q u i c          [ T ] [ h ] [ e ] [ . ]
            3: k . b r          [ q ] [ u ] [ i ] [ c ]     pushed last step first, popped first step first
            4: o w n            [ k ] [ . ] [ b ] [ r ]
                                [ o ] [ w ] [ n ]
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tqdm import tqdm

from bitsback.atomic_io import check_new_directory, whole_directory, write_bytes, write_tensors
from bitsback.coding.ans import Integers, Stack
from bitsback.coding.categorical import LABEL_TOTAL_BITS, frequencies, symbols
from bitsback.config import Config, Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.data.mask import NOT_CODED
from bitsback.data.settings import TextSettings
from bitsback.data.text_windows import are_labels, text_bytes
from bitsback.errors import FileError, brief
from bitsback.formats._size_limits import check_size, is_shape
from bitsback.formats.container import BitReader, BitWriter, digest, read_file, seal, unseal
from bitsback.formats.kinds import FileKind, kind_numbered, register_kind
from bitsback.formats.model_file.read import LoadedModel, decode
from bitsback.formats.model_file.write import pack_experiment
from bitsback.formats.text._steps import steps
from bitsback.formats.two_part import KIND_BITS, MODELS, TwoPart

__all__ = ["TEXT", "ReceivedText", "check_whole", "decode_text", "model_of_text", "receive_text", "send_text"]

TEXT = register_kind(FileKind(7, "text"))
LANES_BITS, BLOCK_BITS, CHECK_BITS = 4, 16, 32
"""Bits of log2 of the lanes, and of the digests of a block's outputs and of the text."""

BLOCKS = 32
"""Parts of the steps, each with a digest of its outputs, so that a machine that computes otherwise is noticed early."""

MOST_LANES_LOG2, TOKENS_PER_LANE = 6, 1024


def check_whole(config: Config) -> None:
    """Raise FileError unless the training windows are the whole text.

    Args:
        config: with data of kind ``text``.

    Raises:
        FileError: if a part of it is left out.
    """
    data = config.data
    if (isinstance(data, TextSettings) and data.test_fraction) or data.limit is not None or data.part is not None:
        raise FileError(
            "the file of a text holds all of it; train with data.test_fraction=0, and without data.limit and data.part"
        )


def send_text(experiment: Experiment, settings: PackSettings | None = None, *, progress: bool = True) -> TwoPart:
    """Write the model file of an experiment on a text, followed by the text, coded under the decoded weights.

    Args:
        experiment: trained experiment on data of kind ``text``; its model ends with the weights of the file.
        settings: settings of the model file; default: the configuration's section ``pack``.
        progress: show progress bars.

    Returns:
        the file and its sizes in bits.

    Raises:
        FileError: if the training windows are not the whole text; otherwise as
            :func:`bitsback.formats.model_file.write.pack_experiment`.
    """
    check_whole(experiment.config)
    packed = pack_experiment(experiment, settings, progress=progress)
    kind, model = unseal(packed.content, "the model file")
    if kind not in MODELS:
        raise FileError(f"a text stands behind networks of the codecs quantised and relative_entropy only, not behind {kind}")
    targets = experiment.dataset.train.targets.cpu().numpy().astype(np.int64)
    numbers = targets[targets != NOT_CODED]
    writing = _Writing(targets)
    _walk(packed.loaded, targets.shape[1], len(numbers), writing, progress=progress)
    lanes_log2 = min(MOST_LANES_LOG2, (1 + len(numbers) // TOKENS_PER_LANE).bit_length() - 1)
    stream = writing.stream(1 << lanes_log2)
    writer = BitWriter()
    writer.put(kind.number, KIND_BITS)
    writer.put_count(len(model))
    writer.put_count(len(numbers))
    writer.put(lanes_log2, LANES_BITS)
    for told in writing.digests:
        writer.put(told, BLOCK_BITS)
    writer.put(_check(numbers), CHECK_BITS)
    return TwoPart(seal(TEXT, writer.to_bytes() + model + stream), packed, 8 * len(stream), "text")


@dataclass(frozen=True)
class ReceivedText:
    """Contents of a text file.

    Attributes:
        loaded: the network.
        content: the text, as the bytes of its file.
        tokens: number of its tokens.
    """

    loaded: LoadedModel
    content: bytes = field(repr=False)
    tokens: int


def decode_text(content: bytes, what: str, locations: Sequence[str] = (), *, progress: bool = True) -> ReceivedText:
    """Decode network and text.

    Args:
        content: the whole file.
        what: name of the file in error messages.
        locations: places on this machine, such as ``network.factory=package.module:function``.
        progress: show a progress bar.

    Returns:
        network and text.

    Raises:
        FileError: if the bytes are not an intact text file, or this machine computes otherwise than the sender's.
    """
    parts = _Parts.of(content, what)
    loaded = decode(parts.model, what, locations)
    shape, labels = loaded.tree["inputs"], getattr(loaded.likelihood, "labels", None) or ()
    tokens = loaded.tree["data"].get("tokens") if isinstance(loaded.tree.get("data"), dict) else None
    if not isinstance(tokens, str) or not are_labels(labels, tokens) or not is_shape(shape) or len(shape) != 1:
        raise FileError(f"{what} does not say how its text is made of tokens; it is damaged")
    (context,) = shape
    streams = -(-parts.tokens // context)
    check_size(loaded.config, shape, len(labels), whole=True, file_bytes=len(content), examples=streams, symbols=context)
    reading = _Reading(Stack.from_bytes(parts.stream, parts.lanes), parts.digests, (streams, context))
    try:
        _walk(loaded, context, parts.tokens, reading, progress=progress)
    except (IndexError, RuntimeError) as error:  # an embedding with fewer entries than there are tokens, and the like
        raise FileError(
            f"the network in {what} does not run on the tokens of its text ({brief(error)}); it is damaged"
        ) from error
    numbers = reading.targets[reading.targets != NOT_CODED]
    if reading.stack.bits or _check(numbers) != parts.check:
        raise FileError(f"the text in {what} does not come back; the file is damaged")
    return ReceivedText(loaded, text_bytes(numbers, labels, tokens), parts.tokens)


def receive_text(path: Path, directory: Path, locations: Sequence[str] = (), *, progress: bool = True) -> ReceivedText:
    """Decode the file in ``path`` and write ``text.txt`` and ``model.safetensors``.

    Args:
        path: a text file of :func:`send_text`.
        directory: a new directory.
        locations: places on this machine, such as ``network.factory=package.module:function``.
        progress: show a progress bar.

    Returns:
        network and text.

    Raises:
        FileError: as :func:`decode_text`.
    """
    check_new_directory(directory)
    received = decode_text(read_file(path), str(path), locations, progress=progress)
    with whole_directory(directory) as staging:
        write_bytes(staging / "text.txt", received.content)
        write_tensors(staging / "model.safetensors", received.loaded.tensors(), {})
    return received


def model_of_text(content: bytes, what: str) -> bytes:
    """Return the model file inside the file of a text.

    Args:
        content: the whole file.
        what: name of the file in error messages.

    Returns:
        the bytes of a model file.

    Raises:
        FileError: if the bytes are not an intact text file.
    """
    return _Parts.of(content, what).model


@dataclass(frozen=True)
class _Parts:
    """Parts of a file.

    Attributes:
        model: a model file.
        tokens: number of tokens.
        lanes: of the stack.
        digests: of the outputs of every block.
        check: digest of the numbers of the tokens.
        stream: of the text.
    """

    model: bytes
    tokens: int
    lanes: int
    digests: list[int]
    check: int
    stream: bytes

    @classmethod
    def of(cls, content: bytes, what: str) -> "_Parts":
        kind, contents = unseal(content, what)
        if kind != TEXT:
            raise FileError(f"{what} is a {kind} file and holds no text; use `bitsback inspect` to see what it is")
        reader = BitReader(contents)
        inside, length, tokens, lanes_log2 = (
            kind_numbered(reader.take(KIND_BITS)), reader.take_count(), reader.take_count(), reader.take(LANES_BITS)
        )  # fmt: skip
        digests = [reader.take(BLOCK_BITS) for _ in range(BLOCKS)]
        check, body = reader.take(CHECK_BITS), reader.rest()
        if inside not in MODELS or length > len(body) or not tokens or lanes_log2 > MOST_LANES_LOG2:
            raise FileError(f"{what} does not say which network and how long a text is in it; it is damaged")
        return cls(seal(inside, body[:length]), tokens, 1 << lanes_log2, digests, check, body[length:])


class _Coder(Protocol):
    """Sender or receiver of the tokens of each step."""

    def tokens(self, step: int, outputs: Integers) -> Integers:
        """Return the tokens of a step, (k,), given the outputs for them, (k, tokens)."""

    def end_block(self, block: int, digest: int) -> None:
        """Take note of the digest of all outputs of a block."""


class _Writing:
    """Sender of the tokens.

    Args:
        targets: (streams, context), -100 behind the last token.

    Attributes:
        digests: of the blocks so far.
    """

    def __init__(self, targets: Integers) -> None:
        self._targets, self._slots, self.digests = targets, list[tuple[Integers, Integers]](), list[int]()

    def tokens(self, step: int, outputs: Integers) -> Integers:
        numbers = self._targets[: len(outputs), step]
        counts, row = frequencies(outputs), np.arange(len(outputs))
        widths = counts[row, numbers]
        self._slots.append((counts.cumsum(axis=1)[row, numbers] - widths, widths))
        return numbers

    def end_block(self, block: int, digest: int) -> None:
        self.digests.append(digest)

    def stream(self, lanes: int) -> bytes:
        """Return the bytes of the text: what a receiver takes first is pushed last."""
        stack = Stack.empty(lanes)
        for starts, widths in reversed(self._slots):
            stack.push(starts, widths, LABEL_TOTAL_BITS)
        return stack.to_bytes()


class _Reading:
    """Receiver of the tokens.

    Args:
        stack: of the text.
        told: digests of the sender's blocks.
        shape: streams, context.

    Attributes:
        targets: tokens so far, -100 elsewhere, (streams, context).
    """

    def __init__(self, stack: Stack, told: Sequence[int], shape: tuple[int, int]) -> None:
        self.stack, self._told, self.targets = stack, told, np.full(shape, NOT_CODED, dtype=np.int64)

    def tokens(self, step: int, outputs: Integers) -> Integers:
        numbers = symbols(frequencies(outputs)).pop(self.stack)
        self.targets[: len(outputs), step] = numbers
        return numbers

    def end_block(self, block: int, digest: int) -> None:
        if digest != self._told[block]:
            raise FileError(
                f"in part {block + 1} of {BLOCKS} of the text this machine computes other outputs than the sender's (another "
                "processor or torch version, and a network whose arithmetic is not exact); decode it on a machine like the "
                "sender's, or let the sender train network.kind=lstm, which is exact everywhere"
            )


def _walk(loaded: LoadedModel, context: int, count: int, coder: _Coder, *, progress: bool) -> None:
    """Take the steps through ``count`` tokens, in windows of ``context``; sender and receiver take the same ones."""
    streams = -(-count // context)
    in_last = count - (streams - 1) * context
    edges = [context * block // BLOCKS for block in range(BLOCKS + 1)]
    bar = tqdm(total=count, desc="text", unit="token", unit_scale=True, leave=False, delay=2.0, disable=not progress)
    with bar, steps(loaded, streams, context) as step:
        known = torch.zeros(streams, dtype=torch.int64)
        for block in range(BLOCKS):
            said = hashlib.sha256()
            for number in range(edges[block], edges[block + 1]):
                outputs = step(known).numpy()
                said.update(np.ascontiguousarray(outputs, dtype="<i8").data)
                coded = streams if number < in_last else streams - 1
                known = torch.zeros(streams, dtype=torch.int64)
                known[:coded] = torch.from_numpy(coder.tokens(number, outputs[:coded]))
                bar.update(coded)
            coder.end_block(block, int.from_bytes(said.digest()[: BLOCK_BITS // 8], "little"))


def _check(numbers: Integers) -> int:
    return digest(numbers.astype("<i8").tobytes())
