"""A training as it goes on, in the terminal: metrics as they are written, and their curves."""

__all__: list[str] = []
