"""Real numbers, written on a grid: a Gaussian around the network's output."""

import math
from typing import Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from bitsback.errors import DataError
from bitsback.likelihoods.base import Likelihood, LikelihoodSettings, match, per_example, registry, require, width
from bitsback.units import nats_to_bits

Noise = Literal["fixed", "learned", "predicted"]


class GaussianLikelihood(Likelihood):
    """Targets on a grid of width ``target_step`` around the output: -log2 N(y; output, std^2) - log2(step).

    The step makes the bits absolute: a real number has no code length, a number on a grid has one. The noise std is never
    taken below the step, so that the code's mass stays one.

    Args:
        std: noise std, its start when it is learned.
        noise: ``fixed``, ``learned`` (one number, charged), or ``predicted`` (the network gives mean and log std: the last
            axis of the outputs is twice as long).
        target_step: the grid on which the targets are written.

    >>> likelihood = GaussianLikelihood(std=1.0, target_step=0.01)
    >>> round(likelihood.bits(torch.zeros(1), torch.zeros(1)).item(), 3)  # log2(sqrt(2 pi) / 0.01)
    7.97
    """

    kind = "gaussian"
    error_name = "rmse"
    described = "targets"
    log_std: Tensor

    def __init__(self, std: float = 1.0, *, noise: Noise = "learned", target_step: float = 0.01) -> None:
        super().__init__()
        if not (math.isfinite(target_step) and target_step > 0):
            raise DataError(f"likelihood.target_step must be above zero, got {target_step}; give the targets' resolution")
        self.noise, self.target_step = noise, target_step
        if std < target_step and noise != "predicted":
            raise DataError(f"likelihood.std {std:g} is below target_step {target_step:g}; noise cannot be finer than the grid")
        self._store_scale(std, "gradient" if noise == "learned" else "none", "std")

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log std, the latter not below the targets' step."""
        lowest = math.log(self.target_step)
        if self.noise != "predicted":
            with torch.no_grad():
                self.log_std.clamp_(min=lowest)  # learning never runs away below the floor
            return outputs, self.log_std
        if outputs.shape[-1] % 2:
            raise DataError(f"predicted noise needs mean and log std, an even number of outputs; got {outputs.shape[-1]}")
        mean, log_std = outputs.chunk(2, dim=-1)
        floor = log_std.clamp_min(lowest)
        return mean, log_std + (floor - log_std).detach()  # the floor's value, the output's own gradient: it can rise again

    def bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        mean, log_std = self._split(outputs)
        if log_std.ndim:
            log_std = match(log_std, targets)
        z = (self._on_grid(targets).to(mean.dtype) - match(mean, targets)) * (-log_std).exp()
        nats = 0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi) - math.log(self.target_step)
        return nats_to_bits(per_example(nats))

    def _on_grid(self, targets: Tensor) -> Tensor:
        return (targets / self.target_step).round() * self.target_step

    def notes(self) -> list[str]:
        return [f"the targets are coded on a grid of {self.target_step:g}, to which they are rounded"]

    def values(self) -> dict[str, Tensor]:
        return {"std": self.log_std.exp()} if self.noise == "learned" else {}

    def predict(self, outputs: Tensor) -> Tensor:
        return self._split(outputs)[0]

    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        return per_example((match(predicted, targets) - targets).square()) / width(targets)

    def uniform_bits(self, targets: Tensor) -> float:
        levels = round(float(targets.max()) / self.target_step) - round(float(targets.min()) / self.target_step) + 1
        return targets.numel() * math.log2(levels)

    def check_targets(self, targets: Tensor, where: str) -> None:
        require(torch.isfinite(targets), targets, where, "targets must be finite")

    def outputs(self, targets: Tensor) -> int:
        return width(targets) * (2 if self.noise == "predicted" else 1)

    def summary(self, mean_error: float) -> float:
        return math.sqrt(mean_error)


@registry.register("gaussian")
class GaussianLikelihoodSettings(LikelihoodSettings):
    """Real targets on a grid, with Gaussian noise that is fixed, learned, or predicted by the network."""

    kind: Literal["gaussian"] = "gaussian"
    std: PositiveFloat = Field(1.0, description="noise std, its start when learned")
    noise: Noise = Field("learned", description="fixed; learned (one number, charged); predicted (mean and log std)")
    target_step: PositiveFloat = Field(0.01, description="grid on which the targets are written; makes the bits absolute")

    def build(self, classes: int | None) -> GaussianLikelihood:
        return GaussianLikelihood(self.std, noise=self.noise, target_step=self.target_step)
