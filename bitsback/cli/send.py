"""``bitsback send``: labels as a bits-back, prequential or two-part message."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bitsback.cli.train import JsonOption
from bitsback.errors import FileError

__all__ = ["Code", "check_options", "send"]


class Code(StrEnum):
    """Code of a message."""

    BITS_BACK = "bits_back"
    PREQUENTIAL = "prequential"
    TWO_PART = "two_part"


CodeOption = Annotated[
    Code,
    typer.Option(help="prequential: labels in blocks, networks trained on the blocks before. two_part: a model, then labels."),
]


def send(
    config: Annotated[Path | None, typer.Argument(help="YAML file; not needed with --run.", show_default=False)] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Such as training.epochs=50.", show_default=False)] = None,
    payload: Annotated[Path | None, typer.Option(help="Any file; its bits select the weights and are refunded.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Message to write.")] = None,
    run: Annotated[Path | None, typer.Option(help="Send the network of this run instead of training one.")] = None,
    step: Annotated[str | None, typer.Option(help="Grid step, such as 2^-8; several, with commas, print a table.")] = None,
    pad: Annotated[bool, typer.Option("--pad", help="Append random bits to a payload that is too short.")] = False,
    draws: Annotated[int, typer.Option(min=1, help="Weight draws over which the table is averaged.")] = 1,
    code: CodeOption = Code.BITS_BACK,
    json: JsonOption = False,
) -> None:
    """Train, and write labels and weights as a bits-back message; the receiver recovers the payload in full.

    Example: bitsback send configs/digits.yaml --payload letter.txt -o digits.bbm

    Example: bitsback send configs/prequential_digits.yaml --code prequential -o digits.bbm
    """
    from bitsback.config.from_data import read_config

    given = {"--payload": payload, "--run": run, "--step": step, "--pad": pad or None, "--draws": draws if draws > 1 else None}
    check_options(code, config, out, [name for name, value in given.items() if value is not None], step, json)
    settings = None if config is None else read_config(config, overrides or [])  # report YAML errors before the import of torch
    from bitsback.formats.transfer import check_same_run, send_at_steps
    from bitsback.formats.transfer import send as sent

    check_same_run(run, config, settings)
    source = run or settings or Path()
    if step is not None and "," in step:
        table = send_at_steps(source, steps=step.split(","), payload=payload or b"", draws=draws, pad=pad)
        print(table.to_json() if json else table)
        return
    found = sent(source, code=code.value, payload=payload, out=out, step=step, pad=pad)
    print(found.to_json() if json else found.told(out))


def check_options(code: Code, config: Path | None, out: Path | None, given: list[str], step: str | None, json: bool) -> None:
    """Check that options are compatible.

    Args:
        code: of the message.
        config: YAML file, if given.
        out: message to write, if given.
        given: names of the other options that are given.
        step: one or several grid steps.
        json: whether JSON is printed.

    Raises:
        FileError: options exclude each other, or one is missing.
    """
    nowhere = out is None and not json
    if code is Code.PREQUENTIAL and given:
        raise FileError(f"--code prequential sends labels, and no weights that a payload could choose; leave out {given[0]}")
    if code is Code.PREQUENTIAL and (config is None or nowhere):
        raise FileError("say what to send, and where to: `bitsback send CONFIG --code prequential -o MSG`")
    if code is Code.TWO_PART and set(given) - {"--run"}:
        raise FileError("--code two_part chooses the weights itself; leave out --payload, --step, --pad and --draws")
    if code is Code.TWO_PART and ((config is None) == ("--run" not in given) or nowhere):
        raise FileError("say what to send, and where to: `bitsback send CONFIG --code two_part -o MSG`, or --run RUN alone")
    if code is not Code.BITS_BACK:
        return
    if step is not None:
        from bitsback.coding.lattice import exponent_of

        for part in step.split(","):
            exponent_of(part)
    if "--payload" not in given or (config is None and "--run" not in given):
        raise FileError("say what to send: `bitsback send CONFIG --payload FILE -o MSG`, or --run RUN")
    several = step is not None and "," in step
    if nowhere and not several:
        raise FileError("say where the message goes: -o MSG")
    if out is not None and several:
        raise FileError("several steps print a table and write no message; give one --step with -o, or leave -o out")
