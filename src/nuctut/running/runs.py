"""What lies below `runs/`: how far it came, how much room it takes, and how to be rid of it.

    <chapter>/<variant>--s<seed>--<key>/   a fit
              <parameters>.ipynb           an executed chapter; ….failed.ipynb, as far as one came
    sweeps/<sweep>/<run>/                  a sweep and its runs
    results/…, swept/…                     records that are no evidence

Only what lies in a folder that carries the project's marker (`files.own`) can be deleted; what has
none is somebody else's, or of an older version. Links are neither shown nor followed, so nothing
outside the folder is ever deleted. To look at it all nothing has to be written, and whatever is
wrong with one entry, the others are listed.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
from rich.filesize import decimal

from nuctut import experiments, fits
from nuctut.files import LOCK, MARKER, Malformed, is_own, locked, read_json
from nuctut.paths import runs_root
from nuctut.running import sweeps
from nuctut.training import FitSettings

STATES = ("finished", "running", "broken", "orphaned")
RECORDS = ("results", "swept")  # these and that of the sweeps aside, all folders are chapters
DAY = 24 * 3600.0
# Of `files.replacing` and `notebooks.execute`: .name.PID, and .name.PID.ipynb
TEMPORARY = re.compile(r"\..+\.(\d{1,9})(\.ipynb)?")
# Of `notebooks.run_chapter`; any other name is of a notebook that somebody has put there.
EXECUTED = re.compile(r"(as-it-stands|.+--[0-9a-f]{8})(\.failed)?\.ipynb")
NOT_OURS = f"no {MARKER} marks it as nuctut's, so it is never deleted"


@dataclass(frozen=True)
class Entry:
    """Something below `runs/` that is kept or deleted as a whole.

    Attributes:
        name: Its path below `runs/`.
        kind: "fit", "notebook", "sweep", "records", "leftover" or "folder" (one that cannot be
            read).
        state: "finished"; "running" (a process has it in its hands); "broken" (stopped or failed,
            and run again it goes on; or damaged, as the note says); "orphaned" (nothing will take
            it up again).
        path: Of the file or folder.
        marked: The folder whose marker says that this may be deleted; None where none does.
        bytes: Of all its files.
        changed: When one of them last changed, in seconds since 1970.
        note: How far it came, or what is wrong.
    """

    name: str
    kind: str
    state: str
    path: Path
    marked: Path | None
    bytes: int
    changed: float
    note: str = ""


@dataclass(frozen=True)
class Deleted:
    """What a deletion came to: the bytes that are free now, and what had to be kept."""

    bytes: int
    kept: tuple[Entry, ...]


# --- what there is -------------------------------------------------------------------------------


def inventory(root: Path | None = None) -> list[Entry]:
    """All there is below a folder (default `runs_root()`), sorted by name.

    Raises:
        OSError: When the folder itself cannot be read.
    """
    root = (root or runs_root()).resolve()  # the folder itself may be a link
    found = []
    for top in _folders(root):
        try:
            found += list(_in_top(root, top))
        except OSError as error:
            found.append(_entry(root, "folder", top, None, partial(_unreadable, error)))
    for path, marked in list(_leftovers(root, found)):
        found.append(_entry(root, "leftover", path, marked, _judge_leftover))
    return sorted((one for one in found if one), key=lambda entry: entry.name)


def fit_folders(root: Path | None = None) -> list[Path]:
    """The folders of all fits, whatever their state; `root` as for `inventory`."""
    root = (root or runs_root()).resolve()
    found = []
    for chapter in _folders(root):
        with suppress(OSError):
            found += _fits(chapter)
    return found


def _in_top(root: Path, top: Path) -> Iterator[Entry | None]:
    """The entries of a folder that lies in `runs/` itself."""
    if top.name in RECORDS:
        for folder in _record_folders(top):
            yield _entry(root, "records", folder, _marked(folder), _judge_records)
    elif top.name == sweeps.SWEEPS:
        for folder in _folders(top):
            if _marked(folder) or _has_runs(folder):
                yield _entry(root, "sweep", folder, _marked(folder), _judge_sweep)
    else:
        for folder in _fits(top):
            yield _entry(root, "fit", folder, _marked(folder), _judge_fit)
        for path in filter(lambda path: EXECUTED.fullmatch(path.name), _visible(top)):
            yield _entry(root, "notebook", path, _marked(top), _judge_notebook)


def _fits(chapter: Path) -> list[Path]:
    """The folders of a chapter's fits; none in the folders that are no chapter's."""
    if chapter.name in (*RECORDS, sweeps.SWEEPS):
        return []
    folders = _folders(chapter)
    return [path for path in folders if _marked(path) or _is_there(path / fits.DESCRIPTION)]


def _has_runs(folder: Path) -> bool:
    """Whether a folder is a sweep's, or may be."""
    try:
        return any(_is_there(run / sweeps.OUTCOME) for run in _folders(folder))
    except OSError:
        return True


def _record_folders(top: Path) -> list[Path]:
    """Those that hold records themselves, not only in a folder of theirs."""
    return sorted({path.parent for path in _files(top) if path.suffix == ".json"})


def _leftovers(root: Path, found: Sequence[Entry | None]) -> Iterator[tuple[Path, Path]]:
    """Temporary files that nobody will finish, and the marked folders that they lie in.

    No process of this machine may have the number in the name; and because several machines can
    share the folder, and the process may be another's, the file must be a day old as well.
    """
    whole = [entry.marked for entry in found if entry and entry.kind in ("fit", "sweep")]
    flat = [folder for folder in _folders(root) if _marked(folder)]
    flat += [entry.marked for entry in found if entry and entry.kind == "records"]
    places = [(folder, _files_below(folder)) for folder in filter(None, whole)]
    for folder in dict.fromkeys(filter(None, flat)):
        places.append((folder, _files_below(folder, directly=True)))
    for marked, paths in places:
        for path in paths:
            temporary = TEMPORARY.fullmatch(path.name)
            if temporary and not psutil.pid_exists(int(temporary[1])) and _age(path) > DAY:
                yield path, marked


# --- how far it came -----------------------------------------------------------------------------

Judge = Callable[[Path], tuple[str, str]]  # state and note of an entry


def _entry(root: Path, kind: str, path: Path, marked: Path | None, judge: Judge) -> Entry | None:
    """The entry of a path; None where it is gone meanwhile."""
    try:
        state, note = judge(path)
    except (Malformed, OSError) as error:
        state, note = _unreadable(error, path)
    if not os.path.lexists(path):
        return None
    if marked is None:
        note = f"{note}; {NOT_OURS}" if note else NOT_OURS
    size = sum(about.st_size for about in _abouts(kind, path).values())
    name = path.relative_to(root).as_posix()
    return Entry(name, kind, state, path, marked, size, _changed(kind, path), note)


def _unreadable(error: Exception, path: Path) -> tuple[str, str]:
    """The state and note of what cannot be read."""
    if isinstance(error, Malformed):
        return "broken", str(error).replace(f"{path}{os.sep}", "")
    inside = error.filename and Path(error.filename) != path
    what = f"{Path(error.filename).name} " if inside else ""
    return "broken", f"{what}cannot be read ({error.strerror or error})"


@dataclass(frozen=True)
class _Progress:
    """How far a fit came."""

    epochs: int = 0
    of: int | str = "?"
    devices: int = 1
    finished: bool = False

    def __str__(self) -> str:
        return f"{self.epochs} of {self.of} epochs"


def _progress(folder: Path) -> _Progress:
    """How far a fit came.

    Raises:
        Malformed: When one of its files is.
    """
    epochs = len(fits.read_history(folder))
    try:
        settings = read_json(folder / fits.SETTINGS, FitSettings)
    except FileNotFoundError:
        return _Progress(epochs)
    try:
        fits.read_summary(folder)
    except FileNotFoundError:
        return _Progress(epochs, settings.epochs, settings.devices)
    finished = _is_there(folder / fits.WEIGHTS)
    return _Progress(epochs, settings.epochs, settings.devices, finished)


def _judge_fit(folder: Path) -> tuple[str, str]:
    far, wrong = _Progress(), ""
    try:
        far = _progress(folder)
    except (Malformed, OSError) as error:
        _, wrong = _unreadable(error, folder)
    # Of several devices each has a process, and none of them a lock, see `training.fit`.
    silent = far.devices > 1 and not far.finished
    if _at_work(folder) or (silent and time.time() - _changed("fit", folder) < DAY):
        return "running", wrong or str(far)
    stood = wrong or ("finished" if far.finished else f"stopped after {far}")
    if reason := _why_orphaned(folder):
        return "orphaned", f"{stood.removesuffix('.')}; {reason}"
    return ("finished", str(far)) if far.finished else ("broken", stood)


def _why_orphaned(folder: Path) -> str:
    """Why no chapter would take up a fit again; empty when one would."""
    try:
        made = fits.read_description(folder)
        experiment = experiments.experiment_of(made, folder)
        code = experiments.current_code(experiment, made.variant)
    except FileNotFoundError:
        return f"it has no {fits.DESCRIPTION}"
    except Malformed as error:
        _, sentence = _unreadable(error, folder)
        return f"its {fits.DESCRIPTION} cannot be read ({sentence.removesuffix('.')})"
    except (KeyError, ValueError):
        return f"there is no {made.variant} now"
    return "" if made.code == code else "the code of its fit has changed"


def _judge_notebook(path: Path) -> tuple[str, str]:
    if path.name.endswith(".failed.ipynb"):
        return "broken", "failed; open it to see where"
    return "finished", ""


def _judge_sweep(folder: Path) -> tuple[str, str]:
    states, wrong = [], []
    for run in _folders(folder):
        try:
            states.append("running" if _at_work(run) else _ended(run))
        except (Malformed, OSError) as error:
            wrong.append(f"{run.name}/{_unreadable(error, run)[1]}")
    kinds = ("done", "failed", "running", "stopped")
    told = [f"{states.count(kind)} {kind}" for kind in kinds if kind in states]
    told += [f"{len(wrong)} damaged: {wrong[0]}"] if wrong else []
    note = ", ".join(told) or "no runs"
    if "running" in states:
        return "running", note
    return ("broken" if wrong or set(states) - {"done"} else "finished"), note


def _ended(run: Path) -> str:
    """How a run of a sweep ended."""
    try:
        return read_json(run / sweeps.OUTCOME, sweeps.Outcome).state
    except FileNotFoundError:
        return "stopped"


def _judge_records(folder: Path) -> tuple[str, str]:
    return "finished", f"{len(_files_of('records', folder))} records"


def _judge_leftover(path: Path) -> tuple[str, str]:
    return "orphaned", f"of process {TEMPORARY.fullmatch(path.name)[1]}, which is gone"


# --- looking at folders --------------------------------------------------------------------------


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder that may be missing, but for links and hidden files."""
    paths = sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    return [path for path in paths if not path.name.startswith(".") and not path.is_symlink()]


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _is_there(path: Path) -> bool:
    """Whether something is at a path, or may be: a folder that cannot be read does not tell."""
    try:
        return path.exists()
    except OSError:
        return True


def _marked(folder: Path) -> Path | None:
    """The folder itself where it is the project's own."""
    try:
        return folder if is_own(folder) else None
    except OSError:
        return None


def _files_below(folder: Path, *, directly: bool = False) -> Iterator[Path]:
    """All files, links not followed, but for those in folders that cannot be read."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)
        if directly:
            return


def _files(path: Path) -> Iterable[Path]:
    """The file itself, or the files below a folder, but for temporary ones."""
    if not path.is_dir():
        return [path]
    return (file for file in _files_below(path) if not TEMPORARY.fullmatch(file.name))


def _files_of(kind: str, path: Path) -> list[Path]:
    """The files that make up an entry; a folder in one of records is an entry of its own."""
    return sorted(path.glob("*.json") if kind == "records" else _files(path))


def _abouts(kind: str, path: Path) -> dict[Path, os.stat_result]:
    """Sizes and times of an entry's files, of those that are still there."""
    found = {}
    for file in _files_of(kind, path):
        with suppress(OSError):
            found[file] = file.lstat()
    return found


def _changed(kind: str, path: Path) -> float:
    """When a file of an entry last changed, but for locks: who looks at one touches it."""
    abouts = _abouts(kind, path).items()
    times = [about.st_mtime for file, about in abouts if file.name != LOCK]
    try:
        return max(times) if times else path.lstat().st_mtime
    except OSError:
        return 0.0


def _age(path: Path) -> float:
    """Seconds since a file last changed; none of what is no file, or gone."""
    with suppress(OSError):
        about = path.lstat()
        if stat.S_ISREG(about.st_mode):
            return time.time() - about.st_mtime
    return 0.0


def _at_work(folder: Path) -> bool:
    """Whether a process has the folder in its hands.

    Raises:
        Malformed: When its lock is no file, and so nobody can.
    """
    lock = folder / LOCK
    if not os.path.lexists(lock):
        return False
    if lock.is_symlink() or not lock.is_file():
        raise Malformed(f"{lock}: expected a file, and it is none; move it away.")
    try:
        with locked(folder, wait=False) as free:
            return not free
    except OSError:  # a folder that only others may write to
        return False


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
    told = _describe_network(entry.path)
    with suppress(Malformed, OSError):
        history: pd.DataFrame = fits.read_history(entry.path)
        if not history["val_loss"].dropna().empty:
            best = history["val_loss"].idxmin()
            loss = history["val_loss"][best]
            told["best validation loss"] = f"{loss:.4g}, in epoch {best + 1}"
    with suppress(Malformed, OSError):
        done = fits.read_summary(entry.path)
        told["time"] = f"{sweeps.told_seconds(done.seconds)} on {done.device}"
        told["weights"] = f"{done.weights:,}"
    return told | _describe_files(entry) | {"use": _use(entry)}


def _describe_network(folder: Path) -> dict[str, str]:
    try:
        made = fits.read_description(folder)
    except (Malformed, OSError):
        return {}
    data = made.data
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
        described = _is_there(entry.path / fits.DESCRIPTION)
        usable = entry.note.startswith("finished") and described
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
    abouts = _abouts(entry.kind, entry.path).items()
    files = [(path, about) for path, about in abouts if path.name not in (LOCK, MARKER)]
    lines = [f"{path.name}  {decimal(about.st_size)}" for path, about in files]
    return {"files": "\n".join(lines)}


# --- deleting ------------------------------------------------------------------------------------


def chosen(what: Iterable[str], entries: Sequence[Entry]) -> list[Entry]:
    """The entries of states ("orphaned", "broken") and names, each once.

    Raises:
        ValueError: For a name that fits none or several, or of one that is at work or not ours.
    """
    found = []
    for text in what:
        if text in ("orphaned", "broken"):
            found += [entry for entry in entries if entry.state == text and entry.marked]
            continue
        entry = find(text, entries)
        if entry.state == "running":
            raise ValueError(f"{entry.name} is at work; end that first.")
        if not entry.marked:
            raise ValueError(f"{entry.path}: {NOT_OURS}. If it is yours, delete it yourself.")
        found.append(entry)
    return list(dict.fromkeys(found))


def delete(entries: Iterable[Entry]) -> Deleted:
    """Delete entries, but for those that a process has in its hands or that changed since.

    What is not marked as the project's own is kept as well, and what the system does not let go.
    """
    freed, kept = 0, []
    for entry in entries:
        try:
            deleted = _deleted(entry)
        except OSError:
            deleted = False
        if deleted:
            freed += entry.bytes
        elif _is_there(entry.path):
            kept.append(entry)
    return Deleted(freed, tuple(kept))


def _deleted(entry: Entry) -> bool:
    places = {"fit": [entry.path], "sweep": _folders(entry.path)}.get(entry.kind, [])
    if not entry.path.exists() or entry.path.is_symlink():
        return False
    if entry.marked is None or not is_own(entry.marked):
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
