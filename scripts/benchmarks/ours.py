"""bitsback itself, through ``start``: every step is the trainer's."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.nets import CLASSES
from benchmarks.trainer import Missing, Moments, Task, Trainer
from bitsback.data import Examples
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import bayesianize
from bitsback.training import TrainingSettings, start

MANY_EPOCHS = 1000
"""The settings count in epochs; a training by the clock maps its share of them onto so many."""


class Ours(Trainer):
    """A training of ours.

    Args:
        task: what is trained; its initial std counts only where ``posterior`` says nothing.
        estimator: where the noise is.
        posterior: settings of the posterior at the start.
        log_std_speed: how many times the rate of the means the log stds learn at.
        optimizer: settings besides the rates.
        settings: of the training.
    """

    def __init__(
        self,
        task: Task,
        estimator: Literal["auto", "weight", "output"],
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
        norms = tuple(f"{name}.*" for name, module in task.network.named_modules() if isinstance(module, nn.BatchNorm2d))
        width = posterior or {"kind": "gaussian", "std": task.initial_std, "relative_to": "absolute"}
        prior = {"kind": "gaussian", "scale": task.prior_std}
        model = bayesianize(task.network, prior, posterior=width, exclude=norms, estimator=estimator)
        length_only = Examples(torch.zeros(task.examples, 1), torch.zeros(task.examples, dtype=torch.long))
        training = TrainingSettings(epochs=MANY_EPOCHS, batch_size=task.batch_size, optimizer=optimizer, **settings)
        self.fit = start(model, CategoricalLikelihood(CLASSES), length_only, training)
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
