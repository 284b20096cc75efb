"""Formulas as MathML, by docutils' own translator: browsers draw it, and no page asks a server for a script."""

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

LOGGER = logging.getLogger(__name__)


def _draw(self: HTML5Translator, node: nodes.Element, *, as_block: bool) -> None:
    try:
        self.body.append(tex2mathml(node.astext(), as_block=as_block))
    except MathError as error:
        LOGGER.warning("formula: %s", error, location=node)
    raise nodes.SkipNode


def _inline(self: HTML5Translator, node: nodes.Element) -> None:
    _draw(self, node, as_block=False)


def _block(self: HTML5Translator, node: nodes.Element) -> None:
    _draw(self, node, as_block=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the renderer as html_math_renderer = "mathml"."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
