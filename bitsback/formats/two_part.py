"""Two-part code as one file: a model file, followed by the labels coded under it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bitsback.atomic_io import check_new_directory, whole_directory, write_array, write_tensors
from bitsback.coding.ans import Integers, Stack
from bitsback.coding.combinators import Codec
from bitsback.config import Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.config.labels import as_labels
from bitsback.errors import FileError
from bitsback.formats._exact_outputs import exact_outputs
from bitsback.formats._label_code import blank, blank_targets, check_targets, targets
from bitsback.formats._size_limits import check_data, check_size
from bitsback.formats.container import BitReader, BitWriter, digest, read_file, seal, unseal
from bitsback.formats.kinds import FileKind, kind_numbered, register_kind
from bitsback.formats.model_file.block_codec import RELATIVE_ENTROPY
from bitsback.formats.model_file.grid_codec import QUANTISED
from bitsback.formats.model_file.read import LoadedModel, decode
from bitsback.formats.model_file.write import Packed, pack_experiment
from bitsback.ledger import shown_error
from bitsback.result import Result

__all__ = [
    "KIND_BITS",
    "MODELS",
    "TWO_PART",
    "ReceivedLabels",
    "TwoPart",
    "decode_two_part",
    "model_inside",
    "receive_two_part",
    "send_two_part",
]

TWO_PART = register_kind(FileKind(5, "two_part"))
MODELS = (RELATIVE_ENTROPY, QUANTISED)
"""Kinds of model files that may be inside."""

KIND_BITS, CHECK_BITS = 4, 16
"""Bits of the number of the inner kind, and of the digest of the labels."""


@dataclass(frozen=True)
class TwoPart(Result):
    """File with a network and the training labels, or a text, and its bits.

    Attributes:
        content: the whole file.
        packed: the model file inside; alone it is ``packed.content``.
        label_bits: bits of the stream of the labels.
        of: name of what stands behind the network: labels, or text.
    """

    content: bytes = field(repr=False)
    packed: Packed
    label_bits: int
    of: str = "labels"

    @property
    def total_bits(self) -> int:
        """Return the bits of the whole file."""
        return 8 * len(self.content)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers without the file, for JSON."""
        return {
            "file_bytes": len(self.content),
            "total_bits": self.total_bits,
            "model_bits": 8 * len(self.packed.content),
            "label_bits": self.total_bits - 8 * len(self.packed.content),
            "codec": self.packed.codec,
            "ledger_net_bits": self.packed.net_bits,
            f"test_{self.packed.error_name}": self.packed.test_error,
        }

    def told(self, out: Path | None = None) -> str:
        """Return the text for the user, with the path of the file if given."""
        where = f" in {out}" if out is not None else ""
        return f"{len(self.content):,} bytes{where}: {self._sizes()}"

    def __str__(self) -> str:
        return self.told()

    def _sizes(self) -> str:
        model_bits, packed = 8 * len(self.packed.content), self.packed
        sizes = f"{model_bits:,} bits of network ({packed.codec}), {self.total_bits - model_bits:,} of {self.of}"
        said = f"{sizes}; the posterior's ledger: {packed.net_bits:,.0f}"
        if packed.test_error is None:
            return said
        return f"{said}\nTest error of the decoded network: {shown_error(packed.error_name, packed.test_error)}"


def send_two_part(experiment: Experiment, settings: PackSettings | None = None, *, progress: bool = True) -> TwoPart:
    """Write the model file of a trained experiment, followed by its training labels coded under the decoded weights.

    Args:
        experiment: trained experiment; its model ends with the weights of the file.
        settings: settings of the model file; default: the configuration's section ``pack``.
        progress: show progress bars.

    Returns:
        the file and its sizes in bits.

    Raises:
        FileError: if the targets are neither labels nor counts, the receiver cannot know which of them are coded, or
            activations are too large for exact arithmetic; otherwise as
            :func:`bitsback.formats.model_file.write.pack_experiment`.
    """
    check_targets(experiment)
    packed = pack_experiment(experiment, settings, progress=progress)
    kind, model = unseal(packed.content, "the model file")
    if kind not in MODELS:
        raise FileError(f"labels stand behind networks of the codecs quantised and relative_entropy only, not behind {kind}")
    train = experiment.dataset.train.in_memory()
    values = train.targets.cpu().numpy().astype(np.int64).ravel()
    stack = Stack.empty(1)
    _label_code(packed.loaded, train.inputs, blank(train.targets)).push(stack, values)
    stream = stack.to_bytes()
    writer = BitWriter()
    writer.put(kind.number, KIND_BITS)
    writer.put_count(len(model))
    writer.put(_check(values), CHECK_BITS)
    content = seal(TWO_PART, writer.to_bytes() + model + stream)
    return TwoPart(content, packed, 8 * len(stream))


@dataclass(frozen=True)
class ReceivedLabels:
    """Contents of a two-part file.

    Attributes:
        loaded: the network.
        labels: labels of the receiver's inputs, (n, ...), -100 where they are not coded; several yes-or-no answers for each
            input are flattened.
    """

    loaded: LoadedModel
    labels: Integers = field(repr=False)


def decode_two_part(content: bytes, what: str, locations: Sequence[str] = ()) -> ReceivedLabels:
    """Decode network and labels; the inputs are the receiver's own.

    Args:
        content: the whole file.
        what: name of the file in error messages.
        locations: places on this machine, such as ``data.root=DIR`` for the inputs.

    Returns:
        network and labels.

    Raises:
        FileError: if the bytes are not an intact two-part file, or the inputs are not the sender's.
    """
    model, check, stream = _split(content, what)
    loaded = decode(model, what, locations)
    if "data" not in loaded.tree:
        raise FileError(f"{what} does not say which inputs its labels belong to; it was made from data in memory")
    if "data" not in loaded.config.model_fields_set:  # from_tree left it out: its paths are unknown
        raise FileError(f"{what} needs the sender's inputs; say where they are (--data.root=..., --data.path=...)")
    check_data(loaded.config, what, len(content))
    data = loaded.config.data.load_inputs()
    if tuple(data.train.inputs.shape[1:]) != tuple(loaded.tree["inputs"]):
        raise FileError(f"the inputs here have another shape than the sender's; give the same ones ({what})")
    inputs, classes = data.train.inputs, getattr(loaded.likelihood, "classes", 1)
    whole, shape = not inputs.is_floating_point(), loaded.tree.get("targets", [])
    check_size(
        loaded.config,
        inputs.shape[1:],
        classes,
        whole=whole,
        file_bytes=len(content),
        examples=len(inputs),
        data_numbers=inputs.numel(),
        symbols=math.prod(shape),
    )
    # a file does not say how many yes-or-no answers an input has: there are as many as outputs
    known = None if loaded.likelihood.kind == "bernoulli" and not shape else blank_targets(data.train, shape)
    labels = _labels(loaded, data.train.in_memory().inputs, known, stream)
    if labels is None or _check(labels) != check:
        raise FileError("the labels do not come back: these inputs are not the sender's, or this machine computes otherwise; "
                        "say where the sender's are (--data.root=..., --data.path=...)")  # fmt: skip
    return ReceivedLabels(loaded, labels)


def receive_two_part(path: Path, directory: Path, locations: Sequence[str] = ()) -> ReceivedLabels:
    """Decode the file in ``path`` and write ``labels.npy`` and ``model.safetensors``.

    Args:
        path: a two-part file.
        directory: a new directory.
        locations: places on this machine, such as ``data.root=DIR`` for the inputs.

    Returns:
        network and labels.

    Raises:
        FileError: as :func:`decode_two_part`.
    """
    check_new_directory(directory)
    received = decode_two_part(read_file(path), str(path), locations)
    with whole_directory(directory) as staging:
        write_array(staging / "labels.npy", as_labels(received.labels, received.loaded.config.likelihood))
        write_tensors(staging / "model.safetensors", received.loaded.tensors(), {})
    return received


def model_inside(content: bytes, what: str) -> bytes:
    """Return the model file inside a two-part file.

    Args:
        content: the whole file.
        what: name of the file in error messages.

    Returns:
        the bytes of a model file.

    Raises:
        FileError: if the bytes are not an intact two-part file.
    """
    return _split(content, what)[0]


def _split(content: bytes, what: str) -> tuple[bytes, int, bytes]:
    """Return the model file, the digest of the labels, and their stream."""
    kind, contents = unseal(content, what)
    if kind != TWO_PART:
        raise FileError(
            f"{what} is a {kind} file and holds no labels behind a network; use `bitsback inspect` to see what it is"
        )
    reader = BitReader(contents)
    number, length, check = reader.take(KIND_BITS), reader.take_count(), reader.take(CHECK_BITS)
    body = reader.rest()
    inside = kind_numbered(number)
    if inside not in MODELS or length > len(body):
        raise FileError(f"{what} does not say which network is in it; it is damaged")
    return seal(inside, body[:length]), check, body[length:]


def _labels(loaded: LoadedModel, inputs: Any, blank: Tensor | None, stream: bytes) -> Integers | None:
    """Return the labels in a stream; None if the stream does not end with the last label."""
    code, stack = _label_code(loaded, inputs, blank), Stack.from_bytes(stream, 1)
    try:
        labels: Integers = code.pop(stack)
    except FileError:  # the stream is too short
        return None
    return None if stack.bits else labels if blank is None else labels.reshape(blank.shape)


def _label_code(loaded: LoadedModel, inputs: Any, blank: Tensor | None) -> Codec:
    weights = {weight.name: weight.posterior.mean.detach() for weight in loaded.model.weights}
    outputs = exact_outputs(loaded.model.double(), weights, inputs.cpu())
    loaded.model.float()
    return targets(loaded.likelihood, outputs, blank)


def _check(labels: Integers) -> int:
    return digest(labels.astype("<i8").tobytes()) & 0xFFFF
