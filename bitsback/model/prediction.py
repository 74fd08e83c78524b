"""Predictions averaged over whole-network draws, with their uncertainty."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bitsback.atomic_io import write_array, write_arrays, write_bytes, write_text
from bitsback.data.unlabelled import inputs_of, target_numbers, without_targets
from bitsback.errors import DataError, FileError, brief
from bitsback.extras import require
from bitsback.inputs import Inputs, leaves, placed
from bitsback.likelihoods import Likelihood, Mixture
from bitsback.likelihoods.base import Answer, listed
from bitsback.model.draws import SHOWN_AFTER_SECONDS, drawing, draws_at_once, forward_of
from bitsback.model.modes import evaluating
from bitsback.result import TableResult
from bitsback.torch_state import seeded
from bitsback.units import bits_to_nats, nats_to_bits

if TYPE_CHECKING:
    from bitsback.model.model import BayesianModel

__all__ = ["SUFFIXES", "Prediction", "check_suffix", "predicted"]

SUFFIXES = (".csv", ".tsv", ".parquet", ".json", ".npz", ".npy")
"""Suffixes of files that :meth:`Prediction.save` writes."""

LEVEL = 0.9
"""Probability of an interval, unless another is asked for."""


@dataclass(frozen=True, eq=False)
class Prediction(TableResult):
    """Predictive distributions of n targets: equal mixtures, over S weight draws, of the likelihood's distributions.

    Entropies, intervals and mutual information are those of each label or number by itself, whatever the shape of a target. To
    give them, regression and counts keep 16 bytes for each draw and number; labels keep sums over draws.

    Attributes:
        likelihood: of the targets.
        mean: predictive means (n, ...), float64: probabilities of classes (the last axis) or of yes, means in the targets'
            units, or rates of counts.
        std: predictive stds (n, ...), in the targets' units: the noise, and the spread of the means over draws; None for
            labels.
        samples: S, the number of weight draws.
        bits: (n,), bits of the given targets under the mixture, -log2 of the mean over draws of 2^-bits; None without targets.
        mixture: the distributions; None for a likelihood of one's own that has none.
        beside: columns that say which input each record is of, (n,) each, by name; they begin every record.
        table: rows that the inputs were made of, a table of pyarrow; files that are tables hold them too.
    """

    likelihood: Likelihood = field(repr=False)
    mean: Tensor
    std: Tensor | None
    samples: int
    bits: Tensor | None = None
    mixture: Mixture | None = field(default=None, repr=False)
    beside: Mapping[str, Sequence[Any]] = field(default_factory=dict, repr=False)
    table: Any = field(default=None, repr=False)

    @cached_property
    def answers(self) -> list[Answer]:
        """Return a record for each input, in the words of the likelihood."""
        return self.likelihood.answers(self.mean, self.std)

    @cached_property
    def _entropies(self) -> tuple[Tensor, Tensor] | None:
        return self.mixture.entropies_bits() if self.mixture is not None else None

    @property
    def entropy_bits(self) -> Tensor | None:
        """Return the entropy of each label or number, (n, ...), in bits; None if the likelihood has no mixture.

        That of real targets is the entropy on their grid, whose step makes it absolute.
        """
        return self._entropies[0] if self._entropies is not None else None

    @property
    def mutual_information_bits(self) -> Tensor | None:
        """Return the mutual information of each label or number and the weights, (n, ...), in bits: what is to be learned.

        The entropy of the mixture less the mean entropy under one draw (BALD, Houlsby et al. 2011); 0 for a single draw. It is
        not negative, as entropy is concave; rounding errors below zero are set to zero.
        """
        return (self._entropies[0] - self._entropies[1]).clamp_min(0.0) if self._entropies is not None else None

    @property
    def has_intervals(self) -> bool:
        """Whether the targets are numbers whose distribution is known."""
        return self.mixture is not None and self.std is not None

    def interval(self, level: float = LEVEL) -> tuple[Tensor, Tensor]:
        """Return the central interval that holds a target with a probability of at least ``level``, to rounding.

        Its ends are the quantiles (1 - level) / 2 and (1 + level) / 2 of the mixture. For counts they are counts.

        Args:
            level: probability, between 0 and 1.

        Returns:
            Lower and upper ends, each (n, ...), in the targets' units.

        Raises:
            DataError: for labels, which have probabilities; for a level out of range.
        """
        if not 0 < level < 1:
            raise DataError(f"the level of an interval is a probability between 0 and 1, got {level}; give one such as 0.9")
        if self.mixture is None:
            raise DataError(f"a '{self.likelihood.kind}' likelihood has no quantiles; define its mixture()")
        return self.mixture.quantile((1 - level) / 2), self.mixture.quantile((1 + level) / 2)

    def arrays(self, level: float = LEVEL) -> dict[str, Tensor]:
        """Return all numbers by name.

        Args:
            level: probability of the interval from ``low`` to ``high``.

        Returns:
            Those of ``mean``, ``std``, ``low``, ``high``, ``entropy_bits``, ``mutual_information_bits``, ``bits`` that there
            are.
        """
        low, high = self.interval(level) if self.has_intervals else (None, None)
        found = {
            "mean": self.mean,
            "std": self.std,
            "low": low,
            "high": high,
            "entropy_bits": self.entropy_bits,
            "mutual_information_bits": self.mutual_information_bits,
            "bits": self.bits,
        }
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def records(self, level: float = LEVEL) -> list[Answer]:
        """Return the answer for each input and its uncertainty.

        Args:
            level: probability of the interval from ``low`` to ``high``, for regression and counts.

        Returns:
            A record for each input; nested lists if a target has axes.
        """
        more = {name: tensor for name, tensor in self.arrays(level).items() if name not in ("mean", "std")}
        found = self._placed_answers()
        return [{**answer, **also} for answer, also in zip(found, listed(**more), strict=True)] if more else found

    def _placed_answers(self) -> list[Answer]:
        """Return the answers, each behind what says which input it is of."""
        if not self.beside:
            return self.answers
        places = (dict(zip(self.beside, values, strict=True)) for values in zip(*self.beside.values(), strict=True))
        return [{**place, **answer} for place, answer in zip(places, self.answers, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return the records, under one name."""
        return {"answers": self.records()}

    def to_json(self, indent: int | None = None, level: float = LEVEL) -> str:
        """Return the records as JSON, on one line.

        Args:
            indent: as in :func:`json.dumps`.
            level: as in :meth:`records`.

        Returns:
            JSON text.
        """
        return json.dumps(self.records(level), indent=indent)

    def to_csv(self, level: float = LEVEL, delimiter: str = ",") -> str:
        """Return the records as CSV with a head of names; values of targets with axes are JSON lists.

        Args:
            level: as in :meth:`records`.
            delimiter: between the values of a line.

        Returns:
            CSV text; the columns of the table that the inputs were made of come first.
        """
        columns, text = self._columns(level), io.StringIO()
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()

    def to_parquet(self, level: float = LEVEL) -> bytes:
        """Return the records as a Parquet file, as :meth:`to_csv`; columns of a table keep their types.

        Args:
            level: as in :meth:`records`.

        Returns:
            the bytes of the file.

        Raises:
            MissingExtraError: without pyarrow.
        """
        require("tables", "writing Parquet files")
        import pyarrow
        from pyarrow import parquet

        own = {} if self.table is None else {name: self.table.column(name) for name in self.table.column_names}
        content = io.BytesIO()
        parquet.write_table(pyarrow.table({**self._columns(level), **own}), content)
        return content.getvalue()

    def _columns(self, level: float) -> dict[str, list[Any]]:
        """Return columns by name: of the table, and of the records, called predicted_... where the table has their name."""
        columns: dict[str, list[Any]] = {} if self.table is None else self.table.to_pydict()
        records = self.records(level)
        for name in records[0] if records else ():
            new = name
            while new in columns:
                new = f"predicted_{new}"
            columns[new] = [_cell(record[name]) for record in records]
        return columns

    def save(self, path: str | Path, level: float = LEVEL) -> None:
        """Write a file, atomically: records as CSV, TSV, Parquet or JSON, arrays as NPZ, or means as NPY, by the suffix.

        Args:
            path: file to write.
            level: as in :meth:`records`.

        Raises:
            FileError: for another suffix.
            RunError: if the file cannot be written.
        """
        path = Path(path)
        check_suffix(path)
        if path.suffix in (".csv", ".tsv"):
            write_text(path, self.to_csv(level, "\t" if path.suffix == ".tsv" else ","))
        elif path.suffix == ".parquet":
            write_bytes(path, self.to_parquet(level))
        elif path.suffix == ".json":
            write_text(path, self.to_json(level=level) + "\n")
        elif path.suffix == ".npz":
            beside = {name: np.array(values) for name, values in self.beside.items()}
            write_arrays(path, beside | {name: tensor.numpy() for name, tensor in self.arrays(level).items()})
        else:
            write_array(path, self.mean.numpy())

    def __str__(self) -> str:
        rows = (map(_cell, answer.values()) for answer in self._placed_answers())
        return "\n".join("\t".join(map(str, row)) for row in rows)

    @classmethod
    @torch.no_grad()
    def of(cls, likelihood: Likelihood, draws: Iterable[Tensor], targets: Tensor | None = None) -> "Prediction":
        """Average the predictions of several weight draws.

        The predictive variance is the mean of the noise variances plus the variance of the means (law of total variance).

        Args:
            likelihood: of the targets.
            draws: network outputs (n, ...), one tensor for each weight draw.
            targets: (n, ...), whose bits are asked for, or None.

        Returns:
            The averaged predictions.

        Raises:
            DataError: for targets that the likelihood cannot describe, or another number of targets.

        >>> from bitsback.likelihoods import BernoulliLikelihood
        >>> draws = [torch.tensor([2.0, 4.0]), torch.tensor([-2.0, 4.0])]
        >>> found = Prediction.of(BernoulliLikelihood(), draws, targets=torch.tensor([0.0, 1.0]))
        >>> [round(bits, 3) for bits in found.bits.tolist()], [round(bits, 3) for bits in found.entropy_bits.tolist()]
        ([1.0, 0.026], [1.0, 0.13])
        >>> found.mutual_information_bits[0] > 0.4  # the draws disagree
        tensor(True)
        """
        if targets is not None:
            likelihood.check_targets(targets, "a given")
        mixture, count = likelihood.mixture(), 0
        mean = squares = noise = log_sum = torch.zeros((), dtype=torch.float64)
        has_std = False
        for outputs in draws:
            count += 1
            predicted, variance = likelihood.predict(outputs).cpu().double(), likelihood.variance(outputs)
            away = predicted - mean
            mean = mean + away / count  # Welford's recurrence: squares of means far from zero would lose the spread
            if variance is not None:
                has_std, variance = True, variance.cpu().double()
                squares, noise = squares + away * (predicted - mean), noise + variance
            if mixture is not None:
                mixture.add(predicted, variance)
            if targets is not None:
                log_p = -bits_to_nats(likelihood.bits(outputs, _beside(targets, outputs)).cpu().double())
                log_sum = torch.logaddexp(log_sum, log_p) if count > 1 else log_p
        std = ((noise + squares) / count).sqrt() if has_std else None
        bits = nats_to_bits(torch.tensor(count).double().log() - log_sum) if targets is not None else None
        return cls(likelihood, mean, std, count, bits, mixture)


def _beside(targets: Tensor, outputs: Tensor) -> Tensor:
    if len(targets) != len(outputs):
        raise DataError(f"{len(targets):,} targets were given for {len(outputs):,} inputs; give one for each")
    return targets.to(outputs.device)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


def check_suffix(path: Path) -> None:
    """Raise FileError unless the suffix says how predictions are written."""
    if path.suffix not in SUFFIXES:
        raise FileError(f"predictions are written as {', '.join(SUFFIXES)}, by the suffix, and {path} has none of these")


def predicted(
    model: "BayesianModel",
    likelihood: Likelihood,
    inputs: Any,
    samples: int,
    *,
    targets: Any,
    seed: int,
    progress: bool,
) -> Prediction:
    """Predict with a model; :meth:`BayesianModel.predict` says how.

    Args:
        model: Bayesian model.
        likelihood: of the targets.
        inputs: (n, ...), as :func:`bitsback.data.unlabelled.inputs_of` takes them.
        samples: number of weight draws.
        targets: (n, ...), a tensor, an array or a list of numbers, or None.
        seed: seed of the draws.
        progress: show a progress bar.

    Returns:
        The predictions.

    Raises:
        DataError: without inputs or draws, or for targets that do not fit.
    """
    if samples < 1:
        raise DataError(f"a prediction needs one draw at least, got samples={samples}")
    given = None if targets is None else targets if isinstance(targets, Tensor) else target_numbers(targets)
    batches = _batches(model, inputs)
    with evaluating(model.network), model.keeping(), seeded(seed, model.device):
        try:
            return Prediction.of(likelihood, _draws(model, batches, samples, seed, progress), given)
        except (RuntimeError, IndexError, TypeError) as error:  # the user's network on inputs of another kind
            raise DataError(
                f"the network fails on these inputs: {brief(error)}; give inputs like those of training, a row for each"
            ) from error


def _batches(model: "BayesianModel", inputs: Any) -> Callable[[], Iterable[Inputs]]:
    """Return a function that reads the inputs anew, in batches on the model's device."""
    inputs = without_targets(inputs)
    several = leaves(inputs) if isinstance(inputs, dict | tuple) else []
    if several and all(isinstance(leaf, Tensor) for leaf in several) and len({leaf.shape[:1] for leaf in several}) > 1:
        # rows that are no examples, such as nodes and edges of graphs, belong together
        batch = placed(inputs, model.device, model.dtype)
        return lambda: [batch]
    examples = inputs_of(inputs).to(model.device, model.dtype)
    ranges = examples.ranges(model.evaluation_batch)
    return lambda: (part for part, _ in examples.batches(ranges))


def _draws(
    model: "BayesianModel", batches: Callable[[], Iterable[Inputs]], samples: int, seed: int, progress: bool
) -> Iterator[Tensor]:
    """Yield the outputs for all inputs under one draw after another, those that :func:`bitsback.evaluate` takes."""
    is_point = model.smallest_std() is None
    numbers = [] if is_point else [-1 - number for number in range(samples)]
    at_once, forward = draws_at_once(model), forward_of(model)
    groups = [numbers[start : start + at_once] for start in range(0, len(numbers), at_once)] or [[]]
    with tqdm(total=len(numbers) or 1, desc="draws", leave=False, disable=not progress, delay=SHOWN_AFTER_SECONDS) as bar:
        for group in groups:
            with drawing(model, seed, group, forward) as network:
                parts = [network(inputs) for inputs in batches()]
            for outputs in zip(*parts, strict=True):
                if len({output.shape[1:] for output in outputs}) > 1:
                    shapes = " and ".join(map(str, sorted({tuple(output.shape[1:]) for output in outputs})[:2]))
                    raise DataError(
                        f"the outputs of different batches have shapes {shapes}, as every batch is padded to its own longest "
                        "example; predict batch by batch, or pad all examples to one length"
                    )
                yield torch.cat(outputs)
                bar.update()
