"""The noise of repeated trainings: one number for one place, the same everywhere, and normal."""

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from scipy import stats

from bitsback.coding.normals import PIECES_BITS, TAIL_BITS, _from_bits, _pieces, exact_normals
from bitsback.coding.philox import NOISE
from bitsback.formats import reference_decoder as reference

WHOLE = st.integers(-(2**70), 2**70)
COUNT = 1 << 20


@pytest.fixture(scope="module")
def many():
    return exact_normals(seed=3, number=11, tensor=5, count=COUNT)


def digest(numbers):
    return hashlib.sha256(numbers.astype("<f8").tobytes()).hexdigest()


PINNED = "31addd1d4b78c780f963cddf9709814329f608727e51afec938fac5e73eea43e"


def test_these_numbers_are_drawn_for_ever():
    found = exact_normals(seed=-5, number=-1, tensor=3, count=1_000_003)
    assert found[:4].tolist() == [0.5266867185714804, -0.2028142306737486, -0.24029152498044448, 0.020964339616165617]
    assert digest(found) == PINNED


def test_numpy_without_its_fast_instructions_draws_the_same():
    off = " ".join(feature for feature in __cpu_dispatch__ if __cpu_features__.get(feature))
    script = (
        "import hashlib; from bitsback.coding.normals import exact_normals;"
        "print(hashlib.sha256(exact_normals(-5, -1, 3, 1_000_003).astype('<f8').tobytes()).hexdigest())"
    )
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": off}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == PINNED


@given(WHOLE, WHOLE, WHOLE, st.integers(0, 2**40))
def test_every_number_is_that_of_philox_in_plain_python(seed, number, tensor, start):
    mask = 2**64 - 1
    found = exact_normals(seed, number, tensor, 3, start=start)
    for place, value in enumerate(found, start):
        words = reference.encrypt((place // 8 + 1, tensor & mask, number & mask, 0), (seed & mask, NOISE))
        bits = words[place % 8 // 2] >> 32 * (place % 2) & 0xFFFFFFFF
        tail = math.ldexp(2 * (bits & 0x7FFFFFFF) + 1, -TAIL_BITS)
        assert abs(value) == pytest.approx(stats.norm.isf(tail / 2), rel=2e-5, abs=1e-9)
        assert (value < 0) == bool(bits >> 31)


def test_the_quantile_falls_without_a_jump_from_the_farthest_number_to_zero():
    k = np.unique(np.concatenate([np.arange(3000), np.geomspace(1, 2**31 - 1, 200_000).astype(np.int64), [2**31 - 1]]))
    size = np.empty(len(k))
    _from_bits(k.astype(np.int32), size)
    assert (np.diff(size) < 0).all()
    assert size[0] == pytest.approx(stats.norm.isf(2.0**-33), rel=1e-6)
    assert 0 < size[-1] < 1e-9
    exact = stats.norm.isf((2 * k + 1) * 2.0**-33)
    assert np.abs(size - exact).max() < 2e-6 * size.max()


def test_mean_variance_and_kurtosis_of_all_numbers_are_those_of_the_normal():
    """Exact sums over all 2^32 possible numbers, piece by piece; the mean is 0, for signs are even."""
    slopes, bases = _pieces()
    low = np.concatenate([2.0**octave * (1 + np.arange(1 << PIECES_BITS) / (1 << PIECES_BITS)) for octave in range(TAIL_BITS)])
    first = np.ceil((low - 1) / 2)
    count = np.diff(np.append(first, 2.0**31))
    assert count.sum() == 2**31
    centre, gap = bases + slopes * (2 * first + count), 2 * slopes
    spread = gap**2 * (count**2 - 1) / 12
    fourth = gap**4 * (count**2 - 1) * (3 * count**2 - 7) / 240
    assert (count * (centre**2 + spread)).sum() / 2**31 == pytest.approx(1, abs=5e-7)
    assert (count * (centre**4 + 6 * centre**2 * spread + fourth)).sum() / 2**31 == pytest.approx(3, abs=2e-6)


def test_a_million_of_them_look_normal(many):
    assert abs(many.mean()) < 5 / math.sqrt(COUNT)
    assert many.var() == pytest.approx(1, abs=5 * math.sqrt(2 / COUNT))
    assert stats.skew(many) == pytest.approx(0, abs=5 * math.sqrt(6 / COUNT))
    assert stats.kurtosis(many) == pytest.approx(0, abs=5 * math.sqrt(24 / COUNT))
    assert stats.kstest(many, "norm").pvalue > 1e-3


@pytest.mark.parametrize("far", [2.0, 3.0, 4.0])
def test_tails_have_their_share(many, far):
    for share in ((many > far).mean(), (many < -far).mean()):
        expected = stats.norm.sf(far)
        assert share == pytest.approx(expected, abs=5 * math.sqrt(expected / COUNT))


@given(st.integers(0, 20_000), st.integers(0, 20_000))
def test_a_shard_alone_is_the_slice_of_the_whole(start, count):
    whole = exact_normals(1, 2, 3, 40_000)
    assert np.array_equal(exact_normals(1, 2, 3, count, start=start), whole[start : start + count])


OTHERS = {"seed": (4, 11, 5), "draw": (3, 12, 5), "tensor": (3, 11, 6), "swapped": (3, 5, 11), "minus": (3, -11, 5)}


@pytest.mark.parametrize("other", OTHERS)
def test_another_seed_draw_or_tensor_has_numbers_of_its_own(many, other):
    noise = exact_normals(*OTHERS[other], COUNT)
    assert not np.isin(noise[:1000], many[:1000]).any()
    for shift in (0, 1, 8):
        assert abs(np.corrcoef(many[: COUNT - shift], noise[shift:])[0, 1]) < 5 / math.sqrt(COUNT)
    assert abs(np.corrcoef(many**2, noise**2)[0, 1]) < 5 / math.sqrt(COUNT)


def test_neighbours_are_independent(many):
    for shift in (1, 2, 7, 8, 8192):
        assert abs(np.corrcoef(many[:-shift], many[shift:])[0, 1]) < 5 / math.sqrt(COUNT - shift)


def test_draws_of_one_element_are_normal():
    one = np.array([exact_normals(0, number, 0, 1, start=17)[0] for number in range(4000)])
    assert stats.kstest(one, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 5 / math.sqrt(4000)


def test_nothing_is_asked_for_and_nothing_comes():
    assert exact_normals(0, 0, 0, 0, start=9).shape == (0,)
