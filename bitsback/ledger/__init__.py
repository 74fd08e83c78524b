"""What was paid: gross bits, the refund, the net. Knows nothing of networks."""

from bitsback.ledger.entry import Entry
from bitsback.ledger.ledger import Ledger
from bitsback.ledger.rendering import render, show, shown_bits, shown_error
from bitsback.ledger.run_results import Results, open_results

__all__ = ["Entry", "Ledger", "Results", "open_results", "render", "show", "shown_bits", "shown_error"]
