"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
