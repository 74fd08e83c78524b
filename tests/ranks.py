"""Start several processes of ``torch.distributed`` with gloo, and collect what each returns."""

import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LONGEST = datetime.timedelta(seconds=60)
"""Longest wait for another process; one that waits longer fails."""


def together(count: int, work: Callable[..., dict[str, torch.Tensor]], *args: Any) -> list[dict[str, torch.Tensor]]:
    """Run a function of the module's top level in several processes.

    Args:
        count: number of processes.
        work: called as ``work(rank, *args)`` with a process group of gloo; returns tensors by name.
        args: its other arguments.

    Returns:
        What each process returned, by rank.
    """
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (count, folder, work, args), count)
        return [load_file(Path(folder) / f"{rank}.safetensors") for rank in range(count)]


def _run(rank: int, count: int, folder: str, work: Callable[..., dict[str, torch.Tensor]], args: tuple[Any, ...]) -> None:
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count, timeout=LONGEST)
    try:
        found = work(rank, *args)
        save_file({name: t.detach().contiguous().clone() for name, t in found.items()}, Path(folder) / f"{rank}.safetensors")
    finally:
        dist.destroy_process_group()
