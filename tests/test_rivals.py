"""Codes without a network: each against a reference of a few lines, and each a code."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Reference

from bitsback.analysis._rivals import label_spreading, logistic
from bitsback.analysis.codelengths import Codelengths
from bitsback.analysis.rival_codes import BLOCKS, STRENGTHS, UNIFORM_SHARE, LabelSpreading, LogisticRegression, code_labels
from bitsback.coding.philox import shuffled
from bitsback.config import Config, load_config
from bitsback.config.coding_settings import GrowingBlocks
from bitsback.data._diffusion_map import sparse_walk_modes
from bitsback.data.graph import DenseGraph, SparseGraph
from bitsback.data.settings import Chain, PrincipalComponents, RandomWalkModes
from bitsback.errors import ConfigError, MissingExtraError
from bitsback.units import nats_to_bits

COUNT, CLASSES = 90, 4
ENDS = (16, 32, 64, COUNT)
WALK = RandomWalkModes(features=5, neighbours=4, sharpness=2.0)


@pytest.fixture(scope="module")
def points():
    """Four clusters that overlap, their labels, and an order."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    centres = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])
    return centres[labels] + 0.7 * torch.randn(COUNT, 3, generator=draw), labels, torch.randperm(COUNT, generator=draw)


def graph_of(x, edges):
    return WALK.model_copy(update={"edges": edges}).graph(x)


def predictors(x):
    return {
        "dense": LabelSpreading(graph_of(x, None), CLASSES),
        "sparse": LabelSpreading(graph_of(x, 6), CLASSES),
        "logistic": LogisticRegression(x, CLASSES, 10.0),
    }


def shared(raw, told):
    """The probabilities of a predictor, with a share for classes not seen yet, and one for all."""
    counts = np.bincount(told, minlength=CLASSES)
    unseen = (counts == 0) / (2 * len(told) + CLASSES)
    raw = np.where(counts > 0, raw, 0.0)
    return (1 - UNIFORM_SHARE) * (raw / raw.sum(1, keepdims=True) * (1 - unseen.sum()) + unseen) + UNIFORM_SHARE / CLASSES


def naive_affinity(x, edges):
    """The weights of the graph, pair by pair."""
    x = x.double().numpy()
    distance = np.linalg.norm(x[:, None] - x, axis=2)
    reach = np.sort(distance, axis=1)[:, WALK.neighbours]
    weights = np.exp(-WALK.sharpness * distance**2 / (reach[:, None] * reach))
    np.fill_diagonal(weights, 0)
    if edges is not None:
        limit = np.sort(distance, axis=1)[:, edges]
        joined = distance <= limit[:, None]
        weights *= joined | joined.T
    return weights


def naive_spreading(x, edges, labels, order, spread=0.9, power=2):
    weights = naive_affinity(x, edges)
    degree = weights.sum(1)
    system = np.eye(COUNT) - spread * weights / np.sqrt(degree[:, None] * degree)
    found = np.full((COUNT, CLASSES), 1 / CLASSES)
    for start, end in pairwise(ENDS):
        known, asked = order[:start], order[start:end]
        marks = np.zeros((COUNT, CLASSES))
        marks[known, labels[known]] = 1
        scores = np.linalg.solve(system, marks)[asked] ** power
        found[asked] = shared(scores / scores.sum(1, keepdims=True), labels[known])
    return found


@pytest.mark.parametrize("edges", [None, 6])
def test_label_spreading_solves_the_equation_of_its_paper(points, edges):
    x, labels, order = points
    coded = code_labels(LabelSpreading(graph_of(x, edges), CLASSES), labels, CLASSES, order, ends=ENDS)
    wanted = naive_spreading(x, edges, labels.numpy(), order.numpy())
    np.testing.assert_allclose(coded.probabilities.numpy(), wanted, rtol=1e-4)  # sparse graphs are made in float32
    assert coded.bits == pytest.approx(-np.log2(wanted[np.arange(COUNT), labels.numpy()]).sum(), rel=1e-5)
    assert coded.bits < 0.7 * COUNT * math.log2(CLASSES)


def test_logistic_is_a_loop_over_scikit_learn(points):
    x, labels, order = (each.numpy() for each in points)
    wanted = np.full((COUNT, CLASSES), 1 / CLASSES)
    for start, end in pairwise(ENDS):
        known, asked = order[:start], order[start:end]
        model = Reference(C=10.0, max_iter=1000).fit(x[known].astype(float), labels[known])
        raw = np.zeros((len(asked), CLASSES))
        raw[:, model.classes_] = model.predict_proba(x[asked].astype(float))
        wanted[asked] = shared(raw, labels[known])
    coded = code_labels(LogisticRegression(points[0], CLASSES, 10.0), *points[1:2], CLASSES, points[2], ends=ENDS)
    np.testing.assert_allclose(coded.probabilities.numpy(), wanted, rtol=1e-6)
    assert coded.bits == pytest.approx(-np.log2(wanted[np.arange(COUNT), labels]).sum())


@pytest.mark.parametrize("name", ["dense", "sparse", "logistic"])
@pytest.mark.parametrize("ends", [ENDS, BLOCKS.ends(COUNT)], ids=["doubling", "growing by a tenth"])
def test_every_label_has_probabilities_that_sum_to_one(points, name, ends):
    x, labels, order = points
    coded = code_labels(predictors(x)[name], labels, CLASSES, order, ends=ends)
    np.testing.assert_allclose(coded.probabilities.sum(1).numpy(), 1, rtol=1e-12)
    assert float(coded.probabilities.min()) >= UNIFORM_SHARE / CLASSES * (1 - 1e-9)
    assert coded.bits == pytest.approx(nats_to_bits(-float(coded.probabilities.gather(1, labels[:, None]).log().sum())))
    assert (coded.probabilities[order[: ends[0]]] == 1 / CLASSES).all()


@pytest.mark.parametrize("name", ["dense", "sparse", "logistic"])
def test_a_block_is_predicted_without_its_own_and_later_labels(points, name):
    x, labels, order = points
    before = code_labels(predictors(x)[name], labels, CLASSES, order, ends=ENDS).probabilities
    others = labels.clone()
    others[order[32:]] = (labels[order[32:]] + 1) % CLASSES
    after = code_labels(predictors(x)[name], others, CLASSES, order, ends=ENDS).probabilities
    assert torch.equal(before[order[:64]], after[order[:64]])  # the third block, 32 to 64, is coded from the first 32
    assert not torch.allclose(before[order[64:]], after[order[64:]])


@pytest.mark.parametrize("name", ["dense", "sparse", "logistic"])
def test_other_names_for_the_classes_change_nothing(points, name):
    x, labels, order = points
    renamed = torch.tensor([2, 0, 3, 1])
    before = code_labels(predictors(x)[name], labels, CLASSES, order, ends=ENDS)
    after = code_labels(predictors(x)[name], renamed[labels], CLASSES, order, ends=ENDS)
    rtol = 1e-2 if name == "logistic" else 1e-9  # an iteration that ends a little elsewhere
    np.testing.assert_allclose(after.probabilities[:, renamed].numpy(), before.probabilities.numpy(), rtol=rtol)
    assert after.bits == pytest.approx(before.bits, rel=1e-3)


@pytest.mark.parametrize("name", ["dense", "sparse", "logistic"])
def test_the_first_label_of_a_class_costs_its_share(points, name):
    x, labels, order = points
    late = torch.cat([order[labels[order] != 3], order[labels[order] == 3]])
    known = int((labels != 3).sum())
    coded = code_labels(predictors(x)[name], labels, CLASSES, late, ends=(16, known, COUNT))
    share = (1 - UNIFORM_SHARE) / (2 * known + CLASSES) + UNIFORM_SHARE / CLASSES
    np.testing.assert_allclose(coded.probabilities[late[known:], 3].numpy(), share, rtol=1e-9)


@pytest.mark.parametrize("name", ["dense", "sparse", "logistic"])
def test_one_class_is_enough_to_begin_with(points, name):
    x, labels, order = points
    alike = torch.cat([order[labels[order] == 0], order[labels[order] != 0]])
    coded = code_labels(predictors(x)[name], labels, CLASSES, alike, ends=(1, 2, COUNT))
    share = (1 - UNIFORM_SHARE) * (1 - 3 / (2 + CLASSES)) + UNIFORM_SHARE / CLASSES
    assert float(coded.probabilities[alike[1], 0]) == pytest.approx(share)


def test_points_that_reach_no_label_are_coded_uniformly():
    x = torch.cat([torch.linspace(0, 1, 12), torch.linspace(1e6, 1e6 + 1, 12)])[:, None].double()
    labels = torch.tensor([0] * 6 + [1] * 6 + [0] * 6 + [1] * 6)
    graph = RandomWalkModes(features=2, neighbours=3, sharpness=8.0).graph(x)
    coded = code_labels(LabelSpreading(graph, 2), labels, 2, torch.arange(24), ends=(12, 24))
    np.testing.assert_allclose(coded.probabilities[12:].numpy(), 0.5, rtol=1e-6)


def test_a_point_alone_is_no_fault():
    """Its weights underflow to zero, and so does its degree."""
    x = torch.cat([torch.linspace(0, 1, 20), torch.tensor([1e9])])[:, None].double()
    graph = DenseGraph(x, neighbours=3, sharpness=8.0)
    assert float(graph.weights[-1, :-1].sum()) == 0
    found = LabelSpreading(graph, 2)(torch.tensor([0, 19]), torch.tensor([0, 1]), torch.tensor([1, 18, 20]))
    assert found.argmax(1)[:2].tolist() == [0, 1]
    np.testing.assert_allclose(found[2].numpy(), 0.5)


# --- the same graph as that of the features ---------------------------------------------------------------------------


@pytest.mark.parametrize("edges", [None, 8])
@pytest.mark.parametrize("chained", [False, True])
def test_the_graph_is_the_one_of_the_features(monkeypatch, edges, chained):
    walk = RandomWalkModes(features=4, neighbours=5, edges=edges)
    features = Chain(maps=(PrincipalComponents(features=12), walk)) if chained else walk
    config = Config.model_validate({"data": {"kind": "digits", "limit": 120, "features": features.model_dump()}})
    seen = []
    monkeypatch.setattr("bitsback.analysis._rivals.LabelSpreading", lambda graph, classes: seen.append(graph) or Stop())
    dataset = config.data.load()
    with pytest.raises(Stopped):
        label_spreading(config, dataset, 10, progress=False)
    (graph,) = seen
    if isinstance(graph, SparseGraph):
        modes = sparse_walk_modes(graph, 4)(graph._points)
    else:
        degree = graph.weights.sum(1)
        vectors = torch.linalg.eigh(graph.weights / (degree[:, None] * degree).sqrt()).eigenvectors
        modes = (vectors / degree.sqrt()[:, None] * degree.sum().sqrt()).flip(1)[:, :4]
        modes = modes * (modes * dataset.train.inputs).sum(0).sign()
    np.testing.assert_allclose(modes.numpy(), dataset.train.inputs.numpy(), atol=1e-4)


class Stopped(Exception):
    pass


class Stop:
    def __call__(self, *_):
        raise Stopped


# --- rows of the table ------------------------------------------------------------------------------------------------


def test_on_the_digits_label_spreading_costs_less_than_the_network():
    """The number of the README, of seed 0: the network has 251."""
    config = load_config("configs/digits.yaml")
    spread = label_spreading(config, config.data.load(), 10, progress=False)
    assert (spread.choice_bits, spread.label_bits) == (0, pytest.approx(191, abs=2))
    assert spread.test_error < 0.02


@pytest.mark.slow
def test_so_does_logistic_regression_on_the_modes():
    config = load_config("configs/digits.yaml")
    dataset = config.data.load()
    regression = logistic(config, dataset, 10, strengths=(10.0,), progress=False)  # the cheapest of the three
    assert regression.choice_bits == 0
    assert regression.label_bits == pytest.approx(201, abs=4)
    assert regression.test_error < 0.02


def test_blocks_that_double_cost_more_than_blocks_that_grow_by_a_tenth():
    config = load_config("configs/digits.yaml")
    train = config.data.model_copy(update={"features": None}).load().train
    spreading, labels = LabelSpreading(config.data.features.graph(train.inputs), 10), train.targets
    order = torch.from_numpy(shuffled(0, 0, len(labels)))
    blocks = (BLOCKS, GrowingBlocks(first=16, growth=2.0))
    few, doubling = (code_labels(spreading, labels, 10, order, ends=b.ends(len(labels))).bits for b in blocks)
    assert few == pytest.approx(191, abs=2)
    assert doubling == pytest.approx(255, abs=2)


def test_the_cheapest_penalty_is_named_and_charged():
    config = Config.model_validate({"seed": 5, "data": {"kind": "digits", "limit": 40}})
    dataset = config.data.load()
    order = torch.from_numpy(shuffled(5, 0, 40))
    bits = [
        code_labels(LogisticRegression(dataset.train.inputs, 10, c), dataset.train.targets, 10, order).bits for c in STRENGTHS
    ]
    found = logistic(config, dataset, 10, progress=False)
    assert found.label_bits == pytest.approx(min(bits), rel=1e-9)
    assert f"C {STRENGTHS[int(np.argmin(bits))]:g}," in found.how
    assert found.choice_bits == math.log2(len(STRENGTHS))


def test_both_are_rows_of_the_table(run_command):
    found = run_command("codelengths", "configs/digits.yaml", "data.limit=60", "--codes", "label_spreading,logistic", "--json")
    assert found.code == 0, found.err
    rows = json.loads(found.out)
    assert list(rows) == ["label_spreading", "logistic"]
    for row in rows.values():
        assert row["total_bits"] == pytest.approx(row["model_bits"] + row["data_bits"])
        assert row["ratio"] == pytest.approx(row["total_bits"] / (60 * math.log2(10)))
        assert 0 < row["ratio"] < 0.7
        assert not row["decodable"]
    assert (
        "label_spreading"
        in run_command("codelengths", "configs/digits.yaml", "data.limit=60", "--codes", "label_spreading").out
    )


@pytest.mark.parametrize("config", ["digits_linear", "digits_mlp"])  # without features, and with others
def test_a_row_without_a_graph_says_what_it_needs(run_command, config):
    words = [f"configs/{config}.yaml", "data.limit=100", "--codes", "label_spreading"]
    found = run_command("codelengths", *words)
    assert found.code == 0
    assert "needs data.features: random_walk_modes" in found.out
    row = json.loads(run_command("codelengths", *words, "--json").out)["label_spreading"]
    assert row["how"] == "needs data.features: random_walk_modes"
    assert [row[name] for name in ("model_bits", "data_bits", "total_bits", "ratio", "test_error")] == [None] * 5


def test_modes_in_the_middle_of_a_chain_do_not_count():
    maps = [{"kind": "random_walk_modes", "features": 4}, {"kind": "principal_components", "features": 3}]
    config = Config.model_validate({"data": {"kind": "digits", "limit": 100, "features": {"kind": "chain", "maps": maps}}})
    with pytest.raises(ConfigError, match=r"needs data\.features: random_walk_modes"):
        label_spreading(config, config.data.load(), 10, progress=False)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("bitsback.extras._is_installed", lambda module: False)
    with pytest.raises(MissingExtraError, match=r"sklearn.*pip install 'bitsback\[rivals\]'"):
        LogisticRegression(torch.zeros(3, 2), 2)
    config = Config.model_validate({"data": {"kind": "digits", "limit": 50}})
    row = Codelengths(config, ("logistic",), progress=False).row("logistic")
    assert row.total_bits is None
    assert "bitsback[rivals]" in row.how


def test_targets_that_are_no_labels_are_refused(run_command):
    found = run_command("codelengths", "configs/regression.yaml", "--codes", "label_spreading,logistic")
    assert found.code != 0
    assert "give data with labels" in found.err.splitlines()[-1]
    assert found.out == ""
