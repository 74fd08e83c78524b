"""What was paid: gross bits, the refund, the net. Knows nothing of networks."""

from bitsback.ledger.entry import Entry
from bitsback.ledger.ledger import Ledger
from bitsback.ledger.results import Results, open_results
from bitsback.ledger.table import render, show, shown_bits, shown_error

__all__ = ["Entry", "Ledger", "Results", "open_results", "render", "show", "shown_bits", "shown_error"]
