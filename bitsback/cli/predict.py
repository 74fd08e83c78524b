"""bitsback predict: predictions of a model file or a run."""

import json as json_library
from pathlib import Path
from typing import Annotated

import typer

from bitsback.cli.train import JsonOption
from bitsback.errors import FileError


def predict(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Model file or run directory.", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="Inputs as they are stored: .npy, .npz or IDX.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the predictive means here (.npy).")] = None,
    json: JsonOption = False,
) -> None:
    """Predict: classes with their probabilities, or means. A run is averaged over draws of its posterior.

    Example: bitsback predict digits.bb --data images.npy
    """
    from bitsback.files import check_new_file, write_array
    from bitsback.shipping.predict import predict_file, predict_run, read_inputs, rows_of

    if data is None:
        raise FileError("say which inputs: --data FILE (.npy, .npz or IDX)")
    if out is not None:
        check_new_file(out)
    inputs = read_inputs(data)
    if model.is_dir():
        means, names = predict_run(model, inputs)
    else:
        means, names = predict_file(model, inputs, tuple(context.args))
    if out is not None:
        write_array(out, means.numpy())
    rows = rows_of(means, names)
    if json:
        print(json_library.dumps(rows))
    elif out is None:
        for row in rows:
            print("\t".join(str(value) for value in row.values()))
    else:
        print(f"{len(rows):,} predictions are in {out}")
