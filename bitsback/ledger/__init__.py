"""Ledgers of description lengths: gross bits, refund and net bits. Plain numbers, independent of networks."""

from bitsback.ledger._ledger import Ledger
from bitsback.ledger._run_results import Results, open_results
from bitsback.ledger.entry import Entry
from bitsback.ledger.rendering import render, show, shown_bits, shown_error

__all__ = ["Entry", "Ledger", "Results", "open_results", "render", "show", "shown_bits", "shown_error"]
