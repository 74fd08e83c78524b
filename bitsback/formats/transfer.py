"""pack, unpack, send, receive: files out of runs, and what is in them out of files."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from bitsback.atomic_io import check_new_file, new_neighbour, write_bytes
from bitsback.coding.lattice import exponent_of
from bitsback.coding.philox import whiten
from bitsback.config import Config, Experiment, Run, load_run
from bitsback.config.experiment import open_source
from bitsback.errors import FileError
from bitsback.formats.container import read_file, unseal
from bitsback.formats.message.read import receive_file
from bitsback.formats.message.write import Sender, Sent, check_exponent
from bitsback.formats.model_file.grid_codec import QUANTISED
from bitsback.formats.model_file.read import load, write_unpacked
from bitsback.formats.model_file.write import Packed, pack_experiment, with_settings
from bitsback.formats.prequential.preamble import FIRST_PREQUENTIAL, PREQUENTIAL
from bitsback.formats.prequential.read import receive_prequential
from bitsback.formats.prequential.write import Prequential, prequential
from bitsback.formats.two_part import TWO_PART, TwoPart, check_targets, receive_two_part, send_two_part
from bitsback.result import Result, TableResult, text_table

__all__ = [
    "Code",
    "ReceivedFile",
    "StepTable",
    "Unpacked",
    "check_same_run",
    "nameable_exponent",
    "pack",
    "receive",
    "send",
    "send_at_steps",
    "sender_of",
    "unpack",
]

Code = Literal["bits_back", "prequential", "two_part"]

NOT_ROBUST = (
    "note: only a machine like this one will get the payload back from this run; train it with training.precision=float64 "
    "data.fraction_bits=12 to make that likely elsewhere"
)
IN_FLOAT64 = "note: training.precision=bfloat16 is not used here: what a receiver repeats is trained in float64"

COLUMNS = {
    "gross_weight_bits": "gross weights",
    "refund_bits": "refund",
    "stack_net_bits": "net coded",
    "net_bits": "ledger",
    "overhead_bits": "file overhead",
}


def pack(
    run: Run | Experiment | str | Path,
    out: str | Path | None = None,
    *,
    codec: str | None = None,
    budget_bytes: int | None = None,
    tune: bool = False,
    overrides: Sequence[str] = (),
    progress: bool = True,
) -> Packed:
    """Write a trained network as a file that decodes without the data.

    Args:
        run: a run directory, an opened run, or a trained experiment, whose model ends with the weights of the file.
        out: where the file goes; None writes none, and the bytes are in the result.
        codec: auto, relative_entropy or quantised; default: the configuration's.
        budget_bytes: size of the whole file; blocks are then tuned.
        tune: train on what is not coded yet; of a quantised file: try other grids.
        overrides: of the configuration's section ``pack``, such as ``tuning.steps=400``.
        progress: show bars.

    Raises:
        FileError, LayerError, PriorError, ConfigError: with the fix.
    """
    if out is not None:
        check_new_file(Path(out))
    opened = load_run(run) if isinstance(run, str | Path) else run
    settings = opened.config.pack
    given = [*([f"codec={codec}"] if codec else []), *([f"budget_bytes={budget_bytes}"] if budget_bytes is not None else [])]
    is_quantised = (codec or settings.codec) == QUANTISED.name
    if (tune or (budget_bytes is not None and not is_quantised)) and settings.tuning is None:
        given.insert(0, "tuning={}")
    experiment = opened.experiment() if isinstance(opened, Run) else opened
    packed = pack_experiment(experiment, with_settings(settings, [*given, *overrides]), progress=progress)
    if out is not None:
        write_bytes(Path(out), packed.content)
    return packed


@dataclass(frozen=True)
class Unpacked(Result):
    """Where the network of a model file was written, and how many weights it has."""

    directory: Path
    weights: int

    def to_dict(self) -> dict[str, Any]:
        """Return both."""
        return {"directory": str(self.directory), "weights": self.weights}

    def __str__(self) -> str:
        directory = self.directory
        return (
            f"{self.weights:,} weights are in {directory / 'model.safetensors'}, the configuration in "
            f"{directory / 'config.yaml'}"
        )


def unpack(file: str | Path, out: str | Path, locations: Sequence[str] = ()) -> Unpacked:
    """Write a model file's network as ``out``/model.safetensors, and its configuration as ``out``/config.yaml.

    Args:
        file: what :func:`pack` wrote.
        out: a new directory.
        locations: such as ``network.factory=package.module:function``.

    Raises:
        FileError: for anything but a model file that is whole.
        RunError: when the directory is not new.
    """
    with new_neighbour(Path(out)):
        loaded = load(file, locations)
        write_unpacked(loaded, Path(out))
        return Unpacked(Path(out), sum(weight.posterior.numel for weight in loaded.model.weights))


def send(
    source: Config | Run | str | Path,
    overrides: Sequence[str] = (),
    *,
    code: Code = "bits_back",
    payload: bytes | str | Path | None = None,
    out: str | Path | None = None,
    step: float | str | None = None,
    pad: bool = False,
    progress: bool = True,
) -> Sent | Prequential | TwoPart:
    """Send labels and network: inside a payload, or the labels block by block, or a model file and labels behind it.

    Args:
        source: a configuration or a YAML file, which is trained; or a run, whose network is sent as it is.
        overrides: of a YAML file, such as ``training.epochs=50``.
        code: bits_back, prequential or two_part.
        payload: of a bits-back message, bytes or a file: its bits choose the weights, and come back.
        out: where the message goes; None writes none, and the bytes are in the result.
        step: of a bits-back message, the grid of its weights, a power of two such as ``2^-8``.
        pad: fill a payload that is too short with random bits.
        progress: show bars.

    Raises:
        FileError, ConfigError, LayerError, RunError: with the fix, before anything is trained where that is possible.
    """
    exponent = None if step is None else nameable_exponent(step)
    if out is not None:
        check_new_file(Path(out))
    found: Sent | Prequential | TwoPart
    if code == "bits_back":
        if payload is None:
            raise FileError("a bits-back message needs a payload, whose bits choose the weights; give payload=FILE or bytes")
        content = payload if isinstance(payload, bytes) else read_file(Path(payload))
        found = sender_of(source, overrides, progress=progress).send(content, exponent=exponent, pad=pad)
    else:
        for name, value in (("payload", payload), ("step", step), ("pad", pad or None)):
            if value is not None:
                raise FileError(f"the code {code} chooses the weights itself; leave {name} out")
        found = (_prequential if code == PREQUENTIAL.name else _two_part)(open_source(source, overrides), progress)
    if out is not None:
        write_bytes(Path(out), found.content)
    return found


def check_same_run(run: Path | None, config: Path | None, settings: Config | None) -> None:
    """Raise FileError when a run is given with a file whose settings are not its own."""
    if run is not None and settings is not None and settings != load_run(run).config:
        raise FileError(f"{run} was trained with another configuration than {config}; leave CONFIG out")


def sender_of(source: Config | Run | str | Path, overrides: Sequence[str] = (), *, progress: bool = True) -> Sender:
    """Return a sender of bits-back messages: a run as it is, or what a configuration trains."""
    given = open_source(source, overrides)
    if isinstance(given, Run):
        if given.config.training.precision != "float64" or given.config.data.fraction_bits is None:
            print(NOT_ROBUST, file=sys.stderr)
        return Sender.of_run(given)
    _say_precision(given)
    return Sender.train(given, progress=progress)


def _prequential(source: Config | Run, progress: bool) -> Prequential:
    if isinstance(source, Run):
        raise FileError("the prequential code sends labels, and no network of a run; give a YAML file")
    _say_precision(source)
    return prequential(source, progress=progress)


def _two_part(source: Config | Run, progress: bool) -> TwoPart:
    if isinstance(source, Run):
        return send_two_part(source.experiment(), progress=progress)
    experiment = Experiment.build(source)
    check_targets(experiment)
    experiment.train(None, progress=progress)
    return send_two_part(experiment, progress=progress)


def _say_precision(config: Config) -> None:
    if config.training.precision == "bfloat16":
        print(IN_FLOAT64, file=sys.stderr)


def nameable_exponent(step: float | str) -> int:
    """Return m of a grid step 2^-m that a message can name; raises FileError for any other step."""
    exponent = exponent_of(step)
    check_exponent(exponent)
    return exponent


@dataclass(frozen=True)
class StepTable(TableResult):
    """Gross up, refund up, net flat: what a finer grid of the weights costs in a message."""

    rows: tuple[dict[str, Any], ...]

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each step."""
        return list(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the rows, under one name."""
        return {"steps": self.records()}

    def __str__(self) -> str:
        body = [[row["step"], *(f"{row[name]:,.1f}" for name in COLUMNS)] for row in self.rows]
        return text_table(["step", *COLUMNS.values()], body)


def send_at_steps(
    source: Config | Run | str | Path,
    overrides: Sequence[str] = (),
    *,
    steps: Sequence[float | str],
    payload: bytes | str | Path,
    draws: int = 1,
    pad: bool = False,
    progress: bool = True,
) -> StepTable:
    """Make a bits-back message at several grids of the weights, and write none of them.

    Args:
        source, overrides, payload, pad: as :func:`send` takes them.
        steps: powers of two, such as ``2^-8``.
        draws: average over so many payloads of the same length.
        progress: show bars.

    Raises:
        FileError, ConfigError, LayerError, RunError: with the fix.
    """
    exponents = [nameable_exponent(step) for step in steps]
    content = payload if isinstance(payload, bytes) else read_file(Path(payload))
    sender, rows = sender_of(source, overrides, progress=progress), []
    with tqdm(total=len(exponents) * draws, desc="messages", leave=False, delay=2.0, disable=not progress) as bar:
        for exponent in exponents:
            sent = []
            for number in range(draws):
                other = whiten(content, number) if number else content  # stream 0 is the coder's own
                sent.append(sender.send(other, exponent=exponent, pad=pad))
                bar.update()
            means = {name: sum(getattr(one, name) for one in sent) / draws for name in COLUMNS}
            rows.append({"step": f"2^{-exponent}", **means})
    return StepTable(tuple(rows))


@dataclass(frozen=True)
class ReceivedFile(Result):
    """What came out of a message.

    Attributes:
        directory: where it was written.
        labels: how many.
        weights: how many; None where no network was sent.
        payload: the bytes that chose the weights; None where no payload was sent.
    """

    directory: Path
    labels: int
    weights: int | None = None
    payload: bytes | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the counts, and the directory."""
        size = None if self.payload is None else len(self.payload)
        return {
            "directory": str(self.directory),
            "labels": self.labels,
            "weights": self.weights,
            "payload_bytes": size,
        }

    def __str__(self) -> str:
        if self.payload is not None:
            size = f"a payload of {len(self.payload):,} bytes"
            return f"{self.labels:,} labels, {self.weights:,} weights and {size} are in {self.directory}"
        network = "" if self.weights is None else " and the network that predicts them"
        return f"{self.labels:,} labels{network} are in {self.directory}"


def receive(message: str | Path, out: str | Path, locations: Sequence[str] = (), *, progress: bool = True) -> ReceivedFile:
    """Decode a message into a new directory: labels.npy, and payload and model.safetensors where they were sent.

    Args:
        message: what :func:`send` wrote.
        out: a new directory.
        locations: such as ``data.root=DIR``: where this machine keeps the inputs.
        progress: show bars.

    Raises:
        FileError: for a file that is not a message or is damaged, and for inputs that differ from the sender's.
        RefundLostError: when only the payload cannot be recovered; labels and network have then been written.
        RunError: when the directory is not new.
    """
    path, target = Path(message), Path(out)
    with ExitStack() as held:
        held.enter_context(new_neighbour(target))
        kind = unseal(read_file(path), str(path))[0]
        if kind in (PREQUENTIAL, FIRST_PREQUENTIAL):
            return ReceivedFile(target, len(receive_prequential(path, target, locations, progress=progress)))
        if kind == TWO_PART:
            found = receive_two_part(path, target, locations)
            weights = sum(weight.posterior.numel for weight in found.loaded.model.weights)
            return ReceivedFile(target, len(found.labels), weights)
        received = receive_file(path, target, locations, progress=progress)
        weights = sum(tensor.numel() for tensor in received.weights.values())
        return ReceivedFile(target, len(received.labels), weights, received.payload)
