"""Training that a receiver repeats: its settings, and digests that show early where two machines differ::

    step        0 ----- 1/64 ----- 1/8 ----- 1/2 ------------ end
                          |          |         |               |
    sender               8 bits     8 bits    8 bits          32 bits of the rounded posterior, all in the header
                          |          |         |               |
    receiver    0 ------- ? -------- ? ------- ? ------------- ? -------> same posterior -> payload
                          |          |         |               |
                          +----------+---------+---------------+--------> differs: RefundLostError, no payload

The digests under way only save time; the digest of the posterior decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from bitsback.coding.categorical import FRACTION_BITS
from bitsback.config import Config
from bitsback.errors import ConfigError, FileError
from bitsback.formats._training_digest import StateDigest, digest_steps
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel
from bitsback.processes import launched_count
from bitsback.training import TrainingSettings

__all__ = ["Checking", "Recording", "RefundLostError", "check_alone", "repeatable", "steps_of"]


def repeatable(config: Config) -> Config:
    """Return the configuration with which both sides train: in float64, on a CPU, unfused, with inputs on a lattice.

    Rounding differences between machines are 10^9 times smaller in float64 than in float32, and random numbers are drawn in
    float64 too. ``training.precision``, ``training.fused`` and ``training.device`` are ignored.

    Returns:
        a changed copy.

    >>> from bitsback.training import TrainingSettings
    >>> repeatable(Config(training=TrainingSettings(precision="bfloat16"))).training.precision
    'float64'
    """
    training = config.training.model_copy(update={"precision": "float64", "device": "cpu", "fused": False})
    # inputs whose preprocessing differs in last bits are then still equal on both sides
    data = config.data
    if data.fraction_bits is None:
        data = data.model_copy(update={"fraction_bits": FRACTION_BITS})
    return config.model_copy(update={"training": training, "data": data})


def check_alone() -> None:
    """Raise ConfigError if this is one of several processes that train together.

    Raises:
        ConfigError: if so: a receiver repeats the sums of a single process.
    """
    processes = launched_count()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
    if processes > 1:
        raise ConfigError(
            f"this is one of {processes} processes that train together, and a receiver repeats what one has trained; start "
            "bitsback without torchrun (unset WORLD_SIZE)"
        )


@dataclass
class Recording:
    """Callback of the sender's training that keeps a digest after each step in :func:`digest_steps`.

    Args:
        steps: total number of optimiser steps.
        likelihood: likelihood that is trained along.

    Attributes:
        found: the digests so far.
    """

    steps: int
    likelihood: Likelihood
    found: list[StateDigest] = field(default_factory=list)

    def __call__(self, step: int, model: BayesianModel) -> None:
        """Keep a digest if it is time for one.

        Args:
            step: number of steps done.
            model: model in training.
        """
        if step in digest_steps(self.steps):
            self.found.append(StateDigest.of(model, self.likelihood))


@dataclass(frozen=True)
class Checking:
    """Callback of the receiver's training that compares its digests with the sender's.

    Args:
        steps: total number of optimiser steps.
        likelihood: likelihood that is trained along.
        told: the sender's digests, of the first steps in :func:`digest_steps`.
    """

    steps: int
    likelihood: Likelihood
    told: Sequence[StateDigest]

    def __call__(self, step: int, model: BayesianModel) -> None:
        """Compare the digest of this step, if the sender has one.

        Args:
            step: number of steps done.
            model: model in training.

        Raises:
            RefundLostError: at the first step whose digest is not the sender's.
        """
        # not strict: a run that was trained before has no digests to send
        told = dict(zip(digest_steps(self.steps), self.told, strict=False))
        if step in told and not told[step].agrees(StateDigest.of(model, self.likelihood)):
            raise RefundLostError(
                f"labels and network were recovered, the payload was not: after step {step:,} of {self.steps:,} training here "
                "is not where the sender's was (another processor, torch version or thread count); receive it on a machine "
                "like the sender's"
            )


def steps_of(training: TrainingSettings, examples: int) -> int:
    """Return the optimiser steps of a training that does not stop early.

    Args:
        training: settled settings.
        examples: number of training examples.

    Returns:
        number of steps.
    """
    return training.passes * -(-examples // training.batch_size)


class RefundLostError(FileError):
    """Error when labels and weights are decoded but the posterior cannot be repeated, so that the payload is not recovered."""
