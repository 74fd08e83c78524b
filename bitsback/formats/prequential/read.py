"""Decode labels in the prequential code: train block by block as the sender did."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from bitsback import limits
from bitsback.atomic_io import check_new_directory, whole_directory, write_array
from bitsback.coding.ans import Integers, Stack
from bitsback.coding.categorical import labels
from bitsback.config import Config, Experiment
from bitsback.config.labels import as_labels
from bitsback.errors import FileError
from bitsback.formats._size_limits import check_data, check_size
from bitsback.formats.config_tree import from_tree
from bitsback.formats.container import BitReader, read_file, unseal
from bitsback.formats.message.shared import SharedContext
from bitsback.formats.prequential.preamble import FIRST_PREQUENTIAL, PREQUENTIAL, Head, labels_digest, tables_digest
from bitsback.formats.prequential.walk import Walk, check
from bitsback.formats.repeatable import check_alone, repeatable

__all__ = ["receive_prequential"]

UNKNOWN = -1
"""Label of an example that has not been decoded."""


@dataclass
class _Receiving:
    """Receiver of the walk: answers each block with the labels that it decodes."""

    stack: Stack
    tables: Sequence[int]
    found: list[Integers] = field(default_factory=list)

    def __call__(self, number: int, whole: Integers) -> Integers:
        if tables_digest(whole) != self.tables[number]:
            raise _DiffersError(number)
        self.found.append(labels(whole).pop(self.stack))
        return self.found[-1]


class _DiffersError(Exception):
    """Predictions of a block that differ from the sender's."""


def receive_prequential(path: Path, directory: Path, locations: Sequence[str] = (), *, progress: bool = True) -> Integers:
    """Decode the labels in ``path``, training block by block as the sender did, and write ``directory``/labels.npy.

    Args:
        path: a file that ``bitsback send --code prequential`` wrote.
        directory: a new directory.
        locations: places on this machine, such as ``data.root=DIR`` for the inputs.
        progress: show a bar of all optimiser steps.

    Returns:
        labels in the order of the data, (n,).

    Raises:
        FileError: if the file is of another kind or damaged, or the inputs differ from the sender's; or if this machine's
            arithmetic does, then labels decoded so far are in ``directory``/labels_so_far.npy, -1 for the others.
    """
    check_alone()
    check_new_directory(directory)
    content = read_file(path)
    kind, contents = unseal(content, str(path))
    if kind == FIRST_PREQUENTIAL:
        raise FileError(
            f"an earlier bitsback wrote {path} (format version 1), and this one does not repeat its training; receive it with "
            "bitsback 0.1"
        )
    if kind != PREQUENTIAL:
        raise FileError(
            f"{path} is a {kind} file, not labels in the prequential code; use `bitsback inspect` to see what it is"
        )
    reader = BitReader(contents)
    head = Head.take(reader)
    walk = _receivers_walk(head, from_tree(head.settings, locations), len(content))
    receiving = _Receiving(Stack.from_bytes(reader.rest(), lanes=1), head.tables)
    try:
        walk.run(receiving, progress=progress)
    except _DiffersError:
        found = _in_order_of_data(walk, receiving.found)
        with whole_directory(directory) as staging:
            write_array(staging / "labels_so_far.npy", found)
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
    with whole_directory(directory) as staging:
        write_array(staging / "labels.npy", found)
    return found


def _receivers_walk(head: Head, config: Config, file_bytes: int) -> Walk:
    """Return the walk of a file over this machine's inputs; raises FileError unless they are the sender's."""
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
    if head.inputs_digest != SharedContext(experiment.model, likelihood, inputs).inputs_digest():
        raise FileError("the inputs here are not the sender's; give the same examples, in the same order")
    if len(walk.ends) != len(head.tables):
        raise FileError(f"the file has digests of {len(head.tables)} blocks, and its schedule {len(walk.ends)}; it is damaged")
    return walk


def _in_order_of_data(walk: Walk, found: Sequence[Integers]) -> Integers:
    """Return labels (n,) in the order of the data, -1 where a label is not known."""
    whole = np.full(len(walk.inputs), UNKNOWN, dtype=np.int64)
    decoded = np.concatenate(found) if found else whole[:0]
    whole[walk.order[: len(decoded)]] = decoded
    return whole if len(decoded) < len(whole) else as_labels(whole, walk.config.likelihood)
