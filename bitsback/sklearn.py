"""Estimators of scikit-learn: networks with posteriors, trained by description length, for pipelines and searches.

What is not said is chosen as ``bitsback train table.csv`` chooses it. Inputs are numbers; they are scaled to mean 0 and std 1.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch

from bitsback.config.experiment import Experiment
from bitsback.config.load import validated
from bitsback.config.suited import suited
from bitsback.data import Examples
from bitsback.data.settings import GivenDataSettings
from bitsback.errors import BitsbackError
from bitsback.extras import require
from bitsback.model import Prediction
from bitsback.torch_state import seeded

require("sklearn", "bitsback.sklearn")

from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin  # noqa: E402
from sklearn.utils import check_random_state  # noqa: E402
from sklearn.utils.multiclass import check_classification_targets  # noqa: E402
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data  # noqa: E402

__all__ = ["BitsClassifier", "BitsRegressor"]

SEEDS = 2**31 - 1
"""Number of seeds that are drawn from."""

OF_LABELS = ("bernoulli", "categorical", "tokens")
"""Likelihoods of labels, by kind."""

Section = Mapping[str, Any] | str | None
"""A section of a configuration, as in YAML, or its kind alone; None: chosen by the data, or the default."""


def _section(given: Mapping[str, Any] | str) -> dict[str, Any]:
    """Return a section of a configuration, which may be given by its kind alone."""
    return {"kind": given} if isinstance(given, str) else dict(given)


class _Estimator(BaseEstimator):  # type: ignore[misc]  # without types
    """Base class of both estimators: parameters, training and draws."""

    def __init__(
        self,
        *,
        network: Section = None,
        prior: Section = None,
        posterior: Section = None,
        training: Section = None,
        samples: int = 20,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.network = network
        self.prior = prior
        self.posterior = posterior
        self.training = training
        self.samples = samples
        self.random_state = random_state
        self.verbose = verbose

    def _checked(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs (n, k), float64, and targets (n,)."""
        y = column_or_1d(y, warn=True) if y is not None else y
        inputs, targets = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        return inputs, targets

    def _train(self, inputs: np.ndarray, targets: np.ndarray, likelihood: Mapping[str, Any]) -> None:
        """Train; the model is kept in float64, in which what is predicted for a row hardly depends on the rows beside it.

        Args:
            inputs: (n, k).
            targets: (n,).
            likelihood: of the targets.

        Raises:
            ValueError: for settings, a network or targets that do not do.
        """
        seed = int(check_random_state(self.random_state).randint(SEEDS))
        data = GivenDataSettings(name="in memory", examples=len(inputs))
        sections = {"network": self.network, "prior": self.prior, "posterior": self.posterior, "training": self.training}
        said = {name: _section(section) for name, section in sections.items() if section is not None}
        values = {**said, "likelihood": dict(likelihood), "data": data.model_dump(), "seed": seed}
        try:
            dataset = data.finish("in memory", Examples(torch.tensor(inputs), torch.tensor(targets)), None)
            scaled = replace(dataset, train=replace(dataset.train, inputs=dataset.train.inputs.float()))
            config = suited(validated(values, [], {}, type(self).__name__), scaled)
            with seeded(seed, torch.device("cpu")):  # the caller's generator stays as it is
                experiment = Experiment.build(config, dataset=scaled)
                self.ledger_ = experiment.train(None, progress=bool(self.verbose)).ledger
        except BitsbackError as error:
            raise ValueError(str(error)) from error
        self.config_, self.preprocessing_ = experiment.config, dataset.preprocessing
        self.model_ = experiment.double().model.eval()

    def _predicted(self, X: Any) -> Prediction:
        """Return the predictions for inputs (n, k), averaged over draws that are the same in every call."""
        check_is_fitted(self)
        inputs = self.preprocessing_(torch.tensor(validate_data(self, X, dtype=np.float64, reset=False)))
        try:
            return self.model_.predict(inputs, self.samples, seed=self.config_.seed)
        except BitsbackError as error:
            raise ValueError(str(error)) from error


class BitsClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """A classifier whose description of the training labels, its weights included, is as short as training can make it.

    Args:
        network: section ``network`` of a configuration, such as ``{"kind": "mlp", "hidden": [64]}``; default: a hidden layer
            beside a linear one.
        prior: section ``prior``, such as ``{"kind": "laplace"}``, or its kind alone, ``"laplace"``.
        posterior: section ``posterior``.
        training: section ``training``, or some of its keys, such as ``{"epochs": 100}``.
        samples: weight draws over which predictions are averaged.
        random_state: seed of initial weights, batches and draws; None: drawn from numpy's generator.
        verbose: 1 shows a progress bar.

    Attributes:
        classes_: labels, sorted, (c,).
        ledger_: what labels and weights cost, in bits: a :class:`bitsback.Ledger`.
        model_: the network with its posteriors, in float64.
        config_: the configuration, with all that was chosen.
        n_features_in_: columns of the inputs.

    >>> from sklearn.datasets import load_iris
    >>> inputs, labels = load_iris(return_X_y=True)
    >>> found = BitsClassifier(training={"epochs": 30}, random_state=0).fit(inputs, labels)
    >>> found.score(inputs, labels) > 0.9, found.ledger_.examples
    (True, 150)
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Train.

        Args:
            X: (n, k), numbers.
            y: (n,), labels: texts or whole numbers.

        Returns:
            the estimator.

        Raises:
            ValueError: for inputs or labels that do not do, and for settings that are not valid.
        """
        inputs, labels = self._checked(X, y)
        check_classification_targets(labels)
        self.classes_, targets = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            only = str(self.classes_[0])
            raise ValueError(f"every label is {only!r}: one class leaves nothing to describe; give two or more")
        self._train(inputs, targets, {"kind": "categorical", "classes": len(self.classes_)})
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes, averaged over draws.

        Args:
            X: (n, k), numbers.

        Returns:
            (n, c), in the order of ``classes_``.
        """
        return self._predicted(X).mean.numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each row.

        Args:
            X: (n, k), numbers.

        Returns:
            (n,).
        """
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]


class BitsRegressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """A regressor whose description of the training targets, its weights included, is as short as training can make it.

    Args:
        network: section ``network`` of a configuration, such as ``{"kind": "mlp", "hidden": [64]}``; default: a hidden layer
            beside a linear one.
        likelihood: section ``likelihood``; default: ``{"kind": "gaussian"}``, with a noise that is learned. With
            ``noise: predicted`` every row has its own; ``{"kind": "poisson"}`` describes counts.
        prior: section ``prior``, such as ``{"kind": "laplace"}``, or its kind alone, ``"laplace"``.
        posterior: section ``posterior``.
        training: section ``training``, or some of its keys, such as ``{"epochs": 100}``.
        samples: weight draws over which predictions are averaged.
        random_state: seed of initial weights, batches and draws; None: drawn from numpy's generator.
        verbose: 1 shows a progress bar.

    Attributes:
        ledger_: what targets and weights cost, in bits: a :class:`bitsback.Ledger`.
        model_: the network with its posteriors, in float64.
        config_: the configuration, with all that was chosen.
        n_features_in_: columns of the inputs.

    >>> from sklearn.datasets import load_diabetes
    >>> inputs, targets = load_diabetes(return_X_y=True)
    >>> found = BitsRegressor(training={"epochs": 60}, random_state=0).fit(inputs, targets)
    >>> mean, std = found.predict(inputs[:5], return_std=True)
    >>> found.score(inputs, targets) > 0.3, mean.shape, std.shape
    (True, (5,), (5,))
    """

    def __init__(
        self,
        *,
        network: Section = None,
        likelihood: Section = None,
        prior: Section = None,
        posterior: Section = None,
        training: Section = None,
        samples: int = 20,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            network=network,
            prior=prior,
            posterior=posterior,
            training=training,
            samples=samples,
            random_state=random_state,
            verbose=verbose,
        )
        self.likelihood = likelihood

    def fit(self, X: Any, y: Any) -> Self:
        """Train.

        Args:
            X: (n, k), numbers.
            y: (n,), numbers.

        Returns:
            the estimator.

        Raises:
            ValueError: for inputs or targets that do not do, and for settings that are not valid.
        """
        inputs, targets = self._checked(X, y)
        likelihood = _section(self.likelihood or "gaussian")
        if (kind := str(likelihood.get("kind"))) in OF_LABELS:
            raise ValueError(
                f"likelihood.kind={kind} describes labels, and a regressor predicts numbers; use BitsClassifier, or a "
                "likelihood of numbers such as gaussian or poisson"
            )
        targets = targets.astype(np.float64)
        if (targets == targets[0]).all():
            raise ValueError(f"every target is {targets[0]:g}: there is nothing to describe; give targets that differ")
        self._train(inputs, targets, likelihood)
        return self

    def predict(self, X: Any, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return the predictive mean of each row.

        Args:
            X: (n, k), numbers.
            return_std: return the predictive std as well: the noise, and the spread of the means over draws.

        Returns:
            (n,), or a pair of such arrays.
        """
        found = self._predicted(X)
        mean = found.mean.reshape(len(found.mean)).numpy()
        if not return_std:
            return mean
        assert found.std is not None
        return mean, found.std.reshape(len(mean)).numpy()
