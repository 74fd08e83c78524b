"""Training of one model by several processes: their devices, shards of the network, and what is refused."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bitsback.data import Examples
from bitsback.distributed import ALONE, Ranks
from bitsback.errors import ConfigError
from bitsback.model import BayesianModel
from bitsback.training.settings import EngineSettings, LoggingSettings, TrainingSettings

__all__ = ["check_engine", "dividing", "own_device", "shard", "units"]

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules whose parts are sharded one by one."""


def check_engine(
    engine: EngineSettings, ranks: Ranks, training: TrainingSettings, logging: LoggingSettings, data: Examples
) -> None:
    """Check that several processes can train together with these settings; a single process always can.

    Args:
        engine: strategy and noise.
        ranks: the processes.
        training: settings of the training.
        logging: its logs.
        data: training examples.

    Raises:
        ConfigError: if they cannot, or if the processes have different settings or data.
    """
    if ranks.count == 1:
        return
    if training.precision == "float64":
        raise ConfigError(
            f"training.precision float64 is for trainings that a receiver repeats, which need one process; this is one of "
            f"{ranks.count}: set training.precision=float32, or start bitsback without torchrun"
        )
    steps = -(-len(data) // training.batch_size)
    if len(data) // steps < ranks.count * training.draws:
        raise ConfigError(
            f"a batch of {len(data) // steps} examples gives no example to some of {ranks.count} processes and "
            f"{training.draws} draws; set training.batch_size to {ranks.count * training.draws} or more, or start fewer"
        )
    if engine.strategy == "fsdp" and logging.histograms_every and (logging.tensorboard or logging.wandb):
        raise ConfigError("histograms of the weights need whole weights in one process; set logging.histograms_every=0")
    said = "\n".join(str(settings.model_dump()) for settings in (training, engine))
    targets = data.targets.double().nan_to_num()
    said += f"\n{len(data)} examples, targets {tuple(targets.shape)} of sum {float(targets.sum()):.17g}"
    ranks.check_alike("the configuration", said, "start all with the same configuration and data")


@contextmanager
def dividing(model: BayesianModel) -> Iterator[None]:
    """Let the model's work belong to one process again afterwards, unless each holds shards alone."""
    try:
        yield
    finally:
        if not model.is_sharded:
            model.ranks = ALONE


def own_device(device: torch.device, ranks: Ranks) -> torch.device:
    """Return the device of this process: of several, each takes the accelerator of its local number.

    Args:
        device: of the settings.
        ranks: the processes.

    Returns:
        the device.
    """
    if ranks.count == 1 or device.type == "cpu" or device.index is not None:
        return device
    own = torch.device(device.type, int(os.environ.get("LOCAL_RANK", ranks.rank)))
    torch.accelerator.set_device_index(own)
    return own


def units(network: nn.Module) -> list[nn.Module]:
    """Return the modules that are gathered one at a time: the parts of containers, and all other children.

    >>> [type(module).__name__ for module in units(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2))))]
    ['Linear', 'Linear']
    """
    found: list[nn.Module] = []
    for child in network.children():
        if isinstance(child, CONTAINERS):
            found += units(child)
        elif any(True for _ in child.parameters()):
            found.append(child)
    return found


def shard(model: BayesianModel, ranks: Ranks) -> None:
    """Shard a model's network over the processes with FSDP2.

    Args:
        model: the model; the optimiser made next takes over the shards.
        ranks: the processes.

    Raises:
        ConfigError: for explicit local reparameterisation, and for a network that FSDP2 refuses.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    asked = next((layer for layer in model.output_layers if layer.asked), None)
    if asked is not None:
        raise ConfigError(
            f"engine.strategy fsdp draws weights, and bayesian.estimator asks for outputs of {type(asked.module).__name__}"
            "; set bayesian.estimator=weight, or engine.strategy=ddp"
        )
    model.lay_out(channels_last=False)
    model.output_layers = []
    mesh = init_device_mesh(model.device.type, (ranks.count,))
    is_tied = any(len(weight.refs) > 1 for weight in model.weights)
    try:
        for module in units(model.network) if not is_tied else ():  # tied weights have to lie in one group
            fully_shard(module, mesh=mesh)
        fully_shard(model.network, mesh=mesh)
    except (NotImplementedError, ValueError) as error:
        raise ConfigError(f"engine.strategy fsdp: {str(error).splitlines()[0]}; set engine.strategy=ddp") from error
