"""Fetching a data set: download, check, unpack, look at what came out, rename into place.

Everything happens in `<data folder>/.partial/<name>`; the data set's own folder appears at the
very end, whole, in one rename. A download that was cut off stays there to be continued; after any
other failure nothing stays.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

import pooch
import requests
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from nuctut.datasets.checking import check
from nuctut.datasets.spec import Archive, DatasetSpec, is_simulated

PARTIAL = ".partial"
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of data
CHUNK = 1 << 16


class FetchError(RuntimeError):
    """A data set could not be fetched; the message is one sentence for the user."""


class Interrupted(FetchError):
    """The server or the way to it failed: fetching again continues."""


def fetch(spec: DatasetSpec, root: Path, progress: bool = True) -> Path:
    """Downloads a data set into `root / spec.name` and returns that folder.

    Args:
        spec: What to download, and what must come out.
        root: The data folder; made when missing.
        progress: Whether to draw progress bars.

    Raises:
        FetchError: When anything goes wrong: no connection, a file of another size or checksum,
            no room, an archive that is damaged or would write elsewhere, missing or damaged
            files in it, or a folder in the way.
    """
    folder = root / spec.name
    if folder.is_dir() and any(folder.iterdir()):
        return _already_there(spec, folder)
    work = root / PARTIAL / spec.name
    new_root = not root.exists()
    keep_downloads = False
    try:
        _require_space(spec, root, work)
        with _sentence(str(root)):
            work.mkdir(parents=True, exist_ok=True)
        with _bars(progress) as bars:
            for archive in spec.archives:
                _download(spec, archive, work, bars)
            _install(spec, work, folder, bars)
    except (Interrupted, KeyboardInterrupt):
        keep_downloads = True
        raise
    finally:
        _tidy(work, keep_downloads, new_root)
    return folder


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


def _require_space(spec: DatasetSpec, root: Path, work: Path) -> None:
    """Refuses to start when what is still to come does not fit on the disk."""
    here = sum(path.stat().st_size for path in work.glob("*") if path.is_file())
    needed = sum(archive.bytes for archive in spec.archives) - here + spec.unpacked_bytes
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise FetchError(
            f"The disk of {root} has {_megabytes(free)} free and {spec.name} needs "
            f"{_megabytes(needed)}: make room, or set NUCTUT_DATA to a folder on another disk."
        )


def _download(spec: DatasetSpec, archive: Archive, work: Path, bars: Progress) -> None:
    """Loads the archive into `work` and checks it; one that is there is not loaded again."""
    task = bars.add_task(archive.name, total=archive.bytes)
    partial = work / f"{archive.name}.part"

    def download(url: str, output_file: str, _pooch: object) -> None:
        _receive(url, archive, partial, lambda done: bars.update(task, completed=done))
        os.replace(partial, output_file)

    pooch.get_logger().setLevel("WARNING")  # the bars say what it would say
    try:
        with _sentence(archive.name):
            pooch.retrieve(
                spec.base_url + archive.name,
                known_hash=f"sha256:{archive.sha256}",
                fname=archive.name,
                path=work,
                downloader=download,
            )
    except ValueError as error:  # pooch: the checksum is another one
        raise FetchError(
            f"{spec.base_url}{archive.name} has not the sha256 {archive.sha256} that is pinned "
            "for it and was deleted: fetch again, and if that does not help, "
            "the publisher has changed the file."
        ) from error
    bars.update(task, completed=archive.bytes)


def _receive(url: str, archive: Archive, partial: Path, on_bytes: Callable[[int], None]) -> None:
    """Loads `url` into `partial`, continuing after the bytes that are there."""
    done = partial.stat().st_size if partial.exists() else 0
    if archive.exact and done >= archive.bytes:  # all there (or more, which the checksum tells)
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    size = archive.bytes
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416 and not archive.exact:
                return  # "range not satisfiable": all there, which the checksum tells
            done = _start(response, archive, done)
            if not archive.exact:
                size = done + int(response.headers.get("Content-Length", 0))
            with partial.open("ab" if done else "wb") as file:
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    on_bytes(done)
                    _refuse_size(url, archive, archive.exact and done > size)
    except requests.RequestException as error:
        raise Interrupted(
            f"The connection failed after {done:,} of {size:,} bytes of {url} "
            f"({type(error).__name__}): fetch again to continue."
        ) from error
    if done < size:
        raise Interrupted(
            f"The connection ended after {done:,} of {size:,} bytes of {url}: "
            "fetch again to continue."
        )


def _start(response: requests.Response, archive: Archive, done: int) -> int:
    """How many of the bytes on disk the response continues; 0 means that it starts over."""
    # 416 "range not satisfiable": the file ends before the place to continue at
    _refuse_size(response.url, archive, response.status_code == 416)
    if response.status_code not in (200, 206):
        raise Interrupted(
            f"The server answered {response.status_code} {response.reason} for {response.url}: "
            "try again later, and if that does not help, the publisher has moved the file."
        )
    continues = response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
    return done if response.status_code == 206 and continues else 0


def _refuse_size(url: str, archive: Archive, wrong: bool) -> None:
    if wrong:
        raise FetchError(
            f"{url} is not of the size pinned for it, {archive.bytes:,} bytes: "
            "the publisher has changed the file."
        )


def _install(spec: DatasetSpec, work: Path, folder: Path, bars: Progress) -> None:
    """Unpacks below `work`, checks what came out, and renames it to `folder`."""
    staging = work / "unpacked"
    shutil.rmtree(staging, ignore_errors=True)  # left by a run that was killed
    task = bars.add_task("unpacking", total=spec.unpacked_bytes)
    for archive in spec.archives:
        with _sentence(archive.name):
            if archive.name.endswith(".zip"):
                path, inside = work / archive.name, archive.folder
                unpack(path, staging, lambda size: bars.advance(task, size), inside)
            else:
                staging.mkdir(exist_ok=True)
                shutil.copyfile(work / archive.name, staging / archive.name)
    bars.update(task, completed=spec.unpacked_bytes)
    report = check(spec, staging, spec.counts)
    if not report.ok:
        problem = _first(report.problems).replace(str(staging), spec.name)
        raise FetchError(f"The archives of {spec.name} do not hold what they should: {problem}.")
    with _sentence(str(folder)):
        if folder.exists():  # empty, or we would not be here
            folder.rmdir()
        os.replace(staging, folder)


def unpack(
    path: Path,
    folder: Path,
    on_bytes: Callable[[int], None] = lambda size: None,
    inside: str = "",
) -> None:
    """Unpacks a zip file into `folder`, leaving out what macOS adds to archives.

    With `inside`, its members end up in that folder below `folder`, whether their names begin with
    it or not.

    Nothing is written when any member has an absolute name, leads out of the folder by `..`,
    or is a link or another special file.

    Raises:
        FetchError: For such a member or a damaged archive, naming it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not _is_junk(member)]
            for member in members:
                _refuse_unsafe(path, member)
            if any(PurePosixPath(member.filename).parts[0] != inside for member in members):
                folder = folder / inside
            for member in members:
                if not member.is_dir():
                    _extract(archive, member, folder / member.filename)
                    on_bytes(member.file_size)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError) as error:
        raise FetchError(f"{path.name} is not a zip file that can be read: {error}.") from error


def _is_junk(member: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(member.filename).parts
    return parts[:1] == ("__MACOSX",) or parts[-1:] == (".DS_Store",)


def _refuse_unsafe(path: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the packer stored no Unix mode
    if name.startswith("/") or "\\" in name or PureWindowsPath(name).drive:
        fault = "has an absolute or Windows name"
    elif ".." in PurePosixPath(name).parts:
        fault = "leads out of its folder"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "is a link or another special file"
    else:
        return
    raise FetchError(f"{path.name}: the member {name!r} {fault}, so nothing of it was unpacked.")


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as packed, target.open("xb") as file:
        shutil.copyfileobj(packed, file)


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


def _tidy(work: Path, keep_downloads: bool, new_root: bool) -> None:
    """Removes what fetching made, but for a download to be continued."""
    shutil.rmtree(work / "unpacked" if keep_downloads else work, ignore_errors=True)
    root = work.parent.parent
    for folder in (work, work.parent, *([root] if new_root else [])):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _bars(progress: bool) -> Progress:
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, disable=not progress)


def _first(problems: tuple[str, ...]) -> str:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return problems[0].removesuffix(".") + more


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
