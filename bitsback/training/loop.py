"""The training loop: gradients of a batch's data bits; the optimiser adds the KL, updates, and writes the next draw."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from bitsback.data import Examples
from bitsback.distributed import ALONE, Ranks, local
from bitsback.errors import ConfigError, TrainingError
from bitsback.inputs import Inputs, call, leaves, like
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel, State
from bitsback.model.modes import Modes
from bitsback.optim import Adam, PosteriorOptimizer
from bitsback.profiling import stage
from bitsback.torch_state import set_seed
from bitsback.training._graphs import StepGraphs
from bitsback.training._objective import DescriptionLength, Objective
from bitsback.training.augment import augmented
from bitsback.training.beta import Beta
from bitsback.training.drawn_outputs import DrawnOutputs
from bitsback.training.settings import TrainingSettings
from bitsback.units import nats_to_bits

# One step, on a batch of B of the N training examples. With the description length for objective it goes down
#
#   L = (1/B) sum_i -log2 p(y_i | x_i, w) + (beta / N) KL(q || p) / ln 2     bits per example, w drawn from q = N(m, s^2)
#
#   +--> draw w = m + s e  -->  outputs  -->  bits of each example  -->  mean cost      objective.cost: the bits, or for
#   |                                                                       |           a bound, bits cut off and scaled
#   |                                                                    backward
#   |                                                                       |
#   |                                          gradient of the mean cost in w.grad      objective.weigh: to that of the loss
#   |                                                                       |
#   +--  next draw  <--  priors follow  <--  m, log s move  <--  + (beta / N) dKL       all in optimizer.step()
#
# With training.draws = k the batch is cut into k groups, each under a draw of its own; their gradients add up.

__all__ = ["PRIOR_RATE", "Fit", "Watch"]

FAR = 80.0
"""Norm above which parameters are checked one by one for NaN/inf; below it, exp of a log std is finite too."""

PRIOR_RATE = 0.03
"""Initial rate at which priors learned in closed form follow the weights. At full rate they would shrink at once, with weights
that have not been trained.
"""

Watch = Callable[[int, BayesianModel], None]
"""Callback after each step, with the number of steps done and the model."""


class _NotFinite(ArithmeticError):
    """The loss of a step is not finite; the message names the cause."""


@dataclass
class Fit:
    """Training in progress: the state that a step reads or changes.

    Every module is trained in the mode it has when this object is made: a module in eval mode stays in eval mode.

    Attributes:
        model: the model, trained in place.
        likelihood: of the targets; its parameters are trained too.
        train: training examples.
        settings: of the training, with all ``auto`` resolved.
        seed: of batches and weight draws.
        optimizer: over posteriors, likelihood and objective.
        schedule: of the learning rates, or None.
        beta: weight of the KL.
        objective: loss from mean cost and KL; default: the description length.
        outputs: layers whose outputs are drawn, or None.
        epoch: number of epochs done.
        watch: called after every optimiser step; an exception it raises ends the training.
    """

    model: BayesianModel
    likelihood: Likelihood
    train: Examples
    settings: TrainingSettings
    seed: int
    optimizer: PosteriorOptimizer
    schedule: LRScheduler | None
    beta: Beta
    objective: Objective = None  # type: ignore[assignment]  # default: the description length
    outputs: DrawnOutputs | None = None
    epoch: int = 0
    watch: Watch | None = None
    graphs: StepGraphs | None = None
    """Steps as CUDA graphs, where they are captured."""
    holds_priors: bool = False
    """Whether priors are kept fixed."""
    ranks: Ranks = ALONE
    """Processes that train the model together, each on its share of every batch."""
    mode: bool = True
    """``training`` flag of the model itself, restored at the end; during training it is set, so that weights hold draws."""

    def __post_init__(self) -> None:
        self.objective = self.objective or DescriptionLength(len(self.train))
        self.modes = Modes(self.model)
        self.model.evaluation_batch = max(self.model.evaluation_batch, self.settings.batch_size)
        self._deterministic_bits = self.model.deterministic_bits()  # constant: counted once
        self._rows = 0  # of the batch that all processes share; 0: this one's times their number
        self._weight_bits, self._beta = 0.0, 1.0

    # of StepGraphs

    def run(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """Run the operators of a step and return its data bits.

        Args:
            inputs: (n, ...), a tensor, or a tuple or dict of tensors.
            targets: (n, ...).

        Returns:
            a scalar tensor.
        """
        return torch.as_tensor(self._run(inputs, targets))

    def prepare_capture(self) -> None:
        """Allocate what the launches of one capture read."""
        self.optimizer.prepare_capture(self.settings.draws + 1)

    def finish_capture(self) -> None:
        """Write what the launches of the capture read."""
        self.optimizer.finish_capture()

    def host_state(self) -> tuple[State, int]:
        """Return what a step changes on the host."""
        return self.optimizer.host_state()

    def set_host_state(self, state: tuple[State, int]) -> None:
        """Restore what :meth:`host_state` returned."""
        self.optimizer.set_host_state(state)

    def advance(self, before: tuple[State, int], after: tuple[State, int]) -> None:
        """Change the host's state as a step does that led from one state to another.

        Args:
            before: state before such a step.
            after: state after it.
        """
        state, steps = self.host_state()
        moved = after[0].number - before[0].number
        self.set_host_state((state._replace(number=state.number + moved, sign=after[0].sign), steps + after[1] - before[1]))

    def write_numbers(self) -> None:
        """Write the numbers of the next step to the device."""
        self.optimizer.write_next()

    def is_stale(self) -> bool:
        """Return whether weights were written to since the last step."""
        return self.model.is_stale()

    def signature(self) -> Any:
        """Return what captured steps take for granted: what is trained, modes of modules, and the optimiser's tensors."""
        trained = tuple(p.requires_grad for p in self.model.network.parameters())
        return trained, tuple(m.training for m in self.model.network.modules()), self.optimizer.signature()

    def why_no_graph(self) -> str:
        """Return why steps cannot be captured, a clause; empty if they can."""
        if self.ranks.count > 1:
            return "several processes average their gradients in every step"
        if self._needs_weight_bits:
            return "the weight of the KL depends on its value, which is read in every step"
        if not isinstance(self.optimizer, Adam):
            return f"{self.settings.optimizer.name} keeps its rates on the host"
        if self.train.pads:
            return "batches are padded to shapes of their own"
        return self.optimizer.why_not_captured()

    @property
    def steps_per_epoch(self) -> int:
        """Return the batches in one pass over the training split."""
        return -(-len(self.train) // self.settings.batch_size)

    def run_epoch(self) -> tuple[float, float]:
        """Run one pass over the training split.

        The randomness of an epoch depends only on the seed, the epoch's number and the draw's number, so that a resumed run
        repeats it exactly.

        Returns:
            data bits of the epoch, and net weight bits at its end.

        Raises:
            TrainingError: if a loss, a parameter or a std is not finite.
        """
        set_seed(self.seed * 1_000_003 + self.epoch, self.train.targets.device)
        self.modes.restore()
        data_bits: float | Tensor = 0.0
        for number, (inputs, targets) in enumerate(self.batches()):
            data_bits = data_bits + self.step(self.epoch * self.steps_per_epoch + number, inputs, targets)
            if self.settings.log_every is not None and (number + 1) % self.settings.log_every == 0:
                self._check_bits(data_bits, number)
        (data_bits,) = self.ranks.sums([self._check_bits(data_bits, self.steps_per_epoch - 1)])
        self.ranks.copy_first([buffer for buffer in self.model.network.buffers() if buffer.is_floating_point()])
        error = self._check_finite()
        if error:
            raise TrainingError(
                f"after epoch {self.epoch + 1} {error}; lower training.optimizer.lr or set training.gradient_clip"
            )
        self.epoch += 1
        return data_bits, self.weight_bits()

    def end(self) -> None:
        """Finish training: restore the weights' memory layout and draws, and the modes of modules."""
        self.graphs = None
        self.modes.restore()
        if self.outputs is not None:
            self.outputs.release()
        self.model.set_noise()
        self.model.lay_out(channels_last=False)
        self.model.training = self.mode

    def batches(self) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield inputs and targets of an epoch's steps, in random order; of an iterable source, in its order."""
        order = torch.randperm(len(self.train))
        if not self.train.has_random_access:
            order = torch.arange(len(self.train))
        elif isinstance(self.train.inputs, Tensor):
            order = order.to(self.train.inputs.device)
        steps = order.tensor_split(self.steps_per_epoch)
        if self.ranks.rank:  # dropout and augmentation are drawn by every process for its own rows
            set_seed(self.seed * 1_000_003 + self.epoch + (self.ranks.rank << 40), self.train.targets.device)
        for rows, (inputs, targets) in zip(steps, self.train.batches([self._share(rows) for rows in steps]), strict=True):
            self._rows = len(rows)
            yield inputs if self.settings.augment is None else augmented(inputs, self.settings.augment), targets

    def _share(self, rows: Tensor) -> Tensor:
        """Return this process's share of a batch (n,): of each group of examples that shares a draw."""
        if self.ranks.count == 1:
            return rows
        return torch.cat([self.ranks.share(group) for group in rows.tensor_split(min(self.settings.draws, len(rows)))])

    def weight_bits(self) -> float:
        """Return KL(q||p) of the current weights, in bits."""
        return self.ranks.of_first([nats_to_bits(self.optimizer.kl_nats())])[0]  # the same, were it estimated by draws

    def _check_bits(self, data_bits: float | Tensor, number: int) -> float:
        """Return the data bits of an epoch so far, read from the device; raise TrainingError if they are not finite."""
        found = float(data_bits)
        if not abs(found) < inf:
            cause = self._check_finite() or "the data bits overflow"
            raise TrainingError(
                f"the loss is not finite in epoch {self.epoch + 1}, at step {number + 1} of it or before: {cause}; lower "
                "training.optimizer.lr (training.log_every=1 looks at every step)"
            )
        return found

    def step(self, step: int, inputs: Inputs, targets: Tensor) -> float | Tensor:
        """Take one optimiser step on the objective.

        Args:
            step: number of steps done before, over all epochs.
            inputs: (n, ...), a tensor, or a tuple or dict of tensors.
            targets: (n, ...).

        Returns:
            data bits of the batch; on a GPU a scalar tensor there, valid until the next step.

        Raises:
            TrainingError: if the forward or backward pass fails, or, on a CPU, the loss is not finite.
        """
        if not self.model.training or self.model.holds == "mean":
            self.model.training = True  # of the model alone: modules keep their modes
        done = step / (self.settings.passes * self.steps_per_epoch)
        self.optimizer.prior_rate = 0.0 if self.holds_priors else PRIOR_RATE + (1 - PRIOR_RATE) * done**2
        # the KL itself is computed only if needed; otherwise its gradient suffices
        self._weight_bits = self.weight_bits() if self._needs_weight_bits else 0.0
        self._beta = self.beta.before_step(step, self._weight_bits + self._deterministic_bits)
        self.optimizer.beta = self._beta
        try:
            data_bits = self._run(inputs, targets) if self.graphs is None else self.graphs.step(inputs, targets)
        except _NotFinite as error:
            raise TrainingError(f"the loss is not finite at step {step}: {error}; lower training.optimizer.lr") from error
        except (RuntimeError, ValueError) as error:
            hint = " (the batch is cut into training.draws groups)" if self.settings.draws > 1 else ""
            raise TrainingError(f"step {step} on {len(targets)} examples{hint} fails: {str(error).splitlines()[0]}") from error
        if self.schedule is not None:
            self.schedule.step()
        if self.watch is not None:
            self.watch(step + 1, self.model)
        return data_bits

    @property
    def _needs_weight_bits(self) -> bool:
        """Return whether beta or the objective depends on the KL of the current posteriors."""
        return self.settings.budget_bits is not None or not isinstance(self.objective, DescriptionLength)

    def _run(self, inputs: Inputs, targets: Tensor) -> float | Tensor:
        """Run the operators of a step, and return its data bits."""
        self.optimizer.zero_grad(set_to_none=True)
        data_bits, mean_cost = self._backward_by_groups(inputs, targets)
        self.optimizer.gather()
        if not isinstance(self.objective, DescriptionLength):
            mean_cost = self.ranks.sums([float(mean_cost)])[0] / self.ranks.count
            weighed = self.objective.weigh(mean_cost, self._beta * self._weight_bits, self._gradients)
            self.optimizer.beta = self._beta * weighed
        with stage("bitsback: optimiser"):
            self.optimizer.step()
        return data_bits

    def _gradients(self) -> list[Tensor]:
        """Return all gradients of the data cost."""
        return self.optimizer.gradients()

    def _backward_by_groups(self, inputs: Inputs, targets: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Accumulate the gradient of the mean cost over ``draws`` groups of a batch, each under its own weight draw."""
        groups = min(self.settings.draws, len(targets))
        half = self.settings.precision == "bfloat16"
        rows = self._rows / self.ranks.count or len(targets)
        self._rows = 0
        data_bits: float | Tensor = 0.0
        cost: float | Tensor = 0.0
        for number, (x, y) in enumerate(zip(_groups(inputs, groups), targets.tensor_split(groups), strict=True)):
            if number:  # the first group uses the draw that the last optimiser step wrote
                self.model.mirror() if self.settings.antithetic and number % 2 else self.model.draw()
            each, more = divmod(round(rows * self.ranks.count), groups)
            shared = each + (number < more)  # rows of the group in all processes
            with self.outputs.step(x, self.ranks, shared) if self.outputs is not None else nullcontext():
                with stage("bitsback: forward"):
                    with torch.autocast(y.device.type, torch.bfloat16) if half else nullcontext():
                        outputs = self.model.outputs(x)
                    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
                    bits = self.likelihood.bits(outputs, y)
                    part = self.objective.cost(bits).sum() / rows  # the mean over processes is that over their whole batch
                paid = self._read(part)
                if isinstance(paid, float) and not abs(paid) < inf:
                    raise _NotFinite(self._find_nonfinite_layer(inputs))
                with stage("bitsback: backward"):
                    part.backward()
            cost = cost + paid
            data_bits = data_bits + self._read(bits.sum())
        return data_bits, cost

    def _read(self, number: Tensor) -> float | Tensor:
        """Return a number as a float; on an accelerator as a tensor, because to read it there is to wait for the device."""
        if number.is_cpu:
            return float(number.detach())
        return number.detach() if number.device.type == "mps" else number.detach().double()

    @torch.no_grad()
    def _check_finite(self) -> str:
        """Describe the first parameter that is not finite, or std that is not positive; return '' if there is none."""
        named: list[tuple[str, Tensor]] = [*self.model.deterministic(), *self.likelihood.named_parameters()]
        named += [*self.model.priors.named_parameters("priors"), *self.model.priors.named_buffers("priors")]
        named += self.model.statistics()
        learned = [tensor for _, tensor in named if tensor.is_floating_point() and tensor.numel()]
        learned = [local(p) for p in learned] + [p for q in self.model.posteriors() for p in q.parameters()]
        learned = [tensor for tensor in learned if tensor.numel()]  # a shard may be empty
        if bool(torch.stack(torch._foreach_norm(learned, inf)).max() < FAR):  # False for NaN
            return ""
        for weight in self.model.weights:
            std = weight.posterior.std()
            if not torch.isfinite(weight.posterior.mean).all():
                return f"the posterior mean of '{weight.name}' is not finite"
            if std is not None and not (torch.isfinite(std) & (std > 0)).all():
                return f"the posterior std of '{weight.name}' is not positive and finite"
        return next((f"'{name}' is not finite" for name, p in named if not torch.isfinite(local(p)).all()), "")

    @torch.no_grad()
    def _find_nonfinite_layer(self, inputs: Inputs) -> str:
        """Describe the first parameter, or layer output, that is not finite."""
        error = self._check_finite()
        if error or self.model.is_sharded:  # a forward needs all processes, and the others do not run one now
            return error or "an output or the data bits overflow"
        found: list[str] = []

        def look(name: str, output: object) -> None:
            several = output if isinstance(output, tuple) else (output,)
            if any(isinstance(one, Tensor) and not torch.isfinite(one).all() for one in several):
                found.append(name)

        named = [(name, module) for name, module in self.model.network.named_modules() if name]
        hooks = [m.register_forward_hook(lambda _m, _i, out, name=name: look(name, out)) for name, m in named]
        try:
            call(self.model.network, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return f"the output of layer '{found[0]}' is not finite" if found else "the data bits overflow"


def _groups(inputs: Inputs, count: int) -> list[Inputs]:
    """Cut a batch into groups of examples."""
    if count == 1:
        return [inputs]
    if len({len(leaf) for leaf in leaves(inputs)}) > 1:
        raise ConfigError("training.draws cuts a batch by its rows, and here rows of inputs are no examples; set draws to 1")
    return [like(inputs, parts) for parts in zip(*(leaf.tensor_split(count) for leaf in leaves(inputs)), strict=True)]
