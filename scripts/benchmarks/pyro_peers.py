"""Pyro and TyXe. Pyro keeps parameters by name in one store of the process, so every trainer gets a name of its own."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import count
from operator import attrgetter
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.nets import bayesian_layers
from benchmarks.peers import initial_weights
from benchmarks.trainer import Moments, Task, Trainer

_numbers = count()


class PyroTrainer(Trainer):
    """Steps of ``SVI`` with Pyro's own Adam. Pyro's loss is N times the others': Adam does not mind."""

    def start(self, model: Callable[..., Any], guide: Callable[..., Any], elbo: Any, lr: float) -> None:
        from pyro.infer import SVI
        from pyro.optim import Adam

        self.pyro_optimizer = Adam({"lr": lr})
        self.svi = SVI(model, guide, self.pyro_optimizer, loss=elbo)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.svi.step(x, y)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError("Pyro takes the whole step")

    def optimizers(self) -> list[Optimizer]:
        return list(self.pyro_optimizer.optim_objs.values())  # one for every parameter, made at the first step


class Pyro(PyroTrainer):
    """A ``PyroModule`` with ``PyroSample`` weights.

    ``auto``: AutoNormal and Trace_ELBO. ``hand``: a guide by hand and TraceMeanField_ELBO, which finds the KL in closed form
    only for such a guide (AutoNormal's sites are deltas of auxiliary normals, whose KL it would sample).
    """

    def __init__(self, task: Task, guide: Literal["auto", "hand"]) -> None:
        import pyro
        import pyro.distributions as dist
        from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
        from pyro.infer.autoguide import AutoNormal
        from pyro.infer.autoguide.initialization import init_to_value
        from pyro.nn import PyroModule, PyroSample
        from pyro.nn.module import to_pyro_module_

        name = f"pyro{next(_numbers)}"
        initial = initial_weights(task)
        layers = dict(bayesian_layers(task.network))
        weights = [weight for weight in initial if weight.rpartition(".")[0] in layers]
        to_pyro_module_(task.network)
        for weight in weights:
            layer, _, local = weight.rpartition(".")
            prior = dist.Normal(0.0, task.prior_std).expand(initial[weight].shape).to_event(initial[weight].ndim)
            setattr(task.network.get_submodule(layer), local, PyroSample(prior))

        class Model(PyroModule):
            def __init__(self, network: nn.Module) -> None:
                super().__init__(name)
                self.network = network

            def forward(self, x: Tensor, y: Tensor) -> None:
                logits = self.network(x)
                with pyro.plate("data", task.examples, subsample=x):
                    pyro.sample("label", dist.Categorical(logits=logits), obs=y)

        def by_hand(x: Tensor, y: Tensor) -> None:
            for site, mean in starts.items():
                loc = pyro.param(f"{site}.loc", mean)
                std = pyro.param(
                    f"{site}.scale", mean.new_full(mean.shape, task.initial_std), dist.constraints.softplus_positive
                )
                pyro.sample(site, dist.Normal(loc, std).to_event(mean.ndim))

        model = Model(task.network)
        self.sites = {f"{name}.network.{weight}": weight for weight in weights}
        starts = {site: initial[weight] for site, weight in self.sites.items()}
        self.hand = guide == "hand"
        start_at = init_to_value(values=starts)
        self.guide = by_hand if self.hand else AutoNormal(model, init_loc_fn=start_at, init_scale=task.initial_std)
        if not self.hand:
            self.guide._pyro_name = f"{name}.guide"
        self.start(model, self.guide, TraceMeanField_ELBO() if self.hand else Trace_ELBO(), task.lr)

    def moments(self) -> Moments:
        import pyro

        if self.hand:
            found = {weight: (pyro.param(f"{site}.loc"), pyro.param(f"{site}.scale")) for site, weight in self.sites.items()}
        else:
            found = {weight: self.guide._get_loc_and_scale(site) for site, weight in self.sites.items()}
        return {weight: (mean.detach(), std.detach()) for weight, (mean, std) in found.items()}


class Tyxe(PyroTrainer):
    """TyXe: ``VariationalBNN`` with its AutoNormal, its steps those of ``fit``."""

    def __init__(self, task: Task, noise: Literal["sampling", "local_reparameterization", "flipout"]) -> None:
        import pyro.distributions as dist
        import pyro.util
        import tyxe
        from pyro.infer import TraceMeanField_ELBO

        pyro.util.deep_getattr = lambda thing, name: attrgetter(name)(thing)  # TyXe calls it, and Pyro 1.9 has it no more
        name = f"tyxe{next(_numbers)}"
        initial = initial_weights(task)
        prior = tyxe.priors.IIDPrior(dist.Normal(0.0, task.prior_std), expose_all=False, hide_module_types=(nn.BatchNorm2d,))
        starts = tyxe.guides.PretrainedInitializer({f"{name}.net.{weight}": value for weight, value in initial.items()})
        guide = partial(tyxe.guides.AutoNormal, init_loc_fn=starts, init_scale=task.initial_std)
        self.bnn = tyxe.VariationalBNN(
            task.network, prior, tyxe.likelihoods.Categorical(dataset_size=task.examples), guide, name=name
        )
        self.prefix = f"{name}.net."
        self.reparameterised: Callable[[], AbstractContextManager[Any]] = (
            nullcontext if noise == "sampling" else getattr(tyxe.poutine, noise)
        )
        self.start(self.bnn.model, self.bnn.guide, TraceMeanField_ELBO(), task.lr)

    def step(self, x: Tensor, y: Tensor) -> None:
        with self.reparameterised():
            self.svi.step((x,), y)

    def moments(self) -> Moments:
        guide = self.bnn.net_guide
        sites = [name for name, _ in guide.prototype_trace.iter_stochastic_nodes()]
        found = {site.removeprefix(self.prefix): (guide.get_loc(site), guide.get_scale(site)) for site in sites}
        return {weight: (mean.detach(), std.detach()) for weight, (mean, std) in found.items()}
