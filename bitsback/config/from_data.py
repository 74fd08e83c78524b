"""Configurations of data files: ``bitsback train table.csv target=price`` needs no YAML."""

from collections.abc import Sequence
from pathlib import Path

from bitsback.config.load import load_config, validated
from bitsback.config.schema import Config
from bitsback.data.settings import registry
from bitsback.errors import DataError, RunError

__all__ = ["config_of_data", "config_to_train", "is_run", "read_config"]

KINDS = {".csv": "table", ".tsv": "table", ".parquet": "table", ".zip": "images", ".txt": "text"}
"""Kinds of data, by the suffix of the file that holds them."""


ADVICE = {
    **dict.fromkeys((".xls", ".xlsx", ".ods"), "tables are .csv, .tsv or .parquet files; save the sheet as CSV"),
    **dict.fromkeys((".tab", ".dat"), "tables are .csv, .tsv or .parquet files; rename it, and set delimiter= if need be"),
    ".npz": "name it in a YAML file: data: {kind: npz, path: FILE}",
    **dict.fromkeys((".png", ".jpg", ".jpeg"), "give a folder or a .zip file of images, with a folder for each class"),
}
"""Fixes for files that hold data and cannot be trained on by themselves, by suffix."""


def config_of_data(path: Path, overrides: Sequence[str] = ()) -> Config | None:
    """Return the configuration of a file or folder that holds data, whose other sections are chosen when the data are read.

    Args:
        path: of any file.
        overrides: as :func:`bitsback.load_config` takes them; ``target=price`` is short for ``data.target=price``, as is every
            other key of the data section.

    Returns:
        the configuration; None if the file does not hold data, by its suffix.

    Raises:
        ConfigError: for an override that is not valid.
        DataError: if there is no such file.

    >>> config_of_data(Path("digits.yaml")) is None
    True
    """
    kind = _kind(path)
    if kind is None and path.suffix.lower() in ADVICE and path.is_file():
        raise DataError(f"{path} is no configuration, and data are not read from it alone: {ADVICE[path.suffix.lower()]}")
    if kind is None:
        return None
    if not path.exists():
        raise DataError(f"there is no file {path}; give the path of an existing one")
    own = registry[kind].model_fields
    full = [f"data.{text}" if text.partition("=")[0].partition(".")[0] in own else text for text in overrides]
    return validated({"data": {"kind": kind, "path": str(path)}}, full, {}, str(path))


def _kind(path: Path) -> str | None:
    """Return the kind of the data at a path, or None."""
    if path.is_dir():
        is_run = (path / "config.yaml").is_file()
        return "images" if not is_run and any(inner.is_dir() for inner in path.iterdir()) else None
    return KINDS.get(path.suffix.lower())


def is_run(path: Path) -> bool:
    """Return whether a path is a directory that does not hold data, and may be a run.

    >>> is_run(Path("digits.yaml"))
    False
    """
    return path.is_dir() and _kind(path) is None


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration from a YAML file, or make that of a data file.

    Args:
        path: a YAML file, the name of a shipped one, or a data file or folder.
        overrides: as :func:`config_of_data` takes them.

    Returns:
        the validated configuration.
    """
    return config_of_data(Path(path), overrides) or load_config(path, overrides)


def config_to_train(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read the configuration of a new run.

    Args:
        path: a YAML file, or a data file or folder.
        overrides: as :func:`config_of_data` takes them.

    Returns:
        the validated configuration.

    Raises:
        RunError: if the path is a run, which is continued with ``--resume``, or a directory without folders of images.
    """
    if is_run(path):
        raise RunError(
            f"{path} is a directory; to continue a run: bitsback train {path} --resume; images lie in a folder for each class, "
            f"such as {path / 'cat' / '1.png'}"
        )
    return read_config(path, overrides)
