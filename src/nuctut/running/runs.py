"""What lies below `runs/`: how far it came, how much room it takes, and how to be rid of it.

    <chapter>/<variant>--s<seed>--<key>/   a fit
              <parameters>.ipynb           an executed chapter; ….failed.ipynb, as far as one came
    sweeps/<sweep>/<run>/                  a sweep and its runs
    results/…, swept/…                     records that are no evidence

Links are neither shown nor followed, so nothing outside the folder is ever deleted.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.filesize import decimal

from nuctut import experiments
from nuctut.files import LOCK, locked
from nuctut.paths import runs_root
from nuctut.running import sweeps

STATES = ("finished", "running", "broken", "orphaned")
RECORDS = ("results", "swept")  # these and that of the sweeps aside, all folders are chapters
DAY = 24 * 3600.0
# Of `files.replacing` and `notebooks.execute`: .name.PID, and .name.PID.ipynb
TEMPORARY = re.compile(r"\..+\.(\d{1,9})(\.ipynb)?")


@dataclass(frozen=True)
class Entry:
    """Something below `runs/` that is kept or deleted as a whole.

    Attributes:
        name: Its path below `runs/`.
        kind: "fit", "notebook", "sweep", "records" or "leftover".
        state: "finished"; "running" (a process has it in its hands); "broken" (stopped or failed;
            run again, it goes on); "orphaned" (nothing will take it up again).
        path: Of the file or folder.
        bytes: Of all its files.
        changed: When one of them last changed, in seconds since 1970.
        note: How far it came, or what is wrong.
    """

    name: str
    kind: str
    state: str
    path: Path
    bytes: int
    changed: float
    note: str = ""


@dataclass(frozen=True)
class Deleted:
    """What a deletion came to: the bytes that are free now, and what was kept, being in use."""

    bytes: int
    kept: tuple[Entry, ...]


# --- what there is -------------------------------------------------------------------------------


def inventory(root: Path | None = None) -> list[Entry]:
    """All there is below a folder (default `runs_root()`), sorted by name."""
    root = (root or runs_root()).resolve()  # the folder itself may be a link
    entries = [_fit(root, folder) for folder in fit_folders(root)]
    for chapter in _chapters(root):
        entries += [_notebook(root, path) for path in _visible(chapter) if path.suffix == ".ipynb"]
    entries += [_sweep(root, folder) for folder in _folders(root / sweeps.SWEEPS)]
    entries += [_records(root, folder) for folder in _record_folders(root)]
    entries += [_entry(root, path, "leftover", "orphaned", note) for path, note in _leftovers(root)]
    return sorted(entries, key=lambda entry: entry.name)


def fit_folders(root: Path | None = None) -> list[Path]:
    """The folders of all fits, whatever their state; `root` as for `inventory`."""
    root = (root or runs_root()).resolve()
    return [folder for chapter in _chapters(root) for folder in _folders(chapter)]


def _fit(root: Path, folder: Path) -> Entry:
    losses, settings = _losses(folder), _read_json(folder / "settings.json")
    finished = (folder / "done.json").is_file() and (folder / "best.ckpt").is_file()
    far = f"{len(losses)} of {settings.get('epochs', '?')} epochs"
    reason = _why_orphaned(folder)
    # Of several devices each has a process, and none of them a lock, see `training.fit`.
    silent = settings.get("devices", 1) > 1 and not finished
    if _at_work(folder) or (silent and time.time() - _changed("fit", folder) < DAY):
        return _entry(root, folder, "fit", "running", far)
    if reason:
        far = "finished" if finished else f"stopped after {far}"
        return _entry(root, folder, "fit", "orphaned", f"{far}; {reason}")
    if finished:
        return _entry(root, folder, "fit", "finished", far)
    return _entry(root, folder, "fit", "broken", f"stopped after {far}")


def _why_orphaned(folder: Path) -> str:
    """Why no chapter would take up a fit again; empty when one would."""
    try:
        made = experiments.describe_fit(folder)
        module = importlib.import_module(f"nuctut.experiments.{made.experiment}")
        code = module.current_code(made.variant)
    except FileNotFoundError:
        return f"it has no {experiments.DESCRIPTION}"
    except (ValueError, OSError):
        return f"its {experiments.DESCRIPTION} cannot be read"
    except KeyError:
        return f"there is no {made.variant} now"
    return "" if made.code == code else "the code of its fit has changed"


def _notebook(root: Path, path: Path) -> Entry:
    if path.name.endswith(".failed.ipynb"):
        return _entry(root, path, "notebook", "broken", "failed; open it to see where")
    return _entry(root, path, "notebook", "finished")


def _sweep(root: Path, folder: Path) -> Entry:
    runs = _folders(folder)
    outcomes = [sweeps.read_outcome(run) for run in runs]
    states = [outcome.state if outcome else "stopped" for outcome in outcomes]
    counts = {state: states.count(state) for state in ("done", "failed", "stopped")}
    note = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no runs"
    state = "finished" if counts["done"] == len(runs) else "broken"
    if any(map(_at_work, runs)):
        state = "running"
    return _entry(root, folder, "sweep", state, note)


def _record_folders(root: Path) -> list[Path]:
    """Those that hold records themselves, not only in a folder of theirs."""
    tops = [folder for folder in _folders(root) if folder.name in RECORDS]
    files = [path for folder in tops for path in _files(folder)]
    return sorted({path.parent for path in files if path.suffix == ".json"})


def _records(root: Path, folder: Path) -> Entry:
    note = f"{len(_files_of('records', folder))} records"
    return _entry(root, folder, "records", "finished", note)


def _entry(root: Path, path: Path, kind: str, state: str, note: str = "") -> Entry:
    size = sum(file.lstat().st_size for file in _files_of(kind, path))
    name = path.relative_to(root).as_posix()
    return Entry(name, kind, state, path, size, _changed(kind, path), note)


# --- looking at folders --------------------------------------------------------------------------


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder that may be missing, but for links and hidden files."""
    paths = sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    return [path for path in paths if not path.name.startswith(".") and not path.is_symlink()]


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _chapters(root: Path) -> list[Path]:
    return [folder for folder in _folders(root) if folder.name not in (*RECORDS, sweeps.SWEEPS)]


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or the files below a folder, but for temporary ones."""
    if not path.is_dir():
        yield path
        return
    for place, _, names in os.walk(path):  # which follows no links
        yield from (Path(place, name) for name in names if not TEMPORARY.fullmatch(name))


def _leftovers(root: Path) -> Iterator[tuple[Path, str]]:
    """Temporary files that nobody will finish, and why that is clear.

    No process of this machine may have the number in the name; and because several machines can
    share the folder, and the process may be another's, the file must be a day old as well.
    """
    for place, _, names in os.walk(root):
        for path in (Path(place, name) for name in names):
            temporary = TEMPORARY.fullmatch(path.name)
            if temporary and not path.is_symlink() and not psutil.pid_exists(int(temporary[1])):
                if time.time() - path.stat().st_mtime > DAY:
                    yield path, f"of process {temporary[1]}, which is gone"


def _files_of(kind: str, path: Path) -> list[Path]:
    """The files that make up an entry; a folder in one of records is an entry of its own."""
    return sorted(path.glob("*.json") if kind == "records" else _files(path))


def _changed(kind: str, path: Path) -> float:
    """When a file of an entry last changed, but for locks: who looks at one touches it."""
    times = [file.lstat().st_mtime for file in _files_of(kind, path) if file.name != LOCK]
    return max(times, default=path.stat().st_mtime)


def _at_work(folder: Path) -> bool:
    """Whether a process has the folder in its hands."""
    if not (folder / LOCK).exists():
        return False
    with locked(folder, wait=False) as free:
        return not free


def _read_json(path: Path) -> dict[str, Any]:
    """An object in a file; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _losses(folder: Path) -> list[float]:
    """Validation losses by epoch; empty where a fit has none yet."""
    try:
        with (folder / "history.csv").open(newline="", encoding="utf-8") as lines:
            return [float(row["val_loss"]) for row in csv.DictReader(lines)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


# --- finding -------------------------------------------------------------------------------------


def find(text: str, entries: Sequence[Entry]) -> Entry:
    """The entry of a name, or of the beginning of it, with or without its chapter.

    Raises:
        ValueError: When none, or more than one, fits; the message names them.
    """
    return entries[_only(text, [entry.name for entry in entries])]


def find_fit(text: str) -> Path:
    """The folder of a fit: its path, or the beginning of its name, with or without its chapter.

    Raises:
        ValueError: When none, or more than one, fits; the message names them.
    """
    if text and Path(text).is_dir():
        return Path(text)
    folders = fit_folders()
    names = [f"{folder.parent.name}/{folder.name}" for folder in folders]
    return folders[_only(text, names)]


def _only(text: str, names: Sequence[str]) -> int:
    """Where the one name is that a text means."""
    short = [name.partition("/")[2] or name for name in names]
    pairs = list(enumerate(zip(names, short, strict=True)))
    fitting = [i for i, both in pairs if text in both]
    fitting = fitting or [i for i, both in pairs if text and any(n.startswith(text) for n in both)]
    if len(fitting) == 1:
        return fitting[0]
    known = [names[i] for i in fitting] or list(names)
    more = f" and {len(known) - 10} more" if len(known) > 10 else ""
    raise ValueError(
        f"{text!r} names {'several' if fitting else 'none'} of what is below {runs_root()}: "
        f"{', '.join(known[:10]) or 'there is nothing'}{more}."
    )


# --- saying what it is ---------------------------------------------------------------------------


def describe(entry: Entry) -> dict[str, str]:
    """What is to be known of an entry, by title."""
    told = {"kind": entry.kind, "state": entry.state, "note": entry.note, "folder": str(entry.path)}
    told |= {"fit": _describe_fit, "sweep": _describe_sweep}.get(entry.kind, _describe_files)(entry)
    return {title: text for title, text in told.items() if text}


def _describe_fit(entry: Entry) -> dict[str, str]:
    losses, done = _losses(entry.path), _read_json(entry.path / "done.json")
    told = _describe_network(entry.path)
    if losses:
        best = min(losses)
        told["best validation loss"] = f"{best:.4g}, in epoch {losses.index(best) + 1}"
    if "seconds" in done:
        told["time"] = f"{sweeps.told_seconds(done['seconds'])} on {done.get('device')}"
        told["weights"] = f"{done.get('weights', 0):,}"
    return told | _describe_files(entry) | {"use": _use(entry)}


def _describe_network(folder: Path) -> dict[str, str]:
    try:
        made = experiments.describe_fit(folder)
    except (ValueError, OSError):
        return {}
    data = {"images": "?", "source": "?", "name": "?"} | made.data
    return {
        "experiment": made.experiment,
        "variant": f"{made.variant}, seed {made.seed}",
        "data": f"{data['name']} ({data['source']}, {data['images']} images)",
        "settings": ", ".join(f"{name}={value}" for name, value in made.settings.items()),
    }


def _use(entry: Entry) -> str:
    """What can be done with a fit."""
    chapter = entry.path.parent.name
    predict = f"nuctut predict --run {entry.name}"
    anew = "its chapter would start anew"
    if entry.state == "running":
        return "wait for it"
    if entry.state == "broken":
        return f"nuctut run {chapter}, with the parameters that began it, goes on from there"
    if entry.state == "orphaned":
        usable = (
            entry.note.startswith("finished") and (entry.path / experiments.DESCRIPTION).exists()
        )
        return f"{predict} …, as before; {anew}" if usable else anew
    return f"{predict} …; nuctut run {chapter} takes it up"


def _describe_sweep(entry: Entry) -> dict[str, str]:
    lines = []
    for run in _folders(entry.path):
        outcome = sweeps.read_outcome(run)
        ended = f"{outcome.state}, {sweeps.told_seconds(outcome.seconds)}" if outcome else "stopped"
        lines.append(f"{run.name}: {ended}")
    return {"runs": "\n".join(lines), "use": f"nuctut sweep show {entry.path.name}"}


def _describe_files(entry: Entry) -> dict[str, str]:
    files = [path for path in _files_of(entry.kind, entry.path) if path.name != LOCK]
    lines = [f"{path.name}  {decimal(path.lstat().st_size)}" for path in files]
    return {"files": "\n".join(lines)}


# --- deleting ------------------------------------------------------------------------------------


def chosen(what: Iterable[str], entries: Sequence[Entry]) -> list[Entry]:
    """The entries of states ("orphaned", "broken") and names, each once.

    Raises:
        ValueError: For a name that fits none or several, or one that is at work.
    """
    found = []
    for text in what:
        if text in ("orphaned", "broken"):
            found += [entry for entry in entries if entry.state == text]
            continue
        entry = find(text, entries)
        if entry.state == "running":
            raise ValueError(f"{entry.name} is at work; end that first.")
        found.append(entry)
    return list(dict.fromkeys(found))


def delete(entries: Iterable[Entry]) -> Deleted:
    """Delete entries, but for those that a process has in its hands or that changed since."""
    freed, kept = 0, []
    for entry in entries:
        if _deleted(entry):
            freed += entry.bytes
        elif entry.path.exists():
            kept.append(entry)
    return Deleted(freed, tuple(kept))


def _deleted(entry: Entry) -> bool:
    places = {"fit": [entry.path], "sweep": _folders(entry.path)}.get(entry.kind, [])
    if not entry.path.exists() or entry.path.is_symlink():
        return False
    with ExitStack() as held:
        free = [held.enter_context(locked(place, wait=False)) for place in places]
        busy = entry.state == "running" or not all(free)
        if busy or _changed(entry.kind, entry.path) != entry.changed:
            return False
        if entry.kind in ("fit", "sweep"):
            shutil.rmtree(entry.path)
        else:
            for path in _files_of(entry.kind, entry.path):
                path.unlink()
    return True
