"""One optimiser step: the KL's gradient is added, means, log stds and priors are updated, and the next draw is written.

With g = w.grad, the gradient of a *mean* data cost at the draw w = m + s e, N examples, and k = beta / N, the gradients of
data cost + beta KL / N are

    d/dm     = g           + k dKL/dm,
    d/dlog s = g (w - m)   + k dKL/dlog s

(Graves 2011; Blundell et al. 2015, section 3.2). For the prior N(mu, p^2), dKL/dm = (m - mu) / p^2 and
dKL/dlog s = s^2 / p^2 - 1; other priors return theirs from :meth:`bitsback.priors.Prior.kl_gradient`.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitsback.distributed import Ranks, local, present
from bitsback.errors import LayerError, near_miss
from bitsback.model import BayesianModel, Weight
from bitsback.model.drawer import clock_for, takes
from bitsback.model.noise import as_key
from bitsback.model.pieces import Scratch
from bitsback.model.weight import State
from bitsback.optim._cost import GaussianCost, weights_with_one_scale
from bitsback.optim._foreach_sweep import ForeachSweep
from bitsback.optim._kernel_sweep import Kernel, KernelSweep
from bitsback.optim._said import FOREIGN_CLIPPING, SUM_LOSS, WEIGHT_DECAY
from bitsback.optim._sweep import Sweep
from bitsback.optim._together import NoiseOf, Together
from bitsback.posteriors import GaussianPosterior
from bitsback.profiling import stage

__all__ = ["POSTERIOR", "PosteriorOptimizer"]

# Order within step(), with k = beta / (N * nats_per_unit):
#
#     honour_edits          weights written by the user since the last draw become means
#          |
#     _begin                prior scales with a closed form move to their optimum for the current q
#          |
#     Sweep.begin           noise: w - m of coarse weights from the current draw; e of the next draw
#          |
#     _sweep                for each weight, in pieces (see _sweep.py):
#          |                    g, w - m, k  ->  gradients of m, log s  ->  m, log s move  ->  w = m + s e
#          |                with max_grad_norm: gradients of all weights, clip, then moves and draws of all
#     _draw_others          weights that are frozen or belong to another optimiser get the same next draw
#          |
#     Sweep.end             sums of s^2 and (m - mu)^2 for the KL of the next step

LOOK_EVERY = 16
"""Steps between checks for stds so far below their means that w - m loses digits (:meth:`Weight.look`)."""

LOOKS_FOR_CLIPPING = 32
"""Number of first steps in which gradient norms are checked for clipping outside this optimiser."""

KEYS = {"params", "lr", "log_std_lr", "role", "initial_lr"}
POSTERIOR = "posterior"
"""Key of a state dict that holds means, log stds, priors and the state of the draw."""


class PosteriorOptimizer(torch.optim.Optimizer):
    """Base class of the optimisers here; a subclass defines the update rule.

    A torch optimiser over the network's own parameters. Its groups hold the weights (``lr`` moves their means), the log stds
    (in groups of their own, so that schedulers change both learning rates) and parameters without a posterior.

    In a process group, making the optimiser and each step are collective: all its processes make one, and all call ``step()``.

    Args:
        model: model returned by :func:`bitsback.bayesianize`, or a layer of :mod:`bitsback.nn` used alone; all its parameters
            that require gradients are moved.
        defaults: default options of the groups, ``lr`` among them.
        examples: N, the number of training examples (or tokens, pixels) that the loss is a mean over.
        log_std_lr: learning rate of log stds; default: as ``lr``.
        groups: ``{"params": ..., "lr": ..., "log_std_lr": ...}`` over parameters of the network; their log stds and priors are
            added with them; default: one group of all parameters.
        also: other parameters to move, such as those of a likelihood.
        beta: weight of the KL.
        prior_rate: share of the way, in [0, 1], that closed-form priors move to their optimum in a step.
        max_grad_norm: clip the gradients, the KL's included, to this norm; :attr:`grad_norm` is the norm before clipping.
        by_pieces: finish each piece of a weight while it is in the cache; otherwise all gradients first, then all moves.
        noise: of several processes: ``shared``, all hold the same draw, or ``per_rank``, each its own, with backward passes
            under ``no_sync``.
        ranks: processes that train the model together; default: all of ``torch.distributed``'s default group. With
            ``bitsback.distributed.ALONE`` each trains a model of its own.

    Raises:
        LayerError: when ``model`` is not a Bayesian model, for unknown settings, or when nothing can be trained.

    Attributes:
        kl_weights: by weight index, a factor for the KL of each element; empty: 1 for all.
        nats_per_unit: nats in one unit of the loss: 1 for a loss in nats, ln 2 for one in bits.
        grad_norm: norm of all gradients before the last clipping, a scalar tensor that every step overwrites; None without
            ``max_grad_norm``.
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
        noise: NoiseOf = "shared",
        ranks: Ranks | None = None,
        **unknown: Any,
    ) -> None:
        for key in unknown:
            raise LayerError(WEIGHT_DECAY if key == "weight_decay" else f"{type(self).__name__} knows no '{key}'")
        self._take_model(model, present() if ranks is None else ranks, noise)
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
        self.together.copy_plain(self)

    def _take_model(self, model: Any, ranks: Ranks, noise: NoiseOf) -> None:
        model = _unwrapped(model)
        if not isinstance(model, BayesianModel):
            raise LayerError(f"give the model that bitsback.bayesianize makes, got {type(model).__name__}")
        self.together = Together(model, ranks, noise)
        model.check_refs()
        self.model = model
        self._by_parameter = {id(weight.known): weight for weight in model.weights}
        self._scratch, self._steps = Scratch(), 0
        self._kernel: Kernel | None = None
        self._changes = 0
        self._cost = GaussianCost([])
        self._norms: list[float] = []
        self._groups: dict[int, dict[str, Any]] = {}
        self._has_seen_clipping = False
        self._learned: list[nn.Parameter] = []
        self._owned: tuple[tuple[int, ...], list[Weight]] | None = None

    def _default_parameters(self) -> list[nn.Parameter]:
        found = [p for p in self.model.network.parameters() if p.requires_grad]
        if not found:
            raise LayerError(
                "nothing can be trained: every weight is frozen; call requires_grad_(True) on those that shall learn"
            )
        return found

    # groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; log stds of weights with a posterior are added in a group of their own.

        Raises:
            LayerError: for unknown keys, ``weight_decay`` among them, and when posterior parameters are given directly.
        """
        self._changes += 1
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
            "log_std": [w.shown.log_std for w in weights if isinstance(w.shown, GaussianPosterior)],
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
        """Return prior parameters of these weights that are learned by gradient and are in no group yet."""
        present = {id(p) for p in params} | {id(p) for group in self.param_groups for p in group["params"]}
        found = {id(p): p for weight in weights for p in weight.prior.parameters() if p.requires_grad}
        return [p for identity, p in found.items() if identity not in present]

    def _check_keys(self, group: dict[str, Any]) -> None:
        for key in group.keys() - KEYS - self.defaults.keys():
            if key == "weight_decay":
                raise LayerError(WEIGHT_DECAY)
            raise LayerError(f"a group of {type(self).__name__} knows no '{key}'{near_miss(key, self.defaults)}")

    def _check_foreign(self, params: Sequence[Tensor]) -> None:
        inside = {id(p) for weight in self.model.weights for p in weight.shown.parameters()}
        if any(id(p) in inside for p in params):
            raise LayerError("give the network's parameters: their means and log stds come with them")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all groups, and those that earlier draws left in ``log_std.grad``."""
        for weight in self.weights if self.model.is_sharded else ():
            for p in weight.posterior.parameters():
                p.grad = None
        if not set_to_none:
            return super().zero_grad(set_to_none=False)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        return None

    def gradients(self) -> list[Tensor]:
        """Return all gradients of the data cost; of a sharded model those of this process's shards."""
        return self.together.gradients(self)

    def gather(self) -> None:
        """Average gradients over the processes, for loops whose backward passes do not; :meth:`step` then does not."""
        self.together.gather(self)

    def _roles(self, role: str) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["role"] == role]

    @property
    def weights(self) -> list[Weight]:
        """Return the weights that are moved: those of the groups, without frozen ones."""
        owned = [self._by_parameter[id(p)] for group in self._roles("weight") for p in group["params"]]
        return [weight for weight in owned if weight.is_trained]

    # a step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one optimiser step and write the next draw; if no parameter has a gradient, do nothing.

        Args:
            closure: computes and returns the loss, with its gradients; default: gradients are there already.

        Returns:
            The loss returned by ``closure``, else None.

        Raises:
            LayerError: while the model holds its means, when a weight was replaced or its module removed, or when a gradient
                has been used by an earlier step.
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
        self.together.begin(self)
        if model.loss_is_sum and self.nats_per_unit == 1.0:
            warnings.warn(SUM_LOSS, stacklevel=4)
            model.loss_is_sum = False
        model.honour_edits()
        plain = [p for group in self._roles("plain") for p in group["params"] if p.grad is not None]
        is_looking = self._steps < LOOKS_FOR_CLIPPING and not self._has_seen_clipping
        if is_looking and self.nats_per_unit == 1.0:  # a training loop in nats, not that of bitsback.train
            self._look_for_clipping([w.gradient for w in weights] + [p.grad for p in plain])
        if not plain and all(weight.gradient is None for weight in weights):
            self.together.end()
            return loss
        for weight in weights:
            if weight.has_used_gradient:
                raise LayerError(
                    f"the gradient of '{weight.name}' was used by a step before, and the draw that it was taken at is gone: "
                    "call zero_grad() and backward() between steps; of several optimisers, let each own other weights (groups=)"
                )
        self._groups = {id(p): group for group in self.param_groups for p in group["params"]}
        state = model.next_state()
        before = self.beta, self.prior_rate
        only_fills = self._only_fills_state(weights, plain)
        if only_fills:
            self.beta, self.prior_rate, state = 0.0, 0.0, model.state
        k = self.k
        with stage("bitsback: cost"):
            self._begin(weights, k)
        arguments = model, self._cost, k, state, self._scratch, self.kl_weights
        sweep = self._pass(*arguments)
        with stage("bitsback: move and draw"):
            sweep.begin(weights)
            self._sweep(sweep, weights)
            self._draw_others(weights, state)
            sweep.end()
            self._remember(weights)
        self.beta, self.prior_rate = before
        self.together.end()
        self._steps += not only_fills
        return loss

    def _look_for_clipping(self, found: Sequence[Tensor | None]) -> None:
        """Warn once when gradients seem to be clipped before the step: three steps in a row with the same norm."""
        # Clipping outside scales the data gradient down but not the KL's, which is added here: the KL's weight grows.
        gradients = [local(gradient) for gradient in found if gradient is not None and not gradient.is_sparse]
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))) if gradients else 0.0
        self._norms = [*self._norms, norm][-3:]
        if len(self._norms) == 3 and norm and max(self._norms) - min(self._norms) < 1e-5 * norm:
            warnings.warn(FOREIGN_CLIPPING.format(norm=norm), stacklevel=5)
            self._has_seen_clipping = True

    def _only_fills_state(self, weights: Sequence[Weight], plain: Sequence[Tensor]) -> bool:
        """Return True for the first step of ``torch.distributed.checkpoint``, with zero rates and gradients.

        It is taken to fill a fresh optimiser's state before that is loaded, and must change nothing else: no KL is added,
        priors stay, and the draw too.
        """
        if self.state or any(float(group["lr"]) for group in self.param_groups):
            return False
        gradients = [w.gradient for w in weights] + [p.grad for p in plain]
        return not any(bool(local(gradient).any()) for gradient in gradients if gradient is not None)

    @property
    def k(self) -> float:
        """Return the factor of the KL in nats in the loss, beta / N in units of the loss."""
        return self.beta / (self.examples * self.nats_per_unit)

    def write_numbers(self) -> None:
        """Write k and the rates to the device, for launches of the next step; does nothing where no kernel runs."""
        if self._kernel is not None:
            groups = [self.numbers_of(group) for group in self.param_groups]
            self._kernel.numbers.set(self.k, self.examples * self.nats_per_unit, self.prior_rate, groups)

    def prepare_capture(self, launches: int) -> None:
        """Allocate what the launches of one captured step read, those of draws in it included.

        Args:
            launches: largest number of launches over the same weights.
        """
        assert self._kernel is not None
        self._kernel.prepare_capture(launches)
        self.model.prepare_capture(launches)

    def finish_capture(self) -> None:
        """Write what the launches of the finished capture read."""
        assert self._kernel is not None
        self._kernel.finish_capture()
        self.model.finish_capture()

    def write_next(self) -> None:
        """Write to the device what a captured step reads there: k, rates, and the number of the current draw."""
        assert self._kernel is not None
        self.write_numbers()
        state = self.model.state
        self._kernel.clock.set(as_key(state.seed), state.number)

    def host_state(self) -> tuple[State, int]:
        """Return what a step changes on the host: the state of the draw, and the number of steps."""
        return self.model.state, self._steps

    def set_host_state(self, state: tuple[State, int]) -> None:
        """Take note of a step that was replayed, or of one that was captured and has not run.

        Args:
            state: as :meth:`host_state` returns it.
        """
        draw, self._steps = state
        self.model.set_state(draw)

    def signature(self) -> tuple[int, ...]:
        """Return what changes when tensors of the optimiser are replaced, which captured steps would not notice."""
        return id(self._kernel), self._changes, len(self.kl_weights)

    def why_not_captured(self) -> str:
        """Return why a step cannot be captured as a graph, a clause; empty if it can."""
        self._count(self.weights)
        inside = self._kernel.indices if self._kernel is not None else set()
        left = [weight.name for weight in self.weights if weight.index not in inside and weight.known.numel()]
        if left:
            return f"no kernel moves '{left[0]}', which is no Gaussian in float32"
        given = (
            [w.name for batch, weights in self._kernel.parts if batch.form == "given" for w in weights] if self._kernel else []
        )
        learned = [w.name for w in self.weights if w.name in given and any(p.requires_grad for p in w.prior.parameters())]
        plain = [p for group in self._roles("plain") for p in group["params"]]
        if len({(p.device, p.dtype) for p in plain}) > 1:
            return "parameters without a posterior have several dtypes or devices"
        if learned:
            return f"no kernel knows the prior of '{learned[0]}', which learns by gradient"
        return ""

    def _pass(self, *arguments: Any) -> Sweep:
        """Return the pass over the weights as their device does it best."""
        if self._kernel is not None:
            return KernelSweep(self._kernel, *arguments)
        is_on_cpu = all(weight.known.is_cpu for weight in self.weights)
        return Sweep(*arguments) if is_on_cpu else ForeachSweep(*arguments)

    def numbers_of(self, group: dict[str, Any]) -> list[float]:
        """Return what kernels need to know of a parameter group: the learning rate, unless they update by more."""
        return [float(group["lr"])]

    def _take_kernel(self, weights: Sequence[Weight]) -> None:
        """Choose the weights that the kernels move, none on a CPU, and bring what they keep on the device up to date."""
        clock = clock_for(self.model, weights)
        own = [weight for weight in weights if takes(weight, clock)] if clock is not None else []
        if clock is None or not own:
            self._kernel = None
            return
        has_one_kl = not self.kl_weights
        kept = self._kernel
        if kept is None or kept.clock is not clock or kept.weights != own or kept.has_one_kl != has_one_kl:
            self._kernel = kept = Kernel(self.model, own, clock, has_one_kl=has_one_kl)
        kept.refresh()
        self.write_numbers()
        kept.look()

    def _begin(self, weights: Sequence[Weight], k: float) -> None:
        """Update closed-form priors; every :data:`LOOK_EVERY` steps, check the network's modules and the stds."""
        self._count(weights)
        self._cost.follow(self.prior_rate, k)
        rate: float | Tensor = self.prior_rate
        if self._kernel is not None:
            self._kernel.follow()
            rate = self._kernel.numbers.prior_rate
        if self.prior_rate:
            followed = self._followed()
            if others := [w for w in weights if w.prior.learns_in_closed_form and w.index not in followed]:
                self.model.update_priors(rate, others)
        if self._steps % LOOK_EVERY == 0:
            self.model.check_refs()
            for weight in weights:
                if self._kernel is None or weight.index not in self._kernel.indices:
                    weight.look()

    def _followed(self) -> set[int]:
        """Return the indices of weights whose KL and prior's scale are computed from the sums of the last pass."""
        by_kernel = self._kernel.counted if self._kernel is not None else set()
        return by_kernel | {weight.index for weight in self._cost.weights}

    def _count(self, weights: Sequence[Weight]) -> None:
        """Recompute the sums of the last pass where posteriors were changed outside this optimiser."""
        self._take_kernel(weights)
        inside = self._kernel.indices if self._kernel is not None else set()
        signature = (*(weight.is_trained for weight in self.model.weights), bool(self.kl_weights), id(self._kernel))
        if self._owned is None or self._owned[0] != signature:
            rest = [weight for weight in weights if weight.index not in inside]
            self._owned = signature, [] if self.kl_weights else weights_with_one_scale(self.model, rest)
            self._cost = GaussianCost(self._owned[1], self.model.over_shards)
            self._learned = list({id(p): p for weight in weights for p in weight.prior.parameters()}.values())
        for weight in self._cost.weights:
            if self._cost.marks.get(weight.index) != weight.seen[1:]:
                self._cost.refresh(weight)

    def _remember(self, weights: Sequence[Weight]) -> None:
        for weight in weights:
            if weight.index in self._cost:
                self._cost.marks[weight.index] = weight.seen[1:]

    def kl_nats(self) -> float:
        """Return KL(q||p) of all weights in nats, with their current posteriors and priors."""
        self.model.honour_edits()
        self._count(self.weights)
        followed = self._followed()
        nats = self._cost.nats() + (self._kernel.nats() if self._kernel is not None else 0.0)
        return nats + self.model.kl_estimate_nats([weight for weight in self.model.weights if weight.index not in followed])

    @abstractmethod
    def _sweep(self, sweep: Sweep, weights: Sequence[Weight]) -> None:
        """Move the weights, write their next draws, and move the parameters without a posterior."""

    def _sum_learned(self) -> None:
        """Sum the gradients of learned numbers of priors over shards; those of :class:`GaussianCost` are sums already."""
        counted = {id(prior.log_scale) for prior in self._cost.priors.values()}
        self.together.sum_gradients([p for p in self._learned if id(p) not in counted])

    def _clip(self, weights: Sequence[Weight]) -> None:
        """Clip the joint norm of all gradients, the KL's part included, to ``max_grad_norm`` if that is set."""
        if self.max_grad_norm is None:
            return
        filled = [p for weight in weights for p in weight.posterior.parameters()]
        plain = [p for group in self._roles("plain") for p in group["params"] if p.grad is not None]
        for p in plain:
            if p.grad.is_sparse:
                p.grad = p.grad.to_dense()
        clip = self.together.clip if self.model.is_sharded else torch.nn.utils.clip_grad_norm_
        norm = clip([*filled, *plain], self.max_grad_norm)
        if self.grad_norm is None:
            self.grad_norm = torch.zeros_like(norm)
        self.grad_norm.copy_(norm)  # always the same tensor, which a captured step writes too

    def _draw_others(self, weights: Sequence[Weight], state: State) -> None:
        """Write the draw of ``state`` into weights that are frozen or not owned, and clear gradients that were used."""
        owned = {weight.index for weight in weights}
        for weight in weights:
            q = weight.posterior
            weight.use_gradient()
            if isinstance(q, GaussianPosterior):
                q.log_std.grad = None  # consumed
        for p in self._learned:
            p.grad = None  # holds the KL's gradient alone; frameworks that clear only the network's gradients miss it
        self.model.moved_to(state, owned)

    def settings_of(self, weight: Weight) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the groups of the mean and of the log std of a weight; None for the latter if it is a point."""
        q = weight.shown
        return self._groups[id(weight.known)], self._groups[id(q.log_std)] if isinstance(q, GaussianPosterior) else None

    # modes and files

    def train(self) -> None:
        """Put the draw back into the weights, as ``model.train()``; called by training frameworks."""
        self.model.train()

    def eval(self) -> None:
        """Put the means into the weights, as ``model.eval()``; called by training frameworks."""
        self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state, and under ``posterior`` means, log stds, priors and the state of the draw.

        Together with the network's state it is enough to resume training.
        """
        found: dict[str, Any] = super().state_dict()
        model = self.model
        states = {"tensors": model.posterior.state_dict(), "priors": model.priors.state_dict()}
        found[POSTERIOR] = {**states, "draw": model.get_extra_state()}
        self.together.show_states(found, self.param_groups)
        found["steps"] = self._steps
        if not model.is_sharded:  # a process has looked at its own shards alone
            found["coarse"] = [weight.index for weight in model.weights if weight.is_coarse]
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state returned by :meth:`state_dict`; the weights then hold the draw they held when it was saved."""
        self._changes += 1
        own = dict(state_dict)
        posterior, self._steps, coarse = own.pop(POSTERIOR, None), own.pop("steps", 0), own.pop("coarse", None)
        super().load_state_dict(own)
        self._widen(own)
        self.together.take_states(self.state)
        if posterior is not None:
            self.model.posterior.load_state_dict(posterior["tensors"])
            self.model.priors.load_state_dict(posterior["priors"])
            self.model.set_extra_state(posterior["draw"])
            self.model.take_loaded()
        for weight in self.model.weights:
            weight.is_narrow = None if coarse is None else weight.index in coarse
        self._cost.marks.clear()

    def _widen(self, given: dict[str, Any]) -> None:
        """Restore the dtype of loaded moments, which torch has cast to that of the (possibly half-precision) weights."""
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
    """Return the BayesianModel inside a torch.compile or data-parallel wrapper, or that of a layer used alone."""
    while isinstance(model, nn.Module) and not isinstance(model, BayesianModel):
        inner = next((getattr(model, name) for name in ("_orig_mod", "module", "model") if hasattr(model, name)), None)
        if inner is None:
            break
        model = inner
    return model
