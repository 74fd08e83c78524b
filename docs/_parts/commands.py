"""The commands, as the program itself describes them."""

from typing import Any

import typer.main
from made import Made
from text import code, table

from bitsback.cli.app import app

INTRODUCTION = """# Commands

One program, `bitsback`. Every command has `--help`, and `--json` where a program would read the answer; a mistake is one
sentence on stderr and exit code 1. This page is made from the program.

"""


def commands() -> dict[str, Any]:
    """The commands by name, in the order of ``bitsback --help``."""
    found: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return found


def _shown(value: object) -> str:
    value = getattr(value, "value", value)
    return "" if value is None or value is False or value == [] or callable(value) else code(str(value))


def usage(name: str, command: Any) -> str:
    """How it is called."""
    parts = [f"bitsback {name}"]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            word = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
            parts.append(word if parameter.required else f"[{word}]")
    return " ".join([*parts, "[options]"])


def rows(command: Any) -> list[list[str]]:
    """One line for every argument and option."""
    found = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            names = code(parameter.name.upper())
        else:
            value = "" if getattr(parameter, "is_flag", False) else f" {parameter.name.upper()}"
            names = ", ".join(code(name) for name in parameter.opts[:-1]) + (", " if parameter.opts[1:] else "")
            names += code(parameter.opts[-1] + value)
        default = _shown(parameter.default)
        about = (getattr(parameter, "help", None) or "").removesuffix(".")
        found.append([names, f"{about}; default {default}." if default else f"{about}."])
    return found


def section(name: str, command: Any) -> str:
    """One command."""
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    examples = [part.removeprefix("Example: ") for part in paragraphs if part.startswith("Example: ")]
    prose = [part for part in paragraphs if not part.startswith("Example: ")]
    shown = "\n".join([f"usage: {usage(name, command)}", *(f"$ {example}" for example in examples)])
    lines = [f"## {name}", "", *(f"{part}\n" for part in prose), "```text", shown, "```", ""]
    return "\n".join(lines) + "\n" + table(["argument or option", "meaning"], rows(command)) + "\n"


def make(made: Made) -> None:
    """Write reference/commands.md."""
    made.write(
        "reference/commands.md", INTRODUCTION + "\n".join(section(command, each) for command, each in commands().items())
    )
