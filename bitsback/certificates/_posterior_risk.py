"""The posterior's risk, measured: every example is judged by a weight vector of its own."""

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from bitsback.data import Examples
from bitsback.errors import CertificateError
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel, Weight
from bitsback.model.accounting import SHOWN_AFTER_SECONDS, seeded
from bitsback.model.draws import outputs_under
from bitsback.model.modes import evaluating

__all__ = ["mean_loss_of_draws"]

NUMBERS_AT_ONCE = 2_000_000
MOST_AT_ONCE = 64


@torch.no_grad()
def mean_loss_of_draws(
    model: BayesianModel, likelihood: Likelihood, examples: Examples, *, passes: int = 1, seed: int = 0, progress: bool = False
) -> float:
    """Mean loss over ``passes`` times n pairs of an example and a whole-network draw made for it alone.

    The draws are independent, so the losses are independent numbers in [0, 1] whose expectations average to the posterior's
    mean loss over the n examples: what :func:`bitsback.certificates.draws_bound` asks for, with passes * n draws. A draw that a
    batch shares would be judged more often, but counts once, however large the batch. On the same machine time, fresh draws for
    single examples give a far tighter bound.

    Raises:
        CertificateError: when the network cannot be run with a weight vector for each example.
    """
    model.honour_edits(everywhere=True)
    device = model.device
    examples = examples.to(device, model.dtype)
    size = max(1, min(MOST_AT_ONCE, NUMBERS_AT_ONCE // max(1, sum(q.numel for q in model.posteriors()))))

    def judge(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        found: Tensor = outputs_under(model, weights, inputs[None])[0]
        return found

    total = 0.0
    shown = tqdm(total=passes * len(examples), desc="draws", disable=not progress, leave=False, delay=SHOWN_AFTER_SECONDS)
    with evaluating(model.network), seeded(seed, device), shown as bar:
        for _ in range(passes):
            for inputs, targets in _parts(examples, size):
                weights = {weight.name: _draw(weight, len(inputs)) for weight in model.weights}
                try:
                    outputs = torch.vmap(judge)(weights, inputs)
                except (RuntimeError, ValueError, NotImplementedError) as error:
                    reason = str(error).splitlines()[0]
                    raise CertificateError(
                        f"this network cannot be run with a weight vector for each example ({reason}); use layers that "
                        "torch.vmap knows, or pack the run and certify the file"
                    ) from error
                total += float(likelihood.error(likelihood.predict(outputs), targets).double().sum())
                bar.update(len(inputs))
    return total / (passes * len(examples))


def _draw(weight: Weight, count: int) -> Tensor:
    """``count`` independent draws of one weight tensor, along a new first axis; the padding row of an embedding is constant."""
    q, std = weight.posterior, weight.posterior.std()
    if std is None:
        raise CertificateError("a point has no draws; pack the run and certify the file")
    drawn = q.mean + std * torch.randn(count, *std.shape, dtype=std.dtype, device=std.device)
    if weight.constant_row is not None:
        drawn[:, weight.constant_row] = q.mean[weight.constant_row]
    return drawn


def _parts(examples: Examples, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(examples), size):
        yield examples.inputs[start : start + size], examples.targets[start : start + size]
