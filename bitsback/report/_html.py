"""Rendering of templates to self-contained HTML."""

import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from bitsback import __version__

__all__ = ["MINUS", "render", "shown"]

MINUS = "\N{MINUS SIGN}"
PAGES = files("bitsback.report") / "templates"


def _read(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def render(template: str, numbers: dict[str, Any], **values: Any) -> str:
    """Render a template to HTML that holds its style, scripts and data and loads nothing from a network.

    Args:
        template: file name in ``bitsback/report/templates``.
        numbers: data of the page's script, JSON values.
        **values: variables of the template; strings are escaped, except :class:`markupsafe.Markup`.

    Returns:
        HTML.
    """
    room = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = json.dumps(numbers, allow_nan=False).replace("<", "\\u003c")  # so that no string closes the script element
    frame = {"css": Markup(_read("page.css")), "js": Markup(_read("page.js")), "version": __version__}
    return room.get_template(template).render(numbers=Markup(text), **frame, **values)


def shown(bits: float) -> str:
    """Format bits for a reader: no decimals from 100 on, at most two below.

    Returns:
        Text with thousands separators.

    >>> shown(4773.61), shown(89.71), shown(1.163), shown(-0.0)
    ('4,774', '89.7', '1.16', '0')
    >>> shown(10.0), shown(-3.25)
    ('10', '−3.25')
    """
    size = abs(bits)
    if size < 0.005:
        return "0"
    text = f"{bits:,.0f}" if size >= 100 or bits == int(bits) else f"{bits:.1f}" if size >= 10 else f"{bits:.2f}"
    return text.replace("-", MINUS)
