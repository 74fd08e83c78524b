"""Configurations shipped with the package, such as `bitsback train digits`."""

from importlib.resources import as_file, files
from pathlib import Path

from bitsback.errors import ConfigError, near_miss

__all__ = ["configuration_file", "shipped_configurations"]


def shipped_configurations() -> dict[str, Path]:
    """Return the files of the shipped configurations by name.

    A wheel holds the directory ``configs`` inside the package; a checkout has it beside the package.

    Returns:
        path of each YAML file, by its stem.

    >>> "digits" in shipped_configurations()
    True
    """
    with as_file(files("bitsback")) as package:
        directory = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {path.stem: path for folder in (directory, directory / "records") for path in sorted(folder.glob("*.yaml"))}


def configuration_file(path: Path) -> Path:
    """Find the file of a configuration.

    Args:
        path: a file, or the bare name of a shipped configuration.

    Returns:
        ``path`` itself if it exists or is not a bare name, else the shipped file.

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
