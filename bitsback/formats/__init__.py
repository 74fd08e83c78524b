"""What a file is: one folder for each format, its writer beside its reader. FORMAT.md says every byte."""

__all__: list[str] = []
