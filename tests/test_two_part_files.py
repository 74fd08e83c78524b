"""Two-part and decimal files that somebody damaged: one sentence, never another exception, never other numbers."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsback.errors import BitsbackError, FileError
from bitsback.formats.container import BitReader, BitWriter, seal, unseal
from bitsback.formats.inspect import inspect_file
from bitsback.formats.kinds import all_kinds, kind_numbered
from bitsback.formats.model_file.read import decode
from bitsback.formats.two_part import TWO_PART, decode_two_part

GOLDEN = Path(__file__).parent / "golden"
WHOLE = {kind: (GOLDEN / f"{kind}.bb").read_bytes() for kind in ("two_part", "decimal")}
READERS = {"two_part": decode_two_part, "decimal": decode}


def two_part(kind=2, length=None, check=None, body=None):
    """The golden two-part file with other numbers at its head."""
    reader = BitReader(unseal(WHOLE["two_part"], "whole")[1])
    found = reader.take(4), reader.take_count(), reader.take(16), reader.rest()
    writer = BitWriter()
    writer.put(kind, 4)
    writer.put_count(found[1] if length is None else length)
    writer.put(found[2] if check is None else check, 16)
    return seal(TWO_PART, writer.to_bytes() + (found[3] if body is None else body))


def test_the_golden_file_is_rebuilt_from_its_head():
    assert two_part() == WHOLE["two_part"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (two_part(kind=0), "does not say which network"),
        (two_part(kind=5), "does not say which network"),
        (two_part(kind=15), "does not say which network"),
        (two_part(length=1 << 40), "does not say which network"),
        (two_part(length=0), "damaged|cut off|ends before"),
        (two_part(length=9), "damaged|ends before|does not"),
        (two_part(check=0), "do not come back"),
        (two_part(body=b""), "does not say which network"),
        (WHOLE["two_part"][:-1], "checksum does not fit"),
        (WHOLE["two_part"] + b"\0", "checksum does not fit"),
    ],
)
def test_a_head_that_makes_no_sense_is_refused(content, reason, tmp_path):
    with pytest.raises(FileError, match=reason):
        decode_two_part(content, "the file")
    (tmp_path / "f.bb").write_bytes(content)
    with pytest.raises(FileError, match=reason) if "come back" not in reason else nullcontext():
        inspect_file(tmp_path / "f.bb")


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=60)
@given(data=st.data())
def test_flipped_bits_behind_a_right_checksum(kind, data):
    contents = bytearray(unseal(WHOLE[kind], "whole")[1])
    for place in data.draw(st.lists(st.integers(0, 8 * len(contents) - 1), min_size=1, max_size=3)):
        contents[place // 8] ^= 1 << place % 8
    said = ""
    try:
        READERS[kind](seal(all_kinds()[kind], bytes(contents)), "the file")
    except BitsbackError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_that_ends_early(kind):
    contents = unseal(WHOLE[kind], "whole")[1]
    for end in range(0, len(contents), 7):
        with pytest.raises(FileError):
            READERS[kind](seal(all_kinds()[kind], contents[:end]), "the file")


def test_every_digit_there_is(tmp_path):
    loaded = decode(WHOLE["decimal"], "the file")
    values = np.concatenate([weight.posterior.mean.detach().numpy().ravel() for weight in loaded.model.weights])
    assert np.array_equal(values, np.round(values.astype(np.float64), 2).astype(np.float32))
    assert str(kind_numbered(4)) == "decimal"


@pytest.mark.parametrize("command", [["unpack", "-o", "out"], ["predict", "--data", "x.npy"], ["certify"]])
def test_verbs_of_model_files_say_where_a_two_part_file_belongs(run_command, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((2, 1, 8, 8)))
    Path("f.bb").write_bytes(WHOLE["two_part"])
    found = run_command(command[0], "f.bb", *command[1:])
    assert found.code == 1
    assert "f.bb is a two_part message, not a model file; use `bitsback receive`" in found.err
