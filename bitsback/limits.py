"""How much a file or a configuration may ask for: every limit, its default, and the variable that raises it.

Files come from others. What one asks for is compared with these limits before memory is taken or a step is trained, and a
refusal names the environment variable that raises the limit: ``BITSBACK_LIMIT_STEPS=1e8 bitsback receive FILE -o DIR``.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bitsback.errors import BitsbackError, ConfigError

__all__ = [
    "ALWAYS_UNPACKED",
    "DEPTH",
    "DIGITS",
    "DIMENSIONS",
    "EXAMPLES",
    "EXPANSION",
    "LABELS",
    "LAYERS",
    "LIMITS",
    "MEMORY",
    "NUMBERS",
    "STEPS",
    "TARGETS",
    "TEXT",
    "USES",
    "VALUES",
    "Limit",
    "available_memory",
    "data_bytes",
    "depth_of",
    "numbers_for",
    "shown",
]

WORKING_BYTES = 20
"""Bytes that a number of a data set takes beside its stored form: about five float32 copies, one after the other (measured)."""

FALLBACK_MEMORY = 16 << 30
UNLIMITED_CGROUP = 1 << 60


@dataclass(frozen=True)
class Limit:
    """A limit by name; its default may be looked up on the machine.

    >>> STEPS.variable
    'BITSBACK_LIMIT_STEPS'
    >>> STEPS.check(100, "the file", ConfigError)
    >>> STEPS.check(10**9, "the file", ConfigError)
    Traceback (most recent call last):
    bitsback.errors.ConfigError: the file asks for 1,000,000,000 steps of training, and at most 2,000,000 are allowed; \
if you trust it, set BITSBACK_LIMIT_STEPS=1000000000
    """

    name: str
    default: int | Callable[[], int]
    unit: str

    @property
    def variable(self) -> str:
        """The environment variable that says another limit."""
        return f"BITSBACK_LIMIT_{self.name.upper()}"

    @property
    def value(self) -> int:
        """The limit in force; raises ConfigError when the variable holds no number."""
        text = os.environ.get(self.variable, "").strip()
        if not text:
            return self.default if isinstance(self.default, int) else self.default()
        try:
            found = int(float(text)) if not text.isdecimal() else int(text[:30])
        except (ValueError, OverflowError):
            found = -1
        if found < 0:
            raise ConfigError(f"{self.variable}={text[:40]!r} is no limit; give a whole number such as 1000000 or 8e9")
        return found

    def check(self, asked: int, what: str, error: type[BitsbackError], fix: str = "") -> None:
        """Raise ``error`` when ``what`` asks for more than is allowed.

        Args:
            asked: how much.
            what: who asks, the beginning of the sentence.
            error: class of the refusal.
            fix: another way out, named before the variable.
        """
        if asked > (most := self.value):
            raise error(f"{what} asks for {shown(asked)} {self.unit}, and {self.allowed(asked, most, fix)}")

    def allowed(self, asked: int, most: int, fix: str = "") -> str:
        """The end of a refusal: what is allowed, and how to raise it."""
        raised = asked if asked <= 10**18 else "NUMBER"
        return f"at most {shown(most)} are allowed; {fix and fix + ', or '}if you trust it, set {self.variable}={raised}"


def shown(number: int) -> str:
    """A whole number for a sentence, also one with too many digits to be written.

    >>> shown(12345), shown(1 << 100)
    ('12,345', 'more than 10^18')
    """
    return f"{number:,}" if number <= 10**18 else "more than 10^18"


def available_memory() -> int:
    """Bytes that this process may still take: of the machine, or of its control group where that has less.

    Linux says so; on another system it is 16 GiB.

    >>> available_memory() > 0
    True
    """
    found = FALLBACK_MEMORY
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text(encoding="ascii"))
        if most < UNLIMITED_CGROUP:
            found = min(found, max(0, most - int((group / "memory.current").read_text(encoding="ascii"))))
    except (OSError, ValueError, StopIteration, IndexError):  # another system, or no limit of the group
        pass
    return found


def data_bytes(numbers: int, item_bytes: int) -> int:
    """Memory that a data set of so many stored numbers takes until it is ready."""
    return numbers * (item_bytes + WORKING_BYTES)


MEMORY = Limit("memory", available_memory, "bytes of memory")
"""Of data sets, as they are read or made: stored numbers and what is computed of them."""

NUMBERS = Limit("numbers", 1 << 22, "numbers")
"""Weights, statistics, activations and answers of a message or model file, which take up to 64 bytes each; see the next one."""

NUMBERS_PER_BYTE = Limit("numbers_per_byte", 1 << 12, "numbers for each of its bytes")
USES = Limit("uses", 512, "uses of it")
"""Multiplications of a file's network for two examples, for each of the numbers that the file may ask for."""

EXAMPLES = Limit("examples", 10_000_000, "examples")
"""That a message or model file has made for it."""

LABELS = Limit("labels", 1 << 16, "classes")
STEPS = Limit("steps", 2_000_000, "steps of training")
"""Of the networks that a receiver trains again; a draw that is averaged counts as one."""

LAYERS = Limit("layers", 4096, "layers")
TARGETS = Limit("targets", 1 << 16, "answers for each example")
TEXT = Limit("text", 1 << 20, "bytes of text")
"""Of a configuration, in YAML or inside a file."""

DEPTH = Limit("depth", 64, "levels of nesting")
VALUES = Limit("values", 50_000, "values")
"""Of a configuration, its aliases written out."""

DIGITS = Limit("digits", 100, "digits")
"""Of a whole number in a configuration."""

DIMENSIONS = Limit("dimensions", 32, "dimensions")
"""Of an array of data."""

EXPANSION = Limit("expansion", 256, "times its compressed size")
"""Of compressed data that are larger than 256 MiB once unpacked."""

ALWAYS_UNPACKED = 1 << 28

LIMITS = (
    MEMORY, NUMBERS, NUMBERS_PER_BYTE, USES, EXAMPLES, LABELS, STEPS, LAYERS, TARGETS, TEXT, DEPTH, VALUES, DIGITS, DIMENSIONS,
    EXPANSION,
)  # fmt: skip


def numbers_for(file_bytes: int) -> int:
    """How many numbers a file of so many bytes may ask for."""
    return NUMBERS.value + NUMBERS_PER_BYTE.value * file_bytes


def depth_of(tree: object) -> int:
    """Levels of nesting of lists and mappings, found without recursion.

    >>> depth_of({"a": [1, [2]]}), depth_of(5)
    (3, 0)
    """
    depth, level = 0, [tree]
    while level := [part for part in level if isinstance(part, (dict, list))]:
        depth += 1
        level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
    return depth
