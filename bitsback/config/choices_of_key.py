"""Arguments of ``bitsback compare``: one key with several values, and overrides shared by all runs."""

from collections.abc import Sequence

from bitsback.errors import ConfigError

__all__ = ["split_choices"]


def split_choices(choices: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """Separate the key that is varied from the overrides that are fixed.

    Args:
        choices: ``key=value`` texts, exactly one of them with several values separated by commas.

    Returns:
        the key, its distinct values, and the other texts.

    Raises:
        ConfigError: unless exactly one key has two or more values.

    >>> split_choices(["prior.kind=gaussian,laplace", "seed=1"])
    ('prior.kind', ['gaussian', 'laplace'], ['seed=1'])
    """
    several = [choice for choice in choices if "," in choice and not choice.partition("=")[2].startswith(("[", "{"))]
    if len(several) != 1:
        raise ConfigError(f"compare varies exactly one key, as in prior.kind=gaussian,laplace; {len(several)} were given")
    key, equals, values = several[0].partition("=")
    distinct = list(dict.fromkeys(value for value in values.split(",") if value))
    if not equals or not key or len(distinct) < 2:
        raise ConfigError(f"cannot read '{several[0]}'; give a key and two or more values, as in prior.kind=gaussian,laplace")
    return key, distinct, [choice for choice in choices if choice != several[0]]
