"""Beta, the weight of the KL in the loss: 1, or on its way to 1, or steering towards a budget."""

import math
from dataclasses import dataclass

from bitsback.training.settings import BudgetSettings, TrainingSettings

__all__ = ["Beta"]

GAIN, MEMORY = 2.0, 0.05
LOWEST, HIGHEST = math.log(1e-5), math.log(30.0)
"""Log beta stays between these: a higher one would kill a network before it has learned anything."""

FIRST = math.log(0.01)
"""Log beta at the first step of a training with a budget."""


@dataclass
class Beta:
    """Beta at the current step.

    With a budget, log beta follows the excess e = ln(net weight bits / budget), cut to -1 .. 1, as GAIN e + the sum of
    MEMORY e over all steps so far: while the weights cost too much, beta grows.
    """

    settings: TrainingSettings
    steps_per_epoch: int
    memory: float = FIRST
    value: float = 1.0
    excess: float = 0.0

    def before_step(self, step: int, net_weight_bits: float) -> float:
        """Beta for this step, given what the weights cost now."""
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
        """What the ledger should say about the budget."""
        budget = self._budget(10**12)
        if budget is None or abs(net_weight_bits / budget - 1) <= 0.01:
            return []
        return [f"the budget of {budget:g} bits was missed: train longer, or set one that this prior can reach"]

    def settled(self, epoch: int) -> bool:
        """True when beta has arrived at one, or at a budget that is met within 1 %."""
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
