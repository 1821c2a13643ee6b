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
import logging
import math
import os
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import yaml

from nuctut import classical, datasets
from nuctut.files import Malformed, own, read_text, replacing
from nuctut.paths import project_root, runs_root
from nuctut.records import PRESETS

Value = str | int | float | bool
TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
TRUTHS = {"true": True, "false": False}

# What the chapters' parameters may be, by name; the default of one may always be said.
ONE_OF = {
    "data": datasets.SOURCES,
    "device": ("auto", "cpu", "gpu"),
    "configuration": classical.CONFIGURATIONS,
    # of all chapters; which of them a chapter has, it says itself
    "on": ("bitdepth_nucseg", "sbsst265_neuroblastoma", "tnbc", "monuseg"),
}
SOME_OF = {  # with commas between them
    "teachers": ("ground-truth", "shape-intensity", "consensus"),
    # of all chapters; which of them a chapter has, it says itself
    "networks": (
        *("simple-cnn", "resnet", "u-net", "mask-rcnn", "unet-resnet", "deepcell"),
        *("u-net-standard", "u-net-aug", "bns-1", "bns-2", "bns-3", "bns-4", "denoiseg"),
        *("u-net-aug-wide", "bns-4-without-deblurring", "bns-4-blurred-labels"),
        *("u-net-gaussian", "u-net-poisson"),
    ),
    "conditions": (
        *("unscaled", "scaled", "silver", "artificial"),
        *("naive", "distance", "proposed", "balanced", "full-labels", "no-normalisation"),
        *("stain-jitter", "patch-cnn"),
    ),
    "shares": ("2", "5", "10", "25", "50", "100"),
    "variants": (
        *("all-ideas", "without-separations", "without-balance", "without-one-size"),
        *("without-masking", "without-blur", "common"),
    ),
}
AT_LEAST_0 = ("seed", "images", "epochs", "learning_rate", "alpha", "beta", "strength", "radius")
AT_LEAST_0 += ("foreground", "only")
PATIENCE = 300  # seconds that a kernel may keep us waiting
NOT_STARTED = "Kernel died before replying to kernel_info"  # of jupyter_client: no cell has run
LARGEST = 2**32 - 1  # seed that Lightning takes; nobody counts further


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
        ValueError: When the table of contents is malformed.
        FileNotFoundError: When it names a page that does not exist.
    """
    root = project_root()
    found = {}
    for page in (root / name for name in _pages(root / "_toc.yml")):
        notebook = page.with_name(page.name + ".ipynb")
        if notebook.is_file():
            found[page.name] = notebook
        elif not page.with_name(page.name + ".md").is_file():
            raise FileNotFoundError(f"_toc.yml names {page.relative_to(root)}, which is not there.")
    return found


def _pages(toc: Path) -> list[str]:
    """The pages of a table of contents, without their endings."""
    try:
        content = yaml.safe_load(read_text(toc))
        entries = [*content.get("chapters", [])]
        for part in content.get("parts", []):
            entries += part["chapters"]
        return [str(entry["file"]) for entry in entries]
    except (yaml.YAMLError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise Malformed(f"{toc}: not a table of contents of Jupyter Book ({error}).") from error


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


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook from its file.

    Raises:
        FileNotFoundError: When there is none.
        Malformed: Naming the file, when it holds no notebook.
    """
    text = read_text(path)
    invalid: dict[str, Exception] = {}
    try:
        notebook = nbformat.reads(text, as_version=4, capture_validation_error=invalid)
    except Exception as error:  # of any kind, where nbformat looks for what is not there
        invalid["error"] = error
    for error in invalid.values():
        reason = (str(error).strip().splitlines() or ["it is empty"])[0][:200]
        raise Malformed(f"{path}: not a notebook ({reason}).")
    return notebook


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a chapter by name; empty where it has no cell tagged `parameters`.

    Raises:
        ValueError: When the file is no notebook, or a line of that cell is not
            `name: type = value  # help`.
    """
    cells = read_notebook(notebook).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if not tagged:
        return {}
    try:
        parameters = list(_parameters(tagged[0].source))
    except ValueError as error:
        raise ValueError(f"{notebook.name}, parameters cell, {error}") from None
    return {parameter.name: parameter for parameter in parameters}


def _parameters(source: str) -> Iterator[Parameter]:
    try:
        statements = ast.parse(source).body
        help_of = _comments(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"which is no Python ({error}).") from None
    known = set()
    for statement in statements:
        line = (ast.get_source_segment(source, statement) or "").partition("\n")[0]
        try:
            parameter = _parameter(statement, help_of.get(statement.lineno, ""))
            if parameter.name in known:
                raise ValueError("it stands there twice.")
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            raise ValueError(f"{line!r}: {error}") from None
        known.add(parameter.name)
        yield parameter


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
    if type(value) is str and kind is bool:
        value = TRUTHS.get(value.lower(), value)
    elif kind in (int, float) and type(value) in (str, int) and type(value) is not kind:
        try:
            value = kind(value)
        except (ValueError, OverflowError):
            pass
    if type(value) is not kind:
        raise ValueError(f"expected {kind.__name__}, not {value!r}.")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"expected a finite number, not {value!r}.")
    return value


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
        ValueError: For a parameter the chapter does not have, a value that is not of its type or
            out of its range, or an unknown choice; the message names what exists.
    """
    several = check_several(notebook, {name: [value] for name, value in values.items()})
    return {name: value for name, (value,) in several.items()}


def check_several(notebook: Path, values: Mapping[str, Sequence[object]]) -> dict[str, list[Value]]:
    """As `check_values`, of several values for each parameter."""
    parameters = read_parameters(notebook)
    checked = {}
    for name, several in values.items():
        if name not in parameters:
            known = ", ".join(map(str, parameters.values())) or "none"
            raise ValueError(f"{notebook.stem} has no parameter {name!r}. It has: {known}.")
        try:
            checked[name] = [_checked(parameters[name], value) for value in several]
        except ValueError as error:
            raise ValueError(f"{notebook.stem}, parameter {name}: {error}") from None
    return checked


def _checked(parameter: Parameter, value: object) -> Value:
    value = _as_type(parameter.type, value)
    _check_range(parameter, value)
    return value


def _check_range(parameter: Parameter, value: Value) -> None:
    if parameter.name == "preset" and value not in PRESETS:
        raise ValueError(f"There is no preset {value!r}, but {', '.join(PRESETS)}.")
    if parameter.type in (int, float):
        least = 0 if parameter.name in AT_LEAST_0 else -LARGEST
        if not least <= value <= LARGEST:
            raise ValueError(f"expected {least:,} to {LARGEST:,}, not {value!r}.")
    known = ONE_OF.get(parameter.name) or SOME_OF.get(parameter.name)
    if known is None or value == parameter.default:
        return
    several = parameter.name in SOME_OF
    asked = [one.strip() for one in value.split(",")] if several else [value]
    for one in asked:
        if one not in known and not (several and value == "all"):
            kind = "some" if several else "one"
            known = dict.fromkeys([*known, parameter.default])
            raise ValueError(f"expected {kind} of {', '.join(known)}, not {one!r}.")


def check_device(values: Mapping[str, Value]) -> None:
    """See to it that the GPU that parameters ask for is on this machine.

    Raises:
        ValueError: When it is not.
    """
    if values.get("device") != "gpu":
        return
    import torch  # here, because it takes seconds, and who asks for no GPU needs none of it

    if not torch.cuda.is_available():
        raise ValueError("device=gpu: this machine has no GPU that torch can use; say device=cpu.")


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
    own(output.parent)
    partial = output.with_name(f".{output.stem}.{os.getpid()}.ipynb")
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    try:
        executed = _papermill(notebook, values, partial, verbose)
    except BaseException as error:
        kept = ""
        if partial.is_file():
            os.replace(partial, failed)
            kept = f"\n  as far as it came: {failed}"
        if not isinstance(error, Exception):  # whoever runs this wants it to stop
            raise
        raise RuntimeError(f"{notebook.stem} failed{_reason(error)}{kept}") from error
    finally:
        partial.unlink(missing_ok=True)
    with replacing(output) as path:
        nbformat.write(executed, path)
    failed.unlink(missing_ok=True)
    return executed


def _papermill(
    notebook: Path, values: Mapping[str, Value], output: Path, verbose: bool
) -> nbformat.NotebookNode:
    # here, because they take a second, and most of the command line needs none of it
    import papermill

    from nuctut.running import kernels

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the errors it raises tell as much
    stop = kernels.Stop()
    how: dict[str, Any] = {
        "parameters": dict(values),
        "cwd": str(notebook.parent),
        "start_timeout": PATIENCE,
        # After a cell, its last messages: on a busy machine they take longer than nbclient's 4 s,
        # and hours of training would be given up for them.
        "iopub_timeout": PATIENCE,
        # Else every kernel warns that it talks to us over an unencrypted local socket.
        "extra_arguments": ["--IPKernelApp.log_level=ERROR"],
        "kernel_manager_class": kernels.kernel_class(stop),
        "progress_bar": verbose,
        "stdout_file": sys.stdout if verbose else None,
        "stderr_file": sys.stderr if verbose else None,
    }
    # In the main thread nbclient would take all signals to itself, and none would reach us.
    with ThreadPoolExecutor(1) as pool:
        for tries_left in (2, 1, 0):
            done = pool.submit(papermill.execute_notebook, str(notebook), str(output), **how)
            try:
                return done.result()
            except BaseException as error:
                # Its ports are chosen, then taken: another process may have been faster.
                if tries_left and str(error) == NOT_STARTED and not stop.asked:
                    continue
                stop.now()
                raise


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
        ValueError: For an unknown chapter, parameter or preset, a value of the wrong type or out of
            its range, or a GPU that is not there.
        RuntimeError: When a cell fails.
    """
    notebook = find_chapter(chapter)
    checked = check_values(notebook, values or {})
    check_device(checked)
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

SAID = "said"  # what an output is, in its metadata: a line that stands in the page's text
QUOTED = re.compile(r"\{glue:text\}`([^`]+)`")
_said: dict[str, object] = {}  # in this kernel, by name


def say(**values: object) -> None:
    """Give values names by which the text can quote them, as in {glue:text}`name`, and show them.

    The line that shows them is for those who run the chapter; the page leaves it out, since its
    text has the values.
    """
    from myst_nb import glue  # here, because only chapters need it

    for name, value in values.items():
        # A NumPy scalar would be quoted with its type around it.
        _said[name] = value.item() if isinstance(value, np.generic) else value
        glue(name, _said[name], display=False)
    line = " · ".join(f"{name}: {_short(_said[name])}" for name in values)
    _display({"text/plain": line}, SAID)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def quote(text: str) -> None:
    """Show Markdown with every {glue:text}`name:format` in it replaced by what was said last.

    The plain copies of chapters show their text so: Colab knows nothing of such roles.

    Raises:
        LookupError: Naming the value, when nothing has been said under its name.
    """
    _display_markdown(QUOTED.sub(_quoted, text.strip()))


def _quoted(role: re.Match) -> str:
    name, *given = " ".join(role[1].split()).rsplit(":", 1)
    if name not in _said:
        raise LookupError(f"There is no value {name!r} yet: run the cells above first.")
    return format(_said[name], *given) if given else str(_said[name])


def shows(condition: bool | np.bool_, claim: str, numbers: str, records: bool = False) -> None:
    """Say whether this run shows what a text says of it, or the book's records do.

    Args:
        condition: Whether it does.
        claim: What is said, to be read after "that": "widening finds more nuclei".
        numbers: The figures it rests on: "plain 266, widened 167".
        records: Whether those are of records, whatever this run was.

    Raises:
        TypeError: When the condition is no truth value, but an array of them, a number, or else.
    """
    if not isinstance(condition, bool | np.bool_):
        kind = type(condition).__name__
        raise TypeError(f"shows: expected True or False as the condition, not a {kind}.")
    where, who = ("the records", "The records do") if records else ("this run", "This run does")
    said = f"In {where}, {claim}" if condition else f"{who} **not** show that {claim}"
    about = {"shows": bool(condition), "claim": claim}
    _display_markdown(f"{said} ({numbers}).", about)


def shown(notebook: nbformat.NotebookNode) -> list[tuple[str, bool]]:
    """The claims that an executed notebook holds against its run, each with the outcome."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    about = [output.get("metadata", {}).get("nuctut") for output in outputs]
    return [(one["claim"], one["shows"]) for one in about if isinstance(one, dict)]


def _display_markdown(text: str, about: object = None) -> None:
    _display({"text/markdown": text, "text/plain": text}, about)


def _display(data: dict[str, str], about: object = None) -> None:
    """Make an output, with what it is in its metadata."""
    from IPython.display import display

    display(data, raw=True, metadata={"nuctut": about} if about else {})
