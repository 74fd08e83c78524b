"""Steps that several processes take together: which draws their gradients were taken at, and the means of gradients."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from bitsback.distributed import Ranks, is_shard, local, shard_of
from bitsback.errors import LayerError
from bitsback.model import BayesianModel
from bitsback.model.join import join

if TYPE_CHECKING:
    from bitsback.optim.base import PosteriorOptimizer

__all__ = ["NoiseOf", "Together"]

NoiseOf = Literal["shared", "per_rank"]
"""Whether all processes hold the same draw, or each its own."""

# A step of several processes, with their gradients g_r at the draw w of all (shared), or at w_r of their own (per_rank):
#
#   shared     DDP or FSDP2 have averaged w.grad;  log_std.grad, what several draws have left there, is averaged here
#   per_rank   backward without synchronisation;  every process goes to the shared draw w, which by the rule of
#              model/_resident.py leaves -g_r (w - w_r) in log_std.grad;  then w.grad and log_std.grad are averaged:
#              g (w - m) + log_std.grad is the mean of g_r (w_r - m);  after the step each goes to its own next draw
#
# In both, all processes then take the same step from the same numbers, and none is sent but gradients.


class Together:
    """The processes of an optimiser, and what they exchange in a step.

    Every method that an optimiser's constructor and step call is collective.

    Args:
        model: model that they train.
        ranks: the processes.
        noise: ``shared`` or ``per_rank``.

    Raises:
        LayerError: for an unknown noise, and for draws per rank of a model that is sharded.
    """

    def __init__(self, model: BayesianModel, ranks: Ranks, noise: NoiseOf) -> None:
        if noise not in get_args(NoiseOf):
            raise LayerError(f"noise is shared or per_rank, not {noise!r}")
        self.model, self.ranks, self.noise = model, ranks, noise
        if join(model, ranks) and noise == "per_rank":
            raise LayerError("noise=per_rank needs whole weights in every process; under fully_shard take noise=shared")
        self._is_new, self._is_gathered = True, False

    @property
    def is_own(self) -> bool:
        """Return True if each process has a draw of its own."""
        return self.noise == "per_rank" and self.ranks.count > 1

    def gradients(self, optimizer: "PosteriorOptimizer") -> list[Tensor]:
        """Return all gradients of the data cost, as this process's plain tensors; missing ones become zeros."""
        weights = optimizer.weights
        pending = self.is_own or any(p.grad is not None for w in weights for p in list(w.posterior.parameters())[1:])
        found = []
        for group in optimizer.param_groups:
            for p in group["params"] if group["role"] != "log_std" else ():
                if not p.requires_grad or (p.grad is None and self.ranks.count == 1):
                    continue
                if p.grad is None or p.grad.is_sparse:
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad.to_dense()
                found.append(local(p.grad))
        for weight in weights if pending else ():
            for log_std in list(weight.posterior.parameters())[1:]:
                if log_std.grad is None and self.ranks.count > 1:
                    log_std.grad = torch.zeros_like(log_std)
                found += [log_std.grad] if log_std.grad is not None else []
        return found

    def copy_plain(self, optimizer: "PosteriorOptimizer") -> None:
        """Give every process rank 0's values of parameters outside the network, such as those of a likelihood."""
        self.ranks.copy_first(self._outside(optimizer))

    def _outside(self, optimizer: "PosteriorOptimizer") -> list[Tensor]:
        """Return the parameters outside the network that learn from data, whose gradients nothing but this class averages."""
        model = self.model
        others = [*model.network.parameters(), *model.priors.parameters(), *(weight.known for weight in model.weights)]
        inside = {id(p) for p in others}
        groups = [group for group in optimizer.param_groups if group["role"] == "plain"]
        return [p for group in groups for p in group["params"] if id(p) not in inside and p.requires_grad]

    def _fill(self, parameters: Sequence[Tensor], others: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return the gradients that at least one process has, zeros where this one has none; the same list in all.

        Args:
            parameters: of which all have gradients if one has.
            others: each by itself.

        Returns:
            gradients, plain tensors.
        """
        own = [any(p.grad is not None for p in parameters), *(p.grad is not None for p in others)]
        has, *each = self.ranks.sums([float(one) for one in own])
        wanted = [*(parameters if has else ()), *(p for p, count in zip(others, each, strict=True) if count)]
        for p in wanted:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            elif p.grad.is_sparse:
                p.grad = p.grad.to_dense()
        return [local(p.grad) for p in wanted if p.grad is not None]

    def _stds(self, optimizer: "PosteriorOptimizer") -> list[Tensor]:
        """Return log stds, in whose gradients the draws before the current one have left theirs."""
        return [p for weight in optimizer.weights for p in list(weight.posterior.parameters())[1:]]

    def gather(self, optimizer: "PosteriorOptimizer") -> None:
        """Average gradients that each process has of its own examples alone."""
        if self.ranks.count == 1:
            return
        if self.model.state.lane:
            self.model.honour_edits()
            self.model.hold(self.model.state._replace(lane=0))
        if not self.model.is_sharded:
            self._fill(self._stds(optimizer))
            self.ranks.average(self.gradients(optimizer))
        else:  # FSDP2 has averaged those of the network
            self.ranks.average(self._fill([], self._outside(optimizer)))
        self._is_gathered = True

    def begin(self, optimizer: "PosteriorOptimizer") -> None:
        """Begin a step: all processes agree on posteriors, draw and gradients afterwards."""
        if self.ranks.count == 1:
            return
        if self._is_new:
            join(self.model, self.ranks, everything=False)
            self._is_new = False
        if self.is_own and not self._is_gathered:
            self.gather(optimizer)
        if not self._is_gathered:
            stds = [] if self.model.is_sharded else self._stds(optimizer)
            self.ranks.average(self._fill(stds, self._outside(optimizer)))
        self._is_gathered = False

    def end(self) -> None:
        """End a step: each process goes to its own draw, if it has one."""
        if self.is_own and self.model.holds == "draw":
            model = self.model
            model.go_to(model.state._replace(lane=self.ranks.rank))

    def sum_gradients(self, parameters: list[Tensor]) -> None:
        """Sum gradients of numbers that all shards share, such as a prior's, over the shards."""
        if self.model.is_sharded:
            for p in parameters:
                if p.grad is not None:
                    p.grad.copy_(self.ranks.summed(p.grad))

    def clip(self, parameters: list[Tensor], most: float) -> Tensor:
        """Clip the joint norm of gradients, of which those of weights are shards.

        Args:
            parameters: whose gradients are scaled, in place.
            most: largest norm.

        Returns:
            the norm before, a scalar tensor.
        """
        whole = [local(p.grad) for p in parameters if p.grad is not None and self._is_whole(p)]
        cut = [local(p.grad) for p in parameters if p.grad is not None and not self._is_whole(p)]
        squares = [
            float(torch.stack(torch._foreach_norm(part)).double().square().sum()) if part else 0.0 for part in (whole, cut)
        ]
        norm = (squares[0] + self.ranks.sums(squares[1:])[0]) ** 0.5
        torch._foreach_mul_([*whole, *cut], min(1.0, most / (norm + 1e-6)))
        return torch.tensor(norm)

    def _is_whole(self, parameter: Tensor) -> bool:
        """Return True for a parameter that every process holds as a whole, such as a prior's or a likelihood's."""
        shards = {id(p) for w in self.model.weights if w.shard is not None for p in w.posterior.parameters()}
        return id(parameter) not in shards and not is_shard(parameter)

    def show_states(self, state_dict: dict[str, Any], groups: list[dict[str, Any]]) -> None:
        """Show the moments of shards as DTensors in a state dict, so that checkpoints know what they are parts of.

        Args:
            state_dict: of the optimiser, changed in place.
            groups: its parameter groups.
        """
        if not self.model.is_sharded:
            return
        by_parameter = {id(weight.known): weight for weight in self.model.weights}
        for group, own in zip(state_dict["param_groups"], groups, strict=True):
            for number, p in zip(group["params"], own["params"], strict=True):
                weight, state = by_parameter.get(id(p)), state_dict["state"].get(number)
                if weight is not None and weight.shard is not None and state is not None:
                    shape = weight.posterior.mean.shape
                    shown = {n: weight.shard.global_(t) if t.ndim and t.shape == shape else t for n, t in state.items()}
                    state_dict["state"][number] = shown

    def take_states(self, states: dict[Any, dict[str, Any]]) -> None:
        """Take this process's shards of moments that were loaded, as DTensors or as whole tensors."""
        by_parameter = {id(weight.known): weight for weight in self.model.weights}
        for p, state in states.items() if self.model.is_sharded else ():
            if not is_shard(p):
                continue
            weight = by_parameter.get(id(p))
            shard = weight.shard if weight is not None and weight.shard is not None else shard_of(p, "a parameter")
            for name, t in state.items():
                if t.ndim:
                    part = local(t) if is_shard(t) else shard.of(t) if t.shape == p.shape else t
                    state[name] = part if weight is not None else shard.global_(part)
