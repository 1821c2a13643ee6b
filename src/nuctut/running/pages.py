"""What the book's pages need from Sphinx beyond what Jupyter Book sets: named in `_config.yml`.

Formulas are drawn by MathJax from the book's own folder, as shapes, so that a page opened from disk
without a network shows them: browsers refuse to load MathJax's fonts from there.

What a chapter's page offers on Colab and for download is the chapter's plain copy.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

COPIES = "notebooks"  # below the book's top folder, and below the pages'
MATHJAX = "tex-svg.js"
SAME_IDS = {"exercise-content", "solution-content"}  # which sphinx-exercise gives to all of them


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("config-inited", _bring_mathjax)
    app.connect("doctree-read", _give_own_ids)
    app.connect("html-page-context", _offer_copy, priority=900)  # once the theme has its buttons
    app.connect("build-finished", _bring_copies)
    return {"parallel_read_safe": True}


def _bring_mathjax(app: Sphinx, config) -> None:
    (package,) = find_spec("sphinx-mathjax-offline").submodule_search_locations
    config.html_static_path.append(str(Path(package, "static", "mathjax", MATHJAX)))
    config.mathjax_path = MATHJAX


def _give_own_ids(app: Sphinx, page: nodes.document) -> None:
    for number, section in enumerate(page.findall(nodes.section)):
        if SAME_IDS & set(section["ids"]):
            section["ids"] = [f"{name}-{number}" for name in section["ids"]]


def _offer_copy(app: Sphinx, page: str, template: str, context: dict[str, Any], _) -> None:
    name = f"{Path(page).name}.ipynb"
    if not Path(app.srcdir, COPIES, name).is_file():
        return
    for button in (one for group in context["header_buttons"] for one in group.get("buttons", [])):
        if button["text"] == "Colab":
            button["url"] = button["url"].replace(f"{page}.ipynb", f"{COPIES}/{name}")
        elif button.get("label") == "download-source-button":
            button["url"] = context["pathto"](f"{COPIES}/{name}", resource=True)


def _bring_copies(app: Sphinx, error: Exception | None) -> None:
    if error is None and (copies := Path(app.srcdir, COPIES)).is_dir():
        shutil.copytree(copies, Path(app.outdir, COPIES), dirs_exist_ok=True)
