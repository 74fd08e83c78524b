"""CUDA graphs: calls whose operators are recorded once, and replayed with one launch."""

import gc
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Captured", "Captures", "CudaCall", "CudaCaptures", "Trial", "captures_on"]


class Captured(Protocol):
    """A captured call."""

    def replay(self) -> Tensor:
        """Run the captured operators again, and return their result, which the next replay overwrites."""


class Trial(Protocol):
    """Context of a call that runs as usual before it is captured."""

    waits: str
    """After the call: why it waits for the device, a clause; empty if it does not."""

    def __enter__(self) -> "Trial":
        """Begin."""

    def __exit__(self, *error: object) -> None:
        """End."""


class Captures(Protocol):
    """Source of captured calls: a device, or a stand-in for tests."""

    def trial(self) -> Trial:
        """Return the context of a call before a capture."""

    def capture(self, body: Callable[[], Tensor]) -> Captured:
        """Capture a call.

        Args:
            body: call; its operators are recorded, and run only when replayed.

        Returns:
            The captured call.
        """


@cache
def captures_on(device: torch.device) -> "CudaCaptures":
    """Return the captures of a GPU: one stream and one pool of memory for all graphs, which never run at the same time."""
    return CudaCaptures(device)


class CudaCaptures:
    """CUDA graphs that share a pool of memory.

    Args:
        device: their device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None
        self._stream = torch.cuda.Stream(device)

    def trial(self) -> "_Beside":
        """Return the context of a side stream, after and before the work of the current one."""
        return _Beside(self._stream)

    def capture(self, body: Callable[[], Tensor]) -> "CudaCall":
        """Capture a call.

        Args:
            body: call; its operators are recorded, and run only when replayed.

        Returns:
            The captured call.

        Raises:
            RuntimeError: if the call does what cannot be captured.
        """
        torch.cuda.synchronize(self.device)
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.stream(self._stream):
                # other threads, such as those of loaders that pin memory, may use the device meanwhile
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                try:
                    result = body()
                finally:
                    graph.capture_end()
        except RuntimeError:
            # torch leaves its generator in the state of a capture, in which the next dropout would fail
            generator = torch.cuda.default_generators[torch.cuda._utils._get_device_index(self.device, optional=True)]
            generator.graphsafe_set_state(generator.clone_state())
            raise
        return CudaCall(graph, result)


class CudaCall:
    """Call that was captured as a CUDA graph.

    Args:
        graph: graph.
        result: result of the call, in the graph's memory.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, result: Tensor) -> None:
        self.graph, self.result = graph, result

    def replay(self) -> Tensor:
        """Run the captured operators again, and return their result, which the next replay overwrites."""
        self.graph.replay()
        return self.result


class _Beside:
    """Context on a side stream that notes whether the host waits for the device, which no capture allows."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream, self.waits = stream, ""

    def __enter__(self) -> "_Beside":
        self._exits = ExitStack()
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        self._exits.callback(lambda: torch.cuda.current_stream(self.stream.device).wait_stream(self.stream))
        self._exits.enter_context(torch.cuda.stream(self.stream))
        self._said = self._exits.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        self._exits.callback(torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode())
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()
        for one in self._said:
            if "synchronizing CUDA operation" in str(one.message):
                self.waits = f"it waits for the device at {one.filename}:{one.lineno}"
            else:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
