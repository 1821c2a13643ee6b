"""Where the runs of a sweep happen: workers of dask.distributed, here or on a cluster.

A worker takes one run at a time and gives it a process of its own (`sweeps.main`). If the worker
dies, so does that process, and the scheduler gives the run to another worker. If whoever sweeps
dies, its own workers die with it, and the next start does what is left.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from nuctut import datasets, machine
from nuctut.files import own
from nuctut.paths import runs_root
from nuctut.running import children, notebooks, sweeps
from nuctut.running.sweeps import EXIT, Outcome, Run, Sweep

if TYPE_CHECKING:
    from distributed import Client

GRACE = 30.0  # seconds between asking a run to end and ending it
LOOPBACK = "127.0.0.1"
ADDRESS = re.compile(r"(?:(?P<scheme>tcp|tls)://)?(\[[0-9A-Fa-f:.]+\]|[\w.-]+):(?P<port>\d{1,5})")
CONNECTING = 20  # seconds that a scheduler has to answer
PAUSE = 3.0  # seconds before looking again at a run that another sweep has in its hands
MEMORY_OF_A_RUN = 6e9  # bytes; the hungriest network of the chapters at `lite` takes 5.1e9
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> float:
    """Seconds of a text such as "90s", "30m", "2h" or "1d".

    Raises:
        ValueError: For anything else, and for no time at all.
    """
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * UNITS[unit]
    except (KeyError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f'A time limit reads like "90s", "30m", "2h" or "1d", not {text!r}.')
    return seconds


# --- one run on a worker -------------------------------------------------------------------------


def do_run(
    run: Run, threads: int | None, limit: float, since: float, environment: Mapping[str, str]
) -> Outcome:
    """A run in a process of its own, on the dask worker that this is called on.

    Args:
        run: What to do. Its chapter and folder must be where this worker sees them.
        threads: That its process may use; None for the worker's share of the cores.
        limit: Seconds after which it is ended, and has failed.
        since: See `sweeps.perform`.
        environment: Variables that its process gets.
    """
    if not run.notebook.is_file():
        raise FileNotFoundError(
            f"{run.notebook} is not there on {platform.node()}: the checkout and the folder of "
            "runs must lie where all workers see them."
        )
    own(run.folder)
    variables = dict.fromkeys(THREADS, str(threads or _share_of_the_cores())) | dict(environment)
    asked = json.dumps(asdict(sweeps.Asked(run, since)), default=str)
    started = time.monotonic()
    with (run.folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nuctut.running.sweeps"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | variables,
        )
    process.stdin.write(asked.encode() + b"\n")
    process.stdin.flush()  # and stays open: when it closes, the run ends
    in_time = _wait(process, limit)
    process.stdin.close()
    if process.returncode == EXIT["busy"]:
        return Outcome("busy")
    if process.returncode in EXIT.values() and (outcome := sweeps.outcome_of(run)):
        return outcome
    reason = f"the run's process ended with status {process.returncode}"
    if process.returncode < 0:
        reason = f"the run's process was killed by signal {-process.returncode} (no memory left?)"
    if not in_time:
        reason = f"the run took longer than its time limit of {limit:g} s"
    return sweeps.fail(run, f"{reason}; see {run.folder / 'log.txt'}", time.monotonic() - started)


def _share_of_the_cores() -> int:
    from dask.system import CPU_COUNT  # knows the limits of containers too
    from distributed import get_worker

    return max(1, CPU_COUNT // get_worker().state.nthreads)


def _wait(process: subprocess.Popen, limit: float) -> bool:
    """Wait for a process to end, or see to it that it does; whether it did by itself."""
    try:
        process.wait(limit)
        return True
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        children.kill_children_of(process.pid)
        process.kill()
        process.wait()
    return False


# --- workers -------------------------------------------------------------------------------------


def gpus() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = [str(number) for number in range(torch.cuda.device_count())]
    return named.split(",")[: len(numbers)] if named else numbers


def local_workers() -> int:
    """How many runs this machine has room for: by its cores, and by its memory."""
    return max(1, min(machine.cores(), int(psutil.virtual_memory().total / MEMORY_OF_A_RUN)))


@contextmanager
def local_client(workers: int, devices: list[str]) -> Iterator[Client]:
    """A scheduler and workers on this machine, each for one run at a time.

    Args:
        workers: How many; one per device where there are any.
        devices: GPUs, one for each worker, which sees no other; several may have the same.
    """
    from distributed import Client, Nanny, Scheduler, SpecCluster

    # A run has a process of its own, so the worker's memory says nothing. Whoever reaches a port
    # of dask can run code here: without `host`, workers would listen to the whole network.
    common = {"nthreads": 1, "memory_limit": None, "silence_logs": logging.CRITICAL}
    common |= {"dashboard": False, "host": LOOPBACK}
    with tempfile.TemporaryDirectory(prefix="nuctut-", ignore_cleanup_errors=True) as place:
        common["local_directory"] = place
        options = [common for _ in range(workers)]
        if devices:
            options = [
                common | {"resources": {"GPU": 1}, "env": {"CUDA_VISIBLE_DEVICES": device}}
                for device in devices
            ]
        cluster = SpecCluster(
            scheduler={
                "cls": Scheduler,
                "options": {"host": LOOPBACK, "dashboard_address": f"{LOOPBACK}:0"},
            },
            workers={name: {"cls": Nanny, "options": one} for name, one in enumerate(options)},
            silence_logs=logging.CRITICAL,
        )
        with cluster, Client(cluster) as client:
            yield client


@dataclass(frozen=True)
class Certificates:
    """What proves to a scheduler who we are, and to us who it is: three PEM files.

    Attributes:
        authority: Certificate of who signed those of scheduler, workers and clients.
        certificate, key: Our own.
    """

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def given(cls, **files: Path | None) -> Certificates | None:
        """From the options `--tls-…` of a command line: all of them, or None for none.

        Raises:
            ValueError: When some are missing, or are no files.
        """
        if not any(files.values()):
            return None
        for option, path in files.items():
            if path is None or not path.is_file():
                name = f"--tls-{option}"
                lacks = f"{name} is missing" if path is None else f"{name}: no file {path}"
                raise ValueError(f"TLS wants --tls-ca, --tls-cert and --tls-key; {lacks}.")
        return cls(*files.values())


@contextmanager
def client_of(scheduler: str, certificates: Certificates | None = None) -> Iterator[Client]:
    """The scheduler at an address such as "tcp://node1:8786", or "tls://…" with certificates.

    Raises:
        ValueError: When it is no such address, or nobody answers there.
    """
    from distributed import Client, Security

    address = ADDRESS.fullmatch(scheduler)
    if not address or int(address["port"]) > 65535:
        raise ValueError(
            f"A scheduler's address reads like tcp://node1:8786 or tls://…, not {scheduler!r}."
        )
    if (address["scheme"] == "tls") != (certificates is not None):
        raise ValueError(
            f"{scheduler}: an address tls://… and the options --tls-ca, --tls-cert and --tls-key "
            "go together."
        )
    security = certificates and Security(
        require_encryption=True,
        tls_ca_file=str(certificates.authority),
        tls_client_cert=str(certificates.certificate),
        tls_client_key=str(certificates.key),
    )
    try:
        client = Client(scheduler, timeout=CONNECTING, security=security)
    except Exception as error:  # of many kinds: what answers may be no scheduler at all
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"No dask scheduler answers at {scheduler} ({reason}).") from error
    with client:
        yield client


# --- the sweep -----------------------------------------------------------------------------------


def carry_out(
    sweep: Sweep,
    *,
    scheduler: str = "",
    certificates: Certificates | None = None,
    workers: int | None = None,
    per_gpu: int = 1,
    threads: int | None = None,
    limit: float = UNITS["d"],
) -> bool:
    """Say what a sweep will do, do it, say what failed; whether nothing did.

    Args:
        sweep: The runs.
        scheduler: Address of a dask scheduler; by default workers are started on this machine.
        certificates: For a scheduler that speaks TLS.
        workers: How many of these; by default one per GPU, or as many as there is room for.
        per_gpu: How many runs share a GPU; small networks leave most of a large one idle.
        threads: Per run; by default the cores are shared out among the workers.
        limit: Seconds that a run may take.

    Raises:
        ValueError: When no scheduler answers, a number makes no sense, or there is no GPU here for
            runs that want one.
    """
    for name, value in (("workers", workers), ("per_gpu", per_gpu), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")
    if scheduler and workers:
        raise ValueError(
            "A running scheduler has its workers: give either --scheduler or --workers."
        )
    if certificates and not scheduler:
        raise ValueError("Certificates are for a running scheduler: give --scheduler too.")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is told by errors
    console = Console(soft_wrap=True, highlight=False)
    if scheduler:
        connection = client_of(scheduler, certificates)
    else:
        for run in sweep.runs:
            notebooks.check_device(run.given)
        devices = [] if _stays_on_cpu(sweep) else (gpus() * per_gpu)[:workers]
        if devices and workers and workers > len(devices):
            raise ValueError(
                f"There are {len(devices) // per_gpu} GPUs for {workers} workers, {per_gpu} on "
                "each: --per-gpu lets more of them share one."
            )
        workers = len(devices) or workers or local_workers()
        threads = threads or max(1, machine.cores() // workers)
        connection = local_client(workers, devices)
    _say(console, sweeps.describe(sweep, 0 if scheduler else workers))
    with connection as client:
        ended = run_sweep(sweep, client, threads=threads, limit=limit, console=console)
    _say(console, sweeps.describe_failures(ended))
    done = sum(outcome.state == "done" for outcome in ended.values())
    table = sweep.folder / f"{sweeps.TABLE}.csv"
    _say(console, [f"{done} of {len(ended)} runs done; one row each in {table}"])
    return done == len(ended)


def _say(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(line, markup=False)


def _stays_on_cpu(sweep: Sweep) -> bool:
    return all(run.given.get("device") == "cpu" for run in sweep.runs)


def run_sweep(
    sweep: Sweep,
    client: Client,
    *,
    threads: int | None = None,
    limit: float = UNITS["d"],
    console: Console | None = None,
) -> dict[Run, Outcome]:
    """Do what is left of a sweep, write its table after every run, and say how all runs ended.

    Runs that failed before are tried again; those in the hands of another sweep are waited for.

    Args:
        sweep: The runs.
        client: Where they happen. Where workers announce the resource "GPU", each run takes one,
            unless all of them are told to stay on the CPU.
        threads, limit: See `do_run`.
        console: Where progress is shown: as a live table on a terminal, else a line per run.
    """
    own(sweep.folder)
    console = console or Console()
    board = Board(sweep, console)
    drive = _Drive(sweep, client, board, (threads, limit, time.time(), _environment()))
    with Live(board, console=console, refresh_per_second=2, transient=not console.is_terminal):
        drive.all()
    sweeps.write_table(sweep.folder)
    return board.ended


def _environment() -> dict[str, str]:
    """Where this process reads data and keeps runs, for processes that start elsewhere."""
    return {"NUCTUT_RUNS": str(runs_root()), "NUCTUT_DATA": str(datasets.data_root())}


class _Drive:
    """Keeps as many runs under way as there are workers for."""

    def __init__(self, sweep: Sweep, client: Client, board: Board, how: tuple) -> None:
        self.sweep, self.client, self.board, self.how = sweep, client, board, how
        self.on_cpu = _stays_on_cpu(sweep)
        self.finished: queue.Queue = queue.Queue()

    def all(self) -> None:
        """Until every run has ended."""
        waiting = []
        for run in self.sweep.runs:
            outcome = sweeps.outcome_of(run)
            if outcome and outcome.state == "done":
                self.board.ended[run] = outcome
            else:
                waiting.append((0.0, run))
        futures = {}
        while waiting or futures:
            resource, slots = self._slots()
            self.board.slots = slots
            due = [one for one in waiting if one[0] <= time.monotonic()]
            for one in due[: max(0, slots - len(futures))]:
                waiting.remove(one)
                futures[one[1]] = self._submit(one[1], resource)
                self.board.start(one[1])
            try:
                run = self.finished.get(timeout=0.5)
            except queue.Empty:
                continue
            outcome = self._outcome(run, futures.pop(run))
            if outcome.state == "busy":
                self.board.put_back(run)
                waiting.append((time.monotonic() + PAUSE, run))
            else:
                self.board.end(run, outcome)
                sweeps.write_table(self.sweep.folder)

    def _slots(self) -> tuple[dict[str, int] | None, int]:
        """What a run asks of a worker, and how many runs the workers can take now."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        devices = [worker["resources"].get("GPU", 0) for worker in workers]
        if self.on_cpu or not any(devices):
            return None, sum(worker["nthreads"] for worker in workers)
        if max(devices) > 1:
            raise ValueError(
                f"A dask worker announces {max(devices):g} GPUs: start one worker per GPU, each "
                'with its own CUDA_VISIBLE_DEVICES and --resources "GPU=1".'
            )
        return {"GPU": 1}, int(sum(devices))

    def _submit(self, run: Run, resource: dict[str, int] | None):
        future = self.client.submit(do_run, run, *self.how, resources=resource, pure=False)
        future.add_done_callback(lambda _: self.finished.put(run))
        return future

    def _outcome(self, run: Run, future) -> Outcome:
        """How a run ended, also where its workers died one after the other."""
        try:
            return future.result()
        except CancelledError as error:
            raise RuntimeError(
                "The dask scheduler is gone. Start the same sweep again: it does what is left."
            ) from error
        except Exception as error:
            return sweeps.fail(run, f"{type(error).__name__}: {error}", 0.0)


@dataclass
class Board:
    """What is done, running, failed, and how long it may still take, for a terminal."""

    sweep: Sweep
    console: Console
    ended: dict[Run, Outcome] = field(default_factory=dict)
    started: dict[Run, float] = field(default_factory=dict)
    slots: int = 0
    durations: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = sweeps.estimate(self.sweep)
        self.expected = known.seconds if known else None

    def start(self, run: Run) -> None:
        """A worker has got the run."""
        self.started[run] = time.monotonic()

    def put_back(self, run: Run) -> None:
        """The run is in other hands."""
        del self.started[run]

    def end(self, run: Run, outcome: Outcome) -> None:
        """The run has ended."""
        del self.started[run]
        self.ended[run] = outcome
        if outcome.state == "done":
            self.durations.append(outcome.seconds)
        if outcome.state == "failed" or not self.console.is_terminal:
            count = f"{len(self.ended)}/{len(self.sweep.runs)}"
            line = f"{count} {outcome.state} after {outcome.seconds:.0f} s: {run.told}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """By what runs took so far, or else by the estimate; None where neither is known."""
        each = statistics.median(self.durations) if self.durations else self.expected
        if each is None or not self.slots:
            return None
        now = time.monotonic()
        under_way = sum(max(0.0, each - (now - start)) for start in self.started.values())
        waiting = len(self.sweep.runs) - len(self.ended) - len(self.started)
        return (under_way + each * waiting) / min(self.slots, len(self.started) + waiting or 1)

    def __rich__(self) -> Group:
        states = [outcome.state for outcome in self.ended.values()]
        left = self.seconds_left()
        head = Table("done", "running", "failed", "waiting", "time left", title_justify="left")
        head.add_row(
            str(states.count("done")),
            str(len(self.started)),
            str(states.count("failed")),
            str(len(self.sweep.runs) - len(states) - len(self.started)),
            "not known yet" if left is None else sweeps.told_seconds(left),
        )
        now = time.monotonic()
        lines = [
            f"  {sweeps.told_seconds(now - start):>8}  {run.told}"
            for run, start in self.started.items()
        ]
        return Group(head, *(lines if self.slots else ["  waiting for workers"]))
