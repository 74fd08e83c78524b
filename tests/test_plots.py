"""Figures show the numbers they are given: read back from bars, lines and points."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bitsback.errors import RunError
from bitsback.kl import kl
from bitsback.ledger import Entry, Ledger
from bitsback.model import bayesianize
from bitsback.report import plots
from bitsback.report.plots.style import SIZE

ROWS = [
    {"epoch": e, "net_bits": 900 / e, "gross_bits": 1200 / e, "refund_bits": 300 / e, "data_bits": 500 / e} for e in range(1, 9)
]


def book(net=30.0, refund=70.0, data=20.0, tensors=2):
    entries = tuple(
        Entry.of(f"layer{i}", weights=5, net_bits=net / (i + 1), refund_bits=refund / (i + 1)) for i in range(tensors)
    )
    return Ledger(
        entries=entries, model_weights=5 * tensors, data_bits=data, uniform_bits=100.0, examples=30, grid_step=2.0**-4
    )


@pytest.fixture
def model():
    network = torch.nn.Sequential(torch.nn.Linear(20, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3, bias=False))
    return bayesianize(network, prior="laplace")


CURVE = {factor: book(net=30 / factor, data=20 * factor**2) for factor in (0.25, 0.5, 1.0, 2.0, 4.0)}
DRAWN = {
    "training": lambda ax, model: plots.training(ROWS, ax),
    "runs": lambda ax, model: plots.runs({"one": ROWS, "two": ROWS[:4]}, ax),
    "ledger": lambda ax, model: plots.ledger(book(), ax),
    "width": lambda ax, model: plots.width(CURVE, ax),
    "grid": lambda ax, model: plots.grid(book(), ax),
    "priors": lambda ax, model: plots.priors({"laplace": book(), "cauchy": book(net=20)}, ax),
    "codes": lambda ax, model: plots.codes({"uniform": 4000.0, "variational": 250.0}, ax),
    "bells": lambda ax, model: plots.bells(model.weights[0], 5, 2.0, ax),
    "means": lambda ax, model: plots.means(model.weights, ax),
    "signal_to_noise": lambda ax, model: plots.signal_to_noise(model.weights, ax),
    "bits_per_weight": lambda ax, model: plots.bits_per_weight(model.weights, ax),
    "bits_and_prior": lambda ax, model: plots.bits_and_prior(model.weights, ax),
    "filters": lambda ax, model: plots.filters(np.random.default_rng(0).normal(size=(6, 1, 5, 5)), ax, title="mean"),
    "examples": lambda ax, model: plots.examples(np.zeros((5, 8, 8)), np.arange(5.0), np.arange(5), ax),
    "calibration": lambda ax, model: plots.calibration(np.eye(3)[[0, 1, 2, 2]] * 0.8 + 0.06, np.array([0, 1, 2, 1]), ax),
}


@pytest.mark.parametrize("name", DRAWN)
def test_it_draws_on_the_axes_it_is_given_and_leaves_the_rest_alone(name, model):
    before = dict(mpl.rcParams)
    axes = Figure(figsize=SIZE, layout="constrained").add_subplot()
    assert DRAWN[name](axes, model) is axes
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", DRAWN)
def test_as_svg_it_is_small_and_a_page_may_colour_it(name, model):
    with plots.off_screen():
        drawn = DRAWN[name](None, model)
    texts = [plots.svg(drawn, themed=True), plots.svg(drawn, themed=True)]
    for text in texts:
        ElementTree.fromstring(text)
        assert text.startswith("<svg")
        assert len(text) < 60_000
        tags = "".join(re.findall(r"<[^>]*>", re.sub(r'href="data:[^"]*"', "", text)))
        assert not re.search(r"\d\.\d{3,}", tags)  # no long coordinates
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in texts]
    assert not ids[0] & ids[1], "two pictures in one page must not share ids"
    for text, own in zip(texts, ids, strict=True):
        assert {*re.findall(r"url\(#([^)]+)\)", text), *re.findall(r'href="#([^"]+)"', text)} <= own
    bare = re.sub(r"var\(--\w+, #\w+\)", "", texts[0])
    literal = {colour.lower() for colour in re.findall(r"#[0-9a-fA-F]{6}\b", bare)}
    assert not literal & set(plots.COLOURS.values())


def test_no_two_meanings_share_a_colour():
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)


def test_the_bars_of_a_ledger_are_net_and_refund():
    axes = plots.ledger(book())
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == pytest.approx([30, 15, 70, 35])
    starts = [patch.get_x() for patch in axes.patches]
    assert starts == pytest.approx([0, 0, 30, 15])


def test_many_layers_are_folded_without_losing_a_bit():
    whole = book(tensors=60)
    axes = plots.ledger(whole)
    assert axes.get_yticklabels()[-1].get_text() == "45 others"
    assert sum(patch.get_width() for patch in axes.patches) == pytest.approx(whole.gross_weight_bits)


def test_the_width_curve_has_its_lowest_point_marked():
    axes = plots.width(CURVE)
    net = next(line for line in axes.lines if len(line.get_xdata()) == len(CURVE))
    assert list(net.get_ydata()) == pytest.approx([CURVE[factor].net_bits for factor in sorted(CURVE)])
    best = min(CURVE, key=lambda factor: CURVE[factor].net_bits)
    assert f"{CURVE[best].net_bits:.0f} bits" in axes.get_title(loc="left")


def test_the_grid_costs_a_bit_a_weight_in_gross_and_refund():
    gross, refund, net = plots.grid(book()).lines
    assert np.diff(gross.get_ydata()) == pytest.approx(10.0)
    assert np.diff(refund.get_ydata()) == pytest.approx(10.0)
    assert np.diff(net.get_ydata()) == pytest.approx(0.0)
    assert gross.get_ydata() - refund.get_ydata() == pytest.approx(net.get_ydata())


def test_priors_are_stacked_cheapest_first():
    axes = plots.priors({"laplace": book(), "cauchy": book(net=20)})
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cauchy", "laplace"]
    assert sum(patch.get_width() for patch in axes.patches) == pytest.approx(book().net_bits + book(net=20).net_bits)


def test_training_curves_are_the_metrics():
    net = plots.training(ROWS).lines[0]
    assert list(net.get_ydata()) == pytest.approx([row["net_bits"] for row in ROWS])
    assert all(line.get_marker() == "o" for line in plots.training(ROWS[:1]).lines)  # one epoch is a point, not a line of none
    long = [{**ROWS[0], "epoch": e} for e in range(10_000)]
    assert len(plots.training(long).lines[0].get_xdata()) <= 400


def test_densities_are_densities(model):
    axes = plots.bells(model.weights[0], index=3, factor=2.0)
    prior, posterior = axes.lines
    for line, mass in ((prior, 0.9), (posterior, 0.95)):
        assert mass < np.trapezoid(line.get_ydata(), line.get_xdata()) < 1.01
    q = model.weights[0].posterior
    peak = 1 / (2 * float(q.std().flatten()[3].detach()) * np.sqrt(2 * np.pi))
    assert posterior.get_ydata().max() == pytest.approx(peak, rel=0.02)


def test_bits_of_single_weights_add_up(model):
    bits = plots.bits_and_prior(model.weights).lines[0].get_ydata()
    expected = sum(float(kl(w.posterior, w.prior).bits.detach()) for w in model.weights)
    assert bits.sum() == pytest.approx(expected, rel=1e-4)
    counted = sum(patch.get_height() for patch in plots.bits_per_weight(model.weights).patches)
    assert counted == len(bits)


def test_a_group_prior_has_a_density_for_each_weight(model):
    grouped = bayesianize(torch.nn.Linear(6, 4, bias=False), prior="group_gaussian")
    scale = grouped.weights[0].prior.typical_scale().detach().flatten()
    with torch.no_grad():
        grouped.weights[0].prior.log_scale.copy_(torch.linspace(-1, 1, 6).view(1, 6))
        scale = grouped.weights[0].prior.typical_scale().flatten()
    at_zero = [float(plots.prior_density(grouped.weights, np.zeros(1), index)[0]) for index in (0, 5, 6)]
    expected = [1 / (float(scale[i]) * np.sqrt(2 * np.pi)) for i in (0, 5, 0)]
    assert at_zero == pytest.approx(expected, rel=1e-5)
    assert float(plots.prior_density(grouped.weights, np.zeros(1))[0]) == pytest.approx(
        float((1 / scale).mean()) / np.sqrt(2 * np.pi)
    )


def test_calibration_counts_what_was_right():
    sure = np.tile([0.95, 0.05], (100, 1))
    labels = np.array([0] * 80 + [1] * 20)
    axes = plots.calibration(sure, labels)
    (point,) = axes.collections[0].get_offsets()
    assert list(point) == pytest.approx([0.95, 0.8])
    assert any("15.0%" in text.get_text() for text in axes.texts)


def test_files_are_what_their_suffix_says(tmp_path):
    axes = plots.codes({"uniform": 10.0})
    starts = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}
    for suffix, start in starts.items():
        assert plots.save(axes, tmp_path / f"figure{suffix}").read_bytes().startswith(start)
    with pytest.raises(RunError, match=r"\.svg, \.png, \.pdf"):
        plots.save(axes, tmp_path / "figure.jpg")


def test_off_screen_figures_are_nobody_elses():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    with plots.off_screen():
        plots.codes({"uniform": 10.0})
    assert pyplot.get_fignums() == before
    plots.codes({"uniform": 10.0})
    assert len(pyplot.get_fignums()) == len(before) + 1
    pyplot.close("all")


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: plots.training([]), "no metrics"),
        (lambda: plots.training([{"epoch": 1, "net_bits": 3.0}]), "no gross_bits, refund_bits, data_bits"),
        (lambda: plots.runs({}), "no runs"),
        (lambda: plots.width({}), "width curve is empty"),
        (lambda: plots.priors({}), "no ledgers"),
        (lambda: plots.codes({}), "no codes"),
        (lambda: plots.filters(np.zeros(3)), "pictures have shape"),
        (lambda: plots.filters(np.zeros((0, 3, 3))), "pictures have shape"),
        (lambda: plots.examples(np.zeros((2, 3, 3)), [1.0], [1, 2]), "2 pictures need as many bits"),
        (lambda: plots.examples(np.zeros((0, 3, 3)), [], []), "pictures have shape"),
        (lambda: plots.calibration(np.zeros((3, 2)), np.zeros(2)), "give probabilities"),
        (lambda: plots.signal_to_noise(bayesianize(torch.nn.Linear(2, 2), posterior="point", prior={"kind": "laplace", "learn": "none"}).weights),
         "posterior.kind=gaussian"),
        (lambda: plots.means([]), "no weights to draw"),
        (lambda: plots.bells(bayesianize(torch.nn.Linear(2, 2)).weights[0], index=4), "has 4 weights"),
        (lambda: plots.bells(bayesianize(torch.nn.Linear(2, 2)).weights[0], factor=0.0), "above zero"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_says_why(draw, said):
    with pytest.raises(RunError, match=said):
        draw()


def test_as_svg_labels_keep_their_digits():
    axes = Figure(figsize=SIZE, layout="constrained").add_subplot()
    plots.codes({"at 3.14159": 0.875, "b": 0.0734}, axes)
    axes.set_xticks([0.125, 0.375])
    said = [element.text for element in ElementTree.fromstring(plots.svg(axes)).iter() if element.tag.endswith("text")]
    assert {"0.125", "0.375", "at 3.14159"} <= set(said)


def test_a_saved_svg_has_a_size(tmp_path):
    with plots.off_screen():
        axes = plots.codes({"uniform": 10.0})
    root = ElementTree.fromstring(plots.save(axes, tmp_path / "figure.svg").read_bytes())
    wide, high = axes.get_figure().get_size_inches() * 72
    assert [float(root.get(side).removesuffix("pt")) for side in ("width", "height")] == pytest.approx([wide, high], abs=0.01)


@pytest.mark.parametrize("factor", [0.001, 1.0, 16.0])
def test_a_bell_is_whole_at_every_width(model, factor):
    line = plots.bells(model.weights[0], index=3, factor=factor).lines[1]
    assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(1.0, abs=1e-3)


def test_ratios_below_the_axis_are_said_to_be(model):
    assert not plots.signal_to_noise(model.weights).get_xticklabels()[0].get_text().startswith("≤")
    with torch.no_grad():
        model.weights[0].posterior.mean[0, 0] = 0.0
    assert plots.signal_to_noise(model.weights).get_xticklabels()[0].get_text() == "≤1/256"


def test_codes_are_drawn_in_bits():
    near = plots.codes({"a": 50.0, "b": 0.0})
    assert [patch.get_width() for patch in near.patches] == [0.0, 50.0]
    assert (near.get_xscale(), plots.codes({"a": 50.0, "b": 1.0}).get_xscale()) == ("linear", "log")


def test_numbers_on_a_logarithmic_axis_do_not_overlap():
    axes = plots.codes({"uniform": 199_317.0, "variational": 2_501.0})
    axes.figure.draw_without_rendering()
    left, right = axes.get_xlim()
    boxes = [t.get_window_extent() for t in axes.get_xticklabels() if left <= t.get_position()[0] <= right]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_a_width_curve_has_ticks_at_any_factors():
    axes = plots.width(dict.fromkeys((0.3, 1.0, 3.0), CURVE[1.0]))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.3", "1", "3"]


def test_filters_are_the_values_a_row_for_each():
    values = np.arange(2 * 3 * 2 * 2, dtype=float).reshape(2, 3, 2, 2)
    board = plots.filters(torch.tensor(values, requires_grad=True)).images[0].get_array()
    assert board.shape == (5, 8)
    assert np.array_equal(board[3:5, 6:8], values[1, 2])


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((64, 3, 3), "std"),
        ((100, 1, 3, 3), "std, the first 64"),
        ((100, 32, 3, 3), "std, the first 4 filters, the first 16 channels"),
    ],
)
def test_filters_left_out_are_counted(shape, said):
    assert plots.filters(np.ones(shape), title="std").get_title() == said


def test_a_figure_is_axes():
    assert isinstance(plots.codes({"uniform": 10.0}), Axes)


@pytest.mark.slow
def test_every_cell_of_a_notebook_shows_its_figure():
    import nbformat
    from nbclient import NotebookClient

    cells = ["from bitsback.report import plots; plots.codes({'uniform': 10.0})", "plots.codes({'uniform': 20.0})"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120).execute()
    assert all(any("image/png" in output.get("data", {}) for output in cell.outputs) for cell in notebook.cells)
