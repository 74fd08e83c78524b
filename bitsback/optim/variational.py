"""Any torch optimiser applied to means and log stds."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitsback.errors import LayerError
from bitsback.model import Weight
from bitsback.optim._sweep import Sweep
from bitsback.optim.base import PosteriorOptimizer

__all__ = ["OPTIONS", "Variational"]

OPTIONS = {"log_std_lr", "groups", "also", "beta", "prior_rate", "max_grad_norm", "by_pieces", "noise", "ranks"}


class Variational(PosteriorOptimizer):
    """Any torch optimiser, moving the means and log stds of a model's posteriors, and its other parameters.

    The gradients of data cost plus KL are put into ``.grad`` of means and log stds, and the inner torch optimiser moves them.

    In a process group, all processes make it and call ``step()`` together: see :class:`bitsback.optim.PosteriorOptimizer`.

    Args:
        model, examples: as in :class:`bitsback.optim.Adam`.
        kind: subclass of :class:`torch.optim.Optimizer`.
        lr: learning rate of means and of parameters without a posterior.
        arguments: options of :class:`bitsback.optim.PosteriorOptimizer`; all others go to ``kind``.

    Raises:
        LayerError: when ``model`` is not a Bayesian model, for unknown settings, or when nothing can be trained.

    >>> import bitsback
    >>> model = bitsback.bayesianize(nn.Linear(4, 2))
    >>> optimizer = Variational(model, torch.optim.SGD, lr=1e-2, momentum=0.9, examples=100)
    >>> model(torch.ones(3, 4)).square().mean().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        model: Any,
        kind: type[torch.optim.Optimizer],
        lr: float,
        *,
        examples: int,
        **arguments: Any,
    ) -> None:
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise LayerError(f"give a class of torch.optim, such as torch.optim.SGD; got {kind!r}")
        if issubclass(kind, torch.optim.LBFGS | torch.optim.SparseAdam):
            raise LayerError(f"{kind.__name__} cannot move posteriors, whose gradients are noisy and dense; take another")
        options = {key: arguments.pop(key) for key in OPTIONS & arguments.keys()}
        make: Callable[..., torch.optim.Optimizer] = kind  # each has arguments of its own
        trial = make([nn.Parameter(torch.zeros(1, 1))], lr=lr, **arguments)
        super().__init__(model, {**trial.defaults, "lr": lr}, examples=examples, **options)
        if self.model.is_sharded:
            raise LayerError(f"{kind.__name__} does not know shards; under fully_shard take bitsback.optim.Adam or IVON")
        inner = [{**self._inner_settings(group), "params": self._inner_params(group)} for group in self.param_groups]
        self.inner = make(inner, lr=lr, **arguments)

    def _inner_params(self, group: dict[str, Any]) -> list[Tensor]:
        if group["role"] != "weight":
            return list(group["params"])
        return [self._by_parameter[id(p)].posterior.mean for p in group["params"]]

    def _inner_settings(self, group: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in group.items() if key not in ("params", "role")}

    def _sweep(self, sweep: Sweep, weights: Sequence[Weight]) -> None:
        sweep.fill(weights)
        self._sum_learned()
        self._clip(weights)
        for own, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update(self._inner_settings(own))
        self.inner.step()
        sweep.rewrite(weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as in the base class, with that of the inner optimiser under ``inner``."""
        return {**super().state_dict(), "inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state returned by :meth:`state_dict`, that of the inner optimiser included."""
        own = dict(state_dict)
        inner = own.pop("inner")
        super().load_state_dict(own)
        self.inner.load_state_dict(inner)
