"""Adam on means and log stds (Kingma & Ba 2015)."""

from typing import Any

import torch
from torch import Tensor

from bitsback.errors import LayerError
from bitsback.model import Weight
from bitsback.optim.base import PosteriorOptimizer
from bitsback.optim.sweep import Move

FUSED = ("cuda", "mps", "xpu")
"""Devices besides the CPU on which torch has Adam as one pass."""


class Adam(PosteriorOptimizer):
    """Adam on the means and log stds of a model's posteriors, and on its other parameters.

    Args:
        model: see :class:`bitsback.optim.PosteriorOptimizer`.
        lr: learning rate of means and of parameters without a posterior.
        examples: what the mean in the loss averages over.
        betas, eps: as :class:`torch.optim.Adam` has them.
        options: ``log_std_lr``, ``groups``, ``also``, ``beta``, ``prior_rate``, ``max_grad_norm``, ``by_pieces`` of
            :class:`bitsback.optim.PosteriorOptimizer`.

    Raises:
        LayerError: for what is no model, settings that are unknown or make no sense, or nothing to move.

    >>> import bitsback
    >>> from torch import nn
    >>> model = bitsback.bayesianize(nn.Linear(4, 2))
    >>> optimizer = Adam(model, lr=1e-2, log_std_lr=5e-2, examples=100)
    >>> model(torch.ones(3, 4)).square().mean().backward()
    >>> optimizer.step()
    >>> model.draw_number
    1
    """

    def __init__(
        self,
        model: Any,
        lr: float = 1e-3,
        *,
        examples: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        **options: Any,
    ) -> None:
        if not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas) and eps >= 0 and lr >= 0):
            raise LayerError(f"give lr and eps not below zero, and two betas in [0, 1); got lr {lr}, eps {eps}, betas {betas}")
        super().__init__(model, {"lr": lr, "betas": betas, "eps": eps}, examples=examples, **options)

    def _averages(self, parameter: Tensor, like: Tensor, of: str = "") -> list[Tensor]:
        """Both running averages, kept under the parameter and laid out ``like`` a tensor."""
        state = self.state[parameter]
        for name in (f"exp_avg{of}", f"exp_avg_sq{of}"):
            if name not in state:
                state[name] = torch.zeros_like(like, requires_grad=False)
            elif state[name].stride() != like.stride():
                state[name] = torch.empty_like(like, requires_grad=False).copy_(state[name])
        return [state[f"exp_avg{of}"], state[f"exp_avg_sq{of}"]]

    def _count_step(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), device=None if parameter.device.type == "cpu" else parameter.device)
        state["step"] += 1
        step: Tensor = state["step"]
        return step

    def _mover(self, weight: Weight) -> Move:
        q, (own, wide) = weight.posterior, self._settings(weight)
        step = self._count_step(weight.known)
        averages = self._averages(weight.known, q.mean)
        if wide is not None:
            averages += self._averages(weight.known, q.mean, "_log_std")
        pieces = self._scratch.rows.of((weight.number, "averages"), averages)

        def move(number: int, mean: Tensor, log_std: Tensor | None, gm: Tensor, gl: Tensor | None, pull: float) -> None:
            averages = pieces[number]
            adam(mean, gm, averages[0], averages[1], step, own, pull)
            if wide is not None and log_std is not None and gl is not None:
                adam(log_std, gl, averages[2], averages[3], step, wide)

        return move

    def _move_plain(self) -> None:
        for group in self._roles("plain"):
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                gradient = gradient.to_dense() if gradient.is_sparse else gradient
                first, second = self._averages(parameter, parameter)
                adam(parameter, gradient, first, second, self._count_step(parameter), group)


def adam(
    parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: Tensor, group: dict[str, Any], pull: float = 0.0
) -> None:
    """Take one step of Adam on a tensor, in place; its gradient is the one given and ``pull`` times the tensor."""
    (beta1, beta2), lr = group["betas"], float(group["lr"])
    if (parameter.is_cpu or parameter.device.type in FUSED) and gradient.dtype == parameter.dtype:
        torch._fused_adam_(
            [parameter], [gradient], [first], [second], [], [step], lr=lr, beta1=beta1, beta2=beta2, weight_decay=pull,
            eps=group["eps"], amsgrad=False, maximize=False,
        )  # fmt: skip
        return
    gradient = torch.add(gradient.to(first.dtype), parameter, alpha=pull)
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    count = float(step)
    root = second.sqrt().div_((1 - beta2**count) ** 0.5).add_(group["eps"])
    parameter.addcdiv_(first, root, value=-lr / (1 - beta1**count))
