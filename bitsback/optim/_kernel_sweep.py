"""The pass over the weights of a step in a few launches of the kernels of :mod:`bitsback.kernels`, without waiting for them."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from bitsback import kernels
from bitsback.kernels import Batch, Clock, Numbers, Row, Word
from bitsback.model import BayesianModel, Weight
from bitsback.model.drawer import finish_written
from bitsback.model.noise import as_key
from bitsback.model.pieces import readable
from bitsback.optim._foreach_sweep import ForeachSweep
from bitsback.optim._sweep import UpdateRule, aligned
from bitsback.posteriors import GaussianPosterior
from bitsback.priors.base import KernelForm, Prior, add_gradient

__all__ = ["Kernel", "KernelSweep"]

# Launches of a step, each over all weights whose priors have the same form:
#
#     sums of the last step        ->  scales of priors with a closed form     follow()
#     STEP                             gradients, update, next draw            move()
#     sums of this step            ->  .grad of priors' learned numbers
#
# With max_grad_norm, or any torch optimiser: FILL; clip or move in torch; FILLED or REWRITE.

LEAST = 1e-30
"""Bound on the second moment of a prior's weights."""


class Kernel:
    """Weights of an optimiser that the kernels move, and what they keep on the device from step to step.

    Args:
        model: Bayesian model.
        weights: trained weights that the kernels can move (:func:`bitsback.model.drawer.takes`).
        clock: seed and number on their device.
        has_one_kl: whether the KL of every weight counts alike.
    """

    def __init__(self, model: BayesianModel, weights: Sequence[Weight], clock: Clock, *, has_one_kl: bool = True) -> None:
        self.model, self.clock = model, clock
        self.weights = list(weights)
        self.numbers = Numbers(clock.tensor.device)
        self.marks: dict[int, tuple[int, ...]] = {}
        """By weight index: version counters of mean and log std at which the sums were taken."""
        self.parts: list[tuple[Batch, list[Weight]]] = []
        self.groups: dict[int, int] = {}
        """Number of each parameter group, by identity."""
        self._layout: list[Any] = []
        self._kept: dict[str, tuple[list[Any], Tensor]] = {}
        self.has_one_kl = has_one_kl
        self.indices = {weight.index for weight in weights}
        self.closed: list[tuple[Any, list[Weight]]] = [
            (prior, sharing)
            for prior, sharing in model.weights_by_prior()
            if has_one_kl and has_closed_sums(prior) and all(weight.index in self.indices for weight in sharing)
        ]
        """Priors with one scale, of which the sums of a pass give the KL and the best scale, with their weights."""
        self.counted = {weight.index for _, sharing in self.closed for weight in sharing}

    def refresh(self) -> None:
        """Make the batches anew if a tensor has moved in memory."""
        layout = self._where()
        if layout == self._layout:
            return
        for weight in self.weights:
            aligned(weight)
        self._layout = self._where()
        self.marks.clear()
        ordered = sorted(((form_of(weight), weight) for weight in self.weights), key=lambda pair: _key(*pair))
        self.parts = []
        for (name, learns), several in groupby(ordered, key=lambda pair: _key(*pair)):
            own = list(several)
            batch = Batch([row_of(weight, form) for form, weight in own], name, learns=learns)
            self.parts.append((batch, [weight for _, weight in own]))

    def _where(self) -> list[Any]:
        """Return where the tensors of weights and priors lie in memory."""
        found: list[Any] = []
        for weight in self.weights:
            prior = weight.prior
            found += [(t.data_ptr(), t.stride()) for t in weight.tensors()]
            found += [
                t.data_ptr() for several in (prior._buffers, prior._parameters) for t in several.values() if t is not None
            ]
        return found

    def look(self) -> None:
        """Take the sums of weights whose posteriors were changed elsewhere, and find where they are narrow."""
        if self.marks == {weight.index: weight.versions()[1:] for weight in self.weights}:
            return
        for batch, weights in self.parts:
            batch.launch(kernels.LOOK, self.clock.tensor, (0, 1), (0, 1), [{}] * len(weights))
            batch.add()
        self.mark()

    def rate_of(self, optimizer: Any, group: dict[str, Any]) -> float | Tensor:
        """Return the learning rate of a parameter group: on a GPU the tensor there, which captured steps read.

        Args:
            optimizer: optimiser of the group.
            group: one of its parameter groups.

        Returns:
            The rate.
        """
        place = next(place for place, one in enumerate(optimizer.param_groups) if one is group)
        return self.numbers.rates[place] if self.numbers.rates.is_cuda else float(group["lr"])

    def prepare_capture(self, launches: int) -> None:
        """Allocate what the launches of the next capture read.

        Args:
            launches: largest number of launches over a batch.
        """
        for batch, _ in self.parts:
            batch.table.prepare(launches)

    def finish_capture(self) -> None:
        """Write what the launches of the finished capture read."""
        for batch, _ in self.parts:
            batch.table.finish()

    def mark(self) -> None:
        """Note that the sums are those of the current posteriors."""
        self.marks = {weight.index: weight.versions()[1:] for weight in self.weights}

    @torch.no_grad()
    def follow(self) -> None:
        """Move the scales of priors with a closed form towards their optimum, as :meth:`NormalPrior.update`."""
        own = [(prior, weights) for prior, weights in self.closed if prior.learns_in_closed_form]
        if not own:
            return
        moments = self._sums_of("owners of scales", own, slice(1, 3)).sum(1)
        scales = [prior.log_scale.detach().view(()) for prior, _ in own]
        counts = self._on_device("counts of scales", [sum(w.posterior.numel for w in weights) for _, weights in own])
        best = 0.5 * (moments / counts).clamp_min(LEAST).log()
        moved = torch.stack(scales).double().lerp(best, self.numbers.prior_rate).to(scales[0].dtype)
        torch._foreach_copy_(scales, list(moved.unbind()))

    def _sums_of(self, name: str, priors: Sequence[tuple[Any, list[Weight]]], columns: slice) -> Tensor:
        """Return sums over the weights of each prior, (priors, columns) in float64; ``name`` is a key of :attr:`_kept`."""
        totals = torch.cat([batch.totals[:, columns] for batch, _ in self.parts])
        place = {weight.index: at for at, weight in enumerate(w for _, weights in self.parts for w in weights)}
        owners = [(number, place[w.index]) for number, (_, weights) in enumerate(priors) for w in weights]
        numbers, places = self._on_device(name, owners).long().T
        return totals.new_zeros(len(priors), totals.shape[1]).index_add_(0, numbers, totals[places])

    def _on_device(self, name: str, values: list[Any]) -> Tensor:
        """Return numbers as a float64 tensor on the device, uploaded when they change.

        One name for each use: a captured step reads the tensor that it found, and another use must not replace it.
        """
        kept = self._kept.get(name)
        if kept is None or kept[0] != values:
            kept = self._kept[name] = values, torch.tensor(values, dtype=torch.float64).to(self.numbers.tensor.device)
        return kept[1]

    def nats(self) -> float:
        """Return KL(q||p) of the weights in :attr:`closed`, from the sums; waits for the device once."""
        if not self.closed:
            return 0.0
        sums = self._sums_of("owners of bits", self.closed, slice(1, 4))
        log_scales = torch.stack([prior.log_scale.detach().view(()) for prior, _ in self.closed]).double()
        counts = self._on_device("counts of bits", [sum(w.posterior.numel for w in weights) for _, weights in self.closed])
        variance, distance, log_stds = sums.unbind(1)
        nats = 0.5 * (variance + distance) * (-2 * log_scales).exp() + counts * (log_scales - 0.5) - log_stds
        return float(nats.sum())


def has_closed_sums(prior: Prior) -> bool:
    """Return whether a prior has one Gaussian density for all weights, which two sums determine."""
    form = prior.kernel_form()
    return form is not None and form.name == "normal" and form.location.numel() == form.log_scale.numel() == 1


def form_of(weight: Weight) -> KernelForm | None:
    """Return the density of a weight's prior as the kernels take it; None if torch computes the KL's gradient."""
    form, shape = weight.prior.kernel_form(), weight.posterior.mean.shape
    if form is None or not shape:
        return None
    if any(t is not None and t.dtype != torch.float32 for t in (form.location, form.log_scale, form.third)):
        return None
    if form.name == "mixture":
        return form
    axes = sum(size > 1 for size in form.log_scale.shape)  # several scales: one for every slice along an axis
    has_locations = form.location.numel() == 1 or form.location.shape == shape
    has_scales = axes == 0 or (axes == 1 and not form.log_scale.requires_grad)
    return form if has_locations and has_scales else None


def _key(form: KernelForm | None, weight: Weight) -> tuple[str, bool]:
    learns = any(p.requires_grad for p in weight.prior.parameters())
    return ("given", False) if form is None else (form.name, learns)


def row_of(weight: Weight, form: KernelForm | None) -> Row:
    """Return a weight's row.

    Args:
        weight: Gaussian weight.
        form: density of its prior; None if torch computes the KL's gradient.

    Returns:
        The row.
    """
    parameter, mean, log_std = weight.gaussian_tensors()
    if form is None:
        return Row(parameter, mean, log_std, weight.index)
    location, count = form.location.detach(), 1
    if form.name == "mixture":
        count = location.numel()
    elif form.log_scale.numel() > 1:
        axis = next(axis for axis, size in enumerate(form.log_scale.shape) if size > 1)
        count = mean.stride(axis)
    if form.name != "mixture" and location.numel() > 1:
        location = readable(location, mean)
    third = form.third.detach() if form.third is not None else None
    return Row(
        parameter, mean, log_std, weight.index, 0, location, form.log_scale.detach(), third, count, form.table_start,
        form.table_step,
    )  # fmt: skip


class KernelSweep(ForeachSweep):
    """Pass over the weights of one step: those of a :class:`Kernel` in a few launches, all others as the base class.

    Args:
        kernel: weights that the kernels move.
        arguments: as for :class:`bitsback.optim._sweep.Sweep`.
    """

    def __init__(self, kernel: Kernel, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kernel = kernel

    def _rest(self, weights: Sequence[Weight]) -> list[Weight]:
        return [weight for weight in weights if weight.index not in self.kernel.indices]

    def begin(self, weights: Sequence[Weight]) -> None:
        """Prepare the weights that the kernels do not move, as the base class."""
        super().begin(self._rest(weights))

    def move(self, weights: Sequence[Weight], rule: UpdateRule) -> None:
        """Compute gradients, move and draw, as the base class.

        Args:
            weights: weights to move.
            rule: makes the update of each.
        """
        self._launch(kernels.STEP, rule)
        super().move(self._rest(weights), rule)

    def fill(self, weights: Sequence[Weight]) -> None:
        """Leave the gradients in ``.grad``, as the base class."""
        self._launch(kernels.FILL)
        super().fill(self._rest(weights))

    def move_filled(self, weights: Sequence[Weight], rule: UpdateRule) -> None:
        """Move by the gradients in ``.grad`` and draw, as the base class.

        Args:
            weights: weights to move.
            rule: makes the update of each.
        """
        self._launch(kernels.FILLED, rule)
        super().move_filled(self._rest(weights), rule)

    def rewrite(self, weights: Sequence[Weight]) -> None:
        """Draw, as the base class."""
        if rest := self._rest(weights):
            super().rewrite(rest)
        if len(rest) < len(weights):
            self._launch(kernels.REWRITE)

    def _launch(self, mode: int, rule: UpdateRule | None = None) -> None:
        """Launch one mode over all weights of the kernel."""
        kernel, now, after = self.kernel, self.model.state, self.state
        if rule is not None:
            kernel.groups = {id(group): place for place, group in enumerate(rule.param_groups)}
            torch._foreach_add_([rule.count_of(weight.known) for weight in kernel.weights], 1)
        seed = as_key(after.seed)
        places = [(kernel.clock.offset(seed, one.number), one.sign) for one in (now, after)]
        alive: list[Tensor] = []  # what the launches read, until they have been issued
        for batch, weights in kernel.parts:
            words = [self._words(weight, batch.form, mode, rule, alive) for weight in weights]
            batch.launch(
                mode, kernel.clock.tensor, places[0], places[1], words, numbers=kernel.numbers.tensor,
                rule=kernels.ADAM if rule is None else rule.rule,
            )  # fmt: skip
            if mode != kernels.FILL or batch.learns:
                batch.add()
            if mode in (kernels.STEP, kernels.FILL) and batch.learns:
                self._learn(batch, weights)
        if mode != kernels.FILL:
            finish_written(kernel.weights, moved=rule is not None)
            kernel.mark()
            for weight in kernel.weights:
                for p in weight.posterior.parameters():
                    p.grad = None

    def _words(self, weight: Weight, form: str, mode: int, rule: UpdateRule | None, alive: list[Tensor]) -> dict[int, int]:
        """Return the words of a weight's row that belong to this launch."""
        q, prior = weight.posterior, weight.prior
        assert isinstance(q, GaussianPosterior)
        mean = q.mean
        drawn = 0 if weight.noise_on_outputs else kernels.DRAWN | kernels.WAS_DRAWN
        looks = kernels.LOOKS if weight.noise_on_outputs and prior.needs_draw else 0
        has_location = form not in ("given", "mixture") and prior.mean.numel() > 1
        words: dict[int, int] = {Word.FLAGS: drawn | looks | (kernels.LOCATION_EACH if has_location else 0)}
        read: dict[int, Tensor | None] = {}
        if mode in (kernels.STEP, kernels.FILL):
            read = {
                Word.GRADIENT: self._data_gradient(weight.gradient, mean), Word.PENDING: q.log_std.grad,
                Word.SHARE: self.kl_weights.get(weight.index),
            }  # fmt: skip
            if form == "given" and mode == kernels.STEP:
                read[Word.BY_MEAN], read[Word.BY_LOG_STD] = self._given(weight)
        for word, tensor in read.items():
            if tensor is not None:
                tensor = readable(tensor, mean)
                alive.append(tensor)
                words[word] = tensor.data_ptr()
        if mode == kernels.FILL:
            filled = [torch.empty_like(p, requires_grad=False) for p in (mean, q.log_std)]
            if form == "given":  # the kernel reads each element before it writes it
                filled = [into.copy_(given) for into, given in zip(filled, self._given(weight), strict=True)]
            mean.grad, q.log_std.grad = filled
        if mode in (kernels.FILL, kernels.FILLED):
            assert mean.grad is not None
            assert q.log_std.grad is not None
            words[Word.BY_MEAN], words[Word.BY_LOG_STD] = mean.grad.data_ptr(), q.log_std.grad.data_ptr()
        if rule is not None:
            for place, average in enumerate(rule.averages_of(weight)):
                words[Word.AVERAGE + place] = average.data_ptr()
            own, wide = rule.settings_of(weight)
            words[Word.STEP] = rule.count_of(weight.known).data_ptr()
            words[Word.MEAN_GROUP], words[Word.LOG_STD_GROUP] = (self.kernel.groups[id(group)] for group in (own, wide))
        return words

    def _given(self, weight: Weight) -> tuple[Tensor, Tensor]:
        """Return the gradient of the KL of a weight whose prior the kernels do not know, without k."""
        q = weight.posterior
        assert isinstance(q, GaussianPosterior)
        draw: Tensor = weight.parameter
        if weight.noise_on_outputs and weight.prior.needs_draw:  # the weight holds its mean: a draw for this alone
            draw = torch.addcmul(q.mean, q.std(), self.model.noise(weight, self.state))
        return weight.prior.kl_gradient(q.mean.detach(), q.log_std.detach(), draw.detach(), self.k)

    def _learn(self, batch: Batch, weights: Sequence[Weight]) -> None:
        """Add the gradients by learned numbers of the priors to their ``.grad``."""
        k = self.kernel.numbers.k
        for place, weight in enumerate(weights):
            prior: Any = weight.prior
            sums = batch.totals[place]
            if batch.form != "mixture":
                add_gradient(prior.log_scale, sums[0], k)
                continue
            held, distance, square = sums[kernels.SUMS : kernels.SUMS + 3 * prior.means.numel()].view(-1, 3).unbind(1)
            shares = prior.log_weights().detach().exp() * weight.posterior.numel
            add_gradient(prior.free_logits, (shares - held)[1:], k)
            add_gradient(prior.log_scales, held - 2 * square, k)
            add_gradient(prior.means, -2 * (-prior.log_scales.detach()).exp() * math.sqrt(0.5) * distance, k)
