"""bitsback compare: the same configuration with several values of one key, side by side."""

import json as json_library
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bitsback.cli.train import ConfigArgument, JsonOption, say_no_page, write_page
from bitsback.errors import ConfigError
from bitsback.ledger.table import shown_error

COLUMNS = ("net_bits", "gross_bits", "refund_bits", "data_bits", "net_weight_bits", "hyperparameter_bits")


def compare(
    context: typer.Context,
    config: ConfigArgument,
    choices: Annotated[list[str], typer.Argument(help="key=a,b,c to compare; key=value to set for all.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Directory that keeps every run; default: none is kept.")] = None,
    json: JsonOption = False,
) -> None:
    """Train once for each value of a key and print net, gross, refund, data, test error and seconds side by side.

    Example: bitsback compare configs/digits.yaml prior.kind=gaussian,laplace,scale_mixture training.epochs=50
    """
    from bitsback.atomic_io import file_name, new_directory
    from bitsback.cli.text import table
    from bitsback.config import load_config
    from bitsback.ledger import shown_bits

    key, values, fixed = split_choices(choices)
    if out is not None:
        context.with_resource(new_directory(out))
    settings = {value: load_config(config, [*fixed, f"{key}={value}"]) for value in values}
    from bitsback.config import Experiment

    experiments = {value: Experiment.build(one) for value, one in settings.items()}
    names = {value: file_name(f"{key}={value}") for value in values}
    if len({name.lower() for name in names.values()}) < len(values):  # of some systems, names that differ by case are one
        names = {value: f"{name}-{number}" for number, (value, name) in enumerate(names.items(), 1)}
    rows: list[dict[str, Any]] = []
    for value, experiment in experiments.items():
        print(f"{key}={value}", file=sys.stderr)
        directory = out / names[value] if out is not None else None
        outcome = experiment.train(directory)
        if directory is not None:
            write_page(experiment, directory)
        book = outcome.ledger
        rows.append(
            {
                key: value,
                **{name: getattr(book, name) for name in COLUMNS},
                "grid_step": book.grid_step,
                "not_charged": list(book.not_charged),
                "warnings": list(book.warnings),
                "test_error": outcome.test_error,
                "error_name": outcome.error_name,
                "seconds": outcome.training_seconds,
            }
        )
    if out is not None:
        directories = [out / name for name in names.values()]
        try:
            from bitsback.report import write_comparison

            write_comparison(directories, out / "report.html")
        except Exception as error:  # as for the page of one run
            say_no_page(error, *directories)
    if json:
        print(json_library.dumps(rows, indent=2))
        return
    head = [key, "net bits", "gross bits", "refund", "data bits", "grid step", "test error", "seconds"]
    body = []
    for row in sorted(rows, key=lambda row: row["net_bits"]):
        test_error = row["test_error"]
        gross, refund, net = shown_bits(row["net_bits"], row["refund_bits"])
        bits = [net, gross, refund, f"{row['data_bits']:,.1f}", f"{row['grid_step']:g}"]
        body.append(
            [row[key], *bits, "" if test_error is None else shown_error(row["error_name"], test_error), f"{row['seconds']:.1f}"]
        )
    print(table(head, body))
    for row in rows:
        for said in row["warnings"]:
            print(f"{key}={row[key]}: {said}")
    if out is not None and (out / "report.html").exists():
        print(f"To look at them: {out / 'report.html'}")


def split_choices(choices: list[str]) -> tuple[str, list[str], list[str]]:
    """The key to vary with its values, and the settings that stay fixed.

    >>> split_choices(["prior.kind=gaussian,laplace", "seed=1"])
    ('prior.kind', ['gaussian', 'laplace'], ['seed=1'])
    """
    several = [choice for choice in choices if "," in choice and not choice.partition("=")[2].startswith(("[", "{"))]
    if len(several) != 1:
        raise ConfigError(f"compare varies exactly one key, as in prior.kind=gaussian,laplace; {len(several)} were given")
    key, equals, values = several[0].partition("=")
    distinct = list(dict.fromkeys(value for value in values.split(",") if value))
    if not equals or not key or len(distinct) < 2:
        raise ConfigError(f"cannot read '{several[0]}'; give a key and two or more values, as in prior.kind=gaussian,laplace")
    return key, distinct, [choice for choice in choices if choice != several[0]]
