"""Kinds of files are named in one place each, and a codec of one's own is called only when its user says so."""

import ast
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from bitsback.config import Config, Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.errors import BitsbackError, ConfigError, FileError
from bitsback.formats.config_text import put_settings, take_settings
from bitsback.formats.container import BitReader, BitWriter, seal, unseal
from bitsback.formats.inspect import inspect_file
from bitsback.formats.kinds import HOMES, FileKind, all_kinds, register_kind
from bitsback.formats.model_file._codec import codec_named
from bitsback.formats.model_file.factory_codec import FACTORY
from bitsback.formats.model_file.read import decode
from bitsback.formats.model_file.write import pack_experiment
from bitsback.formats.two_part import send_two_part

PACKAGE = Path(__file__).parent.parent / "bitsback"
NAMES = {*all_kinds(), *(f"{name}_1" for name in all_kinds())}
VOCABULARY = {"cli/send.py", "cli/pack.py", "analysis/codelengths.py"}
"""Where a kind's name is also what users write or read: values of --code and --codec, rows of a table."""

OWN = "test_codec_contract:Halves"
PLACE = f"codec.factory={OWN}"


class Halves:
    """Means in float16, deflated."""

    def write(self, experiment):
        means = [weight.posterior.mean.detach().numpy().astype("<f2").tobytes() for weight in experiment.model.weights]
        return zlib.compress(b"".join(means))

    def read(self, body, model):
        flat = torch.from_numpy(np.frombuffer(zlib.decompress(body), "<f2").astype(np.float32))
        parts = flat.split([weight.posterior.numel for weight in model.weights])
        return {w.name: part.reshape(w.posterior.mean.shape) for w, part in zip(model.weights, parts, strict=True)}


class Endless(Halves):
    """Finds weights that are not numbers."""

    def read(self, body, model):
        return {name: part * torch.inf for name, part in super().read(body, model).items()}


@pytest.fixture(scope="module")
def packed():
    experiment = Experiment.build(Config.model_validate({"data": {"kind": "digits", "limit": 60}, "training": {"epochs": 1}}))
    experiment.train(None, progress=False)
    means = {weight.name: weight.posterior.mean.detach().clone() for weight in experiment.model.weights}
    return experiment, means, pack_experiment(experiment, PackSettings(codec="factory", factory=OWN), progress=False)


def literals(path):
    """Names of kinds in a module, but for the user's vocabulary: Literal[...], codec="...", and tables of settings."""
    tree = ast.parse(path.read_text())
    allowed = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "Literal":
            allowed |= set(ast.walk(node))
        if isinstance(node, ast.keyword) and node.arg in ("codec", "desc"):
            allowed |= set(ast.walk(node.value))
    found = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in allowed}
    return {value for value in found if isinstance(value, str)} & (NAMES - {"factory"})


def test_only_its_home_names_a_kind():
    homes = {
        "formats/message": {"message", "message_1"},
        "formats/prequential": {"prequential", "prequential_1"},
        "formats/two_part.py": {"two_part"},
        "formats/model_file/block_codec.py": {"relative_entropy"},
        "formats/model_file/grid_codec.py": {"quantised", "decimal"},
    }
    for path in sorted(one for room in ("formats", "analysis", "cli") for one in (PACKAGE / room).rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        own = set().union(*(names for home, names in homes.items() if place.startswith(home)))
        assert place in VOCABULARY or literals(path) <= own, place


def test_every_kind_has_one_number_and_its_version():
    assert [kind.number for kind in all_kinds().values()] == list(HOMES)
    assert {name: kind.version for name, kind in all_kinds().items() if kind.version != 1} == {"message": 2, "prequential": 2}
    with pytest.raises(BitsbackError, match="file kind 6 is registered twice; choose another number"):
        register_kind(FileKind(6, "another"))
    assert codec_named("decimal").write is None


def test_a_codec_of_ones_own_comes_back(packed, tmp_path):
    _, means, result = packed
    assert result.codec == "factory"
    loaded = decode(result.content, "the file", [PLACE])
    for weight in loaded.model.weights:
        assert torch.equal(weight.posterior.mean, means[weight.name].half().float())
    assert sum(part.bits for part in loaded.parts) == 8 * len(result.content)
    (tmp_path / "own.bb").write_bytes(result.content)
    assert inspect_file(tmp_path / "own.bb", [f"--{PLACE}"])["kind"] == "factory"


def test_no_codec_that_a_file_names_is_run_unasked(packed, monkeypatch):
    monkeypatch.setattr(Halves, "read", lambda *_: pytest.fail("called"))
    content = packed[2].content
    with pytest.raises(FileError, match=f"no code that a file names is run unasked; if you trust it, add --{PLACE}"):
        decode(content, "the file")
    with pytest.raises(FileError, match=r"'codec\.factory' is fixed by the file"):
        decode(content, "the file", ["codec.factory=os:getcwd"])


def renamed(content, codec):
    """The file with another section ``codec``, and a checksum that fits."""
    kind, contents = unseal(content, "the file")
    reader, writer = BitReader(contents), BitWriter()
    put_settings(writer, {**take_settings(reader), "codec": codec})
    bits = {part.name: part.bits for part in decode(content, "the file", [PLACE]).parts}
    names = list(bits)
    width = sum(bits[name] for name in names[2 : names.index("guard of the priors") + 1])
    writer.put(reader.take(round(width)), round(width))
    return seal(kind, writer.to_bytes() + reader.rest())


@pytest.mark.parametrize("codec", [None, 5, {}, {"factory": 5}, {"factory": "os.system"}, {"factory": "a:b\nc"}, [[]]])
def test_a_file_that_names_no_codec(packed, codec):
    with pytest.raises(FileError, match="the file does not say which codec wrote it; it is damaged"):
        decode(renamed(packed[2].content, codec), "the file", [PLACE])


def test_bodies_that_are_not_the_codecs(packed):
    content = packed[2].content
    other = renamed(content, {"factory": "test_codec_contract:Endless"})
    with pytest.raises(FileError, match="does not find the file's weights, or not all are finite"):
        decode(other, "the file", ["codec.factory=test_codec_contract:Endless"])
    cut = seal(FACTORY, unseal(content, "the file")[1][:-9])
    with pytest.raises(ConfigError, match="Halves fails to read: "):
        decode(cut, "the file", [PLACE])


def test_other_files_have_no_such_place(packed):
    experiment = packed[0]
    plain = pack_experiment(experiment, PackSettings(codec="quantised"), progress=False).content
    with pytest.raises(FileError, match="says no place"):
        decode(plain, "the file", [PLACE])


def test_settings_that_do_not_fit(packed):
    experiment = packed[0]
    for wrong in ({"codec": "factory"}, {"factory": OWN}, {"codec": "factory", "factory": "no function"}):
        with pytest.raises(ValidationError):
            PackSettings(**wrong)
    with pytest.raises(ConfigError, match=r"pack.factory: cannot import 'no_such_codec:here'"):
        pack_experiment(experiment, PackSettings(codec="factory", factory="no_such_codec:here"), progress=False)
    with pytest.raises(FileError, match="the budget is 20"):
        pack_experiment(experiment, PackSettings(codec="factory", factory=OWN, budget_bytes=20), progress=False)
    with pytest.raises(FileError, match="labels stand behind networks of the codecs quantised and relative_entropy only"):
        send_two_part(experiment, PackSettings(codec="factory", factory=OWN), progress=False)
