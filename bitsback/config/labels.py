"""Map the labels found in the data to the classes 0, 1, 2, ... of a network's outputs."""

from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import torch

from bitsback import limits
from bitsback.config.schema import Config
from bitsback.data import Dataset, Examples
from bitsback.data.settings import LabelValues
from bitsback.errors import DataError
from bitsback.likelihoods import LikelihoodSettings
from bitsback.likelihoods.base import chunks, equal, require, whole
from bitsback.likelihoods.settings import ClassSettings, TokensSettings

__all__ = ["as_labels", "check_declared", "with_classes"]

FEW = 20
"""Up to this many distinct whole numbers may be classes, however few examples there are."""

VERY_FEW = 5
"""Up to this many distinct whole numbers may be classes even if almost all targets differ."""

EXAMPLES_PER_LABEL = 5
"""Fewer examples per distinct value than this suggest a quantity, not a label."""


def with_classes(config: Config, dataset: Dataset) -> tuple[Config, Dataset]:
    """Decide which labels are the classes, and replace the targets, of any shape, by class numbers.

    If the source, the likelihood or the network declares a number C of classes, the labels are 0 .. C - 1; else they are the
    distinct values of the data. The value of targets that are not coded (``likelihood.ignore``) is no label, and stays.

    Args:
        config: the configuration; only likelihoods of classes, categorical and tokens, have them.
        dataset: the data, with targets as they were read.

    Returns:
        The configuration, with ``likelihood.labels`` written out unless they are 0, 1, 2, ...; and the data set, whose targets
        are class numbers.

    Raises:
        DataError: for texts under another likelihood, for labels that differ from the declared ones, for tokens without a
            declared vocabulary, and, if no likelihood was chosen, for targets with axes, real numbers, and whole numbers that
            look like a quantity.
    """
    likelihood, targets = config.likelihood, dataset.train.targets
    texts = dataset.has_texts
    if not isinstance(likelihood, ClassSettings):
        if texts:
            raise DataError(
                f"the targets of {dataset.name} are texts, such as {dataset.labels[0]!r}, which likelihood.kind="  # type: ignore[index]
                f"{likelihood.kind} cannot describe; use categorical"
            )
        return config, dataset
    if "likelihood" not in config.model_fields_set:
        _check_guess(dataset)
    if dataset.classes is not None:
        return config, dataset
    if targets.is_floating_point():
        need = "labels must be whole numbers or texts; or use likelihood.kind=gaussian"
        require(whole, targets, dataset.train.name, need, ignore=likelihood.ignore)
    if texts and likelihood.ignore is None and int(targets.min()) < 0:
        raise DataError(
            f"{dataset.name} has targets that a mask leaves out; set likelihood: {{kind: categorical, ignore: -100}}"
        )
    likelihood.check_labels()
    declared = likelihood.classes or config.network.declared_outputs(dataset.train.inputs[:2], targets.shape[1:])
    wanted = likelihood.labels
    if wanted is None and declared is not None and not texts:
        return config, replace(dataset, classes=declared)  # checked by the likelihood, example by example
    if isinstance(likelihood, TokensSettings) and declared is None and wanted is None:
        raise DataError("likelihood.kind=tokens needs the size of the vocabulary; set likelihood.classes")
    found = dataset.labels if dataset.labels is not None else _distinct(dataset)
    found = found if texts else tuple(label for label in found if label != likelihood.ignore)
    labels = wanted if wanted is not None else found
    if likelihood.classes is None:
        limits.LABELS.check(len(labels), f"{dataset.name}, by its distinct labels,", DataError, "set likelihood.classes")
    if declared is not None and len(labels) != declared:
        raise DataError(
            f"{dataset.name} has {len(labels):,} distinct labels, and {declared:,} classes are declared; set "
            "likelihood.classes, or leave it and the last layer's size out"
        )
    if not labels:
        raise DataError(
            f"no target of {dataset.name} is coded: likelihood.ignore={likelihood.ignore} hides all of them; check the mask"
        )
    if len(labels) < 2:
        raise DataError(
            f"every label of {dataset.name} is {labels[0]!r}: there is nothing to describe; give two labels or more"
        )
    unseen = _unseen(dataset.train, found if texts else None, labels, likelihood.ignore)
    dataset = replace(dataset, classes=len(labels), train=unseen)
    if labels == tuple(range(len(labels))):
        return config, dataset
    if likelihood.ignore is not None and 0 <= likelihood.ignore < len(labels):
        raise DataError(
            f"likelihood.ignore {likelihood.ignore} would be the number of a class, since the {len(labels)} labels of "
            f"{dataset.name} are numbered from 0; mark what is not coded by another number, such as -100"
        )
    named = replace(
        dataset,
        train=_as_classes(dataset.train, found if texts else None, labels, likelihood.ignore),
        test=dataset.test and _as_classes(dataset.test, found if texts else None, labels, likelihood.ignore),
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
    if targets.ndim != 1:
        raise DataError(
            f"the targets of {dataset.name} have shape {tuple(targets.shape)}; say how to describe them: likelihood: {{kind: "
            "categorical} for a label at each position, {kind: bernoulli} for yes-or-no answers, {kind: gaussian} for numbers; "
            "or write the argmax of one-hot labels"
        )
    if dataset.labels is None:
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
    return tuple(sorted(set[int]().union(*map(_values, splits))))


def _values(targets: torch.Tensor, ignore: int | None = None) -> set[int]:
    """Return the distinct values of whole-number targets, without the one that is not coded."""
    found: set[int] = set()
    for part in chunks(targets):
        found.update(part.unique().long().tolist())
    return found - {ignore}


def _unseen(train: Examples, texts: LabelValues | None, labels: LabelValues, ignore: int | None) -> Examples:
    """Note labels that no training example has as an assumption: the receiver knows them, and they are not charged."""
    seen = {texts[k] if texts is not None else k for k in _values(train.targets, ignore)}
    unseen = [str(label) for label in labels if label not in seen]
    if not unseen:
        return train
    named = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
    return replace(train, assumed=(*train.assumed, f"that labels {named} exist, which no training example has"))


def _as_classes(examples: Examples, texts: LabelValues | None, labels: LabelValues, ignore: int | None) -> Examples:
    """Replace each target by the index of its label; targets that are not coded stay."""
    index_of = {label: number for number, label in enumerate(labels)}
    values = sorted(_values(examples.targets, ignore))
    unknown = [value for value in values if (value if texts is None else texts[value]) not in index_of]
    if unknown:
        _refuse(examples, unknown, texts, labels)
    if not values:
        return examples
    known = torch.tensor(values)
    numbers = torch.tensor([index_of[value if texts is None else texts[value]] for value in values])
    classes = torch.empty(examples.targets.shape, dtype=torch.int64 if examples.targets.ndim == 1 else torch.int32)
    begin = 0
    for part in chunks(examples.targets):
        whole_numbers = part.long()
        found = numbers[torch.searchsorted(known, whole_numbers).clamp_max(len(known) - 1)]
        if ignore is not None:
            found = found.where(~equal(part, ignore), whole_numbers)
        classes[begin : begin + len(part)] = found
        begin += len(part)
    return replace(examples, targets=classes)


def _refuse(examples: Examples, unknown: list[int], texts: LabelValues | None, labels: LabelValues) -> NoReturn:
    """Raise DataError for the first example with one of the unknown values."""
    begin = 0
    for part in chunks(examples.targets):
        wrong = torch.isin(part.long(), torch.tensor(unknown)).flatten().nonzero()
        if len(wrong):
            value = int(part.flatten()[wrong[0]])
            example = begin + int(wrong[0]) // max(1, part[0].numel())
            raise DataError(
                f"{examples.name} label of example {example} is {value if texts is None else texts[value]!r}, which is none of "
                f"likelihood.labels ({', '.join(map(repr, labels[:5]))}{', ...' if len(labels) > 5 else ''})"
            )
        begin += len(part)
    raise AssertionError("an unknown value occurs")


def as_labels(classes: np.ndarray, likelihood: LikelihoodSettings) -> np.ndarray:
    """Translate class numbers into labels.

    Args:
        classes: class numbers, of any shape.
        likelihood: settings; without ``labels`` the numbers are returned unchanged.

    Returns:
        labels, in the shape of ``classes``; where a target is not coded, ``likelihood.ignore``, or an empty text.

    >>> from bitsback.likelihoods.settings import CategoricalSettings
    >>> as_labels(np.array([1, 0]), CategoricalSettings(labels=("cat", "dog"))).tolist()
    ['dog', 'cat']
    """
    labels, ignore = getattr(likelihood, "labels", None), getattr(likelihood, "ignore", None)
    if labels is None:
        return classes
    hidden = np.zeros(classes.shape, dtype=bool) if ignore is None else classes == ignore
    named = np.array(labels)[np.where(hidden, 0, classes)]
    empty: Any = "" if named.dtype.kind == "U" else ignore
    return np.where(hidden, empty, named) if hidden.any() else named
