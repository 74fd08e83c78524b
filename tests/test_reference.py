"""The fast codecs and the plain reference agree bit for bit, and both with an independent coder."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsback.coding import ans
from bitsback.coding import philox as randomness
from bitsback.coding.densities import NORMAL
from bitsback.coding.relative_entropy import STANDARD_STEP, BlockCode
from bitsback.coding.tables import PriorTable, bucket_of, start_of
from bitsback.errors import FileError
from bitsback.formats import reference_decoder as reference
from bitsback.priors import LaplacePrior
from bitsback.priors.exact_densities import STANDARD

LANES = st.integers(1, 8)
KEYS = st.integers(0, 2**64 - 1)


@st.composite
def messages(draw):
    """A table of cumulative frequencies with its total, symbols under it, and raw numbers with their widths."""
    total_bits = draw(st.integers(1, 28))
    inner = draw(st.lists(st.integers(1, max(1, 2**total_bits - 1)), max_size=9, unique=True))
    cumulative = sorted({0, *inner, 2**total_bits})
    symbols = draw(st.lists(st.integers(0, len(cumulative) - 2), max_size=40))
    widths = draw(st.lists(st.integers(0, 48), max_size=20))
    values = [draw(st.integers(0, 2**width - 1)) for width in widths]
    return total_bits, cumulative, symbols, widths, values


def state(stack):
    return [int(head) for head in stack.heads], [int(word) for word in stack.words]


def pair(lanes, words=0, seed=0):
    """The same stack twice: fast and plain."""
    rng = np.random.default_rng(seed)
    heads = rng.integers(1 << 32, 1 << 64, lanes, dtype=np.uint64) if words else np.full(lanes, 1 << 32, dtype=np.uint64)
    below = rng.integers(0, 1 << 32, words, dtype=np.uint32)
    return ans.Stack(heads, below), reference.Stack(heads.tolist(), below.tolist())


def finders(cumulative):
    edges = np.array(cumulative)

    def fast(slot, _):
        symbol = np.searchsorted(edges, slot, side="right") - 1
        return symbol, edges[symbol], edges[symbol + 1] - edges[symbol]

    def plain(slot, _):
        symbol = max(k for k, edge in enumerate(cumulative) if edge <= slot)
        return symbol, cumulative[symbol], cumulative[symbol + 1] - cumulative[symbol]

    return fast, plain


@given(messages(), LANES)
def test_pushes_give_the_same_bytes_and_pops_the_same_symbols(message, lanes):
    total_bits, cumulative, symbols, widths, values = message
    fast, plain = pair(lanes)
    starts, frequencies = [cumulative[s] for s in symbols], [cumulative[s + 1] - cumulative[s] for s in symbols]
    fast.push(np.array(starts, dtype=np.int64), np.array(frequencies, dtype=np.int64), total_bits)
    plain.push(starts, frequencies, total_bits)
    fast.push_raw(np.array(values, dtype=np.int64), np.array(widths, dtype=np.int64))
    plain.push_raw(values, widths)
    content = fast.to_bytes()
    assert content == plain.to_bytes()

    fast, plain = ans.Stack.from_bytes(content, lanes), reference.Stack.from_bytes(content, lanes)
    find_fast, find_plain = finders(cumulative)
    assert fast.pop_raw(np.array(widths, dtype=np.int64)).tolist() == plain.pop_raw(widths) == values
    found = fast.pop(len(symbols), total_bits, find_fast).tolist()
    assert found == plain.pop(len(symbols), total_bits, find_plain) == symbols
    assert state(fast) == state(plain) == ([1 << 32] * lanes, [])


@given(messages(), LANES, st.integers(0, 2**32))
def test_what_is_popped_is_the_same_and_pushes_restore_it(message, lanes, seed):
    total_bits, cumulative, symbols, widths, _ = message
    fast, plain = pair(lanes, words=100, seed=seed)
    before = state(fast)
    find_fast, find_plain = finders(cumulative)
    drawn = fast.pop(len(symbols), total_bits, find_fast).tolist()
    assert drawn == plain.pop(len(symbols), total_bits, find_plain)
    values = fast.pop_raw(np.array(widths, dtype=np.int64)).tolist()
    assert values == plain.pop_raw(widths)
    assert state(fast) == state(plain)
    assert fast.to_bytes() == plain.to_bytes()
    plain.push_raw(values, widths)
    plain.push([cumulative[s] for s in drawn], [cumulative[s + 1] - cumulative[s] for s in drawn], total_bits)
    assert state(plain) == before


@given(st.lists(st.tuples(st.integers(1, 28), st.integers(0, 2**28 - 1)), min_size=1, max_size=40), LANES)
def test_a_total_for_every_symbol(symbols, lanes):
    totals = [bits for bits, _ in symbols]
    starts = [value % 2**bits for bits, value in symbols]
    fast, plain = pair(lanes)
    fast.push(np.array(starts), np.ones(len(starts), dtype=np.int64), np.array(totals))
    plain.push(starts, [1] * len(starts), totals)
    assert fast.to_bytes() == plain.to_bytes()
    assert plain.pop(len(starts), totals, lambda slot, _: (slot, slot, 1)) == starts


@pytest.mark.parametrize("kind", [ans.Stack, reference.Stack])
def test_both_refuse_the_same_bytes(kind):
    content = ans.Stack(np.array([2**40 + 12345, 2**63 + 1], dtype=np.uint64), np.arange(3, dtype=np.uint32)).to_bytes()
    assert state(kind.from_bytes(content, 2)) == ([2**40 + 12345, 2**63 + 1], [0, 1, 2])
    end = len(content) - 12
    for wrong in (b"", content[:-1], content + b"\0", content[:3], content[: end - 1]):
        with pytest.raises(FileError, match="does not end"):
            kind.from_bytes(wrong, 2)
    padded = content[: end - 1] + bytes([content[end - 1] | 0x80]) + content[end:]
    with pytest.raises(FileError, match="does not end"):
        kind.from_bytes(padded, 2)


def test_an_empty_stack_gives_nothing():
    with pytest.raises(FileError, match="too early"):
        reference.Stack.empty(2).pop_raw([24, 24])


@given(KEYS, st.integers(1, 6), KEYS, st.integers(0, 2**40), st.integers(1, 9), KEYS)
def test_philox_is_that_of_numpy(key, purpose, stream, skip, words, number):
    expected = randomness.raw(key, purpose, stream, words, skip_counts=skip, draw=number).tolist()
    assert reference.raw(key, purpose, stream, words, skip_counts=skip, draw=number) == expected


def test_philox_has_the_words_of_its_authors():
    """Known answers of Random123 (kat_vectors, philox4x64 with 10 rounds)."""
    ones = (2**64 - 1,) * 4
    expected = (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0)
    assert reference.encrypt(ones, ones[:2]) == expected


@given(st.binary(max_size=50), st.integers(0, 2**64 - 1))
def test_whitening_is_the_same(content, stream):
    assert reference.whiten(content, stream) == randomness.whiten(content, stream)


@given(KEYS, st.integers(0, 9), st.integers(1, 40), st.integers(0, 2**20))
def test_shuffles_and_codebook_rows_are_the_same(key, stream, count, row):
    assert reference.shuffled(key, stream, count) == randomness.shuffled(key, stream, count).tolist()
    expected = randomness.levels(key, stream, 1, count, first_row=row)[0].tolist()
    assert reference.levels(key, stream, row, count) == expected


@given(st.lists(st.integers(-(2**39), 2**39), min_size=1, max_size=20))
def test_buckets_are_the_same(points):
    parts = np.array([part.tolist() for part in bucket_of(np.array(points))]).T.tolist()
    assert [list(reference.bucket_of(point)) for point in points] == parts
    for point, (bucket, exponent, position) in zip(points, parts, strict=True):
        size, width = reference.start_of(bucket)
        assert [size, width] == [part.tolist() for part in start_of(np.array(bucket))]
        assert width == exponent
        assert (-1 - size - position if bucket < 0 else size + position) == point


@pytest.mark.parametrize("kind", STANDARD, ids=lambda kind: kind.__name__)
def test_quantiles_are_the_same(kind):
    table = PriorTable.build(STANDARD[kind], STANDARD_STEP)
    cumulative, places = table.cumulative.tolist(), [*range(0, 65536, 257), 1, 65534]
    assert [reference.quantile(cumulative, place) for place in places] == table.quantiles[places].tolist()


@settings(max_examples=20)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 12), KEYS, st.data())
def test_block_values_are_the_same(sizes, blocks, key, data):
    count, rng = sum(sizes), np.random.default_rng(0)
    blocks = min(blocks, count)
    centre, scale = rng.normal(size=count), rng.uniform(0.01, 2, size=count)
    shapes = (NORMAL, STANDARD[LaplacePrior])
    kinds = rng.integers(0, 2, count)
    code = BlockCode(centre, scale, shapes, kinds, sizes, blocks, index_bits=12, key=key)
    block, index = data.draw(st.integers(0, blocks - 1)), data.draw(st.integers(0, 4095))
    places = reference.members(sizes, blocks, block, key)
    assert places == code.members(block).tolist()
    tables = [PriorTable.build(shape, STANDARD_STEP).quantiles for shape in shapes]
    points = reference.block_points([tables[kind] for kind in kinds[places]], block, index, key)
    found = reference.block_values([int(point) for point in points], centre[places].tolist(), scale[places].tolist())
    assert np.array(found, dtype=np.float32).tobytes() == code.values(block, index).tobytes()


@settings(max_examples=30)
@given(st.integers(2, 200), st.integers(0, 2**32), st.integers(0, 60))
def test_one_lane_is_the_coder_of_constriction(kinds, seed, count):
    """constriction gives every symbol one slot and shares out the others, so it is told frequencies less one."""
    stream = pytest.importorskip("constriction").stream
    rng = np.random.default_rng(seed)
    spare = rng.multinomial(2**24 - kinds, rng.dirichlet(np.full(kinds, 0.3)))
    symbols = rng.integers(0, kinds, count).astype(np.int32)
    model = stream.model.Categorical(spare.astype(np.float64), perfect=False)
    coder = stream.stack.AnsCoder(np.array([0, 1], dtype=np.uint32))  # an empty head, 2^32
    coder.encode_reverse(np.ascontiguousarray(symbols[::-1]), model)  # the last symbol of the reverse first

    edges = np.concatenate([[0], np.cumsum(spare + 1)])
    starts, frequencies = edges[symbols], np.diff(edges)[symbols]
    fast, plain = pair(lanes=1)
    fast.push(starts, frequencies, 24)
    plain.push(starts.tolist(), frequencies.tolist(), 24)
    for stack in (fast, plain):
        heads, words = state(stack)
        assert coder.get_compressed().tolist() == [*words, heads[0] & 0xFFFFFFFF, heads[0] >> 32]
    assert coder.decode(model, count).tolist() == symbols[::-1].tolist()
