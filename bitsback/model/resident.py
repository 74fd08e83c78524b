"""The weights of a network that hold the current draw, and what puts it there.

Every chosen parameter stays the network's own and *holds* a value: a draw m + s e, or the mean. A draw is an event
(:meth:`Resident.draw`), not a read; in between, every forward sees the value that is there. The value follows from the
posterior and from (seed, number, sign) alone, so it can be made again, compared, and left out of what is saved.

The gradient of the width needs nothing from the forward pass: for w = m + s e it is g s e = g (w - m), with g the gradient that
autograd leaves at the weight. When a weight goes from a to b while g is pending, ``log_std.grad -= g (b - a)`` keeps the sum
right for any number of draws (summation by parts), while ``w.grad`` stays the plain sum that every framework expects.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitsback.errors import LayerError
from bitsback.layers import Choice
from bitsback.model.buffers import unmoved
from bitsback.model.noise import BlockNoise, Noise, PooledNoise, mixed
from bitsback.model.pieces import side_by_side
from bitsback.posterior import GaussianPosterior, Posterior
from bitsback.priors import Prior

ROUNDING = 8
"""Units in the last place by which a value made again may differ."""

COARSE = 2.0**-12
"""A std below this share of its mean: w - m has lost too many of its digits, and the noise is made again from its seed."""

NOTHING = 2.0**-40
"""A std below this share of its mean moves nothing."""

HALF = (torch.float16, torch.bfloat16)
Holds = Literal["draw", "mean"]


class State(NamedTuple):
    """What the weights hold: their means, or the draw of a seed and a number, mirrored where the sign is -1."""

    holds: Holds
    seed: int
    number: int
    sign: int = 1


class Weight:
    """One weight tensor of a network, with its posterior and its prior.

    Attributes:
        name: dotted name in the network.
        posterior, prior: q and p.
        number: which of the network's weight tensors it is; a stream of noise.
        noise_on_outputs: a training adds noise to the outputs of its layer, and lets the weight hold its mean.
        is_narrow: stds lie far below their means, as :meth:`look` found it; None where others have set the posterior since.
    """

    def __init__(self, choice: Choice, posterior: Posterior, prior: Prior, number: int) -> None:
        self.name, self.places, self.number = choice.name, choice.places, number
        self.posterior, self.prior = posterior, prior
        self.known = choice.places[0].parameter
        self.noise_on_outputs = False
        self.is_narrow: bool | None = None
        self._used: tuple[Any, int] | None = None
        self.seen: tuple[int, ...] = ()
        owner = self.owner
        self.constant_row: int | None = getattr(owner, "padding_idx", None) if self.local == "weight" else None
        self.is_rewritten_in_forward = getattr(owner, "max_norm", None) is not None

    @property
    def owner(self) -> nn.Module:
        """The first module that reads it."""
        return self.places[0].owner

    @property
    def local(self) -> str:
        """Its name there."""
        return self.places[0].local

    @property
    def parameter(self) -> nn.Parameter:
        """The network's parameter, which holds the current draw.

        Raises:
            LayerError: when another parameter lies in its place.
        """
        found = self.owner._parameters.get(self.local)
        if found is not self.known:
            what = "was replaced by another parameter" if found is not None else "is gone"
            raise LayerError(
                f"'{self.name}' {what} since bayesianize; write into it (with torch.no_grad(): weight.copy_(...)), or make a "
                "new model of the changed network"
            )
        if found.shape != next(iter(self._parts())).shape:
            raise LayerError(
                f"'{self.name}' has changed its shape from {tuple(self.posterior.mean.shape)} to {tuple(found.shape)} since "
                "bayesianize; make a new model of the changed network"
            )
        return found

    @property
    def is_gaussian(self) -> bool:
        """Whether it is drawn at all."""
        return isinstance(self.posterior, GaussianPosterior)

    @property
    def is_trained(self) -> bool:
        """Whether an optimiser may move it: frozen weights do not require gradients."""
        return self.known.requires_grad

    @torch.no_grad()
    def look(self) -> None:
        """See whether some std is so far below its mean that w - m has too few digits."""
        q = self.posterior
        if isinstance(q, GaussianPosterior):
            self.is_narrow = any(_has_narrow(m, log_std) for m, log_std in side_by_side(q.mean, q.log_std))

    @property
    def is_coarse(self) -> bool:
        """Whether s e has to be made again, for the weight holds too few digits of it."""
        if self.is_gaussian and self.is_narrow is None:
            self.look()
        return self.is_gaussian and (bool(self.is_narrow) or self.known.dtype != next(iter(self._parts())).dtype)

    def tensors(self) -> list[Tensor]:
        """The parameter, and its posterior's: mean, and log std unless it is a point."""
        return [self.parameter, *self._parts()]

    def _parts(self) -> Iterable[Tensor]:
        """Mean and log std, without torch's walk through modules."""
        return self.posterior._parameters.values()  # type: ignore[return-value]

    def versions(self) -> tuple[int, ...]:
        """What tells that somebody has written to the weight or its posterior."""
        return (self.known._version, *[part._version for part in self._parts()])

    def use_gradient(self) -> None:
        """Remember that an optimiser's step has used the gradient."""
        gradient = self.known.grad
        self._used = (weakref.ref(gradient), gradient._version) if gradient is not None else None

    @property
    def has_used_gradient(self) -> bool:
        """Whether the gradient is one that a step has used."""
        if self._used is None:
            return False
        gradient = self.known.grad
        return gradient is not None and self._used[0]() is gradient and self._used[1] == gradient._version

    def mark(self) -> None:
        """Remember that the weight holds what was written last."""
        self.seen = self.versions()

    def __getstate__(self) -> dict[str, Any]:
        moved = tuple(now != then for now, then in zip(self.versions(), self.seen, strict=True)) if self.seen else ()
        return {**self.__dict__, "seen": moved, "_used": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a copy over: tensors of a copy count their versions anew, and what was written to stays so."""
        self.__dict__.update(state)
        self.seen = tuple(now - moved for now, moved in zip(self.versions(), self.seen, strict=True)) if self.seen else ()

    def __repr__(self) -> str:
        return f"Weight({self.name!r}, {self.posterior}, {self.prior})"


class Resident(nn.Module):
    """A network whose weights hold the current draw of their posteriors; :class:`BayesianModel` adds the accounts."""

    network: nn.Module
    weights: list[Weight]
    is_moving = False
    is_alone = False
    """Whether the network is one layer of :mod:`bitsback.nn` that belongs to no larger model yet."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weights = []
        self._state = State("draw", seed, 0)
        self._samples = 0
        self._noise: Noise = BlockNoise()
        self._pool: PooledNoise | None = None
        self._offsets: dict[int, int] = {}
        self._placed, self._issued, self._reached = 0, 0, -1
        self._is_released, self._holds_state, self._keeps = False, True, 0
        self.loss_is_sum, self._loss_looks = False, 3
        self.register_load_state_dict_post_hook(_after_loading)
        self.register_state_dict_pre_hook(_before_saving)

    def start(self) -> None:
        """Take the weights over: from now on they hold draws."""
        self.place(self._state._replace(holds="draw" if self.training else "mean"))

    def release(self) -> None:
        """Let go of the network, which another model takes over."""
        if self._is_released:
            return
        self.honour_edits(everywhere=True)
        self._is_released = True

    # what is held

    @property
    def seed(self) -> int:
        """Of all training draws."""
        return self._state.seed

    @property
    def draw_number(self) -> int:
        """How many training draws there have been; with the seed, it says what the weights hold."""
        return self._state.number

    @property
    def holds(self) -> Holds:
        """Return ``draw`` or ``mean``: what a forward pass sees now."""
        return self._state.holds

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
            self.place(self._state._replace(holds="draw" if mode else "mean"))

    def draw(self) -> None:
        """Put the next draw m + s e into all weights at once; edits made since the last one become means."""
        self.check_places()
        self.honour_edits()
        self.place(self.next_state())

    def mirror(self) -> None:
        """Put the mirror image m - s e of the draw that is there into all weights: the second of an antithetic pair."""
        self.honour_edits()
        self.place(self._state._replace(sign=-self._state.sign))

    def check_places(self) -> None:
        """Raise LayerError when a weight no longer lies where it lay in the network."""
        present = set(map(id, self.network.modules()))
        for weight in self.weights:
            for place in weight.places:
                if id(place.owner) not in present or place.owner._parameters.get(place.local) is not weight.known:
                    _ = weight.parameter  # says so where it lies in its first place
                    raise LayerError(
                        f"the network no longer reads '{place.name}' where it was at bayesianize: its module was replaced; "
                        "make a new model of the changed network"
                    )

    def next_state(self) -> State:
        """Return the state after the next :meth:`draw`."""
        return self._state._replace(holds="draw", number=self._state.number + 1, sign=1)

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
            self.place(State("draw", self.seed if seed is None else seed, number))
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
            self.place(self._state._replace(holds="mean"))
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
                        _carry(weight, _difference(weight, parameter, before))
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
                self.place(before)
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
                self.place(self._state._replace(holds="draw" if self.training else "mean"))

    def _issue(self) -> int:
        """Return a number for what the weights hold from now on."""
        self._issued += 1
        return self._issued

    @torch.no_grad()
    def place(self, state: State) -> None:
        """Write what ``state`` says into every weight; pending gradients are carried over to the widths."""
        torch.clear_autocast_cache()  # an autocast region keeps casts of the old draw
        self._put(self.weights, state)
        self._state, self._holds_state = state, True
        self._placed = self._issue()

    def _put(self, weights: Sequence[Weight], state: State) -> None:
        pending = [weight for weight in weights if weight.is_gaussian and weight.parameter.grad is not None]
        coarse = [weight for weight in pending if self._holds_state and weight.is_coarse]
        noise = self.noise_of(self._state) if coarse else None
        spreads = {weight.number: self.spread(weight, self._state, noise) for weight in coarse}
        others = {weight.number for weight in pending} - spreads.keys()
        noise = self.noise_of(state) if weights else None
        for weight in weights:
            parameter = weight.parameter
            before = parameter.detach().clone() if weight.number in others else None
            self._write(weight, parameter, state, noise)
            q = weight.posterior
            if isinstance(q, GaussianPosterior) and parameter.grad is None:
                q.log_std.grad = None  # somebody has cleared the network's gradients alone
            if weight.number in spreads:
                _carry(weight, self.spread(weight, state, noise).sub_(spreads.pop(weight.number)))
            elif before is not None:
                _carry(weight, _difference(weight, parameter, before))
            weight.mark()

    def _write(self, weight: Weight, parameter: Tensor, state: State, noise: Tensor | None) -> None:
        q = weight.posterior
        value = self.value(weight, state, noise)
        parameter.copy_(q.mean if value is None else value)

    def value(self, weight: Weight, state: State | None = None, noise: Tensor | None = None) -> Tensor | None:
        """Return what ``state`` (default: the current one) says that a weight holds; None where that is its mean."""
        state = state or self._state
        q = weight.posterior
        if not isinstance(q, GaussianPosterior) or not self._is_drawn(weight, state):
            return None
        drawn = torch.addcmul(q.mean, q.std(), self.noise(weight, state, noise), value=float(state.sign))
        if weight.constant_row is not None:
            drawn[weight.constant_row] = q.mean[weight.constant_row]
        return drawn.detach()

    def _is_drawn(self, weight: Weight, state: State) -> bool:
        """Whether a weight holds more than its mean."""
        return state.holds == "draw" and weight.is_gaussian and not (weight.noise_on_outputs and state.number >= 0)

    def spread(self, weight: Weight, state: State, noise: Tensor | None = None) -> Tensor:
        """Return w - m of a state, made from its noise and so with all of its digits; zero where the weight holds its mean."""
        q = weight.posterior
        if not isinstance(q, GaussianPosterior) or not self._is_drawn(weight, state):
            return torch.zeros_like(q.mean, requires_grad=False)
        spread = q.std().detach().mul_(self.noise(weight, state, noise)).mul_(state.sign)
        if weight.constant_row is not None:
            spread[weight.constant_row] = 0
        return spread

    def noise(self, weight: Weight, state: State, pooled: Tensor | None = None) -> Tensor:
        """Return e of a draw: standard normal numbers in the shape and memory order of the posterior's mean."""
        mean = weight.posterior.mean
        out = torch.empty_like(mean, requires_grad=False)
        flat = as_row(out)
        if pooled is None or weight.number not in self._offsets:
            self._noise.fill(flat, state.seed, state.number, weight.number)
        else:
            flat.copy_(pooled[self._offsets[weight.number] : self._offsets[weight.number] + len(flat)])
        return out

    def noise_of(self, state: State) -> Tensor | None:
        """Return the pool's numbers of a training draw, for all weights after each other; None where there is no pool."""
        is_pooled = self._pool is not None and state.holds == "draw" and state.number >= 0
        return self._pool.at(state.seed, state.number) if is_pooled and self._pool is not None else None

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
            self._offsets[weight.number] = size
            size += weight.posterior.weights
        self._pool = PooledNoise(size, reuse, drawn[0].posterior.mean, self._noise) if drawn and reuse > 1 else None
        state = self._state
        self.place(state if seed is None else State(state.holds, seed, 0))

    def state_of_means(self) -> State:
        """Return the state in which every weight is its mean."""
        return self._state._replace(holds="mean")

    @property
    def state(self) -> State:
        """What the weights hold."""
        return self._state

    @property
    def noise_source(self) -> Noise:
        """Where the noise of draws comes from."""
        return self._noise

    @property
    def pooled(self) -> dict[int, int]:
        """Where the pool keeps the numbers of a weight, by the weight's own."""
        return self._offsets

    @torch.no_grad()
    def moved_to(self, state: State, written: set[int]) -> None:
        """An optimiser has written the draw of ``state`` into some weights, by number; write it into the others."""
        torch.clear_autocast_cache()
        others = [weight for weight in self.weights if weight.number not in written]
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
            self.check_places()
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
                changed = _differs(parameter, q.mean if value is None else value, q)
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
            self._watch(output)
        return output

    def _is_inside_a_transform(self) -> bool:
        """True within torch.func: other tensors may lie in place of the parameters."""
        return any(weight.owner._parameters.get(weight.local) is not weight.known for weight in self.weights)

    def _watch(self, output: Any) -> None:
        """Make the backward pass raise unless the weights still hold what they held in the forward pass."""
        own, placed = weakref.ref(self), self._placed

        def check(gradient: Tensor) -> None:
            model = own()
            if model is None:
                return
            if model._placed != placed:
                raise LayerError(
                    "the weights hold another draw than in the forward pass: call backward() before model.draw(), "
                    "optimizer.step(), model.eval() and model.train(), inside the same `with model.sample():` as the forward"
                )
            model._reached = placed
            if model._loss_looks > 0:
                model._loss_looks -= 1
                model.loss_is_sum = _is_slope_of_sum(gradient)

        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(leaf):
                leaf.register_hook(check)

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
        self.place(self._state)
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
    model.place(model._state)
    return None


def as_row(tensor: Tensor) -> Tensor:
    """Return the numbers of a dense tensor in the order of its memory, as a view (n,)."""
    tensor = tensor.detach()
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def _is_slope_of_sum(gradient: Tensor) -> bool:
    """Return whether a gradient at class scores is that of cross-entropies that were added up, not averaged.

    Each row of the slope of a cross-entropy sums to zero, and its absolute values to at most 2; of a mean, those of all do.
    """
    if gradient.ndim != 2 or len(gradient) < 4 or gradient.shape[1] < 2:
        return False
    rows = gradient.detach().float()
    sizes = rows.abs().sum(1)
    is_softmax = bool((rows.sum(1).abs() <= 1e-4 * sizes + 1e-12).all())
    return is_softmax and float(sizes.max()) <= 2.001 and float(sizes.sum()) > 2.001


def _differs(parameter: Tensor, value: Tensor, q: Posterior) -> Tensor:
    """Return which elements differ by more than rounding."""
    kind = parameter.dtype if torch.finfo(parameter.dtype).eps > torch.finfo(value.dtype).eps else value.dtype
    slack = ROUNDING * torch.finfo(kind).eps
    difference = (parameter.to(value.dtype) - value).abs()
    return ~(difference <= slack * (value.abs() + q.mean.abs()))  # a nan differs


def _has_narrow(mean: Tensor, log_std: Tensor) -> bool:
    """Return whether a std lies far below its mean, and yet moves it."""
    share = log_std.exp().div_(mean.abs())
    if share.amin() >= 2 * COARSE:  # false for nan
        return False
    return bool(((share < 2 * COARSE) & (share > NOTHING)).any())


def _difference(weight: Weight, after: Tensor, before: Tensor) -> Tensor:
    """Return after - before, in the precision of the mean."""
    dtype = weight.posterior.mean.dtype
    return after.to(dtype) - before.to(dtype)


def _carry(weight: Weight, change: Tensor) -> None:
    """The weight has changed by so much with a gradient pending."""
    q, gradient = weight.posterior, weight.parameter.grad
    assert isinstance(q, GaussianPosterior)
    assert gradient is not None
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    if q.log_std.grad is None:
        q.log_std.grad = torch.zeros_like(q.log_std)
    q.log_std.grad.addcmul_(dense.to(q.mean.dtype), change, value=-1)


def fresh_seed() -> int:
    """Return a seed from torch's generator, so that torch.manual_seed governs the draws too."""
    return mixed(int(torch.randint(1 << 62, ()))) >> 2
