"""A model that several processes train together: the same posteriors and draws everywhere, and shards of them under FSDP2."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bitsback.distributed import Ranks, is_shard, local, resharded, shard_of
from bitsback.errors import LayerError
from bitsback.model.weight import State, Weight, differs
from bitsback.posteriors.base import Noticed, Posterior

if TYPE_CHECKING:
    from bitsback.model._resident import Resident

__all__ = ["join"]


@torch.no_grad()
def join(model: "Resident", ranks: Ranks, *, everything: bool = True) -> bool:
    """Give every process the posteriors, priors and draw of rank 0, and take over the shards that ``fully_shard`` has made.

    Where all agree already, nothing is written to posteriors. Gradients stay as they are: where the processes disagreed on the
    posteriors, data-parallel wrappers have copied rank 0's draw, at which all gradients were taken.

    Args:
        model: the model, changed in place.
        ranks: the processes; collective if there are several.
        everything: also copy what has no posterior: parameters and buffers of the network that are no shards.

    Returns:
        True if the model holds shards.

    Raises:
        ConfigError: when the processes have different networks or priors.
        LayerError: for shards, or priors of shards, that are not supported.
    """
    if any(is_shard(p) for weight in model.weights for p in weight.posterior.parameters()):
        raise LayerError("fully_shard was applied to the model, whose posteriors it cannot hold: apply it to model.network")
    resharded(model.network)
    before = model.state
    ranks.check_alike("the network and its priors", _description(model), "make the same model in every process")
    if everything:
        known = {id(weight.known) for weight in model.weights}
        ranks.copy_first([t for _, t in _tensors(model) if id(t) not in known and not is_shard(t)])
    is_changed = not _agree(model, ranks)
    if is_changed:
        state = torch.stack([*model.get_extra_state()])
        ranks.copy_first([state, *model.priors.parameters(), *model.priors.buffers()])
        model.set_extra_state(state)
    if model.pooled and any(map(_is_new_shard, model.weights)):
        raise LayerError("noise is reused by whole weights alone; call model.set_noise(reuse=1) before fully_shard")
    new = [weight for weight in model.weights if _is_new_shard(weight)]
    for weight in model.weights:
        if weight in new:
            _take_shard(model, weight, ranks, before)
        elif is_changed and weight.shard is None:
            ranks.copy_first(list(weight.posterior.parameters()))
        weight.is_narrow = None if is_changed else weight.is_narrow
    if new:
        model.is_sharded = True
    if new or is_changed:
        model.place()
    model.ranks = ranks if model.is_sharded else model.ranks
    return model.is_sharded


def _description(model: "Resident") -> str:
    """Return a line for each weight and prior, the same in every process."""
    shapes = [
        f"'{w.name}' of shape {tuple(w.known.shape)}, {w.prior.kind}, {type(w.posterior).__name__}" for w in model.weights
    ]
    return "\n".join(shapes + [f"'{name}' of shape {tuple(tensor.shape)}, {tensor.dtype}" for name, tensor in _tensors(model)])


def _tensors(model: "Resident") -> list[tuple[str, Tensor]]:
    """Return name and tensor of all parameters and buffers of the network."""
    return [*model.network.named_parameters(), *model.network.named_buffers()]


def _agree(model: "Resident", ranks: Ranks) -> bool:
    """Return True if draw, priors and posteriors are the same in all processes, by their fingerprints."""
    if ranks.count == 1:
        return True
    tensors = [*model.priors.parameters(), *model.priors.buffers()]
    tensors += [p for weight in model.weights if weight.shard is None for p in weight.posterior.parameters()]
    own = torch.tensor([*model.get_extra_state().tolist()[:3], *map(_fingerprint, tensors)])
    first = own.clone()
    ranks.copy_first([first])
    return ranks.least(float(torch.equal(own, first))) == 1.0


def _fingerprint(tensor: Tensor) -> int:
    """Return a sum of all bits of a tensor, which differs for tensors that were made from different seeds."""
    kinds = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
    bits = local(tensor.detach()).contiguous().view(kinds[tensor.element_size()])
    return int(bits.sum(dtype=torch.int64))


def _is_new_shard(weight: Weight) -> bool:
    found = weight.owner._parameters.get(weight.local)
    return found is not weight.known and is_shard(found)


def _take_shard(model: "Resident", weight: Weight, ranks: Ranks, before: State) -> None:
    """Cut a posterior as ``fully_shard`` has cut its weight; values that were written into the weight become means."""
    found = weight.owner._parameters[weight.local]
    assert found is not None
    if any(ref.owner._parameters.get(ref.local) is not found for ref in weight.refs):
        raise LayerError(f"'{weight.name}' is tied, and fully_shard has untied it; shard both modules together")
    if not weight.prior.is_elementwise:
        raise LayerError(
            f"the prior of '{weight.name}', {weight.prior.kind}, has numbers of its own for groups of weights, and fully_shard "
            "cuts groups apart; take a prior with one density for all weights, or DDP (engine.strategy=ddp)"
        )
    _check_mesh(found, weight.name, ranks)
    shard, whole = shard_of(found, weight.name), weight.posterior
    value = model.value(weight, before)
    expected = shard.of(whole.mean if value is None else value)
    weight.known, weight.shard = found, shard
    held = local(found).detach()
    edited = differs(held, expected, _posterior_of(whole, {name: shard.of(p) for name, p in whole.named_parameters()}))
    ranks.copy_first(list(whole.parameters()))
    parts = {name: Noticed(shard.of(p), requires_grad=False) for name, p in whole.named_parameters()}
    mean = parts["mean"]
    mean.copy_(torch.where(edited, held.to(mean.dtype), mean))
    weight.posterior = _posterior_of(whole, parts)
    shown = {name: nn.Parameter(shard.global_(p.detach()), requires_grad=False) for name, p in parts.items()}
    weight.shown = _posterior_of(whole, shown)
    if weight.constant_row is not None:
        row = weight.constant_row % found.shape[0] - shard.first // max(1, found[0].numel())
        weight.constant_row = row if 0 <= row < len(held) else None
    path, _, last = weight.name.rpartition(".")
    model.posterior.get_submodule(path)._modules[last] = weight.shown
    for ref in weight.refs:
        posteriors = ref.owner.__dict__.get("posterior")
        if isinstance(posteriors, dict) and posteriors.get(ref.local) is whole:
            posteriors[ref.local] = weight.shown


def _check_mesh(found: Any, name: str, ranks: Ranks) -> None:
    """Raise LayerError unless each of the processes holds another part of a weight: sums over them would count it twice."""
    members = dist.get_process_group_ranks(ranks.group) if ranks.count > 1 else found.device_mesh.mesh.flatten().tolist()[:1]
    mesh = found.device_mesh.mesh
    if mesh.ndim != 1 or mesh.tolist() != members or (len(members) > 1 and found.placements[0].is_replicate()):
        raise LayerError(
            f"'{name}' lies on a mesh of shape {tuple(mesh.shape)}, and a posterior needs one dimension, over the "
            f"{ranks.count} processes that train together, with a shard in each: init_device_mesh(device, ({ranks.count},)); "
            "replicas of shards are not supported"
        )


def _posterior_of(whole: Posterior, tensors: Mapping[str, Tensor]) -> Posterior:
    """Return a posterior of the same kind with other tensors."""
    part = copy.copy(whole)
    part.__dict__["_parameters"] = dict(tensors)
    return part
