"""Build the book: run what has changed, render the pages, replace the old ones.

The chapters are run into `_build/chapters/`, by preset. Each executed chapter lies beside a key: a
digest of all it depends on. While the key is the same, the chapter is not run again. The pages are
rendered from a copy in `_build/stage/`, and take the place of the old ones only once they are
whole, so a failure leaves the last good book as it was.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import yaml

from nuctut import datasets
from nuctut.files import locked, replacing
from nuctut.paths import excerpts_root, project_root, results_root, runs_root
from nuctut.records import NETWORKS, PRESETS
from nuctut.running import plain
from nuctut.running.notebooks import (
    SAID,
    chapters,
    check_values,
    execute,
    read_notebook,
    read_parameters,
    run_key,
    write_values,
)

# Chapters that show the records of all others, and so run after them.
READS_ALL_RECORDS = ("scoreboard",)


def build_book(preset: str | None = None) -> Path:
    """Runs the chapters that need it, renders the book, and returns its first page.

    Of two processes that build the book at once, the second waits for the first.

    Args:
        preset: What the chapters run under; None, or without the parameter, as they stand.

    Raises:
        ValueError: For an unknown preset, or a chapter that is no notebook.
        RuntimeError: When a chapter fails or lacks a figure, or rendering gives a warning.
    """
    root = project_root()
    built = root / "_build"
    started = time.monotonic()
    with _alone(built):
        executed = _run(preset, built)
        stage = _stage(root, executed, built / "stage")
        page = _render_if_changed(stage, built)
    _say(f"Done in {time.monotonic() - started:.0f} s. Open {page}")
    return page


def run_chapters(preset: str | None = None) -> dict[str, Path]:
    """The chapters as the book shows them, run where need be; returns the executed notebooks.

    Raises:
        ValueError, RuntimeError: See `build_book`.
    """
    built = project_root() / "_build"
    with _alone(built):
        return _run(preset, built)


@contextmanager
def _alone(built: Path) -> Iterator[None]:
    """Hold the lock of the folder that is built in, after whoever has it."""
    built.mkdir(exist_ok=True)
    with locked(built, wait=False) as mine:
        if mine:
            yield
            return
    _say(f"Another `nuctut book` is at work in {built}; this one waits for it (Ctrl-C ends that).")
    with locked(built):
        yield


def _run(preset: str | None, built: Path) -> dict[str, Path]:
    """Run what has changed; returns the executed notebooks in the book's order."""
    if preset not in (None, *PRESETS):
        raise ValueError(f"There is no preset {preset!r}, but {', '.join(PRESETS)}.")
    _say(f"The book, from {preset} runs" if preset else "The book, from chapters as they stand")
    notebooks = chapters()
    folder = built / "chapters" / (preset or run_key({}))
    for name in sorted(notebooks, key=lambda name: name in READS_ALL_RECORDS):
        _run_if_changed(notebooks[name], preset, folder)
    return {name: folder / notebook.name for name, notebook in notebooks.items()}


def _say(text: str) -> None:
    print(text, flush=True)


# --- running what has changed --------------------------------------------------------------------


def _run_if_changed(notebook: Path, preset: str | None, folder: Path) -> None:
    output = folder / notebook.name
    key_file = output.with_suffix(".key")
    inputs, records = _inputs_key(notebook, preset), _records_key(notebook)
    if output.is_file() and key_file.is_file() and key_file.read_text() == inputs + records:
        _say(f"  {notebook.stem}: unchanged")
        return
    _say(f"  {notebook.stem}: running")
    values = {"preset": preset} if preset and "preset" in read_parameters(notebook) else {}
    started = time.monotonic()
    key_file.unlink(missing_ok=True)
    execute(notebook, check_values(notebook, values), output, verbose=False)
    _check_figures(output)
    if notebook.stem not in READS_ALL_RECORDS:
        records = _records_key(notebook)  # with those that the run has added
    with replacing(key_file) as path:
        path.write_text(inputs + records, encoding="utf-8")
    _say(f"  {notebook.stem}: {time.monotonic() - started:.0f} s")


def _check_figures(executed: Path) -> None:
    """See to it that every cell that describes its picture in words has one.

    Raises:
        RuntimeError: Naming the first one that has none.
    """
    for cell in read_notebook(executed).cells:
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
        kinds = [kind for output in cell.get("outputs", []) for kind in output.get("data", {})]
        if alt and not any(kind.startswith("image/") for kind in kinds):
            raise RuntimeError(
                f"{executed.stem} has no figure where a cell describes one "
                f"({alt[:60]}…). Let the cell end on it, and look at {executed}."
            )


def _inputs_key(notebook: Path, preset: str | None) -> str:
    """A digest of all that an executed chapter depends on and does not write itself."""
    root = project_root()
    return _digest(
        preset or "",
        platform.python_version(),
        *_file_digests(root, [notebook, root / "requirements.lock"]),
        *_file_digests(root, _files(root / "src", ".py", ".toml")),
        *_file_digests(root, _files(excerpts_root())),
        *_file_digests(root, _files(results_root() / NETWORKS / notebook.stem)),
        *_data_listing(),
    )


def _records_key(notebook: Path) -> str:
    """A digest of the records and tables of sweeps that a chapter shows: its own, or all."""
    whose = "" if notebook.stem in READS_ALL_RECORDS else notebook.stem
    return _digest(
        *_file_digests(results_root(), _files(results_root() / whose, ".json", ".csv")),
        *_file_digests(runs_root(), _files(runs_root() / "results" / whose, ".json")),
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _files(folder: Path, *suffixes: str) -> list[Path]:
    """All files below a folder that end so, or all of them; sorted; none without the folder."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and (not suffixes or path.suffix in suffixes)
    )


def _file_digests(base: Path, paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        yield f"{path.relative_to(base)} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def _data_listing() -> Iterator[str]:
    """Names, sizes and times of the real data's files: to read them all would take too long."""
    root = datasets.data_root()
    yield str(root)
    for name in datasets.REGISTRY:
        for path in _files(root / name):
            entry = path.stat()
            yield f"{path.relative_to(root)} {entry.st_size} {entry.st_mtime_ns}"


# --- rendering -----------------------------------------------------------------------------------


def _stage(root: Path, executed: dict[str, Path], stage: Path) -> Path:
    """A copy of the book with the executed chapters in it; returns its folder."""
    shutil.rmtree(stage, ignore_errors=True)
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.ipynb")
    shutil.copytree(root / "book", stage / "book", ignore=ignore)
    # The pages link to the records they show.
    for record in _files(results_root(), ".json"):
        copy = stage / record.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(record, copy)
    for name, notebook in chapters().items():
        nbformat.write(_as_page(executed[name]), stage / notebook.relative_to(root))
    plain.write(stage / "notebooks")  # which the pages offer
    shutil.copy(root / "_toc.yml", stage)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    config["execute"] |= {"execute_notebooks": "off"}
    (stage / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return stage


def _as_page(path: Path) -> nbformat.NotebookNode:
    """An executed chapter with the values it ran with in its own `parameters` cell.

    Papermill puts them into a cell of its own, below the defaults; a page with both would be
    misread. The lines of what was said are left out: the text has the values.
    """
    notebook = read_notebook(path)
    values = notebook.metadata.get("papermill", {}).get("parameters", {})
    kept = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags:
            cell.source = write_values(cell.source, values)
        if cell.cell_type == "code":
            outputs = cell.outputs
            cell.outputs = [one for one in outputs if one.get("metadata", {}).get("nuctut") != SAID]
        if "injected-parameters" not in tags:
            kept.append(cell)
    notebook.cells = kept
    return notebook


def _render_if_changed(stage: Path, built: Path) -> Path:
    html, key_file = built / "html", built / "html.key"
    page = html / "index.html"
    lock = built.parent / "requirements.lock"
    key = _digest(*_file_digests(stage, _files(stage)), *_file_digests(built.parent, [lock]))
    if page.is_file() and key_file.is_file() and key_file.read_text() == key:
        _say("  pages: unchanged")
        return page
    _say("  pages: rendering")
    started = time.monotonic()
    rendered = _render(stage, built / "render")
    key_file.unlink(missing_ok=True)
    old = built / "html.old"
    shutil.rmtree(old, ignore_errors=True)
    if html.exists():
        os.replace(html, old)
    os.replace(rendered, html)
    shutil.rmtree(old, ignore_errors=True)
    with replacing(key_file) as path:
        path.write_text(key, encoding="utf-8")
    _say(f"  pages: {time.monotonic() - started:.0f} s")
    return page


def _render(stage: Path, folder: Path) -> Path:
    """Renders the stage with every warning an error; returns the folder of pages."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "nuctut.running.children", "jupyter_book.cli.main:main"]
    words = ["build", str(stage), "--path-output", str(folder), "-W", "-n", "--keep-going"]
    log = folder / "log.txt"
    with log.open("wb") as out:
        to = {"stdin": subprocess.PIPE, "stdout": out, "stderr": subprocess.STDOUT}
        with subprocess.Popen([*command, *words], **to) as process:
            try:
                status = process.wait()  # not communicate, which would close its input
            finally:
                process.kill()
    told = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8", errors="replace"))
    log.write_text(told, encoding="utf-8")  # without colours
    pages = folder / "_build" / "html"
    if status != 0 or not (pages / "index.html").is_file():
        lines = told.splitlines()
        reasons = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines[-15:]
        lines = [line.replace(f"{stage}{os.sep}", "") for line in reasons]
        raise RuntimeError(
            "\n  ".join(["Rendering the pages failed:", *lines, f"all of it: {log}"])
        )
    return pages
