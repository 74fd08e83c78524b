"""The estimators keep scikit-learn's contract, and are the package's own training and prediction."""

import copy
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

import bitsback

sklearn = pytest.importorskip("sklearn")
from sklearn import datasets  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.metrics import log_loss  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from bitsback.sklearn import BitsClassifier, BitsRegressor  # noqa: E402

torch.set_num_threads(1)

SHORT = {"epochs": 40}


@pytest.fixture(scope="module")
def wine():
    return datasets.load_wine(return_X_y=True)


@pytest.fixture(scope="module")
def classifier(wine):
    return BitsClassifier(training={"epochs": 100}, random_state=1).fit(*wine)


@pytest.fixture(scope="module")
def line():
    """y = 100 + 20 x + noise of std 4, with a column of noise; and its rows."""
    made = np.random.default_rng(0)
    inputs = made.normal(size=(300, 2))
    return inputs, np.round(100 + 20 * inputs[:, 0] + 4 * made.normal(size=300), 2)


@pytest.fixture(scope="module")
def regressor(line):
    return BitsRegressor(training={"epochs": 100}, random_state=1).fit(*line)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [BitsClassifier, BitsRegressor])
def test_scikit_learn_finds_nothing_wrong(estimator):
    found = check_estimator(estimator(training=SHORT, samples=5), on_skip=None)
    assert len(found) > 40
    assert {one["status"] for one in found} <= {"passed", "skipped"}  # skipped: checks of array libraries that are not here
    assert not [one for one in found if one["expected_to_fail"]]


def test_the_ledger_pays_for_labels_and_weights(classifier, wine):
    ledger = classifier.ledger_
    assert (ledger.examples, ledger.weights) == (178, 16 * 13 + 16 + 3 * 16 + 3 * 13 + 3)
    assert ledger.net_bits < 0.7 * ledger.marginal_bits
    assert classifier.score(*wine) > 0.95


def test_probabilities_are_those_of_the_model(classifier, wine):
    inputs, labels = wine
    scaled = torch.tensor((inputs - inputs.mean(0)) / inputs.std(0))
    expected = classifier.model_.predict(scaled, 20, seed=classifier.config_.seed, targets=labels)
    found = classifier.predict_proba(inputs)
    np.testing.assert_allclose(found, expected.mean.numpy(), atol=1e-5)  # means and stds are kept in float32
    assert log_loss(labels, found) == pytest.approx(expected.bits.mean().item() * math.log(2), abs=1e-4)
    assert (classifier.predict(inputs) == found.argmax(1)).all()


def test_text_labels_come_back(wine):
    inputs, labels = wine
    names = np.array(["red", "white", "rose"])[labels]
    found = BitsClassifier(training=SHORT, random_state=0).fit(inputs, names)
    assert found.classes_.tolist() == ["red", "rose", "white"]
    assert found.score(inputs, names) > 0.9


def test_a_regressor_finds_line_and_noise(regressor, line):
    inputs, targets = line
    mean, std = regressor.predict(inputs, return_std=True)
    left = np.sqrt(np.mean((mean - targets) ** 2))
    assert left == pytest.approx(4, rel=0.15)  # 300 residuals: a std is known to 4 %
    assert std.mean() == pytest.approx(4, rel=0.2)
    assert regressor.score(inputs, targets) == pytest.approx(1 - left**2 / targets.var())
    assert regressor.ledger_.net_bits < regressor.ledger_.marginal_bits


def test_the_noise_may_differ_from_row_to_row():
    made = np.random.default_rng(0)
    inputs = made.uniform(-1, 1, size=(400, 1))
    targets = made.normal(size=400) * np.where(inputs[:, 0] > 0, 4.0, 0.5)
    settings = {"kind": "gaussian", "noise": "predicted"}
    found = BitsRegressor(likelihood=settings, training={"epochs": 150}, random_state=0).fit(inputs, targets)
    _, std = found.predict(np.array([[-0.5], [0.5]]), return_std=True)
    assert std[1] > 3 * std[0]


def test_a_seed_decides_everything(classifier, wine):
    again = BitsClassifier(training={"epochs": 100}, random_state=1).fit(*wine)
    np.testing.assert_array_equal(again.predict_proba(wine[0]), classifier.predict_proba(wine[0]))
    other = BitsClassifier(training={"epochs": 100}, random_state=2).fit(*wine)
    assert np.abs(other.predict_proba(wine[0]) - classifier.predict_proba(wine[0])).max() > 1e-4


def test_an_estimator_is_cloned_copied_and_pickled(classifier, wine):
    fresh = clone(classifier)
    assert fresh.get_params() == classifier.get_params()
    assert not hasattr(fresh, "ledger_")
    for twin in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        np.testing.assert_array_equal(twin.predict_proba(wine[0]), classifier.predict_proba(wine[0]))
        assert twin.ledger_.net_bits == classifier.ledger_.net_bits


def test_pipelines_and_searches_take_it(wine):
    small = BitsClassifier(training={"epochs": 15}, samples=3, random_state=0)
    assert cross_val_score(make_pipeline(StandardScaler(), small), *wine, cv=2).mean() > 0.8
    search = GridSearchCV(small, {"network": [None, {"kind": "mlp", "hidden": []}]}, cv=2).fit(*wine)
    assert search.best_score_ > 0.8
    assert search.best_estimator_.ledger_.examples == 178


def test_what_is_said_is_used(line):
    said = {"network": {"kind": "mlp", "hidden": []}, "prior": {"kind": "laplace"}, "training": {"epochs": 2}}
    found = BitsRegressor(**said).fit(*line)
    assert found.ledger_.weights == 3
    assert (found.config_.prior.kind, found.config_.training.epochs) == ("laplace", 2)


def test_a_section_may_be_its_kind_alone(line):
    found = BitsRegressor(prior="laplace", training={"epochs": 1}, random_state=0).fit(*line)
    assert found.config_.prior.kind == "laplace"


def test_nothing_is_printed(line, capfd):
    BitsRegressor(training={"epochs": 2}).fit(*line)
    assert capfd.readouterr() == ("", "")
    BitsRegressor(training={"epochs": 2}, verbose=1).fit(*line)
    assert "net" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"training": {"epoch": 2}}, "training.epoch"),
        ({"network": {"kind": "mlpp"}}, "network"),
        ({"network": {"kind": "sequential", "layers": ["Conv2d"]}}, "Conv2d"),
    ],
)
def test_bad_settings_are_named(settings, said, line):
    with pytest.raises(ValueError, match=said):
        BitsRegressor(**settings).fit(*line)


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "tokens"])
def test_a_regressor_takes_no_likelihood_of_labels(kind, line):
    with pytest.raises(ValueError, match=f"likelihood.kind={kind} describes labels.*BitsClassifier"):
        BitsRegressor(likelihood={"kind": kind}).fit(*line)


def test_training_leaves_the_random_generator_of_torch_as_it_is(line):
    before = torch.get_rng_state()
    BitsRegressor(training={"epochs": 2}, random_state=3).fit(*line).predict(line[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_constant_target_is_refused(line):
    with pytest.raises(ValueError, match=r"every target is 2\.5: there is nothing to describe"):
        BitsRegressor().fit(line[0], np.full(len(line[0]), 2.5))


def test_one_class_is_refused(wine):
    with pytest.raises(ValueError, match="one class"):
        BitsClassifier().fit(wine[0], np.zeros(178, dtype=int))


def test_scikit_learn_is_imported_only_when_asked_for():
    code = "import sys, bitsback; bitsback.train; assert 'sklearn' not in sys.modules; bitsback.sklearn.BitsRegressor()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "sklearn" in dir(bitsback)
