"""Where the book keeps what it makes: the project's own folders, found from anywhere inside it."""

from __future__ import annotations

import os
from pathlib import Path

MARKERS = ("pyproject.toml", "_config.yml")


def project_root() -> Path:
    """The checkout's top folder: the nearest one above the working directory with both markers.

    Outside a checkout, the one this package was installed from in editable mode.

    Raises:
        FileNotFoundError: When there is neither.
    """
    here = Path.cwd().resolve()
    source = Path(__file__).resolve().parents[2]
    for folder in (here, *here.parents, source):
        if all((folder / marker).is_file() for marker in MARKERS):
            return folder
    raise FileNotFoundError(
        f"No folder above {here} holds {' and '.join(MARKERS)}: "
        "run this inside a clone of the book's repository."
    )


def results_root() -> Path:
    """The folder of committed records, the book's evidence."""
    return project_root() / "results"


def excerpts_root() -> Path:
    """The folder of excerpts, committed: a few real images of a data set, in a folder each."""
    return project_root() / "data" / "excerpts"


def runs_root() -> Path:
    """The folder of full run outputs, ignored by git: $NUCTUT_RUNS, or `runs/` in the checkout."""
    named = os.environ.get("NUCTUT_RUNS")
    return Path(named).expanduser().resolve() if named else project_root() / "runs"
