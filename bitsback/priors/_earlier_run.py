"""An earlier run as the prior: fine-tuning costs only the difference."""

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
    """N(mean of an earlier run, scale^2): the receiver holds that run, so only what changed is paid for.

    Args:
        mean: posterior means of the earlier run, the shape of the weight tensor.
        source: how the ledger names what the receiver is assumed to hold.

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
        return {**super().values(), "mean": "see the tensor of the same name with the suffix .prior_mean"}

    def start(self) -> Tensor:
        return self.mean

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def given(self) -> str:
        return f"the run '{self.source}'"


def earlier_mean(run: Path, weight: WeightInfo) -> Tensor:
    """The posterior means of a weight in an earlier run; raises PriorError where there are none of its shape."""
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
    """Compare the file with its checksum, once for all of its tensors."""
    check_seal(path)
