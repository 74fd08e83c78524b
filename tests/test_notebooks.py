"""The notebooks run at toy size, their stored outputs are whole, and 00 gives the same bits as the package."""

import math
import re
from pathlib import Path

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
import torch

import bitsback
from bitsback.data.settings import DigitsSettings
from bitsback.learned import LOG_SCALE
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.priors import GaussianPrior, LaplacePrior

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = (
    "00_the_whole_idea",
    "01_train_in_bits",
    "02_swap_the_prior",
    "03_send_a_message",
    "04_ship_the_model",
    "05_certificates_and_codes",
)
SLOW = NAMES[2:5]
"""More than ten seconds on a busy core."""

MOST_BYTES = 400_000
MOST_LINES = 300
EXACTLY = 1e-9


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_of(name):
    return [cell.source for cell in read(name).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NAMES])
def test_it_runs_at_toy_size(name, monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="needs `pip install .[notebooks]`")
    for variable, value in {"BITSBACK_TOY": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}.items():
        monkeypatch.setenv(variable, value)
    nbclient.NotebookClient(
        read(name), timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()


def test_every_notebook_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_outputs_are_whole(name):
    path, notebook = FOLDER / f"{name}.ipynb", read(name)
    nbformat.validate(notebook)
    assert path.stat().st_size < MOST_BYTES
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data"}
    assert all(output.name == "stdout" for output in outputs if output.output_type == "stream")
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not any(cell.metadata for cell in notebook.cells)
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("name", NAMES)
def test_no_path_of_a_machine_is_stored(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not re.search(r"/(home|tmp|root|Users|work)/|site-packages", text)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    for cell in read(name).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)\)", cell.source):
                assert (FOLDER / target).is_file(), target


def test_the_whole_idea_is_numpy_in_few_lines():
    lines = [line for cell in code_of(NAMES[0]) for line in cell.splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES
    imported = {re.split(r"[\s.]", line)[1] for line in lines if re.match(r"(import|from) ", line)}
    assert imported == {"math", "os", "zlib", "bisect", "pathlib", "numpy", "matplotlib"}


@pytest.fixture(scope="module")
def idea():
    """The names of 00 after a toy run, without a kernel."""
    with pytest.MonkeyPatch.context() as patch, mpl.rc_context({"backend": "agg"}):
        patch.setenv("BITSBACK_TOY", "1")
        patch.chdir(FOLDER)
        names = {}
        for source in code_of(NAMES[0]):
            exec(source, names)
        names["plt"].close("all")
    return names


@pytest.fixture
def model(idea):
    """The package's model with the means, stds and prior of 00, in float64."""
    linear = torch.nn.Linear(64, 10, bias=False)
    prior = {"kind": "gaussian", "scale": idea["scale"], "learn": "closed_form"}
    model = bitsback.bayesianize(torch.nn.Sequential(torch.nn.Flatten(), linear), prior=prior).double()
    (weight,) = model.weights
    with torch.no_grad():
        weight.posterior.mean.copy_(torch.from_numpy(idea["mean"].T))
    weight.posterior.set_std(torch.from_numpy(idea["std"].T.copy()))
    weight.prior.log_scale.fill_(math.log(idea["scale"]))
    return model


@pytest.fixture
def examples():
    return DigitsSettings().load().train.to(torch.device("cpu"), torch.float64)


def test_the_idea_describes_the_same_examples(idea, examples):
    np.testing.assert_array_equal(idea["x"], examples.inputs.flatten(1).numpy())
    np.testing.assert_array_equal(idea["y"], examples.targets.numpy())
    assert idea["uniform_bits"] == pytest.approx(CategoricalLikelihood(10).uniform_bits(examples.targets), rel=EXACTLY)


def test_the_idea_gives_the_same_bits(idea, model, examples):
    book = bitsback.take_ledger(model, CategoricalLikelihood(10), examples, samples=1, grid_step=idea["grid_step"])
    refund = idea["refund_bits"](idea["std"], idea["grid_step"]).sum()
    assert book.net_weight_bits == pytest.approx(idea["net"], rel=EXACTLY)
    assert book.refund_bits == pytest.approx(refund, rel=EXACTLY)
    assert book.gross_weight_bits == pytest.approx(idea["net"] + refund, rel=EXACTLY)
    assert book.hyperparameter_bits == idea["scale_bits"] == LOG_SCALE.bits_each
    bill = idea["bill"]
    assert bill["gross weights"] + bill["refund"] == pytest.approx(bill["net weights"], rel=EXACTLY)
    assert bill["gross weights"] == pytest.approx(book.gross_weight_bits, rel=EXACTLY)


def test_the_idea_gives_the_same_data_bits(idea, examples):
    likelihood = CategoricalLikelihood(10)
    for draw, said in zip(idea["draws"], idea["label_bits"], strict=True):
        outputs = examples.inputs.flatten(1) @ torch.from_numpy(draw)
        assert float(likelihood.bits(outputs, examples.targets).sum()) == pytest.approx(said, rel=EXACTLY)


@pytest.mark.parametrize("at_once", [1, 10])
def test_the_idea_gives_the_same_net(idea, model, examples, monkeypatch, at_once):
    """The whole ledger, of the very draws of the notebook."""
    draws, own = [torch.from_numpy(draw.T.copy()) for draw in idea["draws"]], type(model).value

    def value(self, weight, state=None, noise=None):
        state = state or self.state
        return draws[-1 - state.number] if state.number < 0 else own(self, weight, state, noise)

    monkeypatch.setattr(type(model), "value", value)
    monkeypatch.setattr("bitsback.model.accounting.draws_at_once", lambda model: at_once)
    book = bitsback.take_ledger(model, CategoricalLikelihood(10), examples, samples=len(draws))
    assert book.net_bits == pytest.approx(idea["net_bits"], rel=EXACTLY)


def test_the_idea_gives_the_same_width_curve(idea, model):
    (weight,) = model.weights
    for factor, said in zip(idea["factors"], idea["weights_cost"], strict=True):
        weight.posterior.scale_std(factor)
        assert float(model.kl_bits(exact=True).detach()) == pytest.approx(said, rel=EXACTLY)
        weight.posterior.scale_std(1 / factor)


def test_its_penalties_are_the_package_s_priors(idea):
    w = np.linspace(-3, 3, 13)
    values = torch.from_numpy(w)
    for found, prior in (
        (idea["gaussian_bits"](w, 0, 0.7), GaussianPrior(scale=0.7)),
        (idea["laplace_bits"](w, 0.7), LaplacePrior(scale=0.7)),
    ):
        wanted = -prior.double()().log_prob(values).detach().numpy() / math.log(2)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)  # the scale is stored in float32


@pytest.mark.parametrize("name", NAMES)
def test_cells_fit_their_width(name):
    assert max(len(line) for cell in code_of(name) for line in cell.splitlines()) <= 104
