"""Settings of the prequential code and of packing.

The prequential code describes each label with a model fitted to the labels before it (Dawid 1984):
L(y) = sum over blocks of -log2 p(labels of the block | inputs, all earlier labels). Blocks follow Blier & Ollivier, "The
Description Length of Deep Learning Models" (2018): the first block is coded uniformly, each later one with a network trained
on all blocks before it. The networks are trained in :mod:`bitsback.formats.prequential.walk`.
"""

from itertools import pairwise
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from bitsback.errors import ConfigError
from bitsback.factories import LONGEST_NAME, NAME_PATTERN
from bitsback.registry import Settings
from bitsback.training.settings import AugmentSettings

__all__ = [
    "STEPS_PER_STD",
    "GrowingBlocks",
    "Kind",
    "PackSettings",
    "PrequentialSettings",
    "QuantisingSettings",
    "TuningSettings",
]

Kind = Literal["point", "samples", "ensemble"]
"""Predictor of a block: one network, averaged weight draws, or an ensemble of networks."""

STEPS_PER_STD = 3.46
"""Default grid step in posterior stds, as in :mod:`bitsback.coding.quantised`, whose import needs numpy."""


class GrowingBlocks(Settings):
    """Blocks that end at first, first * growth, first * growth^2, ..., rounded; the last one ends with the data."""

    first: PositiveInt = Field(8, description="examples of the first block, whose labels are coded without a model")
    growth: float = Field(2.0, ge=1.01, description="each block ends at this multiple of the end before")

    def ends(self, examples: int) -> tuple[int, ...]:
        """Return the ends of all blocks.

        Args:
            examples: number of training examples.

        Returns:
            number of examples up to the end of each block, rising to ``examples``.

        >>> GrowingBlocks(first=8, growth=2.0).ends(100)
        (8, 16, 32, 64, 100)
        """
        found: list[int] = []
        end = float(self.first)
        while round(end) < examples:
            if not found or round(end) > found[-1]:
                found.append(round(end))
            end *= self.growth
        return (*found, examples)


class PrequentialSettings(Settings):
    """Blocks of the prequential code, and the predictor of their labels."""

    blocks: GrowingBlocks | tuple[int, ...] | tuple[float, ...] = Field(
        GrowingBlocks(), description="{first: 8, growth: 2}, or the ends of all blocks, in examples or as shares of them"
    )
    predict: Kind = Field(
        "point",
        description="point: one network (its posterior means); samples: draws of one posterior, averaged; ensemble: networks "
        "trained from different seeds, averaged",
    )
    members: PositiveInt = Field(1, description="number of draws or networks that are averaged")
    calibrate: bool = Field(True, description="fit a temperature on the labels coded so far, and use it for the next block")
    shuffle: bool = Field(True, description="code the labels in a random order, drawn by seed; false: in the order of the data")
    least_steps: PositiveInt = Field(
        300, description="minimum of optimiser steps before a block, if training.epochs amounts to fewer"
    )

    @model_validator(mode="after")
    def _check(self) -> "PrequentialSettings":
        if (self.predict == "point") != (self.members == 1):
            raise ValueError(
                f"predict '{self.predict}' does not go with {self.members} members; one network is predict=point, members=1; "
                "several are predict=ensemble (or samples) with members of 2 or more"
            )
        return self

    def ends(self, examples: int) -> tuple[int, ...]:
        """Return the ends of all blocks.

        Args:
            examples: number of training examples.

        Returns:
            number of examples up to the end of each block, rising to ``examples``.

        Raises:
            ConfigError: if the blocks do not rise from above 0 to the last example.

        >>> PrequentialSettings(blocks=(0.25, 1.0)).ends(80)
        (20, 80)
        """
        if isinstance(self.blocks, GrowingBlocks):
            return self.blocks.ends(examples)
        ends = tuple(end if isinstance(end, int) else round(end * examples) for end in self.blocks)
        if not ends or ends[-1] != examples:
            last = f"end at {ends[-1]:,} of {examples:,} examples" if ends else "are none"
            raise ConfigError(f"prequential.blocks {last}; the last block must end at {examples} (or at the share 1.0)")
        if any(end <= start for start, end in pairwise((0, *ends))):
            raise ConfigError(f"prequential.blocks {list(self.blocks)} must rise, from above 0; leave out empty blocks")
        return ends


class TuningSettings(Settings):
    """Training, between the coding of groups of blocks, of the weights that are not coded yet."""

    groups: PositiveInt = Field(
        40, description="number of groups of blocks; the blocks of a group are coded before the next tuning"
    )
    taper: float = Field(
        1.0, gt=0, le=1, description="size of the last group, relative to the first; sizes fall linearly in between"
    )
    steps: NonNegativeInt = Field(200, description="optimiser steps after each group; 0: none")
    balance_steps: NonNegativeInt = Field(
        300, description="optimiser steps before the first group, which bring the KL of the blocks to the target"
    )
    batch_size: PositiveInt = Field(128, description="examples per step")
    lr: PositiveFloat = Field(0.005, description="largest learning rate of the means; five times as large for log stds")
    final_lr: float = Field(0.05, gt=0, le=1, description="final learning rate, relative to lr; it decays as a cosine")
    relative_lr: bool = Field(
        False, description="multiply each tensor's learning rate by its prior's scale: for wide layers with small weights"
    )
    target_bits: PositiveFloat | None = Field(
        None, description="KL of a block that tuning aims at, in bits; default: index_bits"
    )
    augment: AugmentSettings | None = Field(None, description="augmentation of the images while tuning")


class QuantisingSettings(Settings):
    """Rounding of weights to grids by the quantised codec."""

    steps_per_std: PositiveFloat = Field(
        STEPS_PER_STD, description="grid step in posterior stds; a larger one gives smaller files"
    )
    trade_off: float = Field(
        0.0, ge=0, description="weight of code length against distortion when rounding; 0: round to the nearest level"
    )
    permute: bool = Field(True, description="use the free order of hidden units to save bits")


class PackSettings(Settings):
    """Conversion of a run into a model file."""

    codec: Literal["auto", "relative_entropy", "quantised", "factory"] = Field(
        "auto", description="auto: chosen by net bits per weight; factory: a codec of your own"
    )
    factory: str | None = Field(
        None,
        pattern=NAME_PATTERN,
        max_length=LONGEST_NAME,
        description="package.module:function that returns the codec, with codec factory",
    )
    index_bits: int = Field(
        12, ge=1, le=24, description="bits of a block's index; 12, or 16 for a better match to the posterior"
    )
    key: int = Field(0, ge=0, lt=2**32, description="seed of the codebook; another one gives another file")
    budget_bytes: PositiveInt | None = Field(
        None, description="size of the whole file in bytes; default: follows from the net bits"
    )
    tuning: TuningSettings | None = Field(
        None, description="train weights that are not coded yet; default: code the posterior as it is"
    )
    quantising: QuantisingSettings = QuantisingSettings()

    @model_validator(mode="after")
    def _check(self) -> "PackSettings":
        if (self.codec == "factory") != (self.factory is not None):
            raise ValueError("codec: factory and factory: package.module:function go together; give both or neither")
        return self
