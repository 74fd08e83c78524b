"""Gaussian prior around the posterior means of an earlier run, for fine-tuning."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitsback.atomic_io import DamagedFileError, check_seal
from bitsback.errors import PriorError, brief
from bitsback.priors.base import WeightInfo
from bitsback.priors.gaussian import NormalPrior
from bitsback.registry import Learn

__all__ = ["CheckpointPrior", "earlier_mean"]


class CheckpointPrior(NormalPrior):
    """Prior N(mean of an earlier run, scale^2); the receiver is assumed to have that run, so only changes cost bits.

    Args:
        mean: posterior means of the earlier run, the shape of the weight tensor.
        scale: std around those means, at the start if it is learned.
        source: directory of the earlier run, named in the ledger.
        learn: how the scale is learned.

    >>> import torch
    >>> prior = CheckpointPrior(torch.ones(3), scale=0.1, source="runs/first")
    >>> prior.given()
    "the run 'runs/first'"
    """

    kind = "checkpoint"

    def __init__(self, mean: Tensor, scale: float = 0.1, *, source: str, learn: Learn = "none") -> None:
        super().__init__(mean, scale, learn)
        self.source = source

    def values(self) -> dict[str, Any]:
        """Return the scale, and a reference to the stored means."""
        return {**super().values(), "mean": "see the tensor of the same name with the suffix .prior_mean"}

    def start(self) -> Tensor:
        """Return the means of the earlier run."""
        return self.mean

    def tensors(self) -> dict[str, Tensor]:
        """Return the means of the earlier run."""
        return {"mean": self.mean}

    def given(self) -> str:
        """Return the name of the earlier run."""
        return f"the run '{self.source}'"


def earlier_mean(run: Path, weight: WeightInfo) -> Tensor:
    """Read the posterior means of a weight from an earlier run.

    Args:
        run: directory of the earlier run, with ``posterior.safetensors``.
        weight: name and shape of the weight.

    Returns:
        Means, the shape of the weight.

    Raises:
        PriorError: when the file is missing or damaged, or holds no means of that name and shape.
    """
    path, key = run / "posterior.safetensors", f"{weight.name}.mean"
    try:
        _check_once(path, path.stat().st_mtime_ns)
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            mean: Tensor | None = file.get_tensor(key) if key in names else None
    except DamagedFileError as error:
        raise PriorError(f"prior 'checkpoint' {error}, and set prior.run to a finished run") from error
    except (OSError, SafetensorError) as error:
        raise PriorError(f"prior 'checkpoint' cannot read {path}: {brief(error)}; set prior.run to a finished run") from error
    if mean is None or mean.shape != weight.shape:
        found = "no such tensor" if mean is None else f"shape {tuple(mean.shape)}"
        raise PriorError(
            f"prior 'checkpoint' needs '{key}' of shape {tuple(weight.shape)} in {path}, found {found}; "
            "the earlier run must be of the same network"
        )
    return mean


@lru_cache(maxsize=1)
def _check_once(path: Path, _changed: int) -> None:
    """Verify the file's checksum, once for all of its tensors."""
    check_seal(path)
