"""Targets under the outputs of a network: which likelihoods have a code in files, and the code."""

import numpy as np

from bitsback.coding.ans import Integers
from bitsback.coding.categorical import labels
from bitsback.coding.combinators import Codec
from bitsback.errors import FileError
from bitsback.likelihoods import Likelihood

__all__ = ["check_likelihood", "targets"]

MOST_CLASSES = 1 << 20


def targets(likelihood: Likelihood, outputs: Integers) -> Codec:
    """The codec of targets given whole-number outputs; values are flat arrays of whole numbers.

    Raises:
        FileError: for a likelihood whose targets are real numbers or unbounded.
    """
    check_likelihood(likelihood, outputs.shape[1] if outputs.ndim > 1 else 1)
    if likelihood.kind == "categorical":
        return labels(outputs)
    flat = outputs.ravel()
    return labels(np.stack([np.zeros_like(flat), flat], axis=1))


def check_likelihood(likelihood: Likelihood, outputs: int) -> None:
    """Raise FileError unless targets are labels, and with so many outputs of the network not too many kinds of them."""
    if likelihood.kind not in ("categorical", "bernoulli"):
        raise FileError(
            f"a message codes labels, and the likelihood '{likelihood.kind}' describes {likelihood.described}; "
            "use likelihood.kind=categorical or bernoulli"
        )
    if likelihood.kind == "categorical" and outputs > MOST_CLASSES:
        raise FileError(f"the code of labels has at most {MOST_CLASSES:,} classes, got {outputs:,}; use fewer")
