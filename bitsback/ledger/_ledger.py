"""Ledger of a description: the bits of the labels, model included."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bitsback.errors import LedgerError
from bitsback.ledger.entry import Charge, Entry
from bitsback.ledger.rendering import render
from bitsback.result import Result

__all__ = ["Ledger"]


@dataclass(frozen=True)
class Ledger(Result):
    """Description length in bits: data, weights (gross, refund, net) and learned hyper-parameters.

    All totals are sums over the entries and charges.

    Attributes:
        entries: cost of each weight tensor.
        model_weights: number of weights of the model, which the entries must cover exactly.
        data_bits: -log2 of the likelihood of the training targets, averaged over the weight draws.
        uniform_bits: bits of the targets without a model, under a uniform code of their values.
        examples: number of training examples.
        data_bits_stderr: standard error of ``data_bits``; 0 for a single draw, whose spread is unknown.
        charges: cost of the learned hyper-parameters.
        grid_step: grid step of the weights behind gross bits and refund.
        samples: number of weight draws behind ``data_bits``.
        not_charged: descriptions of what sender and receiver are assumed to share.
        notes: remarks for the reader of the ledger.
        described: plural noun for the targets.
        given: what the description is conditional on, or empty.
        marginal_bits: bits of the targets under one distribution for all examples, its parameters charged; None if unknown.
        warnings: where the model costs more bits than it saves, and why.
        symbols: number of coded numbers (labels, tokens, counts) in all targets; None: one for each example.

    Raises:
        LedgerError: when the entries do not cover the weights, or a number of bits is not finite.

    >>> book = Ledger(
    ...     entries=(Entry.of("w", weights=2, net_bits=3.0, refund_bits=10.0),),
    ...     model_weights=2, data_bits=20.0, uniform_bits=100.0, examples=30,
    ...     charges=(Charge("prior.log_scale", 1, 10.0),),
    ... )
    >>> book.net_bits, book.gross_bits, book.refund_bits
    (33.0, 43.0, 10.0)
    >>> book.sentence()
    'The labels cost 100 bits without a model; with it 33 bits, model included.'
    """

    entries: tuple[Entry, ...]
    model_weights: int
    data_bits: float
    uniform_bits: float
    examples: int
    data_bits_stderr: float = 0.0
    charges: tuple[Charge, ...] = ()
    grid_step: float = 1.0
    samples: int = 1
    not_charged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    described: str = "labels"
    given: str = ""
    marginal_bits: float | None = None
    warnings: tuple[str, ...] = ()
    symbols: int | None = None

    def __post_init__(self) -> None:
        if self.symbols == self.examples:
            object.__setattr__(self, "symbols", None)
        if self.symbols is not None and self.symbols < 1:
            raise LedgerError(f"a ledger describes one symbol or more, got {self.symbols}")
        if self.weights != self.model_weights:
            raise LedgerError(
                f"the ledger covers {self.weights:,} weights but the model has {self.model_weights:,}; "
                "give every weight tensor exactly one entry"
            )
        for label in ("data_bits", "uniform_bits", "data_bits_stderr", "marginal_bits"):
            if getattr(self, label) is not None and not math.isfinite(getattr(self, label)):
                raise LedgerError(f"{label} is {getattr(self, label)}; bits must be finite")
        names = [entry.name for entry in self.entries]
        if len(set(names)) != len(names):
            raise LedgerError(f"a weight is counted twice: {sorted({n for n in names if names.count(n) > 1})}")

    @property
    def weights(self) -> int:
        """Return the number of weights that the entries cover."""
        return sum(entry.weights for entry in self.entries)

    @property
    def net_weight_bits(self) -> float:
        """Return KL(q||p) in bits, all weights together."""
        return math.fsum(entry.net_bits for entry in self.entries)

    @property
    def refund_bits(self) -> float:
        """Return the bits refunded by the draw of the weights from q."""
        return math.fsum(entry.refund_bits for entry in self.entries)

    @property
    def gross_weight_bits(self) -> float:
        """Return the bits of the optimal code of the weights on the grid, before the refund."""
        return self.net_weight_bits + self.refund_bits

    @property
    def hyperparameter_bits(self) -> float:
        """Return the bits of all learned numbers that are not weights."""
        return math.fsum(charge.bits for charge in self.charges)

    @property
    def net_bits(self) -> float:
        """Return the net description length in bits: data + net weights + hyper-parameters."""
        return self.data_bits + self.net_weight_bits + self.hyperparameter_bits

    @property
    def gross_bits(self) -> float:
        """Return the gross description length in bits: data + gross weights + hyper-parameters."""
        return self.data_bits + self.gross_weight_bits + self.hyperparameter_bits

    @property
    def bits_per_example(self) -> float:
        """Return the net bits per training example."""
        return self.net_bits / self.examples

    @property
    def bits_per_symbol(self) -> float:
        """Return the net bits per coded number of the training targets; those per example if each has one."""
        return self.net_bits / (self.examples if self.symbols is None else self.symbols)

    @property
    def bits_per_weight(self) -> float:
        """Return the net weight bits per weight; 0 for a model without weights."""
        return self.net_weight_bits / self.weights if self.weights else 0.0

    @property
    def no_model_bits(self) -> float:
        """Return the bits of the shorter of the two codes without a model: uniform, and marginal where it is known."""
        return self.uniform_bits if self.marginal_bits is None else min(self.uniform_bits, self.marginal_bits)

    @property
    def is_worth_it(self) -> bool:
        """Return whether the net bits are at most those of the targets without a model."""
        return self.net_bits <= self.no_model_bits

    def sentence(self) -> str:
        """Return one sentence that compares the net bits with those of the targets without a model."""
        without, cost = f"{self.no_model_bits:,.0f} bits without a model", f"{self.net_bits:,.0f} bits, model included"
        return f"The {self.described} cost {without}; with it {cost}{', given ' + self.given if self.given else ''}."

    def __str__(self) -> str:
        return render(self)

    def to_dict(self) -> dict[str, Any]:
        """Return totals, entries and charges as plain values for JSON; per symbol too, if an example has several."""
        totals = ("net_bits", "gross_bits", "data_bits", "data_bits_stderr", "net_weight_bits", "gross_weight_bits")
        more = ("refund_bits", "hyperparameter_bits", "uniform_bits", "marginal_bits", "bits_per_example", "bits_per_weight")
        counts = ("grid_step", "weights", "examples", "samples")
        several = () if self.symbols is None else ("symbols", "bits_per_symbol")
        return {
            **{name: getattr(self, name) for name in totals + more + counts + several},
            "not_charged": list(self.not_charged),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "described": self.described,
            "given": self.given,
            "entries": [asdict(entry) for entry in self.entries],
            "charges": [asdict(charge) for charge in self.charges],
        }

    def records(self) -> list[dict[str, Any]]:
        """Return the entries as dictionaries, one for each weight tensor."""
        return [asdict(entry) for entry in self.entries]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Ledger":
        """Build a ledger from the values of :meth:`to_dict`.

        Args:
            values: totals, entries and charges.

        Returns:
            The ledger.

        Raises:
            LedgerError: when a value is missing, or the totals do not agree with the entries.
        """
        try:
            book = cls(
                entries=tuple(Entry(**entry) for entry in values["entries"]),
                charges=tuple(Charge(**charge) for charge in values["charges"]),
                not_charged=tuple(values["not_charged"]),
                notes=tuple(values["notes"]),
                described=values["described"],
                given=values["given"],
                marginal_bits=values.get("marginal_bits"),  # ledgers of earlier runs lack these three
                warnings=tuple(values.get("warnings", ())),
                symbols=values.get("symbols"),
                model_weights=values["weights"],
                **{key: values[key] for key in ("data_bits", "data_bits_stderr", "uniform_bits")},
                **{key: values[key] for key in ("examples", "grid_step", "samples")},
            )
            stated = {key: values[key] for key in ("net_bits", "gross_bits", "refund_bits", "net_weight_bits")}
        except (KeyError, TypeError) as error:
            raise LedgerError(f"not a ledger: {error}; a ledger is written by `bitsback train` or Ledger.to_json") from error
        for key, value in stated.items():
            if not math.isclose(value, getattr(book, key), rel_tol=1e-9, abs_tol=1e-6):
                raise LedgerError(f"{key} says {value} but the entries add up to {getattr(book, key)}; the file was edited")
        return book

    @classmethod
    def from_json(cls, text: str) -> "Ledger":
        """Build a ledger from the text of :meth:`to_json`.

        Args:
            text: JSON.

        Returns:
            The ledger.

        Raises:
            LedgerError: when the text is not JSON, or not that of a consistent ledger.
        """
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise LedgerError(f"not a ledger: {error}; the file is not JSON") from error
