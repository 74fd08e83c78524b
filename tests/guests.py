"""Modules with the attributes by which other libraries store a posterior, for environments without them.

bayesian-torch 0.5.0, blitz 0.2.8, torchbnn 1.2, TyXe 0.0.2, ivon-opt 0.1.3, laplace-torch 0.3; ``tests/test_zoo.py`` runs the same
checks on the real ones.
"""

import math

import torch
from torch import nn
from torch.nn.functional import conv2d, linear, softplus


def tensor(*shape, low=-1.0, high=1.0):
    return nn.Parameter(torch.empty(*shape).uniform_(low, high))


class LinearReparameterization(nn.Module):
    """bayesian-torch: ``mu_*``, ``rho_*``, and the prior in buffers; the output comes with the KL unless the flag is set."""

    def __init__(self, in_features, out_features, prior_mean=0.0, prior_variance=1.0, bias=True):
        super().__init__()
        self.in_features, self.out_features, self.dnn_to_bnn_flag = in_features, out_features, False
        self.mu_weight, self.rho_weight = tensor(out_features, in_features), tensor(out_features, in_features, low=-4, high=-2)
        for local in ("weight", "bias"):
            shape = (out_features, in_features)[: 2 if local == "weight" else 1]
            self.register_buffer(f"prior_{local}_mu", torch.full(shape, prior_mean))
            self.register_buffer(f"prior_{local}_sigma", torch.full(shape, prior_variance))
        self.mu_bias, self.rho_bias = (tensor(out_features), tensor(out_features, low=-4, high=-2)) if bias else (None, None)

    def forward(self, x, return_kl=True):
        output = linear(x, self.mu_weight, self.mu_bias)  # of the means: no test draws
        return (output, x.new_zeros(())) if return_kl and not self.dnn_to_bnn_flag else output


class Conv2dFlipout(nn.Module):
    """bayesian-torch: a convolution has ``mu_kernel``."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, prior_variance=1.0):
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, (kernel_size, kernel_size)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.dnn_to_bnn_flag = False
        shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        self.mu_kernel, self.rho_kernel = tensor(*shape), tensor(*shape, low=-4, high=-2)
        self.mu_bias = self.rho_bias = None
        self.register_buffer("prior_weight_mu", torch.zeros(shape))
        self.register_buffer("prior_weight_sigma", torch.full(shape, prior_variance))

    def forward(self, x, return_kl=True):
        output = conv2d(x, self.mu_kernel, None, self.stride, self.padding, self.dilation, self.groups)
        return (output, x.new_zeros(())) if return_kl and not self.dnn_to_bnn_flag else output


class Sampler(nn.Module):
    """blitz: ``TrainableRandomDistribution``."""

    def __init__(self, mu, rho):
        super().__init__()
        self.mu, self.rho = nn.Parameter(mu), nn.Parameter(rho)


class MixturePrior(nn.Module):
    """blitz: ``PriorWeightDistribution``."""

    def __init__(self, pi, sigma1, sigma2, dist=None):
        super().__init__()
        self.pi, self.sigma1, self.sigma2 = pi, sigma1, sigma2
        self.dist1 = torch.distributions.Normal(0.0, sigma1) if dist is None else dist
        self.dist2 = torch.distributions.Normal(0.0, sigma2) if dist is None else None


class BayesianLinear(nn.Module):
    """blitz: its own tensors, and the samplers' that share their storage."""

    def __init__(self, in_features, out_features, bias=True, prior_sigma_1=0.1, prior_sigma_2=0.4, prior_pi=1, prior_dist=None):
        super().__init__()
        self.in_features, self.out_features, self.bias = in_features, out_features, bias
        self.weight_mu, self.weight_rho = tensor(out_features, in_features), tensor(out_features, in_features, low=-4, high=-2)
        self.bias_mu, self.bias_rho = tensor(out_features), tensor(out_features, low=-4, high=-2)
        self.weight_sampler, self.bias_sampler = Sampler(self.weight_mu, self.weight_rho), Sampler(self.bias_mu, self.bias_rho)
        self.weight_prior_dist = MixturePrior(prior_pi, prior_sigma_1, prior_sigma_2, prior_dist)
        self.bias_prior_dist = MixturePrior(prior_pi, prior_sigma_1, prior_sigma_2, prior_dist)

    def forward_frozen(self, x):
        return linear(x, self.weight_sampler.mu, self.bias_sampler.mu if self.bias else None)

    forward = forward_frozen


class BayesLinear(nn.Module):
    """torchbnn: ``*_mu`` and ``*_log_sigma``, the prior as two numbers."""

    def __init__(self, prior_mu, prior_sigma, in_features, out_features, bias=True):
        super().__init__()
        self.in_features, self.out_features, self.bias = in_features, out_features, bias
        self.prior_mu, self.prior_sigma = prior_mu, prior_sigma
        self.weight_mu, self.weight_log_sigma = (
            tensor(out_features, in_features),
            tensor(out_features, in_features, low=-4, high=-2),
        )
        self.bias_mu, self.bias_log_sigma = (tensor(out_features), tensor(out_features)) if bias else (None, None)

    def forward(self, x):
        return linear(x, self.weight_mu, self.bias_mu)


class IVON(torch.optim.Optimizer):
    """ivon-opt: one vector of Hessian estimates for each group."""

    def __init__(self, params, lr, ess, hess_init=1.0, weight_decay=1e-4):
        super().__init__(params, {"lr": lr, "ess": ess, "hess_init": hess_init, "weight_decay": weight_decay})
        for group in self.param_groups:
            first = group["params"][0]
            group["hess"] = torch.full((sum(p.numel() for p in group["params"]),), hess_init).to(first)


class DiagLaplace:
    """laplace-torch: vectors over all parameters."""

    def __init__(self, model, prior_precision=1.0, prior_mean=0.0):
        self.model = model
        layer = getattr(model, "last_layer", model)
        self.mean = nn.utils.parameters_to_vector(layer.parameters()).detach()
        self.prior_mean, self.prior_precision = (
            torch.tensor(prior_mean).to(self.mean),
            torch.as_tensor(prior_precision).to(self.mean),
        )
        self.H = torch.rand(len(self.mean)).to(self.mean) * 100

    @property
    def prior_precision_diag(self):
        return self.prior_precision * torch.ones_like(self.mean)

    @property
    def posterior_precision(self):
        return self.H + self.prior_precision_diag


class FeatureExtractor(nn.Module):
    """laplace-torch: the network of a last-layer approximation."""

    def __init__(self, model):
        super().__init__()
        self.model, self.last_layer = model, model[-1]

    def forward(self, x):
        return self.model(x)


def gaussian_bits(mean, std, prior_std, prior_mean=0.0):
    """KL(N(mean, std^2) || N(prior_mean, prior_std^2)) in bits, number by number in plain Python."""
    total = []
    for m, s in zip(mean.flatten().tolist(), std.flatten().tolist(), strict=True):
        total.append(math.log(prior_std / s) + (s * s + (m - prior_mean) ** 2) / (2 * prior_std**2) - 0.5)
    return math.fsum(total) / math.log(2)


def refund_bits(std, step):
    return math.fsum(0.5 * math.log2(2 * math.pi * math.e) + math.log2(s) - math.log2(step) for s in std.flatten().tolist())


__all__ = ["gaussian_bits", "refund_bits", "softplus"]


class BayesBatchNorm2d(nn.Module):
    """torchbnn: batch normalisation whose scale and shift have posteriors."""

    def __init__(self, prior_mu, prior_sigma, num_features):
        super().__init__()
        self.num_features, self.eps, self.momentum, self.affine, self.track_running_stats = num_features, 1e-5, 0.1, True, True
        self.prior_mu, self.prior_sigma = prior_mu, prior_sigma
        self.weight_mu, self.weight_log_sigma = tensor(num_features), tensor(num_features, low=-4, high=-2)
        self.bias_mu, self.bias_log_sigma = tensor(num_features), tensor(num_features, low=-4, high=-2)
        self.register_buffer("running_mean", torch.rand(num_features))
        self.register_buffer("running_var", torch.rand(num_features) + 0.5)
        self.register_buffer("num_batches_tracked", torch.tensor(3))

    def forward(self, x):
        given = (self.running_mean, self.running_var, self.weight_mu, self.bias_mu)
        return nn.functional.batch_norm(x, *given, training=False, eps=self.eps)
