"""The command line: one verb per file. Nothing heavy is imported before a verb runs."""

from bitsback.cli.app import main

__all__ = ["main"]
