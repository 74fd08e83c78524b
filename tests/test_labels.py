"""Labels as they come: whole numbers from anywhere, or texts; what no code describes is refused with the fix."""

import json
import math
import re

import numpy as np
import pytest
import torch

from bitsback.config import Experiment, load_run
from bitsback.config.schema import Config
from bitsback.errors import BitsbackError, DataError
from bitsback.likelihoods import BernoulliLikelihood, CategoricalLikelihood, PoissonLikelihood
from bitsback.model import bayesianize, evaluate, take_ledger

torch.set_num_threads(1)
CENTRES = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])


def table(folder, targets, name="table", **arrays):
    """An NPZ file of two inputs that lie around the centre of their class."""
    classes = np.unique(targets, return_inverse=True)[1] % 3
    inputs = CENTRES[classes] + np.random.default_rng(0).normal(size=(len(targets), 2))
    np.savez(folder / f"{name}.npz", inputs=inputs, targets=targets, **arrays)
    return folder / f"{name}.npz"


def config(path, **sections):
    base = {
        "data": {"kind": "npz", "path": str(path)},
        "training": {"epochs": 300, "optimizer": {"name": "Adam", "lr": 0.03}},
        "ledger": {"samples": 5},
    }
    return Config.model_validate({**base, "logging": {"report": False}, **sections})


def build(path, **sections):
    return Experiment.build(config(path, **sections))


@pytest.mark.parametrize(
    ("labels", "of_three"),
    [
        (np.array([1, 2, 3]), (1, 2, 3)),
        (np.array([1990, 1992, 1991]), (1990, 1991, 1992)),
        (np.array([10**7, 3, -5]), (-5, 3, 10**7)),
        (np.array(["cat", "ant", "bee"]), ("ant", "bee", "cat")),
        (np.array([b"x", b"y", b"z"]), ("x", "y", "z")),
    ],
)
def test_classes_are_the_distinct_labels_and_come_back(tmp_path, labels, of_three, run_command):
    targets = np.tile(labels, 32)
    experiment = build(table(tmp_path, targets))
    assert experiment.config.likelihood.labels == of_three
    assert experiment.likelihood.classes == 3
    assert sorted(experiment.dataset.train.targets.unique().tolist()) == [0, 1, 2]
    train = experiment.dataset.train.targets
    assert experiment.likelihood.uniform_bits(train) == pytest.approx(len(train) * math.log2(3))  # 1,993 classes: 10.96 each
    said = experiment.train(tmp_path / "run", progress=False).ledger.notes
    assert any(f"'{of_three[0]}', '{of_three[1]}', '{of_three[2]}'" in note and "classes 0 to 2" in note for note in said)
    assert load_run(tmp_path / "run").config.likelihood.labels == of_three
    np.save(tmp_path / "asked.npy", CENTRES)
    answers = json.loads(run_command("predict", tmp_path / "run", "--data", tmp_path / "asked.npy", "--json").out)
    assert [answer["class"] for answer in answers] == list(of_three)
    run_command("pack", tmp_path / "run", "-o", tmp_path / "model.bb")
    answers = json.loads(run_command("predict", tmp_path / "model.bb", "--data", tmp_path / "asked.npy", "--json").out)
    assert [answer["class"] for answer in answers] == list(of_three)


def test_labels_from_zero_up_need_no_list(tmp_path):
    experiment = build(table(tmp_path, np.arange(60) % 3))
    assert experiment.config.likelihood.labels is None
    assert experiment.likelihood.classes == 3


def test_a_missing_label_in_between_is_no_class(tmp_path):
    experiment = build(table(tmp_path, np.array([0, 1, 3] * 20)))
    assert experiment.config.likelihood.labels == (0, 1, 3)


def test_a_label_that_only_the_test_split_has_is_a_class_too(tmp_path):
    path = table(tmp_path, np.arange(60) % 3, test_inputs=np.zeros((2, 2)), test_targets=np.array([0, 7]))
    experiment = build(path)
    assert experiment.config.likelihood.labels == (0, 1, 2, 7)
    assert "that labels 7 exist, which no training example has" in experiment.dataset.train.assumed


def test_a_message_brings_texts_back(tmp_path, run_command):
    targets = np.tile(np.array(["cat", "ant", "bee"]), 20)
    path = table(tmp_path, targets)
    (tmp_path / "c.yaml").write_text(f"data: {{kind: npz, path: {path}, test_fraction: 0}}\ntraining: {{epochs: 3}}\n")
    (tmp_path / "payload").write_bytes(bytes(range(256)))
    run_command("send", tmp_path / "c.yaml", "--payload", tmp_path / "payload", "-o", tmp_path / "m.bbm")
    run_command("receive", tmp_path / "m.bbm", "-o", tmp_path / "out", f"--data.path={path}")
    assert np.load(tmp_path / "out" / "labels.npy").tolist() == targets.tolist()
    assert (tmp_path / "out" / "payload").read_bytes() == bytes(range(256))


LAST = {"kind": "sequential", "layers": [{"Linear": {"out_features": 3}}]}


@pytest.mark.parametrize(
    ("targets", "sections", "message"),
    [
        (
            np.array([1, 2, 3] * 20),
            {"likelihood": {"kind": "categorical", "classes": 3}},
            "is 3; labels must be .* from 0 to 2",
        ),
        (np.array([1, 2, 3] * 20), {"network": LAST}, "is 3; labels must be whole numbers from 0 to 2"),
        (np.array(["a", "b"] * 20), {"network": LAST}, "2 distinct labels, and 3 classes are declared"),
        (np.array(["a", "b"] * 20), {"likelihood": {"kind": "poisson"}}, "are texts, such as 'a', which .*poisson cannot"),
        (np.array(["a"] * 40), {}, "every label of table is 'a'"),
        (np.array([0, -100] * 20), {"likelihood": {"kind": "categorical", "classes": 2}}, "is -100; labels must be"),
        (np.arange(100), {}, "80 distinct values in .* looks like a quantity.*gaussian.*poisson.*categorical"),
        (np.arange(20), {}, "16 distinct values in 16 examples, which looks like a quantity"),
        (np.array([b"\xff", b"\xfe"] * 20), {}, "bytes that are not UTF-8"),
        (np.arange(100) / 3, {}, "are real numbers; say how to describe them"),
        (np.arange(100) / 3, {"likelihood": {"kind": "categorical"}}, "labels must be whole numbers or texts"),
        (
            np.array([1, 2] * 20),
            {"likelihood": {"kind": "categorical", "labels": [1, 3]}},
            "is 2, which is none of likelihood.labels",
        ),
        (np.array([1, 2] * 20), {"likelihood": {"kind": "categorical", "labels": [1, 1]}}, "give each class its own"),
    ],
)
def test_what_is_no_label_is_refused_with_the_fix(tmp_path, targets, sections, message):
    with pytest.raises(DataError, match=message):
        build(table(tmp_path, targets), **sections)


def test_more_labels_than_anybody_has_classes_are_refused(tmp_path):
    targets = np.repeat(np.arange(70_000), 5)
    inputs = np.zeros((len(targets), 1), np.float32)
    np.savez(tmp_path / "many.npz", inputs=inputs, targets=targets, test_inputs=inputs[:1], test_targets=targets[:1])
    with pytest.raises(DataError, match=r"70,000 classes, .* set likelihood\.classes, or if you trust it"):
        build(tmp_path / "many.npz")


def test_a_quantity_may_be_called_a_label(tmp_path):
    experiment = build(table(tmp_path, np.arange(100)), likelihood={"kind": "categorical"})
    assert experiment.likelihood.classes == 100


def test_whole_numbers_as_real_numbers_are_labels_when_that_is_said(tmp_path):
    experiment = build(table(tmp_path, np.array([1.0, 2.0] * 20)), likelihood={"kind": "categorical"})
    assert experiment.config.likelihood.labels == (1, 2)


def test_labels_can_be_listed_in_an_order_of_ones_own(tmp_path):
    listed = {"kind": "categorical", "labels": ["no", "yes", "perhaps"]}
    experiment = build(table(tmp_path, np.array(["yes", "no"] * 20)), likelihood=listed)
    assert experiment.likelihood.classes == 3
    assert set(experiment.dataset.train.targets.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("likelihood", "targets", "outputs"),
    [
        (CategoricalLikelihood(3), torch.tensor([0, -100, 2]), torch.zeros(3, 3)),
        (CategoricalLikelihood(3), torch.tensor([0, 3, 2]), torch.zeros(3, 3)),
        (CategoricalLikelihood(3), torch.tensor([0.0, 0.5, 2.0]), torch.zeros(3, 3)),
        (BernoulliLikelihood(), torch.tensor([0.0, -1.0, 1.0]), torch.zeros(3, 1)),
        (PoissonLikelihood(), torch.tensor([0.0, -100.0, 1.0]), torch.zeros(3, 1)),
    ],
)
def test_a_label_to_ignore_never_costs_nothing(likelihood, targets, outputs):
    wrong = re.escape(f"example 1 is {targets[1].item():g}")
    with pytest.raises(DataError, match=wrong):
        likelihood.bits(outputs, targets)
    from bitsback import Examples

    model = bayesianize(torch.nn.Linear(2, outputs.shape[1]))
    for measure in (evaluate, take_ledger):
        with pytest.raises(BitsbackError, match=wrong):
            measure(model, likelihood, Examples(torch.zeros(3, 2), targets), samples=1)


def test_a_source_that_declares_its_classes_takes_no_list_of_labels():
    with pytest.raises(DataError, match=r"digits has the labels 0 to 9; leave likelihood\.labels out"):
        Experiment.build(Config.model_validate({"likelihood": {"kind": "categorical", "labels": list(range(9, -1, -1))}}))


def test_one_hot_labels_are_refused_with_what_they_may_be(tmp_path):
    np.savez(tmp_path / "t.npz", inputs=np.zeros((60, 2)), targets=np.eye(3)[np.arange(60) % 3])
    with pytest.raises(DataError, match=r"targets of shape \(3,\) .*bernoulli for yes-or-no .*argmax of one-hot"):
        build(tmp_path / "t.npz", likelihood={"kind": "categorical"})


def test_whole_number_inputs_stay_indices_where_the_network_begins_with_an_embedding(tmp_path):
    np.savez(tmp_path / "t.npz", inputs=np.arange(60).reshape(20, 3) % 7, targets=np.arange(20) % 2)
    layers = [{"Embedding": {"num_embeddings": 7, "embedding_dim": 2}}, "Flatten", "Linear"]
    experiment = build(tmp_path / "t.npz", network={"kind": "sequential", "layers": layers})
    assert experiment.dataset.train.inputs.dtype == torch.int64
    assert experiment.config.data.scaling == "none"
    assert build(tmp_path / "t.npz").dataset.train.inputs.dtype == torch.float32


def test_a_file_of_texts_is_certified_with_its_own_labels(tmp_path, run_command):
    """Scaling from the examples has no certificate for a run; a file pays for its statistics, and its labels are the data's."""
    targets = np.tile(np.array([7, 3, 5]), 60)
    (tmp_path / "c.yaml").write_text(
        f"data: {{kind: npz, path: {table(tmp_path, targets)}, scaling: unit}}\ntraining: {{epochs: 200}}\nlogging: {{report: false}}\n"
    )
    run_command("train", tmp_path / "c.yaml", "--out", tmp_path / "run")
    run_command("pack", tmp_path / "run", "-o", tmp_path / "m.bb")
    found = json.loads(run_command("certify", tmp_path / "m.bb", f"--data.path={tmp_path / 'table.npz'}", "--json").out)
    assert found["risk"] < 0.05  # raw labels beside classes would all be wrong


def test_saving_from_python_asks_the_network_how_many_classes_there_are(tmp_path):
    import bitsback

    model = bitsback.bayesianize(torch.nn.Sequential(torch.nn.Linear(2, 5)))
    examples = bitsback.Examples(torch.randn(20, 2), torch.arange(20) % 3)
    bitsback.save(model, tmp_path / "m.bb", examples, progress=False)
    assert bitsback.load(tmp_path / "m.bb").likelihood.classes == 5
    with pytest.raises(DataError, match="labels must be whole numbers from 0 to 4"):
        bitsback.save(model, tmp_path / "n.bb", bitsback.Examples(torch.randn(20, 2), torch.arange(20)), progress=False)
