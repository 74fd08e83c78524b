"""What the README shows, runs."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import bitsback
from bitsback.cli import main
from bitsback.cli.app import COMMANDS
from bitsback.likelihoods import CategoricalLikelihood

ROOT = Path(__file__).parent.parent
TEXTS = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}
READ_IN_ORDER = (
    "quickstart", "your_data", "your_network", "priors", "formats", "codes", "certificates", "cost", "training", "index",
    "records", "run", "vocabulary",
)  # fmt: skip
PAGES = [(ROOT / "docs" / f"{name}.md").read_text() for name in READ_IN_ORDER]
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


def shown_commands():
    """Every `$ bitsback ...` line of README and pages, in the order in which they are read; what needs the real MNIST left out."""
    lines = [line for text in [TEXTS["README.md"], *PAGES] for line in re.findall(r"^\$ (bitsback .*)$", text, re.M)]
    return list(dict.fromkeys(line for line in lines if "mnist" not in line))


@pytest.mark.slow
def test_commands_run(monkeypatch, tmp_path, capsys):
    """Every command that README and pages show, in order, with trainings cut to two epochs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "letter.txt").write_bytes(bytes(range(256)) * 5)
    np.save(tmp_path / "images.npy", np.zeros((2, 1, 8, 8)))
    rng = np.random.default_rng(0)
    for number in range(40):
        place = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(place)
    shutil.make_archive(str(tmp_path / "new"), "zip", tmp_path / "photos")
    np.savez(tmp_path / "features.npz", inputs=rng.normal(size=(500, 6)), targets=rng.integers(0, 3, 500))
    houses = pd.DataFrame({"area": rng.normal(90, 20, 60).round(1), "city": rng.choice(["Rome", "Oslo"], 60)})
    houses.to_csv(tmp_path / "new_houses.csv", index=False)
    houses.assign(price=houses.area * 3).to_csv(tmp_path / "houses.csv", index=False)
    for name in ("story", "another"):
        (tmp_path / f"{name}.txt").write_text("Once upon a time there was a " + "very, very " * 60 + "short story.\n")
    ran = []
    for line in shown_commands():
        words = shlex.split(line)[1:]
        trains = words[0] in ("train", "compare", "send") or (words[0] == "codelengths" and not words[1].startswith("runs"))
        toy = [*TOY, *BLOCKS_TOY] if trains and not {"--resume", "--run"} & set(words) else []
        if words[0] == "train" and "--out" in words:
            shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)  # another page's run of that name
        words = [*("2" if word == "200" else word for word in words), *TUNED_TOY * (words[0] == "pack")]
        monkeypatch.setattr(sys, "argv", ["bitsback", words[0], *words[1:2], *toy, *words[2:]] if toy else ["bitsback", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, f"{line}: {capsys.readouterr().err}"
        ran.append(words[0])
    assert {command.__name__ for command in COMMANDS} <= set(ran)


def test_the_table_of_commands_is_complete():
    for command in COMMANDS:
        assert f"`bitsback {command.__name__}" in (ROOT / "docs" / "run.md").read_text()


def test_the_diff_of_the_loop_runs_before_and_after(capsys):
    """Lines without a sign and with a minus are an ordinary loop; without a sign and with a plus, one counted in bits."""
    lines = re.search(r"```diff\n(.*?)```", TEXTS["README.md"], re.S).group(1).splitlines()
    torch.manual_seed(0)
    x = torch.randn(500, 8)
    names = {
        "torch": torch,
        "bitsback": bitsback,
        "CategoricalLikelihood": CategoricalLikelihood,
        "x": x,
        "y": x[:, :3].argmax(1),
    }
    for sign in "-+":
        exec("\n".join(line[1:] for line in lines if line[0] in (" ", sign)), dict(names))
    assert "net bits" in capsys.readouterr().out


def test_the_front_page_is_short_and_shows_code_early():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 120
    assert len(TEXTS["README.md"].split()) <= 900
    assert lines.index("```diff") < 40


def test_numbers_of_the_front_page_stand_on_a_page():
    """The docs own every number, with its command, seeds and rivals."""
    pages = "".join(PAGES)
    prose = re.sub(r"^```.*?^```|`[^`]*`", "", TEXTS["README.md"], flags=re.S | re.M)
    for number in re.findall(r"(?<![\w.])\d[\d,]*\.\d+|\d{1,3}(?:,\d{3})+", prose):
        assert number in pages, number
