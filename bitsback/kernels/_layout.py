"""Layout of the tables that launches read, and the numbers of modes, update rules and densities."""

__all__ = [
    "ADAM",
    "DRAW",
    "DRAWN",
    "FILL",
    "FILLED",
    "FLOATS",
    "FORMS",
    "GROUP_NUMBERS",
    "IVON",
    "LOCATION_EACH",
    "LOOK",
    "LOOKS",
    "MODES",
    "REWRITE",
    "ROW",
    "RULES",
    "STEP",
    "SUMS",
    "WAS_DRAWN",
    "Word",
]

from enum import IntEnum


class Word(IntEnum):
    """Words of a row, one row for each weight tensor: addresses (0: none), then whole numbers."""

    WEIGHT = 0
    MEAN = 1
    LOG_STD = 2
    GRADIENT = 3
    PENDING = 4
    """Gradient by the log std that earlier draws left."""
    AVERAGE = 5
    """First of four running averages: of the mean's gradient and its square, of the log std's."""
    STEP = 9
    LENGTH = 10
    STREAM = 11
    START = 12
    """Index, in the noise stream, of the first element."""
    MEAN_GROUP = 13
    LOG_STD_GROUP = 14
    FLAGS = 15
    SHARE = 16
    """Factors of the KL of each element."""
    LOCATION = 17
    LOG_SCALE = 18
    THIRD = 19
    """Degrees of freedom, free logits of a mixture, or table of the horseshoe."""
    COUNT = 20
    """Components of a mixture; of a prior with several scales, the elements side by side that share one."""
    SCALES = 21
    BY_MEAN = 22
    BY_LOG_STD = 23


ROW = len(Word) + 3
"""Words of a row: the running averages take four."""

DRAWN, LOCATION_EACH, LOOKS, WAS_DRAWN = 1, 2, 4, 8
"""Flags: the weight holds a draw, not its mean; a location for every element; the prior looks at a draw of its own; the weight
held a draw before.
"""

SUMS = 4
"""Sums of a chunk: the KL's gradient by the prior's log scale, s^2, (m - location)^2, log s."""

FLOATS = 4
"""Numbers before those of the groups: k, the factor of IVON's rates to nats, the rate of closed-form priors."""

GROUP_NUMBERS = 8
"""Numbers of a parameter group: learning rate, beta1, beta2, eps, largest step in stds."""

NAMES = "normal", "laplace", "power", "logistic", "mixture", "horseshoe", "given"
FORMS = {name: number for number, name in enumerate(NAMES)}
"""Densities by name (see :class:`bitsback.priors.base.KernelForm`); of a given one, the KL's gradient is in BY_MEAN and
BY_LOG_STD.
"""

MODES = STEP, FILL, FILLED, DRAW, LOOK, REWRITE = range(6)
"""Gradients, update, draw; gradients into BY_MEAN and BY_LOG_STD; update by the gradients there, draw; draw alone; sums alone;
draw and sums.
"""

RULES = ADAM, IVON = range(2)
"""Update rules."""
