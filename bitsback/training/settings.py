"""Settings of training, of the final ledger, and of logging."""

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from bitsback.registry import Settings

if TYPE_CHECKING:
    from bitsback.likelihoods import Likelihood

__all__ = [
    "CONSTANT_BETA",
    "AnyObjectiveSettings",
    "AugmentSettings",
    "BetaSettings",
    "BoundSettings",
    "BudgetSettings",
    "EarlyStopSettings",
    "ElboSettings",
    "EngineSettings",
    "LedgerSettings",
    "LoggingSettings",
    "OptimizerSettings",
    "ScheduleSettings",
    "Threads",
    "TrainingSettings",
    "WandbSettings",
]

Threads = Annotated[int, Field(ge=1, le=256)]
"""Number of CPU threads."""


AUTO_STEPS, AUTO_EPOCHS = 4000, 30
"""Least numbers of optimiser steps and epochs of an automatic training. Small data sets have few batches per epoch; a fixed
number of epochs would be too few steps for them.
"""

WARMUP_SHARE, WARMUP_START = 0.3, 1e-3
"""Length (share of the epochs) and initial beta of the warm-up for likelihoods that learn their noise: while the noise is wide,
the KL prunes the network (docs/training.md).
"""


class OptimizerSettings(Settings):
    """An optimiser of torch.optim by name, or IVON (natural gradients, see :class:`bitsback.optim.IVON`)."""

    name: str = Field("Adam", description="a class of torch.optim, or IVON")
    lr: PositiveFloat = Field(
        0.01, description="learning rate of means and of parameters without posterior; default for IVON: 0.3"
    )
    log_std_lr: PositiveFloat | None = Field(None, description="learning rate of log stds; default: lr; for IVON: 0.03")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of the optimiser, for example {betas: [0.9, 0.99]}"
    )

    @model_validator(mode="before")
    @classmethod
    def _natural_units(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("name") == "IVON":
            return {"lr": 0.3, "log_std_lr": 0.03, **given}
        return given


class ScheduleSettings(Settings):
    """A learning-rate schedule of torch.optim.lr_scheduler by name, stepped once per batch."""

    name: str | None = Field("CosineAnnealingLR", description="a class of torch.optim.lr_scheduler; null: constant")
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of the schedule, in steps; T_max, total_steps and total_iters default to all steps",
    )
    warmup_epochs: NonNegativeFloat = Field(0.0, description="epochs over which the rate rises linearly from 1 % of its value")


class BetaSettings(Settings):
    """Weight of the KL in the loss, which rises linearly from ``start`` to 1. The ledger is always taken at 1."""

    start: NonNegativeFloat | Literal["auto"] = Field(
        "auto", description="beta at the first step; auto: 0.001 with a warm-up, else 1"
    )
    warmup_epochs: NonNegativeFloat | Literal["auto"] = Field(
        "auto",
        description="epochs until beta is 1; auto: 30 % of the epochs if the noise of real targets is estimated in training, "
        "or if start is below 1; else 0",
    )

    @field_validator("start")
    @classmethod
    def _at_most_one(cls, start: float | str) -> float | str:
        if isinstance(start, float) and start > 1:
            raise ValueError(f"beta.start must not exceed 1, got {start:g}")
        return start

    @property
    def numbers(self) -> tuple[float, float]:
        """Return start and warm-up epochs; ``auto`` must have been resolved by :meth:`TrainingSettings.settled`."""
        assert self.start != "auto", "settings have to be settled first"
        assert self.warmup_epochs != "auto", "settings have to be settled first"
        return self.start, self.warmup_epochs


CONSTANT_BETA = BetaSettings(start=1.0, warmup_epochs=0.0)
"""Beta 1 from the first step on."""


class BudgetSettings(Settings):
    """A budget that moves linearly from ``start_bits`` to ``end_bits`` over ``epochs``, then stays."""

    start_bits: PositiveFloat = Field(description="net weight bits at the first step")
    end_bits: PositiveFloat = Field(description="net weight bits at the end")
    epochs: PositiveFloat = Field(description="epochs until the budget reaches end_bits")


class ElboSettings(Settings):
    """The description length: data bits plus weight bits (Hinton & van Camp 1993)."""

    kind: Literal["elbo"] = "elbo"


class BoundSettings(Settings):
    """A PAC-Bayes bound on the risk, with truncated cross-entropy, rescaled to [0, 1], in place of the 0-1 loss.

    Perez-Ortiz, Rivasplata, Shawe-Taylor & Szepesvari 2021, "Tighter risk certificates for neural networks", equations 8 to 10.
    """

    kind: Literal["quad", "lambda", "classic"] = Field(
        description="equation of the bound: quad (8), lambda (9) or classic (10)"
    )
    delta: float = Field(0.025, gt=0, lt=1, description="probability that the bound fails")
    p_min: float = Field(
        1e-5, gt=0, lt=0.5, description="data bits of a label are truncated at log2(1 / p_min), which is a loss of 1"
    )


AnyObjectiveSettings = Annotated[ElboSettings | BoundSettings, Field(discriminator="kind")]


class AugmentSettings(Settings):
    """Ranges of random affine maps of images (n, channels, height, width); each image gets its own."""

    shift_pixels: NonNegativeFloat = Field(0.0, description="largest shift along either axis, in pixels")
    rotate_degrees: NonNegativeFloat = Field(0.0, description="largest rotation, in degrees")
    zoom: float = Field(0.0, ge=0, lt=1, description="largest relative change of size, drawn for each axis")
    shear: NonNegativeFloat = Field(0.0, description="largest shear")


class EarlyStopSettings(Settings):
    """Early stopping by the net bits of the training epochs: their mean over the last epochs against as many before.

    Test data are never used. The rule applies only once beta is at 1 (or the budget is met).
    """

    patience_epochs: PositiveInt = Field(20, description="number of epochs that are averaged, and compared with as many before")
    min_improvement_bits: NonNegativeFloat = Field(1.0, description="decrease of the mean, in bits, below which training stops")


class TrainingSettings(Settings):
    """Settings of training. The loss is the total description length, unless ``objective`` is a bound."""

    epochs: PositiveInt | Literal["auto"] = Field(
        "auto", description=f"passes over the training split; auto: enough for {AUTO_STEPS:,} steps, and at least {AUTO_EPOCHS}"
    )
    batch_size: PositiveInt = Field(
        128, description="largest number of examples per step; an epoch is split into batches of equal size"
    )
    draws: PositiveInt = Field(1, description="weight draws per batch, which is split into as many groups")
    antithetic: bool = Field(
        False, description="antithetic sampling: every second draw of a batch is the one before, mirrored at the means"
    )
    fused: bool = Field(
        True,
        description="fuse gradient, update and next draw of each weight in one pass, and store filters with channels last; "
        "false: separate passes, and torch's default layout",
    )
    noise_reuse: PositiveInt = Field(
        8,
        description="number of draws that reuse a random number, each for another weight; 1: no "
        "reuse, as always in float64 and on a GPU",
    )
    objective: AnyObjectiveSettings = Field(ElboSettings(), description="loss in training; the ledger does not depend on it")
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    beta: BetaSettings = BetaSettings()
    budget_bits: PositiveFloat | BudgetSettings | None = Field(
        None, description="target of the net weight bits (within 1 %), fixed or moving; beta is controlled to reach it"
    )
    augment: AugmentSettings | None = Field(
        None, description="augmentation of the images in every batch; the ledger is taken on unchanged images"
    )
    gradient_clip: PositiveFloat | None = Field(
        None, description="largest norm of the gradient of the loss, KL included, in bits per example"
    )
    early_stop: EarlyStopSettings | None = Field(None, description="early stopping by the net bits; default: none")
    checkpoint_seconds: NonNegativeFloat = Field(
        30.0, description="shortest time between checkpoints, in seconds; 0: after every epoch"
    )
    threads: Threads | Literal["auto"] = Field("auto", description="CPU threads; auto: one for less than a million weights")
    device: str = Field("cpu", description="cpu, cuda, cuda:1, mps, or auto: an accelerator if available")
    graph: Literal["auto", "never"] = Field(
        "auto", description="auto: capture whole steps as CUDA graphs, one for each shape of a batch, where that is possible"
    )
    log_every: PositiveInt | None = Field(
        None,
        description="steps between reads of the loss from a GPU, where one that is not finite ends the training; null: one "
        "read an epoch. On a CPU the loss of every step is read",
    )
    precision: Literal["float32", "float64", "bfloat16"] = Field(
        "float32",
        description="bfloat16: autocast of the forward pass; parameters, KL and ledger remain in float32. Messages and the "
        "prequential code are always trained in float64, so that a receiver can repeat it",
    )

    @model_validator(mode="after")
    def _check(self) -> "TrainingSettings":
        if self.budget_bits is not None and self.beta not in (BetaSettings(), CONSTANT_BETA):
            raise ValueError("budget_bits adjusts beta by itself; leave training.beta out")
        if self.optimizer.name == "IVON" and isinstance(self.objective, BoundSettings):
            raise ValueError(f"IVON needs bits for a loss, and objective {self.objective.kind} is none; use Adam")
        if self.budget_bits is not None and isinstance(self.objective, BoundSettings):
            raise ValueError(f"objective {self.objective.kind} weighs weight bits by itself; leave training.budget_bits out")
        if isinstance(self.beta.start, float) and self.beta.start < 1 and not self.beta.warmup_epochs:
            raise ValueError("beta.start has no effect without beta.warmup_epochs; set how long beta takes to rise to 1")
        epochs = math.inf if self.epochs == "auto" else self.epochs
        if self.schedule.warmup_epochs > epochs:
            raise ValueError(f"schedule.warmup_epochs {self.schedule.warmup_epochs:g} must not exceed epochs {self.epochs}")
        if self.draws > self.batch_size:
            raise ValueError(f"draws {self.draws} must not exceed batch_size {self.batch_size}")
        if self.antithetic and self.draws % 2:
            raise ValueError(f"antithetic draws come in pairs, and draws is {self.draws}; set training.draws to 2 or 4")
        if isinstance(self.beta.warmup_epochs, float) and self.beta.warmup_epochs > epochs:
            raise ValueError(f"beta.warmup_epochs {self.beta.warmup_epochs:g} must not exceed epochs {self.epochs}")
        return self

    @property
    def passes(self) -> int:
        """Return the number of epochs; ``auto`` must have been resolved by :meth:`settled`."""
        assert self.epochs != "auto", "settings have to be settled first"
        return self.epochs

    def settled(self, examples: int, likelihood: "Likelihood") -> Self:
        """Resolve every ``auto`` that depends on the data or the likelihood.

        Args:
            examples: number of training examples.
            likelihood: of the targets.

        Returns:
            settings with numbers for epochs and beta.

        >>> from bitsback.likelihoods import CategoricalLikelihood
        >>> TrainingSettings().settled(150, CategoricalLikelihood(3)).epochs
        2000
        """
        if self.epochs != "auto":
            epochs = self.epochs
        else:
            epochs = max(AUTO_EPOCHS, -(-AUTO_STEPS // -(-examples // self.batch_size)), math.ceil(self.schedule.warmup_epochs))
        start, warmup = self.beta.start, self.beta.warmup_epochs
        if warmup == "auto":
            steered = self.budget_bits is not None or isinstance(self.objective, BoundSettings)
            rises = likelihood.finds_noise and not steered if start == "auto" else start < 1
            warmup = WARMUP_SHARE * epochs if rises else 0.0
        if start == "auto":
            start = WARMUP_START if warmup else 1.0
        return self.model_copy(update={"epochs": epochs, "beta": BetaSettings(start=start, warmup_epochs=warmup)})


class EngineSettings(Settings):
    """Joint training of one model by several processes that ``torchrun`` starts; a single process is not affected."""

    strategy: Literal["none", "ddp", "fsdp"] = Field(
        "none",
        description="ddp: every process holds all weights; fsdp: every process holds a shard of them (FSDP2), with fresh noise "
        "in every draw and no local reparameterisation; none: one process only",
    )
    noise: Literal["shared", "per_rank"] = Field(
        "shared",
        description="shared: all processes hold the same draw, and take the step of one process on the whole batch; per_rank: "
        "each holds a draw of its own, which makes gradients less noisy (ddp only)",
    )

    @model_validator(mode="after")
    def _check(self) -> "EngineSettings":
        if self.strategy == "fsdp" and self.noise == "per_rank":
            raise ValueError("noise per_rank needs whole weights in every process; set engine.noise=shared, or strategy=ddp")
        return self


class LedgerSettings(Settings):
    """Settings of the final ledger."""

    samples: PositiveInt = Field(50, description="whole-network weight draws for the data bits and their standard error")
    grid_step: PositiveFloat | None = Field(
        None, description="grid step of the weights in gross bits and refund; default: a power of two below the smallest std"
    )


class WandbSettings(Settings):
    """A run at Weights & Biases; ``WANDB_MODE=offline`` and its other environment variables have their usual effect."""

    project: str = Field("bitsback", min_length=1, description="project of the run")
    entity: str | None = Field(None, description="user or team; default: your own account")
    name: str | None = Field(None, description="name of the run; default: name of the run directory")
    group: str | None = Field(None, description="group of runs that are shown together")
    tags: tuple[str, ...] = Field((), description="tags of the run")


class LoggingSettings(Settings):
    """Logs and report of a training."""

    tensorboard: bool = Field(False, description="write TensorBoard events under RUN/tensorboard (extra: tensorboard)")
    wandb: bool | WandbSettings = Field(
        False, description="log to Weights & Biases (extra: wandb): true, or a mapping such as {project: digits}"
    )
    histograms_every: NonNegativeInt = Field(
        10, description="epochs between histograms of the weights, for TensorBoard and W&B, also written at the end; 0: none"
    )
    test_every: PositiveInt = Field(5, description="epochs between evaluations of the test error, which is only reported")
    report: bool = Field(True, description="write RUN/report.html at the end of training")
