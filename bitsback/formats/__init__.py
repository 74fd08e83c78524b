"""Read and write the file formats: one folder for each format, its writer beside its reader; FORMAT.md specifies every byte."""

__all__: list[str] = []
