"""Files that are there whole, or not at all; folders that one process at a time works in."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well.

    Write one file there. Whoever reads `path` meanwhile sees the old file or the new one, never a
    half; processes that write the same path do not disturb each other, and the last one stays.
    When the block raises, the temporary file is removed and `path` is as it was. The temporary
    name ends differently from `path`, so that no search for files of its kind finds it.

    Raises:
        FileNotFoundError: When the block wrote nothing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Whether this process is the only one at work in `folder`.

    The lock ends with the block, or with the process, however that dies: nothing has to be tidied
    up. Where a file system knows no locks (some mounted drives), everybody gets it.

    Args:
        folder: Its file `LOCK` is what is locked.
        wait: Wait until the folder is free; otherwise the block gets False where it is not.
    """
    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0, fallback_to_soft=False)
    held = True
    try:
        lock.acquire()
    except Timeout:
        held = False
    except (NotImplementedError, OSError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in (errno.ENOSYS, errno.ENOTSUP):
            raise
    try:
        yield held
    finally:
        lock.release()
