"""How fast the codecs are, and how many bits they write beyond the ledger's figure.

python scripts/bench_codec.py [--weights 10000 100000 1000000 10000000] [--rounds 3] [--json FILE]

``message`` is the bits-back part of a message: weights are drawn under q and coded under p, read under p and given back under
q. ``relative entropy`` and ``quantised`` are the bodies of the two kinds of model file. The first two code a sparse posterior
(about 1.6 net bits a weight), the third a dense one (4.6), as `bitsback pack` would choose.

The ledger's figure is log2 q/p of the weights drawn for a message, and KL(q||p) for a file. A quantised file takes more, for
its weights are chosen, not drawn; ``beyond tables`` is what it writes beyond -log2 p of its own levels. Relative entropy fills
as many blocks of K bits as the net bits ask for; what its choice costs shows in the data bits. It tries 2^K candidates for
every weight, so --candidates-up-to leaves it out of large sizes; reading makes none but the chosen ones.

Times are medians of interleaved rounds, after a round that measures memory: the most that is held beyond the means and stds,
in float32 models. Seconds are processor time. Threads make no difference: all of it is NumPy in one thread.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from bench_report import parsed, shown, spread, table, write

from bitsback.coding.ans import WORD_BITS, Stack, default_lanes_log2
from bitsback.coding.densities import NORMAL, LocatedDensity
from bitsback.coding.lattice import PriorCode, RoundedPosterior, under_posterior, under_prior
from bitsback.coding.quantised import quantise, step_level_for, tensor_codec
from bitsback.coding.relative_entropy import BlockCode
from bitsback.units import nats_to_bits

SCALE = 0.1
"""Of the prior N(0, SCALE^2)."""

INDEX_BITS = 12
PRIOR = LocatedDensity(NORMAL, np.zeros(()), np.full((), SCALE))


class Trip(NamedTuple):
    """Weights written and read back, once; ``table_bits`` is -log2 p of what was written, where a table says so."""

    write_seconds: float
    read_seconds: float
    written_bits: float
    peak_bytes: int
    ledger_bits: float
    table_bits: float | None = None


def sparse(weights: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and stds of a posterior that has let go of many of its weights."""
    rng = np.random.default_rng(0)
    std = np.exp(rng.uniform(np.log(0.004), np.log(SCALE), weights))
    return np.where(std < 0.05, rng.normal(0, 0.08, weights), 0.0), std


def dense(weights: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and stds of a posterior that knows all of its weights alike."""
    return np.random.default_rng(0).normal(0, SCALE, weights).astype(np.float32), np.full(weights, 0.004, dtype=np.float32)


def kl_bits(mean: np.ndarray, std: np.ndarray) -> float:
    """Net bits under the prior, in closed form."""
    mean, std = mean.astype(np.float64), std.astype(np.float64)
    ratio = (std / SCALE) ** 2
    return nats_to_bits(float(0.5 * (ratio + (mean / SCALE) ** 2 - 1 - np.log(ratio)).sum()))


def ratio_bits(w: np.ndarray, q: RoundedPosterior) -> float:
    """log2 q/p of drawn weights."""
    std = q.std
    nats = 0.5 * (w / SCALE) ** 2 - 0.5 * ((w - q.mean) / std) ** 2 + np.log(SCALE / std)
    return nats_to_bits(float(nats.sum()))


def peak_bytes() -> int:
    """The most memory that was held at once since tracing began; 0 when it did not."""
    return tracemalloc.get_traced_memory()[1]


def message(mean: np.ndarray, std: np.ndarray, net_bits: float) -> Trip:
    """Weights through a stack filled with a payload, which must come out again."""
    lanes = 1 << default_lanes_log2(len(mean), net_bits)
    words = np.random.default_rng(1).integers(0, 1 << WORD_BITS, len(mean) + lanes, dtype=np.uint32)
    began = time.process_time()
    q = RoundedPosterior.of(mean, std)
    m = q.default_exponent()
    given, prior = under_posterior(q, m), under_prior(PriorCode.build([PRIOR], [mean.shape], m))
    stack = Stack(words[:lanes].astype(np.uint64) | np.uint64(1 << WORD_BITS), words[lanes:])
    point = given.pop(stack)
    prior.push(stack, point)
    content = stack.to_bytes()
    written = time.process_time()
    stack = Stack.from_bytes(content, lanes)
    again = prior.pop(stack)
    given.push(stack, again)
    read, peak = time.process_time(), peak_bytes()
    assert (again == point).all()
    assert (stack.words == words[lanes:]).all()
    net = 8 * len(content) - 8 * words.nbytes
    return Trip(written - began, read - written, net, peak, ratio_bits(np.ldexp(point.astype(float), -m), q))


def quantised(mean: np.ndarray, std: np.ndarray, net_bits: float) -> Trip:
    """Weights on a grid, coded under the prior."""
    lanes = 1 << default_lanes_log2(len(mean), net_bits)
    began = time.process_time()
    tensor = quantise(mean, std, PRIOR, step_level_for(std))
    stack = Stack.empty(lanes)
    tensor_codec(mean.shape, PRIOR).push(stack, tensor)
    content = stack.to_bytes()
    written = time.process_time()
    values = tensor_codec(mean.shape, PRIOR).pop(Stack.from_bytes(content, lanes)).values()
    read, peak = time.process_time(), peak_bytes()
    assert (values == tensor.values()).all()
    return Trip(written - began, read - written, 8 * len(content), peak, net_bits, tensor.bits())


def relative_entropy(mean: np.ndarray, std: np.ndarray, net_bits: float) -> Trip:
    """Weights as indices of blocks in a shared random codebook."""
    blocks = max(1, round(net_bits / INDEX_BITS))
    kinds = np.zeros(len(mean), dtype=np.int64)

    def code() -> BlockCode:
        return BlockCode(np.zeros(len(mean)), np.full(len(mean), SCALE), [NORMAL], kinds, [len(mean)], blocks, INDEX_BITS)

    began = time.process_time()
    writer = code()
    places = [writer.members(block) for block in range(blocks)]
    indices = [writer.choose(block, mean[place], std[place]) for block, place in enumerate(places)]
    written = time.process_time()
    reader, values = code(), np.empty(len(mean), dtype=np.float32)
    for block, index in enumerate(indices):
        values[reader.members(block)] = reader.values(block, index)
    read, peak = time.process_time(), peak_bytes()
    assert np.isfinite(values).all()
    return Trip(written - began, read - written, blocks * INDEX_BITS, peak, net_bits)


Posterior = tuple[np.ndarray, np.ndarray, float]
CODECS: dict[str, tuple[Callable[..., Trip], Callable[[int], tuple[np.ndarray, np.ndarray]]]] = {
    "message": (message, sparse),
    "quantised": (quantised, dense),
    "relative entropy": (relative_entropy, sparse),
}


def posterior_for(name: str, weights: int) -> Posterior:
    """What a codec is given: means, stds, and their net bits."""
    mean, std = CODECS[name][1](weights)
    return mean, std, kl_bits(mean, std)


def traced(name: str, posterior: Posterior) -> float:
    """Bytes that a codec holds at once, at most."""
    tracemalloc.start()
    try:
        return CODECS[name][0](*posterior).peak_bytes
    finally:
        tracemalloc.stop()


def measured(weights: int, names: list[str], rounds: int) -> list[dict[str, Any]]:
    """A row for every codec at one size."""
    posteriors = {name: posterior_for(name, weights) for name in names}
    peaks = {name: traced(name, posteriors[name]) for name in names}
    trips: dict[str, list[Trip]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            trips[name].append(CODECS[name][0](*posteriors[name]))
    return [row(name, weights, trips[name], peaks[name] / (4 * weights)) for name in names]


def row(name: str, weights: int, trips: list[Trip], peak: float) -> dict[str, Any]:
    """What the rounds of one codec say."""
    one = trips[0]
    overhead = one.written_bits - one.ledger_bits
    beyond = None if one.table_bits is None else one.written_bits - one.table_bits
    return {
        "codec": name,
        "weights": weights,
        "write_weights_per_second": spread([weights / trip.write_seconds for trip in trips]),
        "read_weights_per_second": spread([weights / trip.read_seconds for trip in trips]),
        "written_bits": one.written_bits,
        "ledger_bits": one.ledger_bits,
        "overhead_bits": overhead,
        "overhead_percent": 100 * overhead / one.ledger_bits,
        "beyond_tables_bits": beyond,
        "peak_float32_models": peak,
    }


HEAD = [
    "codec",
    "weights",
    "write, 1000/s",
    "read, 1000/s",
    "bits/weight",
    "beyond the ledger, bits",
    "in %",
    "beyond tables",
    "peak",
]


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    beyond = row["beyond_tables_bits"]
    return [
        row["codec"],
        f"{row['weights']:,}",
        *(shown(row[f"{way}_weights_per_second"], 1e-3) for way in ("write", "read")),
        f"{row['written_bits'] / row['weights']:.3f}",
        f"{round(row['overhead_bits']):,}",
        f"{round(row['overhead_percent'], 3) + 0.0:g}",
        "" if beyond is None else f"{beyond:,.0f}",
        f"{row['peak_float32_models']:.1f}",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--candidates-up-to", type=int, default=10**5, help="weights for which relative entropy is measured")
    options = parsed(parser)
    rows = []
    for weights in options.weights:
        names = [name for name in CODECS if name != "relative entropy" or weights <= options.candidates_up_to]
        rows += measured(weights, names, options.rounds)
    print(table(HEAD, [cells(row) for row in rows]))
    write(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
