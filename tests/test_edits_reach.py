"""What is written to a weight is its mean to whatever reads posteriors, and stays it through what restores a model."""

import pytest
import torch
from torch import nn

import bitsback
from bitsback.analysis._approximate import laplace_model_bits
from bitsback.analysis.prune import Pruner, only_kept, signal_to_noise
from bitsback.certificates._posterior_risk import mean_loss_of_draws
from bitsback.config import Config, Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.data import Dataset, Examples
from bitsback.formats.model_file.grid_search import decimal_content
from bitsback.formats.model_file.write import pack_experiment
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model._posterior_file import posterior_tensors

EXAMPLES = Examples(torch.randn(40, 8, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3)
CLASSES = CategoricalLikelihood(3)
PRIOR = {"kind": "gaussian", "learn": "none"}


def made(posterior="gaussian"):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    return bitsback.bayesianize(network, PRIOR, posterior=posterior, seed=3)


def experiment(model):
    layers = [{"Linear": {"out_features": 5}}, "ReLU", "Linear"]
    network, quantising = {"kind": "sequential", "layers": layers}, {"permute": False}
    config = Config.model_validate({"network": network, "prior": PRIOR, "pack": {"quantising": quantising}})
    return Experiment(config, Dataset("in memory", EXAMPLES, None, 3, in_memory=True), model, CLASSES)


def packed(codec):
    return lambda model: pack_experiment(experiment(model), PackSettings(codec=codec), progress=False).content


def pruned(model):
    pruner = Pruner(experiment(model), samples=2)
    keep = pruner.keep(0.5)
    cost = pruner.cost(keep)
    return cost.kept, cost.data_bits, pruner.file(keep).content


READERS = {
    "state": lambda model: {name: t.tolist() for name, t in model.state_dict().items() if name.startswith("posterior")},
    "posterior file": lambda model: {name: tensor.tolist() for name, tensor in posterior_tensors(model)[0].items()},
    "ledger": lambda model: bitsback.take_ledger(model, CLASSES, EXAMPLES, samples=2).net_bits,
    "widths": lambda model: [book.net_bits for book in bitsback.width_curve(model, CLASSES, EXAMPLES, samples=2).values()],
    "signal to noise": lambda model: {name: ratio.tolist() for name, ratio in signal_to_noise(model).items()},
    "pruned": pruned,
    "certificate": lambda model: mean_loss_of_draws(model, CLASSES, EXAMPLES, passes=20),
    "decimal file": lambda model: decimal_content(experiment(model), 3),
    "quantised file": packed("quantised"),
    "file of blocks": packed("relative_entropy"),
}


@pytest.mark.parametrize("through", ["no_grad", "data"])
@pytest.mark.parametrize("name", READERS)
def test_an_edit_is_the_mean_to_every_reader(name, through):
    edited, stated, untouched = made(), made(), made()
    with torch.no_grad():
        weight = edited.network[0].weight
        (weight.data if through == "data" else weight)[1:3] = 0.75
        stated.weights[0].posterior.mean[1:3] = 0.75
    found = READERS[name](edited)
    assert found == READERS[name](stated)
    assert found != READERS[name](untouched)


def test_an_edit_counts_in_the_kl():
    edited, stated = made(), made()
    with torch.no_grad():
        edited.network[0].weight[1:3] = 0.75
        stated.weights[0].posterior.mean[1:3] = 0.75
    assert edited.kl_bits().item() == stated.kl_bits().item()


def test_an_edit_of_a_point_is_what_laplace_looks_at():
    edited, stated = made("point"), made("point")
    edited.network[0].weight.data[1:3] = 0.75
    with torch.no_grad():
        stated.weights[0].posterior.mean[1:3] = 0.75
    assert laplace_model_bits(edited, CLASSES, EXAMPLES) == laplace_model_bits(stated, CLASSES, EXAMPLES)


def test_what_is_pruned_is_zero_in_the_file_and_the_model_is_left_as_it_was():
    model = made()
    pruner = Pruner(experiment(model), samples=2)
    keep = pruner.keep(2.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = pruner.file(keep)
    sent = [weight.posterior.mean for weight in file.loaded.model.weights]
    assert all(bool((mean[~kept] == 0).all()) for mean, kept in zip(sent, keep.values(), strict=True))
    assert 0 < sum(int(kept.sum()) for kept in keep.values()) < 63
    with only_kept(model, keep), model.sample():
        assert all(bool((weight.parameter[~keep[weight.name]] == 0).all()) for weight in model.weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if name != "_extra_state")


@pytest.mark.parametrize("codec", ["relative_entropy", "quantised"])
def test_a_packed_model_and_a_loaded_one_hold_their_numbers_in_every_mode(tmp_path, codec):
    model = made()
    bitsback.save(model, tmp_path / "model.bb", EXAMPLES, settings=PackSettings(codec=codec), progress=False)
    loaded = bitsback.load(tmp_path / "model.bb")
    wanted = loaded(EXAMPLES.inputs)
    for mode in (True, False, True):
        loaded.train(mode)
        model.train(mode)
        for network in (loaded.model.network, model.network):
            torch.testing.assert_close(network(EXAMPLES.inputs), wanted, rtol=0, atol=1e-6)
        with loaded.model.sample():
            torch.testing.assert_close(loaded.model(EXAMPLES.inputs), wanted, rtol=0, atol=1e-6)


def test_the_padding_row_of_an_embedding_is_constant_in_certificates():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(6, 4, padding_idx=0), nn.Flatten(), nn.Linear(4, 2))
    model = bitsback.bayesianize(network, posterior={"kind": "gaussian", "std": 3.0, "relative_to": "absolute"})
    model.weights[1].posterior.set_std(1e-6)
    model.weights[2].posterior.set_std(1e-6)
    with model.mean(), torch.no_grad():
        outputs = network[2](model.weights[0].posterior.mean[0])
    answer = int(outputs.argmax())
    given = Examples(torch.zeros(50, 1, dtype=torch.long), torch.full((50,), answer))
    assert float(outputs.diff().abs()) > 1e-3
    assert mean_loss_of_draws(model, CategoricalLikelihood(2), given) == 0
    given = Examples(torch.ones(50, 1, dtype=torch.long), torch.full((50,), answer))
    assert 0.1 < mean_loss_of_draws(model, CategoricalLikelihood(2), given) < 0.9
