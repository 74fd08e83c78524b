"""The command line: one command per file. Nothing heavy is imported before a command runs."""

from bitsback.cli.app import main

__all__ = ["main"]
