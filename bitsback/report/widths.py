"""Width curve of a report: the ledger at the trained width, and estimated differences from it at other widths."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from bitsback.data import Examples
from bitsback.ledger import Entry, Ledger
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel, evaluate, widened
from bitsback.model.draws import SHOWN_AFTER_SECONDS
from bitsback.posteriors import GaussianPosterior
from bitsback.report._budget import operations, subsample_to_budget
from bitsback.report._sampled import exact, sampled

__all__ = ["FACTORS", "Widths", "widths"]

FACTORS = tuple(2.0 ** (k / 2) for k in range(-8, 9))
"""Factors on the trained width, 1/16 to 16, two per octave."""
OPERATIONS = 2.5e10
"""Floating-point operations for the data bits at one width: about half a second."""
LEAST_DRAWS = 5


@dataclass(frozen=True)
class Widths:
    """Ledgers by width factor, with the number of draws and examples from which differences of data bits are estimated."""

    curve: dict[float, Ledger]
    draws: int
    examples: int

    @property
    def cheapest(self) -> float:
        """Factor of the lowest net bits."""
        return min(self.curve, key=lambda factor: self.curve[factor].net_bits)


def widths(
    model: BayesianModel,
    likelihood: Likelihood,
    examples: Examples,
    book: Ledger,
    *,
    factors: Sequence[float] = FACTORS,
    seed: int = 0,
    progress: bool = False,
) -> Widths:
    """Estimate the ledger at wider and narrower posteriors from the ledger at the trained width.

    At factor 1 all numbers are the ledger's. At other factors, net weight bits and data bits are the ledger's plus a
    difference estimated with the same noise at both widths, on the draws and examples that the compute budget allows (all of
    them for a small network). The grid is the ledger's at every width, as in :func:`bitsback.width_curve`.

    Args:
        model: with Gaussian posteriors; restored afterwards.
        likelihood: of the targets.
        examples: training examples.
        book: ledger at the trained width.
        factors: on every posterior std.
        seed: of the draws.
        progress: show a progress bar after two seconds.

    Returns:
        Ledgers by factor.

    Raises:
        LedgerError: the model is a point estimate.
    """
    few, draws = subsample_to_budget(examples, book.samples, OPERATIONS, operations(model, examples), least=LEAST_DRAWS)
    scale = len(examples) / len(few)
    wide = [(weight, exact(weight.prior)) for weight in model.weights if isinstance(weight.posterior, GaussianPosterior)]
    moments = {weight.name: (sampled(weight, prior), prior) for weight, prior in wide}
    data_bits, weight_bits = {}, {}
    each = list(dict.fromkeys([1.0, *factors]))
    bar = tqdm(each, desc="widths", leave=False, disable=not progress, delay=SHOWN_AFTER_SECONDS)
    for factor in bar:
        with widened(model, factor):
            data_bits[factor] = scale * evaluate(model, likelihood, few, samples=draws, seed=seed).data_bits
        weight_bits[factor] = {name: some.net_bits(prior, factor) for name, (some, prior) in moments.items()}
    curve = {}
    for factor in factors:
        gained = {name: weight_bits[factor][name] - weight_bits[1.0][name] for name in moments}
        curve[factor] = replace(
            book,
            entries=tuple(_entries(book, gained, factor)),
            data_bits=book.data_bits + (data_bits[factor] - data_bits[1.0]),  # difference first: exactly zero at factor 1
        )
    return Widths(curve, draws, len(few))


def _entries(book: Ledger, gained: dict[str, float], factor: float) -> Iterator[Entry]:
    octaves = math.log2(factor)
    for entry in book.entries:
        if entry.name not in gained:
            yield entry
            continue
        net_bits = max(0.0, entry.net_bits + gained[entry.name])  # an estimate from a sample may fall below zero
        refund_bits = entry.refund_bits + entry.weights * octaves
        yield Entry.of(entry.name, weights=entry.weights, net_bits=net_bits, refund_bits=refund_bits, method=entry.method)
