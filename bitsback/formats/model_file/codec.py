"""The contract of a codec of model files, and the registry in which codecs are found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A stretch of a file: what is in it, and how many bits it takes."""

    name: str
    bits: float
