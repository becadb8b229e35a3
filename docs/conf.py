"""Sphinx settings; `make docs` builds offline, with warnings as errors."""

import sys
from pathlib import Path

from mmsokd.version import __version__

project = 'mmsokd'
author = 'the mmsokd authors'
copyright = '2026, the mmsokd authors; Apache-2.0'
release = __version__

sys.path.insert(0, str(Path(__file__).parent))
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode', '_mathml']
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'mmsokd {release}'
html_static_path = ['_static']
html_css_files = ['custom.css']
html_math_renderer = 'mathml'

myst_enable_extensions = ['dollarmath', 'amsmath']
myst_heading_anchors = 3

autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # they stand in the signature already
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def setup(app):
    """Write the configuration reference."""
    import _reference

    _reference.page()
    app.connect('source-read', _reference.fill)
