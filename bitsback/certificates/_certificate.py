"""A certificate: an upper bound on the probability of error, with everything that went into it."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bitsback.certificates._posterior_risk import mean_loss_of_draws
from bitsback.certificates.bounds import check_delta, complexity, draws_bound, file_length_bits, pac_bayes_bound
from bitsback.data import Examples
from bitsback.errors import CertificateError
from bitsback.ledger import shown_error
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel, take_ledger
from bitsback.posteriors import PointPosterior
from bitsback.result import Result, text_table

__all__ = ["Certificate", "certify_file", "certify_posterior"]

EXACT_METHODS = ("closed_form", "quadrature", "float32")


@dataclass(frozen=True)
class Certificate(Result):
    """With probability ``confidence`` over examples and draws, the risk on new examples is at most ``bound``.

    For a run this is the risk of a network whose weights are drawn from the posterior anew for every example; for a model file
    it is the risk of the one network in it. kl(R^ || R) <= (kl_bits ln 2 + ln(2 sqrt(n) / delta)) / n, where R^ <= risk_bound.

    Attributes:
        of: ``posterior`` or ``file``.
        risk: mean loss on the n examples, measured from draws; exact for a file.
        n: how many examples the risk is measured on.
        weight_bits: KL(q || p) of the weights, or the length of the file in a prefix-free code.
        hyperparameter_bits: learned numbers that are not weights, each on its grid.
        alternatives: how many certificates this one was chosen among.
        delta, delta_draws: probabilities that the bound and the measurement of the risk fail.
        draws: independent pairs of weights and example behind the risk; None for a file, whose risk needs none.
        test_risk: mean loss on the test examples, which nothing depends on.
        error_name: what a loss is.
        assumed: what is taken to be independent of the n examples.

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
            raise CertificateError(f"--alternatives counts this one too, so it is 1 or more, got {self.alternatives}")
        if self.draws is not None and self.delta_draws is not None:
            check_delta(self.delta_draws, "--delta-draws")
            if self.delta + self.delta_draws >= 1:
                raise CertificateError("--delta and --delta-draws add up to 1 or more: nothing is certified; lower them")

    @property
    def alternatives_bits(self) -> float:
        """What it takes to say which of the alternatives was taken."""
        return math.log2(self.alternatives)

    @property
    def kl_bits(self) -> float:
        """All that was chosen on the same examples, in bits."""
        return self.weight_bits + self.hyperparameter_bits + self.alternatives_bits

    @property
    def complexity(self) -> float:
        """c, in nats per example."""
        return complexity(self.kl_bits, self.n, self.delta)

    @property
    def risk_bound(self) -> float:
        """Upper bound on the mean loss of the posterior on the n examples; each alternative measured has its share of delta."""
        if self.draws is None or self.delta_draws is None:
            return self.risk
        return draws_bound(self.risk, self.draws, self.delta_draws / self.alternatives)

    @property
    def bound(self) -> float:
        """The certificate: kl^-1(risk_bound, c)."""
        return pac_bayes_bound(self.risk_bound, self.kl_bits, self.n, self.delta)

    @property
    def confidence(self) -> float:
        """1 - delta - delta_draws."""
        return 1 - self.delta - (self.delta_draws or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Every ingredient, for JSON."""
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
    examples: Examples,
    *,
    test: Examples | None = None,
    delta: float = 0.025,
    delta_draws: float = 0.01,
    draws: int = 150_000,
    alternatives: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> Certificate:
    """The certificate of a posterior whose prior does not depend on ``examples``.

    Learned numbers are first rounded to their grids in place, as the ledger does: a number on a grid of 2^b levels is a choice
    among 2^b priors, and costs b bits.

    Args:
        model, likelihood, examples: what is certified, and the examples its posterior was fitted to: all of them, no others.
        test: examples whose mean loss is reported for information.
        delta, delta_draws: probabilities of failure, of the bound and of the measurement.
        draws: independent pairs of weights and example, rounded up to whole passes over the examples.
        alternatives: among how many such certificates, this one included, this one was chosen.
        seed: of the draws.

    Raises:
        CertificateError: when no certificate would hold, with the fix.

    >>> import torch
    >>> from bitsback.data.settings import DigitsSettings
    >>> from bitsback.likelihoods import CategoricalLikelihood
    >>> from bitsback.model import bayesianize
    >>> model = bayesianize(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    >>> found = certify_posterior(model, CategoricalLikelihood(10), DigitsSettings().load().train, draws=1)
    >>> found.n, found.draws, found.risk < found.bound <= 1
    (1437, 1437, True)
    """
    if draws < 1:
        raise CertificateError(f"a risk is measured from one draw or more, got {draws}; raise --draws")
    passes = -(-draws // len(examples))
    plan = Certificate("posterior", 0.0, len(examples), 0.0, delta, 0.0, alternatives, delta_draws, passes * len(examples))
    _check_losses(likelihood)
    if any(isinstance(posterior, PointPosterior) for posterior in model.posteriors()):
        raise CertificateError(
            "a point has infinite KL under a prior with a density: no bound holds for it; pack the run "
            "(bitsback pack RUN) and certify the file, whose length is finite"
        )
    few = Examples(examples.inputs[:1], examples.targets[:1], assumed=examples.assumed)
    book = take_ledger(model, likelihood, few, samples=1, seed=seed, priors_are_held=True)
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
    """The certificate of one network that a file of ``length`` bytes describes (Occam's razor; Blumer et al. 1987).

    Its prior gives each file 2^-bits, where bits are the file's bytes after their number in Elias gamma code. A point mass on
    one file has KL = bits ln 2, and its risk needs no draws.

    Args:
        predicted: the network's predictive means for the n examples, (n, ...).
        targets: their targets, (n, ...).
        likelihood: says what a loss is.

    Raises:
        CertificateError: for targets that are no labels.
    """
    _check_losses(likelihood)
    risk = float(likelihood.error(predicted, targets).double().mean())
    bits = float(file_length_bits(length))
    return Certificate("file", risk, len(targets), bits, delta, alternatives=alternatives, test_risk=test_risk, assumed=assumed)


def _check_losses(likelihood: Likelihood) -> None:
    if likelihood.error_name != "error":
        raise CertificateError(
            f"the error of a '{likelihood.kind}' likelihood has no upper limit, and the bounds are for losses from 0 to 1; "
            "certify a run that predicts labels"
        )
