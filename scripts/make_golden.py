"""Write the files that every later version must decode to the same numbers, and say what is in them.

    python scripts/make_golden.py [DIRECTORY]
    python scripts/make_golden.py --check [DIRECTORY]

Every NAME.bb stands beside a NAME.json with SHA-256 digests of what it decodes to; tables.json has those of the tables that
belong to the format. With --check nothing is written, and the digests of the decoded files are printed as JSON. NAME_1.bb are
what version 1 of the format was where another is written now, and are only checked. The codec that factory.bb names is
tests/golden/own_codec.py.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from bitsback.coding.categorical import LABEL_TOTAL_BITS, _exponentials, frequencies
from bitsback.coding.densities import NORMAL, StandardDensity
from bitsback.coding.relative_entropy import STANDARD_STEP
from bitsback.coding.tables import PriorTable
from bitsback.config import Config, Experiment
from bitsback.formats.config_text import bases
from bitsback.formats.config_tree import CODEC_FACTORY, from_tree
from bitsback.formats.container import BitReader, unseal
from bitsback.formats.message.read import receive_file
from bitsback.formats.message.write import Sender
from bitsback.formats.model_file.factory_codec import FACTORY
from bitsback.formats.model_file.grid_search import decimal_content
from bitsback.formats.model_file.read import LoadedModel, decode
from bitsback.formats.model_file.write import pack_experiment
from bitsback.formats.prequential.preamble import Head
from bitsback.formats.prequential.read import receive_prequential
from bitsback.formats.prequential.walk import Walk
from bitsback.formats.prequential.write import prequential
from bitsback.formats.repeatable import RefundLostError
from bitsback.formats.text.text import decode_text, send_text
from bitsback.formats.two_part import decode_two_part, send_two_part
from bitsback.priors import AdaptiveMixturePrior, StudentTPrior
from bitsback.priors.exact_densities import STANDARD, density_of

TESTS = Path(__file__).resolve().parent.parent / "tests"
if str(TESTS) not in sys.path:  # where the codec of factory.bb is imported from
    sys.path.insert(0, str(TESTS))
GOLDEN = TESTS / "golden"
OWN_CODEC = "golden.own_codec:codec"
PAYLOAD = b"".join(hashlib.sha256(bytes([k])).digest() for k in range(64)) + b"end"
"""2,051 bytes: no whole number of words."""

TEXT = "".join(f"{k} bottles of beer on the wall, {k} bottles of beer. Caf\u00e9!\r\n" for k in range(99, 59, -1)).encode()
OF_TOKENS = {"kind": "categorical", "ignore": -100, "class_axis": -1}

FAST = {"epochs": 30, "threads": 1, "optimizer": {"lr": 0.03, "log_std_lr": 0.06}}
DIGITS = {"kind": "digits", "limit": 200}
MIXTURE = {"kind": "adaptive_mixture", "components": 3, "scale": 0.4}
CONV = [
    {"Conv2d": {"out_channels": 3, "kernel_size": 3}},
    "BatchNorm2d",
    "ReLU",
    {"MaxPool2d": {"kernel_size": 2}},
    "Flatten",
    "Linear",
]
MODELS: dict[str, dict[str, Any]] = {
    "blocks_gaussian": {"data": DIGITS, "network": ["Flatten", "Linear"], "pack": {"codec": "relative_entropy"}},
    "blocks_horseshoe_conv": {
        "data": DIGITS,
        "network": CONV,
        "prior": {"kind": "horseshoe", "scale": 0.2},
        "prior_overrides": {"*.bias": {"kind": "laplace", "scale": 0.1}},
        "pack": {"codec": "relative_entropy", "key": 7, "tuning": {"steps": 5, "balance_steps": 5, "groups": 3}},
    },
    "blocks_mixture": {
        "data": DIGITS,
        "network": ["Flatten", {"Linear": {"out_features": 4}}, "Tanh", "Linear"],
        "prior": MIXTURE | {"per": "model"},
        "pack": {"codec": "relative_entropy", "index_bits": 10},
    },
    "quantised_permuted": {
        "data": {"kind": "friedman", "examples": 200, "scaling": "standard"},
        "network": [{"Linear": {"out_features": 12}}, "ReLU", {"Linear": {"out_features": 6}}, "ReLU", "Linear"],
        "prior": {"kind": "student_t", "scale": 0.3},
        "prior_overrides": {"linear1.weight": {"kind": "group_gaussian"}},
        "likelihood": {"kind": "gaussian", "target_step": 0.01},
        "pack": {"codec": "quantised"},
    },
    "quantised_mixture": {
        "data": DIGITS,
        "network": CONV,
        "prior": MIXTURE,
        "bayesian": {"exclude": ["linear1.bias"]},
        "pack": {"codec": "quantised", "quantising": {"trade_off": 0.5}},
    },
    "factory": {
        "data": {"kind": "friedman", "examples": 200, "scaling": "standard"},
        "network": [{"Linear": {"out_features": 4}}, "Tanh", "Linear"],
        "prior": {"kind": "laplace", "scale": 0.3},
        "likelihood": {"kind": "gaussian", "target_step": 0.01},
        "pack": {"codec": "factory", "factory": OWN_CODEC},
    },
}  # fmt: skip
MESSAGE = {
    "data": DIGITS,
    "network": ["Flatten", {"Linear": {"out_features": 4}}, "ReLU", "Linear"],
    "prior": {"kind": "laplace", "scale": 0.2},
}

COUNTS = MESSAGE | {
    "network": ["Flatten", "Linear"],
    "likelihood": {"kind": "negative_binomial"},
    "pack": {"codec": "quantised"},
}
"""The digits, as counts."""

PREQUENTIAL = {
    "data": DIGITS,
    "network": [
        {"Conv2d": {"out_channels": 16, "kernel_size": 4, "stride": 2, "bias": False}},
        "BatchNorm2d",
        "ReLU",
        {"AvgPool2d": {"kernel_size": 2, "stride": 1}},
        "Flatten",
        "Linear",
    ],
    "posterior": {"kind": "point"},
    "prior": {"kind": "gaussian", "scale": 1.0, "learn": "none"},
    "training": {
        "epochs": 10,
        "batch_size": 32,
        "threads": 1,
        "optimizer": {"name": "Adam", "lr": 0.02},
        "augment": {"shift_pixels": 0.5, "rotate_degrees": 8, "zoom": 0.1, "shear": 0.1},
    },
    "prequential": {"blocks": [16, 48, 112, 200], "predict": "ensemble", "members": 2, "least_steps": 60},
}
"""A receiver trains again, in float64: between instruction sets its predictions differ by 1e-14 nats, where the coder rounds
them to 2^-6."""


def configured(parts: dict[str, Any]) -> Config:
    """The configuration of one file."""
    return Config.model_validate({"training": FAST, **parts, "network": {"kind": "sequential", "layers": parts["network"]}})


def digest(*parts: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(b"".join(parts)).hexdigest()


def weights_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """Of the float32 bytes of tensors, sorted by name."""
    return digest(*(t.detach().float().numpy().astype("<f4").tobytes() for _, t in sorted(named, key=lambda pair: pair[0])))


def labels_digest(labels: np.ndarray) -> str:
    """Of the labels as 64-bit integers."""
    return digest(labels.astype("<i8").tobytes())


def model_tensors(loaded: LoadedModel) -> list[tuple[str, Tensor]]:
    """Everything that a model file says in numbers, as it stands there."""
    likelihood = [(f"likelihood.{name}", getattr(loaded.likelihood, name)) for name in loaded.likelihood.grids()]
    weights = [(weight.name, weight.posterior.mean) for weight in loaded.model.weights]
    priors = [
        (f"prior {weights[0].name}.{name}", getattr(prior, name))
        for prior, weights in loaded.model.weights_by_prior()
        for name in prior.grids()
    ]
    scaling = [("input mean", loaded._scaling.shift), ("input scale", loaded._scaling.scale)]
    return [*weights, *priors, *loaded.model.deterministic(), *loaded.model.statistics(), *likelihood, *scaling]


def message_facts(path: Path) -> dict[str, str]:
    """Digests of a message's weights and labels, and of its payload where the training here ends as the sender's did."""
    kind = str(unseal(path.read_bytes(), path.name)[0])
    with TemporaryDirectory() as place:
        out = Path(place) / "out"
        with suppress(RefundLostError):
            receive_file(path, out, progress=False)
        named = {name: torch.from_numpy(array) for name, array in load_file(out / "model.safetensors").items()}
        found = {"weights": weights_digest(named.items()), "labels": labels_digest(np.load(out / "labels.npy"))}
        if (out / "payload").exists():
            found["payload"] = digest((out / "payload").read_bytes())
    return {"kind": kind, **found}


def prequential_facts(path: Path) -> dict[str, Any]:
    """Return digests of the labels and of the tables that code them, and the cost of each block in thousandths of a bit."""
    head = Head.take(BitReader(unseal(path.read_bytes(), path.name)[1]))
    with TemporaryDirectory() as place:
        labels = receive_prequential(path, Path(place) / "out", progress=False)
    config = from_tree(head.settings)
    walk = Walk(config, config.data.load_inputs().train.inputs, head.settings["likelihood"]["classes"])
    tables: list[np.ndarray] = []

    def answer(number: int, predictions: np.ndarray) -> np.ndarray:
        tables.append(frequencies(predictions))
        start = walk.ends[number - 1] if number else 0
        return labels[walk.order[start : walk.ends[number]]]

    blocks, _ = walk.run(answer, progress=False)
    millibits = []
    for block, table in zip(blocks, tables, strict=True):
        counts = table[np.arange(len(table)), labels[walk.order[block.start : block.end]]]
        millibits.append(round(1000 * float((LABEL_TOTAL_BITS - np.log2(counts)).sum())))
    found = digest(*(table.astype("<i8").tobytes() for table in tables))
    return {"kind": "prequential", "labels": labels_digest(labels), "label_tables": found, "block_millibits": millibits}


def facts(path: Path) -> dict[str, Any]:
    """Kind, and digests of what a file decodes to; all but the payload of a message are the same on any machine.

    A prequential file is trained on again, see ``PREQUENTIAL``. What version 1 of the format wrote is read as far as it can be.
    """
    content = path.read_bytes()
    kind = str(unseal(content, path.name)[0])
    if kind.startswith("message"):
        return message_facts(path)
    if kind == "prequential_1":
        return {"kind": kind}  # refused: its training is no longer repeated
    if kind == "prequential":
        return prequential_facts(path)
    if kind == "text":
        read = decode_text(content, path.name, progress=False)
        return {"kind": kind, "weights": weights_digest(model_tensors(read.loaded)), "text": digest(read.content)}
    if kind == "two_part":
        received = decode_two_part(content, path.name)
        weights = weights_digest(model_tensors(received.loaded))
        return {"kind": kind, "weights": weights, "labels": labels_digest(received.labels)}
    loaded = decode(content, path.name, [f"{CODEC_FACTORY}={OWN_CODEC}"] if kind == str(FACTORY) else [])
    return {"kind": loaded.codec, "weights": weights_digest(model_tensors(loaded))}


def table_facts() -> dict[str, str]:
    """Digests of the tables that belong to the format."""
    shapes: list[StandardDensity] = [*STANDARD.values(), density_of(StudentTPrior(1.0, df=3.0), "").standard]
    shapes.append(density_of(AdaptiveMixturePrior([0.5, 0.125], [0.25, 0.75], [0.0, -1.0]), "").standard)
    tables = {f"cumulative of {s.name}": PriorTable.build(s, STANDARD_STEP).cumulative for s in shapes}
    tables |= {
        "quantiles of normal": PriorTable.build(NORMAL, STANDARD_STEP).quantiles,
        "exponentials of labels": _exponentials(),
    }
    found = {name: digest(table.astype("<i8").tobytes()) for name, table in tables.items()}
    frozen = {"configurations": bases(1), "configurations of the second list": bases(2)}
    return found | {name: digest(json.dumps(trees, separators=(",", ":")).encode()) for name, trees in frozen.items()}


def write_model(name: str, parts: dict[str, Any], directory: Path) -> None:
    """Train and pack one model, and write file and manifest."""
    experiment = Experiment.build(configured(parts))
    experiment.train(None, progress=False)
    packed = pack_experiment(experiment, progress=False)
    path = directory / f"{name}.bb"
    path.write_bytes(packed.content)
    refund = next((part.bits for part in packed.loaded.parts if part.name.startswith("order of")), None)
    about = {} if refund is None else {"refund_bits": round(-refund, 3)}
    write_json(path.with_suffix(".json"), {**facts(path), "file": digest(packed.content), **about})


def write_message(directory: Path) -> None:
    """Train and send one message."""
    sender = Sender.train(configured(MESSAGE), progress=False)
    sent = sender.send(PAYLOAD)
    path = directory / "message.bb"
    path.write_bytes(sent.content)
    found = facts(path)
    assert found["labels"] == labels_digest(sender.experiment.dataset.train.targets.numpy())
    assert found["payload"] == digest(PAYLOAD)
    write_json(path.with_suffix(".json"), {**found, "file": digest(sent.content)})


def write_two_part(directory: Path) -> None:
    """Train, and write the network with its labels; and the same means in two decimal digits."""
    experiment = Experiment.build(configured(MESSAGE | {"pack": {"codec": "quantised"}}))
    experiment.train(None, progress=False)
    contents = {"decimal": decimal_content(experiment, 2), "two_part": send_two_part(experiment, progress=False).content}
    for name, content in contents.items():
        path = directory / f"{name}.bb"
        path.write_bytes(content)
        write_json(path.with_suffix(".json"), {**facts(path), "file": digest(content)})
    assert facts(directory / "two_part.bb")["labels"] == labels_digest(experiment.dataset.train.targets.numpy())


def write_text(directory: Path) -> None:
    """Train on a text, and write the network with the text behind it."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / "text.txt"
        source.write_bytes(TEXT)
        parts = {"data": {"kind": "text", "path": str(source), "context": 50}, "likelihood": OF_TOKENS}
        network = {"kind": "lstm", "embedding": 6, "width": 12, "layers": 2}
        experiment = Experiment.build(Config.model_validate({"training": FAST, **parts, "network": network}))
        experiment.train(None, progress=False)
        content = send_text(experiment, progress=False).content
    path = directory / "text.bb"
    path.write_bytes(content)
    found = facts(path)
    assert found["text"] == digest(TEXT)
    write_json(path.with_suffix(".json"), {**found, "file": digest(content)})


def write_counts(directory: Path) -> None:
    """Train, and write the network with counts behind it."""
    experiment = Experiment.build(configured(COUNTS))
    experiment.train(None, progress=False)
    path = directory / "two_part_counts.bb"
    path.write_bytes(send_two_part(experiment, progress=False).content)
    found = facts(path)
    assert found["labels"] == labels_digest(experiment.dataset.train.targets.numpy())
    write_json(path.with_suffix(".json"), {**found, "file": digest(path.read_bytes())})


def write_prequential(directory: Path) -> None:
    """Write labels coded block by block, and the manifest."""
    config = configured(PREQUENTIAL)
    code = prequential(config, progress=False)
    path = directory / "prequential.bb"
    path.write_bytes(code.content)
    found = facts(path)
    assert found["labels"] == labels_digest(config.data.load().train.targets.numpy())
    assert all(abs(bits / 1000 - b.bits) < 0.1 for bits, b in zip(found["block_millibits"], code.blocks, strict=True))
    write_json(path.with_suffix(".json"), {**found, "file": digest(code.content)})


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", default=GOLDEN)
    parser.add_argument("--check", action="store_true", help="decode, print digests, write nothing")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.check:
        found = {path.stem: facts(path) for path in sorted(arguments.directory.glob("*.bb"))}
        print(json.dumps({**found, "tables": table_facts()}))
        return
    arguments.directory.mkdir(parents=True, exist_ok=True)
    for name, parts in MODELS.items():
        write_model(name, parts, arguments.directory)
    write_message(arguments.directory)
    write_two_part(arguments.directory)
    write_counts(arguments.directory)
    write_text(arguments.directory)
    write_prequential(arguments.directory)
    write_json(arguments.directory / "tables.json", table_facts())


if __name__ == "__main__":
    main()
