"""Taking the ledger of a model: exact weight bits, and data bits from whole-network draws that all examples share."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from bitsback.data import Examples
from bitsback.errors import LedgerError
from bitsback.kl import kl
from bitsback.ledger import Entry, Ledger
from bitsback.ledger.entry import Charge
from bitsback.likelihoods import Likelihood
from bitsback.model._memory_format import interleaved, runs
from bitsback.model.buffers import frozen_norms
from bitsback.model.draws import drawing, draws_at_once
from bitsback.model.model import FLOAT32_BITS, BayesianModel
from bitsback.model.modes import evaluating
from bitsback.model.verdict import Course, warnings_of
from bitsback.model.weight import Weight
from bitsback.posteriors import GaussianPosterior, PointPosterior
from bitsback.priors.point_code import point_bits
from bitsback.units import nats_to_bits

__all__ = [
    "EVALUATION_BATCH",
    "SHOWN_AFTER_SECONDS",
    "Evaluation",
    "check_point_grids",
    "evaluate",
    "seeded",
    "set_seed",
    "take_ledger",
]

NO_REFUND = "a point estimate has no refund: q has no width, so choosing w carries no bits that could be given back"
SHOWN_AFTER_SECONDS = 2.0
FAR_FROM_FITTED = 0.2  # in log scale
MOST_WIDTHS = 16
"""Of a prior, between two points of a grid."""

EVALUATION_BATCH = 512  # stays in the cache: on MNIST, 2.4 times as fast as 4096


@dataclass(frozen=True)
class Evaluation:
    """Data bits of each whole-network draw, the mean over draws with its standard error, and the averaged predictor's error."""

    draws_bits: tuple[float, ...]
    error: float
    examples: int

    @property
    def data_bits(self) -> float:
        """Mean data cost over the draws."""
        return math.fsum(self.draws_bits) / len(self.draws_bits)

    @property
    def data_bits_stderr(self) -> float:
        """Standard error of :attr:`data_bits`; 0 for a single draw, whose spread is unknown."""
        count = len(self.draws_bits)
        if count < 2:
            return 0.0
        variance = math.fsum((bits - self.data_bits) ** 2 for bits in self.draws_bits) / (count - 1)
        return math.sqrt(variance / count)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from ``seed`` inside, and leave the generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        set_seed(seed, device)
        yield


def set_seed(seed: int, device: torch.device) -> None:
    """As ``torch.manual_seed``, without the millisecond that it takes for accelerators that nobody uses."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


@torch.no_grad()
def evaluate(
    model: BayesianModel,
    likelihood: Likelihood,
    examples: Examples,
    *,
    samples: int = 10,
    seed: int = 0,
    batch_size: int = EVALUATION_BATCH,
    progress: bool = False,
) -> Evaluation:
    """Data bits of ``samples`` whole-network draws (``samples = 0``: of the posterior means), and the posterior-averaged error.

    Each draw is one w that all examples share, because a code transmits one w. Every module's mode and the random generators
    are left as they were.
    """
    _check_arguments(model, examples)
    likelihood.check_targets(examples.targets, examples.name)
    examples = examples.to(model.device, model.dtype)
    batches = [slice(start, start + batch_size) for start in range(0, len(examples), batch_size)]
    predicted = [torch.zeros(())] * len(batches)
    draws_bits: list[float] = []
    at_once = draws_at_once(model)
    with (
        evaluating(model.network),
        model.keeping(),
        seeded(seed, model.device),  # a network may hold randomness of its own
        tqdm(total=samples, desc="draws", leave=False, disable=not progress, delay=SHOWN_AFTER_SECONDS) as bar,
    ):
        interleaves = _takes_interleaved(model, examples.inputs[:2])
        while len(draws_bits) < max(1, samples):
            count = min(at_once, samples - len(draws_bits))
            numbers = range(-1 - len(draws_bits), -1 - len(draws_bits) - max(0, count), -1)
            with drawing(model, seed, numbers) as network:
                totals = [0.0] * max(1, count)
                for index, part in enumerate(batches):
                    inputs = examples.inputs[part]
                    for draw, outputs in enumerate(network(interleaved(inputs) if interleaves else inputs)):
                        totals[draw] += float(likelihood.bits(outputs, examples.targets[part]).cpu().double().sum())
                        prediction = likelihood.predict(outputs)
                        predicted[index] = prediction if not draws_bits and not draw else predicted[index] + prediction
            draws_bits += totals
            bar.update(count)
    average = torch.cat(predicted) / len(draws_bits)
    error = likelihood.summary(float(likelihood.error(average, examples.targets).cpu().double().mean()))
    return Evaluation(tuple(draws_bits), error, len(examples))


def _takes_interleaved(model: BayesianModel, inputs: torch.Tensor) -> bool:
    """Return whether images are convolved faster: there are filters, and the network runs on such images."""
    has_filters = inputs.ndim == 4 and any(p.ndim == 4 for p in model.network.parameters())
    return has_filters and runs(model.network, interleaved(inputs))


def take_ledger(
    model: BayesianModel,
    likelihood: Likelihood,
    examples: Examples,
    *,
    samples: int = 20,
    grid_step: float | None = None,
    seed: int = 0,
    batch_size: int = EVALUATION_BATCH,
    progress: bool = False,
    priors_are_held: bool = False,
    course: Course | None = None,
) -> Ledger:
    """The ledger of a model on its training examples.

    Learned numbers (and a point estimate's weights) are first rounded to their grids **in place**, so that what is charged
    is what is used. Weight bits are closed form or quadrature in float64; data bits are averaged over ``samples``
    whole-network draws.

    Args:
        model, likelihood, examples: what is described, and the training split it was fitted to.
        samples: whole-network draws behind ``data_bits`` and its standard error.
        grid_step: grid of the weights in gross bits and refund; default :meth:`BayesianModel.grid_step`. It cancels in the net.
        seed: of the draws.
        priors_are_held: the model is not what training left: say nothing of priors that are far from their closed form, nor
            whether it is worth its bits.
        course: of the training, which may show why a model is not worth its bits.

    Raises:
        LedgerError: when a grid step is far too coarse for a point estimate's prior, or bits are not finite or below zero.
    """
    if samples < 1 or (grid_step is not None and not grid_step > 0):
        raise LedgerError(f"a ledger needs samples >= 1 and a grid_step above zero, got {samples} and {grid_step}")
    _check_arguments(model, examples)
    model.honour_edits(everywhere=True)
    likelihood.fit(examples.targets)
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
    with seeded(seed, torch.device("cpu")):  # a prior without closed form or quadrature is sampled
        entries = [_entry(weight, step) for weight in model.weights]
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
    )
    return book if priors_are_held else replace(book, warnings=warnings_of(book, model, likelihood, examples, course))


def _check_arguments(model: BayesianModel, examples: Examples) -> None:
    if not isinstance(model, BayesianModel):
        raise LedgerError(f"give a BayesianModel, as bitsback.bayesianize makes it; got {type(model).__name__}")
    if not isinstance(examples, Examples):
        raise LedgerError(f"give Examples, such as dataset.train or Examples(inputs, targets); got {type(examples).__name__}")


@torch.no_grad()
def _unfitted_priors(model: BayesianModel) -> list[str]:
    """A note for every prior with a closed form that is far from it: a training loop forgot ``model.update_priors()``."""
    notes = []
    for prior, weights in model.weights_by_prior():
        best = copy.deepcopy(prior)
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
    """Raise when the grid has no code of a point under its prior, or would round nearly every weight to the prior's centre.

    Raises:
        LedgerError: for a grid that is far wider than the prior.
        PriorError: for a prior without a table, such as one that codes several weights at once.
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


@torch.no_grad()
def _entry(weight: Weight, step: float) -> Entry:
    """The exact entry of one weight tensor, in float64 from the parameters as they are stored.

    A point is charged what its prior's integer tables give to its grid points. Its penalty in training, -log2 p(w) step, is a
    smooth stand-in for that: the density is no mass where it is higher than one over the step.
    """
    count = weight.posterior.numel
    if isinstance(weight.posterior, GaussianPosterior):
        mean, std = weight.posterior.mean.cpu().double(), weight.posterior.std().cpu().double()
        exact, prior = GaussianPosterior(mean, std), copy.deepcopy(weight.prior).cpu().double()  # some devices have no float64
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
