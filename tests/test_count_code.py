"""The exact code of counts: as long as the probabilities of scipy say, and back to the same counts."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bitsback.coding import elementary
from bitsback.coding.ans import Stack
from bitsback.coding.combinators import raw_bits
from bitsback.coding.counts import MOST_LOG_MEAN, count_bits, counts
from bitsback.errors import FileError

UNIT = 4096


def distribution(log_mean, log_dispersion=None):
    """The distribution of scipy for numbers in units of 2^-12 nats."""
    mean = np.exp(log_mean / UNIT)
    if log_dispersion is None:
        return stats.poisson(mean)
    r = np.exp(log_dispersion / UNIT)
    return stats.nbinom(r, r / (r + mean))


def overhead_bits(log_mean, log_dispersion=None):
    """Mean code length less the entropy, summed over all counts with a probability that matters."""
    exact = distribution(log_mean, log_dispersion)
    low, high = max(0, int(exact.ppf(1e-13)) - 1), int(exact.ppf(1 - 1e-13)) + 2
    assert high - low < 3_000_000
    mean = 0.0
    for start in range(low, high, 50_000):
        count = np.arange(start, min(start + 50_000, high))
        bits = count_bits(np.full(len(count), log_mean), count, log_dispersion)
        mean += float((exact.pmf(count) * (bits + exact.logpmf(count) / np.log(2))).sum())
    return mean


RATES = [1e-9, 0.01, 0.1, 0.7, 1, 3, 10, 100, 255, 256, 257, 1000, 10_000, 100_000, 2**20]


@pytest.mark.parametrize("rate", RATES)
def test_a_poisson_count_costs_what_its_probability_says(rate):
    assert -1e-9 < overhead_bits(round(np.log(rate) * UNIT)) < 0.002


@pytest.mark.parametrize("dispersion", [1e-6, 0.05, 0.5, 1, 3, 7.9, 8.1, 30, 1e3, 8e6])
@pytest.mark.parametrize("mean", [0.01, 1, 12, 300, 10_000])
def test_a_negative_binomial_count_costs_what_its_probability_says(mean, dispersion):
    log_dispersion = 128 * round(32 * np.log(dispersion))
    if mean / dispersion < 80_000 or mean <= 0.01:
        assert -1e-9 < overhead_bits(round(np.log(mean) * UNIT), log_dispersion) < 0.002


@pytest.mark.parametrize("log_dispersion", [None, -4 * UNIT, 0, 2 * UNIT, 3 * UNIT, 16 * UNIT - 128])
def test_each_probability_by_itself(log_dispersion):
    """Counts near the mean, whose buckets hold one count each, cost what scipy says to a hundredth of a bit."""
    for log_mean in (-3 * UNIT, 0, 3000, 4 * UNIT):
        exact = distribution(log_mean, log_dispersion)
        count = np.arange(60)
        wanted = -exact.logpmf(count) / np.log(2)
        near = wanted < 15
        assert near.any()
        bits = count_bits(np.full(60, log_mean), count, log_dispersion)
        assert np.abs(bits - wanted)[near].max() < 0.01


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_counts_come_back_whatever_they_are(data):
    """Round trips with escapes, of any mean and any number of lanes; the bits are those that are stated."""
    n = data.draw(st.integers(0, 40))
    log_mean = np.array(data.draw(st.lists(st.integers(-(10**7), MOST_LOG_MEAN), min_size=n, max_size=n)), dtype=np.int64)
    one = st.one_of(st.integers(0, 300), st.integers(0, 2**48 - 1))
    count = np.array(data.draw(st.lists(one, min_size=n, max_size=n)), dtype=np.int64)
    log_dispersion = data.draw(st.one_of(st.none(), st.integers(-512, 511).map(lambda level: 128 * level)))
    stack = Stack.empty(2 ** data.draw(st.integers(0, 3)))
    raw_bits(np.full(64, 20)).push(stack, np.arange(64))
    before = stack.bits
    codec = counts(log_mean, log_dispersion)
    codec.push(stack, count)
    stated = float(count_bits(log_mean, count, log_dispersion).sum())
    assert abs(stack.bits - before - stated) < 0.01 + 1e-4 * stated
    assert codec.pop(stack).tolist() == count.tolist()
    assert stack.bits == before


def test_large_rates_and_rates_of_nothing():
    rng = np.random.default_rng(0)
    log_mean = np.concatenate([np.full(300, MOST_LOG_MEAN), np.full(300, -(2**40))])
    count = np.concatenate([rng.poisson(2**20, 300), np.zeros(300, dtype=np.int64)])
    stack = Stack.empty()
    counts(log_mean).push(stack, count)
    assert stack.bits < 300 * 12.2 + 1
    assert counts(log_mean).pop(stack).tolist() == count.tolist()


def test_the_message_does_not_depend_on_the_pieces(monkeypatch):
    rng = np.random.default_rng(1)
    log_mean = rng.integers(-UNIT, 5 * UNIT, 700)
    count = rng.poisson(np.exp(log_mean / UNIT))
    whole = Stack.empty(4)
    counts(log_mean, 0).push(whole, count)
    monkeypatch.setattr("bitsback.coding.counts.PIECE", 5000)
    pieces = Stack.empty(4)
    counts(log_mean, 0).push(pieces, count)
    assert pieces.to_bytes() == whole.to_bytes()
    assert counts(log_mean, 0).pop(pieces).tolist() == count.tolist()


def test_what_the_code_does_not_have_is_refused():
    with pytest.raises(FileError, match="mean above 2"):
        counts(np.array([MOST_LOG_MEAN + 1]))
    for wrong in (-1, 2**48):
        with pytest.raises(FileError, match="whole numbers from 0"):
            counts(np.array([0])).push(Stack.empty(), np.array([wrong]))


@pytest.mark.parametrize(("digits", "below", "reason"), [(63, 0, "binary digits"), (3, 1, "as if it were beyond")])
def test_a_stream_that_no_sender_writes_is_refused(digits, below, reason):
    """An escape of a length that counts have not, and one of a count that has a bucket."""
    stack, log_mean = Stack.empty(), np.array([0])
    raw_bits(np.array([min(digits - 1, 48)])).push(stack, np.array([below]))
    raw_bits(np.array([6])).push(stack, np.array([digits]))
    stack.push(np.array([0]), np.array([1]), 24)  # symbol 0
    with pytest.raises(FileError, match=reason):
        counts(log_mean).pop(stack)


# the specification's section 21, followed to the letter, one number after the other


def plain_exp(x):
    return float(elementary.exp(np.array(x)))


def plain_log(x):
    return float(elementary.log(np.array(x)))


def plain_log1p(x):
    if abs(x) > 0.25:
        return plain_log(1 + x)
    w, t = x / (2 + x), 0.0
    for k in range(19, 0, -2):
        t = t * (w * w) + 1 / k
    return 2 * w * t


def plain_stirling(x):
    q = 1 / (x * x)
    return (1 / 12 - q * (1 / 360 - q * (1 / 1260 - q / 1680))) / x


def plain_log_probability(x, y, r, m):
    b = x + 1 + 8
    if r is None:
        product = 1.0
        for i in range(1, 9):
            product = product * (x + i)
        return x * (y / 4096) - ((b - 0.5) * plain_log(b) - b + plain_stirling(b) - plain_log(product))
    a, ratio = x + r + 8, 1.0
    for i in range(8):
        ratio = ratio * ((x + 1 + i) / (x + r + i))
    rising = (b - 0.5) * plain_log1p((r - 1) / b) + (r - 1) * (plain_log(a) - 1) + plain_stirling(a) - plain_stirling(b)
    return rising + plain_log(ratio) - x * plain_log1p(r / m)


def plain_frequencies(y, d=None):
    """Frequencies, starts and exponents of the symbols, by the words of FORMAT.md."""
    y = max(y, -98304)
    m, r = plain_exp(y / 4096), None if d is None else plain_exp(d / 4096)
    if r is None or r >= 8:
        v = m if r is None else m + (m * m) / r
        e = max(math.frexp(math.sqrt(v))[1] - 4, 0)
        buckets = [(max(math.floor(m) - 2 ** (7 + e), 0) + b * 2**e, e) for b in range(256)]
    else:
        count = 128 + 64 * max(math.frexp(m / r)[1] - 2, 0)
        widths = [max((b >> 6) - 1, 0) for b in range(count)]
        buckets = [((b - 64 * e) << e, e) for b, e in enumerate(widths)]
    logs = [plain_log_probability(s + 0.5 * (2**e - 1), y, r, m) + e * plain_log(2.0) for s, e in buckets]
    logits = [-98304, *(round(max((one - max(logs)) * 4096, -98304)) for one in logs)]
    share = [math.floor(plain_exp(logit / 4096) * 2**32 + 0.5) for logit in logits]
    total = [1 + one * (2**24 - len(logits)) // sum(share) for one in share]
    total[logits.index(0)] += 2**24 - sum(total)
    return total, buckets


@pytest.mark.parametrize("d", [None, 16 * UNIT - 128, 9000, 8000, 0, -UNIT, -9 * UNIT, -16 * UNIT])
@pytest.mark.parametrize("y", [-(10**6), -20_000, -1, 0, 4096, 22_713, 40_000, MOST_LOG_MEAN])
def test_frequencies_are_those_of_the_specification(y, d):
    total, buckets = plain_frequencies(y, d)
    assert sum(total) == 2**24
    places = [b for b in (*range(0, len(buckets), 37), len(buckets) - 1) if buckets[b][0] < 2**48]
    count = np.array([buckets[b][0] for b in places], dtype=np.int64)
    wanted = [24 - math.log2(total[b + 1]) + buckets[b][1] for b in places]
    assert np.abs(count_bits(np.full(len(places), y), count, d) - wanted).max() < 1e-9
    beyond = np.array([min(buckets[-1][0] + 2 ** buckets[-1][1], 2**48 - 1)])
    if beyond[0] == 2**48 - 1:
        return
    bits = 24 - math.log2(total[0]) + 6 + int(beyond[0]).bit_length() - 1
    assert abs(float(count_bits(np.array([y]), beyond, d)[0]) - bits) < 1e-9


DIGESTS = {
    None: "5343dbe750a96461566d237d7fbe0bed15bcbc0a95495f7a06c4362ba2f0eb21",
    -UNIT: "38cda27512b558a39ebf3e1bc51da97848252381c73cb525cbcf52f58e0ba695",
}


@pytest.mark.parametrize("d", DIGESTS)
def test_the_tables_never_change(d):
    rows = [np.array(plain_frequencies(UNIT * n, d)[0], dtype="<i8") for n in range(-6, 7)]
    assert hashlib.sha256(np.concatenate(rows).tobytes()).hexdigest() == DIGESTS[d]
    text = (Path(__file__).parent.parent / "bitsback" / "formats" / "FORMAT.md").read_text()
    assert DIGESTS[d] in text
