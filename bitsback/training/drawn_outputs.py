"""Local reparameterisation in training: outputs are drawn in place of weights, if that leaves the objective unchanged."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitsback.distributed import ALONE, Ranks
from bitsback.inputs import Inputs, call, chosen, leaves, like, rows, structure
from bitsback.layers.outputs import called_once_per_row, noise_on_outputs
from bitsback.model import BayesianModel
from bitsback.model.buffers import unmoved
from bitsback.model.model import OutputLayer
from bitsback.model.noise import OutputNoise
from bitsback.posteriors import GaussianPosterior
from bitsback.torch_state import seeded

__all__ = ["DrawnOutputs", "called_modules", "safe_modules"]


class DrawnOutputs:
    """Local reparameterisation of some layers in training; their weights hold the means meanwhile.

    Args:
        model: whose :attr:`BayesianModel.output_layers` are candidates.
        batches: example inputs, on each of which candidates with estimator ``auto`` are tested in the current modes.
        reuse: reuse of the noise, see :class:`bitsback.model.noise.PooledNoise`.
    """

    def __init__(self, model: BayesianModel, batches: Sequence[Inputs], reuse: int) -> None:
        self.model, self.reuse = model, reuse
        self.layers: list[OutputLayer] = []
        self._tried: dict[str, set[nn.Module]] = {}
        self.try_out(batches)

    def try_out(self, batches: Sequence[Inputs]) -> None:
        """Select the layers whose outputs are drawn, by trial forwards on example inputs."""
        wanted = self.model.output_layers
        self._shape = structure(batches[0]) if batches else None
        found = self._tried.get(repr(self._shape))
        if found is None:
            open_questions = [layer.module for layer in wanted if not layer.asked]
            found = safe_modules(self.model, open_questions, batches) if open_questions else set()
            found |= called_modules(self.model, [layer.module for layer in wanted if layer.asked], batches)
            self._tried[repr(self._shape)] = found
        self.layers = [layer for layer in wanted if layer.module in found]
        inside = {weight.index for layer in self.layers for weight in layer.weights}
        for weight in self.model.weights:
            weight.noise_on_outputs = weight.index in inside
        self._noise = OutputNoise(self.reuse, self.model.noise_source)
        self.model.hold(self.model.state)

    def release(self) -> None:
        """Make all weights hold draws again."""
        for weight in self.model.weights:
            weight.noise_on_outputs = False
        self.model.hold(self.model.state)

    @contextmanager
    def step(self, inputs: Inputs, ranks: Ranks = ALONE, count: int = 0) -> Iterator[None]:
        """Context of forward and backward of a step; on exit, gradients of log stds are accumulated in their parameters.

        Args:
            inputs: (n, ...), of the step; a new shape repeats the selection of layers.
            ranks: processes that share the batch; each draws the outputs of its own rows.
            count: number of the batch's rows in all processes.

        Yields:
            nothing.
        """
        if self.model.output_layers and structure(inputs) != self._shape:
            self.try_out([inputs])
        if not self.layers:
            yield
            return
        variances: list[tuple[GaussianPosterior, Tensor]] = []
        layers: list[tuple[nn.Module, dict[str, Tensor]]] = []
        for layer in self.layers:
            own: dict[str, Tensor] = {}
            for weight in layer.weights:
                q = weight.posterior
                assert isinstance(q, GaussianPosterior)
                own[weight.local] = (2 * q.log_std).exp_().requires_grad_()
                variances.append((q, own[weight.local]))
            layers.append((layer.module, own))
        if self.model.state.sign > 0:  # a mirrored draw has the same number as the one before, and continues its noise
            self._noise.begin(self.model.state.noise_seed, self.model.draw_number)
            first, last = (0, 1) if self.model.state.lane else ranks.bounds(count) if count else (ranks.rank, ranks.rank + 1)
            self._noise.rows = first, last - first, 1 if self.model.state.lane else count or ranks.count
        with noise_on_outputs(layers, self._noise):
            yield
        # chain rule: d/dlog s = d/dvariance * 2 s^2
        for q, variance in variances:
            if variance.grad is None:
                continue
            slope = variance.grad.mul_(variance.detach()).mul_(2)
            q.log_std.grad = slope if q.log_std.grad is None else q.log_std.grad.add_(slope)


@torch.no_grad()
def safe_modules(model: BayesianModel, modules: Sequence[nn.Module], batches: Sequence[Inputs]) -> set[nn.Module]:
    """Find the modules whose outputs can be drawn independently for each row without a change of the objective.

    It is tested on each batch that a module is called once in a forward, with one row for each example, and that row i of the
    network's output depends only on row i of its input and of the module's output. Without the test, the rows of a layer inside
    a user's network could be anything, such as nodes of a graph that the inputs are indices of. Buffers and random generators
    are not changed.

    Args:
        model: the model.
        modules: candidates.
        batches: example inputs.

    Returns:
        the modules that pass on every batch.
    """
    found = set(modules)
    for inputs in batches:
        with unmoved(model.network):
            calls = called_once_per_row(partial(_outputs, model, inputs), modules, rows(inputs))
            found &= {module for module, once in calls.items() if once}
            if found and not _rows_stand_alone(model, inputs, found):
                if _rows_stand_alone(model, inputs, ()):
                    found = {module for module in found if _rows_stand_alone(model, inputs, [module])}
                else:
                    found.clear()
        if not found:
            break
    return found


@torch.no_grad()
def called_modules(model: BayesianModel, modules: Sequence[nn.Module], batches: Sequence[Inputs]) -> set[nn.Module]:
    """Find the modules that are called; weights of others, such as attention's ``out_proj``, are read by their parent module.

    Args:
        model: the model.
        modules: candidates.
        batches: example inputs, of which the first is used.

    Returns:
        the modules whose forward runs.
    """
    found: set[nn.Module] = set()
    handles = [module.register_forward_hook(lambda module, *_: found.add(module)) for module in modules]
    try:
        for inputs in batches[:1] if modules else ():
            with unmoved(model.network):
                _outputs(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _rows_stand_alone(model: BayesianModel, inputs: Inputs, modules: Collection[nn.Module]) -> bool:
    """Return whether output rows are unchanged if inputs, and outputs of ``modules``, of the other rows change.

    Rows are split by each binary digit of their index, so that any two rows are separated at least once.
    """
    parts, count = leaves(inputs), rows(inputs)
    if count < 2 or any(not part.ndim or len(part) != count for part in parts):
        return False
    before = _outputs(model, inputs)
    if not before or any(not isinstance(leaf, Tensor) or not leaf.ndim or len(leaf) != count for leaf in before):
        return False
    changed, numbers = [_changed(part) for part in parts], torch.arange(count, device=parts[0].device)
    for digit in range((count - 1).bit_length()):
        ones = (numbers >> digit) % 2 == 1
        for kept in (ones, ~ones):
            others = [
                torch.where(kept.view(-1, *[1] * (part.ndim - 1)), part, moved)
                for part, moved in zip(parts, changed, strict=True)
            ]
            same = all(map(torch.equal, others, parts))
            if same or not _stay(before, _moved(model, like(inputs, others), modules, ~kept), kept):
                return False
    return True


def _moved(model: BayesianModel, inputs: Inputs, modules: Collection[nn.Module], rows: Tensor) -> list[Any] | None:
    """Return the network's outputs with some rows of the modules' outputs changed; None if it fails on such inputs."""

    def move(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        moved = output.clone()
        moved[rows] = 1 + _changed(output)[rows]
        return moved

    handles = [module.register_forward_hook(move) for module in modules]
    try:
        return _outputs(model, inputs)
    except (RuntimeError, ValueError, LookupError, ArithmeticError):  # changed inputs may be invalid, such as indices
        return None
    finally:
        for handle in handles:
            handle.remove()


def _stay(before: Sequence[Tensor], after: Sequence[Any] | None, kept: Tensor) -> bool:
    """Return whether the kept rows of the outputs are unchanged, to within 1e-4 of their largest value."""
    if after is None or len(before) != len(after):
        return False
    for a, b in zip(before, after, strict=True):
        scale = float(a[kept].abs().max())
        if a.shape != b.shape or not bool(((a[kept] - b[kept]).abs() <= 1e-4 * scale).all()):
            return False
    return True


def _changed(inputs: Tensor) -> Tensor:
    """Return different rows of the same type: real numbers reversed and shifted, whole numbers moved by one row."""
    if not inputs.is_floating_point():
        return inputs.roll(1, 0)
    return -1.5 * inputs.flip(0) + 0.25 * inputs.std(correction=0)


def _outputs(model: BayesianModel, inputs: Inputs) -> list[Any]:
    with (
        seeded(0, leaves(inputs)[0].device),
        _held_statistics(model.network),
    ):  # seeded: dropout uses the same mask in each call
        return [chosen(call(model.network, inputs), model.output)]


@contextmanager
def _held_statistics(network: nn.Module) -> Iterator[None]:
    """Context in which batch normalisation uses its running statistics, as when bits are counted.

    In train mode it mixes the rows of a batch. This does not rule out drawing outputs: rows still share no draw. If weights
    were drawn instead, a batch would be normalised under a draw that the running statistics never see.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    held = [norm for norm in norms if norm.training]
    for norm in held:
        norm.training = False
    try:
        yield
    finally:
        for norm in held:
            norm.training = True
