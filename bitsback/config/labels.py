"""Map the labels found in the data to the classes 0, 1, 2, ... of a network's outputs."""

from dataclasses import replace

import numpy as np
import torch

from bitsback import limits
from bitsback.config.schema import Config
from bitsback.data import Dataset, Examples
from bitsback.data.settings import LabelValues
from bitsback.errors import DataError
from bitsback.likelihoods import LikelihoodSettings
from bitsback.likelihoods.base import require, whole
from bitsback.likelihoods.settings import CategoricalSettings

__all__ = ["as_labels", "check_declared", "with_classes"]

FEW = 20
"""Up to this many distinct whole numbers may be classes, however few examples there are."""

VERY_FEW = 5
"""Up to this many distinct whole numbers may be classes even if almost all targets differ."""

EXAMPLES_PER_LABEL = 5
"""Fewer examples per distinct value than this suggest a quantity, not a label."""


def with_classes(config: Config, dataset: Dataset) -> tuple[Config, Dataset]:
    """Decide which labels are the classes, and replace the targets by class numbers.

    If the source, the likelihood or the network declares a number C of classes, the labels are 0 .. C - 1; else they are the
    distinct values of the data.

    Args:
        config: the configuration; only a categorical likelihood has classes.
        dataset: the data, with targets as they were read.

    Returns:
        The configuration, with ``likelihood.labels`` written out unless they are 0, 1, 2, ...; and the data set, whose targets
        are class numbers.

    Raises:
        DataError: for texts under another likelihood, for labels that differ from the declared ones, and, if no likelihood was
            chosen, for real numbers and for whole numbers that look like a quantity.
    """
    likelihood, targets = config.likelihood, dataset.train.targets
    texts = dataset.labels is not None and isinstance(next(iter(dataset.labels), None), str)
    if not isinstance(likelihood, CategoricalSettings):
        if texts:
            raise DataError(
                f"the targets of {dataset.name} are texts, such as {dataset.labels[0]!r}, which likelihood.kind="  # type: ignore[index]
                f"{likelihood.kind} cannot describe; use categorical"
            )
        return config, dataset
    if "likelihood" not in config.model_fields_set:
        _check_guess(dataset)
    if targets.ndim != 1:
        raise DataError(
            f"the targets of {dataset.name} have shape {tuple(targets.shape)}, and labels are one for each example; use "
            "likelihood.kind=bernoulli for yes-or-no answers, gaussian for numbers, or write the argmax of one-hot labels"
        )
    if dataset.classes is not None:
        return config, dataset
    if targets.is_floating_point():
        require(
            whole(targets),
            targets,
            dataset.train.name,
            "labels must be whole numbers or texts; or use likelihood.kind=gaussian",
        )
    likelihood.check_labels()
    declared = likelihood.classes or config.network.declared_outputs(dataset.train.inputs[:2])
    wanted = likelihood.labels
    if wanted is None and declared is not None and not texts:
        return config, replace(dataset, classes=declared)  # checked by the likelihood, example by example
    found = dataset.labels if dataset.labels is not None else _distinct(dataset)
    labels = wanted if wanted is not None else found
    if likelihood.classes is None:
        limits.LABELS.check(len(labels), f"{dataset.name}, by its distinct labels,", DataError, "set likelihood.classes")
    if declared is not None and len(labels) != declared:
        raise DataError(
            f"{dataset.name} has {len(labels):,} distinct labels, and {declared:,} classes are declared; set "
            "likelihood.classes, or leave it and the last layer's size out"
        )
    if len(labels) < 2:
        raise DataError(
            f"every label of {dataset.name} is {labels[0]!r}: there is nothing to describe; give two labels or more"
        )
    dataset = replace(dataset, classes=len(labels), train=_with_unseen(dataset.train, found, labels, texts=texts))
    if labels == tuple(range(len(labels))):
        return config, dataset
    named = replace(
        dataset,
        train=_as_classes(dataset.train, found, labels, texts=texts),
        test=dataset.test and _as_classes(dataset.test, found, labels, texts=texts),
    )
    settled = likelihood.model_copy(update={"labels": labels})
    return config.model_copy(update={"likelihood": settled}), named


def check_declared(config: Config, dataset: Dataset) -> None:
    """Refuse labels in the likelihood if the source declares its classes.

    Args:
        config: with the likelihood.
        dataset: with the number of classes that its source declares.

    Raises:
        DataError: if both are given.
    """
    if dataset.classes is not None and getattr(config.likelihood, "labels", None) is not None:
        raise DataError(
            f"{dataset.name} has the labels 0 to {dataset.classes - 1}; leave likelihood.labels out (likelihood.class_names "
            "says what predictions call them)"
        )


def _check_guess(dataset: Dataset) -> None:
    """Raise DataError if the likelihood is categorical only by default, and the targets do not look like labels."""
    targets = dataset.train.targets
    if targets.is_floating_point():
        raise DataError(
            f"the targets of {dataset.name} are real numbers; say how to describe them: likelihood: {{kind: gaussian}}, or "
            "poisson for counts, bernoulli for yes-or-no answers, categorical for labels"
        )
    if targets.ndim != 1 or dataset.labels is None:
        return
    distinct = len(targets.unique())
    many = distinct > FEW and distinct * EXAMPLES_PER_LABEL > len(targets)
    if many or (distinct > VERY_FEW and 2 * distinct > len(targets)):
        raise DataError(
            f"the targets of {dataset.name} have {distinct:,} distinct values in {len(targets):,} examples, which looks like a "
            "quantity; say how to describe them: likelihood: {kind: gaussian} for a quantity, {kind: poisson} for counts, "
            "{kind: categorical} for labels"
        )


def _distinct(dataset: Dataset) -> LabelValues:
    splits = [examples.targets for examples in (dataset.train, dataset.test) if examples is not None]
    return tuple(torch.cat(splits).unique().long().tolist())


def _with_unseen(train: Examples, found: LabelValues, labels: LabelValues, *, texts: bool) -> Examples:
    """Note labels that no training example has as an assumption: the receiver knows them, and they are not charged."""
    seen = {found[k] if texts else k for k in train.targets.unique().tolist()}
    unseen = [str(label) for label in labels if label not in seen]
    if not unseen:
        return train
    named = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
    return replace(train, assumed=(*train.assumed, f"that labels {named} exist, which no training example has"))


def _as_classes(examples: Examples, found: LabelValues, labels: LabelValues, *, texts: bool) -> Examples:
    """Replace each target by the index of its label."""
    index_of = {label: number for number, label in enumerate(labels)}
    values: list[int | str] = [found[k] for k in examples.targets.tolist()] if texts else examples.targets.tolist()
    unknown = next((number for number, value in enumerate(values) if value not in index_of), None)
    if unknown is not None:
        raise DataError(
            f"{examples.name} label of example {unknown} is {values[unknown]!r}, which is none of likelihood.labels "
            f"({', '.join(map(repr, labels[:5]))}{', ...' if len(labels) > 5 else ''})"
        )
    return replace(examples, targets=torch.tensor([index_of[value] for value in values]))


def as_labels(classes: np.ndarray, likelihood: LikelihoodSettings) -> np.ndarray:
    """Translate class numbers into labels.

    Args:
        classes: class numbers, of any shape.
        likelihood: settings; without ``labels`` the numbers are returned unchanged.

    Returns:
        labels, in the shape of ``classes``.

    >>> as_labels(np.array([1, 0]), CategoricalSettings(labels=("cat", "dog"))).tolist()
    ['dog', 'cat']
    """
    labels = getattr(likelihood, "labels", None)
    return classes if labels is None else np.array(labels)[classes]
