"""Sphinx: `python -m sphinx -W -n -b html docs build/docs`, and `-b doctest` for the examples.

The pages load nothing from other hosts: formulas are MathML, figures SVG in the page, fonts the theme's own.
"""

import doctest
import os
import re
import sys
from pathlib import Path

import fastsoftmax

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

project = "fastsoftmax"
author = "the maintainers of fastsoftmax"
copyright = "the maintainers of fastsoftmax, BSD-3-Clause"
release = version = fastsoftmax.__version__

extensions = [
    "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.doctest", "numpydoc", "myst_nb",
    "figures", "lab", "mathml",     # in _ext
]
exclude_patterns = ["_ext", "generated/lab"]

# Signatures as they are typed, not the overloads that type checkers read; types stand under Parameters.
autodoc_typehints = "none"
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
doctest_default_flags = doctest.NORMALIZE_WHITESPACE
doctest_test_doctest_blocks = "default"

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
# For the processes of notebooks: their products are small, and while other programs have the cores, OpenBLAS's threads
# wait for each other many times as long as they compute.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
nb_execution_mode = "force"         # pages are stored without output; a cell that raises fails the build
nb_execution_raise_on_error = True
nb_execution_timeout = 300          # seconds a cell: with both cores taken, training takes a minute
nb_merge_streams = True
suppress_warnings = ["myst-nb.lexer"]       # with -D nb_execution_mode=off no kernel names the language of a cell
nitpick_ignore_regex = [("py:obj", r"torch\..*|numpy\..*|fastsoftmax\.reference.*"), ("py:exc", r"numpy\..*")]

html_theme = "pydata_sphinx_theme"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["fastsoftmax.css"]
html_title = "fastsoftmax"
html_copy_source = html_show_sourcelink = False
html_sidebars = {"**": ["contents"]}
templates_path = ["_templates"]
html_theme_options = {
    "navigation_with_keys": False,
    "navbar_center": [],
    "show_toc_level": 2,
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}


def check_reference(app):
    """The API reference lists every public name."""
    from sphinx.util import logging

    listed = set(re.findall(r"^   (\w+)$", (HERE / "api.md").read_text(encoding="utf-8"), re.MULTILINE))
    names = {name for name in fastsoftmax.__all__ if not name.startswith("__")}
    if listed != names:
        logging.getLogger(__name__).warning("api.md differs from __all__: %s", ", ".join(sorted(listed ^ names)))


def plain_drawings(app, what, name, obj, options, lines):
    """The drawings in docstrings, literal blocks, are no Python to be coloured."""
    lines[:] = [line.replace("::", ".. code-block:: text") if line.strip() == "::" else line for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", plain_drawings)
    app.connect("builder-inited", check_reference)
