"""The same sweep with one worker and with two.

    python bench/sweeps.py [--runs 4]       # about six minutes on two quiet cores

Chapter 01 under its smoke preset on simulated images, several seeds, every run with a single
thread; each sweep in a fresh folder, so that nothing is taken up from the other. Starting the
workers counts. Ends with status 1 if two workers take more than 0.6 of the time of one.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nuctut import machine
from nuctut.running import cluster, sweeps

GOAL = 0.6
FIXED = {"preset": "smoke", "data": "simulated", "device": "cpu"}


def seconds(workers: int, runs: int, folder: Path) -> float:
    """Wall-clock time of a whole sweep."""
    os.environ["NUCTUT_RUNS"] = str(folder / "runs")
    sweep = sweeps.plan("01", {"seed": list(range(runs))}, FIXED, folder / "sweep")
    started = time.perf_counter()
    if not cluster.carry_out(sweep, workers=workers, threads=1):
        sys.exit("some runs failed, so their time says nothing")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=4)
    runs = parser.parse_args().runs
    took = {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            took[workers] = seconds(workers, runs, Path(folder))
    ratio = took[2] / took[1]
    table = Table("workers", "seconds", "ratio", title=f"{runs} runs on {machine.device_name()}")
    for workers, time_taken in took.items():
        table.add_row(str(workers), f"{time_taken:.0f}", f"{time_taken / took[1]:.2f}")
    Console().print(table)
    print(f"two workers in at most {GOAL} of the time of one: {'yes' if ratio <= GOAL else 'NO'}")
    sys.exit(ratio > GOAL)


if __name__ == "__main__":
    main()
