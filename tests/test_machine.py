"""Memory's high-water mark, and starting it anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nuctut import machine

MARKS = """
import sys
import numpy as np
from nuctut.machine import peak_memory_gb as peak, reset_peak_memory
start = peak()
block = np.ones(400_000_000 // 8)
held = peak()
del block
freed = peak()
reset_peak_memory()
anew = peak()
block = np.ones(200_000_000 // 8)
print(*(mark - start for mark in (held, freed, anew, peak())))
"""


def may_reset() -> bool:
    return os.access("/proc/self/clear_refs", os.W_OK)


@pytest.mark.skipif(not may_reset(), reason="this system does not let a process reset its mark")
def test_the_mark_starts_anew():
    run = subprocess.run([sys.executable, "-c", MARKS], capture_output=True, text=True, check=True)
    held, freed, anew, again = map(float, run.stdout.split())
    assert 0.3 < held <= 0.41 and abs(freed - held) < 0.01  # the system counts in batches
    assert abs(anew) < 0.1
    assert 0.15 < again < 0.3


@pytest.mark.parametrize("error", [PermissionError(13, "no"), FileNotFoundError(2, "no")])
def test_where_it_cannot_it_does_nothing(monkeypatch, error):
    def refused(*_: object) -> None:
        raise error

    monkeypatch.setattr(Path, "write_text", refused)
    machine.reset_peak_memory()


def test_a_gpu_has_a_mark_of_its_own(monkeypatch):
    torch = pytest.importorskip("torch")
    reset = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(Path, "write_text", None)  # the process's mark stays
    machine.reset_peak_memory("cuda:1")
    assert reset == ["cuda:1"]
