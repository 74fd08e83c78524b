"""Sections that a configuration leaves out, chosen by what the data are, so that tables and images need no YAML."""

import math
from typing import Any

from torch import Tensor

from bitsback.config.labels import looks_like_a_quantity
from bitsback.config.layer_spec import LayerSpec
from bitsback.config.network import NetworkSettings, SequentialSettings
from bitsback.config.ready_networks import LSTMSettings, MLPSettings
from bitsback.config.schema import Config
from bitsback.data import Dataset
from bitsback.data.mask import NOT_CODED
from bitsback.likelihoods.settings import (
    CategoricalSettings,
    ClassSettings,
    GaussianLikelihoodSettings,
    LikelihoodSettings,
)
from bitsback.training.settings import BetaSettings, LedgerSettings, OptimizerSettings, TrainingSettings

__all__ = ["suited"]

FEW_ROWS, FEW_HIDDEN, HIDDEN = 500, 16, 32
"""Hidden units for a table: few for few rows, which cannot pay for more; the others cost fewest bits with these."""

LABELS_LR, LR = 0.01, 0.03
"""Learning rates of means: for labels of more than a few rows, and for all else; each the one with fewer net bits."""

STEPS = 10_000
"""Least number of optimiser steps: noise and the scales of priors settle, and a thousand rows take less than a minute."""

LEAST_EPOCHS, MOST_EPOCHS = 20, 500
BATCH, LARGE_BATCH = 32, 128
LARGE = 4000
"""Number of rows from which on batches are large."""

IMAGE_EPOCHS = 30

TOKENS_PER_WEIGHT = 5
"""Tokens of a text for each weight between the units of its network."""
LEAST_WIDTH, MOST_WIDTH, EMBEDDING = 16, 512, 32
STEPS_OF_A_TEXT, TOKENS_AT_ONCE = 3000, 4096
"""Least number of optimiser steps for a text, and most tokens in one."""
TOKENS_OF_A_LEDGER = 10_000_000
"""Tokens that the draws of a ledger read, all together: long texts need few draws."""


def suited(config: Config, dataset: Dataset) -> Config:
    """Fill in the sections likelihood, network and training where the configuration leaves them out; of a text, ledger too.

    Args:
        config: what it says stays; of ``training`` every key by itself.
        dataset: the data as they were read, before labels are numbered.

    Returns:
        the configuration with these sections.

    >>> import torch
    >>> from bitsback.data import Examples
    >>> table = Dataset("prices", Examples(torch.randn(500, 7), torch.randn(500)), None)
    >>> chosen = suited(Config(), table)
    >>> chosen.likelihood.kind, chosen.network.kind, chosen.training.epochs
    ('gaussian', 'mlp', 500)
    """
    if config.data.predicts_inputs:
        return _for_a_text(config, dataset)
    given, update = config.model_fields_set, dict[str, Any]()
    shape = _shape(dataset)
    if "likelihood" not in given:
        update["likelihood"] = _likelihood(dataset)
    if "network" not in given:
        update["network"] = _for_images(shape) if len(shape) == 3 else _for_a_table(dataset)
    network = update.get("network", config.network)
    if isinstance(network, MLPSettings) and network.categories is None and (sizes := _categories(dataset)):
        update["network"] = network.model_copy(update={"categories": sizes})
    likelihood = update.get("likelihood", config.likelihood)
    update["training"] = _with_given(config, _training(dataset, len(shape) == 3, isinstance(likelihood, ClassSettings)))
    return config.model_copy(update=update)


def _for_a_text(config: Config, dataset: Dataset) -> Config:
    """Return a configuration with an LSTM, as wide as the length of the text can pay for."""
    given, (windows, context) = config.model_fields_set, dataset.train.targets.shape
    tokens = windows * context
    width = min(max(8 * round(math.sqrt(tokens / TOKENS_PER_WEIGHT / 4) / 8), LEAST_WIDTH), MOST_WIDTH)
    batch = max(1, min(TOKENS_AT_ONCE, tokens // 50) // context)
    chosen: dict[str, Any] = {
        "batch_size": batch,
        "epochs": min(max(LEAST_EPOCHS, -(-STEPS_OF_A_TEXT // -(-windows // batch))), MOST_EPOCHS),
        "optimizer": OptimizerSettings(lr=0.01, log_std_lr=0.01),
    }
    if config.network.kind == "transformer":  # it learns nothing under the whole KL at once
        chosen["beta"] = BetaSettings(start=1e-3)
    sections = {
        "network": LSTMSettings(embedding=min(EMBEDDING, width), width=width),
        "ledger": LedgerSettings(samples=min(max(2, TOKENS_OF_A_LEDGER // tokens), LedgerSettings().samples)),
    }
    update: dict[str, Any] = {name: section for name, section in sections.items() if name not in given}
    if isinstance(config.likelihood, CategoricalSettings):
        update["likelihood"] = config.likelihood.model_copy(update={"ignore": NOT_CODED, "class_axis": -1})
    return config.model_copy(update={**update, "training": _with_given(config, chosen)})


def _with_given(config: Config, chosen: dict[str, Any]) -> TrainingSettings:
    """Return training settings: those that the configuration gives, and the chosen ones for the rest."""
    training = config.training
    given = {name: getattr(training, name) for name in training.model_fields_set}
    if {"budget_bits", "objective"} & set(given):
        chosen.pop("beta", None)
    return TrainingSettings(**{**chosen, **given})


def _shape(dataset: Dataset) -> tuple[int, ...]:
    """Return the shape of one input; () for inputs of several tensors."""
    first = dataset.train.inputs[:1]
    return tuple(first.shape[1:]) if isinstance(first, Tensor) else ()


def _likelihood(dataset: Dataset) -> LikelihoodSettings:
    """Return gaussian for real numbers and for quantities in whole numbers; categorical for labels."""
    if not dataset.has_texts and (dataset.train.targets.is_floating_point() or looks_like_a_quantity(dataset)):
        return GaussianLikelihoodSettings()
    return CategoricalSettings()


def _for_a_table(dataset: Dataset) -> NetworkSettings:
    """Return a hidden layer beside a linear one: where hidden units do not pay, a linear network remains."""
    return MLPSettings(hidden=(FEW_HIDDEN if len(dataset.train) < FEW_ROWS else HIDDEN,), skip=True)


def _categories(dataset: Dataset) -> tuple[int, ...] | None:
    """Return how many values each category of a table has, if they are to be embedded."""
    if not isinstance(dataset.train.inputs[:1], dict):
        return None
    return tuple(column.values for column in dataset.columns if column.kind == "category") or None


def _for_images(shape: tuple[int, ...]) -> NetworkSettings:
    """Return filters of 3 x 3, pooled until a side has less than eight pixels, and a linear layer."""
    layers: list[LayerSpec] = []
    width, side = 16, min(shape[1:])
    while side >= 8 and width <= 64:
        layers += [
            {"Conv2d": {"out_channels": width, "kernel_size": 3, "padding": 1}},
            "ReLU",
            {"MaxPool2d": {"kernel_size": 2}},
        ]
        width, side = 2 * width, side // 2
    return SequentialSettings(layers=(*layers, "Flatten", "Linear"))


def _training(dataset: Dataset, are_images: bool, are_labels: bool) -> dict[str, Any]:
    """Return the settings of training that suit the data."""
    rows = len(dataset.train)
    batch = LARGE_BATCH if rows >= LARGE or are_images else BATCH
    steps = -(-rows // batch)
    chosen: dict[str, Any] = {
        "batch_size": batch,
        "epochs": min(max(LEAST_EPOCHS, -(-STEPS // steps)), MOST_EPOCHS),
        "optimizer": OptimizerSettings(lr=LABELS_LR if are_labels and rows >= FEW_ROWS else LR, log_std_lr=0.03),
        "beta": BetaSettings(start=1e-3),
    }
    if are_images:
        chosen |= {"epochs": IMAGE_EPOCHS, "optimizer": OptimizerSettings(lr=0.003, log_std_lr=0.03)}
    return chosen
