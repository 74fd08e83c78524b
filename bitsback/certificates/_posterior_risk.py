"""Measurement of the posterior's risk, with a weight draw of its own for every example."""

import torch
from torch import Tensor
from tqdm import tqdm

from bitsback.data import Examples
from bitsback.errors import CertificateError
from bitsback.inputs import Inputs, each
from bitsback.likelihoods import Likelihood
from bitsback.likelihoods.base import mean_of_judged
from bitsback.model import BayesianModel, Weight
from bitsback.model.draws import SHOWN_AFTER_SECONDS, outputs_under
from bitsback.model.modes import evaluating
from bitsback.torch_state import seeded

__all__ = ["mean_loss_of_draws"]

NUMBERS_AT_ONCE = 2_000_000
"""Drawn weights held at once, all examples of a batch together; bounds the memory."""
MOST_AT_ONCE = 64
"""Most examples per batch."""


@torch.no_grad()
def mean_loss_of_draws(
    model: BayesianModel, likelihood: Likelihood, examples: Examples, *, passes: int = 1, seed: int = 0, progress: bool = False
) -> float:
    """Return the mean loss over ``passes`` times n pairs of an example and a whole-network draw made for it alone.

    The draws are independent, so the losses are independent numbers in [0, 1] whose expectations average to the posterior's
    mean loss over the n examples. This is the condition of :func:`bitsback.certificates.draws_bound`, with passes * n draws. A
    draw shared by a batch would count once, however large the batch; for the same computing time, a draw for every example
    gives a far tighter bound.

    Args:
        model: the model.
        likelihood: likelihood whose loss lies between 0 and 1.
        examples: the n examples; those of which nothing is coded are not counted.
        passes: number of passes over the examples, at least 1.
        seed: seed of the draws.
        progress: whether to show a progress bar.

    Returns:
        The mean loss, from 0 to 1.

    Raises:
        CertificateError: when the network cannot be run with a weight vector for each example.
    """
    model.honour_edits(everywhere=True)
    device = model.device
    examples = examples.to(device, model.dtype)
    size = max(1, min(MOST_AT_ONCE, NUMBERS_AT_ONCE // max(1, sum(q.numel for q in model.posteriors()))))

    def judge(weights: dict[str, Tensor], inputs: Inputs) -> Tensor:
        return outputs_under(model, weights, each(inputs, lambda tensor: tensor[None]))[0]

    total = 0.0
    shown = tqdm(total=passes * len(examples), desc="draws", disable=not progress, leave=False, delay=SHOWN_AFTER_SECONDS)
    with evaluating(model.network), seeded(seed, device), shown as bar:
        for _ in range(passes):
            for inputs, targets in examples.batches(examples.ranges(size)):
                weights = {weight.name: _draw(weight, len(targets)) for weight in model.weights}
                try:
                    outputs = torch.vmap(judge)(weights, inputs)
                except (RuntimeError, ValueError, NotImplementedError) as error:
                    reason = str(error).splitlines()[0]
                    raise CertificateError(
                        f"this network cannot be run with a weight vector for each example ({reason}); use layers that "
                        "torch.vmap knows, or pack the run and certify the file"
                    ) from error
                total += float(likelihood.error(likelihood.predict(outputs), targets).double().sum())
                bar.update(len(targets))
    return mean_of_judged(total, passes * int(likelihood.judged(examples.targets).sum()))


def _draw(weight: Weight, count: int) -> Tensor:
    """Return ``count`` independent draws of one weight tensor, (count, ...); an embedding's padding row is constant."""
    q, std = weight.posterior, weight.posterior.std()
    if std is None:
        raise CertificateError("a point has no draws; pack the run and certify the file")
    drawn = q.mean + std * torch.randn(count, *std.shape, dtype=std.dtype, device=std.device)
    if weight.constant_row is not None:
        drawn[:, weight.constant_row] = q.mean[weight.constant_row]
    return drawn
