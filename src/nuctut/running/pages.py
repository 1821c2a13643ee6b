"""What the book's pages need from Sphinx beyond what Jupyter Book sets: named in `_config.yml`.

Formulas are drawn by MathJax from the book's own folder, as shapes, so that a page opened from disk
without a network shows them: browsers refuse to load MathJax's fonts from there.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

MATHJAX = "tex-svg.js"
SAME_IDS = {"exercise-content", "solution-content"}  # which sphinx-exercise gives to all of them


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("config-inited", _bring_mathjax)
    app.connect("doctree-read", _give_own_ids)
    return {"parallel_read_safe": True}


def _bring_mathjax(app: Sphinx, config) -> None:
    (package,) = find_spec("sphinx-mathjax-offline").submodule_search_locations
    config.html_static_path.append(str(Path(package, "static", "mathjax", MATHJAX)))
    config.mathjax_path = MATHJAX


def _give_own_ids(app: Sphinx, page: nodes.document) -> None:
    for number, section in enumerate(page.findall(nodes.section)):
        if SAME_IDS & set(section["ids"]):
            section["ids"] = [f"{name}-{number}" for name in section["ids"]]
