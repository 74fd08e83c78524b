"""What a report computes, against the slow way; what its page says, against its ledger."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from test_readme import ROOT

from bitsback.config import Experiment, load_config, load_run
from bitsback.data import Examples
from bitsback.errors import LayerError, LedgerError, RunError
from bitsback.kl import Panels, kl
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import bayesianize, evaluate, take_ledger, widened, width_curve
from bitsback.report import figure, observe, write_comparison, write_report
from bitsback.report._budget import operations, subsample_to_budget
from bitsback.report._example_costs import judged
from bitsback.report._explorers import chosen, explorers
from bitsback.report._html import render
from bitsback.report._observation import MOST_EXPENSIVE
from bitsback.report._recoded import recoded
from bitsback.report._sampled import exact, sampled
from bitsback.report.widths import widths

TOY = ["training.epochs=3", "ledger.samples=3"]


def trained(config, directory, *overrides):
    experiment = Experiment.build(load_config(ROOT / "configs" / config, [*TOY, *overrides]))
    experiment.train(directory, progress=False)
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained("digits_conv.yaml", tmp_path_factory.mktemp("runs") / "conv")


@pytest.fixture(scope="module")
def seen(run):
    return observe(run)


@pytest.fixture(scope="module")
def point(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "point"
    return trained("digits_linear.yaml", directory, "posterior.kind=point", "prior.learn=none")


def assert_same_bits(one, other):
    for name in ("net_bits", "gross_bits", "refund_bits", "data_bits", "net_weight_bits", "hyperparameter_bits", "grid_step"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9)


def test_the_curve_is_the_exact_one_where_all_draws_are_affordable(run, seen):
    e = load_run(run).experiment()
    exact_curve = width_curve(e.model, e.likelihood, e.dataset.train, samples=seen.book.samples, factors=(0.25, 1.0, 4.0))
    for factor, book in exact_curve.items():
        ours = seen.widths.curve[factor]
        assert ours.net_bits == pytest.approx(book.net_bits, rel=1e-6)
        assert ours.data_bits == pytest.approx(book.data_bits, rel=1e-6)
        assert [e.net_bits for e in ours.entries] == pytest.approx([e.net_bits for e in book.entries], rel=1e-6, abs=1e-6)
    assert_same_bits(seen.widths.curve[1.0], seen.book)


def test_other_widths_and_other_seeds_never_move_the_means():
    model = bayesianize(torch.nn.Linear(20, 5))
    examples = Examples(torch.randn(30, 20), torch.randint(5, (30,)))
    means = [q.mean.clone() for q in model.posteriors()]
    held = model.network.weight.detach().clone()
    for factor in (0.25, 4.0):
        with widened(model, factor):
            evaluate(model, CategoricalLikelihood(5), examples, samples=2)
            model.honour_edits(everywhere=True)
            torch.testing.assert_close(model.network.weight.detach() - means[0], factor * (held - means[0]))
        evaluate(model, CategoricalLikelihood(5), examples, samples=2)
        assert all(torch.equal(q.mean, mean) for q, mean in zip(model.posteriors(), means, strict=True))
    assert torch.equal(model.network.weight, held)


def test_a_weight_and_its_width_written_at_once_cannot_be_told_apart():
    model = bayesianize(torch.nn.Linear(20, 5))
    with torch.no_grad():
        model.network.weight.clamp_(min=0)
        model.weights[0].posterior.scale_std(2.0)
    with pytest.raises(LayerError, match=r"'weight' and its log_std were both written to .*model.mean"):
        model.draw()


def test_a_doubling_of_the_width_returns_one_bit_a_weight(seen):
    for factor, book in seen.widths.curve.items():
        assert book.grid_step == seen.book.grid_step
        assert book.refund_bits == pytest.approx(seen.book.refund_bits + book.weights * np.log2(factor), rel=1e-9)
        assert book.gross_weight_bits == pytest.approx(book.net_weight_bits + book.refund_bits, rel=1e-9)


def test_a_few_examples_give_about_the_same_curve(seen, monkeypatch):
    e = seen.experiment
    monkeypatch.setattr("bitsback.report.widths.OPERATIONS", 7e7)
    thrifty = widths(e.model, e.likelihood, e.dataset.train, seen.book, factors=(1.0, 4.0))
    assert thrifty.examples < len(e.dataset.train)
    assert_same_bits(thrifty.curve[1.0], seen.book)  # nothing is added to the ledger, from however few examples
    assert thrifty.curve[4.0].data_bits == pytest.approx(seen.widths.curve[4.0].data_bits, rel=0.3)


def test_observing_changes_nothing(run):
    e = load_run(run).experiment()
    before = {name: tensor.clone() for name, tensor in e.model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    observe(run, experiment=e)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in e.model.state_dict().items())


def test_weights_left_out_of_a_quadrature_stand_for_their_neighbours():
    model = bayesianize(torch.nn.Linear(50, 40, bias=False), prior="student_t")
    weight = model.weights[0]
    prior = exact(weight.prior)
    full, some = sampled(weight, prior), sampled(weight, prior, most=500)
    assert (len(some.mean), some.scale) == (500, 4.0)
    with torch.no_grad():
        assert full.net_bits(prior) == pytest.approx(float(kl(weight.posterior, weight.prior).bits), rel=1e-4)
    assert some.net_bits(prior) == pytest.approx(full.net_bits(prior), rel=0.05)


def test_a_prior_recodes_its_own_weights_at_the_price_of_the_ledger(seen):
    own = recoded(seen.experiment.model, seen.book, [seen.own_prior])[seen.own_prior]
    assert own.net_bits == pytest.approx(seen.book.net_bits, rel=2e-3)
    assert seen.other_priors[seen.own_prior] is seen.book  # whatever its settings: not that of the prior's defaults
    assert {book.data_bits for book in seen.other_priors.values()} == {seen.book.data_bits}
    assert {"laplace", "student_t", "horseshoe", "group_gaussian"} <= set(seen.other_priors)
    assert not {"checkpoint", "pyro"} & set(seen.other_priors)  # they need to be told more


@pytest.mark.parametrize("kind", ["laplace", "student_t", "scale_mixture"])
def test_recoding_fits_the_prior_as_well_as_a_search(kind):
    torch.manual_seed(1)
    model = bayesianize(torch.nn.Linear(20, 5, bias=False), prior={"kind": "gaussian", "learn": "none"})
    examples = Examples(torch.randn(30, 20), torch.randint(5, (30,)))
    book = take_ledger(model, CategoricalLikelihood(5), examples, samples=2)
    found = recoded(model, book, [kind])[kind]
    other = bayesianize(torch.nn.Linear(20, 5, bias=False), prior=kind)
    weight = other.weights[0]
    weight.posterior.load_state_dict(model.weights[0].posterior.state_dict())
    optimizer = torch.optim.Adam(other.priors.parameters(), lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        kl(weight.posterior, weight.prior, panels=Panels.fast()).nats.backward()
        optimizer.step()
    other.round_to_grid()
    assert found.net_weight_bits <= float(other.kl_bits(exact=True).detach()) * 1.005 + 0.5
    assert [charge.numbers for charge in found.charges] == [charge.numbers for charge in other.charges()]


def test_examples_cost_what_the_evaluation_says(seen):
    e = seen.experiment
    looked = judged(e.model, e.likelihood, e.dataset.train, draws=3, numbers=torch.arange(len(e.dataset.train)))
    paid = evaluate(e.model, e.likelihood, e.dataset.train, samples=0)
    with e.model.mean(), torch.no_grad():
        assert paid.data_bits == pytest.approx(
            float(e.likelihood.bits(e.model(e.dataset.train.inputs), e.dataset.train.targets).sum()), rel=1e-5
        )
    many = judged(e.model, e.likelihood, e.dataset.train, draws=40, numbers=looked.numbers)
    book = evaluate(e.model, e.likelihood, e.dataset.train, samples=40)
    assert float(many.bits.sum()) == pytest.approx(book.data_bits, abs=6 * book.data_bits_stderr)
    assert looked.most_expensive(5).tolist() == sorted(range(len(looked)), key=lambda i: -float(looked.bits[i]))[:5]


def test_mislabelled_digits_rise_to_the_top(tmp_path):
    from bitsback.data._digits import read_digits

    images, labels = read_digits()
    wrong = np.random.default_rng(0).choice(len(labels), 10, replace=False)
    spoilt = labels.numpy().copy()
    spoilt[wrong] = (spoilt[wrong] + 5) % 10
    np.savez(tmp_path / "spoilt.npz", inputs=images.numpy(), targets=spoilt)
    data = f"data={{kind: npz, path: {tmp_path / 'spoilt.npz'}, test_fraction: 0}}"
    directory = trained("digits_linear.yaml", tmp_path / "run", data, "training.epochs=60")
    look = observe(directory)
    most_expensive = look.train.numbers[look.train.most_expensive(MOST_EXPENSIVE)].tolist()
    assert len(set(wrong.tolist()) & set(most_expensive)) >= 9
    assert look.pictures.shape == (MOST_EXPENSIVE, 8, 8)


def test_budgets_leave_out_draws_first_then_examples(seen):
    few = Examples(torch.arange(1000.0).unsqueeze(1), torch.zeros(1000))
    assert [subsample_to_budget(few, 50, budget, 1.0)[1] for budget in (1e9, 10_000, 100)] == [50, 10, 2]
    kept, draws = subsample_to_budget(few, 50, 100, 1.0)
    assert (len(kept), draws, kept.inputs[-1].item()) == (50, 2, 999)
    assert operations(seen.experiment.model, seen.experiment.dataset.train) > 20_000


def test_the_chosen_weights_span_the_signal_to_noise(seen):
    found = chosen(seen.weights)
    ratios = [float((w.posterior.mean.flatten()[i].abs() / w.posterior.std().flatten()[i]).detach()) for w, i in found]
    every = torch.cat([(w.posterior.mean.abs() / w.posterior.std()).flatten() for w in seen.weights]).detach()
    assert ratios == sorted(ratios, reverse=True)
    assert (ratios[0], ratios[-1]) == (pytest.approx(float(every.max())), pytest.approx(float(every.min())))


def test_a_bell_costs_what_the_kl_says(seen):
    from torch.distributions import Normal, kl_divergence

    bell = explorers(seen)["bells"][0]
    weight, index = chosen(seen.weights)[0]
    place = list(seen.widths.curve).index(2.0)
    q = Normal(torch.tensor(bell["mean"]), torch.tensor(2 * bell["std"]))
    assert bell["bits"][place]["net_weight_bits"] == pytest.approx(
        float(kl_divergence(q, weight.prior())) / np.log(2), rel=1e-4
    )
    assert bell["mean"] == pytest.approx(float(weight.posterior.mean.detach().flatten()[index]))
    mass = np.trapezoid(bell["density"], np.linspace(-bell["reach"], bell["reach"], len(bell["density"])))
    assert 0.97 < mass < 1.0001


class Tags(HTMLParser):
    """Every reference that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.fetched = []

    def handle_starttag(self, tag, attributes):
        found = {name: value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset", "action", "data")}
        self.fetched += [value for value in found.values() if not value.startswith(("data:", "#"))]


@pytest.mark.parametrize("which", ["run", "point"])
def test_the_page_is_one_small_file_that_fetches_nothing(which, request):
    directory = request.getfixturevalue(which)
    text = write_report(directory).read_text()
    assert len(text.encode()) < 1_000_000
    tags = Tags()
    tags.feed(text)
    assert tags.fetched == []
    assert not re.search(r"url\((?!#|data:)|@import|fetch\(|XMLHttpRequest|WebSocket", text)
    assert load_run(directory).ledger().sentence() in text


def test_a_point_estimate_has_a_page_without_sliders(point):
    text = write_report(point).read_text()
    assert "no refund" in text
    assert 'id="width-slider"' not in text
    assert 'id="figure-means"' in text  # against the prior: its penalty is a code length
    assert 'id="figure-first_mean"' in text
    e, book = load_run(point).experiment(), load_run(point).ledger()
    with pytest.raises(LedgerError, match="no width"):
        widths(e.model, e.likelihood, e.dataset.train, book)


def test_a_network_without_posteriors_has_a_page(tmp_path):
    directory = trained("digits_linear.yaml", tmp_path / "run", "bayesian.exclude=['*']")
    text = write_report(directory).read_text()
    assert 'id="figure-ledger"' in text
    assert 'id="figure-means"' not in text
    with pytest.raises(RunError, match=r"bayesian\.include"):
        figure(observe(directory), "means")


def test_yes_and_no_are_calibrated_as_two_classes(tmp_path):
    draw = np.random.default_rng(0)
    inputs, targets = draw.normal(size=(60, 3)).astype(np.float32), draw.integers(0, 2, (60, 2))
    np.savez(tmp_path / "answers.npz", inputs=inputs, targets=targets)
    data = f"data={{kind: npz, path: {tmp_path / 'answers.npz'}}}"
    directory = trained("digits_linear.yaml", tmp_path / "run", data, "likelihood={kind: bernoulli}")
    seen = observe(directory)
    axes = figure(seen, "calibration")
    counts = [int(text.get_text()) for text in axes.texts[:-1]]
    assert sum(counts) == seen.test.targets.numel() == 24
    sure = torch.maximum(seen.test.predicted, 1 - seen.test.predicted)
    said = axes.collections[0].get_offsets()[:, 0]
    assert (said * counts).sum() == pytest.approx(float(sure.sum()), rel=1e-5)


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_hidden_answers_are_not_calibrated(tmp_path, kind):
    draw = np.random.default_rng(0)
    inputs, targets = draw.normal(size=(60, 3)).astype(np.float32), draw.integers(0, 2, 60)
    np.savez(tmp_path / "answers.npz", inputs=inputs, targets=targets, mask=np.arange(60) % 2)
    data = f"data={{kind: npz, path: {tmp_path / 'answers.npz'}, test_fraction: 0}}"
    directory = trained("digits_linear.yaml", tmp_path / "run", data, f"likelihood={{kind: {kind}, ignore: -100}}")
    seen = observe(directory)
    axes = figure(seen, "calibration")
    counts = np.array([int(text.get_text()) for text in axes.texts[:-1]])
    assert counts.sum() == 30
    yes = seen.train.predicted[..., 1] if kind == "categorical" else seen.train.predicted.flatten()
    coded = seen.train.targets != -100
    right = ((yes > 0.5) == seen.train.targets)[coded]
    assert (axes.collections[0].get_offsets()[:, 1] * counts).sum() == pytest.approx(float(right.sum()))
    assert "30 training examples" in write_report(directory).read_text()


def test_targets_that_are_numbers_have_a_page(tmp_path):
    directory = trained("regression.yaml", tmp_path / "run")
    text = write_report(directory).read_text()
    assert "most expensive training examples" in text
    error = f"{load_run(directory).summary()['test_rmse']:.4g} (rmse)"
    assert error in text
    assert error in write_comparison([directory], tmp_path / "page.html").read_text()
    assert 'id="figure-calibration"' not in text


def test_numbers_cannot_end_their_own_element():
    page = render("frame.html", {"name": "</script><b>"}, title="<i>")
    assert "</script><b>" not in page
    assert "<title>&lt;i&gt;</title>" in page


def test_several_runs_are_one_table(run, tmp_path):
    other = trained("digits_conv.yaml", tmp_path / "laplace", "prior.kind=laplace")
    place = write_comparison([run, other], tmp_path / "both.html")
    text = place.read_text()
    books = {name: load_run(directory).ledger() for name, directory in (("conv", run), ("laplace", other))}
    cheapest = min(books, key=lambda name: books[name].net_bits)
    assert f"The cheapest of 2 descriptions is {cheapest}" in text
    assert "<td>prior.kind</td>" in text
    numbers = json.loads(re.search(r'id="numbers">(.*?)</script>', text).group(1))
    assert numbers["runs"] == {name: book.net_bits for name, book in books.items()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "nowhere"], "is not a run directory"),
        (["report", "RUN", "RUN"], "given twice"),
        (["report", "RUN", "-o", "FILE/page.html"], "cannot write"),
    ],
)
def test_mistakes_are_one_sentence(run, run_command, words, said):
    result = run_command(*(word.replace("RUN", str(run)).replace("FILE", str(run / "ledger.json")) for word in words))
    assert result.code == 1
    assert said in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_an_unfinished_run_says_how_to_finish_it(run, tmp_path):
    import shutil

    half = shutil.copytree(run, tmp_path / "half")
    (half / "ledger.json").unlink()
    with pytest.raises(RunError, match="--resume"):
        observe(half)
    shutil.copy(run / "ledger.json", half)
    (half / "metrics.jsonl").write_text("{")
    with pytest.raises(RunError, match="train the run again"):
        observe(half)


def test_every_figure_of_a_run_can_be_plotted(run, run_command, tmp_path):
    for name in ("width", "ledger", "training", "calibration", "first_mean", "examples"):
        said = run_command("plot", run, name, "-o", tmp_path / f"{name}.svg")
        assert said.code == 0, said.err
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
    assert run_command("plot", run, "grid", "-o", tmp_path / "grid.png").code == 0
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "widht"], "did you mean 'width'"),
        (["RUN", "width", "-o", "width.jpg"], ".svg, .png, .pdf"),
        (["POINT", "width"], "posterior.kind=gaussian"),
        (["nowhere", "width"], "is not a run directory"),
    ],
)
def test_what_cannot_be_plotted_says_why(run, point, run_command, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(run), "POINT": str(point)}
    result = run_command("plot", *(places.get(word, word) for word in words))
    assert result.code == 1
    assert said in result.err
    assert list(tmp_path.iterdir()) == []


def test_every_figure_is_named_in_the_help_of_its_command():
    from bitsback.cli.plot import plot
    from bitsback.report import FIGURES

    assert all(re.search(rf"\b{name}\b", plot.__doc__) for name in FIGURES)


def test_compare_leaves_a_page_beside_its_runs(run_command, tmp_path):
    (tmp_path / "toy.yaml").write_text("data: {kind: digits, limit: 200}\ntraining: {epochs: 2}\nledger: {samples: 2}\n")
    said = run_command("compare", tmp_path / "toy.yaml", "prior.kind=gaussian,laplace", "--out", tmp_path / "both")
    assert said.code == 0, said.err
    assert "prior.kind=laplace" in (tmp_path / "both" / "report.html").read_text()
    assert (tmp_path / "both" / "prior.kind=laplace" / "report.html").is_file()


def test_a_prior_over_whole_rows_has_a_page_without_bits_of_single_weights(tmp_path):
    prior = "prior={kind: pyro, distribution: MultivariateNormal, arguments: {loc: [0.0, 0.0], covariance_matrix: [[1.0, 0.5], [0.5, 1.0]]}}"
    data = "data.features={kind: principal_components, features: 2}"
    network = "network={kind: sequential, layers: [{Linear: {bias: false}}]}"
    directory = trained("digits_linear.yaml", tmp_path / "run", data, network, prior)
    text = write_report(directory).read_text()
    assert 'id="figure-means"' in text
    assert 'id="figure-bits_per_weight"' not in text
    with pytest.raises(RunError, match="one by one"):
        figure(observe(directory), "bits_and_prior")
