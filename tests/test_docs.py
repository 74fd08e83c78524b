"""What the documentation shows, runs; the site builds without a warning, and forgets no public name."""

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import bitsback
from bitsback.cli.app import COMMANDS, app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {page.name: page.read_text() for page in sorted(DOCS.glob("*.md"))}
MADE_ELSEWHERE = {"benchmarks.md"}  # its commands are those of scripts/


def blocks(language):
    return [(name, code) for name, text in PAGES.items() for code in re.findall(rf"```{language}\n(.*?)```", text, re.S)]


OF_SEVERAL_PROCESSES = "scale.md"
"""Page whose Python runs in tests/test_ranks.py, in two processes."""


def sessions():
    """Python blocks of one page, in order, each with the text block that follows it at once: what it prints."""
    shape = r"^```(?:python|\{code-block\} python\n:caption: bitsback)\n(.*?)^```\n(?:\n```text\n(.*?)```)?"
    found = {name: re.findall(shape, text, re.S | re.M) for name, text in PAGES.items()}
    return {name: parts for name, parts in found.items() if parts and name != OF_SEVERAL_PROCESSES}


@pytest.mark.parametrize("name", sessions())
def test_the_python_of_a_page_runs_in_order(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for code, expected in sessions()[name]:
        line = PAGES[name][: PAGES[name].index(code)].count("\n")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile("\n" * line + code, str(DOCS / name), "exec"), names)
        if expected:
            assert said.getvalue() == expected


def test_every_python_block_is_found():
    pages = [text for name, text in PAGES.items() if name != OF_SEVERAL_PROCESSES]
    shown = sum(len(re.findall(r"^```(?:python|\{code-block\} python)$", text, re.M)) for text in pages)
    assert shown == sum(len(parts) for parts in sessions().values()) > 10


@pytest.mark.parametrize(("name", "code"), blocks("yaml"), ids=lambda value: value[:20])
def test_yaml_blocks_are_configurations(name, code, tmp_path):
    from bitsback.config import load_config

    (tmp_path / "shown.yaml").write_text(code)
    load_config(tmp_path / "shown.yaml")


def commands():
    lines = [(name, line) for name, text in PAGES.items() for line in re.findall(r"^\$ (.*)$", text, re.M)]
    return [(name, line) for name, line in lines if name not in MADE_ELSEWHERE]


@pytest.mark.parametrize(("name", "line"), commands(), ids=lambda value: value[:60])
def test_commands_are_verbs_with_their_options(name, line, monkeypatch):
    """Every `$ bitsback ...` line parses; the README's run. Files of the repository that it names are there."""
    monkeypatch.chdir(ROOT)
    line = line.removeprefix("torchrun --nproc-per-node=2 -m ")
    program, command, *words = shlex.split(line)
    assert program == "bitsback"
    command = typer.main.get_command(app).commands[command]
    with command.make_context(command, list(words)) as context:
        assert not context.args, f"{name}: {line}: not understood: {context.args}"
    for word in words:
        assert not word.startswith("configs/") or (ROOT / word).is_file(), f"{name}: there is no {word}"


def test_overrides_on_command_lines_are_settings():
    from bitsback.config import load_config

    for _, line in commands():
        _, _, *words = shlex.split(line)
        if words and words[0].startswith("configs/"):
            given = [word.partition(",")[0] for word in words[1:] if re.match(r"[a-z_.]+=", word)]
            load_config(ROOT / words[0], given)


def test_numbers_of_prose_are_those_of_the_tables():
    """Pages that tell invent nothing: a figure with a comma or a point stands where it was measured, or in a command's output."""
    outputs = "".join(text for page in PAGES.values() for text in re.findall(r"^```.*?^```", page, re.S | re.M))
    known = outputs + "".join(PAGES[name] for name in ("benchmarks.md", "records.md", "priors.md", "codes.md"))
    for name in (
        "index.md",
        "idea.md",
        "formats.md",
        "certificates.md",
        "cost.md",
        "quickstart.md",
        "your_data.md",
        "your_network.md",
    ):
        prose = re.sub(r"^```.*?^```|`[^`]*`|\$[^$]*\$", "", PAGES[name], flags=re.S | re.M)
        for number in re.findall(r"(?<![\w.])\d[\d,]*\.\d+|\d{1,3}(?:,\d{3})+", prose):
            assert number in known, f"{name}: where does {number} come from?"


def reference():
    """The module that writes the API reference."""
    sys.path.insert(0, str(DOCS / "_parts"))
    try:
        return importlib.import_module("api")
    finally:
        sys.path.pop(0)


def test_every_public_name_stands_on_one_page():
    """Under whichever name: what `bitsback` and a name space both offer is one thing, in one place."""
    api = reference()
    listed = [name for names in api.pages().values() for name in names]
    things = [id(api.thing(name)) for name in listed]
    assert len(things) == len(set(things))
    assert {f"bitsback.{name}" for name in bitsback.SUBMODULES} <= set(api.SPACES)
    for space in api.SPACES:
        missing = [name for name in importlib.import_module(space).__all__ if id(api.thing(f"{space}.{name}")) not in things]
        assert not missing, f"docs/_parts/api.py gives no page to these names of {space}"


def build(out):
    """Build the site; a warning is an error."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(out / "trees")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(DOCS), str(out / "html")], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.mark.slow
def test_the_site_builds_and_is_whole(tmp_path):
    """One test, because one build serves all."""
    site = build(tmp_path)
    check_public_names(site)
    check_verbs_and_sections(site)
    check_nothing_is_loaded_from_a_network(site)
    check_links_between_pages(site)


def check_public_names(site):
    """Every public name stands on the page that the reference gives it, and nothing of a private module is shown."""
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        found = InventoryFile.load(file, "", lambda base, uri: uri)
    pages = {name: item.uri for kind, names in found.items() if kind.startswith("py:") for name, item in names.items()}
    for page, names in reference().pages().items():
        wrong = [name for name in names if not pages.get(name, "").startswith(f"reference/{page}.html#")]
        assert not wrong, f"give these a docstring where they are defined: {wrong}"
    assert not [name for name in pages if re.search(r"\._[a-z]\w*\.", name)]
    for page in (site / "reference").glob("*.html"):
        raw = r":(?:class|func|meth|mod|attr|data):|object at 0x|bitsback\.(?:\w+\.)*_[a-z]\w*"
        assert not re.findall(raw, page.read_text()), page.name
    assert "&gt;&gt;&gt;" not in (site / "reference" / "settings.html").read_text()


def check_verbs_and_sections(site):
    from bitsback.config.schema import Config

    commands, settings = ((site / "reference" / f"{name}.html").read_text() for name in ("commands", "settings"))
    for command in COMMANDS:
        assert f'id="{command.__name__}"' in commands
    for section in Config.model_fields:
        assert f">{section}<" in settings


def check_nothing_is_loaded_from_a_network(site):
    loads = r"<(?:script|img|iframe|source|link)\b[^>]*(?:src|href)=[\"'](?:https?:)?//[^\"']*"
    for page in site.rglob("*.html"):
        assert not re.findall(loads, page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.findall(r"@import|url\([\"']?(?:https?:)?//", style.read_text()), style


def check_links_between_pages(site):
    for page in site.rglob("*.html"):
        for place in re.findall(r"href=\"([^\"#:?]*)[^\":]*\"", page.read_text()):
            assert (page.parent / place).exists(), f"{page.name} points to {place}"
