"""Tiny projects with tiny chapters, for the tests of what runs chapters and builds the book."""

from pathlib import Path

import nbformat
from nbformat import v4

PARAMETERS = """\
preset: str = "smoke"  # how much to do
seed: int = 0  # of the random generator
rate: float = 1e-3  # step, "#" and all
quick: bool = False  # leave out the slow part"""


def write_chapter(path: Path, *sources: str, parameters: str | None = PARAMETERS) -> Path:
    """A notebook with a title, a `parameters` cell (unless None) and code cells."""
    cells = [v4.new_markdown_cell(f"# {path.stem}")]
    if parameters is not None:
        cells.append(v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [v4.new_code_cell(source) for source in sources]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def write_project(root: Path, chapters: list[str], pages: list[str]) -> None:
    """A table of contents, a configuration and the pages; the chapters are left to the test."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "pyproject.toml").write_text("")
    (root / "requirements.lock").write_text("numpy==2.0\n")
    (root / "src").mkdir()
    (root / "src" / "module.py").write_text("VALUE = 1\n")
    (root / "_config.yml").write_text("title: Tiny\nexecute:\n  execute_notebooks: force\n")
    entries = "".join(f"  - file: book/{name}\n" for name in [*chapters, *pages])
    toc = f"format: jb-book\nroot: book/index\nchapters:\n{entries}"
    (root / "_toc.yml").write_text(toc)
    (root / "book").mkdir()
    for name in ["index", *pages]:
        (root / "book" / f"{name}.md").write_text(f"# The {name} page\n")
