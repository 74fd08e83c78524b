"""Command line, one command per file; torch and pydantic are imported only when a command runs."""

from bitsback.cli.app import main

__all__ = ["main"]
