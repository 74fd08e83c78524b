"""A model that costs more than no model says so, everywhere, with the likeliest cause; a healthy one is silent."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from torch import nn

import bitsback
from bitsback import Dataset, Examples
from bitsback.config import Experiment, load_config
from bitsback.config.schema import Config
from bitsback.ledger import Ledger
from bitsback.likelihoods import BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood, PoissonLikelihood
from bitsback.model.verdict import Course, warnings_of
from bitsback.training import LedgerSettings, TrainingSettings

torch.set_num_threads(1)
CLASSES = 3


def clusters(count=300, seed=0):
    """Inputs (n, 2) around three centres, and the numbers of the centres."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    return torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])[y] + 0.4 * torch.randn(count, 2, generator=draw), y


def line(count=300):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=draw)
    y = x @ torch.tensor([3.0, -2.0, 1.0]) + 0.5 * torch.randn(count, generator=draw)
    return x, (y * 100).round() / 100


def run(network, likelihood, x, y, *, epochs=300, batch=100, lr=0.03):
    torch.manual_seed(0)
    model = bitsback.bayesianize(network)
    training = TrainingSettings(epochs=epochs, batch_size=batch, optimizer={"name": "Adam", "lr": lr})
    ledger = LedgerSettings(samples=10)
    return bitsback.train(
        model, likelihood, Dataset("made", Examples(x, y), None), training=training, ledger=ledger, progress=False
    ).ledger


# five causes, planted


def unscaled():
    x, y = clusters()
    return run(nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 3)), CategoricalLikelihood(3), x * 1000 + 20_000, y)


def labels_declared_up_to_the_largest():
    x, y = clusters(60)
    return run(nn.Sequential(nn.Linear(2, 1993)), CategoricalLikelihood(1993), x, y + 1990, epochs=50, lr=0.003)


def labels_a_row_off():
    x, y = clusters()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    x, y = x[order], y[order]
    return run(nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 3)), CategoricalLikelihood(3), x, y.roll(1), epochs=400)


def too_few_steps():
    x, y = clusters()
    return run(nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 3)), CategoricalLikelihood(3), x, y, epochs=2)


def too_wide_noise():
    return run(nn.Sequential(nn.Linear(3, 1)), GaussianLikelihood(40.0, noise="fixed", target_step=0.01), *line())


def too_narrow_noise():
    return run(nn.Sequential(nn.Linear(3, 1)), GaussianLikelihood(0.02, noise="fixed", target_step=0.01), *line())


def softmax_before_the_likelihood():
    x, y = clusters(60)
    return run(nn.Sequential(nn.Linear(2, 20), nn.ReLU(), nn.Linear(20, 3), nn.Softmax(1)), CategoricalLikelihood(3), x, y)


def sigmoid_before_the_likelihood():
    x, y = clusters(60)
    return run(
        nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 1), nn.Sigmoid()), BernoulliLikelihood(), x, (y == 0).float()
    )


def answers_a_row_off():
    x, y = clusters()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    x, y = x[order], (y[order] == 0).float()
    return run(nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 1)), BernoulliLikelihood(), x, y.roll(1), epochs=400)


def too_few_steps_for_answers():
    x, y = clusters()
    return run(
        nn.Sequential(nn.Linear(2, 99), nn.ReLU(), nn.Linear(99, 1)), BernoulliLikelihood(), x, (y == 0).float(), epochs=1
    )


def nothing_to_describe():
    return run(
        nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 1)), GaussianLikelihood(), line()[0], torch.full((300,), 3.7)
    )


def noise_that_has_not_settled():
    return run(nn.Sequential(nn.Linear(3, 1)), GaussianLikelihood(40.0, noise="learned", target_step=0.01), *line(), epochs=2)


def four_examples():
    x, y = clusters(4)
    return run(nn.Sequential(nn.Linear(2, 3)), CategoricalLikelihood(3), x, y, epochs=2000)


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (nothing_to_describe, "all targets are alike"),
        (noise_that_has_not_settled, "; train longer"),
        (four_examples, "4 examples are too few to pay for 9 weights"),
        (answers_a_row_off, "the labels do not follow the inputs"),
        (too_few_steps_for_answers, "3 steps are too few"),
        (unscaled, "the inputs are not scaled (feature"),
        (labels_declared_up_to_the_largest, "of 1,993 declared classes only 3 occur"),
        (labels_a_row_off, "the labels do not follow the inputs"),
        (too_few_steps, "6 steps are too few"),
        (too_wide_noise, "the noise std is 40 where"),
        (too_narrow_noise, "the noise std is 0.02 where"),
        (softmax_before_the_likelihood, "ends with a softmax"),
        (sigmoid_before_the_likelihood, "ends with a sigmoid"),
    ],
)
def test_a_planted_cause_is_the_one_that_is_named(plant, named):
    ledger = plant()
    assert ledger.net_bits > ledger.no_model_bits
    said = ledger.warnings[0]
    assert said.startswith(f"This model costs {ledger.net_bits:,.0f} bits, more than no model (")
    assert named in said
    assert str(ledger).splitlines()[-len(ledger.warnings) :] == list(ledger.warnings)
    assert Ledger.from_json(ledger.to_json()).warnings == ledger.warnings


# ten healthy runs


def from_table(loader, tmp_path, **sections):
    found = loader()
    np.savez(tmp_path / "t.npz", inputs=found.data, targets=found.target)
    data = {"kind": "npz", "path": str(tmp_path / "t.npz")}
    return Experiment.build(Config.model_validate({"data": data, **sections})).train(None, progress=False).ledger


def from_config(name, *overrides):
    return Experiment.build(load_config(f"configs/{name}.yaml", overrides)).train(None, progress=False).ledger


GAUSSIAN = {"likelihood": {"kind": "gaussian"}}
HEALTHY = {
    "digits": lambda _: from_config("digits"),
    "digits_linear": lambda _: from_config("digits_linear", "training.epochs=100"),
    "digits_conv": lambda _: from_config("digits_conv", "training.epochs=30"),
    "regression": lambda _: from_config("regression", "training.epochs=60"),
    "iris": lambda place: from_table(load_iris, place),
    "wine": lambda place: from_table(load_wine, place),
    "breast_cancer": lambda place: from_table(load_breast_cancer, place),
    "diabetes": lambda place: from_table(load_diabetes, place, **GAUSSIAN),
    "answers": lambda _: run(
        nn.Sequential(nn.Linear(2, 1)), BernoulliLikelihood(), clusters()[0], (clusters()[1] == 2).float()
    ),
    "counts": lambda _: run(
        nn.Sequential(nn.Linear(3, 1)), PoissonLikelihood(), line()[0], (line()[0][:, 0].exp() * 4).round()
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_is_silent(name, tmp_path):
    ledger = HEALTHY[name](tmp_path)
    assert ledger.is_worth_it
    assert ledger.warnings == ()


# training and ledger count the same bits


class Graph(nn.Module):
    """A network on a graph: rows are not examples, for every row is a mean over many."""

    def __init__(self, blocks):
        super().__init__()
        near = (torch.rand(len(blocks), len(blocks)) < 0.3).float() * (blocks[:, None] == blocks) + torch.eye(len(blocks))
        self.register_buffer("step", near / near.sum(1, keepdim=True), persistent=False)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.step @ self.second((self.step @ self.first(x)).relu())


@pytest.mark.parametrize(("estimator", "seen"), [("weight", False), ("auto", False), ("output", True)])
def test_noise_that_is_averaged_away_in_training_is_seen(estimator, seen):
    """Fresh output noise in every row where rows are not examples: the step sees less noise than one draw of the weights has."""
    torch.manual_seed(0)
    y = torch.arange(200) % 3
    x = torch.randn(200, 8)
    x[:, :3] += 2 * nn.functional.one_hot(y).float()
    model = bitsback.bayesianize(Graph(y), {"kind": "gaussian", "scale": 1.0, "learn": "none"}, estimator=estimator)
    settings = TrainingSettings(epochs=400, batch_size=200, optimizer={"name": "Adam", "lr": 0.03})
    data = Dataset("graph", Examples(x, y), None)
    outcome = bitsback.train(
        model, CategoricalLikelihood(3), data, training=settings, ledger=LedgerSettings(samples=50), progress=False
    )
    assert any("The last 10 epochs counted" in said for said in outcome.ledger.warnings) == seen


def ledger(**changes):
    from bitsback.ledger import Entry

    base = {"entries": (Entry.of("w", weights=2, net_bits=3.0, refund_bits=9.0),), "model_weights": 2, "data_bits": 400.0}
    return Ledger(**{**base, "uniform_bits": 900.0, "examples": 100, "data_bits_stderr": 2.0, "samples": 25, **changes})


AROUND = np.array([10.0, -10.0, 5.0, -5.0, 0.0, 3.0, -3.0, 7.0, -7.0, 0.0])


@pytest.mark.parametrize(
    ("course", "seen"),
    [
        (395 + AROUND, False),
        (365 + AROUND, False),  # within a tenth
        (330 + AROUND, True),
        (330 + 10 * AROUND, False),  # within the error of such epochs
        (500 + AROUND, True),
        (np.linspace(700, 450, 10), False),  # still falling: the mean is not the end
        (300 + AROUND[:5], False),  # too few to know their spread
    ],
)
def test_data_bits_of_training_and_ledger_are_compared_with_their_errors(course, seen):
    model = bitsback.bayesianize(nn.Linear(1, 2, bias=False))
    examples = Examples(torch.zeros(4, 1), torch.arange(4) % 2)
    said = warnings_of(ledger(), model, CategoricalLikelihood(2), examples, Course(10**4, tuple(course.tolist())))
    assert bool(said) == seen


# hidden targets, and those with axes


def expensive(symbols):
    """A ledger that is not worth its bits, for any cause."""
    return replace(ledger(marginal_bits=1.0), symbols=symbols)


def cause_of(network, likelihood, x, y):
    model = bitsback.bayesianize(network)
    (said,) = warnings_of(expensive(likelihood.symbols(y)), model, likelihood, Examples(x, y), Course(10**4))
    return said


def test_hidden_labels_are_not_taken_for_labels():
    x, y = clusters(200)
    hide = CategoricalLikelihood(CLASSES, ignore=-100)
    alike = torch.where(torch.arange(200) % 2 == 0, 1, -100)
    assert "labels are alike" in cause_of(nn.Linear(2, 3), hide, x, alike)
    draw = torch.Generator().manual_seed(0)
    shuffled = y[torch.randperm(200, generator=draw)]
    far = x.clone()
    far[100:] = torch.tensor([50.0, 50.0]) + 0.1 * x[100:]  # neighbours agree in being hidden
    shuffled[100:] = -100
    assert "are they shuffled" in cause_of(nn.Linear(2, 3), hide, far / far.std(), shuffled)


def test_a_softmax_over_the_axis_of_the_classes_is_found():
    x, y = torch.randn(50, 2, 4), torch.arange(200).reshape(50, 4) % 3
    assert "ends with a softmax" in cause_of(nn.Sequential(nn.Conv1d(2, 3, 1), nn.Softmax(1)), CategoricalLikelihood(3), x, y)
    assert "softmax" not in cause_of(nn.Sequential(nn.Conv1d(2, 3, 1), nn.Softmax(2)), CategoricalLikelihood(3), x, y)


def test_no_look_compares_masks_of_neighbours(monkeypatch):
    monkeypatch.setattr(torch, "cdist", None)
    x, y = torch.randn(20, 1, 64, 64), torch.randint(3, (20, 64, 64))
    assert "shuffled" not in cause_of(nn.Conv2d(1, 3, 1), CategoricalLikelihood(3), x, y)


# everywhere


def test_no_model_is_the_cheaper_of_two_codes():
    assert ledger().no_model_bits == 900.0
    assert ledger(marginal_bits=500.0).no_model_bits == 500.0
    assert not ledger(marginal_bits=400.0).is_worth_it
    assert "cost 500 bits without a model" in ledger(marginal_bits=500.0).sentence()
    assert "marginal code" in str(ledger(marginal_bits=500.0))


def test_a_ledger_of_before_has_no_marginal_code():
    told = json.loads(ledger(marginal_bits=500.0).to_json())
    del told["marginal_bits"], told["warnings"]
    assert Ledger.from_dict(told) == ledger()


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "poisson", "gaussian"])
def test_every_likelihood_has_a_marginal_code_and_it_is_honest(kind):
    """Its bits are those of an independent computation, and targets that are all alike cost next to nothing."""
    import math

    if kind == "categorical":
        total, counts, bits = 0, [0, 0, 0], 0.0
        for label in [0, 0, 2, 0, 1, 0]:
            bits -= math.log2((counts[label] + 0.5) / (total + 1.5))
            counts[label], total = counts[label] + 1, total + 1
        assert CategoricalLikelihood(3).marginal_bits(torch.tensor([0, 0, 2, 0, 1, 0])) == pytest.approx(bits)
    if kind == "bernoulli":
        y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
        first = -math.log2(0.5 / 1 * 1.5 / 2 * 2.5 / 3)
        second = -math.log2(0.5 / 1 * 1.5 / 2 * 0.5 / 3)
        assert BernoulliLikelihood().marginal_bits(y) == pytest.approx(first + second)
    if kind == "poisson":
        from scipy import stats

        y = np.array([3.0, 5.0, 4.0])
        rate = math.exp(round(math.log(4.0) * 32) / 32)
        expected = 10 - stats.poisson(rate).logpmf(y).sum() / math.log(2)
        assert PoissonLikelihood().marginal_bits(torch.from_numpy(y)) == pytest.approx(expected)
    if kind == "gaussian":
        step = GaussianLikelihood(1.0, target_step=0.01).marginal_bits(torch.full((100,), 5.0).double())
        log_std = math.floor(math.log(0.01) * 16 + 0.5) / 16  # of the floor, on its grid; then never below the step
        std = max(math.exp(log_std), 0.01)
        place = round(8 * 5.0 / std)
        data = 100 * (0.5 * (5.0 / std - place / 8) ** 2 + math.log(std * math.sqrt(2 * math.pi) / 0.01)) / math.log(2)
        assert step == pytest.approx(data + 10 + 2 * math.floor(math.log2(2 * place + 1)) + 1)
    alike = {"categorical": CategoricalLikelihood(3), "bernoulli": BernoulliLikelihood()}
    if kind in alike:
        assert alike[kind].marginal_bits(torch.zeros(1000)) < 12


def test_the_verdict_stands_in_terminal_summary_report_and_comparison(tmp_path, run_command):
    x, y = clusters()
    np.savez(tmp_path / "t.npz", inputs=x.numpy(), targets=y.numpy())
    text = f"data: {{kind: npz, path: {tmp_path / 't.npz'}}}\ntraining: {{epochs: 1}}\nnetwork: {{kind: sequential, layers: [{{Linear: {{out_features: 99}}}}, ReLU, Linear]}}\nprior: {{kind: gaussian, learn: none, scale: 1}}\n"
    (tmp_path / "c.yaml").write_text(text)
    said = run_command("train", tmp_path / "c.yaml", "--out", tmp_path / "run")
    sentence = "2 steps are too few"
    assert sentence in said.out
    assert sentence in (tmp_path / "run" / "report.html").read_text()
    assert sentence in (tmp_path / "run" / "ledger.json").read_text()
    assert sentence in json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"][0]
    assert sentence in run_command("ledger", tmp_path / "run").out
    compared = run_command("compare", tmp_path / "c.yaml", "prior.kind=gaussian,laplace", "--out", tmp_path / "both")
    assert compared.out.count(sentence) == 2


def test_ten_times_the_bits_is_not_worth_it():
    dear = ledger(data_bits=9000.0)
    assert not dear.is_worth_it
    assert replace(dear, uniform_bits=10_000.0).is_worth_it
