"""Read bits-back messages: decode network and labels, repeat the training, and recover the payload."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsback import limits
from bitsback.atomic_io import check_new_directory, whole_directory, write_array, write_bytes, write_tensors
from bitsback.coding.ans import Integers, Stack
from bitsback.coding.combinators import Codec, bits_back, raw_bits
from bitsback.coding.lattice import RoundedPosterior, under_posterior, under_prior
from bitsback.coding.philox import whiten
from bitsback.config import Experiment
from bitsback.config.labels import as_labels
from bitsback.errors import BitsbackError, FileError
from bitsback.formats._label_code import blank_targets
from bitsback.formats._size_limits import check_data, check_size, check_steps, is_shape
from bitsback.formats._training_digest import digest_steps
from bitsback.formats.config_tree import from_tree
from bitsback.formats.container import BitReader, read_file, unseal
from bitsback.formats.message.header import FIRST_MESSAGE, MESSAGE, Header
from bitsback.formats.message.shared import SharedContext, emptied, guard_of, posterior_digest
from bitsback.formats.repeatable import Checking, RefundLostError, check_alone, steps_of
from bitsback.formats.side_information import SideInformation
from bitsback.training import LedgerSettings

__all__ = ["Received", "receive", "receive_file"]


@dataclass
class Received:
    """Contents of a message.

    Attributes:
        labels: (n, ...), flattened; -100 where a target is not coded.
        weights: weight tensors by name.
        side: learned numbers by name.
        payload: recovered payload; None as long as the posterior has not been repeated.
    """

    labels: Integers
    weights: dict[str, Tensor]
    side: list[tuple[str, Tensor]] = field(default_factory=list)
    payload: bytes | None = None


def receive(
    contents: bytes, header: Header, reader: BitReader, shared: SharedContext, retrain: Callable[[Integers], RoundedPosterior]
) -> tuple[Received, RefundLostError | None]:
    """Decode weights, labels and, if the posterior can be repeated, the payload.

    Args:
        contents: second result of :func:`bitsback.formats.container.unseal`.
        header: result of :meth:`Header.take`.
        reader: reader of ``contents``, positioned behind the header.
        shared: untrained model of the header's configuration, and the inputs.
        retrain: from labels to the posterior at the end of the sender's training; may raise RefundLostError.

    Returns:
        the contents, and the error that prevented recovering the payload, or None.

    Raises:
        FileError: if the inputs differ from the sender's or the message is damaged.
        RefundLostError: not to the caller: it is the second result, so that labels and network are kept without the payload.
    """
    if shared.inputs_digest() != header.inputs_digest:
        raise FileError(
            "the inputs here are not those of the sender: their digest differs; say where the right ones are "
            "(--data.root=..., --data.path=...)"
        )
    rest_bytes = header.payload_bytes % 4
    body = reader.rest()
    rest, stack = body[:rest_bytes], Stack.from_bytes(body[rest_bytes:], 1 << header.lanes_log2)
    side = SideInformation.of(shared.model, shared.likelihood)
    side.assign(raw_bits(side.bits_each()).pop(stack))
    code, m = shared.prior_code(header.exponent), header.exponent
    got: list[Received] = []

    def label_code(point: Integers) -> Codec:
        weights = shared.tensors(point, m)
        got.append(Received(np.zeros(0, dtype=np.int64), weights, [(name, t.detach().clone()) for name, t, _ in side.slots]))
        return shared.label_code(point, m)

    def posterior(labels: Integers) -> Codec:
        got[0].labels = labels
        if header.guard_digest is not None and guard_of(shared, code, labels) != header.guard_digest:
            raise FileError(
                "the labels cannot be decoded here: this network or prior uses functions that differ between machines; "
                "receive it on a machine like the sender's"
            )
        try:
            q = retrain(labels)
        except RefundLostError:
            raise
        except BitsbackError as error:
            raise RefundLostError(
                f"labels and network were recovered, the payload was not: training fails here: {error}"
            ) from error
        if posterior_digest(q) != header.posterior_digest:
            raise RefundLostError(
                "labels and network were recovered, the payload was not: training here does not end at the sender's posterior "
                "(another processor, torch version or thread count); receive it on a machine like the sender's"
            )
        return under_posterior(q, m)

    try:
        bits_back(under_prior(code), label_code, posterior).pop(stack)
        words = emptied(stack)
        if len(words) + rest_bytes != header.payload_bytes:
            raise RefundLostError("the payload does not have the length that the message states; the message is damaged")
    except RefundLostError as error:
        return got[0], error
    payload = whiten(words) + rest
    got[0].payload = payload[: len(payload) - header.padding_bytes]
    return got[0], None


def receive_file(path: Path, directory: Path, locations: Sequence[str] = (), *, progress: bool = True) -> Received:
    """Decode the message in ``path`` and write ``payload``, ``labels.npy`` and ``model.safetensors`` to ``directory``.

    Args:
        path: the message.
        directory: a new directory.
        locations: places on this machine, such as ``data.root=DIR`` for the inputs.
        progress: show progress bars.

    Returns:
        the contents of the message.

    Raises:
        FileError: if the file is not a message or is damaged, or the inputs differ from the sender's.
        RefundLostError: if only the payload cannot be recovered; labels and network have then been written.
    """
    check_alone()
    check_new_directory(directory)
    content = read_file(path)
    kind, contents = unseal(content, str(path))
    if kind not in (MESSAGE, FIRST_MESSAGE):
        raise FileError(f"{path} is a model file ({kind}), not a message; use `bitsback unpack`")
    reader = BitReader(contents)
    header = Header.take(reader, version=kind.version)
    settings = {key: value for key, value in header.settings.items() if key not in ("target_shape", "coded")}
    config, shape = from_tree(settings, locations), _target_shape(header.settings)
    config = config.model_copy(update={"ledger": LedgerSettings(samples=1)})  # the receiver's ledger is never read
    if kind == FIRST_MESSAGE:  # version 1 trained in float32
        config = config.model_copy(update={"training": config.training.model_copy(update={"precision": "float32"})})
    check_data(config, str(path), len(content))
    data = config.data.load_inputs()
    check_steps(config, len(data.train), str(path))
    steps = steps_of(config.training, len(data.train))
    if len(header.states) > len(digest_steps(steps)):
        raise FileError(f"the message has digests of {len(header.states)} states of {steps:,} steps; it is damaged")
    if len(data.train) * math.prod(shape) > limits.numbers_for(len(content)) + data.train.inputs.numel():
        raise FileError("the message does not say what its targets look like; it is damaged")
    blank = blank_targets(data.train, shape)
    likelihood = config.likelihood.build(data.classes)
    classes = getattr(likelihood, "classes", None)
    data = replace(data, train=replace(data.train, targets=blank), test=None, classes=classes)
    outputs, inputs = likelihood.outputs(blank), data.train.inputs
    check_size(
        config,
        inputs.shape[1:],
        outputs,
        whole=not inputs.is_floating_point(),
        file_bytes=len(content),
        examples=len(inputs),
        data_numbers=inputs.numel(),
        symbols=1 if classes is None else math.prod(shape),
    )
    experiment = Experiment.build(config, dataset=data).double()
    shared = SharedContext(experiment.model, experiment.likelihood, experiment.dataset.train.in_memory().inputs, blank)
    shared.check()
    if shared.coded_digest() != header.settings.get("coded"):
        raise FileError("the mask of the targets here is not the sender's; say where the sender's data are (--data.path=...)")

    def retrain(labels: Integers) -> RoundedPosterior:
        if kind == FIRST_MESSAGE:
            raise RefundLostError(
                "labels and network were recovered, the payload was not: an earlier bitsback wrote the message (format version "
                "1), and this one does not repeat its training; receive it with bitsback 0.1"
            )
        targets = torch.from_numpy(labels).reshape(blank.shape).to(blank.dtype)
        told = replace(data, train=replace(data.train, targets=targets))
        again = Experiment.build(config, dataset=told)
        again.train(None, progress=progress, watch=Checking(steps, again.likelihood, header.states))
        return SharedContext(again.model.double(), again.likelihood, data.train.inputs).posterior()

    received, lost = receive(contents, header, reader, shared, retrain)
    labels = as_labels(received.labels.reshape(blank.shape), config.likelihood)
    named = {**received.weights, **dict(received.side)}
    with whole_directory(directory) as staging:
        write_array(staging / "labels.npy", labels)
        write_tensors(staging / "model.safetensors", {name: _float32(t) for name, t in named.items()}, {})
        if received.payload is not None:
            write_bytes(staging / "payload", received.payload)
    if lost is not None:
        raise RefundLostError(f"{lost}; labels and network are in {directory}")
    return received


def _target_shape(settings: dict[str, Any]) -> tuple[int, ...]:
    shape = settings.get("target_shape", [])
    if not is_shape(shape):
        raise FileError("the message does not say what its targets look like; it is damaged")
    limits.TARGETS.check(math.prod(shape), "the message", FileError)
    return tuple(shape)


def _float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous().clone()
