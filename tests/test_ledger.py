"""The ledger adds up, covers the model, and says so."""

import io
import json
import math
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitsback.cli.text import Escaping
from bitsback.errors import LedgerError, RunError
from bitsback.ledger import Entry, Ledger, open_results, render, show
from bitsback.ledger.entry import Charge

bits = st.floats(0, 1e6, allow_nan=False)


def book(entries, **changes):
    facts = {
        "model_weights": sum(e.weights for e in entries),
        "data_bits": 30.0,
        "uniform_bits": 100.0,
        "examples": 10,
        **changes,
    }
    return Ledger(entries=tuple(entries), **facts)


@given(st.lists(st.tuples(st.integers(1, 1000), bits, st.floats(-1e6, 1e6, allow_nan=False)), min_size=1, max_size=8))
def test_gross_minus_refund_is_net_in_every_digit_shown(rows):
    ledger = book([Entry.of(f"w{i}", weights=n, net_bits=net, refund_bits=refund) for i, (n, net, refund) in enumerate(rows)])
    for line in render(ledger).splitlines():
        numbers = re.findall(r"-?[\d,]+\.\d(?!\d)", line)
        if line.startswith(("w", "all weights", "total")) and len(numbers) >= 3:
            gross, refund, net = (round(float(number.replace(",", "")) * 10) for number in numbers[:3])
            assert gross - refund == net, line


@given(st.lists(st.tuples(bits, bits), min_size=1, max_size=8), bits)
def test_json_brings_the_ledger_back(rows, data_bits):
    entries = [Entry.of(f"w{i}", weights=2, net_bits=a, refund_bits=b) for i, (a, b) in enumerate(rows)]
    ledger = book(entries, data_bits=data_bits, charges=(Charge("s", 2, 10.0),), not_charged=("x",), notes=("y",))
    again = Ledger.from_json(ledger.to_json())
    assert again == ledger
    assert json.loads(ledger.to_json())["net_bits"] == ledger.net_bits


def test_totals():
    ledger = book([Entry.of("a", weights=3, net_bits=5.0, refund_bits=20.0)], charges=(Charge("s", 2, 10.0),))
    assert (ledger.net_bits, ledger.gross_bits, ledger.hyperparameter_bits) == (55.0, 75.0, 20.0)
    assert (ledger.bits_per_example, ledger.bits_per_weight) == (5.5, 5.0 / 3)
    assert ledger.sentence() == "The labels cost 100 bits without a model; with it 55 bits, model included."


def test_a_ledger_that_does_not_cover_the_model_raises():
    with pytest.raises(LedgerError, match="covers 3 weights but the model has 4"):
        book([Entry.of("a", weights=3, net_bits=1.0, refund_bits=1.0)], model_weights=4)


def test_a_weight_counted_twice_raises():
    with pytest.raises(LedgerError, match="counted twice"):
        book([Entry.of("a", weights=1, net_bits=1.0, refund_bits=1.0)] * 2)


def test_an_entry_that_does_not_add_up_raises():
    with pytest.raises(LedgerError, match="does not add up"):
        Entry("a", 1, gross_bits=3.0, refund_bits=1.0, net_bits=1.0, method="closed_form")


@pytest.mark.parametrize("net", [math.nan, math.inf])
def test_bits_must_be_finite(net):
    with pytest.raises(LedgerError, match="must be finite"):
        Entry.of("a", weights=1, net_bits=net, refund_bits=0.0)


def test_an_entry_covers_something():
    with pytest.raises(LedgerError, match="at least one"):
        Entry.of("a", weights=0, net_bits=0.0, refund_bits=0.0)


def test_an_edited_file_is_refused():
    values = book([Entry.of("a", weights=1, net_bits=1.0, refund_bits=0.0)]).to_dict()
    with pytest.raises(LedgerError, match="the file was edited"):
        Ledger.from_dict({**values, "net_bits": 5.0})
    with pytest.raises(LedgerError, match="not a ledger"):
        Ledger.from_dict({"entries": []})
    with pytest.raises(LedgerError, match="not JSON"):
        Ledger.from_json("{")


@pytest.mark.parametrize("label", ["data_bits", "uniform_bits", "data_bits_stderr", "marginal_bits"])
def test_totals_must_be_finite(label):
    with pytest.raises(LedgerError, match=f"{label} is nan; bits must be finite"):
        book([Entry.of("a", weights=1, net_bits=1.0, refund_bits=0.0)], **{label: math.nan})


def full_book(name="fc.weight", **changes):
    entries = [
        Entry.of(name, weights=1000, net_bits=1234.56, refund_bits=9000.0),
        Entry.of("fc.bias", weights=2, net_bits=4.0, refund_bits=0.0, method="monte_carlo", stderr=0.25),
    ]
    charges = (
        Charge("prior.log_scale[a]", 2, 10.0),
        Charge("prior.log_scale[b]", 3, 10.0),
        Charge("likelihood.log_std", 1, 5.0),
    )
    facts = {"charges": charges, "not_charged": ("the layout",), "notes": ("one seed",), "data_bits_stderr": 1.5, "samples": 1}
    return book(entries, **{**facts, **changes})


def cells(text, name):
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    return re.split(r" {2,}", line)


def test_the_table_says_every_number_of_the_ledger():
    text = str(full_book(marginal_bits=80.0, warnings=("it is not worth it",), given="the inputs"))
    assert text == render(full_book(marginal_bits=80.0, warnings=("it is not worth it",), given="the inputs"))
    assert cells(text, "fc.weight") == ["fc.weight", "1,000", "10,234.6", "9,000.0", "1,234.6", "1.235", "closed_form"]
    assert cells(text, "fc.bias") == ["fc.bias", "2", "4.0", "0.0", "4.0", "2.000", "monte_carlo +- 0.2"]
    assert cells(text, "all weights") == ["all weights", "1,002", "10,238.6", "9,000.0", "1,238.6", "1.236", "grid step 1"]
    hyper = ["hyper-parameters", "6", "55.0", "0.0", "55.0", "5 x prior.log_scale, 1 x likelihood.log_std"]
    assert cells(text, "hyper-parameters") == hyper
    assert cells(text, "data (labels)") == ["data (labels)", "30.0", "0.0", "30.0", "1 draw, +- 1.5"]
    assert cells(text, "total") == ["total", "10,323.6", "9,000.0", "1,323.6", "132.356 bits per example"]
    assert cells(text, "marginal code") == ["marginal code", "80.0", "0.0", "80.0", "10 examples, no inputs"]
    assert text.splitlines()[-5:] == [
        "not charged: the layout",
        "note: one seed",
        "",
        "The labels cost 80 bits without a model; with it 1,324 bits, model included, given the inputs.",
        "it is not worth it",
    ]
    without = render(full_book(samples=3))
    assert "marginal code" not in without
    assert cells(without, "data (labels)")[-1] == "3 draws, +- 1.5"


def test_the_worth_of_a_model_is_held_against_the_cheaper_code():
    entry = Entry.of("a", weights=1, net_bits=50.0, refund_bits=0.0)
    assert book([entry]).is_worth_it  # 80 of 100 bits
    assert not book([entry], marginal_bits=79.0).is_worth_it
    assert book([entry], marginal_bits=120.0).no_model_bits == 100.0


class Terminal(io.TextIOWrapper):
    def __init__(self, encoding="utf-8"):
        super().__init__(io.BytesIO(), encoding, write_through=True)

    def isatty(self):
        return True

    def shown(self):
        return self.buffer.getvalue().decode()


@pytest.fixture
def colours(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return monkeypatch


def test_a_pipe_gets_the_rendered_table(capsys):
    show(full_book())
    assert capsys.readouterr().out == render(full_book()) + "\n"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_wants_no_colours_gets_none(name, value, colours):
    colours.setenv(name, value)
    colours.setattr(sys, "stdout", terminal := Terminal())
    show(full_book())
    assert terminal.shown() == render(full_book()) + "\n"


def test_a_terminal_gets_the_same_text_with_its_totals_bold(colours):
    colours.setattr(sys, "stdout", terminal := Terminal())
    colours.setenv("COLUMNS", "20")
    ledger = full_book(warnings=("it is not worth it",))
    show(ledger)
    lines = terminal.shown().splitlines()
    plain = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in lines]
    assert plain == render(ledger).splitlines()  # nothing is folded at twenty columns
    style = {text.split("  ")[0]: re.findall(r"\x1b\[([\d;]*)m", line) for text, line in zip(plain, lines, strict=True)}
    for bold in ("weights of", "all weights", "total", ledger.sentence()):
        assert style[bold] == ["1", "0"], bold
    for dim in ("not charged: the layout", "note: one seed", plain[1]):
        assert style[dim] == ["2", "0"], dim
    for ordinary in ("fc.weight", "fc.bias", "hyper-parameters", "data (labels)", "uniform code"):
        assert style[ordinary] == [], ordinary
    assert style["it is not worth it"] == ["1;31", "0"]


def test_what_a_terminal_cannot_show_is_escaped(colours):
    terminal = Terminal("ascii")
    colours.setattr(sys, "stdout", Escaping(terminal))
    show(full_book("caf\u00e9\x1b[31m"))
    assert "caf\\xe9\\x1b[31m" in terminal.shown()
    assert "\x1b[1m" in terminal.shown()  # colours go past what escapes


def run_directory(place):
    (place / "checkpoint").mkdir(parents=True)
    (place / "config.yaml").write_text("")
    return place


def test_results_are_read_without_the_network(tmp_path):
    place = run_directory(tmp_path / "run")
    (place / "ledger.json").write_text(full_book().to_json())
    (place / "summary.json").write_text('{"test_error": 0.25}')
    results = open_results(str(place))
    assert results.ledger() == full_book()
    assert results.summary() == {"test_error": 0.25}


def test_what_holds_no_results_is_refused(tmp_path):
    for missing in ("checkpoint", "config.yaml"):
        place = run_directory(tmp_path / missing)
        (place / missing).rename(place / "elsewhere")
        with pytest.raises(RunError, match="is not a run directory"):
            open_results(place)
    place = run_directory(tmp_path / "run")
    with pytest.raises(RunError, match="has no ledger yet; finish it with"):
        open_results(place).ledger()
    (place / "ledger.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="is not UTF-8 text"):
        open_results(place).ledger()
    for content in (None, b"\xff", b"{", b"[" * 100_000):
        if content is not None:
            (place / "summary.json").write_bytes(content)
        with pytest.raises(RunError, match=r"summary\.json cannot be read; finish the run"):
            open_results(place).summary()
