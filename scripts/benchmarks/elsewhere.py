"""A contestant in a process of its own, with the bitsback of another checkout: it takes its turns as the others do."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.configured import Configured, configured_batches
from benchmarks.contestants import BASELINE, BY_PRIOR, STEP, Contestants, joined
from benchmarks.nets import PRIORS_NET, STEP_NETS, Net
from benchmarks.timing import Batch, synthetic_batches
from benchmarks.trainer import Missing, Task, Trainer

SCRIPTS = Path(__file__).parent.parent
READY = "ready"


@dataclass(frozen=True)
class Race:
    """What the contestants of a benchmark have in common, in words that another process understands.

    Attributes:
        net: a network of ``STEP_NETS``; nothing: that of ``config``, or of the priors.
        batch: examples in a step.
        config, overrides: a configuration and changes of it; nothing: synthetic images.
        threads: of a step.
        device: where the contestants of a race without a configuration train.
    """

    net: str = ""
    batch: int = 128
    config: str = ""
    overrides: tuple[str, ...] = ()
    threads: int = 1
    device: str = "cpu"

    def contestants(self) -> Contestants:
        """Who could take part."""
        if self.config:
            make = partial(Configured, self.config, self.overrides)
            return {BASELINE: lambda _: make(plain=True), "bitsback": lambda _: make()}
        return STEP if self.net else BY_PRIOR

    @property
    def network(self) -> Net:
        """That of a race without a configuration."""
        return STEP_NETS[self.net] if self.net else PRIORS_NET

    def trainer(self, name: str, width: int | None = None) -> Trainer | None:
        """A contestant; None, with a line, when it cannot take part."""
        torch.manual_seed(0)
        net = self.network
        task = Task(net.make(width or net.width).to(self.device), batch_size=self.batch, shape=net.shape)
        return joined(self.contestants()[name], name, task)

    def batches(self) -> Sequence[Batch]:
        """What they train on."""
        if self.config:
            return configured_batches(self.config, self.overrides)
        return synthetic_batches(self.network.shape, self.batch, device=self.device)


class Elsewhere(Trainer):
    """A contestant in another process.

    Args:
        race, name: which.
        checkout: the directory whose bitsback it is.

    Raises:
        Missing: when that one has no such contestant.
    """

    def __init__(self, race: Race, name: str, checkout: Path) -> None:
        command = [sys.executable, "-m", __spec__.name, json.dumps(asdict(race)), name]
        environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
        self.process = subprocess.Popen(
            command, env=environment, cwd=SCRIPTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        said = self._answer()
        if said != READY:
            raise Missing(f"it cannot take part in {checkout}")

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def timed(self, supply: Iterator[Batch], steps: int) -> tuple[float, float]:
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        cpu, wall = json.loads(self._answer())
        return cpu, wall

    def step(self, x: Tensor, y: Tensor) -> None:
        self.timed(iter(()), 1)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError("the other process has it")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(race: Race, name: str) -> None:
    """Take as many steps as each line says, and answer with CPU and wall seconds of one."""
    torch.set_num_threads(race.threads)
    trainer, supply = race.trainer(name), cycle(race.batches())
    print(READY if trainer is not None else "missing", flush=True)
    for line in sys.stdin if trainer is not None else ():
        assert trainer is not None
        print(json.dumps(trainer.timed(supply, int(line))), flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    serve(Race(**{**given, "overrides": tuple(given["overrides"])}), sys.argv[2])
