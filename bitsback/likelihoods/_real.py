"""Real numbers, written on a grid: a Gaussian around the network's output."""

import copy
import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from bitsback.errors import DataError
from bitsback.learned import BFLOAT16, FLOAT32, UniformGrid
from bitsback.ledger.entry import Charge
from bitsback.likelihoods._resolution import STEP_BITS, Resolution, resolution
from bitsback.likelihoods.base import (
    Answer,
    Likelihood,
    listed,
    match,
    numbers_per_example,
    per_example,
    require,
)
from bitsback.units import nats_to_bits

if TYPE_CHECKING:
    from bitsback.likelihoods.settings import Noise

__all__ = ["GaussianLikelihood"]

START = 0.1
"""Where the noise std starts, in stds of the targets. A wide start is a trap: while the noise explains the targets, the KL
prunes the network (measured: docs/training.md)."""

SHIFT_TOLERANCE = 1 / 8
"""How far, in stds of the targets, a mean of 16 bits may be off before it is written in 32."""

OTHER_DATA = 16.0
"""Stds by which the mean, or times by which the std, of targets may differ from those that a likelihood was fitted to."""

MARGINAL_LOG_STD = UniformGrid(low=-32.0, step=2**-4, levels=1024)

NARROWEST = 2.0**-16
"""The finest grid that is looked for, in stds of the targets."""


class GaussianLikelihood(Likelihood):
    """Targets on a grid of width ``target_step``: -log2 N(y; shift + scale * output, std^2) - log2(step).

    The step makes the bits absolute: a real number has no code length, a number on a grid has one. The noise std is never
    taken below the step, so that the code's mass stays one. What is left out is found by :meth:`fit`, which training calls:
    then the network sees targets of mean 0 and std 1, ``shift`` and ``scale`` are charged on their grids, and everything that
    goes in or comes out (targets, predictions, errors, ``std``, ``target_step``) is in the targets' own units.

    Args:
        std: noise std in the targets' units, its start when it is learned; None: a tenth of the targets' std.
        noise: ``fixed``, ``learned`` (one number, charged), or ``predicted`` (the network gives mean and log std: the last
            axis of the outputs is twice as long; the std is in tenths of the targets' where those are standardised).
        target_step: the grid on which the targets are written; None: the coarsest power of ten or two that all of them are
            multiples of, for 8 more bits.
        standardise: whether :meth:`fit` looks for shift and scale; default: when anything else is left to it.
        shift_bits: 16 or 32 bits for the shift; None: as many as it needs.

    Raises:
        DataError: for a step or a std that is not positive, and for a std below the step.

    >>> likelihood = GaussianLikelihood(std=1.0, target_step=0.01)
    >>> round(likelihood.bits(torch.zeros(1), torch.zeros(1)).item(), 3)  # log2(sqrt(2 pi) / 0.01)
    7.97
    >>> likelihood = GaussianLikelihood()
    >>> likelihood.fit(torch.tensor([150.0, 250.0, 350.0]))
    >>> likelihood.target_step, likelihood.shift.item(), likelihood.scale.item()
    (10.0, 250.0, 81.5)
    """

    kind = "gaussian"
    error_name = "rmse"
    described = "targets"
    log_std: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        std: float | None = None,
        *,
        noise: "Noise" = "learned",
        target_step: float | None = None,
        standardise: bool | None = None,
        shift_bits: Literal[16, 32] | None = None,
    ) -> None:
        super().__init__()
        if target_step is not None and not (math.isfinite(target_step) and target_step > 0):
            raise DataError(f"likelihood.target_step must be above zero, got {target_step}; give the targets' resolution")
        if noise == "fixed" and std is None:
            raise DataError("likelihood.noise: fixed needs likelihood.std; give the std of the noise in the targets' units")
        if noise == "predicted":
            std = 1.0  # nobody reads it
        self.noise, self.target_step, self.std = noise, target_step or 0.0, std
        self.found: Resolution | None = None
        self.finds_noise = noise != "fixed"
        self.shift_bits = shift_bits
        self._check_std()
        self.standardises = standardise if standardise is not None else std is None or target_step is None
        self._is_fitted = not self.standardises and std is not None and target_step is not None
        self._store_scale(std if std is not None else 1.0, "gradient" if noise == "learned" else "none", "std")
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        if self.standardises:
            self._grids |= {"shift": FLOAT32 if shift_bits == 32 else BFLOAT16, "scale": BFLOAT16}

    def _check_std(self) -> None:
        if self.std is not None and self.target_step and self.std < self.target_step and self.noise != "predicted":
            raise DataError(
                f"likelihood.std {self.std:g} is below target_step {self.target_step:g}; noise cannot be finer than the grid"
            )

    def fit(self, targets: Tensor) -> None:
        y = targets.detach().double().cpu()
        if self._is_fitted:
            self._check_same(y)
            return
        if not self.target_step:
            self.found = resolution(y, narrowest=NARROWEST, precision=torch.finfo(_real(targets)).eps)
            self.target_step = self.found.step
        self._check_std()
        if self.standardises:
            mean, scale = y.mean(0), BFLOAT16.round(y.std(0, correction=0).clamp_min(self.target_step))
            if self.shift_bits is None and bool(((BFLOAT16.round(mean) - mean).abs() > SHIFT_TOLERANCE * scale).any()):
                self._grids["shift"] = FLOAT32
            self.shift, self.scale = self._grids["shift"].round(mean).to(self.log_std), scale.to(self.log_std)
        with torch.no_grad():
            if self.std is None:
                std = 1.0 if self.standardises else float(y.std(correction=0).clamp_min(self.target_step))
                self.log_std.fill_(math.log(START * std))
            elif self.noise == "learned" and self.standardises:  # one number for all targets, in units of their scales
                self.log_std.fill_(math.log(self.std) - float(self.scale.double().log().mean()))
        self._is_fitted = True

    def _check_same(self, y: Tensor) -> None:
        """Raise DataError for targets that this likelihood was plainly not fitted to."""
        if self.found is None or not self.standardises or y.shape[1:] != self.scale.shape:
            return
        shift, scale = self.shift.double().cpu(), self.scale.double().cpu()
        away, wide = (y.mean(0) - shift).abs() / scale, y.std(0, correction=0).clamp_min(self.target_step) / scale
        if bool((away > OTHER_DATA).any() or (wide > OTHER_DATA).any() or (wide < 1 / OTHER_DATA).all()):
            raise DataError(
                "this Gaussian likelihood was fitted to other targets (their mean and std are far off); make a new one for "
                "each data set"
            )

    def get_extra_state(self) -> Tensor:
        """What a state dict needs beside shift, scale and noise: the step, whether it was found, and the bits of the shift."""
        shift_bits = self._grids["shift"].bits_each if self.standardises else 0.0
        return torch.tensor([self.target_step, float(self.found is not None), shift_bits], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        step, found, shift_bits = state.tolist()
        self.target_step, self._is_fitted = step, step > 0
        self.found = Resolution(step, "as it was found in training") if found and self.found is None else self.found
        if shift_bits:
            self._grids["shift"] = FLOAT32 if shift_bits == FLOAT32.bits_each else BFLOAT16

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        """Take shift and scale in the shape they were saved in; states of before this version have neither: 0 and 1."""
        for name, value in (("shift", 0.0), ("scale", 1.0)):
            saved = state_dict.setdefault(prefix + name, torch.tensor(value))
            setattr(self, name, torch.empty_like(saved, dtype=self.log_std.dtype, device=self.log_std.device))
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *more)

    def charges(self) -> list[Charge]:
        found = [Charge("target_step", 1, STEP_BITS)] if self.found is not None else []
        shift_width = [Charge("shift_bits", 1, 1.0)] if self.standardises and self.shift_bits is None else []
        return [*super().charges(), *found, *shift_width]

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the standardised targets, and log std of the targets' own noise, the latter not below their step."""
        if not self._is_fitted:
            raise DataError(
                "this Gaussian likelihood has not seen its targets; call likelihood.fit(targets) before the loop, or give std "
                "and target_step"
            )
        lowest, log_scale = math.log(self.target_step), self.scale.log()
        if self.noise == "fixed":
            return outputs, self.log_std.clamp_min(lowest)
        if self.noise == "learned":
            with torch.no_grad():
                self.log_std.clamp_(min=lowest - float(log_scale.max()))  # learning never runs away below the floor
            log_std = self.log_std + log_scale
            return outputs, _floored(log_std, lowest) if log_scale.ndim else log_std
        if outputs.shape[-1] % 2:
            raise DataError(f"predicted noise needs mean and log std, an even number of outputs; got {outputs.shape[-1]}")
        mean, log_std = outputs.chunk(2, dim=-1)
        start = math.log(START) if self.standardises else 0.0
        return mean, _floored(log_std + start + log_scale, lowest)

    def bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        mean, log_std = self._split(outputs)
        if log_std.ndim and self.noise == "predicted":
            log_std = match(log_std, targets)
        mean = match(mean, targets)
        away = (self._on_grid(targets) - self.shift).to(mean.dtype) - self.scale * mean
        nats = 0.5 * (away * (-log_std).exp()).square() + log_std + 0.5 * math.log(2 * math.pi) - math.log(self.target_step)
        return nats_to_bits(per_example(nats))

    def _on_grid(self, targets: Tensor) -> Tensor:
        return (targets / self.target_step).round() * self.target_step

    def notes(self) -> list[str]:
        found = f", {self.found.said}" if self.found is not None else ""
        return [f"the targets are coded on a grid of {self.target_step:g}, to which they are rounded{found}"]

    def values(self) -> dict[str, Tensor]:
        standard = {"shift": self.shift, "scale": self.scale} if self.standardises else {}
        return standard | (
            {"std": (self.log_std.exp() * self.scale).clamp_min(self.target_step)} if self.noise == "learned" else {}
        )

    def predict(self, outputs: Tensor) -> Tensor:
        mean = self._split(outputs)[0]
        shift, scale = (_wide(part) for part in (self.shift, self.scale))
        return shift + scale * _wide(mean)  # the std may be far below the last digit of a float32 mean

    def variance(self, outputs: Tensor) -> Tensor:
        mean, log_std = self._split(outputs)
        return _wide((2 * log_std).exp()).expand(mean.shape)

    def answers(self, predicted: Tensor, std: Tensor | None = None) -> list[Answer]:
        if std is None:
            return listed(mean=predicted)
        fine = 10.0 ** (std.double().clamp_min(1e-300).log10().floor() - 6)  # what is below a millionth of the std says nothing
        return listed(mean=(predicted.double() / fine).round() * fine, std=(std.double() / fine).round() * fine)

    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        return per_example((match(predicted, targets) - targets).square()) / numbers_per_example(targets)

    def uniform_bits(self, targets: Tensor) -> float:
        if not self._is_fitted:
            return self._fitted(targets).uniform_bits(targets)
        step = self.target_step
        flat = targets.detach().double().reshape(len(targets), -1)
        levels = (flat.amax(0) / step).round() - (flat.amin(0) / step).round() + 1
        return len(targets) * float(levels.log2().sum())

    def marginal_bits(self, targets: Tensor) -> float:
        """A Gaussian of the targets, its parameters charged.

        The std, never below the step, is one of 1,024 levels of 2^-4 in its logarithm (10 bits); the mean is a multiple of an
        eighth of it, its whole number in Elias' gamma code; 8 bits more say the step, where that was found.
        """
        if not self._is_fitted:
            return self._fitted(targets).marginal_bits(targets)
        step = self.target_step
        flat = self._on_grid(targets.detach().double().cpu()).reshape(len(targets), -1)
        log_std = MARGINAL_LOG_STD.round(flat.std(0, correction=0).clamp_min(step).log())
        std = log_std.exp().clamp_min(step)
        level = (flat.mean(0) / std * 8).round()
        nats = 0.5 * (flat / std - level / 8).square() + std.log() + 0.5 * math.log(2 * math.pi) - math.log(step)
        gamma = 2 * (2 * level.abs() + 1).log2().floor() + 1
        parameters = float(gamma.sum()) + flat.shape[1] * MARGINAL_LOG_STD.bits_each + (STEP_BITS if self.found else 0.0)
        return nats_to_bits(float(nats.sum())) + parameters

    def _fitted(self, targets: Tensor) -> "GaussianLikelihood":
        """A copy that has seen the targets."""
        other = copy.deepcopy(self)
        other.fit(targets)
        return other

    def check_targets(self, targets: Tensor, where: str) -> None:
        require(torch.isfinite(targets), targets, where, "targets must be finite")

    def outputs(self, targets: Tensor) -> int:
        return numbers_per_example(targets) * (2 if self.noise == "predicted" else 1)

    def summary(self, mean_error: float) -> float:
        return math.sqrt(mean_error)


def _real(tensor: Tensor) -> torch.dtype:
    """Return the floating-point type in which the targets came; whole numbers are exact in float64."""
    return tensor.dtype if tensor.is_floating_point() else torch.float64


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, where the device has it."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def _floored(log_std: Tensor, lowest: float) -> Tensor:
    """Take the floor's value where that is higher, the output's own gradient: it can rise again."""
    return log_std + (log_std.clamp_min(lowest) - log_std).detach()
