"""The terminal: `bitsback watch` follows a training, and the ledger's table survives a pipe."""

import json
import math
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from itertools import pairwise

import pytest

from bitsback.cli.watch import frame
from bitsback.ledger import Entry, Ledger, render, show
from bitsback.terminal.chart import Scale, chart, figures
from bitsback.terminal.live_metrics import CURVES, MOST_POINTS, Progress, Tail

ESCAPE = "\x1b"
LEAVE_SCREEN, SHOW_CURSOR = "\x1b[?1049l", "\x1b[?25h"
CONFIG = "training:\n  epochs: {epochs}\n  early_stop: null\n"


def line_of(epoch, scale=1.0, **changes):
    net = scale * (200 + 4000 / epoch)
    facts = {"epoch": epoch, "net_bits": net, "gross_bits": net + 500, "refund_bits": 500.0, "data_bits": net / 2}
    return {**facts, "lr": 0.01, "beta": 1.0, "test_error": 0.031, "error_name": "error", "seconds": 0.5 * epoch, **changes}


def text_of(*lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def run(tmp_path):
    """A run directory after 12 of 40 epochs."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.yaml").write_text(CONFIG.format(epochs=40))
    (directory / "metrics.jsonl").write_text(text_of(*(line_of(epoch) for epoch in range(1, 13))))
    return directory


def finish(run):
    summary = {"sentence": "The labels cost 4,774 bits without a model; with it 251 bits, model included.", "test_error": 0.011}
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "ledger.json").write_text("{}")


def read(path):
    tail = Tail(path)
    tail.read()
    return tail


def epochs_of(tail):
    return [int(point[0]) for point in tail.curve()]


def test_a_tail_follows_a_file_that_grows_and_waits_for_the_end_of_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert not tail.read()
    whole = text_of(line_of(1), line_of(2))
    path.write_text(whole[:-20])
    assert tail.read()
    assert epochs_of(tail) == [1]
    path.write_text(whole)
    assert tail.read()
    assert not tail.read()
    assert (epochs_of(tail), tail.latest) == ([1, 2], line_of(2))


def test_a_tail_starts_again_when_a_resumed_training_cuts_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text_of(*map(line_of, range(1, 10))))
    tail = read(path)
    path.write_text(text_of(*map(line_of, range(1, 4))))
    tail.read()
    assert epochs_of(tail) == [1, 2, 3]
    other = tmp_path / "new"
    other.write_text(text_of(*map(line_of, range(1, 12))))
    os.replace(other, path)  # another file of the same name, longer than what was read
    tail.read()
    assert epochs_of(tail) == list(range(1, 12))
    path.unlink()
    assert tail.read()
    assert tail.latest is None


def test_lines_that_are_no_metrics_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text_of(line_of(1)) + "{\n[1]\nnull\n{}\n\xff\n" + text_of(line_of(2)) + '"x"\n')
    tail = read(path)
    assert (epochs_of(tail), tail.latest["epoch"]) == ([1, 2], 2)


def test_a_long_training_is_thinned_and_keeps_its_ends(tmp_path):
    path, count = tmp_path / "metrics.jsonl", 3 * MOST_POINTS
    path.write_text(text_of(*map(line_of, range(1, count))))
    epochs = epochs_of(read(path))
    assert len(epochs) <= MOST_POINTS + 1
    assert (epochs[0], epochs[-1]) == (1, count - 1)
    assert {later - earlier for earlier, later in pairwise(epochs[:-1])} == {4}


def test_progress_in_words(run):
    tail = read(run / "metrics.jsonl")
    assert Progress.of(run).text(tail) == "epoch 12 of 40 (30 %), about 14 s left"
    assert Progress.of(run).text(tail, now=time.time() + 300).startswith("epoch 12 of 40 (30 %), silent for 5 min")
    (run / "config.yaml").write_text("training: {epochs: 40, early_stop: {patience_epochs: 3}}")
    assert Progress.of(run).text(tail) == "epoch 12 of 40 (30 %), at most 14 s left"
    (run / "config.yaml").write_text("training: {epochs: 12}")
    assert Progress.of(run).text(tail) == "epoch 12 of 12 (100 %), taking the ledger"
    late = Progress.of(run).text(tail, now=tail.written + 300)
    assert late == "epoch 12 of 12 (100 %), taking the ledger for 5 min 00 s"
    (run / "config.yaml").unlink()
    assert Progress.of(run).text(tail) == "epoch 12"
    finish(run)
    assert Progress.of(run).text(tail) == "finished: 12 epochs in 6.0 s"
    assert Progress.of(run).text(Tail(run / "gone")) == "waiting for the first epoch"


@pytest.mark.parametrize(("width", "height"), [(200, 60), (80, 24), (40, 12), (20, 6), (8, 2)])
@pytest.mark.parametrize("plain", [True, False])
def test_a_frame_fits_the_terminal(run, width, height, plain):
    lines = frame(run, read(run / "metrics.jsonl"), Progress.of(run), width, height, plain=plain)
    assert max(line.cell_len for line in lines) <= width
    assert len(lines) <= max(3, height)
    if plain:
        assert all(line.plain.replace(str(run), "").isascii() for line in lines)


def test_curves_are_labelled_in_the_order_in_which_they_end():
    points = [(float(epoch), 0.0, 900.0, 400.0, 500.0, 100.0) for epoch in range(1, 9)]
    drawn = "\n".join(line.plain for line in chart(points, dict.fromkeys(CURVES, "1"), 80, 20))
    assert re.findall("gross|refund|net|data", drawn) == ["gross", "refund", "net", "data"]
    assert "500 ┤" in drawn


ODD = {
    "one epoch": [(1.0, 0.0, 900.0, 400.0, 500.0, 100.0)],
    "no refund": [(e, 0.0, 400.0, 400.0, 0.0, 100.0) for e in (1.0, 2.0)],
    "net below zero": [(e, 0.0, 400.0, -50.0 * e, 450.0, -200.0) for e in (1.0, 2.0, 3.0)],
    "not finite": [(1.0, 0.0, math.inf, 400.0, math.nan, 100.0), (2.0, 0.0, 500.0, 300.0, 200.0, 100.0)],
    "ends not finite": [(1.0, 0.0, 500.0, 300.0, 200.0, 100.0), (2.0, 0.0, math.inf, 400.0, math.nan, 100.0)],
    "nothing finite": [(e, 0.0, math.inf, math.nan, math.inf, math.nan) for e in (1.0, 2.0)],
    "very far apart": [(e, 0.0, 1e12, 1e12, 10.0, 1e-9) for e in (1.0, 2.0)],
    "many": [(float(e), 0.0, 1e3 + e, 1e3, e + 1.0, 5.0) for e in range(1, 2000)],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_trainings_are_drawn_too(name):
    for rows in (5, 24):
        lines = chart(ODD[name], dict.fromkeys(CURVES, "1"), 80, rows)
        assert len(lines) == rows
        assert {line.cell_len <= 80 for line in lines} == {True}
    assert any("net" in line.plain for line in lines) or name == "nothing finite"


def test_the_scale_is_logarithmic_unless_net_bits_are_negative():
    scale = Scale.of([[100.0, 10.0]], [100.0, 10.0])
    assert scale.is_log
    assert list(scale.ticks(20).values())[-1] == "100"
    linear = Scale.of([[-100.0, 10.0]], [-100.0, 10.0])
    assert not linear.is_log
    assert "0" in linear.ticks(20).values()


def test_gross_less_refund_is_net_in_the_figures():
    metrics = {"net_bits": 1.4e6 + 600, "gross_bits": 3.7e6 + 900, "refund_bits": 2.3e6 + 300, "data_bits": 1e6}
    assert figures(metrics) == ({"gross": "3,701", "net": "1,401", "refund": "2,300", "data": "1,000"}, "kbit")
    metrics |= {"gross_bits": math.inf, "refund_bits": math.inf}
    assert figures(metrics)[0] == {"gross": "inf", "net": "1,401", "refund": "inf", "data": "1,000"}


def test_once_prints_plain_text(run, run_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    said = run_command("watch", run, "--once")
    assert (said.code, said.err) == (0, "")
    assert ESCAPE not in said.out
    assert "epoch 12 of 40" in said.out
    assert "net 533 bits = gross 1,033 - refund 500   test error 3.1 %" in said.out
    assert max(map(len, said.out.splitlines())) <= 70 + len(str(run))


def test_a_finished_run_shows_the_sentence(run, run_command):
    finish(run)
    said = run_command("watch", run)
    assert said.out.endswith("with it 251 bits, model included.\nTest error 1.1 %\n")


def test_json_prints_the_latest_metrics(run, run_command):
    assert json.loads(run_command("watch", run, "--json").out) == line_of(12)
    (run / "metrics.jsonl").write_text("")
    assert "has no metrics yet" in run_command("watch", run, "--json").err


def test_what_is_no_run_is_refused(tmp_path, run_command):
    for place, reason in ((tmp_path, "is not a run directory"), (tmp_path / "gone", "does not exist")):
        said = run_command("watch", place)
        assert (said.code, said.out, said.err.count("\n")) == (1, "", 1)
        assert reason in said.err


def process(*arguments, **environment):
    command = [sys.executable, "-m", "bitsback", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, **environment})


def test_ascii_terminals_get_ascii(run):
    done = process("watch", run, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C")
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert b" gross " in done.stdout


def test_watching_needs_no_torch(run):
    heavy = "print('heavy:', *sorted({'torch', 'numpy'} & set(sys.modules)))"
    code = f"import atexit, sys; atexit.register(lambda: {heavy}); from bitsback.cli import main; main()"
    for arguments in (["--help"], [str(run)]):
        done = subprocess.run([sys.executable, "-c", code, "watch", *arguments], capture_output=True, text=True, check=False)
        assert done.stdout.splitlines()[-1].split() == ["heavy:"]


class Terminal:
    """A command of a process of its own, at a terminal of 90 columns and 24 lines."""

    def __init__(self, *arguments, **environment):
        self.main, side = pty.openpty()
        ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
        env = {"TERM": "xterm-256color", "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **environment}
        command = [sys.executable, *map(str, arguments)]
        self.before = termios.tcgetattr(side)
        self.process = subprocess.Popen(
            command, stdin=side, stdout=side, stderr=side, env=env, preexec_fn=self._control(side), close_fds=True
        )
        self.side, self.seen = side, ""

    @staticmethod
    def _control(side):
        def control():
            os.setsid()
            ioctl(side, termios.TIOCSCTTY, 0)

        return control

    def until(self, wanted):
        """Read until ``wanted`` was written; everything so far."""
        for _ in range(600):
            if wanted in self.seen:
                return self.seen
            if select.select([self.main], [], [], 0.1)[0]:
                self.seen += os.read(self.main, 65536).decode(errors="replace")
            elif self.process.poll() is not None:
                break
        assert wanted in self.seen
        return self.seen

    def end(self):
        """The exit code, everything written, and whether the terminal is as it was."""
        while self.process.poll() is None or select.select([self.main], [], [], 0)[0]:
            if select.select([self.main], [], [], 0.1)[0]:
                self.seen += os.read(self.main, 65536).decode(errors="replace")
        restored = termios.tcgetattr(self.side) == self.before
        os.close(self.main)
        os.close(self.side)
        return self.process.returncode, self.seen, restored


def test_live_curves_follow_the_run_to_its_end(run):
    terminal = Terminal("-m", "bitsback", "watch", run, "--every", "0.1")
    terminal.until("epoch 12 of 40")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(text_of(line_of(13)))
    terminal.until("epoch 13 of 40")
    finish(run)
    code, seen, restored = terminal.end()
    assert (code, restored) == (0, True)
    _, _, after = seen.partition(LEAVE_SCREEN)
    assert "finished: 13 epochs" in after
    assert "with it 251 bits, model included." in after
    assert f"{ESCAPE}[1;38;5;33m" in after  # the net, bold and blue
    assert SHOW_CURSOR in seen


def test_ctrl_c_leaves_and_restores_the_terminal(run):
    terminal = Terminal("-m", "bitsback", "watch", run, "--every", "0.1")
    terminal.until("epoch 12 of 40")
    os.write(terminal.main, b"\x03")
    code, seen, restored = terminal.end()
    assert (code, restored) == (130, True)
    assert LEAVE_SCREEN in seen
    assert SHOW_CURSOR in seen
    assert "Traceback" not in seen


def test_no_color_and_dumb_terminals(run):
    finish(run)
    code, seen, _ = Terminal("-m", "bitsback", "watch", run, NO_COLOR="1").end()
    assert code == 0
    assert "38;5" not in seen
    code, seen, _ = Terminal("-m", "bitsback", "watch", run, TERM="dumb").end()
    assert code == 0
    assert ESCAPE not in seen


def book(name="w"):
    entries = (Entry.of(name, weights=20, net_bits=3.0, refund_bits=10.0, method="closed_form"),)
    return Ledger(
        entries=entries, model_weights=20, data_bits=30.0, uniform_bits=100.0, examples=10, not_charged=("é" * 200,), notes=("x",)
    )  # fmt: skip


def test_a_piped_ledger_is_whole_at_every_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    show(book("a.very.long.name.of.a.weight.tensor" * 4))
    assert capsys.readouterr().out == render(book("a.very.long.name.of.a.weight.tensor" * 4)) + "\n"


SHOW = """
from bitsback.ledger import Entry, Ledger, show
entries = (Entry.of("w\\xe9", weights=20, net_bits=3.0, refund_bits=10.0, method="closed_form"),)
show(Ledger(entries=entries, model_weights=20, data_bits=30.0, uniform_bits=100.0, examples=10))
"""


def test_an_ascii_locale_gets_ascii():
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, check=False, env=environment)
    assert done.returncode == 0
    assert b"\nw\\xe9 " in done.stdout
    assert done.stdout.isascii()


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_a_terminal_gets_bold_totals_and_the_same_text(environment):
    code, seen, _ = Terminal("-c", SHOW, **environment).end()
    assert code == 0
    assert (f"{ESCAPE}[1mtotal" in seen) == (not environment)
    assert (ESCAPE in seen) == (not environment)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", seen).replace("\r\n", "\n")
    piped = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=False, encoding="utf-8")
    assert plain == piped.stdout
