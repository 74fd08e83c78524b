"""Model and text in one file: the text is coded token by token under the network that the file holds."""

__all__: list[str] = []
