"""How fast the codecs are: weights a second each way, seconds and memory of a quantised network.

python scripts/benchmark_codecs.py [--weights 1000000] [--quantised-weights 10000000] [--out FILE]
"""

import argparse
import json
import resource
import time

import numpy as np

from bitsback.bitstream.ans import Stack
from bitsback.bitstream.density import NORMAL, PlacedShape
from bitsback.bitstream.grid import PriorCode, RoundedPosterior, under_posterior, under_prior
from bitsback.bitstream.header import default_lanes_log2
from bitsback.bitstream.quantised import quantise, step_level_for, tensor_codec


def message_speed(weights, rng):
    """Seconds of the four halves of a message, and how far its bits are from log2 q/p."""
    std = np.exp(rng.uniform(np.log(0.004), np.log(0.1), weights))
    q = RoundedPosterior.of(np.where(std < 0.05, rng.normal(0, 0.08, weights), 0.0), std)
    m = q.default_exponent()
    lanes = 1 << default_lanes_log2(weights, 2.0 * weights)
    words = rng.integers(0, 1 << 32, weights + lanes, dtype=np.uint32)
    stack = Stack(np.full(lanes, 1 << 32, dtype=np.uint64) + 7, words)
    posterior = under_posterior(q, m)
    prior = under_prior(PriorCode.build([PlacedShape(NORMAL, np.zeros(()), np.full((), 0.1))], [(weights,)], m))
    before, seconds = stack.bits, {}

    def timed(name, action):
        began = time.perf_counter()
        result = action()
        seconds[name] = time.perf_counter() - began
        return result

    point = timed("draw from q", lambda: posterior.pop(stack))
    timed("push under p", lambda: prior.push(stack, point))
    grown = stack.bits - before
    again = timed("pop under p", lambda: prior.pop(stack))
    timed("give back under q", lambda: posterior.push(stack, again))
    assert (point == again).all()
    assert (stack.words == words).all()
    w = np.ldexp(point.astype(float), -m)
    nats = 0.5 * (w / 0.1) ** 2 - 0.5 * ((w - q.mean) / q.std) ** 2 + np.log(0.1 / q.std)
    ledger = float(nats.sum() / np.log(2.0))
    return {
        "weights": weights,
        "lanes": lanes,
        "seconds": seconds,
        "send_weights_per_second": weights / (seconds["draw from q"] + seconds["push under p"]),
        "receive_weights_per_second": weights / (seconds["pop under p"] + seconds["give back under q"]),
        "net_bits": grown,
        "ledger_bits": ledger,
    }


def quantised_speed(weights, rng):
    """Seconds each way, and peak memory beside the float32 weights."""
    mean = rng.normal(0, 0.05, weights).astype(np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prior = PlacedShape(NORMAL, np.zeros(()), np.full((), 0.05))
    began = time.perf_counter()
    tensor = quantise(mean, 0.02, prior, step_level_for(0.02))
    stack = Stack.empty(1024)
    tensor_codec(mean.shape, prior).push(stack, tensor)
    content = stack.to_bytes()
    encoding = time.perf_counter() - began
    expected, bits = tensor.values(), tensor.bits()
    del tensor, stack
    began = time.perf_counter()
    decoded = tensor_codec(mean.shape, prior).pop(Stack.from_bytes(content, 1024))
    values = decoded.values()
    decoding = time.perf_counter() - began
    assert (values == expected).all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "weights": weights,
        "bits_per_weight": bits / weights,
        "declared_bits": bits,
        "file_bits": 8 * len(content),
        "encode_seconds": encoding,
        "decode_seconds": decoding,
        "peak_extra_in_float32_models": peak * 1024 / mean.nbytes,
    }


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=1_000_000)
    parser.add_argument("--quantised-weights", type=int, default=10_000_000)
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    quantised = quantised_speed(options.quantised_weights, rng)  # first, for its memory is measured as a peak
    report = {"message": message_speed(options.weights, rng), "quantised": quantised}
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
