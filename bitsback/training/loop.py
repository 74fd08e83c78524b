"""The loop on one page: batch, data bits, gradients; the optimiser adds the weight bits, moves, and draws anew."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from bitsback.data import Examples
from bitsback.errors import TrainingError
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel
from bitsback.model.accounting import set_seed
from bitsback.model.modes import Modes
from bitsback.optim import PosteriorOptimizer
from bitsback.profiling import stage
from bitsback.training._objective import DescriptionLength, Objective
from bitsback.training.augment import augmented
from bitsback.training.beta import Beta
from bitsback.training.drawn_outputs import DrawnOutputs
from bitsback.training.settings import TrainingSettings
from bitsback.units import nats_to_bits

__all__ = ["PRIOR_RATE", "Fit", "Watch"]

FAR = 80.0
"""Numbers within are finite, and so is a std of such a logarithm; beyond, each is looked at."""

PRIOR_RATE = 0.03
"""How fast closed-form priors follow at first; at once, they would shrink with weights that have learned nothing yet."""

Watch = Callable[[int, BayesianModel], None]
"""Told after each step how many there have been."""


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
    optimizer: PosteriorOptimizer
    schedule: LRScheduler | None
    beta: Beta
    objective: Objective = None  # type: ignore[assignment]  # the description length
    outputs: DrawnOutputs | None = None
    epoch: int = 0
    watch: Watch | None = None
    holds_priors: bool = False
    """Whether priors stay what they are."""
    mode: bool = True
    """Of the model itself, to be put back at the end; while it trains, weights hold draws."""

    def __post_init__(self) -> None:
        self.objective = self.objective or DescriptionLength(len(self.train))
        self.modes = Modes(self.model)
        self._deterministic_bits = self.model.deterministic_bits()  # the same at every step

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training split."""
        return -(-len(self.train) // self.settings.batch_size)

    def run_epoch(self) -> tuple[float, float]:
        """One pass over the training split; returns its data bits and the net weight bits at its end.

        All randomness of an epoch follows from the seed, the epoch's number and that of the draw, so that a resumed run repeats
        it exactly.
        """
        set_seed(self.seed * 1_000_003 + self.epoch, self.train.inputs.device)
        self.modes.restore()
        data_bits = 0.0
        for number, (inputs, targets) in enumerate(self.batches()):
            data_bits += self.step(self.epoch * self.steps_per_epoch + number, inputs, targets)
        error = self._fault_in_numbers()
        if error:
            raise TrainingError(
                f"after epoch {self.epoch + 1} {error}; lower training.optimizer.lr or set training.gradient_clip"
            )
        self.epoch += 1
        return data_bits, self.weight_bits()

    def end(self) -> None:
        """The last step is taken: weights are laid out and drawn, and modules in their modes, as before the training."""
        self.modes.restore()
        if self.outputs is not None:
            self.outputs.release()
        self.model.set_noise()
        self.model.lay_out(channels_last=False)
        self.model.training = self.mode

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of an epoch's steps, in a random order."""
        order = torch.randperm(len(self.train)).to(self.train.inputs.device)
        for batch in order.tensor_split(self.steps_per_epoch):
            inputs = self.train.inputs[batch]
            if self.settings.augment is not None:
                inputs = augmented(inputs, self.settings.augment)
            yield inputs, self.train.targets[batch]

    def weight_bits(self) -> float:
        """KL(q||p) of the weights as they are now, in bits."""
        return nats_to_bits(self.optimizer.kl_nats())

    def step(self, step: int, inputs: Tensor, targets: Tensor) -> float:
        """Take one step on the objective; returns the batch's data bits."""
        if not self.model.training or self.model.holds == "mean":
            self.model.training = True  # modules keep their modes; the weights hold draws
        done = step / (self.settings.passes * self.steps_per_epoch)
        self.optimizer.prior_rate = 0.0 if self.holds_priors else PRIOR_RATE + (1 - PRIOR_RATE) * done**2
        is_steered = self.settings.budget_bits is not None
        needs_bits = is_steered or not isinstance(self.objective, DescriptionLength)
        weight_bits = self.weight_bits() if needs_bits else 0.0
        beta = self.beta.before_step(step, weight_bits + self._deterministic_bits)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            data_bits, mean_cost = self._backward_by_groups(step, inputs, targets)
        except (RuntimeError, ValueError) as error:
            hint = " (the batch is cut into training.draws groups)" if self.settings.draws > 1 else ""
            raise TrainingError(f"step {step} on {len(inputs)} examples{hint} fails: {str(error).splitlines()[0]}") from error
        self.optimizer.beta = beta * self.objective.weigh(mean_cost, beta * weight_bits, self._gradients)
        with stage("bitsback: optimiser"):
            self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        if self.watch is not None:
            self.watch(step + 1, self.model)
        return data_bits

    def _gradients(self) -> list[Tensor]:
        """All gradients of the data cost."""
        return [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def _backward_by_groups(self, step: int, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """Leave the gradient of the mean cost, each of the ``draws`` groups of a batch under a weight draw of its own."""
        groups = min(self.settings.draws, len(inputs))
        half = self.settings.precision == "bfloat16"
        data_bits = cost = 0.0
        for number, (x, y) in enumerate(zip(inputs.tensor_split(groups), targets.tensor_split(groups), strict=True)):
            if number:
                self.model.mirror() if self.settings.antithetic and number % 2 else self.model.draw()
            with self.outputs.step(x) if self.outputs is not None else nullcontext():
                with stage("bitsback: forward"):
                    with torch.autocast(x.device.type, torch.bfloat16) if half else nullcontext():
                        outputs = self.model(x)
                    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
                    bits = self.likelihood.bits(outputs, y)
                    part = self.objective.cost(bits).sum() / len(inputs)
                paid = float(part.detach())
                if not abs(paid) < inf:
                    raise TrainingError(
                        f"the loss is not finite at step {step}: {self._blame(inputs)}; lower training.optimizer.lr"
                    )
                with stage("bitsback: backward"):
                    part.backward()
            cost += paid
            data_bits += float(bits.detach().sum())
        return data_bits, cost

    @torch.no_grad()
    def _fault_in_numbers(self) -> str:
        """The first learned number that is not finite, or a std that is not positive; nothing when all is well."""
        named: list[tuple[str, Tensor]] = [*self.model.deterministic(), *self.likelihood.named_parameters()]
        named += [*self.model.priors.named_parameters("priors"), *self.model.priors.named_buffers("priors")]
        named += self.model.statistics()
        learned = [tensor for _, tensor in named if tensor.is_floating_point() and tensor.numel()]
        learned += [p for q in self.model.posteriors() for p in q.parameters()]
        if bool(torch.stack(torch._foreach_norm(learned, inf)).max() < FAR):  # false for nan
            return ""
        for weight in self.model.weights:
            std = weight.posterior.std()
            if not torch.isfinite(weight.posterior.mean).all():
                return f"the posterior mean of '{weight.name}' is not finite"
            if std is not None and not (torch.isfinite(std) & (std > 0)).all():
                return f"the posterior std of '{weight.name}' is not positive and finite"
        return next((f"'{name}' is not finite" for name, p in named if not torch.isfinite(p).all()), "")

    @torch.no_grad()
    def _blame(self, inputs: Tensor) -> str:
        """Name the first place where a number is not finite."""
        error = self._fault_in_numbers()
        if error:
            return error
        found: list[str] = []

        def look(name: str, output: object) -> None:
            several = output if isinstance(output, tuple) else (output,)
            if any(isinstance(one, Tensor) and not torch.isfinite(one).all() for one in several):
                found.append(name)

        named = [(name, module) for name, module in self.model.network.named_modules() if name]
        hooks = [m.register_forward_hook(lambda _m, _i, out, name=name: look(name, out)) for name, m in named]
        try:
            self.model.network(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return f"the output of layer '{found[0]}' is not finite" if found else "the data bits overflow"
