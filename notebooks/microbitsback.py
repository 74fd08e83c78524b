"""The whole idea in one file of the standard library: train a network in bits, and send it inside of a payload that comes back.

A network with a Gaussian posterior q over each weight is trained on labels that only the sender has; both have the inputs. The
message is an integer, and a stack: `push` writes a symbol under a distribution, `pop` reads one.

    sender      pop weights under q      the payload's bits choose the weights: the refund, taken in advance
                push labels              given these weights: the data bits
                push weights under p     on a grid as fine as one likes: the gross bits
    receiver    pop weights under p, pop labels; train on them as the sender did, which gives the same q;
                push weights under q     out comes the payload, bit for bit

What the message is longer than the payload is data bits + gross - refund = data bits + KL(q || p): the net, whatever the grid.

    python notebooks/microbitsback.py

Hinton & van Camp (1993); stack: asymmetric numeral systems, Duda (2009). Sender and receiver need the same arithmetic here; the
package states it to the last bit, so that they may be different machines.
"""

import math
import random

# ---------------------------------------------------------------------------------------------------------------------------
# A stack of symbols: one integer. A symbol of frequency f among 2^BITS multiplies it by about 2^BITS / f.
#
#     push:  x  ->  (x // f) * 2^BITS  +  start  +  x % f          [0 ....... start ...... start + f ....... 2^BITS)
#     pop:   slot = x % 2^BITS lies in exactly one symbol's interval; the rest is undone.
# ---------------------------------------------------------------------------------------------------------------------------

BITS = 24


def push(x: int, start: int, frequency: int) -> int:
    """Return the stack with a symbol on top that owns the slots start, ..., start + frequency - 1."""
    return (x // frequency << BITS) + start + x % frequency


def pop(x: int, edge, cells: int) -> tuple[int, int]:
    """Return the symbol on top, and the stack without it.

    Args:
        x: the stack.
        edge: edge(k) is the first slot of symbol k; edge(cells) is 2^BITS.
        cells: how many symbols there are.
    """
    slot, low, high = x & ((1 << BITS) - 1), 0, cells
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if edge(middle) <= slot else (low, middle)
    start = edge(low)
    return low, (edge(low + 1) - start) * (x >> BITS) + slot - start


# ---------------------------------------------------------------------------------------------------------------------------
# Distributions as intervals of slots. Every cell keeps at least one slot, so that whatever was pushed can be popped.
# ---------------------------------------------------------------------------------------------------------------------------

REACH = 32.0  # weights lie within [-REACH, REACH)


class Grid:
    """Weights as whole multiples of a step."""

    def __init__(self, step: float) -> None:
        self.step, self.cells = step, round(2 * REACH / step)

    def value(self, cell: int) -> float:
        """Return the weight in the middle of a cell."""
        return (cell + 0.5) * self.step - REACH

    def gaussian(self, mean: float, std: float):
        """Return edge(k) of a Gaussian on the grid."""

        def edge(cell: int) -> int:
            z = (cell * self.step - REACH - mean) / std
            share = 0.5 * math.erfc(-z / math.sqrt(2)) if 0 < cell < self.cells else float(cell > 0)
            return int(share * ((1 << BITS) - self.cells)) + cell

        return edge


def coin(p: float):
    """Return edge(k) of a label that is 1 with probability p."""
    ones = min(max(round(p * (1 << BITS)), 1), (1 << BITS) - 1)
    return lambda symbol: (0, (1 << BITS) - ones, 1 << BITS)[symbol]


def put(x: int, edge, symbol: int) -> int:
    """Push a symbol of a distribution given by its edges."""
    return push(x, edge(symbol), edge(symbol + 1) - edge(symbol))


# ---------------------------------------------------------------------------------------------------------------------------
# A network: two inputs, HIDDEN tanh units, one logit. Its weights are one list.
# ---------------------------------------------------------------------------------------------------------------------------

HIDDEN = 3
WEIGHTS = 4 * HIDDEN + 1
PRIOR_STD = 5.0


def forward(w: list[float], point: tuple[float, float]) -> tuple[float, list[float]]:
    """Return the probability of label 1, and the hidden units."""
    a, b = point
    hidden = [math.tanh(w[4 * j] * a + w[4 * j + 1] * b + w[4 * j + 2]) for j in range(HIDDEN)]
    logit = sum(w[4 * j + 3] * h for j, h in enumerate(hidden)) + w[-1]
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, logit)))), hidden


def gradient(w: list[float], points, labels) -> list[float]:
    """Return the derivative of the labels' cost in nats, -sum log p(label | point, w), by each weight."""
    g = [0.0] * WEIGHTS
    for (a, b), label in zip(points, labels, strict=True):
        p, hidden = forward(w, (a, b))
        error = p - label
        g[-1] += error
        for j, h in enumerate(hidden):
            back = error * w[4 * j + 3] * (1 - h * h)
            g[4 * j] += back * a
            g[4 * j + 1] += back * b
            g[4 * j + 2] += back
            g[4 * j + 3] += error * h
    return g


def train(points, labels, steps: int = 1000) -> list[tuple[float, float]]:
    """Return the mean and std of each weight's posterior: Adam on the labels' cost under drawn weights + KL(q || p), in nats.

    A step draws w = mean + std * noise. The KL of two Gaussians is log(s / std) + (std^2 + mean^2) / (2 s^2) - 1/2.
    """
    rng = random.Random(0)  # the receiver draws the same
    theta = [rng.gauss(0, 1) for _ in range(WEIGHTS)] + [math.log(0.1)] * WEIGHTS  # means, then log stds
    first, second = [0.0] * len(theta), [0.0] * len(theta)
    for step in range(1, steps + 1):
        means, stds = theta[:WEIGHTS], [math.exp(value) for value in theta[WEIGHTS:]]
        noise = [rng.gauss(0, 1) for _ in means]
        g = gradient([m + s * e for m, s, e in zip(means, stds, noise, strict=True)], points, labels)
        by_mean = [d + m / PRIOR_STD**2 for d, m in zip(g, means, strict=True)]
        by_log_std = [d * e * s + s**2 / PRIOR_STD**2 - 1 for d, e, s in zip(g, noise, stds, strict=True)]
        rate = 0.05 * min(1.0, 2 * (1 - step / (steps + 1)))
        for i, d in enumerate(by_mean + by_log_std):
            first[i] += 0.1 * (d - first[i])
            second[i] += 0.01 * (d * d - second[i])
            corrected = first[i] / (1 - 0.9**step) / (math.sqrt(second[i] / (1 - 0.99**step)) + 1e-8)
            theta[i] -= rate * corrected
    return [(m, math.exp(s)) for m, s in zip(theta[:WEIGHTS], theta[WEIGHTS:], strict=True)]


# ---------------------------------------------------------------------------------------------------------------------------
# The message.
# ---------------------------------------------------------------------------------------------------------------------------


def send(payload: bytes, points, labels, posterior, grid: Grid) -> tuple[bytes, dict[str, float]]:
    """Return the message, and what its parts cost in bits."""
    x = int.from_bytes(b"\x01" + payload, "big")
    before = x.bit_length()
    cells = []
    for mean, std in posterior:
        cell, x = pop(x, grid.gaussian(mean, std), grid.cells)
        cells.append(cell)
    if x < 1 << BITS:
        raise ValueError("the payload is too short to choose all weights; give a longer one")
    after_pop = x.bit_length()
    weights = [grid.value(cell) for cell in cells]
    for point, label in zip(reversed(points), reversed(labels), strict=True):
        x = put(x, coin(forward(weights, point)[0]), label)
    after_labels = x.bit_length()
    for cell in reversed(cells):
        x = put(x, grid.gaussian(0.0, PRIOR_STD), cell)
    bits = {
        "refund": before - after_pop,
        "data": after_labels - after_pop,
        "gross": x.bit_length() - after_labels,
        "net": x.bit_length() - before,
        "kl": sum(math.log2(PRIOR_STD / s) + ((s**2 + m**2) / (2 * PRIOR_STD**2) - 0.5) / math.log(2) for m, s in posterior),
    }
    return x.to_bytes(-(-x.bit_length() // 8), "big"), bits


def receive(message: bytes, points, grid: Grid) -> tuple[bytes, list[int]]:
    """Return the payload and the labels."""
    x = int.from_bytes(message, "big")
    cells, labels = [], []
    for _ in range(WEIGHTS):
        cell, x = pop(x, grid.gaussian(0.0, PRIOR_STD), grid.cells)
        cells.append(cell)
    weights = [grid.value(cell) for cell in cells]
    for point in points:
        label, x = pop(x, coin(forward(weights, point)[0]), 2)
        labels.append(label)
    for (mean, std), cell in reversed(list(zip(train(points, labels), cells, strict=True))):
        x = put(x, grid.gaussian(mean, std), cell)
    return x.to_bytes(-(-x.bit_length() // 8), "big")[1:], labels


def rings(count: int) -> tuple[list[tuple[float, float]], list[int]]:
    """Return points of a disc, and whether each lies near its middle."""
    rng = random.Random(1)
    points = [(rng.uniform(-1.5, 1.5), rng.uniform(-1.5, 1.5)) for _ in range(count)]
    return points, [int(a * a + b * b < 1) for a, b in points]


def main(count: int = 300, payload: bytes = b"The quick brown fox jumps over the lazy dog. " * 6) -> list[dict[str, float]]:
    """Send and receive on three grids; return what each message cost."""
    points, labels = rings(count)
    posterior = train(points, labels)
    print(f"{count} labels cost {count} bits without a model. The payload has {8 * len(payload)} bits.")
    print("grid     gross  refund  gross - refund   KL  data bits  message - payload")
    found = []
    for level in (4, 6, 8):
        grid = Grid(2.0**-level)
        message, bits = send(payload, points, labels, posterior, grid)
        assert receive(message, points, grid) == (payload, labels)
        net = bits["gross"] - bits["refund"]
        print(f"2^-{level} {bits['gross']:9} {bits['refund']:7} {net:15} {bits['kl']:4.0f} {bits['data']:10} {bits['net']:18}")
        found.append(bits)
    print("Every message gave back its payload and the labels, bit for bit.")
    return found


if __name__ == "__main__":
    main()
