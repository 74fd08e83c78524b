"""Masks of targets: which of them are coded. A receiver holds a mask as it holds the inputs."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsback.errors import DataError, brief

__all__ = ["MASK_NOTE", "NOT_CODED", "masked"]

NOT_CODED = -100
"""Target that is not coded: torch's usual value of ``ignore_index``."""

MASK_NOTE = "which positions are coded (the mask)"
"""Note of a ledger: the receiver has to know the mask beforehand, as it knows the inputs."""


def masked(targets: Tensor, mask: Any, what: str = "the mask") -> Tensor:
    """Return the targets, with -100 where a mask leaves them out.

    Args:
        targets: (n, ...), whole numbers, in any dtype.
        mask: a tensor, an array or a list in the shape of the targets, 1 or true where they are coded.
        what: name of the mask, for messages.

    Returns:
        in the shape and dtype of the targets.

    Raises:
        DataError: for a mask of another shape or with other values than 0 and 1, targets that are real numbers, targets of
            -100 that it does not leave out, and if it leaves out all.

    >>> masked(torch.tensor([4, 5]), [True, False]).tolist()
    [4, -100]
    """
    try:
        array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    except (TypeError, ValueError) as error:  # rows of unequal length
        raise DataError(f"{what} is not an array of 0 and 1 ({brief(error)}); give one in the shape of the targets") from error
    if array.dtype.kind not in "biuf" or not bool(((array == 0) | (array == 1)).all()):
        raise DataError(f"{what} holds other values than 0 and 1; give 1 where a target is coded, and 0 where it is not")
    if array.shape != tuple(targets.shape):
        raise DataError(f"{what} has shape {array.shape} and the targets {tuple(targets.shape)}; give one value for each")
    if targets.is_floating_point() and bool((targets != targets.round()).any()):
        raise DataError(f"{what} leaves out whole-number targets, and these are real numbers; leave those examples out instead")
    coded = torch.from_numpy(array != 0).to(targets.device)
    if bool((coded & (targets == NOT_CODED)).any()):
        raise DataError(f"{what} is 1 where a target is {NOT_CODED}, which marks one that is not coded; make it 0 there")
    if not bool(coded.any()):
        raise DataError(f"{what} hides every target, so nothing is left to describe; is it inverted? 1 is coded, 0 is hidden")
    return targets.masked_fill(~coded, NOT_CODED)
