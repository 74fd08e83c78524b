"""A network for a receiver without the data: what both kinds of model file have in common, and the block code's body."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bitsback.coding.ans import Integers
from bitsback.coding.densities import StandardDensity
from bitsback.coding.relative_entropy import BlockCode
from bitsback.errors import FileError
from bitsback.formats.container import BitReader, BitWriter
from bitsback.formats.model_file.codec import Part
from bitsback.formats.side_information import densities_of
from bitsback.model import BayesianModel

INDEX_SIZE_BITS = 5
MOST_INDEX_BITS = 24


def block_code(model: BayesianModel, blocks: int, index_bits: int, key: int = 0) -> BlockCode:
    """The blocks of a model whose priors are final.

    Raises:
        FileError: for numbers that make no sense.
        PriorError: for a prior that does not code weights one by one.
    """
    weights = sum(q.numel for q in model.posteriors())
    if not (0 < blocks <= weights and 0 < index_bits <= MOST_INDEX_BITS):
        raise FileError(f"{blocks} blocks of {index_bits} bits do not fit {weights:,} weights; the file is damaged")
    placed = densities_of(model)
    shapes: list[StandardDensity] = []
    for prior in placed:
        if prior.standard.name not in [shape.name for shape in shapes]:
            shapes.append(prior.standard)
    names = [shape.name for shape in shapes]
    tensors = [tuple(q.mean.shape) for q in model.posteriors()]

    def spread(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.broadcast_to(v, shape).ravel() for v, shape in zip(values, tensors, strict=True)])

    return BlockCode(
        centre=spread([prior.centre for prior in placed]),
        scale=spread([prior.scale for prior in placed]),
        shapes=shapes,
        shape_of=spread([np.array(names.index(prior.standard.name)) for prior in placed]),
        sizes=[q.numel for q in model.posteriors()],
        blocks=blocks,
        index_bits=index_bits,
        key=key,
    )


def put_blocks(writer: BitWriter, indices: Integers, index_bits: int, key: int) -> None:
    """Write the body of a block code: K, the key of the codebook, the number of blocks, and their indices."""
    writer.put(index_bits, INDEX_SIZE_BITS)
    writer.put_count(key)
    writer.put_count(len(indices))
    for index in indices.tolist():
        writer.put(index, index_bits)


def take_blocks(reader: BitReader, model: BayesianModel) -> tuple[dict[str, Tensor], list[Part]]:
    """Read what :func:`put_blocks` wrote: the weights by name, and what they took."""
    before = reader.place
    index_bits = reader.take(INDEX_SIZE_BITS)
    key = reader.take_count()
    blocks = reader.take_count()
    if blocks * index_bits > reader.bits_left:
        raise FileError(f"the file claims {blocks:,} blocks of {index_bits} bits but is shorter; it is damaged")
    code = block_code(model, blocks, index_bits, key)
    parts = [Part("bits of a block, key, number of blocks", reader.place - before), Part("block indices", blocks * index_bits)]
    flat = np.zeros(sum(code.sizes), dtype=np.float32)
    for block in range(blocks):
        flat[code.members(block)] = code.values(block, reader.take(index_bits))
    each = torch.from_numpy(flat).split(list(code.sizes))
    return {w.name: part.reshape(w.posterior.mean.shape) for w, part in zip(model.weights, each, strict=True)}, parts
