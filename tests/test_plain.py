"""Plain networks out of a model: of the original class, with the means or one draw, and nothing of bitsback in them."""

import contextlib
import copy
import importlib.util
import io
import pickle

import pytest
import torch
from torch import nn

import bitsback
import bitsback.nn
from bitsback.data import Examples
from bitsback.errors import LayerError
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model.modes import evaluating
from bitsback.optim import Adam


class Tied(nn.Module):
    """An embedding that is its own output layer, a convolution before a batch norm, a frozen scale and a bfloat16 head."""

    def __init__(self, words=11, width=6, *, half=False):
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=0)
        self.mix = nn.Conv1d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm1d(width)
        self.scale = nn.Parameter(torch.full((width,), 1.5), requires_grad=False)
        self.head = nn.Linear(width, width, dtype=torch.bfloat16 if half else None)
        self.out = nn.Linear(width, words)
        self.out.weight = self.embedding.weight

    def forward(self, words):
        hidden = torch.relu(self.norm(self.mix(self.embedding(words).mT))).mT * self.scale
        return self.out(self.head(hidden.to(self.head.weight.dtype)).to(hidden.dtype))


WORDS = torch.arange(1, 11).repeat(2).reshape(4, 5)


def trained(network, inputs=WORDS, targets=WORDS, steps=3, **options):
    """A model after a few steps, in train mode and with a draw in its weights."""
    model = bitsback.bayesianize(network, seed=1, posterior={"std": 0.1, "relative_to": "absolute"}, **options)
    optimizer = Adam(model, lr=1e-2, log_std_lr=1e-2, examples=40)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten()).backward()
        optimizer.step()
    return model


def outputs(network, inputs=WORDS):
    """What a network says in eval mode."""
    with torch.no_grad(), evaluating(network):
        return network(inputs)


def of_model(model, context, inputs=WORDS):
    """What a model's network says in eval mode inside a context."""
    with context:
        return outputs(model.network, inputs)


def places(network):
    return {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}


def kept(model):
    """What must not change: the state, gradients, and what an optimiser finds."""
    state = {name: value.clone() for name, value in model.state_dict().items() if name != "_extra_state"}
    state |= {f"{name}.grad": p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}
    return state, model.state, [weight.versions() for weight in model.weights]


@pytest.mark.parametrize("half", [False, True])
def test_a_plain_network_has_class_ties_buffers_and_dtypes_of_the_original(half):
    model = trained(Tied(half=half))
    state, draw, versions = kept(model)
    mean, sampled = model.mean_network(), model.sampled_network(seed=5)
    after = kept(model)
    assert after[1:] == (draw, versions)
    assert state.keys() == after[0].keys()
    assert all(torch.equal(state[name], after[0][name]) for name in state)
    for plain in (mean, sampled):
        assert type(plain) is Tied
        assert plain.out.weight is plain.embedding.weight
        assert [(name, p.dtype, p.requires_grad, p.grad) for name, p in plain.named_parameters()] == [
            (name, p.dtype, p.requires_grad, None) for name, p in model.network.named_parameters()
        ]
        assert torch.equal(plain.norm.running_mean, model.network.norm.running_mean)
        assert plain.norm.running_mean.abs().max() > 0
        assert b"bitsback" not in pickle.dumps(plain)
        assert not places(plain) & places(model)
        fresh = Tied(half=half)
        assert fresh.load_state_dict(plain.state_dict()) == ([], [])
        assert torch.equal(outputs(fresh), outputs(plain))
    assert torch.equal(outputs(mean), of_model(model, model.mean()))
    assert torch.equal(outputs(sampled), of_model(model, model.sample(seed=5)))
    assert torch.equal(mean.embedding.weight[0], sampled.embedding.weight[0])  # the padding row is never drawn
    assert not torch.equal(mean.embedding.weight[1:], sampled.embedding.weight[1:])
    with torch.no_grad():  # what is done to a plain network reaches no model, and the other way round
        mean.out.weight.zero_()
        mean.norm.running_mean.zero_()
    model.draw()
    assert torch.equal(outputs(sampled), outputs(fresh))
    assert model.network.out.weight.detach().abs().max() > 0
    assert model.network.norm.running_mean.abs().max() > 0


def test_means_and_draws_have_the_moments_of_the_posterior():
    model = trained(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(8, 5), torch.arange(8) % 3)
    q = model.network[0].posterior["weight"]
    assert torch.equal(model.mean_network()[0].weight, q.mean)
    draws = torch.stack([model.sampled_network()[0].weight.detach() for _ in range(400)])
    errors = (draws.mean(0) - q.mean).abs() / (q.std() / 20)
    assert errors.max() < 5
    assert torch.allclose(draws.std(0), q.std(), rtol=0.25)
    assert len({float(draw[0, 0]) for draw in draws}) == 400
    again = trained(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(8, 5), torch.arange(8) % 3)
    before = again.sampled_network()[0].weight
    with again.sample():
        assert not torch.equal(again.network[0].weight, before)  # one counter: what one took the other does not
    assert torch.equal(again.sampled_network(seed=3)[0].weight, again.sampled_network(seed=3)[0].weight)


def test_it_is_the_same_whatever_the_weights_hold_now():
    model = trained(Tied())
    mean, sampled = outputs(model.mean_network()), outputs(model.sampled_network(seed=5))
    values = {weight.name: torch.zeros_like(weight.parameter) for weight in model.weights}
    for context in (model.mean(), model.sample(), model.holding(values)):
        with context:
            assert torch.equal(outputs(model.mean_network()), mean)
            assert torch.equal(outputs(model.sampled_network(seed=5)), sampled)
    model.eval()
    plain = model.mean_network()
    assert not any(module.training for module in plain.modules())
    assert torch.equal(outputs(plain), mean)


def test_a_pending_backward_pass_is_left_alone():
    model = trained(Tied())
    loss = model(WORDS).square().mean()
    model.mean_network()
    model.sampled_network()
    loss.backward()


def test_one_that_is_made_in_inference_mode_can_be_trained():
    model = trained(Tied())
    with torch.inference_mode():
        plain, sampled = model.mean_network(), model.sampled_network()
    for network in (plain, sampled):
        network(WORDS).sum().backward()
        torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1).step()


def test_what_a_user_wrote_into_the_weights_is_in_the_means():
    model = trained(Tied())
    model.network.head.weight.data[0, 0] = 7.0  # moves no version
    assert model.mean_network().head.weight[0, 0] == 7.0


def test_weights_without_posterior_and_points():
    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    model = bitsback.bayesianize(network, exclude=["2"], seed=1)
    assert torch.equal(model.sampled_network()[2].weight, network[2].weight)
    point = bitsback.bayesianize(copy.deepcopy(network), {"kind": "laplace", "learn": "none"}, posterior="point")
    assert torch.equal(point.sampled_network()[0].weight, point.mean_network()[0].weight)


def test_layers_that_train_by_noise_on_their_outputs_are_drawn():
    """Training with local reparameterisation leaves the means in such a layer's weights."""
    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    model = bitsback.bayesianize(network, estimator="output", seed=1)
    examples = Examples(torch.randn(24, 5), torch.arange(24) % 3)
    found = []

    def look(*_):
        if network.training:
            found.append((model.sampled_network(seed=3), model.mean_network()))

    handle = network.register_forward_hook(look)
    bitsback.train(model, CategoricalLikelihood(3), examples, training={"epochs": 1, "batch_size": 24}, progress=False)
    handle.remove()
    sampled, mean = found[0]
    assert not torch.equal(sampled[0].weight, mean[0].weight)
    for plain in (sampled, mean):  # the noise of that very step is not in them
        assert not plain[0]._forward_hooks
        assert torch.equal(plain[0](examples.inputs), plain[0](examples.inputs))


@pytest.mark.parametrize("alone", [True, False])
def test_layers_of_ours_become_those_of_torch(alone):
    layer = bitsback.nn.MultiheadAttention(4, 2, seed=1)
    network = layer if alone else nn.Sequential(bitsback.nn.Linear(4, 4), bitsback.nn.LSTM(4, 4, batch_first=True))
    model = layer.model if alone else bitsback.bayesianize(network)
    x = torch.randn(2, 3, 4)
    for plain in (model.mean_network(), model.sampled_network(seed=5)):
        kinds = [type(module) for module in plain.modules()]
        assert not any(issubclass(kind, bitsback.nn.BayesianLayer) for kind in kinds)
        assert b"bitsback" not in pickle.dumps(plain)
        if alone:
            assert nn.MultiheadAttention(4, 2).load_state_dict(plain.state_dict()) == ([], [])
            assert torch.equal(plain.eval()(x, x, x)[0], plain(x, x, x)[0])
        else:
            assert kinds == [nn.Sequential, nn.Linear, nn.LSTM]
            with model.sample(seed=5):
                found = network(x)[0]
    if alone:
        assert layer.posterior["in_proj_weight"].mean.shape == (12, 4)
        assert issubclass(type(layer), bitsback.nn.BayesianLayer)
    else:
        assert torch.equal(plain(x)[0], found)


class Scaled(bitsback.nn.Linear):
    """A class that was derived from a layer of ours."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_class_derived_from_a_layer_of_ours_stays():
    layer = Scaled(4, 3)
    plain = layer.model.mean_network()
    x = torch.randn(2, 4)
    assert type(plain) is Scaled
    assert "_alone" not in vars(plain)
    with layer.mean():
        assert torch.equal(plain(x), layer(x))


class Asking(nn.Module):
    """A wrapper that answers with what it wraps, as those of peft do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x):
        return self.inner(x)


def test_a_wrapper_around_a_layer_of_ours_stays():
    plain = bitsback.bayesianize(Asking(bitsback.nn.Linear(4, 3))).mean_network()
    assert [type(module) for module in plain.modules()] == [Asking, nn.Linear]
    assert plain(torch.randn(2, 4)).shape == (2, 3)


@pytest.mark.parametrize("kind", ["weight_norm", "old weight_norm", "spectral_norm"])
def test_parametrised_weights(kind):
    norms = {
        "weight_norm": torch.nn.utils.parametrizations.weight_norm,
        "old weight_norm": torch.nn.utils.weight_norm,
        "spectral_norm": torch.nn.utils.parametrizations.spectral_norm,
    }

    def network():
        torch.manual_seed(2)
        return nn.Sequential(norms[kind](nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3))

    with pytest.warns(FutureWarning) if kind == "old weight_norm" else contextlib.nullcontext():
        model = trained(network(), torch.randn(8, 5), torch.arange(8) % 3)
        other = network()
    plain, x = model.mean_network(), torch.randn(3, 5)
    other.load_state_dict(plain.state_dict())
    assert torch.equal(outputs(plain, x), of_model(model, model.mean(), x))
    assert torch.equal(outputs(other, x), outputs(plain, x))


def test_a_network_that_another_model_took_over_is_refused():
    network = nn.Linear(4, 3)
    model = bitsback.bayesianize(network)
    bitsback.bayesianize(network)
    with pytest.raises(LayerError, match="given to another model"):
        model.mean_network()


# files of other programs


@pytest.mark.parametrize("which", ["mean_network", "sampled_network"])
def test_torch_export_takes_it_and_agrees(which):
    plain = getattr(trained(Tied()), which)().eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(plain, (WORDS,), dynamic_shapes={"words": {0: batch}})
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for inputs in (WORDS, WORDS[:2].flip(0), WORDS.repeat(3, 1)):
        torch.testing.assert_close(loaded(inputs), plain(inputs))


HAS_ONNX = all(importlib.util.find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime"))


@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are not installed")
@pytest.mark.parametrize("which", ["mean_network", "sampled_network"])
def test_onnx_takes_it_and_agrees(which, tmp_path):
    import onnxruntime

    plain = getattr(trained(Tied()), which)().eval()
    batch = torch.export.Dim("batch")
    file = tmp_path / "network.onnx"
    torch.onnx.export(plain, (WORDS,), file, dynamo=True, dynamic_shapes={"words": {0: batch}}, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for inputs in (WORDS, WORDS[:2].flip(0), WORDS.repeat(3, 1)):
        found = torch.from_numpy(session.run(None, {"words": inputs.numpy()})[0])
        torch.testing.assert_close(found, plain(inputs).detach(), rtol=1e-4, atol=1e-5)
