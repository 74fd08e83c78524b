"""Configurations that come with the package: `bitsback train digits` needs no file of one's own."""

from importlib.resources import as_file, files
from pathlib import Path

from bitsback.errors import ConfigError, near_miss

__all__ = ["configuration_file", "shipped_configurations"]


def shipped_configurations() -> dict[str, Path]:
    """Return the files of the configurations that come with the package, by name.

    A wheel holds the directory ``configs`` inside of the package; a checkout has it beside the package.

    >>> "digits" in shipped_configurations()
    True
    """
    with as_file(files("bitsback")) as package:
        directory = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {path.stem: path for folder in (directory, directory / "records") for path in sorted(folder.glob("*.yaml"))}


def configuration_file(path: Path) -> Path:
    """Return the file that is meant: ``path`` itself, or where there is none, the shipped configuration of that name.

    Raises:
        ConfigError: for a bare name that is neither.
    """
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path
    shipped = shipped_configurations()
    if path.name not in shipped:
        raise ConfigError(
            f"there is no file {path} and no shipped configuration of that name{near_miss(path.name, shipped)}; "
            f"shipped are: {', '.join(shipped)}"
        )
    return shipped[path.name]
