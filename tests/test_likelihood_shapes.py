"""Targets of any shape, positions that are not coded, next tokens and overdispersed counts, against slow exact references."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

import bitsback
from bitsback.config import Experiment, load_run
from bitsback.config.labels import as_labels
from bitsback.config.schema import Config
from bitsback.data import Dataset, Examples, source
from bitsback.errors import DataError, LedgerError
from bitsback.ledger import Entry, Ledger
from bitsback.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    Likelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    TokensLikelihood,
    base,
)
from bitsback.likelihoods.settings import CategoricalSettings
from bitsback.model import bayesianize, take_ledger

torch.set_num_threads(1)
LN2 = math.log(2)


def example(shape, classes, hidden=0.3, seed=0):
    """Logits with the classes last, and targets of which some are hidden by -100."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, shape, generator=generator)
    targets[torch.rand(shape, generator=generator) < hidden] = -100
    return logits, targets


def slow_symbol_bits(logits, targets, ignore):
    """-log2 of the softmax at each position, one position after the other."""
    found = torch.zeros(targets.shape, dtype=torch.float64)
    for index in np.ndindex(*targets.shape):
        if int(targets[index]) != ignore:
            scores = [math.exp(float(x)) for x in logits[index]]
            found[index] = -math.log2(scores[int(targets[index])] / math.fsum(scores))
    return found


@pytest.mark.parametrize("shape", [(6,), (3, 5), (2, 3, 4), (2, 2, 3, 2)])
@pytest.mark.parametrize("ignore", [None, -100])
@pytest.mark.parametrize("axis", ["first", "last"])
def test_labels_of_any_shape_cost_the_sum_over_their_positions(shape, ignore, axis):
    logits, targets = example(shape, 7, hidden=0.3 if ignore else 0.0)
    outputs = logits if axis == "last" else logits.movedim(-1, 1)
    likelihood = CategoricalLikelihood(7, ignore=ignore)
    expected = slow_symbol_bits(logits, targets, ignore)
    assert torch.allclose(likelihood.symbol_bits(outputs, targets), expected)
    assert torch.allclose(likelihood.bits(outputs, targets), expected.flatten(1).sum(1) if len(shape) > 1 else expected)
    count = int((targets != -100).sum())
    assert likelihood.symbols(targets) == count
    assert likelihood.uniform_bits(targets) == pytest.approx(count * math.log2(7))
    assert torch.equal(likelihood.class_last(outputs, targets), logits)
    assert torch.allclose(likelihood.predict(outputs), logits.softmax(-1))


def test_only_an_axis_without_which_the_shapes_agree_is_that_of_the_classes():
    logits, targets = example((5, 3, 4), 4)
    for axis in (1, 2, 3):
        outputs, likelihood = logits.movedim(-1, axis), CategoricalLikelihood(4, ignore=-100)
        fitting = [
            a for a in (1, 2, 3) if outputs.shape[1:a] + outputs.shape[a + 1 :] == targets.shape[1:] and outputs.shape[a] == 4
        ]
        assert likelihood.class_axes(outputs, targets) == fitting
        if len(fitting) == 1:
            assert torch.equal(likelihood.class_last(outputs, targets), logits)
            assert torch.allclose(likelihood.symbol_bits(outputs, targets), slow_symbol_bits(logits, targets, -100))
        else:
            with pytest.raises(DataError, match="name that of the classes"):
                likelihood.class_last(outputs, targets)
        with pytest.raises(DataError, match="name that of the classes"):
            likelihood.predict(outputs)


def padded_texts(lengths):
    """Data set of texts with a tag for each word, whose batches are padded."""
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(6, (length,), generator=draw) for length in lengths]

    def collate(items):
        words, tags = zip(*items, strict=True)
        return pad_sequence(words, batch_first=True), pad_sequence(tags, batch_first=True, padding_value=-100)

    return source([(text, text % 4) for text in texts], collate=collate)


class Tagger(nn.Module):
    """Four logits for each word, at the end or behind the batch."""

    def __init__(self, axis):
        super().__init__()
        self.axis, self.embedding = axis, nn.Embedding(6, 4)

    def forward(self, words):
        return self.embedding(words).movedim(-1, self.axis)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("lengths", [[4, 2, 4, 3, 5, 2, 4, 4], [3, 2, 5, 4, 4, 4, 2, 4]])
def test_a_padded_batch_may_be_as_long_as_there_are_classes(axis, lengths):
    likelihood = CategoricalLikelihood(4, ignore=-100)
    model = bayesianize(Tagger(axis))
    done = bitsback.train(model, likelihood, padded_texts(lengths), training={"epochs": 4, "batch_size": 2}, progress=False)
    assert (model.likelihood.class_axis, likelihood.class_axis) == (axis, None)
    assert done.ledger.data_bits > 0


def test_the_axis_has_to_be_named_if_every_batch_is_as_long_as_there_are_classes():
    steps = []
    with pytest.raises(DataError, match=r"name that of the classes, such as likelihood\.class_axis: 1 or -1"):
        bitsback.train(
            bayesianize(Tagger(1)), CategoricalLikelihood(4, ignore=-100), padded_texts([4] * 6),
            training={"batch_size": 2}, watch=lambda step, _: steps.append(step), progress=False,
        )  # fmt: skip
    assert not steps


def test_labels_of_one_position_cost_bit_for_bit_what_they_did():
    outputs, targets = torch.randn(50, 4), torch.randint(4, (50,))
    bits = CategoricalLikelihood(4).bits(outputs, targets)
    assert torch.equal(bits, cross_entropy(outputs, targets, reduction="none") / LN2)


def test_the_length_of_a_batch_is_no_axis_of_classes():
    outputs, targets = torch.randn(4, 4, 5), torch.randint(4, (4, 5))
    assert torch.equal(CategoricalLikelihood(4).class_last(outputs, targets), outputs.movedim(1, -1))
    assert CategoricalLikelihood(4).class_last(torch.randn(4, 4), torch.zeros(4)).shape == (4, 4)


def test_an_axis_that_shapes_do_not_tell_is_named():
    outputs, targets = torch.randn(2, 5, 5).double(), torch.randint(5, (2, 5))
    with pytest.raises(DataError, match=r"2 axes of outputs of shape \(5, 5\) .*likelihood\.class_axis: 1 or -1"):
        CategoricalLikelihood(5).bits(outputs, targets)
    with pytest.raises(DataError, match=r"likelihood\.class_axis"):
        CategoricalLikelihood(5).predict(outputs)
    for axis in (1, 2, -1, -2):
        logits = outputs.movedim(axis, -1)
        likelihood = CategoricalLikelihood(5, class_axis=axis)
        assert torch.allclose(likelihood.symbol_bits(outputs, targets), slow_symbol_bits(logits, targets, -100))
        assert torch.equal(likelihood.predict(outputs), logits.softmax(-1))


@pytest.mark.parametrize(
    ("likelihood", "outputs", "targets", "message"),
    [
        (CategoricalLikelihood(3), (2, 4, 3), (2, 5), r"shape \(4, 3\) for targets of shape \(5,\) .* \(5, 3\) or \(3, 5\)"),
        (CategoricalLikelihood(3), (2, 3), (2, 5), r"shape \(3,\) for targets of shape \(5,\)"),
        (CategoricalLikelihood(3), (2, 5, 3), (4, 5), "2 outputs for 4 targets"),
        (CategoricalLikelihood(3, class_axis=1), (2, 5, 3), (2, 5), "3 classes need"),
        (CategoricalLikelihood(3, class_axis=5), (2, 5, 3), (2, 5), "3 classes need"),
        (TokensLikelihood(3), (2, 5, 3), (2, 6), r"shape \(5, 3\) for targets of shape \(6,\)"),
        (TokensLikelihood(3), (2, 3), (2,), "needs token ids"),
        (BernoulliLikelihood(ignore=-1), (2, 5), (2, 4), "change the last layer"),
        (PoissonLikelihood(ignore=-1), (2, 5), (2, 4), "change the last layer"),
        (NegativeBinomialLikelihood(), (2, 5), (2, 4), "change the last layer"),
    ],
)
def test_outputs_of_another_shape_are_refused(likelihood, outputs, targets, message):
    with pytest.raises(DataError, match=message):
        likelihood.bits(torch.zeros(outputs), torch.zeros(targets, dtype=torch.long))


def test_outputs_without_an_axis_of_classes_have_no_prediction():
    with pytest.raises(DataError, match="without an axis of 3 classes"):
        CategoricalLikelihood(3).predict(torch.zeros(2, 5, 4))


def test_hidden_positions_reach_neither_network_nor_codes():
    logits, targets = example((4, 6), 5)
    likelihood = CategoricalLikelihood(5, ignore=-100)
    leaf = logits.clone().requires_grad_()
    likelihood.bits(leaf, targets).sum().backward()
    assert torch.equal((leaf.grad != 0).any(-1), targets != -100)
    kept = targets[targets != -100]
    assert likelihood.marginal_bits(targets) == pytest.approx(CategoricalLikelihood(5).marginal_bits(kept))


def test_the_marginal_code_is_that_of_adaptive_frequencies():
    """Label by label: (count + 1/2) / (seen + C/2), hidden ones left out, positions of all examples together."""
    _, targets = example((5, 4), 3)
    counts, bits = [0.5] * 3, 0.0
    for label in targets.flatten().tolist():
        if label != -100:
            bits -= math.log2(counts[label] / sum(counts))
            counts[label] += 1
    assert CategoricalLikelihood(3, ignore=-100).marginal_bits(targets) == pytest.approx(bits)


def test_errors_are_shares_of_the_coded_positions():
    predicted = torch.eye(3)[torch.tensor([[0, 1, 2, 0], [0, 0, 0, 0], [1, 1, 1, 1]])]
    targets = torch.tensor([[0, 1, 1, -1], [-1, -1, -1, -1], [0, 0, 0, -1]])
    error = CategoricalLikelihood(3, ignore=-1).error(predicted, targets)
    assert torch.allclose(error, torch.tensor([1 / 3, 0.0, 1.0]))
    yes = BernoulliLikelihood(ignore=-1).error(torch.tensor([[0.9, 0.1], [0.9, 0.9]]), torch.tensor([[1, 1], [-1, 0]]))
    assert yes.tolist() == [0.5, 1.0]
    for likelihood in (PoissonLikelihood(ignore=-1), NegativeBinomialLikelihood(ignore=-1)):
        assert likelihood.error(torch.tensor([[2.0, 5.0], [1.0, 1.0]]), torch.tensor([[4, -1], [-1, -1]])).tolist() == [
            4.0,
            0.0,
        ]


def test_answers_have_the_shape_of_the_targets():
    probabilities = torch.eye(3)[torch.tensor([[[0, 2], [1, 1]]])] * 0.9
    (answer,) = CategoricalLikelihood(3, names=["sky", "sea", "land"]).answers(probabilities)
    assert answer == {"class": [["sky", "land"], ["sea", "sea"]], "probability": [[0.9, 0.9], [0.9, 0.9]]}


@pytest.mark.parametrize("hide", [False, True])
def test_tokens_are_coded_by_the_outputs_before_them(hide):
    logits, tokens = example((3, 6), 7, hidden=0.3 if hide else 0.0)
    likelihood = TokensLikelihood(7)
    expected = cross_entropy(logits[:, :-1].reshape(-1, 7), tokens[:, 1:].reshape(-1), reduction="none", ignore_index=-100)
    symbols = likelihood.symbol_bits(logits, tokens)
    assert torch.equal(symbols[:, 0], torch.zeros(3).double())
    assert torch.allclose(symbols[:, 1:].reshape(-1), expected / LN2)
    assert torch.allclose(likelihood.bits(logits, tokens).sum(), expected.sum() / LN2)
    later = tokens[:, 1:][tokens[:, 1:] != -100]
    assert likelihood.symbols(tokens) == len(later)
    assert likelihood.uniform_bits(tokens) == pytest.approx(len(later) * math.log2(7))
    assert likelihood.marginal_bits(tokens) == pytest.approx(CategoricalLikelihood(7).marginal_bits(later))
    best = logits[:, :-1].argmax(-1)
    wrong = [
        float((row[keep != -100] != keep[keep != -100]).double().mean()) for row, keep in zip(best, tokens[:, 1:], strict=True)
    ]
    assert torch.allclose(likelihood.error(likelihood.predict(logits), tokens), torch.tensor(wrong).double())
    assert "first token of every example is not coded" in likelihood.notes()[0]


def test_the_last_output_of_a_text_is_not_used_and_its_first_token_may_be_anything():
    logits, tokens = example((2, 4), 5, hidden=0.0)
    other, changed = logits.clone(), tokens.clone()
    other[:, -1], changed[:, 0] = 100.0, -100
    assert torch.equal(TokensLikelihood(5).bits(logits, tokens), TokensLikelihood(5).bits(other, changed))


@pytest.mark.parametrize(
    ("likelihood", "targets"),
    [
        (CategoricalLikelihood(3, ignore=-100), torch.full((4, 5), -100)),
        (CategoricalLikelihood(3, ignore=7), torch.full((4,), 7)),
        (TokensLikelihood(3), torch.tensor([[1, -100], [2, -100]])),
        (BernoulliLikelihood(ignore=-1), torch.full((4, 5), -1.0)),
        (PoissonLikelihood(ignore=-1), torch.full((4,), -1)),
        (NegativeBinomialLikelihood(ignore=-1), torch.full((4, 2), -1)),
    ],
)
def test_a_mask_that_hides_everything_is_refused(likelihood, targets):
    with pytest.raises(DataError, match=r"no training target is coded: likelihood\.ignore=.* check the mask"):
        likelihood.check_split(targets, "training")
    likelihood.check_targets(targets, "training")  # a part of a split may be hidden
    first = targets[:1]
    outputs = torch.zeros(*first.shape, 3) if isinstance(likelihood, CategoricalLikelihood) else torch.zeros(first.shape)
    assert likelihood.bits(outputs, first).tolist() == [0.0]  # one example may be hidden, and costs nothing


@pytest.mark.parametrize(
    ("likelihood", "targets"),
    [
        (CategoricalLikelihood(3), torch.tensor([[0, 1], [2, -100]])),
        (CategoricalLikelihood(3, ignore=-1), torch.tensor([[0, 1], [2, -100]]).float()),
        (TokensLikelihood(3, ignore=None), torch.tensor([[0, 1], [2, -100]])),
        (BernoulliLikelihood(), torch.tensor([[0, 1], [1, -100]])),
        (PoissonLikelihood(), torch.tensor([[0, 1], [1, -100]])),
        (NegativeBinomialLikelihood(), torch.tensor([[0, 1], [1, -100]])),
    ],
)
def test_a_hidden_position_is_never_a_label_by_default(likelihood, targets):
    says = r"example 1 is -100; .*likelihood\.ignore=-100 leaves such positions out"
    says = says if likelihood.ignore is None else "example 1 is -100; "
    with pytest.raises(DataError, match=says):
        likelihood.check_targets(targets, "training")
    outputs = torch.zeros(2, 2, 3) if isinstance(likelihood, CategoricalLikelihood) else torch.zeros(2, 2)
    with pytest.raises(DataError, match="is -100"):
        likelihood.bits(outputs, targets)


def test_a_value_that_the_dtype_cannot_hold_hides_nothing():
    """In torch, uint8 156 == -100 is true."""
    targets = torch.tensor([156, 3], dtype=torch.uint8)
    likelihood = CategoricalLikelihood(200, ignore=-100)
    assert likelihood.symbols(targets) == 2
    assert likelihood.bits(torch.zeros(2, 200), targets).tolist() == pytest.approx([math.log2(200)] * 2)


def test_a_value_that_is_an_answer_or_a_count_cannot_be_ignored():
    for make in (BernoulliLikelihood, PoissonLikelihood, NegativeBinomialLikelihood):
        with pytest.raises(DataError, match=r"ignore 1 is an? (answer|count)"):
            make(ignore=1)


def test_a_class_may_be_left_out():
    """Pad tokens are often token 0, which no text needs otherwise."""
    targets = torch.tensor([[1, 2, 0, 0], [2, 0, 0, 0]])
    likelihood = CategoricalLikelihood(3, ignore=0)
    likelihood.check_targets(targets, "training")
    assert likelihood.bits(torch.zeros(2, 4, 3), targets).tolist() == pytest.approx([2 * math.log2(3), math.log2(3)])


@pytest.mark.parametrize("kind", [CategoricalLikelihood, TokensLikelihood])
def test_class_weights_are_refused_with_the_reason(kind):
    with pytest.raises(DataError, match="a code has no class weights: it spends -log2 p bits on every label"):
        kind(3, weight=torch.ones(3))


@pytest.mark.parametrize("kind", ["categorical", "tokens", "bernoulli", "poisson", "negative_binomial", "gaussian"])
@pytest.mark.parametrize("name", ["class_weights", "weight", "pos_weight"])
def test_class_weights_in_a_configuration_are_refused_with_the_reason(tmp_path, kind, name, run_command):
    path = tmp_path / "weighted.yaml"
    path.write_text(f"data: {{kind: digits}}\nlikelihood:\n  kind: {kind}\n  {name}: [1, 2]\n")
    said = run_command("train", path)
    assert said.code != 0
    assert "weighted.yaml:2: likelihood: a code has no class weights" in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_large_targets_are_counted_in_chunks(monkeypatch):
    """With the same results as at once, and never more numbers together than allowed."""
    _, targets = example((40, 6), 5)
    answers, counts = (targets % 2).where(targets != -100, -100), targets * 3
    counts[targets == -100] = -100
    cases = [
        (CategoricalLikelihood(5, ignore=-100), targets),
        (TokensLikelihood(5), targets),
        (BernoulliLikelihood(ignore=-100), answers),
        (PoissonLikelihood(ignore=-100), counts),
        (NegativeBinomialLikelihood(ignore=-100), counts),
    ]

    def totals():
        for likelihood, y in cases:
            likelihood.check_targets(y, "training")
            yield likelihood.symbols(y), likelihood.uniform_bits(y), likelihood.marginal_bits(y)

    at_once = list(totals())
    monkeypatch.setattr(base, "CHUNK", 20)
    assert [part.numel() for part in base.chunks(targets)] == [18] * 13 + [6]
    for whole, chunked in zip(at_once, totals(), strict=True):
        assert chunked == pytest.approx(whole)
    targets[33, 4] = 17
    with pytest.raises(DataError, match="example 33 is 17"):
        cases[0][0].check_targets(targets, "training")


@pytest.mark.parametrize("dispersion", [1e-3, 0.3, 1.0, 7.5, 1e4, 8e6])
@pytest.mark.parametrize("mean", [1e-4, 0.7, 30.0, 1e5])
def test_negative_binomial_bits_are_those_of_scipy(dispersion, mean):
    counts = np.unique(np.concatenate([np.arange(20), np.round(mean * np.array([0.5, 1.0, 1.1, 3.0]))]))
    likelihood = NegativeBinomialLikelihood(dispersion, learn="none").double()
    r = float(likelihood.log_dispersion.exp())
    expected = -scipy.stats.nbinom.logpmf(counts, r, r / (r + mean)) / LN2
    log_mean = torch.full((len(counts),), math.log(mean), dtype=torch.float64)
    assert np.allclose(likelihood.bits(log_mean, torch.from_numpy(counts)).numpy(), expected, rtol=1e-6, atol=1e-6)
    assert likelihood.variance(log_mean)[0].item() == pytest.approx(scipy.stats.nbinom.var(r, r / (r + mean)))


def test_negative_binomial_bits_of_float32_outputs_are_exact_where_it_is_nearly_poisson():
    """In float32, lgamma(count + r) - lgamma(r) would be off by whole bits."""
    counts = torch.arange(200)
    log_mean = torch.full((200,), math.log(60.0))
    bits = NegativeBinomialLikelihood(8e6).bits(log_mean, counts)
    assert bits.dtype == torch.float32
    assert np.allclose(bits.detach(), -scipy.stats.poisson.logpmf(counts, 60.0) / LN2, atol=2e-3)


def test_the_dispersion_is_learned_charged_and_stays_on_its_grid():
    generator = np.random.default_rng(0)
    counts = torch.from_numpy(generator.negative_binomial(2.0, 2.0 / (2.0 + 9.0), 4000))
    likelihood, log_mean = NegativeBinomialLikelihood().double(), torch.full((4000,), math.log(9.0)).double()
    optimiser = torch.optim.Adam(likelihood.parameters(), lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        likelihood.loss(log_mean, counts).backward()
        optimiser.step()
    best = min(np.arange(0.5, 5, 0.01), key=lambda r: -scipy.stats.nbinom.logpmf(counts.numpy(), r, r / (r + 9.0)).sum())
    assert float(likelihood.values()["dispersion"].detach()) == pytest.approx(best, rel=0.02)
    assert [(charge.name, charge.bits) for charge in likelihood.charges()] == [("log_dispersion", 10.0)]
    likelihood.log_dispersion.data.fill_(99.0)
    assert torch.isfinite(likelihood.bits(log_mean, counts)).all()
    assert float(likelihood.log_dispersion.detach()) < 16.0
    assert NegativeBinomialLikelihood(learn="none").charges() == []
    with pytest.raises(DataError, match="needs a positive, finite dispersion"):
        NegativeBinomialLikelihood(0.0)


@pytest.mark.parametrize("r", [0.4, 3.0, None])
def test_the_marginal_code_of_counts_is_the_best_of_its_grid(r):
    generator = np.random.default_rng(1)
    draw = generator.poisson(4.0, 300) if r is None else generator.negative_binomial(r, r / (r + 4.0), 300)
    mean = math.exp(round(math.log(draw.mean()) * 32) / 32)
    sizes = np.exp(-16 + np.arange(1024) / 32)
    bits = [-scipy.stats.nbinom.logpmf(draw, size, size / (size + mean)).sum() / LN2 for size in sizes]
    found = NegativeBinomialLikelihood().marginal_bits(torch.from_numpy(draw))
    assert found == pytest.approx(min(bits) + 20.0, rel=1e-9, abs=1e-4)
    twice = torch.from_numpy(np.stack([draw, np.full(300, -1)], 1))
    twice[0, 1] = 3
    alone = NegativeBinomialLikelihood(ignore=-1).marginal_bits(twice)
    assert alone == pytest.approx(found + NegativeBinomialLikelihood().marginal_bits(torch.tensor([3])), rel=1e-9)


def test_overdispersed_counts_cost_less_under_the_negative_binomial():
    counts = torch.from_numpy(np.random.default_rng(2).negative_binomial(1.0, 1.0 / 21.0, 500))
    poisson, negative = PoissonLikelihood().marginal_bits(counts), NegativeBinomialLikelihood().marginal_bits(counts)
    entropy = scipy.stats.nbinom(1.0, 1.0 / 21.0).entropy() / LN2
    assert negative / 500 == pytest.approx(entropy, rel=0.05)
    assert poisson > 2 * negative


class OwnLikelihood(PoissonLikelihood):
    """Stand-in for a likelihood that a user wrote: it gives the bits of examples, not of symbols."""

    kind = "own"
    symbol_bits = Likelihood.symbol_bits


def test_a_likelihood_of_ones_own_need_not_split_its_bits():
    own = OwnLikelihood()
    assert own.symbol_bits(torch.zeros(3), torch.ones(3)).shape == (3,)
    assert own.symbols(torch.ones(3, 2)) == 6
    with pytest.raises(DataError, match="override symbol_bits"):
        own.symbol_bits(torch.zeros(3, 2), torch.ones(3, 2))


def test_gaussian_numbers_have_bits_of_their_own():
    likelihood = GaussianLikelihood(1.0, noise="fixed", target_step=0.1)
    outputs, targets = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    each = likelihood.symbol_bits(outputs, targets)
    grid = (targets / 0.1).round() * 0.1
    expected = -scipy.stats.norm.logpdf(grid.numpy(), outputs.numpy()) / LN2 - math.log2(0.1)
    assert np.allclose(each, expected)
    assert torch.allclose(likelihood.bits(outputs, targets), each.sum(1))
    assert likelihood.symbols(targets) == 12


# -- ledgers


def test_a_ledger_says_bits_per_symbol_where_examples_have_several():
    one = Ledger((Entry.of("w", weights=1, net_bits=10.0, refund_bits=0.0),), 1, 90.0, 200.0, examples=10, marginal_bits=150.0)
    many = Ledger(one.entries, 1, 90.0, 200.0, examples=10, marginal_bits=150.0, symbols=40)
    assert (one.symbols, one.bits_per_symbol, many.bits_per_symbol) == (None, 10.0, 2.5)
    assert "10.000 bits per example, 2.500 per symbol" in str(many)
    assert "10 examples, 40 symbols, no model" in str(many)
    assert "symbol" not in str(one)
    assert {"symbols": 40, "bits_per_symbol": 2.5}.items() <= many.to_dict().items()
    assert not {"symbols", "bits_per_symbol"} & one.to_dict().keys()
    assert Ledger.from_json(many.to_json()) == many
    assert Ledger.from_json(one.to_json()) == one
    assert Ledger(one.entries, 1, 90.0, 200.0, examples=10, marginal_bits=150.0, symbols=10) == one
    with pytest.raises(LedgerError, match="one symbol or more, got 0"):
        Ledger(one.entries, 1, 90.0, 200.0, examples=10, symbols=0)


def test_the_ledger_of_a_tagger_counts_coded_tags_alone():
    torch.manual_seed(0)
    words = torch.randint(6, (30, 5))
    tags = (words % 3).where(torch.arange(5) < torch.randint(1, 6, (30, 1)), -100)
    model = bayesianize(nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 3)))
    book = take_ledger(model, CategoricalLikelihood(3, ignore=-100), Examples(words, tags), samples=3)
    count = int((tags != -100).sum())
    assert (book.examples, book.symbols) == (30, count)
    assert book.uniform_bits == pytest.approx(count * math.log2(3))
    assert book.bits_per_symbol == pytest.approx(book.net_bits / count)
    assert any("targets of -100 are not coded" in note for note in book.notes)


# -- from data to runs


def saved(folder, **arrays):
    np.savez(folder / "t.npz", **arrays)
    return {"data": {"kind": "npz", "path": str(folder / "t.npz"), "test_fraction": 0.25}}


SEGMENTER = {"kind": "sequential", "layers": [{"Conv2d": {"out_channels": 3, "kernel_size": 3, "padding": 1}}]}
TAGGER = {"kind": "sequential", "layers": [{"Embedding": {"num_embeddings": 50, "embedding_dim": 4}}, "Linear"]}


def images(labels=(0, 1, 2)):
    pictures = np.random.default_rng(0).normal(size=(24, 1, 6, 7)).astype(np.float32)
    return pictures, np.array(labels)[(pictures[:, 0] > 0.5).astype(int) + (pictures[:, 0] > -0.5)]


def test_a_segmentation_is_trained_and_opened_again(tmp_path):
    pictures, labels = images()
    labels[:, 0] = -100
    config = Config.model_validate(
        saved(tmp_path, inputs=pictures, targets=labels)
        | {
            "network": SEGMENTER,
            "likelihood": {"kind": "categorical", "ignore": -100},
            "training": {"epochs": 300, "optimizer": {"name": "Adam", "lr": 0.03}},
            "ledger": {"samples": 3},
            "logging": {"report": False},
        }
    )
    experiment = Experiment.build(config)
    assert experiment.likelihood.classes == 3
    outcome = experiment.train(tmp_path / "run", progress=False)
    assert outcome.ledger.symbols == 18 * 5 * 7
    assert outcome.ledger.is_worth_it
    assert load_run(tmp_path / "run").config.likelihood.ignore == -100
    saved_ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert saved_ledger["bits_per_symbol"] == pytest.approx(outcome.ledger.net_bits / (18 * 5 * 7))


@pytest.mark.parametrize("dtype", [np.int64, np.int16, np.float32])
def test_labels_of_any_shape_become_classes_and_hidden_ones_stay(tmp_path, dtype):
    words = np.random.default_rng(0).integers(0, 50, (40, 6))
    tags = np.array([10, 20, 40])[words % 3]
    tags[:, 4:] = -100
    data = saved(tmp_path, inputs=words, targets=tags.astype(dtype))
    data["data"]["scaling"] = "none"
    experiment = Experiment.build(
        Config.model_validate(data | {"network": TAGGER, "likelihood": {"kind": "categorical", "ignore": -100}})
    )
    assert experiment.config.likelihood.labels == (10, 20, 40)
    train = experiment.dataset.train
    assert torch.equal(train.targets[:, :4].long(), train.inputs[:, :4].long() % 3)
    assert bool((train.targets[:, 4:] == -100).all())
    back = as_labels(train.targets.numpy(), experiment.config.likelihood)
    assert set(np.unique(back)) == {-100, 10, 20, 40}
    again = Experiment.build(experiment.config)
    assert torch.equal(again.dataset.train.targets, train.targets)


def test_texts_as_labels_have_an_empty_text_where_nothing_is_coded():
    settings = CategoricalSettings(labels=("verb", "noun"), ignore=-1)
    assert as_labels(np.array([[1, -1], [0, 1]]), settings).tolist() == [["noun", ""], ["verb", "noun"]]


def tagged(tmp_path, tags, likelihood, **arrays):
    words = np.arange(len(tags) * 3).reshape(-1, 3) % 50
    data = saved(tmp_path, inputs=words, targets=tags, **arrays)
    data["data"]["scaling"] = "none"
    return Experiment.build(Config.model_validate(data | {"network": TAGGER, "likelihood": likelihood}))


TAGS = np.arange(60).reshape(20, 3) % 4 + 5


@pytest.mark.parametrize(
    ("tags", "likelihood", "message"),
    [
        (TAGS, {"kind": "categorical", "labels": [5, 6, 7]}, r"label of example \d+ is 8, which is none of likelihood.labels"),
        (TAGS, {"kind": "categorical", "labels": [5, 6, 7, 8], "ignore": 8}, "ignore 8 is one of likelihood.labels"),
        (TAGS, {"kind": "categorical", "classes": 8}, "target of example .* is 8; labels must be whole numbers from 0 to 7"),
        (TAGS - 5, {"kind": "categorical", "ignore": 0}, "ignore 0 would be the number of a class"),
        (TAGS * 0 - 100, {"kind": "categorical", "ignore": -100}, "hides all of them"),
        (TAGS * 0 - 100, {"kind": "categorical", "classes": 3, "ignore": -100}, "hides all of them"),
        (TAGS, {"kind": "tokens"}, "needs the size of the vocabulary; set likelihood.classes"),
        (TAGS + 0.5, {"kind": "categorical"}, "labels must be whole numbers or texts"),
    ],
)
def test_bad_labels_of_any_shape_are_refused(tmp_path, tags, likelihood, message):
    with pytest.raises(DataError, match=message):
        tagged(tmp_path, tags, likelihood)


def test_labels_that_no_training_example_has_are_assumed_to_be_known(tmp_path):
    tests = {"test_inputs": np.zeros((2, 3), dtype=int), "test_targets": np.array([[5, 9, -100], [6, 5, 5]])}
    experiment = tagged(tmp_path, TAGS, {"kind": "categorical", "ignore": -100}, **tests)
    assert experiment.likelihood.classes == 5
    assert experiment.dataset.train.assumed == ("that labels 9 exist, which no training example has",)
    assert experiment.dataset.test.targets.tolist() == [[0, 4, -100], [1, 0, 0]]


def test_targets_with_axes_need_a_named_likelihood(tmp_path):
    words = np.zeros((20, 3), dtype=int)
    with pytest.raises(DataError, match=r"have shape \(15, 3\); say how to describe them: .*categorical"):
        Experiment.build(Config.model_validate(saved(tmp_path, inputs=words, targets=TAGS)))


def test_the_vocabulary_of_tokens_is_that_of_the_network(tmp_path):
    words = np.random.default_rng(0).integers(0, 9, (20, 6))
    data = saved(tmp_path, inputs=words, targets=words)
    data["data"]["scaling"] = "none"
    layers = [TAGGER["layers"][0], {"Linear": {"out_features": 12}}]
    network = {"kind": "sequential", "layers": layers}
    experiment = Experiment.build(Config.model_validate(data | {"network": network, "likelihood": {"kind": "tokens"}}))
    assert (experiment.likelihood.kind, experiment.likelihood.classes, experiment.likelihood.ignore) == ("tokens", 12, -100)
    assert torch.equal(experiment.dataset.train.targets, experiment.dataset.train.inputs)


@pytest.mark.parametrize(
    ("likelihood", "outputs", "targets"),
    [
        (CategoricalLikelihood(3, ignore=-1, class_axis=-1), 3, torch.tensor([[0, 2, -1, 1]] * 8)),
        (TokensLikelihood(3, ignore=-1), 3, torch.tensor([[0, 2, -1, 1]] * 8)),
        (BernoulliLikelihood(ignore=-1), 1, torch.tensor([[[0], [1], [-1], [1]]] * 8)),
        (PoissonLikelihood(ignore=-1), 1, torch.tensor([[[0], [5], [-1], [1]]] * 8)),
        (NegativeBinomialLikelihood(2.0, ignore=-1), 1, torch.tensor([[[0], [5], [-1], [1]]] * 8)),
        (NegativeBinomialLikelihood(2.0, learn="none"), 1, torch.tensor([[[0], [5], [3], [1]]] * 8)),
    ],
)
def test_a_run_from_python_says_its_likelihood(tmp_path, likelihood, outputs, targets):
    import bitsback

    torch.manual_seed(0)
    network = nn.Linear(2, outputs)
    data = Dataset("in memory", Examples(torch.randn(8, 4, 2), targets), None)
    bitsback.train(
        bayesianize(network), likelihood, data, out=tmp_path / "run", training={"epochs": 2}, ledger={"samples": 2},
        logging={"report": False}, progress=False,
    )  # fmt: skip
    run = load_run(tmp_path / "run", network=nn.Linear(2, outputs), dataset=data)
    again = run.experiment().likelihood
    assert type(again) is type(likelihood)
    assert again.ignore == likelihood.ignore
    assert getattr(again, "class_axis", None) == getattr(likelihood, "class_axis", None)
    assert getattr(again, "learn", None) == getattr(likelihood, "learn", None)
    x, y = data.train.inputs, data.train.targets
    with torch.no_grad():
        values = torch.randn(*x.shape[:2], outputs)
        assert torch.allclose(again.bits(values, y), likelihood.bits(values, y))


def test_a_network_without_a_named_likelihood_finds_its_classes_by_the_shape():
    import bitsback

    pictures, labels = (torch.from_numpy(array) for array in images())
    model = bayesianize(nn.Conv2d(1, 3, 3, padding=1))
    outcome = bitsback.train(
        model, None, Examples(pictures, labels), training={"epochs": 1}, ledger={"samples": 1}, progress=False
    )
    assert outcome.ledger.uniform_bits == pytest.approx(labels.numel() * math.log2(3))
