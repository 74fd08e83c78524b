"""Progressive relative entropy coding: encode groups of blocks in turn, and train the weights that are not coded yet.

Every block has its own multiplier on its KL, which steers the KL towards the bits of the block's index. Once a block is coded
its weights are constants, and the remaining ones are trained to compensate (Havasi, Peharz & Hernandez-Lobato 2019).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bitsback.coding.ans import Integers
from bitsback.coding.relative_entropy import BlockCode
from bitsback.config.coding_settings import TuningSettings
from bitsback.data import Examples
from bitsback.errors import TrainingError
from bitsback.formats.model_file._device_scores import DeviceScores
from bitsback.inputs import Inputs
from bitsback.kl import Panels, kl_each
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel, Weight
from bitsback.optim import Adam
from bitsback.posteriors import GaussianPosterior
from bitsback.training.augment import augmented
from bitsback.training.beta import Beta
from bitsback.training.drawn_outputs import DrawnOutputs
from bitsback.training.loop import Fit
from bitsback.training.settings import CONSTANT_BETA, TrainingSettings
from bitsback.units import bits_to_nats, nats_to_bits

__all__ = ["FIXED_LOG_STD", "Tuner"]

FIXED_LOG_STD = -40.0
"""Log std, in nats, of a weight that is fixed: e^-40, in effect a point."""
TYPICAL_SCALE = 0.2
"""Typical scale of the prior at which a relative learning rate equals ``lr``."""

BETA_RANGE = 1e-3, 1e3
"""Smallest and largest multiplier of a block's KL."""
BETA_GAIN, BETA_REACH_BITS = 0.05, 4.0
"""Largest change of a multiplier's logarithm in one step, and the excess KL in bits at which it is reached."""


@dataclass
class Tuner:
    """Progressive coder of a network: from a posterior to one coded weight vector.

    Args:
        model: its means and stds are trained; its priors, and modules in eval mode, are not.
        likelihood: likelihood of the targets.
        examples: training examples.
        code: block code of the weights.
        settings: numbers of steps and groups, and learning rate.
        seed: seed of batches and weight draws.
        progress: show a progress bar.
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
        self.examples = self.examples.to(self.model.device, self.model.dtype)  # float64 after a run in float64
        self.indices = np.zeros(self.code.blocks, dtype=np.int64)
        self._gaussians = [weight for weight in self.model.weights if weight.is_gaussian]
        device = self.model.device
        self._scores = None if device.type == "cpu" else DeviceScores(self.code, device)
        self._block_of = torch.from_numpy(self.code.block_of()).to(device)
        self._free = torch.ones(len(self._block_of), dtype=torch.bool, device=device)
        dtype = next((weight.posterior.mean.dtype for weight in self._gaussians), torch.float32)
        self._fixed = torch.zeros(len(self._block_of), dtype=dtype, device=device)
        self._beta = torch.ones(self.code.blocks, dtype=dtype, device=device)
        self._steps = (
            self.settings.balance_steps + self.settings.steps * (self.settings.groups - 1) if self.settings.steps else 0
        )

    def _begin(self) -> None:
        """Set up the training of the weights not coded yet, with each block's KL weighted by its multiplier."""
        count, lr = len(self.examples), self.settings.lr
        trained = {id(weight.known) for weight in self._gaussians}
        others = [p for p in self.model.network.parameters() if p.requires_grad and id(p) not in trained]
        groups: list[dict[str, Any]] = [{"params": others, "lr": lr}] if others else []
        for weight in self._gaussians:
            width = float(weight.prior.typical_scale().detach().mean()) / TYPICAL_SCALE
            rate = min(max(width, 0.005), 3.0) if self.settings.relative_lr else 1.0
            groups.append({"params": [weight.known], "lr": lr * rate, "log_std_lr": 5 * lr})
        optimizer = Adam(self.model, lr, examples=count, groups=groups)
        optimizer.nats_per_unit = bits_to_nats(1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        settings = TrainingSettings(
            epochs=1, batch_size=self.settings.batch_size, beta=CONSTANT_BETA, precision="bfloat16" if self.half else "float32"
        )
        inputs, size = self.examples.inputs, min(count, self.settings.batch_size)
        mode, self.model.training = self.model.training, True
        self.model.set_noise(None, settings.noise_reuse, seed=self.seed)
        outputs = DrawnOutputs(self.model, [inputs[:size], inputs[torch.randperm(count)[:size]]], settings.noise_reuse)
        self._fit = Fit(
            self.model, self.likelihood, self.examples, settings, self.seed, optimizer, schedule, Beta(settings, 1),
            outputs=outputs, watch=self._after_step, holds_priors=True, mode=mode,
        )  # fmt: skip
        self._batches = self._endless_batches()
        self._weigh_blocks()

    def run(self) -> Integers:
        """Encode every block and return the indices, (blocks,); afterwards the posterior means are the coded weights."""
        for prior in self.model.priors.parameters():
            prior.requires_grad_(False)
        torch.manual_seed(self.seed)
        self._begin()
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
        self._fit.end()
        self._settle_statistics()
        return self.indices

    def _rate(self, step: int) -> float:
        low = self.settings.final_lr
        falling = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self._steps))))
        return min(1.0, (step + 1) / 50) * falling

    def _endless_batches(self) -> Iterator[tuple[Inputs, Tensor]]:
        while True:
            yield from self.examples.batches(torch.randperm(len(self.examples)).split(self.settings.batch_size))

    def _train(self, steps: int, bar: Any) -> None:
        self._fit.modes.restore()
        for number in range(steps):
            inputs, targets = next(self._batches)
            if self.settings.augment is not None:
                inputs = augmented(inputs, self.settings.augment)
            try:
                self._fit.step(number, inputs, targets)
            except TrainingError as error:
                raise TrainingError(f"tuning diverged: {error} (--tune lr=0.001)") from error
            bar.update()

    @torch.no_grad()
    def _after_step(self, _step: int, _model: BayesianModel) -> None:
        """Move every multiplier towards the target bits of its block, and restore coded weights."""
        target = self.settings.target_bits or float(self.code.index_bits)
        pressure = ((self._block_bits() - target) / BETA_REACH_BITS).clamp(-1, 1)
        self._beta = (self._beta * (BETA_GAIN * pressure).exp()).clamp(*BETA_RANGE)
        self._weigh_blocks()
        self._hold()

    def _weigh_blocks(self) -> None:
        """Set the KL weights of the optimiser: for each weight, the multiplier of its block."""
        shares = torch.where(self._free, self._beta[self._block_of], 0.0).split(self._sizes)
        self._fit.optimizer.kl_weights = {
            weight.index: share.reshape(weight.posterior.mean.shape)
            for weight, share in zip(self._gaussians, shares, strict=True)
        }

    @property
    def _sizes(self) -> list[int]:
        return [weight.posterior.numel for weight in self._gaussians]

    def _block_bits(self) -> Tensor:
        """Return the KL of every block in bits, (blocks,); zero once coded."""
        each = [kl_each(_gaussian(weight), weight.prior, panels=Panels.fast()).flatten() for weight in self._gaussians]
        bits = torch.where(self._free, nats_to_bits(torch.cat(each)), 0.0)
        return torch.zeros_like(self._beta).index_add(0, self._block_of, bits)

    @torch.no_grad()
    def _choose(self, group: Integers, bar: Any) -> None:
        mean = torch.cat([weight.posterior.mean.flatten() for weight in self._gaussians]).cpu().double().numpy()
        std = torch.cat([_gaussian(weight).std().flatten() for weight in self._gaussians]).cpu().double().numpy()
        for block in group.tolist():
            members = self.code.members(block)
            self.indices[block] = self.code.choose(block, mean[members], std[members], self._scores)
            values = torch.from_numpy(self.code.values(block, int(self.indices[block])))
            places = torch.from_numpy(members).to(self._fixed.device)
            self._fixed[places] = values.to(self._fixed)
            self._free[places] = False
            bar.update()
        self._hold()

    @torch.no_grad()
    def _hold(self) -> None:
        """Set coded weights to their values, with the smallest std."""
        for weight, free, fixed in zip(
            self._gaussians, self._free.split(self._sizes), self._fixed.split(self._sizes), strict=True
        ):
            q, shape = _gaussian(weight), weight.posterior.mean.shape
            chosen, values = ~free.reshape(shape), fixed.reshape(shape)
            q.mean.copy_(torch.where(chosen, values, q.mean))
            q.log_std.masked_fill_(chosen, FIXED_LOG_STD)
            weight.parameter.copy_(torch.where(chosen, values, weight.parameter))
            weight.mark()

    @torch.no_grad()
    def _settle_statistics(self) -> None:
        """Recompute running statistics of trained normalisation layers as averages over the data, with the coded weights."""
        self._fit.modes.restore()
        kind = torch.nn.modules.batchnorm._BatchNorm
        norms = [m for m in self.model.modules() if isinstance(m, kind) and m.track_running_stats and m.training]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch: None means the plain average
        # training averaged them under random draws; the file holds one weight vector
        with self.model.mean():
            for inputs in self.examples.inputs.split(512):
                self.model.outputs(inputs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _gaussian(weight: Weight) -> GaussianPosterior:
    assert isinstance(weight.posterior, GaussianPosterior)
    return weight.posterior
