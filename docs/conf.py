"""How Sphinx builds these pages: `sphinx-build -W --keep-going -n docs docs/_build`. Nothing is fetched."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from compresskd import __version__

project = "compresskd"
copyright = "the authors of compresskd, Apache-2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "api_pages",
    "command_help",
    "configuration",
    "docstrings",
    "layers_picture",
    "mathml",
]
exclude_patterns = ["_build", "_ext"]
myst_enable_extensions = ["dollarmath", "deflist", "fieldlist"]
myst_heading_anchors = 3
smartquotes = False  # what is quoted here is often typed
html_math_renderer = "mathml"

autodoc_default_options = {"special-members": "__call__"}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_use_ivar = True

# What lies outside of the package, or is private to a module, has no page to refer to.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!compresskd).*"),
    (r"py:.*", r"compresskd\.(.*\.)?_.*"),
]

# An attribute is documented with its class; that other classes have one of its name is no fault.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = f"compresskd {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
html_copy_source = False
