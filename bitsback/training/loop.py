"""The loop on one page: batch, data bits + weight bits, step, log."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from math import inf

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bitsback.data import Examples
from bitsback.errors import TrainingError
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel
from bitsback.model.accounting import set_seed
from bitsback.model.modes import Modes
from bitsback.training.augment import augmented
from bitsback.training.beta import Beta
from bitsback.training.objective import DescriptionLength, Objective
from bitsback.training.settings import TrainingSettings
from bitsback.training.weights import PlainWeights, StepWeights

FAR = 80.0
"""Numbers within are finite, and so is a std of such a logarithm; beyond, each is looked at."""

PRIOR_RATE = 0.03
"""How fast closed-form priors follow at first; at once, they would shrink with weights that have learned nothing yet."""


@dataclass
class Fit:
    """A training under way: everything that a step reads or changes.

    Every module trains in the mode that it is in when this is made: what is in eval mode stays in eval mode. ``watch`` is
    called after every optimiser step, with the number of steps done; what it raises ends the training.
    """

    model: BayesianModel
    likelihood: Likelihood
    train: Examples
    settings: TrainingSettings
    seed: int
    optimizer: Optimizer
    schedule: LRScheduler | None
    beta: Beta
    objective: Objective = None  # type: ignore[assignment]  # the description length
    weights: StepWeights = None  # type: ignore[assignment]  # the plain ones
    epoch: int = 0
    watch: Callable[[int, BayesianModel], None] | None = None

    def __post_init__(self) -> None:
        self.objective = self.objective or DescriptionLength(len(self.train))
        self.weights = self.weights or PlainWeights(self.model)
        self.modes = Modes(self.model)

    @cached_property
    def _deterministic_bits(self) -> float:
        return self.model.deterministic_bits()  # the same at every step

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training split."""
        return -(-len(self.train) // self.settings.batch_size)

    def run_epoch(self) -> tuple[float, float]:
        """One pass over the training split; returns its data bits and the net weight bits of its last step.

        All randomness of an epoch follows from the seed and the epoch's number, so that a resumed run repeats it exactly.
        """
        set_seed(self.seed * 1_000_003 + self.epoch, self.train.inputs.device)
        self.modes.restore()
        self.weights.restart()
        data_bits, weight_bits = 0.0, 0.0
        for number, (inputs, targets) in enumerate(self.batches()):
            spent, weight_bits = self.step(self.epoch * self.steps_per_epoch + number, inputs, targets)
            data_bits += spent
        fault = self._fault_in_numbers()
        if fault:
            raise TrainingError(
                f"after epoch {self.epoch + 1} {fault}; lower training.optimizer.lr or set training.gradient_clip"
            )
        self.epoch += 1
        return data_bits, weight_bits

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of an epoch's steps, in a random order."""
        order = torch.randperm(len(self.train)).to(self.train.inputs.device)
        for batch in order.tensor_split(self.steps_per_epoch):
            inputs = self.train.inputs[batch]
            if self.settings.augment is not None:
                inputs = augmented(inputs, self.settings.augment)
            yield inputs, self.train.targets[batch]

    def step(self, step: int, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """One step on the objective; returns the batch's data bits and the weight bits."""
        done = step / (self.settings.passes * self.steps_per_epoch)
        self.optimizer.zero_grad(set_to_none=True)
        weight_bits = self.weights.cost(PRIOR_RATE + (1 - PRIOR_RATE) * done**2)
        beta = self.beta.before_step(step, float(weight_bits.detach()) + self._deterministic_bits)
        try:
            example_bits = self._example_bits(inputs, targets)
        except (RuntimeError, ValueError) as fault:
            hint = " (the batch is cut into training.draws groups)" if self.settings.draws > 1 else ""
            raise TrainingError(f"step {step} on {len(inputs)} examples{hint} fails: {str(fault).splitlines()[0]}") from fault
        loss = self.objective(example_bits, beta * weight_bits)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is not finite at step {step}: {self._blame(inputs)}; lower training.optimizer.lr")
        self._backward(loss)
        self.weights.add_gradients()
        self._move()
        if self.watch is not None:
            self.watch(step + 1, self.model)
        data_bits = torch.stack([bits.detach().sum() for bits in example_bits]).sum()
        return float(data_bits), float(weight_bits.detach())

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _move(self) -> None:
        """Take the step that the gradients ask for."""
        if self.settings.gradient_clip is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.settings.gradient_clip)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()

    def _example_bits(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """Data bits of every example of a batch, each of its ``draws`` groups under a weight draw of its own."""
        groups = min(self.settings.draws, len(inputs))
        half = self.settings.precision == "bfloat16"
        parts = []
        for number, (x, y) in enumerate(zip(inputs.tensor_split(groups), targets.tensor_split(groups), strict=True)):
            with self.weights.group(number), torch.autocast(x.device.type, torch.bfloat16) if half else nullcontext():
                outputs = self.model(x)
            outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
            parts.append(self.likelihood.bits(outputs, y))
        return parts

    @torch.no_grad()
    def _fault_in_numbers(self) -> str:
        """The first learned number that is not finite, or a std that is not positive; nothing when all is well."""
        learned = [*self.model.parameters(), *self.likelihood.parameters(), *self.model.priors.buffers()]
        learned += [statistic for _, statistic in self.model.statistics()]
        learned = [tensor for tensor in learned if tensor.is_floating_point() and tensor.numel()]
        if bool(torch.stack(torch._foreach_norm(learned, inf)).max() < FAR):  # false for nan
            return ""
        for weight in self.model.weights:
            std = weight.posterior.std()
            if not torch.isfinite(weight.posterior.mean).all():
                return f"the posterior mean of '{weight.name}' is not finite"
            if std is not None and not (torch.isfinite(std) & (std > 0)).all():
                return f"the posterior std of '{weight.name}' is not positive and finite"
        named: list[tuple[str, Tensor]] = [*self.model.named_parameters(), *self.likelihood.named_parameters()]
        named += [*self.model.statistics(), *self.model.priors.named_buffers("priors")]
        return next((f"'{name}' is not finite" for name, p in named if not torch.isfinite(p).all()), "")

    @torch.no_grad()
    def _blame(self, inputs: Tensor) -> str:
        """Name the first place where a number is not finite."""
        fault = self._fault_in_numbers()
        if fault:
            return fault
        found: list[str] = []

        def look(name: str, output: object) -> None:
            several = output if isinstance(output, tuple) else (output,)
            if any(isinstance(one, Tensor) and not torch.isfinite(one).all() for one in several):
                found.append(name)

        named = [(name, module) for name, module in self.model.network.named_modules() if name]
        hooks = [m.register_forward_hook(lambda _m, _i, out, name=name: look(name, out)) for name, m in named]
        try:
            self.model(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return f"the output of layer '{found[0]}' is not finite" if found else "the data bits or the KL overflow"
