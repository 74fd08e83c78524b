"""An LSTM in whole numbers, a token at a time: equal on every machine, in any order of summation, on any number of threads.

Weights are multiples of 2^-20, states and gates of 2^-16, so that every sum of a matrix product is an exact integer below 2^53
in float64. Sigmoid and tanh are looked up in tables at multiples of 2^-12; the tables come from sums and products alone.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bitsback.coding.categorical import FRACTION_BITS
from bitsback.coding.elementary import exp
from bitsback.errors import FileError
from bitsback.formats._exact_outputs import EXACT_LIMIT, WEIGHT_BITS, on_lattice
from bitsback.networks import LSTM

__all__ = ["ExactLSTM"]

STATE_BITS = 16
"""Fractional bits of the embedding, of gates, cells and hidden states."""

SATURATED = 12
"""Beyond this argument, sigmoid and tanh equal 0, 1 or -1 to 2^-17."""


@cache
def _tables() -> tuple[Tensor, Tensor]:
    """Return sigmoid and tanh at the multiples of 2^-12 from -12 to 12, rounded to 2^-16, in float64."""
    x = np.arange(-SATURATED << FRACTION_BITS, (SATURATED << FRACTION_BITS) + 1) / (1 << FRACTION_BITS)
    small = exp(-np.abs(x))
    half = 1.0 / (1.0 + small)
    sigmoid = np.where(x >= 0, half, small * half)
    square = small * small
    tanh = np.sign(x) * (1.0 - square) / (1.0 + square)
    return on_lattice(torch.from_numpy(sigmoid), STATE_BITS), on_lattice(torch.from_numpy(tanh), STATE_BITS)


class ExactLSTM:
    """Steps of an LSTM over streams of tokens.

    Args:
        network: gives the sizes.
        values: its weights by name.
        streams: number of texts that are read side by side.

    Raises:
        FileError: if the weights are so large that sums would not be exact.

    Attributes:
        state: hidden state and cell of every layer, each (streams, width).
    """

    def __init__(self, network: LSTM, values: Mapping[str, Tensor], streams: int) -> None:
        held = {name: on_lattice(value, WEIGHT_BITS) for name, value in values.items()}
        lstm = network.lstm
        self._embedding = on_lattice(held["embedding.weight"], STATE_BITS)
        self._layers = []
        for layer in range(lstm.num_layers):
            into, again = held[f"lstm.weight_ih_l{layer}"], held[f"lstm.weight_hh_l{layer}"]
            bias = torch.zeros(len(into), dtype=torch.float64)
            for name in ("bias_ih", "bias_hh"):
                bias = bias + held.get(f"lstm.{name}_l{layer}", torch.zeros(()))
            largest = self._embedding.abs().max() if layer == 0 else torch.ones(())
            _check(into.abs().sum(1) * largest + again.abs().sum(1) + bias.abs())
            self._layers.append((into.T.contiguous(), again.T.contiguous(), bias))
        head, bias = held["head.weight"], held.get("head.bias", torch.zeros(1, dtype=torch.float64))
        _check(head.abs().sum(1) + bias.abs())
        self._head = head.T.contiguous(), bias
        width = lstm.hidden_size
        self.state = [(torch.zeros(streams, width).double(), torch.zeros(streams, width).double()) for _ in self._layers]

    def __call__(self, tokens: Tensor) -> Tensor:
        """Read one token in every stream.

        Args:
            tokens: numbers of the tokens, (streams,).

        Returns:
            outputs for the next tokens in units of 2^-12, (streams, outputs), int64.
        """
        given = self._embedding[tokens]
        for number, (into, again, bias) in enumerate(self._layers):
            hidden, cell = self.state[number]
            gates = torch.addmm(torch.addmm(bias, given, into), hidden, again)
            enter, forget, change, leave = _indices(gates).chunk(4, dim=1)  # the order of torch.nn.LSTM
            sigmoid, tanh = _tables()
            cell = on_lattice(sigmoid[forget] * cell + sigmoid[enter] * tanh[change], STATE_BITS)
            given = on_lattice(sigmoid[leave] * tanh[_indices(cell)], STATE_BITS)
            self.state[number] = given, cell
        weight, bias = self._head
        return torch.ldexp(torch.addmm(bias, given, weight), torch.tensor(FRACTION_BITS)).round().long()


def _indices(numbers: Tensor) -> Tensor:
    """Return the places of numbers in the tables."""
    rounded = torch.ldexp(numbers, torch.tensor(FRACTION_BITS)).round()
    return rounded.long().clamp(-SATURATED << FRACTION_BITS, SATURATED << FRACTION_BITS) + (SATURATED << FRACTION_BITS)


def _check(sums: Tensor) -> None:
    """Raise FileError unless sums of products stay below 2^53 in units of their lattice."""
    if float(sums.max()) * 2.0 ** (WEIGHT_BITS + STATE_BITS) >= EXACT_LIMIT:
        raise FileError(
            "the LSTM's weights are too large for exact arithmetic; train it with a narrower prior (prior.scale), or fewer "
            "units (network.width)"
        )
