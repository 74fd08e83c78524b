"""One optimiser step on posteriors: the KL is added, means and log stds move, priors follow, the next draw is written.

With g = w.grad, the gradient of a *mean* data cost at the draw w = m + s e, N examples, and k = beta / N, the gradients of
data cost + beta KL / N are

    d/dm     = g           + k dKL/dm,
    d/dlog s = g (w - m)   + k dKL/dlog s

(Graves 2011; Blundell et al. 2015, section 3.2). For the prior N(mu, p^2), dKL/dm = (m - mu) / p^2 and
dKL/dlog s = s^2 / p^2 - 1; other priors say theirs (:meth:`bitsback.priors.Prior.kl_gradient`).
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitsback.errors import LayerError, near_miss
from bitsback.model import BayesianModel, Weight
from bitsback.model.pieces import Scratch
from bitsback.model.weight import State
from bitsback.optim._cost import GaussianCost, weights_with_one_scale
from bitsback.optim._said import FOREIGN_CLIPPING, SUM_LOSS, WEIGHT_DECAY
from bitsback.optim._sweep import Sweep
from bitsback.posteriors import GaussianPosterior
from bitsback.profiling import stage

__all__ = ["POSTERIOR", "PosteriorOptimizer"]

LOOK_EVERY = 16
"""Steps between looks at which weights have stds far below their means."""

LOOKS_FOR_CLIPPING = 32
"""Steps in which gradients are looked at for somebody else's clipping."""

KEYS = {"params", "lr", "log_std_lr", "role", "initial_lr"}
POSTERIOR = "posterior"
"""Where a state dict keeps means, log stds, and what the weights hold."""


class PosteriorOptimizer(torch.optim.Optimizer):
    """The base of the optimisers here: everything but how a number moves.

    A torch optimiser over the network's own parameters. Its groups hold the weights (``lr`` moves their means), the log stds
    (in groups of their own, so that schedulers move both) and parameters without a posterior.

    Args:
        model: what :func:`bitsback.bayesianize` makes, or a layer of :mod:`bitsback.nn` used alone; every parameter of its that
            requires gradients is moved.
        defaults: of the groups, ``lr`` among them.
        examples: N, what the mean in the loss averages over: training examples, or tokens, pixels.
        log_std_lr: learning rate of log stds; default: as ``lr``.
        groups: ``{"params": ..., "lr": ..., "log_std_lr": ...}`` over parameters of the network, whose log stds and priors come
            with them; default: all in one.
        also: other parameters to move, such as those of a likelihood.
        beta: weight of the KL.
        prior_rate: how far priors that learn in closed form follow in a step, of the way to their best.
        max_grad_norm: clip the gradients, the KL's part included, to this norm; :attr:`grad_norm` is what it was.
        by_pieces: do all that is done to a weight while it is in the cache; else one thing after the other, to all weights.

    Raises:
        LayerError: for what is no model, unknown settings, or nothing to move.

    Attributes:
        kl_weights: by the number of a weight, how much each element's KL counts; nothing: all alike.
    """

    def __init__(
        self,
        model: Any,
        defaults: dict[str, Any],
        *,
        examples: int,
        log_std_lr: float | None = None,
        groups: Iterable[dict[str, Any]] | None = None,
        also: Iterable[nn.Parameter] = (),
        beta: float = 1.0,
        prior_rate: float = 1.0,
        max_grad_norm: float | None = None,
        by_pieces: bool = True,
        **unknown: Any,
    ) -> None:
        for key in unknown:
            raise LayerError(WEIGHT_DECAY if key == "weight_decay" else f"{type(self).__name__} knows no '{key}'")
        self._take_model(model)
        if not examples >= 1:
            raise LayerError(f"examples is what the mean in the loss averages over, at least 1; got {examples}")
        self.examples, self.beta = examples, beta
        self.prior_rate, self.max_grad_norm, self.by_pieces = prior_rate, max_grad_norm, by_pieces
        self.nats_per_unit = 1.0
        self.grad_norm: Tensor | None = None
        self.kl_weights: dict[int, Tensor] = {}
        self._log_std_lr = log_std_lr
        wanted = list(groups) if groups is not None else [{"params": self._default_parameters()}]
        extra = [parameter for parameter in also if parameter.requires_grad]
        super().__init__([*wanted, {"params": extra}] if extra else wanted, defaults)

    def _take_model(self, model: Any) -> None:
        model = _unwrapped(model)
        if not isinstance(model, BayesianModel):
            raise LayerError(f"give the model that bitsback.bayesianize makes, got {type(model).__name__}")
        model.check_refs()
        self.model = model
        self._by_parameter = {id(weight.known): weight for weight in model.weights}
        self._scratch, self._steps = Scratch(), 0
        self._cost = GaussianCost([])
        self._norms: list[float] = []
        self._groups: dict[int, dict[str, Any]] = {}
        self._has_seen_clipping = False
        self._learned: list[nn.Parameter] = []
        self._owned: tuple[tuple[bool, ...], list[Weight]] | None = None

    def _default_parameters(self) -> list[nn.Parameter]:
        found = [p for p in self.model.network.parameters() if p.requires_grad]
        if not found:
            raise LayerError(
                "nothing can be trained: every weight is frozen; call requires_grad_(True) on those that shall learn"
            )
        return found

    # groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; those with a posterior bring their log stds, in a group of their own.

        Raises:
            LayerError: for keys that are unknown here, ``weight_decay`` among them.
        """
        group = dict(param_group)
        self._check_keys(group)
        if "role" in group:
            return super().add_param_group(group)
        params = group.pop("params")
        params = [params] if isinstance(params, Tensor) else [p[1] if isinstance(p, tuple) else p for p in params]
        rates = group.pop("log_std_lr", None), self._log_std_lr, group.get("lr", self.defaults["lr"])
        rate = next(rate for rate in rates if rate is not None)
        weights = [self._by_parameter[id(p)] for p in params if id(p) in self._by_parameter]
        self._check_foreign(params)
        parts: dict[str, list[Any]] = {
            "weight": [weight.known for weight in weights],
            "log_std": [w.posterior.log_std for w in weights if isinstance(w.posterior, GaussianPosterior)],
            "plain": [p for p in params if id(p) not in self._by_parameter] + self._learned_by_priors(weights, params),
        }
        for role, several in parts.items():
            if several:
                own = {"lr": rate} if role == "log_std" else {}
                if role == "log_std" and "weight_decay" in self.defaults:
                    own["weight_decay"] = 0.0  # a log std that is pulled to zero is a std that is pulled to one
                super().add_param_group({**group, **own, "params": several, "role": role})
        self._owned = None
        return None

    def _learned_by_priors(self, weights: Sequence[Weight], params: Sequence[Tensor]) -> list[Tensor]:
        """The numbers that the priors of some weights learn by gradient, which come with them."""
        present = {id(p) for p in params} | {id(p) for group in self.param_groups for p in group["params"]}
        found = {id(p): p for weight in weights for p in weight.prior.parameters() if p.requires_grad}
        return [p for identity, p in found.items() if identity not in present]

    def _check_keys(self, group: dict[str, Any]) -> None:
        for key in group.keys() - KEYS - self.defaults.keys():
            if key == "weight_decay":
                raise LayerError(WEIGHT_DECAY)
            raise LayerError(f"a group of {type(self).__name__} knows no '{key}'{near_miss(key, self.defaults)}")

    def _check_foreign(self, params: Sequence[Tensor]) -> None:
        inside = {id(p) for weight in self.model.weights for p in weight.posterior.parameters()}
        if any(id(p) in inside for p in params):
            raise LayerError("give the network's parameters: their means and log stds come with them")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of everything that is moved, and what earlier draws have left for log stds."""
        if not set_to_none:
            return super().zero_grad(set_to_none=False)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        return None

    def _roles(self, role: str) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["role"] == role]

    @property
    def weights(self) -> list[Weight]:
        """The weights that are moved: those of the groups, without frozen ones."""
        owned = [self._by_parameter[id(p)] for group in self._roles("weight") for p in group["params"]]
        return [weight for weight in owned if weight.is_trained]

    # a step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move everything by one step, and draw anew; without any gradient, nothing moves.

        Raises:
            LayerError: while the model holds its means, or when the network is not what it was.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        model, weights = self.model, self.weights
        if model.holds == "mean":
            raise LayerError(
                "the weights hold their means, and gradients taken there teach no width: call model.train() before the forward"
            )
        if model.loss_is_sum and self.nats_per_unit == 1.0:
            warnings.warn(SUM_LOSS, stacklevel=4)
            model.loss_is_sum = False
        model.honour_edits()
        plain = [p for group in self._roles("plain") for p in group["params"] if p.grad is not None]
        is_looking = self._steps < LOOKS_FOR_CLIPPING and not self._has_seen_clipping
        if is_looking and self.nats_per_unit == 1.0:  # a loop of somebody's own
            self._look_for_clipping([*(weight.parameter for weight in weights), *plain])
        if not plain and all(weight.parameter.grad is None for weight in weights):
            return loss
        for weight in weights:
            if weight.has_used_gradient:
                raise LayerError(
                    f"the gradient of '{weight.name}' was used by a step before, and the draw that it was taken at is gone: "
                    "call zero_grad() and backward() between steps; of several optimisers, let each own other weights (groups=)"
                )
        self._groups = {id(p): group for group in self.param_groups for p in group["params"]}
        k = self.beta / (self.examples * self.nats_per_unit)
        with stage("bitsback: cost"):
            self._begin(weights, k)
        state = model.next_state()
        sweep = Sweep(model, self._cost, k, state, self._scratch, self.kl_weights)
        with stage("bitsback: move and draw"):
            sweep.begin(weights)
            self._sweep(sweep, weights)
            self._draw_others(weights, state)
            sweep.end()
            self._remember(weights)
        self._steps += 1
        return loss

    def _look_for_clipping(self, parameters: Sequence[Tensor]) -> None:
        """Say it once when somebody else clips: what is clipped before the step holds no KL, whose weight then grows."""
        gradients = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))) if gradients else 0.0
        self._norms = [*self._norms, norm][-3:]
        if len(self._norms) == 3 and norm and max(self._norms) - min(self._norms) < 1e-5 * norm:
            warnings.warn(FOREIGN_CLIPPING.format(norm=norm), stacklevel=5)
            self._has_seen_clipping = True

    def _begin(self, weights: Sequence[Weight], k: float) -> None:
        """Let priors follow, and count what has a closed form."""
        self._count(weights)
        self._cost.follow(self.prior_rate, k)
        others = [w for w in weights if w.prior.learns_in_closed_form and w.index not in self._cost] if self.prior_rate else []
        if others:
            self.model.update_priors(self.prior_rate, others)
        if self._steps % LOOK_EVERY == 0:
            self.model.check_refs()
            for weight in weights:
                weight.look()

    def _count(self, weights: Sequence[Weight]) -> None:
        """Bring the sums of the closed form up to date: others may have moved posteriors."""
        signature = (*(weight.is_trained for weight in self.model.weights), bool(self.kl_weights))
        if self._owned is None or self._owned[0] != signature:
            self._owned = signature, [] if self.kl_weights else weights_with_one_scale(self.model, weights)
            self._cost = GaussianCost(self._owned[1])
            self._learned = list({id(p): p for weight in weights for p in weight.prior.parameters()}.values())
        for weight in self._cost.weights:
            if self._cost.marks.get(weight.index) != weight.seen[1:]:
                self._cost.refresh(weight)

    def _remember(self, weights: Sequence[Weight]) -> None:
        for weight in weights:
            if weight.index in self._cost:
                self._cost.marks[weight.index] = weight.seen[1:]

    def kl_nats(self) -> float:
        """Return KL(q||p) of all weights as they are now, in nats."""
        self.model.honour_edits()
        self._count(self.weights)
        others = [weight for weight in self.model.weights if weight.index not in self._cost]
        return self._cost.nats() + self.model.kl_estimate_nats(others)

    @abstractmethod
    def _sweep(self, sweep: Sweep, weights: Sequence[Weight]) -> None:
        """Move the weights and write their next draws, and move what has no posterior."""

    def _rewrite(self, sweep: Sweep, weight: Weight) -> None:
        """Write the next draw of a weight that was moved by gradients in ``.grad`` of mean and log std, which it loses."""
        sweep.rewrite(weight)
        for p in weight.posterior.parameters():
            p.grad = None

    def _clip(self, weights: Sequence[Weight]) -> None:
        """Scale all gradients alike, those of means and log stds with their KL, where that is asked for."""
        if self.max_grad_norm is None:
            return
        filled = [p for weight in weights for p in weight.posterior.parameters()]
        plain = [p for group in self._roles("plain") for p in group["params"] if p.grad is not None]
        for p in plain:
            if p.grad.is_sparse:
                p.grad = p.grad.to_dense()
        self.grad_norm = torch.nn.utils.clip_grad_norm_([*filled, *plain], self.max_grad_norm)

    def _draw_others(self, weights: Sequence[Weight], state: State) -> None:
        """Draw the weights that this optimiser does not own, or that are frozen; then all hold the draw of ``state``."""
        owned = {weight.index for weight in weights}
        for weight in weights:
            q = weight.posterior
            weight.use_gradient()
            if isinstance(q, GaussianPosterior):
                q.log_std.grad = None  # consumed
        for p in self._learned:
            p.grad = None  # of the KL alone: not every framework clears it
        self.model.moved_to(state, owned)

    def _settings(self, weight: Weight) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The groups that the mean and the log std of a weight are in."""
        q = weight.posterior
        return self._groups[id(weight.known)], self._groups[id(q.log_std)] if isinstance(q, GaussianPosterior) else None

    # modes and files

    def train(self) -> None:
        """Put the draw back into the weights, as ``model.train()``: some training frameworks call this."""
        self.model.train()

    def eval(self) -> None:
        """Place the means, as ``model.eval()``."""
        self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state, and under ``posterior`` means, log stds, priors and the draw: with the network, all of it."""
        found: dict[str, Any] = super().state_dict()
        model = self.model
        states = {"tensors": model.posterior.state_dict(), "priors": model.priors.state_dict()}
        found[POSTERIOR] = {**states, "draw": model.get_extra_state()}
        found["steps"] = self._steps
        found["coarse"] = [weight.index for weight in model.weights if weight.is_coarse]
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state over; the weights then hold the draw that they held."""
        own = dict(state_dict)
        posterior, self._steps, coarse = own.pop(POSTERIOR, None), own.pop("steps", 0), own.pop("coarse", ())
        super().load_state_dict(own)
        self._widen(own)
        if posterior is not None:
            self.model.posterior.load_state_dict(posterior["tensors"])
            self.model.priors.load_state_dict(posterior["priors"])
            self.model.set_extra_state(posterior["draw"])
            self.model.take_loaded()
        for weight in self.model.weights:
            weight.is_narrow = weight.index in coarse
        self._cost.marks.clear()

    def _widen(self, given: dict[str, Any]) -> None:
        """torch casts what it loads to the weight's precision; moments are as precise as the means."""
        ids = [identity for group in given["param_groups"] for identity in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for identity, parameter in zip(ids, params, strict=True):
            for name, value in given["state"].get(identity, {}).items():
                loaded = self.state[parameter].get(name)
                if isinstance(loaded, Tensor) and isinstance(value, Tensor) and loaded.dtype != value.dtype:
                    self.state[parameter][name] = value.to(loaded.device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scratch": Scratch()}


def _unwrapped(model: Any) -> Any:
    """Return the model inside what torch.compile or a data-parallel wrapper made of it, or behind a layer used alone."""
    while isinstance(model, nn.Module) and not isinstance(model, BayesianModel):
        inner = next((getattr(model, name) for name in ("_orig_mod", "module", "model") if hasattr(model, name)), None)
        if inner is None:
            break
        model = inner
    return model
