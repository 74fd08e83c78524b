"""Refund of the order of hidden units, by bits-back coding over their arrangements.

Exchanging hidden units does not change the function of a network, so their order can carry other bits: log2 n! bits for n units
that all differ. The units of every layer are first sorted into a canonical order. The last layer is pushed first; before the
layer of a group of units is pushed, an arrangement of them is popped from the stack, and the layer is pushed in it::

    writer                                          reader
    1  push layer 2 (columns in canonical order)    4  pop layer 2: its columns fit the canonical order
    2  pop an arrangement of layer 1's units        3  push the arrangement: the bits of step 2 are back
       (stack shrinks by log2 n! bits), push flag   2  pop flag, sort the units: canonical order, and
    3  push layer 1, rows in this arrangement          with it the arrangement that they had
                                                    1  pop layer 1, rows as they were arranged

    rows on the stack   u2 u0 u1   --sort-->   u0 u1 u2   and the arrangement (2, 0, 1)
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bitsback.coding.ans import WORD_BITS, Integers, Stack
from bitsback.coding.combinators import Codec
from bitsback.coding.densities import LocatedDensity
from bitsback.coding.elementary import Floats
from bitsback.coding.quantised import QuantisedTensor, tensor_codec
from bitsback.errors import LayerError
from bitsback.units import nats_to_bits

__all__ = [
    "Array",
    "Refund",
    "Specs",
    "UnitGroup",
    "arrangement",
    "arrangement_bits",
    "canonicalise",
    "is_exchangeable",
    "pop_network",
    "push_network",
    "rearranged",
]

Array = TypeVar("Array", bound=NDArray[Any])


@dataclass(frozen=True)
class UnitGroup:
    """Group of exchangeable units: the outputs of one layer, which the next layer may read in any order.

    Attributes:
        units: number of units.
        outputs: names of the tensors whose axis 0 runs over the units: weight, bias, and those of a batch norm, its
            statistics included.
        following: name of the next layer's weight; its axis 1 runs over the ``block`` inputs of the first unit, then over
            those of the second, and so on.
        block: inputs of the next layer per unit; above one after a Flatten.
    """

    units: int
    outputs: tuple[str, ...]
    following: str
    block: int = 1

    def moved(self, name: str, values: Array, order: Integers) -> Array:
        """Return a tensor with unit ``order[i]`` in place i; unchanged if it is not a tensor of the group.

        Args:
            name: name of the tensor.
            values: its values.
            order: permutation of the units, (units,).

        Returns:
            The rearranged values, in the same shape.

        >>> UnitGroup(2, ("a",), "b", 2).moved("b", np.array([[1, 2, 3, 4]]), np.array([1, 0]))
        array([[3, 4, 1, 2]])
        """
        if name in self.outputs:
            values = values[order]  # type: ignore[assignment]
        if name == self.following:
            inputs = (order[:, None] * self.block + np.arange(self.block)).reshape(-1)
            values = values.take(inputs, axis=1)  # type: ignore[assignment]
        return values

    def fits(self, priors: Mapping[str, tuple[Sequence[int], LocatedDensity]]) -> bool:
        """Return whether the units can be exchanged without a change of the code length.

        Args:
            priors: shape and prior of every coded tensor, by name.

        Returns:
            True if the priors of the group's tensors are equal for all units and a tensor of the units themselves is coded.
        """
        coded = [name for name in self.outputs if name in priors]
        touched = [(name, 0) for name in coded] + [(self.following, 1)] * (self.following in priors)
        return bool(coded) and all(is_exchangeable(priors[name][1], priors[name][0], axis) for name, axis in touched)


def is_exchangeable(prior: LocatedDensity, shape: Sequence[int], axis: int) -> bool:
    """Return whether a prior's centres and scales are constant along an axis of a tensor.

    Args:
        prior: prior of the tensor.
        shape: shape of the tensor.
        axis: the axis, counted from 0.

    Returns:
        True if they are constant.

    >>> from bitsback.coding.densities import NORMAL
    >>> per_input = LocatedDensity(NORMAL, np.zeros(()), np.array([[1.0, 2.0]]))
    >>> is_exchangeable(per_input, (3, 2), 0), is_exchangeable(per_input, (3, 2), 1)
    (True, False)
    """
    return all(_is_constant(values, shape, axis) for values in (prior.centre, prior.scale))


def _is_constant(values: Floats, shape: Sequence[int], axis: int) -> bool:
    full = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
    return bool((full == full.take([0], axis=axis)).all())


TOTAL_BITS = 24
"""log2 of the total of the frequencies of kinds."""
FLAG = np.array([1])

Specs = Mapping[str, tuple[Sequence[int], LocatedDensity]]
"""Shape and prior of every coded tensor by name, in the order in which they are decoded."""


class _Tree:
    """Counts of kinds with running sums: a Fenwick tree (Fenwick 1994), with log2(kinds) steps per operation."""

    def __init__(self, kinds: int) -> None:
        self.counts, self._sums = [0] * kinds, [0] * (kinds + 1)

    def add(self, kind: int, count: int) -> None:
        self.counts[kind] += count
        node = kind + 1
        while node < len(self._sums):
            self._sums[node] += count
            node += node & -node

    def below(self, kind: int) -> int:
        """Return the number of units of a lower kind."""
        total = 0
        while kind:
            total += self._sums[kind]
            kind &= kind - 1
        return total

    def at(self, position: int) -> int:
        """Return the kind of the unit at ``position`` when all units stand in the order of their kinds."""
        node = 0
        for bit in reversed(range(len(self._sums).bit_length())):
            higher = node + (1 << bit)
            if higher < len(self._sums) and self._sums[higher] <= position:
                node, position = higher, position - self._sums[higher]
        return node


def _slots(tree: _Tree, kind: int, left: int) -> tuple[int, int]:
    """Return start and frequency of a kind, in proportion to its count among the ``left`` units."""
    below = tree.below(kind)
    start = (below << TOTAL_BITS) // left
    return start, ((below + tree.counts[kind] << TOTAL_BITS) // left) - start


def arrangement(counts: Integers) -> Codec:
    """Return the codec of arrangements: sequences with kind k ``counts[k]`` times, all equally likely.

    It uses the first lane of the stack only.

    Args:
        counts: number of units of each kind, (kinds,); at most 2^20 units.

    Returns:
        Codec of an int64 array of kinds, (units,).

    >>> stack = Stack(words=np.arange(9, dtype=np.uint32))
    >>> before, codec = stack.bits, arrangement(np.array([3, 1]))
    >>> kinds = codec.pop(stack)
    >>> sorted(kinds.tolist()), round(before - stack.bits, 3)
    ([0, 0, 0, 1], 2.0)
    >>> codec.push(stack, kinds)
    >>> stack.bits == before
    True
    """
    count = int(counts.sum())

    def push(stack: Stack, kinds: Integers) -> None:
        tree, slots = _Tree(len(counts)), np.empty((2, count), dtype=np.int64)
        for position, kind in enumerate(kinds.tolist()):
            tree.add(kind, 1)
            slots[:, position] = _slots(tree, kind, position + 1)
        stack.part(1).push(slots[0], slots[1], TOTAL_BITS)

    def pop(stack: Stack) -> Integers:
        tree = _Tree(len(counts))
        for kind, number in enumerate(counts.tolist()):
            tree.add(kind, number)

        def find(slot: Integers, row: slice) -> tuple[Integers, Integers, Integers]:
            # on one lane, row.stop units are left; this is the largest p with floor(p 2^24 / left) <= slot, as in _slots
            kind = tree.at((int(slot[0] + 1) * row.stop - 1) >> TOTAL_BITS)
            start, frequency = _slots(tree, kind, row.stop)
            tree.add(kind, -1)
            return np.array([kind]), np.array([start]), np.array([frequency])

        return stack.part(1).pop(count, TOTAL_BITS, find)

    return Codec(push, pop)


def arrangement_bits(counts: Sequence[int] | Integers) -> float:
    """Return log2 of the number of arrangements, n! / (product of counts!), in bits.

    >>> round(arrangement_bits([1, 1, 1, 1]), 3), arrangement_bits([4])
    (4.585, 0.0)
    """
    each = [int(count) for count in counts]
    return nats_to_bits(math.lgamma(sum(each) + 1) - sum(math.lgamma(count + 1) for count in each))


@dataclass(frozen=True)
class Refund:
    """Refund of the order of one group of units.

    Attributes:
        group: the units.
        bits: bits popped from the stack, not counting the flag of one bit.
        is_taken: whether there is a refund; false when the stack held too few bits.
    """

    group: UnitGroup
    bits: float
    is_taken: bool


@dataclass(frozen=True)
class _Order:
    """Canonical order of the units of a group; units with equal coded rows are of one kind.

    Attributes:
        sorting: unit numbers in canonical order, (units,).
        kinds: kind of every unit in its present place, (units,).
        counts: number of units of each kind, (kinds,).
    """

    sorting: Integers
    kinds: Integers
    counts: Integers

    @classmethod
    def of(cls, group: UnitGroup, tensors: Mapping[str, QuantisedTensor]) -> "_Order":
        """Return the order of a group's units by the 256-bit digests of their rows, which are short where rows are long."""
        rows = [hashlib.blake2b(digest_size=32) for _ in range(group.units)]
        for name in group.outputs:
            if name in tensors:
                for row, levels in zip(rows, tensors[name].levels, strict=True):
                    row.update(levels.astype("<i8").tobytes())
        digests = np.array([row.hexdigest() for row in rows])
        sorting = np.argsort(digests, kind="stable")
        _, kinds, counts = np.unique(digests, return_inverse=True, return_counts=True)
        return cls(sorting, kinds.reshape(-1), counts)


def canonicalise(
    tensors: Mapping[str, QuantisedTensor], groups: Sequence[UnitGroup]
) -> tuple[dict[str, QuantisedTensor], list[Integers]]:
    """Return the same network with the units of every group in canonical order.

    Args:
        tensors: the coded tensors by name.
        groups: from :func:`exchangeable_groups`, first to last.

    Returns:
        The tensors, and for each group the permutation, (units,): the former number of the unit in each place.
        :func:`rearranged` applies it to other tensors (weights without posterior, running statistics).
    """
    found, specs, orders = dict(tensors), _specs(tensors), []
    for group in groups:
        order = np.arange(group.units)
        if group.fits(specs):
            order = _Order.of(group, found).sorting
            _reorder(found, group, (*group.outputs, group.following), order)
        orders.append(order)
    return found, orders


def rearranged(name: str, values: Array, groups: Sequence[UnitGroup], orders: Sequence[Integers]) -> Array:
    """Return a tensor that is not coded, rearranged as :func:`canonicalise` rearranged the coded ones.

    Args:
        name: name of the tensor.
        values: its values.
        groups: as given to :func:`canonicalise`.
        orders: permutations from :func:`canonicalise`, one for each group.

    Returns:
        The rearranged values, in the same shape.
    """
    for group, order in zip(groups, orders, strict=True):
        values = group.moved(name, values, order)
    return values


def push_network(stack: Stack, tensors: Mapping[str, QuantisedTensor], groups: Sequence[UnitGroup]) -> list[Refund]:
    """Encode a network in canonical order.

    Args:
        stack: where to push; it gives the bits for the arrangements.
        tensors: the coded tensors by name, in the order in which they are decoded.
        groups: groups of units, first to last.

    Returns:
        The refund of every group whose priors allow one, first to last.

    Raises:
        LayerError: when the units are not in canonical order.
    """
    last, found = _last_tensors(_specs(tensors), groups), dict(tensors)
    refunds: list[Refund] = []
    for name in reversed(list(tensors)):
        if name in last:
            group, order = last[name], _Order.of(last[name], tensors)
            if not bool((np.diff(order.kinds) >= 0).all()):
                raise LayerError(f"the units of '{name}' are not in canonical order; call canonicalise first")
            before, is_taken = stack.bits, _holds_enough(stack, order.counts)
            if is_taken:
                kinds = arrangement(order.counts).pop(stack)
                # the rank of each place by its kind is the number of the canonical unit that goes there
                _reorder(found, group, group.outputs, np.argsort(np.argsort(kinds, kind="stable"), kind="stable"))
            refunds.append(Refund(group, before - stack.bits, is_taken))
            stack.push_raw(np.array([int(is_taken)]), FLAG)
        tensor = found.pop(name)
        tensor_codec(tensor.shape, tensor.prior).push(stack, tensor)
    return refunds[::-1]


def pop_network(stack: Stack, specs: Specs, groups: Sequence[UnitGroup]) -> dict[str, QuantisedTensor]:
    """Decode what :func:`push_network` encoded, and restore the stack to its state before.

    Args:
        stack: where to pop; the refunded bits are pushed back on it.
        specs: shape and prior of every coded tensor by name, in the order of decoding.
        groups: groups of units, as given to :func:`push_network`.

    Returns:
        The tensors by name, with units in canonical order.
    """
    last, found = _last_tensors(specs, groups), {}
    for name, (shape, prior) in specs.items():
        found[name] = tensor_codec(shape, prior).pop(stack)
        if name in last and int(stack.pop_raw(FLAG)[0]):
            order = _Order.of(last[name], found)
            arrangement(order.counts).push(stack, order.kinds)
            _reorder(found, last[name], last[name].outputs, order.sorting)
    return found


def _specs(tensors: Mapping[str, QuantisedTensor]) -> Specs:
    """Return shape and prior of every tensor by name."""
    return {name: (tensor.shape, tensor.prior) for name, tensor in tensors.items()}


def _last_tensors(specs: Specs, groups: Sequence[UnitGroup]) -> dict[str, UnitGroup]:
    """Return, by name of the last decoded output tensor, each group whose priors allow a refund: its rows are then known."""
    return {[name for name in specs if name in group.outputs][-1]: group for group in groups if group.fits(specs)}


def _reorder(tensors: dict[str, QuantisedTensor], group: UnitGroup, names: Sequence[str], order: Integers) -> None:
    """Replace the named tensors in the dictionary by tensors with the units of a group rearranged."""
    if not bool((np.diff(order) == 1).all()):
        for name in names:
            if name in tensors:
                tensors[name] = replace(tensors[name], levels=group.moved(name, tensors[name].levels, order))


def _holds_enough(stack: Stack, counts: Integers) -> bool:
    """Return whether the words surely suffice for an arrangement: its bits, one word more, and the losses of rounding."""
    rounding = int(counts.sum()) ** 2 / 2 ** (TOTAL_BITS - 1)
    return WORD_BITS * len(stack.words) >= arrangement_bits(counts) + WORD_BITS + rounding + 2
