"""Bayesian model: a network whose weights each have a name, a posterior and a prior."""

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bitsback.distributed import summing
from bitsback.errors import LayerError, PriorError
from bitsback.inputs import Inputs, Output, call, chosen
from bitsback.kl import Panels, has_closed_form, kl
from bitsback.layers import Choice, Estimators
from bitsback.layers.outputs import check_kinds, estimator_of
from bitsback.learned import BFLOAT16
from bitsback.ledger.entry import Charge
from bitsback.likelihoods import Likelihood
from bitsback.likelihoods.given import checked_likelihood
from bitsback.model._layer_posteriors import LayerPosteriors
from bitsback.model._memory_format import interleaved, runs, straight
from bitsback.model._plain import plain_network
from bitsback.model._resident import Resident
from bitsback.model.buffers import COUNTER, Buffer, buffers_of
from bitsback.model.choices import PriorChoice, charges_of, priors_of, settings_of
from bitsback.model.noise import fresh_seed
from bitsback.model.prediction import Prediction, predicted
from bitsback.model.weight import State, Weight
from bitsback.posteriors import GaussianPosterior, PointPosterior, Posterior
from bitsback.priors import Prior, PriorSettings
from bitsback.priors.point_code import point_bits
from bitsback.units import bits_to_nats, nats_to_bits

__all__ = ["EVALUATION_BATCH", "FLOAT32_BITS", "BayesianModel", "OutputLayer"]

EVALUATION_BATCH = 512
"""Examples a batch; activations stay in the cache: on MNIST 2.4 times as fast as 4096."""

FEW_WEIGHTS = 32768
"""Largest tensor whose KL is computed by quadrature for the training log; larger ones use Monte Carlo."""

DRAWS = 4
"""Monte Carlo draws for the KL of those larger tensors."""

FLOAT32_BITS = 32.0
"""Bits charged for a weight without posterior, and for each number of a buffer that training changed."""


class OutputLayer(NamedTuple):
    """Module that may use local reparameterisation in training, its weights, and whether that was asked for explicitly."""

    module: nn.Module
    weights: tuple[Weight, ...]
    asked: bool


class BayesianModel(Resident):
    """Network with a posterior and a prior for each weight that is not left deterministic; made by :func:`bayesianize`.

    The network keeps its class and parameters; its parameters hold the current draw. Calling the model calls the network.
    ``model.draw()`` puts the next draw into all weights; an optimiser of :mod:`bitsback.optim` does so at every step.
    ``model.eval()`` writes the means into the weights, ``model.train()`` the draw again; ``with model.sample():`` and
    ``with model.mean():`` hold a draw or the means temporarily.

    Attributes:
        network: the network that was given.
        posterior: the posteriors, in modules of the same dotted names as the weights.
        priors: every prior once.
        weights: name, posterior and prior of every weight tensor, in the order of the network.
        output_layers: an :class:`OutputLayer` for each module that may use local reparameterisation in training.
        chosen_grid_step: overrides :meth:`grid_step`; None by default.
        likelihood: of the targets, for :meth:`predict`; set by training, ledgers and loading. It is no part of the model's
            state or parameters. None by default.
        output: which of the network's outputs the likelihood reads: ``auto``, a name, or an index.
        evaluation_graphs: whether evaluations and predictions on a GPU are captured as CUDA graphs; training sets it as
            ``training.graph`` says.
        evaluation_batch: examples of a forward pass in evaluations and predictions; training makes it at least its own batch,
            for networks that take whole batches only.
    """

    likelihood: Likelihood | None

    def __init__(
        self,
        network: nn.Module,
        posteriors: Sequence[tuple[Choice, Posterior]],
        prior: PriorChoice,
        overrides: Mapping[str, PriorChoice] | None = None,
        estimator: Estimators = "auto",
        seed: int | None = None,
        output: Output = "auto",
    ) -> None:
        super().__init__(fresh_seed() if seed is None else seed)
        self.network = network
        self.output = output
        self.evaluation_batch, self.evaluation_graphs = EVALUATION_BATCH, True
        self.posterior = nn.Module()
        self.priors = nn.ModuleList()
        self.prior_settings = settings_of(prior)
        self.override_settings = {pattern: settings_of(choice) for pattern, choice in (overrides or {}).items()}
        self.chosen_grid_step: float | None = None
        self.likelihood = None
        self._assign(posteriors, self.prior_settings, self.override_settings)
        check_kinds(network, estimator)
        self.output_layers = self._output_layers(estimator)
        self._starts: dict[str, str] = {}
        self._remember_buffers()

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Return names of what no forward pass uses, which DDP would wait for: it synchronises the network alone."""
        own = [name for name, _ in [*self.named_parameters(), *self.named_buffers()]]
        return [name for name in own if not name.startswith("network.")]

    def _remember_buffers(self) -> None:
        """Copy the network's buffers, to compare later which of them training has changed."""
        for number, buffer in enumerate(buffers_of(self.network)):
            if buffer.local != COUNTER and not is_lazy(buffer.tensor):
                self._starts[buffer.name] = f"start_of_buffer_{number}"
                self.register_buffer(self._starts[buffer.name], buffer.tensor.detach().clone(), persistent=False)

    def _assign(
        self,
        posteriors: Sequence[tuple[Choice, Posterior]],
        default: PriorSettings,
        overrides: Mapping[str, PriorSettings],
    ) -> None:
        priors = priors_of([(choice.refs[0], posterior) for choice, posterior in posteriors], default, overrides)
        self.priors.extend({id(prior): prior for prior in priors}.values())
        for number, ((choice, posterior), prior) in enumerate(zip(posteriors, priors, strict=True)):
            self.weights.append(Weight(choice, posterior.requires_grad_(False), prior, number))
            self._name_posterior(choice, posterior)
        for weight in self.weights:
            if isinstance(weight.posterior, PointPosterior) and weight.prior.charges():
                raise PriorError(
                    f"the prior of '{weight.name}' is learned, but its posterior is a point: the prior would collapse onto it; "
                    "set prior.learn=none, or posterior.kind=gaussian"
                )

    def _name_posterior(self, choice: Choice, posterior: Posterior) -> None:
        """Register a posterior under the weight's dotted name, and in ``layer.posterior`` of every layer that reads it."""
        *path, last = choice.name.split(".")
        node = self.posterior
        for part in path:
            node = node._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
        node._modules[last] = posterior
        for ref in choice.refs:
            shown = ref.owner.__dict__.get("posterior")
            if not isinstance(shown, LayerPosteriors):
                if hasattr(ref.owner, "posterior"):  # the layer's own attribute of that name stays
                    continue
                shown = ref.owner.__dict__["posterior"] = LayerPosteriors()
            shown[ref.local] = posterior
            shown.model = weakref.ref(self)

    def _output_layers(self, wanted: Estimators) -> list["OutputLayer"]:
        """Return the layers that may use local reparameterisation; training tests those chosen by ``auto`` before use."""
        own: dict[nn.Module, list[Weight]] = {}
        for weight in self.weights:
            own.setdefault(weight.owner, []).append(weight)
        found = []
        for module, weights in own.items():
            alone = [weight.local for weight in weights if len(weight.refs) == 1 and weight.is_gaussian]
            try:
                estimator = estimator_of(module, wanted, alone)
            except LayerError as error:
                layer = weights[0].name.rpartition(".")[0]
                raise LayerError(
                    f"{layer or 'the network'}: {error} (exclude='{layer or '*'}' leaves it deterministic)"
                ) from error
            if estimator != "weight":
                found.append(OutputLayer(module, tuple(weights), asked=estimator == "output"))
        return found

    def outputs(self, inputs: Inputs) -> Tensor:
        """Return the outputs that a likelihood reads, under the current values of the weights.

        Args:
            inputs: (n, ...), a tensor, or a tuple or dict of tensors, which are the network's arguments.

        Returns:
            (n, ...): the network's output if it is a tensor, else what :attr:`output` names; by default the ``logits`` of a
            mapping, and the first of a tuple.
        """
        return chosen(call(self, inputs), self.output)

    def kl_bits(self, among: Sequence[Weight] | None = None, *, exact: bool = False) -> Tensor:
        """Return net weight bits, KL(q||p) / ln 2, summed over weights.

        The value must not be part of a loss: the optimisers of :mod:`bitsback.optim` add the KL's gradient themselves, and the
        backward pass of a loss that contains it raises LayerError. For a point estimate it is -log2(p(w) :meth:`grid_step`),
        which is no code length where the prior is narrower than the grid step.

        Args:
            among: weights to sum over; default: all.
            exact: compute it as the ledger does: with finer quadrature where the prior has no closed form, and for a point
                with the integer tables of its prior.

        Returns:
            Bits, a scalar tensor.
        """
        self.honour_edits()
        panels = Panels.exact() if exact else Panels.fast()
        weights = self.weights if among is None else among
        tabled = [weight for weight in weights if exact and isinstance(weight.posterior, PointPosterior)]
        smooth = [weight for weight in weights if weight not in tabled]
        held = [weight for weight in smooth if weight.posterior.numel]  # a shard may be empty
        parts = [kl(weight.posterior, weight.prior, panels=panels, samples=1).bits for weight in held]
        points = sum(weight.posterior.numel for weight in smooth if isinstance(weight.posterior, PointPosterior))
        grid_bits = -points * math.log2(self.grid_step()) if points else 0.0
        for weight in tabled:
            grid_bits += float(point_bits(weight.prior, weight.name, weight.posterior.mean, self.grid_step()).sum())
        bits = torch.stack(parts).sum() + grid_bits if parts else torch.tensor(grid_bits)
        bits = self.over_shards.summed(bits)
        return _Counted.apply(bits.detach().requires_grad_()) if torch.is_grad_enabled() else bits.detach()

    @torch.no_grad()
    def kl_estimate_nats(self, among: Sequence[Weight]) -> float:
        """Return KL(q||p) over some weights in nats, for logging during training.

        Uses the closed form where there is one; otherwise quadrature for tensors of up to 32,768 weights, and
        :data:`DRAWS` Monte Carlo draws for larger ones. Points as in :meth:`kl_bits`.
        """
        large = [w for w in among if w.is_gaussian and w.posterior.numel > FEW_WEIGHTS and not has_closed_form(w.prior)]
        nats = bits_to_nats(float(self.kl_bits([weight for weight in among if weight not in large]))) if among else 0.0
        draws = [float(kl(w.posterior, w.prior, method="monte_carlo", samples=1).nats) for w in large for _ in range(DRAWS)]
        return nats + self.over_shards.sums([math.fsum(draws) / DRAWS])[0]

    def refund_bits(self, grid_step: float) -> Tensor:
        """Return refund bits, E_q[-log2(q(w) grid_step)] summed over all weights; zero for point estimates."""
        step = torch.tensor(grid_step, dtype=torch.float64).log()
        parts = [
            (q.entropy().detach().cpu().double() - step).sum() for q in self.posteriors() if isinstance(q, GaussianPosterior)
        ]
        found = torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64)
        return nats_to_bits(self.over_shards.summed(found))

    def _priors(self) -> list[Prior]:
        return list(self.priors)  # type: ignore[arg-type]

    def weights_by_prior(self) -> list[tuple[Prior, list[Weight]]]:
        """Return every prior with the weights that share it."""
        sharing: dict[int, list[Weight]] = {}
        for weight in self.weights:
            sharing.setdefault(id(weight.prior), []).append(weight)
        return [(prior, sharing[id(prior)]) for prior in self._priors()]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "likelihood":  # a module, which torch would otherwise make a part of this one
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def predict(
        self,
        inputs: Any,
        samples: int = 20,
        *,
        likelihood: Likelihood | None = None,
        targets: Any = None,
        seed: int = 0,
        progress: bool = False,
    ) -> Prediction:
        """Return predictive distributions, averaged over whole-network draws.

        The draws are those of :func:`bitsback.evaluate`. Modules are in eval mode; their modes and the random generators are
        restored. Point estimates have a single draw.

        Args:
            inputs: (n, ...), a tensor, an array, a list of numbers, :class:`bitsback.Examples` or their rows; a tuple of
                several (never a pair with targets), or a dict, whose parts named labels, label, targets, target or y are left
                out; or a data set, a loader or a table, as :func:`bitsback.data.source` takes it with its targets.
            samples: number of weight draws, at least 1.
            likelihood: of the targets; default: the one that the model was trained with.
            targets: (n, ...), numbers as the likelihood takes them; their bits are then in ``prediction.bits``.
            seed: seed of the draws.
            progress: show a progress bar.

        Returns:
            Means, stds, intervals, entropies, mutual information, and bits of the targets.

        Raises:
            DataError: without inputs or draws, or for targets that do not fit.
            LayerError: if the model knows no likelihood.

        >>> from bitsback.likelihoods import CategoricalLikelihood
        >>> from bitsback.model import bayesianize
        >>> model = bayesianize(nn.Linear(4, 3))
        >>> found = model.predict(torch.randn(5, 4), likelihood=CategoricalLikelihood(3))
        >>> found.mean.shape, found.entropy_bits.shape
        (torch.Size([5, 3]), torch.Size([5]))
        """
        likelihood = self.likelihood if likelihood is None else checked_likelihood(likelihood)
        if likelihood is None:
            raise LayerError(
                "the model was not trained here and knows no likelihood; give one: "
                "model.predict(inputs, likelihood=CategoricalLikelihood(classes))"
            )
        return predicted(self, likelihood, inputs, samples, targets=targets, seed=seed, progress=progress)

    def mean_network(self) -> nn.Module:
        """Return a copy of the network that holds the posterior means, and in which nothing of bitsback is left.

        It has the network's class, its state dict loads into that class, and ``torch.export``, ``torch.onnx.export`` and pickle
        take it as any other. Ties, buffers, dtypes and the modes of modules are kept; layers of :mod:`bitsback.nn` are torch's
        in it.

        Returns:
            The network; the model is as it was.

        >>> from bitsback.model import bayesianize
        >>> model = bayesianize(nn.Linear(4, 3))
        >>> plain = model.mean_network()
        >>> torch.equal(plain.weight, model.network.posterior["weight"].mean), hasattr(plain, "posterior")
        (True, False)
        """
        return plain_network(self, self.state_of_means())

    def sampled_network(self, seed: int | None = None) -> nn.Module:
        """Return a copy of the network that holds one draw, as :meth:`mean_network` does the means.

        Args:
            seed: seed of the draw; the values are those inside ``model.sample(seed)``. Default: the model's seed and its
                counter of samples, so that each call has a draw of its own.

        Returns:
            The network; of the model, only that counter moves.

        >>> from bitsback.model import bayesianize
        >>> model = bayesianize(nn.Linear(4, 3))
        >>> plain = model.sampled_network(seed=7)
        >>> with model.sample(seed=7):
        ...     torch.equal(plain.weight, model.network.weight)
        True
        """
        self._samples += 1
        return plain_network(self, State("draw", *((self.seed, -self._samples) if seed is None else (seed, -1))))

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the first floating-point parameter."""
        # A frozen trunk may be quantised to integers, whose dtype inputs must not be cast to.
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """Return the device of the first parameter."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def posteriors(self) -> list[Posterior]:
        """Return every posterior once, in the order of the weights."""
        return [weight.posterior for weight in self.weights]

    def smallest_std(self) -> float | None:
        """Return the smallest posterior standard deviation; None if every weight is a point."""
        stds = [q.std() for q in self.posteriors()]
        least = min((float(std.detach().min()) for std in stds if std is not None and std.numel()), default=math.inf)
        return self.over_shards.least(least) if any(std is not None for std in stds) else None

    def grid_step(self) -> float:
        """Return the default grid step of the weights.

        ``chosen_grid_step`` if it is set, else the ``grid_step`` of the first point posterior that has one, else a power of
        two below the smallest posterior std and, for points, below an eighth of the prior's scale.

        Returns:
            Grid step in units of the weights.
        """
        if self.chosen_grid_step is not None:
            return self.chosen_grid_step
        limits = [std] if (std := self.smallest_std()) is not None else []
        for weight in self.weights:
            if isinstance(weight.posterior, PointPosterior):
                chosen = weight.posterior.grid_step
                if chosen is not None:
                    return chosen
                limits.append(float(weight.prior.typical_scale().detach().min()) / 8)
        return 2.0 ** (math.ceil(math.log2(min(limits, default=1.0))) - 1)

    @torch.no_grad()
    def update_priors(self, rate: float | Tensor = 1.0, among: Sequence[Weight] | None = None) -> None:
        """Move priors that learn in closed form towards their optimum, the minimum of the KL given the posteriors.

        Args:
            rate: share of the way, in log scale; 1 goes to the optimum.
            among: weights whose priors are moved; default: all.
        """
        wanted = {id(weight.prior) for weight in (self.weights if among is None else among)}
        with summing(self.over_shards):
            for prior, weights in self.weights_by_prior():
                if prior.learns_in_closed_form and id(prior) in wanted:
                    prior.update([(weight.posterior.mean, weight.posterior.std()) for weight in weights], rate)

    def lay_out(self, *, channels_last: bool, example: Inputs | None = None) -> None:
        """Set the memory layout of filters (4-dimensional parameters) and of their posteriors.

        Args:
            channels_last: True for channels last, which a CPU convolves about twice as fast; False for torch's default.
            example: inputs for a trial forward pass; if it fails with channels last, torch's layout is kept.
        """
        if self.is_sharded:  # shards lie as FSDP2 wants them
            return
        self.honour_edits(everywhere=True)
        filters = [p for p in self.network.parameters() if p.ndim == 4]
        filters += [p for q in self.posteriors() for p in q.parameters() if p.ndim == 4]
        for p in filters:
            p.data = interleaved(p.data) if channels_last else straight(p.data)
        if filters:
            self.hold(self.state)
            if channels_last and example is not None and not runs(self.network, example):
                self.lay_out(channels_last=False)

    def deterministic(self) -> list[tuple[str, nn.Parameter]]:
        """Return name and parameter of every weight of the network that has no posterior."""
        self._reshard()
        inside = {id(weight.known) for weight in self.weights}
        return [(name, p) for name, p in self.network.named_parameters() if id(p) not in inside]

    def deterministic_bits(self) -> float:
        """Return the bits of the trainable weights without posterior, 32 for each."""
        return FLOAT32_BITS * sum(parameter.numel() for _, parameter in self.deterministic() if parameter.requires_grad)

    def statistics(self) -> list[tuple[str, Tensor]]:
        """Return name and tensor of the running statistics of all normalisation layers."""
        return [(buffer.name, buffer.tensor) for buffer in buffers_of(self.network) if buffer.is_statistic]

    def learned_statistics(self) -> list[tuple[str, Tensor]]:
        """Return name and tensor of running statistics that depend on the training data and are charged.

        These are the statistics of layers in train mode, and any that have changed since :func:`bayesianize`. The others are
        assumed known to the receiver, as frozen weights are.

        Returns:
            Pairs of dotted name and tensor.
        """
        found = [buffer for buffer in buffers_of(self.network) if buffer.is_statistic]
        return [(buffer.name, buffer.tensor) for buffer in found if buffer.moves or self._has_changed(buffer)]

    def changed_buffers(self) -> list[tuple[str, Tensor]]:
        """Return name and tensor of other floating-point buffers in the network's state that training changed; charged."""
        return [(buffer.name, buffer.tensor) for buffer in buffers_of(self.network) if self._is_charged_as_changed(buffer)]

    def _is_charged_as_changed(self, buffer: Buffer) -> bool:
        stored = buffer.tensor.is_floating_point() and buffer.is_saved
        return stored and not buffer.is_statistic and self._has_changed(buffer)

    def _has_changed(self, buffer: Buffer) -> bool:
        """Return True if a buffer differs from its copy at the start, after casting that copy to the buffer's dtype."""
        start = self._buffers.get(self._starts.get(buffer.name, ""))
        return start is None or not torch.equal(start.to(buffer.tensor), buffer.tensor)

    def prior_charges(self) -> list[Charge]:
        """Return the cost of the learned hyper-parameters of the priors."""
        return [charge for prior, weights in self.weights_by_prior() for charge in charges_of(prior, weights[0].name)]

    def charges(self) -> list[Charge]:
        """Return the cost of every learned number that is not a weight: priors, running statistics, changed buffers."""
        statistics = [Charge(name, buffer.numel(), BFLOAT16.bits_each) for name, buffer in self.learned_statistics()]
        changed = [Charge(name, buffer.numel(), FLOAT32_BITS) for name, buffer in self.changed_buffers()]
        return [*self.prior_charges(), *statistics, *changed]

    @torch.no_grad()
    def round_to_grid(self) -> None:
        """Round every learned number without a posterior to the grid it is charged on, in place."""
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
        """Return descriptions of what the receiver is assumed to have and the ledger does not charge."""
        frozen = [f"{name} ({p.numel():,} frozen weights)" for name, p in self.deterministic() if not p.requires_grad]
        charged = {name for name, _ in [*self.learned_statistics(), *self.changed_buffers()]}
        buffers = [self._held(buffer) for buffer in buffers_of(self.network) if buffer.name not in charged]
        given = [f"{self.given()}, whose means are the prior's, assumed known to the receiver"] if self.given() else []
        return [*frozen, *filter(None, buffers), *given]

    def _held(self, buffer: Buffer) -> str:
        """Return the description of a buffer that is not charged; empty for unchanged integer buffers."""
        count = buffer.tensor.numel()
        if buffer.is_statistic:
            return f"{buffer.name} ({count:,} fixed statistics)"
        if buffer.local != COUNTER and self._has_changed(buffer):
            return f"{buffer.name} (a buffer of {count:,} numbers, changed since the start and not paid for)"
        return f"{buffer.name} (a buffer of {count:,} fixed numbers)" if buffer.tensor.is_floating_point() else ""

    def given(self) -> str:
        """Return what the priors assume the receiver to have, such as an earlier run; empty for most priors."""
        return " and ".join(dict.fromkeys(prior.given() for prior in self._priors() if prior.given()))


class _Counted(torch.autograd.Function):
    """Identity whose backward pass raises LayerError: the KL must not be part of a loss."""

    @staticmethod
    def forward(ctx: Any, bits: Tensor) -> Tensor:
        return bits.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise LayerError(
            "model.kl_bits() is part of the loss, and the optimiser adds the KL by itself: leave it out of the loss "
            "(bitsback.optim.Adam(model, examples=N) weighs it by beta / N)"
        )
