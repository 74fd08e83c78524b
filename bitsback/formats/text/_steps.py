"""Outputs of a network for texts that become known token by token, the same for whoever writes and whoever reads.

All windows of a text are read side by side, as streams in lock-step: step t gives the token before position t to every stream,
and returns the outputs for position t. Sender and receiver take the same steps with tensors of the same shapes, in order.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from bitsback.coding.categorical import FRACTION_BITS
from bitsback.formats._exact_outputs import BATCH, exactly
from bitsback.formats.model_file.read import LoadedModel
from bitsback.formats.text._exact_lstm import ExactLSTM
from bitsback.networks import LSTM
from bitsback.torch_state import using_threads

__all__ = ["Step", "steps"]

Step = Callable[[Tensor], Tensor]
"""Function from one token of every stream, (streams,), to outputs for the next ones in units of 2^-12, (streams, tokens)."""


@contextmanager
def steps(loaded: LoadedModel, streams: int, context: int) -> Iterator[Step]:
    """Begin to read streams.

    An LSTM of this package is computed in whole numbers. A network with a method ``step(tokens, state)``, which returns outputs
    and state, reads a token at a time; any other one is run on all tokens so far, at each step. These two run in float64 on one
    thread, with the outputs of every layer rounded.

    Args:
        loaded: a decoded network; its outputs are (n, t, tokens) for tokens (n, t).
        streams: number of streams.
        context: number of steps.

    Yields:
        the step.
    """
    model, network = loaded.model.double(), loaded.model.network
    values = {weight.name: weight.posterior.mean.detach() for weight in model.weights}
    with torch.no_grad(), ExitStack() as held:
        held.callback(model.float)
        if type(network) is LSTM:
            yield ExactLSTM(network, values | dict(model.deterministic()), streams)
            return
        held.enter_context(using_threads(1))
        held.enter_context(exactly(model, values))
        parts = [slice(start, min(start + BATCH, streams)) for start in range(0, streams, BATCH)]
        own_step: Any = getattr(network, "step", None)
        if own_step is not None:
            states = [None] * len(parts)

            def take(tokens: Tensor) -> Tensor:
                found = []
                for number, part in enumerate(parts):
                    outputs, states[number] = own_step(tokens[part], states[number])
                    found.append(outputs)
                return _whole(torch.cat(found))

            yield take
            return
        known = torch.zeros(streams, 0, dtype=torch.int64)

        def read(tokens: Tensor) -> Tensor:
            nonlocal known
            known = torch.cat([known, tokens[:, None]], dim=1)
            return _whole(torch.cat([model.outputs(known[part])[:, -1] for part in parts]))

        yield read


def _whole(outputs: Tensor) -> Tensor:
    return torch.ldexp(outputs, torch.tensor(FRACTION_BITS)).round().long()
