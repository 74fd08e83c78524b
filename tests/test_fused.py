"""Training in one pass, in one thing after the other, and by autograd with torch's own optimisers: the same steps, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from oracle import Oracle, errors
from torch import nn
from torch.func import functional_call

from bitsback.config import Experiment
from bitsback.config.schema import Config
from bitsback.data import Dataset, Examples
from bitsback.likelihoods import CategoricalLikelihood, GaussianLikelihood
from bitsback.model import bayesianize
from bitsback.model.noise import BlockNoise, OutputNoise, PooledNoise
from bitsback.model.pieces import rows
from bitsback.training import TrainingSettings, start, train
from bitsback.training.loop import PRIOR_RATE
from bitsback.units import nats_to_bits


class Tied(nn.Module):
    """A matrix that is used twice, an embedding with padding, and a weight that nothing uses."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 6, padding_idx=0)
        self.first, self.second, self.idle = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        hidden = self.embedding(x.long().clamp(0, 6)).mean(1)
        return self.second(self.norm(self.first(hidden)).tanh())[:, :3]


class Last(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0][:, -1]


NETWORKS = {
    "dense": (lambda: nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 3)), (12, 5)),
    "long": (lambda: nn.Sequential(nn.Linear(500, 300), nn.Tanh(), nn.Linear(300, 3)), (12, 500)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)),
        (12, 2, 8, 8),
    ),
    "tied": (Tied, (12, 4)),
    "recurrent": (lambda: nn.Sequential(Last(nn.GRU(4, 5, batch_first=True)), nn.Linear(5, 3)), (12, 6, 4)),
}
PRIORS = {
    "closed form": {"prior": "gaussian"},
    "gradient": {"prior": {"kind": "gaussian", "learn": "gradient", "scale": 0.2}},
    "fixed, off centre": {"prior": {"kind": "gaussian", "learn": "none", "mean": 0.3}},
    "one for all": {"prior": {"kind": "gaussian", "per": "model"}},
    "some not Gaussian": {"prior": "gaussian", "overrides": {"*bias*": "laplace"}},
    "looks at the draw": {"prior": "scale_mixture"},
    "looks twice": {"prior": "student_t"},
    "groups": {"prior": {"kind": "group_gaussian", "group": "output"}, "overrides": {"*bias*": "gaussian"}},
}


class Plain(Oracle):
    """The steps of ``fit`` by autograd: data bits and weight bits of explicit draws, torch's Adam, priors that follow.

    It takes from the fit where it begins, the noise of its draws and outputs, and which layers have noise on outputs.
    """

    def __init__(self, fit, network):
        settings = fit.settings
        super().__init__(
            fit.model, network, examples=len(fit.train), lr=settings.optimizer.lr,
            log_std_lr=settings.optimizer.log_std_lr or settings.optimizer.lr, max_grad_norm=settings.gradient_clip,
            **settings.optimizer.arguments,
        )  # fmt: skip
        self.fit, self.settings = fit, settings
        self.likelihood, self.objective = copy.deepcopy(fit.likelihood), copy.deepcopy(fit.objective)
        self.steered = copy.deepcopy(fit.beta)
        others = [p for module in (self.likelihood, self.objective) for p in module.parameters() if p.requires_grad]
        if others:
            self.optimizer.add_param_group({"params": others, "lr": settings.optimizer.lr})
        self.on_outputs = {weight.name for weight in fit.model.weights if weight.noise_on_outputs}
        self.output_noise = OutputNoise(settings.noise_reuse, fit.model.noise_source)

    def _kl_of(self, prior, name, state):
        """Of a weight that is not drawn, a prior that looks at draws sees the next one."""
        return super()._kl_of(prior, name, self.state(state.number + 1) if name in self.on_outputs else state)

    def forward(self, state, x):
        """The network's outputs: its weights as the draw says or at their means, and then noise on the outputs of their layers."""
        drawn = self.weights(state)
        weights = {name: self.means[name] if name in self.on_outputs else drawn[name] for name in drawn}
        if state.sign > 0:
            self.output_noise.begin(state.seed, state.number)
        handles = [
            module.register_forward_hook(lambda layer, inputs, outputs, path=path: self._noisy(layer, path, *inputs, outputs))
            for path, module in self.network.named_modules()
            if f"{path}.weight" in self.on_outputs
        ]
        outputs = functional_call(self.network, weights, (x,))
        for handle in handles:
            handle.remove()
        return outputs

    def _noisy(self, layer, path, x, outputs):
        wide, bias = ((2 * self.log_stds[f"{path}.{name}"]).exp() for name in ("weight", "bias"))
        variance = F.conv2d(x**2, wide, bias) if isinstance(layer, nn.Conv2d) else F.linear(x**2, wide, bias)
        return outputs + variance.sqrt() * self.output_noise(variance.detach()).clone()

    def take(self, step, inputs, targets):
        """One step on a batch; returns its data bits."""
        settings, state = self.settings, self.model.state
        done = step / (settings.passes * self.fit.steps_per_epoch)
        with torch.no_grad():
            weight_bits = nats_to_bits(float(self.kl_nats(state)))
        beta = self.steered.before_step(step, weight_bits + self.model.deterministic_bits())
        self.prior_rate = PRIOR_RATE + (1 - PRIOR_RATE) * done**2
        self._follow()
        self.optimizer.zero_grad()
        bits, groups = [], min(settings.draws, len(inputs))
        for number, (x, y) in enumerate(zip(inputs.tensor_split(groups), targets.tensor_split(groups), strict=True)):
            if number:
                is_mirror = settings.antithetic and number % 2
                state = state._replace(sign=-1) if is_mirror else state._replace(number=state.number + 1, sign=1)
            bits.append(self.likelihood.bits(self.forward(state, x), y))
        bits = torch.cat(bits)
        cost = self.objective.cost(bits).mean()
        self.objective(cost, beta * nats_to_bits(self.kl_nats(state))).backward()
        if self.max_grad_norm is not None:
            self.grad_norm = torch.nn.utils.clip_grad_norm_(self.moved(), self.max_grad_norm)
        self.optimizer.step()
        return float(bits.detach().sum())


def make(network, prior="closed form", estimator="auto", **more):
    torch.manual_seed(3)
    build, shape = NETWORKS[network]
    plain = build().double()
    chosen = PRIORS[prior] if isinstance(prior, str) else {"prior": prior}
    model = bayesianize(copy.deepcopy(plain), estimator=estimator, **chosen, **more)
    inputs = torch.randn(shape, dtype=torch.float64) + (3 if network == "tied" else 0)
    return plain, model, Examples(inputs, torch.arange(len(inputs)) % 3)


def compare(plain, model, examples, *, fused, likelihood=None, tolerance=1e-9, **settings):
    """Three steps of a training beside those of autograd; returns the training, and what autograd had."""
    settings = {
        "epochs": 2,
        "batch_size": len(examples),
        "fused": fused,
        "optimizer": {"lr": 0.01, "log_std_lr": 0.03},
        "schedule": {"name": None},
        **settings,
    }
    likelihood = (likelihood or CategoricalLikelihood(3)).double()
    fit = start(model, likelihood, examples, TrainingSettings(**settings), seed=1)
    assert fit.optimizer.by_pieces == fused
    oracle = Plain(fit, plain)
    for step in range(3):
        wanted = oracle.take(step, examples.inputs, examples.targets)
        assert fit.step(step, examples.inputs, examples.targets) == pytest.approx(wanted, rel=1e-9)
        found = errors(model, oracle)
        assert max(found.values()) < tolerance, (step, found)
    for one, other in zip(model.network.buffers(), oracle.network.buffers(), strict=True):
        assert torch.allclose(one, other, rtol=1e-9)
    for module, other in ((fit.likelihood, oracle.likelihood), (fit.objective, oracle.objective)):
        for one, wanted in zip(module.parameters(), other.parameters(), strict=True):
            assert torch.allclose(one, wanted, rtol=1e-9, atol=1e-9)
    return fit, oracle


BOTH = pytest.mark.parametrize("fused", [True, False])


@BOTH
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("estimator", ["weight", "auto"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_training_takes_the_steps_of_autograd(network, estimator, prior, fused):
    _, oracle = compare(*make(network, prior, estimator), fused=fused)
    linear = {"dense": {"0", "2"}, "long": {"0", "2"}, "convolution": {"4"}, "recurrent": {"1"}}.get(network, set())
    wanted = {f"{path}.{name}" for path in linear for name in ("weight", "bias")} if estimator == "auto" else set()
    assert oracle.on_outputs == wanted


@BOTH
@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_a_tensor_of_several_pieces_is_one_tensor(fused, max_grad_norm):
    plain, model, examples = make("long", estimator="weight")
    assert len(rows(model.weights[0].posterior.mean)) > 1
    compare(plain, model, examples, fused=fused, draws=2, gradient_clip=max_grad_norm)


@BOTH
@pytest.mark.parametrize("prior", ["closed form", "looks at the draw"])
def test_output_noise_in_convolutions(prior, fused):
    _, oracle = compare(*make("convolution", prior, "output"), fused=fused, draws=2)
    assert oracle.on_outputs == {"0.weight", "0.bias", "4.weight", "4.bias"}


@BOTH
@pytest.mark.parametrize("estimator", ["weight", "auto"])
@pytest.mark.parametrize("reuse", [1, 3])
@pytest.mark.parametrize(("draws", "antithetic"), [(2, False), (2, True), (4, False), (4, True), (5, False)])
def test_several_draws_each_see_their_part_of_the_batch(draws, antithetic, reuse, estimator, fused):
    settings = {"draws": draws, "antithetic": antithetic, "noise_reuse": reuse}
    compare(*make("convolution", "some not Gaussian", estimator), fused=fused, **settings)


@BOTH
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_noise_of_either_precision_is_that_of_the_draw(precision, fused):
    """float64 draws numbers that every machine draws alike."""
    compare(*make("dense", estimator="weight"), fused=fused, precision=precision, noise_reuse=2)


@BOTH
@pytest.mark.parametrize("kind", ["quad", "lambda", "classic"])
def test_bounds_on_the_risk(kind, fused):
    near = {"kind": "gaussian", "std": 0.9, "relative_to": "prior"}  # so that data count in the bound
    made = make("dense", prior={"kind": "gaussian", "learn": "none", "scale": 0.3}, posterior=near)
    fit, _ = compare(*made, fused=fused, objective={"kind": kind}, draws=2)
    if kind == "lambda":
        assert float(fit.objective.logit_lambda.detach()) != 0


@BOTH
@pytest.mark.parametrize("budget", [300, {"start_bits": 900, "end_bits": 300, "epochs": 2}])
def test_a_budget_moves_the_weight_of_the_kl(budget, fused):
    fit, oracle = compare(*make("dense"), fused=fused, budget_bits=budget)
    assert fit.beta.value == pytest.approx(oracle.steered.value, rel=1e-9)
    assert fit.beta.value not in (0.0, 1.0)


@BOTH
def test_beta_rises(fused):
    fit, oracle = compare(*make("dense"), fused=fused, beta={"start": 0.1, "warmup_epochs": 2}, epochs=4)
    assert fit.beta.value == oracle.steered.value == 1.0


@BOTH
@pytest.mark.parametrize("estimator", ["weight", "auto"])
@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_a_clipped_gradient_is_that_of_data_and_weights(clip, estimator, fused):
    made = make("dense", "gradient", estimator, exclude=["2.bias"])
    fit, oracle = compare(*made, fused=fused, gradient_clip=clip, optimizer={"lr": 0.01, "arguments": {"eps": 1e-3}})
    assert float(fit.optimizer.grad_norm) == pytest.approx(float(oracle.grad_norm), rel=1e-9)
    assert (float(oracle.grad_norm) > clip) == (clip < 1)


@BOTH
def test_a_likelihood_that_learns(fused):
    plain, model, examples = make("dense")
    plain[2], model = nn.Linear(40, 1).double(), None
    examples = Examples(examples.inputs, examples.inputs.sum(1))
    model = bayesianize(copy.deepcopy(plain))
    likelihood = GaussianLikelihood(0.5, noise="learned", target_step=0.01)
    fit, _ = compare(plain, model, examples, fused=fused, likelihood=likelihood)
    assert float(fit.likelihood.log_std.detach().exp()) != pytest.approx(0.5)


@BOTH
@pytest.mark.parametrize("prior", ["closed form", "one for all"])
def test_points_deterministic_weights_and_frozen_ones_go_their_own_ways(prior, fused):
    plain, model, examples = make("dense", prior, exclude=["2.bias"])
    model.network[0].weight.requires_grad_(False)
    before = model.weights[0].posterior.mean.clone()
    compare(plain, model, examples, fused=fused)
    assert torch.equal(model.weights[0].posterior.mean, before)
    for kind in ("gaussian", "laplace"):
        prior = {"kind": kind, "learn": "none", "mean": 0.1}
        compare(*make("convolution", prior=prior, posterior="point"), fused=fused)


# Whole trainings: what is configured in YAML goes the same way in one pass and in one thing after the other

SECTIONS = {
    "data": {"kind": "digits", "limit": 90},
    "network": {"kind": "sequential", "layers": ["Flatten", {"Linear": {"out_features": 8}}, "ReLU", "Dropout", "Linear"]},
    "training": {"epochs": 3, "batch_size": 40, "precision": "float64"},
    "ledger": {"samples": 2},
}  # fmt: skip
CONFIGURED = {
    "defaults": {},
    "ivon": {"training": {"optimizer": {"name": "IVON"}}},
    "adamw": {"training": {"optimizer": {"name": "AdamW", "lr": 0.01, "arguments": {"weight_decay": 0.1}}}},
    "draws": {
        "training": {"draws": 4, "antithetic": True, "noise_reuse": 1},
        "bayesian": {"estimator": {"Linear": "weight"}},
    },
    "budget": {"training": {"budget_bits": 300}},
    "bound": {"training": {"objective": {"kind": "quad"}}},
    "clip": {"training": {"gradient_clip": 0.1}},
    "augment": {"training": {"augment": {"shift_pixels": 1.0, "rotate_degrees": 10.0}}},
    "early_stop": {"training": {"early_stop": {"patience_epochs": 1, "min_improvement_bits": 1e9}}},
    "point": {"posterior": {"kind": "point"}, "prior": {"kind": "laplace", "learn": "none"}},
    "mixture": {"prior": {"kind": "scale_mixture"}, "bayesian": {"estimator": "weight"}},
    "weights": {"bayesian": {"estimator": "weight"}},
}


def configured(name, **training):
    sections = {**SECTIONS, **CONFIGURED[name]}
    sections["training"] = {**SECTIONS["training"], **CONFIGURED[name].get("training", {}), **training}
    experiment = Experiment.build(Config.model_validate(sections))
    outcome = experiment.train(None, progress=False)
    return outcome, experiment.model


@pytest.mark.parametrize("name", CONFIGURED)
def test_what_is_configured_goes_the_same_way_either_way(name):
    (one, fused), (other, plain) = (configured(name, fused=fused) for fused in (True, False))
    assert one.epochs == other.epochs == (2 if name == "early_stop" else 3)
    for p, q in zip(fused.posterior.parameters(), plain.posterior.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-8, atol=1e-9)
    assert one.ledger.net_bits == pytest.approx(other.ledger.net_bits, rel=1e-8)
    assert one.test_error == other.test_error


def test_bfloat16_goes_nearly_the_same_way_either_way():
    """The last bit of a mean may turn a bit of a product in bfloat16, whose rounding is 2^-9; lr times steps bounds the rest."""
    training = {"precision": "bfloat16", "optimizer": {"name": "SGD", "lr": 0.01}}
    (one, fused), (other, plain) = (configured("defaults", fused=fused, **training) for fused in (True, False))
    for p, q in zip(fused.posterior.parameters(), plain.posterior.parameters(), strict=True):
        assert p.dtype == torch.float32
        assert torch.allclose(p, q, atol=1e-4)
    assert one.ledger.net_bits == pytest.approx(other.ledger.net_bits, rel=1e-4)


def test_training_ends_at_the_same_bits_either_way():
    torch.manual_seed(0)
    inputs = torch.randn(300, 6)
    data = Dataset("halves", Examples(inputs, (inputs[:, 0] > 0).long()), None, 2)
    found = {}
    for fused in (True, False):
        torch.manual_seed(1)
        model = bayesianize(nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 2)), estimator="weight")
        settings = TrainingSettings(epochs=150, batch_size=50, fused=fused, optimizer={"lr": 0.02})
        found[fused] = train(model, CategoricalLikelihood(2), data, training=settings, progress=False).ledger.net_bits
    assert found[True] < 200
    assert found[True] == pytest.approx(found[False], rel=0.01)  # the same noise; 900 steps in float32


# Noise that steps share


def test_noise_is_standard_normal_and_shared_by_steps():
    pool = PooledNoise(1000, reuse=4, like=torch.zeros(1, dtype=torch.float64))
    steps = torch.stack([pool.at(0, number).clone() for number in range(400)])
    assert steps.mean().abs() < 0.02
    assert abs(steps.var() - 1) < 0.02
    own = (steps[1:] * steps[:-1]).mean(1)  # a weight's own numbers in a row
    assert own.mean().abs() < 0.01
    fresh = len(torch.unique(steps)) / steps.numel()
    assert 0.2 < fresh < 0.3
    assert not torch.isin(pool.at(1, 400), steps).any()
    assert torch.equal(pool.at(0, 7), steps[7])  # whatever was asked for in between


def test_noise_of_outputs_differs_from_use_to_use():
    for reuse in (1, 4):
        noise = OutputNoise(reuse, BlockNoise())
        outputs = torch.zeros(4, 3, 5, 5).to(memory_format=torch.channels_last)
        first, second = noise(outputs).clone(), noise(outputs).clone()
        assert first.stride() == outputs.stride()
        assert not torch.isin(first, second).any()
        noise.begin(0, 1)
        assert not torch.equal(noise(outputs[:2]), first[:2])
        noise.begin(0, 0)
        assert torch.equal(noise(outputs), first)


def test_filters_lie_with_channels_last_while_training_and_straight_afterwards():
    _, model, examples = make("convolution", estimator="weight")
    before = {name: p.clone() for name, p in [*model.posterior.named_parameters(), *model.network.named_buffers()]}
    fit = start(model, CategoricalLikelihood(3).double(), examples, TrainingSettings(epochs=1), seed=1)
    filters = model.network[0].weight, *model.weights[0].posterior.parameters()
    assert all(p.stride()[1] == 1 for p in filters)
    assert all(torch.equal(p, before[name]) for name, p in model.posterior.named_parameters())
    assert torch.equal(model.network[0].weight, model.value(model.weights[0], noise=model.noise_of(model.state)))
    fit.end()
    assert all(p.is_contiguous() for p in filters)
