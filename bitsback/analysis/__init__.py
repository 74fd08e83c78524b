"""Analyses of a run, a model file or a configuration; each returns a table."""

__all__: list[str] = []
