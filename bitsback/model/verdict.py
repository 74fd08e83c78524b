"""Warnings of a ledger: a model that costs more than no model, with the likeliest cause found in model and data."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor, nn

from bitsback.data import Examples
from bitsback.inputs import Inputs
from bitsback.ledger import Ledger
from bitsback.likelihoods import BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood, Likelihood
from bitsback.model.model import BayesianModel
from bitsback.model.modes import evaluating

__all__ = ["LAST_EPOCHS", "Course", "warnings_of"]

LOOKED_AT = 1000
"""Largest number of examples used in the search for a cause."""

FAR_OFF_SCALE, TINY_SCALE = 10.0, 0.01
"""Root mean square of a feature above or below which the usual initial weights and learning rates do not fit."""

LAST_EPOCHS = 10
"""Epochs whose data bits are compared with the ledger's; a single epoch has about one draw of every weight."""

NOISE_RATIO = 2.0
"""Ratio between noise std and root mean squared error, or its inverse, that counts as misfit."""

VARIED = 0.05
"""Std of outputs in [0, 1] above which they are taken for probabilities, not for nearly constant logits."""

RARE = 30.0
"""Expected number of disagreeing neighbours below which the neighbour test is skipped."""

FEW_STEPS = 1000
"""Optimiser steps below which training counts as too short."""

STDERRS = 4.0 * math.sqrt(2)
"""Standard errors for a significant agreement of neighbours; sqrt(2) because nearest neighbours are often mutual."""


@dataclass(frozen=True)
class Course:
    """Record of a training for :func:`warnings_of`.

    Attributes:
        steps: number of optimiser steps.
        data_bits: data bits of the last epochs, in order.
    """

    steps: int
    data_bits: tuple[float, ...] = ()


def warnings_of(
    ledger: Ledger, model: BayesianModel, likelihood: Likelihood, examples: Examples, course: Course | None = None
) -> tuple[str, ...]:
    """Warn if a model costs more than no model, or if training minimised other data bits than the ledger counts.

    Args:
        ledger: ledger of this model, likelihood and examples.
        model: Bayesian model.
        likelihood: its likelihood.
        examples: the training examples.
        course: record of the training; default: not known.

    Returns:
        At most two sentences.
    """
    found = []
    if not ledger.is_worth_it:
        name = "marginal" if ledger.no_model_bits < ledger.uniform_bits else "uniform"
        cause = _cause(ledger, model, likelihood, examples, course)
        found.append(
            f"This model costs {ledger.net_bits:,.0f} bits, more than no model ({name} code: {ledger.no_model_bits:,.0f} "
            f"bits): {cause}{'' if cause.endswith('?') else '.'}"
        )
    if course is not None:
        found += _trained_on_other_bits(ledger, model, course)
    return tuple(found)


def _trained_on_other_bits(ledger: Ledger, model: BayesianModel, course: Course) -> list[str]:
    """Return a warning if the data bits of the last epochs and of the ledger differ by more than their errors."""
    if len(course.data_bits) < LAST_EPOCHS:
        return []
    half = LAST_EPOCHS // 2
    before, lately = fmean(course.data_bits[:half]), fmean(course.data_bits[half:])
    trained, paid = fmean(course.data_bits), ledger.data_bits
    error = math.hypot(stdev(course.data_bits) / math.sqrt(LAST_EPOCHS), ledger.data_bits_stderr)
    error = max(5.0, 5 * error, 0.1 * paid, 2 * abs(lately - before))
    noisier = any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in model.network.modules())
    if paid - trained > error or (trained - paid > error and not noisier):
        return [
            f"The last {LAST_EPOCHS} epochs counted {trained:,.0f} data bits and the ledger {paid:,.0f}: training lowers "
            "another number than the ledger's (set bayesian.estimator=weight, if layers are used several times or rows are not "
            "examples; else the network acts differently in train and eval mode)."
        ]
    return []


@torch.no_grad()
def _cause(ledger: Ledger, model: BayesianModel, likelihood: Likelihood, examples: Examples, course: Course | None) -> str:
    """Return the first cause that is found, in order of likelihood."""
    inputs, targets = examples.spread(LOOKED_AT).to(model.device, model.dtype).batch(slice(None))
    with evaluating(model.network), model.mean():
        outputs = model.outputs(inputs)
    looks: tuple[Callable[[], str], ...] = (
        lambda: _all_alike(likelihood, examples.targets),
        lambda: _probabilities(likelihood, outputs, targets, model.network),
        lambda: _unused_classes(likelihood, examples.targets),
        lambda: _unscaled(inputs),
        lambda: _noise(likelihood, outputs, targets),
        lambda: _few_steps(course),
        lambda: _unrelated(likelihood, inputs, targets),
    )
    return next((said for look in looks if (said := look())), _why_expensive(ledger))


def _all_alike(likelihood: Likelihood, targets: Tensor) -> str:
    """Return a cause if all coded targets are equal; targets with axes are not looked at."""
    if targets.ndim > 1:
        return ""
    targets = targets[likelihood.judged(targets)]
    if bool((targets == targets[:1]).all()):
        return f"all {likelihood.described} are alike, and there is nothing to describe"
    return ""


def _probabilities(likelihood: Likelihood, outputs: Tensor, targets: Tensor, network: nn.Module) -> str:
    """Return a cause if the network returns probabilities where the likelihood expects logits."""
    inside = bool(((outputs >= 0) & (outputs <= 1)).all())
    if isinstance(likelihood, CategoricalLikelihood):
        sums = likelihood.class_last(outputs, targets).sum(-1)
        if not inside or not torch.allclose(sums, sums.new_ones(()), atol=1e-3):
            return ""
        return "the network ends with a softmax, and the likelihood wants logits; take the last layer away"
    *_, last = network.modules()
    squeezed = isinstance(last, nn.Sigmoid) or float(outputs.std()) > VARIED  # logits of a pruned network are all alike
    if isinstance(likelihood, BernoulliLikelihood) and inside and squeezed:
        return "the network ends with a sigmoid, and the likelihood wants logits; take the last layer away"
    return ""


def _unused_classes(likelihood: Likelihood, targets: Tensor) -> str:
    """Return a cause if at least half of the declared classes never occur."""
    if not isinstance(likelihood, CategoricalLikelihood):
        return ""
    coded = likelihood.coded(targets)
    targets = targets if coded is None else targets[coded]
    seen = len(targets.unique())
    if likelihood.classes < 2 * seen:
        return ""
    return (
        f"of {likelihood.classes:,} declared classes only {seen:,} occur among the labels ({int(targets.min())} to "
        f"{int(targets.max())}); leave likelihood.classes and the last layer's size out, or number the labels from 0"
    )


def _unscaled(inputs: Inputs) -> str:
    """Return a cause if the largest feature is far from unit scale."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        return ""
    flat = inputs.reshape(len(inputs), -1).double()
    rms = flat.square().mean(0).sqrt()
    worst = int(rms.argmax())
    if float(rms[worst]) > FAR_OFF_SCALE or float(rms[worst]) < TINY_SCALE:
        return (
            f"the inputs are not scaled (feature {worst} has mean {float(flat[:, worst].mean()):.3g} and std "
            f"{float(flat[:, worst].std(correction=0)):.3g}); set data.scaling=auto, or give inputs of mean 0 and std 1"
        )
    return ""


def _noise(likelihood: Likelihood, outputs: Tensor, targets: Tensor) -> str:
    """Return a cause if the noise std of a Gaussian likelihood is far from the root mean squared error."""
    if not isinstance(likelihood, GaussianLikelihood):
        return ""
    left = math.sqrt(float(likelihood.error(likelihood.predict(outputs), targets).mean()))
    std = math.sqrt(float(likelihood.variance(outputs).mean()))
    if 1 / NOISE_RATIO < left / std < NOISE_RATIO:
        return ""
    fix = "set likelihood.noise=learned and leave likelihood.std out" if likelihood.noise == "fixed" else "train longer"
    return f"the noise std is {std:.3g} where the network's errors are {left:.3g}; {fix}"


def _few_steps(course: Course | None) -> str:
    """Return a cause if training had too few steps to converge."""
    if course is None or course.steps >= FEW_STEPS:
        return ""
    return f"{course.steps:,} steps are too few for weights and priors to settle; set training.epochs=auto"


def _unrelated(likelihood: Likelihood, inputs: Inputs, targets: Tensor) -> str:
    """Return a cause if nearest neighbours share their targets no more often than by chance: shuffled or shifted rows.

    Only coded targets are looked at, and none that have axes.
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or targets.ndim > 1:
        return ""
    judged = likelihood.judged(targets)
    inputs, answers = inputs[judged], targets[judged].double()
    if len(inputs) < 10:
        return ""
    flat = inputs.reshape(len(inputs), -1).double()
    apart = torch.cdist(flat, flat)
    near = apart.fill_diagonal_(math.inf).argmin(1)
    if isinstance(likelihood, CategoricalLikelihood | BernoulliLikelihood):
        same = (answers == answers[near]).double().mean()
        expected = torch.stack([(answers == value).double().mean().square() for value in answers.unique()]).sum()
        if float((1 - expected) * answers.numel()) < RARE:
            return ""  # nearly all are alike: neighbours agree anyway
        spread = (expected * (1 - expected) / answers.numel()).sqrt()
        related = bool(same > expected + STDERRS * spread)
    else:
        centred = answers - answers.mean()
        agreement = (centred * centred[near]).mean() / centred.square().mean().clamp_min(1e-300)
        related = bool(agreement > STDERRS / math.sqrt(len(answers)))
    if related:
        return ""
    return (
        f"the {likelihood.described} do not follow the inputs (nearest neighbours agree no more than chance): are they "
        "shuffled or a row off, or is there nothing to learn?"
    )


def _why_expensive(ledger: Ledger) -> str:
    """Return the cause if no other was found: too few examples, too many weights, or poor predictions."""
    if ledger.examples < ledger.weights:
        return (
            f"{ledger.examples:,} examples are too few to pay for {ledger.weights:,} weights; take a smaller network, or more "
            "examples"
        )
    if ledger.net_weight_bits > 0.5 * ledger.net_bits:
        return (
            f"its {ledger.weights:,} weights cost {ledger.net_weight_bits:,.0f} bits, more than they save; take a smaller "
            "network, or more examples"
        )
    return "the network predicts badly, and neither its inputs, noise nor steps show why; try another network or learning rate"
