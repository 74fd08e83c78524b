"""Code labels in the prequential code: the number of bits, and a file of about that size."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitsback.coding.ans import Integers, Stack
from bitsback.coding.categorical import labels
from bitsback.config import Config, Experiment
from bitsback.config.labels import check_declared
from bitsback.formats.config_tree import MESSAGE_SECTIONS, to_tree
from bitsback.formats.container import BitWriter, seal
from bitsback.formats.message.shared import SharedContext
from bitsback.formats.prequential._calibration import Block
from bitsback.formats.prequential.preamble import PREQUENTIAL, Head, labels_digest, tables_digest
from bitsback.formats.prequential.walk import Walk, check, check_whole
from bitsback.formats.repeatable import repeatable
from bitsback.result import Result, text_table
from bitsback.training.train import threads_for

__all__ = ["Prequential", "prequential"]

SECTIONS = (*MESSAGE_SECTIONS, "prequential")
"""Sections of the configuration that the file holds."""


SHOWN = ("labels", "bits", "bits a label", "error", "temperature", "steps", "seconds")


@dataclass(frozen=True)
class Prequential(Result):
    """Prequential code of the labels of a data set, as a number of bits and as a file.

    Attributes:
        blocks: cost of each block.
        classes: number of classes.
        content: the bytes of the file.
        header_bits: bits of frame, configuration and digests.
        test_error: error of the last block's predictor on the test split, for information; None without one.
        seconds: time of the whole code.
    """

    blocks: tuple[Block, ...]
    classes: int
    content: bytes
    header_bits: int
    test_error: float | None
    seconds: float

    @property
    def bits(self) -> float:
        """Return -log2 of the predictive probabilities of all labels, the sum over the blocks."""
        return math.fsum(block.bits for block in self.blocks)

    @property
    def uniform_bits(self) -> float:
        """Return the bits of the labels under the uniform distribution, without a model."""
        return self.blocks[-1].end * math.log2(self.classes)

    @property
    def file_bits(self) -> int:
        """Return the bits of the whole file."""
        return 8 * len(self.content)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers without the file, for JSON."""
        return {
            "prequential_bits": self.bits,
            "uniform_bits": self.uniform_bits,
            "examples": self.blocks[-1].end,
            "file_bits": self.file_bits,
            "header_bits": self.header_bits,
            "label_stream_bits": self.file_bits - self.header_bits,
            "test_error": self.test_error,
            "seconds": self.seconds,
            "blocks": self.records(),
        }

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each block."""
        return [block.facts() for block in self.blocks]

    def told(self, out: Path | None = None) -> str:
        """Return the text for the user, with the path of the file if given."""
        where = f" in {out}" if out is not None else ""
        return (
            f"{self._table()}\nThe message{where} has {len(self.content):,} bytes: {self.header_bits:,} bits of configuration "
            f"and digests, {self.file_bits - self.header_bits:,} of labels. It took {self.seconds:.1f} s."
        )

    def __str__(self) -> str:
        return self.told()

    def _table(self) -> str:
        rows = []
        for block in self.blocks:
            bits = [f"{block.bits:,.1f}", f"{block.bits / (block.end - block.start):.4f}"]
            trained = [f"{block.calibration.temperature:.2f}", f"{block.steps:,}", f"{block.seconds:.1f}"]
            rows.append([f"{block.start:,} to {block.end:,}", *bits, f"{100 * block.error:.2f} %", *trained])
        test = (
            ""
            if self.test_error is None
            else f" The last block's predictor errs on {100 * self.test_error:.2f} % of the test split."
        )
        return (
            f"{text_table(SHOWN, rows)}\n"
            f"{self.bits:,.1f} bits for {self.blocks[-1].end:,} labels in the prequential code, {self.uniform_bits:,.1f} in "
            f"the uniform one.{test}"
        )


@dataclass
class _Sending:
    """Sender of the walk: answers each block with its labels, and keeps the predictions for the file."""

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
        """Return the coded labels of all blocks."""
        # the last block first: the coder is a stack, and the receiver decodes the first block first
        stack, starts = Stack.empty(), (0, *self.ends[:-1])
        for start, end, whole in reversed(list(zip(starts, self.ends, self.said, strict=True))):
            labels(whole).push(stack, self.known[start:end])
        return stack.to_bytes()


def prequential(config: Config, *, progress: bool = True) -> Prequential:
    """Code the training labels block by block, each under networks that have seen only the labels before it.

    Args:
        config: section ``prequential`` sets blocks and predictors; network, posterior, prior and training set what is trained.
        progress: show a bar of all optimiser steps.

    Returns:
        the file, and the cost of each block.

    Raises:
        ConfigError: if the block schedule does not cover the data, or a setting or targets do not suit the prequential code.

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
    check_whole(experiment.dataset.train, experiment.likelihood)
    config, train = experiment.config, dataset.train.in_memory()
    training = config.training.model_copy(update={"threads": threads_for(config.training, experiment.model), "fused": False})
    config = config.model_copy(update={"training": training})
    walk = Walk(config, train.inputs, experiment.likelihood.outputs(train.targets))
    sending = _Sending(train.targets.long().numpy()[walk.order], walk.ends)
    blocks, test_error = walk.run(sending, experiment.dataset.test, progress=progress)
    head = _head(walk, sending, SharedContext(experiment.model, experiment.likelihood, train.inputs))
    stream = sending.stream()
    content = seal(PREQUENTIAL, head + stream)
    header_bits, seconds = 8 * (len(content) - len(stream)), time.perf_counter() - began
    return Prequential(tuple(blocks), walk.classes, content, header_bits, test_error, seconds)


def _head(walk: Walk, sending: _Sending, shared: SharedContext) -> bytes:
    writer, tree = BitWriter(), to_tree(walk.config, SECTIONS)
    tree["likelihood"]["classes"] = walk.classes  # a receiver has no labels to count
    digests = shared.inputs_digest(), tuple(sending.tables), labels_digest(sending.known)
    Head(tree, len(sending.known), *digests).put(writer)
    return writer.to_bytes()
