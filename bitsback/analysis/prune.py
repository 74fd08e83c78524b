"""Pruning by signal-to-noise ratio |mean| / std: bits and error when only the weights of the largest ratios are kept.

For each tensor the description of a pruned network names the kept weights and then codes them; the others are zero and cost
nothing more. A weight whose posterior equals its prior costs nothing without pruning either, but adds noise to every draw of
the network. Pruning removes the noise and adds the cost of naming the kept weights; the curve shows the sum.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bitsback.analysis.sources import RunSource, experiment_of
from bitsback.atomic_io import new_neighbour, whole_directory, write_bytes, write_text
from bitsback.config import Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.errors import LayerError, LedgerError
from bitsback.formats.model_file.write import Packed, pack_experiment
from bitsback.kl import kl_each
from bitsback.ledger import shown_error
from bitsback.model import BayesianModel, evaluate
from bitsback.model.draws import SHOWN_AFTER_SECONDS
from bitsback.posteriors import GaussianPosterior
from bitsback.result import Result, text_table
from bitsback.units import nats_to_bits

__all__ = [
    "KEPT_FRACTIONS",
    "Keep",
    "PrunedCost",
    "Pruner",
    "Pruning",
    "count",
    "mask_bits",
    "only_kept",
    "prune",
    "signal_to_noise",
    "thresholds_for",
]

KEPT_FRACTIONS = (1.0, 0.9, 0.75, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
"""Fractions of kept weights at which the curve is measured, beside the given threshold."""

Keep = Mapping[str, Tensor]
"""Mask of the kept weights by tensor name: bool, of the tensor's shape."""


@dataclass(frozen=True)
class PrunedCost:
    """Bits and errors at one threshold.

    Attributes:
        keep_snr: weights with |mean| / std of at least this are kept.
        kept: number of kept weights.
        weights: number of all weights.
        mask_bits: bits that name the kept weights; see :func:`mask_bits`.
        kept_bits: KL of the kept weights from the prior, in bits.
        other_bits: other bits of the model: hyper-parameters, and 32 for each weight without a posterior.
        data_bits: E_q[-log2 p(D given w)], from whole-network draws in which pruned weights are zero.
        data_bits_stderr: standard error of the data bits.
        train_error: of the predictions averaged over draws.
        test_error: the same on the test split; None without one.
    """

    keep_snr: float
    kept: int
    weights: int
    mask_bits: float
    kept_bits: float
    other_bits: float
    data_bits: float
    data_bits_stderr: float
    train_error: float
    test_error: float | None

    @property
    def fraction_kept(self) -> float:
        """Fraction of the weights that are kept."""
        return self.kept / self.weights

    @property
    def model_bits(self) -> float:
        """Bits of the pruned network."""
        return self.mask_bits + self.kept_bits + self.other_bits

    @property
    def net_bits(self) -> float:
        """Bits of the pruned network plus the data bits given it."""
        return self.model_bits + self.data_bits

    def facts(self) -> dict[str, Any]:
        """Return all attributes and derived numbers, for JSON."""
        derived = {name: getattr(self, name) for name in ("fraction_kept", "model_bits", "net_bits")}
        return {**vars(self), **derived}


@dataclass(frozen=True)
class Pruning(Result):
    """Result of pruning: the curve over thresholds, and the pruned network as a model file.

    Attributes:
        asked: costs at the given threshold.
        curve: costs at all thresholds, in increasing order.
        file: the network pruned at the given threshold, quantised.
        unpruned: the network with all its weights, by the same codec.
        samples: whole-network draws from which data bits and errors are estimated.
        given: what the receiver must hold, such as an earlier run that is the prior; mostly empty.
    """

    asked: PrunedCost
    curve: tuple[PrunedCost, ...]
    file: Packed
    unpruned: Packed
    samples: int
    given: str

    def write(self, directory: Path) -> None:
        """Write pruned.bb and curve.json to a new directory."""
        with whole_directory(directory) as staging:
            write_bytes(staging / "pruned.bb", self.file.content)
            write_text(staging / "curve.json", self.to_json() + "\n")

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each threshold."""
        return [point.facts() for point in self.curve]

    def to_dict(self) -> dict[str, Any]:
        """Return the curve, the given threshold and the files' sizes, for JSON."""
        return {
            "keep_snr": self.asked.keep_snr,
            "samples": self.samples,
            "given": self.given,
            "error_name": self.file.error_name,
            "file_bytes": len(self.file.content),
            "file_data_bits": self.file.train_data_bits,
            "file_train_error": self.file.train_error,
            "file_test_error": self.file.test_error,
            "unpruned_file_bytes": len(self.unpruned.content),
            "unpruned_file_data_bits": self.unpruned.train_data_bits,
            "asked": self.asked.facts(),
            "curve": self.records(),
        }

    def __str__(self) -> str:
        error_name, asked, file = self.file.error_name, self.asked, self.file
        cheapest = min(self.curve, key=lambda point: point.net_bits)
        rows = []
        for point in self.curve:
            marks = ["asked"] * (point is asked) + ["cheapest"] * (point is cheapest and len(self.curve) > 1)
            errors = [shown_error(error_name, error) for error in (point.train_error, point.test_error) if error is not None]
            bits = [point.mask_bits, point.kept_bits, point.model_bits, point.data_bits, point.net_bits]
            row = [f"{point.keep_snr:.4g}", f"{point.kept:,}", f"{100 * point.fraction_kept:.1f} %"]
            rows.append([*row, *(f"{value:,.1f}" for value in bits), *errors, ", ".join(marks)])
        head = ["keep snr", "weights", "kept", "which bits", "kept bits", "model bits", "data bits", "net bits", "train error"]
        head += ["test error"] * (asked.test_error is not None) + [""]
        return "\n".join([
            text_table(head, rows),
            f"model bits: which weights are kept, their net bits, {asked.other_bits:,.1f} of hyper-parameters and other "
            f"numbers; errors averaged over {self.samples:,} draws" + (f"; given {self.given}" if self.given else ""),
            f"pruned at {asked.keep_snr:g}, as a quantised model file: {_shown_file(file)}",
            f"with every weight, by the same codec: {_shown_file(self.unpruned)}",
        ])  # fmt: skip


def _shown_file(file: Packed) -> str:
    kind, error = ("training", file.train_error) if file.test_error is None else ("test", file.test_error)
    size, data = f"{len(file.content):,} bytes", f"{file.train_data_bits:,.1f} data bits"
    return f"{size}, {data}, {kind} error {shown_error(file.error_name, error)}"


def count(keep: Keep) -> int:
    """Return the number of kept weights.

    Returns:
        A count over all tensors.

    >>> count({"w": torch.tensor([True, False, True])})
    2
    """
    return sum(int(kept.sum()) for kept in keep.values())


def mask_bits(kept: int, weights: int) -> float:
    """Return the bits that name the kept weights of a tensor: log2(weights + 1) + log2 binomial(weights, kept).

    Args:
        kept: number of kept weights.
        weights: number of all weights.

    Returns:
        Bits.

    >>> round(mask_bits(2, 4), 4), mask_bits(7, 7)
    (4.9069, 3.0)
    """
    ways = math.lgamma(weights + 1) - math.lgamma(kept + 1) - math.lgamma(weights - kept + 1)
    return math.log2(weights + 1) + nats_to_bits(ways)


def signal_to_noise(model: BayesianModel) -> dict[str, Tensor]:
    """Return |mean| / std of every weight (Graves 2011, on pruning; Blundell et al. 2015, section 5.1).

    Returns:
        Ratios by tensor name, float64, of the tensor's shape.

    Raises:
        LedgerError: a weight is a point estimate, or none has a posterior.
        LayerError: a mean is not finite, or a std is not positive.

    >>> from bitsback.model import bayesianize
    >>> signal_to_noise(bayesianize(torch.nn.Linear(3, 2)))["weight"].shape
    torch.Size([2, 3])
    """
    model.honour_edits(everywhere=True)
    found = {}
    for weight in model.weights:
        std = weight.posterior.std()
        if std is None:
            raise LedgerError("a point estimate has no noise, hence no signal-to-noise; train with posterior.kind=gaussian")
        found[weight.name] = weight.posterior.mean.detach().cpu().double().abs() / std.detach().cpu().double()
        if not bool(torch.isfinite(found[weight.name]).all()):
            raise LayerError(f"'{weight.name}' has a mean that is not finite or a std not above zero; train it again")
    if not found:
        raise LedgerError("no weight has a posterior, so none can be pruned; include some with bayesian.include")
    return found


def thresholds_for(ratios: Mapping[str, Tensor], fractions: Sequence[float] = KEPT_FRACTIONS) -> list[float]:
    """Return the thresholds that keep given fractions of all weights, each at least one weight.

    Args:
        ratios: |mean| / std by tensor name.
        fractions: of kept weights, in (0, 1].

    Returns:
        A threshold for each fraction; 0 for the fraction 1.

    >>> thresholds_for({"w": torch.tensor([3.0, 1.0, 2.0, 4.0])}, [1.0, 0.5])
    [0.0, 3.0]
    """
    ordered = torch.cat([ratio.flatten() for ratio in ratios.values()]).sort(descending=True).values
    return [0.0 if part == 1 else float(ordered[max(1, round(part * len(ordered))) - 1]) for part in fractions]


@contextmanager
def only_kept(model: BayesianModel, keep: Keep) -> Iterator[None]:
    """Set pruned weights to zero in every draw, and restore the posterior afterwards.

    Args:
        model: with Gaussian posteriors.
        keep: mask of the kept weights; the noise of a kept weight does not depend on it.

    Yields:
        None, while the weights are pruned.
    """
    model.honour_edits(everywhere=True)
    trained = [(q, q.mean.detach().clone(), q.log_std.detach().clone()) for q in _gaussians(model)]
    try:
        with torch.no_grad():
            for (q, mean, log_std), kept in zip(trained, keep.values(), strict=True):
                inside = kept.to(mean.device)
                q.mean.copy_(torch.where(inside, mean, 0.0))
                q.log_std.copy_(torch.where(inside, log_std, -math.inf))
        yield
    finally:
        with torch.no_grad():
            for q, mean, log_std in trained:
                q.mean.copy_(mean)
                q.log_std.copy_(log_std)


def _gaussians(model: BayesianModel) -> list[GaussianPosterior]:
    return [q for q in model.posteriors() if isinstance(q, GaussianPosterior)]


class Pruner:
    """Pruning of one trained experiment at any number of thresholds.

    Learned hyper-parameters are rounded to their grids in place.

    Args:
        experiment: trained, with Gaussian posteriors.
        samples: whole-network draws at each threshold; default: the configuration's.

    Raises:
        LedgerError: as in :func:`signal_to_noise`.
        LayerError: as in :func:`signal_to_noise`.
        BitsbackError: the prior does not code weights one by one.
    """

    def __init__(self, experiment: Experiment, samples: int | None = None) -> None:
        self.experiment, self.samples = experiment, samples or experiment.config.ledger.samples
        model, likelihood = experiment.model, experiment.likelihood
        self.ratios = signal_to_noise(model)
        model.round_to_grid()
        likelihood.round_to_grid()
        charges = sum(charge.bits for charge in [*model.charges(), *likelihood.charges()])
        self._other_bits = charges + model.deterministic_bits()
        self._each_bits = {}
        with torch.no_grad():
            for weight, q in zip(model.weights, _gaussians(model), strict=True):
                exact = GaussianPosterior(q.mean.cpu().double(), q.std().cpu().double())
                prior = copy.deepcopy(weight.prior).cpu().double()
                self._each_bits[weight.name] = nats_to_bits(kl_each(exact, prior))

    def keep(self, keep_snr: float) -> dict[str, Tensor]:
        """Return the mask of the weights whose signal-to-noise ratio is at least ``keep_snr``.

        Returns:
            Masks by tensor name, bool.

        Raises:
            LedgerError: the threshold is negative or not finite, or no weight reaches it.
        """
        if not (math.isfinite(keep_snr) and keep_snr >= 0):
            raise LedgerError(f"--keep-snr must be zero or a number above it, got {keep_snr:g}; 1 keeps what exceeds its noise")
        largest = max(float(ratio.max()) for ratio in self.ratios.values())
        if keep_snr > largest:
            raise LedgerError(f"--keep-snr {keep_snr:g} prunes every weight; set it below the largest signal-to-noise, "
                              f"{largest:.4g}")  # fmt: skip
        return {name: ratio >= keep_snr for name, ratio in self.ratios.items()}

    def cost(self, keep: Keep, keep_snr: float = math.nan) -> PrunedCost:
        """Compute bits and errors of the network with only the weights of a mask.

        Args:
            keep: mask of the kept weights, chosen by any criterion.
            keep_snr: threshold to record; not used otherwise.

        Returns:
            Bits and errors.
        """
        e, samples = self.experiment, self.samples
        with only_kept(e.model, keep):
            train = evaluate(e.model, e.likelihood, e.dataset.train, samples=samples, seed=e.config.seed)
            test = None
            if e.dataset.test is not None:
                test = evaluate(e.model, e.likelihood, e.dataset.test, samples=samples, seed=e.config.seed + 1)
        return PrunedCost(
            keep_snr=keep_snr,
            kept=count(keep),
            weights=sum(kept.numel() for kept in keep.values()),
            mask_bits=math.fsum(mask_bits(int(kept.sum()), kept.numel()) for kept in keep.values()),
            kept_bits=math.fsum(float(self._each_bits[name][kept].sum()) for name, kept in keep.items()),
            other_bits=self._other_bits,
            data_bits=train.data_bits,
            data_bits_stderr=train.data_bits_stderr,
            train_error=train.error,
            test_error=None if test is None else test.error,
        )

    def file(self, keep: Keep) -> Packed:
        """Return the posterior means, pruned ones set to zero, as a quantised model file; the model is restored.

        Stds are unchanged and so are the grids: the files of different masks differ only by the pruned weights.

        Returns:
            The model file.
        """
        model, settings = self.experiment.model, self.experiment.config.pack.quantising
        state = copy.deepcopy(model.state_dict())
        try:
            with torch.no_grad():
                for q, kept in zip(_gaussians(model), keep.values(), strict=True):
                    q.mean.masked_fill_(~kept.to(q.mean.device), 0.0)
            return pack_experiment(self.experiment, PackSettings(codec="quantised", quantising=settings), progress=False)
        finally:
            model.load_state_dict(state)


def prune(
    run: RunSource | str | Path,
    keep_snr: float = 1.0,
    *,
    out: str | Path | None = None,
    curve: bool = True,
    samples: int | None = None,
    progress: bool = False,
) -> Pruning:
    """Prune a trained network at a threshold, and measure bits and error at others too; the model is restored.

    Args:
        run: a run directory, an opened run, or a trained experiment, with Gaussian posteriors.
        keep_snr: weights with a smaller |mean| / std are set to zero.
        out: new directory for pruned.bb, the pruned network as a quantised model file, and curve.json; None writes nothing.
        curve: measure also the thresholds at which :data:`KEPT_FRACTIONS` of the weights are kept.
        samples: whole-network draws at each threshold; default: the configuration's.
        progress: show a progress bar after two seconds.

    Returns:
        The curve and the pruned network.

    Raises:
        LedgerError: the threshold is invalid or prunes every weight, or a weight is a point estimate.
        PriorError: the network cannot be written under its prior.
        FileError: the network cannot be written as a file.
    """
    if out is not None:
        with new_neighbour(Path(out)):
            pruning = prune(run, keep_snr, curve=curve, samples=samples, progress=progress)
            pruning.write(Path(out))
            return pruning
    experiment = experiment_of(run)
    pruner = Pruner(experiment, samples)
    asked = pruner.keep(keep_snr)
    others = [t for t in thresholds_for(pruner.ratios) if count(pruner.keep(t)) != count(asked)] if curve else []
    thresholds = sorted({keep_snr, *others})
    shown = tqdm(thresholds, desc="thresholds", leave=False, disable=not progress, delay=SHOWN_AFTER_SECONDS)
    points = {threshold: pruner.cost(pruner.keep(threshold), threshold) for threshold in shown}
    files = [pruner.file(keep) for keep in (asked, pruner.keep(0.0))]
    return Pruning(points[keep_snr], tuple(points.values()), files[0], files[1], pruner.samples, experiment.model.given())
