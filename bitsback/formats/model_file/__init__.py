"""A network for a receiver without the data."""

__all__: list[str] = []
