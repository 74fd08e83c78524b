"""bitsback itself: through ``start``, where every step is the trainer's, and through its optimiser."""

import math
import tempfile
from functools import cache
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.nets import CLASSES
from benchmarks.trainer import Missing, Moments, Task, Trainer
from bitsback.atomic_io import write_tensors
from bitsback.data import Examples
from bitsback.errors import PriorError
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import BayesianModel, bayesianize
from bitsback.training import TrainingSettings, start

MANY_EPOCHS = 1000
"""The settings count in epochs; a training by the clock maps its share of them onto so many."""


class Finite(Examples):
    """Examples that nobody needs to look at, which would take a byte for each of their numbers."""

    def __post_init__(self) -> None:
        pass


@cache
def stand_in(count: int, shape: tuple[int, ...]) -> Examples:
    """So many different inputs in little memory, each a window of one random signal: of these only the number counts."""
    inside = list(accumulate(reversed(shape), mul, initial=1))[-2::-1]
    signal = torch.randn(count + math.prod(shape), generator=torch.Generator().manual_seed(0))
    return Finite(signal.as_strided((count, *shape), (1, *inside)), torch.zeros(count, dtype=torch.long))


def model_of(task: Task, prior: dict[str, Any] | None, posterior: dict[str, Any] | None, estimator: Any) -> BayesianModel:
    """The model of a task: a posterior on all weights but those of the norms."""
    norms = tuple(f"{name}.*" for name, module in task.network.named_modules() if isinstance(module, nn.BatchNorm2d))
    width = posterior or {"kind": "gaussian", "std": task.initial_std, "relative_to": "absolute"}
    prior = prior or {"kind": "gaussian", "scale": task.prior_std}
    return bayesianize(task.network, prior, posterior=width, exclude=norms, estimator=estimator)


class Ours(Trainer):
    """A training of ours.

    Args:
        task: what is trained; its initial std counts only where ``posterior`` says nothing.
        estimator: where the noise is.
        prior: its settings; default: a Gaussian one.
        posterior: settings of the posterior at the start.
        log_std_speed: how many times the rate of the means the log stds learn at.
        optimizer: settings besides the rates.
        settings: of the training.
    """

    def __init__(
        self,
        task: Task,
        estimator: Literal["auto", "weight", "output"],
        prior: dict[str, Any] | None = None,
        posterior: dict[str, Any] | None = None,
        log_std_speed: float = 1.0,
        optimizer: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        for name in settings:
            if name not in TrainingSettings.model_fields:
                raise Missing(f"this bitsback has no training.{name}")
        rates = {"lr": task.lr, "log_std_lr": task.lr * log_std_speed}
        optimizer = {**rates, **(optimizer or {"name": "Adam", "arguments": {"fused": True}})}
        model = model_of(task, prior, posterior, estimator)
        training = TrainingSettings(epochs=MANY_EPOCHS, batch_size=task.batch_size, optimizer=optimizer, **settings)
        examples = stand_in(task.examples, task.shape).to(model.device, model.dtype)
        self.fit = start(model, CategoricalLikelihood(CLASSES), examples, training)
        self.optimizer = self.fit.optimizer
        self.number = 0

    def step(self, x: Tensor, y: Tensor) -> None:
        self.fit.step(self.number, x, y)
        self.number += 1

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError("the trainer takes the whole step")

    def progress(self, done: float) -> None:
        super().progress(done)
        self.number = int(done * MANY_EPOCHS * self.fit.steps_per_epoch)

    def moments(self) -> Moments:
        return {w.name: (w.posterior.mean.detach(), w.posterior.std().detach()) for w in self.fit.model.weights}


class OwnLoop(Trainer):
    """The optimiser of ours in a loop of one's own: weight noise, mean nats."""

    def __init__(self, task: Task, noise_reuse: int = 1) -> None:
        try:
            from bitsback.optim import Adam
        except ImportError as error:
            raise Missing("this bitsback has no optimisers") from error
        self.model = model_of(task, None, None, "weight")
        self.model.set_noise(reuse=noise_reuse)
        self.optimizer = Adam(self.model, lr=task.lr, examples=task.examples)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.model(x), y)

    def moments(self) -> Moments:
        return {w.name: (w.posterior.mean.detach(), w.posterior.std().detach()) for w in self.model.weights}


MIXED = {"scales": [0.05, 0.6], "weights": [0.75, 0.25]}
PRIORS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "laplace": {},
    "student_t": {},
    "cauchy": {},
    "logistic": {},
    "horseshoe": {},
    "scale_mixture": MIXED,
    "adaptive_mixture": {},
    "spike_and_slab": {},
    "group_gaussian": {},
    "checkpoint": {},
    "pyro": {"distribution": "AsymmetricLaplace", "arguments": {"loc": 0.0, "scale": 1.0, "asymmetry": 1.0}, "scale": 0.3},
}
"""Every kind, with what it has to be told."""


class WithPrior(Ours):
    """A training of ours under one kind of prior; the run behind ``checkpoint`` has the network's initial weights for means."""

    def __init__(self, task: Task, kind: str, estimator: Literal["auto", "weight", "output"]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            prior = {"kind": kind, **PRIORS[kind]}
            if kind == "checkpoint":
                means = {f"{name}.mean": p.detach().clone() for name, p in task.network.named_parameters()}
                write_tensors(Path(folder) / "posterior.safetensors", means, {})
                prior["run"] = folder
            try:
                super().__init__(task, estimator, prior)
            except (ModuleNotFoundError, PriorError) as error:
                raise Missing(str(error)) from error
