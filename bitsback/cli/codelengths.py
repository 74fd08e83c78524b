"""bitsback codelengths: every code's answer to how many bits the labels cost."""

import json as json_library
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitsback.cli.train import JsonOption
from bitsback.errors import ConfigError
from bitsback.ledger.table import shown_error

if TYPE_CHECKING:
    from bitsback.config import Config, Run


def codelengths(
    source: Annotated[
        Path, typer.Argument(help="Run directory, YAML file, or NPZ file of an encoder's features.", show_default=False)
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="Such as training.epochs=50.", show_default=False)] = None,
    codes: Annotated[str | None, typer.Option(help="Only these, as in uniform,variational,prequential.")] = None,
    regularisation: Annotated[bool, typer.Option("--regularisation", help="Penalties as code lengths: L2, L1, none.")] = False,
    digits: Annotated[bool, typer.Option("--digits", help="Weights rounded to 0 to 6 decimal digits.")] = False,
    json: JsonOption = False,
) -> None:
    """Print what the labels cost under every code, for one data set and one network.

    uniform: no model. float32: a point estimate at 32 bits a weight. quantised: the same on the best grids, as a file. bic,
    laplace: approximations for reference. variational: the net bits of the ledger. realised: network and labels as a file.
    prequential: each block of labels under a network trained on the blocks before. label_spreading, logistic: the same without
    a network, by Zhou's label spreading on the graph of `random_walk_modes`, and by logistic regression on the features (extra
    `rivals`); a and b of the one were chosen on the labels of digits and MNIST, the C of the other is charged.

    An NPZ file (arrays `inputs` and `targets`) is probed with a linear network: MDL probing is one command.

    Example: bitsback codelengths runs/digits --codes uniform,quantised,variational,realised
    bitsback codelengths configs/digits.yaml --codes variational,label_spreading,logistic
    """
    given = _source(source, overrides or [])
    config: Config = given.config if source.is_dir() else given  # type: ignore[union-attr, assignment]
    if regularisation and digits:
        raise ConfigError("--regularisation and --digits are two tables; ask for one of them")
    if regularisation or digits:
        if codes is not None:
            raise ConfigError("--codes chooses rows of the table of codes; leave it out with --regularisation and --digits")
        _study(config, regularisation, json)
        return
    from bitsback.analysis.codelengths import NAMES, Codelengths, check_names

    names = NAMES if codes is None else tuple(dict.fromkeys(code.strip() for code in codes.split(",")))
    check_names(names)
    table = Codelengths(given, names)
    rows = []
    for name in names:
        print(name, file=sys.stderr)
        rows.append(table.row(name))
    if json:
        print(json_library.dumps({row.name: asdict(row) for row in rows}, indent=2))
        return
    head = ["code", "model bits", "data bits", "total bits", "ratio", "test error", "seconds", "decodable here", ""]
    body = [
        [
            row.name,
            *("" if bits is None else f"{bits:,.0f}" for bits in (row.model_bits, row.data_bits, row.total_bits)),
            "" if row.ratio is None else f"{row.ratio:.3g}",
            "" if row.test_error is None else shown_error("error", row.test_error),
            f"{row.seconds:.1f}",
            "yes" if row.decodable else "no",
            row.how,
        ]
        for row in rows
    ]
    _print(head, body)


def _source(source: Path, overrides: list[str]) -> "Config | Run":
    from bitsback.config import load_config

    if source.is_dir():
        from bitsback.config import load_run

        if overrides:
            raise ConfigError("a run keeps its configuration; leave the overrides out, or give a YAML file")
        return load_run(source)
    if source.suffix == ".npz":
        from bitsback.analysis.codelengths import probe_config

        return probe_config(source, overrides)
    return load_config(source, overrides)


def _study(config: "Config", regularisation: bool, json: bool) -> None:
    from bitsback.analysis.regularisation import digits_study, regularisation_study

    rows: list[Any] = list(regularisation_study(config) if regularisation else digits_study(config))
    if json:
        print(json_library.dumps([asdict(row) for row in rows], indent=2))
    elif regularisation:
        print_penalties(rows)
    else:
        head = ["regularisation", "digits", "distinct values", "file bytes", "data bits", "test error"]
        body = [
            [row.regularisation, str(row.digits), f"{row.distinct:,}", f"{row.file_bytes:,}", f"{row.data_bits:,.1f}",
             "" if row.test_error is None else shown_error("error", row.test_error)]
            for row in rows
        ]  # fmt: skip
        _print(head, body)


def print_penalties(rows: list[Any]) -> None:
    """The penalties beside the code lengths, and what the files cost."""
    head = ["", "penalty", "penalty bits", "+ constant", "= code bits", "weights", "dropped"]
    head += ["file bytes", "labels", "total bits", "test error"]
    body = [
        [
            row.regularisation,
            row.formula,
            f"{row.penalty_bits:,.1f}",
            f"{row.constant_bits:,.1f}",
            f"{row.code_bits:,.1f}",
            f"{row.weights:,}",
            f"{row.dropped:,}",
            f"{row.file_bytes:,}",
            f"{row.label_bits:,.0f}",
            f"{row.total_bits:,.0f}",
            "" if row.test_error is None else shown_error("error", row.test_error),
        ]
        for row in rows
    ]
    _print(head, body)
    print("The penalty is the code length of the weights, on a grid of step 2^-7, under a Gaussian (L2) or Laplace (L1) prior,")
    print("up to a constant that no weight can change. Files have the grids that cost least in all; dropped weights are zero.")


def _print(head: list[str], body: list[list[str]]) -> None:
    from bitsback.cli.text import table

    print(table(head, body))
