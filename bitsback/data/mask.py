"""Masks of targets: which of them are coded. A receiver holds a mask as it holds the inputs."""

import numpy as np
import torch
from torch import Tensor

from bitsback.errors import DataError

__all__ = ["MASK_NOTE", "NOT_CODED", "masked"]

NOT_CODED = -100
"""Target at a position that a mask leaves out: torch's usual value of ``ignore_index``."""

MASK_NOTE = "which positions are coded (the mask)"
"""Note of a ledger: the receiver has to know the mask beforehand, as it knows the inputs."""


def masked(targets: Tensor, mask: np.ndarray, what: str) -> Tensor:
    """Return the targets, with -100 where a mask leaves them out.

    Args:
        targets: (n, ...).
        mask: in the shape of the targets, 1 or true where they are coded.
        what: name of the mask, for messages.

    Returns:
        in the shape and dtype of the targets.

    Raises:
        DataError: for a mask of another shape, other values than 0 and 1, and targets of -100 that it does not leave out.

    >>> masked(torch.tensor([4, 5]), np.array([True, False]), "the mask").tolist()
    [4, -100]
    """
    what = f"{what}, the mask of the targets,"
    if mask.dtype.kind not in "biuf" or not bool(((mask == 0) | (mask == 1)).all()):
        raise DataError(f"{what} holds other values than 0 and 1; write 1 where a target is coded (data.mask)")
    if mask.shape != tuple(targets.shape):
        raise DataError(f"{what} has shape {mask.shape}, and they {tuple(targets.shape)}; give both the same (data.mask)")
    coded = torch.from_numpy(mask != 0)
    if bool((coded & (targets == NOT_CODED)).any()):
        raise DataError(f"{what} is 1 where a target is {NOT_CODED}, which marks one that is not coded; make it 0 there")
    return torch.where(coded, targets, torch.tensor(NOT_CODED, dtype=targets.dtype))
