"""What a receiver trains again: in what way, so that it ends alike elsewhere; and how early a difference shows."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from bitsback.coding.categorical import FRACTION_BITS
from bitsback.config import Config
from bitsback.errors import ConfigError, FileError
from bitsback.formats._training_digest import StateDigest, digest_steps
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel
from bitsback.training import TrainingSettings

__all__ = ["Checking", "Recording", "RefundLostError", "check_alone", "repeatable", "steps_of"]


def repeatable(config: Config) -> Config:
    """The configuration as it is trained where a receiver repeats it: plainly, in float64, on a CPU, on inputs on a lattice.

    In float64 the last bits, in which machines differ, are 10^9 times below those of float32; and what is random in them is
    drawn in float64 too. ``training.precision``, ``training.fused`` and ``training.device`` count for other trainings.

    >>> from bitsback.training import TrainingSettings
    >>> repeatable(Config(training=TrainingSettings(precision="bfloat16"))).training.precision
    'float64'
    """
    training = config.training.model_copy(update={"precision": "float64", "device": "cpu", "fused": False})
    data = config.data
    if data.fraction_bits is None:
        data = data.model_copy(update={"fraction_bits": FRACTION_BITS})
    return config.model_copy(update={"training": training, "data": data})


def check_alone() -> None:
    """Raise ConfigError in one of several processes that train together: a receiver repeats the sums of one."""
    said = os.environ.get("WORLD_SIZE", "")
    processes = int(said) if said.isdecimal() else 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
    if processes > 1:
        raise ConfigError(
            f"this is one of {processes} processes that train together, and a receiver repeats what one has trained; start "
            "bitsback without torchrun (unset WORLD_SIZE)"
        )


@dataclass
class Recording:
    """Watches the sender's training and keeps a digest of each step in :func:`digest_steps`.

    Args:
        steps: how many there will be.
        likelihood: that is trained along.
    """

    steps: int
    likelihood: Likelihood
    found: list[StateDigest] = field(default_factory=list)

    def __call__(self, step: int, model: BayesianModel) -> None:
        if step in digest_steps(self.steps):
            self.found.append(StateDigest.of(model, self.likelihood))


@dataclass(frozen=True)
class Checking:
    """Watches the receiver's training; raises RefundLostError at the first step whose digest is not the sender's.

    Args:
        steps: how many there will be.
        likelihood: that is trained along.
        told: the sender's digests, of the first steps in :func:`digest_steps`.
    """

    steps: int
    likelihood: Likelihood
    told: Sequence[StateDigest]

    def __call__(self, step: int, model: BayesianModel) -> None:
        told = dict(zip(digest_steps(self.steps), self.told, strict=False))
        if step in told and not told[step].agrees(StateDigest.of(model, self.likelihood)):
            raise RefundLostError(
                f"labels and network were recovered, the payload was not: after step {step:,} of {self.steps:,} training here "
                "is not where the sender's was (another processor, torch version or thread count); receive it on a machine "
                "like the sender's"
            )


def steps_of(training: TrainingSettings, examples: int) -> int:
    """Optimiser steps of a training with settled settings, unless it stops early."""
    return training.passes * -(-examples // training.batch_size)


class RefundLostError(FileError):
    """Labels and weights are there, but q could not be repeated: the payload stays locked."""
