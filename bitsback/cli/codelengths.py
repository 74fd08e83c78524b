"""``bitsback codelengths``: code length of the labels under several codes."""

from pathlib import Path
from typing import Annotated

import typer

from bitsback.cli.train import JsonOption
from bitsback.errors import ConfigError
from bitsback.result import Result

__all__ = ["codelengths"]


def codelengths(
    source: Annotated[
        Path, typer.Argument(help="Run directory, YAML file, or NPZ file of an encoder's features.", show_default=False)
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="Such as training.epochs=50.", show_default=False)] = None,
    codes: Annotated[str | None, typer.Option(help="Codes to compute, such as uniform,variational; default: all.")] = None,
    regularisation: Annotated[bool, typer.Option("--regularisation", help="Instead, compare L2, L1 and no penalty.")] = False,
    digits: Annotated[bool, typer.Option("--digits", help="Instead, round weights to 0 to 6 decimal digits.")] = False,
    json: JsonOption = False,
) -> None:
    """Print the bits of the labels under several codes, for one data set and one network.

    uniform: no model. float32: point estimate, 32 bits a weight. quantised: point estimate on the best grids, as a file. bic,
    laplace: approximations for reference. variational: net bits of the ledger. realised: network and labels as a file.
    prequential: each block of labels under a network trained on the blocks before. label_spreading, logistic: prequential
    codes without a network, by Zhou's label spreading on the graph of `random_walk_modes`, and by logistic regression on the
    features (extra `rivals`). Label spreading has fixed a and b, chosen on digits and MNIST; the choice of C is charged.

    For an NPZ file (arrays `inputs` and `targets`), a linear network on its features is probed (MDL probing).

    Example: bitsback codelengths runs/digits --codes uniform,quantised,variational,realised
    bitsback codelengths configs/digits.yaml --codes variational,label_spreading,logistic
    """
    _check_options(codes, regularisation, digits)
    from bitsback.config import Config
    from bitsback.config.from_data import is_run, read_config

    given: Config | Path = source
    if not is_run(source) and source.suffix != ".npz":  # report YAML errors before the slow import of torch
        given, overrides = read_config(source, overrides or []), None
    from bitsback.analysis.codelengths import codelengths as coded
    from bitsback.analysis.codelengths import configuration_of
    from bitsback.analysis.regularisation import digits_study, regularisation_study

    found: Result
    if regularisation or digits:
        found = (regularisation_study if regularisation else digits_study)(configuration_of(given, overrides or []))
    else:
        named = None if codes is None else [code.strip() for code in codes.split(",")]
        found = coded(given, overrides or [], codes=named)
    print(found.to_json() if json else found)


def _check_options(codes: str | None, regularisation: bool, digits: bool) -> None:
    """Raise ConfigError if options of different tables are given."""
    if regularisation and digits:
        raise ConfigError("--regularisation and --digits are two tables; ask for one of them")
    if (regularisation or digits) and codes is not None:
        raise ConfigError("--codes chooses rows of the table of codes; leave it out with --regularisation and --digits")
