"""``bitsback pack``: model file of a run."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from bitsback.cli.ledger import RunArgument
from bitsback.cli.train import JsonOption
from bitsback.errors import FileError

__all__ = ["Codec", "pack"]

Codec = Literal["auto", "relative_entropy", "quantised"]


def pack(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Model file to write.", show_default=False)] = None,
    codec: Annotated[Codec | None, typer.Option(help="Default: as in the run, else auto, by bits per weight.")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Maximum file size in bytes; blocks are then tuned.")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Train the weights not coded yet; quantised: try other grids.")] = False,
    setting: Annotated[list[str] | None, typer.Option("--set", help="Such as tuning.steps=400 or index_bits=16.")] = None,
    json: JsonOption = False,
) -> None:
    """Write a run's network as a file that is decoded without the data.

    relative_entropy codes each block of weights by its index in a shared random codebook, at about the run's net bits;
    quantised rounds weights to grids and codes them under the prior. Options override the configuration's section `pack`.

    Example: bitsback pack runs/digits -o digits.bb --tune --budget 120
    """
    if out is None:
        raise FileError("say where the model file goes: -o FILE")
    from bitsback.formats.transfer import pack as packed

    found = packed(run, out, codec=codec, budget_bytes=budget, tune=tune, overrides=setting or [])
    print(found.to_json() if json else f"{out}: {found}")
