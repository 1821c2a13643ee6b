"""What the tests that start real processes share."""

import sys
import sysconfig
import time
from pathlib import Path

import psutil

PATIENCE = 180.0  # seconds; what is waited for takes a few on a quiet machine
NUCTUT = [sys.executable, str(Path(sysconfig.get_path("scripts")) / "nuctut")]


def wait_for(what, reason):
    """What a function returns, once that is something; it is called again and again."""
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < deadline, f"waited in vain: {reason}"
        time.sleep(0.01)
    return found


def is_alive(process):
    """Whether a `psutil.Process` still runs; one that nobody has waited for yet does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
