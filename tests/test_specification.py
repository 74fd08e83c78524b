"""FORMAT.md, followed to the letter in plain Python: tables and a quantised file come out as the package makes them."""

import hashlib
import json
import math
import struct
from bisect import bisect_right
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsback.coding import elementary
from bitsback.coding.normals import exact_normals
from bitsback.data.settings import DigitsSettings
from bitsback.formats._training_digest import StateDigest
from bitsback.formats.config_text import take_settings
from bitsback.formats.container import BitReader, unseal
from bitsback.formats.model_file.read import load
from bitsback.formats.reference_decoder import Stack, raw, start_of
from bitsback.formats.side_information import SideInformation
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import bayesianize

GOLDEN = Path(__file__).parent / "golden"
TABLES = json.loads((GOLDEN / "tables.json").read_text())
LOG2_E, LN2_HIGH, LN2_LOW = map(float.fromhex, ("0x1.71547652b82fep+0", "0x1.62e42fee00000p-1", "0x1.a39ef35793c76p-33"))
QUARTERS = tuple(map(float.fromhex, ("0x1p+0", "0x1.306fe0a31b715p+0", "0x1.6a09e667f3bcdp+0", "0x1.ae89f995ad3adp+0")))
SIXTEENTHS = tuple(map(float.fromhex, ("0x1p+0", "0x1.0b5586cf9890fp+0", "0x1.172b83c7d517bp+0", "0x1.2387a6e756238p+0")))
POINTS = (
    (-0.8611363115940526, 0.34785484513745385), (-0.3399810435848563, 0.6521451548625461),
    (0.3399810435848563, 0.6521451548625461), (0.8611363115940526, 0.34785484513745385),
)  # fmt: skip


def exp(x):
    x = min(max(x, -700.0), 700.0)
    n = round(x * LOG2_E)
    r, t = (x - n * LN2_HIGH) - n * LN2_LOW, 1.0
    for k in range(14, 0, -1):
        t = 1 + (r * t) / k
    return math.ldexp(t, n)


def log(x):
    m, e = math.frexp(x)
    if m < 0.70710678:
        m, e = 2 * m, e - 1
    s, t = (m - 1) / (m + 1), 0.0
    for k in range(23, 0, -2):
        t = t * (s * s) + 1 / k
    return e * LN2_HIGH + ((2 * s) * t + e * LN2_LOW)


def phi(x):
    mp = pytest.importorskip("mpmath")
    c = min(max(x, -8.5), 8.5)
    k = round(c * 256)
    i, d = abs(k), c - k / 256
    t, j = i / 256, round(i / 256 * 32)
    with mp.workprec(300):
        upper, density, middle = float(mp.ncdf(-mp.mpf(j) / 32)), float(mp.npdf(mp.mpf(j) / 32)), float(mp.npdf(0))
    total, a, b, g, near = 0.0, 0.0, 1.0, t - j / 32, t - j / 32
    for n in range(12):
        total, a, b, g = total + b * g, b, (j / 32) * b - n * a, (g * -near) / (n + 2)
    tail = upper - density * total if i < 2176 else 0.0
    o0 = exp((-0.5 * t) * t) * middle
    o1, o2 = ((-t) * o0) / 2, ((t * t - 1) * o0) / 6
    o3 = (-((t * t) * t - 3 * t) * o0) / 24
    o4 = (((((t * t) * t) * t - (6 * t) * t) + 3) * o0) / 120
    first, *others = (1 - tail, o0, o1, o2, o3, o4) if k >= 0 else (tail, o0, -o1, o2, -o3, o4)
    found = 0.0
    for coefficient in [first, *others][::-1] if i < 2176 else [first]:
        found = coefficient + d * found
    return found


def horseshoe(z):
    x = max((0.5 * z) * z, 1e-30)
    if x < 2:
        term, total = 1.0, 0.0
        for k in range(1, 31):
            term = term * (-x / k)
            total = total - term / k
        return exp(x) * ((total - log(x)) - 0.5772156649015329)
    c = 0.0
    for k in range(70, 0, -1):
        c = k / (1 + k / (x + c))
    return 1 / (x + c)


def tail(z):
    return exp(-abs(z))


SHAPES = {
    "normal": (lambda z: exp((-0.5 * z) * z), 4),
    "laplace": (tail, 6),
    "logistic": (lambda z: tail(z) / ((1 + tail(z)) * (1 + tail(z))), 6),
    "cauchy": (lambda z: 1 / (1 + z * z), 14),
    "horseshoe": (horseshoe, 14),
    "student_t(3.0)": (lambda z: exp((-0.5 * (3.0 + 1)) * log(1 + (z * z) / 3.0)), 10),
}


def cumulative(density, octaves, step):
    reach = max(8, octaves - math.frexp(step)[1] + 1)
    half, left, right = 64 * (reach - 6), [], []
    for g in range(half):
        size, exponent = start_of(g)
        width, r, l = float(1 << exponent), 0.0, 0.0  # noqa: E741
        for x, c in POINTS:
            p = (size + (0.5 * width) * (1 + x)) - 0.5
            r, l = r + (c * width) * density(p * step), l + (c * width) * density((-1 - p) * step)  # noqa: E741
        left, right = [*left, l], [*right, r]
    mass = left[::-1] + right
    total, sums = math.fsum(mass), [0]
    for m in mass:
        sums.append(sums[-1] + math.floor((m / total) * 2.0**34))
    return [(s * (2**28 - 2 * half)) // max(1, sums[-1]) + i for i, s in enumerate(sums)]


@given(st.floats(-710, 710), st.floats(-9, 9), st.floats(1e-300, 1e300))
def test_functions_have_the_same_last_bit(x, z, y):
    assert elementary.exp(np.array(x)) == exp(x)
    assert elementary.log(np.array(y)) == log(y)
    assert elementary.normal_cdf(np.array([z]))[0] == phi(z)


@pytest.mark.parametrize("name", SHAPES)
def test_tables_have_the_stated_digests(name):
    found = cumulative(*SHAPES[name], 2.0**-16)
    assert hashlib.sha256(struct.pack(f"<{len(found)}q", *found)).hexdigest() == TABLES[f"cumulative of {name}"]


def power(n):
    return math.ldexp(QUARTERS[n % 16 // 4] * SIXTEENTHS[n % 4], n // 16)


def scale_level(scale):
    m, e = math.frexp(scale)
    return 16 * (e - 1) + sum(math.sqrt(power(i - 16) * power(i - 15)) < m for i in range(16))


def pop_tensor(stack, count, shape, scale_of):
    j, k = stack.pop_raw([8, 6])
    step_level, stretch = j - 128, k - 32
    made = {
        scale: cumulative(*SHAPES[shape], power(4 * (step_level - stretch) - scale_level(scale))) for scale in set(scale_of)
    }
    tables = [made[scale] for scale in scale_of]

    def find(slot, place):
        at = bisect_right(tables[place], slot) - 1
        return at, tables[place][at], tables[place][at + 1] - tables[place][at]

    buckets = [at - len(t) // 2 for at, t in zip(stack.pop(count, 28, find), tables, strict=True)]
    starts = [start_of(b) for b in buckets]
    sizes = [s + p for (s, _), p in zip(starts, stack.pop_raw([e for _, e in starts]), strict=True)]
    return [-1 - s if b < 0 else s for b, s in zip(buckets, sizes, strict=True)], power(4 * step_level)


def push_back(stack, tensors, units):
    """Give the order of the units back; ``tensors`` become canonical. Rows of equal length, one for each unit."""
    if not stack.pop_raw([1])[0]:
        return False
    rows = [[t[u * len(t) // units : (u + 1) * len(t) // units] for u in range(units)] for t in tensors]
    digests = [
        hashlib.blake2b(b"".join(struct.pack(f"<{len(r[u])}q", *r[u]) for r in rows), digest_size=32).digest()
        for u in range(units)
    ]
    lane = Stack(stack.heads[:1])
    lane.words = stack.words
    for i in range(1, units + 1):
        seen = digests[:i]
        a, c = sum(d < seen[-1] for d in seen), seen.count(seen[-1])
        start, end = (a << 24) // i, (a + c << 24) // i
        lane.push([start], [end - start], 24)
    stack.heads[0] = lane.heads[0]
    for t, r in zip(tensors, rows, strict=True):
        t[:] = [level for _, row in sorted(zip(digests, r, strict=True), key=lambda pair: pair[0]) for level in row]
    return True


def test_a_quantised_file_with_its_order_given_back():
    path = GOLDEN / "quantised_permuted.bb"
    _, contents = unseal(path.read_bytes(), path.name)
    reader = BitReader(contents)
    tree = take_settings(reader)
    assert tree["prior_overrides"]["linear1.weight"]["group"] == "input"
    inputs, (one, two), (out,) = tree["inputs"][0], (12, 6), (1,)
    layers = {"linear1": (one, inputs), "linear2": (two, one), "linear3": (out, two)}
    scales = {}
    for name in layers:
        for part in ("weight", "bias"):
            many = inputs if (name, part) == ("linear1", "weight") else 1
            scales[f"{name}.{part}"] = [exp(-16 + reader.take(10) / 32) for _ in range(many)]
    reader.take(10 + 2 * 32 * inputs)  # noise, and what was measured on the inputs
    assert not reader.take(1)  # no guard
    lanes, permute = 1 << reader.take(4), reader.take(1)
    assert permute
    stack = Stack.from_bytes(reader.rest(), lanes)
    found, taken = {}, []
    for name, (units, fan_in) in layers.items():
        for part, count in (("weight", units * fan_in), ("bias", units)):
            own = scales[f"{name}.{part}"]
            shape = "normal" if len(own) > 1 else "student_t(3.0)"
            levels, step = pop_tensor(stack, count, shape, [own[k % len(own)] for k in range(count)])
            found[f"{name}.{part}"] = levels, step
        if name != "linear3":
            tensors = [found[f"{name}.{part}"][0] for part in ("weight", "bias")]
            taken.append(push_back(stack, tensors, units))
    assert any(taken)
    assert (stack.heads, stack.words) == ([1 << 32] * lanes, [])
    stated = load(path).tensors()
    for name, (levels, step) in found.items():
        assert stated[name].flatten().tolist() == [float32(k * step) for k in levels], name


def float32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


LAYERS = {"linear1": (4, 64), "linear2": (10, 4)}
"""Of the network in the golden files of kinds decimal and two_part: outputs and inputs."""


def two_layers(contents, *, decimal):
    """Sections 4, 6, 10, 11 and 17: the weights of a model file without mark and checksum, and its settings."""
    reader = BitReader(contents)
    tree = take_settings(reader)
    assert (tree["network"]["layers"][1::2], tree["prior"]["kind"]) == ([{"Linear": {"out_features": 4}}, "Linear"], "laplace")
    names = [(f"{layer}.{part}", size) for layer, (out, inputs) in LAYERS.items() for part, size in
             (("weight", out * inputs), ("bias", out))]  # fmt: skip
    scales = [exp(-16 + reader.take(10) / 32) for _ in names]
    assert not reader.take(1)  # no guard
    digits = reader.take(4) if decimal else None
    lanes, permute = 1 << reader.take(4), reader.take(1)
    assert permute
    stack, found = Stack.from_bytes(reader.rest(), lanes), {}
    for (name, count), scale in zip(names, scales, strict=True):
        found[name] = pop_tensor(stack, count, "laplace", [scale] * count)
        if name == "linear1.bias":
            push_back(stack, [found["linear1.weight"][0], found["linear1.bias"][0]], 4)
    assert (stack.heads, stack.words) == ([1 << 32] * lanes, [])
    values = {
        name: [float32(k * step if digits is None else float(k) / 10.0**digits) for k in levels]
        for name, (levels, step) in found.items()
    }
    return values, tree, digits


def test_a_decimal_file():
    path = GOLDEN / "decimal.bb"
    values, _, digits = two_layers(unseal(path.read_bytes(), path.name)[1], decimal=True)
    assert digits == 2
    assert values == {name: tensor.flatten().tolist() for name, tensor in load(path).tensors().items()}


def on_lattice(x, bits):
    """x in units of 2^-bits, rounded to the nearest, ties to even."""
    return round(x * 2**bits)


def logits(values, row):
    """Section 12.3 in whole numbers: y of one input, in units of 2^-12."""
    row = [on_lattice(x, 12) for x in row]
    for layer, (out, inputs) in LAYERS.items():
        weight, bias = ([on_lattice(w, 20) for w in values[f"{layer}.{part}"]] for part in ("weight", "bias"))
        sums = [sum(weight[o * inputs + i] * row[i] for i in range(inputs)) + (bias[o] << 12) for o in range(out)]
        row = [round(Fraction(s, 1 << 20)) for s in sums]
        row = [max(y, 0) for y in row] if layer == "linear1" else row
    return row


def frequencies(y):
    share = [math.floor(exp(-(min(max(y) - one, 98304) / 4096)) * 2.0**32 + 0.5) for one in y]
    found = [1 + s * (2**24 - len(y)) // sum(share) for s in share]
    found[y.index(max(y))] += 2**24 - sum(found)
    return found


def test_a_two_part_file():
    contents = unseal((GOLDEN / "two_part.bb").read_bytes(), "two_part.bb")[1]
    reader = BitReader(contents)
    kind, length, check = reader.take(4), reader.take_count(), reader.take(16)
    body = reader.rest()
    assert kind == 2
    values, tree, _ = two_layers(body[:length], decimal=False)
    examples = DigitsSettings.model_validate(tree["data"]).load().train
    tables = [list(accumulate(frequencies(logits(values, row)), initial=0)) for row in examples.inputs.flatten(1).tolist()]

    def find(slot, place):
        at = bisect_right(tables[place], slot) - 1
        return at, tables[place][at], tables[place][at + 1] - tables[place][at]

    stack = Stack.from_bytes(body[length:], 1)
    labels = stack.pop(len(tables), 24, find)
    assert labels == examples.targets.tolist()
    assert (stack.heads, stack.words) == ([1 << 32], [])
    assert int.from_bytes(hashlib.sha256(struct.pack(f"<{len(labels)}q", *labels)).digest()[:2], "little") == check


def end_of_piece(p):
    return 2.0**32 if p == 8192 else math.ldexp(1 + p % 256 / 256, p // 256)


def size_at(p):
    low, high = 0.0, 8.5
    for _ in range(56):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if 2 * phi(-middle) > end_of_piece(p) * 2.0**-32 else (low, middle)
    return low


def test_the_noise_of_a_training():
    """Section 19.2, number by number."""
    found = exact_normals(7, 2, 4, 20)
    for i in (0, 1, 6, 13, 19):
        words = raw(7, 5, 4, i // 2 + 1, draw=2)
        bits = words[i // 2] >> 32 * (i % 2) & 0xFFFFFFFF
        tail_of = 2 * (bits & 0x7FFFFFFF) + 1
        p = max(p for p in range(8192) if end_of_piece(p) <= tail_of)
        slope = (size_at(p + 1) - size_at(p)) / (end_of_piece(p + 1) - end_of_piece(p))
        x = tail_of * slope + (size_at(p) - slope * end_of_piece(p))
        assert found[i] == (-x if bits >> 31 else x)


def test_a_state_of_a_training():
    """Section 19.3, number by number: a posterior, a point, learned scales, and statistics."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(40, 3), torch.nn.BatchNorm1d(3))
    model = bayesianize(network, {"kind": "laplace", "scale": 0.3}, exclude=["1.weight"]).double()
    likelihood = CategoricalLikelihood(3)
    numbers = []
    for weight in model.weights:
        mean, std = (tensor.detach().flatten().tolist() for tensor in (weight.posterior.mean, weight.posterior.std()))
        numbers += [64 * (m / s) for m, s in zip(mean, std, strict=True)] + [32 * math.log2(s) for s in std]
    for _, tensor, _ in SideInformation.of(model, likelihood).slots:
        numbers += [1024 * (x / (1 + abs(x))) for x in tensor.detach().flatten().tolist()]
    assert len(numbers) == 2 * (120 + 3 + 3) + 3 + 2 * 3 + 3
    words = raw(0, 6, 0, -(-len(numbers) // 64))
    signed = [-x if words[i // 64] >> i % 64 & 1 else x for i, x in enumerate(numbers)]
    assert StateDigest.of(model, likelihood).level == math.floor(math.fsum(signed) / 8) % 256
