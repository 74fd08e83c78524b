"""The prequential code: every label under a model that has seen only the labels before it (Dawid 1984).

L(y) = sum over blocks of -log2 p(labels of the block | inputs, all earlier labels). In blocks, as in Blier & Ollivier, "The
Description Length of Deep Learning Models" (2018): the first block under the uniform code, each later one under a network that
was trained on all that is before it. Here are the blocks, the temperature and what is reported; the networks are trained in
:mod:`bitsback.formats.prequential.walk`.
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

STEPS_PER_STD = 3.46
"""As :mod:`bitsback.coding.quantised` has it, which needs numpy."""


class GrowingBlocks(Settings):
    """Blocks that end at first, first * growth, first * growth^2, ..., rounded; the last one ends with the data."""

    first: PositiveInt = Field(8, description="examples of the first block, whose labels are coded without a model")
    growth: float = Field(2.0, ge=1.01, description="each block ends at this multiple of the end before")

    def ends(self, examples: int) -> tuple[int, ...]:
        """The ends of all blocks.

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
    """The blocks of the prequential code, and who predicts them."""

    blocks: GrowingBlocks | tuple[int, ...] | tuple[float, ...] = Field(
        GrowingBlocks(), description="{first: 8, growth: 2}, or the ends of all blocks, in examples or as shares of them"
    )
    predict: Kind = Field(
        "point",
        description="point: one network (its posterior means); samples: draws of one posterior, averaged; ensemble: networks "
        "trained from different seeds, averaged",
    )
    members: PositiveInt = Field(1, description="how many draws or networks are averaged")
    calibrate: bool = Field(True, description="fit a temperature to labels that have been coded, for the next block")
    shuffle: bool = Field(True, description="code the labels in an order drawn by seed, not in that of the data")
    least_steps: PositiveInt = Field(
        300, description="optimiser steps on a block's earlier labels, where training.epochs would be fewer"
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
        """The ends of all blocks of so many examples.

        Raises:
            ConfigError: when the blocks do not rise from above 0 to the last example.

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
    """How the weights that are not chosen yet are trained on."""

    groups: PositiveInt = Field(40, description="groups of blocks that are chosen at once")
    taper: float = Field(
        1.0, gt=0, le=1, description="size of the last group, in sizes of the first; between, it falls linearly"
    )
    steps: NonNegativeInt = Field(200, description="steps after each group; 0: nothing is trained")
    balance_steps: NonNegativeInt = Field(300, description="steps before the first group, which balance the blocks")
    batch_size: PositiveInt = Field(128, description="examples per step")
    lr: PositiveFloat = Field(0.005, description="largest learning rate of the means; log std takes five times as much")
    final_lr: float = Field(0.05, gt=0, le=1, description="learning rate at the end, in units of lr; it falls as a cosine")
    relative_lr: bool = Field(
        False, description="scale each tensor's rate with its prior's scale: for wide layers of tiny weights"
    )
    target_bits: PositiveFloat | None = Field(None, description="KL at which blocks are held; default: the bits of an index")
    augment: AugmentSettings | None = Field(None, description="random changes of the images while tuning")


class QuantisingSettings(Settings):
    """How the quantised codec puts weights on grids."""

    steps_per_std: PositiveFloat = Field(STEPS_PER_STD, description="grid step in posterior stds; coarser makes smaller files")
    trade_off: float = Field(0.0, ge=0, description="weight of code bits against distortion; 0 rounds to the nearest level")
    permute: bool = Field(True, description="whether the order of hidden units gives its bits back")


class PackSettings(Settings):
    """How a run becomes a model file."""

    codec: Literal["auto", "relative_entropy", "quantised", "factory"] = Field(
        "auto", description="auto: by net bits per weight; factory: one of your own"
    )
    factory: str | None = Field(
        None,
        pattern=NAME_PATTERN,
        max_length=LONGEST_NAME,
        description="package.module:function that returns the codec, with codec factory",
    )
    index_bits: int = Field(12, ge=1, le=24, description="K: bits of a block's index; 12, or 16 for quality")
    key: int = Field(0, ge=0, lt=2**32, description="of the codebook; another one gives another file")
    budget_bytes: PositiveInt | None = Field(None, description="size of the whole file; default: what the net bits ask for")
    tuning: TuningSettings | None = Field(
        None, description="train on what is not coded yet; default: code the posterior as it is"
    )
    quantising: QuantisingSettings = QuantisingSettings()

    @model_validator(mode="after")
    def _check(self) -> "PackSettings":
        if (self.codec == "factory") != (self.factory is not None):
            raise ValueError("codec: factory and factory: package.module:function go together; give both or neither")
        return self
