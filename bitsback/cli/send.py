"""bitsback send: labels and network inside a payload, or the labels alone, block by block."""

import json as json_library
import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitsback.cli.send_two_part import send_two_part_file
from bitsback.cli.train import JsonOption
from bitsback.errors import FileError

if TYPE_CHECKING:
    from bitsback.config import Config
    from bitsback.formats.message.write import Sender, Sent
    from bitsback.formats.prequential.write import Prequential


NOT_ROBUST = (
    "note: only a machine like this one will get the payload back from this run; train it with training.precision=float64 "
    "data.fraction_bits=12 to make that likely elsewhere"
)

IN_FLOAT64 = "note: training.precision=bfloat16 is not used here: what a receiver repeats is trained in float64"


class Code(StrEnum):
    """What send writes."""

    BITS_BACK = "bits_back"
    PREQUENTIAL = "prequential"
    TWO_PART = "two_part"


def send(
    config: Annotated[Path | None, typer.Argument(help="YAML file; not needed with --run.", show_default=False)] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Such as training.epochs=50.", show_default=False)] = None,
    payload: Annotated[Path | None, typer.Option(help="Any file: its bits choose the weights, and come back.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the message goes.")] = None,
    run: Annotated[Path | None, typer.Option(help="Send the network of this run instead of training one.")] = None,
    step: Annotated[str | None, typer.Option(help="Grid of the weights, such as 2^-8; several, with commas: a table.")] = None,
    pad: Annotated[bool, typer.Option("--pad", help="Fill a payload that is too short with random bits.")] = False,
    draws: Annotated[int, typer.Option(min=1, help="Average the table over so many draws.")] = 1,
    code: Annotated[
        Code,
        typer.Option(
            help="prequential: blocks of labels, under networks trained on those before. two_part: a model, then labels."
        ),
    ] = (Code.BITS_BACK),
    json: JsonOption = False,
) -> None:
    """Train, and send labels and weights as a bits-back message; the payload that chose the weights is given back in full.

    Example: bitsback send configs/digits.yaml --payload letter.txt -o digits.bbm

    Example: bitsback send configs/prequential_digits.yaml --code prequential -o digits.bbm
    """
    from bitsback.atomic_io import check_new_file, write_bytes
    from bitsback.config import load_config, load_run
    from bitsback.formats.container import read_file
    from bitsback.formats.message.write import Sender, check_exponent

    if code is Code.PREQUENTIAL:
        given = {
            "--payload": payload,
            "--run": run,
            "--step": step,
            "--pad": pad or None,
            "--draws": draws if draws > 1 else None,
        }
        _send_prequential(config, overrides or [], out, [name for name, value in given.items() if value is not None], json)
        return
    if code is Code.TWO_PART:
        if payload is not None or step is not None or pad or draws > 1:
            raise FileError("--code two_part chooses the weights itself; leave out --payload, --step, --pad and --draws")
        send_two_part_file(config, overrides or [], run, out, json)
        return
    exponents = [_exponent(text) for text in step.split(",")] if step else [None]
    if payload is None or (config is None and run is None):
        raise FileError("say what to send: `bitsback send CONFIG --payload FILE -o MSG`, or --run RUN")
    if out is None and len(exponents) == 1 and not json:
        raise FileError("say where the message goes: -o MSG")
    if out is not None and len(exponents) > 1:
        raise FileError("several steps print a table and write no message; give one --step with -o, or leave -o out")
    for exponent in exponents:
        if exponent is not None:
            check_exponent(exponent)
    content = read_file(payload)
    if out is not None:
        check_new_file(out)
    if run is not None:
        opened = load_run(run)
        if config is not None and load_config(config, overrides or []) != opened.config:
            raise FileError(f"{run} was trained with another configuration than {config}; leave CONFIG out")
        sender = Sender.of_run(opened)
        if opened.config.training.precision != "float64" or opened.config.data.fraction_bits is None:
            print(NOT_ROBUST, file=sys.stderr)
    else:
        assert config is not None
        settings = load_config(config, overrides or [])
        _say_precision(settings)
        sender = Sender.train(settings)
    if len(exponents) > 1:
        _table(sender, content, [e for e in exponents if e is not None], draws, pad, json)
        return
    sent = sender.send(content, exponent=exponents[0], pad=pad)
    if out is not None:
        write_bytes(out, sent.content)
    if json:
        print(json_library.dumps(sent.facts(), indent=2))
        return
    print(_text(sent, out))
    if sent.padding_bits:
        print(f"{sent.padding_bits // 8:,} random bytes had to follow the payload: the message carries them for nothing.")


def _send_prequential(config: Path | None, overrides: list[str], out: Path | None, foreign: list[str], json: bool) -> None:
    from bitsback.atomic_io import check_new_file, write_bytes
    from bitsback.config import load_config
    from bitsback.formats.prequential.write import prequential

    if foreign:
        raise FileError(f"--code prequential sends labels, and no weights that a payload could choose; leave out {foreign[0]}")
    if config is None or (out is None and not json):
        raise FileError("say what to send, and where to: `bitsback send CONFIG --code prequential -o MSG`")
    if out is not None:
        check_new_file(out)
    settings = load_config(config, overrides)
    _say_precision(settings)
    coded = prequential(settings)
    if out is not None:
        write_bytes(out, coded.content)
    print(json_library.dumps(coded.facts(), indent=2) if json else _prequential_text(coded, out))


def _say_precision(config: "Config") -> None:
    if config.training.precision == "bfloat16":
        print(IN_FLOAT64, file=sys.stderr)


def _prequential_text(coded: "Prequential", out: Path | None) -> str:
    from bitsback.result import text_table

    rows = []
    for block in coded.blocks:
        bits = [f"{block.bits:,.1f}", f"{block.bits / (block.end - block.start):.4f}"]
        shown = [
            f"{100 * block.error:.2f} %",
            f"{block.calibration.temperature:.2f}",
            f"{block.steps:,}",
            f"{block.seconds:.1f}",
        ]
        rows.append([f"{block.start:,} to {block.end:,}", *bits, *shown])
    test = (
        ""
        if coded.test_error is None
        else f" The last block's predictor errs on {100 * coded.test_error:.2f} % of the test split."
    )
    return (
        f"{text_table(HEAD, rows, left=1)}\n"
        f"{coded.bits:,.1f} bits for {coded.blocks[-1].end:,} labels in the prequential code, {coded.uniform_bits:,.1f} in the "
        f"uniform one.{test}\nThe message{f' in {out}' if out else ''} has {len(coded.content):,} bytes: {coded.header_bits:,} "
        f"bits of configuration and digests, {coded.file_bits - coded.header_bits:,} of labels. It took {coded.seconds:.1f} s."
    )


HEAD = ("labels", "bits", "bits a label", "error", "temperature", "steps", "seconds")


def _exponent(text: str) -> int:
    base, caret, power = text.strip().partition("^")
    try:
        step = float(base) ** int(power) if caret else float(base)
        exponent = -math.log2(step)
        nearest = round(exponent)  # raises for NaN and infinity
    except (ValueError, ArithmeticError) as error:
        raise FileError(f"--step {text} is not a power of two; write 2^-8 or 0.00390625") from error
    if exponent != nearest:
        raise FileError(f"--step {text} is not a power of two; the nearest is 2^{-nearest}")
    return nearest


def _text(sent: "Sent", out: Path | None) -> str:
    from bitsback.result import text_table

    coded, ledger, over = (sent.facts()[name] for name in ("coded", "ledger", "overhead"))
    rows = [
        ["weights, gross", "", f"{coded['gross_weight_bits']:,.1f}"],
        ["refund", "", f"{-coded['refund_bits']:,.1f}"],
        ["weights, net", f"{ledger['net_weight_bits']:,.1f}", f"{coded['gross_weight_bits'] - coded['refund_bits']:,.1f}"],
        ["labels", f"{ledger['data_bits']:,.1f}", f"{coded['label_bits']:,.1f}"],
        ["hyper-parameters", f"{ledger['hyperparameter_bits']:,.1f}", f"{coded['hyperparameter_bits']:,.1f}"],
        ["header, checksum", "", f"{over['header_and_checksum_bits']:,.1f}"],
        ["lanes, rounding", "", f"{over['lanes_and_rounding_bits']:,.1f}"],
        *([["random bytes after the payload", "", f"{sent.padding_bits:,.1f}"]] if sent.padding_bits else []),
        ["message less payload", f"{sent.net_bits:,.1f}", f"{sent.message_bits - sent.payload_bits:,.1f}"],
    ]
    place = f" in {out}" if out else ""
    head = (
        f"A message of {len(sent.content):,} bytes{place} carries a payload of {sent.payload_bits // 8:,} bytes, on a grid of "
    )
    closing = f"Overhead over the ledger of these very weights: {sent.overhead_bits:,.1f} bits."
    return f"{head}2^{round(math.log2(sent.step))}.\n{text_table(['bits', 'ledger', 'message'], rows)}\n{closing}"


def _table(sender: "Sender", content: bytes, exponents: list[int], draws: int, pad: bool, json: bool) -> None:
    """Gross up, refund up, net flat: what a finer grid costs. Every draw takes another payload of the same length."""
    from tqdm import tqdm

    from bitsback.coding.philox import whiten
    from bitsback.result import text_table

    rows = []
    with tqdm(total=len(exponents) * draws, desc="messages", leave=False, delay=2.0) as bar:
        for exponent in exponents:
            sent = []
            for number in range(draws):
                payload = whiten(content, number) if number else content  # stream 0 is the coder's own
                sent.append(sender.send(payload, exponent=exponent, pad=pad))
                bar.update()
            rows.append(
                {"step": f"2^{-exponent}", **{name: sum(getattr(one, name) for one in sent) / draws for name in COLUMNS}}
            )
    if json:
        print(json_library.dumps(rows, indent=2))
        return
    print(
        text_table(
            ["step", *COLUMNS.values()], [[row["step"], *(f"{row[name]:,.1f}" for name in COLUMNS)] for row in rows], left=1
        )
    )


COLUMNS = {
    "gross_weight_bits": "gross weights",
    "refund_bits": "refund",
    "stack_net_bits": "net coded",
    "net_bits": "ledger",
    "overhead_bits": "file overhead",
}
