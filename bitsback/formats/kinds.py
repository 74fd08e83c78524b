"""Registry of the kinds of files: each is defined in the module that reads and writes it, and found by its number."""

from dataclasses import dataclass, replace
from importlib import import_module

from bitsback.errors import BitsbackError

__all__ = ["HOMES", "FileKind", "all_kinds", "kind_numbered", "register_kind"]

HOMES = {
    0: "bitsback.formats.message.header",
    1: "bitsback.formats.model_file.block_codec",
    2: "bitsback.formats.model_file.grid_search",
    3: "bitsback.formats.prequential.preamble",
    4: "bitsback.formats.model_file.grid_search",
    5: "bitsback.formats.two_part",
    6: "bitsback.formats.model_file.factory_codec",
    7: "bitsback.formats.text.text",
}
"""Module that registers each kind, by number; imported when a file of the kind is read."""


@dataclass(frozen=True)
class FileKind:
    """Kind of file, in one version of its format.

    Attributes:
        number: number in the high four bits of the file's third byte.
        name: name of the kind, independent of the version.
        version: version of the format; receivers of version 2 repeat a training in float64, those of version 1 did not.
    """

    number: int
    name: str
    version: int = 1

    def __str__(self) -> str:
        """Return the name, followed by the version if a later one is written now.

        >>> str(FileKind(0, "message", 1)), str(FileKind(0, "message", 2))
        ('message_1', 'message')
        """
        written = kind_numbered(self.number)
        return self.name if written is None or self == written else f"{self.name}_{self.version}"

    def of_version(self, version: int) -> "FileKind":
        """Return the same kind in another version."""
        return replace(self, version=version)


_registered: dict[int, FileKind] = {}


def register_kind(kind: FileKind) -> FileKind:
    """Register a kind in the version that is written; raises BitsbackError if its number is taken."""
    if _registered.setdefault(kind.number, kind) != kind:
        raise BitsbackError(f"file kind {kind.number} is registered twice; choose another number")
    return kind


def kind_numbered(number: int) -> FileKind | None:
    """Return the kind of a number, in the version that is written; None if there is none."""
    if number not in _registered and number in HOMES:
        import_module(HOMES[number])
    return _registered.get(number)


def all_kinds() -> dict[str, FileKind]:
    """Return every kind by name, in the version that is written."""
    kinds = [kind_numbered(number) for number in HOMES]
    return {kind.name: kind for kind in kinds if kind is not None}
