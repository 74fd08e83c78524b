"""How a network is trained, how its ledger is taken, and what is logged."""

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
    "LedgerSettings",
    "LoggingSettings",
    "OptimizerSettings",
    "ScheduleSettings",
    "Threads",
    "TrainingSettings",
    "WandbSettings",
]

Threads = Annotated[int, Field(ge=1, le=256)]


AUTO_STEPS, AUTO_EPOCHS = 4000, 30
"""A table of a hundred rows is one batch: a hundred passes would be a hundred steps, and leave the prior where it started."""

WARMUP_SHARE, WARMUP_START = 0.3, 1e-3
"""KL warm-up of likelihoods that learn their noise: while it is wide, the KL prunes the network (docs/training.md)."""


class OptimizerSettings(Settings):
    """Any optimiser of torch.optim by name, or IVON: natural gradients, see :class:`bitsback.optim.IVON`."""

    name: str = Field("Adam", description="a class of torch.optim, or IVON")
    lr: PositiveFloat = Field(0.01, description="learning rate of the means and of everything else; default of IVON: 0.3")
    log_std_lr: PositiveFloat | None = Field(None, description="learning rate of log std; default: as lr; of IVON: 0.03")
    arguments: dict[str, Any] = Field(default_factory=dict, description="further arguments, for example {betas: [0.9, 0.99]}")

    @model_validator(mode="before")
    @classmethod
    def _natural_units(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("name") == "IVON":
            return {"lr": 0.3, "log_std_lr": 0.03, **given}
        return given


class ScheduleSettings(Settings):
    """Any learning-rate schedule of torch.optim.lr_scheduler by name, stepped once per batch."""

    name: str | None = Field("CosineAnnealingLR", description="a class of torch.optim.lr_scheduler, or null: constant")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="its arguments, in steps; T_max, total_steps and total_iters default to all steps"
    )
    warmup_epochs: NonNegativeFloat = Field(0.0, description="epochs over which the rate rises linearly from 1 % of itself")


class BetaSettings(Settings):
    """Weight of the KL in the loss: rises linearly from ``start`` to 1. The ledger is always taken at 1."""

    start: NonNegativeFloat | Literal["auto"] = Field(
        "auto", description="beta at the first step; auto: 0.001 with a warm-up, else 1"
    )
    warmup_epochs: NonNegativeFloat | Literal["auto"] = Field(
        "auto",
        description="epochs until beta is 1; auto: 3 of 10 where the noise of real targets is found in training, or where "
        "start is given; else 0",
    )

    @field_validator("start")
    @classmethod
    def _at_most_one(cls, start: float | str) -> float | str:
        if isinstance(start, float) and start > 1:
            raise ValueError(f"beta.start must not exceed 1, got {start:g}")
        return start

    @property
    def numbers(self) -> tuple[float, float]:
        """Start and warm-up epochs; :meth:`TrainingSettings.settled` makes numbers of ``auto``."""
        assert self.start != "auto", "settings have to be settled first"
        assert self.warmup_epochs != "auto", "settings have to be settled first"
        return self.start, self.warmup_epochs


CONSTANT_BETA = BetaSettings(start=1.0, warmup_epochs=0.0)


class BudgetSettings(Settings):
    """A budget that moves linearly from ``start_bits`` to ``end_bits`` over ``epochs``, then stays."""

    start_bits: PositiveFloat = Field(description="net weight bits at the first step")
    end_bits: PositiveFloat = Field(description="net weight bits at the end")
    epochs: PositiveFloat = Field(description="epochs until the budget is at its end")


class ElboSettings(Settings):
    """The description length: data bits and weight bits (Hinton & van Camp 1993)."""

    kind: Literal["elbo"] = "elbo"


class BoundSettings(Settings):
    """A PAC-Bayes bound on the risk, with cross-entropy cut off and scaled to [0, 1] in place of the 0-1 loss.

    Perez-Ortiz, Rivasplata, Shawe-Taylor & Szepesvari 2021, "Tighter risk certificates for neural networks", equations 8 to 10.
    """

    kind: Literal["quad", "lambda", "classic"] = Field(description="which bound")
    delta: float = Field(0.025, gt=0, lt=1, description="probability that the bound fails")
    p_min: float = Field(1e-5, gt=0, lt=0.5, description="no label costs more than log2(1 / p_min); this cost is a loss of 1")


AnyObjectiveSettings = Annotated[ElboSettings | BoundSettings, Field(discriminator="kind")]


class AugmentSettings(Settings):
    """How far images (n, channels, height, width) are changed at random, each in its own way."""

    shift_pixels: NonNegativeFloat = Field(0.0, description="largest shift along either axis")
    rotate_degrees: NonNegativeFloat = Field(0.0, description="largest rotation")
    zoom: float = Field(0.0, ge=0, lt=1, description="largest relative change of size, each axis by itself")
    shear: NonNegativeFloat = Field(0.0, description="largest shear")


class EarlyStopSettings(Settings):
    """Stop when the net bits of the training epochs no longer fall: their mean over the last epochs against as many before.

    Test data are never looked at. Nothing is watched before beta has arrived at 1 (or the budget is met).
    """

    patience_epochs: PositiveInt = Field(20, description="how many epochs are averaged, and compared with as many before")
    min_improvement_bits: NonNegativeFloat = Field(1.0, description="by how much the mean has to fall")


class TrainingSettings(Settings):
    """The total description length is the loss, unless ``objective`` says otherwise; the rest says how it is lowered."""

    epochs: PositiveInt | Literal["auto"] = Field(
        "auto", description=f"passes over the training split; auto: enough for {AUTO_STEPS:,} steps, and at least {AUTO_EPOCHS}"
    )
    batch_size: PositiveInt = Field(128, description="examples per step; the epoch is cut into equal batches of at most this")
    draws: PositiveInt = Field(1, description="weight draws per batch: the batch is cut into as many groups")
    antithetic: bool = Field(False, description="every second draw of a batch is the mirror image of the one before")
    fused: bool = Field(
        True,
        description="take each weight through gradient, step and next draw in one pass, and lay filters out with channels "
        "last; false: one thing after the other, filters as torch has them",
    )
    noise_reuse: PositiveInt = Field(
        8, description="draws that share a random number, each for another weight; 1, and in float64 always: all are new"
    )
    objective: AnyObjectiveSettings = Field(ElboSettings(), description="what is lowered; the ledger is always the same")
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    beta: BetaSettings = BetaSettings()
    budget_bits: PositiveFloat | BudgetSettings | None = Field(
        None, description="net weight bits to end at (within 1 %), fixed or moving; beta is adjusted to get there"
    )
    augment: AugmentSettings | None = Field(
        None, description="random changes of the images in every batch; the ledger is taken on the images as they are"
    )
    gradient_clip: PositiveFloat | None = Field(
        None, description="largest norm of the gradient, the KL's part included, in bits per example"
    )
    early_stop: EarlyStopSettings | None = None
    checkpoint_seconds: NonNegativeFloat = Field(30.0, description="least time between checkpoints; 0: after every epoch")
    threads: Threads | Literal["auto"] = Field("auto", description="CPU threads; auto: one for under a million weights")
    device: str = Field("cpu", description="cpu, cuda, cuda:1, mps, or auto: an accelerator where there is one")
    precision: Literal["float32", "float64", "bfloat16"] = Field(
        "float32",
        description="bfloat16: autocast of the forward pass; parameters, KL and ledger stay in float32. Messages and the "
        "prequential code are always trained in float64, which a receiver repeats",
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
        """Epochs as a number; :meth:`settled` makes one of ``auto``."""
        assert self.epochs != "auto", "settings have to be settled first"
        return self.epochs

    def settled(self, examples: int, likelihood: "Likelihood") -> Self:
        """The settings with a number in place of every ``auto`` that depends on the data or the likelihood.

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


class LedgerSettings(Settings):
    """How the final ledger is taken."""

    samples: PositiveInt = Field(50, description="whole-network draws behind the data bits and their standard error")
    grid_step: PositiveFloat | None = Field(
        None, description="grid of the weights in gross bits and refund; default: a power of two below the smallest std"
    )


class WandbSettings(Settings):
    """A run at Weights & Biases; ``WANDB_MODE=offline`` and its other variables work as they do everywhere."""

    project: str = Field("bitsback", min_length=1, description="project that the run is filed under")
    entity: str | None = Field(None, description="user or team; default: your own")
    name: str | None = Field(None, description="name of the run; default: the run directory's")
    group: str | None = Field(None, description="runs of one group are shown together")
    tags: tuple[str, ...] = Field((), description="labels of the run")


class LoggingSettings(Settings):
    """What is written while training."""

    tensorboard: bool = Field(False, description="write TensorBoard events under RUN/tensorboard (extra: tensorboard)")
    wandb: bool | WandbSettings = Field(
        False, description="log to Weights & Biases (extra: wandb): true, or a mapping such as {project: digits}"
    )
    histograms_every: NonNegativeInt = Field(
        10, description="epochs between histograms of the weights, for TensorBoard and W&B; one more at the end; 0: none"
    )
    test_every: PositiveInt = Field(5, description="epochs between looks at the test error, which is only shown")
    report: bool = Field(True, description="write RUN/report.html when the training has finished")
