"""Unpacking an archive that somebody else made: whole and where it should, or not at all."""

from __future__ import annotations

import errno
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

CHUNK = 1 << 16  # bytes read at a time
KINDS = {".zip": b"PK", ".tgz": b"\x1f\x8b"}  # of archive, and how each begins

Opener = Callable[[zipfile.ZipInfo], IO[bytes]]


class FetchError(RuntimeError):
    """A data set could not be fetched; the message is one sentence for the user."""


def unpack(
    path: Path,
    folder: Path,
    limit: int,
    inside: str = "",
    on_bytes: Callable[[int], object] = lambda size: None,
) -> int:
    """Unpacks a zip or tgz file into `folder`, leaving out what macOS adds to archives.

    Nothing is written when any member has a name that leads out of the folder or that another one
    has, is encrypted, or is a link or another special file.

    Args:
        path: Of the archive.
        folder: Where to.
        limit: How many bytes may come out, whatever the archive says of itself.
        inside: With it, the members end up in that folder below `folder`, whether their names
            begin with it or not.
        on_bytes: Called with the size of each piece that is written.

    Returns:
        How many bytes came out.

    Raises:
        FetchError: For such a member, a damaged archive, or more bytes, naming it.
        OSError: When a file cannot be written.
    """
    written = 0

    def count(size: int) -> None:
        nonlocal written
        written += size
        if written > limit:
            raise FetchError(f"{path.name} unpacks to more than {limit:,} bytes, and should not.")
        on_bytes(size)

    try:
        with _opened(path) as (members, opener):
            members = [member for member in members if not _is_junk(member)]
            _refuse_members(path, members)
            if any(PurePosixPath(member.filename).parts[0] != inside for member in members):
                folder = folder / inside
            for member in members:
                if not member.is_dir():
                    _extract(opener, member, folder / member.filename, count)
    except FetchError:
        raise
    except Exception as error:  # zipfile and the decoders raise whatever they meet
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the disk's fault and not the archive's
        reason = " ".join(str(error).split()).removesuffix(".") or type(error).__name__
        kind = path.suffix.removeprefix(".")
        raise FetchError(f"{path.name} is not a {kind} file that can be read: {reason}.") from error
    return written


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[zipfile.ZipInfo], Opener]]:
    """What an archive says of its members, and what opens one of them."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            yield archive.infolist(), archive.open
    else:
        with tarfile.open(path, "r:gz") as tar:
            members = {_as_zip(member): member for member in tar if member.name != "."}
            yield list(members), lambda member: tar.extractfile(members[member])


def _as_zip(member: tarfile.TarInfo) -> zipfile.ZipInfo:
    """A tar file's member as a zip file would describe it."""
    name = member.name.removeprefix("./") + ("/" if member.isdir() else "")
    described = zipfile.ZipInfo(name)
    kind = stat.S_IFDIR if member.isdir() else stat.S_IFREG if member.isreg() else stat.S_IFLNK
    described.external_attr = kind << 16
    return described


def _is_junk(member: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(member.filename).parts
    return parts[:1] == ("__MACOSX",) or parts[-1:] == (".DS_Store",)


def _refuse_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuses members that are unsafe, or of which one would be written over another."""
    files, folders = set(), set()
    for member in members:
        if fault := _fault(member):
            raise _refused(path, member, fault)
        name = _folded(member)
        folders.update(name.parents)
        if member.is_dir():
            folders.add(name)
        elif name in files:
            raise _refused(path, member, "has the name of another one")
        else:
            files.add(name)
    both = files & folders
    for member in members:
        if _folded(member) in both:
            raise _refused(path, member, "is a file and a folder")


def _folded(member: zipfile.ZipInfo) -> PurePosixPath:
    """The name as file systems see it that know no cases, or write accents another way."""
    return PurePosixPath(unicodedata.normalize("NFC", member.filename).casefold())


def _refused(path: Path, member: zipfile.ZipInfo, fault: str) -> FetchError:
    return FetchError(
        f"{path.name}: the member {member.filename!r} {fault}, so nothing of it was unpacked."
    )


def _fault(member: zipfile.ZipInfo) -> str:
    """What is wrong with a member for itself, or nothing."""
    name, parts = member.filename, PurePosixPath(member.filename).parts
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the packer stored no Unix mode
    if not parts or not member.orig_filename.isprintable():
        return "has no name that a file can have"
    if name.startswith("/") or "\\" in name or ":" in name:
        return "has an absolute or Windows name"
    if ".." in parts:
        return "leads out of its folder"
    if kind not in (0, stat.S_IFREG) and not (kind == stat.S_IFDIR and member.is_dir()):
        return "is a link or another special file"
    if member.flag_bits & 1:
        return "is encrypted"
    return ""


def _extract(
    opener: Opener, member: zipfile.ZipInfo, target: Path, count: Callable[[int], None]
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with opener(member) as packed, target.open("xb") as file:
        while piece := packed.read(CHUNK):
            count(len(piece))
            file.write(piece)
