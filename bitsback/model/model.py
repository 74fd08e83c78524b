"""A network whose weights each have a name, a posterior and a prior."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bitsback.errors import LayerError, PriorError
from bitsback.kl import Panels, kl
from bitsback.layers import BayesianModule
from bitsback.layers.convert import matches
from bitsback.learned import BFLOAT16, Charge
from bitsback.model.buffers import COUNTER, Buffer, buffers_of
from bitsback.model.choices import PriorChoice, build_prior, settings_of
from bitsback.posterior import (
    GaussianPosterior,
    PointPosterior,
    Posterior,
    holding,
)
from bitsback.priors import Prior, PriorSettings
from bitsback.tables.points import point_bits
from bitsback.units import nats_to_bits

FLOAT32_BITS = 32.0
"""What a weight without posterior costs, and a number of a buffer that training changed."""


@dataclass(frozen=True)
class Weight:
    """One weight tensor: its dotted name in the network, its posterior and its prior."""

    name: str
    posterior: Posterior
    prior: Prior


class BayesianModel(nn.Module):
    """A network that knows the prior of every weight that has a posterior.

    Calling it calls the network. One call sees one draw of every weight of a layer with the ``weight`` estimator (tied
    weights included); layers with the ``output`` estimator draw their outputs instead, anew at every use.
    Make it with :func:`bayesianize`.
    """

    def __init__(self, network: nn.Module, prior: PriorChoice, overrides: Mapping[str, PriorChoice] | None = None) -> None:
        super().__init__()
        self.network = network
        self.priors = nn.ModuleList()
        self.weights: list[Weight] = []
        self.prior_settings = settings_of(prior)
        self.override_settings = {pattern: settings_of(choice) for pattern, choice in (overrides or {}).items()}
        self._drawn_per_call: list[Posterior] = []
        self.chosen_grid_step: float | None = None
        self._assign(self.prior_settings, self.override_settings)
        self._starts: dict[str, str] = {}
        self._remember_buffers()

    def _remember_buffers(self) -> None:
        """Keep the network's buffers as they are now, to tell later which of them training has changed."""
        for number, buffer in enumerate(buffers_of(self.network)):
            if buffer.local != COUNTER and not is_lazy(buffer.tensor):
                self._starts[buffer.name] = f"start_of_buffer_{number}"
                self.register_buffer(self._starts[buffer.name], buffer.tensor.detach().clone(), persistent=False)

    def _assign(self, default: PriorSettings, overrides: Mapping[str, PriorSettings]) -> None:
        groups: dict[tuple[str, str], Prior] = {}
        seen: set[int] = set()
        used: set[str] = set()
        for path, module in self.network.named_modules():
            if not isinstance(module, BayesianModule):
                continue
            if module.estimator == "weight":
                self._drawn_per_call += module.own_posteriors
            for local, posterior in module.posteriors.items():
                assert isinstance(posterior, Posterior)
                name = f"{path}.{local}" if path else local
                if id(posterior) in seen:
                    continue
                seen.add(id(posterior))
                pattern = next((p for p in overrides if matches(name, [p])), "")
                used.add(pattern)
                settings = overrides.get(pattern, default)
                key = (pattern, {"tensor": name, "layer": path, "model": ""}[settings.per])
                if key not in groups:
                    groups[key] = build_prior(settings, name, module, local, posterior)
                    self.priors.append(groups[key])
                groups[key].check(posterior.mean.shape)
                self.weights.append(Weight(name, posterior, groups[key]))
        for weight in self.weights:
            if isinstance(weight.posterior, PointPosterior) and weight.prior.charges():
                raise PriorError(
                    f"the prior of '{weight.name}' is learned, but its posterior is a point: the prior would collapse onto it; "
                    "set prior.learn=none, or posterior.kind=gaussian"
                )
        for pattern in overrides:
            if pattern not in used:
                names = ", ".join(weight.name for weight in self.weights)
                raise LayerError(f"prior override '{pattern}' matches no weight; weights: {names}")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output."""
        with holding(self._drawn_per_call):
            output = self.network(*args, **kwargs)
        return output

    @contextmanager
    def sample(self) -> Iterator["BayesianModel"]:
        """Inside, every call sees one and the same draw of all weights, as a receiver would.

        A weight is drawn when it is first read; for gradients, let that first read happen outside ``torch.no_grad``.
        """
        with holding(weight.posterior for weight in self.weights):
            yield self

    @contextmanager
    def mean(self) -> Iterator["BayesianModel"]:
        """Inside, every weight is its posterior mean."""
        with holding((weight.posterior for weight in self.weights), lambda q: q.mean.clone()):  # some layers write to it
            yield self

    def is_drawn(self, posterior: Posterior) -> bool:
        """True when a layer with the ``weight`` estimator reads it; others draw their outputs."""
        return any(posterior is drawn for drawn in self._drawn_per_call)

    def kl_bits(self, among: Sequence[Weight] | None = None, *, exact: bool = False) -> Tensor:
        """Net weight bits, KL(q||p) / ln 2, over all weights, or those ``among`` them; a scalar, differentiable.

        For a point estimate: -log2 p(w) :meth:`grid_step`, the penalty and the cost of its grid; smooth, but no code length
        under a peaked prior. ``exact`` takes what the ledger takes: its quadrature instead of the faster one for training,
        where the prior has no closed form; and for a point the integer tables of its prior, which have no gradient.
        """
        panels = Panels.exact() if exact else Panels.fast()
        weights = self.weights if among is None else among
        tabled = [weight for weight in weights if exact and isinstance(weight.posterior, PointPosterior)]
        smooth = [weight for weight in weights if weight not in tabled]
        parts = [kl(weight.posterior, weight.prior, panels=panels, samples=1).bits for weight in smooth]
        points = sum(weight.posterior.weights for weight in smooth if isinstance(weight.posterior, PointPosterior))
        grid_bits = -points * math.log2(self.grid_step()) if points else 0.0
        for weight in tabled:
            grid_bits += float(point_bits(weight.prior, weight.name, weight.posterior.mean, self.grid_step()).sum())
        return torch.stack(parts).sum() + grid_bits if parts else torch.tensor(grid_bits)

    def refund_bits(self, grid_step: float) -> Tensor:
        """E_q[-log2 q(w) grid_step] over all weights; zero for point estimates."""
        step = torch.tensor(grid_step, dtype=torch.float64).log()
        parts = [
            (q.entropy().detach().cpu().double() - step).sum() for q in self.posteriors() if isinstance(q, GaussianPosterior)
        ]
        return nats_to_bits(torch.stack(parts).sum()) if parts else torch.zeros((), dtype=torch.float64)

    def _priors(self) -> list[Prior]:
        return list(self.priors)  # type: ignore[arg-type]

    def weights_by_prior(self) -> list[tuple[Prior, list[Weight]]]:
        """Every prior with the weights that share it."""
        sharing: dict[int, list[Weight]] = {}
        for weight in self.weights:
            sharing.setdefault(id(weight.prior), []).append(weight)
        return [(prior, sharing[id(prior)]) for prior in self._priors()]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the first weights that have one: a frozen trunk may be made of whole numbers."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def posteriors(self) -> list[Posterior]:
        """Every posterior once, in the order of the weights."""
        return [weight.posterior for weight in self.weights]

    def smallest_std(self) -> float | None:
        """The smallest posterior standard deviation; None when every weight is a point."""
        stds = [q.std() for q in self.posteriors()]
        return min((float(std.detach().min()) for std in stds if std is not None), default=None)

    def parameter_groups(self, lr: float, log_std_lr: float) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimiser: log stds learn best at a rate of their own, often a higher one.

        >>> from bitsback.model import bayesianize
        >>> model = bayesianize(nn.Linear(3, 2))
        >>> _ = torch.optim.Adam(model.parameter_groups(lr=0.01, log_std_lr=0.05))
        """
        return parameter_groups([self], lr, log_std_lr)

    def grid_step(self) -> float:
        """The default grid of the weights: a power of two below the smallest posterior std and an eighth of a point's prior.

        A point posterior's own ``grid_step`` wins over both, and ``chosen_grid_step`` over everything.
        """
        if self.chosen_grid_step is not None:
            return self.chosen_grid_step
        limits = [std] if (std := self.smallest_std()) is not None else []
        for weight in self.weights:
            if isinstance(weight.posterior, PointPosterior):
                chosen = weight.posterior.grid_step
                if chosen is not None:
                    return chosen
                limits.append(float(weight.prior.width().detach().min()) / 8)
        return 2.0 ** (math.ceil(math.log2(min(limits, default=1.0))) - 1)

    @torch.no_grad()
    def update_priors(self, rate: float = 1.0, among: Sequence[Weight] | None = None) -> None:
        """Move every prior that learns in closed form by ``rate`` of the way to its best given the posteriors.

        ``among``: only the priors of these weights.
        """
        wanted = {id(weight.prior) for weight in self.weights if among is None or weight in among}
        for prior, weights in self.weights_by_prior():
            if prior.learns_in_closed_form and id(prior) in wanted:
                prior.update([(weight.posterior.mean, weight.posterior.std()) for weight in weights], rate)

    def deterministic(self) -> list[tuple[str, nn.Parameter]]:
        """Name and parameter of every weight of the network that has no posterior."""
        inside = {id(p) for posterior in self.posteriors() for p in posterior.parameters()}
        return [(name, p) for name, p in self.network.named_parameters() if id(p) not in inside]

    def deterministic_bits(self) -> float:
        """Bits of the trainable weights without posterior, each written as a float32."""
        return FLOAT32_BITS * sum(parameter.numel() for _, parameter in self.deterministic() if parameter.requires_grad)

    def statistics(self) -> list[tuple[str, Tensor]]:
        """Running statistics of all normalisation layers."""
        return [(buffer.name, buffer.tensor) for buffer in buffers_of(self.network) if buffer.is_statistic]

    def learned_statistics(self) -> list[tuple[str, Tensor]]:
        """Running statistics that the training data have moved, hence charged.

        Those of layers in train mode, and any that are no longer what they were when the network became a Bayesian model. The
        others are the receiver's, as frozen weights are.
        """
        found = [buffer for buffer in buffers_of(self.network) if buffer.is_statistic]
        return [(buffer.name, buffer.tensor) for buffer in found if buffer.moves or self._has_changed(buffer)]

    def changed_buffers(self) -> list[tuple[str, Tensor]]:
        """Other floating-point buffers of the network's state that training has changed, hence charged."""
        return [(buffer.name, buffer.tensor) for buffer in buffers_of(self.network) if self._is_charged_as_changed(buffer)]

    def _is_charged_as_changed(self, buffer: Buffer) -> bool:
        stored = buffer.tensor.is_floating_point() and buffer.is_saved
        return stored and not buffer.is_statistic and self._has_changed(buffer)

    def _has_changed(self, buffer: Buffer) -> bool:
        """Whether a buffer is no longer what it was at first; numbers come and go through other precisions alike."""
        start = self._buffers.get(self._starts.get(buffer.name, ""))
        return start is None or not torch.equal(start.to(buffer.tensor), buffer.tensor)

    def prior_charges(self) -> list[Charge]:
        """What the learned numbers of the priors cost."""
        charges = []
        for prior, weights in self.weights_by_prior():
            first = weights[0].name
            charges += [Charge(f"{prior.kind}.{c.name}[{first}]", c.numbers, c.bits_each) for c in prior.charges()]
        return charges

    def charges(self) -> list[Charge]:
        """What every learned number that is not a weight costs."""
        statistics = [Charge(name, buffer.numel(), BFLOAT16.bits_each) for name, buffer in self.learned_statistics()]
        changed = [Charge(name, buffer.numel(), FLOAT32_BITS) for name, buffer in self.changed_buffers()]
        return [*self.prior_charges(), *statistics, *changed]

    @torch.no_grad()
    def round_to_grid(self) -> None:
        """Round every learned number that is not a weight to its stated grid, in place."""
        for prior in self._priors():
            prior.round_to_grid()
        for _, buffer in self.learned_statistics():
            buffer.copy_(BFLOAT16.round(buffer))
        for _, buffer in self.changed_buffers():
            buffer.copy_(buffer.float())
        for _, parameter in self.deterministic():
            if parameter.requires_grad:
                parameter.copy_(parameter.float())

    def not_charged(self) -> list[str]:
        """What the receiver is assumed to hold: named, because it is not paid for."""
        frozen = [f"{name} ({p.numel():,} frozen weights)" for name, p in self.deterministic() if not p.requires_grad]
        charged = {name for name, _ in [*self.learned_statistics(), *self.changed_buffers()]}
        buffers = [self._held(buffer) for buffer in buffers_of(self.network) if buffer.name not in charged]
        given = [f"{self.given()}, whose means are the prior's, assumed known to the receiver"] if self.given() else []
        return [*frozen, *filter(None, buffers), *given]

    def _held(self, buffer: Buffer) -> str:
        """What is not charged of a buffer, in words; nothing for whole numbers that have not changed."""
        count = buffer.tensor.numel()
        if buffer.is_statistic:
            return f"{buffer.name} ({count:,} fixed statistics)"
        if buffer.local != COUNTER and self._has_changed(buffer):
            return f"{buffer.name} (a buffer of {count:,} numbers, changed since the start and not paid for)"
        return f"{buffer.name} (a buffer of {count:,} fixed numbers)" if buffer.tensor.is_floating_point() else ""

    def given(self) -> str:
        """What the priors assume the receiver to hold, in one phrase; nothing for most."""
        return " and ".join(dict.fromkeys(prior.given() for prior in self._priors() if prior.given()))


def parameter_groups(modules: Sequence[nn.Module], lr: float, log_std_lr: float) -> list[dict[str, Any]]:
    """The trainable parameters of several modules in two groups: log stds, and everything else."""
    named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
    widths = [p for name, p in named if name.endswith(".log_std")]
    rest = [p for name, p in named if not name.endswith(".log_std")]
    groups: list[dict[str, Any]] = [{"params": rest, "lr": lr}, {"params": widths, "lr": log_std_lr}]
    return [group for group in groups if group["params"]]
