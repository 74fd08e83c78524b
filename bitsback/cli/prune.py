"""bitsback prune: what a run costs when only the weights above their noise are kept."""

import json as json_library
from typing import TYPE_CHECKING, Annotated

import typer

from bitsback.cli.ledger import RunArgument
from bitsback.cli.receive import OutDirectory
from bitsback.cli.train import JsonOption
from bitsback.ledger.table import shown_error

if TYPE_CHECKING:
    from bitsback.analysis.prune import Pruning
    from bitsback.formats.model_file.write import Packed


def prune(
    context: typer.Context,
    run: RunArgument,
    keep_snr: Annotated[float, typer.Option("--keep-snr", help="Weights with |mean|/std below it become zero.")] = 1.0,
    out: OutDirectory = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Whole-network draws per threshold; default: the run's.")] = None,
    curve: Annotated[bool, typer.Option("--curve/--no-curve", help="Show other thresholds too.")] = True,
    json: JsonOption = False,
) -> None:
    """Set weights below a signal-to-noise to zero, and show error and bits against the fraction kept.

    Which weights are kept is said for each tensor: a count, and log2 of the ways to choose so many. The kept ones cost their
    KL under the prior, the others nothing more. With -o, DIR/pruned.bb is the pruned network as a model file, quantised, and
    DIR/curve.json the curve.

    Example: bitsback prune runs/digits --keep-snr 1 -o runs/digits-pruned
    """
    from bitsback.analysis.prune import prune as prune_experiment
    from bitsback.atomic_io import new_neighbour, whole_directory, write_bytes, write_text
    from bitsback.config import load_run

    if out is not None:
        context.with_resource(new_neighbour(out))
    found = prune_experiment(load_run(run).experiment(), keep_snr, curve=curve, samples=samples, progress=True)
    text = json_library.dumps(found.facts(), indent=2)
    if out is not None:
        with whole_directory(out) as place:
            write_bytes(place / "pruned.bb", found.file.content)
            write_text(place / "curve.json", text + "\n")
    print(text if json else _shown(found))
    if out is not None and not json:
        print(f"The pruned network is in {out / 'pruned.bb'}, the curve in {out / 'curve.json'}")


def _shown(found: "Pruning") -> str:
    from bitsback.cli.text import table

    error_name, asked, file = found.file.error_name, found.asked, found.file
    cheapest = min(found.curve, key=lambda point: point.net_bits)
    rows = []
    for point in found.curve:
        marks = ["asked"] * (point is asked) + ["cheapest"] * (point is cheapest and len(found.curve) > 1)
        errors = [shown_error(error_name, error) for error in (point.train_error, point.test_error) if error is not None]
        bits = [point.mask_bits, point.kept_bits, point.model_bits, point.data_bits, point.net_bits]
        row = [f"{point.keep_snr:.4g}", f"{point.kept:,}", f"{100 * point.fraction_kept:.1f} %"]
        rows.append([*row, *(f"{value:,.1f}" for value in bits), *errors, ", ".join(marks)])
    head = ["keep snr", "weights", "kept", "which bits", "kept bits", "model bits", "data bits", "net bits", "train error"]
    head += ["test error"] * (asked.test_error is not None) + [""]
    return "\n".join([
        table(head, rows),
        f"model bits: which weights are kept, their net bits, {asked.other_bits:,.1f} of hyper-parameters and other numbers; "
        f"errors averaged over {found.samples:,} draws" + (f"; given {found.given}" if found.given else ""),
        f"pruned at {asked.keep_snr:g}, as a quantised model file: {_shown_file(file)}",
        f"with every weight, by the same codec: {_shown_file(found.unpruned)}",
    ])  # fmt: skip


def _shown_file(file: "Packed") -> str:
    kind, error = ("training", file.train_error) if file.test_error is None else ("test", file.test_error)
    size, data = f"{len(file.content):,} bytes", f"{file.train_data_bits:,.1f} data bits"
    return f"{size}, {data}, {kind} error {shown_error(file.error_name, error)}"
