"""bitsback codelengths: every code's answer to how many bits the labels cost."""

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
    if regularisation and digits:
        raise ConfigError("--regularisation and --digits are two tables; ask for one of them")
    if (regularisation or digits) and codes is not None:
        raise ConfigError("--codes chooses rows of the table of codes; leave it out with --regularisation and --digits")
    from bitsback.config import Config, load_config

    given: Config | Path = source
    if not source.is_dir() and source.suffix != ".npz":  # what is wrong with the YAML is said before torch is there
        given, overrides = load_config(source, overrides or []), None
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
