"""The hostile set: files that must be refused, each in one sentence and in no time.

``python tests/hostile/make.py`` writes them beside this file. Those with a valid checksum are the dangerous ones: whoever
builds a file can always compute it.
"""

import json
import sys
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

from bitsback.coding.ans import Stack
from bitsback.config import Config, Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.formats._training_digest import StateDigest
from bitsback.formats.config_text import put_settings, take_settings
from bitsback.formats.config_tree import CODEC_FACTORY
from bitsback.formats.container import VERSION, BitReader, BitWriter, seal, unseal
from bitsback.formats.kinds import all_kinds, kind_numbered
from bitsback.formats.message.header import Header
from bitsback.formats.message.write import Sender
from bitsback.formats.model_file.factory_codec import FACTORY
from bitsback.formats.model_file.grid_search import decimal_content
from bitsback.formats.model_file.read import decode
from bitsback.formats.model_file.write import pack_experiment
from bitsback.formats.prequential.preamble import Head
from bitsback.formats.prequential.write import prequential
from bitsback.formats.text.text import TEXT, send_text
from bitsback.formats.two_part import TWO_PART, send_two_part

HERE = Path(__file__).parent
sys.path[:0] = [] if str(HERE.parent) in sys.path else [str(HERE.parent)]  # where the codec is imported from
OWN_CODEC = "golden.own_codec:codec"
FEATURES = {"kind": "principal_components", "features": 4}
LINEAR = {"kind": "sequential", "layers": [{"Linear": {"bias": False}}]}
CALL = {"kind": "factory", "factory": "os:mkdir", "arguments": {"path": "called-by-a-file"}}


def config(**sections):
    data = {"kind": "digits", "limit": 40, "features": FEATURES}
    return Config.model_validate({"data": data, "network": LINEAR, "training": {"epochs": 1}, **sections})


def valid():
    """A file of every kind, as small as they come."""
    files = {"message": Sender.train(config(), progress=False).send(bytes(200)).content}
    for codec in ("relative_entropy", "quantised"):
        experiment = Experiment.build(config())
        experiment.train(None, progress=False)
        files[codec] = pack_experiment(experiment, PackSettings(codec=codec), progress=False).content
    files["decimal"] = decimal_content(experiment, 2)
    files["two_part"] = send_two_part(experiment, PackSettings(codec="quantised"), progress=False).content
    blocks = {"blocks": [20, 40], "least_steps": 1, "predict": "point", "members": 1}
    files["prequential"] = prequential(config(prequential=blocks), progress=False).content
    files["factory"] = pack_experiment(experiment, PackSettings(codec="factory", factory=OWN_CODEC), progress=False).content
    files["text"] = of_a_text()
    return files


def of_a_text():
    """A text of 60 characters behind its network."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_bytes(b"abcab\n" * 10)
        sections = {
            "data": {"kind": "text", "path": str(path), "context": 4},
            "network": {"kind": "lstm", "embedding": 2, "width": 3},
            "likelihood": {"kind": "categorical", "ignore": -100, "class_axis": -1},
        }
        experiment = Experiment.build(config(**sections))
        experiment.train(None, progress=False)
        return send_text(experiment, PackSettings(codec="quantised"), progress=False).content


def locations_for(content):
    """What its reader has to say of a file: the codec of the one kind that has none here."""
    return [f"{CODEC_FACTORY}={OWN_CODEC}"] if content[2:3] and content[2] >> 4 == FACTORY.number else []


def settings_of(content):
    """The settings in a file."""
    kind, contents = unseal(content, "the file")
    if kind == TEXT:
        return settings_of(inside_text(content)[0])
    return settings_of(inside(content)[0]) if kind == TWO_PART else take_settings(BitReader(contents))


def inside(content):
    """Model file, digest and label stream of a two-part file."""
    reader = BitReader(unseal(content, "the file")[1])
    kind, length, check = kind_numbered(reader.take(4)), reader.take_count(), reader.take(16)
    body = reader.rest()
    return seal(kind, body[:length]), check, body[length:]


def two_part(model, check, stream, length=None):
    """A two-part file around any file, with a length of its own."""
    kind, contents = unseal(model, "the file")
    writer = BitWriter()
    writer.put(kind.number, 4)
    writer.put_count(len(contents) if length is None else length)
    writer.put(check, 16)
    return seal(TWO_PART, writer.to_bytes() + contents + stream)


def inside_text(content):
    """Model file, number of tokens, log2 of the lanes, digests of the blocks and of the text, and the stream of a text file."""
    reader = BitReader(unseal(content, "the file")[1])
    kind, length, tokens, lanes = kind_numbered(reader.take(4)), reader.take_count(), reader.take_count(), reader.take(4)
    digests, check = [reader.take(16) for _ in range(32)], reader.take(32)
    body = reader.rest()
    return seal(kind, body[:length]), tokens, lanes, digests, check, body[length:]


def text(model, tokens, lanes, digests, check, stream, length=None):
    """A text file around any file."""
    kind, contents = unseal(model, "the file")
    writer = BitWriter()
    writer.put(kind.number, 4)
    writer.put_count(len(contents) if length is None else length)
    writer.put_count(tokens)
    writer.put(lanes, 4)
    for one in digests:
        writer.put(one, 16)
    writer.put(check, 32)
    return seal(TEXT, writer.to_bytes() + contents + stream)


def with_settings(content, **sections):
    """The same file with other settings, and a checksum that fits."""
    kind, contents = unseal(content, "the file")
    if kind == TEXT:
        model, *others = inside_text(content)
        return text(with_settings(model, **sections), *others)
    if kind == TWO_PART:
        model, *labels = inside(content)
        return two_part(with_settings(model, **sections), *labels)
    reader, writer = BitReader(contents), BitWriter()
    put_settings(writer, {**take_settings(reader), **sections})
    end = {"message": message_head, "relative_entropy": all_blocks, "quantised": quantised_head, "decimal": quantised_head,
           "prequential": prequential_head, "factory": model_head}[kind.name](content)  # fmt: skip
    width = end - reader.position
    writer.put(reader.take(width), width)
    return seal(kind, writer.to_bytes() + reader.rest())


def message_head(content):
    """Where the header ends and whole bytes begin."""
    reader = BitReader(unseal(content, "the file")[1])
    Header.take(reader)
    return reader.position


def prequential_head(content):
    """Where the digests end and whole bytes begin."""
    reader = BitReader(unseal(content, "the file")[1])
    Head.take(reader)
    return reader.position


def all_blocks(content):
    """Where the last block ends."""
    return bits_through(content, "block indices")


def quantised_head(content):
    """Where learned numbers, lanes and a flag end and whole bytes begin."""
    return bits_through(content, "lanes")


def model_head(content):
    """Where settings, learned numbers and guard end."""
    return bits_through(content, "guard of the priors")


def bits_through(content, last):
    """Bits of a model file's contents until the end of a part."""
    bits = {part.name: part.bits for part in decode(content, "the file", locations_for(content)).parts}
    names = list(bits)
    return round(sum(bits[name] for name in names[1 : names.index(last) + 1]))


def with_counts(files):
    """Counts that would take all memory, or for ever, if they were believed."""
    kind, contents = unseal(files["message"], "the file")
    reader = BitReader(contents)
    header = Header.take(reader)
    rest = reader.rest()

    def message(**changes):
        writer = BitWriter()
        Header(**{**vars(header), **changes}).put(writer)
        return seal(kind, writer.to_bytes() + rest)

    found = {f"message_payload_2^{power}": message(payload_bytes=1 << power) for power in (20, 40, 60)}
    found |= {f"message_lanes_2^{power}": message(lanes_log2=power) for power in (10, 11, 15)}
    found |= {f"message_exponent_{m}": message(exponent=m) for m in (-16, 47)}
    found["message_states_of_nothing"] = message(states=(StateDigest(0),))
    tree = settings_of(files["relative_entropy"])
    side_bits = model_head(files["relative_entropy"]) - bits_through(files["relative_entropy"], "configuration")
    for name, (index_bits, key, blocks) in {
        "2^40": (12, 0, 1 << 40), "2^63": (12, 0, 1 << 63), "0": (12, 0, 0), "1_of_31_bits": (31, 0, 1), "of_0_bits": (0, 0, 9),
        "key_2^63": (12, 1 << 63, 40), "missing": (24, 0, 40),
    }.items():  # fmt: skip
        writer = BitWriter()
        put_settings(writer, tree)
        writer.put(0, side_bits)
        writer.put(index_bits, 5)
        writer.put_count(key)
        writer.put_count(blocks)
        found[f"blocks_{name}"] = seal(all_kinds()["relative_entropy"], writer.to_bytes())
    for lanes in (10, 11, 15):
        writer = BitWriter()
        put_settings(writer, tree)
        writer.put(0, side_bits)
        writer.put(lanes, 4)
        writer.put(1, 1)
        found[f"quantised_lanes_2^{lanes}"] = seal(all_kinds()["quantised"], writer.to_bytes() + Stack.empty(1).to_bytes())
    for length in (1 << 20, 1 << 21, 1 << 40, 1 << 60):
        writer = BitWriter()
        writer.put(1, 8)
        writer.put_count(length)
        found[f"settings_of_{length}_bytes"] = seal(all_kinds()["quantised"], writer.to_bytes() + bytes(40))
    writer = BitWriter()
    writer.put(1, 8)
    writer.put(0, 200)
    found["count_without_end"] = seal(all_kinds()["quantised"], writer.to_bytes())
    return (
        found
        | with_decimals(files["decimal"])
        | with_labels_behind(files)
        | with_a_text_behind(files)
        | with_blocks(files["prequential"])
    )


def with_decimals(content):
    """Heads of decimal files that no writer writes."""
    reader, width = BitReader(unseal(content, "the file")[1]), quantised_head(content) - 9
    head = reader.take(width)
    digits, lanes, permute = reader.take(4), reader.take(4), reader.take(1)

    def decimal(digits=digits, lanes=lanes):
        writer = BitWriter()
        for value, bits in ((head, width), (digits, 4), (lanes, 4), (permute, 1)):
            writer.put(value, bits)
        return seal(all_kinds()["decimal"], writer.to_bytes() + reader.rest())

    assert decimal() == content
    found = {f"decimal_digits_{digits}": decimal(digits=digits) for digits in (10, 15)}
    return found | {f"decimal_lanes_2^{lanes}": decimal(lanes=lanes) for lanes in (10, 11, 15)}


def with_labels_behind(files):
    """Two-part files around the wrong thing, of the wrong length, or without the labels."""
    model, check, stream = inside(files["two_part"])
    assert two_part(model, check, stream) == files["two_part"]
    found = {
        f"two_part_of_{kind}": two_part(files[kind], check, stream)
        for kind in ("message", "prequential", "decimal", "two_part", "factory")
    }
    found |= {f"two_part_length_2^{power}": two_part(model, check, stream, 1 << power) for power in (20, 40, 63)}
    found |= {f"two_part_length_{length}": two_part(model, check, stream, length) for length in (0, 5)}
    found["two_part_labels_missing"] = two_part(model, check, b"")
    found["two_part_labels_cut"] = two_part(model, check, stream[:-4])
    found["two_part_labels_longer"] = two_part(model, check, stream + bytes(4))
    found["two_part_labels_other"] = two_part(model, check ^ 1, stream)
    data = settings_of(files["two_part"])["data"]
    made = {"kind": "friedman", "examples": 1 << 40}
    found["two_part_inputs_2^40"] = with_settings(files["two_part"], data=made)
    found["two_part_inputs_elsewhere"] = with_settings(files["two_part"], data={"kind": "npz"})
    found["two_part_inputs_fewer"] = with_settings(files["two_part"], data=data | {"limit": 39})
    return found


def with_a_text_behind(files):
    """Text files around the wrong thing, of the wrong length, without the text, or with digests of other outputs."""
    model, tokens, lanes, digests, check, stream = inside_text(files["text"])
    assert text(model, tokens, lanes, digests, check, stream) == files["text"]
    rest = tokens, lanes, digests, check, stream
    found = {f"text_of_{kind}": text(files[kind], *rest) for kind in ("message", "prequential", "decimal", "two_part", "text")}
    found |= {f"text_length_2^{power}": text(model, *rest, length=1 << power) for power in (20, 40, 63)}
    found |= {f"text_tokens_2^{power}": text(model, 1 << power, lanes, digests, check, stream) for power in (32, 62)}
    found["text_tokens_0"] = text(model, 0, lanes, digests, check, stream)
    found["text_tokens_fewer"] = text(model, tokens - 1, lanes, digests, check, stream)
    found["text_lanes_2^7"] = text(model, tokens, 7, digests, check, stream)
    found["text_stream_missing"] = text(model, tokens, lanes, digests, check, b"")
    found["text_stream_longer"] = text(model, tokens, lanes, digests, check, stream + bytes(4))
    found["text_digest_other"] = text(model, tokens, lanes, digests, check ^ 1, stream)
    found["text_outputs_other"] = text(model, tokens, lanes, [*digests[:5], digests[5] ^ 1, *digests[6:]], check, stream)
    data, likelihood = (settings_of(files["text"])[name] for name in ("data", "likelihood"))
    found["text_words"] = with_settings(files["text"], data=data | {"tokens": "words"})
    found["text_of_bytes_that_are_none"] = with_settings(files["text"], data=data | {"tokens": "bytes"})
    found["text_likelihood_other"] = with_settings(files["text"], likelihood=likelihood | {"labels": None})
    return found


def with_blocks(content):
    """Heads of prequential files that do not fit their labels."""
    reader = BitReader(unseal(content, "the file")[1])
    head = Head.take(reader)
    rest = reader.rest()

    def changed(blocks=None, **changes):
        whole, writer = Head(**{**vars(head), **changes}), BitWriter()
        put_settings(writer, whole.settings)
        writer.put_count(whole.examples)
        writer.put_count(len(whole.tables) if blocks is None else blocks)
        writer.put(whole.inputs_digest, 32)
        for table in whole.tables:
            writer.put(table, 8)
        writer.put(whole.labels_digest, 16)
        return seal(all_kinds()["prequential"], writer.to_bytes() + rest)

    assert changed() == content
    training = head.settings["training"]
    return {
        "prequential_blocks_0": changed(blocks=0),
        "prequential_blocks_2^40": changed(blocks=1 << 40, examples=1 << 41),
        "prequential_blocks_above_labels": changed(blocks=41),
        "prequential_blocks_of_another_schedule": changed(tables=(*head.tables, 0)),
        "prequential_labels_2^40": changed(examples=1 << 40),
        "prequential_labels_2^63": changed(examples=1 << 63),
        "prequential_threads_of_nobody": changed(settings=head.settings | {"training": training | {"threads": "auto"}}),
        "prequential_inputs_of_another": changed(inputs_digest=head.inputs_digest ^ 1),
    }


def with_codecs(content):
    """Files that name a codec that is none, or another than their reader, and bodies that are not the codec's."""
    names = {
        "named_upwards": "..golden.own_codec:codec",
        "named_by_a_folder": "../golden/own_codec:codec",
        "named_by_dots": "..:codec",
        "named_with_two_dots": "golden..own_codec:codec",
        "named_inside_a_function": "golden.own_codec:codec.__globals__",
        "named_without_colon": "golden.own_codec.codec",
        "named_with_two_colons": "golden:own_codec:codec",
        "named_with_a_line_end": "golden.own_codec:codec\n",
        "without_name": "",
        "too_long": f"golden.own_codec:{'c' * 200}",
        "much_too_long": f"{'golden.' * 20_000}own_codec:codec",
        "not_given": "os:mkdir",
        "other_given": "os:mkdir",
        "unknown_function": "golden.own_codec:nothing",
        "unknown_module": "golden.no_codec:codec",
        "of_another_kind": "os:getcwd",
    }
    found = {f"factory_codec_{what}": with_settings(content, codec={"factory": name}) for what, name in names.items()}
    found["factory_codec_no_section"] = with_settings(content, codec=None)
    found["factory_codec_a_list"] = with_settings(content, codec={"factory": [OWN_CODEC]})
    contents = unseal(content, "the file")[1]
    length = body_bytes(content)
    head, body = contents[:-length], contents[-length:]
    bodies = {
        "missing": b"",
        "half": body[: length // 2],
        "cut": body[:-2],
        "longer": body + bytes(2),
        "huge": body + bytes(1 << 16),
        "infinite": b"\x00\x7c" + body[2:],
        "no_number": body[:-2] + b"\xff\xff",
    }
    return found | {f"factory_body_{what}": seal(FACTORY, head + other) for what, other in bodies.items()}


def body_bytes(content):
    """Length of what a codec of one's own wrote."""
    bits = {part.name: part.bits for part in decode(content, "the file", locations_for(content)).parts}
    return bits["body of the codec"] // 8


def with_wishes(files):
    """Settings that ask for code, for paths, or for networks beyond measure."""
    sequential = {
        "linear": [{"Linear": {"out_features": 10**10}}, "Linear"],
        "upsample": [{"Unflatten": {"dim": 1, "unflattened_size": [1, 2, 2]}}, {"Upsample": {"scale_factor": 10**5}}, "Flatten",
                     "Linear"],
        "lstm": [{"Unflatten": {"dim": 1, "unflattened_size": [2, 2]}}, {"LSTM": {"hidden_size": 10**6}}, "Linear"],
        "deep": ["ReLU"] * 20_000,
    }  # fmt: skip
    found = {}
    for kind, content in files.items():
        found[f"{kind}_calls_code"] = with_settings(content, network=CALL)
        found[f"{kind}_network_of_a_path"] = with_settings(content, network={**LINEAR, "pretrained": "/dev/zero"})
        found[f"{kind}_data_of_a_path"] = with_settings(content, data={"kind": "npz", "path": "/dev/zero"})
        found[f"{kind}_prior_of_a_path"] = with_settings(content, prior={"kind": "checkpoint", "run": "/dev"})
        found[f"{kind}_priors_of_a_path"] = with_settings(content, prior_overrides={"*": {"kind": "checkpoint", "run": "/dev"}})
        found[f"{kind}_pyro_name"] = with_settings(content, prior={"kind": "pyro", "distribution": "os.system"})
        found[f"{kind}_point"] = with_settings(content, network={"kind": "sequential", "layers": ["ReLU"]})
        found[f"{kind}_no_network"] = with_settings(content, network=5)
        for name, layers in sequential.items():
            if kind == "text" and name in ("upsample", "lstm"):  # for real numbers; tokens have embeddings
                continue
            found[f"{kind}_huge_{name}"] = with_settings(content, network={"kind": "sequential", "layers": layers})
    for kind in ("relative_entropy", "quantised"):
        found[f"{kind}_huge_inputs"] = with_settings(files[kind], inputs=[10**6, 10**6])
        found[f"{kind}_inputs_below_zero"] = with_settings(files[kind], inputs=[-4])
        found[f"{kind}_huge_statistics"] = with_settings(files[kind], statistics=[10**12])
        found[f"{kind}_huge_scale"] = with_settings(files[kind], scale=1e300)
        found[f"{kind}_no_inputs"] = with_settings(files[kind], inputs=None)
    found["text_vocabulary_1"] = with_settings(
        files["text"], network={"kind": "lstm", "embedding": 8, "width": 3, "vocabulary": 1}
    )
    found["text_huge_ready"] = with_settings(files["text"], network={"kind": "lstm", "width": 1 << 20})
    found["text_huge_many"] = with_settings(files["text"], network={"kind": "lstm", "width": 64, "layers": 256})
    found["message_huge_ready"] = with_settings(files["message"], network={"kind": "mlp", "hidden": [1 << 20, 1 << 20]})
    found["message_huge_targets"] = with_settings(files["message"], target_shape=[10**9])
    found["message_without_posterior"] = with_settings(files["message"], posterior={"kind": "point"},
                                                       prior={"kind": "gaussian", "learn": "none"})  # fmt: skip
    return found


def damaged(files):
    """Files that were cut, extended, changed, or are something else."""
    found = {
        "empty": b"",
        "mark_alone": b"bb",
        "png": b"\x89PNG\r\n\x1a\n" + bytes(60),
        "pickle": b"\x80\x04\x95\x0a" + bytes(20),
    }
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo("data.pkl"), "x")
    found["zip"] = stream.getvalue()
    for kind, content in files.items():
        body = content[:-2] if len(content) <= 255 else content[:-4]
        found[f"{kind}_truncated"] = content[:-1]
        found[f"{kind}_halved"] = content[: len(content) // 2]
        found[f"{kind}_extended"] = content + b"\0"
        found[f"{kind}_flipped"] = content[:20] + bytes([content[20] ^ 4]) + content[21:]
        found[f"{kind}_of_the_future"] = content[:2] + bytes([content[2] & 0xF0 | VERSION + 1]) + content[3:]
        found[f"{kind}_resealed_short"] = seal(all_kinds()[kind], body[3:-1])
        found[f"{kind}_resealed_long"] = seal(all_kinds()[kind], body[3:] + b"\1")
    found["unknown_kind"] = resealed(b"bb\x81" + bytes(40))
    found["version_zero"] = resealed(b"bb\x10" + bytes(40))
    found["version_that_its_kind_has_not"] = resealed(b"bb\x22" + bytes(40))
    return found


def resealed(body):
    """Any body with the checksum of a short file."""
    import binascii

    return body + binascii.crc_hqx(body, 0xFFFF).to_bytes(2, "little")


def all_files():
    """Every hostile file by name."""
    files = valid()
    return {**damaged(files), **with_counts(files), **with_wishes(files), **with_codecs(files["factory"])}


if __name__ == "__main__":
    for old in HERE.glob("*.bin"):
        old.unlink()
    for name, content in all_files().items():
        (HERE / f"{name}.bin").write_bytes(content)
    print(json.dumps({"files": len(list(HERE.glob("*.bin")))}), file=sys.stderr)
