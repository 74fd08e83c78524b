"""Live display of a training in the terminal: reading of its metrics, and their curves."""

__all__: list[str] = []
