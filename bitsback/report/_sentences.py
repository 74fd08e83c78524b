"""Texts and tables of a report: totals, four questions with answers, and facts of a run."""

import math

from bitsback import __version__
from bitsback.ledger import Ledger
from bitsback.ledger.rendering import shown_bits, shown_error
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.report._html import MINUS, shown
from bitsback.report._observation import Observation
from bitsback.report.plots.style import octave

__all__ = ["Rows", "answers", "calibration_said", "cards", "draws_said", "example_rows", "fact_rows", "first_title"]

Rows = list[list[str]]


def cards(book: Ledger) -> list[tuple[str, str, str, str]]:
    """Return colour, label, number and remark of each total."""
    gross, refund, net = (text.rpartition(".")[0] for text in shown_bits(round(book.net_weight_bits), round(book.refund_bits)))
    saved = book.no_model_bits / book.net_bits if book.net_bits > 0 else 0.0
    more = f"1/{saved:,.0f} of what they cost without a model" if saved >= 1.5 else "with the model inside"
    spread = f"; ± {shown(book.data_bits_stderr)}" if book.data_bits_stderr else ""
    return [
        ("gross", "Weights, gross", gross, f"on a grid of {_step(book.grid_step)}"),
        ("refund", f"{MINUS} refund", refund, "given back to the receiver"),
        ("net", "= weights, net", net, f"{shown(book.bits_per_weight)} bits for each of {book.weights:,}"),
        ("hyper", "+ hyper-parameters", shown(book.hyperparameter_bits), f"{_numbers(book)} learned beside the weights"),
        ("data", f"+ data: the {book.described}", shown(book.data_bits), f"given the weights{spread}"),
        ("net", "= net bits, in all", shown(book.net_bits), more),
    ]


def _step(step: float) -> str:
    return octave(step) if math.log2(step).is_integer() else f"{step:.2g}"


def _numbers(book: Ledger) -> str:
    count = sum(charge.numbers for charge in book.charges)
    return f"{count:,} number{'s' * (count != 1)}"


def answers(seen: Observation) -> list[tuple[str, str]]:
    """Return the questions of the report with their answers."""
    book = seen.book
    model_bits = book.net_weight_bits + book.hyperparameter_bits
    found = [
        ("What did the model cost?",
         f"{shown(model_bits)} bits net: {shown(book.net_weight_bits)} for {book.weights:,} weights, "
         f"{shown(book.hyperparameter_bits)} for hyper-parameters. With the {book.described}, {shown(book.net_bits)} bits."),
    ]  # fmt: skip
    if seen.widths is None:
        return [*found, ("What was given back?", "Nothing: a point estimate has no refund.")]
    share = book.refund_bits / book.gross_weight_bits if book.gross_weight_bits > 0 else 0.0
    found.append(
        ("What was given back?",
         f"{shown(book.refund_bits)} of the {shown(book.gross_weight_bits)} gross bits of the weights ({share:.0%}).")
    )  # fmt: skip
    twice = seen.widths.curve[2.0]
    more, data = twice.net_bits - book.net_bits, twice.data_bits - book.data_bits
    found.append(
        ("And if every posterior were twice as wide?",
         f"Net {shown(twice.net_bits)} bits, {_change(more)}: weights {_change(more - data)}, data {_change(data)}.")
    )  # fmt: skip
    return [*found, ("Which prior was cheapest?", _cheapest(seen))]


def _change(bits: float) -> str:
    return f"{shown(abs(bits))} {'more' if bits >= 0 else 'less'}"


def _cheapest(seen: Observation) -> str:
    books = seen.other_priors
    order = sorted(books, key=lambda kind: books[kind].net_bits)
    first, second = order[0], order[1]
    trained = f"trained here for {seen.own_prior}"
    own = "the one it was trained for" if first == seen.own_prior else f"although it was {trained}"
    own += f", given {books[first].given}" if books[first].given else ""
    between = books[second].net_bits - books[first].net_bits
    return (
        f"{first} with {shown(books[first].net_bits)} bits, {own}; next comes {second}, {shown(between)} bits more "
        "for the same weights, not trained anew."
    )


def draws_said(seen: Observation) -> str:
    """Return a sentence on the draws and examples behind the data bits at other widths; empty for a point estimate."""
    if seen.widths is None:
        return ""
    few, every = seen.widths.examples, seen.book.examples
    among = f"all {every:,}" if few == every else f"{few:,} of {every:,}"
    return f"Data bits at other widths: the ledger's, plus a difference from {seen.widths.draws} draws on {among} examples."


def first_title(seen: Observation) -> str:
    """Return the heading of the first layer's pictures."""
    if seen.first is None or seen.first.mean.ndim == 2:
        return "The first weights"
    return "Filters of the first layer"


def calibration_said(seen: Observation) -> str:
    """Return the caption of the calibration curve."""
    looked = seen.test or seen.train
    which = "test" if seen.test else "training"
    count = int(seen.experiment.likelihood.judged(looked.targets).sum())
    return (
        f"How often the network is right when it is so sure: {count:,} {which} examples, probabilities averaged over "
        f"{looked.draws} draw{'s' * (looked.draws != 1)} of the weights. The number at a point counts its examples."
    )


def example_rows(seen: Observation, most: int) -> Rows:
    """Return the table of the most expensive training examples: number, target, prediction, bits.

    Args:
        seen: the run.
        most: number of examples.

    Returns:
        Rows, the first with the titles.
    """
    train, head = seen.train, ["training example", seen.experiment.likelihood.described[:-1], "said", "bits"]
    rows = [head]
    for index in train.most_expensive(most).tolist():
        said, target = train.predicted[index], train.targets[index]
        if seen.has_classes:
            texts = [seen.class_name(int(target)), seen.class_name(int(said.argmax()))]
        else:
            said = said.argmax(-1) if isinstance(seen.experiment.likelihood, CategoricalLikelihood) and said.numel() else said
            texts = [", ".join(f"{number:.4g}" for number in tensor.flatten().tolist()[:8]) for tensor in (target, said)]
        rows.append([f"{int(train.numbers[index]):,}", *texts, shown(float(train.bits[index]))])
    return rows


def fact_rows(seen: Observation) -> Rows:
    """Return the table of test error, seconds and versions."""
    summary, book = seen.run.summary(), seen.book
    rows = [["fact", "value"], ["training examples", f"{book.examples:,}"], ["weights", f"{book.weights:,}"]]
    name = seen.experiment.likelihood.error_name
    if summary.get(f"test_{name}") is not None:
        rows.append(["test error", shown_error(name, summary[f"test_{name}"])])
    rows += [["epochs", f"{summary['epochs']:,}"], ["seconds of training", f"{summary['training_seconds']:.1f}"]]
    rows.append(["draws behind the data bits", f"{book.samples:,}"])
    return [
        *rows,
        *([name, text] for name, text in summary["versions"].items()),
        ["bitsback, for this page", __version__],
    ]
