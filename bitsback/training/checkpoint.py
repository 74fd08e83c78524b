"""Checkpoints: the state needed to resume bit for bit, in one safetensors file, without pickle.

The newest is ``state.safetensors``; if it is damaged, training resumes from the one before, ``previous.safetensors``, to the
same result, since the randomness of an epoch depends on the seed and the epoch's number only.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitsback.atomic_io import DamagedFileError, check_seal, read_tensors, write_tensors
from bitsback.distributed import laid_out_as, whole
from bitsback.errors import RunError, brief
from bitsback.model import BayesianModel
from bitsback.optim import PosteriorOptimizer
from bitsback.optim.base import POSTERIOR
from bitsback.training.loop import Fit

__all__ = ["FORMAT", "PREVIOUS", "as_of_now", "load_checkpoint", "load_weights", "read_checkpoint", "save_checkpoint"]

BETA_STATE = ("memory", "value", "excess")
"""Attributes of Beta that are saved."""
PREVIOUS = "previous.safetensors"
"""File name of the checkpoint before the newest."""
FORMAT = "bitsback checkpoint 3"
"""Format of the checkpoints that are written."""
DRAW = "_extra_state"
"""Key of seed and draw number in a model's state; states of earlier releases lack it."""
READ = {"bitsback checkpoint 1": False, "bitsback checkpoint 2": True, FORMAT: True}
"""Formats that can be read, and whether they have a checksum; training can be resumed from the last one only."""


def save_checkpoint(path: Path, fit: Fit, extra: dict[str, Any], *, is_first: bool = False) -> None:
    """Write the fit's state atomically, and keep the previous checkpoint.

    Args:
        path: of the checkpoint.
        fit: the training.
        extra: JSON values that :func:`load_checkpoint` returns.
        is_first: the first checkpoint of a training: existing ones belong to another training and are not kept.
    """
    tensors: dict[str, Tensor] = {}
    facts = {
        "format": FORMAT,
        "epoch": fit.epoch,
        "beta": {name: getattr(fit.beta, name) for name in BETA_STATE},
        "schedule": _pack(fit.schedule.state_dict() if fit.schedule else None, "schedule", tensors),
        "optimizer": _pack(_own_state(fit.optimizer), "optimizer", tensors),
        "extra": extra,
    }
    _pack(fit.model.state_dict(), "model", tensors)
    _pack(fit.likelihood.state_dict(), "likelihood", tensors)
    _pack(fit.objective.state_dict(), "objective", tensors)
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())  # of shards, gathered by all processes one tensor at a time, and kept by rank 0
        if fit.ranks.is_first:
            stored[name] = full.cpu().contiguous().clone()
    if not fit.ranks.is_first:
        return fit.ranks.wait()
    previous = path.with_name(PREVIOUS)
    if is_first:
        previous.unlink(missing_ok=True)
    write_tensors(path, stored, {"facts": json.dumps(facts)}, keep=None if is_first else previous)
    return fit.ranks.wait()  # a process that resumes at once finds the file


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and facts of a checkpoint, and verify its checksum.

    Args:
        path: of the checkpoint.

    Returns:
        tensors by name, and the JSON facts.

    Raises:
        DamagedFileError: if it is missing, damaged, or not a checkpoint.
    """
    tensors, metadata = read_tensors(path)
    try:
        facts = json.loads(metadata["facts"])
        if facts["format"] in READ and (not READ[facts["format"]] or check_seal(path)):
            return tensors, facts
    except (KeyError, ValueError, TypeError, RecursionError, OSError) as error:
        raise DamagedFileError(f"cannot read {path}: it is no checkpoint; take it from a copy, or train anew") from error
    raise DamagedFileError(f"cannot read {path}: it is damaged, or of a later release; take it from a copy, or train anew")


def load_checkpoint(path: Path, fit: Fit) -> dict[str, Any]:
    """Load a checkpoint into a fit of the same configuration.

    A missing or damaged checkpoint is replaced by the one before, also on disk, with a message on stderr.

    Args:
        path: of the checkpoint.
        fit: the training, changed in place.

    Returns:
        the ``extra`` values it was saved with.

    Raises:
        RunError: if both checkpoints are missing or damaged, or it belongs to another network or an earlier release.
    """
    damage: DamagedFileError | None = None
    found: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    chosen = path
    if fit.ranks.is_first:  # of several processes, one alone decides
        try:
            found = read_checkpoint(path)
        except DamagedFileError as error:
            damage, chosen = error, path.with_name(PREVIOUS)
            found = _read_previous(path, chosen, error)
    chosen = path.with_name(fit.ranks.text_of_first(chosen.name))
    tensors, facts = found or read_checkpoint(chosen)
    extra = _put(chosen, tensors, facts, fit)
    fit.ranks.wait()
    if damage is not None:
        with suppress(OSError):
            os.replace(chosen, path)  # else the next checkpoint would keep the damaged one as previous
        what = "is missing" if isinstance(damage.__cause__, FileNotFoundError) else "is damaged"
        print(f"bitsback: {path} {what}; going on from the checkpoint before, of epoch {fit.epoch:,}", file=sys.stderr)
    return extra


def _read_previous(path: Path, previous: Path, error: DamagedFileError) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not previous.exists():
        raise error
    try:
        return read_checkpoint(previous)
    except DamagedFileError as other:
        raise RunError(
            f"cannot read {path}, nor {previous}: both checkpoints are damaged, and nothing was changed; "
            "take one from a copy, or train anew with another --out"
        ) from other


def _put(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any], fit: Fit) -> dict[str, Any]:
    """Load the content of a checkpoint into a fit; returns its ``extra``."""
    if facts["format"] != FORMAT:
        raise RunError(
            f"{path} was written by an earlier release, whose training took other steps: its results can be read, but it "
            "cannot be resumed; train anew with another --out"
        )
    try:
        load_weights(tensors, fit.model, fit.likelihood)
        fit.objective.load_state_dict(_of("objective", tensors))
        fit.optimizer.load_state_dict(_unpack(facts["optimizer"], tensors))
        if fit.schedule is not None:
            fit.schedule.load_state_dict(_unpack(facts["schedule"], tensors))
        fit.epoch = int(facts["epoch"])
        if fit.epoch:  # each process goes to its own draw, as after a step
            fit.optimizer.together.end()
        for name in BETA_STATE:
            setattr(fit.beta, name, facts["beta"][name])
        return dict(facts["extra"])
    except (LookupError, ValueError, RuntimeError, TypeError, AttributeError, ArithmeticError) as error:
        raise RunError(f"{path} does not fit this configuration: {brief(error)}; start a new run") from error


def _own_state(optimizer: PosteriorOptimizer) -> dict[str, Any]:
    """Return the optimiser's state without the posterior, which is saved with the model."""
    return {name: value for name, value in optimizer.state_dict().items() if name != POSTERIOR}


def load_weights(tensors: dict[str, Tensor], model: BayesianModel, likelihood: torch.nn.Module) -> None:
    """Load a checkpoint's weights into a model and its likelihood.

    Args:
        tensors: of the checkpoint.
        model: changed in place.
        likelihood: changed in place.
    """
    found = as_of_now(_of("model", tensors), model)
    if model.is_sharded:
        now = model.state_dict()
        found = {name: laid_out_as(tensor, now[name]) if name in now else tensor for name, tensor in found.items()}
    model.load_state_dict(found)
    likelihood.load_state_dict(_of("likelihood", tensors))


def as_of_now(tensors: dict[str, Tensor], model: BayesianModel) -> dict[str, Tensor]:
    """Rename a model's state to current names; earlier releases stored posteriors inside layers, and no draw number.

    Args:
        tensors: state of a model.
        model: of the same network.

    Returns:
        state for ``model.load_state_dict``.

    >>> from bitsback.model import bayesianize
    >>> old = {"network.posteriors.weight.mean": torch.ones(1, 2)}
    >>> sorted(as_of_now(old, bayesianize(torch.nn.Linear(2, 1, bias=False))))
    ['_extra_state', 'network.weight', 'posterior.weight.mean']
    """
    if DRAW in tensors:
        return tensors
    found = {**tensors, DRAW: model.get_extra_state()}
    for weight in model.weights:
        for ref in weight.refs:  # tied weights were saved under each name
            path, _, local = ref.name.rpartition(".")
            for part, _ in weight.posterior.named_parameters():
                value = found.pop(".".join(filter(None, ["network", path, "posteriors", local, part])), None)
                if value is not None:
                    found[f"posterior.{weight.name}.{part}"] = value
                    if part == "mean":
                        found[f"network.{ref.name}"] = value
    return found


def _of(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under a prefix, with the prefix removed."""
    return {name.removeprefix(f"{prefix}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")}


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Convert nested state to JSON; tensors are moved to ``tensors`` under the path of their place."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if callable(getattr(value, "state_dict", None)):  # nested schedules
        return _pack(value.state_dict(), path, tensors)
    raise RunError(f"cannot write {path} of type {type(value).__name__} to a checkpoint; choose another optimiser or schedule")


def _unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    (kind, value), *_ = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in value}
    return [_unpack(item, tensors) for item in value] if kind == "list" else value
