"""Format version 1 is frozen: its tables, its dictionaries and the files that were written with them never change."""

import hashlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FROZEN = {
    "bitsback/formats/defaults_1.json": "e8860e795171f0dc51faee624656a4cb",
    "bitsback/formats/settings_1.json": "a3f66a8dd42fa74a0de49fedd3e4a081",
    "bitsback/formats/settings_2.json": "7fc5de6dc256b4daf2a20ecf062f34ee",
    "tests/golden/blocks_gaussian.bb": "975bf498b6db021e49ac5ebb2e821c98",
    "tests/golden/blocks_horseshoe_conv.bb": "0f3b7ad7fdd408dd55c1ee99247e91a9",
    "tests/golden/blocks_mixture.bb": "4a6bdcef88dd20efd55c0bfe1ee766ef",
    "tests/golden/decimal.bb": "10fa7329a958c00435ddd281d6178838",
    "tests/golden/message.bb": "8d52b1c931090bbf3a10bae7384a31dc",
    "tests/golden/message_1.bb": "6eb692e1a8455f7d45494aec8c8e649d",
    "tests/golden/prequential.bb": "2dc559d9039be3ab081b6933416a4513",
    "tests/golden/prequential_1.bb": "2894d97b059cc1e71a14a95d3169f549",
    "tests/golden/quantised_mixture.bb": "daea1f18280cbc1b4b3a044a0519e2d3",
    "tests/golden/quantised_permuted.bb": "f58aceed2ba16d031344b5e05fae05c2",
    "tests/golden/two_part.bb": "37b6ad5bc7c035387a380c6db82d8f4b",
    "tests/golden/tables.json": "66453537a9565e47f57efb9590c365bf",
}
"""The first half of SHA-256 of every file that belongs to the format."""


@pytest.mark.parametrize("path", FROZEN)
def test_it_is_what_it_was(path):
    found = hashlib.sha256((ROOT / path).read_bytes()).hexdigest()[:32]
    assert found == FROZEN[path], (
        f"{path} belongs to the frozen format: files that exist would no longer decode. Undo the change; new kinds, codecs and "
        "settings come under new numbers, in files of their own"
    )


def test_every_file_of_the_format_is_frozen():
    there = [*(ROOT / "bitsback" / "formats").glob("*.json"), *(ROOT / "tests" / "golden").glob("*.bb")]
    assert {str(path.relative_to(ROOT)) for path in there} <= set(FROZEN)
