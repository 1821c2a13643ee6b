"""Sweeps end with every run done or told, whoever is killed meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import made_records
import numpy as np
import pandas as pd
import psutil
import pytest
from chapter_maker import PARAMETERS, write_chapter, write_project
from processes import NUCTUT, PATIENCE, is_alive, wait_for

from nuctut import files, records
from nuctut.running import cluster, notebooks, sweeps

# A chapter that tells when and where it starts, waits for leave to end, and measures something.
MARK = """\
import os, pathlib, time
marks = pathlib.Path(os.environ["MARKS"])
(marks / f"{seed}.{os.getppid()}.{time.monotonic_ns()}").touch()"""
WAIT = """\
while not (marks / "go").exists():
    time.sleep(0.05)"""
SAY = (
    "print(preset, seed, os.environ.get('OMP_NUM_THREADS'), os.environ.get('CUDA_VISIBLE_DEVICES'))"
)
FAIL = "1 / (seed - 2)"


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = tmp_path / "project"
    write_project(root, ["01_tiny"], [])
    write_chapter(root / "book" / "01_tiny.ipynb", MARK, WAIT, SAY)
    (tmp_path / "marks").mkdir()
    monkeypatch.setenv("MARKS", str(tmp_path / "marks"))
    monkeypatch.setenv("NUCTUT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("NUCTUT_RUNS", raising=False)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def go(project, tmp_path):
    """Gives the chapters leave to end."""
    return (tmp_path / "marks" / "go").touch


@pytest.fixture
def command(project):
    """Starts `nuctut …` as a process of its own; none outlives the test."""
    begun = []

    def start(*words):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        begun.append(subprocess.Popen([*NUCTUT, *map(str, words)], **pipes))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()


def ended(process):
    """Exit status and output of a process, once it has ended."""
    out, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, out


def starts(project, seed="*"):
    """The processes of runs that began so far, one per start."""
    marks = Path(os.environ["MARKS"]).glob(f"{seed}.*.*")
    return sorted(int(mark.name.split(".")[1]) for mark in marks)


def text_of(folder):
    return (folder / "notebook.ipynb").read_text()


def table(project):
    (path,) = (project / "runs" / "sweeps").glob("*/sweep.csv")
    frame = pd.read_csv(path)
    both = [one.astype(object).where(one.notna(), None)
            for one in (frame, pd.read_parquet(path.with_suffix(".parquet")))]  # fmt: skip
    pd.testing.assert_frame_equal(*both, check_dtype=False)
    return frame


def run_folders(project):
    return {path.name.split("--")[0]: path for path in (project / "runs/sweeps").glob("*/*--*")}


# --- what is to be run ---------------------------------------------------------------------------


def test_a_grid_gives_every_combination_once_in_its_order(project):
    sweep = sweeps.plan("01", {"rate": ["1e-3", "0.1"], "seed": [3, "4"]}, {"quick": "true"})
    assert [dict(run.given) for run in sweep.runs] == [
        {"quick": True, "rate": rate, "seed": seed} for rate in (1e-3, 0.1) for seed in (3, 4)
    ]
    assert len({run.folder for run in sweep.runs}) == 4
    assert {run.folder.parent for run in sweep.runs} == {sweep.folder}
    assert sweep.folder.parent == project / "runs" / "sweeps"
    command = "nuctut run 01_tiny -p quick=True -p rate=0.1 -p seed=4"
    assert sweep.runs[3].command == command


def test_the_folder_tells_sweeps_apart_and_finds_the_same_one_again(project):
    folders = [
        sweeps.plan("01", grid, fixed).folder
        for grid, fixed in (
            ({"seed": [1, 2]}, {}),
            ({"seed": [1, 3]}, {}),
            ({"seed": [1, 2]}, {"rate": 0.5}),
            ({"rate": [1, 2]}, {}),
        )
    ]
    assert len(set(folders)) == 4
    assert sweeps.plan("01", {"seed": ["1", "2"]}).folder == folders[0]


@pytest.mark.parametrize(
    ("grid", "fixed", "told"),
    [
        ({"sed": [1]}, {}, "no parameter 'sed'.*seed: int = 0"),
        ({"seed": [1, "x"]}, {}, "parameter seed: expected int, not 'x'"),
        ({"seed": [1]}, {"rate": "fast"}, "parameter rate: expected float"),
        ({"seed": [1, 2]}, {"seed": 3}, "'seed' cannot be fixed and varied"),
        ({"seed": [1, "1"]}, {}, "value of 'seed' must be given once"),
        ({"seed": []}, {}, "value of 'seed' must be given once"),
        ({}, {"seed": 1}, "grid is empty"),
        ({"seed": [-1]}, {}, "parameter seed: expected 0 to"),
        ({"rate": [0.1, float("nan")]}, {}, "parameter rate: expected a finite number"),
        ({"seed": range(10**5), "rate": range(10**4)}, {}, "1,000,000,000 runs are too many"),
        ({"seed": range(10_001)}, {}, "10,001 runs are too many for one sweep, which takes 10,000"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(project, grid, fixed, told):
    with pytest.raises(ValueError, match=told):
        sweeps.plan("01", grid, fixed)
    assert not (project / "runs").exists()


def test_a_grid_is_read_from_yaml(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("rate: [1e-3, 0.1]\nseed: [0, 1]\npreset: smoke\nquick: [true]\n")
    grid = sweeps.read_grid(path)
    assert grid == {"rate": ["1e-3", 0.1], "seed": [0, 1], "preset": ["smoke"], "quick": [True]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected lines such as"),
        ("seed", "expected lines such as"),
        ("- seed\n", "expected lines such as"),
        ("seed: {a: 1}", "seed must be a value or a list"),
        ("seed: [[1]]", "seed must be a value or a list"),
        ("seed: 2020-01-01", "seed must be a value or a list"),
        ("a: [b", "not a YAML file"),
        ("seed: [1]\nrate: [0.1]\nseed: [2]\n", "seed stands there more than once.*line 3"),
        ("1: [1]\n'1': [2]\n", "1 stands there more than once"),
        ("a: {b: 1, b: 2}", "b stands there more than once"),
        ("a: &x [1]\nb: *x\n", "aliases are not read here.*line 2"),
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "aliases are not read"),
        ("a: " + "[" * 3000 + "]" * 3000, "too deep"),
        ("a: " + "{b: " * 3000 + "1" + "}" * 3000, "too deep"),
        ("a: !!python/object/apply:os.getcwd []", "not a YAML file"),
        ("a: " + "9" * 5000, "not a YAML file"),
        ("a: '\0'", "not a YAML file"),
        ("a: [" + "1, " * 400_000 + "1]", "expected at most 1,000,000 characters"),
    ],
)
def test_a_file_that_is_no_grid_is_named(tmp_path, text, told):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)grid\.yaml: .*{told}") as caught:
        sweeps.read_grid(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_infinite_values_of_a_file_are_refused(project, tmp_path):
    path = tmp_path / "grid.yaml"
    for text in ("[.inf]", "[0.1, .nan]", "[-.inf]"):
        path.write_text(f"rate: {text}\n")
        with pytest.raises(ValueError, match="parameter rate: expected a finite number"):
            sweeps.plan("01", sweeps.read_grid(path))


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("30m", 1800)])
def test_time_limits_are_read(text, seconds):
    assert cluster.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "h", "-1h", "0s", "nans", "infd", "2 weeks"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match='reads like "90s"'):
        cluster.seconds_of(text)


# --- how long it will take -----------------------------------------------------------------------


def end(run, state="done", seconds=60.0, error="", measured=()):
    """Write the end of a run that never was."""
    run.folder.mkdir(parents=True)
    for one in measured:
        records.write(one, run.folder / "records")
    sweeps._finish(run, state, seconds, error)


def test_the_plan_tells_its_size_and_its_time_from_earlier_runs(project):
    earlier = sweeps.plan("01", {"seed": [1, 2, 3]})
    for run, seconds in zip(earlier.runs, (100, 200, 9999), strict=True):
        end(run, "failed" if seconds > 999 else "done", seconds)
    sweep = sweeps.plan("01", {"seed": [1, 2, 3], "rate": [0.1, 0.2]}, {"quick": False})
    told = "\n".join(sweeps.describe(sweep, 4))
    assert "01_tiny, 6 runs in" in told and "seed: 1, 2, 3" in told and "rate: 0.1, 0.2" in told
    assert "in all runs: quick=False" in told
    # two rounds of four at once, the median of 100 and 200 s each
    assert "about 5 min: 6 runs of 2 min (the median of 2 earlier runs), 4 at once" in told
    assert "1 left: 2 done before, 1 to be tried again" in "\n".join(sweeps.describe(earlier, 4))


def test_without_earlier_runs_the_records_of_the_preset_tell(project):
    for seed, seconds in ((0, 100.0), (1, 300.0)):
        for variant in ("dl-consensus", "dl-ground-truth"):
            budget = {"seconds": seconds, "seconds_per_image": 5.0}
            rows = made_records.rows((3, 1, 0), (4, 0, 0))
            one = made_records.record(rows, variant=variant, seed=seed, budget=budget)
            folder = project / "results" / "01_tiny"
            path = records.write(one, project / "elsewhere")
            folder.mkdir(parents=True, exist_ok=True)
            path.rename(folder / path.name)
    lite = sweeps.plan("01", {"seed": [1, 2]}, {"preset": "lite"})
    assert sweeps.estimate(lite).seconds == (2 * 110 + 2 * 310) / 2
    assert "the whole chapter by its records at lite" in sweeps.estimate(lite).source
    (project / "runs" / "results" / "01_tiny").mkdir(parents=True)
    (project / "runs" / "results" / "01_tiny" / "bad.json").write_text("{")
    assert sweeps.estimate(lite).seconds == (2 * 110 + 2 * 310) / 2
    smoke = sweeps.plan("01", {"seed": [1, 2]})
    assert sweeps.estimate(smoke) is None
    assert "no earlier run" in "\n".join(sweeps.describe(smoke, 1))


# --- what came of it -----------------------------------------------------------------------------


def measured_run(run, tp):
    seed, rate = run.given["seed"], run.given["rate"]
    counts = {"0": (tp, 0, 1), "1": (tp, 1, 0)}
    rows = [made_records.row(key, *one, separations=False) for key, one in counts.items()]
    one = made_records.record(rows, seed=seed)
    end(run, measured=[one])
    return one, rate


def test_the_table_has_a_row_per_run_with_parameters_scores_and_what_it_ran_on(project):
    sweep = sweeps.plan("01", {"rate": [0.1, 0.2], "seed": [1, 2]})
    made = [measured_run(run, tp)[0] for run, tp in zip(sweep.runs, (2, 3, 4), strict=False)]
    end(sweep.runs[3], "failed", 7.0, "01_tiny failed in cell [3]: ValueError: no\n  > line")
    sweeps.write_table(sweep.folder)
    frame = sweeps.read_table(sweep.folder / "sweep.parquet").set_index("run")
    assert len(frame) == 4
    for run, one in zip(sweep.runs, made, strict=False):
        row = frame.loc[run.folder.name]
        assert (row["rate"], row["seed"], row["preset"]) == (*run.given.values(), "smoke")
        assert row["dl-ground-truth:f1_50"] == one.scores["f1_50"]
        low, high = row["dl-ground-truth:f1_50:low"], row["dl-ground-truth:f1_50:high"]
        assert low <= one.scores["f1_50"] <= high
        assert row["device"] == one.budget["device"] and row["seconds"] == 60.0
        assert row["data"] == "bbbc039 test (real, 2 images)"
    failed = frame.loc[sweep.runs[3].folder.name]
    assert (failed["state"], failed["seconds"]) == ("failed", 7.0)
    assert failed["error"] == "01_tiny failed in cell [3]: ValueError: no"
    assert pd.isna(failed["dl-ground-truth:f1_50"])
    assert not [name for name in frame if "separations" in name], "nobody measured that"
    assert sweeps.varied(frame.reset_index()) == ["seed", "rate"]


def test_scores_come_one_per_run_and_variant(project):
    sweep = sweeps.plan("01", {"rate": [0.1, 0.2], "seed": [1]})
    for run, tp in zip(sweep.runs, (2, 5), strict=True):
        measured_run(run, tp)
    scores = sweeps.scores(sweeps.table(sweep.folder), "f1_50")
    assert list(scores["variant"]) == ["dl-ground-truth"] * 2
    by_rate = dict(zip(scores["rate"], scores["score"], strict=True))
    assert by_rate == {0.1: pytest.approx(4 / 5), 0.2: pytest.approx(10 / 11)}
    with pytest.raises(ValueError, match=r"no score 'f2'|a score 'f2'; there are: .*f1_50"):
        sweeps.scores(sweeps.table(sweep.folder), "f2")


def test_a_sweep_is_drawn_against_what_varies(project):
    sweep = sweeps.plan("01", {"rate": [0.1, 0.2, 0.3], "seed": [1, 2]})
    for run in sweep.runs:
        measured_run(run, 3)
    frame = sweeps.write_table(sweep.folder)
    told = sweeps.shown(frame, "f1_50")
    assert list(told) == ["variant", "rate", "seed", "score", "low", "high"]
    pairs = [(rate, seed) for rate in ("0.1", "0.2", "0.3") for seed in ("1", "2")]
    assert list(zip(told["rate"], told["seed"], strict=True)) == pairs
    path = sweeps.draw(frame, sweep.folder, "f1_50")
    assert path == sweep.folder / "sweep-f1_50.png" and path.read_bytes()[:4] == b"\x89PNG"
    assert sweeps.source(frame).startswith("bbbc039 test (real, 2 images) · smoke · ")
    csv = sweep.folder / "sweep.csv"
    assert sweeps.draw(sweeps.read_table(csv), csv, "pixel_iou", "seed").parent == sweep.folder
    with pytest.raises(ValueError, match="'quick' does not vary here, but seed, rate"):
        sweeps.draw(frame, sweep.folder, "f1_50", "quick")


def test_a_run_with_a_record_that_cannot_be_read_has_failed(project):
    run = sweeps.plan("01", {"seed": [1]}).runs[0]
    (run.folder / "records").mkdir(parents=True)
    (run.folder / "records" / "bad.json").write_text("{")
    outcome = sweeps._finish(run, "done", 1.0)
    assert outcome.state == "failed" and "bad.json" in outcome.error
    assert sweeps.outcome_of(run) == outcome


@pytest.mark.parametrize("line", ["", "\n", "{}\n", "[1]\n", '{"run": {}, "since": 0}\n'])
def test_the_process_of_a_run_that_is_told_nonsense_says_so(line):
    command = [sys.executable, "-m", "nuctut.running.sweeps"]
    done = subprocess.run(command, input=line, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("standard input: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_whatever_is_wrong_with_a_table_the_error_names_it(project, tmp_path, suffix):
    """Bytes changed, cut and added at random: a table as before, or one error of one kind."""
    sweep = sweeps.plan("01", {"rate": [0.1, 0.2], "seed": [1]})
    for run in sweep.runs:
        measured_run(run, 3)
    sweeps.write_table(sweep.folder)
    good = (sweep.folder / f"sweep{suffix}").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f"mutated{suffix}"
    refused = 0
    for number in range(600):  # half of them near the end, where Parquet says what is in it
        changed = bytearray(good)
        first = max(0, len(good) - 3000) if number % 2 else 0
        for at in rng.integers(first, len(good), 1 + number % 5):
            changed[at] = rng.integers(256)
        if number % 7 == 0:
            del changed[rng.integers(len(changed)) :]
        path.write_bytes(changed)
        try:
            frame = sweeps.read_table(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: not a table") and "\n" not in str(error)
            refused += 1
            continue
        try:
            sweeps.shown(frame, "f1_50")
        except ValueError as error:
            assert "No run has a score" in str(error)
    assert 50 < refused


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.assign(seconds="long"), "seconds must be numbers"),
        (lambda f: f.assign(**{"dl-ground-truth:f1_50": "high"}), "f1_50 must be numbers"),
        (lambda f: f.drop(columns="dl-ground-truth:f1_50:low"), "lacks .*f1_50:low"),
        (lambda f: f.drop(columns="run"), "lacks run"),
    ],
)
def test_a_table_is_held_against_what_is_read_from_it(project, tmp_path, change, told):
    sweep = sweeps.plan("01", {"rate": [0.1], "seed": [1]})
    measured_run(sweep.runs[0], 3)
    path = tmp_path / "changed.csv"
    change(sweeps.write_table(sweep.folder)).to_csv(path, index=False)
    with pytest.raises(ValueError, match=rf"changed\.csv: not a table of a sweep; .*{told}"):
        sweeps.read_table(path)


@pytest.mark.skipif(os.name == "nt", reason="no such files there")
def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "sweep.csv")
    with pytest.raises(ValueError, match="not a table of a sweep"):
        sweeps.read_table(tmp_path / "sweep.csv")


def test_a_file_that_is_no_table_is_named(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("run,chapter\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv: .* lacks state, seconds"):
        sweeps.read_table(path)
    with pytest.raises(ValueError, match="not a table of a sweep"):
        sweeps.read_table(tmp_path / "none.csv")


def test_a_run_from_another_version_of_its_chapter_is_not_done(project):
    sweep = sweeps.plan("01", {"seed": [1, 2]})
    for run in sweep.runs:
        end(run)
    assert all(sweeps.outcome_of(run).state == "done" for run in sweep.runs)
    write_chapter(project / "book" / "01_tiny.ipynb", MARK, "print('changed')")
    changed = sweeps.plan("01", {"seed": [1, 2]})
    assert changed.folder == sweep.folder
    assert not any(sweeps.outcome_of(run) for run in changed.runs)


DONE = {"state": "done", "seconds": 1.0, "finished": 1.0, "chapter": "01_tiny",
        "parameters": {"seed": 1, "rate": 0.5, "quick": True, "preset": "smoke"},
        "scores": {"a:f1_50": 0.5, "a:f1_50:low": None}}  # fmt: skip
WRONG = [{"more": 1}, {"state": "busier"}, {"state": None}, {"seconds": "1"}, {"seconds": -1},
         {"seconds": float("nan")}, {"finished": 1e300}, {"chapter": 3}, {"parameters": [1]},
         {"parameters": {"seed": None}}, {"parameters": {"seed": [1]}}, {"scores": None},
         {"scores": {"a:f1_50": "high"}}, {"error": ["no"]}, {"made_from": 1}]  # fmt: skip


def test_a_run_file_is_read_as_it_was_written(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(DONE))
    outcome = sweeps.read_outcome(tmp_path)
    assert asdict(outcome) == asdict(sweeps.Outcome("done")) | DONE
    assert [type(value) for value in outcome.parameters.values()] == [int, float, bool, str]
    files.write_json(tmp_path / "run.json", outcome)
    assert sweeps.read_outcome(tmp_path) == outcome


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, *(json.dumps(DONE | one) for one in WRONG)]
)
def test_a_run_file_that_is_broken_is_no_end(project, text):
    run = sweeps.plan("01", {"seed": [1]}).runs[0]
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text(text)
    assert sweeps.outcome_of(run) is None
    assert sweeps.table(run.folder.parent).empty


def test_a_sweep_is_found_by_its_name_its_folder_or_as_the_latest(project):
    first, second = (sweeps.plan("01", {"seed": [1], "rate": [r]}).folder for r in (0.1, 0.2))
    with pytest.raises(ValueError, match="there are: none yet"):
        sweeps.find()
    for folder in (first, second):
        folder.mkdir(parents=True)
        sweeps.write_table(folder)
        os.utime(folder / "sweep.csv", (0, 0) if folder == first else None)
    assert sweeps.find() == second
    assert sweeps.find(first.name) == sweeps.find(str(first)) == first
    with pytest.raises(ValueError, match=f"no one sweep '01'.*{first.name}"):
        sweeps.find("01")


# --- processes -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_does_every_run_and_tells_of_those_that_fail(project, command, capsys):
    write_chapter(project / "book" / "01_tiny.ipynb", MARK, SAY, FAIL)
    status, out = ended(command("sweep", "01", "-g", "seed=1,2,3", "--workers", 2))
    assert status == 1
    assert "seed: 1, 2, 3" in out and "01_tiny, 3 runs in" in out
    assert "1 of 3 runs failed:" in out
    assert "failed in cell [5]: ZeroDivisionError" in out
    assert "again, by itself: nuctut run 01_tiny -p seed=2" in out
    frame = table(project).set_index("seed")
    assert dict(frame["state"]) == {1: "done", 2: "failed", 3: "done"}
    folders = run_folders(project)
    kept = json.loads((folders["seed-2"] / "notebook.failed.ipynb").read_text())
    assert "ZeroDivisionError" in json.dumps(kept), "the traceback is in the notebook"
    made = [folders["seed-2"], folders["seed-2"].parent]
    assert all(map(files.is_own, made)), "`nuctut runs clean` may delete them"
    assert "smoke 3 1 None" in text_of(folders["seed-3"]), "two workers share two cores"
    # again: only the failed one is tried
    write_chapter(project / "book" / "01_tiny.ipynb", MARK, SAY, FAIL)
    assert not cluster.carry_out(sweeps.plan("01", {"seed": [1, 2, 3]}), workers=1)
    assert "1 left: 2 done before, 1 to be tried again" in capsys.readouterr().out
    assert [len(starts(project, seed)) for seed in (1, 2, 3)] == [1, 2, 1]


@pytest.mark.slow
def test_the_run_of_a_killed_worker_is_taken_up_by_another(project, command, go):
    sweep = command("sweep", "01", "-g", "seed=1,2", "--workers", 2)
    first, second = wait_for(lambda: len(starts(project)) == 2 and starts(project), "two runs")
    run = psutil.Process(first)
    kernels = run.children(recursive=True)
    run.parent().kill()
    wait_for(
        lambda: not any(map(is_alive, [run, *kernels])),
        "the killed worker's run and its kernel end",
    )
    assert psutil.pid_exists(second)
    wait_for(lambda: len(starts(project)) == 3, "the run starts on another worker")
    go()
    status, out = ended(sweep)
    assert status == 0, out
    assert "2 of 2 runs done" in out
    assert list(table(project)["state"]) == ["done", "done"]


@pytest.mark.slow
def test_a_killed_sweep_leaves_nothing_running_and_goes_on_when_started_again(
    project, command, tmp_path, go
):
    words = ("sweep", "01", "-g", "seed=1,2,3", "--workers", 1)
    (tmp_path / "marks" / "go").touch()
    sweep = command(*words)
    wait_for(lambda: list((project / "runs").glob("sweeps/*/seed-1*/run.json")), "the first run")
    (tmp_path / "marks" / "go").unlink()
    wait_for(lambda: starts(project, 2), "the second run")
    family = psutil.Process(sweep.pid).children(recursive=True)
    assert len(family) >= 3
    sweep.send_signal(signal.SIGKILL)
    wait_for(
        lambda: not any(map(is_alive, family)),
        "workers, runs and kernels end",
    )
    go()
    status, out = ended(command(*words))
    assert status == 0, out
    assert list(table(project)["state"]) == ["done"] * 3
    again = [len(starts(project, seed)) for seed in (1, 2, 3)]
    assert again[0] == 1 and 1 <= again[1] + again[2] - 1 <= 2, again


@pytest.mark.slow
def test_two_sweeps_in_one_folder_share_the_work(project, command, tmp_path, go):
    folder = tmp_path / "shared"
    common = ("--folder", folder, "--workers", 1)
    one = command("sweep", "01", "-g", "seed=1,2", *common)
    wait_for(lambda: starts(project), "the first sweep")
    two = command("sweep", "01", "-g", "seed=2,1,3", *common)
    wait_for(lambda: len(starts(project)) == 2, "the second sweep")
    go()
    for process in (one, two):
        status, out = ended(process)
        assert status == 0, out
    assert [len(starts(project, seed)) for seed in (1, 2, 3)] == [1] * 3
    frame = sweeps.read_table(folder / "sweep.csv")
    assert sorted(frame["seed"]) == [1, 2, 3] and set(frame["state"]) == {"done"}


@pytest.mark.slow
def test_runs_end_at_their_time_limit_and_when_killed_and_others_go_on(project, command):
    stuck = "import time\nprint('so far')\nif seed == 1:\n    time.sleep(600)"
    killed = "import os, signal\nif seed == 2:\n    os.kill(os.getppid(), signal.SIGKILL)"
    write_chapter(project / "book" / "01_tiny.ipynb", stuck, killed, "time.sleep(1)")
    words = ("-g", "seed=1,2,3", "--workers", 2, "--time-limit", "40s")
    status, out = ended(command("sweep", "01", *words))
    assert status == 1 and "2 of 3 runs failed" in out
    frame = table(project).set_index("seed")
    assert dict(frame["state"]) == {1: "failed", 2: "failed", 3: "done"}
    assert "longer than its time limit" in frame["error"][1]
    assert "killed by signal 9" in frame["error"][2]
    assert 30 < frame["seconds"][1] < 90
    kept = (run_folders(project)["seed-1"] / "notebook.failed.ipynb").read_text()
    assert "time.sleep(600)" in kept


@pytest.mark.slow
def test_one_run_has_one_gpu(project, go):
    """Dask counts what it is told to count, so this needs no GPU."""
    go()
    sweep = sweeps.plan("01", {"seed": [1, 2, 3]})
    with cluster.local_client(2, ["5", "7"]) as client:
        ended = cluster.run_sweep(sweep, client)
    assert {outcome.state for outcome in ended.values()} == {"done"}
    seen = [
        line for run in sweep.runs for line in text_of(run.folder).splitlines() if "smoke " in line
    ]
    assert {line.split()[-1].strip('\\n",') for line in seen} == {"5", "7"}


def test_several_runs_share_a_gpu_where_asked_to(project, monkeypatch):
    started = []

    class Enough(Exception):
        pass

    def started_with(workers, devices):
        started.append((workers, devices))
        raise Enough

    monkeypatch.setattr(cluster, "gpus", lambda: ["5", "7"])
    monkeypatch.setattr(cluster, "local_client", started_with)
    sweep = sweeps.plan("01", {"seed": [1, 2, 3]})
    for how in ({}, {"per_gpu": 2}, {"per_gpu": 2, "workers": 3}):
        with pytest.raises(Enough):
            cluster.carry_out(sweep, **how)
    assert started == [(2, ["5", "7"]), (4, ["5", "7", "5", "7"]), (3, ["5", "7", "5"])]
    with pytest.raises(ValueError, match="2 GPUs for 5 workers, 2 on each: --per-gpu"):
        cluster.carry_out(sweep, per_gpu=2, workers=5)


@pytest.fixture
def dask(tmp_path):
    """Starts a scheduler and a worker of one thread by hand, and returns the address."""
    begun = []

    def start(*options):
        contact = tmp_path / f"scheduler-{len(begun)}.json"
        common = ["--no-dashboard", "--host", "127.0.0.1", "--scheduler-file", contact, *options]
        one, other = (f"distributed.cli.dask_{kind}" for kind in ("scheduler", "worker"))
        for words in (
            [one, "--port", "0"],
            [other, "--nthreads", "1", "--local-directory", tmp_path],
        ):
            command = [sys.executable, "-m", *words, *common]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            begun.append(subprocess.Popen([*map(str, command)], **quiet))
        wait_for(contact.exists, "the scheduler")
        return json.loads(contact.read_text())["address"]

    yield start
    for process in reversed(begun):
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_running_scheduler_is_used(project, go, dask):
    go()
    assert cluster.carry_out(sweeps.plan("01", {"seed": [5]}), scheduler=dask())
    assert list(table(project)["seed"]) == [5]


def certificates(folder, name):
    """A key, and a certificate that it has signed itself, as the options of a command."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    made = ["-keyout", key, "-out", certificate]
    subprocess.run(["openssl", *words, *made], check=True, capture_output=True)
    return {"ca": certificate, "cert": certificate, "key": key}


@pytest.mark.skipif(not shutil.which("openssl"), reason="certificates are made by openssl")
@pytest.mark.slow
def test_a_scheduler_with_certificates_lets_in_those_that_it_knows(
    project, command, go, dask, tmp_path, monkeypatch
):
    go()
    ours, others = (certificates(tmp_path, name) for name in ("ours", "others"))
    address = dask(*(f"--tls-{'ca-file' if n == 'ca' else n}={file}" for n, file in ours.items()),
                   "--protocol", "tls")  # fmt: skip
    assert address.startswith("tls://")
    options = [f"--tls-{name}={file}" for name, file in ours.items()]
    words = ("sweep", "01", "-g", "seed=5", "--scheduler", address)
    status, out = ended(command(*words, *options))
    assert status == 0, out
    assert list(table(project)["seed"]) == [5]
    with pytest.raises(ValueError, match="--tls-key go together"):
        cluster.carry_out(sweeps.plan("01", {"seed": [5]}), scheduler=address)
    monkeypatch.setattr(cluster, "CONNECTING", 2)
    for theirs in (others, others | {"ca": ours["ca"]}):
        with pytest.raises(ValueError, match="No dask scheduler answers at tls://"):
            with cluster.client_of(address, cluster.Certificates.given(**theirs)):
                pass
    with pytest.raises(ValueError, match="No dask scheduler answers at tcp://"):
        with cluster.client_of(address.replace("tls:", "tcp:")):
            pass


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"ca": __file__, "cert": None, "key": None}, "--tls-cert is missing"),
        ({"ca": __file__, "cert": __file__, "key": "/nowhere"}, "--tls-key: no file /nowhere"),
    ],
)
def test_of_certificates_all_are_wanted(files, told):
    given = {name: path and Path(path) for name, path in files.items()}
    with pytest.raises(ValueError, match=told):
        cluster.Certificates.given(**given)
    assert cluster.Certificates.given(**dict.fromkeys(given)) is None


@pytest.mark.parametrize(
    "address",
    ["ucx://x:1", "inproc://x", "ws://x:1", "http://x:1", "x", "x:y", "tcp://", "tcp://:1",
     "tcp://x:-1", "tcp://x:99999", "tcp://[::1", "://", "tcp://a b:1", "/tmp/x.json", "\0:1"],
)  # fmt: skip
def test_an_address_that_dask_does_not_speak_is_one_sentence(project, address):
    sweep = sweeps.plan("01", {"seed": [1]})
    with pytest.raises(ValueError, match="address reads like tcp://node1:8786") as caught:
        cluster.carry_out(sweep, scheduler=address)
    assert "\n" not in str(caught.value)


def test_nothing_of_a_local_sweep_listens_to_the_network(project):
    with cluster.local_client(2, []) as client:
        assert len(client.scheduler_info()["workers"]) == 2
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        ports = [port for one in family for port in one.net_connections("inet")]
    hosts = [port.laddr.ip for port in ports if port.status == psutil.CONN_LISTEN]
    assert len(hosts) >= 6, "scheduler, two nannies, two workers, and what they tell about them"
    assert set(hosts) <= {"127.0.0.1", "::1"}


def test_a_gpu_that_is_not_here_is_told_before_anything_starts(project, monkeypatch):
    parameters = PARAMETERS + '\ndevice: str = "auto"  # on what'
    write_chapter(project / "book" / "01_tiny.ipynb", MARK, parameters=parameters)
    sweep = sweeps.plan("01", {"seed": [1]}, {"device": "gpu"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="device=gpu: this machine has no GPU"):
        cluster.carry_out(sweep, workers=1)
    monkeypatch.setattr(cluster, "CONNECTING", 1)
    with pytest.raises(ValueError, match="No dask scheduler answers"):  # workers may have one
        cluster.carry_out(sweep, scheduler="tcp://127.0.0.1:9")


def test_a_scheduler_that_is_not_there_is_one_sentence(project, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECTING", 1)
    sweep = sweeps.plan("01", {"seed": [1]})
    with pytest.raises(ValueError, match=r"No dask scheduler answers at tcp://127\.0\.0\.1:9"):
        cluster.carry_out(sweep, scheduler="tcp://127.0.0.1:9")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"workers": 0}, "workers must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"per_gpu": 0}, "per_gpu must be at least 1"),
        ({"scheduler": "tcp://x:1", "workers": 2}, "either --scheduler or --workers"),
        ({"certificates": cluster.Certificates(*3 * [Path("x")])}, "give --scheduler too"),
    ],
)
def test_senseless_numbers_are_refused(project, how, told):
    with pytest.raises(ValueError, match=told):
        cluster.carry_out(sweeps.plan("01", {"seed": [1]}), **how)


def test_runs_of_a_sweep_keep_their_records_to_themselves(project, monkeypatch):
    monkeypatch.setenv("NUCTUT_RECORDS", str(project / "own"))
    assert records.folder_for("lite", "real") == project / "own"
    monkeypatch.delenv("NUCTUT_RECORDS")
    assert records.folder_for("lite", "real") == project / "results"
    assert records.folder_for("lite", "real", "3-epochs") == project / "runs/swept/3-epochs"


def test_notebooks_know_no_sweep():
    assert not hasattr(notebooks, "sweep")
