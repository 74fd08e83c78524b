"""Natural gradients for Gaussian posteriors: the improved variational online Newton method.

Shen et al. 2024, "Variational learning is effective for large deep networks" (IVON, algorithm 1), after Khan et al. 2018, "Fast
and scalable Bayesian deep learning by weight-perturbation in Adam" (VOGN), with the correction of Lin, Schmidt & Khan 2020,
"Handling the positive-definite constraint in the Bayesian learning rule". With F the description length in nats,

    m <- m - lr s^2 dF/dm,    1 / s^2 <- (1 + r G + (r G)^2 / 2) / s^2,    G = dF / dlog s.

G = s^2 E_q[d^2(-log p(D, w)) / dw^2] - 1 is the relative difference between the expected Hessian and the precision 1 / s^2, and
equals the gradient by log s. For a drawn weight w = m + s e the Hessian of the data cost is estimated by g e / s, as in IVON;
with local reparameterisation the estimate is less noisy. The prior adds its own Hessian.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bitsback import kernels
from bitsback.errors import LayerError
from bitsback.model import Weight
from bitsback.model.pieces import rows
from bitsback.optim._adam import Adam
from bitsback.optim._fused import in_double, rates
from bitsback.optim._sweep import Move

__all__ = ["IVON"]

MOST_CHANGE = 1.0
"""Bound on |r G| in a step, because the Hessian estimate of one batch is unbounded: no std falls below 0.63 of its value."""


class IVON(Adam):
    """Natural gradients for the Gaussian posteriors of a model, and Adam for its other parameters.

    In a process group, all processes make it and call ``step()`` together: see :class:`bitsback.optim.PosteriorOptimizer`.

    Args:
        model, examples: as in :class:`bitsback.optim.Adam`.
        lr: step size of the means; 1 is a full Newton step, which reaches the minimum of a quadratic.
        log_std_lr: r, the share of the way that the precision moves to the current Hessian estimate.
        betas: beta1 averages the gradients of the means; Adam uses both for the other parameters.
        rest_lr: learning rate of Adam for parameters without a posterior.
        most_stds: largest step of a mean, in stds of its posterior.
        options: further options of :class:`bitsback.optim.PosteriorOptimizer`.

    Raises:
        LayerError: when the model has no Gaussian posterior, and as for :class:`bitsback.optim.Adam`.

    >>> import bitsback
    >>> from torch import nn
    >>> model = bitsback.bayesianize(nn.Linear(1, 1, bias=False), {"kind": "gaussian", "learn": "none"}, posterior={"std": 0.1})
    >>> optimizer = IVON(model, examples=10)
    >>> for _ in range(300):
    ...     (model(torch.ones(1, 1)) - 1).square().sum().backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> round(model.weights[0].posterior.std().item(), 1)  # 1 / sqrt(10 x 2 + 1 / 0.3^2) = 0.18
    0.2
    """

    rule = kernels.IVON

    def __init__(
        self,
        model: Any,
        lr: float = 0.3,
        *,
        examples: int,
        log_std_lr: float = 0.03,
        betas: tuple[float, float] = (0.9, 0.999),
        rest_lr: float = 0.01,
        most_stds: float = 10.0,
        **options: Any,
    ) -> None:
        self.rest_lr, self.most_stds = rest_lr, most_stds
        super().__init__(model, lr, examples=examples, log_std_lr=log_std_lr, betas=betas, **options)
        if not self._roles("log_std"):
            raise LayerError("IVON moves Gaussian posteriors, and there is none; take Adam, or posterior.kind=gaussian")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; parameters without a posterior get ``rest_lr`` unless the group has an ``lr``."""
        before = len(getattr(self, "param_groups", ()))
        super().add_param_group(param_group)
        if "role" not in param_group and "lr" not in param_group:
            for group in self.param_groups[before:]:
                if group["role"] == "plain":
                    group["lr"] = self.rest_lr

    def averages_of(self, weight: Weight) -> list[Tensor]:
        """Return the running averages of a weight, in the memory layout of its mean."""
        if not weight.is_gaussian:
            return super().averages_of(weight)
        return self._averages(weight.known, weight.posterior.mean, ["momentum"])

    def numbers_of(self, group: dict[str, Any]) -> list[float]:
        """Return learning rate, beta1, beta2, eps and the largest step of a parameter group."""
        return [*rates(group), self.most_stds]

    def move_all(
        self, weights: Sequence[Weight], means: list[Tensor], log_stds: list[Tensor], gm: list[Tensor], gl: list[Tensor]
    ) -> None:
        """Update whole weights by the gradients of their means and log stds, as the base class.

        Args:
            weights: Gaussian weights.
            means: their means.
            log_stds: their log stds.
            gm: gradients by the means.
            gl: gradients by the log stds.
        """
        for weight, *several in zip(weights, means, log_stds, gm, gl, strict=True):
            move = self.mover(weight)
            for number, (m, log_std, by_mean, by_log_std) in enumerate(zip(*map(rows, several), strict=True)):
                move(number, m, log_std, by_mean, by_log_std, 0.0)

    def mover(self, weight: Weight) -> Move:
        """Return the function that applies this step's update to each piece of a weight."""
        own, wide = self.settings_of(weight)
        if wide is None:
            return super().mover(weight)
        averages = self._scratch.rows.of((weight.index, "momentum"), self.averages_of(weight))
        memory = own["betas"][0]
        to_nats = self.examples * self.nats_per_unit
        rate = float(own["lr"]) * to_nats / (1 - memory ** in_double(self.count_of(weight.known).add_(1)))
        change = float(wide["lr"]) * to_nats

        def move(number: int, m: Tensor, log_std: Tensor | None, gm: Tensor, gl: Tensor | None, pull: float) -> None:
            assert log_std is not None
            assert gl is not None
            (average,) = averages[number]
            average.lerp_(torch.add(gm, m, alpha=pull), 1 - memory)
            std = torch.exp(log_std)
            m.addcmul_((average * std).mul_(rate).clamp_(-self.most_stds, self.most_stds), std, value=-1)
            gl.mul_(change).clamp_(-MOST_CHANGE, MOST_CHANGE)
            # 1 + x + x^2 / 2 is positive for every x, so the new precision stays positive (Lin, Schmidt & Khan 2020).
            log_std.sub_(gl.addcmul_(gl, gl, value=0.5).log1p_(), alpha=0.5)

        return move
