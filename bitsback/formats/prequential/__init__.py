"""Labels in the prequential code: each block under networks that have seen only the blocks before."""

__all__: list[str] = []
