"""Training steps that draw outputs in place of weights, in the layers where that is the same objective."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitsback.layers.outputs import called_once_per_row, noise_on_outputs
from bitsback.model import BayesianModel
from bitsback.model.accounting import seeded
from bitsback.model.buffers import unmoved
from bitsback.model.model import OutputLayer
from bitsback.model.noise import OutputNoise
from bitsback.posteriors import GaussianPosterior

__all__ = ["DrawnOutputs", "called_modules", "safe_modules"]


class DrawnOutputs:
    """The layers of a model whose outputs are drawn while it trains; their weights hold means meanwhile.

    Args:
        model: whose :attr:`BayesianModel.output_layers` are looked at.
        batches: inputs to try out: what ``auto`` says is proven on each of them, in the modes that the modules are in.
        reuse: of the noise, see :class:`bitsback.model.noise.PooledNoise`.
    """

    def __init__(self, model: BayesianModel, batches: Sequence[Tensor], reuse: int) -> None:
        self.model, self.reuse = model, reuse
        self.layers: list[OutputLayer] = []
        self.try_out(batches)

    def try_out(self, batches: Sequence[Tensor]) -> None:
        """Decide which layers take part."""
        wanted = self.model.output_layers
        open_questions = [layer.module for layer in wanted if not layer.asked]
        found = safe_modules(self.model, open_questions, batches) if open_questions else set()
        found |= called_modules(self.model, [layer.module for layer in wanted if layer.asked], batches)
        self.layers = [layer for layer in wanted if layer.module in found]
        self._shape = batches[0].shape[1:] if batches else None
        inside = {weight.index for layer in self.layers for weight in layer.weights}
        for weight in self.model.weights:
            weight.noise_on_outputs = weight.index in inside
        self._noise = OutputNoise(self.reuse, self.model.noise_source)
        self.model.hold(self.model.state)

    def release(self) -> None:
        """Let all weights hold draws again."""
        for weight in self.model.weights:
            weight.noise_on_outputs = False
        self.model.hold(self.model.state)

    @contextmanager
    def step(self, inputs: Tensor) -> Iterator[None]:
        """Inside, forward and backward of a step: the gradients of log stds are left with those parameters."""
        if inputs.shape[1:] != self._shape:
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
        if self.model.state.sign > 0:  # a mirrored draw has the number of the one before: its outputs go on from there
            self._noise.begin(self.model.seed, self.model.draw_number)
        with noise_on_outputs(layers, self._noise):
            yield
        for q, variance in variances:
            if variance.grad is None:
                continue
            slope = variance.grad.mul_(variance.detach()).mul_(2)
            q.log_std.grad = slope if q.log_std.grad is None else q.log_std.grad.add_(slope)


@torch.no_grad()
def safe_modules(model: BayesianModel, modules: Sequence[nn.Module], batches: Sequence[Tensor]) -> set[nn.Module]:
    """Return the modules whose outputs can be drawn afresh for each row without another objective.

    Shown on each batch: the module is called once in a forward, with one row for each example, and row i of the network's
    output depends on row i alone of its input, and of the module's output: the rows of a layer inside a network of one's own
    may be anything, such as the nodes of a graph that the inputs are numbers of. Buffers and random generators are left alone.
    """
    found = set(modules)
    for inputs in batches:
        with unmoved(model.network):
            calls = called_once_per_row(partial(_outputs, model, inputs), modules, len(inputs))
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
def called_modules(model: BayesianModel, modules: Sequence[nn.Module], batches: Sequence[Tensor]) -> set[nn.Module]:
    """Return the modules that are called; the weights of others, such as attention's ``out_proj``, are read by their owner."""
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


def _rows_stand_alone(model: BayesianModel, inputs: Tensor, modules: Collection[nn.Module]) -> bool:
    """Return whether outputs of some rows stay when the inputs of the others are exchanged, and the others' rows in modules.

    The rows are parted by each binary digit of their number, so that any two are parted once.
    """
    rows = len(inputs)
    if rows < 2:
        return False
    before = _outputs(model, inputs)
    if not before or any(not isinstance(leaf, Tensor) or not leaf.ndim or len(leaf) != rows for leaf in before):
        return False
    changed, numbers = _changed(inputs), torch.arange(rows, device=inputs.device)
    for digit in range((rows - 1).bit_length()):
        ones = (numbers >> digit) % 2 == 1
        for kept in (ones, ~ones):
            others = inputs.clone()
            others[~kept] = changed[~kept]
            if torch.equal(others, inputs) or not _stay(before, _moved(model, others, modules, ~kept), kept):
                return False
    return True


def _moved(model: BayesianModel, inputs: Tensor, modules: Collection[nn.Module], rows: Tensor) -> list[Any] | None:
    """The network's outputs when some rows of the modules' outputs are moved; None where it cannot be run on such inputs."""

    def move(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        moved = output.clone()
        moved[rows] = 1 + _changed(output)[rows]
        return moved

    handles = [module.register_forward_hook(move) for module in modules]
    try:
        return _outputs(model, inputs)
    except (RuntimeError, ValueError, LookupError, ArithmeticError):  # what was changed may be numbers of something
        return None
    finally:
        for handle in handles:
            handle.remove()


def _stay(before: Sequence[Tensor], after: Sequence[Any] | None, kept: Tensor) -> bool:
    """Return whether the rows of outputs that are kept are what they were."""
    if after is None or len(before) != len(after):
        return False
    for a, b in zip(before, after, strict=True):
        scale = float(a[kept].abs().max())
        if a.shape != b.shape or not bool(((a[kept] - b[kept]).abs() <= 1e-4 * scale).all()):
            return False
    return True


def _changed(inputs: Tensor) -> Tensor:
    """Other rows of the same kind: real numbers turned round and moved, whole ones each row the one before."""
    if not inputs.is_floating_point():
        return inputs.roll(1, 0)
    return -1.5 * inputs.flip(0) + 0.25 * inputs.std(correction=0)


def _outputs(model: BayesianModel, inputs: Tensor) -> list[Any]:
    with seeded(0, inputs.device), _held_statistics(model.network):  # dropout drops the same each time
        return pytree.tree_leaves(model.network(inputs))


@contextmanager
def _held_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, batch normalisation takes its running statistics, as it does where bits are counted.

    In train mode it mixes the rows of a batch, but no row shares a draw for that: with weights drawn instead, a batch would be
    normalised under a draw that the running statistics never see.
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
