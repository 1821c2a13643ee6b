"""What a run ran on: versions, hardware, memory, commit."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nuctut
from nuctut.paths import project_root

PRECISIONS = ("auto", "fp32", "bf16")
LIBRARIES = ("torch", "lightning", "numpy", "scikit-image")
DIRTY = "-dirty"


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, device name, peak memory and git commit of the running process.

    Args:
        device: "cpu" or a CUDA device such as "cuda:0".

    Returns:
        `versions` (name → version, None where not installed), `device` (the hardware's name),
        `peak_memory_gb` and `git_commit`, as a record keeps them.
    """
    versions = {"python": platform.python_version(), "nuctut": nuctut.__version__}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "versions": versions,
        "device": device_name(device),
        "peak_memory_gb": peak_memory_gb(device),
        "git_commit": git_commit(),
    }


def device_name(device: str = "cpu") -> str:
    """The name of the hardware, such as "Intel(R) Xeon(R) CPU @ 2.20GHz, 2 cores"."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")  # on Linux `platform` often knows the architecture only
    if listing.is_file():
        model = re.search(r"^model name\s*:\s*(.+)$", listing.read_text(), re.MULTILINE)
        name = model[1].strip() if model else name
    return f"{name}, {cores()} core{'s' * (cores() != 1)}"


def precision_on(device: str, precision: str) -> str:
    """The arithmetic that a name stands for: "fp32", "bf16", or for "auto" the faster of both.

    That is bf16 where the hardware has it. Where it is only imitated, as on CPUs without AVX-512
    BF16 or AMX, an update of a U-Net takes ten times as long as in fp32.

    Args:
        device: "cpu" or a CUDA device such as "cuda:0".
        precision: One of `PRECISIONS`.

    Raises:
        ValueError: For another name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}.")
    if precision != "auto":
        return precision
    import torch

    if device.startswith("cuda"):
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        ask = getattr(torch.cpu, "get_capabilities", dict)  # torch before 2.11 does not tell
        has = any(name.endswith("bf16") and there for name, there in ask().items())
    return "bf16" if has else "fp32"


def cores() -> int:
    """CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def peak_memory_gb(device: str = "cpu") -> float | None:
    """Highest memory use so far in 10⁹ bytes; None where the system does not tell.

    On a CPU this is the whole process; on a GPU, what torch had allocated there. So far means since
    the process started, or since `reset_peak_memory`.
    """
    if device.startswith("cuda"):
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    # Linux: getrusage would also count what the parent held when it started this process
    status = Path("/proc/self/status")
    if status.is_file():
        peak = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        if peak:
            return round(int(peak[1]) * 1024 / 1e9, 3)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others kibibytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)


def reset_peak_memory(device: str = "cpu") -> None:
    """Let `peak_memory_gb` start anew; on a CPU only Linux can."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # not Linux, or not allowed in this container
        Path("/proc/self/clear_refs").write_text("5")


def git_commit() -> str | None:
    """The checkout's commit, `DIRTY` added when what runs may differ from it; None without git.

    That is when git knows a file that has changed, but for `results/`, where a run adds its own
    records, or when `src/` or `book/` hold one that git does not know. A log or a script
    elsewhere changes nothing that runs.
    """
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        added = _git("ls-files", "--others", "--exclude-standard", "--", "src", "book")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}{DIRTY}" if changed or added else commit


def _git(*arguments: str) -> str:
    run = subprocess.run(
        ["git", *arguments],
        cwd=project_root(),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return run.stdout.strip()
