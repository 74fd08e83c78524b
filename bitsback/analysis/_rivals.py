"""Code lengths of the labels without a network: label spreading on the graph, logistic regression on the features."""

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
    """Code length of the labels without a network.

    Attributes:
        choice_bits: bits that name the cheapest of the settings tried.
        label_bits: bits of the labels, given that setting.
        test_error: of the prediction from all labels before the last block; None without a test split.
        seconds: computing time, without that of the features.
        how: the settings, in words.
    """

    choice_bits: float
    label_bits: float
    test_error: float | None
    seconds: float
    how: str


def label_spreading(config: Config, dataset: Dataset, classes: int, *, progress: bool = True) -> Rival:
    """Code the training labels by label spreading on the graph of the configuration's random walk.

    Args:
        config: ``data.features`` must be ``random_walk_modes``, or a chain that ends with them; ``seed`` draws the order.
        dataset: data of ``config``.
        classes: number of classes.
        progress: show progress bars after two seconds.

    Returns:
        The code length.

    Raises:
        ConfigError: the features are others.
    """
    walk, before = _split(config)
    began = time.perf_counter()
    data = config.data.model_copy(update={"features": before, "fraction_bits": None}).load()
    with using_threads(1):  # sums in the order that gave the graph of the features
        spreading = LabelSpreading(walk.graph(data.train.in_memory().inputs), classes)
    test = None if data.test is None else data.test.in_memory().inputs
    bits, error = _code("label_spreading", spreading, config, dataset, classes, test, progress)
    how = "no command writes it; a .9, b 2: found on digits, MNIST"
    return Rival(0.0, bits, error, time.perf_counter() - began, how)


def _split(config: Config) -> tuple[RandomWalkModes, Chain | None]:
    """Return the random walk and the features before it."""
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
        config: ``seed`` draws the order.
        dataset: data of ``config``, features applied.
        classes: number of classes.
        strengths: inverse penalties to try, scikit-learn's C; naming the cheapest costs log2 of their number in bits.
        progress: show progress bars after two seconds.

    Returns:
        The code length.

    Raises:
        ConfigError: the inputs are not real numbers.
        MissingExtraError: scikit-learn is not installed.
    """
    inputs = dataset.train.in_memory().inputs
    if not inputs.is_floating_point():
        raise ConfigError("needs inputs that are real numbers")
    began = time.perf_counter()
    test = None if dataset.test is None else dataset.test.in_memory().inputs
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
    """Return the bits of the training labels in the order of the prequential code, and the error of the last prediction."""
    labels = dataset.train.targets.long()
    order = torch.from_numpy(shuffled(config.seed, 0, len(labels)))
    ends = BLOCKS.ends(len(labels))
    coded = code_labels(predict, labels, classes, order, ends=ends, name=name, progress=progress)
    if dataset.test is None or test is None or len(ends) == 1:
        return coded.bits, None
    known = order[: ends[-2]]
    chosen = predict.elsewhere(known, labels[known], test).argmax(1)
    return coded.bits, float((chosen != dataset.test.targets).double().mean())
