"""The bits-back message: labels and weights inside a payload that comes out again."""

__all__: list[str] = []
