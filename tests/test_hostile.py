"""Files that somebody damaged or built to do harm: one sentence, no output, no code, no memory taken at their word."""

import fnmatch
import re
import sys
from pathlib import Path

import pytest
import torch
from hostile import make
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsback.cli.app import main
from bitsback.errors import BitsbackError
from bitsback.formats.container import seal, unseal
from bitsback.formats.inspect import inspect_file
from bitsback.formats.kinds import all_kinds, kind_numbered
from bitsback.formats.message.read import RefundLostError, receive_file
from bitsback.formats.model_file.read import decode, load
from bitsback.formats.prequential.read import receive_prequential
from bitsback.formats.text.text import receive_text
from bitsback.formats.two_part import receive_two_part

HOSTILE = Path(__file__).parent / "hostile"
FILES = sorted(HOSTILE.glob("*.bin"))
SPARE_BYTES = 700 << 20
"""Address space that a refusal may take beyond what the process has: torch's own pools included."""

SAID = {
    "empty": "is empty; copy it again",
    "mark_alone": "is cut off after 2 bytes",
    "png": "is not a bitsback file",
    "zip": "is not a bitsback file",
    "pickle": "is not a bitsback file",
    "unknown_kind": "is of an unknown kind .8, version 1.; install a newer bitsback",
    "version_zero": "is of an unknown kind",
    "version_that_its_kind_has_not": "is of an unknown kind .2, version 2.; install a newer bitsback",
    "*_of_the_future": "has format version 3, this bitsback reads up to 2; install a newer bitsback",
    "*_truncated": "is damaged: its checksum does not fit",
    "*_halved": "is damaged: its checksum does not fit|is cut off",
    "*_extended": "is damaged: its checksum does not fit",
    "*_flipped": "is damaged: its checksum does not fit",
    "*_resealed_*": "damaged",
    "message_lanes_2^10": "the message does not end where its heads say",
    "message_lanes_*": "the message claims 2.1[15] lanes, at most 2.10 are allowed; it is damaged",
    "quantised_lanes_2^10": "does not end where its heads say",
    "quantised_lanes_*": "the file claims 2.1[15] lanes, at most 2.10 are allowed; it is damaged",
    "message_exponent_47": "too fine",
    "message_exponent_-16": "too large for exact arithmetic",
    "message_states_of_nothing": "the message has digests of 1 states of 1 steps; it is damaged",
    "message_payload_*": "the payload does not have the length that the message states; .*labels and network are in ",
    "decimal_digits_*": "the file claims weights of 1[05] decimal digits, at most 9 are allowed; it is damaged",
    "decimal_lanes_2^10": "does not end where its heads say",
    "decimal_lanes_*": "the file claims 2.1[15] lanes, at most 2.10 are allowed; it is damaged",
    "two_part_of_*": "does not say which network is in it; it is damaged",
    "factory_codec_*too_long": r"the file's name of a codec has [\d,]+ characters, and at most 200 are allowed; it is damaged",
    "factory_codec_not_given": r"decoded by calling os:mkdir, and no code that a file names is run unasked; .* add --codec.factory=os:mkdir",
    "factory_codec_other_given": "'codec.factory' is fixed by the file",
    "factory_codec_unknown_*": "codec.factory: cannot import 'golden.(own_codec:nothing|no_codec:codec)': ",
    "factory_codec_of_another_kind": "the codec os:getcwd could not read the file's body .AttributeError: .*; it is damaged, or another",
    "factory_codec_*": "the file does not say which codec wrote it; it is damaged",
    "factory_body_in*": "golden.own_codec:codec does not find the file's weights, or not all are finite; it is damaged",
    "factory_body_no_number": "golden.own_codec:codec does not find the file's weights, or not all are finite; it is damaged",
    "factory_body_*": "the codec golden.own_codec:codec could not read the file's body .error: .*; it is damaged, or another codec",
    "two_part_length_2^*": "does not say which network is in it; it is damaged",
    "two_part_length_*": "damaged|is cut off",
    "two_part_labels_missing": "does not end where its heads say",
    "two_part_labels_*": "the labels do not come back: these inputs are not the sender's, or this machine computes otherwise",
    "two_part_inputs_2^40": "names data without labels .friedman.; it is damaged",
    "two_part_inputs_elsewhere": r"needs the sender's inputs; say where they are \(--data.root=..., --data.path=...\)",
    "two_part_inputs_fewer": "the labels do not come back: these inputs are not the sender's",
    "text_of_bytes_that_are_none": "does not say how its text is made of tokens; it is damaged",
    "text_of_*": "does not say which network and how long a text is in it; it is damaged",
    "text_length_*": "does not say which network and how long a text is in it; it is damaged",
    "text_tokens_0": "does not say which network and how long a text is in it; it is damaged",
    "text_tokens_2^*": r"the file's network is too large for a file of [\d,]+ bytes",
    "text_tokens_fewer": "in part [0-9]+ of 32 of the text this machine computes other|text in .* does not come back; the file",
    "text_lanes_2^7": "does not say which network and how long a text is in it; it is damaged",
    "text_stream_*": "does not end where its heads say|does not come back; the file is damaged|computes other outputs",
    "text_digest_other": "the text in .* does not come back; the file is damaged",
    "text_outputs_other": "in part 6 of 32 of the text this machine computes other outputs than the sender's",
    "text_vocabulary_1": "does not run on the tokens of its text|heads say|is damaged",
    "text_words": "does not say how its text is made of tokens; it is damaged|configuration does not suit",
    "text_likelihood_other": "does not say how its text is made of tokens; it is damaged",
    "prequential_blocks_of_another_schedule": "the file has digests of 3 blocks, and its schedule 2; it is damaged",
    "prequential_blocks_*": r"the file claims \d+ blocks of \d+ labels; it is damaged",
    "prequential_labels_*": r"the file holds labels of [\d,]+ examples, and here are 40; give the sender's data",
    "prequential_threads_of_nobody": "does not say with how many threads its sender trained; it is damaged",
    "prequential_inputs_of_another": "the inputs here are not the sender's; give the same examples, in the same order",
    "blocks_missing": "the file claims 40 blocks of 24 bits but is shorter; it is damaged",
    "blocks_key_2^63": "but is shorter; it is damaged",
    "blocks_*": r"[\d,]+ blocks of \d+ bits (do not fit 40 weights|but is shorter)|the file is damaged",
    "settings_of_1048576_bytes": "the file ends before its contents do",
    "settings_of_*": r"the file's configuration asks for .* bytes of text, and at most 1,048,576 are allowed; it is damaged, or if",
    "count_without_end": "the file holds a count beyond 2.64; it is damaged",
    "*_calls_code": "made by calling os:mkdir, and no code that a file names is run unasked; .* add --network.factory=os:mkdir",
    "*_of_a_path": "the file itself names a path .(data.path|network.pretrained|prior.*.run)., which no file of bitsback does",
    "*_pyro_name": "pyro.distributions has no 'os.system'",
    "*_point": "change the last layer|has no weights that could have a posterior",
    "*_no_network": "the file's configuration does not suit this bitsback .network: ",
    "message_huge_targets": "the message asks for 1,000,000,000 answers for each example, and at most 65,536 are allowed",
    "message_without_posterior": "a point estimate has no bits to give back",
    "*_huge_s*": "the file does not say what its inputs look like; it is damaged",
    "*_inputs_below_zero": "the file does not say what its inputs look like; it is damaged",
    "*_no_inputs": "the file does not say what its inputs look like; it is damaged",
    "*_huge_deep": r"the file's network asks for 20,000 layers, and at most 4,096 are allowed; if you trust it, set BITSBACK_LIMIT_LAYERS",
    "*_huge_*": r"the file's network is too large for a file of [\d,]+ bytes: .*; it is damaged, or if you trust it, set BITSBACK_LIMIT_",
}
GIVEN = {
    "factory_codec_not_given": [],
    "factory_codec_other_given": [make.OWN_CODEC],
    "factory_codec_unknown_function": ["golden.own_codec:nothing"],
    "factory_codec_unknown_module": ["golden.no_codec:codec"],
    "factory_codec_of_another_kind": ["os:getcwd"],
    "factory_*": [make.OWN_CODEC],
}
"""The codec that a reader names, by name of the file: files of other kinds ask for none."""

LABELS = {"message", "two_part", "prequential", "text"}
MODEL_VERBS = {"unpack": ["-o", "out"], "inspect": [], "predict": ["--data", "inputs.npy", "-o", "means.npy"]}


@pytest.fixture(scope="module")
def whole():
    """A file of every kind that nothing is wrong with."""
    return make.valid()


@pytest.fixture
def bounded():
    """Inside, the process cannot take more than so much address space."""
    resource = pytest.importorskip("resource")
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + SPARE_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys, bounded):
    """Runs a command in an empty folder with inputs.npy, and returns the one sentence that refuses it."""
    import numpy as np

    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "inputs.npy", np.zeros((2, 8, 8)))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bitsback", *map(str, arguments)])
        monkeypatch.setenv("BITSBACK_DEBUG", "")
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        assert stopped.value.code == 1
        assert said.out == ""
        assert said.err.splitlines()[-1].startswith("bitsback: ")
        assert said.err.count("\n") == 1 or "\r" in said.err  # a bar, then the sentence
        return said.err.splitlines()[-1]

    return call


def sentence_for(name):
    return next(said for pattern, said in SAID.items() if fnmatch.fnmatch(name, pattern))


def codec_for(name):
    given = next((names for pattern, names in GIVEN.items() if fnmatch.fnmatch(name, pattern)), [])
    return [f"--codec.factory={codec}" for codec in given]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_hostile_file_is_refused_in_one_sentence_and_leaves_nothing(refused, tmp_path, path):
    kind = path.read_bytes()[2:3]
    commands = {"receive": ["-o", "out"]} if kind and str(kind_numbered(kind[0] >> 4)) in LABELS else MODEL_VERBS
    for command, options in commands.items():
        assert re.search(sentence_for(path.stem), refused(command, path, *options, *codec_for(path.stem)))
        left = {file.name for file in tmp_path.rglob("*")}
        assert left - {"inputs.npy"} == ({"out", "labels.npy", "model.safetensors"} if "payload" in path.stem else set())


def test_the_set_on_disk_is_the_one_that_its_script_makes():
    assert {path.stem for path in FILES} == set(make.all_files())


def test_what_the_set_is_made_from_is_sound(whole, tmp_path):
    assert set(whole) == set(all_kinds())
    for codec in ("relative_entropy", "quantised", "decimal"):
        assert decode(whole[codec], "the file").codec == codec
        assert decode(make.with_settings(whole[codec]), "the file").codec == codec
    assert decode(whole["factory"], "the file", make.locations_for(whole["factory"])).codec == "factory"
    assert make.with_settings(whole["factory"]) == whole["factory"]
    for kind in ("two_part", "prequential"):
        assert make.with_settings(whole[kind]) == whole[kind]
        (tmp_path / kind).write_bytes(whole[kind])
    (tmp_path / "text").write_bytes(make.with_settings(whole["text"]))
    assert len(receive_two_part(tmp_path / "two_part", tmp_path / "two").labels) == 40
    assert receive_text(tmp_path / "text", tmp_path / "letters", progress=False).content == b"abcab\n" * 10
    assert len(receive_prequential(tmp_path / "prequential", tmp_path / "blocks", progress=False)) == 40
    (tmp_path / "message").write_bytes(make.with_settings(whole["message"]))
    assert receive_file(tmp_path / "message", tmp_path / "out", progress=False).payload == bytes(200)


@pytest.mark.parametrize("kind", sorted(all_kinds()))
def test_every_cut_every_extension_and_every_flipped_bit_is_seen(whole, kind, tmp_path):
    content = whole[kind]
    assert unseal(content, "the file")[0] == all_kinds()[kind]
    cuts = [content[:length] for length in range(len(content))]
    extensions = [content + bytes([byte]) for byte in range(256)] + [content + bytes(length) for length in (2, 4, 200, 10_000)]
    flips = []
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        flips.append(bytes(changed))
    passed = []
    for damaged in [*flips, *cuts, *extensions]:
        said = ""
        try:
            unseal(damaged, "the file")
            passed.append(damaged)
        except BitsbackError as error:
            said = str(error)
        assert damaged in passed or re.match(r"the file (is|has) .*; (copy it again|give one|install a newer)", said)
    assert not {*passed} & {*flips}  # no checksum misses one bit
    assert len(passed) <= 1  # of hundreds of other lengths, 16 bits may miss one; then the contents do not end as they should
    for damaged in passed:
        assert attempt(damaged, tmp_path)
        assert not (tmp_path / "out").exists()


def attempt(content, folder):
    """Open a file in every way there is; whatever is wrong must be said in one sentence."""
    path, out, said = folder / "file", folder / "out", []
    path.write_bytes(content)
    receive = {
        "two_part": lambda: receive_two_part(path, out),
        "prequential": lambda: receive_prequential(path, out, progress=False),
    }.get(str(kind_numbered(content[2] >> 4)), lambda: receive_file(path, out, progress=False))
    places = make.locations_for(content)
    for way in (lambda: inspect_file(path, places), lambda: load(path, places).predict(torch.zeros(2, 1, 8, 8)), receive):
        try:
            way()
            delivered = True
        except BitsbackError as error:
            said.append(str(error))
            delivered = isinstance(error, RefundLostError)
    assert not any("\n" in sentence for sentence in said)
    assert out.exists() == delivered
    return said


REPAIRED = st.sampled_from(["message", "relative_entropy", "quantised", "decimal", "two_part", "factory"])
"""Kinds whose changed files are opened; a prequential file may ask for any number of steps of training."""


@pytest.mark.filterwarnings("ignore")
@given(kind=st.sampled_from(sorted(all_kinds())), contents=st.binary(max_size=300))
@settings(max_examples=60)
def test_any_bytes_with_a_good_mark_and_checksum(tmp_path_factory, kind, contents):
    assert len(attempt(seal(all_kinds()[kind], contents), tmp_path_factory.mktemp("fuzz"))) >= 2


@pytest.mark.filterwarnings("ignore")
@given(kind=REPAIRED, places=st.lists(st.integers(0, 10**6), min_size=1, max_size=6), cut=st.integers(0, 10**4) | st.none())
@settings(max_examples=60)
def test_any_changed_bits_with_a_good_checksum(whole, tmp_path_factory, kind, places, cut):
    _, contents = unseal(whole[kind], "the file")
    changed = bytearray(contents)
    for place in places:
        changed[place // 8 % len(changed)] ^= 1 << place % 8
    if cut is not None:
        changed = changed[: cut % len(changed)]
    attempt(seal(all_kinds()[kind], bytes(changed)), tmp_path_factory.mktemp("fuzz"))


SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.sampled_from([
    {}, make.CALL, {"kind": "idx"}, {"kind": "npz"}, {"kind": "npz", "path": "/dev/zero"}, {"kind": "point"}, {"kind": "poisson"},
    {"kind": "pyro", "distribution": "Delta", "arguments": {"v": 0}}, {"kind": "cauchy"}, "LSTM", "os:system", [10**6, 10**6],
    {"kind": "pyro", "distribution": "Cauchy", "arguments": {"loc": [0, 1], "scale": 1}}, {"Linear": {"out_features": 10**10}},
    {"factory": "os:mkdir"},
])  # fmt: skip


def places_in(tree, place=()):
    """Every place in a tree but those that only say how long to train."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if key != "training":
            yield (*place, key)
            yield from places_in(value, (*place, key))


@pytest.mark.filterwarnings("ignore")
@given(kind=REPAIRED, place=st.integers(0, 10**4), value=VALUES, remove=st.booleans())
@settings(max_examples=120)
def test_any_change_of_the_settings_with_a_good_checksum(whole, tmp_path_factory, kind, place, value, remove):
    tree = make.settings_of(whole[kind])
    known = list(places_in(tree))
    *path, key = known[place % len(known)]
    inside = tree
    for part in path:
        inside = inside[part]
    if remove and isinstance(inside, dict):
        del inside[key]
    else:
        inside[key] = value
    for name in set(make.settings_of(whole[kind])) - set(tree):
        tree[name] = None
    folder = tmp_path_factory.mktemp("fuzz")
    attempt(make.with_settings(whole[kind], **tree), folder)
    assert not Path(make.CALL["arguments"]["path"]).exists()


# code


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module on the path whose function says that it was called."""
    (tmp_path / "maker_of_networks.py").write_text(
        "import pathlib, torch\n"
        "pathlib.Path('imported').touch()\n"
        "def net(outputs=10): return torch.nn.Sequential(torch.nn.Linear(4, outputs, bias=False))\n"
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("maker_of_networks", None)


@pytest.mark.parametrize("kind", ["message", "relative_entropy", "quantised", "decimal"])
def test_a_factory_is_called_only_when_its_name_is_given(whole, module, kind):
    network = {"kind": "factory", "factory": "maker_of_networks:net", "arguments": {}, "pretrained": None}
    (module / "file").write_bytes(make.with_settings(whole[kind], network=network))

    def use(*places):
        return receive_file(Path("file"), Path("out"), places, progress=False) if kind == "message" else load("file", places)

    for places in ([], ["network.factory=os:mkdir"], ["network.factory=maker_of_networks:other"], ["network.factory="]):
        with pytest.raises(
            BitsbackError, match=r"add --network.factory=maker_of_networks:net|'network.factory' is fixed by the file"
        ):
            use(*places)
    assert not Path("imported").exists()
    assert not Path("out").exists()
    if kind == "message":
        assert use("network.factory=maker_of_networks:net").payload == bytes(200)
    else:
        assert use("--network.factory=maker_of_networks:net").predict(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert Path("imported").exists()


@pytest.fixture
def codecs(tmp_path, monkeypatch):
    """A module on the path that holds the codec of the files, and leaves a mark when it is imported and when it is called."""
    (tmp_path / "maker_of_codecs.py").write_text(
        "import pathlib\n"
        "import golden.own_codec\n"
        "pathlib.Path('imported').touch()\n"
        "def codec():\n"
        "    pathlib.Path('called').touch()\n"
        "    return golden.own_codec.codec()\n"
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("maker_of_codecs", None)


def test_a_codec_is_imported_only_when_its_name_is_given(whole, codecs):
    name = "maker_of_codecs:codec"
    (codecs / "file").write_bytes(make.with_settings(whole["factory"], codec={"factory": name}))
    near = [
        "maker_of_codecs:other",
        "maker_of_codecs:",
        "maker_of_codecs",
        f" {name}",
        f"{name}\n",
        name.upper(),
        "os:mkdir",
        "",
    ]
    given = [
        [],
        *([f"codec.factory={other}"] for other in near),
        ["network.factory=maker_of_codecs:codec"],
        [f"factory={name}"],
    ]
    for places in given:
        for way in (load, inspect_file):
            with pytest.raises(
                BitsbackError, match=f"add --codec.factory={name}$|'codec.factory' is fixed|says no place|does not suit"
            ) as refused:
                way(Path("file"), places)
            assert "\n" not in str(refused.value)
    assert not Path("imported").exists()
    assert "maker_of_codecs" not in sys.modules
    assert load("file", [f"--codec.factory={name}"]).predict(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert Path("imported").exists()
    assert Path("called").exists()


@pytest.mark.parametrize(
    "command", [["receive", "-o", "out"], ["unpack", "-o", "out"], ["inspect"], ["predict", "--data", "inputs.npy"]]
)
def test_no_command_imports_the_codec_that_a_file_names(refused, whole, codecs, command):
    (codecs / "file").write_bytes(make.with_settings(whole["factory"], codec={"factory": "maker_of_codecs:codec"}))
    refused(command[0], "file", *command[1:])
    refused(command[0], "file", *command[1:], "--codec.factory=golden.own_codec:codec")
    assert {path.name for path in codecs.iterdir()} == {"file", "inputs.npy", "maker_of_codecs.py"}
    assert "maker_of_codecs" not in sys.modules
