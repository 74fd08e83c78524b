"""``bitsback compare``: one configuration with several values of one key."""

from pathlib import Path
from typing import Annotated

import typer

from bitsback.cli.train import ConfigArgument, JsonOption

__all__ = ["compare"]


def compare(
    config: ConfigArgument,
    choices: Annotated[list[str], typer.Argument(help="key=a,b,c to compare; key=value set in all.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Directory for the runs; default: none is kept.")] = None,
    json: JsonOption = False,
) -> None:
    """Train once for each value of a key and print a table of bits, test error and seconds.

    Example: bitsback compare configs/digits.yaml prior.kind=gaussian,laplace,scale_mixture training.epochs=50
    """
    from bitsback.config.choices_of_key import split_choices
    from bitsback.config.from_data import read_config

    key, values, overrides = split_choices(choices)
    for value in values:  # report YAML errors before the slow import of torch
        read_config(config, [*overrides, f"{key}={value}"])
    from bitsback.runs import compare as compared

    found = compared(config, key, values, overrides, out=out)
    print(found.to_json() if json else found)
    if found.report is not None and not json:
        print(f"To look at them: {found.report}")
