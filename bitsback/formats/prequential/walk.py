"""Walk over the blocks of the prequential code, which sender and receiver take alike::

    examples    0          e1         e2                    e3        in the order of the code
    block 1     [ uniform  ]
    block 2     [ trained  ][ predicted]
    block 3     [ trained             ][ predicted           ]

    each block: train on the known labels -> log-probabilities -> calibration -> rounding -> answer -> labels become known

The walk never holds a label before it is coded: the sender answers each block with its labels, the receiver decodes them.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bitsback.coding.ans import Integers
from bitsback.coding.categorical import FRACTION_BITS
from bitsback.coding.philox import shuffled
from bitsback.config import Config, Experiment
from bitsback.data import Dataset, Examples
from bitsback.errors import ConfigError, TrainingError
from bitsback.formats._exact_outputs import BATCH
from bitsback.formats.prequential._calibration import Block, Calibration
from bitsback.formats.repeatable import check_alone, repeatable
from bitsback.likelihoods import Likelihood
from bitsback.likelihoods.classes import CategoricalLikelihood
from bitsback.likelihoods.settings import CategoricalSettings
from bitsback.model import BayesianModel
from bitsback.posteriors import PointPosteriorSettings
from bitsback.torch_state import seeded, using_threads
from bitsback.training import TrainingSettings, start
from bitsback.training.settings import ElboSettings
from bitsback.units import nats_to_bits

if TYPE_CHECKING:
    Bar = tqdm[Any]

__all__ = ["Answer", "Walk", "check", "check_whole", "epochs_for", "rounded", "train"]

Answer = Callable[[int, Integers], Integers]
"""Function from the number of a block and its predictions, log-probabilities (n, classes) in units of 2^-12 nats, to its
labels (n,).
"""

CPU = torch.device("cpu")

PREDICTION_BITS = 6
"""Log-probabilities are rounded to multiples of 2^-6 nats, which costs at most 1e-5 nats a label. A coarser grid makes it rarer
that a value lies so near the middle of two multiples that another machine rounds it the other way. Part of the format.
"""


def rounded(log_probabilities: Tensor) -> Integers:
    """Return log-probabilities (n, classes) in nats as multiples of 2^-12, rounded to 2^-6.

    >>> rounded(torch.tensor([[-0.1, -2.4]], dtype=torch.float64)).tolist()
    [[-384, -9856]]
    """
    found: Integers = torch.round(log_probabilities * 2.0**PREDICTION_BITS).long().numpy()
    return found << (FRACTION_BITS - PREDICTION_BITS)


def check(config: Config) -> None:
    """Raise ConfigError for a setting that does not suit the prequential code."""
    check_alone()
    training, prequential = config.training, config.prequential
    if not isinstance(config.likelihood, CategoricalSettings):
        raise ConfigError(
            f"the prequential code is one of labels, which likelihood.kind={config.likelihood.kind} has not; use categorical"
        )
    if training.device != "cpu":
        raise ConfigError(f"training.device={training.device} need not repeat its sums, which a receiver has to; set it to cpu")
    for name in ("budget_bits", "early_stop"):
        if getattr(training, name) is not None:
            raise ConfigError(f"training.{name} suits one training set, and the prequential code has one a block; leave it out")
    if not isinstance(training.objective, ElboSettings):
        raise ConfigError(
            f"training.objective={training.objective.kind} bounds a risk; the prequential code has none: leave it out"
        )
    if prequential.predict == "samples" and isinstance(config.posterior, PointPosteriorSettings):
        raise ConfigError("a point has no samples to average; set posterior.kind=gaussian, or prequential.predict=ensemble")


def check_whole(examples: Examples, likelihood: Likelihood, code: str = "the prequential code") -> None:
    """Check that a code, such as the prequential one, can describe targets: one label for each example, all of them coded.

    Args:
        examples: the training examples.
        likelihood: their likelihood.
        code: name of the code, for the message.

    Raises:
        ConfigError: for targets with axes, and for targets that are not coded.
    """
    targets = examples.targets
    if targets.ndim > 1 or likelihood.symbols(targets) < len(targets):
        raise ConfigError(
            f"{code} is of one label for each example, and all of them; the targets here have axes or are partly "
            "left out: use the code bits_back or two_part"
        )


@dataclass(frozen=True)
class Walk:
    """State that sender and receiver share.

    Attributes:
        config: configuration that :func:`check` has passed, with a number of threads; it is trained as
            :func:`bitsback.formats.repeatable.repeatable` says.
        inputs: (n, ...), in the order of the data.
        classes: number of classes.
    """

    config: Config
    inputs: Tensor
    classes: int

    def __post_init__(self) -> None:
        settled = self.config.training.settled(len(self.inputs), CategoricalLikelihood(max(2, self.classes)))
        object.__setattr__(self, "config", self.config.model_copy(update={"training": settled}))

    @property
    def order(self) -> Integers:
        """Return the positions in the data of the first, second, ... example of the code, (n,)."""
        count = len(self.inputs)
        return shuffled(self.config.seed, 0, count) if self.config.prequential.shuffle else np.arange(count)

    @property
    def ends(self) -> tuple[int, ...]:
        """Return the ends of the blocks, in examples; raises ConfigError if they do not cover the examples."""
        return self.config.prequential.ends(len(self.inputs))

    @property
    def steps(self) -> int:
        """Return the optimiser steps of all blocks plus the draws that are averaged."""
        starts = (0, *self.ends[:-1])
        return sum(self._steps(start) for start in starts) + len(starts) * self.config.prequential.members

    def run(self, answer: Answer, test: Examples | None = None, *, progress: bool = True) -> tuple[list[Block], float | None]:
        """Code every block: predict it from the labels before it, and ask ``answer`` for its own.

        Args:
            answer: gives the labels of a block.
            test: test examples, on which the last predictor's error is measured; they do not affect the code.
            progress: show a bar of all optimiser steps.

        Returns:
            the cost of each block, and the error on ``test`` or None.
        """
        inputs, ends, threads = self.inputs[torch.from_numpy(self.order)], self.ends, self.config.training.threads
        assert isinstance(threads, int)
        known = torch.zeros(0, dtype=torch.long)
        told = torch.zeros(0, self.classes, dtype=torch.float64)  # predictions of the known labels, before calibration
        blocks: list[Block] = []
        test_error = None
        with using_threads(threads), self._bar(progress) as bar:
            for number, (start, end) in enumerate(zip((0, *ends[:-1]), ends, strict=True)):
                began = time.perf_counter()
                bar.set_postfix_str(f"labels {start:,} to {end:,} of {ends[-1]:,}")
                asked = [inputs[start:end]]
                if start and test is not None and end == ends[-1]:
                    asked.append(test.in_memory().inputs)
                if start:
                    raw, *more = self._predict(number, Examples(inputs[:start], known), asked, bar)
                else:
                    raw, more = self._uniform(end - start), []
                if test is not None and more:
                    test_error = float((more[0].argmax(1) != test.targets).double().mean())
                # fitted before the block's own labels are asked for: the receiver does not have them yet
                calibration = self._calibration(told, known)
                found = calibration(raw)
                labels = torch.from_numpy(answer(number, rounded(found)))
                known, told = torch.cat([known, labels]), torch.cat([told, raw])
                bits, error = nats_to_bits(-float(found.gather(1, labels[:, None]).sum())), (found.argmax(1) != labels).double()
                seconds = time.perf_counter() - began
                blocks.append(Block(start, end, bits, float(error.mean()), calibration, self._steps(start), seconds))
        return blocks, test_error

    def _bar(self, progress: bool) -> "Bar":
        steps = sum(self._steps(start) for start in (0, *self.ends[:-1]))
        return tqdm(total=steps, desc="prequential", unit="step", disable=not progress)

    @property
    def _networks(self) -> int:
        return self.config.prequential.members if self.config.prequential.predict == "ensemble" else 1

    def _steps(self, examples: int) -> int:
        return epochs_for(self.config, examples) * -(-examples // self.config.training.batch_size) * self._networks

    def _uniform(self, count: int) -> Tensor:
        return torch.full((count, self.classes), -math.log(self.classes), dtype=torch.float64)

    def _calibration(self, told: Tensor, known: Tensor) -> Calibration:
        """Return a calibration fitted to the later half of the known labels, whose predictors resemble the next one most."""
        half = len(known) // 2
        return Calibration.fit(told[half:], known[half:]) if self.config.prequential.calibrate else Calibration()

    @torch.no_grad()
    def _predict(self, number: int, earlier: Examples, asked: list[Tensor], bar: "Bar") -> list[Tensor]:
        """Return log-probabilities (n, classes) in nats for each of some inputs (n, ...), averaged over members; float64.

        Raises:
            TrainingError: if a prediction is not finite.
        """
        # inputs asked for separately share no batch: the last bits of a sum may depend on its neighbours
        settings = self.config.prequential
        parts: list[list[Tensor]] = [[] for _ in asked]
        for member in range(self._networks):
            # a seed for each block and member: no training depends on how the ones before it drew
            seed = int(np.random.SeedSequence([self.config.seed, number, member]).generate_state(1)[0])
            with seeded(seed, CPU):
                model = train(self.config.model_copy(update={"seed": seed}), self.classes, earlier, bar)
                for _ in range(settings.members // self._networks):
                    with model.sample() if settings.predict == "samples" else model.mean():
                        for inputs, found in zip(asked, parts, strict=True):
                            ready = inputs.double() if inputs.is_floating_point() else inputs
                            found.append(torch.cat([model.outputs(batch) for batch in ready.split(BATCH)]).log_softmax(1))
        averaged = [torch.logsumexp(torch.stack(found), 0) - math.log(len(found)) for found in parts]
        if not torch.isfinite(averaged[0]).all():
            raise TrainingError(f"the predictions of block {number + 1} are not finite; lower training.optimizer.lr")
        return averaged


def epochs_for(config: Config, examples: int) -> int:
    """Return the epochs for a number of examples: ``training.epochs``, or more to reach ``prequential.least_steps``.

    Args:
        config: its sections ``training`` and ``prequential`` are used.
        examples: number of known examples.

    Returns:
        passes over the examples.

    >>> from bitsback.training import TrainingSettings, start
    >>> config = Config(training=TrainingSettings(epochs=100))
    >>> epochs_for(config, 128), epochs_for(config, 12_800)
    (300, 100)
    """
    per_epoch = max(1, -(-examples // config.training.batch_size))
    return max(config.training.passes, -(-config.prequential.least_steps // per_epoch))


@torch.enable_grad()
def train(config: Config, classes: int, examples: Examples, bar: "Bar") -> BayesianModel:
    """Train a network on the known examples, with the schedules of the training stretched to its epochs.

    Args:
        config: what to train; its seed is used.
        classes: number of classes.
        examples: inputs and labels of the blocks before.
        bar: progress bar, advanced by the optimiser steps.

    Returns:
        a network in float64, in eval mode.
    """
    config = repeatable(config)
    epochs = epochs_for(config, len(examples))
    settings = _stretched(config.training, epochs)
    experiment = Experiment.build(config, dataset=Dataset("earlier labels", examples, None, classes))
    model, likelihood = experiment.model, experiment.likelihood
    model.to(CPU, torch.float64)
    fit = start(model, likelihood, examples.to(CPU, torch.float64), settings, config.seed)
    for _ in range(epochs):
        fit.run_epoch()
        bar.update(fit.steps_per_epoch)
    return model.eval()


def _stretched(training: TrainingSettings, epochs: int) -> TrainingSettings:
    factor = epochs / training.passes
    schedule = training.schedule.model_copy(update={"warmup_epochs": training.schedule.warmup_epochs * factor})
    beta = training.beta.model_copy(update={"warmup_epochs": training.beta.numbers[1] * factor})
    return training.model_copy(update={"epochs": epochs, "schedule": schedule, "beta": beta})
