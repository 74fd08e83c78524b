"""A bits-back message of a Bayesian logistic regression in Pyro: it decodes, and gives its payload back."""

import math
import os

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, autoguide

from bitsback.errors import DataError, FileError, LedgerError
from bitsback.formats.message.pyro_message import receive_program, send_program
from bitsback.formats.message.write import PayloadTooShortError
from bitsback.interop.pyro import gaussian_latents, ledger_of


@pytest.fixture(autouse=True)
def _fresh():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pyro.clear_param_store()


def logistic(x, y=None):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.5).to_event(1))
    bias = pyro.sample("bias", dist.Laplace(torch.tensor(0.0), 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Bernoulli(logits=x @ weight + bias), obs=y)


def fit(x, y, kind=autoguide.AutoNormal, model=logistic, steps=200):
    guide = kind(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(steps):
        svi.step(x, y)
    return guide


def data(rows=120):
    x = torch.randn(rows, 3)
    return x, (x @ torch.tensor([2.0, -1.0, 0.5]) + torch.randn(rows) > 0).float()


def test_the_message_decodes_and_gives_the_payload_back():
    x, y = data()
    payload = os.urandom(203)
    pyro.param("the callers own", torch.ones(2))
    sent = send_program(logistic, fit, x, data=y, payload=payload)
    got, lost = receive_program(sent.content, logistic, fit, x)
    assert lost is None
    assert got.payload == payload
    assert torch.equal(got.labels, y)
    assert got.labels.dtype == y.dtype
    assert list(pyro.get_param_store().keys()) == ["the callers own"]
    # bits: those of the ledger of the transmitted latents, and the message's overhead
    torch.manual_seed(0)
    with pyro.get_param_store().scope():
        guide = fit(x, y)
        latents = {latent.name: latent for latent in gaussian_latents(logistic, guide, x, y)}
        ledger = ledger_of(logistic, guide, x, y, samples=200)
    net = sum(
        torch.distributions.Normal(latent.mean, latent.std).log_prob(got.latents[name]).sum()
        - latent.prior.log_prob(got.latents[name]).sum()
        for name, latent in latents.items()
    )
    logits = x @ got.latents["weight"] + got.latents["bias"]
    label_bits = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum").item() / math.log(2)
    assert sent.gross_bits - sent.refund_bits == pytest.approx(net.item() / math.log(2), abs=0.5)
    assert sent.label_bits == pytest.approx(label_bits, abs=0.5)
    spread = 12 * math.sqrt(200) * (ledger.data_bits_stderr + sum(entry.stderr for entry in ledger.entries))
    assert sent.net_bits == pytest.approx(ledger.net_bits, abs=spread)
    assert 8 * len(sent.content) - sent.payload_bits - sent.net_bits < 250  # header, digests, check, heads
    assert sent.net_bits < 120
    assert "message less payload" in str(sent)
    assert sent.to_dict()["net_bits"] == sent.net_bits


def test_labels_of_several_classes_and_a_hand_written_guide():
    def softmax(x, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3, 4), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=x @ weight), obs=y)

    def guide(x, y):
        mean = pyro.param("mean", torch.zeros(3, 4))
        std = pyro.param("std", torch.full((3, 4), 0.3), constraint=dist.constraints.positive)
        pyro.sample("weight", dist.Normal(mean, std).to_event(2))

    x = torch.randn(60, 3)
    y = (x @ torch.randn(3, 4)).argmax(1)
    trained = {"kind": lambda _: guide, "model": softmax, "steps": 100}
    sent = send_program(softmax, lambda *a: fit(*a, **trained), x, data=y, payload=bytes(range(256)), exponent=8)
    got, lost = receive_program(sent.content, softmax, lambda *a: fit(*a, **trained), x)
    assert (lost, got.payload, sent.step) == (None, bytes(range(256)), 2.0**-8)
    assert torch.equal(got.labels, y)


def test_without_the_same_fit_only_the_payload_is_lost():
    x, y = data()
    sent = send_program(logistic, fit, x, data=y, payload=os.urandom(100))
    got, lost = receive_program(sent.content, logistic, lambda x, y: fit(x, y, steps=100), x)
    assert torch.equal(got.labels, y)
    assert got.payload is None
    assert "the payload was not: the fit here does not end at the sender's guide" in str(lost)


def test_what_is_damaged_or_different_is_refused():
    x, y = data()
    sent = send_program(logistic, fit, x, data=y, payload=os.urandom(100))
    for content in (b"", sent.content[:-1], bytes([sent.content[0] ^ 1]) + sent.content[1:]):
        with pytest.raises(FileError, match="checksum does not fit"):
            receive_program(content, logistic, fit, x)
    with pytest.raises(FileError, match="not those of the sender"):
        receive_program(sent.content, logistic, fit, x + 1)

    def other(x, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 0.5).to_event(1))
        bias = pyro.sample("bias", dist.Laplace(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Bernoulli(logits=x @ weight + bias), obs=y)

    with pytest.raises(FileError, match="cannot be decoded here"):
        receive_program(sent.content, other, fit, x)


def test_what_a_message_cannot_carry_is_refused():
    x, y = data(20)
    with pytest.raises(PayloadTooShortError):
        send_program(logistic, fit, x, data=y, payload=b"")
    with pytest.raises(DataError, match="a payload is bytes, got str"):
        send_program(logistic, fit, x, data=y, payload="text")
    with pytest.raises(DataError, match="shape"):
        send_program(logistic, fit, x, data=y[:5], payload=bytes(100))
    with pytest.raises(FileError, match="out of range"):
        send_program(logistic, fit, x, data=y, payload=bytes(100), exponent=99)
    with pytest.raises(LedgerError, match="is a MultivariateNormal, not an independent Gaussian"):
        send_program(
            logistic, lambda *a: fit(*a, kind=autoguide.AutoMultivariateNormal, steps=2), x, data=y, payload=bytes(100)
        )

    def hierarchy(x, y=None):
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 1.0))
        weight = pyro.sample("weight", dist.Normal(mean, torch.ones(3)).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)

    def positive(x, y=None):
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Bernoulli(logits=x[:, 0] * scale), obs=y)

    def real(x, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=y)

    def counts(x, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Poisson((x @ weight).exp()), obs=y)

    for model, match, kind in (
        (hierarchy, "the prior of 'weight' depends on other latents", LedgerError),
        (positive, "'scale' is held to", LedgerError),
        (real, "draws 0 discrete sites", LedgerError),
        (counts, "'y' is a Poisson", FileError),
    ):
        with pytest.raises(kind, match=match):
            send_program(model, lambda *a, m=model: fit(*a, model=m, steps=2), x, data=y, payload=bytes(100))
    with pytest.raises(LedgerError, match=r"scaled by 2 \(poutine.scale\), its plates by 1"):
        send_program(poutine.scale(logistic, 2.0), fit, x, data=y, payload=bytes(100))


def test_data_that_are_no_labels_are_refused_before_the_fit():
    def never(*_):
        raise AssertionError("the fit ran")

    x, y = data(20)
    changed = {
        "grey": (3, 0.5),
        "missing": (0, math.nan),
        "minus one": (19, -1.0),
        "beyond": (7, 3.0),
        "infinite": (1, math.inf),
    }
    for place, value in changed.values():
        wrong = y.clone()
        wrong[place] = value
        with pytest.raises(DataError, match=rf"'y' is {value:g} at one place or more, .*give whole labels from 0 on"):
            send_program(logistic, never, x, data=wrong, payload=bytes(100))
    for alike in (y.bool(), y.long(), y.double()):
        sent = send_program(logistic, lambda *a: fit(*a, steps=5), x, data=alike, payload=bytes(100))
        got, lost = receive_program(sent.content, logistic, lambda *a: fit(*a, steps=5), x)
        assert lost is None
        assert torch.equal(got.labels, y)

    def softmax(x, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3, 4), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=x @ weight), obs=y)

    for label in (4, -1):
        with pytest.raises(DataError, match=f"'y' is {label} at one place"):
            send_program(softmax, never, x, data=torch.full((20,), label), payload=bytes(100))


def test_an_independent_decoder_reads_the_latents():
    """The grid points are multiples of the step, and lie where the guide puts them."""
    x, y = data()
    sent = send_program(logistic, fit, x, data=y, payload=os.urandom(100))
    got, _ = receive_program(sent.content, logistic, fit, x)
    with pyro.get_param_store().scope():
        torch.manual_seed(0)
        latents = gaussian_latents(logistic, fit(x, y), x, y)
    for latent in latents:
        levels = got.latents[latent.name].double().numpy() / sent.step
        assert np.array_equal(levels, np.rint(levels))
        assert bool(((got.latents[latent.name] - latent.mean).abs() < 6 * latent.std).all())
