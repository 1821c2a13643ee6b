"""Processes that end with whoever started them, however that one dies.

Whoever starts one keeps the other end of its standard input open. As a program, this module calls a
function so: `python -m nuctut.running.children jupyter_book.cli.main:main build …`.
"""

from __future__ import annotations

import os
import pkgutil
import sys
import threading
from contextlib import suppress

import psutil


def end_with_parent() -> None:
    """From now on, end at once, with all processes of this one, when standard input closes."""
    threading.Thread(target=_end_when_closed, daemon=True).start()


def _end_when_closed() -> None:
    sys.stdin.read()
    kill_children_of(os.getpid())
    os._exit(1)


def kill_children_of(number: int) -> None:
    """End all processes that a process has started, and theirs; some may end meanwhile."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(number).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()


if __name__ == "__main__":
    end_with_parent()
    sys.argv = sys.argv[1:]
    sys.exit(pkgutil.resolve_name(sys.argv[0])())
