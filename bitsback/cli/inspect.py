"""``bitsback inspect``: contents of a model file or message."""

import typer

from bitsback.cli.train import JsonOption
from bitsback.cli.unpack import FileArgument

__all__ = ["inspect"]


def inspect(context: typer.Context, file: FileArgument, json: JsonOption = False) -> None:
    """List the contents of a model file or message, with the bytes of each part.

    Example: bitsback inspect digits.bb
    """
    from bitsback.formats.inspect import inspect as inspected

    found = inspected(file, context.args)
    print(found.to_json() if json else found)
