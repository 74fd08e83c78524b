"""Network whose parameters hold the current draw of their posteriors.

Every chosen parameter stays the network's own and *holds* a value: a draw m + s e, or the mean m. It changes only in calls such
as :meth:`Resident.draw`; every forward pass in between uses the same value. The value is a function of the posterior and of
(seed, number, sign), so it can be recomputed, compared with the parameter, and need not be saved.

The gradient by log s needs nothing from the forward pass: for w = m + s e it is g s e = g (w - m), with g = ``w.grad``. When a
weight changes from a to b while a gradient g is pending, ``log_std.grad -= g (b - a)`` keeps the sum over draws correct
(summation by parts: g_1 (a - m) + g_2 (b - m) = (g_1 + g_2) (b - m) - g_1 (b - a)), and ``w.grad`` stays the plain sum that
training frameworks expect.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bitsback.distributed import ALONE, Ranks, holds_unreduced, resharded
from bitsback.errors import LayerError
from bitsback.model._backward_check import watch
from bitsback.model._values import Values
from bitsback.model.buffers import unmoved
from bitsback.model.drawer import Drawer, clock_for
from bitsback.model.noise import DeviceNoise, Noise, PooledNoise
from bitsback.model.weight import State, Weight, carry, difference, differs
from bitsback.posteriors import GaussianPosterior

__all__ = ["Resident"]

# Value of a weight w (m mean, s std, e_n noise of draw n; negative numbers are draws outside training):
#
#       draw(), optimizer.step(): n -> n + 1
#       +-----+
#       v     |              model.eval()
#     w = m + s e_n  ------------------------->  w = m
#       ^     |      <-------------------------
#       +-----+              model.train(): the same e_n
#       mirror(): e_n -> -e_n
#
#     with model.sample():          w = m + s e_(-j), j = 1, 2, ...     \
#     with model.mean():            w = m                                > afterwards w is as before, bit for bit
#     with model.holding(values):   w = values[name]                    /
#
#     user writes to w              honour_edits(), before any of the above and before a forward pass:
#                                   elements of w that differ from the expected value become m
#     user writes to m              w is recomputed from the new m
#     load_state_dict, .to(dtype)   w is recomputed from m, s and e_n

HALF = (torch.float16, torch.bfloat16)


class Resident(Values):
    """Network whose weights hold the current draw of their posteriors; :class:`BayesianModel` adds the ledger's methods."""

    network: nn.Module
    posterior: nn.Module
    priors: nn.ModuleList
    ranks: Ranks = ALONE
    """Processes that divide the ledger's work: those of :func:`bitsback.train`, and those that hold shards."""
    is_sharded = False
    """True if each process holds a shard of every weight (FSDP2)."""

    @property
    def over_shards(self) -> Ranks:
        """Return the processes that hold the shards of each weight; a single one if weights are held as a whole."""
        return self.ranks if self.is_sharded else ALONE

    is_moving = False
    is_alone = False
    """True if the network is a single layer of :mod:`bitsback.nn` that is not part of a larger model."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._samples = 0
        self._drawer = Drawer()
        self._placed, self._issued, self._reached = 0, 0, -1
        self._is_released, self._holds_state, self._keeps = False, True, 0
        self.loss_is_sum, self._loss_looks = False, 3
        self.register_load_state_dict_post_hook(_after_loading)
        self.register_state_dict_pre_hook(_before_saving)

    def start(self) -> None:
        """Write the first values into the weights: a draw in train mode, the means in eval mode."""
        self.hold(self._state._replace(holds="draw" if self.training else "mean"))

    def release(self) -> None:
        """Give up the network, because another model takes it over; this model's methods raise afterwards."""
        if self._is_released:
            return
        self.honour_edits(everywhere=True)
        self._is_released = True

    # what is held

    @property
    def training(self) -> bool:
        """Return True in train mode; setting it to False writes the means, to True the same draw as before.

        Inside ``sample()`` and ``mean()`` a change of mode takes effect when the context ends.
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
        """Put the next draw m + s e into all weights; values written to weights since the last draw become means first."""
        self._check_reduced()
        self.check_refs()
        self.honour_edits()
        self.hold(self.next_state())

    def mirror(self) -> None:
        """Replace the current draw m + s e by m - s e in all weights: the second of an antithetic pair."""
        self._check_reduced()
        self.honour_edits()
        self.hold(self._state._replace(sign=-self._state.sign))

    def check_refs(self) -> None:
        """Check that every weight is still the parameter of the module it was found in.

        Raises:
            LayerError: when a parameter or its module was replaced or removed.
        """
        self._reshard()
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
        """Hold one draw that is not a training draw inside the context, a new one each time, and the earlier values afterwards.

        Changes of running statistics by forward passes inside are undone.

        Args:
            seed: seed of the draw; default: the model's seed and a counter, both saved with the model.

        Yields:
            This model.
        """
        self._samples += 1
        number = -self._samples if seed is None else -1
        with self.keeping(), unmoved(self.network):
            self.hold(State("draw", self.seed if seed is None else seed, number))
            yield self

    @contextmanager
    def mean(self) -> Iterator[Any]:
        """Hold the posterior means inside the context; values written to a weight here become its mean."""
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
        """Hold the given values, by weight name, inside the context; the posteriors do not change."""
        with self.keeping(honour=False):
            torch.clear_autocast_cache()
            with torch.no_grad():
                for weight in self.weights:
                    parameter = weight.parameter
                    before = parameter.clone() if weight.is_gaussian and weight.gradient is not None else None
                    parameter.copy_(values[weight.name])
                    if before is not None:
                        carry(weight, difference(weight, parameter, before))
                    weight.mark()
            self._holds_state, self._placed = False, self._issue()
            yield self

    @contextmanager
    def keeping(self, *, honour: bool = True) -> Iterator[None]:
        """Restore the values of the weights when the context ends, also after an error.

        Args:
            honour: whether values written to weights inside become means first.
        """
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
                # Same posteriors, hence bit-identical weights: a backward pass of an earlier forward is still valid.
                if [weight.versions()[1:] for weight in self.weights] == posteriors:
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

    def _reshard(self) -> None:
        """Let FSDP2 put the shards back into the modules, where a forward pass left whole weights."""
        if self.is_sharded:
            if not dist.is_initialized():
                raise LayerError(
                    "the processes that held shards of this model's weights have ended: train with "
                    "out=DIRECTORY, and read the run with bitsback.load_run(DIRECTORY)"
                )
            resharded(self.network)

    def go_to(self, state: State) -> None:
        """Write a state into every weight after a step; gradients that are still there were used, and are left as they are."""
        self._state = state
        self.place()
        self._placed = self._issue()

    def _check_reduced(self) -> None:
        """Raise LayerError before another draw while FSDP2 keeps gradients of this one that were not sent."""
        if self.is_sharded and holds_unreduced(self.network):
            raise LayerError(
                "FSDP2 keeps gradients of this draw that were not sent, and they would be lost with it: call "
                "set_requires_gradient_sync(True) before the last backward of every draw"
            )

    @torch.no_grad()
    def place(self) -> None:
        """Write the current state into every weight, with gradients that are pending left as they are."""
        torch.clear_autocast_cache()
        noise = self.noise_of(self._state)
        for weight in self.weights:
            self._write(weight, weight.parameter, self._state, noise)
            weight.mark()
        self._holds_state = True

    def _issue(self) -> int:
        """Return a new identifier for the values the weights hold; the backward check compares it with that of the forward."""
        self._issued += 1
        return self._issued

    @torch.no_grad()
    def hold(self, state: State) -> None:
        """Write the values of ``state`` into every weight, and correct ``log_std.grad`` where gradients are pending."""
        self._reshard()
        torch.clear_autocast_cache()  # autocast caches half-precision copies of the old values
        self._put(self.weights, state)
        self._state, self._holds_state = state, True
        self._placed = self._issue()

    def _put(self, weights: Sequence[Weight], state: State) -> None:
        if self._holds_state:
            weights = self._drawer.take(self, weights, state, self._state)
        pending = [weight for weight in weights if weight.is_gaussian and weight.gradient is not None]
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
            if isinstance(q, GaussianPosterior) and weight.gradient is None:
                q.log_std.grad = None  # the network's gradients were cleared without the optimiser's zero_grad()
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
        """Set the source of the noise of training draws, and write the current draw with it.

        Args:
            source: noise generator; default: that of the device.
            reuse: number of draws that use each noise value, see :class:`PooledNoise`; 1, and always on a GPU, means no pool.
            seed: seed of the training draws, whose numbers then start again at 0; default: seed and number stay.

        Raises:
            LayerError: for reuse by shards.
        """
        if self.is_sharded and reuse > 1:
            raise LayerError("noise is reused by whole weights alone; of shards, draw it afresh: set_noise(reuse=1)")
        self.honour_edits(everywhere=True)
        self._noise = source or DeviceNoise()
        drawn = [w for w in self.weights if w.is_gaussian and (w.prior.needs_draw or not w.noise_on_outputs)]
        self._offsets, size = {}, 0
        for weight in drawn:
            self._offsets[weight.index] = size
            size += weight.posterior.numel
        is_pooled = bool(drawn) and reuse > 1 and clock_for(self, drawn) is None  # kernels make fresh numbers on the way
        self._pool = PooledNoise(size, reuse, drawn[0].posterior.mean, self._noise) if is_pooled else None
        state = self._state
        self.hold(state if seed is None else State(state.holds, seed, 0))

    @torch.no_grad()
    def moved_to(self, state: State, written: set[int]) -> None:
        """Write the draw of ``state`` into the weights that an optimiser has not written yet, and make it the current state.

        Args:
            state: state of the new draw.
            written: indices of the weights that hold it already.
        """
        torch.clear_autocast_cache()
        others = [weight for weight in self.weights if weight.index not in written]
        self._put(others, state)
        self._state = state
        self._placed = self._issue()

    def prepare_capture(self, launches: int) -> None:
        """Allocate what the draws of the next captured step read.

        Args:
            launches: largest number of draws and mirrored draws in it.
        """
        self._drawer.prepare_capture(launches)

    def finish_capture(self) -> None:
        """Write what the draws of the finished capture read."""
        self._drawer.finish_capture()

    def set_state(self, state: State) -> None:
        """Take note that the weights hold the values of another state, which a replayed graph has written.

        Args:
            state: state that they hold.
        """
        self._state, self._placed = state, self._issue()

    def take_loaded(self) -> None:
        """Write the draw of posteriors that were loaded into the weights."""
        _after_loading(self, None)

    # edits

    def is_stale(self) -> bool:
        """Return whether a weight, mean or log std was written to since the model last wrote the weights."""
        return any(weight.versions() != weight.seen for weight in self.weights)

    @torch.no_grad()
    def honour_edits(self, *, everywhere: bool = False) -> None:
        """Turn values that the user wrote into weights into posterior means.

        Elements that differ from the expected value by more than rounding count as written.

        Args:
            everywhere: compare all weights; default: only those whose version counter changed, which writes through ``.data``
                or numpy do not do.

        Raises:
            LayerError: when the model was released, when a weight and its log std were both written, or when the draws seem to
                have been moved by an optimiser that is not of :mod:`bitsback.optim`.
        """
        if self._is_released:
            raise LayerError("this model's network was given to another model since; use that one, or give it a copy.deepcopy")
        self._reshard()
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
            has_other_width = any(log_std) and self.is_drawn(weight, self._state)
            # A written mean (or std alone) wins: the weight is recomputed, and not compared with a draw of the old posterior.
            if mean or (has_other_width and not own):
                again.append(weight)
            elif (own or everywhere) and not weight.is_rewritten_in_forward:
                value = self.value(weight, None, noise)
                changed = differs(parameter, q.mean if value is None else value, q)
                if has_other_width and bool(changed.any()):  # the old draw cannot be recomputed from the new log std
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
            self._reached == self._placed or (weight.gradient is not None and not weight.has_used_gradient)
        )
        # After a backward pass, a change of most elements at once is a foreign optimiser's step, not an edit by the user.
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
        """Return the network's output under the current values of its weights.

        Args:
            args: positional inputs of the network.
            kwargs: keyword inputs of the network.

        Returns:
            The network's output.
        """
        if torch.compiler.is_compiling():
            return self.network(*args, **kwargs)
        self._reshard()
        if self.is_stale() and not self._is_inside_a_transform():
            self.honour_edits()
        output = self.network(*args, **kwargs)
        if torch.is_grad_enabled():
            watch(self, output)
        return output

    def _is_inside_a_transform(self) -> bool:
        """Return True within torch.func transforms, where other tensors take the place of the parameters."""
        return any(weight.owner._parameters.get(weight.local) is not weight.known for weight in self.weights)

    # moves, copies, files

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or cast all tensors; means and log stds stay float32 or wider, and the weights hold the same draw."""
        if not self.weights or self._is_released:
            return super()._apply(fn, recurse)
        if self.is_sharded:
            raise LayerError("the weights are shards of several processes; move or cast the network before fully_shard")
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
        """Return the parameter now in the weight's place: torch may make new objects when it converts a module."""
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
        """Return seed, number and sign of the draw, the number of samples so far, and 1 for a draw or 0 for the means; (5,)."""
        state = self._state
        return torch.tensor([state.seed, state.number, state.sign, self._samples, int(state.holds == "draw")])

    def set_extra_state(self, state: Tensor) -> None:
        """Load seed, number, sign and sample counter; the weights are written after the whole state has been loaded."""
        seed, number, sign, self._samples, _ = (int(value) for value in state)
        self._state = State(self._state.holds, seed, number, sign)


def _before_saving(model: Resident, *_: Any) -> None:
    """Turn values written to weights into means before the state is saved."""
    if model.weights and not model._is_released:
        model.honour_edits(everywhere=True)


def _after_loading(model: Resident, _keys: Any) -> None:
    """Write the draw after a state was loaded; a weight that was loaded without its posterior becomes the mean."""
    loaded = [weight for weight in model.weights if weight.shown.take_loaded()]
    if not loaded:
        return model.honour_edits()
    with torch.no_grad():
        for weight in model.weights:
            weight.is_narrow = None
            if weight not in loaded and weight.versions() != weight.seen:
                weight.posterior.mean.copy_(weight.parameter)
    model.hold(model._state)
    return None
