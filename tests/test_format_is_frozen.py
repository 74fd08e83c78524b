"""Format version 1 is frozen: its tables, its dictionaries and the files that were written with them never change."""

import hashlib
import re
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
    "tests/golden/factory.bb": "2df0f884302624e7eaeaae7a6b480423",
    "tests/golden/message.bb": "8d52b1c931090bbf3a10bae7384a31dc",
    "tests/golden/message_1.bb": "6eb692e1a8455f7d45494aec8c8e649d",
    "tests/golden/prequential.bb": "2dc559d9039be3ab081b6933416a4513",
    "tests/golden/prequential_1.bb": "2894d97b059cc1e71a14a95d3169f549",
    "tests/golden/quantised_mixture.bb": "daea1f18280cbc1b4b3a044a0519e2d3",
    "tests/golden/quantised_permuted.bb": "f58aceed2ba16d031344b5e05fae05c2",
    "tests/golden/text.bb": "c0840d1bfaeca2cff138b80e09e13232",
    "tests/golden/two_part.bb": "37b6ad5bc7c035387a380c6db82d8f4b",
    "tests/golden/two_part_counts.bb": "a38ec63968e4f0356f9a80b333361fb0",
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


SECTIONS = {
    "1. Conventions": "06a50cd317366a50fe88b45bef4e8d82",
    "2. Frame": "a807902e025b5f9443a260d316f424af",
    "3. Bits": "ba7b4d31a140c343ce108ec07490c6e1",
    "4. Settings": "c0d81451a43b5f6213a39e9dac42988d",
    "5. The network and its weights": "4ebbb354a676c57e4129d04f20b5d9a6",
    "6. Side numbers": "5eb7d6772e37b5eb7cc2b5d0dc98f4b0",
    "7. Random streams": "fe0e402f4df27fa80afd16b6243dc308",
    "8. The stack": "ff238113188783e4e616abaa409e6dbe",
    "9. Priors as integer tables": "df866a50d2d6bb1c72613386fd181e9e",
    "10. Body `relative_entropy`": "9923959c83657b90ffdc75c8beb96c9c",
    "11. Body `quantised`": "b1b0ed5adea0c13c578434ce9fdced41",
    "12. Message": "ebf39ee2aa3df3bc82cff8cba7ef7d81",
    "13. What the writer may choose": "8a8cdd3c340fd6868c7b37d386671e79",
    "14. What a reader must refuse, and when": "53cee829eb6dcd6302d302351979a2a0",
    "15. Versions": "76e9335ff8c8b562bf0ba023441fedc9",
    "16. Body `prequential`": "feaa48100391f6181e637ae01457cbbc",
    "17. Body `decimal`": "62cd34d8a8e4228c0e7b5fda839fda73",
    "18. Body `two_part`": "f254d5a6316337b7a023fb1953679645",
    "19. Training that is repeated": "26016cabd2d259b133a0c30d46d4fe21",
    "20. Body `factory`": "84b1c933c9736ebf16477711a4ed205d",
    "21. Counts": "ed0b3ebc909ca97efe62cc3fa75357ff",
    "22. Targets with axes, and masks": "46c3b448f37184a954992d5beee762f4",
    "23. Inputs of several tensors, and whole batches": "868114324261dbb0a3e275179c69d507",
    "24. Ready networks": "fb6c621ed7671689bc7763df7fa13824",
    "25. Images": "f5918ba2b16dc4e24ec46c64a76adda2",
    "26. Body `text`": "44f4bf6f65bd82895238d7bd7ce040e6",
}
"""The first half of SHA-256 of every section of FORMAT.md by heading; what stands before the first only says what there is."""


def sections():
    text = (ROOT / "bitsback" / "formats" / "FORMAT.md").read_text()
    return {part.partition("\n")[0]: part.strip() for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]}


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_section_of_the_specification_says_what_it_said(heading):
    found = hashlib.sha256(sections().get(heading, "").encode()).hexdigest()[:32]
    assert found == SECTIONS[heading], (
        f"section '{heading}' of FORMAT.md has changed. Its wording may be made clearer on purpose, by updating the digest to "
        f"{found}; its meaning never changes. New kinds come as new sections"
    )


def test_new_sections_stand_behind_the_frozen_ones():
    assert list(sections())[: len(SECTIONS)] == list(SECTIONS)
