"""bitsback receive: payload, labels and network out of a message."""

from pathlib import Path
from typing import Annotated

import typer

from bitsback.errors import FileError

__all__ = ["LOCATIONS", "OutDirectory", "receive"]

LOCATIONS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Lets a command take places such as --data.root=DIR."""

OutDirectory = Annotated[Path | None, typer.Option("--out", "-o", help="A new directory.", show_default=False)]


def receive(
    context: typer.Context,
    message: Annotated[Path, typer.Argument(help="What send wrote.", show_default=False)],
    out: OutDirectory = None,
) -> None:
    """Decode a message: DIR/payload, DIR/labels.npy and DIR/model.safetensors; of a prequential one DIR/labels.npy alone.

    The network is trained again on the decoded labels to find out which payload chose its weights; with --code prequential,
    one is trained for every block. The inputs are the receiver's own; where they are is said by places such as --data.root=DIR.

    Example: bitsback receive digits.bbm -o received
    """
    if out is None:
        raise FileError("say where the contents go: -o DIR")
    from bitsback.formats.transfer import receive as received

    print(received(message, out, context.args))
