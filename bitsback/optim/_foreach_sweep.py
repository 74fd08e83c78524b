"""The pass over the weights of a step by torch's multi-tensor operators, for accelerators on which no kernel of ours runs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitsback.model import Weight
from bitsback.model.pieces import as_laid, as_row
from bitsback.optim._fused import is_fused
from bitsback.optim._sweep import Sweep, UpdateRule, aligned
from bitsback.posteriors import GaussianPosterior

__all__ = ["ForeachSweep"]


class ForeachSweep(Sweep):
    """Pass over the weights of one step that launches a few operators for all tensors together, not a few for each.

    Weights that need more than that (points, coarse ones, priors over whole tensors, noise on outputs) go one by one.
    """

    def move(self, weights: Sequence[Weight], rule: UpdateRule) -> None:
        """Compute gradients, move and draw, as the base class.

        Args:
            weights: weights to move.
            rule: makes the update of each.
        """
        together = [weight for weight in weights if self._is_plain(weight)]
        inside = {weight.index for weight in together}
        super().move([weight for weight in weights if weight.index not in inside], rule)
        if not together:
            return
        for weight in together:
            aligned(weight)
        w, m, log_std = (list(several) for several in zip(*(weight.gaussian_tensors() for weight in together), strict=True))
        gm, gl = self._gradients_of(together, w, m, log_std)
        rule.move_all(together, m, log_std, gm, gl)
        self._draw(together, w, m, log_std)

    def _is_plain(self, weight: Weight) -> bool:
        return (
            weight.is_gaussian
            and weight.known.dtype == weight.posterior.mean.dtype
            and not weight.noise_on_outputs
            and weight.index not in self.kl_weights
            and weight.index not in self._spreads
            and is_fused(weight.known)
            and (weight.index in self.cost or weight.prior.is_elementwise)
        )

    def _gradients_of(
        self, weights: Sequence[Weight], w: list[Tensor], m: list[Tensor], log_std: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradients by means and log stds, new tensors."""
        given = [self._data_gradient(weight.gradient, mean) for weight, mean in zip(weights, m, strict=True)]
        g = [torch.zeros_like(mean) if one is None else one for one, mean in zip(given, m, strict=True)]
        gl = list(torch._foreach_mul(g, torch._foreach_sub(w, m)))
        gm = [torch.empty(0)] * len(weights)
        closed = [place for place, weight in enumerate(weights) if weight.index in self.cost]
        if closed:
            pulls = [self.k * self.cost.precision_of(weights[place]) for place in closed]
            centres = [self.cost.priors[id(weights[place].prior)].centre for place in closed]
            pulled = torch._foreach_mul(torch._foreach_sub([m[place] for place in closed], centres), pulls)
            torch._foreach_add_(pulled, [g[place] for place in closed])
            wide = torch._foreach_exp(torch._foreach_mul([log_std[place] for place in closed], 2.0))
            torch._foreach_mul_(wide, pulls)
            torch._foreach_sub_(wide, self.k)
            torch._foreach_add_([gl[place] for place in closed], list(wide))
            for place, gradient in zip(closed, pulled, strict=True):
                gm[place] = gradient
        for place in set(range(len(weights))) - set(closed):
            by_mean, by_log_std = weights[place].prior.kl_gradient(m[place], log_std[place], w[place], self.k)
            gm[place] = by_mean.mul_(self.k).add_(g[place])
            gl[place].add_(by_log_std, alpha=self.k)
        pending = [(place, weight.posterior) for place, weight in enumerate(weights)]
        for place, q in pending:
            assert isinstance(q, GaussianPosterior)
            if q.log_std.grad is not None:
                gl[place].add_(as_laid(q.log_std.grad, m[place]))
        return gm, gl

    def _draw(self, weights: Sequence[Weight], w: list[Tensor], m: list[Tensor], log_std: list[Tensor]) -> None:
        """Write the next draws, and take the sums that the cost needs."""
        stds = torch._foreach_exp(log_std)
        flat = [as_row(torch.empty_like(mean)) for mean in m]
        noise = [self._noise(weight, into, 0) for weight, into in zip(weights, flat, strict=True)]
        shaped = [one.as_strided(mean.shape, mean.stride(), one.storage_offset()) for one, mean in zip(noise, m, strict=True)]
        torch._foreach_copy_(w, torch._foreach_addcmul(m, list(stds), shaped))
        closed = [place for place, weight in enumerate(weights) if weight.index in self.cost]
        sums: dict[int, list[Tensor]] = {}
        if closed:
            centres = [self.cost.priors[id(weights[place].prior)].centre for place in closed]
            distances = torch._foreach_sub([m[place] for place in closed], centres)
            for place, std, distance in zip(closed, [stds[place] for place in closed], distances, strict=True):
                sums[place] = [std.square().sum(), distance.square_().sum()]
        for place, weight in enumerate(weights):
            self.wrote(weight, sums.get(place, []))
