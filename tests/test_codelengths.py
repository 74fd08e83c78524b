"""Every code beside the others: each number against its own reference, each file decoded."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from bitsback import bayesianize
from bitsback.analysis._approximate import bic_model_bits, laplace_model_bits
from bitsback.analysis._point_estimates import PointNetwork, point_config, regularised
from bitsback.analysis.codelengths import NAMES, Codelengths, probe_config
from bitsback.analysis.regularisation import digits_study, regularisation_study
from bitsback.config import Config, Experiment, load_config, load_run
from bitsback.config.coding_settings import PackSettings, TuningSettings
from bitsback.data import Dataset, Examples
from bitsback.errors import DataError, FileError, LedgerError
from bitsback.formats.model_file.grid_search import decimal_content
from bitsback.formats.model_file.read import decode
from bitsback.formats.two_part import decode_two_part, receive_two_part, send_two_part
from bitsback.layers import SmoothConv2d
from bitsback.layers._smooth import _axis_root
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import evaluate
from bitsback.posteriors import PointPosteriorSettings
from bitsback.priors.settings import GaussianPriorSettings
from bitsback.training import TrainingSettings, train
from bitsback.units import nats_to_bits

TOY = {
    "data": {"kind": "digits", "limit": 150},
    "training": {"epochs": 40, "batch_size": 50, "optimizer": {"lr": 0.03}},
    "ledger": {"samples": 3},
}
NETWORK = {"kind": "sequential", "layers": ["Flatten", {"Linear": {"out_features": 8}}, "ReLU", "Linear"]}
BEST_GRIDS = PackSettings(codec="quantised", tuning=TuningSettings())


def config(**sections):
    return Config.model_validate({**TOY, "network": NETWORK, **sections})


def trained(settings):
    experiment = Experiment.build(settings)
    experiment.train(None, progress=False)
    return experiment


@pytest.fixture(scope="module")
def point():
    return PointNetwork.train(point_config(config()), progress=False)


# --- approximations ---------------------------------------------------------------------------------------------------


def test_laplace_comes_near_the_evidence_by_quadrature():
    """One weight, two classes: the evidence of 200 labels is an integral over a line."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 1))
    labels = (x[:, 0] + 0.7 * draw.normal(size=200) > 0).astype(np.int64)
    experiment = line(x, labels)
    weight = float(experiment.model.weights[0].posterior.mean.detach().squeeze())
    grid = np.linspace(-12, 12, 20001)
    logits = x[:, 0][:, None] * grid
    nats = -np.where(labels[:, None] == 1, -np.logaddexp(0, -logits), -np.logaddexp(0, logits)).sum(0)
    density = stats.norm(scale=1.5).logpdf(grid) - nats
    exact_bits = nats_to_bits(-(density.max() + math.log(np.trapezoid(np.exp(density - density.max()), grid))))
    paid = evaluate(experiment.model, experiment.likelihood, experiment.dataset.train, samples=0).data_bits
    found = laplace_model_bits(experiment.model, experiment.likelihood, experiment.dataset.train)
    assert found.curvature == "full"
    assert abs(weight - grid[density.argmax()]) < 0.02
    assert found.model_bits + paid == pytest.approx(exact_bits, abs=0.05)


def line(x, labels):
    """A trained weight w with logits (0, w x): the network has two outputs, of which the first is held at zero."""

    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Linear(1, 1, bias=False)

        def forward(self, inputs):
            out = self.slope(inputs)
            return torch.cat([torch.zeros_like(out), out], dim=1)

    model = bayesianize(
        Line(), GaussianPriorSettings(scale=1.5, learn="none"), posterior=PointPosteriorSettings(grid_step=2**-20)
    )
    examples = Examples(torch.tensor(x, dtype=torch.float32), torch.tensor(labels))
    data, likelihood = Dataset("line", examples, None, 2), CategoricalLikelihood(2)
    settings = TrainingSettings(epochs=400, batch_size=200, optimizer={"lr": 0.05})
    train(model, likelihood, data, training=settings, progress=False)
    return Experiment(Config(), data, model, likelihood)


def test_the_curvature_matrix_has_the_diagonal_that_is_used_alone(point):
    e = point.experiment
    full, diagonal = (laplace_model_bits(e.model, e.likelihood, e.dataset.train, full=full) for full in (True, False))
    assert (full.curvature, diagonal.curvature) == ("full", "diagonal")
    assert full.model_bits < diagonal.model_bits  # Hadamard: a determinant is at most the product of the diagonal


def test_the_curvature_is_the_hessian_where_the_network_is_linear():
    """For logits that are linear in the weights, the Gauss-Newton matrix is the Hessian itself."""
    e = trained(point_config(config(network={"kind": "sequential", "layers": ["Flatten", "Linear"]})))
    names = [weight.name for weight in e.model.weights]
    shapes = [weight.posterior.mean.shape for weight in e.model.weights]
    flat = torch.cat([weight.posterior.mean.detach().flatten() for weight in e.model.weights]).double()
    inputs, targets = e.dataset.train.inputs.flatten(1).double(), e.dataset.train.targets
    assert names[0].endswith("weight")

    def nats(w):
        matrix, bias = (part.reshape(shape) for part, shape in zip(w.split([s.numel() for s in shapes]), shapes, strict=True))
        return torch.nn.functional.cross_entropy(inputs @ matrix.T + bias, targets, reduction="sum") + (w**2).sum() / (
            2 * 0.3**2
        )

    hessian = torch.autograd.functional.hessian(nats, flat)
    prior_nats = -float(torch.distributions.Normal(0, 0.3).log_prob(flat).sum())
    wanted = prior_nats - len(flat) / 2 * math.log(2 * math.pi) + float(torch.linalg.slogdet(hessian).logabsdet) / 2
    found = laplace_model_bits(e.model, e.likelihood, e.dataset.train)
    assert found.model_bits == pytest.approx(nats_to_bits(wanted), rel=1e-4)


def test_laplace_needs_a_point(point):
    e = Experiment.build(config())
    with pytest.raises(LedgerError, match=r"posterior\.kind=point"):
        laplace_model_bits(e.model, e.likelihood, e.dataset.train)
    assert bic_model_bits(100, 256) == 400


def test_laplace_charges_weights_without_a_posterior():
    e = trained(point_config(config()))
    whole = laplace_model_bits(e.model, e.likelihood, e.dataset.train).model_bits
    part = trained(point_config(config(bayesian={"exclude": ["linear1.weight"]})))
    found = laplace_model_bits(part.model, part.likelihood, part.dataset.train).model_bits
    assert found > 32 * 64 * 8 > whole


def test_the_point_network_minimises_the_description_whatever_the_run_does():
    settings = point_config(config(training={"objective": {"kind": "quad"}, "early_stop": {"patience_epochs": 3}}))
    assert (settings.training.objective.kind, settings.training.early_stop) == ("elbo", None)


# --- penalties are code lengths ---------------------------------------------------------------------------------------


def test_a_penalty_is_a_code_length_up_to_its_constant():
    settings = load_config("configs/digits_mlp.yaml", ["training.epochs=80", "ledger.samples=1"])
    rows = {row.regularisation: row for row in regularisation_study(settings, progress=False).rows}
    assert set(rows) == {"L2", "L1", "none"}
    for row in rows.values():
        assert row.penalty_bits + row.constant_bits == pytest.approx(row.code_bits, rel=1e-6)
        assert row.total_bits >= 8 * row.file_bytes + row.label_bits
        assert 0 <= row.dropped <= row.weights
    assert rows["L1"].dropped > rows["none"].dropped
    assert rows["none"].penalty_bits < 1
    assert rows["L2"].formula == f"{nats_to_bits(1 / (2 * 0.3**2)):.4g} * sum w^2"
    assert rows["L1"].formula == f"{nats_to_bits(2**0.5 / 0.3):.4g} * sum |w|"


def test_the_l2_penalty_and_scipy_agree():
    e = PointNetwork.train(regularised(config(), "L2"), progress=False).experiment
    weights = np.concatenate([q.mean.detach().double().numpy().ravel() for q in e.model.posteriors()])
    penalty = nats_to_bits((weights**2).sum() / (2 * 0.3**2))
    constant = len(weights) * math.log2(0.3 * math.sqrt(2 * math.pi) * 2**7)
    code = nats_to_bits(-stats.norm(scale=0.3).logpdf(weights).sum()) + 7 * len(weights)
    assert penalty + constant == pytest.approx(code, rel=1e-9)


def test_rounding_to_decimal_digits():
    rows = digits_study(config(), progress=False).rows
    assert len(rows) == 21
    for by in ("L2", "L1", "none"):
        mine = [row for row in rows if row.regularisation == by]
        assert [row.digits for row in mine] == list(range(7))
        assert all(one.distinct <= other.distinct for one, other in pairwise(mine))
        assert all(one.file_bytes < other.file_bytes for one, other in pairwise(mine))
        assert mine[5].data_bits == pytest.approx(mine[6].data_bits, rel=1e-3)
        assert mine[0].data_bits > mine[6].data_bits


@pytest.mark.parametrize("digits", [0, 2, 6])
def test_a_decimal_file_holds_the_rounded_weights(point, digits):
    means = np.sort(np.concatenate([q.mean.detach().numpy().ravel() for q in point.experiment.model.posteriors()]))
    kept = {name: tensor.clone() for name, tensor in point.experiment.model.state_dict().items()}
    loaded = decode(decimal_content(point.experiment, digits), "the file")
    point.experiment.model.load_state_dict(kept)
    values = np.sort(torch.cat([weight.posterior.mean.flatten() for weight in loaded.model.weights]).detach().numpy())
    assert loaded.codec == "decimal"
    assert np.array_equal(values, (np.rint(means.astype(np.float64) * 10**digits) / 10**digits).astype(np.float32))


# --- two-part files ---------------------------------------------------------------------------------------------------


def test_a_grid_for_each_layer_costs_less_than_one_for_all(point):
    kept = {name: tensor.clone() for name, tensor in point.experiment.model.state_dict().items()}
    found = []
    for settings in (PackSettings(codec="quantised"), BEST_GRIDS):
        found.append(send_two_part(point.experiment, settings, progress=False))
        point.experiment.model.load_state_dict(kept)
    assert found[1].total_bits < 0.8 * found[0].total_bits


@pytest.mark.parametrize("codec", ["quantised", "relative_entropy"])
def test_labels_and_network_come_back_from_one_file(tmp_path, codec):
    experiment = trained(config())
    sent = send_two_part(experiment, PackSettings(codec=codec), progress=False)
    (tmp_path / "f.bb").write_bytes(sent.content)
    received = receive_two_part(tmp_path / "f.bb", tmp_path / "out")
    assert np.array_equal(np.load(tmp_path / "out" / "labels.npy"), experiment.dataset.train.targets.numpy())
    assert np.array_equal(received.labels, experiment.dataset.train.targets.numpy())
    overhead = sent.total_bits - 8 * len(sent.packed.content) - sent.packed.label_bits
    assert 0 < overhead < 120
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_other_inputs_do_not_give_other_labels(tmp_path):
    path = tmp_path / "d.npz"
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(600, 5)).astype(np.float32)
    arrays = {"inputs": inputs, "targets": inputs[:, :3].argmax(1)}
    np.savez(path, **arrays)
    settings = config(data={"kind": "npz", "path": str(path)})
    sent = send_two_part(trained(settings), PackSettings(codec="quantised"), progress=False)
    assert len(decode_two_part(sent.content, "f", [f"data.path={path}"]).labels) == 480
    np.savez(path, **{**arrays, "inputs": arrays["inputs"][::-1]})
    with pytest.raises(FileError, match="do not come back"):
        decode_two_part(sent.content, "f", [f"data.path={path}"])
    with pytest.raises(FileError, match="holds no labels"):
        decode_two_part(sent.packed.content, "f")


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_every_code(run_command, tmp_path):
    text = "extends: {}\ntraining: {{epochs: 6}}\nledger: {{samples: 2}}\ndata: {{limit: 200}}\n"
    (tmp_path / "c.yaml").write_text(text.format(Path("configs/digits_mlp.yaml").resolve()))
    small = ["pack.tuning={steps: 2, balance_steps: 2, groups: 2}", "prequential.blocks.first=50", "prequential.least_steps=30"]
    found = run_command("codelengths", tmp_path / "c.yaml", *small, "--json")
    assert found.code == 0, found.err
    rows = json.loads(found.out)
    assert tuple(rows) == NAMES
    lacking = rows.pop("label_spreading")  # this configuration has no graph
    assert (lacking["total_bits"], lacking["how"]) == (None, "needs data.features: random_walk_modes")
    for name, row in rows.items():
        assert row["name"] == name
        assert row["total_bits"] == pytest.approx(row["model_bits"] + row["data_bits"])
        assert row["ratio"] == pytest.approx(row["total_bits"] / rows["uniform"]["total_bits"])
        assert row["seconds"] >= 0
    assert rows["uniform"]["total_bits"] == pytest.approx(200 * math.log2(10))
    assert {name for name, row in rows.items() if not row["decodable"]} == {"float32", "bic", "laplace", "logistic"}
    assert rows["float32"]["model_bits"] == 32 * 310
    assert rows["float32"]["data_bits"] == rows["bic"]["data_bits"] == rows["laplace"]["data_bits"]


def test_the_rows_of_a_run_are_those_of_its_ledger(run_command, tmp_path):
    small = ["training.epochs=3", "data.limit=100", "ledger.samples=2"]
    assert run_command("train", "configs/digits_linear.yaml", *small, "--out", tmp_path / "run").code == 0
    found = run_command("codelengths", tmp_path / "run", "--codes", "variational,uniform", "--json")
    rows, ledger = json.loads(found.out), load_run(tmp_path / "run").ledger()
    assert list(rows) == ["variational", "uniform"]
    assert rows["variational"]["total_bits"] == pytest.approx(ledger.net_bits)
    assert "variational" in run_command("codelengths", tmp_path / "run", "--codes", "variational").out


def test_the_quantised_row_is_the_size_of_the_real_file():
    table = Codelengths(config(), progress=False)
    row = table.row("quantised")
    again = send_two_part(table._point.experiment, BEST_GRIDS, progress=False)
    assert (row.model_bits, row.total_bits) == (8 * len(again.packed.content), again.total_bits)
    assert table.row("float32").data_bits == table._point.data_bits  # the point estimate was left as it was


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["configs/digits.yaml", "--codes", "uniform,huffman"], "no code 'huffman'"),
        (["configs/regression.yaml"], "describe labels"),
        (["configs/regression.yaml", "training.epochs=1", "--digits"], "describe labels"),
        (["configs/digits.yaml", "posterior.kind=point"], "no variational code"),
        (["configs/digits.yaml", "--digits", "--regularisation"], "two tables"),
        (["configs/digits.yaml", "--digits", "--codes", "bic"], "leave it out"),
        (["configs/digits.yaml", "prequential.blocks=[8,100]", "--codes", "uniform,prequential"], "or leave this code out"),
        (["configs/digits.yaml", "training.budget_bits=100", "--codes", "uniform,prequential"], "or leave this code out"),
        (["configs/digits.yaml", "prior={kind: pyro, distribution: ImproperUniform}"], "is improper"),
        (["nowhere.npz"], "nowhere.npz"),
        (["nowhere.yaml"], "cannot read"),
    ],
)
def test_bad_input_is_refused(run_command, words, reason):
    found = run_command("codelengths", *words)
    assert found.code != 0
    assert reason in found.err.splitlines()[-1]
    assert found.out == ""


# --- probing ----------------------------------------------------------------------------------------------------------


def test_probing_features_is_one_command(run_command, tmp_path):
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 3, 300)
    told = np.eye(3)[labels] + 0.3 * draw.normal(size=(300, 3))
    found = {}
    for name, features in (("told", told), ("noise", draw.normal(size=(300, 3)))):
        np.savez(tmp_path / f"{name}.npz", inputs=features, targets=labels)
        words = [
            "training.epochs=60",
            "training.optimizer.lr=0.05",
            "prequential.least_steps=60",
            "--codes",
            "uniform,variational,prequential",
            "--json",
        ]
        result = run_command("codelengths", tmp_path / f"{name}.npz", *words)
        assert result.code == 0, result.err
        found[name] = json.loads(result.out)
    assert found["told"]["uniform"]["total_bits"] == pytest.approx(240 * math.log2(3))
    for code in ("variational", "prequential"):
        assert found["told"][code]["total_bits"] < 0.7 * found["noise"][code]["total_bits"]
    assert probe_config(tmp_path / "told.npz", ["seed=3"]).seed == 3


# --- smooth filters and upright images --------------------------------------------------------------------------------


def test_smooth_filters_have_the_covariance_they_promise():
    layer = SmoothConv2d(1, 1, (3, 4), length=1.3).double()
    patterns = torch.eye(12, dtype=torch.float64).reshape(12, 1, 3, 4)
    filters = layer.filters(patterns).reshape(12, 12)
    rows, columns = np.divmod(np.arange(12), 4)
    near = [np.exp(-((place[:, None] - place) ** 2) / (2 * 1.3**2)) for place in (rows, columns)]
    nugget = [1e-4 * (place[:, None] == place) for place in (rows, columns)]
    wanted = (near[0] + nugget[0]) * (near[1] + nugget[1])
    assert np.allclose((filters.T @ filters).numpy(), wanted, atol=1e-10)


def test_a_network_with_smooth_filters_is_packed_and_comes_back(tmp_path):
    layers = [{"SmoothConv2d": {"out_channels": 3, "kernel_size": 3, "length": 1.0}}, "ReLU", "Flatten", "Linear"]
    experiment = trained(config(network={"kind": "sequential", "layers": layers}))
    sent = send_two_part(experiment, PackSettings(codec="quantised"), progress=False)
    received = decode_two_part(sent.content, "f")
    assert np.array_equal(received.labels, experiment.dataset.train.targets.numpy())
    inputs = experiment.dataset.test.inputs
    assert torch.equal(received.loaded(inputs).argmax(1), sent.packed.loaded(inputs).argmax(1))


def test_a_file_with_smooth_filters_opens_in_a_fresh_process(tmp_path):
    layers = [{"SmoothConv2d": {"out_channels": 2, "kernel_size": 3, "length": 0.7}}, "ReLU", "Flatten", "Linear"]
    sent = send_two_part(trained(config(network={"kind": "sequential", "layers": layers})), progress=False)
    _axis_root.cache_clear()  # as if nothing had been built before the size of the network is found out
    assert len(decode_two_part(sent.content, "f").labels) == 150
    with pytest.raises(FileError, match="0 to 9 decimal digits"):
        decimal_content(Experiment.build(config()), 10)


def test_a_smooth_filter_needs_a_length(run_command):
    layers = "network.layers=[{SmoothConv2d: {out_channels: 2, kernel_size: 3, length: 0}}, Flatten, Linear]"
    found = run_command("train", "configs/digits.yaml", layers, "data.features=null")
    assert found.code != 0
    assert "length above zero" in found.err


def test_deskewed_images_have_no_lean_and_lie_in_the_middle():
    pictures = torch.zeros(2, 1, 28, 28)
    for row in range(4, 20):
        pictures[0, 0, row, 6 + row // 2 : 9 + row // 2] = 1.0
        pictures[1, 0, row, 20 - row // 2 : 23 - row // 2] = 0.5
    settings = load_config("configs/digits.yaml", ["data.features={kind: deskew}"]).data.features
    found = settings.fit(pictures)(pictures)[:, 0].double()
    place = torch.arange(28.0, dtype=torch.float64) - 13.5
    mass = found / found.sum((1, 2), keepdim=True)
    row, column = (mass.sum(2) * place).sum(1), (mass.sum(1) * place).sum(1)
    lean = (mass * (place[:, None] - row[:, None, None]) * (place - column[:, None, None])).sum((1, 2))
    assert row.abs().max() < 0.3
    assert column.abs().max() < 0.3
    assert lean.abs().max() < 1.0  # it was about +-10
    assert torch.equal(settings.fit(pictures)(torch.zeros(1, 1, 28, 28)), torch.zeros(1, 1, 28, 28))


def test_a_file_with_deskewed_inputs_predicts_without_the_data(tmp_path):
    data = {"kind": "digits", "limit": 100, "features": {"kind": "deskew"}}
    experiment = trained(config(data=data))
    sent = send_two_part(experiment, PackSettings(codec="quantised"), progress=False)
    stored = load_config("configs/digits.yaml", ["data.features=null", "data.scaling=none"]).data.load().test.inputs
    wanted = experiment.likelihood.predict(sent.packed.loaded(experiment.dataset.test.inputs)).argmax(1)
    loaded = decode(sent.packed.content, "f")
    assert (loaded.predict(stored).argmax(1) == wanted).float().mean() == 1.0


def test_deskew_refuses_what_is_no_image():
    settings = load_config("configs/digits.yaml", ["data.features={kind: deskew}"]).data.features
    with pytest.raises(DataError, match="grey levels"):
        settings.fit(torch.empty(0))(torch.randn(2, 5))
