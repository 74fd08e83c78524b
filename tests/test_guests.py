"""Posteriors trained elsewhere: their ledger is the sum by hand, and the network is the guest's own."""

import io
import math
import pickle

import guests
import pytest
import torch
from guests import gaussian_bits, refund_bits
from torch import nn
from torch.nn.functional import softplus

import bitsback
from bitsback.errors import LayerError, PriorError
from bitsback.interop import from_bayesian_torch, from_blitz, from_ivon, from_laplace, from_moments, from_torchbnn, from_tyxe
from bitsback.interop._guests import WITH_KL
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.priors import LaplacePrior

STEP = 2.0**-12


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def data(*shape):
    return torch.randn(12, *shape, dtype=torch.float64), torch.arange(12) % 3


def check(model, x, y, wanted, outputs, charged=0.0):
    """The ledger's weight bits by hand, tensor by tensor; the data bits of the means from the guest's own outputs."""
    ledger = bitsback.take_ledger(model, CategoricalLikelihood(3), (x, y), samples=3, grid_step=STEP)
    entries = {entry.name: entry for entry in ledger.entries}
    for name, (std, net_bits) in wanted.items():
        assert entries[name].net_bits == pytest.approx(net_bits, rel=1e-6), name
        assert entries[name].refund_bits == pytest.approx(refund_bits(std, STEP), rel=1e-9, abs=1e-6), name
        assert entries[name].weights == std.numel()
    assert ledger.net_weight_bits == pytest.approx(sum(bits for _, bits in wanted.values()) + charged, rel=1e-6)
    assert ledger.hyperparameter_bits == 0
    paid = bitsback.evaluate(model, CategoricalLikelihood(3), (x, y), samples=0).data_bits
    by_hand = nn.functional.cross_entropy(outputs, y, reduction="sum").item() / math.log(2)
    assert paid == pytest.approx(by_hand, abs=1e-6)


def test_bayesian_torch():
    layers = [guests.LinearReparameterization(4, 5, prior_variance=0.7), guests.LinearReparameterization(5, 3, prior_mean=0.1)]
    for layer in layers:
        layer.dnn_to_bnn_flag = True
    network = nn.Sequential(layers[0], nn.Tanh(), layers[1]).double()
    x, y = data(4)
    wanted = {}
    for place, prior_std, prior_mean in ((0, 0.7, 0.0), (2, 1.0, 0.1)):
        for local in ("weight", "bias"):
            mean, std = getattr(network[place], f"mu_{local}"), softplus(getattr(network[place], f"rho_{local}"))
            wanted[f"{place}.{local}"] = (
                std,
                gaussian_bits(mean, std, *(float(torch.tensor(v)) for v in (prior_std, prior_mean))),
            )
    before = [parameter.detach().clone() for parameter in network.parameters()]
    check(from_bayesian_torch(network), x, y, wanted, network(x))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert isinstance(network[0], guests.LinearReparameterization)


def test_bayesian_torch_layers_by_hand_return_a_kl_as_well():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = guests.Conv2dFlipout(1, 2, 3, stride=2, padding=1, prior_variance=0.5)
            self.fc = guests.LinearReparameterization(8, 3, bias=False)

        def forward(self, x):
            x, kl = self.conv(x)
            out, more = self.fc(x.relu().flatten(1))
            return out, kl + more

    network = Net().double()
    x, y = data(1, 4, 4)
    wanted = {}
    for name, mean, rho, prior in (
        ("conv.weight", network.conv.mu_kernel, network.conv.rho_kernel, 0.5),
        ("fc.weight", network.fc.mu_weight, network.fc.rho_weight, 1.0),
    ):
        wanted[name] = (softplus(rho), gaussian_bits(mean, softplus(rho), prior))
    check(from_bayesian_torch(network), x, y, wanted, network(x)[0])


class ByHand(nn.Module):
    """Layers of bayesian-torch that were not made by dnn_to_bnn."""

    def __init__(self):
        super().__init__()
        self.conv = guests.Conv2dFlipout(1, 2, 3, stride=2, padding=1)
        self.fc = guests.LinearReparameterization(8, 3)

    def forward(self, x):
        x, kl = self.conv(x)
        out, more = self.fc(x.relu().flatten(1))
        return out, kl + more


def test_guests_of_bayesian_torch_can_be_pickled():
    x = torch.randn(2, 1, 4, 4)
    plain = from_bayesian_torch(ByHand()).mean_network()
    again = pickle.loads(pickle.dumps(plain))
    assert torch.equal(again(x)[0], plain(x)[0])
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x)[0], plain(x)[0])
    model = from_bayesian_torch(ByHand())
    assert torch.equal(pickle.loads(pickle.dumps(model.network))(x)[0], model.network(x)[0])
    assert torch.equal(plain.conv(x, return_kl=False), plain.conv(x)[0])
    made = guests.LinearReparameterization(4, 3)
    made.dnn_to_bnn_flag = True
    assert b"bitsback" not in pickle.dumps(from_bayesian_torch(nn.Sequential(made)).mean_network())


def test_every_layer_that_returns_a_kl_is_found_by_pickle():
    for plain, kind in WITH_KL.items():
        assert pickle.loads(pickle.dumps(kind)) is kind
        assert issubclass(kind, plain)


def test_a_prior_around_a_network():
    """MOPED and the like: a prior mean for each weight, which the receiver knows."""
    layer = guests.LinearReparameterization(4, 3).double()
    layer.dnn_to_bnn_flag = True
    layer.prior_weight_mu.copy_(layer.mu_weight.detach() + 0.1)
    x, y = data(4)
    std = {local: softplus(getattr(layer, f"rho_{local}")) for local in ("weight", "bias")}
    wanted = {
        "weight": (std["weight"], gaussian_bits(torch.full((3, 4), -0.1), std["weight"], 1.0)),
        "bias": (std["bias"], gaussian_bits(layer.mu_bias, std["bias"], 1.0)),
    }
    model = from_bayesian_torch(layer)
    assert "around which the prior was put" in bitsback.take_ledger(model, CategoricalLikelihood(3), (x, y)).given
    check(
        model,
        x,
        y,
        {name: pair for name, pair in wanted.items() if name == "bias"}
        | {"weight": (std["weight"], gaussian_bits(layer.mu_weight.detach() - layer.prior_weight_mu, std["weight"], 1.0))},
        layer(x),
    )


@pytest.mark.parametrize("pi", [1, 0.25])
def test_blitz(pi):
    network = nn.Sequential(guests.BayesianLinear(4, 3, prior_sigma_1=0.5, prior_sigma_2=0.1, prior_pi=pi, bias=False))
    network.double()  # parts the samplers' tensors from the layer's own
    with torch.no_grad():
        network[0].weight_sampler.mu.add_(0.3)
    x, y = data(4)
    sampler = network[0].weight_sampler
    std = softplus(sampler.rho)
    if pi == 1:
        net_bits = gaussian_bits(sampler.mu, std, 0.5)
    else:
        net_bits = sum(
            mixture_bits(m, s, (0.5, 0.1), (pi, 1 - pi))
            for m, s in zip(sampler.mu.flatten().tolist(), std.flatten().tolist(), strict=True)
        )
    check(from_blitz(network), x, y, {"0.weight": (std, net_bits)}, network(x))


def mixture_bits(mean, std, scales, weights):
    """KL(N(mean, std^2) || mixture of centred normals) in bits, by the trapezoid rule on 200,001 points in float64."""
    w = torch.linspace(mean - 14 * std, mean + 14 * std, 200_001, dtype=torch.float64)
    q = torch.exp(-0.5 * ((w - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    p = sum(a * torch.exp(-0.5 * (w / s) ** 2) / (s * math.sqrt(2 * math.pi)) for s, a in zip(scales, weights, strict=True))
    entropy = 0.5 * math.log2(2 * math.pi * math.e) + math.log2(std)
    return torch.trapezoid(-q * p.log2(), w).item() - entropy


def test_blitz_with_a_distribution_of_ones_own():
    network = guests.BayesianLinear(4, 3, prior_dist=torch.distributions.Laplace(0.0, 0.3))
    assert isinstance(from_blitz(network).weights[0].prior, LaplacePrior)
    network = guests.BayesianLinear(4, 3, prior_dist=torch.distributions.LogNormal(0.0, 0.3))
    with pytest.raises(PriorError, match="needs all reals as support"):
        from_blitz(network)


def test_torchbnn():
    network = nn.Sequential(
        guests.BayesLinear(0.2, 0.3, 4, 5), nn.ReLU(), guests.BayesLinear(0, 1.5, 5, 3, bias=False)
    ).double()
    x, y = data(4)
    wanted = {}
    for place, local in ((0, "weight"), (0, "bias"), (2, "weight")):
        layer = network[place]
        mean, std = getattr(layer, f"{local}_mu"), getattr(layer, f"{local}_log_sigma").exp()
        wanted[f"{place}.{local}"] = (std, gaussian_bits(mean, std, layer.prior_sigma, layer.prior_mu))
    check(from_torchbnn(network), x, y, wanted, network(x))


def test_ivon():
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    optimizer = guests.IVON(network.parameters(), lr=0.1, ess=500, weight_decay=0.01)
    optimizer.param_groups[0]["hess"] = torch.rand(43, dtype=torch.float64)
    x, y = data(4)
    stds = (500 * (optimizer.param_groups[0]["hess"] + 0.01)).rsqrt()
    prior_std = (500 * 0.01) ** -0.5
    wanted, start = {}, 0
    for name, parameter in network.named_parameters():
        std = stds[start : start + parameter.numel()]
        start += parameter.numel()
        wanted[name] = (std, gaussian_bits(parameter, std, prior_std))
    check(from_ivon(optimizer, network), x, y, wanted, network(x))
    with pytest.raises(PriorError, match="improper prior"):
        from_ivon(guests.IVON(network.parameters(), lr=0.1, ess=500, weight_decay=0), network)
    with pytest.raises(LayerError, match="a parameter that the network has not"):
        from_ivon(optimizer, nn.Linear(4, 3))
    with pytest.raises(LayerError, match="Adam is not IVON"):
        from_ivon(torch.optim.Adam(network.parameters()), network)


def test_laplace():
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    laplace = guests.DiagLaplace(network, prior_precision=4.0, prior_mean=0.1)
    x, y = data(4)
    wanted, start = {}, 0
    for name, parameter in network.named_parameters():
        std = laplace.posterior_precision[start : start + parameter.numel()].rsqrt()
        start += parameter.numel()
        wanted[name] = (std, gaussian_bits(parameter, std, 0.5, float(laplace.prior_mean)))
    check(from_laplace(laplace), x, y, wanted, network(x))


def test_laplace_of_the_last_layer_pays_for_the_others():
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).float().double()
    laplace = guests.DiagLaplace(guests.FeatureExtractor(network))
    x, y = data(4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.float())
    stds = laplace.posterior_precision.rsqrt().split([15, 3])
    wanted = {
        f"2.{local}": (std, gaussian_bits(getattr(network[2], local), std, 1.0))
        for local, std in zip(("weight", "bias"), stds, strict=True)
    }
    check(from_laplace(laplace), x, y, wanted, network(x), charged=32 * 25)


def test_laplace_that_is_not_diagonal_is_refused():
    laplace = guests.DiagLaplace(nn.Linear(4, 3))
    with pytest.raises(PriorError, match="not one positive number for the whole tensor"):
        from_laplace(guests.DiagLaplace(nn.Linear(4, 3), prior_precision=torch.arange(1.0, 16.0)))

    class Full:
        posterior_precision = torch.eye(3)
        model = laplace.model

    with pytest.raises(LayerError, match="no diagonal posterior"):
        from_laplace(Full())


def test_tyxe():
    """TyXe's network is a Pyro module whose weights are samples, its guide a module of means and stds."""
    import pyro.distributions as dist
    from pyro.nn import PyroModule, PyroSample
    from pyro.nn.module import to_pyro_module_

    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    shapes = {name: p.shape for name, p in plain.named_parameters()}

    class Bnn(PyroModule):
        def __init__(self, net):
            super().__init__("bnn")
            self.net = net
            to_pyro_module_(self.net)
            for place in (0, 2):
                for local in ("weight", "bias"):
                    shape = shapes[f"{place}.{local}"]
                    prior = dist.Normal(torch.tensor(0.0, dtype=torch.float64), 0.8).expand(shape).to_event(len(shape))
                    setattr(self.net[place], local, PyroSample(prior))

    import copy

    bnn = Bnn(copy.deepcopy(plain))
    guide = nn.Module()
    moments = {name: (torch.randn(shape).double(), torch.rand(shape).double() + 0.1) for name, shape in shapes.items()}
    for name, (mean, std) in moments.items():
        path = f"{bnn.net._pyro_name}.{name}".split(".")
        node = guide
        for part in path:
            if not hasattr(node, part):
                node.add_module(part, nn.Module())
            node = getattr(node, part)
        node.loc, node.scale = nn.Parameter(mean), nn.Parameter(std)
    bnn.net_guide = guide
    x, y = data(4)
    wanted = {name: (std, gaussian_bits(mean, std, 0.8)) for name, (mean, std) in moments.items()}
    outputs = torch.func.functional_call(plain, {name: mean for name, (mean, _) in moments.items()}, x)
    check(from_tyxe(bnn, plain), x, y, wanted, outputs)
    bnn.net_guide = nn.Module()
    with pytest.raises(LayerError, match="no mean and std"):
        from_tyxe(bnn, plain)
    with pytest.raises(LayerError, match="Linear is no VariationalBNN of TyXe"):
        from_tyxe(nn.Linear(4, 3), plain)


def test_moments_of_any_library():
    network = nn.Linear(4, 3).double()
    moments = {"weight": (torch.randn(3, 4).double(), torch.full((3, 4), 0.1).double())}
    with pytest.raises(LayerError, match="has no weight 'scale'"):
        from_moments(network, {"scale": moments["weight"]})
    with pytest.raises(LayerError, match="not finite, or a std of zero"):
        from_moments(network, {"weight": (moments["weight"][0], torch.zeros(3, 4))})
    with pytest.raises(LayerError, match="give both in the weight's shape"):
        from_moments(network, {"weight": (torch.zeros(2), torch.ones(2))})
    with pytest.raises(LayerError, match=r"std of 'weight' is negative .*\(-0.1\); give stds, not their logarithms"):
        from_moments(network, {"weight": (moments["weight"][0], -moments["weight"][1])})
    for odd in (moments["weight"][0], 3.0, "ab", (*moments["weight"], 1)):
        with pytest.raises(LayerError, match="'weight' is not a pair of mean and std"):
            from_moments(network, {"weight": odd})
    with pytest.raises(LayerError, match=r"std \(\); give both in the weight's shape"):
        from_moments(network, {"weight": (moments["weight"][0], 0.1)})
    arrays = from_moments(network, {"weight": tuple(part.numpy() for part in moments["weight"])})
    assert torch.equal(arrays.weights[0].posterior.mean, moments["weight"][0])
    with pytest.raises(LayerError, match="no posterior was found"):
        from_moments(network, {})
    network.bias.requires_grad_(False)
    model = from_moments(network, moments, {"kind": "gaussian", "scale": 0.5, "learn": "none"})
    x, y = data(4)
    outputs = nn.functional.linear(x, moments["weight"][0], network.bias)
    check(model, x, y, {"weight": (moments["weight"][1], gaussian_bits(*moments["weight"], 0.5))}, outputs)


@pytest.mark.parametrize("function", [from_bayesian_torch, from_blitz, from_torchbnn])
def test_a_network_without_such_layers_is_refused(function):
    with pytest.raises(LayerError, match="has no layer of"):
        function(nn.Linear(4, 3))


def test_a_layer_without_plain_counterpart_takes_a_plain_network():
    class Odd(guests.LinearReparameterization):
        pass

    Odd.__name__ = "Rotation"
    layer = Odd(4, 3).double()
    layer.dnn_to_bnn_flag = True
    with pytest.raises(LayerError, match="give network="):
        from_bayesian_torch(layer)
    x, y = data(4)
    std = {local: softplus(getattr(layer, f"rho_{local}")) for local in ("weight", "bias")}
    wanted = {local: (std[local], gaussian_bits(getattr(layer, f"mu_{local}"), std[local], 1.0)) for local in std}
    check(from_bayesian_torch(layer, network=nn.Linear(4, 3).double()), x, y, wanted, layer(x))


def test_batch_normalisation_of_torchbnn():
    network = nn.Sequential(guests.BayesBatchNorm2d(0, 0.5, 2), nn.Flatten(), guests.BayesLinear(0, 0.5, 8, 3)).double().eval()
    x, y = data(2, 2, 2)
    wanted = {}
    for place, layer in ((0, network[0]), (2, network[2])):
        for local in ("weight", "bias"):
            std = getattr(layer, f"{local}_log_sigma").exp()
            wanted[f"{place}.{local}"] = (std, gaussian_bits(getattr(layer, f"{local}_mu"), std, 0.5))
    model = from_torchbnn(network)
    assert torch.equal(model.network[0].running_mean, network[0].running_mean)
    check(model, x, y, wanted, network(x))


def test_another_prior_than_the_librarys_own():
    """One prior for all: a learned one is fitted to the posteriors in closed form, and charged."""
    network = nn.Sequential(guests.BayesLinear(0, 2.0, 4, 3)).double()
    x, y = data(4)
    own, fitted = from_torchbnn(network), from_torchbnn(network, prior="gaussian")
    books = [bitsback.take_ledger(model, CategoricalLikelihood(3), (x, y), samples=2) for model in (own, fitted)]
    layer = network[0]
    mean, std = layer.weight_mu, layer.weight_log_sigma.exp()
    scale = float((mean.square() + std.square()).mean().sqrt())
    entry = next(entry for entry in books[1].entries if entry.name == "0.weight")
    assert entry.net_bits == pytest.approx(gaussian_bits(mean, std, scale), abs=0.02)  # rounded to its grid
    assert books[1].hyperparameter_bits == 20
    assert books[1].net_weight_bits < books[0].net_weight_bits


def test_laplace_of_another_network_is_refused():
    laplace = guests.DiagLaplace(nn.Linear(4, 3))
    laplace.model = nn.Linear(4, 2)
    with pytest.raises(LayerError, match="15 numbers for 10 weights"):
        from_laplace(laplace)


def test_tyxe_without_samples_or_with_a_prior_that_is_a_function():
    from pyro.nn import PyroModule, PyroSample

    class Bnn(PyroModule):
        def __init__(self):
            super().__init__("bnn")
            self.net = PyroModule[nn.Linear](4, 3)

    bnn = Bnn()
    with pytest.raises(LayerError, match="samples no weight"):
        from_tyxe(bnn, nn.Linear(4, 3))
    import pyro.distributions as dist

    bnn.net.weight = PyroSample(lambda _: dist.Normal(0.0, 1.0).expand([3, 4]).to_event(2))
    guide = nn.Module()
    node = guide
    for part in f"{bnn.net._pyro_name}.weight".split("."):
        node.add_module(part, nn.Module())
        node = getattr(node, part)
    node.loc, node.scale = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.ones(3, 4))
    bnn.net_guide = guide
    with pytest.raises(PriorError, match="a function in TyXe"):
        from_tyxe(bnn, nn.Linear(4, 3))
    assert from_tyxe(bnn, nn.Linear(4, 3), prior="laplace").weights[0].name == "weight"
