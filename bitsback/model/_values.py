"""What weights hold follows from their posteriors and from (seed, number, sign): it can be made again, and compared."""

import torch
from torch import Tensor, nn

from bitsback.model.noise import BlockNoise, Noise, PooledNoise
from bitsback.model.weight import Holds, State, Weight
from bitsback.posteriors import GaussianPosterior

__all__ = ["Values", "as_row"]


class Values(nn.Module):
    """What a state says that each weight holds, made from posteriors and noise whenever it is asked for."""

    weights: list[Weight]

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weights = []
        self._state = State("draw", seed, 0)
        self._noise: Noise = BlockNoise()
        self._pool: PooledNoise | None = None
        self._offsets: dict[int, int] = {}

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

    def state_of_means(self) -> State:
        """Return the state in which every weight is its mean."""
        return self._state._replace(holds="mean")

    def next_state(self) -> State:
        """Return the state after the next :meth:`draw`."""
        return self._state._replace(holds="draw", number=self._state.number + 1, sign=1)

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
        if pooled is None or weight.index not in self._offsets:
            self._noise.fill(flat, state.seed, state.number, weight.index)
        else:
            flat.copy_(pooled[self._offsets[weight.index] : self._offsets[weight.index] + len(flat)])
        return out

    def noise_of(self, state: State) -> Tensor | None:
        """Return the pool's numbers of a training draw, for all weights after each other; None where there is no pool."""
        is_pooled = self._pool is not None and state.holds == "draw" and state.number >= 0
        return self._pool.at(state.seed, state.number) if is_pooled and self._pool is not None else None


def as_row(tensor: Tensor) -> Tensor:
    """Return the numbers of a dense tensor in the order of its memory, as a view (n,)."""
    tensor = tensor.detach()
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
