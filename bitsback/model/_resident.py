"""The weights of a network that hold the current draw, and what puts it there.

Every chosen parameter stays the network's own and *holds* a value: a draw m + s e, or the mean. A draw is an event
(:meth:`Resident.draw`), not a read; in between, every forward sees the value that is there. The value follows from the
posterior and from (seed, number, sign) alone, so it can be made again, compared, and left out of what is saved.

The gradient of the width needs nothing from the forward pass: for w = m + s e it is g s e = g (w - m), with g the gradient that
autograd leaves at the weight. When a weight goes from a to b while g is pending, ``log_std.grad -= g (b - a)`` keeps the sum
right for any number of draws (summation by parts), while ``w.grad`` stays the plain sum that every framework expects.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitsback.errors import LayerError
from bitsback.model._backward_check import watch
from bitsback.model._values import Values
from bitsback.model.buffers import unmoved
from bitsback.model.noise import BlockNoise, Noise, PooledNoise
from bitsback.model.weight import State, Weight, carry, difference, differs
from bitsback.posteriors import GaussianPosterior

__all__ = ["Resident"]

HALF = (torch.float16, torch.bfloat16)


class Resident(Values):
    """A network whose weights hold the current draw of their posteriors; :class:`BayesianModel` adds the accounts."""

    network: nn.Module
    is_moving = False
    is_alone = False
    """Whether the network is one layer of :mod:`bitsback.nn` that belongs to no larger model yet."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._samples = 0
        self._placed, self._issued, self._reached = 0, 0, -1
        self._is_released, self._holds_state, self._keeps = False, True, 0
        self.loss_is_sum, self._loss_looks = False, 3
        self.register_load_state_dict_post_hook(_after_loading)
        self.register_state_dict_pre_hook(_before_saving)

    def start(self) -> None:
        """Take the weights over: from now on they hold draws."""
        self.hold(self._state._replace(holds="draw" if self.training else "mean"))

    def release(self) -> None:
        """Let go of the network, which another model takes over."""
        if self._is_released:
            return
        self.honour_edits(everywhere=True)
        self._is_released = True

    # what is held

    @property
    def training(self) -> bool:
        """True in train mode. Eval mode places the means, train mode puts the same draw back, whoever sets it.

        Inside ``sample()`` and ``mean()`` the weights go on holding what they hold there; the mode counts afterwards.
        """
        return bool(self.__dict__.get("_training", True))

    @training.setter
    def training(self, mode: bool) -> None:
        before = self.training
        self.__dict__["_training"] = bool(mode)
        if before != bool(mode) and self.__dict__.get("weights") and not self._keeps:
            self.honour_edits(everywhere=self.holds == "mean")
            self.hold(self._state._replace(holds="draw" if mode else "mean"))

    def draw(self) -> None:
        """Put the next draw m + s e into all weights at once; edits made since the last one become means."""
        self.check_refs()
        self.honour_edits()
        self.hold(self.next_state())

    def mirror(self) -> None:
        """Put the mirror image m - s e of the draw that is there into all weights: the second of an antithetic pair."""
        self.honour_edits()
        self.hold(self._state._replace(sign=-self._state.sign))

    def check_refs(self) -> None:
        """Raise LayerError when a weight no longer lies where it lay in the network."""
        present = set(map(id, self.network.modules()))
        for weight in self.weights:
            for ref in weight.refs:
                if id(ref.owner) not in present or ref.owner._parameters.get(ref.local) is not weight.known:
                    _ = weight.parameter  # says so where it lies in its first place
                    raise LayerError(
                        f"the network no longer reads '{ref.name}' where it was at bayesianize: its module was replaced; "
                        "make a new model of the changed network"
                    )

    @contextmanager
    def sample(self, seed: int | None = None) -> Iterator[Any]:
        """Inside, the weights hold one draw that is not a training draw, as a receiver would see it; a fresh one each time.

        What forward passes inside do to running statistics is undone.

        Args:
            seed: of the draw; default: the model's own seed and a counter, which are saved with it.
        """
        self._samples += 1
        number = -self._samples if seed is None else -1
        with self.keeping(), unmoved(self.network):
            self.hold(State("draw", self.seed if seed is None else seed, number))
            yield self

    @contextmanager
    def mean(self) -> Iterator[Any]:
        """Inside, every weight is its posterior mean; what is written to a weight here becomes its mean."""
        if self.holds == "mean":
            self.honour_edits(everywhere=True)
            with self._mode_counts_later():
                try:
                    yield self
                finally:
                    self.honour_edits()
            return
        with self.keeping():
            self.hold(self._state._replace(holds="mean"))
            yield self

    @contextmanager
    def holding(self, values: Mapping[str, Tensor]) -> Iterator[Any]:
        """Inside, the weights hold these values, by name; the posteriors stay what they are."""
        with self.keeping(honour=False):
            torch.clear_autocast_cache()
            with torch.no_grad():
                for weight in self.weights:
                    parameter = weight.parameter
                    before = parameter.clone() if weight.is_gaussian and parameter.grad is not None else None
                    parameter.copy_(values[weight.name])
                    if before is not None:
                        carry(weight, difference(weight, parameter, before))
                    weight.mark()
            self._holds_state, self._placed = False, self._issue()
            yield self

    @contextmanager
    def keeping(self, *, honour: bool = True) -> Iterator[None]:
        """Inside, :meth:`place` may put anything into the weights; afterwards, or after an error, they hold what they held."""
        self.honour_edits(everywhere=True)
        before, placed, reached = self._state, self._placed, self._reached
        posteriors = [weight.versions()[1:] for weight in self.weights]
        with self._mode_counts_later():
            try:
                yield
            finally:
                if honour:
                    self.honour_edits(everywhere=self.holds == "mean")
                self.hold(before)
                if [weight.versions()[1:] for weight in self.weights] == posteriors:  # the very values of before
                    self._placed, self._reached = placed, reached

    @contextmanager
    def _mode_counts_later(self) -> Iterator[None]:
        mode = self.training
        self._keeps += 1
        try:
            yield
        finally:
            self._keeps -= 1
            if self.training != mode and not self._keeps:
                self.hold(self._state._replace(holds="draw" if self.training else "mean"))

    def _issue(self) -> int:
        """Return a number for what the weights hold from now on."""
        self._issued += 1
        return self._issued

    @torch.no_grad()
    def hold(self, state: State) -> None:
        """Write what ``state`` says into every weight; pending gradients are carried over to the widths."""
        torch.clear_autocast_cache()  # an autocast region keeps casts of the old draw
        self._put(self.weights, state)
        self._state, self._holds_state = state, True
        self._placed = self._issue()

    def _put(self, weights: Sequence[Weight], state: State) -> None:
        pending = [weight for weight in weights if weight.is_gaussian and weight.parameter.grad is not None]
        coarse = [weight for weight in pending if self._holds_state and weight.is_coarse]
        noise = self.noise_of(self._state) if coarse else None
        spreads = {weight.index: self.spread(weight, self._state, noise) for weight in coarse}
        others = {weight.index for weight in pending} - spreads.keys()
        noise = self.noise_of(state) if weights else None
        for weight in weights:
            parameter = weight.parameter
            before = parameter.detach().clone() if weight.index in others else None
            self._write(weight, parameter, state, noise)
            q = weight.posterior
            if isinstance(q, GaussianPosterior) and parameter.grad is None:
                q.log_std.grad = None  # somebody has cleared the network's gradients alone
            if weight.index in spreads:
                carry(weight, self.spread(weight, state, noise).sub_(spreads.pop(weight.index)))
            elif before is not None:
                carry(weight, difference(weight, parameter, before))
            weight.mark()

    def _write(self, weight: Weight, parameter: Tensor, state: State, noise: Tensor | None) -> None:
        q = weight.posterior
        value = self.value(weight, state, noise)
        parameter.copy_(q.mean if value is None else value)

    def set_noise(self, source: Noise | None = None, reuse: int = 1, seed: int | None = None) -> None:
        """Choose where the noise of training draws comes from, and draw: their numbers begin anew when a seed is given.

        Args:
            source: default: torch's generator.
            reuse: how many draws use a number; see :class:`PooledNoise`.
            seed: of the training draws to come.
        """
        self.honour_edits(everywhere=True)
        self._noise = source or BlockNoise()
        drawn = [w for w in self.weights if w.is_gaussian and (w.prior.needs_draw or not w.noise_on_outputs)]
        self._offsets, size = {}, 0
        for weight in drawn:
            self._offsets[weight.index] = size
            size += weight.posterior.numel
        self._pool = PooledNoise(size, reuse, drawn[0].posterior.mean, self._noise) if drawn and reuse > 1 else None
        state = self._state
        self.hold(state if seed is None else State(state.holds, seed, 0))

    @torch.no_grad()
    def moved_to(self, state: State, written: set[int]) -> None:
        """An optimiser has written the draw of ``state`` into some weights, by number; write it into the others."""
        torch.clear_autocast_cache()
        others = [weight for weight in self.weights if weight.index not in written]
        self._put(others, state)
        self._state = state
        self._placed = self._issue()

    def take_loaded(self) -> None:
        """Place the draw of posteriors that were loaded."""
        _after_loading(self, None)

    # edits

    def _is_stale(self) -> bool:
        return any(weight.versions() != weight.seen for weight in self.weights)

    @torch.no_grad()
    def honour_edits(self, *, everywhere: bool = False) -> None:
        """Make means of what others have written to the weights: elements that differ from the draw beyond rounding.

        Args:
            everywhere: compare all weights; else those whose version moved: writes through ``.data`` or numpy do not.

        Raises:
            LayerError: when an optimiser that is not ours has moved the draws.
        """
        if self._is_released:
            raise LayerError("this model's network was given to another model since; use that one, or give it a copy.deepcopy")
        if everywhere:
            self.check_refs()
        moved = [weight for weight in self.weights if everywhere or weight.versions() != weight.seen]
        if not moved or not self._holds_state:
            return
        noise = self.noise_of(self._state)
        again: list[Weight] = []
        for weight in moved:
            parameter, q = weight.parameter, weight.posterior
            versions = weight.versions()
            own, mean, *log_std = [now != then for now, then in zip(versions, weight.seen, strict=True)]
            own = own and not weight.is_rewritten_in_forward
            if mean or any(log_std):
                weight.is_narrow = None
            has_other_width = any(log_std) and self._is_drawn(weight, self._state)
            if mean or (has_other_width and not own):  # whoever sets a mean wants that mean
                again.append(weight)
            elif (own or everywhere) and not weight.is_rewritten_in_forward:
                value = self.value(weight, None, noise)
                changed = differs(parameter, q.mean if value is None else value, q)
                if has_other_width and bool(changed.any()):  # what was drawn cannot be made again, to compare with
                    raise LayerError(
                        f"'{weight.name}' and its log_std were both written to since the last draw, and what was meant as a "
                        "mean cannot be told: write weights inside `with model.mean():`"
                    )
                self._take_edits(weight, parameter, changed)
            weight.mark()
        for weight in again:
            self._write(weight, weight.parameter, self._state, noise)
            weight.mark()
        if again:
            torch.clear_autocast_cache()

    def _take_edits(self, weight: Weight, parameter: Tensor, changed: Tensor) -> None:
        if not bool(changed.any()):
            return
        is_reached = self.holds == "draw" and (
            self._reached == self._placed or (parameter.grad is not None and not weight.has_used_gradient)
        )
        if is_reached and self.training and bool(changed.float().mean() > 0.5):
            raise LayerError(
                f"something has moved the draw in '{weight.name}' after a backward pass, as an optimiser does that knows no "
                "posterior: train with bitsback.optim.Adam(model, lr=1e-3, examples=N) in its place; to edit weights, write "
                "them inside `with model.mean():`"
            )
        weight.is_narrow = None
        mean = weight.posterior.mean
        mean.copy_(torch.where(changed, parameter.to(mean.dtype), mean))

    # forward and backward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output under what its weights hold now."""
        if torch.compiler.is_compiling():
            return self.network(*args, **kwargs)
        if self._is_stale() and not self._is_inside_a_transform():
            self.honour_edits()
        output = self.network(*args, **kwargs)
        if torch.is_grad_enabled():
            watch(self, output)
        return output

    def _is_inside_a_transform(self) -> bool:
        """True within torch.func: other tensors may lie in place of the parameters."""
        return any(weight.owner._parameters.get(weight.local) is not weight.known for weight in self.weights)

    # moves, copies, files

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or cast everything; means and log stds stay float32 or wider, and the weights hold the same draw."""
        if not self.weights or self._is_released:
            return super()._apply(fn, recurse)
        self.is_moving = True
        self.honour_edits(everywhere=True)
        wide = [(p, p.data) for weight in self.weights for p in weight.posterior.parameters()]
        try:
            super()._apply(fn, recurse)
        finally:
            self.is_moving = False
        for parameter, before in wide:
            if parameter.dtype in HALF:
                parameter.data = fn(before).to(before.dtype) if before.dtype in HALF else before.to(parameter.device)
        for weight in self.weights:
            weight.known = self._found_again(weight)
        self._pool_moved()
        self.hold(self._state)
        return self

    def _found_again(self, weight: Weight) -> nn.Parameter:
        """The parameter in its place: torch may make new objects when it converts a module."""
        found = weight.owner._parameters[weight.local]
        assert found is not None
        return found

    def _pool_moved(self) -> None:
        if self._pool is not None:
            mean = next(weight.posterior.mean for weight in self.weights if weight.is_gaussian)
            self._pool = PooledNoise(self._pool.size, self._pool.reuse, mean, self._noise)

    def __getstate__(self) -> dict[str, Any]:
        if self.weights and not self._is_released:
            self.honour_edits(everywhere=True)
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for weight in self.weights:  # a copy counts its versions from the start
            weight.mark()

    def get_extra_state(self) -> Tensor:
        """Return seed, number, sign of the draw, the count of samples, and 1 for a draw, 0 for the means."""
        state = self._state
        return torch.tensor([state.seed, state.number, state.sign, self._samples, int(state.holds == "draw")])

    def set_extra_state(self, state: Tensor) -> None:
        """Take them over; the weights are placed when everything has been loaded."""
        seed, number, sign, self._samples, _ = (int(value) for value in state)
        self._state = State(self._state.holds, seed, number, sign)


def _before_saving(model: Resident, *_: Any) -> None:
    """What others have written to the weights is saved as their means."""
    if model.weights and not model._is_released:
        model.honour_edits(everywhere=True)


def _after_loading(model: Resident, _keys: Any) -> None:
    """After a state was loaded: what came with its posterior is no edit; what came alone is the new mean."""
    loaded = [weight for weight in model.weights if weight.posterior.take_loaded()]
    if not loaded:
        return model.honour_edits()
    with torch.no_grad():
        for weight in model.weights:
            weight.is_narrow = None
            if weight not in loaded and weight.versions() != weight.seen:
                weight.posterior.mean.copy_(weight.parameter)
    model.hold(model._state)
    return None
