"""The command line passes on what it is asked for, and tells errors in one message."""

import os
import re
import signal
import subprocess
import sys

import made_records
import psutil
import pytest
from chapter_maker import write_chapter, write_project
from processes import NUCTUT, PATIENCE, is_alive, wait_for

from nuctut import cli, datasets, records
from nuctut.own_images import predict
from nuctut.running import book, cluster, notebooks, runs, sweeps


@pytest.fixture
def nuctut(tmp_path, monkeypatch, capsys):
    """Runs the command and returns its exit status, standard output and standard error."""
    monkeypatch.setenv("NUCTUT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NUCTUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["nuctut", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return ended.value.code, told.out, told.err

    return call


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = tmp_path / "project"
    write_project(root, ["01_tiny"], [])
    write_chapter(root / "book" / "01_tiny.ipynb", "print(seed)")
    monkeypatch.chdir(root)
    return root


def test_old_fits_are_accepted_where_that_is_said(nuctut, monkeypatch):
    monkeypatch.setenv(cli.ACCEPT, "")
    asked = []
    monkeypatch.setattr(notebooks, "run_chapter", lambda *_: asked.append(os.environ[cli.ACCEPT]))
    nuctut("run", "01")
    nuctut("run", "01", "--accept-old-fit")
    assert asked == ["", "1"]
    from nuctut import experiments

    assert cli.ACCEPT == experiments.ACCEPT


def test_plain_copies_are_written_into_the_checkout(nuctut, project):
    status, out, _ = nuctut("notebooks")
    assert status == 0 and out.strip() == str(project / "notebooks")
    assert [path.name for path in (project / "notebooks").iterdir()] == ["01_tiny.ipynb"]


def test_data_list_says_what_is_here(nuctut):
    status, out, _ = nuctut("data", "list")
    assert status == 0
    assert re.search(r"bbbc039 .* excerpt", out)


def test_simulated_data_are_written_checked_and_never_called_real(nuctut, tmp_path):
    folder = tmp_path / "data" / "bbbc039"
    status, out, _ = nuctut("data", "simulate", "bbbc039", "--folder", folder, "--seed", 3)
    assert status == 0 and str(folder) in out
    status, out, _ = nuctut("data", "check", "bbbc039")
    assert status == 0 and "(simulated)" in out
    assert re.search(r"bbbc039 .* simulated", nuctut("data", "list")[1])


def test_check_fails_where_something_is_wrong(nuctut):
    status, out, _ = nuctut("data", "check", "bbbc039")
    assert status == 1
    assert "problem: " in out and "nuctut data fetch bbbc039" in out


def test_fetch_asks_for_the_named_set(nuctut, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "fetch", lambda name: tmp_path / name)
    assert nuctut("data", "fetch", "bbbc039")[:2] == (0, f"{tmp_path / 'bbbc039'}\n")


def test_planes_are_named_by_their_numbers(nuctut, monkeypatch):
    monkeypatch.setattr(datasets, "fetch", lambda name, planes: (name, planes))
    out = nuctut("data", "fetch", "bbbc006", "--planes", "0,16")[1]
    assert out == "('bbbc006', [0, 16])\n"
    status, _, err = nuctut("data", "fetch", "bbbc006", "--planes", "0-16")
    assert status == 1 and "whole numbers with commas between, not '0-16'" in err


@pytest.mark.parametrize("action", ["fetch", "check", "simulate"])
def test_an_unknown_data_set_is_one_line(nuctut, action):
    status, _, err = nuctut("data", action, "nope")
    assert status == 1
    assert err == f"Error: There is no data set 'nope', but {', '.join(datasets.REGISTRY)}.\n"


def test_a_full_disk_is_one_line(nuctut, monkeypatch):
    def full(name):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets, "fetch", full)
    assert nuctut("data", "fetch", "bbbc039")[0::2] == (
        1,
        "Error: [Errno 28] No space left on device\n",
    )


def test_run_passes_its_parameters_on(nuctut, project, monkeypatch):
    asked = []
    monkeypatch.setattr(notebooks, "run_chapter", lambda *arguments: asked.append(arguments))
    nuctut("run", "01", "-p", "preset=lite", "--parameter", "seed=1")
    nuctut("run", "01", "-p", "text=a=b")
    assert asked == [("01", {"preset": "lite", "seed": "1"}), ("01", {"text": "a=b"})]


def test_a_relative_folder_of_runs_is_that_of_whoever_asks(nuctut, project, monkeypatch):
    """Chapters run in `book/`, and would take it for a folder below that."""
    monkeypatch.setenv("NUCTUT_RUNS", "mine")
    monkeypatch.setattr(notebooks, "run_chapter", lambda *_: os.environ["NUCTUT_RUNS"])
    assert nuctut("run", "01")[1] == f"{project / 'mine'}\n"


def test_run_list_shows_the_parameters_and_runs_nothing(nuctut, project):
    status, out, _ = nuctut("run", "01", "--list")
    assert status == 0
    assert "seed: int = 0  # of the random generator" in out
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "02"], "no one chapter '02', but 01_tiny"),
        (["run", "01", "-p", "sed=1"], "no parameter 'sed'"),
        (["run", "01", "-p", "seed=one"], "parameter seed: expected int, not 'one'"),
        (["run", "01", "-p", "preset=huge"], "no preset 'huge', but smoke, read, lite, paper"),
        (["run", "01", "-p", "seed"], "NAME=VALUE, not 'seed'"),
        (["run", "01", "-p", "seed=1", "-p", "seed=2"], "'seed' is given twice"),
        (["sweep", "01", "-g", "seed=1,x"], "parameter seed: expected int, not 'x'"),
        (["sweep", "01", "-g", "seed=1", "--scheduler", "ucx://x:1"], "not 'ucx://x:1'"),
        (["sweep", "01", "-g", "seed=1", "--tls-ca", "x"], "--tls-ca: no file x"),
        (["book", "--preset", "huge"], "no preset 'huge', but smoke, read, lite, paper"),
    ],
)
def test_what_does_not_fit_is_one_line_that_says_what_exists(nuctut, project, arguments, told):
    status, _, err = nuctut(*arguments)
    assert status == 1
    assert err.startswith("Error: ") and told in err and err.count("\n") == 1


def test_sweep_takes_its_grid_from_options_and_from_a_file(nuctut, project, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(sweeps, "plan", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(cluster, "carry_out", lambda *_, **how: asked.append(how) or False)
    grid = tmp_path / "grid.yaml"
    grid.write_text("rate: [0.1, 0.2]\nseed: [7]\n")
    words = ["-p", "preset=smoke", "-g", "seed=1,2", "--time-limit", "2h", "--workers", 3]
    assert nuctut("sweep", "01", "--grid", grid, *words)[0] == 1, "some runs failed"
    plan, how = asked
    assert plan == ("01", {"rate": [0.1, 0.2], "seed": ["1", "2"]}, {"preset": "smoke"}, None)
    certificates = how.pop("certificates")
    assert how == {"scheduler": "", "workers": 3, "threads": None, "limit": 7200.0, "per_gpu": 1}
    assert certificates is None
    monkeypatch.setattr(cluster, "carry_out", lambda *_, **how: True)
    assert nuctut("sweep", "run", "01", "-g", "seed=1")[0] == 0, "the long way to say it"


def test_sweep_show_tells_and_draws(nuctut, project, tmp_path):
    folder = tmp_path / "sweep"
    sweep = sweeps.plan("01", {"seed": [1, 2]}, folder=folder)
    for run, tp in zip(sweep.runs, (3, 4), strict=True):
        run.folder.mkdir(parents=True)
        one = made_records.record(made_records.rows((tp, 1, 0)), variant="net", seed=tp)
        records.write(one, run.folder / "records")
        sweeps._finish(run, "done", 5.0)
    sweeps.write_table(folder)
    status, out, _ = nuctut("sweep", "show", folder)
    assert status == 0
    assert re.search(r"net +1 +0\.857", out) and re.search(r"net +2 +0\.889", out)
    assert (folder / "sweep-f1_50.png").is_file() and "sweep-f1_50.png" in out
    status, _, err = nuctut("sweep", "show", folder, "--metric", "f2")
    assert status == 1 and err.startswith("Error: No run has a score 'f2'")


def test_book_passes_its_preset_on(nuctut, monkeypatch):
    asked = []
    monkeypatch.setattr(book, "build_book", asked.append)
    nuctut("book")
    nuctut("book", "--preset", "lite")
    assert asked == [None, "lite"]


def test_networks_are_listed_with_their_scores(nuctut, project):
    status, out, _ = nuctut("networks")
    assert status == 0 and "no networks" in out
    status, _, err = nuctut("networks", "--ship", "no-such")
    assert status == 1 and "'no-such' names none" in err


def test_scoreboard_sets_every_claim_beside_its_verdict(nuctut, project):
    """In a project without records, everything is yet to be run."""
    status, out, _ = nuctut("scoreboard")
    assert status == 0
    assert "Matuszewski & Ranefall" in out
    assert re.search(r"object Jaccard +0\.892 +not yet run", out)
    assert "Measured on nothing yet." in out


def test_an_unexpected_error_keeps_its_traceback(nuctut, monkeypatch):
    def broken(preset):
        raise KeyError("a bug of ours")

    monkeypatch.setattr(book, "build_book", broken)
    with pytest.raises(KeyError):
        nuctut("book")


# --- being stopped -------------------------------------------------------------------------------

STOPPED = "Stopped. The same command goes on from here.\n"
SLEEP = """\
import pathlib, time
pathlib.Path("started").touch()
time.sleep(600)"""


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["run", "01"], signal.SIGINT),
        (["run", "01"], signal.SIGTERM),
        (["book"], signal.SIGTERM),
        (["sweep", "01", "-g", "seed=1,2", "--workers", "1"], signal.SIGINT),
    ],
    ids=["run-int", "run-term", "book-term", "sweep-int"],
)
@pytest.mark.slow
def test_whoever_stops_a_command_gets_one_line(project, monkeypatch, words, number):
    """Ctrl-C reaches all processes of a terminal, SIGTERM the command alone."""
    monkeypatch.setenv("NUCTUT_DATA", str(project / "data"))
    write_chapter(project / "book" / "01_tiny.ipynb", SLEEP)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = subprocess.Popen([*NUCTUT, *words], **pipes, start_new_session=True)
    try:
        wait_for((project / "book" / "started").exists, "the chapter")
        family = psutil.Process(command.pid).children(recursive=True)
        send = os.killpg if number == signal.SIGINT else os.kill
        send(command.pid, number)
        _, err = command.communicate(timeout=PATIENCE)
    finally:
        command.kill()
    assert command.returncode == 128 + number
    told = [line for line in err.replace("\r", "\n").splitlines() if "Executing: " not in line]
    assert [line for line in told if line] == [STOPPED.strip()]
    wait_for(lambda: not any(map(is_alive, family)), "all of its processes end")


@pytest.mark.skipif(os.name == "nt", reason="no alarm there")
@pytest.mark.slow
def test_a_run_ends_when_its_time_is_over(project, monkeypatch):
    monkeypatch.setenv("NUCTUT_DATA", str(project / "data"))
    write_chapter(project / "book" / "01_tiny.ipynb", SLEEP)
    command = [*NUCTUT, "run", "01", "--minutes", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1] == "The time is over. The same command goes on from here."


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_minutes_that_are_none_are_refused(nuctut, minutes):
    status, _, err = nuctut("run", "01", f"--minutes={minutes}")
    assert status == 1 and "minutes must be more than 0" in err


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
@pytest.mark.parametrize(
    ("words", "place", "name"),
    [
        (["data", "fetch", "bbbc039"], datasets, "fetch"),
        (["predict", "a.tif", "--run", "x", "-o", "out"], predict, "load"),
        (["export", "--run", "x", "-o", "net.onnx"], runs, "find_fit"),
        (["runs", "clean"], runs, "inventory"),
    ],
    ids=["fetch", "predict", "export", "clean"],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_every_command_is_stopped_in_the_same_words(
    nuctut, monkeypatch, words, place, name, number
):
    def stopped(*_, **__):
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            raise RuntimeError("and then its tidying up fails")

    monkeypatch.setattr(place, name, stopped)
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    inherited = signal.signal(number, handlers[number])  # ignored where a shell left us behind
    try:
        assert nuctut(*words) == (128 + number, "", STOPPED)
        assert signal.getsignal(number) == handlers[number]
    finally:
        signal.signal(number, inherited)
