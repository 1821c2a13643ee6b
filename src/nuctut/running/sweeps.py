"""Sweeps: a chapter run once for every combination of values, each run in a folder of its own.

    runs/sweeps/<sweep>/<run>/run.json             how it ended, and all of its parameters
                             /notebook.ipynb       the executed chapter, or notebook.failed.ipynb
                             /records/             what it measured
                       /sweep.csv, sweep.parquet   one row per run

Nothing but the folders of the runs is remembered, so a sweep can be killed and started again, and
two can work in one folder: a run is done when its run.json says so, and a lock keeps two processes
from working on the same one. As a program, this module is the process of one run; see `main`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shlex
import shutil
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import nbformat
import numpy as np
import pandas as pd
import pydantic
import yaml
from pydantic import Field

from nuctut import datasets, machine, records, scoreboard
from nuctut.files import (
    STRICT,
    Malformed,
    Measure,
    locked,
    own,
    parse_json,
    read_json,
    read_text,
    replacing,
    write_json,
)
from nuctut.files import (
    shown as cut,
)
from nuctut.paths import results_root, runs_root
from nuctut.running import children, notebooks
from nuctut.running.notebooks import Value

OUTCOME, NOTEBOOK, TABLE = "run.json", "notebook.ipynb", "sweep"
SWEEPS = "sweeps"  # the folder below `runs/`
SCORE = ":"  # between the variant, the metric and the end of its interval in a column's name
MOST_RUNS = 10_000
LONGEST_GRID = 1_000_000  # characters of its file
EXIT = {"done": 0, "failed": 3, "busy": 4}  # statuses of the process of a run
ABOUT_A_RUN = ("run", "chapter", "state", "seconds", "device", "data", "git_commit", "finished")


# --- what is to be run ---------------------------------------------------------------------------


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Run:
    """One combination of values.

    Attributes:
        notebook: The chapter.
        given: The parameters it gets.
        told: What sets it apart from the others, such as "learning_rate=0.001, seed=1".
        folder: Where all of it goes; its name says what was given.
        made_from: Digest of the chapter's code and of which data are real; what is done counts
            only as long as this stays the same.
    """

    notebook: Path
    given: Mapping[str, Value] = field(hash=False)
    told: str
    folder: Path
    made_from: str

    @property
    def command(self) -> str:
        """What repeats this run by itself."""
        words = [f"-p {shlex.quote(f'{name}={value}')}" for name, value in self.given.items()]
        return " ".join(["nuctut run", self.notebook.stem, *words])


@dataclass(frozen=True)
class Sweep:
    """All combinations of a grid, and the folder that they share.

    Attributes:
        grid: The values of each parameter that varies.
        fixed: The parameters that are the same in all runs.
        runs: One per combination.
    """

    folder: Path
    grid: Mapping[str, Sequence[Value]]
    fixed: Mapping[str, Value]
    runs: tuple[Run, ...]


def plan(
    chapter: str,
    grid: Mapping[str, Sequence[object]],
    fixed: Mapping[str, object] | None = None,
    folder: Path | None = None,
) -> Sweep:
    """The runs of a grid, every name and value held against the chapter's parameters.

    Args:
        chapter: Its name or the beginning of it, such as "01".
        grid: Values by parameter; texts are read as the parameter's type.
        fixed: Parameters that all runs get.
        folder: Where to; by default one below `runs/sweeps/` that the chapter, the grid and the
            fixed parameters determine.

    Raises:
        ValueError: For an unknown chapter or parameter, a value that does not fit or stands twice,
            a parameter that is both fixed and varied, an empty grid, or one of too many runs.
    """
    notebook = notebooks.find_chapter(chapter)
    checked_fixed = notebooks.check_values(notebook, fixed or {})
    if not grid:
        raise ValueError("The grid is empty: give at least one parameter to vary, -g NAME=V1,V2.")
    count = math.prod(len(asked) for asked in grid.values())
    if count > MOST_RUNS:
        raise ValueError(f"{count:,} runs are too many for one sweep, which takes {MOST_RUNS:,}.")
    for name in grid:
        if name in checked_fixed:
            raise ValueError(f"The parameter {name!r} cannot be fixed and varied at once.")
    values = notebooks.check_several(notebook, grid)
    for name, checked in values.items():
        if not checked or len(set(checked)) < len(checked):
            raise ValueError(
                f"Each value of {name!r} must be given once, not {cut(list(grid[name]))}."
            )
    if folder is None:
        key = notebooks.run_key({"grid": json.dumps(values, sort_keys=True)} | checked_fixed)
        names = "-".join(values)
        folder = runs_root() / SWEEPS / f"{notebook.stem}--{names[:60]}--{key[-8:]}"
    made_from = _made_from(notebook)
    combinations = itertools.product(*values.values())
    runs = []
    for chosen in combinations:
        own = dict(zip(values, chosen, strict=True))
        told = ", ".join(f"{name}={value}" for name, value in own.items())
        given = checked_fixed | own
        place = folder.resolve() / notebooks.run_key(given)
        runs.append(Run(notebook.resolve(), given, told, place, made_from))
    return Sweep(folder.resolve(), values, checked_fixed, tuple(runs))


def read_grid(path: Path) -> dict[str, list[object]]:
    """A grid from a YAML file: a value or a list of values for each parameter.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: Naming the file, when it holds anything else.
    """
    text = read_text(path)
    if len(text) > LONGEST_GRID:
        raise ValueError(
            f"{path}: expected at most {LONGEST_GRID:,} characters, not {len(text):,}."
        )
    try:
        content = yaml.load(text, _Grid)
    except RecursionError:
        raise ValueError(f"{path}: not a YAML file that is read here (too deep).") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not a YAML file ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected lines such as `seed: [0, 1, 2]`, one per parameter.")
    grid = {str(name): one if isinstance(one, list) else [one] for name, one in content.items()}
    for name, values in grid.items():
        if not all(isinstance(value, str | int | float | bool) for value in values):
            raise ValueError(f"{path}: {name} must be a value or a list of values.")
    return grid


class _Grid(yaml.SafeLoader):
    """YAML in which all that counts stands where it is read: no aliases, and each name once."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases are not read here", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        known: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in known:
                problem = f"{key.value} stands there more than once"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            known.add(str(key.value))
        return super().construct_mapping(node, deep)


def _made_from(notebook: Path) -> str:
    """A digest of a chapter's code and of which data sets are real here."""
    cells = nbformat.read(notebook, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    states = [f"{name} {datasets.status(name).state}" for name in datasets.REGISTRY]
    return hashlib.sha256("\0".join([*code, *states]).encode()).hexdigest()[:16]


def describe(sweep: Sweep, slots: int) -> list[str]:
    """What a sweep is about to do, in lines: the grid, its size, what is left, and its time.

    Args:
        sweep: The runs.
        slots: How many of them can go on at once; 0 where that is not known yet.
    """
    states = [outcome.state for run in sweep.runs if (outcome := outcome_of(run))]
    left = len(sweep.runs) - states.count("done")
    lines = [f"{sweep.runs[0].notebook.stem}, {len(sweep.runs)} runs in {sweep.folder}"]
    lines += [f"  {name}: {', '.join(map(str, values))}" for name, values in sweep.grid.items()]
    if sweep.fixed:
        fixed = ", ".join(f"{name}={value}" for name, value in sweep.fixed.items())
        lines.append(f"  in all runs: {fixed}")
    if states:
        again = states.count("failed")
        lines.append(
            f"  {left} left: {states.count('done')} done before, {again} to be tried again"
        )
    known = estimate(sweep)
    if known is None:
        lines.append("  no earlier run of this preset tells how long it will take")
    elif left:
        rounds = -(-left // min(slots or 1, left))
        each, whole = told_seconds(known.seconds), told_seconds(rounds * known.seconds)
        at_once = f"{slots} at once" if slots else "one after the other"
        lines.append(f"  about {whole}: {left} runs of {each} ({known.source}), {at_once}")
    return lines


def describe_failures(ended: Mapping[Run, Outcome]) -> list[str]:
    """The runs that failed, in lines: the cell, the notebook, and what repeats the run."""
    failed = {run: outcome for run, outcome in ended.items() if outcome.state == "failed"}
    lines = [f"{len(failed)} of {len(ended)} runs failed:"] if failed else []
    for run, outcome in failed.items():
        lines += [f"  {run.told}"]
        lines += [f"    {line}" for line in outcome.error.splitlines()]
        lines += [f"    again, by itself: {run.command}"]
    return lines


# --- how runs ended ------------------------------------------------------------------------------


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Outcome:
    """How a run ended, as its run.json says.

    Attributes:
        state: "done" or "failed"; a process that found the run in other hands returns "busy".
        seconds: Wall-clock time of its last start.
        finished: When, in seconds since 1970.
        parameters: All the chapter's parameters, those given and those left as they are.
        made_from: See `Run`.
        device, data, git_commit: What it ran on, and measured on; empty where it measured nothing.
        error: Of a failed run: the cell that failed, and why.
        scores: Of a done run, by column, see `table`; None where an interval has no end.
    """

    state: Literal["done", "failed", "busy"]
    seconds: Measure = 0.0
    finished: Annotated[float, Field(ge=0, le=2**33)] = 0.0
    chapter: str = ""
    parameters: dict[str, Value] | None = None
    made_from: str = ""
    device: str = ""
    data: str = ""
    git_commit: str = ""
    error: str = ""
    scores: dict[str, float | None] = field(default_factory=dict)


def read_outcome(folder: Path) -> Outcome | None:
    """How the run of a folder ended; None where it has not, or its run.json is no such thing."""
    try:
        return read_json(folder / OUTCOME, Outcome)
    except (OSError, Malformed):
        return None


def outcome_of(run: Run) -> Outcome | None:
    """How a run ended; None where it has not, or was made from other code or data."""
    outcome = read_outcome(run.folder)
    return outcome if outcome and outcome.made_from == run.made_from else None


def fail(run: Run, error: str, seconds: float) -> Outcome:
    """Note that a run failed, unless another process has it in its hands."""
    own(run.folder)
    with locked(run.folder, wait=False) as mine:
        return _finish(run, "failed", seconds, error) if mine else Outcome("busy")


def _finish(run: Run, state: str, seconds: float, error: str = "") -> Outcome:
    try:
        measured = records.read_all(run.folder / "records")
    except (ValueError, OSError) as reason:
        measured, state, error = [], "failed", error or str(reason)
    outcome = Outcome(
        state=state,
        seconds=round(seconds, 1),
        finished=time.time(),
        chapter=run.notebook.stem,
        parameters=_parameters(run),
        made_from=run.made_from,
        error=error,
        scores=_scores(measured) if state == "done" else {},
        **_provenance(measured),
    )
    write_json(run.folder / OUTCOME, outcome)
    return outcome


def _parameters(run: Run) -> dict[str, Value]:
    """All the chapter's parameters, those given and those left as they are."""
    defaults = {p.name: p.default for p in notebooks.read_parameters(run.notebook).values()}
    return defaults | dict(run.given)


def _scores(measured: Sequence[records.Record]) -> dict[str, float | None]:
    """Scores and their intervals, by column; what a record does not measure has none."""
    columns = {}
    for one in measured:
        for metric, score in one.scores.items():
            if not np.isnan(score):
                name = f"{one.variant}{SCORE}{metric}"
                low, high = scoreboard.estimate([one], metric).interval()
                columns |= {name: score, f"{name}{SCORE}low": low, f"{name}{SCORE}high": high}
    return {name: None if np.isnan(value) else float(value) for name, value in columns.items()}


def _provenance(measured: Sequence[records.Record]) -> dict[str, str]:
    def joined(values: Iterable[str | None]) -> str:
        return ", ".join(dict.fromkeys(filter(None, values)))

    return {
        "device": joined(one.budget["device"] for one in measured) or machine.device_name(),
        "data": joined(scoreboard.describe(one) for one in measured),
        "git_commit": joined(one.git_commit for one in measured),
    }


# --- the process of one run ----------------------------------------------------------------------


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Asked:
    """What the process of a run is told; see `perform`."""

    run: Run
    since: float


def main() -> None:
    """Do one run; `EXIT` says how it ended. The first line of standard input is an `Asked` as JSON.

    Standard input stays open as long as whoever started this process lives; when it closes, the
    run ends at once and all its processes with it. SIGTERM ends it in an orderly way, and the
    notebook is kept as far as it came.
    """
    try:
        asked = parse_json(sys.stdin.readline(), Asked, "standard input")
    except Malformed as error:
        sys.exit(str(error))
    children.end_with_parent()
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(EXIT[perform(asked.run, asked.since).state])


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("the run took longer than its time limit")


def perform(run: Run, since: float) -> Outcome:
    """Execute a run in this process, unless it is done, or in other hands ("busy").

    Args:
        run: What to do.
        since: A failure is tried again only if it is older than this, in seconds since 1970.
    """
    own(run.folder)
    with locked(run.folder, wait=False) as mine:
        if not mine:
            return Outcome("busy")
        known = outcome_of(run)
        if known and (known.state == "done" or known.finished > since):
            return known
        (run.folder / OUTCOME).unlink(missing_ok=True)
        shutil.rmtree(run.folder / "records", ignore_errors=True)
        os.environ[records.OWN_FOLDER] = str(run.folder / "records")
        started = time.monotonic()
        try:
            notebooks.execute(run.notebook, run.given, run.folder / NOTEBOOK, verbose=False)
        except Exception as error:
            if not isinstance(error, RuntimeError):  # that of a cell tells enough by itself
                traceback.print_exc()
            return _finish(run, "failed", time.monotonic() - started, str(error))
        return _finish(run, "done", time.monotonic() - started)


# --- what came of it -----------------------------------------------------------------------------


def table(folder: Path) -> pd.DataFrame:
    """One row per run of a folder that has ended, in the order of their folders' names.

    Columns: run (the folder's name), chapter, state, all the chapter's parameters, seconds, device,
    data, git_commit, finished (UTC), error, and of each variant that was measured its scores,
    pooled over the test images, as `<variant>:<metric>`, with the ends of their 95 % bootstrap
    interval over the test images in `…:low` and `…:high`. A failed run has its row, without scores.
    """
    rows = []
    for place in sorted(path.parent for path in folder.glob(f"*/{OUTCOME}")):
        outcome = read_outcome(place)
        if outcome is not None:
            rows.append(_row(place, outcome))
    frame = pd.DataFrame(rows, columns=None if rows else list(ABOUT_A_RUN))
    scores = sorted(name for name in frame if SCORE in name)
    return frame[[name for name in frame if SCORE not in name] + scores]


def _row(place: Path, outcome: Outcome) -> dict[str, Any]:
    finished = pd.Timestamp(outcome.finished, unit="s", tz="UTC").isoformat(timespec="seconds")
    row = {"run": place.name, "chapter": outcome.chapter, "state": outcome.state}
    row |= dict(outcome.parameters or {})
    row |= {name: getattr(outcome, name) for name in ("seconds", "device", "data", "git_commit")}
    row |= {"finished": finished, "error": outcome.error.partition("\n")[0]}
    row = {name: None if value == "" else value for name, value in row.items()}
    scores = outcome.scores.items()
    return row | {name: math.nan if value is None else value for name, value in scores}


def write_table(folder: Path) -> pd.DataFrame:
    """Write `table` as sweep.csv and sweep.parquet into the folder, and return it."""
    frame = table(folder)
    with replacing(folder / f"{TABLE}.csv") as path:
        frame.to_csv(path, index=False)
    with replacing(folder / f"{TABLE}.parquet") as path:
        frame.to_parquet(path, index=False)
    return frame


def find(text: str = "") -> Path:
    """The folder of a sweep, or its table's file: a path, or the beginning of a sweep's name.

    Without a text, the sweep that was at work last.

    Raises:
        ValueError: When there is no such sweep, or more than one, naming those there are.
    """
    if text and Path(text).exists():
        return Path(text).resolve()
    known = {path.parent.name: path for path in (runs_root() / SWEEPS).glob(f"*/{TABLE}.csv")}
    if not text and known:
        return max(known.values(), key=lambda path: path.stat().st_mtime).parent
    fitting = [path for name, path in known.items() if name.startswith(text)]
    if len(fitting) != 1:
        names = ", ".join(sorted(known)) or "none yet"
        raise ValueError(f"There is no one sweep {text!r}; there are: {names}.")
    return fitting[0].parent


def read_table(path: Path) -> pd.DataFrame:
    """A sweep's table from its CSV or Parquet file, or from the sweep's folder.

    Raises:
        ValueError: When the file is no such table, naming it and what it lacks.
    """
    path = path / f"{TABLE}.csv" if path.is_dir() else path
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except Exception as error:  # of many kinds, where the parsers meet what they do not expect
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: not a table of a sweep ({reason}).") from error
    if wrong := _wrong(frame):
        raise ValueError(f"{path}: not a table of a sweep; {wrong}.")
    return frame


def _wrong(frame: pd.DataFrame) -> str:
    """What keeps a table from being one of a sweep; empty where nothing does."""
    scores = [name for name in frame if SCORE in str(name)]
    ends = [f"{name}{SCORE}{end}" for name in scores for end in ("low", "high")]
    ends = [name for name in ends if name.count(SCORE) == 2]
    if missing := [name for name in (*ABOUT_A_RUN, *ends) if name not in frame]:
        return f"it lacks {', '.join(missing)}"
    if not all(isinstance(name, str) for name in frame) or not frame.columns.is_unique:
        return "its columns have no names, or some the same"
    for name in ("seconds", *scores):
        if frame[name].dtype.kind not in "fiu" and frame[name].notna().any():
            return f"{name} must be numbers"
    return ""


def parameters(frame: pd.DataFrame) -> list[str]:
    """The columns of a sweep's table that are parameters of its chapter."""
    return [name for name in frame if name not in (*ABOUT_A_RUN, "error") and SCORE not in name]


def varied(frame: pd.DataFrame) -> list[str]:
    """The parameters of which a sweep's table holds more than one value."""
    return [name for name in parameters(frame) if frame[name].nunique() > 1]


def scores(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row per run and variant of a sweep's table: its parameters, variant, score, low, high.

    Raises:
        ValueError: When no variant has that metric; the message names those there are.
    """
    ending = f"{SCORE}{metric}"
    variants = [name.removesuffix(ending) for name in frame if name.endswith(ending)]
    if not variants:
        known = dict.fromkeys(name.split(SCORE)[1] for name in frame if SCORE in name)
        raise ValueError(f"No run has a score {metric!r}; there are: {', '.join(known) or 'none'}.")
    parts = []
    for variant in variants:
        part = frame[["run", *parameters(frame)]].assign(variant=variant)
        part["score"] = frame[f"{variant}{ending}"]
        for end in ("low", "high"):
            part[end] = frame[f"{variant}{ending}{SCORE}{end}"]
        parts.append(part.dropna(subset="score"))
    return pd.concat(parts, ignore_index=True)


def shown(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """`scores` with only those parameters that vary, as texts, sorted by their values."""
    names = sorted(varied(frame), key=lambda name: name == "seed")  # which comes last
    chosen = scores(frame, metric)[["variant", *names, "score", "low", "high"]]
    chosen = chosen.sort_values(["variant", *names], ignore_index=True)
    numbers = chosen[names].select_dtypes("float")
    return chosen.astype(dict.fromkeys(names, str)).assign(**numbers.map("{:g}".format))


def draw(frame: pd.DataFrame, place: Path, metric: str, against: str = "") -> Path:
    """Draw the runs of a sweep as `sweep-<metric>.png`, and return the file.

    Args:
        frame: The sweep's table.
        place: Its folder, or the table's file.
        metric: The score.
        against: The parameter along the axis; by default the one of most values, but the seed only
            where nothing else varies.

    Raises:
        ValueError: When `against` is no parameter that varies, or no run has such a score.
    """
    from nuctut import figures  # here, because every process of a run would wait for it

    names = varied(frame)
    if against and against not in names:
        raise ValueError(f"{against!r} does not vary here, but {', '.join(names) or 'nothing'}.")
    count = {name: frame[name].nunique() * (name != "seed") for name in names}
    chosen = against or max(count, key=count.get, default="seed")
    figure = figures.sweep_chart(
        scores(frame, metric),
        chosen,
        measure=scoreboard.METRIC_NAMES.get(metric, metric),
        source=source(frame),
    )
    path = (place if place.is_dir() else place.parent) / f"{TABLE}-{metric}.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def source(frame: pd.DataFrame) -> str:
    """What a sweep's scores rest on, for a figure's title: data, preset, device."""
    parts = [
        frame[name].dropna().unique() for name in ("data", "preset", "device") if name in frame
    ]
    return " · ".join(", ".join(map(str, values)) for values in parts if len(values))


# --- how long it will take -----------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """Seconds that a run of this kind took before, and where that is known from."""

    seconds: float
    source: str


def told_seconds(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def estimate(sweep: Sweep) -> Estimate | None:
    """What a run took in earlier sweeps of the chapter, or by its records; None if unknown.

    Runs count that agree in the preset. A record's time is that of fitting and measuring its
    variant, so a chapter's is the sum over the variants.
    """
    notebook = sweep.runs[0].notebook
    preset = _parameters(sweep.runs[0]).get("preset")
    earlier = [
        outcome.seconds
        for path in sorted((runs_root() / SWEEPS).glob(f"*/*/{OUTCOME}"))
        if (outcome := read_outcome(path.parent)) and outcome.state == "done"
        if outcome.chapter == notebook.stem and (outcome.parameters or {}).get("preset") == preset
    ]
    if earlier:
        return Estimate(statistics.median(earlier), f"the median of {len(earlier)} earlier runs")
    known: list[records.Record] = []
    for folder in (results_root(), runs_root() / "results"):
        with suppress(Malformed, OSError):  # who looks at the scoreboard is told; here it is a hint
            known += records.read_all(folder / notebook.stem)
    by_seed: dict[int, float] = {}
    for one in (one for one in known if one.preset == preset):
        measuring = (one.budget["seconds_per_image"] or 0.0) * one.data["count"]
        by_seed.setdefault(one.seed, 0.0)
        by_seed[one.seed] += one.budget["seconds"] + measuring
    if by_seed:
        source = f"the whole chapter by its records at {preset}; less of it takes less"
        return Estimate(statistics.median(by_seed.values()), source)
    return None


if __name__ == "__main__":
    main()
