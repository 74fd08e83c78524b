"""Certificates: upper bounds on the probability of error, with all their ingredients."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bitsback.certificates._posterior_risk import mean_loss_of_draws
from bitsback.certificates.bounds import check_delta, complexity, draws_bound, file_length_bits, pac_bayes_bound
from bitsback.data import Examples, source
from bitsback.errors import CertificateError, brief
from bitsback.ledger import shown_error
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel, take_ledger
from bitsback.posteriors import PointPosterior
from bitsback.result import Result, text_table

__all__ = ["Certificate", "certify_file", "certify_posterior"]

EXACT_METHODS = ("closed_form", "quadrature", "float32")
"""Methods of a ledger entry whose net bits are not estimates."""


@dataclass(frozen=True)
class Certificate(Result):
    """Upper bound on the risk, the expected loss on a new example, that holds with probability :attr:`confidence`.

    The probability is over the draw of the examples and of the weights. For a run, the risk is that of a network whose weights
    are drawn from the posterior anew for every example; for a model file, that of the network in the file. The bound is the
    largest R with kl(R^ || R) <= (kl_bits ln 2 + ln(2 sqrt(n) / delta)) / n, where R^ is :attr:`risk_bound`.

    Attributes:
        of: ``posterior`` or ``file``.
        risk: mean loss on the n examples, from 0 to 1, measured from draws; exact for a file.
        n: number of examples that the risk is measured on, those of which something is coded.
        weight_bits: KL(q || p) of the weights in bits, or the length of the file in a prefix-free code, in bits.
        delta: probability that the bound fails.
        hyperparameter_bits: bits of the learned numbers that are not weights, each on its grid.
        alternatives: number of certificates among which this one was chosen, itself included.
        delta_draws: probability that the measurement of the risk from draws fails; None for a file.
        draws: number of independent pairs of weights and example behind the risk; None for a file.
        test_risk: mean loss on the test examples, for information only; None if not measured.
        assumed: descriptions of what is assumed to be independent of the n examples.

    Raises:
        CertificateError: for a delta outside (0, 1), deltas that add up to 1 or more, or alternatives below 1.

    >>> certificate = Certificate("file", risk=0.01, n=60_000, weight_bits=5000.0, delta=0.025)
    >>> round(certificate.bound, 4), certificate.confidence
    (0.0864, 0.975)
    """

    of: str
    risk: float
    n: int
    weight_bits: float
    delta: float
    hyperparameter_bits: float = 0.0
    alternatives: int = 1
    delta_draws: float | None = None
    draws: int | None = None
    test_risk: float | None = None
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_delta(self.delta)
        if self.alternatives < 1:
            raise CertificateError(f"--alternatives counts this certificate too, so it is 1 or more, got {self.alternatives}")
        if self.draws is not None and self.delta_draws is not None:
            check_delta(self.delta_draws, "--delta-draws")
            if self.delta + self.delta_draws >= 1:
                raise CertificateError("--delta and --delta-draws add up to 1 or more: nothing is certified; lower them")

    @property
    def alternatives_bits(self) -> float:
        """Return log2 of the number of alternatives, the bits of the choice among them."""
        return math.log2(self.alternatives)

    @property
    def kl_bits(self) -> float:
        """Return the bits of everything that was chosen on the same examples: weights, hyper-parameters and alternative."""
        return self.weight_bits + self.hyperparameter_bits + self.alternatives_bits

    @property
    def complexity(self) -> float:
        """Return the complexity term c of the bound, in nats per example."""
        return complexity(self.kl_bits, self.n, self.delta)

    @property
    def risk_bound(self) -> float:
        """Return an upper bound on the posterior's mean loss on the n examples; alternatives share ``delta_draws``."""
        if self.draws is None or self.delta_draws is None:
            return self.risk
        return draws_bound(self.risk, self.draws, self.delta_draws / self.alternatives)

    @property
    def bound(self) -> float:
        """Return the certified upper bound on the risk, kl^-1(risk_bound, c)."""
        return pac_bayes_bound(self.risk_bound, self.kl_bits, self.n, self.delta)

    @property
    def confidence(self) -> float:
        """Return the probability with which the bound holds, 1 - delta - delta_draws."""
        return 1 - self.delta - (self.delta_draws or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the bound and all its ingredients as plain values for JSON."""
        derived = ("bound", "confidence", "risk_bound", "kl_bits", "alternatives_bits", "complexity")
        return {**{name: getattr(self, name) for name in derived}, **vars(self), "assumed": list(self.assumed)}

    def __str__(self) -> str:
        drawn = self.draws is not None
        rows = [
            ("examples n", f"{self.n:,}", "that the risk is measured on"),
            ("risk on them", f"{self.risk:.5f}", f"from {self.draws:,} draws" if drawn else "exact"),
            ("at most", f"{self.risk_bound:.5f}", f"but for delta-draws {self.delta_draws:g}" if drawn else "exact"),
            ("weight bits", f"{self.weight_bits:,.1f}", "KL(q || p)" if drawn else "length of the file, prefix-free"),
            ("hyper-parameter bits", f"{self.hyperparameter_bits:,.1f}", "learned numbers on their grids"),
            ("alternatives bits", f"{self.alternatives_bits:,.1f}", f"log2 of {self.alternatives:,}"),
            ("KL bits", f"{self.kl_bits:,.1f}", "the three together"),
            ("complexity", f"{self.complexity:.6f}", f"(KL + ln(2 sqrt(n) / {self.delta:g})) / n, in nats"),
            ("bound", f"{self.bound:.5f}", "largest R with kl(risk || R) <= complexity"),
        ]
        if self.test_risk is not None:
            rows.append(("test error", shown_error("error", self.test_risk), "for information: nothing depends on it"))
        subject = "weights drawn from the posterior for every example" if drawn else "the network in this file"
        assumed = [f"Taken to be independent of the examples: {'; '.join(self.assumed)}"] if self.assumed else []
        return "\n".join([
            text_table(["", "value", ""], rows),
            *assumed,
            f"With probability {self.confidence:g}, {subject} misjudge{'' if drawn else 's'} a new example at most "
            f"{100 * self.bound:.2f} % of the time.",
        ])  # fmt: skip


def certify_posterior(
    model: BayesianModel,
    likelihood: Likelihood,
    examples: Any,
    *,
    test: Any = None,
    delta: float = 0.025,
    delta_draws: float = 0.01,
    draws: int = 150_000,
    alternatives: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> Certificate:
    """Return the certificate of a posterior whose prior does not depend on ``examples``.

    Learned numbers are first rounded to their grids in place, as for the ledger: a number on a grid of 2^b levels is a choice
    among 2^b priors, and costs b bits.

    Args:
        model: the model, with Gaussian posteriors.
        likelihood: likelihood of labels, whose loss is 0 or 1.
        examples: the examples that the posterior was fitted to: all of them, and no others; in anything that
            :func:`bitsback.data.source` takes.
        test: examples whose mean loss is reported for information.
        delta: probability that the bound fails.
        delta_draws: probability that the measurement of the risk from draws fails.
        draws: number of independent pairs of weights and example, rounded up to whole passes over the examples.
        alternatives: number of certificates among which this one was chosen, itself included.
        seed: seed of the draws.
        progress: whether to show a progress bar.

    Returns:
        The certificate, with ``of`` equal to ``posterior``.

    Raises:
        CertificateError: when no certificate would hold; the message says what to change.

    >>> import torch
    >>> from bitsback.data.settings import DigitsSettings
    >>> from bitsback.likelihoods import CategoricalLikelihood
    >>> from bitsback.model import bayesianize
    >>> model = bayesianize(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    >>> found = certify_posterior(model, CategoricalLikelihood(10), DigitsSettings().load().train, draws=1)
    >>> found.n, found.draws, found.risk < found.bound <= 1
    (1437, 1437, True)
    """
    examples, test = source(examples), None if test is None else source(test, name="test")
    if draws < 1:
        raise CertificateError(f"a risk is measured from one draw or more, got {draws}; raise --draws")
    _check_losses(likelihood)
    for split in (examples, test):
        if split is not None:
            likelihood.check_split(split.targets, split.name)
    judged = likelihood.judged(examples.targets)
    n = int(judged.sum())  # an example of which nothing is coded is none of the risk's
    passes = -(-draws // n)
    # checks the arguments before the long measurement
    plan = Certificate("posterior", 0.0, n, 0.0, delta, 0.0, alternatives, delta_draws, passes * n)
    if any(isinstance(posterior, PointPosterior) for posterior in model.posteriors()):
        raise CertificateError(
            "a point estimate has infinite KL under a prior with a density, so no bound holds; pack the run "
            "(bitsback pack RUN) and certify the file, whose length is finite"
        )
    # only the weights' bits are used: one example keeps the ledger's data bits cheap
    few = _first(examples, int(judged.int().argmax()))
    try:
        book = take_ledger(model, likelihood, few, samples=1, seed=seed, priors_are_held=True)
    except (RuntimeError, ValueError, IndexError) as error:
        raise CertificateError(
            f"this network cannot be run on one example by itself ({brief(error)}), and the bound draws weights for each; pack "
            "the run and certify the file"
        ) from error
    for entry in book.entries:
        if entry.method not in EXACT_METHODS:
            raise CertificateError(
                f"the KL of '{entry.name}' is only known by {entry.method.replace('_', ' ')}, and an estimate is no bound; use "
                "a prior whose KL is known in closed form or by quadrature"
            )
    return Certificate(
        of=plan.of,
        risk=mean_loss_of_draws(model, likelihood, examples, passes=passes, seed=seed, progress=progress),
        n=plan.n,
        weight_bits=book.net_weight_bits,
        delta=delta,
        hyperparameter_bits=book.hyperparameter_bits,
        alternatives=alternatives,
        delta_draws=delta_draws,
        draws=plan.draws,
        test_risk=None if test is None else mean_loss_of_draws(model, likelihood, test, seed=seed + 1, progress=progress),
        assumed=book.not_charged,
    )


def certify_file(
    predicted: Tensor,
    targets: Tensor,
    likelihood: Likelihood,
    length: int,
    *,
    delta: float = 0.025,
    alternatives: int = 1,
    test_risk: float | None = None,
    assumed: tuple[str, ...] = (),
) -> Certificate:
    """Return the certificate of the network in a file of ``length`` bytes (Occam's razor; Blumer et al. 1987).

    The prior gives every file the probability 2^-bits, where bits is the length of a prefix-free code: the number of bytes in
    Elias gamma code, then the bytes. A point mass on one file has KL = bits ln 2, and its risk needs no draws.

    Args:
        predicted: the network's predictive means for the n examples, (n, ...).
        targets: targets of the examples, (n, ...).
        likelihood: likelihood of labels, which computes the loss.
        length: length of the file, in bytes.
        delta: probability that the bound fails.
        alternatives: number of certificates among which this one was chosen, itself included.
        test_risk: mean loss on test examples, reported for information.
        assumed: descriptions of what is assumed to be independent of the n examples.

    Returns:
        The certificate, with ``of`` equal to ``file``.

    Raises:
        CertificateError: for targets that are not labels, and if none of them is coded.
    """
    _check_losses(likelihood)
    n = int(likelihood.judged(targets).sum())
    if not n:
        raise CertificateError("no target is coded, so there is no risk to bound; check the mask of the targets")
    risk = likelihood.mean_error(predicted, targets)
    bits = float(file_length_bits(length))
    return Certificate("file", risk, n, bits, delta, alternatives=alternatives, test_risk=test_risk, assumed=assumed)


def _first(examples: Examples, place: int) -> Examples:
    """Return the example at a place; of an iterable source, all up to it."""
    if examples.has_random_access:
        return examples.subset(torch.tensor([place]))
    return replace(examples, inputs=examples.inputs[: place + 1], targets=examples.targets[: place + 1])


def _check_losses(likelihood: Likelihood) -> None:
    """Raise CertificateError unless the likelihood's loss lies between 0 and 1."""
    if likelihood.error_name != "error":
        raise CertificateError(
            f"the error of a '{likelihood.kind}' likelihood has no upper limit, and the bounds are for losses from 0 to 1; "
            "certify a run that predicts labels"
        )
