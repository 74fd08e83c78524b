"""Trainings as configurations describe them."""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.trainer import Trainer
from bitsback.config import Experiment, load_config
from bitsback.training import start


class Configured(Trainer):
    """A training as a configuration describes it; ``plain``: its network without posterior, under default Adam."""

    def __init__(self, config: str, overrides: tuple[str, ...] = (), plain: bool = False) -> None:
        torch.manual_seed(0)
        experiment = Experiment.build(load_config(Path(config), list(overrides)))
        self.likelihood, self.plain, self.number = experiment.likelihood, plain, 0
        if plain:
            self.network = experiment.model.network
            self.likelihood.fit(experiment.dataset.train.targets)
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=experiment.config.training.optimizer.lr)
        else:
            data = experiment.dataset.train
            self.fit = start(experiment.model, self.likelihood, data, experiment.config.training)

    def step(self, x: Tensor, y: Tensor) -> None:
        if self.plain:
            super().step(x, y)
        else:
            self.fit.step(self.number, x, y)
            self.number += 1

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.likelihood.bits(self.network(x), y).mean()


def configured_batches(config: str, overrides: tuple[str, ...] = ()) -> list[tuple[Tensor, Tensor]]:
    """The batches of an epoch, in the order of the file."""
    settings = load_config(Path(config), list(overrides))
    data = settings.data.load().train
    count = -(-len(data) // settings.training.batch_size)
    return list(zip(data.inputs.tensor_split(count), data.targets.tensor_split(count), strict=True))
