"""Ledgers of a trained posterior under other priors, without retraining."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from tqdm import tqdm

from bitsback.errors import PriorError
from bitsback.kl import Panels, kl
from bitsback.ledger import Entry, Ledger
from bitsback.ledger.entry import Charge
from bitsback.model import BayesianModel, Weight
from bitsback.model.choices import charges_of, priors_of, settings_of
from bitsback.model.draws import SHOWN_AFTER_SECONDS
from bitsback.posteriors import GaussianPosterior
from bitsback.priors import Prior
from bitsback.priors import registry as prior_registry
from bitsback.report._sampled import Sampled, exact, sampled

__all__ = ["recoded"]

FITTED_ON = 500
"""Weights of a tensor to which hyper-parameters are fitted by gradient."""
ITERATIONS = 20
EXACT_WEIGHTS = 1_000
"""Tensor size up to which the ledger's quadrature is used; above, that of training, accurate to about 1e-3."""


def recoded(
    model: BayesianModel, book: Ledger, kinds: Iterable[str] | None = None, *, progress: bool = False
) -> dict[str, Ledger]:
    """Compute the ledger of the same posterior under other priors; the data bits stay the same.

    The hyper-parameters of each prior start from their defaults, are fitted to the weights (in closed form, or by L-BFGS),
    rounded to their grids and charged. A posterior trained under that prior would cost less.

    Args:
        model: with Gaussian posteriors; not changed.
        book: its ledger.
        kinds: of priors; default: every prior without required arguments.
        progress: show a progress bar after two seconds.

    Returns:
        Ledgers by kind of prior.
    """
    books = {}
    kinds = list(prior_registry if kinds is None else kinds)
    for kind in tqdm(kinds, desc="priors", leave=False, disable=not progress, delay=SHOWN_AFTER_SECONDS):
        try:
            others = priors_of([(weight.refs[0], weight.posterior) for weight in model.weights], settings_of(kind))
        except PriorError:  # it has required arguments, such as a run
            continue
        books[kind] = _under(model, others, book)
    return books


def _under(model: BayesianModel, others: list[Prior], book: Ledger) -> Ledger:
    """Return the ledger under other priors, one for each weight tensor; tensors may share a prior."""
    net_bits: dict[str, float] = {}
    charges: list[Charge] = []
    for prior in {id(prior): prior for prior in others}.values():
        weights = [weight for weight, own in zip(model.weights, others, strict=True) if own is prior]
        fitted = exact(prior)
        wide = [weight for weight in weights if isinstance(weight.posterior, GaussianPosterior)]
        _fit(fitted, wide)
        fitted.round_to_grid()
        charges += charges_of(fitted, weights[0].name)
        for weight in wide:
            moments = sampled(weight, fitted)
            panels = Panels.exact() if weight.posterior.numel <= EXACT_WEIGHTS else Panels.fast()
            found = moments.net_bits(fitted, panels=panels)
            net_bits[weight.name] = max(0.0, found)  # the quadrature of training may fall slightly below zero
    entries = [
        Entry.of(e.name, weights=e.weights, net_bits=net_bits[e.name], refund_bits=e.refund_bits, method=e.method)
        if e.name in net_bits
        else e
        for e in book.entries
    ]
    before = {charge.name for charge in model.prior_charges()}
    charges += [charge for charge in book.charges if charge.name not in before]
    return replace(book, entries=tuple(entries), charges=tuple(charges), given="", notes=())


def _fit(prior: Prior, weights: list[Weight]) -> None:
    """Fit the prior's hyper-parameters to these posteriors, in place."""
    if prior.learns_in_closed_form:
        prior.update([_moments(sampled(weight, prior)) for weight in weights])
        return
    learned = [parameter for parameter in prior.parameters() if parameter.requires_grad]
    if not learned:
        return
    samples = [sampled(weight, prior, FITTED_ON) for weight in weights]
    optimizer = torch.optim.LBFGS(learned, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def cost() -> torch.Tensor:
        optimizer.zero_grad()
        parts = [s.scale * kl(GaussianPosterior(s.mean, s.std), prior, panels=Panels.fast()).nats for s in samples]
        total = torch.stack(parts).sum() / sum(s.scale * s.mean.numel() for s in samples)
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(cost)


def _moments(s: Sampled) -> tuple[torch.Tensor, torch.Tensor | None]:
    return s.mean, s.std
