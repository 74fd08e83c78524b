"""Progressive coding: blocks of weights are chosen one group after the other, and what is not chosen yet is trained on.

Every block has a multiplier of its own on its KL, which steers it towards the bits its index can say. Once a block is chosen
its weights are constants, and the others make up for what the choice cost (Havasi, Peharz & Hernandez-Lobato 2019).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from tqdm import tqdm

from bitsback.bitstream.ans import Integers
from bitsback.bitstream.blocks import BlockCode
from bitsback.bitstream.quantised import STEPS_PER_STD
from bitsback.data import Examples
from bitsback.errors import TrainingError
from bitsback.kl import Panels, kl_each
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel
from bitsback.model.modes import Modes
from bitsback.posterior import GaussianPosterior
from bitsback.registry import Settings
from bitsback.training.augment import AugmentSettings, augmented
from bitsback.units import nats_to_bits

FIXED_LOG_STD = -40.0
TYPICAL_SCALE = 0.2
"""Of a prior whose weights learn at lr, when rates are relative."""

BETA_RANGE = 1e-3, 1e3
BETA_GAIN, BETA_REACH_BITS = 0.05, 4.0


class TuningSettings(Settings):
    """How the weights that are not chosen yet are trained on."""

    groups: PositiveInt = Field(40, description="groups of blocks that are chosen at once")
    taper: float = Field(
        1.0, gt=0, le=1, description="size of the last group, in sizes of the first; between, it falls linearly"
    )
    steps: NonNegativeInt = Field(200, description="steps after each group; 0: nothing is trained")
    balance_steps: NonNegativeInt = Field(300, description="steps before the first group, which balance the blocks")
    batch_size: PositiveInt = Field(128, description="examples per step")
    lr: PositiveFloat = Field(0.005, description="largest learning rate of the means; log std takes five times as much")
    final_lr: float = Field(0.05, gt=0, le=1, description="learning rate at the end, in units of lr; it falls as a cosine")
    relative_lr: bool = Field(
        False, description="scale each tensor's rate with its prior's scale: for wide layers of tiny weights"
    )
    target_bits: PositiveFloat | None = Field(None, description="KL at which blocks are held; default: the bits of an index")
    augment: AugmentSettings | None = Field(None, description="random changes of the images while tuning")


class QuantisingSettings(Settings):
    """How the quantised codec puts weights on grids."""

    steps_per_std: PositiveFloat = Field(STEPS_PER_STD, description="grid step in posterior stds; coarser makes smaller files")
    trade_off: float = Field(0.0, ge=0, description="weight of code bits against distortion; 0 rounds to the nearest level")
    permute: bool = Field(True, description="whether the order of hidden units gives its bits back")


class PackSettings(Settings):
    """How a run becomes a model file."""

    codec: Literal["auto", "relative_entropy", "quantised"] = Field("auto", description="auto: by net bits per weight")
    index_bits: int = Field(12, ge=1, le=24, description="K: bits of a block's index; 12, or 16 for quality")
    key: int = Field(0, ge=0, lt=2**32, description="of the codebook; another one gives another file")
    budget_bytes: PositiveInt | None = Field(None, description="size of the whole file; default: what the net bits ask for")
    tuning: TuningSettings | None = Field(
        None, description="train on what is not coded yet; default: code the posterior as it is"
    )
    quantising: QuantisingSettings = QuantisingSettings()


@dataclass
class Tuner:
    """A network on its way from a posterior to one chosen weight vector.

    Args:
        model: its means and stds are trained on, its priors are held, and so is what is in eval mode.
        likelihood, examples: what it describes.
        code: the blocks.
        settings: how.
        seed: of batches and draws.
        progress: show the bar.
        half: run the forward pass in bfloat16.
    """

    model: BayesianModel
    likelihood: Likelihood
    examples: Examples
    code: BlockCode
    settings: TuningSettings
    seed: int = 0
    progress: bool = True
    half: bool = False
    indices: Integers = field(init=False)

    def __post_init__(self) -> None:
        self.indices = np.zeros(self.code.blocks, dtype=np.int64)
        self._modes = Modes(self.model)
        self._posteriors = [q for q in self.model.posteriors() if isinstance(q, GaussianPosterior)]
        self._block_of = torch.from_numpy(self.code.block_of())
        self._free = torch.ones(len(self._block_of), dtype=torch.bool)
        dtype = next((q.mean.dtype for q in self._posteriors), torch.float32)
        self._fixed = torch.zeros(len(self._block_of), dtype=dtype)
        self._beta = torch.ones(self.code.blocks, dtype=dtype)
        held = {id(p) for p in self.model.priors.parameters()} | {id(q.log_std) for q in self._posteriors}
        others = [p for p in self.model.parameters() if id(p) not in held and p.requires_grad]
        means = {id(q.mean) for q in self._posteriors}
        groups = [([p for p in others if id(p) not in means], 1.0), ([q.log_std for q in self._posteriors], 5.0)]
        for weight in self.model.weights:
            width = float(weight.prior.width().detach().mean()) / TYPICAL_SCALE
            groups.append(([weight.posterior.mean], min(max(width, 0.005), 3.0) if self.settings.relative_lr else 1.0))
        self._optimizer = torch.optim.Adam(
            [{"params": group, "lr": self.settings.lr * rate} for group, rate in groups if group], fused=True
        )
        self._steps = (
            self.settings.balance_steps + self.settings.steps * (self.settings.groups - 1) if self.settings.steps else 0
        )
        self._rise = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)
        self._batches = self._endless_batches()

    def run(self) -> Integers:
        """Choose every block; afterwards the posterior means are the chosen weights. Returns the indices."""
        for prior in self.model.priors.parameters():
            prior.requires_grad_(False)
        torch.manual_seed(self.seed)
        order = np.random.default_rng(self.seed).permutation(self.code.blocks)
        count = min(self.settings.groups, len(order))
        sizes = np.linspace(1.0, self.settings.taper, count)
        groups = np.split(order, np.rint(np.cumsum(sizes / sizes.sum()) * len(order)).astype(int)[:-1])
        with tqdm(total=self._steps + len(order), desc="packing", disable=not self.progress, leave=False, delay=2.0) as bar:
            self._train(self.settings.balance_steps if self._steps else 0, bar)
            for number, group in enumerate(groups):
                self._choose(group, bar)
                if self._steps and number < len(groups) - 1:
                    self._train(self.settings.steps, bar)
        self._settle_statistics()
        return self.indices

    def _rate(self, step: int) -> float:
        low = self.settings.final_lr
        falling = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self._steps))))
        return min(1.0, (step + 1) / 50) * falling

    def _endless_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = self.examples.inputs, self.examples.targets
        while True:
            for batch in torch.randperm(len(inputs)).split(self.settings.batch_size):
                yield inputs[batch], targets[batch]

    def _train(self, steps: int, bar: Any) -> None:
        self._modes.restore()
        target = self.settings.target_bits or float(self.code.index_bits)
        count = len(self.examples)
        for _ in range(steps):
            inputs, targets = next(self._batches)
            if self.settings.augment is not None:
                inputs = augmented(inputs, self.settings.augment)
            with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.half):
                outputs = self.model(inputs)
            outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
            data_bits = self.likelihood.bits(outputs, targets).sum() * (count / len(inputs))
            block_bits = self._block_bits()
            loss = (data_bits + (self._beta * block_bits).sum()) / count
            if not torch.isfinite(loss):
                raise TrainingError("tuning diverged: its loss is not finite; lower the tuning rate (--tune lr=0.001)")
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            self._rise.step()
            with torch.no_grad():
                pressure = ((block_bits - target) / BETA_REACH_BITS).clamp(-1, 1)
                self._beta = (self._beta * (BETA_GAIN * pressure).exp()).clamp(*BETA_RANGE)
            self._hold()
            bar.update()

    def _block_bits(self) -> Tensor:
        """KL of every block in bits, (blocks,); zero once chosen."""
        pairs = [(w.posterior, w.prior) for w in self.model.weights]
        each = [kl_each(q, p, panels=Panels.fast()).flatten() for q, p in pairs if isinstance(q, GaussianPosterior)]
        bits = torch.where(self._free, nats_to_bits(torch.cat(each)), 0.0)
        return torch.zeros_like(self._beta).index_add(0, self._block_of, bits)

    @torch.no_grad()
    def _choose(self, group: Integers, bar: Any) -> None:
        mean = torch.cat([q.mean.flatten() for q in self._posteriors]).double().numpy()
        std = torch.cat([q.std().flatten() for q in self._posteriors]).double().numpy()
        for block in group.tolist():
            members = self.code.members(block)
            self.indices[block] = self.code.choose(block, mean[members], std[members])
            self._fixed[members] = torch.from_numpy(self.code.values(block, int(self.indices[block]))).to(self._fixed.dtype)
            self._free[members] = False
            bar.update()
        self._hold()

    @torch.no_grad()
    def _hold(self) -> None:
        """Put chosen weights back to what was chosen, with no width."""
        sizes = [q.weights for q in self._posteriors]
        for q, free, fixed in zip(self._posteriors, self._free.split(sizes), self._fixed.split(sizes), strict=True):
            q.mean.copy_(torch.where(free.reshape(q.mean.shape), q.mean, fixed.reshape(q.mean.shape)))
            q.log_std.masked_fill_(~free.reshape(q.mean.shape), FIXED_LOG_STD)

    @torch.no_grad()
    def _settle_statistics(self) -> None:
        """Average the running statistics of normalisation layers that train over the data, under the chosen weights."""
        self._modes.restore()
        kind = torch.nn.modules.batchnorm._BatchNorm
        norms = [m for m in self.model.modules() if isinstance(m, kind) and m.track_running_stats and m.training]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average
        with self.model.mean():
            for inputs in self.examples.inputs.split(512):
                self.model(inputs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
