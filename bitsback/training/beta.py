"""Beta, the weight of the KL in the loss: constant 1, rising to 1, or controlled to meet a budget."""

import math
from dataclasses import dataclass

from bitsback.training.settings import BudgetSettings, TrainingSettings

__all__ = ["Beta"]

GAIN, MEMORY = 2.0, 0.05
"""Proportional and integral gain of the controller."""
LOWEST, HIGHEST = math.log(1e-5), math.log(30.0)
"""Bounds of log beta; a larger beta would prune the whole network early in training."""

FIRST = math.log(0.01)
"""Log beta at the first step of a training with a budget."""


@dataclass
class Beta:
    """Beta at the current step.

    With a budget, log beta is controlled by the excess e = ln(net weight bits / budget), clamped to -1 .. 1, as GAIN e plus the
    sum of MEMORY e over all steps so far (a PI controller): while the weights cost too much, beta grows.

    Attributes:
        settings: of the training.
        steps_per_epoch: batches per epoch.
        memory: integral term, in log beta.
        value: beta.
        excess: e before clamping.
    """

    settings: TrainingSettings
    steps_per_epoch: int
    memory: float = FIRST
    value: float = 1.0
    excess: float = 0.0

    def before_step(self, step: int, net_weight_bits: float) -> float:
        """Update beta.

        Args:
            step: number of steps done.
            net_weight_bits: current bits of the weights.

        Returns:
            beta for this step.
        """
        budget = self._budget(step)
        if budget is not None:
            self.excess = math.log(max(net_weight_bits, 1e-9) / budget)
            excess = max(-1.0, min(1.0, self.excess))
            self.memory = max(LOWEST, min(HIGHEST, self.memory + MEMORY * excess))
            self.value = math.exp(max(LOWEST, min(HIGHEST, self.memory + GAIN * excess)))
            return self.value
        start, warmup_epochs = self.settings.beta.numbers
        rise = warmup_epochs * self.steps_per_epoch
        share = min(1.0, step / rise) if rise else 1.0
        self.value = start + (1 - start) * share
        return self.value

    def notes(self, net_weight_bits: float) -> list[str]:
        """Return a note for the ledger if the budget was missed by more than 1 %."""
        budget = self._budget(10**12)
        if budget is None or abs(net_weight_bits / budget - 1) <= 0.01:
            return []
        return [f"the budget of {budget:g} bits was missed: train longer, or set one that this prior can reach"]

    def settled(self, epoch: int) -> bool:
        """Return whether, after this epoch, beta is at 1, or the budget is met within 1 %."""
        budget = self.settings.budget_bits
        if budget is None:
            _, warmup_epochs = self.settings.beta.numbers
            return not warmup_epochs or epoch > warmup_epochs
        arrived = not isinstance(budget, BudgetSettings) or epoch > budget.epochs
        return arrived and abs(self.excess) < 0.01

    def _budget(self, step: int) -> float | None:
        budget = self.settings.budget_bits
        if isinstance(budget, BudgetSettings):
            share = min(1.0, step / (budget.epochs * self.steps_per_epoch))
            return budget.start_bits + (budget.end_bits - budget.start_bits) * share
        return budget
