"""Checkpoints: everything needed to resume bit for bit, in one safetensors file, without pickle."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bitsback.errors import RunError, brief
from bitsback.files import read_tensors, write_tensors
from bitsback.training.loop import Fit

BETA_STATE = ("memory", "value", "excess")


def save_checkpoint(path: Path, fit: Fit, extra: dict[str, Any]) -> None:
    """Write the fit's state to ``path``, atomically; ``extra`` is JSON that comes back from :func:`load_checkpoint`."""
    tensors: dict[str, Tensor] = {}
    facts = {
        "format": "bitsback checkpoint 1",
        "epoch": fit.epoch,
        "beta": {name: getattr(fit.beta, name) for name in BETA_STATE},
        "schedule": _pack(fit.schedule.state_dict() if fit.schedule else None, "schedule", tensors),
        "optimizer": _pack(fit.optimizer.state_dict(), "optimizer", tensors),
        "extra": extra,
    }
    _pack(fit.model.state_dict(), "model", tensors)
    _pack(fit.likelihood.state_dict(), "likelihood", tensors)
    _pack(fit.objective.state_dict(), "objective", tensors)
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_tensors(path, stored, {"facts": json.dumps(facts)})


def load_checkpoint(path: Path, fit: Fit) -> dict[str, Any]:
    """Put a checkpoint's state into a fit of the same configuration; returns the ``extra`` it was saved with.

    Raises:
        RunError: when the file is missing, damaged, or of another network.
    """
    tensors, metadata = read_tensors(path)
    try:
        facts = json.loads(metadata["facts"])
        load_weights(tensors, fit.model, fit.likelihood)
        fit.objective.load_state_dict(_of("objective", tensors))
        fit.optimizer.load_state_dict(_unpack(facts["optimizer"], tensors))
        _lay_out_as_parameters(fit.optimizer)
        if fit.schedule is not None:
            fit.schedule.load_state_dict(_unpack(facts["schedule"], tensors))
        fit.epoch = int(facts["epoch"])
        for name in BETA_STATE:
            setattr(fit.beta, name, facts["beta"][name])
        return dict(facts["extra"])
    except (LookupError, ValueError, RuntimeError, TypeError, AttributeError, ArithmeticError) as fault:
        raise RunError(f"{path} does not fit this configuration: {brief(fault)}; start a new run") from fault


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Moments lie in memory as their parameters do, as fused optimisers expect."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def load_weights(tensors: dict[str, Tensor], model: torch.nn.Module, likelihood: torch.nn.Module) -> None:
    """Put a checkpoint's weights into a model and its likelihood."""
    for prefix, module in (("model", model), ("likelihood", likelihood)):
        module.load_state_dict(_of(prefix, tensors))


def _of(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A module's own tensors, without the prefix."""
    return {name.removeprefix(f"{prefix}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")}


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for nested state, with its tensors moved to ``tensors`` and named by their place."""
    if isinstance(value, Tensor):
        tensors[place] = value
        return {"tensor": place}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, f"{place}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(item, f"{place}/{index}", tensors) for index, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if callable(getattr(value, "state_dict", None)):  # a schedule made of schedules
        return _pack(value.state_dict(), place, tensors)
    raise RunError(f"cannot write {place} of type {type(value).__name__} to a checkpoint; choose another optimiser or schedule")


def _unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    (kind, value), *_ = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in value}
    return [_unpack(item, tensors) for item in value] if kind == "list" else value
