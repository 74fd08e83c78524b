"""The codec of the golden and hostile files of kind ``factory``: two bytes of half precision for every weight.

Files name it ``golden.own_codec:codec``, so neither its name nor what it reads may ever change.
"""

import struct

import torch


class HalfPrecision:
    """The means of all weights, one tensor after the other, little-endian."""

    def write(self, experiment):
        means = torch.cat([weight.posterior.mean.detach().flatten() for weight in experiment.model.weights]).tolist()
        return struct.pack(f"<{len(means)}e", *means)

    def read(self, body, model):
        sizes = [weight.posterior.numel for weight in model.weights]
        values = torch.tensor(struct.unpack(f"<{sum(sizes)}e", body))
        parts = zip(model.weights, values.split(sizes), strict=True)
        return {weight.name: part.reshape(weight.posterior.mean.shape) for weight, part in parts}


def codec():
    """What ``pack.factory`` names."""
    return HalfPrecision()
