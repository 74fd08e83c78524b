"""``bitsback schema``: JSON schema of a configuration."""

import json as json_library
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["schema"]


def schema(out: Annotated[Path | None, typer.Option(help="File to write; default: print.")] = None) -> None:
    """Print the JSON schema of a configuration, for completion and checks in an editor.

    Example: bitsback schema --out configs/schema.json
    """
    from bitsback.atomic_io import write_text
    from bitsback.config import json_schema

    text = json_library.dumps(json_schema(), indent=2) + "\n"
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)
