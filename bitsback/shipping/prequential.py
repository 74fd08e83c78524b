"""send and receive of the prequential code: a number of bits, and the labels as a file of about as many."""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitsback import limits
from bitsback.bitstream.ans import Integers, Stack
from bitsback.bitstream.container import BitReader, BitWriter, seal, unseal
from bitsback.bitstream.labels import labels
from bitsback.bitstream.prequential import FIRST_KIND, KIND, Head, labels_digest, tables_digest
from bitsback.bitstream.setting import Setting
from bitsback.codelength.prequential import Block
from bitsback.config import Config, Experiment
from bitsback.config.labels import as_labels, check_declared
from bitsback.errors import FileError
from bitsback.files import check_new_directory, whole_directory, write_array
from bitsback.shipping.message import read_file
from bitsback.shipping.prequential_walk import Walk, check
from bitsback.shipping.repeat import check_alone, repeatable
from bitsback.shipping.size import check_data, check_size
from bitsback.shipping.tree import MESSAGE_SECTIONS, from_tree, to_tree
from bitsback.training.train import threads_for

SECTIONS = (*MESSAGE_SECTIONS, "prequential")
UNKNOWN = -1


@dataclass(frozen=True)
class Prequential:
    """The prequential code of a data set's labels, as a number and as a file.

    Attributes:
        blocks: what each block cost.
        classes: how many labels there are.
        content: the file.
        header_bits: of it: configuration, digests, frame.
        test_error: of the last block's predictor, for information.
        seconds: of everything.
    """

    blocks: tuple[Block, ...]
    classes: int
    content: bytes
    header_bits: int
    test_error: float | None
    seconds: float

    @property
    def bits(self) -> float:
        """-log2 of the predictive probabilities of all labels: sum over the blocks."""
        return math.fsum(block.bits for block in self.blocks)

    @property
    def uniform_bits(self) -> float:
        """What the labels cost without a model."""
        return self.blocks[-1].end * math.log2(self.classes)

    @property
    def file_bits(self) -> int:
        """Bits of the whole file."""
        return 8 * len(self.content)

    def facts(self) -> dict[str, Any]:
        """Everything but the file, for JSON."""
        return {
            "prequential_bits": self.bits,
            "uniform_bits": self.uniform_bits,
            "examples": self.blocks[-1].end,
            "file_bits": self.file_bits,
            "header_bits": self.header_bits,
            "label_stream_bits": self.file_bits - self.header_bits,
            "test_error": self.test_error,
            "seconds": self.seconds,
            "blocks": [block.facts() for block in self.blocks],
        }


@dataclass
class _Sending:
    """Answers the walk with the labels, and remembers what the receiver will be told."""

    known: Integers
    ends: tuple[int, ...]
    said: list[Integers] = field(default_factory=list)
    tables: list[int] = field(default_factory=list)

    def __call__(self, number: int, whole: Integers) -> Integers:
        start = self.ends[number - 1] if number else 0
        self.said.append(whole)
        self.tables.append(tables_digest(whole))
        return self.known[start : self.ends[number]]

    def stream(self) -> bytes:
        """All labels, the last block pushed first."""
        stack, starts = Stack.empty(), (0, *self.ends[:-1])
        for start, end, whole in reversed(list(zip(starts, self.ends, self.said, strict=True))):
            labels(whole).push(stack, self.known[start:end])
        return stack.to_bytes()


@dataclass
class _Receiving:
    """Answers the walk with the labels that it decodes."""

    stack: Stack
    tables: Sequence[int]
    found: list[Integers] = field(default_factory=list)

    def __call__(self, number: int, whole: Integers) -> Integers:
        if tables_digest(whole) != self.tables[number]:
            raise _DiffersError(number)
        self.found.append(labels(whole).pop(self.stack))
        return self.found[-1]


class _DiffersError(Exception):
    """The predictions of a block are not the sender's."""


def prequential(config: Config, *, progress: bool = True) -> Prequential:
    """Code the training labels block by block, each under networks that have seen only the labels before it.

    Args:
        config: ``prequential`` says how; network, posterior, prior and training say what is trained for every block.
        progress: show a bar of all optimiser steps.

    Raises:
        ConfigError: for a block schedule that does not cover the data, and settings that make no sense here.

    >>> from bitsback.config import Config
    >>> config = Config.model_validate({"data": {"kind": "digits", "limit": 64}, "prequential": {"least_steps": 20},
    ...                                 "training": {"epochs": 2}})
    >>> code = prequential(config, progress=False)
    >>> len(code.blocks), abs(code.file_bits - code.header_bits - code.bits) < 64
    (4, True)
    """
    check(config)
    began = time.perf_counter()
    dataset = repeatable(config).data.load()
    check_declared(config, dataset)
    experiment = Experiment.build(config, dataset=dataset)
    config, train = experiment.config, dataset.train
    training = config.training.model_copy(update={"threads": threads_for(config.training, experiment.model), "fused": False})
    config = config.model_copy(update={"training": training})
    walk = Walk(config, train.inputs, experiment.likelihood.outputs(train.targets))
    sending = _Sending(train.targets.long().numpy()[walk.order], walk.ends)
    blocks, test_error = walk.run(sending, experiment.dataset.test, progress=progress)
    head = _head(walk, sending, Setting(experiment.model, experiment.likelihood, train.inputs))
    stream = sending.stream()
    content = seal(KIND, head + stream)
    header_bits, seconds = 8 * (len(content) - len(stream)), time.perf_counter() - began
    return Prequential(tuple(blocks), walk.classes, content, header_bits, test_error, seconds)


def _head(walk: Walk, sending: _Sending, setting: Setting) -> bytes:
    writer, tree = BitWriter(), to_tree(walk.config, SECTIONS)
    tree["likelihood"]["classes"] = walk.classes  # a receiver has no labels to count
    digests = setting.inputs_digest(), tuple(sending.tables), labels_digest(sending.known)
    Head(tree, len(sending.known), *digests).put(writer)
    return writer.to_bytes()


def receive_prequential(path: Path, directory: Path, places: Sequence[str] = (), *, progress: bool = True) -> Integers:
    """Decode the labels in ``path``, training block by block as the sender did, and write ``directory``/labels.npy.

    Args:
        path: what ``bitsback send --code prequential`` wrote.
        directory: a new directory.
        places: such as ``data.root=DIR``: where this machine keeps the inputs.
        progress: show a bar of all optimiser steps.

    Raises:
        FileError: for a file that is not one or is damaged, for inputs that differ from the sender's, and for a machine whose
            arithmetic does; the classes up to there are then in ``directory``/labels_so_far.npy, -1 for the others.
    """
    check_alone()
    check_new_directory(directory)
    content = read_file(path)
    kind, contents = unseal(content, str(path))
    if kind == FIRST_KIND:
        raise FileError(
            f"an earlier bitsback wrote {path} (format version 1), and this one does not repeat its training; receive it with "
            "bitsback 0.1"
        )
    if kind != KIND:
        raise FileError(
            f"{path} is a {kind} file, not labels in the prequential code; use `bitsback inspect` to see what it is"
        )
    reader = BitReader(contents)
    head = Head.take(reader)
    walk = _receivers_walk(head, from_tree(head.settings, places), len(content))
    receiving = _Receiving(Stack.from_bytes(reader.rest(), lanes=1), head.tables)
    try:
        walk.run(receiving, progress=progress)
    except _DiffersError:
        found = _in_order_of_data(walk, receiving.found)
        with whole_directory(directory) as place:
            write_array(place / "labels_so_far.npy", found)
        number, known = len(receiving.found), sum(map(len, receiving.found))
        raise FileError(
            f"this machine's arithmetic differs from the sender's at block {number + 1} of {len(walk.ends)}; use a machine and "
            f"a torch like the sender's (the labels of the first {known:,} examples of the code are in {directory})"
        ) from None
    if receiving.stack.bits or labels_digest(np.concatenate(receiving.found)) != head.labels_digest:
        raise FileError(
            "the labels that come out are not those that went in; use a machine, torch and bitsback like the sender's"
        )
    found = _in_order_of_data(walk, receiving.found)
    with whole_directory(directory) as place:
        write_array(place / "labels.npy", found)
    return found


def _receivers_walk(head: Head, config: Config, file_bytes: int) -> Walk:
    """The walk of a file, from the inputs of this machine; raises FileError unless they are the sender's."""
    check(config)
    if not isinstance(config.training.threads, int):
        raise FileError("the file does not say with how many threads its sender trained; it is damaged")
    check_data(config, "the file", file_bytes)
    data = repeatable(config).data.load_inputs()
    inputs, likelihood, count = data.train.inputs, config.likelihood.build(data.classes), head.examples
    if count != len(inputs):
        raise FileError(f"the file holds labels of {count:,} examples, and here are {len(inputs):,}; give the sender's data")
    classes, blank = likelihood.outputs(data.train.targets), torch.zeros(count, dtype=torch.long)
    walk = Walk(config, inputs, classes)
    limits.STEPS.check(walk.steps, "the file", FileError)
    check_size(
        config,
        inputs.shape[1:],
        classes,
        whole=not inputs.is_floating_point(),
        file_bytes=file_bytes,
        examples=count,
        data_numbers=inputs.numel(),
    )
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, targets=blank), test=None, classes=classes)
    experiment = Experiment.build(config, dataset=data)
    if head.inputs_digest != Setting(experiment.model, likelihood, inputs).inputs_digest():
        raise FileError("the inputs here are not the sender's; give the same examples, in the same order")
    if len(walk.ends) != len(head.tables):
        raise FileError(f"the file has digests of {len(head.tables)} blocks, and its schedule {len(walk.ends)}; it is damaged")
    return walk


def _in_order_of_data(walk: Walk, found: Sequence[Integers]) -> Integers:
    """Labels (n,) as the data has them, -1 where a label is not known."""
    whole = np.full(len(walk.inputs), UNKNOWN, dtype=np.int64)
    decoded = np.concatenate(found) if found else whole[:0]
    whole[walk.order[: len(decoded)]] = decoded
    return whole if len(decoded) < len(whole) else as_labels(whole, walk.config.likelihood)
