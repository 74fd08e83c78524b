"""Model files: a network that decodes without the data it was trained on."""

__all__: list[str] = []
