"""``bitsback unpack``: network of a model file."""

from pathlib import Path
from typing import Annotated

import typer

from bitsback.cli.receive import OutDirectory
from bitsback.errors import FileError

__all__ = ["FileArgument", "unpack"]

FileArgument = Annotated[Path, typer.Argument(help="Model file.", show_default=False)]


def unpack(context: typer.Context, file: FileArgument, out: OutDirectory = None) -> None:
    """Write a model file's network as DIR/model.safetensors, and its configuration as DIR/config.yaml.

    Example: bitsback unpack digits.bb -o digits
    """
    if out is None:
        raise FileError("say where the network goes: -o DIR")
    from bitsback.formats.transfer import unpack as unpacked

    print(unpacked(file, out, context.args))
