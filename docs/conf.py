"""How Sphinx builds this site: pages by hand, and pages made from the package when the build begins.

``python -m sphinx -W --keep-going -b html docs docs/_build/html``; nothing is fetched from a network.
"""

import re
import sys
from abc import ABC
from pathlib import Path
from typing import Any, get_origin

from docutils import nodes
from pydantic import BaseModel
from sphinx.util.nodes import make_refnode

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_parts"), str(HERE.parent)]

import api  # noqa: E402
import bound  # noqa: E402
import commands  # noqa: E402
import explorer  # noqa: E402
import figures  # noqa: E402
import settings  # noqa: E402
from made import Made  # noqa: E402

import bitsback  # noqa: E402
from bitsback.nn import BayesianLayer  # noqa: E402

project = "bitsback"
author = "the authors of bitsback"
copyright = "the authors of bitsback, Apache-2.0"
version = release = bitsback.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]
exclude_patterns = ["_build", "_parts", "explorer", "**.ipynb_checkpoints"]
smartquotes = False
highlight_language = "text"

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries = False

html_theme = "furo"
html_title = "bitsback"
html_static_path = ["_static"]
html_extra_path = ["explorer"]
html_css_files = ["bitsback.css"]
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"
pygments_style = "tango"
pygments_dark_style = "github-dark"
html_theme_options: dict[str, Any] = {
    "light_css_variables": {"color-brand-primary": "#0b5394", "color-brand-content": "#0b5394"},
    "dark_css_variables": {"color-brand-primary": "#7fb8e8", "color-brand-content": "#7fb8e8"},
}


def make_pages(_app: object) -> None:
    """Write what is made from the package, its tables of numbers and its notebooks; untouched where nothing changed."""
    made = Made(HERE)
    for part in (api, settings, commands, bound, figures, explorer):
        part.make(made)
    made.remove_others("reference", "notebooks", "figures", "explorer")


def give_title(_app: object, name: str, text: list[str]) -> None:
    """A table that a script wrote has no title of its own."""
    if name == "benchmarks/bits_first":
        text[0] = "# Seconds to a bit: the first trainings\n\n" + text[0]


def read_plainly(_app: object, what: str, _name: str, _thing: object, _options: object, lines: list[str]) -> None:
    """Keep docstrings as they are meant: |w| is the size of w, and "this: that" about a constant begins with no type."""
    for place, line in enumerate(lines):
        parts = line.split("``")
        lines[place] = "``".join(part if odd % 2 else part.replace("|", "\\|") for odd, part in enumerate(parts))
    lines[:] = one_attribute_each(lines)
    if what in ("attribute", "data", "property") and lines:
        lines[0] = f": {lines[0]}"  # napoleon takes what stands before the first colon for a type


def one_attribute_each(lines: list[str]) -> list[str]:
    """Give each of the attributes ``a, b: what they are`` an entry of its own, as napoleon does with parameters."""
    found: list[str] = []
    waiting: list[tuple[str, list[str]]] = []
    is_inside = False
    for line in [*lines, ""]:
        is_inside = line.strip() == "Attributes:" or (is_inside and (not line.strip() or line.startswith(" ")))
        together = re.match(r"    (\w+(?:, \w+)+): ", line) if is_inside else None
        if waiting and not line.startswith("     "):
            found += [text for name, rest in waiting for text in (f"    {name}: {rest[0]}", *rest[1:])]
            waiting = []
        if together:
            waiting = [(name, [line[together.end() :]]) for name in together[1].split(", ")]
        elif waiting:
            for _, rest in waiting:
                rest.append(line)
        else:
            found.append(line)
    return found[:-1]


def leave_out_internal(_app: object, _name: str, _thing: object, _options: object, bases: list[Any]) -> None:
    """That a class is an object goes without saying; for a base that is internal stands the next that is not."""
    found = [each for base in bases for each in ([base] if get_origin(base) else api.nearest(base))]
    bases[:] = [each for each in dict.fromkeys(found) if each not in (object, ABC)]


def use_own_words(_app: object, document: nodes.document) -> None:
    """Remove the line that :func:`leave_out_internal` has left without contents; attributes are called attributes."""
    for name in document.findall(nodes.field_name):
        if name.astext() == "Variables":
            name.replace(name[0], nodes.Text("Attributes"))
    for line in [each for each in document.findall(nodes.paragraph) if each.astext().strip() == "Bases:"]:
        line.parent.remove(line)


def shorten_signature(_app: object, _what: str, _name: str, found: Any, *_rest: object) -> tuple[str, str] | None:
    """Settings have a page of their own, and a protocol is not called; what layers take, their base says in full."""
    if not isinstance(found, type):
        return None
    if issubclass(found, BaseModel) or getattr(found, "_is_protocol", False):
        return "", ""
    if issubclass(found, BayesianLayer) and found is not BayesianLayer:
        return "(*args, prior='gaussian', posterior=None, seed=None, **kwargs)", ""
    return None


def leave_out_requests(_app: object, _what: str, name: str, _found: object, _skip: bool, _options: object) -> bool | None:
    """Leave out the methods that scikit-learn gives every estimator, for metadata that these do not take."""
    return True if name.startswith("set_") and name.endswith("_request") else None


def forget_homes(_app: object, environment: Any) -> None:
    """Leave names of modules where things are defined out of the index and the inventory; references go by the public name."""
    objects = environment.domains["py"].objects
    for name in [name for name, entry in objects.items() if entry.aliased]:
        del objects[name]


def find_public_name(app: Any, environment: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """Lead a reference by the name of a home, or to a member that a base describes, to where it is; others stay code."""
    if node.get("refdomain") != "py":
        return None
    target, domain = node["reftarget"], environment.domains["py"]
    owner = ".".join(filter(None, (node.get("py:module"), node.get("py:class"))))
    wanted = [api.public_name(target), *(api.public_name(each) for each in api.members_of_bases(owner, target))]
    for name in wanted:
        if name in domain.objects:
            place = domain.objects[name]
            return make_refnode(app.builder, node["refdoc"], place.docname, place.node_id, content, name)
    if any(part.startswith("_") for part in target.split(".")[:-1]):  # a private module
        return nodes.literal("", content.astext().rpartition(".")[2]) if "." in content.astext() else content
    return None


def setup(app: Any) -> None:
    """Make the pages before Sphinx looks for them."""
    app.connect("config-inited", lambda _app, _config: make_pages(_app))
    app.connect("source-read", give_title)
    app.connect("autodoc-process-bases", leave_out_internal)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-skip-member", leave_out_requests)
    app.connect("env-updated", forget_homes)
    app.connect("missing-reference", find_public_name)
    app.connect("doctree-read", use_own_words)
    app.connect("autodoc-process-docstring", read_plainly, priority=400)  # before napoleon
