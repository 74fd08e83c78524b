"""Natural gradients for Gaussian posteriors: the improved variational online Newton method.

Shen et al. 2024, "Variational learning is effective for large deep networks" (IVON, algorithm 1), after Khan et al. 2018, "Fast
and scalable Bayesian deep learning by weight-perturbation in Adam" (VOGN), with the correction of Lin, Schmidt & Khan 2020,
"Handling the positive-definite constraint in the Bayesian learning rule". With F the description length in nats,

    m <- m - lr s^2 dF/dm,    1 / s^2 <- (1 + r G + (r G)^2 / 2) / s^2,    G = dF / dlog s.

G = s^2 E_q[d^2(-log p(D, w)) / dw^2] - 1 says how far the precision is from the expected Hessian, in its own units, and it is
what the gradient of log s is: for a drawn weight w = m + s e the Hessian is estimated by g e / s, as IVON does; where outputs
are drawn, with less noise; and every prior adds its own part.
"""

from typing import Any

import torch
from torch import Tensor

from bitsback.errors import LayerError
from bitsback.model import Weight
from bitsback.optim._adam import Adam
from bitsback.optim._sweep import Move

__all__ = ["IVON"]

MOST_CHANGE = 1.0
"""Largest r G in a step: no std more than halves, for the Hessian of one batch may be anything."""


class IVON(Adam):
    """Natural gradients for the Gaussian posteriors of a model, and Adam for its other parameters.

    Args:
        model, examples: as :class:`bitsback.optim.Adam` has them.
        lr: step of the means; 1 jumps to the minimum of a quadratic.
        log_std_lr: r, the share of the way that a log std goes to the latest Hessian.
        betas: the first averages the gradients of the means, as in Adam; Adam takes both.
        rest_lr: of Adam.
        most_stds: largest step of a mean, in stds of its posterior.
        options: further ones of :class:`bitsback.optim.PosteriorOptimizer`.

    Raises:
        LayerError: when there is no Gaussian posterior, and as for every optimiser here.

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
        """Add parameters; those without a posterior go at Adam's rate."""
        before = len(getattr(self, "param_groups", ()))
        super().add_param_group(param_group)
        if "role" not in param_group and "lr" not in param_group:
            for group in self.param_groups[before:]:
                if group["role"] == "plain":
                    group["lr"] = self.rest_lr

    def _mover(self, weight: Weight) -> Move:
        own, wide = self._settings(weight)
        if wide is None:
            return super()._mover(weight)
        state = self.state[weight.known]
        mean = weight.posterior.mean
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(mean, requires_grad=False)
        elif state["momentum"].stride() != mean.stride():
            state["momentum"] = torch.empty_like(mean, requires_grad=False).copy_(state["momentum"])
        averages = self._scratch.rows.of((weight.index, "momentum"), [state["momentum"]])
        memory = own["betas"][0]
        to_nats = self.examples * self.nats_per_unit
        rate = float(own["lr"]) * to_nats / (1 - memory ** float(self._count_step(weight.known)))
        change = float(wide["lr"]) * to_nats

        def move(number: int, m: Tensor, log_std: Tensor | None, gm: Tensor, gl: Tensor | None, pull: float) -> None:
            assert log_std is not None
            assert gl is not None
            (average,) = averages[number]
            average.lerp_(torch.add(gm, m, alpha=pull), 1 - memory)
            std = torch.exp(log_std)
            m.addcmul_((average * std).mul_(rate).clamp_(-self.most_stds, self.most_stds), std, value=-1)
            gl.mul_(change).clamp_(-MOST_CHANGE, MOST_CHANGE)
            log_std.sub_(gl.addcmul_(gl, gl, value=0.5).log1p_(), alpha=0.5)

        return move
