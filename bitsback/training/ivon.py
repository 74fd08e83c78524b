"""Natural gradients for Gaussian posteriors: the improved variational online Newton method.

Shen et al. 2024, "Variational learning is effective for large deep networks" (IVON, algorithm 1), after Khan et al. 2018, "Fast
and scalable Bayesian deep learning by weight-perturbation in Adam" (VOGN), with the correction of Lin, Schmidt & Khan 2020,
"Handling the positive-definite constraint in the Bayesian learning rule". With F the description length in nats,

    m <- m - lr s^2 dF/dm,    1 / s^2 <- (1 + r G + (r G)^2 / 2) / s^2,    G = dF / dlog s.

G = s^2 E_q[d^2(-log p(D, w)) / dw^2] - 1 says how far the precision is from the expected Hessian, in its own units, and it is
what autograd finds: for a drawn weight w = m + s e the Hessian is estimated by g e / s, as IVON does; a layer that draws its
outputs estimates it with less noise; and every prior adds its own part.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Adam

from bitsback.posterior import GaussianPosterior
from bitsback.units import bits_to_nats

MOST_CHANGE = 1.0
"""Largest r G in a step: no std more than halves, for the Hessian of one batch may be anything."""


class IVON(Adam):
    """Natural gradients for Gaussian posteriors, and Adam for every other parameter.

    Args:
        modules: whose parameters are optimised.
        examples: N; the loss is in bits per example.
        lr: step of the means; 1 jumps to the minimum of a quadratic.
        log_std_lr: r, the share of the way that a log std goes to the latest Hessian.
        betas: the first averages the gradients of the means, as in Adam; Adam takes both.
        rest_lr: of Adam.
        most_stds: largest step of a mean, in stds of its posterior.

    Raises:
        ValueError: when there is no Gaussian posterior.

    >>> from bitsback.units import nats_to_bits
    >>> q = GaussianPosterior(torch.zeros(1), std=1.0)
    >>> optimizer = IVON([q], examples=1, lr=0.5, log_std_lr=0.1)
    >>> nats_to_bits((q.mean + 1.5 * (2 * q.log_std).exp()).sum()).backward()
    >>> optimizer.step()
    >>> round(q.mean.item(), 4), round(q.std().item(), 4)
    (-0.5, 0.8623)
    """

    def __init__(
        self,
        modules: list[nn.Module],
        examples: int,
        lr: float = 0.3,
        log_std_lr: float = 0.03,
        betas: tuple[float, float] = (0.9, 0.999),
        rest_lr: float = 0.01,
        most_stds: float = 10.0,
    ) -> None:
        found = [m for module in modules for m in module.modules() if isinstance(m, GaussianPosterior)]
        pairs = [q for q in dict.fromkeys(found) if q.mean.requires_grad and q.log_std.requires_grad]
        if not pairs:
            raise ValueError("IVON moves Gaussian posteriors, and there is none; take Adam, or posterior.kind=gaussian")
        natural = {id(p) for q in pairs for p in (q.mean, q.log_std)}
        rest = [p for module in modules for p in module.parameters() if p.requires_grad and id(p) not in natural]
        groups: list[dict[str, Any]] = [
            {"params": [q.mean for q in pairs], "lr": lr},
            {"params": [q.log_std for q in pairs], "lr": log_std_lr},
            {"params": rest, "lr": rest_lr},
        ]
        super().__init__([group for group in groups if group["params"]], lr=rest_lr, betas=betas)
        self.to_nats = examples * bits_to_nats(1.0)  # from the gradient of the loss to that of the description length
        self.most_stds = most_stds

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; parameters whose gradient is None stay."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        means, log_stds = self.param_groups[:2]
        moved = [(m, s) for m, s in zip(means["params"], log_stds["params"], strict=True) if None not in (m.grad, s.grad)]
        if moved:
            gradients = [(cast(Tensor, m.grad), cast(Tensor, s.grad)) for m, s in moved]
            self._move_means([m for m, _ in moved], [s for _, s in moved], [g for g, _ in gradients], means)
            self._move_log_stds([s for _, s in moved], [g for _, g in gradients], log_stds["lr"])
        self._move_rest(moved)
        return loss

    def _move_means(self, means: list[Tensor], log_stds: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """m <- m - lr s^2 dF/dm, with the gradient averaged over steps, and no step longer than so many stds."""
        states = [self.state[mean] for mean in means]
        for mean, state in zip(means, states, strict=True):
            if not state:
                state.update(step=torch.zeros(()), momentum=torch.zeros_like(mean))  # a tensor, as Adam keeps it
            state["step"] += 1
        averages, memory = [state["momentum"] for state in states], group["betas"][0]
        torch._foreach_lerp_(averages, gradients, 1 - memory)
        stds = torch._foreach_exp(log_stds)
        steps = torch._foreach_mul(averages, stds)
        unbiased = [group["lr"] * self.to_nats / (1 - memory ** float(state["step"])) for state in states]
        torch._foreach_mul_(steps, unbiased)
        torch._foreach_clamp_min_(steps, -self.most_stds)
        torch._foreach_clamp_max_(steps, self.most_stds)
        torch._foreach_addcmul_(means, steps, stds, value=-1)

    def _move_log_stds(self, log_stds: list[Tensor], gradients: list[Tensor], rate: float) -> None:
        """log s <- log s - log(1 + r G + (r G)^2 / 2) / 2."""
        moves = torch._foreach_mul(gradients, rate * self.to_nats)
        torch._foreach_clamp_min_(moves, -MOST_CHANGE)
        torch._foreach_clamp_max_(moves, MOST_CHANGE)
        torch._foreach_addcmul_(moves, moves, moves, value=0.5)
        torch._foreach_log1p_(moves)
        torch._foreach_add_(log_stds, moves, alpha=-0.5)

    def _move_rest(self, moved: list[tuple[Tensor, Tensor]]) -> None:
        """Adam, which passes over parameters without gradient."""
        held = [(p, p.grad) for pair in moved for p in pair]
        for parameter, _ in held:
            parameter.grad = None
        super().step()
        for parameter, gradient in held:
            parameter.grad = gradient
