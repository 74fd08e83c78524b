"""Change files of every kind that is read, and see that each is refused in one sentence or decoded as the plain reference does.

    python scripts/mutate_files.py [--first K] [--count N] [--seed S] [--kinds KIND ...] [--log FILE]

Case K of a seed is the same file wherever a range begins, so a campaign is resumed by its range. A case fails when a reader
raises anything but a BitsbackError, differs from the reference, takes more than a second of processor time, or more memory than
is declared and 64 MiB. Readers that train are run up to the decision to train. Features that a known configuration makes of all
digits take about a second by themselves: seconds in them are counted as slow_features, not as failures. A JSON summary is
printed.
"""

import argparse
import copy
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from bitsback import limits
from bitsback.analysis.predict import read_inputs
from bitsback.atomic_io import SEAL, read_tensors
from bitsback.config import Config, Experiment
from bitsback.data.idx import read_idx
from bitsback.data.settings import NpzSettings
from bitsback.errors import BitsbackError, TrainingError
from bitsback.formats import reference_decoder as reference
from bitsback.formats import two_part as two_part_module
from bitsback.formats.container import SMALL_FILE_BYTES, BitWriter, _checksum, seal, unseal
from bitsback.formats.inspect import inspect_file
from bitsback.formats.kinds import all_kinds, kind_numbered
from bitsback.formats.message import read as message_module
from bitsback.formats.model_file.read import decode
from bitsback.formats.prequential import read as prequential_module
from bitsback.formats.prequential.walk import Walk
from bitsback.formats.text import text as text_module
from bitsback.training.checkpoint import load_checkpoint
from bitsback.training.train import start

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]
import plain_decoder  # noqa: E402
from hostile import make  # noqa: E402

SECONDS, SPARE_BYTES, DATA_BYTES = 1.0, 64 << 20, 64 << 20
NUMBER_BYTES = 64
"""Memory that a number takes which a file may ask for."""

TRACED = 16
"""Every so many cases, allocations of NumPy and Python are traced as well."""

EXTREMES = (0, 1, 2, 127, 128, 255, 1 << 15, (1 << 16) - 1, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
KINDS = tuple(all_kinds())

FIRST_KINDS = ("message_1", "prequential_1")
"""Of version 1: of the one, weights and labels are read; of the other, what stands before its labels."""

Check = Callable[[bytes, Path], str]
"""Reads a file; says what it was compared with, or raises."""


class TooSlowError(BaseException):
    """A case took longer than it may."""


class DiffersError(Exception):
    """A reader and the reference disagree."""


def corpus(folder: Path) -> dict[str, list[bytes]]:
    """Whole files of every kind."""
    found: dict[str, list[bytes]] = {kind: [] for kind in (*KINDS, *FIRST_KINDS)}
    for path in sorted((ROOT / "tests" / "golden").glob("*.bb")):
        kind = str(unseal(path.read_bytes(), path.name)[0])
        if kind in found:  # of version 1, message and prequential are only read
            found[kind].append(path.read_bytes())
    for kind, content in make.valid().items():
        found[kind].append(content)
    draw = np.random.default_rng(0)
    images, answers = draw.integers(0, 256, (12, 4, 4), dtype=np.uint8), np.arange(12) % 3
    idx = [b"\0\0" + bytes([code, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(kind).tobytes()
           for code, kind, array in ((8, ">u1", images), (0x0D, ">f4", images), (0x0B, ">i2", answers))]  # fmt: skip
    found |= {"idx": idx, "idx_gz": [gzip.compress(content) for content in idx]}
    arrays = [images, np.asfortranarray(images.astype(">f8")), answers, images[0, 0].astype(np.float16)]
    found["npy"] = [_npy(array) for array in arrays]
    found["npz"] = []
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, inputs=images, targets=answers)
        found["npz"].append(stream.getvalue())
    torch.manual_seed(0)
    experiment = Experiment.build(run_config())
    experiment.train(folder / "run", progress=False)
    found["posterior"] = [(folder / "run" / "posterior.safetensors").read_bytes()]
    found["checkpoint"] = [(folder / "run" / "checkpoint" / "state.safetensors").read_bytes()]
    return found


def run_config() -> Config:
    """The configuration of the run whose files are changed."""
    return make.config(ledger={"samples": 1}, logging={"report": False})


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


# how files are changed


def mutated(content: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """One to three changes of some bytes, or of one or two bits of the body alone, which many readers get through."""
    changed = bytearray(content)
    if draw.random() < 0.35 and changed:
        for _ in range(draw.randint(1, 2)):
            changed[-1 - draw.randrange(max(1, len(changed) // 2))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    for _ in range(draw.choice((1, 1, 2, 3))):
        way = draw.choice((_flip, _flip, _run, _cut, _insert, _splice, _extreme, _extreme, _count))
        way(changed, draw.choice(others), draw)
    return bytes(changed)


def _place(changed: bytearray, draw: random.Random) -> int:
    """Somewhere; half of the time in the head of the file."""
    return draw.randrange(min(len(changed), 64) if draw.random() < 0.5 else len(changed)) if changed else 0


def _flip(changed: bytearray, _other: bytes, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 6)):
        if changed:
            changed[_place(changed, draw)] ^= 1 << draw.randrange(8)


def _run(changed: bytearray, _other: bytes, draw: random.Random) -> None:
    at, length = _place(changed, draw), draw.randint(1, 16)
    byte = draw.choice((0, 255, draw.randrange(256)))
    changed[at : at + length] = bytes([byte]) * len(changed[at : at + length])


def _cut(changed: bytearray, _other: bytes, draw: random.Random) -> None:
    at = _place(changed, draw)
    del changed[at : at + draw.randint(1, 16) if draw.random() < 0.5 else None]


def _insert(changed: bytearray, _other: bytes, draw: random.Random) -> None:
    at = _place(changed, draw)
    changed[at:at] = draw.randbytes(draw.randint(1, 16))


def _splice(changed: bytearray, other: bytes, draw: random.Random) -> None:
    at, start = _place(changed, draw), draw.randrange(len(other) + 1)
    changed[at : None if draw.random() < 0.5 else at + 64] = other[start : start + draw.choice((16, 64, len(other)))]


def _extreme(changed: bytearray, _other: bytes, draw: random.Random) -> None:
    width, at, order = draw.choice((1, 2, 4, 8)), _place(changed, draw), draw.choice(("little", "big"))
    value = draw.choice(EXTREMES) & (1 << 8 * width) - 1
    changed[at : at + width] = value.to_bytes(width, order)[: len(changed) - at]


def _count(changed: bytearray, _other: bytes, draw: random.Random) -> None:
    """Write a count of our files, which stands at any bit, over what is there."""
    writer, at = BitWriter(), 8 * _place(changed, draw) + draw.randrange(8)
    writer.put_count(draw.choice((*EXTREMES[:-1], draw.randrange(1000))))
    whole = int.from_bytes(changed, "little")
    mask = (1 << writer.bits) - 1
    whole = whole & ~(mask << at) | int.from_bytes(writer.to_bytes(), "little") << at
    changed[:] = (whole & (1 << 8 * len(changed)) - 1).to_bytes(len(changed), "little")


WISHES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 1e300, -0.0, 1e-300, 1 << 31, 1 << 63, 10**30, "", "x", "\x1b[31m", [], {}, [1],
    [10**9, 10**9], {"kind": "friedman", "examples": 10**9}, {"kind": "friedman", "examples": 1000, "inputs": 10**6},
    {"kind": "idx"}, {"kind": "npz"}, {"kind": "npz", "path": "/dev/zero"}, {"kind": "point"}, {"kind": "poisson"},
    {"kind": "bernoulli"}, {"kind": "laplace"}, {"kind": "adaptive_mixture", "components": 64}, {"kind": "horseshoe"},
    {"kind": "student_t", "df": 1e-3}, {"kind": "group_gaussian"}, {"kind": "random_walk_modes", "features": 2},
    {"kind": "pyro", "distribution": "Cauchy", "arguments": {"loc": 0, "scale": 1}}, {"kind": "deskew"},
    {"kind": "principal_components", "features": 3}, {"Linear": {"out_features": 10**10}}, "LSTM", "ReLU", "Flatten",
    {"Conv2d": {"out_channels": 3, "kernel_size": 3}}, {"Upsample": {"scale_factor": 1000}}, {"first": 1, "growth": 1.01},
    "ensemble", "os:getcwd", "golden.own_codec:other", {"factory": "os:getcwd"}, {"factory": 3}, [6, 5],
    {"kind": "tokens", "classes": 9}, {"kind": "negative_binomial"}, {"kind": "negative_binomial", "dispersion": 1e-300},
    {"kind": "categorical", "classes": 10, "ignore": -100, "class_axis": 1},
)  # fmt: skip


def resettled(content: bytes, draw: random.Random) -> bytes:
    """The same file with one or two of its settings replaced or left out."""
    tree = make.settings_of(content)
    names = set(tree)
    for _ in range(draw.choice((1, 1, 2))):
        known = list(_places(tree))
        *path, key = draw.choice(known)
        inside = tree
        for part in path:
            inside = inside[part]
        if draw.random() < 0.15:
            del inside[key]
        else:
            old = inside[key]
            near = [old * 2, old + 1, -old, old * 10**6] if isinstance(old, int | float) and not isinstance(old, bool) else []
            inside[key] = copy.deepcopy(draw.choice([*WISHES, *near, *near, *near]))
    return make.with_settings(content, **(dict.fromkeys(names) | tree))


def _places(tree: Any, place: tuple[Any, ...] = ()) -> Any:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*place, key)
        yield from _places(value, (*place, key))


def case(number: int, seed: int, files: dict[str, list[bytes]], kinds: list[str]) -> tuple[str, bytes]:
    """Kind and content of one changed file; the checksum fits in nine of ten."""
    draw = random.Random(f"{seed}/{number}")
    kind = draw.choice(kinds)
    content, repaired = draw.choice(files[kind]), draw.random() < 0.9
    others = [one for some in files.values() for one in some]
    if kind in (*KINDS, *FIRST_KINDS):
        if draw.random() < 0.3 and kind not in FIRST_KINDS:
            with suppress(BitsbackError):
                return kind, resettled(content, draw)
        inner = unseal(content, "the file")[1]
        if not repaired:
            return kind, mutated(content, others, draw)
        as_kind = draw.choice(list(KINDS)) if draw.random() < 0.05 else kind
        return kind, sealed(as_kind, mutated(inner, [one[3:-4] for one in others], draw))
    if kind == "idx_gz" and repaired:
        return kind, gzip.compress(mutated(gzip.decompress(content), others, draw), 1)
    if kind == "npz" and repaired:
        return kind, _rezipped(content, others, draw)
    changed = _changed_tensors(content, others, draw) if kind in ("posterior", "checkpoint") else mutated(content, others, draw)
    return kind, _resealed(changed) if repaired else changed


def sealed(kind: str, contents: bytes) -> bytes:
    """The whole file around ``contents``, also of a kind that is no longer written."""
    content = seal(all_kinds()[kind.removesuffix("_1")], contents)
    if kind not in FIRST_KINDS:
        return content
    small = len(content) <= SMALL_FILE_BYTES
    body = content[:2] + bytes([content[2] & 0xF0 | 1]) + content[3 : -2 if small else -4]
    return body + _checksum(body, small=small)


def _changed_tensors(content: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """A changed safetensors file."""
    if draw.random() < 0.6:  # its head is JSON, which is looked at first
        length = 8 + struct.unpack("<Q", content[:8])[0]
        head = bytearray(content[8:length])
        (_flip if draw.random() < 0.5 else _run)(head, b"", draw)
        return content[:8] + bytes(head) + mutated(content[length:], others, draw)
    return mutated(content, others, draw)


def _resealed(content: bytes) -> bytes:
    """A safetensors file with a checksum that fits, if it has one."""
    begin = 8 + len(SEAL)
    if content[8:begin] != SEAL:
        return content
    digest = hashlib.sha256(content[:begin] + b"0" * 64 + content[begin + 64 :]).hexdigest().encode()
    return content[:begin] + digest + content[begin + 64 :]


def _rezipped(content: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """The archive with changed members and checksums that fit; half of the time its directory is changed after that."""
    stream, packing = (
        io.BytesIO(),
        draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)),
    )
    with (
        zipfile.ZipFile(io.BytesIO(content)) as archive,
        zipfile.ZipFile(stream, "w", packing) as written,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for name in archive.namelist():
            inner = archive.read(name)
            written.writestr(zipfile.ZipInfo(name), mutated(inner, others, draw) if draw.random() < 0.6 else inner, packing)
    whole = bytearray(stream.getvalue())
    if draw.random() < 0.5:
        at = len(whole) - draw.randrange(1, min(len(whole), 200))  # the directory stands at the end
        width = draw.choice((1, 2, 4, 8))
        whole[at : at + width] = (draw.choice(EXTREMES) & (1 << 8 * width) - 1).to_bytes(width, "little")[: len(whole) - at]
    return bytes(whole)


# how they are read


class Stage:
    """The readers, with training stopped where it would begin, and what the package handed to its decoders."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.out = folder, folder / "file", folder / "out"
        self.held: list[Any] = []
        self.fit_config = run_config()
        self._receive, self._labels = message_module.receive, two_part_module._labels

    @contextmanager
    def set(self) -> Iterator[None]:
        """Inside, nothing trains, memory for data is small, and no warning is shown."""
        with ExitStack() as stack:
            stack.enter_context(patch.object(Experiment, "train", self._train))
            stack.enter_context(patch.object(Walk, "_predict", self._train))
            stack.enter_context(patch.object(message_module, "receive", self._message))
            stack.enter_context(patch.object(two_part_module, "_labels", self._two_part))
            stack.enter_context(patch.dict(os.environ, {limits.MEMORY.variable: str(DATA_BYTES)}))
            stack.enter_context(np.errstate(all="ignore"))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            yield

    @staticmethod
    def _train(*_arguments: Any, **_options: Any) -> None:
        raise TrainingError("up to here")

    def _message(self, contents: bytes, header: Any, reader: Any, setting: Any, retrain: Any) -> Any:
        found = self._receive(contents, header, reader, setting, retrain)
        self.held = [contents, header, setting, found[0]]
        return found

    def _two_part(self, loaded: Any, inputs: Any, blank: Any, stream: bytes) -> Any:
        found = self._labels(loaded, inputs, blank, stream)
        self.held = [loaded, inputs, stream, found]
        return found

    def read(self, kind: str, content: bytes) -> str:
        """Read a file in every way there is; returns what it was compared with, or an empty text when it was refused."""
        self.held = []
        if kind in ("idx", "idx_gz", "npy", "npz"):
            return self._data(kind, content)
        if kind in ("posterior", "checkpoint"):
            return self._run_file(kind, content)
        self.file.write_bytes(content)
        said = [self._try(way) for way in (self._inspect, self._model, self._labelled)]
        return next(filter(None, said), "")

    @staticmethod
    def _try(way: Callable[[], str]) -> str:
        try:
            return way()
        except BitsbackError as error:
            sentence = str(error)
            assert sentence
            assert len(sentence) < 2000
            assert "\n" not in sentence
            return ""

    def _inspect(self) -> str:
        inspect_file(self.file, make.locations_for(self.file.read_bytes()))
        return ""

    def _model(self) -> str:
        content = self.file.read_bytes()
        loaded = decode(content, "the file", make.locations_for(content))
        self._compare_weights(plain_decoder.model_weights(content, loaded), loaded.tensors())
        with suppress(BitsbackError):
            if loaded.config.data.features is None:
                loaded.predict(torch.zeros(2, *loaded.tree["inputs"]))
        return "weights"

    def _compare_weights(self, stated: dict[str, list[float]], found: dict[str, Any]) -> None:
        for name, values in stated.items():
            with np.errstate(over="ignore"):
                wanted = np.array(values, dtype=np.float64).astype(np.float32)
            if not np.array_equal(wanted, found[name].detach().float().numpy().ravel()):
                raise DiffersError(name)

    def _labelled(self) -> str:
        kind = str(kind_numbered(self.file.read_bytes()[2] >> 4)) if self.file.stat().st_size > 2 else None
        shutil.rmtree(self.out, ignore_errors=True)
        if kind == "two_part":
            return self._read_two_part()
        if kind == "text":
            return self._read_text()
        if kind == "prequential":
            return self._read_blocks()
        with suppress(BitsbackError):
            message_module.receive_file(self.file, self.out, progress=False)
        if not self.held:
            return ""
        contents, header, setting, received = self.held
        weights, answers = plain_decoder.message(contents, header, setting, version=self.file.read_bytes()[2] & 15)
        for name, values in weights.items():
            if not np.array_equal(np.array(values), received.weights[name].numpy().ravel()):
                raise DiffersError(name)
        if answers is not None and answers != received.labels.tolist():
            raise DiffersError("labels")
        return "weights" if answers is None else "weights and labels"

    def _read_two_part(self) -> str:
        content = self.file.read_bytes()
        try:
            two_part_module.decode_two_part(content, "the file")
        finally:
            if self.held and self.held[-1] is not None:
                loaded, inputs, stream, found = self.held
                inside = two_part_module.model_inside(content, "the file")
                self._compare_weights(plain_decoder.model_weights(inside, loaded), loaded.tensors())
                weights = {
                    weight.name: weight.posterior.mean.detach().double().flatten().tolist() for weight in loaded.model.weights
                }
                with suppress(plain_decoder.NoReferenceError):
                    logits = plain_decoder.forward(loaded.model, weights, inputs)
                    stack = reference.Stack.from_bytes(stream, 1)
                    if plain_decoder.labels(stack, logits, loaded.likelihood.kind) != found.ravel().tolist():
                        raise DiffersError("labels")
        return "weights and labels"

    def _read_text(self) -> str:
        """Network and text; what the steps are compared with is in tests/test_text.py."""
        content = self.file.read_bytes()
        received = text_module.decode_text(content, "the file", progress=False)
        inside = text_module.model_of_text(content, "the file")
        self._compare_weights(plain_decoder.model_weights(inside, received.loaded), received.loaded.tensors())
        return "weights"

    def _read_blocks(self) -> str:
        """The head, the walk and its first block, which needs no network."""
        said: list[Any] = []
        pop = prequential_module.labels

        def labels(whole: Any) -> Any:
            code = pop(whole)

            def popped(stack: Any) -> Any:
                heads, words = stack.heads.tolist(), stack.words.tolist()
                found = code.pop(stack)
                said.append((whole.tolist(), heads, words, found.tolist()))
                return found

            return type(code)(code.push, popped)

        with suppress(BitsbackError), patch.object(prequential_module, "labels", labels):
            prequential_module.receive_prequential(self.file, self.out, progress=False)
        for logits, heads, words, found in said:
            if plain_decoder.labels(reference.Stack(heads, words), logits, "categorical") != found:
                raise DiffersError("labels of a block")
        return "labels of the first block" if said else ""

    def _data(self, kind: str, content: bytes) -> str:
        path = self.folder / {"idx": "file", "idx_gz": "file.gz", "npy": "file.npy", "npz": "file.npz"}[kind]
        path.write_bytes(content)
        found: list[np.ndarray | torch.Tensor] = []

        def inputs() -> str:
            found.append(read_inputs(path))
            return ""

        def training() -> str:
            if kind.startswith("idx"):
                found.append(read_idx(path))
            elif kind == "npz":
                found.append(NpzSettings(path=path, split_seed=1).load().train.inputs)
            return ""

        for way in (inputs, training):
            self._try(way)
        if not found:
            return ""
        stated = self._stated(kind, content)
        if kind.startswith("idx") and stated.ndim == 3 and found[0].ndim == 4:
            stated = stated[:, None]  # images have a channel axis
        if not np.array_equal(stated.astype(np.float32), np.asarray(found[0]).astype(np.float32), equal_nan=True):
            raise DiffersError("array")
        return "numpy"

    @staticmethod
    def _stated(kind: str, content: bytes) -> np.ndarray:
        """What NumPy itself makes of an array."""
        if kind.startswith("idx"):
            whole = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
            code = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}[whole[2]]
            shape = np.frombuffer(whole, ">u4", whole[3], 4)
            return np.frombuffer(whole, code, offset=4 + 4 * whole[3]).reshape(shape)
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if kind == "npy" or isinstance(loaded, np.ndarray):
            return loaded
        return loaded[next(name for name in ("inputs", "test_inputs", "images") if name in loaded)]

    def _run_file(self, kind: str, content: bytes) -> str:
        path = self.folder / "file.safetensors"
        path.write_bytes(content)
        experiment = Experiment.build(self.fit_config)

        def load() -> str:
            self._compare_tensors(content, read_tensors(path)[0])
            if kind == "checkpoint":
                settings = self.fit_config.training
                load_checkpoint(path, start(experiment.model, experiment.likelihood, experiment.dataset.train, settings))
            else:
                self.fit_config.network.model_copy(update={"pretrained": path}).build(experiment.dataset.train.inputs, 10)
            return "the head alone"

        return self._try(load)

    @staticmethod
    def _compare_tensors(content: bytes, found: dict[str, torch.Tensor]) -> None:
        """With what the JSON at the head of the file says."""
        length = 8 + struct.unpack("<Q", content[:8])[0]
        head = json.loads(content[8:length])
        types = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "I8": "i1", "BOOL": "?"}
        for name, said in head.items():
            if name == "__metadata__" or said["dtype"] not in types:
                continue
            begin, end = said["data_offsets"]
            stated = np.frombuffer(content[length + begin : length + end], types[said["dtype"]]).reshape(said["shape"])
            if not np.array_equal(stated, found[name].numpy(), equal_nan=said["dtype"].startswith("F")):
                raise DiffersError(name)


# what it costs


def _memory() -> tuple[int, int]:
    """Resident bytes, now and at most since the last reset; of all allocators alike."""
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux: what is traced has to do
        return 0, 0
    lines = status.read_text().splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return values["VmRSS"], values["VmHWM"]


def _reset_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def declared_bytes(kind: str, content: bytes) -> int:
    """Memory that a file of a kind may ask for."""
    if kind in (*KINDS, *FIRST_KINDS):
        return NUMBER_BYTES * limits.numbers_for(len(content))
    return DATA_BYTES


def run(
    first: int, count: int, seed: int, kinds: list[str] | None = None, log: Path | None = None, seconds_each: float = SECONDS
) -> dict[str, Any]:
    """Run a range of cases; returns counts, failures and the worst of each kind. ``seconds_each``: 0 for no limit of time."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mutate-") as name:
        files, stage = corpus(Path(name)), Stage(Path(name))
        chosen = kinds or sorted(files)
        with stage.set():
            _warm_up(stage, files, chosen)
            return _campaign(stage, files, chosen, first, count, seed, log, seconds_each)


def _warm_up(stage: Stage, files: dict[str, list[bytes]], kinds: list[str]) -> None:
    """Every file as it is must be read, and equal the reference, but for those whose training is no longer repeated."""
    for kind in kinds:
        for content in files[kind]:
            assert bool(stage.read(kind, content)) == (kind != "prequential_1"), f"a whole {kind} file is refused, or is not"


def _campaign(
    stage: Stage,
    files: dict[str, list[bytes]],
    kinds: list[str],
    first: int,
    count: int,
    seed: int,
    log: Path | None,
    seconds_each: float,
) -> dict[str, Any]:
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    worst: dict[str, dict[str, float]] = {kind: {"seconds": 0.0, "resident_bytes": 0, "traced_bytes": 0} for kind in kinds}
    failures: list[dict[str, Any]] = []

    slow_features = 0

    def stop(_signal: int, frame: Any) -> None:
        nonlocal slow_features
        while frame is not None:
            if frame.f_code.co_filename.endswith(("data/_features.py", "data/walk.py")):
                slow_features += 1
                signal.setitimer(signal.ITIMER_PROF, seconds_each)
                return
            frame = frame.f_back
        raise TooSlowError

    if seconds_each:
        signal.signal(signal.SIGPROF, stop)
    began = time.perf_counter()
    for number in range(first, first + count):
        kind, content = case(number, seed, files, kinds)
        traced = number % TRACED == 0
        _reset_peak()
        before, started, peak = _memory()[0], time.process_time(), 0
        if traced:
            tracemalloc.start()
        elif seconds_each:
            signal.setitimer(signal.ITIMER_PROF, seconds_each)
        try:
            said = stage.read(kind, content)
            outcome = f"equal: {said}" if said else "refused"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            trace = traceback.extract_tb(error.__traceback__)
            inside = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in trace if "/bitsback/" in frame.filename][-3:]
            outcome, where = "failure", " ".join(inside)
            text = f"{type(error).__name__}: {str(error)[:200]}"
            failures.append({"case": number, "kind": kind, "error": text, "where": where})
        finally:
            if seconds_each:
                signal.setitimer(signal.ITIMER_PROF, 0)
            if traced:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
        seconds, grown = time.process_time() - started, _memory()[1] - before
        counts[kind][outcome] += 1
        if not traced:
            worst[kind]["seconds"] = max(worst[kind]["seconds"], round(seconds, 3))
        worst[kind]["resident_bytes"] = max(worst[kind]["resident_bytes"], grown)
        worst[kind]["traced_bytes"] = max(worst[kind]["traced_bytes"], peak)
        if max(grown, peak) > declared_bytes(kind, content) + SPARE_BYTES:
            failures.append({"case": number, "kind": kind, "error": f"{max(grown, peak):,} bytes of memory", "where": ""})
        if log is not None and (number + 1 - first) % 1000 == 0:
            spent, so_far = round(time.perf_counter() - began), {kind: dict(found) for kind, found in counts.items()}
            line = {"done": number + 1, "seconds": spent, "failures": failures[-20:], "kinds": so_far, "worst": worst}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
    total = sum(counts.values(), Counter())
    return {
        "seed": seed,
        "cases": [first, first + count],
        "refused": total["refused"],
        "equal_to_reference": sum(n for what, n in total.items() if what.startswith("equal") and what != "equal: nothing"),
        "compared_with_nothing": total["equal: nothing"],
        "failures": len(failures),
        "slow_features": slow_features,
        "seconds": round(time.perf_counter() - began),
        "kinds": {kind: {**dict(counts[kind]), "worst": worst[kind]} for kind in kinds},
        "first_failures": failures[:40],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--count", type=int, default=1000, help="how many cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", help="only these kinds of file")
    parser.add_argument("--log", type=Path, help="append a line after every thousand cases")
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.first, arguments.count, arguments.seed, arguments.kinds, arguments.log), indent=2))


if __name__ == "__main__":
    main()
