"""Formulas as MathML, which browsers draw by themselves: no script, no font, no picture."""

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def draw(self: Any, node: nodes.Element) -> None:
    """Write one formula; the text of ``$...$`` or of a ``math`` directive is LaTeX."""
    is_block = isinstance(node, nodes.math_block)
    mathml = tex2mathml(node.astext(), as_block=is_block)
    self.body.append(f'<div class="math">{mathml}</div>' if is_block else mathml)
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer as ``mathml``."""
    app.add_html_math_renderer("mathml", inline_renderers=(draw, None), block_renderers=(draw, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
