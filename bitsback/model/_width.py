"""Width curve: ledgers of a model with wider and narrower posteriors."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from tqdm import tqdm

from bitsback.data import Examples
from bitsback.errors import LedgerError
from bitsback.ledger import Ledger
from bitsback.likelihoods import Likelihood
from bitsback.model.accounting import take_ledger
from bitsback.model.draws import SHOWN_AFTER_SECONDS
from bitsback.model.model import BayesianModel
from bitsback.posteriors import GaussianPosterior

__all__ = ["WIDTH_FACTORS", "widened", "width_curve"]

WIDTH_FACTORS = tuple(2.0**k for k in range(-4, 5))
"""Default factors of the posterior std, 2^-4 to 2^4."""


@contextmanager
def widened(model: BayesianModel, factor: float) -> Iterator[BayesianModel]:
    """Multiply every posterior std by a factor inside the context, and restore it bit for bit afterwards.

    Args:
        model: Bayesian model.
        factor: factor of the stds, above zero.

    Yields:
        The model.

    Raises:
        LedgerError: when the model has no Gaussian posterior (a point has no width), or the factor is not positive.
    """
    wide = [q for q in model.posteriors() if isinstance(q, GaussianPosterior)]
    if not wide:
        raise LedgerError("a point estimate has no width to change; train with posterior.kind=gaussian")
    if not factor > 0:
        raise LedgerError(f"a width factor must be above zero, got {factor:g}")
    model.honour_edits(everywhere=True)
    trained = [q.log_std.detach().clone() for q in wide]
    try:
        for posterior in wide:
            posterior.scale_std(factor)
        yield model
    finally:
        for posterior, log_std in zip(wide, trained, strict=True):
            with torch.no_grad():
                posterior.log_std.copy_(log_std)


def width_curve(
    model: BayesianModel,
    likelihood: Likelihood,
    examples: Examples,
    *,
    factors: Sequence[float] = WIDTH_FACTORS,
    samples: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> dict[float, Ledger]:
    """Compute the ledger with every posterior std multiplied by each factor; the model is restored afterwards.

    Wider posteriors reduce net weight bits and increase data bits; a trained width is at the minimum of the sum. All factors
    use the same noise and the model's grid step, so that factor 1 gives the ledger of :func:`take_ledger`, and each doubling of
    the width adds one refund bit per weight. Below factor 1 the grid step may exceed the stds: gross and refund bits are then
    no code lengths, their difference, the net bits, still is.

    Args:
        model: Bayesian model with a Gaussian posterior.
        likelihood: its likelihood.
        examples: the training examples.
        factors: factors of the stds, each above zero.
        samples: whole-network draws for the data bits of each ledger.
        seed: seed of the draws.
        progress: show a progress bar.

    Returns:
        Ledgers by factor.

    Raises:
        LedgerError: when the model has no Gaussian posterior (a point has no width), or a factor is not positive.
    """
    if not factors or not all(factor > 0 for factor in factors):
        raise LedgerError(f"width factors must be above zero, got {list(factors)}")
    likelihood.fit(examples.targets)
    states = [(module, copy.deepcopy(module.state_dict())) for module in (model, likelihood)]
    grid_step = model.grid_step()
    curve = {}
    try:
        for factor in tqdm(factors, desc="widths", leave=False, disable=not progress, delay=SHOWN_AFTER_SECONDS):
            with widened(model, factor):
                curve[factor] = take_ledger(
                    model, likelihood, examples, samples=samples, grid_step=grid_step, seed=seed, priors_are_held=True
                )
    finally:
        for module, state in states:
            module.load_state_dict(state)
    return curve
