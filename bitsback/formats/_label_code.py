"""Code of targets given the outputs of a network, and the likelihoods that have one in files."""

import numpy as np

from bitsback.coding.ans import Integers
from bitsback.coding.categorical import labels
from bitsback.coding.combinators import Codec
from bitsback.errors import FileError
from bitsback.likelihoods import Likelihood

__all__ = ["check_likelihood", "targets"]

MOST_CLASSES = 1 << 20
"""Largest number of classes of the label code."""


def targets(likelihood: Likelihood, outputs: Integers) -> Codec:
    """Return the codec of targets given whole-number outputs; values are flat arrays of whole numbers.

    Args:
        likelihood: categorical or Bernoulli.
        outputs: network outputs in units of 2^-12, (n, ...).

    Returns:
        codec of the (n, ...) targets, flattened.

    Raises:
        FileError: if the targets are real numbers or unbounded.
    """
    check_likelihood(likelihood, outputs.shape[1] if outputs.ndim > 1 else 1)
    if likelihood.kind == "categorical":
        return labels(outputs)
    flat = outputs.ravel()
    return labels(np.stack([np.zeros_like(flat), flat], axis=1))


def check_likelihood(likelihood: Likelihood, outputs: int) -> None:
    """Raise FileError unless targets are labels of a moderate number of classes.

    Args:
        likelihood: likelihood of the targets.
        outputs: number of network outputs.

    Raises:
        FileError: if the likelihood is not categorical or Bernoulli, or there are too many classes.
    """
    if likelihood.kind not in ("categorical", "bernoulli"):
        raise FileError(
            f"a message codes labels, and the likelihood '{likelihood.kind}' describes {likelihood.described}; "
            "use likelihood.kind=categorical or bernoulli"
        )
    if likelihood.kind == "categorical" and outputs > MOST_CLASSES:
        raise FileError(f"the code of labels has at most {MOST_CLASSES:,} classes, got {outputs:,}; use fewer")
