"""Deterministic training, and the peers that are plain torch modules or optimisers; each as its documentation shows it.

In all of them the means start at the plain network's initial weights and the stds at ``Task.initial_std``.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from benchmarks.nets import bayesian_layers, replace_layers
from benchmarks.trainer import Moments, Task, Trainer


class Deterministic(Trainer):
    """No posterior: cross-entropy and Adam; ``tuned``: fused, and images with their channels last; ``half``: autocast."""

    def __init__(self, task: Task, tuned: bool = False, half: bool = False) -> None:
        self.half = half
        self.layout = torch.channels_last if tuned else torch.preserve_format
        self.network = task.network.to(memory_format=self.layout)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=task.lr, fused=tuned or None)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            outputs = self.network(x.to(memory_format=self.layout))
        return cross_entropy(outputs.float(), y)


def inverse_softplus(std: float) -> float:
    """The rho with log(1 + exp(rho)) = std."""
    return math.log(math.expm1(std))


@torch.no_grad()
def start_means(trainer: Trainer, initial: dict[str, Tensor]) -> None:
    """Set the means to the initial weights of the plain network, in place."""
    for name, (mean, _) in trainer.moments().items():
        mean.copy_(initial[name])


def initial_weights(task: Task) -> dict[str, Tensor]:
    """A copy of the plain network's weights."""
    return {name: p.detach().clone() for name, p in task.network.named_parameters()}


class BayesianTorch(Trainer):
    """bayesian-torch: ``dnn_to_bnn`` and ``get_kl_loss``."""

    def __init__(self, task: Task, kind: Literal["Reparameterization", "Flipout"]) -> None:
        from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss

        initial = initial_weights(task)
        settings = {"prior_mu": 0.0, "prior_sigma": task.prior_std, "posterior_mu_init": 0.0, "moped_enable": False}
        settings |= {"posterior_rho_init": inverse_softplus(task.initial_std), "type": kind}
        dnn_to_bnn(task.network, settings)
        _sum_kl()
        self.network, self.examples, self.kl = task.network, task.examples, get_kl_loss
        start_means(self, initial)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=task.lr)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.network(x), y) + self.kl(self.network) / self.examples

    def moments(self) -> Moments:
        found = {}
        for name, module in self.network.named_modules():
            for place in ("weight", "kernel", "bias"):
                mean, rho = getattr(module, f"mu_{place}", None), getattr(module, f"rho_{place}", None)
                if mean is not None:
                    found[f"{name}.{place.replace('kernel', 'weight')}"] = (mean.detach(), softplus(rho.detach()))
        return found


def _sum_kl() -> None:
    """bayesian-torch takes the mean of the KL over each tensor, which is no bound on anything: make it the sum."""
    from bayesian_torch.layers.base_variational_layer import BaseVariationalLayer_

    original = BaseVariationalLayer_.kl_div
    if original.__name__ == "kl_div":

        def summed(self: nn.Module, mu_q: Tensor, *others: Tensor) -> Tensor:
            return original(self, mu_q, *others) * mu_q.numel()

        BaseVariationalLayer_.kl_div = summed


class Blitz(Trainer):
    """blitz: Bayesian layers, ``variational_estimator`` and ``sample_elbo`` with one sample; its KL is sampled."""

    def __init__(self, task: Task) -> None:
        from blitz.modules import BayesianConv2d, BayesianLinear
        from blitz.utils import variational_estimator

        initial = initial_weights(task)
        same = {"prior_sigma_1": task.prior_std, "prior_pi": 1.0, "posterior_rho_init": inverse_softplus(task.initial_std)}

        def bayesian(layer: nn.Module) -> nn.Module:
            bias = layer.bias is not None
            if isinstance(layer, nn.Linear):
                return BayesianLinear(layer.in_features, layer.out_features, bias=bias, **same)
            where = {"stride": layer.stride, "padding": layer.padding}
            return BayesianConv2d(layer.in_channels, layer.out_channels, layer.kernel_size, bias=bias, **where, **same)

        @variational_estimator
        class Estimator(nn.Sequential):
            """The network with the methods that blitz adds to its class."""

        replace_layers(task.network, bayesian)
        self.network, self.examples = Estimator(task.network), task.examples
        start_means(self, initial)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=task.lr)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.network.sample_elbo(x, y, cross_entropy, sample_nbr=1, complexity_cost_weight=1 / self.examples)

    def moments(self) -> Moments:
        found = {}
        for name, module in self.network[0].named_modules():
            path, _, local = name.rpartition(".")
            if local in ("weight_sampler", "bias_sampler"):
                found[f"{path}.{local.removesuffix('_sampler')}"] = (module.mu.detach(), softplus(module.rho.detach()))
        return found


class TorchBnn(Trainer):
    """torchbnn: its layers and ``BKLLoss``, whose default is a mean over all weights; here the sum."""

    def __init__(self, task: Task) -> None:
        import torchbnn

        initial = initial_weights(task)

        def bayesian(layer: nn.Module) -> nn.Module:
            bias = layer.bias is not None
            if isinstance(layer, nn.Linear):
                return torchbnn.BayesLinear(0.0, task.prior_std, layer.in_features, layer.out_features, bias=bias)
            where = {"stride": layer.stride, "padding": layer.padding, "bias": bias}
            return torchbnn.BayesConv2d(0.0, task.prior_std, layer.in_channels, layer.out_channels, layer.kernel_size, **where)

        replace_layers(task.network, bayesian)
        self.network, self.examples = task.network, task.examples
        self.kl = torchbnn.BKLLoss(reduction="sum", last_layer_only=False)
        start_means(self, initial)
        for name, parameter in self.network.named_parameters():
            if name.endswith("log_sigma"):  # there is no argument for it: it would start at the prior's
                parameter.data.fill_(math.log(task.initial_std))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=task.lr)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.network(x), y) + self.kl(self.network).squeeze() / self.examples

    def moments(self) -> Moments:
        parameters = dict(self.network.named_parameters())
        means = {name.removesuffix("_mu"): p.detach() for name, p in parameters.items() if name.endswith("_mu")}
        return {name: (mean, parameters[f"{name}_log_sigma"].detach().exp()) for name, mean in means.items()}


class Ivon(Trainer):
    """ivon-opt: a plain network; noise, posterior and KL (as weight decay) are the optimiser's."""

    def __init__(self, task: Task, beta2: float = 0.99999) -> None:
        from ivon import IVON

        decay = 1 / (task.examples * task.prior_std**2)
        hess = 1 / (task.examples * task.initial_std**2) - decay
        settings = {"ess": task.examples, "weight_decay": decay, "hess_init": hess, "beta2": beta2}
        self.network = task.network
        self.optimizer = IVON(self.network.parameters(), lr=task.lr, **settings)

    def step(self, x: Tensor, y: Tensor) -> None:
        with self.optimizer.sampled_params(train=True):
            self.optimizer.zero_grad()
            self.loss(x, y).backward()
        self.optimizer.step()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.network(x), y)

    def moments(self) -> Moments:
        (group,) = self.optimizer.param_groups
        stds = (group["ess"] * (group["hess"] + group["weight_decay"])).rsqrt()
        named = dict(self.network.named_parameters())
        cut = dict(zip(named, stds.split([p.numel() for p in named.values()]), strict=True))
        wanted = [name for name in named if name.rpartition(".")[0] in dict(bayesian_layers(self.network))]
        return {name: (named[name].detach(), cut[name].view_as(named[name])) for name in wanted}
