"""Run a chapter with parameters through papermill; quote its values.

A chapter states its parameters in one cell tagged `parameters`, one `name: type = value  # help`
per line. They are read from there and held against what is asked for before anything starts:
papermill itself would only log a warning at a name it does not know.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import re
import sys
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import yaml

from nuctut.files import replacing
from nuctut.paths import project_root, runs_root
from nuctut.records import PRESETS

Value = str | int | float | bool
TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
TRUTHS = {"true": True, "false": False}


@dataclass(frozen=True)
class Parameter:
    """One line of a chapter's `parameters` cell."""

    name: str
    type: type
    default: Value
    help: str

    def __str__(self) -> str:
        return f"{self.name}: {self.type.__name__} = {self.default!r}"


# --- chapters ------------------------------------------------------------------------------------


def chapters() -> dict[str, Path]:
    """The notebooks of the table of contents by name, in the book's order.

    Raises:
        FileNotFoundError: When the table of contents names a page that does not exist.
    """
    root = project_root()
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    entries = [*toc.get("chapters", [])]
    for part in toc.get("parts", []):
        entries += part["chapters"]
    found = {}
    for page in (root / entry["file"] for entry in entries):
        notebook = page.with_name(page.name + ".ipynb")
        if notebook.is_file():
            found[page.name] = notebook
        elif not page.with_name(page.name + ".md").is_file():
            raise FileNotFoundError(f"_toc.yml names {page.relative_to(root)}, which is not there.")
    return found


def find_chapter(name: str) -> Path:
    """The notebook of a chapter, by its whole name or its beginning, such as "01".

    Raises:
        ValueError: When no chapter, or more than one, fits; the message names what exists.
    """
    known = chapters()
    fitting = [name] if name in known else [one for one in known if name and one.startswith(name)]
    if len(fitting) != 1:
        raise ValueError(f"There is no one chapter {name!r}, but {', '.join(known)}.")
    return known[fitting[0]]


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a chapter by name; empty where it has no cell tagged `parameters`.

    Raises:
        ValueError: When a line of that cell is not `name: type = value  # help`.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if not tagged:
        return {}
    source = tagged[0].source
    help_of = _comments(source)
    parameters = {}
    for statement in ast.parse(source).body:
        try:
            parameter = _parameter(statement, help_of.get(statement.lineno, ""))
        except ValueError as error:
            line = ast.get_source_segment(source, statement)
            raise ValueError(f"{notebook.name}, parameters cell, {line!r}: {error}") from None
        parameters[parameter.name] = parameter
    return parameters


def _comments(source: str) -> dict[int, str]:
    """The comments of a piece of code by line number, without their #."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _parameter(statement: ast.stmt, help_text: str) -> Parameter:
    match statement:
        case ast.AnnAssign(
            target=ast.Name(id=name), annotation=ast.Name(id=type_name), value=ast.expr() as value
        ) if type_name in TYPES:
            default = _as_type(TYPES[type_name], ast.literal_eval(value))
            return Parameter(name, TYPES[type_name], default, help_text)
    raise ValueError(f"expected `name: type = value  # help` with a type of {', '.join(TYPES)}.")


def _as_type(kind: type, value: object) -> Value:
    """`value` as `kind`: as it is, as a whole number where a float is due, or read from text."""
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(value, str) and kind is bool and value.lower() in TRUTHS:
        return TRUTHS[value.lower()]
    if isinstance(value, str) and kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    raise ValueError(f"expected {kind.__name__}, not {value!r}.")


def write_values(source: str, values: Mapping[str, Value]) -> str:
    """The source of a `parameters` cell with other values in it."""
    lines = source.split("\n")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.AnnAssign) and statement.target.id in values:
            old = ast.get_source_segment(source, statement.value)
            new = _literal(values[statement.target.id])
            at = statement.lineno - 1
            lines[at] = lines[at].replace(f"= {old}", f"= {new}", 1)
    return "\n".join(lines)


def _literal(value: Value) -> str:
    """A value as Python source, with double quotes where that changes nothing else."""
    text = repr(value)
    return text if '"' in text or "\\" in text else text.replace("'", '"')


def check_values(notebook: Path, values: Mapping[str, object]) -> dict[str, Value]:
    """`values` as the types the chapter's parameters have; texts are read as their type.

    Raises:
        ValueError: For a parameter the chapter does not have, a value that is not of its type, or
            an unknown preset; the message names what exists.
    """
    parameters = read_parameters(notebook)
    checked = {}
    for name, value in values.items():
        if name not in parameters:
            known = ", ".join(map(str, parameters.values())) or "none"
            raise ValueError(f"{notebook.stem} has no parameter {name!r}. It has: {known}.")
        try:
            checked[name] = _as_type(parameters[name].type, value)
        except ValueError as error:
            raise ValueError(f"{notebook.stem}, parameter {name}: {error}") from None
        if name == "preset" and checked[name] not in PRESETS:
            raise ValueError(f"There is no preset {value!r}, but {', '.join(PRESETS)}.")
    return checked


# --- running -------------------------------------------------------------------------------------


def execute(
    notebook: Path, values: Mapping[str, Value], output: Path, *, verbose: bool
) -> nbformat.NotebookNode:
    """Runs a notebook in its own folder and writes the outcome to `output`, whole or not at all.

    Args:
        notebook: The notebook to run.
        values: Its parameters, checked already.
        output: Where the executed notebook goes. One that fails goes beside it, as
            `<name>.failed.ipynb`, and leaves an earlier `output` as it was.
        verbose: Whether to show a progress bar and what the cells print.

    Raises:
        RuntimeError: When a cell fails; the message has the cell's number and error.
    """
    import papermill  # here, because it takes a second, and most of the command line needs none

    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.stem}.{os.getpid()}.ipynb")
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    try:
        executed = papermill.execute_notebook(
            str(notebook),
            str(partial),
            parameters=dict(values),
            cwd=str(notebook.parent),
            start_timeout=300,
            # Else every kernel warns that it talks to us over an unencrypted local socket.
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            progress_bar=verbose,
            stdout_file=sys.stdout if verbose else None,
            stderr_file=sys.stderr if verbose else None,
        )
    except Exception as error:
        kept = ""
        if partial.is_file():
            os.replace(partial, failed)
            kept = f"\n  as far as it came: {failed}"
        raise RuntimeError(f"{notebook.stem} failed{_reason(error)}{kept}") from error
    finally:
        partial.unlink(missing_ok=True)
    with replacing(output) as path:
        nbformat.write(executed, path)
    failed.unlink(missing_ok=True)
    return executed


def _reason(error: Exception) -> str:
    """Which cell failed and why, in two lines, from papermill's or the kernel's error."""
    if not hasattr(error, "ename"):
        return f": {type(error).__name__}: {error}"
    first_line = (error.source.strip().splitlines() or [""])[0]
    return f" in cell [{error.exec_count}]: {error.ename}: {error.evalue}\n  > {first_line}"


def run_chapter(
    chapter: str, values: Mapping[str, object] | None = None, *, verbose: bool = True
) -> Path:
    """Runs a chapter and returns the executed notebook, in `runs/<chapter>/`.

    Args:
        chapter: Its name or the beginning of it, such as "01".
        values: Parameters that differ from the chapter's own, as values or as text.
        verbose: Whether to show progress.

    Raises:
        ValueError: For an unknown chapter, parameter or preset, or a value of the wrong type.
        RuntimeError: When a cell fails.
    """
    notebook = find_chapter(chapter)
    checked = check_values(notebook, values or {})
    output = runs_root() / notebook.stem / f"{run_key(checked)}.ipynb"
    execute(notebook, checked, output, verbose=verbose)
    return output


def run_key(values: Mapping[str, Value]) -> str:
    """A file name for a set of parameters: readable, and another for other parameters."""
    if not values:
        return "as-it-stands"
    exact = json.dumps(values, sort_keys=True)
    readable = "--".join(f"{name}-{values[name]}" for name in sorted(values))
    safe = re.sub(r"[^A-Za-z0-9.-]+", "_", readable)[:80]
    return f"{safe}--{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


# --- what a chapter says in its text -------------------------------------------------------------


def say(**values: object) -> None:
    """Give values names by which the text of a page can quote them, as in {glue:text}`name`."""
    from myst_nb import glue  # here, because only chapters need it

    for name, value in values.items():
        # A NumPy scalar would be quoted with its type around it.
        glue(name, value.item() if isinstance(value, np.generic) else value, display=False)
