"""Ledger of a model: weight bits in closed form or by quadrature, data bits from whole-network draws."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from bitsback.data import Examples, source
from bitsback.distributed import summing
from bitsback.errors import LedgerError
from bitsback.inputs import Inputs, each
from bitsback.kl import kl
from bitsback.ledger import Entry, Ledger
from bitsback.ledger.entry import Charge
from bitsback.likelihoods import Likelihood
from bitsback.likelihoods.base import mean_of_judged
from bitsback.likelihoods.given import checked_likelihood
from bitsback.model._memory_format import interleaved, runs
from bitsback.model.buffers import frozen_norms, unmoved
from bitsback.model.draws import SHOWN_AFTER_SECONDS, drawing, draws_at_once, forward_of
from bitsback.model.model import FLOAT32_BITS, BayesianModel
from bitsback.model.modes import evaluating
from bitsback.model.verdict import Course, warnings_of
from bitsback.model.weight import Weight
from bitsback.posteriors import GaussianPosterior, PointPosterior
from bitsback.priors.point_code import point_bits
from bitsback.torch_state import seeded
from bitsback.units import nats_to_bits

__all__ = [
    "Evaluation",
    "check_point_grids",
    "evaluate",
    "take_ledger",
]

NO_REFUND = "a point estimate has no refund: q has no width, so choosing w carries no bits that could be given back"
FAR_FROM_FITTED = 0.2
"""Difference in log scale from the closed-form optimum above which a prior is reported as not fitted."""

MOST_WIDTHS = 16
"""Largest grid step of a point estimate, in units of the prior's scale."""

PREDICTED_NUMBERS = 1 << 26
"""Predictions held at once while they are averaged over draws; more are averaged a group of batches at a time."""


@dataclass(frozen=True)
class Evaluation:
    """Data bits of each whole-network draw, and the error of the prediction averaged over draws.

    Attributes:
        draws_bits: data bits of each draw.
        error: error of the averaged prediction, as the likelihood summarises it (such as the share of wrong labels), over the
            examples of which something is coded; NaN if there are none.
        examples: number of examples.
    """

    draws_bits: tuple[float, ...]
    error: float
    examples: int

    @property
    def data_bits(self) -> float:
        """Return the mean of the data bits over draws."""
        return math.fsum(self.draws_bits) / len(self.draws_bits)

    @property
    def data_bits_stderr(self) -> float:
        """Return the standard error of :attr:`data_bits`; 0 for a single draw, whose spread is unknown."""
        count = len(self.draws_bits)
        if count < 2:
            return 0.0
        variance = math.fsum((bits - self.data_bits) ** 2 for bits in self.draws_bits) / (count - 1)
        return math.sqrt(variance / count)


@torch.no_grad()
def evaluate(
    model: BayesianModel,
    likelihood: Likelihood,
    examples: Any,
    *,
    samples: int = 10,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Evaluate data bits and prediction error under whole-network draws.

    Each draw is one w that all examples share, because a code transmits one w. Modules are in eval mode; their modes and the
    random generators are restored.

    Args:
        model: Bayesian model.
        likelihood: its likelihood.
        examples: inputs and targets, in anything that :func:`bitsback.data.source` takes.
        samples: number of draws; 0 evaluates the posterior means.
        seed: seed of the draws.
        batch_size: examples in a forward pass; default: the model's ``evaluation_batch``.
        progress: show a progress bar.

    Returns:
        Data bits of each draw, and the error of the prediction averaged over draws.
    """
    examples = _checked(model, likelihood, examples)
    likelihood.check_targets(examples.targets, examples.name)
    examples = examples.to(model.device, model.dtype)
    batch_size = batch_size or model.evaluation_batch
    batches = _own_batches(model, examples, batch_size)
    draws = max(1, samples)
    # Sums stay on a GPU until the end, so that no batch waits for another; mps has no float64.
    place = model.device if model.device.type == "cuda" else torch.device("cpu")
    draws_bits, error_sum = (torch.zeros(shape, dtype=torch.float64, device=place) for shape in (draws, ()))
    at_once, forward = draws_at_once(model), forward_of(model)
    with (
        evaluating(model.network),
        model.keeping(),
        seeded(seed, model.device),  # for networks that are random themselves
        tqdm(
            total=draws * len(batches), desc="draws", unit="batch", leave=False, disable=not progress, delay=SHOWN_AFTER_SECONDS
        ) as bar,
    ):
        few = examples.inputs[:2]
        interleaves, together = _takes_interleaved(model, few), 1
        if len(batches) > 1:
            with unmoved(model.network), seeded(seed, model.device):  # a trial leaves no trace
                together = max(1, PREDICTED_NUMBERS // max(1, model.outputs(few).numel() * batch_size // 2))
        for group in (batches[first : first + together] for first in range(0, len(batches), together)):
            predicted, wanted = [torch.zeros(())] * len(group), [examples.targets] * len(group)
            kept = _Block(sum(rows.stop - rows.start for rows in group))
            for first in range(0, draws, at_once):
                numbers = range(-1 - first, -1 - min(samples, first + at_once), -1)
                with drawing(model, seed, numbers, forward) as network:
                    for index, (inputs, targets) in enumerate(examples.batches(group)):
                        outputs_of = network(each(inputs, interleaved) if interleaves else inputs)
                        if group[index].step:  # run for the other processes
                            continue
                        wanted[index] = targets
                        for draw, outputs in enumerate(outputs_of, first):
                            draws_bits[draw] += likelihood.bits(outputs, targets).to(place).double().sum()
                            prediction = likelihood.predict(outputs)
                            if draw:
                                predicted[index] += prediction
                            else:
                                predicted[index] = kept.put(prediction)
                        bar.update(min(at_once, draws - first))
            for rows, total, targets in zip(group, predicted, wanted, strict=True):
                if not rows.step:
                    error_sum += likelihood.error(total / draws, targets).to(place).double().sum()
    *bits, wrong = model.ranks.sums([*draws_bits.tolist(), float(error_sum)])
    error = mean_of_judged(wrong, int(likelihood.judged(examples.targets).sum()))
    return Evaluation(tuple(bits), likelihood.summary(error), len(examples))


def _own_batches(model: BayesianModel, examples: Examples, size: int) -> list[slice]:
    """Return this process's share of the batches; where weights are shards, all processes have equally many.

    Those that a process runs only because the others run theirs, and does not count, have a step.
    """
    ranks = model.ranks
    if ranks.count == 1:
        return examples.ranges(size)
    each = -(-len(examples) // (ranks.count * size))
    every = examples.ranges(-(-len(examples) // (ranks.count * each)))
    first, last = ranks.bounds(len(every))
    own = every[first:last]
    return own + [slice(0, 1, 1)] * (each - len(own)) if model.is_sharded or not own else own


class _Block:
    """Predictions of a group of batches in one block of memory: small ones, kept one by one, would scatter it.

    An allocator cannot give room for inputs back that lies between them.
    """

    def __init__(self, count: int) -> None:
        self.count, self.start = count, 0
        self.block: torch.Tensor | None = None

    def put(self, prediction: torch.Tensor) -> torch.Tensor:
        """Return a copy in the block; one of another shape than the first remains by itself."""
        if self.block is None:
            self.block = prediction.new_empty(self.count, *prediction.shape[1:])
        if prediction.shape[1:] != self.block.shape[1:] or prediction.dtype != self.block.dtype:
            return prediction.clone()
        self.start += len(prediction)
        return self.block[self.start - len(prediction) : self.start].copy_(prediction)


def _takes_interleaved(model: BayesianModel, inputs: Inputs) -> bool:
    """Return True if inputs are images, the network has filters, and it runs on channels-last inputs, which are faster."""
    if not isinstance(inputs, torch.Tensor):
        return False
    has_filters = inputs.ndim == 4 and any(p.ndim == 4 for p in model.network.parameters())
    return has_filters and runs(model.network, interleaved(inputs))


def take_ledger(
    model: BayesianModel,
    likelihood: Likelihood,
    examples: Any,
    *,
    samples: int = 20,
    grid_step: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    priors_are_held: bool = False,
    course: Course | None = None,
) -> Ledger:
    """Compute the ledger of a model on its training examples.

    Learned numbers (and a point estimate's weights) are first rounded to their grids **in place**, so that data bits are those
    of the numbers that are charged. Weight bits use the closed form or quadrature, in float64; data bits are averaged over
    ``samples`` whole-network draws.

    Args:
        model: Bayesian model.
        likelihood: its likelihood.
        examples: the training examples, as for :func:`evaluate`.
        samples: whole-network draws for ``data_bits`` and its standard error, at least 1.
        grid_step: grid step of the weights in gross and refund bits; default: :meth:`BayesianModel.grid_step`. The net bits of
            Gaussian posteriors do not depend on it.
        seed: seed of the draws.
        batch_size: examples in a forward pass; default: the model's ``evaluation_batch``.
        progress: show a progress bar.
        priors_are_held: the model was changed after training (as in a width curve): do not warn about priors that differ from
            their closed-form optimum, nor about a model that is not worth its bits.
        course: record of the training, used to name the cause if the model is not worth its bits.

    Returns:
        The ledger.

    Raises:
        LedgerError: for invalid arguments, when a grid step is far too coarse for a point estimate's prior, or when bits are
            not finite or below zero.
    """
    if samples < 1 or (grid_step is not None and not grid_step > 0):
        raise LedgerError(f"a ledger needs samples >= 1 and a grid_step above zero, got {samples} and {grid_step}")
    examples = _checked(model, likelihood, examples)
    model.honour_edits(everywhere=True)
    likelihood.fit(examples.targets)
    model.likelihood = likelihood
    unfitted = [] if priors_are_held else _unfitted_priors(model)
    model.round_to_grid()
    likelihood.round_to_grid()
    step = grid_step if grid_step is not None else model.grid_step()
    check_point_grids(model, step, "ledger.grid_step" if grid_step is not None else "posterior.grid_step")
    for posterior in model.posteriors():
        if isinstance(posterior, PointPosterior):
            posterior.round_to(step)
    samples = samples if model.smallest_std() is not None else 0
    paid = evaluate(model, likelihood, examples, samples=samples, seed=seed, batch_size=batch_size, progress=progress)
    with seeded(seed, torch.device("cpu")):  # the KL of a prior without closed form or quadrature is estimated by Monte Carlo
        entries = _over_shards(model, [_entry(weight, step) for weight in model.weights])
    for name, parameter in model.deterministic():
        if parameter.requires_grad:
            bits = FLOAT32_BITS * parameter.numel()
            entries.append(Entry.of(name, weights=parameter.numel(), net_bits=bits, refund_bits=0.0, method="float32"))
    frozen = sum(p.numel() for _, p in model.deterministic() if not p.requires_grad)
    held = sum(p.numel() for p in model.network.parameters())
    likelihood_charges = [Charge(f"likelihood.{c.name}", c.numbers, c.bits_each) for c in likelihood.charges()]
    book = Ledger(
        entries=tuple(entries),
        model_weights=held - frozen,
        data_bits=paid.data_bits,
        data_bits_stderr=paid.data_bits_stderr,
        uniform_bits=likelihood.uniform_bits(examples.targets),
        examples=len(examples),
        charges=tuple(model.charges() + likelihood_charges),
        grid_step=step,
        samples=len(paid.draws_bits),
        not_charged=(
            "the configuration: architecture, number of classes or outputs, fixed numbers of the prior, preprocessing",
            *examples.assumed,
            *model.not_charged(),
        ),
        notes=(*_notes(model, likelihood, step), *unfitted),
        given=model.given(),
        described=likelihood.described,
        marginal_bits=likelihood.marginal_bits(examples.targets),
        symbols=likelihood.symbols(examples.targets),
    )
    return book if priors_are_held else replace(book, warnings=warnings_of(book, model, likelihood, examples, course))


def _checked(model: BayesianModel, likelihood: Likelihood, examples: Any) -> Examples:
    """Return examples, after a check of what is given as model and likelihood."""
    if not isinstance(model, BayesianModel):
        raise LedgerError(f"give a BayesianModel, as bitsback.bayesianize makes it; got {type(model).__name__}")
    checked_likelihood(likelihood)
    return source(examples)


@torch.no_grad()
def _unfitted_priors(model: BayesianModel) -> list[str]:
    """Return a note for every closed-form prior far from its optimum: the training loop did not call ``update_priors()``."""
    notes = []
    for prior, weights in model.weights_by_prior():
        best = copy.deepcopy(prior)
        with summing(model.over_shards):
            best.update([(weight.posterior.mean, weight.posterior.std()) for weight in weights])
        if float((prior.typical_scale() / best.typical_scale()).log().abs().max()) > FAR_FROM_FITTED:
            name = weights[0].name
            notes.append(f"the prior of '{name}' was not fitted to its weights; call model.update_priors() every step")
    return notes


def _notes(model: BayesianModel, likelihood: Likelihood, step: float) -> Iterator[str]:
    if any(isinstance(q, PointPosterior) for q in model.posteriors()):
        yield NO_REFUND
    smallest = model.smallest_std()
    if smallest is not None and step > smallest:
        yield f"the grid step exceeds the smallest std, {smallest:.2g}: gross and refund are no code lengths; the net holds"
    fixed = [weight.name for weight in model.weights if not weight.is_trained]
    if fixed:
        yield f"{_listed(fixed)}: the weight was frozen since, and its KL is charged as it stands"
    norms = frozen_norms(model.network)
    if norms:
        yield f"{_listed(norms)}: weights are frozen but statistics charged, for train mode moves them; eval() holds them still"
    yield from likelihood.notes()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def check_point_grids(model: BayesianModel, step: float, setting: str) -> None:
    """Check that point estimates can be coded on a grid; without point estimates, do nothing.

    Args:
        model: Bayesian model.
        step: grid step in units of the weights.
        setting: name of the setting that chose it, for the message.

    Raises:
        LedgerError: when the step exceeds 16 scales of a prior, so that nearly every weight would be rounded to its centre.
        PriorError: for a prior without an integer table, such as one that codes several weights at once.
    """
    for weight in model.weights:
        if not isinstance(weight.posterior, PointPosterior):
            continue
        narrowest = float(weight.prior.typical_scale().detach().min())
        if step > MOST_WIDTHS * narrowest:
            raise LedgerError(
                f"grid step {step:g} is too coarse for the prior of '{weight.name}', whose width is {narrowest:g}: nearly "
                f"every weight would be rounded to the prior's centre; set {setting} to {narrowest / 8:.2g} or less"
            )
        point_bits(weight.prior, weight.name, torch.zeros(()), step)


def _over_shards(model: BayesianModel, entries: list[Entry]) -> list[Entry]:
    """Return entries of whole weights from those of the processes' shards, whose bits add up in float64."""
    ranks = model.over_shards
    if ranks.count == 1:
        return entries
    own = [(entry.net_bits, entry.refund_bits, entry.stderr**2) for entry in entries]
    totals = ranks.sums([number for numbers in own for number in numbers])
    methods = [text.split("\n") for text in ranks.texts("\n".join(entry.method for entry in entries))]
    return [
        Entry.of(
            weight.name, weights=weight.numel, net_bits=totals[3 * i], refund_bits=totals[3 * i + 1],
            method=next(found[i] for found in methods if found[i]), stderr=math.sqrt(totals[3 * i + 2]),
        )
        for i, weight in enumerate(model.weights)
    ]  # fmt: skip


@torch.no_grad()
def _entry(weight: Weight, step: float) -> Entry:
    """Return the ledger entry of one weight tensor, computed in float64 from the stored parameters.

    A point is charged the code length of its grid points under the integer tables of its prior, not the penalty of training,
    -log2(p(w) step): where p(w) > 1 / step, that would be negative.

    Args:
        weight: weight tensor.
        step: grid step.

    Returns:
        Entry with net and refund bits.
    """
    count = weight.posterior.numel
    if not count:  # this process holds nothing of it
        return Entry.of(weight.name, weights=0, net_bits=0.0, refund_bits=0.0, method="")
    if isinstance(weight.posterior, GaussianPosterior):
        place = weight.posterior.mean.device if weight.posterior.mean.is_cuda else torch.device("cpu")  # mps has no float64
        mean, std = weight.posterior.mean.to(place).double(), weight.posterior.std().to(place).double()
        exact, prior = GaussianPosterior(mean, std), copy.deepcopy(weight.prior).to(place).double()
        cost = kl(exact, prior, samples=1000)
        refund_nats = float(exact.entropy().sum()) - count * math.log(step)
        return Entry.of(
            weight.name,
            weights=count,
            net_bits=float(cost.bits),
            refund_bits=nats_to_bits(refund_nats),
            method=cost.method,
            stderr=cost.stderr_bits,
        )
    bits = point_bits(weight.prior, weight.name, weight.posterior.mean, step)
    return Entry.of(weight.name, weights=count, net_bits=math.fsum(bits.flat), refund_bits=0.0, method="point")
