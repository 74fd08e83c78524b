"""The 8 x 8 handwritten digits of the UCI repository, shipped inside the package.

1,797 images with 17 grey levels (0 to 16): the test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and
C. Kaynak (1998), UCI Machine Learning Repository, doi 10.24432/C50P49, licence CC BY 4.0.
"""

from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bitsback.data._dataset import Dataset, split

if TYPE_CHECKING:
    from bitsback.data.settings import DigitsSettings

__all__ = ["load_digits", "read_digits"]


def read_digits() -> tuple[Tensor, Tensor]:
    """Read the images and labels.

    Returns:
        images (1797, 1, 8, 8), float32 in 0..16, and labels (1797,), int64.

    >>> [tuple(tensor.shape) for tensor in read_digits()]
    [(1797, 1, 8, 8), (1797,)]
    """
    with as_file(files("bitsback.data") / "digits.npz") as path, np.load(path, allow_pickle=False) as arrays:
        images = torch.from_numpy(arrays["images"]).float().reshape(-1, 1, 8, 8)
        return images, torch.from_numpy(arrays["labels"]).long()


def load_digits(settings: "DigitsSettings") -> Dataset:
    """Load, split and preprocess the digits."""
    train, test = split(*read_digits(), settings.test_fraction, settings.split_seed)
    return settings.finish("digits", train, test, classes=10, largest=16.0, are_images=True)
