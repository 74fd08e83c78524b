"""The networks that are trained, plain, with torch's initial weights."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

CLASSES = 10
PIXELS = 28 * 28


@dataclass(frozen=True)
class Net:
    """A network, its usual width, the shape of one input, and a width that makes it small but leaves it alive."""

    make: Callable[[int], nn.Module]
    width: int
    shape: tuple[int, int, int]
    tiny: int = 4  # at 2, some patches of the ResNet are all zero, and TyXe refuses outputs without variance


def mlp(width: int) -> nn.Sequential:
    """784-400-400-10 at width 400."""
    hidden = [nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, CLASSES))


def small_mlp(width: int) -> nn.Sequential:
    """784-100-10 at width 100, the network of configs/mnist_mlp.yaml."""
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, CLASSES))


def lenet(width: int) -> nn.Sequential:
    """LeNet-5-Caffe at width 10: 20 and 50 filters, then 800-500-10."""
    filters = [nn.Conv2d(1, 2 * width, 5), nn.MaxPool2d(2), nn.Conv2d(2 * width, 5 * width, 5), nn.MaxPool2d(2)]
    dense = [nn.Linear(16 * 5 * width, 50 * width), nn.ReLU(), nn.Linear(50 * width, CLASSES)]
    return nn.Sequential(*filters, nn.Flatten(), *dense)


def small_conv(width: int) -> nn.Sequential:
    """The network of configs/mnist_conv.yaml at width 8: 11,770 weights."""
    first = [nn.Conv2d(1, width, 5), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(width, 4 * width, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(16 * 4 * width, CLASSES))


class Residual(nn.Module):
    """Two convolutions and what they are added to, padded with zeros where it has fewer channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.more = 1 if inputs == outputs else 2, outputs - inputs
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The sum, rectified."""
        short = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more)) if self.more else x
        return torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))) + short)


def resnet20(width: int) -> nn.Sequential:
    """The ResNet-20 of He et al. 2016 for images of 32 x 32, at width 16: 270,000 weights."""
    stages = [(1, 1), (1, 1), (1, 1), (1, 2), (2, 2), (2, 2), (2, 4), (4, 4), (4, 4)]
    blocks = [Residual(inputs * width, outputs * width) for inputs, outputs in stages]
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, CLASSES))


MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
STEP_NETS = {"mlp": Net(mlp, 400, MNIST), "lenet": Net(lenet, 10, MNIST, tiny=2), "resnet20": Net(resnet20, 16, CIFAR)}
PRIORS_NET = Net(small_mlp, 300, MNIST)
BITS_NETS = {"conv": Net(small_conv, 8, MNIST), "mlp": Net(small_mlp, 100, MNIST)}


def bayesian_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every layer whose weights get a posterior: the convolutions and dense layers, not the norms."""
    return ((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear))


def replace_layers(network: nn.Module, make: Callable[[nn.Module], nn.Module]) -> None:
    """Put ``make(layer)`` in the place of every such layer."""
    for name, module in list(bayesian_layers(network)):
        parent, _, local = name.rpartition(".")
        setattr(network.get_submodule(parent), local, make(module))
