"""Two studies: L2 and L1 penalties as code lengths under Gaussian and Laplace priors; rounding to decimal digits."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bitsback.analysis._point_estimates import REGULARISATIONS, PointNetwork, check_labels, regularised
from bitsback.config import Config, Experiment
from bitsback.config.coding_settings import PackSettings, TuningSettings
from bitsback.formats.config_tree import locations_of
from bitsback.formats.model_file.grid_search import decimal_content
from bitsback.formats.model_file.read import decode
from bitsback.formats.two_part import send_two_part
from bitsback.kl import kl
from bitsback.ledger import shown_error
from bitsback.model import evaluate
from bitsback.posteriors import PointPosterior
from bitsback.result import TableResult, text_table
from bitsback.units import nats_to_bits

__all__ = ["DigitsRow", "DigitsTable", "PenaltyRow", "PenaltyTable", "digits_study", "regularisation_study"]

DIGITS = range(7)
CODE_STEP = 2.0**-7
"""Grid step of the code lengths to which penalties are compared; it changes only the constant."""


@dataclass(frozen=True)
class PenaltyRow:
    """Penalty, code length and two-part file of one regularisation.

    ``code_bits`` is -log2(p(w) 2^-7) summed over the weights, and equals ``penalty_bits + constant_bits`` up to rounding.
    """

    regularisation: str
    formula: str
    penalty_bits: float
    constant_bits: float
    code_bits: float
    weights: int
    dropped: int
    file_bytes: int
    label_bits: float
    total_bits: float
    test_error: float | None
    seconds: float


@dataclass(frozen=True)
class PenaltyTable(TableResult):
    """Penalties, code lengths and file sizes by regularisation."""

    rows: tuple[PenaltyRow, ...]

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each penalty."""
        return [asdict(row) for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Return the rows by name of the penalty."""
        return {row.regularisation: asdict(row) for row in self.rows}

    def __str__(self) -> str:
        head = ["", "penalty", "penalty bits", "+ constant", "= code bits", "weights", "dropped"]
        head += ["file bytes", "labels", "total bits", "test error"]
        body = [
            [
                row.regularisation,
                row.formula,
                f"{row.penalty_bits:,.1f}",
                f"{row.constant_bits:,.1f}",
                f"{row.code_bits:,.1f}",
                f"{row.weights:,}",
                f"{row.dropped:,}",
                f"{row.file_bytes:,}",
                f"{row.label_bits:,.0f}",
                f"{row.total_bits:,.0f}",
                "" if row.test_error is None else shown_error("error", row.test_error),
            ]
            for row in self.rows
        ]
        return (
            f"{text_table(head, body)}\n"
            "The penalty is the code length of the weights, on a grid of step 2^-7, under a Gaussian (L2) or Laplace (L1) "
            "prior,\nup to a constant that no weight can change. Files have the grids that cost least in all; dropped "
            "weights are zero."
        )


def regularisation_study(config: Config, *, progress: bool = True) -> PenaltyTable:
    """Train with L2, L1 and a negligible penalty, and write a two-part file of each on the best grids.

    Args:
        config: of the network and its data.
        progress: show progress bars.

    Returns:
        A row for each penalty.

    Raises:
        DataError: the targets are not labels.
    """
    rows = []
    for by in REGULARISATIONS:
        point = PointNetwork.train(regularised(config, by), progress=progress)
        experiment = point.experiment
        check_labels(experiment)
        weights = torch.cat([q.mean.detach().double().flatten() for q in experiment.model.posteriors()])
        code_nats = [kl(PointPosterior(w.posterior.mean.double()), w.prior).nats for w in experiment.model.weights]
        code_bits = nats_to_bits(float(torch.stack(code_nats).sum().detach()) - len(weights) * math.log(CODE_STEP))
        formula, penalty_bits, constant_bits = _penalty(experiment, weights)
        found = send_two_part(experiment, PackSettings(codec="quantised", tuning=TuningSettings()), progress=progress)
        sent = torch.cat([weight.posterior.mean.flatten() for weight in found.packed.loaded.model.weights])
        rows.append(
            PenaltyRow(
                regularisation=by,
                formula=formula,
                penalty_bits=penalty_bits,
                constant_bits=constant_bits,
                code_bits=code_bits,
                weights=len(weights),
                dropped=int((sent == 0).sum()),
                file_bytes=len(found.packed.content),
                label_bits=found.label_bits,
                total_bits=found.total_bits,
                test_error=found.packed.test_error,
                seconds=point.seconds,
            )
        )
    return PenaltyTable(tuple(rows))


def _penalty(experiment: Experiment, weights: Tensor) -> tuple[str, float, float]:
    """Return formula and value of the penalty in bits, and the part of the code length that no weight changes."""
    prior = experiment.model.weights[0].prior
    scale = float(prior.typical_scale().detach().double())
    if prior.kind == "laplace":
        rate, size, peak = nats_to_bits(1 / scale), float(weights.abs().sum()), 2 * scale
        return f"{rate:.4g} * sum |w|", rate * size, len(weights) * math.log2(peak / CODE_STEP)
    rate, size, peak = nats_to_bits(0.5 / scale**2), float(weights.square().sum()), scale * math.sqrt(2 * math.pi)
    return f"{rate:.4g} * sum w^2", rate * size, len(weights) * math.log2(peak / CODE_STEP)


@dataclass(frozen=True)
class DigitsRow:
    """File size, data bits and error of weights rounded to ``digits`` decimal digits."""

    regularisation: str
    digits: int
    distinct: int
    file_bytes: int
    data_bits: float
    test_error: float | None


@dataclass(frozen=True)
class DigitsTable(TableResult):
    """File sizes, data bits and errors by penalty and number of decimal digits."""

    rows: tuple[DigitsRow, ...]

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each penalty and number of digits."""
        return [asdict(row) for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Return the rows, under one name."""
        return {"rows": self.records()}

    def __str__(self) -> str:
        head = ["regularisation", "digits", "distinct values", "file bytes", "data bits", "test error"]
        body = [
            [row.regularisation, str(row.digits), f"{row.distinct:,}", f"{row.file_bytes:,}", f"{row.data_bits:,.1f}",
             "" if row.test_error is None else shown_error("error", row.test_error)]
            for row in self.rows
        ]  # fmt: skip
        return text_table(head, body)


def digits_study(config: Config, *, progress: bool = True) -> DigitsTable:
    """Train with L2, L1 and a negligible penalty, and write the weights rounded to 0 to 6 decimal digits as files.

    Data bits and errors are measured on the decoded files.

    Args:
        config: of the network and its data.
        progress: show progress bars.

    Returns:
        A row for each penalty and number of digits.

    Raises:
        DataError: the targets are not labels.
    """
    rows = []
    for by in REGULARISATIONS:
        experiment = PointNetwork.train(regularised(config, by), progress=progress).experiment
        check_labels(experiment)
        data, state = experiment.dataset, {name: t.clone() for name, t in experiment.model.state_dict().items()}
        for digits in DIGITS:
            experiment.model.load_state_dict(state)
            content = decimal_content(experiment, digits)
            loaded = decode(content, "the rounded file", locations_of(config))
            values = torch.cat([weight.posterior.mean.flatten() for weight in loaded.model.weights])
            paid = evaluate(loaded.model, loaded.likelihood, data.train, samples=0).data_bits
            error = evaluate(loaded.model, loaded.likelihood, data.test, samples=0).error if data.test is not None else None
            rows.append(DigitsRow(by, digits, len(values.unique()), len(content), paid, error))
    return DigitsTable(tuple(rows))
