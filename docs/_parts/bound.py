"""The notebooks, copied with the outputs that they hold; nothing is run."""

import json
import re
from pathlib import Path
from typing import Any

from made import Made
from text import toctree

SOURCE = Path(__file__).parents[2] / "notebooks"
INTRODUCTION = """# Notebooks

In the order in which the idea unfolds. They lie in `notebooks/` of the repository with the outputs shown here; each runs
in under five minutes on one core.

"""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)\s]+)\)")
NONE = "There are none in this copy of the repository.\n"


def readable(path: Path) -> bool:
    """True for a notebook that has been finished: JSON, with a heading to begin with."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError):
        return False
    return bool(cells) and "".join(cells[0]["source"]).startswith("# ")


def standing(notebook: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The notebook without links to files that are no pages here; their text stays."""

    def link(found: re.Match[str]) -> str:
        return found[0] if found[2].partition("#")[0] in names else found[1]

    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = LINK.sub(link, "".join(cell["source"]))
    return notebook


def make(made: Made) -> None:
    """Write notebooks/index.md, and a copy of every notebook."""
    found = [path for path in sorted(SOURCE.glob("*.ipynb")) if readable(path)]
    names = {path.name for path in found}
    for path in found:
        notebook = standing(json.loads(path.read_text(encoding="utf-8")), names)
        made.write(f"notebooks/{path.name}", json.dumps(notebook, ensure_ascii=False, indent=1))
    made.write("notebooks/index.md", INTRODUCTION + (toctree([path.stem for path in found], "titlesonly") if found else NONE))
