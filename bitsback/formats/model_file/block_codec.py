"""Body of relative entropy coded model files: each block of weights is an index into a shared random codebook."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsback.coding.ans import Integers
from bitsback.coding.densities import StandardDensity
from bitsback.coding.relative_entropy import BlockCode
from bitsback.config import Experiment
from bitsback.config.coding_settings import PackSettings, TuningSettings
from bitsback.errors import ConfigError, FileError
from bitsback.formats.container import BitReader, BitWriter, seal, sealed_bytes
from bitsback.formats.kinds import FileKind, register_kind
from bitsback.formats.model_file._codec import FilePart, ModelCodec, register_codec
from bitsback.formats.model_file._head import EmptyModel, model_tree, put_experiment_head
from bitsback.formats.model_file._tuning import Tuner
from bitsback.formats.side_information import densities_of
from bitsback.model import BayesianModel
from bitsback.torch_state import seeded, using_threads
from bitsback.training import TrainingSettings
from bitsback.training.train import device_named, threads_for
from bitsback.units import bits_to_bytes

__all__ = ["RELATIVE_ENTROPY", "DecodedBlocks", "block_code", "put_blocks", "read_blocks", "write_blocks"]

RELATIVE_ENTROPY = register_kind(FileKind(1, "relative_entropy"))
INDEX_SIZE_BITS = 5
"""Bits of the number of bits of an index."""
MOST_INDEX_BITS = 24
"""Largest number of bits of an index: the writer tries all 2^bits candidates."""


def block_code(model: BayesianModel, blocks: int, index_bits: int, key: int = 0) -> BlockCode:
    """Return the block code of a model whose priors are final.

    Args:
        model: model with its priors.
        blocks: number of blocks.
        index_bits: bits of the index of one block.
        key: key of the random codebook.

    Returns:
        the code, over all weights of the model in order.

    Raises:
        FileError: if the numbers of blocks and bits do not suit the weights.
        PriorError: if a prior does not code weights one by one.
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
    """Write the body of a block code: bits of an index, key of the codebook, number of blocks, and the indices.

    Args:
        writer: receives the bits.
        indices: index of every block, (blocks,).
        index_bits: bits of one index.
        key: key of the random codebook.
    """
    writer.put(index_bits, INDEX_SIZE_BITS)
    writer.put_count(key)
    writer.put_count(len(indices))
    for index in indices.tolist():
        writer.put(index, index_bits)


@dataclass(frozen=True)
class DecodedBlocks:
    """Decoded body of a block code.

    Attributes:
        weights: weight tensors by name.
        numbers_bits: bits of the three numbers before the indices.
        indices_bits: bits of the indices.
    """

    weights: dict[str, Tensor]
    numbers_bits: int
    indices_bits: int

    def parts(self) -> list[FilePart]:
        """Return the parts of the body with their bits."""
        return [
            FilePart("bits of a block, key, number of blocks", self.numbers_bits),
            FilePart("block indices", self.indices_bits),
        ]


def read_blocks(reader: BitReader, empty: EmptyModel) -> DecodedBlocks:
    """Read what :func:`put_blocks` wrote.

    Args:
        reader: positioned at the body.
        empty: untrained model of the head.

    Returns:
        the weights, and the bits of each part.

    Raises:
        FileError: if the numbers of blocks and bits do not suit the weights or the file.
    """
    model, before = empty.model, reader.position
    index_bits = reader.take(INDEX_SIZE_BITS)
    key = reader.take_count()
    blocks = reader.take_count()
    if blocks * index_bits > reader.bits_left:
        raise FileError(f"the file claims {blocks:,} blocks of {index_bits} bits but is shorter; it is damaged")
    code = block_code(model, blocks, index_bits, key)
    numbers_bits = reader.position - before
    flat = np.zeros(sum(code.sizes), dtype=np.float32)
    for block in range(blocks):
        flat[code.members(block)] = code.values(block, reader.take(index_bits))
    each = torch.from_numpy(flat).split(list(code.sizes))
    weights = {w.name: part.reshape(w.posterior.mean.shape) for w, part in zip(model.weights, each, strict=True)}
    return DecodedBlocks(weights, numbers_bits, blocks * index_bits)


def write_blocks(experiment: Experiment, settings: PackSettings, progress: bool) -> bytes:
    """Return a relative entropy coded file, with as many blocks as the net bits fill or the budget holds.

    Args:
        experiment: trained experiment; its model ends with the weights of the file.
        settings: section ``pack``.
        progress: show a progress bar.

    Returns:
        the bytes of the file.
    """
    model, tree = experiment.model, model_tree(experiment)
    head = BitWriter()
    put_experiment_head(head, experiment, tree)
    blocks = _blocks(float(model.kl_bits().detach()), head.bits, settings)
    weights = sum(q.numel for q in model.posteriors())
    code = block_code(model, min(blocks, weights), settings.index_bits, settings.key)
    tuning = settings.tuning or TuningSettings(steps=0, balance_steps=0)
    half = experiment.config.training.precision == "bfloat16"
    _move(experiment, _device_of(experiment.config.training))
    try:
        tuner = Tuner(
            model, experiment.likelihood, experiment.dataset.train, code, tuning, experiment.config.seed, progress=progress,
            half=half,
        )  # fmt: skip
        with using_threads(threads_for(experiment.config.training, model)), seeded(experiment.config.seed, torch.device("cpu")):
            indices = tuner.run()
    finally:
        _move(experiment, torch.device("cpu"))
    # the head again: tuning has changed numbers in it (running statistics), but not its size
    writer = BitWriter()
    put_experiment_head(writer, experiment, tree)
    put_blocks(writer, indices, settings.index_bits, settings.key)
    return seal(RELATIVE_ENTROPY, writer.to_bytes())


def _device_of(training: TrainingSettings) -> torch.device:
    """Return the device of the training if it is here, else the CPU: a run may be packed on another machine."""
    try:
        return device_named(training.device)
    except ConfigError:
        return torch.device("cpu")


def _move(experiment: Experiment, device: torch.device) -> None:
    if experiment.model.device != device:
        experiment.model.to(device)
        experiment.likelihood.to(device)


def _blocks(net_weight_bits: float, head_bits: int, settings: PackSettings) -> int:
    """Return the number of blocks: as many as the net weight bits fill, or as fit the budget."""
    if settings.budget_bytes is None:
        return max(1, round(net_weight_bits / settings.index_bits))
    blocks = 8 * settings.budget_bytes // settings.index_bits
    while blocks > 0 and _file_bytes(head_bits, blocks, settings) > settings.budget_bytes:
        blocks -= 1
    if blocks == 0:
        least = _file_bytes(head_bits, 1, settings)
        raise FileError(f"a budget of {settings.budget_bytes} bytes is too small; the least for this network is {least} bytes")
    return blocks


def _file_bytes(head_bits: int, blocks: int, settings: PackSettings) -> int:
    counts = sum(2 * (count + 1).bit_length() - 1 for count in (blocks, settings.key))
    return sealed_bytes(bits_to_bytes(head_bits + INDEX_SIZE_BITS + counts + blocks * settings.index_bits))


BLOCK_CODEC = register_codec(ModelCodec(RELATIVE_ENTROPY, write_blocks, read_blocks, DecodedBlocks.parts))
