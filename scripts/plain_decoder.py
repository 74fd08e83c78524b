"""Decode weights and labels a second time, in whole numbers and plain Python.

What :mod:`bitsback.formats.reference_decoder` says of stacks, blocks and buckets is put together here to whole bodies of files.
Settings, priors and their tables are the package's; the entropy coder, the codebook, the order of units and the forward pass
are not.
``scripts/mutate_files.py`` holds the package's decoders against it.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from bitsback.coding.categorical import FURTHEST, _exponentials
from bitsback.coding.grid import CHUNK, TensorGrid, power, step_of
from bitsback.coding.permutation import _last_tensors
from bitsback.coding.relative_entropy import STANDARD_STEP
from bitsback.coding.tables import TOTAL_BITS, PriorTable
from bitsback.formats import reference_decoder as reference
from bitsback.formats.container import BitReader, unseal
from bitsback.formats.message.header import Header
from bitsback.formats.message.shared import SharedContext
from bitsback.formats.model_file.block_codec import RELATIVE_ENTROPY
from bitsback.formats.model_file.factory_codec import FACTORY
from bitsback.formats.model_file.grid_codec import DECIMAL
from bitsback.formats.model_file.hidden_units import exchangeable_groups
from bitsback.formats.model_file.read import LoadedModel
from bitsback.formats.side_information import SideInformation
from bitsback.model import BayesianModel
from bitsback.priors.exact_densities import density_of

Flat = list[float]


class NoReferenceError(Exception):
    """Nothing here decodes this."""


def model_weights(content: bytes, loaded: LoadedModel) -> dict[str, Flat]:
    """The weights of a model file by name, flat; ``loaded`` is what the package made of it."""
    kind, contents = unseal(content, "the file")
    reader, bits = BitReader(contents), {part.name: part.bits for part in loaded.parts}
    names = list(bits)
    reader.position = round(sum(bits[name] for name in names[1 : names.index("guard of the priors") + 1]))
    if kind == RELATIVE_ENTROPY:
        return _blocks(reader, loaded.model)
    if kind == FACTORY:
        return _halves(reader.rest(), loaded.model)
    digits = reader.take(4) if kind == DECIMAL else None
    return _quantised(reader, loaded.model, 1 + len(loaded.tree["inputs"]), digits)


def _halves(body: bytes, model: BayesianModel) -> dict[str, Flat]:
    """What ``tests/golden/own_codec.py`` wrote: half floats, put together from sign, exponent and fraction."""
    flat: Flat = []
    for low, high in zip(body[::2], body[1::2], strict=True):
        exponent, fraction = high >> 2 & 31, (high & 3) << 8 | low
        if exponent == 31:
            raise AssertionError("the reference finds a number that is not finite")
        size = (fraction + 1024 * (exponent > 0)) * 2.0 ** (max(exponent, 1) - 25)
        flat.append(-size if high >> 7 else size)
    found, first = dict[str, Flat](), 0
    for weight in model.weights:
        found[weight.name], first = flat[first : first + weight.posterior.numel], first + weight.posterior.numel
    if first != len(flat):
        raise AssertionError("the reference has something left of the body")
    return found


def _each(values: np.ndarray, shape: Sequence[int]) -> Flat:
    flat: Flat = np.broadcast_to(values, tuple(shape)).ravel().tolist()
    return flat


def _blocks(reader: BitReader, model: BayesianModel) -> dict[str, Flat]:
    index_bits, key, blocks = reader.take(5), reader.take_count(), reader.take_count()
    shapes = {weight.name: tuple(weight.posterior.mean.shape) for weight in model.weights}
    sizes = [prod(shape) for shape in shapes.values()]
    centres, scales, tables = [], [], []
    known: dict[str, list[int]] = {}
    for weight in model.weights:
        prior, shape = density_of(weight.prior, weight.name), shapes[weight.name]
        if prior.standard.name not in known:
            cumulative = PriorTable.build(prior.standard, STANDARD_STEP).cumulative.tolist()
            known[prior.standard.name] = [reference.quantile(cumulative, level) for level in range(65536)]
        centres += _each(prior.centre, shape)
        scales += _each(prior.scale, shape)
        tables += [known[prior.standard.name]] * prod(shape)
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    order = [start + at for t, start in enumerate(starts) for at in reference.shuffled(key, t, sizes[t])]
    flat: Flat = [0.0] * sum(sizes)
    for block in range(blocks):
        places = order[block::blocks]
        points = reference.block_points([tables[at] for at in places], block, reader.take(index_bits), key)
        values = reference.block_values(points, [centres[at] for at in places], [scales[at] for at in places])
        for at, value in zip(places, values, strict=True):
            flat[at] = value
    return {name: flat[start : start + size] for name, start, size in zip(shapes, starts, sizes, strict=True)}


def _quantised(reader: BitReader, model: BayesianModel, input_axes: int, digits: int | None) -> dict[str, Flat]:
    lanes, permute = 1 << reader.take(4), bool(reader.take(1))
    stack = reference.Stack.from_bytes(reader.rest(), lanes)
    shapes = {weight.name: tuple(weight.posterior.mean.shape) for weight in model.weights}
    specs = {weight.name: (shapes[weight.name], density_of(weight.prior, weight.name)) for weight in model.weights}
    groups = exchangeable_groups(model.network, input_axes) if permute else []
    last, levels, steps = _last_tensors(specs, groups), dict[str, np.ndarray](), dict[str, int]()
    for name, (shape, prior) in specs.items():
        steps[name], stretch = [value - start for value, start in zip(stack.pop_raw([8, 6]), (128, 32), strict=True)]
        levels[name] = np.array(_levels(stack, TensorGrid(shape, prior, steps[name]), stretch), dtype=object).reshape(shape)
        if name in last and stack.pop_raw([1])[0]:
            _put_order_back(stack, last[name], levels)
    if stack.words or any(head != reference.WORD for head in stack.heads):
        raise AssertionError("the reference has something left on the stack")
    found = {}
    for name, whole in levels.items():
        values = [level * step_of(steps[name]) if digits is None else level / 10.0**digits for level in whole.ravel().tolist()]
        found[name] = np.array(values, dtype=np.float64).astype(np.float32).astype(np.float64).tolist()
    return found


def _levels(stack: reference.Stack, lattice: TensorGrid, stretch: int) -> list[int]:
    tables = [
        PriorTable.build(lattice._shape, power(4 * (lattice._step_level - stretch) - scale)).cumulative.tolist()
        for scale in lattice._scales
    ]
    levels: list[int] = []
    for first in range(0, lattice.count, CHUNK):
        row = slice(first, min(first + CHUNK, lattice.count))
        count = row.stop - row.start
        kinds, centres = (np.broadcast_to(part(row), (count,)).tolist() for part in (lattice._kind, lattice._centre))
        levels += [point + centre for point, centre in zip(_points(stack, tables, kinds), centres, strict=True)]
    return levels


def _points(stack: reference.Stack, tables: Sequence[Sequence[int]], kinds: Sequence[int]) -> list[int]:
    """TensorGrid points, counted from the centres: a bucket for each, then the positions inside."""

    def find(slot: int, at: int) -> tuple[int, int, int]:
        table = tables[kinds[at]]
        number = bisect_right(table, slot) - 1
        return number, table[number], table[number + 1] - table[number]

    numbers = stack.pop(len(kinds), TOTAL_BITS, find)
    buckets = [number - (len(tables[kind]) - 1) // 2 for number, kind in zip(numbers, kinds, strict=True)]
    starts = [reference.start_of(bucket) for bucket in buckets]
    inside = stack.pop_raw([exponent for _, exponent in starts])
    sizes = [size + position for (size, _), position in zip(starts, inside, strict=True)]
    return [-1 - size if bucket < 0 else size for size, bucket in zip(sizes, buckets, strict=True)]


def _put_order_back(stack: reference.Stack, group: Any, levels: dict[str, np.ndarray]) -> None:
    """Encode the arrangement in which the units came, and put them into canonical order."""
    coded = [name for name in group.outputs if name in levels]
    digests = []
    for unit in range(group.units):
        row = hashlib.blake2b(digest_size=32)
        for name in coded:
            row.update(np.array(levels[name][unit]).astype("<i8").tobytes())
        digests.append(row.hexdigest())
    kinds = [sorted(set(digests)).index(one) for one in digests]
    starts, frequencies, counts = [], [], [0] * len(set(digests))
    for number, kind in enumerate(kinds, 1):
        counts[kind] += 1
        below = sum(counts[:kind])
        starts.append((below << 24) // number)
        frequencies.append(((below + counts[kind] << 24) // number) - starts[-1])
    first = reference.Stack(stack.heads[:1], stack.words)
    first.words = stack.words  # shared: the arrangement lies on the first lane
    first.push(starts, frequencies, 24)
    stack.heads[0] = first.heads[0]
    order = sorted(range(group.units), key=lambda unit: digests[unit])
    for name in coded:
        levels[name] = levels[name][order]


def message(contents: bytes, header: Header, shared: SharedContext, version: int) -> tuple[dict[str, Flat], list[int] | None]:
    """Weights and labels of a message; None for labels of a network that is not put through here."""
    reader = BitReader(contents)
    Header.take(reader, version=version)
    body = reader.rest()[header.payload_bytes % 4 :]
    stack = reference.Stack.from_bytes(body, 1 << header.lanes_log2)
    stack.pop_raw(SideInformation.of(shared.model, shared.likelihood).bits_each().tolist())
    code, m = shared.prior_code(header.exponent), header.exponent
    tables = [table.cumulative.tolist() for table in code.tables]
    points = [p + c for p, c in zip(_points(stack, tables, code.table_of.tolist()), code.centre.tolist(), strict=True)]
    weights, first = {}, 0
    for weight in shared.model.weights:
        part = points[first : first + weight.posterior.numel]
        weights[weight.name], first = [float(np.ldexp(float(point), -m)) for point in part], first + len(part)
    try:
        return weights, labels(stack, forward(shared.model, weights, shared.inputs), shared.likelihood.kind)
    except NoReferenceError:
        return weights, None


def _half_even(value: int, bits: int) -> int:
    low, whole = value & (1 << bits) - 1, value >> bits
    half = 1 << bits - 1
    return whole + (low > half or (low == half and whole & 1))


def forward(model: BayesianModel, weights: dict[str, Flat], inputs: torch.Tensor) -> list[list[int]]:
    """Outputs in units of 2^-12 of rows of Linear, ReLU and Flatten, in whole numbers."""
    if not inputs.is_floating_point() or len(list(model.network.children())) > 8 or model.deterministic():
        raise NoReferenceError
    value = np.rint(inputs.double().numpy().reshape(len(inputs), -1) * 4096).astype(np.int64).astype(object)
    if inputs.ndim > 2 and not isinstance(next(iter(model.network.children()), None), nn.Flatten):
        raise NoReferenceError
    for path, layer in model.network.named_children():
        if isinstance(layer, nn.Linear):
            names = [f"{path}.{part}" for part in ("weight", "bias")]
            whole = [np.rint(np.ldexp(np.array(weights[n]), 20)).astype(np.int64).astype(object) for n in names if n in weights]
            if len(whole) != 1 + (layer.bias is not None):
                raise NoReferenceError
            total = value @ whole[0].reshape(layer.out_features, -1).T
            total = total + whole[1] * 4096 if len(whole) > 1 else total
            value = np.array([[_half_even(int(one), 20) for one in row] for row in total], dtype=object)
        elif type(layer) is nn.ReLU:
            value = np.maximum(value, 0)
        elif type(layer) is not nn.Flatten:
            raise NoReferenceError
    rows: list[list[int]] = value.tolist()
    return rows


def labels(stack: reference.Stack, logits: list[list[int]], kind: str) -> list[int]:
    """Labels under whole-number logits, one for each row, or yes or no for each number."""
    if kind not in ("categorical", "bernoulli"):
        raise NoReferenceError
    rows = logits if kind == "categorical" else [[0, value] for row in logits for value in row]
    table, edges = _exponentials(), []
    for row in rows:
        share = [int(table[min(max(row) - value, FURTHEST)]) for value in row]
        counts = [1 + one * ((1 << 24) - len(row)) // sum(share) for one in share]
        counts[row.index(max(row))] += (1 << 24) - sum(counts)
        edges.append([sum(counts[:k]) for k in range(len(row) + 1)])

    def find(slot: int, at: int) -> tuple[int, int, int]:
        label = bisect_right(edges[at], slot) - 1
        return label, edges[at][label], edges[at][label + 1] - edges[at][label]

    return stack.pop(len(rows), 24, find)
