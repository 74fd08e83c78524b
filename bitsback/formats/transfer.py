"""Write runs to files and read files back: the functions pack, unpack, send, send_at_steps and receive."""

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
from bitsback.data.settings import TextSettings
from bitsback.errors import FileError
from bitsback.formats._label_code import check_targets
from bitsback.formats.container import read_file, unseal
from bitsback.formats.message.read import receive_file
from bitsback.formats.message.write import Sender, Sent, check_exponent
from bitsback.formats.model_file.grid_codec import QUANTISED
from bitsback.formats.model_file.read import load, write_unpacked
from bitsback.formats.model_file.write import Packed, pack_experiment, with_settings
from bitsback.formats.prequential.preamble import FIRST_PREQUENTIAL, PREQUENTIAL
from bitsback.formats.prequential.read import receive_prequential
from bitsback.formats.prequential.write import Prequential, prequential
from bitsback.formats.text.text import TEXT, check_whole, receive_text, send_text
from bitsback.formats.two_part import TWO_PART, TwoPart, receive_two_part, send_two_part
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
        run: a run directory, an opened run, or a trained experiment; its model is changed to the weights stored in the file.
        out: path of the new file; None writes no file, and the bytes are in the result.
        codec: ``auto``, ``relative_entropy`` or ``quantised``; default: the configuration's.
        budget_bytes: largest size of the whole file in bytes; for block codes this switches tuning on.
        tune: train the weights that are not coded yet; for a quantised file, search over grids.
        overrides: of the configuration's section ``pack``, such as ``tuning.steps=400``.
        progress: show progress bars.

    Returns:
        the bytes of the file, and the codec, sizes and errors measured on the decoded file.

    Raises:
        FileError: if ``out`` exists or the budget is too small.
        LayerError: if the network has invalid numbers or cannot be described in a file.
        PriorError: if the prior cannot be coded weight by weight.
        ConfigError: if an override is not valid.
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
    """Result of :func:`unpack`.

    Attributes:
        directory: the directory that was written.
        weights: number of coded weights.
    """

    directory: Path
    weights: int

    def to_dict(self) -> dict[str, Any]:
        """Return directory and number of weights, for JSON."""
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
        file: a file that :func:`pack` wrote.
        out: a new directory.
        locations: places on this machine, such as ``network.factory=package.module:function``.

    Returns:
        the directory and the number of weights.

    Raises:
        FileError: if the file is not an intact model file.
        RunError: if the directory is not new.
    """
    with new_neighbour(Path(out)):
        loaded = load(file, locations)
        write_unpacked(loaded, Path(out))
        return Unpacked(Path(out), loaded.weight_count)


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
    """Send labels, with one of three codes.

    ``bits_back`` hides the network and the labels inside a payload, ``prequential`` codes the labels block by block without a
    network, and ``two_part`` writes a model file followed by the labels.

    Args:
        source: a configuration or a YAML file, which is trained; or a run, whose network is sent as it is.
        overrides: of a YAML file, such as ``training.epochs=50``.
        code: ``bits_back``, ``prequential`` or ``two_part``.
        payload: ``bits_back`` only: bytes or a file whose bits select the weights and that the receiver gets back.
        out: path of the new file; None writes no file, and the bytes are in the result.
        step: ``bits_back`` only: grid step of the weights, a power of two such as ``2^-8``; default: below the smallest std.
        pad: ``bits_back`` only: append random bytes to a payload that is too short.
        progress: show progress bars.

    Returns:
        the message and its sizes in bits; the class depends on ``code``.

    Raises:
        FileError: if an argument does not suit the code, the payload is too short, or ``out`` exists.
        ConfigError: if the configuration is not valid.
        LayerError: if a weight has no posterior to draw from.
        RunError: if the run is not finished or not repeatable. All are raised before training where possible.
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
    """Raise FileError when a run and a configuration file are given whose settings differ.

    Args:
        run: run directory, or None.
        config: path of the configuration file, for the error message.
        settings: settings read from that file, or None.

    Raises:
        FileError: if the settings of the run are not those of the file.
    """
    if run is not None and settings is not None and settings != load_run(run).config:
        raise FileError(f"{run} was trained with another configuration than {config}; leave CONFIG out")


def sender_of(source: Config | Run | str | Path, overrides: Sequence[str] = (), *, progress: bool = True) -> Sender:
    """Return a sender of bits-back messages, training one if the source is a configuration.

    Args:
        source: a configuration or a YAML file, which is trained; or a run, which is used as it is.
        overrides: of a YAML file, such as ``training.epochs=50``.
        progress: show progress bars.

    Returns:
        a sender that accepts payloads.
    """
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
    config = source.config if isinstance(source, Run) else source
    is_text = isinstance(config.data, TextSettings)
    if is_text:
        check_whole(config)
    if isinstance(source, Run):
        experiment = source.experiment()
    else:
        experiment = Experiment.build(source)
        if not is_text:
            check_targets(experiment)
        experiment.train(None, progress=progress)
    return (send_text if is_text else send_two_part)(experiment, progress=progress)


def _say_precision(config: Config) -> None:
    if config.training.precision == "bfloat16":
        print(IN_FLOAT64, file=sys.stderr)


def nameable_exponent(step: float | str) -> int:
    """Return m of a grid step 2^-m that a message header can represent; raises FileError for any other step."""
    exponent = exponent_of(step)
    check_exponent(exponent)
    return exponent


@dataclass(frozen=True)
class StepTable(TableResult):
    """Bits of one message at several grid steps.

    As the step shrinks, gross weight bits and refund grow, and their difference stays the same.
    """

    rows: tuple[dict[str, Any], ...]

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each grid step."""
        return list(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the rows under the key ``steps``, for JSON."""
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
    """Encode a bits-back message at several grid steps, without writing any of them.

    Args:
        source: as in :func:`send`.
        overrides: as in :func:`send`.
        steps: grid steps, powers of two such as ``2^-8``.
        payload: as in :func:`send`.
        draws: number of payloads of the same length over which the bits are averaged.
        pad: as in :func:`send`.
        progress: show progress bars.

    Returns:
        one row of bits for each step.

    Raises:
        FileError: if a step is not representable, or the payload is missing or too short.
        ConfigError: if the configuration is not valid.
        LayerError: if a weight has no posterior to draw from.
        RunError: if the run is not finished or not repeatable.
    """
    exponents = [nameable_exponent(step) for step in steps]
    content = payload if isinstance(payload, bytes) else read_file(Path(payload))
    sender, rows = sender_of(source, overrides, progress=progress), []
    with tqdm(total=len(exponents) * draws, desc="messages", leave=False, delay=2.0, disable=not progress) as bar:
        for exponent in exponents:
            sent = []
            for number in range(draws):
                # stream 0 is the one that the coder itself whitens with: it would undo that
                other = whiten(content, number) if number else content
                sent.append(sender.send(other, exponent=exponent, pad=pad))
                bar.update()
            means = {name: sum(getattr(one, name) for one in sent) / draws for name in COLUMNS}
            rows.append({"step": f"2^{-exponent}", **means})
    return StepTable(tuple(rows))


@dataclass(frozen=True)
class ReceivedFile(Result):
    """Contents of a received message.

    Attributes:
        directory: the directory that was written.
        labels: number of labels.
        weights: number of weights; None if no network was sent.
        payload: the recovered payload; None if none was sent.
        of: name of what was counted as labels: labels, or the tokens of a text.
    """

    directory: Path
    labels: int
    weights: int | None = None
    payload: bytes | None = None
    of: str = "labels"

    def to_dict(self) -> dict[str, Any]:
        """Return the directory and the counts, for JSON."""
        size = None if self.payload is None else len(self.payload)
        return {
            "directory": str(self.directory),
            self.of: self.labels,
            "weights": self.weights,
            "payload_bytes": size,
        }

    def __str__(self) -> str:
        if self.payload is not None:
            size = f"a payload of {len(self.payload):,} bytes"
            return f"{self.labels:,} labels, {self.weights:,} weights and {size} are in {self.directory}"
        network = "" if self.weights is None else " and the network that predicts them"
        return f"{self.labels:,} {self.of}{network} are in {self.directory}"


def receive(message: str | Path, out: str | Path, locations: Sequence[str] = (), *, progress: bool = True) -> ReceivedFile:
    """Decode a message into a new directory: labels.npy or text.txt, and payload and model.safetensors where they were sent.

    Args:
        message: a file that :func:`send` wrote.
        out: a new directory.
        locations: places on this machine, such as ``data.root=DIR`` for the inputs.
        progress: show progress bars.

    Returns:
        the directory, the counts and the payload.

    Raises:
        FileError: if the file is not a message or is damaged, or the inputs differ from the sender's; or if this machine's
            arithmetic does in the prequential code, then labels decoded so far are in labels_so_far.npy, -1 for the others.
        RefundLostError: if only the payload cannot be recovered; labels and network have been written.
        RunError: if the directory is not new.
    """
    path, target = Path(message), Path(out)
    with ExitStack() as held:
        held.enter_context(new_neighbour(target))
        kind = unseal(read_file(path), str(path))[0]
        if kind in (PREQUENTIAL, FIRST_PREQUENTIAL):
            return ReceivedFile(target, len(receive_prequential(path, target, locations, progress=progress)))
        if kind == TWO_PART:
            found = receive_two_part(path, target, locations)
            return ReceivedFile(target, len(found.labels), found.loaded.weight_count)
        if kind == TEXT:
            text = receive_text(path, target, locations, progress=progress)
            return ReceivedFile(target, text.tokens, text.loaded.weight_count, of="tokens")
        received = receive_file(path, target, locations, progress=progress)
        weights = sum(tensor.numel() for tensor in received.weights.values())
        return ReceivedFile(target, len(received.labels), weights, received.payload)
