"""Stand-in for CUDA graphs: a captured call is a list of operators and launches, replayed without running any Python.

Numbers of Python are therefore baked into a captured call, as in a CUDA graph, and what a capture must not do fails: to wait for
the device, to upload, to make tensors of Python's numbers.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bitsback.kernels import _batches, _triton

WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "lift_fresh")


class Launches:
    """A kernel whose launches are noted during a capture."""

    def __init__(self, kernel, recorder):
        self.kernel, self.recorder = kernel, recorder

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            if self.recorder.tape is not None:
                self.recorder.tape.append(lambda: self.kernel[grid](*arguments, **options))
            else:
                self.kernel[grid](*arguments, **options)

        return launch


class Operators(TorchDispatchMode):
    """Notes every operator, and lets none wait for the device."""

    def __init__(self, tape):
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(word in str(function) for word in WAITS):
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        found = function(*args, **kwargs)
        self.tape.append(lambda: again(function, args, kwargs, found))
        return found


def again(function, args, kwargs, found):
    """Run an operator once more, and put its results where they were."""
    inputs = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
    for old, new in zip(tensors(found), tensors(function(*args, **kwargs)), strict=True):
        if old is not new and old.numel() and old.untyped_storage().data_ptr() not in inputs:
            old.data.copy_(new)


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def fill(out, stream, start, clock, seed, number):
    """Noise by the kernel, as a GPU makes it; of a CPU, the package takes operators to which the number is a plain one."""
    grid = (-(-len(out) // _batches.CHUNK),)
    _triton.fill_kernel[grid](out, len(out), start, clock.tensor, clock.offset(seed, number), stream, BLOCK=_batches.CHUNK)
    return out


class Recorder:
    """Captures of a training; ``install`` makes the package believe that it runs on a device that can be captured."""

    def __init__(self):
        self.tape, self.fit, self.captured, self.replayed = None, None, 0, 0

    def install(self, monkeypatch):
        upload = _batches.upload
        assert _batches.has_triton("cpu")  # remembered: the kernels that are put in place below are no interpreter's

        def checked(target, values):
            assert self.tape is None, "an upload inside a capture"
            upload(target, values)

        monkeypatch.setattr("bitsback.training.loop.Fit._read", lambda fit, number: number.detach().double())  # as on a GPU
        monkeypatch.setattr(_batches, "is_capturing", lambda device: self.tape is not None)
        monkeypatch.setattr(_batches, "upload", checked)
        monkeypatch.setattr("bitsback.model.noise.fill_normals", fill)
        for name in ("fill_kernel", "sweep_kernel", "reduce_kernel"):
            monkeypatch.setattr(_triton, name, Launches(getattr(_triton, name), self))
        return self

    def trial(self):
        return nullcontext(SimpleNamespace(waits=""))

    @contextmanager
    def _nothing_happens(self):
        """A capture runs nothing on the device: everything is as it was afterwards."""
        fit = self.fit
        live = [*fit.model.parameters(), *fit.model.buffers(), *fit.likelihood.parameters(), *fit.likelihood.buffers()]
        live += tensors([list(state.values()) for state in fit.optimizer.state.values()])
        live += [t for batch, _ in fit.optimizer._kernel.parts for t in (batch.sums, batch.narrow, batch.totals)]
        live += tensors([fit.optimizer.grad_norm])
        saved = [tensor.detach().clone() for tensor in live]
        yield
        with torch.no_grad():
            for tensor, value in zip(live, saved, strict=True):
                tensor.data.copy_(value)

    def capture(self, body):
        self.captured += 1
        with self._nothing_happens() if self.fit is not None else nullcontext():
            self.tape = tape = []
            try:
                with Operators(tape):
                    result = body()
            finally:
                self.tape = None
        return Call(self, tape, result)


class Call:
    def __init__(self, recorder, tape, result):
        self.recorder, self.tape, self.result = recorder, tape, result

    def replay(self):
        self.recorder.replayed += 1
        with torch.no_grad():
            for operation in self.tape:
                operation()
        return self.result
