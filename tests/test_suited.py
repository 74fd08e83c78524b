"""What is chosen where a configuration says nothing, and what stays where it says something."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bitsback.config import Config, Experiment
from bitsback.config.suited import suited
from bitsback.data import Dataset, Examples
from bitsback.data._column import ColumnSettings
from bitsback.data.settings import TableSettings

torch.set_num_threads(1)


def table(targets, columns=4, **more):
    inputs = torch.randn(len(targets), columns, generator=torch.Generator().manual_seed(0))
    return Dataset("table", Examples(inputs, targets), None, **more)


@pytest.mark.parametrize(
    ("targets", "more", "kind"),
    [
        (torch.randn(50), {}, "gaussian"),
        (torch.arange(300), {"labels": tuple(range(300))}, "gaussian"),  # ages, prices: a value for each row
        (torch.arange(300) % 7, {"labels": tuple(range(7))}, "categorical"),
        (torch.arange(300) % 150, {"labels": tuple(map(str, range(150)))}, "categorical"),  # texts, however many
        (torch.zeros(50).long(), {"classes": 3}, "categorical"),
    ],
)
def test_targets_decide_the_likelihood(targets, more, kind):
    chosen = suited(Config(), table(targets, **more))
    assert chosen.likelihood.kind == kind
    assert chosen.training.optimizer.lr == 0.03


def test_labels_of_many_rows_are_learned_more_slowly():
    few, many = (suited(Config(), table(torch.arange(rows) % 3)).training.optimizer.lr for rows in (300, 600))
    assert (few, many) == (0.03, 0.01)


def test_a_table_gets_a_hidden_layer_beside_a_linear_one():
    chosen = suited(Config(), table(torch.randn(50)))
    built = chosen.network.build(torch.zeros(2, 4), 1)
    assert {name: tuple(weight.shape) for name, weight in built.named_parameters()} == {
        "layers.0.weight": (16, 4), "layers.0.bias": (16,), "layers.2.weight": (1, 16), "skip.weight": (1, 4), "skip.bias": (1,),
    }  # fmt: skip
    assert suited(Config(), table(torch.randn(500))).network.hidden == (32,)
    inputs = torch.randn(5, 4)
    hidden = torch.relu(inputs @ built.layers[0].weight.T + built.layers[0].bias)
    expected = hidden @ built.layers[2].weight.T + inputs @ built.skip.weight.T + built.skip.bias
    torch.testing.assert_close(built(inputs), expected)


def test_columns_of_categories_say_the_sizes_of_their_embeddings():
    columns = (ColumnSettings(name="a", kind="number"), ColumnSettings(name="b", kind="category", levels=("x", "y"), missing=1))
    inputs = {"numbers": torch.randn(60, 1), "categories": torch.randint(4, (60, 1))}
    data = Dataset("table", Examples(inputs, torch.randn(60)), None, columns=columns)
    network = suited(Config(), data).network
    assert network.categories == (4,)  # unseen, x, y, missing
    assert network.build({name: part[:2] for name, part in inputs.items()}, 1).embeddings[0].num_embeddings == 4
    own = Config.model_validate({"network": {"kind": "mlp", "hidden": [8]}})
    assert (suited(own, data).network.categories, suited(own, data).network.hidden) == ((4,), (8,))
    said = Config.model_validate({"network": {"kind": "mlp", "categories": [9]}})
    assert suited(said, data).network.categories == (9,)
    one_hot = Dataset("table", Examples(torch.randn(60, 4), torch.randn(60)), None, columns=columns)
    assert suited(Config(), one_hot).network.categories is None


def test_what_is_said_stays():
    said = {
        "network": {"kind": "sequential", "layers": ["Linear"]},
        "likelihood": {"kind": "poisson"},
        "training": {"epochs": 3, "optimizer": {"lr": 0.5}},
        "prior": {"kind": "laplace"},
    }
    given = Config.model_validate(said)
    chosen = suited(given, table(torch.arange(40)))
    assert (chosen.network, chosen.likelihood, chosen.prior) == (given.network, given.likelihood, given.prior)
    assert (chosen.training.epochs, chosen.training.optimizer.lr) == (3, 0.5)
    assert chosen.training.batch_size == 32  # was left open
    assert suited(Config.model_validate(chosen.model_dump()), table(torch.arange(40))) == chosen


@pytest.mark.parametrize("training", [{"budget_bits": 100.0}, {"objective": {"kind": "quad"}}])
def test_a_budget_or_bound_steers_beta_itself(training):
    chosen = suited(Config.model_validate({"training": training}), table(torch.randn(50)))
    assert (chosen.training.beta.start, chosen.training.beta.warmup_epochs) == ("auto", "auto")


@pytest.mark.parametrize("rows", [30, 1000, 20_000, 1_000_000])
def test_steps_suit_the_number_of_rows(rows):
    training = suited(Config(), table(torch.zeros(rows), columns=1)).training
    steps = training.epochs * -(-rows // training.batch_size)
    assert training.epochs == 500 or steps >= 10_000
    assert 20 <= training.epochs <= 500


def test_images_get_filters():
    for shape, filters in (((1, 8, 8), 1), ((3, 32, 32), 3), ((3, 224, 224), 3), ((1, 5, 5), 0)):
        data = Dataset("images", Examples(torch.rand(20, *shape), torch.arange(20) % 4), None, classes=4)
        network = suited(Config(), data).network.build(torch.zeros(2, *shape), 4)
        assert sum(isinstance(layer, torch.nn.Conv2d) for layer in network) == filters
        assert network(torch.zeros(2, *shape)).shape == (2, 4)


def write(path: Path, inputs: np.ndarray, targets: np.ndarray) -> None:
    lines = [",".join(map(str, [*row, target])) for row, target in zip(inputs, targets, strict=True)]
    path.write_text("\n".join(["a,b,c,y", *lines]) + "\n")


@pytest.mark.slow
def test_a_table_pays_and_its_shuffled_target_does_not(tmp_path):
    pytest.importorskip("pyarrow")
    made = np.random.default_rng(0)
    inputs = made.normal(size=(500, 3)).round(3)
    targets = np.where(inputs[:, 0] * inputs[:, 1] > 0, "yes", "no")  # no linear network finds it
    for name, column in (("real", targets), ("shuffled", made.permutation(targets))):
        write(tmp_path / f"{name}.csv", inputs, column)
        sections = {"data": {"kind": "table", "path": tmp_path / f"{name}.csv", "target": "y"}}
        config = Config.model_validate({**sections, "training": {"epochs": 250}})
        ledger = Experiment.build(config).train(None, progress=False).ledger
        if name == "real":
            assert ledger.net_bits < 0.95 * ledger.marginal_bits
            assert not ledger.warnings
        else:
            assert not ledger.is_worth_it
            assert "do not follow the inputs" in ledger.warnings[0]


def test_other_data_choose_nothing():
    config = Config.model_validate({"data": {"kind": "friedman", "examples": 40}, "likelihood": {"kind": "gaussian"}})
    found = Experiment.build(config).config
    assert found.network == Config().network
    assert found.training.batch_size == Config().training.batch_size
    assert TableSettings.chooses_sections
