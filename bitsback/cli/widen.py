"""bitsback widen: what wider and narrower posteriors would cost."""

import json as json_library
from typing import Annotated

import typer

from bitsback.cli.ledger import RunArgument
from bitsback.cli.train import JsonOption


def widen(
    run: RunArgument,
    samples: Annotated[int | None, typer.Option(min=1, help="Whole-network draws per width; default: the run's.")] = None,
    json: JsonOption = False,
) -> None:
    """Multiply every posterior std by 1/16 to 16 and show what each width costs.

    A wider posterior lowers the coding cost until the data cost catches up; the trained width sits at the bottom.

    Example: bitsback widen runs/digits
    """
    from bitsback.cli.text import table
    from bitsback.config import load_run
    from bitsback.ledger import shown_bits
    from bitsback.model import width_curve

    e = load_run(run).experiment()
    draws = samples or e.config.ledger.samples
    curve = width_curve(e.model, e.likelihood, e.dataset.train, samples=draws, seed=e.config.seed, progress=True)
    columns = ("gross_weight_bits", "refund_bits", "net_weight_bits", "data_bits", "net_bits")
    rows = [{"factor": factor, **{name: getattr(book, name) for name in columns}} for factor, book in curve.items()]
    if json:
        print(json_library.dumps(rows, indent=2))
        return
    cheapest = min(rows, key=lambda row: row["net_bits"])
    head = ["width", "gross weights", "refund", "net weights", "data", "net bits", ""]
    body = []
    for row in rows:
        mark = "cheapest" if row is cheapest else ""
        weights = shown_bits(row["net_weight_bits"], row["refund_bits"])
        body.append([f"x {row['factor']:g}", *weights, f"{row['data_bits']:,.1f}", f"{row['net_bits']:,.1f}", mark])
    print(table(head, body))
    book = curve[min(curve)]
    print(f"gross and refund on the ledger's grid of {book.grid_step:g}, which is too coarse for them below x 1; net bits with "
          f"{book.hyperparameter_bits:.0f} of hyper-parameters")  # fmt: skip
