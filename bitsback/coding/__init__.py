"""Entropy coder: integers are coded under integer frequency tables and decoded exactly. It needs numpy only, not torch.

>>> import numpy as np
>>> from bitsback.coding import NORMAL, LocatedDensity, Stack, quantise, tensor_codec
>>> prior = LocatedDensity(NORMAL, np.zeros(()), np.full((), 0.5))
>>> stack, codec = Stack.empty(), tensor_codec((3,), prior)
>>> codec.push(stack, quantise(np.array([0.3, -0.9, 0.0]), 0.1, prior, step_level=-8))
>>> content = stack.to_bytes()
>>> codec.pop(Stack.from_bytes(content, 1)).values().tolist()
[0.25, -1.0, 0.0]
"""

from typing import TYPE_CHECKING

from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.coding.ans import Stack as Stack
    from bitsback.coding.combinators import Codec as Codec
    from bitsback.coding.combinators import bits_back as bits_back
    from bitsback.coding.combinators import dependent as dependent
    from bitsback.coding.combinators import raw_bits as raw_bits
    from bitsback.coding.combinators import sequence as sequence
    from bitsback.coding.combinators import substack as substack
    from bitsback.coding.densities import NORMAL as NORMAL
    from bitsback.coding.densities import LocatedDensity as LocatedDensity
    from bitsback.coding.densities import StandardDensity as StandardDensity
    from bitsback.coding.grid import GridCode as GridCode
    from bitsback.coding.grid import TensorGrid as TensorGrid
    from bitsback.coding.lattice import PriorCode as PriorCode
    from bitsback.coding.lattice import RoundedPosterior as RoundedPosterior
    from bitsback.coding.normals import exact_normals as exact_normals
    from bitsback.coding.permutation import UnitGroup as UnitGroup
    from bitsback.coding.permutation import canonicalise as canonicalise
    from bitsback.coding.permutation import pop_network as pop_network
    from bitsback.coding.permutation import push_network as push_network
    from bitsback.coding.quantised import QuantisedTensor as QuantisedTensor
    from bitsback.coding.quantised import quantise as quantise
    from bitsback.coding.quantised import tensor_codec as tensor_codec
    from bitsback.coding.relative_entropy import BlockCode as BlockCode
    from bitsback.coding.tables import PriorTable as PriorTable

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "ans": ["Stack"],
        "combinators": ["Codec", "bits_back", "dependent", "raw_bits", "sequence", "substack"],
        "densities": ["NORMAL", "LocatedDensity", "StandardDensity"],
        "grid": ["GridCode", "TensorGrid"],
        "lattice": ["PriorCode", "RoundedPosterior"],
        "normals": ["exact_normals"],
        "permutation": ["UnitGroup", "canonicalise", "pop_network", "push_network"],
        "quantised": ["QuantisedTensor", "quantise", "tensor_codec"],
        "relative_entropy": ["BlockCode"],
        "tables": ["PriorTable"],
    },
)
