"""Prequential code: each block of labels is coded under networks trained only on the blocks before it."""

__all__: list[str] = []
