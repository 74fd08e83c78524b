"""Every layer of bitsback.nn keeps the contract, and bayesianize covers every other module as it is."""

import copy
import pickle

import pytest
import torch
from torch import nn

import bitsback
from bitsback.errors import LayerError
from bitsback.layers import choose, fan_in
from bitsback.layers.outputs import is_linear_in_weights, noise_on_outputs
from bitsback.posteriors import GaussianPosterior, GaussianPosteriorSettings, PointPosterior, PointPosteriorSettings
from bitsback.testing import check_layer
from bitsback.training.drawn_outputs import DrawnOutputs

torch.manual_seed(0)
tokens, sequence = torch.tensor([[1, 2, 5], [0, 3, 3]]), torch.randn(5, 2, 4)
CASES = [
    ("Linear", (4, 3), {}, (torch.randn(6, 4),)),
    ("Linear", (4, 3), {"bias": False}, (torch.randn(2, 6, 4),)),
    ("Bilinear", (4, 5, 3), {}, (torch.randn(6, 4), torch.randn(6, 5))),
    ("Conv1d", (2, 3, 3), {"padding": "same"}, (torch.randn(2, 2, 7),)),
    ("Conv2d", (2, 4, 3), {"stride": 2, "groups": 2, "padding": 1, "padding_mode": "reflect"}, (torch.randn(2, 2, 6, 6),)),
    ("Conv2d", (2, 3, 3), {"dilation": 2}, (torch.randn(2, 2, 6, 6),)),
    ("Conv3d", (1, 2, 2), {}, (torch.randn(2, 1, 3, 3, 3),)),
    ("ConvTranspose1d", (2, 3, 3), {"output_padding": 1, "stride": 2}, (torch.randn(2, 2, 4),)),
    ("ConvTranspose2d", (2, 3, 3), {"output_padding": 1, "stride": 2}, (torch.randn(2, 2, 4, 4),)),
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
    make, plain = getattr(bitsback.nn, name), getattr(nn, name)
    check_layer(lambda: make(*args, **options), plain(*args, **options), inputs)
    check_layer(lambda: plain(*args, **options), plain(*args, **options), inputs)


def test_every_layer_of_the_name_space_is_under_contract():
    layers = {name for name in bitsback.nn.__all__ if issubclass(getattr(bitsback.nn, name), bitsback.nn.BayesianLayer)}
    assert layers - {"BayesianLayer"} == {case[0] for case in CASES}
    assert layers - {"BayesianLayer"} == {
        name for name in layers if getattr(bitsback, name, None) is getattr(bitsback.nn, name)
    }


def variances_of(model):
    return {weight.local: weight.posterior.std().square() for weight in model.weights}


def test_output_noise_has_the_exact_mean_and_variance():
    """f(x; m) and f(x^2; s^2), against the closed form for a dense layer."""
    layer, x = nn.Linear(3, 2), torch.randn(1, 3)
    model = bitsback.bayesianize(layer)
    q, b = layer.posterior["weight"], layer.posterior["bias"]
    q.set_std(torch.rand(2, 3) + 0.1)
    with torch.no_grad(), model.mean(), noise_on_outputs([(layer, variances_of(model))], torch.randn_like):
        draws = torch.stack([layer(x)[0] for _ in range(20_000)])
        mean, variance = x[0] @ q.mean.T + b.mean, x[0].square() @ q.std().square().T + b.std().square()
    assert torch.allclose(draws.mean(0), mean, atol=0.05)
    assert torch.allclose(draws.var(0), variance, rtol=0.05)


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (nn.Bilinear(4, 5, 3), [(6, 4), (6, 5)]),
        (nn.Conv2d(2, 4, 3, stride=2, groups=2, padding=1, padding_mode="reflect"), [(2, 2, 6, 6)]),
        (nn.ConvTranspose2d(2, 3, 3), [(2, 2, 4, 4)]),
    ],
)
def test_output_noise_is_as_wide_as_weight_noise(layer, shapes):
    """Against draws of the weights, for layers that are linear in them."""
    model, inputs = bitsback.bayesianize(layer), [torch.randn(shape) for shape in shapes]
    for q in model.posteriors():
        q.set_std(torch.rand(q.mean.shape) + 0.1)
    with torch.no_grad():
        drawn = []
        for _ in range(2_000):
            model.draw()
            drawn.append(layer(*inputs))
        with model.mean(), noise_on_outputs([(layer, variances_of(model))], torch.randn_like):
            noisy = [layer(*inputs) for _ in range(2_000)]
    ratio = torch.stack(noisy).var(0) / torch.stack(drawn).var(0)
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.03)
    assert ((ratio - 1).abs() < 6 * (4 / 2_000) ** 0.5).all()  # six standard errors of a ratio of variances


def test_the_variance_survives_half_precision():
    layer = nn.Linear(3, 2)
    model = bitsback.bayesianize(layer, posterior=GaussianPosteriorSettings(std=1e-4, relative_to="absolute"))
    for q in model.posteriors():
        q.mean.zero_()
    x = torch.ones(1, 3)
    noisy = noise_on_outputs([(layer, variances_of(model))], torch.randn_like)
    with torch.autocast("cpu", dtype=torch.float16), torch.no_grad(), model.mean(), noisy:
        draws = torch.stack([layer(x)[0] for _ in range(2000)]).float()
    assert torch.allclose(draws.std(0), torch.full((2,), 2e-4), rtol=0.1)  # four weights of variance 1e-8


def test_the_padding_row_of_an_embedding_is_constant():
    layer = bitsback.nn.Embedding(5, 3, padding_idx=2)
    rows = layer(torch.tensor([2, 1])).detach()
    layer.draw()
    again = layer(torch.tensor([2, 1]))
    assert torch.equal(rows[0], torch.zeros(3))
    assert torch.equal(again[0], torch.zeros(3))
    assert not torch.equal(rows[1], again[1])


def test_a_recurrent_layer_uses_one_draw_for_the_whole_sequence():
    layer = bitsback.nn.RNN(1, 1, bias=False)
    x = torch.randn(7, 1, 1)
    output, _ = layer(x)
    w, u = (layer.model.value(weight) for weight in layer.model.weights)
    assert not torch.equal(w, layer.posterior["weight_ih_l0"].mean)
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
    network = Tied()
    model = bitsback.bayesianize(network)
    assert [weight.name for weight in model.weights] == ["shift", "embed.weight"]
    assert network.embed.posterior["weight"] is network.decode.posterior["weight"]
    assert model.output_layers == []  # another layer reads the weight too
    seen = []
    network.embed.register_forward_hook(lambda layer, _, out: seen.append(out))
    network.decode.register_forward_hook(lambda layer, inputs, out: seen.append((inputs[0], out)))
    for hold in (model.sample, lambda: model.keeping()):  # a sample, and a plain call
        with hold():
            model(torch.arange(6))
            table, (inputs, logits) = seen[-2:]
            assert torch.allclose(inputs, table + network.shift)
            assert torch.allclose(logits, inputs @ table.T, atol=1e-6)
            assert not torch.allclose(table, network.embed.posterior["weight"].mean)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_transformer_keeps_what_it_computes(mode):
    plain = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    x = torch.randn(3, 5, 8)
    wanted = plain(x)
    model = bitsback.bayesianize(copy.deepcopy(plain))
    getattr(model, mode)()
    with torch.no_grad(), model.mean():
        assert torch.allclose(model(x), wanted, atol=1e-5)
    assert sum(weight.posterior.numel for weight in model.weights) == sum(p.numel() for p in plain.parameters())
    with torch.no_grad(), model.sample():
        first = model(x)
        assert torch.equal(first, model(x))
    with torch.no_grad(), model.sample():
        assert not torch.allclose(first, model(x), atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(model(x), wanted, atol=1e-5) == (mode == "eval")


def test_patterns_leave_the_rest_deterministic():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    before = net[0].weight.detach().clone()
    model = bitsback.bayesianize(net, include=["2", "0.bias"])
    assert [weight.name for weight in model.weights] == ["0.bias", "2.weight", "2.bias"]
    assert [name for name, _ in model.deterministic()] == ["0.weight"]
    assert torch.equal(net[0].weight, before)
    assert [layer.module for layer in model.output_layers] == [net[2]]  # a half-Bayesian layer has no exact output noise


def test_a_layer_that_is_left_out_holds_its_means_from_then_on():
    net = nn.Sequential(bitsback.nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    mean = net[0].posterior["bias"].mean
    model = bitsback.bayesianize(net, exclude=["0.bias"])
    assert [name for name, _ in model.deterministic()] == ["0.bias"]
    assert torch.equal(net[0].bias, mean)
    assert set(net[0].posterior) == {"weight"}
    with torch.no_grad():
        net[2].bias.copy_(torch.tensor([3.0, -4.0]))  # the model that is there now makes it the mean
    narrower = bitsback.bayesianize(net, include=["0.weight"])
    assert [weight.name for weight in narrower.weights] == ["0.weight"]
    assert torch.equal(net[2].bias, torch.tensor([3.0, -4.0]))
    assert torch.equal(net[2].weight, model.weights[1].posterior.mean)
    assert not net[2].posterior
    with pytest.raises(LayerError, match="given to another model"):
        model.draw()


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(LayerError, match=r"no weight matches 'o.weight' \(did you mean '0.weight'"):
        choose(nn.Sequential(nn.Linear(2, 2)), include=["o.weight"])


def test_estimators_by_layer_kind():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    model = bitsback.bayesianize(net, estimator={"Conv2d": "output", "Linear": "weight"})
    assert [(layer.module, layer.asked) for layer in model.output_layers] == [(net[0], True)]
    outputs = DrawnOutputs(model, [torch.randn(5, 1, 4, 4)], reuse=1)
    assert {w.name for w in model.weights if w.noise_on_outputs} == {"0.weight", "0.bias"}
    assert torch.equal(net[0].weight, net[0].posterior["weight"].mean)
    outputs.release()
    assert not torch.equal(net[0].weight, net[0].posterior["weight"].mean)


def test_a_weight_that_its_layer_does_not_read_itself_is_drawn():
    """Attention reads its output projection's weight, and never calls it."""

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0])

    net = Attends()
    model = bitsback.bayesianize(net, estimator={"Linear": "output"})
    DrawnOutputs(model, [torch.randn(3, 5, 4)], reuse=1)
    assert {w.name for w in model.weights if w.noise_on_outputs} == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bitsback.bayesianize(nn.Sequential(nn.LayerNorm(3)), estimator="output"), r"^0: .*not linear in its weights"),
        (lambda: bitsback.bayesianize(nn.LazyLinear(3)), "no shape yet"),
        (lambda: bitsback.bayesianize(nn.Linear(3, 2, dtype=torch.complex64)), "'weight' is complex"),
        (lambda: bitsback.bayesianize(nn.Linear(3, 2, device="meta")), "'weight' is on the meta device"),
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
    bitsback.bayesianize(module)
    assert module.posterior[name].std().mean().item() == pytest.approx(0.1 / wanted**0.5)  # which the std starts from


class Cosine(nn.Linear):
    """Not linear in its weights, though a Linear."""

    def forward(self, x):
        return nn.functional.normalize(x, dim=-1) @ nn.functional.normalize(self.weight, dim=-1).T


def test_a_forward_of_ones_own_is_not_taken_for_linear():
    assert bitsback.bayesianize(Cosine(3, 2, bias=False)).output_layers == []
    with pytest.raises(LayerError, match="not linear in its weights"):
        bitsback.bayesianize(Cosine(3, 2, bias=False), estimator="output")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
)
def test_computed_weights_are_not_taken_for_linear(norm):
    layer = norm(nn.Linear(3, 2))
    assert is_linear_in_weights(nn.Linear(3, 2))
    assert not is_linear_in_weights(layer)
    assert bitsback.bayesianize(layer).output_layers == []


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_parametrized_layer_has_posteriors_over_what_its_weight_is_computed_from(norm):
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(norm(nn.Linear(4, 3)))).eval()
    plain, x = copy.deepcopy(network), torch.randn(5, 4)
    model = bitsback.bayesianize(network)
    names = [name for name, _ in plain.named_parameters()]
    assert [weight.name for weight in model.weights] == names
    assert all(".parametrizations.weight.original" in name for name in names[3:])
    with model.mean():
        assert torch.equal(model(x), plain(x))
    model.draw()
    assert not torch.allclose(network[1][0].weight, plain[1][0].weight)
    assert torch.equal(model(x), nn.functional.linear(network[0](x), network[1][0].weight, network[1][0].bias))
    left = bitsback.bayesianize(plain, exclude=["1.0"])
    assert [weight.name for weight in left.weights] == ["0.weight", "0.bias"]


def test_a_dense_layer_over_a_sequence_shares_its_draw():
    layer = nn.Linear(3, 1, bias=False)
    model = bitsback.bayesianize(layer)
    outputs = DrawnOutputs(model, [torch.randn(4, 3)], reuse=1)
    assert [found.module for found in outputs.layers] == [layer]
    outputs.try_out([torch.randn(4, 50, 3)])
    assert outputs.layers == []
    out = layer(torch.randn(1, 1, 3).expand(1, 50, 3))
    assert torch.allclose(out, out[:, :1].expand(1, 50, 1))
    assert not torch.equal(layer.weight, layer.posterior["weight"].mean)


def test_a_tied_weight_is_chosen_by_all_its_names():
    with pytest.raises(LayerError, match="one tied weight"):
        bitsback.bayesianize(Tied(), exclude=["decode"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: bitsback.nn.Linear(3, 2),
        lambda: bitsback.bayesianize(nn.GRU(3, 2)),
        lambda: bitsback.bayesianize(Cosine(3, 2)),
        lambda: bitsback.bayesianize(nn.Sequential(bitsback.nn.Linear(3, 2))).network,
    ],
)
def test_layers_and_models_can_be_pickled(make):
    one = make()
    again = pickle.loads(pickle.dumps(one))
    assert type(again) is type(one)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values(), strict=True))
    x = torch.randn(4, 3)
    for module in (one, again):
        if hasattr(module, "draw"):
            module.draw()
    output, other = one(x), again(x)
    assert torch.equal(output[0], other[0])


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
    layer, before = bitsback.nn.Linear(3, 2), torch.get_rng_state()
    weight = layer.weight.detach().clone()
    assert "in_features=3" in repr(layer)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(layer.weight, weight)


def test_an_estimator_for_a_kind_that_is_not_there_is_refused():
    with pytest.raises(LayerError, match=r"'Conv2' \(did you mean"):
        bitsback.bayesianize(nn.Sequential(nn.Conv2d(1, 1, 1)), estimator={"Conv2": "weight"})


def test_a_forward_that_writes_to_its_weight_never_changes_the_means():
    """Embedding with max_norm renormalises its weight in place."""
    model = bitsback.bayesianize(nn.Embedding(4, 3, max_norm=0.1))
    before = model.weights[0].posterior.mean.detach().clone()
    with model.mean():
        model(torch.arange(4))
    for _ in range(2):
        model(torch.arange(4))
        model.draw()
    assert torch.equal(before, model.weights[0].posterior.mean)


def test_point_posteriors_make_a_deterministic_layer():
    layer = bitsback.nn.Linear(3, 2, prior={"kind": "gaussian", "learn": "none"}, posterior=PointPosteriorSettings())
    assert isinstance(layer.posterior["weight"], PointPosterior)
    x = torch.randn(4, 3)
    output = layer(x)
    layer.draw()
    assert torch.equal(layer(x), output)
    assert torch.allclose(output, nn.functional.linear(x, layer.posterior["weight"].mean, layer.posterior["bias"].mean))


def test_samples_and_means_nest_and_let_go():
    layer = bitsback.nn.Linear(3, 2)
    drawn, mean = layer.weight.detach().clone(), layer.posterior["weight"].mean
    with layer.sample():
        outer = layer.weight.detach().clone()
        with layer.sample():
            assert not torch.equal(layer.weight, outer)
            with layer.mean():
                assert torch.equal(layer.weight, mean)
        assert torch.equal(layer.weight, outer)
    assert torch.equal(layer.weight, drawn)
    assert not torch.equal(drawn, outer)


def test_a_failed_call_lets_go_of_its_sample():
    layer = bitsback.nn.Linear(3, 2)
    drawn = layer.weight.detach().clone()
    for hold in (layer.sample, layer.mean):
        with pytest.raises(RuntimeError), hold():
            layer(torch.randn(4, 5))
        assert torch.equal(layer.weight, drawn)


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
