"""Bits-back messages: labels and weights around a payload that the receiver recovers (Hinton & van Camp 1993).

The sender draws the weights by decoding bits of the payload under the posterior q, codes the labels given the weights, and the
weights under the prior. The receiver decodes weights, then labels, trains on the labels as the sender did, arrives at the same
q, and codes the weights under it: the bits that drew them are the payload::

    sender, downwards                             stack of the entropy coder, the top on the right

    fill with the whitened payload                [payload ..........................]
    pop the weights w under q       (- refund)    [payload ..........]        <- the payload selects w
    push the labels given w         (+ labels)    [payload ..........][labels]
    push w under the prior          (+ gross)     [payload ..........][labels][w]
    push the learned numbers        (+ side)      [payload ..........][labels][w][side]

    receiver: pops side, w, labels; trains on the labels to get q; pushes w under q; what is left is the payload
"""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsback.coding.ans import Integers, default_lanes_log2
from bitsback.coding.combinators import Codec, bits_back, metered, raw_bits
from bitsback.coding.lattice import RoundedPosterior, under_posterior, under_prior
from bitsback.coding.philox import whiten
from bitsback.config import Config, Experiment, Run
from bitsback.errors import FileError
from bitsback.formats._label_code import blank, check_targets
from bitsback.formats._training_digest import StateDigest
from bitsback.formats.config_tree import MESSAGE_SECTIONS, to_tree
from bitsback.formats.container import BitWriter, seal
from bitsback.formats.message.header import EXPONENT_BITS, EXPONENT_OFFSET, MESSAGE, Header
from bitsback.formats.message.shared import SharedContext, filled, guard_of, posterior_digest
from bitsback.formats.repeatable import Recording, check_alone, repeatable, steps_of
from bitsback.formats.side_information import SideInformation, densities_of
from bitsback.model.modes import evaluating
from bitsback.result import Result, text_table
from bitsback.training import LedgerSettings, LoggingSettings
from bitsback.training.train import threads_for
from bitsback.units import bits_to_bytes, nats_to_bits

__all__ = ["PayloadTooShortError", "Sender", "Sent", "check_exponent", "check_sendable", "message_config", "send"]


@dataclass(frozen=True)
class Sent(Result):
    """A message and its bits, beside the ledger of the transmitted weight draw.

    Attributes:
        content: the bytes of the file.
        step: grid step of the weights.
        payload_bits: size of the payload, without padding.
        padding_bits: random bits that were appended to the payload.
        gross_weight_bits: bits that the weights take under the prior.
        refund_bits: bits of the payload that the weight draw consumed, and that the receiver recovers.
        label_bits: bits of the labels given the weights.
        side_bits: bits of learned numbers (hyper-parameters and side information).
        header_bits: bits of frame and header.
        net_bits: data, net weight and hyper-parameter bits by the ledger, for the transmitted weights.
        ledger_data_bits: data bits by the ledger.
        ledger_weight_bits: net weight bits by the ledger, log2 q(w)/p(w).
    """

    content: bytes
    step: float
    payload_bits: int
    padding_bits: int
    gross_weight_bits: float
    refund_bits: float
    label_bits: float
    side_bits: float
    header_bits: int
    net_bits: float
    ledger_data_bits: float
    ledger_weight_bits: float

    @property
    def message_bits(self) -> int:
        """Return the bits of the whole file."""
        return 8 * len(self.content)

    @property
    def stack_net_bits(self) -> float:
        """Return the bits that labels, weights and learned numbers added to the stack, less the refund."""
        return self.gross_weight_bits + self.label_bits + self.side_bits - self.refund_bits

    @property
    def overhead_bits(self) -> float:
        """Return the message's bits less the payload and less the ledger's net bits of the transmitted weights."""
        return self.message_bits - self.payload_bits - self.net_bits

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers without the message, for JSON; the parts of the overhead sum to it."""
        framing = self.message_bits - self.payload_bits - self.padding_bits - self.stack_net_bits - self.header_bits
        return {
            "message_bits": self.message_bits,
            "payload_bits": self.payload_bits,
            "net_bits": self.net_bits,
            "overhead_bits": self.overhead_bits,
            "overhead": {
                "header_and_checksum_bits": self.header_bits,
                "lanes_and_rounding_bits": framing,
                "payload_padding_bits": self.padding_bits,
                "coder_and_tables_bits": self.stack_net_bits - self.net_bits,
            },
            "ledger": {
                "data_bits": self.ledger_data_bits,
                "net_weight_bits": self.ledger_weight_bits,
                "hyperparameter_bits": self.side_bits,
            },
            "coded": {
                "label_bits": self.label_bits,
                "gross_weight_bits": self.gross_weight_bits,
                "refund_bits": self.refund_bits,
                "hyperparameter_bits": self.side_bits,
                "net_bits": self.stack_net_bits,
            },
            "step": self.step,
        }

    def told(self, out: Path | None = None) -> str:
        """Return the text for the user, with the path of the message if given."""
        where = f" in {out}" if out is not None else ""
        return (
            f"A message of {len(self.content):,} bytes{where} carries a payload of {self.payload_bits // 8:,} bytes, on a grid "
            f"of 2^{round(math.log2(self.step))}.\n{self._table()}"
        )

    def __str__(self) -> str:
        return self.told()

    def _table(self) -> str:
        coded, ledger, over = (self.to_dict()[name] for name in ("coded", "ledger", "overhead"))
        rows = [
            ["weights, gross", "", f"{coded['gross_weight_bits']:,.1f}"],
            ["refund", "", f"{-coded['refund_bits']:,.1f}"],
            ["weights, net", f"{ledger['net_weight_bits']:,.1f}", f"{coded['gross_weight_bits'] - coded['refund_bits']:,.1f}"],
            ["labels", f"{ledger['data_bits']:,.1f}", f"{coded['label_bits']:,.1f}"],
            ["hyper-parameters", f"{ledger['hyperparameter_bits']:,.1f}", f"{coded['hyperparameter_bits']:,.1f}"],
            ["header, checksum", "", f"{over['header_and_checksum_bits']:,.1f}"],
            ["lanes, rounding", "", f"{over['lanes_and_rounding_bits']:,.1f}"],
            *([["random bytes after the payload", "", f"{self.padding_bits:,.1f}"]] if self.padding_bits else []),
            ["message less payload", f"{self.net_bits:,.1f}", f"{self.message_bits - self.payload_bits:,.1f}"],
        ]
        lines = [
            text_table(["bits", "ledger", "message"], rows),
            f"Overhead over the ledger of these very weights: {self.overhead_bits:,.1f} bits.",
        ]
        if self.padding_bits:
            count = self.padding_bits // 8
            lines.append(f"{count:,} random bytes had to follow the payload: the message carries them for nothing.")
        return "\n".join(lines)


class PayloadTooShortError(FileError):
    """Error for a payload with fewer bits than drawing the weights takes.

    Attributes:
        missing_bits: number of further bits that are needed.
    """

    def __init__(self, missing_bits: int) -> None:
        self.missing_bits = missing_bits
        super().__init__(
            f"the payload is too short to draw all weights: {missing_bits:,} more bits ({math.ceil(missing_bits / 8):,} bytes) "
            "are needed; give a longer payload, a coarser --step, or --pad"
        )


def send(
    shared: SharedContext,
    labels: Tensor,
    payload: bytes,
    settings: dict[str, Any],
    *,
    exponent: int | None = None,
    padding_bytes: int = 0,
    states: tuple[StateDigest, ...] = (),
) -> Sent:
    """Encode the message of a trained model.

    Args:
        shared: trained model in float64, its learned numbers rounded to their grids.
        labels: targets of the training examples, (n, ...).
        payload: any bytes, enough of them to draw the weights.
        settings: configuration as a tree of JSON values, for the header.
        exponent: m of the grid step 2^-m of the weights; default: a power of two below the smallest std.
        padding_bytes: number of bytes at the payload's end that are padding, and that the receiver drops.
        states: digests of the training, which the receiver compares while repeating it.

    Returns:
        the message and its sizes in bits.

    Raises:
        PayloadTooShortError: if the payload is too short; it states the number of missing bits.
        LayerError: if a weight has a point estimate or a std that is not positive.
        PriorError: if the prior is not a proper distribution.
        FileError: if the targets are neither labels nor counts, or the grid step is out of range.
    """
    shared.check()
    q = shared.posterior()
    m = q.default_exponent() if exponent is None else exponent
    check_exponent(m)
    code = shared.prior_code(m)
    side = SideInformation.of(shared.model, shared.likelihood)
    kl_bits = float(shared.model.kl_bits().detach())
    lanes_log2 = default_lanes_log2(len(q.std_level), kl_bits)
    # whitened, because the draw of the weights is only as random as the bits that select it
    stack = filled(whiten(payload), 1 << lanes_log2)
    meters: dict[str, float] = {}
    drawn: list[Integers] = []

    def label_code(point: Integers) -> Codec:
        # called once all weights are drawn and before anything is pushed: all missing bits are known
        if stack.borrowed_bits:
            raise PayloadTooShortError(stack.borrowed_bits)
        drawn.append(point)
        return metered(shared.label_code(point, m), meters, "labels")

    # bits_back pops w under q, pushes the labels given w, then w under the prior
    flat = labels.cpu().numpy().astype(np.int64).ravel()
    whole = bits_back(
        metered(under_prior(code), meters, "gross"), label_code, lambda _: metered(under_posterior(q, m), meters, "refund")
    )
    whole.push(stack, flat)
    # last, hence on top: the receiver needs the learned numbers before the prior's tables can be built
    metered(raw_bits(side.bits_each()), meters, "side").push(stack, side.levels())
    weight_bits, data_bits = _sample_ledger(shared, q, drawn[0], m, labels)
    digests = shared.inputs_digest(), posterior_digest(q), guard_of(shared, code, flat)
    header = Header(settings, m, lanes_log2, len(payload), padding_bytes, *digests, states)
    writer = BitWriter()
    header.put(writer)
    # the stack holds whole 32-bit words; up to three last bytes of the payload stand beside it, as they are
    rest = payload[len(payload) // 4 * 4 :]
    contents = writer.to_bytes() + rest + stack.to_bytes()
    file = seal(MESSAGE, contents)
    return Sent(
        content=file,
        step=2.0**-m,
        payload_bits=8 * (len(payload) - padding_bytes),
        padding_bits=8 * padding_bytes,
        gross_weight_bits=meters["gross"],
        refund_bits=-meters["refund"],
        label_bits=meters["labels"],
        side_bits=meters["side"],
        header_bits=8 * (len(file) - len(contents)) + 8 * len(writer.to_bytes()),
        net_bits=weight_bits + data_bits + float(side.bits_each().sum()),
        ledger_data_bits=data_bits,
        ledger_weight_bits=weight_bits,
    )


def check_exponent(exponent: int) -> None:
    """Raise FileError unless a message header can represent the grid step 2^-exponent."""
    if not -EXPONENT_OFFSET <= exponent < (1 << EXPONENT_BITS) - EXPONENT_OFFSET:
        raise FileError(f"a step of 2^{-exponent} is out of range; choose one between 2^-40 and 2^10")


@torch.no_grad()
def _sample_ledger(shared: SharedContext, q: RoundedPosterior, point: Integers, m: int, labels: Tensor) -> tuple[float, float]:
    """Return log2 q/p of the drawn weights and their data bits, in real arithmetic, independent of the coder."""
    values = shared.tensors(point, m)
    w = torch.from_numpy(np.ldexp(point.astype(np.float64), -m))
    mean, std = torch.from_numpy(q.mean), torch.from_numpy(q.std)
    nats = torch.distributions.Normal(mean, std).log_prob(w).sum()
    for weight in shared.model.weights:
        nats = nats - weight.prior().log_prob(values[weight.name]).sum()
    data, size = 0.0, shared.model.evaluation_batch
    with evaluating(shared.model.network), shared.model.holding(values):
        for x, y in zip(shared.inputs.split(size), labels.split(size), strict=True):
            data += float(shared.likelihood.bits(shared.model.outputs(x), y).sum())
    return float(nats_to_bits(nats)), data


def message_config(config: Config) -> Config:
    """Return the configuration with which messages train; see :func:`bitsback.formats.repeatable.repeatable`."""
    return repeatable(config).model_copy(update={"ledger": LedgerSettings(samples=1), "logging": LoggingSettings()})


def check_sendable(experiment: Experiment) -> None:
    """Raise the error that would prevent writing a message after training; only a short payload cannot be foreseen.

    Raises:
        LayerError: if a weight has a point posterior.
        FileError: if the targets are neither labels nor counts, or the receiver cannot know which of them are coded.
        PriorError: if a prior does not code weights one by one.
        ConfigError: if several processes train together.
    """
    check_alone()
    check_targets(experiment)
    SharedContext(experiment.model, experiment.likelihood, experiment.dataset.train.inputs).check()
    densities_of(experiment.model)


@dataclass(frozen=True)
class Sender:
    """Trained experiment from which messages with different payloads are sent.

    Attributes:
        experiment: trained experiment in float64.
        shared: its model, likelihood and inputs.
        states: digests of the training; empty for a run, which was trained before.

    >>> from bitsback.config import Config
    >>> from bitsback.training import TrainingSettings
    >>> sender = Sender.train(Config(training=TrainingSettings(epochs=2)), progress=False)
    >>> sent = sender.send(bytes(range(256)) * 4)
    >>> abs(sent.overhead_bits) < 512 + 0.005 * sent.net_bits
    True
    """

    experiment: Experiment
    shared: SharedContext
    states: tuple[StateDigest, ...] = ()

    @classmethod
    def train(cls, config: Config, *, progress: bool = True) -> "Sender":
        """Train a configuration as :func:`message_config` says, after :func:`check_sendable`.

        Args:
            config: what to train.
            progress: show progress bars.

        Returns:
            a sender whose messages hold digests of the training.
        """
        experiment = Experiment.build(message_config(config))
        check_sendable(experiment)
        steps = steps_of(experiment.config.training, len(experiment.dataset.train))
        watch = Recording(steps, experiment.likelihood)
        experiment.train(None, progress=progress, watch=watch)
        return replace(cls.of(experiment), states=tuple(watch.found))

    @classmethod
    def of_run(cls, run: Run) -> "Sender":
        """Return a sender of a finished run; the receiver will repeat the run's own training."""
        run.ledger()  # raises for a run that has not finished
        run.check_repeatable()
        return cls.of(run.experiment())

    @classmethod
    def of(cls, experiment: Experiment) -> "Sender":
        """Return a sender of a trained experiment, with its learned numbers rounded to their grids.

        Raises:
            FileError: if the targets are neither labels nor counts, or the receiver cannot know which of them are coded.
        """
        check_targets(experiment)
        experiment = experiment.double()
        SideInformation.of(experiment.model, experiment.likelihood).round()
        train = experiment.dataset.train.in_memory()
        return cls(experiment, SharedContext(experiment.model, experiment.likelihood, train.inputs, blank(train.targets)))

    def send(self, payload: bytes, *, exponent: int | None = None, pad: bool = False) -> Sent:
        """Encode the message that carries a payload; see :func:`bitsback.formats.message.write.send`.

        Args:
            payload: any bytes.
            exponent: m of the grid step 2^-m of the weights; default: a power of two below the smallest std.
            pad: append random bytes to a payload that is too short; the receiver drops them.

        Returns:
            the message and its sizes in bits.

        Raises:
            PayloadTooShortError: if the payload is too short and ``pad`` is false.
        """
        # a loop: with other bits at the end other weights are drawn, and that may take more bits than were missing
        targets, added = self.experiment.dataset.train.targets, b""
        while True:
            try:
                return send(
                    self.shared,
                    targets,
                    payload + added,
                    self._settings(),
                    exponent=exponent,
                    padding_bytes=len(added),
                    states=self.states,
                )
            except PayloadTooShortError as error:
                if not pad:
                    raise
                added += os.urandom(bits_to_bytes(error.missing_bits))

    def _settings(self) -> dict[str, Any]:
        config, model = self.experiment.config, self.experiment.model
        training = config.training.model_copy(update={"threads": threads_for(config.training, model)})
        tree = to_tree(config.model_copy(update={"training": training}), MESSAGE_SECTIONS)
        if "classes" in tree["likelihood"]:
            tree["likelihood"]["classes"] = self.experiment.likelihood.outputs(self.experiment.dataset.train.targets)
        shape = list(self.experiment.dataset.train.targets.shape[1:])
        stated = {"target_shape": shape, "coded": self.shared.coded_digest()}
        return {**tree, **{name: value for name, value in stated.items() if value}}  # scalar targets, all coded: the default
