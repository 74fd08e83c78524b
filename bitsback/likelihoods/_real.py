"""Likelihood of real targets on a grid: a Gaussian around the network's output."""

import copy
import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from bitsback.errors import DataError
from bitsback.learned import BFLOAT16, FLOAT32, UniformGrid
from bitsback.ledger.entry import Charge
from bitsback.likelihoods._resolution import STEP_BITS, Resolution, resolution
from bitsback.likelihoods._uncertainty import NormalMixture
from bitsback.likelihoods.base import (
    Answer,
    SymbolLikelihood,
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
"""Initial noise std, in stds of the targets. It must be small: a wide noise explains the targets by itself, and the KL then
prunes the network (measured in docs/training.md).
"""

SHIFT_TOLERANCE = 1 / 8
"""Largest rounding error of a 16-bit mean, in stds of the targets; beyond it, the mean takes 32 bits."""

OTHER_DATA = 16.0
"""Stds by which the mean, and factor by which the std, of targets may differ from those that a likelihood was fitted to."""

MARGINAL_LOG_STD = UniformGrid(low=-32.0, step=2**-4, levels=1024)
"""Grid of log stds in the marginal code."""

NARROWEST = 2.0**-16
"""Finest grid step that is considered, in stds of the targets."""


NOISES = ("fixed", "learned", "predicted")
"""Origins of the noise std, as in settings."""


class GaussianLikelihood(SymbolLikelihood):
    """Gaussian likelihood of targets on a grid: -log2 N(y; shift + scale * output, std^2) - log2(target_step) bits a number.

    A real number has no finite code length, a number on a grid of width ``target_step`` does: the step makes the bits absolute.
    The noise std is kept at or above the step, so that the probabilities of the grid points add up to about one. Arguments left
    out are found by :meth:`fit`, which training calls; the network is then trained on targets of mean 0 and std 1, and
    ``shift`` and ``scale`` are charged on their grids. Targets, predictions, errors, ``std`` and ``target_step`` are always in
    the targets' own units.

    Args:
        std: noise std in the targets' units, its initial value if it is learned; None: a tenth of the targets' std.
        noise: ``fixed``, ``learned`` (one number, charged), or ``predicted`` (the network outputs mean and log std: the last
            axis of the outputs is twice as long; for standardised targets, log std 0 is a tenth of the targets' std).
        target_step: grid step of the targets; None: the coarsest power of ten or two of which all targets are multiples, for 8
            bits more.
        standardise: whether :meth:`fit` finds shift and scale; default: if ``std`` or ``target_step`` is left out.
        shift_bits: 16 or 32 bits for the shift; None: 16 if they are precise enough.

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
        if noise not in NOISES:
            raise DataError(f"likelihood.noise is one of {', '.join(NOISES)}, got {noise!r}")
        if noise == "fixed" and std is None:
            raise DataError("likelihood.noise: fixed needs likelihood.std; give the std of the noise in the targets' units")
        if noise == "predicted":
            std = 1.0  # a placeholder: the network outputs the std
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
        """Find step, shift, scale and initial noise from the training targets, (n, ...), unless they are given."""
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
            elif self.noise == "learned" and self.standardises:  # one number for all columns, relative to their scales
                self.log_std.fill_(math.log(self.std) - float(self.scale.double().log().mean()))
        self._is_fitted = True

    def _check_same(self, y: Tensor) -> None:
        """Raise DataError for targets whose mean or std is far from those of the fit."""
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
        """Return, for the state dict: the step, whether it was found, and the bits of the shift."""
        shift_bits = self._grids["shift"].bits_each if self.standardises else 0.0
        return torch.tensor([self.target_step, float(self.found is not None), shift_bits], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        step, found, shift_bits = state.tolist()
        self.target_step, self._is_fitted = step, step > 0
        self.found = Resolution(step, "as it was found in training") if found and self.found is None else self.found
        if shift_bits:
            self._grids["shift"] = FLOAT32 if shift_bits == FLOAT32.bits_each else BFLOAT16

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        """Load shift and scale in the shape they were saved in; states of earlier releases lack them: 0 and 1."""
        for name, value in (("shift", 0.0), ("scale", 1.0)):
            saved = state_dict.setdefault(prefix + name, torch.tensor(value))
            setattr(self, name, torch.empty_like(saved, dtype=self.log_std.dtype, device=self.log_std.device))
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *more)

    def charges(self) -> list[Charge]:
        """Return the cost of noise, shift, scale and a step that was found."""
        found = [Charge("target_step", 1, STEP_BITS)] if self.found is not None else []
        shift_width = [Charge("shift_bits", 1, 1.0)] if self.standardises and self.shift_bits is None else []
        return [*super().charges(), *found, *shift_width]

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of the standardised targets, and the log noise std in the targets' units, at least the log step."""
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
                self.log_std.clamp_(min=lowest - log_scale.max())  # else it could drift far below the floor
            log_std = self.log_std + log_scale
            return outputs, _floored(log_std, lowest) if log_scale.ndim else log_std
        if outputs.shape[-1] % 2:
            raise DataError(f"predicted noise needs mean and log std, an even number of outputs; got {outputs.shape[-1]}")
        mean, log_std = outputs.chunk(2, dim=-1)
        start = math.log(START) if self.standardises else 0.0
        return mean, _floored(log_std + start + log_scale, lowest)

    def _nats(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return -ln of the mass of each target's grid point.

        Args:
            outputs: (n, ...), means of the standardised targets, and log stds if the noise is predicted.
            targets: (n, ...), rounded to the grid.

        Returns:
            in the shape of the targets.
        """
        mean, log_std = self._split(outputs)
        if log_std.ndim and self.noise == "predicted":
            log_std = match(log_std, targets)
        mean = match(mean, targets)
        away = (self._on_grid(targets) - self.shift).to(mean.dtype) - self.scale * mean
        return 0.5 * (away * (-log_std).exp()).square() + log_std + 0.5 * math.log(2 * math.pi) - math.log(self.target_step)

    def _on_grid(self, targets: Tensor) -> Tensor:
        return (targets / self.target_step).round() * self.target_step

    def notes(self) -> list[str]:
        """Return a note on the grid of the targets."""
        found = f", {self.found.said}" if self.found is not None else ""
        return [f"the targets are coded on a grid of {self.target_step:g}, to which they are rounded{found}"]

    def values(self) -> dict[str, Tensor]:
        """Return shift, scale and noise std, those that are learned, in the targets' units."""
        standard = {"shift": self.shift, "scale": self.scale} if self.standardises else {}
        return standard | (
            {"std": (self.log_std.exp() * self.scale).clamp_min(self.target_step)} if self.noise == "learned" else {}
        )

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the mean in the targets' units, float64 if the device has it."""
        mean = self._split(outputs)[0]
        shift, scale = (_wide(part) for part in (self.shift, self.scale))
        return shift + scale * _wide(mean)  # the std may be far below the resolution of a float32 mean

    def variance(self, outputs: Tensor) -> Tensor:
        """Return the noise variance in the shape of the mean, in squared units of the targets."""
        mean, log_std = self._split(outputs)
        return _wide((2 * log_std).exp()).expand(mean.shape)

    def mixture(self) -> NormalMixture:
        """Return an empty mixture of normals on the targets' grid."""
        return NormalMixture(self.target_step)

    def answers(self, predicted: Tensor, std: Tensor | None = None) -> list[Answer]:
        """Return mean and std of each prediction, rounded to a millionth of the std.

        Args:
            predicted: (n, ...), predictive means.
            std: (n, ...), predictive stds, or None.

        Returns:
            a record ``{"mean": ..., "std": ...}`` for each input.
        """
        if std is None:
            return listed(mean=predicted)
        fine = 10.0 ** (std.double().clamp_min(1e-300).log10().floor() - 6)  # a millionth of the std
        return listed(mean=(predicted.double() / fine).round() * fine, std=(std.double() / fine).round() * fine)

    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return the squared error in the targets' units.

        Args:
            predicted: (n, ...), means.
            targets: (n, ...).

        Returns:
            (n,), mean over the numbers of an example.
        """
        return per_example((match(predicted, targets) - targets).square()) / numbers_per_example(targets)

    def uniform_bits(self, targets: Tensor) -> float:
        """Return the bits under the uniform code over the grid points between smallest and largest target, for each column."""
        if not self._is_fitted:
            return self._fitted(targets).uniform_bits(targets)
        step = self.target_step
        flat = targets.detach().double().reshape(len(targets), -1)
        levels = (flat.amax(0) / step).round() - (flat.amin(0) / step).round() + 1
        return len(targets) * float(levels.log2().sum())

    def marginal_bits(self, targets: Tensor) -> float:
        """Return the bits under one Gaussian for each column of the targets, with its parameters charged.

        The std, at least the step, is one of 1,024 levels of 2^-4 in its logarithm (10 bits). The mean is a multiple of an
        eighth of the std, coded as a whole number in Elias' gamma code. A step that was found costs 8 bits more.

        Args:
            targets: (n, ...).

        Returns:
            bits of all targets and parameters.
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
        """Return a copy that is fitted to the targets."""
        other = copy.deepcopy(self)
        other.fit(targets)
        return other

    def _check_values(self, targets: Tensor, where: str) -> None:
        require(torch.isfinite, targets, where, "targets must be finite")

    def outputs(self, targets: Tensor) -> int:
        """Return the numbers per example, doubled if the noise is predicted."""
        return numbers_per_example(targets) * (2 if self.noise == "predicted" else 1)

    def summary(self, mean_error: float) -> float:
        """Return the root mean squared error."""
        return math.sqrt(mean_error)


def _real(tensor: Tensor) -> torch.dtype:
    """Return the dtype of floating-point targets; float64 for whole numbers, which are exact there."""
    return tensor.dtype if tensor.is_floating_point() else torch.float64


def _wide(tensor: Tensor) -> Tensor:
    """Convert to float64 if the device has it."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def _floored(log_std: Tensor, lowest: float) -> Tensor:
    """Clamp the value from below but keep the gradient, so that a log std at the floor can rise again."""
    return log_std + (log_std.clamp_min(lowest) - log_std).detach()
