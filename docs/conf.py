"""The site of these pages and of the docstrings: ``sphinx-build -W docs docs/_build``."""

import editkit

project = "editkit"
release = version = editkit.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"editkit {release}"
html_copy_source = False

myst_heading_anchors = 3  # pages link to one another's headings
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # what Lightning says of its hooks is in Lightning's own reference
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
