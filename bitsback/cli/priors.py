"""``bitsback priors``: the priors and their settings."""

import json as json_library
from typing import Annotated

import typer

from bitsback.cli.train import JsonOption

__all__ = ["first_line", "priors"]


def priors(
    kind: Annotated[str | None, typer.Argument(help="Show the settings of this prior.", show_default=False)] = None,
    json: JsonOption = False,
) -> None:
    """List the priors, or the settings of one.

    Example: bitsback priors scale_mixture
    """
    from bitsback.priors import registry
    from bitsback.result import text_table

    if json:
        chosen = [kind] if kind else list(registry)
        print(json_library.dumps({name: registry[name].model_json_schema() for name in chosen}, indent=2))
    elif kind is None:
        print(text_table(["prior", "what it is"], [[name, first_line(registry[name].__doc__)] for name in registry], left=2))
    else:
        fields = registry[kind].model_fields
        rows = []
        for name, field in fields.items():
            default = "required" if field.is_required() else str(field.get_default(call_default_factory=True))
            rows.append([name, default, field.description or ""])
        print(f"{kind}: {first_line(registry[kind].__doc__)}\n")
        print(text_table(["setting", "default", "meaning"], rows, left=3))


def first_line(text: str | None) -> str:
    """Return the first line of a docstring."""
    return (text or "").strip().splitlines()[0]
