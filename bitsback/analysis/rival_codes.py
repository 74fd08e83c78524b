"""Prequential codes of labels without a network: label spreading on a graph of the inputs, and logistic regression.

Both code block after block of labels, in an order that does not depend on them, from the labels of the blocks before. Classes
that no label so far has had keep a share of the probability, as in the estimator of Krichevsky & Trofimov (1981), and a small
share is uniform, so that no label costs infinite bits. Predictions are quick, so blocks are short: they grow by a tenth.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bitsback.config.coding_settings import GrowingBlocks
from bitsback.data.graph import DenseGraph, Graph, scipy_sparse
from bitsback.extras import require
from bitsback.units import nats_to_bits

__all__ = [
    "BLOCKS",
    "STRENGTHS",
    "UNIFORM_SHARE",
    "Coded",
    "LabelSpreading",
    "LogisticRegression",
    "Predict",
    "code_labels",
    "with_shares",
]

BLOCKS = GrowingBlocks(first=1, growth=1.1)
"""The first label is coded uniformly; each block ends a tenth later than the one before, or one label later."""
UNIFORM_SHARE = 1e-3
SPREAD = 0.9
"""Zhou's alpha: the share of a score that comes from the neighbours."""
POWER = 2.0
LOWEST_SCORE = 1e-12
TOLERANCE = 1e-10
"""Of conjugate gradients: norm of the residual over that of the right side."""
STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse strengths of the L2 penalty, scikit-learn's C, of which the cheapest is named in the code."""
MOST_ITERATIONS = 1000
SHOWN_AFTER_SECONDS = 2.0

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From places of known labels (k,), those labels (k,) and places that are asked for (m,), to probabilities (m, classes)."""


@dataclass(frozen=True)
class Coded:
    """Labels in a prequential code.

    Attributes:
        probabilities: (n, classes), float64, in the order of the data: what each label was coded under.
        bits: -log2 of the probabilities of the labels, summed.
    """

    probabilities: Tensor
    bits: float


def code_labels(
    predict: Predict,
    labels: Tensor,
    classes: int,
    order: Tensor,
    *,
    ends: Sequence[int] | None = None,
    name: str = "labels",
    progress: bool = False,
) -> Coded:
    """Code labels in blocks, each from the labels of the blocks before it.

    Args:
        predict: makes predictions from known labels; not asked before there are any.
        labels: (n,), whole numbers below ``classes``.
        classes: how many there are.
        order: (n,), the places of the first, second, ... label of the code; may not depend on the labels.
        ends: of the blocks, the last one n; default: :data:`BLOCKS`.
        name: of the bar.
        progress: show a bar when it takes more than two seconds.

    >>> even = lambda known, told, asked: torch.full((len(asked), 2), 0.5)
    >>> coded = code_labels(even, torch.tensor([0, 1, 1]), 2, torch.arange(3))
    >>> coded.probabilities.shape, round(coded.bits, 1)  # 1 + 2 + 1: the class that was not seen before costs 2 bits
    (torch.Size([3, 2]), 4.0)
    """
    ends = BLOCKS.ends(len(labels)) if ends is None else ends
    found = torch.zeros(len(labels), classes, dtype=torch.float64)
    with tqdm(total=len(labels), desc=name, unit="label", disable=not progress, leave=False, delay=SHOWN_AFTER_SECONDS) as bar:
        for start, end in zip((0, *ends[:-1]), ends, strict=True):
            known, asked = order[:start], order[start:end]
            if start:
                found[asked] = with_shares(predict(known, labels[known], asked), labels[known])
            else:
                found[asked] = 1 / classes
            bar.update(end - start)
    nats = -float(found.gather(1, labels[:, None]).log().sum())
    return Coded(found, nats_to_bits(nats))


def with_shares(probabilities: Tensor, known: Tensor) -> Tensor:
    """Give every class that was not seen yet (1/2) / (k + classes / 2), and all classes together a share that is uniform.

    Args:
        probabilities: (m, classes), zero for classes not seen yet.
        known: (k,), the labels so far.

    >>> [round(share, 2) for share in with_shares(torch.tensor([[1.0, 0.0]]).double(), torch.tensor([0]))[0].tolist()]
    [0.75, 0.25]
    """
    classes = probabilities.shape[1]
    unseen = (torch.bincount(known, minlength=classes) == 0).double()
    share = 0.5 / (len(known) + 0.5 * classes) * unseen
    mixed = probabilities * (1 - unseen) / (probabilities * (1 - unseen)).sum(1, keepdim=True).clamp_min(LOWEST_SCORE)
    return (1 - UNIFORM_SHARE) * (mixed * (1 - share.sum()) + share) + UNIFORM_SHARE / classes


class LabelSpreading:
    """Learning with local and global consistency (Zhou, Bousquet, Lal, Weston & Schoelkopf 2003).

    Scores are F = (I - a S)^-1 Y with S = D^-1/2 W D^-1/2, where W are the graph's weights without those of points with
    themselves, D their sums, and Y (n, classes) has a one for each known label. The probability of a class is proportional to
    its score to the power of b.

    Args:
        graph: of the inputs.
        classes: how many there are.
        spread: a, from 0 up to but not including 1.
        power: b.

    >>> graph = DenseGraph(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), neighbours=1, sharpness=1.0)
    >>> spreading = LabelSpreading(graph, classes=2)
    >>> spreading(torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([1, 3])).argmax(1).tolist()
    [1, 0]
    """

    def __init__(self, graph: Graph, classes: int, *, spread: float = SPREAD, power: float = POWER) -> None:
        self._power = power
        solver = _DenseScores if isinstance(graph, DenseGraph) else _SparseScores
        self._scores = solver(graph.weights, classes, spread)
        self._graph = graph

    def __call__(self, known: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
        return self._probabilities(self._scores.of(known, labels)[asked])

    def elsewhere(self, known: Tensor, labels: Tensor, inputs: Tensor) -> Tensor:
        """Probabilities (m, classes) for inputs (m, ...) outside the graph, whose scores are averages over their neighbours."""
        return self._probabilities(self._graph.around(inputs, self._scores.of(known, labels)))

    def _probabilities(self, scores: Tensor) -> Tensor:
        powers = (scores.clamp_min(0) + LOWEST_SCORE) ** self._power
        return powers / powers.sum(1, keepdim=True)


class _DenseScores:
    """Scores from the inverse matrix, made once."""

    def __init__(self, weights: Tensor, classes: int, spread: float) -> None:
        self._classes = classes
        others = weights - torch.diag(weights.diag())
        degree = others.sum(1)
        scale = torch.where(degree > 0, degree, torch.ones_like(degree)).rsqrt()
        system = torch.eye(len(weights), dtype=torch.float64) - spread * scale[:, None] * others * scale
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))

    def of(self, known: Tensor, labels: Tensor) -> Tensor:
        return self._inverse[:, known] @ torch.nn.functional.one_hot(labels, self._classes).double()


class _SparseScores:
    """Scores by conjugate gradients, class by class, from those of the last call; a class without new labels keeps its own."""

    def __init__(self, weights: Any, classes: int, spread: float) -> None:
        sparse = scipy_sparse()
        others = (weights - sparse.diags(weights.diagonal())).tocsr()
        degree = np.asarray(others.sum(1)).ravel()
        scale = sparse.diags(np.where(degree > 0, degree, 1.0) ** -0.5)
        self._system = (sparse.identity(len(degree), format="csr") - spread * (scale @ others @ scale)).tocsr()
        self._marks = np.zeros((len(degree), classes))
        self._found = np.zeros((len(degree), classes))

    def of(self, known: Tensor, labels: Tensor) -> Tensor:
        from scipy.sparse.linalg import cg

        marks = np.zeros_like(self._marks)
        marks[known.numpy(), labels.numpy()] = 1.0
        for column in np.flatnonzero((marks != self._marks).any(0)):
            start = self._found[:, column]
            self._found[:, column], _ = cg(self._system, marks[:, column], x0=start, rtol=TOLERANCE, maxiter=MOST_ITERATIONS)
        self._marks = marks
        return torch.from_numpy(self._found.copy())


class LogisticRegression:
    """Multinomial logistic regression with an L2 penalty, by scikit-learn.

    Args:
        inputs: (n, ...), real numbers.
        classes: how many there are.
        strength: scikit-learn's C: the larger, the weaker the penalty.

    Raises:
        MissingExtraError: without scikit-learn, which the extra ``rivals`` brings.
    """

    def __init__(self, inputs: Tensor, classes: int, strength: float = 1.0) -> None:
        require("rivals", "the code 'logistic'")
        import sklearn.linear_model as linear_model

        self._linear_model = linear_model
        self._inputs, self._classes, self._strength = _flat(inputs), classes, strength
        self._fitted: tuple[Tensor, Any] | None = None

    def __call__(self, known: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
        return self._predict(known, labels, self._inputs[asked.numpy()])

    def elsewhere(self, known: Tensor, labels: Tensor, inputs: Tensor) -> Tensor:
        """Probabilities (m, classes) for other inputs (m, ...)."""
        return self._predict(known, labels, _flat(inputs))

    def _predict(self, known: Tensor, labels: Tensor, inputs: Any) -> Tensor:
        found = np.zeros((len(inputs), self._classes))
        seen = np.unique(labels.numpy())
        found[:, seen] = 1.0 if len(seen) == 1 else self._fit(known, labels).predict_proba(inputs)  # it takes two to be fitted
        return torch.from_numpy(found)

    def _fit(self, known: Tensor, labels: Tensor) -> Any:
        told = torch.stack([known, labels])
        if self._fitted is None or not torch.equal(self._fitted[0], told):
            model = self._linear_model.LogisticRegression(C=self._strength, max_iter=MOST_ITERATIONS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # one that has not converged predicts all the same, and pays for its mistakes
                self._fitted = told, model.fit(self._inputs[known.numpy()], labels.numpy())
        return self._fitted[1]


def _flat(inputs: Tensor) -> Any:
    return inputs.flatten(1).double().numpy()
