"""Fetching a data set: download, check, unpack, look at what came out, rename into place.

Everything happens in `<data folder>/.partial/<name>`, where one process at a time is at work; the
data set's own folder appears at the very end, whole, in one rename. A download that was cut off
stays there to be continued; after any other failure nothing stays.

Nothing that comes is believed: not the server's headers, not the sizes and names that an archive
gives, not what lies in the folder from before.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import requests
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
from urllib3.exceptions import HTTPError

from nuctut.datasets.checking import check
from nuctut.datasets.simulated.canvas import MARKER
from nuctut.datasets.spec import Archive, DatasetSpec, is_simulated
from nuctut.datasets.unpacking import CHUNK, KINDS, FetchError, unpack
from nuctut.files import LOCK, locked

PARTIAL = ".partial"
UNPACKED = "unpacked"
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of data
PATIENCE = 120  # seconds for an answer to begin, and for each CHUNK of it, however it drips
POLL = 0.2  # seconds between two looks at whether another process has finished
SLACK = 2  # times the size that is about right: what is larger is another thing

T = TypeVar("T")


class Interrupted(FetchError):
    """The server or the way to it failed: fetching again continues."""


def fetch(spec: DatasetSpec, root: Path, progress: bool = True) -> Path:
    """Downloads a data set into `root / spec.name` and returns that folder.

    A piece of one is put beside the pieces that are there, each archive's folder whole in one
    rename. Where another process is fetching the same, this one waits, and finds the set there.

    Args:
        spec: What to download, and what must come out.
        root: The data folder; made when missing.
        progress: Whether to draw progress bars.

    Raises:
        FetchError: When anything goes wrong: no connection, a file of another size or checksum,
            no room, an archive that is damaged or would write elsewhere, missing or damaged
            files in it, or something in the way; or when the set has to be placed by hand.
    """
    folder, work = root / spec.name, root / PARTIAL / spec.name
    if _is_there(spec, folder) and not os.path.lexists(work):
        return _already_there(spec, folder)
    if not spec.archives:
        raise FetchError(f"{spec.name} goes to {folder} by hand: {spec.by_hand}")
    _refuse_in_the_way(folder, work)
    new_root = not root.exists()
    with _bars(progress) as bars, _alone(work, bars):
        try:
            if _is_there(spec, folder):  # by another process, which perhaps was killed right after
                with _sentence(str(work)):
                    _sweep(work, ())
                return _already_there(spec, folder)
            _fetch(spec, work, folder, bars)
            return folder
        finally:
            _tidy(work, new_root)


def _fetch(spec: DatasetSpec, work: Path, folder: Path, bars: Progress) -> None:
    """Fetches into `folder` by way of `work`; leaves downloads there only if they are of use."""
    downloads = [name for one in spec.archives for name in (one.name, f"{one.name}.part")]
    kept: Sequence[str] = ()
    try:
        with _sentence(str(work)):
            _sweep(work, downloads)
            _require_space(spec, work)
        for archive in _wanted(spec, folder):
            _download(spec, archive, work, bars)
        _install(spec, work, folder, bars)
    except (Interrupted, KeyboardInterrupt):
        kept = downloads
        raise
    finally:
        with suppress(OSError):
            _sweep(work, kept)


# --- what is there already -----------------------------------------------------------------------


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _wanted(spec: DatasetSpec, folder: Path) -> list[Archive]:
    """The archives to download: all, but of a piece those whose folders are there already."""
    return [one for one in spec.archives if not (spec.pieces and (folder / one.folder).is_dir())]


def _is_there(spec: DatasetSpec, folder: Path) -> bool:
    if spec.pieces and not is_simulated(folder):
        return not _wanted(spec, folder)
    return _is_filled(folder)


def _already_there(spec: DatasetSpec, folder: Path) -> Path:
    """The folder, when it holds the whole data set already; an error when it does not."""
    if is_simulated(folder):
        raise FetchError(f"{folder} holds simulated data: move it away and fetch again.")
    report = check(spec, folder, spec.counts)
    if not report.ok:
        raise FetchError(
            f"{folder} is there already, but not whole: {_first(report.problems)}; "
            "move the folder away and fetch again."
        )
    return folder


def _refuse_in_the_way(folder: Path, work: Path) -> None:
    """Refuses a file where a folder is to be, and links: who knows whose files they lead to."""
    for place in (folder, work.parent, work):
        link = place.is_symlink() and not _is_filled(folder)
        if link or (place.exists() and not place.is_dir()):
            kind = "a link" if link else "no folder"
            raise FetchError(f"{place} is in the way, it is {kind}: move it away and fetch again.")


def _sweep(work: Path, kept: Sequence[str]) -> None:
    """Removes all from `work` but the lock and files of these names.

    A link goes, and so does a file that has another name elsewhere: neither is to be written to.
    """
    for path in work.iterdir():
        about = path.lstat()
        if stat.S_ISDIR(about.st_mode):
            shutil.rmtree(path)
        elif path.name != LOCK:
            own = stat.S_ISREG(about.st_mode) and about.st_nlink == 1
            if path.name not in kept or not own:
                path.unlink()


def _tidy(work: Path, new_root: bool) -> None:
    """Removes the folders that fetching made, where they are empty."""
    with suppress(OSError):
        if [path.name for path in work.iterdir()] == [LOCK]:
            (work / LOCK).unlink()
        for folder in (work, work.parent, *([work.parent.parent] if new_root else [])):
            folder.rmdir()


@contextmanager
def _alone(work: Path, bars: Progress) -> Iterator[None]:
    """Keeps other processes from fetching into `work`; waits for one that is at it already."""
    with _sentence(str(work.parent.parent)):
        lock = _lock(work, bars)
    with lock:
        yield


def _lock(work: Path, bars: Progress) -> ExitStack:
    said, vanished = False, 0
    while True:
        try:
            with ExitStack() as stack:
                work.mkdir(parents=True, exist_ok=True)
                if stack.enter_context(locked(work, wait=False)):
                    return stack.pop_all()
        except FileNotFoundError:  # who had the lock removed the folder just now
            vanished += 1
            if vanished == 10:
                raise
        if not said:
            text = f"Another process is fetching into {work}: waiting until it has finished."
            bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
            said = True
        time.sleep(POLL)


def _require_space(spec: DatasetSpec, work: Path) -> None:
    """Refuses to start when what is still to come does not fit on the disk."""
    here = sum(path.stat().st_size for path in work.iterdir())
    needed = sum(archive.bytes for archive in spec.archives) - here + spec.unpacked_bytes
    free = shutil.disk_usage(work).free
    if free < needed:
        raise FetchError(
            f"The disk of {work.parent.parent} has {_megabytes(free)} free and {spec.name} needs "
            f"{_megabytes(needed)}: make room, or set NUCTUT_DATA to a folder on another disk."
        )


# --- downloading ---------------------------------------------------------------------------------


def _download(spec: DatasetSpec, archive: Archive, work: Path, bars: Progress) -> None:
    """Loads the archive into `work` and checks it; one that is there is not loaded again."""
    url, path = archive.url or spec.base_url + archive.name, work / archive.name
    partial = work / f"{archive.name}.part"
    task = bars.add_task(archive.name, total=archive.bytes)
    with _sentence(archive.name):
        if not (path.exists() and _is_as_pinned(path, archive)):
            _receive(url, archive, partial, lambda done: bars.update(task, completed=done))
            if not _is_as_pinned(partial, archive):
                raise FetchError(
                    f"{url} has not the sha256 {archive.sha256} that is pinned "
                    "for it and was deleted: fetch again, and if that does not help, "
                    "the publisher has changed the file."
                )
            os.replace(partial, path)
    bars.update(task, completed=archive.bytes)


def _is_as_pinned(path: Path, archive: Archive) -> bool:
    """Whether the file has the archive's sha256; true where none is known."""
    if archive.sha256 is None:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == archive.sha256


def _receive(url: str, archive: Archive, partial: Path, on_bytes: Callable[[int], None]) -> None:
    """Loads `url` into `partial`, continuing after the bytes that are there.

    Raises:
        Interrupted: When less came than is to come; what is in `partial` is good.
        FetchError: When something else came.
    """
    done = partial.stat().st_size if partial.exists() else 0
    if archive.exact and done >= archive.bytes:  # all there (or more, which the checksum tells)
        return
    size = archive.bytes
    try:
        with _answer(url, done) as response:
            if response.status_code == 416 and done and not archive.exact:
                return  # "range not satisfiable": all there, which the checksum tells
            done, size = _start(response, archive, done)
            pieces = response.iter_content(CHUNK)
            with partial.open("ab" if done else "wb") as file:
                while chunk := _within(next, pieces, b""):
                    _refuse_beginning(url, archive, b"" if done else chunk)
                    done += len(chunk)
                    _refuse_size(url, archive, done > (size or SLACK * archive.bytes))
                    file.write(chunk)
                    on_bytes(done)
    except (requests.RequestException, HTTPError, ValueError, TimeoutError) as error:
        raise Interrupted(
            f"The connection failed after {done:,} of {size or archive.bytes:,} bytes of {url} "
            f"({type(error).__name__}): fetch again to continue."
        ) from error
    if done < size:
        raise Interrupted(
            f"The connection ended after {done:,} of {size:,} bytes of {url}: "
            "fetch again to continue."
        )


@contextmanager
def _answer(url: str, done: int) -> Iterator[requests.Response]:
    """What the server says when asked for a file from the byte `done` on."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    response = _within(requests.get, url, headers=headers, stream=True, timeout=TIMEOUT)
    try:
        yield response
    finally:
        with suppress(Exception):  # wakes a thread still at it, for which close() would wait
            response.raw.shutdown()
        response.close()


def _within(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """What the function returns, or a TimeoutError after `PATIENCE` seconds.

    The time limits of a socket begin anew with each byte, so a server that sends one now and then
    would hold us for ever. The function runs in a thread, which is left behind when it is late.
    """
    answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((function(*args, **options), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = answer.get(timeout=PATIENCE)
    except queue.Empty:
        raise TimeoutError(f"nothing came within {PATIENCE} seconds") from None
    if error is not None:
        raise error
    return value


def _start(response: requests.Response, archive: Archive, done: int) -> tuple[int, int]:
    """How many of the bytes on disk the answer continues, and how many there will be.

    The first is 0 where it starts over; the second is 0 where nobody says.

    Raises:
        Interrupted: For an answer that is not the file.
        FetchError: For one that is another file, or another part of it.
    """
    # 416 "range not satisfiable": the file ends before the place to continue at
    _refuse_size(response.url, archive, response.status_code == 416)
    _refuse_other_answers(response)
    length = response.headers.get("Content-Length", "")
    whole = int(length) if re.fullmatch(r"\d{1,18}", length) else 0
    begin = 0
    if response.status_code == 206:
        begin, whole = done, _whole_of_part(response, done, whole)
    if archive.exact:
        _refuse_size(response.url, archive, whole not in (0, archive.bytes))
        whole = archive.bytes
    _refuse_size(response.url, archive, whole > SLACK * archive.bytes)
    return begin, whole


def _whole_of_part(response: requests.Response, done: int, length: int) -> int:
    """The size of a file of which a part comes, or 0; it must be the part that was asked for."""
    said = response.headers.get("Content-Range", "").strip()[:80]
    part = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", said)
    if not part or int(part[1]) != done:
        raise FetchError(
            f"{response.url} came from another byte on than was asked for, {done:,} "
            f"(it is said to be {said!r}): fetch again from the beginning."
        )
    return int(part[2]) if part[2] != "*" else length and done + length


def _refuse_other_answers(response: requests.Response) -> None:
    """Refuses what is no part of any file: an error, a web page, bytes packed once more."""
    if response.status_code not in (200, 206):
        raise Interrupted(
            f"The server answered {response.status_code} {response.reason} for {response.url}: "
            "try again later, and if that does not help, the publisher has moved the file."
        )
    if "html" in response.headers.get("Content-Type", "").lower():
        raise Interrupted(
            f"A web page came instead of {response.url}, perhaps to log in to the network: "
            "open the address in a browser, and fetch again."
        )
    if (packing := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise Interrupted(
            f"{response.url} came packed as {packing[:40]}, which was not asked for: try again "
            "later or from another network."
        )


def _refuse_beginning(url: str, archive: Archive, first: bytes) -> None:
    for end, begin in KINDS.items():
        if archive.name.endswith(end) and first[:2] != begin[: len(first)]:
            raise FetchError(
                f"{url} is not a {end[1:]} file: fetch again, perhaps from another network."
            )


def _refuse_size(url: str, archive: Archive, wrong: bool) -> None:
    if wrong:
        about = "" if archive.exact else "about "
        raise FetchError(
            f"{url} is not of the size pinned for it, {about}{archive.bytes:,} bytes: "
            "the publisher has changed the file."
        )


# --- installing ----------------------------------------------------------------------------------


def _install(spec: DatasetSpec, work: Path, folder: Path, bars: Progress) -> None:
    """Unpacks below `work`, checks what came out, and renames it to `folder`."""
    staging = work / UNPACKED
    task = bars.add_task("unpacking", total=spec.unpacked_bytes)
    room = SLACK * spec.unpacked_bytes
    wanted = _wanted(spec, folder)
    for archive in wanted:
        with _sentence(archive.name):
            staging.mkdir(exist_ok=True)
            if archive.name.endswith(tuple(KINDS)):
                path, inside = work / archive.name, archive.folder
                room -= unpack(path, staging, room, inside, lambda size: bars.advance(task, size))
            else:
                shutil.copyfile(work / archive.name, staging / archive.name)
    bars.update(task, completed=spec.unpacked_bytes)
    if spec.pieces:
        with _sentence(str(folder)):
            _add_piece(spec, wanted, staging, folder)
        return
    _refuse_content(spec, staging)
    with _sentence(str(folder)):
        if folder.exists():  # empty, or we would not be here
            folder.rmdir()
        os.replace(staging, folder)


def _add_piece(spec: DatasetSpec, archives: Sequence[Archive], staging: Path, folder: Path) -> None:
    """Checks the unpacked folders of a piece, and renames each to its place."""
    for part in spec.parts:
        if not (staging / part).exists() and (folder / part).exists():
            shutil.copytree(folder / part, staging / part)
    _refuse_content(spec, staging)
    folder.mkdir(exist_ok=True)
    for archive in archives:
        os.replace(staging / archive.folder, folder / archive.folder)


def _refuse_content(spec: DatasetSpec, staging: Path) -> None:
    if is_simulated(staging):
        raise FetchError(
            f"The archives of {spec.name} hold a file {MARKER}, as simulated data do: "
            "they are not the real ones."
        )
    report = check(spec, staging, spec.counts)
    if not report.ok:
        problem = _first(report.problems).replace(str(staging), spec.name)
        raise FetchError(f"The archives of {spec.name} do not hold what they should: {problem}.")


# --- words ---------------------------------------------------------------------------------------


@contextmanager
def _sentence(name: str) -> Iterator[None]:
    """Turns an error of the file system into a sentence that says which file it was about."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            message = f"The disk is full, {name} could not be written: make room and fetch again."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            message = (
                f"{name} could not be written ({error}): "
                "set NUCTUT_DATA to a folder that you may write to."
            )
        else:
            message = f"{name} could not be written: {error}."
        raise FetchError(message) from error


def _bars(progress: bool) -> Progress:
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, disable=not progress)


def _first(problems: tuple[str, ...]) -> str:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return problems[0].removesuffix(".") + more


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
