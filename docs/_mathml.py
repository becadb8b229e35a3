"""Equations as MathML, made while Sphinx builds: pages show them without a network, and without JavaScript."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def inline(translator, node: nodes.math) -> None:
    """``$x$``, and RST's ``:math:``."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(translator, node: nodes.math_block) -> None:
    """``$$x$$``, and RST's ``.. math::``."""
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """As an extension."""
    app.add_html_math_renderer('mathml', (inline, None), (block, None))
