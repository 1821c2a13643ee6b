"""A chapter that is killed while it trains goes on where it stood."""

import json
import subprocess

import pandas as pd
import psutil
import pytest
from chapter_maker import write_chapter, write_project
from processes import NUCTUT, PATIENCE, is_alive, wait_for

from nuctut import experiments

EPOCHS = 12

# Two networks, one after the other, as chapter 01 trains them; the second is what is cut short.
SETTINGS = f"""\
from nuctut import datasets, experiments, targets
from nuctut.experiments import labels_for_free
from nuctut.paths import runs_root
settings = labels_for_free.Settings(
    data="simulated", images=2, crop=64, scale="log", gain=0.1, channels=(4,) * 5,
    last_channels=4, dropout=(0.0,) * 4, normalise=True, cross_entropy=1.0, min_area=10,
    epochs={EPOCHS}, updates=6, batch_size=2, learning_rate=3e-3, schedule="one-cycle", l2=1e-5,
    precision="fp32", patience=None)"""
TRAIN = """\
sets = [datasets.load("bbbc039", s, "simulated").take(2) for s in ("training", "validation")]
for variant in ("first", "second"):
    experiments.train(labels_for_free, variant, tuple(sets), settings, seed=seed, device="cpu",
                      teach=lambda one: targets.three_classes(one.labels),
                      runs=runs_root() / "01_tiny")"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = tmp_path / "project"
    write_project(root, ["01_tiny"], [])
    write_chapter(root / "book" / "01_tiny.ipynb", SETTINGS, TRAIN)
    monkeypatch.setenv("NUCTUT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("NUCTUT_RUNS", raising=False)
    monkeypatch.chdir(root)
    return root


def start():
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*NUCTUT, "run", "01", "-p", "seed=1"], **quiet)


def history(folder):
    path = folder / "history.csv"
    return pd.read_csv(path) if path.is_file() else pd.DataFrame()


def fit(project, variant):
    return next((project / "runs" / "01_tiny").glob(f"{variant}--*"), project / "none")


@pytest.mark.slow
def test_a_killed_chapter_reads_back_what_is_finished_and_resumes_the_rest(project, monkeypatch):
    chapter = start()
    wait_for(lambda: len(history(fit(project, "second"))) >= 3, "the second network")
    family = psutil.Process(chapter.pid).children(recursive=True)
    chapter.kill()
    chapter.wait()
    wait_for(lambda: not any(map(is_alive, family)), "the kernel ends too")
    first, second = fit(project, "first"), fit(project, "second")
    stood = history(second)
    assert 3 <= len(stood) < EPOCHS and not (second / "done.json").exists()
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}

    assert start().wait(PATIENCE) == 0
    after = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert after == before, "the finished network is read, not written"
    whole = history(second)
    assert len(whole) == EPOCHS
    # the epochs before the kill are the very ones, seconds and all; only the last may be done
    # again, if the kill came between the writing of its history and of its checkpoint
    kept = len(stood) - 1
    pd.testing.assert_frame_equal(whole[:kept], stood[:kept])
    assert json.loads((second / "done.json").read_text())["updates"] == 6 * EPOCHS

    monkeypatch.setenv("NUCTUT_RUNS", str(project / "uncut"))
    exec(SETTINGS + "\n" + TRAIN, {"seed": 1})  # the same, in this process and without a kill
    (uncut,) = (project / "uncut" / "01_tiny").glob("second--*")
    losses = ["train_loss", "val_loss"]
    pd.testing.assert_frame_equal(history(uncut)[losses], whole[losses])
    one, other = (experiments.load(folder, "cpu") for folder in (uncut, second))
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert (a == b).all()
