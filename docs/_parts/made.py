"""Files that a build writes beside the pages: written where they changed, removed where nobody makes them any more."""

from pathlib import Path


class Made:
    """Writes below ``root``, and remembers what it wrote."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._kept: set[Path] = set()

    def write(self, name: str, content: str | bytes) -> None:
        """Write ``content`` to ``root``/``name``, unless that is what it holds."""
        path = self.root / name
        self._kept.add(path)
        data = content.encode() if isinstance(content, str) else content
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def remove_others(self, *directories: str) -> None:
        """Remove files of earlier builds from these directories."""
        for directory in directories:
            for path in (self.root / directory).rglob("*"):
                if path.is_file() and path not in self._kept:
                    path.unlink()
