"""Values of weights as a function of their posteriors and of (seed, number, sign)."""

import torch
from torch import Tensor, nn

from bitsback.model.noise import DeviceNoise, Noise, PooledNoise
from bitsback.model.pieces import as_row
from bitsback.model.weight import Holds, State, Weight
from bitsback.posteriors import GaussianPosterior

__all__ = ["Values"]


class Values(nn.Module):
    """Base class that computes the value of each weight in a given state from posterior and noise."""

    weights: list[Weight]

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weights = []
        self._state = State("draw", seed, 0)
        self._noise: Noise = DeviceNoise()
        self._pool: PooledNoise | None = None
        self._offsets: dict[int, int] = {}

    @property
    def seed(self) -> int:
        """Return the seed of all training draws."""
        return self._state.seed

    @property
    def draw_number(self) -> int:
        """Return the number of training draws so far; seed and number determine the current draw."""
        return self._state.number

    @property
    def holds(self) -> Holds:
        """Return ``draw`` or ``mean``, according to the values that a forward pass uses now."""
        return self._state.holds

    def state_of_means(self) -> State:
        """Return the state in which every weight holds its mean."""
        return self._state._replace(holds="mean")

    def next_state(self) -> State:
        """Return the state after the next :meth:`draw`."""
        return self._state._replace(holds="draw", number=self._state.number + 1, sign=1)

    @property
    def state(self) -> State:
        """Return the current state of the weights."""
        return self._state

    @property
    def noise_source(self) -> Noise:
        """Return the generator of the noise."""
        return self._noise

    @property
    def pooled(self) -> dict[int, int]:
        """Return the offset of each weight's noise in the pool, by weight index."""
        return self._offsets

    def value(self, weight: Weight, state: State | None = None, noise: Tensor | None = None) -> Tensor | None:
        """Return the value of a weight in a state.

        Args:
            weight: weight of this model.
            state: state; default: the current one.
            noise: pooled noise of the state, from :meth:`noise_of`; default: none.

        Returns:
            m + sign s e in the shape and dtype of the mean; None if the weight holds its mean.
        """
        state = state or self._state
        q = weight.posterior
        if not isinstance(q, GaussianPosterior) or not self.is_drawn(weight, state):
            return None
        drawn = torch.addcmul(q.mean, q.std(), self.noise(weight, state, noise), value=float(state.sign))
        if weight.constant_row is not None:
            drawn[weight.constant_row] = q.mean[weight.constant_row]
        return drawn.detach()

    def is_drawn(self, weight: Weight, state: State) -> bool:
        """Return whether a weight holds a draw in a state, not its mean.

        Args:
            weight: weight of this model.
            state: state.

        Returns:
            Whether it does.
        """
        return state.holds == "draw" and weight.is_gaussian and not (weight.noise_on_outputs and state.number >= 0)

    def spread(self, weight: Weight, state: State, noise: Tensor | None = None) -> Tensor:
        """Return w - m of a state, computed as sign s e and so without cancellation.

        Args:
            weight: weight of this model.
            state: state.
            noise: pooled noise of the state, from :meth:`noise_of`; default: none.

        Returns:
            Tensor in the shape and dtype of the mean; zero if the weight holds its mean.
        """
        q = weight.posterior
        if not isinstance(q, GaussianPosterior) or not self.is_drawn(weight, state):
            return torch.zeros_like(q.mean, requires_grad=False)
        spread = q.std().detach().mul_(self.noise(weight, state, noise)).mul_(state.sign)
        if weight.constant_row is not None:
            spread[weight.constant_row] = 0
        return spread

    def noise(self, weight: Weight, state: State, pooled: Tensor | None = None) -> Tensor:
        """Return the standard normal noise e of a draw.

        Args:
            weight: weight of this model.
            state: state of the draw.
            pooled: pooled noise of the draw for all weights, from :meth:`noise_of`; default: generate it for this weight.

        Returns:
            Tensor in the shape, dtype and memory order of the posterior mean.
        """
        mean = weight.posterior.mean
        out = torch.empty_like(mean, requires_grad=False)
        flat = as_row(out)
        if pooled is None or weight.index not in self._offsets:
            weight.fill(self._noise, flat, state)
        else:
            flat.copy_(pooled[self._offsets[weight.index] : self._offsets[weight.index] + len(flat)])
        return out

    def noise_of(self, state: State) -> Tensor | None:
        """Return the pooled noise of a training draw, concatenated over weights, (n,); None if no pool is used."""
        is_pooled = self._pool is not None and state.holds == "draw" and state.number >= 0
        return self._pool.at(state.noise_seed, state.number) if is_pooled and self._pool is not None else None
