"""Draws of all weights in one launch, on devices where the kernels of :mod:`bitsback.kernels` run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitsback import kernels
from bitsback.kernels import Batch, Clock, Row, Word
from bitsback.model.noise import as_key
from bitsback.model.pieces import are_alike, readable
from bitsback.model.weight import State, Weight
from bitsback.posteriors import GaussianPosterior

if TYPE_CHECKING:
    from bitsback.model._values import Values

__all__ = ["Drawer", "clock_for", "finish_written", "takes"]


def clock_for(model: "Values", weights: Sequence[Weight]) -> Clock | None:
    """Return seed and number on the device of the first weight if kernels make the model's noise there, else None.

    Args:
        model: Bayesian model.
        weights: some of its weights.

    Returns:
        The clock of their device, or None.
    """
    device = weights[0].known.device if weights else torch.device("cpu")
    clock = model.noise_source.clock(device)
    return clock if clock is not None and kernels.has_triton(device.type) else None


def takes(weight: Weight, clock: Clock) -> bool:
    """Return whether the kernels can move and draw a weight: a whole Gaussian in float32 on the device of the clock.

    Args:
        weight: weight of a model.
        clock: seed and number on a device where the kernels run.

    Returns:
        Whether they can.
    """
    known, q = weight.known, weight.posterior
    return (
        isinstance(q, GaussianPosterior)
        and weight.shard is None
        and known.dtype == q.mean.dtype == torch.float32
        and known.device == clock.tensor.device
        and known.numel() > 0
    )


def finish_written(weights: Sequence[Weight], *, moved: bool) -> None:
    """Finish weights that a launch has written: restore constant rows, and count the writes in torch's version counters.

    Args:
        weights: the weights.
        moved: whether means and log stds were written too.
    """
    written = [t for weight in weights for t in (weight.tensors() if moved else [weight.parameter])]
    torch.autograd.graph.increment_version(written)
    for weight in weights:
        if weight.constant_row is not None:
            weight.parameter.detach()[weight.constant_row] = weight.posterior.mean[weight.constant_row]
        weight.mark()


class Drawer:
    """Launches that write draws into weights, or their means; without an update."""

    def __init__(self) -> None:
        self._batches: dict[tuple[int, ...], tuple[list[int], Batch]] = {}

    def take(self, model: "Values", weights: Sequence[Weight], state: State, before: State) -> list[Weight]:
        """Write the values of a state into the weights that the kernels can draw, and correct pending gradients of log stds.

        Args:
            model: Bayesian model.
            weights: weights to write.
            state: state to write.
            before: state that the weights hold.

        Returns:
            The weights that are left.
        """
        clock = clock_for(model, weights)
        own = [weight for weight in weights if takes(weight, clock) and are_alike(weight.tensors())] if clock else []
        seed = as_key(state.noise_seed)
        carries = any(weight.gradient is not None for weight in own)
        if clock is None or not own or (carries and as_key(before.noise_seed) != seed):  # one launch knows one seed
            return list(weights)
        key = tuple(weight.index for weight in own)
        layout = [t.data_ptr() for weight in own for t in weight.tensors()]
        kept = self._batches.get(key)
        if kept is None or kept[0] != layout:
            rows = [Row(*weight.gaussian_tensors(), weight.index) for weight in own]
            kept = self._batches[key] = layout, Batch(rows, "given")
        alive: list[Tensor] = []  # what the launch reads, until it has been issued
        words = []
        for weight in own:
            gradient, q = weight.gradient, weight.posterior
            assert isinstance(q, GaussianPosterior)
            one: dict[int, int] = {
                Word.FLAGS: model.is_drawn(weight, state) * kernels.DRAWN | model.is_drawn(weight, before) * kernels.WAS_DRAWN
            }
            if gradient is None:
                q.log_std.grad = None  # the network's gradients were cleared without the optimiser's zero_grad()
            else:
                dense = gradient.to_dense() if gradient.is_sparse else gradient
                alive += [readable(dense, q.mean)]
                if q.log_std.grad is None:
                    q.log_std.grad = torch.zeros_like(q.log_std, requires_grad=False)
                q.log_std.grad = readable(q.log_std.grad, q.mean)
                one |= {Word.GRADIENT: alive[-1].data_ptr(), Word.PENDING: q.log_std.grad.data_ptr()}
            words.append(one)
        after = clock.offset(seed, state.number), state.sign
        now = (clock.offset(seed, before.number), before.sign) if carries else (0, 1)
        kept[1].launch(kernels.DRAW, clock.tensor, now, after, words, carries=carries)
        finish_written(own, moved=False)
        inside = set(key)
        return [weight for weight in weights if weight.index not in inside]

    def prepare_capture(self, launches: int) -> None:
        """Allocate what the launches of the next capture read.

        Args:
            launches: largest number of launches over the same weights.
        """
        for _, batch in self._batches.values():
            batch.table.prepare(launches)

    def finish_capture(self) -> None:
        """Write what the launches of the finished capture read."""
        for _, batch in self._batches.values():
            batch.table.finish()

    def __deepcopy__(self, memo: object) -> "Drawer":
        return Drawer()

    def __getstate__(self) -> dict[str, object]:
        return vars(Drawer())
