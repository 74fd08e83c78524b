"""CUDA graphs: calls whose operators are recorded once, and replayed with one launch."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Captured", "Captures", "CudaCall", "CudaCaptures"]


class Captured(Protocol):
    """A captured call."""

    def replay(self) -> Tensor:
        """Run the captured operators again, and return their result, which the next replay overwrites."""


class Captures(Protocol):
    """Source of captured calls: a device, or a stand-in for tests."""

    def trial(self) -> AbstractContextManager[Any]:
        """Return the context of the calls before a capture."""

    def capture(self, body: Callable[[], Tensor]) -> Captured:
        """Capture a call.

        Args:
            body: call; its operators are recorded, and run only when replayed.

        Returns:
            The captured call.
        """


class CudaCaptures:
    """CUDA graphs that share one pool of memory, as they never run at the same time.

    Args:
        device: their device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None
        self._stream = torch.cuda.Stream(device)

    def trial(self) -> AbstractContextManager[Any]:
        """Return the context of a side stream, after and before the work of the current one."""
        return _Beside(self._stream)

    def capture(self, body: Callable[[], Tensor]) -> "CudaCall":
        """Capture a call.

        Args:
            body: call; its operators are recorded, and run only when replayed.

        Returns:
            The captured call.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            result = body()
        self._pool = graph.pool()
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
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        self.context = torch.cuda.stream(self.stream)
        self.context.__enter__()

    def __exit__(self, *error: object) -> None:
        self.context.__exit__(*error)
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)
