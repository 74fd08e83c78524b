"""Training of one model by several processes: their devices, shards of the network, and what is refused."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bitsback.data import Dataset
from bitsback.distributed import ALONE, Ranks
from bitsback.errors import ConfigError
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel
from bitsback.training.settings import EngineSettings, LoggingSettings, TrainingSettings

__all__ = ["check_engine", "dividing", "own_device", "shard", "units"]

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules whose parts are sharded one by one."""


def check_engine(
    engine: EngineSettings,
    ranks: Ranks,
    training: TrainingSettings,
    logging: LoggingSettings,
    dataset: Dataset,
    likelihood: Likelihood,
    others: Mapping[str, Any],
) -> None:
    """Check that several processes can train together with these settings; a single process always can.

    Args:
        engine: strategy and noise.
        ranks: the processes.
        training: settings of the training.
        logging: its logs.
        dataset: training and test examples.
        likelihood: of the targets.
        others: further settings that all processes must share, by name.

    Raises:
        ConfigError: if they cannot, or if the processes have different settings or data.
    """
    if ranks.count == 1:
        if engine.strategy != "none":
            warnings.warn(
                f"engine.strategy {engine.strategy} trains in a single process here: start several with torchrun "
                "--nproc-per-node=2 -m bitsback train ...",
                stacklevel=2,
            )
        return
    if training.precision == "float64":
        raise ConfigError(
            f"training.precision float64 is for trainings that a receiver repeats, which need one process; this is one of "
            f"{ranks.count}: set training.precision=float32, or start bitsback without torchrun"
        )
    data = dataset.train
    steps = -(-len(data) // training.batch_size)
    if len(data) // steps < ranks.count * training.draws:
        raise ConfigError(
            f"a batch of {len(data) // steps} examples gives no example to some of {ranks.count} processes and "
            f"{training.draws} draws; set training.batch_size to {ranks.count * training.draws} or more, or start fewer"
        )
    if engine.strategy == "fsdp" and logging.histograms_every and (logging.tensorboard or logging.wandb):
        raise ConfigError("histograms of the weights need whole weights in one process; set logging.histograms_every=0")
    if training.draws > 1 and not data.has_random_access:
        raise ConfigError(
            f"training.draws={training.draws} gives each of {ranks.count} processes rows of several parts of a batch, "
            "and the data are read in their order alone; set training.draws=1, or give data that can be read in any order"
        )
    said = [str(settings.model_dump()) for settings in (training, engine)]
    said += [f"{name}: {value}" for name, value in {**others, "test_every": logging.test_every}.items()]
    for name, examples in (("training", data), ("test", dataset.test)):
        targets = torch.zeros(0) if examples is None else examples.targets.double().nan_to_num()
        said.append(f"{len(targets)} {name} examples, targets {tuple(targets.shape)} of sum {float(targets.sum()):.17g}")
    numbers = [*likelihood.named_parameters(), *likelihood.named_buffers()]
    said.append(f"likelihood {likelihood.kind} {[(name, tuple(tensor.shape)) for name, tensor in numbers]}")
    ranks.check_alike("the configuration", "\n".join(said), "start all with the same configuration and data")


@contextmanager
def dividing(model: BayesianModel) -> Iterator[None]:
    """Let the model's work belong to one process again afterwards, unless each holds shards alone."""
    try:
        yield
    finally:
        if not model.is_sharded:
            model.ranks = ALONE


def own_device(name: str, ranks: Ranks) -> str:
    """Return the device setting of this process: of several, each takes the accelerator of its local number.

    Args:
        name: of the settings: a device of torch, or ``auto``.
        ranks: the processes.

    Returns:
        name of a device, or ``auto``.

    Raises:
        ConfigError: for a device with a number, which all would share, and for more processes than accelerators.
    """
    if ranks.count == 1:
        return name
    kind, _, index = name.partition(":")
    if index and kind != "cpu":
        raise ConfigError(
            f"training.device: '{name}' is one device, and each of {ranks.count} processes needs its own; set "
            f"training.device={kind}, which takes that of each process's local number"
        )
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or kind not in ("auto", accelerator.type):
        return name
    own, count = int(os.environ.get("LOCAL_RANK", ranks.rank)), torch.accelerator.device_count()
    if own >= count:
        raise ConfigError(
            f"training.device: this is process {own + 1} of a machine with {count} {accelerator.type} devices, and each "
            f"needs its own; start at most {count} processes there, or set training.device=cpu"
        )
    torch.accelerator.set_device_index(own)
    return f"{accelerator.type}:{own}"


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
        ConfigError: for explicit local reparameterisation, for a network that FSDP2 refuses, and for one without posteriors.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not model.weights:
        raise ConfigError("engine.strategy fsdp divides posteriors, and no weight has one; set engine.strategy=ddp")
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
