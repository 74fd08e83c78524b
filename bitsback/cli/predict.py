"""``bitsback predict``: predictions of a model file or a run."""

from pathlib import Path
from typing import Annotated

import typer

from bitsback.cli.train import JsonOption
from bitsback.errors import FileError

__all__ = ["predict"]


def predict(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Model file or run directory.", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="Inputs as stored: .npy, .npz or IDX.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the predictive means to this .npy file.")] = None,
    json: JsonOption = False,
) -> None:
    """Predict for new inputs with a model file or a run.

    By the likelihood: a class and its probability, yes or no for each label, a mean and its std, or a rate. Predictions of a
    run are averaged over draws of its posterior.

    Example: bitsback predict digits.bb --data images.npy
    """
    from bitsback.analysis.predict import predict as predicted
    from bitsback.atomic_io import check_new_file, write_array

    if data is None:
        raise FileError("say which inputs: --data FILE (.npy, .npz or IDX)")
    if out is not None:
        check_new_file(out)
    found = predicted(model, data, context.args)
    if out is not None:
        write_array(out, found.means.numpy())
    if json or out is None:
        print(found.to_json() if json else found)
    else:
        print(f"{len(found.answers):,} predictions are in {out}")
