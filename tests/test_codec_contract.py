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
        "formats/text": {"text"},
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


NO_NAMES = [
    "os.system",
    "..x:y",
    ".:f",
    ".x:y",
    "x.:y",
    "x..z:y",
    ":f",
    "x:",
    "x:y:z",
    "x:y.z",
    "1x:y",
    "../x:y",
    "x/z:y",
    "a:b\nc",
    "a:b\n",
]
"""What is not of the form package.module:function."""


@pytest.mark.parametrize("codec", [None, 5, {}, {"factory": 5}, [[]], *({"factory": name} for name in NO_NAMES)])
def test_a_file_that_names_no_codec(packed, codec):
    with pytest.raises(FileError, match="the file does not say which codec wrote it; it is damaged"):
        decode(renamed(packed[2].content, codec), "the file", [PLACE])


def test_bodies_that_are_not_the_codecs(packed):
    content = packed[2].content
    other = renamed(content, {"factory": "test_codec_contract:Endless"})
    with pytest.raises(FileError, match="does not find the file's weights, or not all are finite"):
        decode(other, "the file", ["codec.factory=test_codec_contract:Endless"])
    cut = seal(FACTORY, unseal(content, "the file")[1][:-9])
    with pytest.raises(FileError, match=r"the codec test_codec_contract:Halves could not read the file's body \(error: "):
        decode(cut, "the file", [PLACE])


@pytest.mark.parametrize("name", [f"{'a' * 198}:bc", "a" * 10**5])
def test_a_file_whose_name_of_a_codec_is_too_long(packed, name):
    with pytest.raises(FileError, match=r"has [\d,]+ characters, and at most 200 are allowed; it is damaged$") as refused:
        decode(renamed(packed[2].content, {"factory": name}), "the file", [f"codec.factory={name}"])
    assert len(str(refused.value)) < 120


def test_a_codec_that_cannot_be_imported_is_the_readers_setting(packed):
    with pytest.raises(ConfigError, match=r"^codec.factory: cannot import 'test_codec_contract:nothing'"):
        decode(
            renamed(packed[2].content, {"factory": "test_codec_contract:nothing"}),
            "the file",
            ["codec.factory=test_codec_contract:nothing"],
        )


class Talkative(Exception):
    """Quotes all that it was given."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Talkative("two\nlines " * 1000), r"\(Talkative: two lines two .*\.\.\.\)"),
        (AssertionError(), r"\(AssertionError\)"),
        (ConfigError("pack.factory: wrong"), r"\(ConfigError: pack.factory: wrong\)"),
    ],
)
def test_what_a_codec_raises_is_said_of_the_file_and_cut_short(packed, monkeypatch, error, said):
    def read(*_):
        raise error

    monkeypatch.setattr(Halves, "read", read)
    with pytest.raises(FileError, match=f"^the codec {OWN} could not read the file's body {said}; it is damaged") as refused:
        decode(packed[2].content, "the file", [PLACE])
    assert len(str(refused.value)) < 400


class OddTensor(torch.Tensor):
    """Fails whatever is done with it."""

    @classmethod
    def __torch_function__(cls, *_, **__):
        raise RuntimeError("odd")


class OddMapping(dict):
    """Has keys, and nothing behind them."""

    def __getitem__(self, key):
        raise RuntimeError("odd")


ODD = {
    "nothing": lambda weights: None,
    "a list": lambda weights: [*weights.values()],
    "arrays": lambda weights: {name: value.numpy() for name, value in weights.items()},
    "a weight too many": lambda weights: {**weights, "other": torch.zeros(1)},
    "a key of another type": lambda weights: {**weights, 5: torch.zeros(1)},
    "a tensor as key": lambda weights: {**weights, torch.zeros(2): torch.zeros(1)},
    "other shapes": lambda weights: {name: value[None] for name, value in weights.items()},
    "tensors without storage": lambda weights: {name: value.to("meta") for name, value in weights.items()},
    "sparse tensors": lambda weights: {name: value.to_sparse() for name, value in weights.items()},
    "quantised tensors": lambda weights: {
        name: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8) for name, value in weights.items()
    },
    "nested tensors": lambda weights: {name: torch.nested.nested_tensor([value, value]) for name, value in weights.items()},
    "complex tensors": lambda weights: {name: value + 0j for name, value in weights.items()},
    "too large for float32": lambda weights: {name: value.double() + 1e300 for name, value in weights.items()},
    "tensors that fail": lambda weights: {name: value.as_subclass(OddTensor) for name, value in weights.items()},
    "a mapping that fails": OddMapping,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("odd", ODD)
def test_odd_things_that_a_codec_returns_are_refused_in_one_sentence(packed, monkeypatch, odd):
    read = Halves.read
    monkeypatch.setattr(Halves, "read", lambda *given: ODD[odd](read(*given)))
    with pytest.raises(FileError, match=f"^{OWN} does not find the file's weights, or not all are finite; it is damaged"):
        decode(packed[2].content, "the file", [PLACE])


def test_weights_in_float64_or_with_a_gradient_are_taken_over(packed, monkeypatch):
    _, means, result = packed
    read = Halves.read
    monkeypatch.setattr(
        Halves, "read", lambda *given: {name: value.double().requires_grad_() for name, value in read(*given).items()}
    )
    for weight in decode(result.content, "the file", [PLACE]).model.weights:
        assert torch.equal(weight.posterior.mean, means[weight.name].half().float())


def test_other_files_have_no_such_place(packed):
    experiment = packed[0]
    plain = pack_experiment(experiment, PackSettings(codec="quantised"), progress=False).content
    with pytest.raises(FileError, match="says no place"):
        decode(plain, "the file", [PLACE])


def test_settings_that_do_not_fit(packed):
    experiment = packed[0]
    for wrong in ({"codec": "factory"}, {"factory": OWN}):
        with pytest.raises(ValidationError):
            PackSettings(**wrong)
    for name in (*NO_NAMES, f"{'a' * 198}:bc"):
        with pytest.raises(ValidationError):
            PackSettings(codec="factory", factory=name)
    assert PackSettings(codec="factory", factory=f"{'a' * 98}.b{'c' * 98}:d").factory
    with pytest.raises(ConfigError, match=r"pack.factory: cannot import 'no_such_codec:here'"):
        pack_experiment(experiment, PackSettings(codec="factory", factory="no_such_codec:here"), progress=False)
    with pytest.raises(FileError, match="the budget is 20"):
        pack_experiment(experiment, PackSettings(codec="factory", factory=OWN, budget_bytes=20), progress=False)
    with pytest.raises(FileError, match="labels stand behind networks of the codecs quantised and relative_entropy only"):
        send_two_part(experiment, PackSettings(codec="factory", factory=OWN), progress=False)
