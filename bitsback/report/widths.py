"""The width curve of a report: the ledger's own numbers at the trained width, differences from there at the others."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from bitsback.data import Examples
from bitsback.ledger import Entry, Ledger
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel, evaluate, widened
from bitsback.model.accounting import SHOWN_AFTER_SECONDS
from bitsback.posteriors import GaussianPosterior
from bitsback.report._budget import affordable, operations
from bitsback.report._sampled import exact, sampled

__all__ = ["FACTORS", "Widths", "widths"]

FACTORS = tuple(2.0 ** (k / 2) for k in range(-8, 9))
"""From a sixteenth of the trained width to sixteen times it, two steps an octave."""
OPERATIONS = 2.5e10
"""For the data bits of one width: about half a second."""
LEAST_DRAWS = 5


@dataclass(frozen=True)
class Widths:
    """Ledgers by width factor, and how many draws and examples are behind the differences of their data bits."""

    curve: dict[float, Ledger]
    draws: int
    examples: int

    @property
    def cheapest(self) -> float:
        """The factor of the lowest net bits."""
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
    """What wider and narrower posteriors would cost, beginning from the ledger ``book`` of the trained width.

    At factor 1 every number is the ledger's. At the others, net weight bits and data bits are the ledger's plus a difference
    that is found with the same noise at both widths, from as many draws and examples as a few seconds allow (all of them
    for a small network). The grid is the ledger's at every width, as in :func:`bitsback.width_curve`.

    Raises:
        LedgerError: for a point estimate, which has no width.
    """
    few, draws = affordable(examples, book.samples, OPERATIONS, operations(model, examples), least=LEAST_DRAWS)
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
            data_bits=book.data_bits + (data_bits[factor] - data_bits[1.0]),  # a difference first: at factor 1 it is zero
        )
    return Widths(curve, draws, len(few))


def _entries(book: Ledger, gained: dict[str, float], factor: float) -> Iterator[Entry]:
    octaves = math.log2(factor)
    for entry in book.entries:
        if entry.name not in gained:
            yield entry
            continue
        net_bits = max(0.0, entry.net_bits + gained[entry.name])  # a sample of the weights may overshoot
        refund_bits = entry.refund_bits + entry.weights * octaves
        yield Entry.of(entry.name, weights=entry.weights, net_bits=net_bits, refund_bits=refund_bits, method=entry.method)
