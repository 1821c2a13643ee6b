"""The kernels that chapters run in: for this machine alone, with figures, never left behind."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from subprocess import Popen
from typing import Any

from jupyter_client.manager import AsyncKernelManager

from nuctut.running.children import kill_children_of

# Whatever the environment says: a figure is part of the page.
ENVIRONMENT = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
SET_SIGNAL_OF_PARENTS_DEATH = 1  # of Linux, <linux/prctl.h>


class Stop:
    """Ends a kernel from another thread than its own, also one that is yet to start."""

    def __init__(self) -> None:
        self.asked = False
        self.process: Popen | None = None

    def now(self) -> None:
        """End the kernel and all its processes."""
        self.asked = True
        if self.process is None or self.process.poll() is not None:
            return
        kill_children_of(self.process.pid)
        self.process.kill()


def kernel_class(stop: Stop) -> type[AsyncKernelManager]:
    """What papermill starts a kernel with that `stop` ends."""
    return type("Kernel", (_Kernel,), {"stop": stop})


class _Kernel(AsyncKernelManager):
    """Listens on the loopback interface, and ends when the process that started it does."""

    stop: Stop

    def __init__(self, **how: Any) -> None:
        super().__init__(ip="127.0.0.1", **how)

    async def start_kernel(self, **how: Any) -> None:
        if self.stop.asked:
            raise RuntimeError("stopped before its kernel had started")
        if sys.platform == "linux":  # elsewhere ipykernel looks every second, if nothing keeps it
            how["preexec_fn"] = _end_with_parent
        await super().start_kernel(env=os.environ | ENVIRONMENT, **how)
        self.stop.process = self.provisioner.process
        if self.stop.asked:
            self.stop.now()


if sys.platform == "linux":
    # Looked up here: a forked process should do as little as can be.
    _prctl = ctypes.CDLL(None).prctl


def _end_with_parent() -> None:
    _prctl(SET_SIGNAL_OF_PARENTS_DEATH, signal.SIGKILL)
