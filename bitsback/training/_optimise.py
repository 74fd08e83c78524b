"""Make optimisers and learning-rate schedules by their torch names."""

import inspect
import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from bitsback.errors import ConfigError, LayerError, near_miss
from bitsback.model import BayesianModel
from bitsback.optim import IVON, Adam, PosteriorOptimizer, Variational
from bitsback.optim.variational import OPTIONS
from bitsback.training.settings import OptimizerSettings, ScheduleSettings
from bitsback.units import bits_to_nats

__all__ = ["make_optimizer", "make_schedule"]

REFUSALS = (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AttributeError)
"""Exceptions that torch raises for unsuitable arguments."""

HOW = ("fused", "foreach")
"""Arguments of torch's Adam that choose an implementation of the same step; they have no effect here."""


def make_optimizer(
    model: BayesianModel, also: list[nn.Module], settings: OptimizerSettings, examples: int, **options: Any
) -> PosteriorOptimizer:
    """Make the optimiser over all trainable parameters, with log stds in a group of their own; its loss is in bits.

    Args:
        model: whose posteriors are trained.
        also: other modules whose parameters are trained.
        settings: name, learning rates and arguments.
        examples: number of training examples.
        options: as :class:`bitsback.optim.PosteriorOptimizer` takes them.

    Returns:
        the optimiser.

    Raises:
        ConfigError: for an unknown name, or arguments that the optimiser refuses.
    """
    known = {name for name, kind in vars(torch.optim).items() if inspect.isclass(kind) and issubclass(kind, Optimizer)}
    known = known - {"Optimizer", "LBFGS", "SparseAdam"} | {IVON.__name__}
    if settings.name not in known:
        hint = near_miss(settings.name, known)
        raise ConfigError(f"training.optimizer.name: '{settings.name}'{hint} is not one of {', '.join(sorted(known))}")
    others = [p for module in also for p in module.parameters() if p.requires_grad]
    arguments = {"log_std_lr": settings.log_std_lr or settings.lr, "examples": examples, "also": others, **options}
    own = dict(settings.arguments)
    for name in sorted(own.keys() & OPTIONS):  # set by the loop, and not arguments of torch
        raise ConfigError(f"training.optimizer: {settings.name} refuses its arguments: it has no '{name}'")
    optimizer: PosteriorOptimizer
    try:
        if settings.name == IVON.__name__:
            optimizer = IVON(model, settings.lr, **arguments, **own)
        elif settings.name == "Adam" and own.keys() <= {"betas", "eps", *HOW}:
            own = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items() if name not in HOW}
            optimizer = Adam(model, settings.lr, **arguments, **own)
        else:
            optimizer = Variational(model, getattr(torch.optim, settings.name), settings.lr, **arguments, **own)
    except (*REFUSALS, LayerError) as error:
        if isinstance(error, LayerError) and str(error).startswith("nothing can be trained"):
            raise ConfigError(str(error)) from error
        raise ConfigError(f"training.optimizer: {settings.name} refuses its arguments: {error}") from error
    optimizer.nats_per_unit = bits_to_nats(1.0)
    return optimizer


def make_schedule(optimizer: Optimizer, settings: ScheduleSettings, epochs: int, steps_per_epoch: int) -> LRScheduler | None:
    """Make the learning-rate schedule, stepped once per batch, after a linear warm-up.

    Args:
        optimizer: whose learning rates are scheduled.
        settings: name, arguments and warm-up.
        epochs: length of the training.
        steps_per_epoch: batches per epoch.

    Returns:
        the schedule; None for constant rates.

    Raises:
        ConfigError: for an unknown name, or arguments that the schedule refuses.
    """
    import torch.optim.lr_scheduler as library

    warmup = math.ceil(settings.warmup_epochs * steps_per_epoch)
    steps = max(1, epochs * steps_per_epoch - warmup)
    main = None
    if settings.name is not None:
        known = {name for name, kind in vars(library).items() if inspect.isclass(kind) and issubclass(kind, LRScheduler)}
        known -= {"LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler", ReduceLROnPlateau.__name__}
        known = {name for name in known - {"SWALR"} if not name.startswith("_")}
        if settings.name not in known:
            hint = near_miss(settings.name, known)
            raise ConfigError(f"training.schedule.name: '{settings.name}'{hint} is not one of {', '.join(sorted(known))}")
        kind = getattr(library, settings.name)
        wanted = inspect.signature(kind).parameters
        lengths: dict[str, Any] = {name: steps for name in ("T_max", "total_steps", "total_iters") if name in wanted}
        if "max_lr" in wanted:
            lengths["max_lr"] = [group["lr"] for group in optimizer.param_groups]
        try:
            arguments = {**lengths, **settings.arguments}
            _try_out(kind, arguments, len(optimizer.param_groups))
            main = kind(optimizer, **arguments)
        except REFUSALS as error:
            raise ConfigError(f"training.schedule: {settings.name} refuses its arguments: {error}") from error
    if not warmup:
        return main
    rise = LinearLR(optimizer, start_factor=0.01, total_iters=warmup)
    return SequentialLR(optimizer, [rise, main], milestones=[warmup]) if main else rise


def _try_out(kind: type[LRScheduler], arguments: dict[str, Any], groups: int) -> None:
    """Step the schedule once on a temporary optimiser, so that invalid arguments fail before training."""
    trial = torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(groups)], lr=1.0, momentum=0.9)
    schedule = kind(trial, **arguments)
    trial.step()
    schedule.step()
