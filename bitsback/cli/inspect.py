"""bitsback inspect: what a file holds."""

import typer

from bitsback.cli.train import JsonOption
from bitsback.cli.unpack import FileArgument

__all__ = ["inspect"]


def inspect(context: typer.Context, file: FileArgument, json: JsonOption = False) -> None:
    """Say what a model file or message holds, and where every byte goes.

    Example: bitsback inspect digits.bb
    """
    from bitsback.formats.inspect import inspect as inspected

    found = inspected(file, context.args)
    print(found.to_json() if json else found)
