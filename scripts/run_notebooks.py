"""Run the notebooks for real and store their outputs: ``python scripts/run_notebooks.py [NAME ...]``, a NAME such as 00.

Prints the seconds of each. What a run leaves behind beside outputs (times, versions, progress on stderr) is taken out, so that
two runs of the same code store the same text.
"""

import argparse
import os
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
TIMEOUT_SECONDS = 900
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def run(path: Path) -> float:
    """Run one notebook in its folder and write it back; returns the seconds. Raises CellExecutionError, and writes nothing."""
    notebook = nbformat.read(path, as_version=4)
    started = time.perf_counter()
    NotebookClient(
        notebook, timeout=TIMEOUT_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    seconds = time.perf_counter() - started
    clean(notebook)
    nbformat.write(notebook, path)
    return seconds


def clean(notebook: nbformat.NotebookNode) -> None:
    """Take out what differs between two runs of the same code, and join printed lines into one output."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of the notebooks' names; default: all")
    names = tuple(parser.parse_args().names) or ("",)
    os.environ.pop("BITSBACK_TOY", None)
    for path in sorted(FOLDER.glob("*.ipynb")):
        if path.name.startswith(names):
            print(f"{path.stem:<28} {run(path):6.1f} s  {path.stat().st_size / 1000:6.0f} kB", flush=True)


if __name__ == "__main__":
    main()
