"""The ledger adds up, covers the model, and says so."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitsback.errors import LedgerError
from bitsback.ledger import Entry, Ledger, render
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
