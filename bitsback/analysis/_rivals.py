"""What the labels cost without a network: by label spreading on the graph, by logistic regression on the features."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitsback.analysis.rival_codes import BLOCKS, STRENGTHS, LabelSpreading, LogisticRegression, code_labels
from bitsback.coding.philox import shuffled
from bitsback.config import Config
from bitsback.data import Dataset
from bitsback.data.settings import Chain, RandomWalkModes
from bitsback.errors import ConfigError
from bitsback.torch_state import using_threads

__all__ = ["Rival", "label_spreading", "logistic"]


@dataclass(frozen=True)
class Rival:
    """A code of the labels without a network.

    Attributes:
        choice_bits: what names the setting that was tried and found cheapest.
        label_bits: the labels, given that setting.
        test_error: when predicted from the labels before the last block.
        seconds: what it took, features not included.
        how: the settings.
    """

    choice_bits: float
    label_bits: float
    test_error: float | None
    seconds: float
    how: str


def label_spreading(config: Config, dataset: Dataset, classes: int, *, progress: bool = True) -> Rival:
    """Code the training labels by label spreading on the graph that the configuration's random walk goes on.

    Args:
        config: whose ``data.features`` are ``random_walk_modes``, or a chain that ends with them; ``seed`` draws the order.
        dataset: what it loads.
        classes: how many labels there are.
        progress: show bars of what takes more than two seconds.

    Raises:
        ConfigError: for other features.
    """
    walk, before = _split(config)
    began = time.perf_counter()
    data = config.data.model_copy(update={"features": before, "fraction_bits": None}).load()
    with using_threads(1):  # the same graph as that of the features
        spreading = LabelSpreading(walk.graph(data.train.inputs), classes)
    test = None if data.test is None else data.test.inputs
    bits, error = _code("label_spreading", spreading, config, dataset, classes, test, progress)
    how = "no command writes it; a .9, b 2: found on digits, MNIST"
    return Rival(0.0, bits, error, time.perf_counter() - began, how)


def _split(config: Config) -> tuple[RandomWalkModes, Chain | None]:
    """The walk, and the features of which it is made."""
    features = config.data.features
    if isinstance(features, RandomWalkModes):
        return features, None
    if isinstance(features, Chain) and isinstance(features.maps[-1], RandomWalkModes):
        earlier = features.maps[:-1]
        return features.maps[-1], Chain(maps=earlier) if earlier else None
    raise ConfigError("needs data.features: random_walk_modes")


def logistic(
    config: Config, dataset: Dataset, classes: int, *, strengths: Sequence[float] = STRENGTHS, progress: bool = True
) -> Rival:
    """Code the training labels by logistic regression on the configuration's features.

    Args:
        config: whose ``seed`` draws the order.
        dataset: what it loads, features applied.
        classes: how many labels there are.
        strengths: of the penalty, as scikit-learn's C; the cheapest is named, at log2 of their number.
        progress: show bars of what takes more than two seconds.

    Raises:
        ConfigError: for inputs that are no real numbers, and without scikit-learn.
    """
    inputs = dataset.train.inputs
    if not inputs.is_floating_point():
        raise ConfigError("needs inputs that are real numbers")
    began = time.perf_counter()
    test = None if dataset.test is None else dataset.test.inputs
    tried = []
    for strength in strengths:
        regression = LogisticRegression(inputs, classes, strength)
        tried.append((*_code(f"logistic, C {strength:g}", regression, config, dataset, classes, test, progress), strength))
    bits, error, best = min(tried, key=lambda one: one[0])
    how = f"no command writes it; C {best:g}, cheapest of {len(tried)}"
    return Rival(math.log2(len(tried)), bits, error, time.perf_counter() - began, how)


def _code(
    name: str,
    predict: LabelSpreading | LogisticRegression,
    config: Config,
    dataset: Dataset,
    classes: int,
    test: Tensor | None,
    progress: bool,
) -> tuple[float, float | None]:
    """Bits of the training labels, in the order of the prequential code, and the error on ``test`` of the last prediction."""
    labels = dataset.train.targets.long()
    order = torch.from_numpy(shuffled(config.seed, 0, len(labels)))
    ends = BLOCKS.ends(len(labels))
    coded = code_labels(predict, labels, classes, order, ends=ends, name=name, progress=progress)
    if dataset.test is None or test is None or len(ends) == 1:
        return coded.bits, None
    known = order[: ends[-2]]
    chosen = predict.elsewhere(known, labels[known], test).argmax(1)
    return coded.bits, float((chosen != dataset.test.targets).double().mean())
