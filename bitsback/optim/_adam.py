"""Adam on means and log stds (Kingma & Ba 2015)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bitsback.distributed import local
from bitsback.errors import LayerError
from bitsback.kernels import ADAM, ALIGNED
from bitsback.model import Weight
from bitsback.optim._fused import adam, fused_adam, is_fused, rates
from bitsback.optim._sweep import Move, Sweep
from bitsback.optim.base import PosteriorOptimizer

__all__ = ["Adam"]

OF_MEAN = ("exp_avg", "exp_avg_sq")
OF_BOTH = (*OF_MEAN, "exp_avg_log_std", "exp_avg_sq_log_std")
"""State keys of the running averages of gradients and of their squares; those of the mean have torch's names."""


class Adam(PosteriorOptimizer):
    """Adam on the means and log stds of a model's posteriors, and on its other parameters.

    In a process group, all processes make it and call ``step()`` together: see :class:`bitsback.optim.PosteriorOptimizer`.

    Args:
        model: see :class:`bitsback.optim.PosteriorOptimizer`.
        lr: learning rate of means and of parameters without a posterior.
        examples: N, the number of training examples (or tokens, pixels) that the loss is a mean over.
        betas, eps: as in :class:`torch.optim.Adam`.
        options: ``log_std_lr``, ``groups``, ``also``, ``beta``, ``prior_rate``, ``max_grad_norm``, ``by_pieces`` of
            :class:`bitsback.optim.PosteriorOptimizer`.

    Raises:
        LayerError: when ``model`` is not a Bayesian model, for unknown or invalid settings, or when nothing can be trained.

    >>> import bitsback
    >>> from torch import nn
    >>> model = bitsback.bayesianize(nn.Linear(4, 2))
    >>> optimizer = Adam(model, lr=1e-2, log_std_lr=5e-2, examples=100)
    >>> model(torch.ones(3, 4)).square().mean().backward()
    >>> optimizer.step()
    >>> model.draw_number
    1
    """

    rule = ADAM

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

    def _averages(self, parameter: Tensor, like: Tensor, names: Sequence[str] = OF_MEAN) -> list[Tensor]:
        """Return running averages of a parameter, made as zeros at first, in the memory layout of ``like``."""
        state, found = self.state[parameter], []
        for name in names:
            average = state.get(name)
            if average is None:
                average = state[name] = torch.zeros_like(like, requires_grad=False)
            elif average.stride() != like.stride() or average.data_ptr() % ALIGNED:
                average = state[name] = torch.empty_like(like, requires_grad=False).copy_(average)
            found.append(average)
        return found

    def count_of(self, parameter: Tensor) -> Tensor:
        """Return the number of steps that a parameter has been moved in, a scalar tensor on its device."""
        state = self.state[parameter]
        step: Tensor | None = state.get("step")
        if step is None:
            step = state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        elif step.device != parameter.device or step.dtype != torch.float32:  # torch loads it to the CPU
            step = state["step"] = step.to(parameter.device, torch.float32)
        return step

    def averages_of(self, weight: Weight) -> list[Tensor]:
        """Return the running averages of a weight, in the memory layout of its mean."""
        return self._averages(weight.known, weight.posterior.mean, OF_BOTH if weight.is_gaussian else OF_MEAN)

    def numbers_of(self, group: dict[str, Any]) -> list[float]:
        """Return learning rate, beta1, beta2, eps and the largest step of a parameter group."""
        return [*rates(group), 0.0]

    def _sweep(self, sweep: Sweep, weights: Sequence[Weight]) -> None:
        if self.max_grad_norm is None and self.by_pieces:
            sweep.move(weights, self)
            self._sum_learned()
        else:
            sweep.fill(weights)
            self._sum_learned()
            self._clip(weights)
            sweep.move_filled(weights, self)
        self._move_plain()

    def mover(self, weight: Weight) -> Move:
        """Return the function that applies this step's Adam update to each piece of a weight."""
        own, wide = self.settings_of(weight)
        step = self.count_of(weight.known).add_(1)
        averages = self.averages_of(weight)
        pieces = self._scratch.rows.of((weight.index, "averages"), averages)

        of_mean, of_width = rates(own), rates(wide) if wide is not None else None

        def move(number: int, mean: Tensor, log_std: Tensor | None, gm: Tensor, gl: Tensor | None, pull: float) -> None:
            averages = pieces[number]
            adam(mean, gm, averages[0], averages[1], step, of_mean, pull)
            if of_width is not None and log_std is not None and gl is not None:
                adam(log_std, gl, averages[2], averages[3], step, of_width)

        return move

    def move_all(
        self, weights: Sequence[Weight], means: list[Tensor], log_stds: list[Tensor], gm: list[Tensor], gl: list[Tensor]
    ) -> None:
        """Update whole weights, where torch has a fused Adam kernel, by the gradients of their means and log stds.

        Args:
            weights: Gaussian weights.
            means: their means.
            log_stds: their log stds.
            gm: gradients by the means.
            gl: gradients by the log stds.
        """
        torch._foreach_add_([self.count_of(weight.known) for weight in weights], 1)
        averages = [self.averages_of(weight) for weight in weights]
        own, wide = zip(*(self.settings_of(weight) for weight in weights), strict=True)
        for groups, moved, gradients, first in ((own, means, gm, 0), (wide, log_stds, gl, 2)):
            for group in {id(group): group for group in groups}.values():
                places = [place for place, one in enumerate(groups) if one is group]
                fused_adam(
                    [moved[place] for place in places], [gradients[place] for place in places],
                    [averages[place][first] for place in places], [averages[place][first + 1] for place in places],
                    [self.count_of(weights[place].known) for place in places], rates(group),
                )  # fmt: skip

    def _move_plain(self) -> None:
        """Move the parameters that have a gradient and no posterior."""
        for group in self._roles("plain"):
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moved:
                continue
            given = [local(p.grad.to_dense() if p.grad.is_sparse else p.grad) for p in moved]
            averages = zip(*(map(local, self._averages(p, p)) for p in moved), strict=True)
            first, second = (list(several) for several in averages)
            counts = [self.count_of(p) for p in moved]
            torch._foreach_add_(counts, 1)
            moved = [local(p) for p in moved]
            kinds = {(t.device, t.dtype) for t in (*moved, *given)}
            if len(kinds) == 1 and is_fused(moved[0]):
                numbers = rates(group) if self._kernel is None else (self._kernel.rate_of(self, group), *rates(group)[1:])
                fused_adam(moved, given, first, second, counts, numbers)
                continue
            for several in zip(moved, given, first, second, counts, strict=True):
                adam(*several, rates(group))
