"""``bitsback predict``: predictions of a model file or a run."""

from pathlib import Path
from typing import Annotated

import typer

from bitsback.cli.train import JsonOption
from bitsback.errors import DataError, FileError

__all__ = ["predict"]


def predict(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Model file or run directory.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A table, images (folder, .zip, file), a text, or inputs as stored: .npy, .npz, IDX.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write .csv, .tsv, .parquet, .json, .npz, or the means as .npy.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Weight draws of a run.")] = 20,
    interval: Annotated[float, typer.Option(help="Probability of the interval from low to high, of numbers.")] = 0.9,
    json: JsonOption = False,
) -> None:
    """Predict for new inputs with a model file or a run.

    By the likelihood: a class and its probability, yes or no for each label, a mean and its std, or a rate. Predictions of a
    run are averaged over draws of its posterior. Files and JSON add the entropy of each target, its mutual information with the
    weights, an interval for numbers, and the bits of targets that stand beside the inputs. Of a table, .csv and .parquet files
    hold the rows too.

    Example: bitsback predict digits.bb --data images.npy --out predictions.csv

    Example: bitsback predict runs/houses --data new.csv --out priced.csv
    """
    from bitsback.analysis.predict import predict as predicted
    from bitsback.atomic_io import check_new_file
    from bitsback.model.prediction import check_suffix

    if data is None:
        raise FileError(
            "say which inputs: --data FILE (.csv, .tsv, .parquet, .npy, .npz or IDX; a folder, .zip or file of images; a text "
            "for a run of a text)"
        )
    if not 0 < interval < 1:
        raise DataError(f"--interval is a probability between 0 and 1, got {interval}; give one such as 0.9")
    if out is not None:
        check_new_file(out)
        check_suffix(out)
    if context.args and model.is_dir():
        raise FileError(f"a run knows its places and settings; leave out {context.args[0]}")
    found = predicted(model, data, context.args, draws=samples)
    if out is not None:
        found.save(out, interval)
    if json or out is None:
        print(found.to_json(level=interval) if json else found)
    else:
        print(f"{len(found.answers):,} predictions are in {out}")
