"""Resource limits for files and configurations: defaults, and the environment variables that change them.

Files may come from strangers. Their requests are compared with these limits before memory is allocated or a step is trained.
The error names the environment variable that raises the limit: ``BITSBACK_LIMIT_STEPS=1e8 bitsback receive FILE -o DIR``.
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
"""Bytes per number of a data set beside its stored form: about five float32 copies while loading (measured)."""

FALLBACK_MEMORY = 16 << 30
UNLIMITED_CGROUP = 1 << 60


@dataclass(frozen=True)
class Limit:
    """Named limit on a resource.

    Attributes:
        name: lower case; the environment variable is ``BITSBACK_LIMIT_`` and the name in upper case.
        default: value, or a function that returns it.
        unit: of the value, for messages.

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
        """Name of the environment variable that changes the limit."""
        return f"BITSBACK_LIMIT_{self.name.upper()}"

    @property
    def value(self) -> int:
        """Limit in force: the environment variable, or else the default; raises ConfigError if the variable is not a number."""
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
        """Raise ``error`` if ``asked`` exceeds the limit.

        Args:
            asked: requested amount, in ``unit``.
            what: subject of the message, such as a file name.
            error: class to raise.
            fix: another remedy, named before the environment variable.
        """
        if asked > (most := self.value):
            raise error(f"{what} asks for {shown(asked)} {self.unit}, and {self.allowed(asked, most, fix)}")

    def allowed(self, asked: int, most: int, fix: str = "") -> str:
        """Return the end of the message: the limit, and the environment variable that raises it.

        Args:
            asked: requested amount.
            most: allowed amount.
            fix: another remedy.

        Returns:
            A clause without a full stop.
        """
        raised = asked if asked <= 10**18 else "NUMBER"
        return f"at most {shown(most)} are allowed; {fix and fix + ', or '}if you trust it, set {self.variable}={raised}"


def shown(number: int) -> str:
    """Return an integer with thousands separators; numbers above 10^18 are not written out.

    Returns:
        Text for a message.

    >>> shown(12345), shown(1 << 100)
    ('12,345', 'more than 10^18')
    """
    return f"{number:,}" if number <= 10**18 else "more than 10^18"


def available_memory() -> int:
    """Return the memory in bytes that this process may still allocate.

    On Linux the smaller of the machine's available memory and what is left of the control group (cgroup v2).

    Returns:
        Bytes; 16 GiB on other systems.

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
    except (OSError, ValueError, StopIteration, IndexError):  # not Linux, or the group has no limit
        pass
    return found


def data_bytes(numbers: int, item_bytes: int) -> int:
    """Return the memory in bytes that loading a data set takes.

    Args:
        numbers: stored numbers.
        item_bytes: bytes of each in the file.

    Returns:
        Bytes, working copies included.
    """
    return numbers * (item_bytes + WORKING_BYTES)


MEMORY = Limit("memory", available_memory, "bytes of memory")
"""Memory of a data set while it is read or generated, in bytes."""

NUMBERS = Limit("numbers", 1 << 22, "numbers")
"""Weights, statistics, activations and outputs of a message or model file, up to 64 bytes each; see :func:`numbers_for`."""

NUMBERS_PER_BYTE = Limit("numbers_per_byte", 1 << 12, "numbers for each of its bytes")
USES = Limit("uses", 512, "uses of it")
"""Multiplications of a file's network on two examples, per number that the file may hold."""

EXAMPLES = Limit("examples", 10_000_000, "examples")
"""Generated examples of a message or model file."""

LABELS = Limit("labels", 1 << 16, "classes")
STEPS = Limit("steps", 2_000_000, "steps of training")
"""Training steps of the networks that a receiver retrains; each averaged weight draw counts as a step."""

LAYERS = Limit("layers", 4096, "layers")
TARGETS = Limit("targets", 1 << 16, "answers for each example")
TEXT = Limit("text", 1 << 20, "bytes of text")
"""Length of a configuration, in YAML or inside a file."""

DEPTH = Limit("depth", 64, "levels of nesting")
VALUES = Limit("values", 50_000, "values")
"""Values of a configuration with its YAML aliases expanded."""

DIGITS = Limit("digits", 100, "digits")
"""Digits of an integer in a configuration."""

DIMENSIONS = Limit("dimensions", 32, "dimensions")
"""Dimensions of a data array."""

EXPANSION = Limit("expansion", 256, "times its compressed size")
"""Decompressed over compressed size, for data above :data:`ALWAYS_UNPACKED` once decompressed."""

ALWAYS_UNPACKED = 1 << 28
"""Bytes up to which data are decompressed whatever the ratio (256 MiB)."""

LIMITS = (
    MEMORY, NUMBERS, NUMBERS_PER_BYTE, USES, EXAMPLES, LABELS, STEPS, LAYERS, TARGETS, TEXT, DEPTH, VALUES, DIGITS, DIMENSIONS,
    EXPANSION,
)  # fmt: skip


def numbers_for(file_bytes: int) -> int:
    """Return the count of numbers that a file of ``file_bytes`` bytes may hold."""
    return NUMBERS.value + NUMBERS_PER_BYTE.value * file_bytes


def depth_of(tree: object) -> int:
    """Return the nesting depth of lists and mappings, computed without recursion.

    Returns:
        0 for a scalar.

    >>> depth_of({"a": [1, [2]]}), depth_of(5)
    (3, 0)
    """
    depth, level = 0, [tree]
    while level := [part for part in level if isinstance(part, (dict, list))]:
        depth += 1
        level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
    return depth
