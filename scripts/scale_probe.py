"""One measurement of bench_scale.py, in a process of its own so that its peak of memory is its own; prints JSON.

python scripts/scale_probe.py weights SIZE | examples SIZE | resnet18 ours|deterministic [DEVICE]
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from benchmarks.trainer import wait
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bitsback.config import Config, Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.config.network import SequentialSettings
from bitsback.data import Dataset, Examples
from bitsback.formats.model_file.write import pack_experiment
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import bayesianize, take_ledger
from bitsback.training import TrainingSettings, start

DEVICE = torch.device(sys.argv[3] if __name__ == "__main__" and len(sys.argv) > 3 else "cpu")
INPUTS, CLASSES, BATCH = 64, 10, 32
LEDGER_EXAMPLES = 1000
EXAMPLES_WIDTH, EXAMPLES_BATCH = 100, 256
MIN_SECONDS, MIN_STEPS, MAX_STEPS = 0.5, 3, 200
RESNET_BATCH = 8
WARM_WIDTH = 8


def peak_bytes() -> int:
    """The most memory that this process has held (ru_maxrss would begin with its parent's); on a GPU, that of its tensors."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def seconds(action: Callable[[], object]) -> float:
    """Processor time of an action: there is one thread, and other processes of the machine do not count; wall time on a GPU."""
    clock = time.process_time if DEVICE.type == "cpu" else time.perf_counter
    wait(DEVICE)
    began = clock()
    action()
    wait(DEVICE)
    return clock() - began


def examples(count: int) -> Examples:
    """Random inputs and labels."""
    torch.manual_seed(0)
    return Examples(torch.randn(count, INPUTS), torch.randint(CLASSES, (count,))).to(DEVICE, torch.float32)


def dense_experiment(width: int, data: Examples) -> Experiment:
    """INPUTS - width - width - CLASSES, as `bitsback train` would build it."""
    layers = ({"Linear": {"out_features": width}}, "ReLU", {"Linear": {"out_features": width}}, "ReLU", "Linear")
    dataset = Dataset("in memory", data, None, CLASSES, in_memory=True)
    experiment = Experiment.build(Config(network=SequentialSettings(layers=layers)), dataset=dataset)
    experiment.model.to(DEVICE)
    return experiment


def width_for(weights: int) -> int:
    """The width with about so many weights: width^2 + (INPUTS + CLASSES + 2) * width."""
    linear = INPUTS + CLASSES + 2
    return max(1, round((-linear + (linear**2 + 4 * weights) ** 0.5) / 2))


def steps_of(step: Callable[[int], object]) -> list[float]:
    """Seconds of several steps, after two that are not counted."""
    for number in range(2):
        step(number)
    found: list[float] = []
    while len(found) < MIN_STEPS or (sum(found) < MIN_SECONDS and len(found) < MAX_STEPS):
        found.append(seconds(lambda: step(2 + len(found))))
    return found


def step_seconds(width: int, data: Examples) -> float:
    """The trainer's step on one batch."""
    experiment = dense_experiment(width, data)
    fit = start(experiment.model, experiment.likelihood, data, TrainingSettings(batch_size=BATCH))
    x, y = data.inputs[:BATCH], data.targets[:BATCH]
    return median(steps_of(lambda number: fit.step(number, x, y)))


def growth_with_weights(weights: int) -> dict[str, float]:
    """A step, the ledger, and the quantised file of a dense network.

    The last two are those of the untrained network with fitted priors: it has the same bits a weight at every size.
    """
    data, width = examples(LEDGER_EXAMPLES), width_for(weights)
    step_seconds(WARM_WIDTH, data)  # libraries are there from now on
    before, found = peak_bytes(), {}
    found["step_seconds"] = step_seconds(width, data)
    found["step_bytes"] = peak_bytes() - before
    experiment = dense_experiment(width, data)
    model, likelihood = experiment.model, experiment.likelihood
    model.update_priors()
    found["ledger_seconds"] = min(seconds(lambda: take_ledger(model, likelihood, data, samples=1)) for _ in range(2))
    found["ledger_bytes"] = peak_bytes() - before
    settings = PackSettings(codec="quantised")
    model.cpu()
    found["pack_seconds"] = seconds(lambda: pack_experiment(experiment, settings, progress=False))
    found["pack_bytes"] = peak_bytes() - before
    return {"weights": float(sum(q.numel for q in model.posteriors())), **found}


def growth_with_examples(count: int) -> dict[str, float]:
    """An epoch of training, and the ledger, of a small network."""
    data = examples(count)
    experiment = dense_experiment(EXAMPLES_WIDTH, data)
    fit = start(experiment.model, experiment.likelihood, data, TrainingSettings(batch_size=EXAMPLES_BATCH))
    fit.step(0, data.inputs[:EXAMPLES_BATCH], data.targets[:EXAMPLES_BATCH])
    found = {"examples": float(count), "epoch_seconds": seconds(fit.run_epoch)}
    found["ledger_seconds"] = seconds(lambda: take_ledger(experiment.model, experiment.likelihood, data, samples=1))
    return found


class Residual(nn.Module):
    """Two convolutions and what they are added to."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.short = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The sum, rectified."""
        return torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))) + self.short(x))


def resnet18(width: int) -> nn.Sequential:
    """ResNet-18 for images of 32 x 32: at width 64, 11.2 million weights."""
    steps = [(1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1), (4, 8, 2), (8, 8, 1)]
    blocks = [Residual(inputs * width, outputs * width, stride) for inputs, outputs, stride in steps]
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, CLASSES))


def deterministic_step(network: nn.Module, x: Tensor, y: Tensor) -> Callable[[int], object]:
    """Plain training with default Adam."""
    optimizer = torch.optim.Adam(network.parameters())

    def step(_: int) -> None:
        optimizer.zero_grad()
        cross_entropy(network(x), y).backward()
        optimizer.step()

    return step


def our_step(network: nn.Module, x: Tensor, y: Tensor) -> Callable[[int], object]:
    """Ours: weight noise for all but the normalisations."""
    norms = tuple(f"{name}.*" for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d))
    model = bayesianize(network, exclude=norms, estimator="weight")
    fit = start(model, CategoricalLikelihood(CLASSES), Examples(x, y), TrainingSettings(batch_size=len(x)))
    return lambda number: fit.step(number, x, y)


def resnet_memory(who: str) -> dict[str, float]:
    """The peak of memory of a few steps, beyond what a process with data and libraries has."""
    torch.manual_seed(0)
    x, y = torch.randn(RESNET_BATCH, 3, 32, 32).to(DEVICE), torch.randint(CLASSES, (RESNET_BATCH,)).to(DEVICE)
    make = our_step if who == "ours" else deterministic_step
    take_steps(make(resnet18(WARM_WIDTH).to(DEVICE), x, y))
    before, network = peak_bytes(), resnet18(64).to(DEVICE)
    found = {"weights": sum(p.numel() for p in network.parameters())}
    found["step_seconds"] = take_steps(make(network, x, y))
    return {**found, "peak_bytes": peak_bytes() - before}


def take_steps(step: Callable[[int], object]) -> float:
    """Three steps; the time of the fastest."""
    return min(seconds(lambda number=number: step(number)) for number in range(3))


def main() -> None:
    """Measure one thing and print it."""
    kind, what = sys.argv[1:3]
    torch.set_num_threads(1)
    measure = {"weights": growth_with_weights, "examples": growth_with_examples, "resnet18": resnet_memory}[kind]
    print(json.dumps(measure(what if kind == "resnet18" else int(what))))


if __name__ == "__main__":
    main()
