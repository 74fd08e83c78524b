"""Codecs: what a ledger reports, as bytes that decode."""
