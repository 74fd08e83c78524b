"""What the README shows, runs."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from bitsback.cli import main
from bitsback.cli.app import COMMANDS

ROOT = Path(__file__).parent.parent
TEXTS = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}
TOY = ["training.epochs=2", "ledger.samples=2"]
BLOCKS_TOY = [
    "prequential.blocks.first=400",
    "prequential.least_steps=5",
    "pack.tuning={steps: 2, balance_steps: 2, groups: 2}",
]
TUNED_TOY = ["--set", "tuning.steps=2", "--set", "tuning.balance_steps=2"]


def blocks(language):
    return [(name, code) for name, text in TEXTS.items() for code in re.findall(rf"```{language}\n(.*?)```", text, re.S)]


@pytest.mark.parametrize(("name", "code"), blocks("python"), ids=lambda value: value[:20])
def test_python_blocks_run(name, code, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("name", "code"), blocks("yaml"), ids=lambda value: value[:20])
def test_yaml_blocks_are_configurations(name, code, monkeypatch, tmp_path):
    from bitsback.config import load_config

    (tmp_path / "shown.yaml").write_text(code)
    load_config(tmp_path / "shown.yaml")


def test_commands_run(monkeypatch, tmp_path, capsys):
    """Every `$ bitsback ...` line, in order, with trainings cut to two epochs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "letter.txt").write_bytes(bytes(range(256)) * 5)
    np.save(tmp_path / "images.npy", np.zeros((2, 1, 8, 8)))
    ran = []
    for line in re.findall(r"^\$ (bitsback .*)$", TEXTS["README.md"], re.M):
        words = shlex.split(line)[1:]
        if "mnist" in line:
            continue  # needs the real MNIST; test_configs trains these configurations on made-up pictures
        trains = words[0] in ("train", "compare", "send") or (words[0] == "codelengths" and words[1].startswith("configs"))
        toy = [*TOY, *BLOCKS_TOY] if trains else []
        words = [*("2" if word == "200" else word for word in words), *TUNED_TOY * (words[0] == "pack")]
        monkeypatch.setattr(sys, "argv", ["bitsback", words[0], *words[1:2], *toy, *words[2:]] if toy else ["bitsback", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, f"{line}: {capsys.readouterr().err}"
        ran.append(words[0])
    assert {command.__name__ for command in COMMANDS} - {"schema"} <= set(ran)


def test_the_table_of_verbs_is_complete():
    for command in COMMANDS:
        assert f"`bitsback {command.__name__}" in TEXTS["README.md"]
