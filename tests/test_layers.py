"""Every named layer keeps the contract; conversion covers everything else."""

import copy
import pickle

import pytest
import torch
from torch import nn

import bitsback
from bitsback.errors import LayerError
from bitsback.layers import FACES, convert, fan_in, make_bayesian
from bitsback.posterior import (
    GaussianPosterior,
    GaussianPosteriorSettings,
    PointPosterior,
    PointPosteriorSettings,
    Posterior,
    holding,
)
from bitsback.testing import check_layer

torch.manual_seed(0)
tokens, sequence = torch.tensor([[1, 2, 5], [0, 3, 3]]), torch.randn(5, 2, 4)
CASES = [
    ("Linear", (4, 3), {"estimator": "output"}, (torch.randn(6, 4),)),
    ("Linear", (4, 3), {"estimator": "weight", "bias": False}, (torch.randn(6, 4),)),
    ("Bilinear", (4, 5, 3), {}, (torch.randn(6, 4), torch.randn(6, 5))),
    ("Conv1d", (2, 3, 3), {"padding": "same"}, (torch.randn(2, 2, 7),)),
    ("Conv2d", (2, 4, 3), {"stride": 2, "groups": 2, "padding": 1, "padding_mode": "reflect"}, (torch.randn(2, 2, 6, 6),)),
    ("Conv2d", (2, 3, 3), {"estimator": "output", "dilation": 2}, (torch.randn(2, 2, 6, 6),)),
    ("Conv3d", (1, 2, 2), {}, (torch.randn(2, 1, 3, 3, 3),)),
    ("ConvTranspose1d", (2, 3, 3), {"output_padding": 1, "stride": 2}, (torch.randn(2, 2, 4),)),
    ("ConvTranspose2d", (2, 3, 3), {"estimator": "output"}, (torch.randn(2, 2, 4, 4),)),
    ("ConvTranspose3d", (1, 2, 2), {}, (torch.randn(2, 1, 2, 2, 2),)),
    ("Embedding", (6, 3), {"padding_idx": 0}, (tokens,)),
    ("LayerNorm", (4,), {}, (torch.randn(6, 4),)),
    ("GroupNorm", (2, 4), {}, (torch.randn(6, 4, 3),)),
    ("BatchNorm1d", (4,), {}, (torch.randn(6, 4),)),
    ("BatchNorm2d", (2,), {"momentum": 0.3}, (torch.randn(3, 2, 4, 4),)),
    ("BatchNorm3d", (2,), {}, (torch.randn(3, 2, 2, 2, 2),)),
    ("RNN", (4, 3), {"nonlinearity": "relu", "num_layers": 2}, (sequence,)),
    ("LSTM", (4, 3), {"bidirectional": True}, (sequence,)),
    ("LSTM", (4, 3), {"proj_size": 2}, (sequence,)),
    ("GRU", (4, 3), {"bias": False, "batch_first": True}, (sequence,)),
    ("MultiheadAttention", (4, 2), {}, (sequence, sequence, sequence)),
    ("MultiheadAttention", (4, 2), {"kdim": 3, "vdim": 5, "add_bias_kv": True},
     (sequence, torch.randn(6, 2, 3), torch.randn(6, 2, 5))),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("name", "args", "options", "inputs"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_every_layer_keeps_the_contract(name, args, options, inputs):
    plain = {key: value for key, value in options.items() if key != "estimator"}
    make = getattr(bitsback, name)
    check_layer(lambda: make(*args, **options), getattr(nn, name)(*args, **plain), inputs)


def test_every_named_layer_is_under_contract():
    assert {face.__name__ for face in FACES} == {case[0] for case in CASES}


def test_output_noise_has_the_exact_mean_and_variance():
    """f(x; m) and f(x^2; s^2), against the closed form for a dense layer."""
    layer, x = bitsback.Linear(3, 2), torch.randn(1, 3)
    q, b = layer.posteriors["weight"], layer.posteriors["bias"]
    q.set_std(torch.rand(2, 3) + 0.1)
    with torch.no_grad():
        draws = torch.stack([layer(x)[0] for _ in range(20_000)])
        mean, variance = x[0] @ q.mean.T + b.mean, x[0].square() @ q.std().square().T + b.std().square()
    assert torch.allclose(draws.mean(0), mean, atol=0.05)
    assert torch.allclose(draws.var(0), variance, rtol=0.05)


def test_the_variance_survives_half_precision():
    layer = bitsback.Linear(3, 2, posterior=GaussianPosteriorSettings(std=1e-4, relative_to="absolute"))
    for q in layer.own_posteriors:
        q.mean.data.zero_()
    x = torch.ones(1, 3)
    with torch.autocast("cpu", dtype=torch.float16), torch.no_grad():
        draws = torch.stack([layer(x)[0] for _ in range(2000)]).float()
    assert torch.allclose(draws.std(0), torch.full((2,), 2e-4), rtol=0.1)  # four weights of variance 1e-8


def test_the_padding_row_of_an_embedding_is_constant():
    layer = bitsback.Embedding(5, 3, padding_idx=2)
    rows = layer(torch.tensor([2, 1]))
    assert torch.equal(rows[0], torch.zeros(3))
    assert not torch.equal(rows[1], layer(torch.tensor([1]))[0])


def test_a_recurrent_layer_uses_one_draw_for_the_whole_sequence():
    layer = bitsback.RNN(1, 1, bias=False)
    x = torch.randn(7, 1, 1)
    torch.manual_seed(3)
    output, _ = layer(x)
    torch.manual_seed(3)
    w, u = (layer.posteriors[name].draw() for name in ("weight_ih_l0", "weight_hh_l0"))
    h = torch.zeros(1, 1)
    for t in range(7):
        h = torch.tanh(x[t] @ w.T + h @ u.T)
    assert torch.allclose(output[-1], h, atol=1e-6)


class Tied(nn.Module):
    """A decoder that is the encoder's embedding, and a parameter of the module itself."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 3)
        self.decode = nn.Linear(3, 6, bias=False)
        self.decode.weight = self.embed.weight
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, tokens):
        return self.decode(self.embed(tokens) + self.shift)


def test_tied_weights_share_one_posterior_and_one_draw():
    model = bitsback.bayesianize(Tied())
    assert [weight.name for weight in model.weights] == ["shift", "embed.weight"]
    assert model.network.embed.posteriors["weight"] is model.network.decode.posteriors["weight"]
    assert model.network.decode.estimator == "weight"
    seen = []
    model.network.embed.register_forward_hook(lambda layer, _, out: seen.append(out))
    model.network.decode.register_forward_hook(lambda layer, inputs, out: seen.append((inputs[0], out)))
    with model.sample():
        model(torch.arange(6))
        shift = model.network.shift
    table, (inputs, logits) = seen
    assert torch.allclose(inputs, table + shift)
    assert torch.allclose(logits, inputs @ table.T, atol=1e-6)


def test_tied_weights_share_a_draw_in_a_plain_call_too():
    model = bitsback.bayesianize(Tied())
    seen = []
    model.network.embed.register_forward_hook(lambda layer, _, out: seen.append(out))
    model.network.decode.register_forward_hook(lambda layer, inputs, out: seen.append((inputs[0], out)))
    model(torch.arange(6))
    table, (inputs, logits) = seen
    assert torch.allclose(logits, inputs @ table.T, atol=1e-6)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_transformer_converts(mode):
    plain = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    x = torch.randn(3, 5, 8)
    wanted = plain(x)
    model = bitsback.bayesianize(copy.deepcopy(plain))
    getattr(model, mode)()
    with torch.no_grad(), model.mean():
        assert torch.allclose(model(x), wanted, atol=1e-5)
    assert sum(weight.posterior.weights for weight in model.weights) == sum(p.numel() for p in plain.parameters())
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))


def test_conversion_by_pattern_leaves_the_rest_deterministic():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model = bitsback.bayesianize(net, include=["2", "0.bias"])
    assert [weight.name for weight in model.weights] == ["0.bias", "2.weight", "2.bias"]
    assert [name for name, _ in model.deterministic()] == ["0.weight"]
    assert net[0].estimator == "weight"  # a half-Bayesian layer has no exact output noise


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(LayerError, match=r"no weight matches 'o.weight' \(did you mean '0.weight'"):
        convert(nn.Sequential(nn.Linear(2, 2)), include=["o.weight"])


def test_estimators_by_layer_kind():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    convert(net, estimator={"Conv2d": "output", "Linear": "weight"})
    assert (net[0].estimator, net[2].estimator) == ("output", "weight")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: convert(nn.Sequential(nn.LayerNorm(3)), estimator="output"), "not linear in its weights"),
        (lambda: make_bayesian(nn.LazyLinear(3)), "no shape yet"),
        (lambda: convert(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), "cannot hold posteriors"),
        (lambda: GaussianPosterior(torch.zeros(2), 0.0), "positive and finite"),
    ],
)
def test_what_cannot_be_done_is_refused(make, message):
    with pytest.raises(LayerError, match=message):
        make()


def test_a_pretrained_module_is_where_the_means_start():
    plain = nn.Linear(3, 2)
    model = bitsback.bayesianize(copy.deepcopy(plain))
    assert torch.equal(model.weights[0].posterior.mean, plain.weight)


@pytest.mark.parametrize(("relative_to", "wanted"), [("absolute", 0.2), ("fan_in", 0.2 / 10**0.5), ("prior", 0.2 * 0.7)])
def test_the_std_starts_where_it_is_told(relative_to, wanted):
    settings = GaussianPosteriorSettings(std=0.2, relative_to=relative_to)
    model = bitsback.bayesianize(nn.Linear(10, 2), {"kind": "gaussian", "scale": 0.7}, posterior=settings)
    assert model.weights[0].posterior.std().mean().item() == pytest.approx(wanted, rel=1e-5)
    assert model.weights[1].posterior.std().mean().item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("module", "name", "wanted"),
    [
        (nn.Linear(7, 3), "bias", 7),
        (nn.Conv2d(4, 6, 3, groups=2), "weight", 2 * 9),
        (nn.ConvTranspose2d(4, 6, 3), "weight", 4 * 9),
        (nn.Embedding(9, 4), "weight", 1),
        (nn.BatchNorm1d(5), "weight", 1),
        (nn.LayerNorm((4, 5)), "weight", 1),
        (nn.EmbeddingBag(7, 4), "weight", 1),
        (nn.LSTM(5, 3), "weight_hh_l0", 3),
    ],
)
def test_fan_in(module, name, wanted):
    assert fan_in(module, name) == wanted
    assert fan_in(make_bayesian(module), name) == wanted


class Cosine(nn.Linear):
    """Not linear in its weights, though a Linear."""

    def forward(self, x):
        return nn.functional.normalize(x, dim=-1) @ nn.functional.normalize(self.weight, dim=-1).T


def test_a_forward_of_ones_own_is_not_taken_for_linear():
    assert make_bayesian(Cosine(3, 2, bias=False)).estimator == "weight"
    with pytest.raises(LayerError, match="not linear in its weights"):
        make_bayesian(Cosine(3, 2, bias=False), estimator="output")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_computed_weights_are_not_taken_for_linear():
    assert make_bayesian(nn.utils.weight_norm(nn.Linear(3, 2))).estimator == "weight"


def test_a_dense_layer_over_a_sequence_shares_its_draw():
    layer = bitsback.Linear(3, 1, bias=False)
    x = torch.randn(1, 1, 3).expand(1, 50, 3)
    assert layer.estimator == "output"
    assert torch.allclose(layer(x), layer(x[:, :1]).expand(1, 50, 1)) is False
    out = layer(x)
    assert torch.allclose(out, out[:, :1].expand(1, 50, 1))


def test_a_tied_weight_is_chosen_by_all_its_names():
    with pytest.raises(LayerError, match="one tied weight"):
        bitsback.bayesianize(Tied(), exclude=["decode"])


@pytest.mark.parametrize(
    "make", [lambda: bitsback.Linear(3, 2), lambda: make_bayesian(nn.GRU(3, 2)), lambda: make_bayesian(Cosine(3, 2))]
)
def test_layers_can_be_pickled(make):
    layer = make()
    again = pickle.loads(pickle.dumps(layer))
    assert type(again) is type(layer)
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), again.state_dict().values(), strict=True))
    again(torch.randn(4, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bitsback.bayesianize(nn.ReLU()), "no weights"),
        (lambda: bitsback.bayesianize(bitsback.bayesianize(nn.Linear(2, 2))), "BayesianModel already"),
        (lambda: bitsback.bayesianize(nn.Linear(2, 2), estimator="foo"), "allowed: auto, weight, output"),
        (lambda: bitsback.bayesianize(nn.Linear(2, 2), posterior="pont"), "did you mean 'point'"),
        (lambda: bitsback.bayesianize(nn.Linear(2, 2), posterior={"kind": "gaussian", "std": 0}), "greater than 0"),
    ],
)
def test_what_makes_no_model_is_refused(call, message):
    with pytest.raises(LayerError, match=message):
        call()


def test_a_posterior_by_its_kind():
    model = bitsback.bayesianize(nn.Linear(2, 2), {"kind": "laplace", "learn": "none"}, posterior="point")
    assert isinstance(model.weights[0].posterior, PointPosterior)


def test_printing_a_layer_draws_nothing():
    layer, before = bitsback.Linear(3, 2), torch.get_rng_state()
    assert "in_features=3" in repr(layer)
    assert torch.equal(before, torch.get_rng_state())


def test_an_estimator_for_a_kind_that_is_not_there_is_refused():
    with pytest.raises(LayerError, match=r"'Conv2' \(did you mean"):
        bitsback.bayesianize(nn.Sequential(nn.Conv2d(1, 1, 1)), estimator={"Conv2": "weight"})


def test_reading_means_never_changes_them():
    """Embedding with max_norm renormalises its weight in place."""
    model = bitsback.bayesianize(nn.Embedding(4, 3, max_norm=0.1))
    before = model.weights[0].posterior.mean.detach().clone()
    with model.mean():
        model(torch.arange(4))
    assert torch.equal(before, model.weights[0].posterior.mean)


def test_point_posteriors_make_a_deterministic_layer():
    layer = bitsback.Linear(3, 2, posterior=PointPosteriorSettings())
    assert isinstance(layer.posteriors["weight"], PointPosterior)
    x = torch.randn(4, 3)
    assert torch.equal(layer(x), layer(x))
    assert torch.allclose(layer(x), nn.functional.linear(x, layer.posteriors["weight"].mean, layer.posteriors["bias"].mean))


def test_holding_nests_and_lets_go():
    q = GaussianPosterior(torch.zeros(3), 1.0)
    with holding([q]):
        outer = q.value()
        with holding([q]):
            assert torch.equal(q.value(), outer)
        assert torch.equal(q.value(), outer)
    assert not torch.equal(q.value(), outer)


def test_a_failed_call_lets_go_of_its_draw():
    layer = bitsback.Linear(3, 2, estimator="weight")
    with pytest.raises(RuntimeError):
        layer(torch.randn(4, 5))
    assert not any(m.is_holding for m in layer.modules() if isinstance(m, Posterior))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_an_accelerator_gives_the_same_means():
    model = bitsback.bayesianize(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)))
    x = torch.randn(5, 1, 4, 4)
    with torch.no_grad(), model.mean():
        wanted = model(x)
    model.cuda()
    with torch.no_grad(), model.mean():
        assert torch.allclose(model(x.cuda()).cpu(), wanted, atol=1e-4)
    assert model.kl_bits().is_cuda


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_parametrized_layer_is_refused_by_name_with_the_pattern_that_leaves_it_out(norm):
    def network():
        return nn.Sequential(nn.Linear(4, 4), nn.Sequential(norm(nn.Linear(4, 3))))

    with pytest.raises(LayerError, match=r"^1\.0\.parametrizations\.weight: .*\(exclude='1\.0' leaves it deterministic\)"):
        convert(network())
    convert(network(), exclude=["1.0"])
