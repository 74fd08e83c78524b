"""Whole training steps captured as CUDA graphs, one for each shape of a batch."""

import warnings
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from bitsback.inputs import Inputs, leaves, like, shapes_of
from bitsback.kernels import Captured, Captures

__all__ = ["StepGraphs", "Subject"]

# A captured step does on the device what the same calls did at capture, with the same addresses and the same numbers. What
# changes from step to step is therefore read from the device: inputs and targets from buffers, k and rates from Numbers, the
# number of the draw from the Clock. What a step changes on the host (number of the draw, count of steps) is done by advance().

TRIALS = 3
"""Steps of a shape that run as usual, on a stream of their own, before one is captured."""

MOST = 8
"""Largest number of graphs; further shapes run as usual."""


class Subject(Protocol):
    """Training whose steps are captured."""

    def run(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """Run a step's operators on a batch.

        Args:
            inputs: (n, ...), of the batch.
            targets: (n, ...).

        Returns:
            Data bits of the batch, a scalar tensor on the device.
        """

    def prepare_capture(self) -> None:
        """Allocate what the launches of one capture read."""

    def finish_capture(self) -> None:
        """Write what the launches of the capture read."""

    def host_state(self) -> Any:
        """Return what a step changes on the host."""

    def set_host_state(self, state: Any) -> None:
        """Restore what :meth:`host_state` returned."""

    def advance(self, before: Any, after: Any) -> None:
        """Change the host's state as a step does.

        Args:
            before: state before such a step.
            after: state after it.
        """

    def write_numbers(self) -> None:
        """Write the numbers of the next step to the device."""

    def is_stale(self) -> bool:
        """Return whether weights were written to since the last step, which a step as usual takes note of."""

    def signature(self) -> Any:
        """Return what captured steps take for granted; if it changes, they are made anew."""


@dataclass
class _Step:
    """A captured step of one shape."""

    inputs: Inputs
    targets: Tensor
    before: Any
    after: Any
    call: Captured


class StepGraphs:
    """Steps of a training as graphs: the first few of each shape run as usual, the others are replayed.

    Args:
        subject: training.
        captures: device.
    """

    def __init__(self, subject: Subject, captures: Captures) -> None:
        self.subject, self.captures = subject, captures
        self._tried: dict[str, int] = {}
        self._steps: dict[str, _Step] = {}
        self._changes: dict[str, tuple[Any, Any]] = {}
        self._signature: Any = None
        self._is_off = False

    @property
    def captured(self) -> int:
        """Return the number of captured steps."""
        return len(self._steps)

    def step(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """Run one step.

        Args:
            inputs: (n, ...), of the batch.
            targets: (n, ...).

        Returns:
            Data bits of the batch, a scalar tensor on the device that the next step may overwrite.
        """
        if self._is_off and not self._steps:
            return self.subject.run(inputs, targets)
        signature = self.subject.signature()
        if signature != self._signature:
            self._steps.clear()
            self._tried.clear()
            self._signature = signature
        if self.subject.is_stale():
            with self.captures.trial():
                return self.subject.run(inputs, targets)
        key = f"{shapes_of(inputs)} {shapes_of(targets)}"
        found = self._steps.get(key)
        if found is None and not self._is_off and self._tried.get(key, 0) >= TRIALS:
            found = self._capture(key, inputs, targets)
        if found is None:
            return self._as_usual(key, inputs, targets)
        for buffer, given in zip(leaves(found.inputs), leaves(inputs), strict=True):
            buffer.copy_(given, non_blocking=True)
        found.targets.copy_(targets, non_blocking=True)
        self.subject.write_numbers()
        bits = found.call.replay()
        self.subject.advance(found.before, found.after)
        return bits

    def _as_usual(self, key: str, inputs: Inputs, targets: Tensor) -> Tensor:
        self._tried[key] = self._tried.get(key, 0) + 1
        before = self.subject.host_state()
        if self._is_off:
            return self.subject.run(inputs, targets)
        with self.captures.trial() as trial:
            bits = self.subject.run(inputs, targets)
        self._changes[key] = before, self.subject.host_state()
        if trial.waits:
            self.give_up(trial.waits)
        return bits

    def _capture(self, key: str, inputs: Inputs, targets: Tensor) -> _Step | None:
        """Capture a step; return None, and say why, if it cannot be captured."""
        if len(self._steps) >= MOST:
            self.give_up(f"batches have more than {MOST} shapes")
            return None
        subject, state = self.subject, self.subject.host_state()
        own = like(inputs, [leaf.clone() for leaf in leaves(inputs)])
        wanted = targets.clone()
        subject.write_numbers()
        subject.prepare_capture()
        try:
            call = self.captures.capture(lambda: subject.run(own, wanted))
        except RuntimeError as error:  # what cannot be captured, such as a forward that reads a number from the device
            subject.set_host_state(state)
            self.give_up(f"a step cannot be captured ({str(error).splitlines()[0]})")
            return None
        subject.set_host_state(state)
        subject.finish_capture()
        self._signature = subject.signature()
        before, after = self._changes[key]
        found = self._steps[key] = _Step(own, wanted, before, after, call)
        return found

    def give_up(self, reason: str) -> None:
        """Run steps of further shapes as usual, and say why.

        Args:
            reason: reason, a clause.
        """
        self._is_off = True
        warnings.warn(f"steps run without a CUDA graph: {reason}; training.graph=never says nothing", stacklevel=2)
