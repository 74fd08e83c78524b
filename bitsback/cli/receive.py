"""``bitsback receive``: payload, labels and network of a message."""

from pathlib import Path
from typing import Annotated

import typer

from bitsback.errors import FileError

__all__ = ["LOCATIONS", "OutDirectory", "receive"]

LOCATIONS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Typer settings with which a command accepts locations such as --data.root=DIR."""

OutDirectory = Annotated[Path | None, typer.Option("--out", "-o", help="New directory.", show_default=False)]


def receive(
    context: typer.Context,
    message: Annotated[Path, typer.Argument(help="File written by send.", show_default=False)],
    out: OutDirectory = None,
) -> None:
    """Decode a message into DIR/payload, DIR/labels.npy and DIR/model.safetensors; a prequential one into DIR/labels.npy.

    The network is trained again on the decoded labels to recover the payload that chose its weights; for a prequential
    message, one network is trained for every block. The inputs are the receiver's own; locations such as --data.root=DIR
    say where they are.

    Example: bitsback receive digits.bbm -o received
    """
    if out is None:
        raise FileError("say where the contents go: -o DIR")
    from bitsback.formats.transfer import receive as received

    print(received(message, out, context.args))
