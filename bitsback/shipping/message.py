"""send and receive: from a configuration and a payload to a message, and back to payload, labels and network."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitsback import limits
from bitsback.bitstream.ans import Integers
from bitsback.bitstream.container import BitReader, unseal
from bitsback.bitstream.grid import RoundedPosterior
from bitsback.bitstream.header import Header
from bitsback.bitstream.labels import check_likelihood
from bitsback.bitstream.message import PayloadTooShortError, Received, RefundLostError, receive, send
from bitsback.bitstream.sent import Sent
from bitsback.bitstream.setting import Setting, placed_priors
from bitsback.bitstream.side import SideNumbers
from bitsback.bitstream.state import StateDigest, digest_steps
from bitsback.config import Config, Experiment, Run
from bitsback.config.labels import as_labels
from bitsback.errors import FileError
from bitsback.files import check_new_directory, whole_directory, write_array, write_bytes, write_tensors
from bitsback.shipping.repeat import Checking, Recording, check_alone, repeatable, steps_of
from bitsback.shipping.size import check_data, check_size, check_steps
from bitsback.shipping.tree import MESSAGE_SECTIONS, from_tree, to_tree
from bitsback.training import LedgerSettings, LoggingSettings
from bitsback.training.train import threads_for
from bitsback.units import bits_to_bytes

FIRST_KIND = "message_1"
"""Of version 1: its weights and labels are found as ever, its payload is locked by a training that is no longer there."""


def message_config(config: Config) -> Config:
    """The configuration as messages train it: see :func:`bitsback.shipping.repeat.repeatable`."""
    return repeatable(config).model_copy(update={"ledger": LedgerSettings(samples=1), "logging": LoggingSettings()})


def check_sendable(experiment: Experiment) -> None:
    """Raise what would keep a message from being written once the network is trained: everything but a short payload.

    Raises:
        LayerError: for a point posterior.
        FileError: for targets that are not labels.
        PriorError: for a prior that does not code weights one by one.
        ConfigError: for one of several processes.
    """
    check_alone()
    likelihood = experiment.likelihood
    check_likelihood(likelihood, likelihood.outputs(experiment.dataset.train.targets))
    Setting(experiment.model, likelihood, experiment.dataset.train.inputs).check()
    placed_priors(experiment.model)


@dataclass(frozen=True)
class Sender:
    """A trained experiment that is ready to carry payloads.

    >>> from bitsback.config import Config
    >>> from bitsback.training import TrainingSettings
    >>> sender = Sender.train(Config(training=TrainingSettings(epochs=2)), progress=False)
    >>> sent = sender.send(bytes(range(256)) * 4)
    >>> abs(sent.overhead_bits) < 512 + 0.005 * sent.net_bits
    True
    """

    experiment: Experiment
    setting: Setting
    states: tuple[StateDigest, ...] = ()
    """Of the training under way; none of a run, which was trained before."""

    @classmethod
    def train(cls, config: Config, *, progress: bool = True) -> "Sender":
        """Train as :func:`message_config` says, after :func:`check_sendable`."""
        experiment = Experiment.build(message_config(config))
        check_sendable(experiment)
        steps = steps_of(experiment.config.training, len(experiment.dataset.train))
        watch = Recording(steps, experiment.likelihood)
        experiment.train(None, progress=progress, watch=watch)
        return replace(cls.of(experiment), states=tuple(watch.found))

    @classmethod
    def of_run(cls, run: Run) -> "Sender":
        """A finished run as it is; its receiver repeats the run's own training."""
        run.ledger()  # raises for a run that has not finished
        run.check_repeatable()
        return cls.of(run.experiment())

    @classmethod
    def of(cls, experiment: Experiment) -> "Sender":
        """A trained experiment."""
        experiment = experiment.double()
        SideNumbers.of(experiment.model, experiment.likelihood).round()
        return cls(experiment, Setting(experiment.model, experiment.likelihood, experiment.dataset.train.inputs))

    def send(self, payload: bytes, *, exponent: int | None = None, pad: bool = False) -> Sent:
        """The message that carries ``payload``; see :func:`bitsback.bitstream.message.send`.

        With ``pad``, a payload that is too short is followed by random bytes, which the receiver drops.
        """
        targets, added = self.experiment.dataset.train.targets, b""
        while True:
            try:
                return send(
                    self.setting,
                    targets,
                    payload + added,
                    self._settings(),
                    exponent=exponent,
                    padding_bytes=len(added),
                    states=self.states,
                )
            except PayloadTooShortError as fault:
                if not pad:
                    raise
                added += os.urandom(bits_to_bytes(fault.missing_bits))

    def _settings(self) -> dict[str, Any]:
        config, model = self.experiment.config, self.experiment.model
        training = config.training.model_copy(update={"threads": threads_for(config.training, model)})
        tree = to_tree(config.model_copy(update={"training": training}), MESSAGE_SECTIONS)
        if "classes" in tree["likelihood"]:
            tree["likelihood"]["classes"] = self.experiment.likelihood.outputs(self.experiment.dataset.train.targets)
        shape = list(self.experiment.dataset.train.targets.shape[1:])
        return {**tree, "target_shape": shape} if shape else tree  # one label for each example goes without saying


def receive_file(path: Path, directory: Path, places: Sequence[str] = (), *, progress: bool = True) -> Received:
    """Decode the message in ``path`` and write ``payload``, ``labels.npy`` and ``model.safetensors`` to ``directory``.

    Args:
        path: the message.
        directory: a new directory.
        places: such as ``data.root=DIR``: where this machine keeps the inputs.

    Raises:
        FileError: for a file that is not a message or is damaged, and for inputs that differ from the sender's.
        RefundLostError: when only the payload cannot be recovered; labels and network have then been written.
    """
    check_alone()
    check_new_directory(directory)
    content = read_file(path)
    kind, contents = unseal(content, str(path))
    if kind not in ("message", FIRST_KIND):
        raise FileError(f"{path} is a model file ({kind}), not a message; use `bitsback unpack`")
    reader = BitReader(contents)
    header = Header.take(reader, version=1 if kind == FIRST_KIND else 2)
    settings = {key: value for key, value in header.settings.items() if key != "target_shape"}
    config, shape = from_tree(settings, places), _target_shape(header.settings)
    config = config.model_copy(update={"ledger": LedgerSettings(samples=1)})  # nobody reads the receiver's ledger
    if kind == FIRST_KIND:  # made in float32
        config = config.model_copy(update={"training": config.training.model_copy(update={"precision": "float32"})})
    check_data(config, str(path), len(content))
    data = config.data.load_inputs()
    check_steps(config, len(data.train), str(path))
    steps = steps_of(config.training, len(data.train))
    if len(header.states) > len(digest_steps(steps)):
        raise FileError(f"the message has digests of {len(header.states)} states of {steps:,} steps; it is damaged")
    if len(data.train) * math.prod(shape) > limits.numbers_for(len(content)) + data.train.inputs.numel():
        raise FileError("the message does not say what its targets look like; it is damaged")
    blank = torch.zeros(len(data.train), *shape, dtype=data.train.targets.dtype)
    likelihood = config.likelihood.build(data.classes)
    classes = getattr(likelihood, "classes", None)
    data = replace(data, train=replace(data.train, targets=blank), test=None, classes=classes)
    outputs, inputs = likelihood.outputs(blank), data.train.inputs
    check_size(
        config,
        inputs.shape[1:],
        outputs,
        whole=not inputs.is_floating_point(),
        file_bytes=len(content),
        examples=len(inputs),
        data_numbers=inputs.numel(),
    )
    experiment = Experiment.build(config, dataset=data).double()
    setting = Setting(experiment.model, experiment.likelihood, experiment.dataset.train.inputs)
    setting.check()

    def retrain(labels: Integers) -> RoundedPosterior:
        if kind == FIRST_KIND:
            raise RefundLostError(
                "labels and network were recovered, the payload was not: an earlier bitsback wrote the message (format version "
                "1), and this one does not repeat its training; receive it with bitsback 0.1"
            )
        targets = torch.from_numpy(labels).reshape(blank.shape).to(blank.dtype)
        told = replace(data, train=replace(data.train, targets=targets))
        again = Experiment.build(config, dataset=told)
        again.train(None, progress=progress, watch=Checking(steps, again.likelihood, header.states))
        return Setting(again.model.double(), again.likelihood, data.train.inputs).posterior()

    received, lost = receive(contents, header, reader, setting, retrain)
    labels = as_labels(received.labels.reshape(blank.shape), config.likelihood)
    named = {**received.weights, **dict(received.side)}
    with whole_directory(directory) as place:
        write_array(place / "labels.npy", labels)
        write_tensors(place / "model.safetensors", {name: _float32(t) for name, t in named.items()}, {})
        if received.payload is not None:
            write_bytes(place / "payload", received.payload)
    if lost is not None:
        raise RefundLostError(f"{lost}; labels and network are in {directory}")
    return received


def read_file(path: Path) -> bytes:
    """The bytes of a file; raises FileError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as fault:
        raise FileError(f"cannot read {path}: {fault.strerror or fault}; give an existing file") from fault


def _target_shape(settings: dict[str, Any]) -> tuple[int, ...]:
    shape = settings.get("target_shape", [])
    whole = isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape)
    if not whole:
        raise FileError("the message does not say what its targets look like; it is damaged")
    limits.TARGETS.check(math.prod(shape), "the message", FileError)
    return tuple(shape)


def _float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous().clone()
