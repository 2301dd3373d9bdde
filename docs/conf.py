"""Settings of the documentation. It builds without a network; see `FIMODA_INTERSPHINX` below."""

import os
import re
from importlib.metadata import version as installed_version
from pathlib import Path

project = "fimoda"
author = "The fimoda developers"
copyright = "2026, The fimoda developers"
release = installed_version("fimoda")
version = ".".join(release.split(".")[:2])

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "auto_examples/**.ipynb", "auto_examples/**.py"]
nitpicky = True  # every reference has a target

# -- API pages -----------------------------------------------------------------------------------

autosummary_generate = True
_method_pages = {  # by the class that a page names first
    re.search(r":class:`(\w+)`", page.read_text())[1]: page.stem
    for page in Path(__file__).parent.glob("methods/*.rst")
    if page.stem != "index"
}
autosummary_context = {"method_pages": _method_pages}
autodoc_typehints = "none"  # the docstrings name the types
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # the class template lists them


def _skip_scikit_learn(app, what, name, obj, skip, options):
    """Leave out what scikit-learn's base classes add: it is documented there."""
    module = getattr(obj, "__module__", None) or ""
    return True if module.split(".")[0] == "sklearn" else None


def setup(app):
    app.connect("autodoc-skip-member", _skip_scikit_learn)


# -- Gallery -------------------------------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "plot_gallery": os.environ.get("FIMODA_PLOT_GALLERY", "1") == "1",
}

# -- Links to other documentations ---------------------------------------------------------------

if os.environ.get("FIMODA_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "skorch": ("https://skorch.readthedocs.io/en/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

# -- HTML ----------------------------------------------------------------------------------------

html_theme = "alabaster"
html_theme_options = {
    "description": "Training-data attribution for scikit-learn",
    "page_width": "1100px",
    "fixed_sidebar": True,
}
html_show_sourcelink = False
