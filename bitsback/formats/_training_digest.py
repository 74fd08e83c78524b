"""Eight-bit digest of the state of a training, by which a receiver who repeats it detects early that its arithmetic differs.

The digest is a sum of all learned numbers with random signs, rounded coarsely, and compared with a tolerance of one unit. It is
not a hash: differences in last bits do not show, however many numbers there are, and a training that has diverged does. It
only saves time: the digest of the posterior at the end decides whether the payload is recovered.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsback.coding.elementary import Floats
from bitsback.coding.lattice import MEAN_STEPS_PER_STD, STD_LEVELS_PER_OCTAVE
from bitsback.coding.philox import SIGNS, raw
from bitsback.formats.side_information import SideInformation
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel

__all__ = ["COARSENESS", "MOST_DIGESTS", "STATE_BITS", "StateDigest", "digest_steps"]

STATE_BITS = 8
"""Bits of one digest."""
COARSENESS = 8.0
"""Unit of the digest, in steps of the rounded posterior: differences of the sum below it are tolerated."""
STEPS_PER_UNIT = 1024.0
"""Steps per unit of a number without a std, for numbers well below one; larger ones have fewer."""
SHARES = (64, 8, 2)
"""Digests are taken after these fractions of the steps: a 64th, an eighth, a half."""
MOST_DIGESTS = len(SHARES)


def digest_steps(steps: int) -> tuple[int, ...]:
    """Return the numbers of completed steps after which a digest is taken: a 64th, an eighth and a half of all, rounded up.

    Another library or seed shows at the first of them, an amplified rounding difference at a later one. The end needs none,
    because the posterior has its own digest.

    Returns:
        increasing numbers of steps, below ``steps``.

    >>> digest_steps(2000), digest_steps(3), digest_steps(1)
    ((32, 250, 1000), (1, 2), ())
    """
    return tuple(step for step in sorted({-(-steps // share) for share in SHARES}) if step < steps)


@dataclass(frozen=True)
class StateDigest:
    """Sum of the learned numbers with random signs, in units of :data:`COARSENESS`, modulo 2^8.

    Numbers: 64 mean / std and 32 log2(std) of every weight, which are the steps to which messages round a posterior; and
    1024 x / (1 + |x|) for every weight x with a point posterior, learned number of priors and likelihood, statistic, and weight
    without posterior. Each number has its own sign, the same at every step.

    Attributes:
        level: the sum, 0 to 255.
    """

    level: int

    @classmethod
    @torch.no_grad()
    def of(cls, model: BayesianModel, likelihood: Likelihood) -> "StateDigest":
        """Return the digest of a model and its likelihood in their current state.

        Args:
            model: model in training.
            likelihood: likelihood that is trained along.

        Returns:
            the digest; level 0 if a number is not finite.

        >>> from bitsback.likelihoods import CategoricalLikelihood
        >>> from bitsback.model import bayesianize
        >>> likelihood, model = CategoricalLikelihood(2), bayesianize(torch.nn.Linear(500, 2).double())
        >>> before = StateDigest.of(model, likelihood)
        >>> model.weights[0].posterior.mean.data.mul_(1 + 1e-12)[0, 0].isfinite()
        tensor(True)
        >>> before.agrees(StateDigest.of(model, likelihood))
        True
        >>> model.weights[0].posterior.mean.data.mul_(1.3)[0, 0].isfinite()
        tensor(True)
        >>> before.agrees(StateDigest.of(model, likelihood))
        False
        """
        numbers = np.concatenate([np.zeros(0), *(_steps(q.mean, q.std()) for q in model.posteriors())])
        side = [_bounded(tensor) for _, tensor, _ in SideInformation.of(model, likelihood).slots]
        numbers = np.concatenate([numbers, *side])
        words = raw(0, SIGNS, 0, -(-len(numbers) // 64)).astype("<u8", copy=False).view(np.uint8)
        minus = np.unpackbits(words, count=len(numbers), bitorder="little").astype(bool)
        total = float(np.where(minus, -numbers, numbers).sum())
        return cls(math.floor(total / COARSENESS) % (1 << STATE_BITS) if math.isfinite(total) else 0)

    def agrees(self, other: "StateDigest") -> bool:
        """Return whether the two sums may be less than a unit apart; two unrelated trainings pass in one of 85 cases.

        Returns:
            whether the levels differ by at most one, modulo 2^8.

        >>> [StateDigest(0).agrees(StateDigest(level)) for level in (255, 0, 1, 2, 254)]
        [True, True, True, False, False]
        """
        return (self.level - other.level + 1) % (1 << STATE_BITS) <= 2


def _steps(mean: Tensor, std: Tensor | None) -> Floats:
    if std is None:
        return _bounded(mean)
    mean, std = mean.cpu().double(), std.cpu().double()
    parts = (MEAN_STEPS_PER_STD * mean / std).flatten(), (STD_LEVELS_PER_OCTAVE * std.log2()).flatten()
    found: Floats = torch.cat(parts).numpy()
    return found


def _bounded(tensor: Tensor) -> Floats:
    flat = tensor.detach().cpu().double().flatten()
    found: Floats = (STEPS_PER_UNIT * flat / (1.0 + flat.abs())).numpy()
    return found
