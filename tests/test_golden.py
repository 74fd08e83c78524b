"""Files that were written once decode to the same numbers for ever; the tables of the format never change.

The files are made by scripts/make_golden.py. A change that breaks these tests breaks every file that anybody holds.
"""

import binascii
import hashlib
import json
import re
import runpy
import zlib
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch

from bitsback.coding.densities import NORMAL
from bitsback.coding.elementary import exp
from bitsback.coding.tables import PriorTable
from bitsback.formats import reference_decoder as reference
from bitsback.formats.container import unseal
from bitsback.formats.kinds import all_kinds
from bitsback.formats.model_file.read import load

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "make_golden.py"))
FILES = sorted(GOLDEN.glob("*.bb"))


def manifest(path):
    return json.loads(path.with_suffix(".json").read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_decodes_to_its_numbers(path):
    stated = manifest(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == stated["file"], "the file itself has changed"
    found = SCRIPT["facts"](path)
    assert found == {key: stated[key] for key in found}
    assert found.keys() >= {"kind", "weights", "labels"} & stated.keys()  # a payload needs the sender's training again


def test_there_is_a_file_of_every_kind():
    first = {"message_1", "prequential_1"}
    assert {manifest(path)["kind"] for path in FILES} == {*all_kinds(), *first}
    assert {path.stem for path in FILES} == {
        *SCRIPT["MODELS"],
        "message",
        "decimal",
        "text",
        "two_part",
        "two_part_counts",
        "prequential",
        *first,
    }
    assert manifest(GOLDEN / "quantised_permuted.bb")["refund_bits"] > 10


def test_labels_and_network_of_a_message_of_version_1_come_out_and_its_payload_is_refused(tmp_path, run_command):
    said = run_command("receive", GOLDEN / "message_1.bb", "-o", tmp_path / "out")
    assert said.code == 1
    assert re.fullmatch(
        r"bitsback: labels and network were recovered, the payload was not: an earlier bitsback wrote the message \(format "
        r"version 1\), .* with bitsback 0.1; labels and network are in .*\n",
        said.err,
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"labels.npy", "model.safetensors"}
    assert "Only bitsback 0.1 gives the payload back" in run_command("inspect", GOLDEN / "message_1.bb").out


def test_labels_in_the_prequential_code_of_version_1_are_refused(tmp_path, run_command):
    said = run_command("receive", GOLDEN / "prequential_1.bb", "-o", tmp_path / "out")
    assert (said.code, said.out) == (1, "")
    assert re.fullmatch(r"bitsback: an earlier bitsback wrote .*prequential_1.bb .* receive it with bitsback 0.1\n", said.err)
    assert not (tmp_path / "out").exists()
    assert "200 labels in the prequential code" in run_command("inspect", GOLDEN / "prequential_1.bb").out


def test_the_specification_alone_reads_a_file():
    """FORMAT.md from the first byte to the last weight: nothing of the package but its plain reference and one table."""
    content = (GOLDEN / "blocks_gaussian.bb").read_bytes()
    assert content[:3] == b"bb\x11"
    assert len(content) <= 255
    assert binascii.crc_hqx(content[:-2], 0xFFFF) == int.from_bytes(content[-2:], "little")
    contents, place = int.from_bytes(content[3:-2], "little"), 0

    def take(width):
        nonlocal place
        place += width
        return contents >> place - width & (1 << width) - 1

    def count():
        zeros = 0
        while not take(1):
            zeros += 1
        return (1 << zeros | take(zeros)) - 1

    changed, number = take(1), take(7)
    frozen = (ROOT / "bitsback" / "formats" / "settings_1.json").read_bytes()
    tree = json.loads(frozen)[number]
    if changed:
        text = bytes(take(8) for _ in range(count()))
        changes, removals = json.loads(zlib.decompressobj(-15, zdict=frozen).decompress(text))
        for *path, key, value in changes:
            reduce(dict.__getitem__, path, tree)[key] = value
        for *path, key in removals:
            del reduce(dict.__getitem__, path, tree)[key]
    assert tree["network"]["layers"] == ["Flatten", "Linear"]
    assert (tree["prior"]["kind"], tree["inputs"], tree["likelihood"]["classes"]) == ("gaussian", [1, 8, 8], 10)

    sizes = [640, 10]  # weight and bias, each with a scale of its own
    scales = [float(exp(np.array(-16 + take(10) / 32))) for _ in sizes]
    assert not take(1)  # no guard
    index_bits, key, blocks = take(5), count(), count()
    table = PriorTable.build(NORMAL, 2.0**-16).cumulative.tolist()
    quantiles = [reference.quantile(table, level) for level in range(65536)]
    weights = [0.0] * sum(sizes)
    for block in range(blocks):
        places = reference.members(sizes, blocks, block, key)
        points = reference.block_points([quantiles] * len(places), block, take(index_bits), key)
        each = [scales[place >= sizes[0]] for place in places]
        for at, value in zip(places, reference.block_values(points, [0.0] * len(places), each), strict=True):
            weights[at] = value
    assert place <= 8 * (len(content) - 5) < place + 8
    assert contents >> place == 0
    named = load(GOLDEN / "blocks_gaussian.bb").tensors()
    assert named["linear1.weight"].flatten().tolist() + named["linear1.bias"].tolist() == weights


def test_a_decoded_model_computes():
    loaded = load(GOLDEN / "blocks_horseshoe_conv.bb")
    means = loaded.predict(torch.zeros(2, 1, 8, 8))
    assert means.shape == (2, 10)
    assert torch.allclose(means.sum(1), torch.ones(2))


def test_the_tables_of_the_format_never_change():
    stated = json.loads((GOLDEN / "tables.json").read_text())
    found = SCRIPT["table_facts"]()
    assert sorted(found) == sorted(stated)
    assert [name for name in found if found[name] != stated[name]] == []


def test_the_specification_states_the_digests():
    stated = json.loads((GOLDEN / "tables.json").read_text())
    text = (ROOT / "bitsback" / "formats" / "FORMAT.md").read_text()
    for name in ("cumulative of normal", "quantiles of normal", "exponentials of labels", "configurations"):
        assert stated[name] in text, name


def test_the_weights_of_the_file_of_ones_own_codec_are_its_half_floats():
    """FORMAT.md, section 20: zeros to a whole byte, then what the codec wrote, to the end."""
    content = (GOLDEN / "factory.bb").read_bytes()
    loaded = load(GOLDEN / "factory.bb", [f"codec.factory={SCRIPT['OWN_CODEC']}"])
    means = np.concatenate([weight.posterior.mean.detach().numpy().ravel() for weight in loaded.model.weights])
    assert unseal(content, "the file")[1].endswith(means.astype("<f2").tobytes())
    assert {part.name: part.bits for part in loaded.parts}["body of the codec"] == 16 * len(means)
