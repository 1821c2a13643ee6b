"""What is on disk: nothing is called broken that is at work, and nothing deleted that is."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from chapter_maker import write_chapter, write_project

from nuctut import cli, experiments, targets
from nuctut.experiments import four_architectures, labels_for_free
from nuctut.files import MARKER, locked, own
from nuctut.running import notebooks, runs, sweeps
from nuctut.samples import Sample, SampleSet

CHAPTER = "01_labels_for_free"
NAME = "dl-consensus--s0--0123456789abcdef"
OTHER_CODE = "0" * 16
SUMMARY = {
    "updates": 1, "images_seen": 1, "seconds": 600.0, "weights": 12345, "device": "a card",
    "precision": "fp32", "peak_memory_gb": None, "git_commit": None, "code": OTHER_CODE,
    "started": "2026", "ended": "2026", "weights_sha256": "0" * 64,
}  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setenv("NUCTUT_RUNS", str(folder))
    return folder


def write(path: Path, text: str = "x", days: float = 0.0) -> Path:
    """A file that last changed some days ago, in a folder of the project's own."""
    own(path.parent)
    path.write_text(text)
    moment = time.time() - 24 * 3600 * days
    os.utime(path, (moment, moment))
    return path


def make_fit(
    root: Path, name: str = NAME, *, epochs: int = 3, done: bool = True, days: float = 0.0, **about
) -> Path:
    """A fit of ten epochs at most, with the files that `training.fit` writes."""
    folder = root / CHAPTER / name
    own(folder.parent)
    made = {
        "experiment": "labels_for_free",
        "variant": "dl-consensus",
        "seed": 0,
        "settings": {"scale": "log"},
        "pretrained": False,
        "data": {"name": "bbbc039", "source": "real", "fingerprint": "ab", "images": 100},
        "code": experiments.current_code(labels_for_free, "dl-consensus"),
    }
    losses = "".join(f"{n},1,{abs(n - 2) + 0.5},1,1\n" for n in range(1, epochs + 1))
    header = "step,train_loss,val_loss,learning_rate,seconds\n"
    settings = {"epochs": 10, "devices": about.pop("devices", 1)}
    write(folder / "network.json", json.dumps(made | about), days)
    write(folder / "settings.json", json.dumps(settings), days)
    write(folder / "history.csv", header + losses, days)
    write(folder / "last.ckpt", "x" * 1000, days)
    write(folder / "best.safetensors", "x" * 500, days)
    if done:
        write(folder / "done.json", json.dumps(SUMMARY), days)
    os.utime(folder / MARKER, (0, 0))
    return folder


def the_one() -> runs.Entry:
    (entry,) = runs.inventory()
    return entry


@pytest.fixture
def holder():
    """Starts other processes that each hold a folder's lock until the test ends."""
    code = (
        "import sys; from pathlib import Path; from nuctut.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    started = []

    def hold(folder: Path) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen([sys.executable, "-c", code, str(folder)], **pipes))
        assert started[-1].stdout.readline() == b"held\n"

    yield hold
    for process in started:
        process.communicate()


# --- what there is -------------------------------------------------------------------------------


def test_an_empty_and_a_missing_folder_hold_nothing(root):
    assert runs.inventory() == []
    root.rmdir()
    assert runs.inventory() == []


def test_a_fit_that_ran_to_its_end_is_finished(root):
    folder = make_fit(root)
    entry = the_one()
    assert (entry.name, entry.kind, entry.state) == (f"{CHAPTER}/{NAME}", "fit", "finished")
    assert entry.bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert entry.note == "3 of 10 epochs"


def test_a_real_fit_is_finished_and_broken_without_its_summary(root, scene):
    image, labels = scene((64, 64), [(20, 20, 8), (44, 40, 9)])
    sample = Sample("one", image, labels)
    about = {"name": "bbbc039", "source": "simulated", "fingerprint": "ab"}
    sets = [
        SampleSet(["one"], lambda _: sample, split=split, **about)
        for split in ("training", "validation")
    ]
    settings = labels_for_free.Settings(
        data="simulated", images=1, crop=32, scale="log", gain=0.0, channels=(4,) * 5,
        last_channels=4, dropout=(0.0,) * 4, normalise=True, cross_entropy=1.0, min_area=0,
        epochs=2, updates=1, batch_size=1, learning_rate=1e-3, schedule="constant", l2=0.0,
        precision="fp32", patience=None,
    )  # fmt: skip
    experiments.train(
        labels_for_free,
        "dl-consensus",
        tuple(sets),
        settings,
        teach=lambda one: targets.three_classes(one.labels),
        device="cpu",
        runs=root / CHAPTER,
        progress=False,
    )
    entry = the_one()
    assert (entry.kind, entry.state, entry.note) == ("fit", "finished", "2 of 2 epochs")
    assert "best validation loss" in runs.describe(entry)
    assert runs.find_fit("dl-consensus") == entry.path
    (entry.path / "done.json").unlink()
    assert (the_one().state, the_one().note) == ("broken", "stopped after 2 of 2 epochs")


def test_a_stopped_fit_is_broken_and_says_how_far_it_came(root):
    make_fit(root, epochs=4, done=False)
    assert (the_one().state, the_one().note) == ("broken", "stopped after 4 of 10 epochs")
    use = runs.describe(the_one())["use"]
    assert use.startswith(f"nuctut run {CHAPTER}") and "goes on from there" in use


def test_a_fit_is_running_as_long_as_another_process_holds_its_lock(root, holder):
    folder = make_fit(root, done=False)
    before = the_one().changed
    assert not (folder / ".lock").exists()  # looking leaves no traces
    holder(folder)
    assert (the_one().state, the_one().changed) == ("running", before)
    with pytest.raises(ValueError, match="is at work; end that first"):
        runs.chosen(["dl-consensus"], runs.inventory())


@pytest.mark.parametrize(("days", "state"), [(0.5, "running"), (1.5, "broken")])
def test_a_fit_of_several_devices_has_no_lock_and_counts_as_running_for_a_day(root, days, state):
    make_fit(root, done=False, devices=2, days=days)
    assert the_one().state == state


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"code": OTHER_CODE}, "the code of its fit has changed"),
        ({"experiment": "five_blurs"}, "network.json cannot be read"),
        ({"more": 1}, "network.json cannot be read"),
        ({"experiment": "four_architectures", "variant": "v-net"}, "there is no v-net now"),
    ],
)
@pytest.mark.parametrize("done", [True, False])
def test_a_fit_that_no_present_code_takes_up_is_orphaned(root, about, why, done):
    make_fit(root, done=done, **about)
    far = "finished" if done else "stopped after 3 of 10 epochs"
    assert the_one().state == "orphaned"
    assert the_one().note.startswith(f"{far}; ") and why in the_one().note


def test_a_fit_without_a_description_is_orphaned(root):
    (make_fit(root) / "network.json").unlink()
    assert (the_one().state, the_one().note) == ("orphaned", "finished; it has no network.json")
    assert "predict" not in runs.describe(the_one())["use"]


def test_a_change_of_the_code_orphans_the_fit(root, monkeypatch):
    make_fit(root)
    monkeypatch.setattr(labels_for_free, "code", lambda variant: ("targets", "losses"))
    assert the_one().state == "orphaned"
    assert f"nuctut predict --run {CHAPTER}/{NAME}" in runs.describe(the_one())["use"]


def test_every_network_of_the_second_chapter_is_known(root):
    for variant in four_architectures.NETWORKS:
        code = experiments.current_code(four_architectures, variant)
        about = {"experiment": "four_architectures", "variant": variant, "code": code}
        make_fit(root, f"{variant}--s0--00", **about)
    assert [entry.state for entry in runs.inventory()] == ["finished"] * 4


def test_notebooks_are_finished_or_failed(root):
    write(root / "01_a" / "seed-1--01234567.ipynb")
    write(root / "01_a" / "seed-2--89abcdef.failed.ipynb")
    found = [(entry.name, entry.kind, entry.state) for entry in runs.inventory()]
    assert found == [
        ("01_a/seed-1--01234567.ipynb", "notebook", "finished"),
        ("01_a/seed-2--89abcdef.failed.ipynb", "notebook", "broken"),
    ]


def test_records_are_one_entry_for_each_folder(root):
    write(root / "results" / "01_a" / "x.json", "12345")
    write(root / "results" / "01_a" / "y.json", "123")
    write(root / "swept" / "seed-3" / "01_a" / "x.json")
    found = [(entry.name, entry.kind, entry.bytes, entry.note) for entry in runs.inventory()]
    assert found == [
        ("results/01_a", "records", 8, "2 records"),
        ("swept/seed-3/01_a", "records", 1, "1 records"),
    ]


@pytest.mark.parametrize(
    ("states", "state", "note"),
    [
        (["done", "done"], "finished", "2 done"),
        (["done", "failed"], "broken", "1 done, 1 failed"),
        (["done", None, None], "broken", "1 done, 2 stopped"),
    ],
)
def test_a_sweep_is_finished_when_all_its_runs_are(root, states, state, note):
    own(root / "sweeps" / "two-seeds")
    for number, one in enumerate(states):
        run = root / "sweeps" / "two-seeds" / f"seed-{number}"
        write(run / "notebook.ipynb")
        if one:
            write(run / "run.json", json.dumps({"state": one, "seconds": 90.0}))
    write(root / "sweeps" / "two-seeds" / "sweep.csv")
    entry = the_one()
    assert (entry.name, entry.kind) == ("sweeps/two-seeds", "sweep")
    assert (entry.state, entry.note) == (state, note)
    told = runs.describe(entry)
    assert "seed-0: done, 2 min" in told["runs"] and told["use"] == "nuctut sweep show two-seeds"


def test_a_sweep_is_running_while_one_of_its_runs_is(root, holder):
    own(root / "sweeps" / "s")
    for seed in (0, 1):
        write(root / "sweeps" / "s" / f"seed-{seed}" / "run.json", '{"state": "done"}')
    holder(root / "sweeps" / "s" / "seed-1")
    assert the_one().state == "running"
    assert runs.delete([the_one()]).kept == (the_one(),)


# --- leftovers -----------------------------------------------------------------------------------


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_temporary_files_of_dead_processes_are_leftovers(root, dead):
    fit = make_fit(root)
    size = the_one().bytes
    write(root / "01_a" / f".seed-1--01234567.{dead}.ipynb", days=2)
    write(fit / f".last.ckpt.{dead}", "12345", days=2)
    leftovers = [entry for entry in runs.inventory() if entry.kind == "leftover"]
    assert [(entry.path.name, entry.state) for entry in leftovers] == [
        (f".seed-1--01234567.{dead}.ipynb", "orphaned"),
        (f".last.ckpt.{dead}", "orphaned"),
    ]
    assert runs.find(NAME, runs.inventory()).bytes == size  # counted once
    assert runs.delete(leftovers).bytes == 6
    assert the_one().state == "finished"


def test_temporary_files_that_may_be_in_use_are_not(root, dead):
    write(root / "01_a" / f".mine.json.{os.getpid()}", days=2)
    write(root / "01_a" / f".of-another-machine.ipynb.{dead}", days=0.9)
    write(root / "01_a" / ".hidden", days=2)
    assert runs.inventory() == []


# --- what is not ours ----------------------------------------------------------------------------


def unmark(folder: Path) -> Path:
    (folder / MARKER).unlink()
    return folder


def test_folders_that_nuctut_has_not_made_are_not_listed(root, nuctut):
    """As with `NUCTUT_RUNS=~`."""
    precious = root / "Documents" / "taxes" / "2025.pdf"
    precious.parent.mkdir(parents=True)
    precious.write_text("x")
    (root / "Documents" / "thesis.ipynb").write_text("{}")
    (root / "sweeps" / "chimneys").mkdir(parents=True)
    old = time.time() - 1e6
    temporary = root / "Documents" / f".thesis.{2**22 + 1}"
    temporary.write_text("x")
    os.utime(temporary, (old, old))
    assert runs.inventory() == []
    for name in ("Documents/taxes", "taxes", "Documents", "chimneys"):
        status, _, err = nuctut("clean", name, "--yes")
        assert status == 1 and "names none" in err
    assert nuctut("clean", "--yes")[:2] == (0, "There is nothing of that kind.\n")
    assert precious.exists() and temporary.exists()


def foreign(root: Path) -> list[Path]:
    """What looks as if nuctut had made it, one of each kind, in folders without its marker."""
    fit = unmark(make_fit(root, code=OTHER_CODE))
    unmark(root / CHAPTER)
    (root / "sweeps" / "s" / "seed-1").mkdir(parents=True)
    (root / "sweeps" / "s" / "seed-1" / "run.json").write_text('{"state": "failed"}')
    (root / "results" / "01_a").mkdir(parents=True)
    (root / "results" / "01_a" / "x.json").write_text("{}")
    (root / CHAPTER / "seed-1--01234567.ipynb").write_text("{}")
    return [fit, root / CHAPTER / "seed-1--01234567.ipynb", root / "results" / "01_a",
            root / "sweeps" / "s"]  # fmt: skip


def test_what_carries_no_marker_is_listed_as_such_and_never_deleted(root, nuctut):
    paths = foreign(root)
    entries = runs.inventory()
    assert [entry.path for entry in entries] == paths
    assert all("so it is never deleted" in entry.note for entry in entries)
    assert runs.chosen(["orphaned", "broken"], entries) == []
    assert nuctut("clean", "orphaned", "broken", "--yes")[1] == "There is nothing of that kind.\n"
    for entry in entries:
        status, _, err = nuctut("clean", entry.name, "--yes")
        assert status == 1 and "If it is yours, delete it yourself" in err
    assert runs.delete(entries).kept == tuple(entries)
    assert all(path.exists() for path in paths)
    assert "`nuctut runs clean` deletes" not in nuctut("list")[1]
    assert runs.find_fit("dl-consensus") == paths[0], "predict and export take it all the same"


def test_a_marker_that_was_taken_away_meanwhile_counts(root):
    folder = make_fit(root)
    entry = the_one()
    unmark(folder)
    assert runs.delete([entry]).kept == (entry,) and folder.exists()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_marker_that_is_a_link_is_none(root):
    folder = unmark(make_fit(root))
    (folder / MARKER).symlink_to(folder / "done.json")
    assert the_one().marked is None


def test_a_notebook_of_another_name_is_whoevers_put_it_there(root):
    write(root / CHAPTER / "my own notes.ipynb")
    write(root / CHAPTER / "copy--of-it.ipynb")
    assert runs.inventory() == []


def test_what_a_run_makes_is_marked_and_can_be_deleted(root, tmp_path, monkeypatch):
    project = tmp_path / "project"
    write_project(project, ["01_tiny"], [])
    write_chapter(project / "book" / "01_tiny.ipynb", "1 / seed")
    monkeypatch.chdir(project)
    monkeypatch.setenv("NUCTUT_DATA", str(tmp_path / "data"))
    notebooks.run_chapter("01", {"seed": 1}, verbose=False)
    with pytest.raises(RuntimeError):
        notebooks.run_chapter("01", verbose=False)
    sweep = sweeps.plan("01", {"seed": [1, 2]})
    own(sweep.folder)  # as `cluster.run_sweep` does
    assert sweeps.fail(sweep.runs[0], "no luck", 1.0).state == "failed"
    entries = runs.inventory()
    assert [entry.state for entry in entries] == ["broken", "finished", "broken"]
    assert all(entry.marked for entry in entries)
    assert runs.delete(entries).kept == () and runs.inventory() == []


# --- what is damaged -----------------------------------------------------------------------------

DAMAGED = {
    "network.json": ["", "null", "[]", '{"seed": "0"}', "[" * 100_000],
    "settings.json": ["{", "null", '{"epochs": "many"}', '{"epochs": null}', '{"epochs": -1}'],
    "done.json": ["", "null", "[1]", json.dumps(SUMMARY | {"seconds": None}),
                  json.dumps(SUMMARY | {"weights": "many"}), '{"seconds": 1e999}'],
    "history.csv": ["a,b\n", "step\n1\n", "x" * 2**20, "\0", "\ud800"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in DAMAGED.items() for text in texts]
)
def test_a_damaged_fit_is_one_sentence_and_leaves_the_others(root, nuctut, name, text):
    folder = make_fit(root, "bad--s0--00")
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    good = make_fit(root)
    bad, other = runs.inventory()
    assert (other.path, other.state) == (good, "finished")
    assert bad.state == ("orphaned" if name == "network.json" else "broken")
    assert name in bad.note and "\n" not in bad.note and len(bad.note) < 400
    assert nuctut("list")[0] == 0 and nuctut("show", "bad")[0] == 0
    assert str(root) not in bad.note


@pytest.mark.parametrize(
    "text", ["", "null", "[]", '{"state": "finished"}', '{"state": "done", "seconds": "1"}']
)
def test_a_damaged_run_of_a_sweep_is_one_sentence(root, nuctut, text):
    own(root / "sweeps" / "s")
    write(root / "sweeps" / "s" / "seed-1" / "run.json", '{"state": "done"}')
    write(root / "sweeps" / "s" / "seed-2" / "run.json", text)
    assert the_one().state == "broken"
    assert the_one().note.startswith("1 done, 1 damaged: seed-2/run.json: ")
    assert nuctut("list")[0] == 0 and nuctut("show", "s")[0] == 0


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
@pytest.mark.skipif(os.name == "nt", reason="no such files there")
def test_a_lock_that_is_no_file_is_told(root, nuctut, kind):
    make = {"folder": os.mkdir, "link": lambda path: os.symlink(__file__, path), "pipe": os.mkfifo}
    make[kind](make_fit(root, "bad--s0--00") / ".lock")
    make_fit(root)
    own(root / "sweeps" / "s")
    make[kind](write(root / "sweeps" / "s" / "seed-1" / "run.json").parent / ".lock")
    fit, other, sweep = runs.inventory()
    assert (fit.state, other.state, sweep.state) == ("broken", "finished", "broken")
    assert ".lock: expected a file, and it is none; move it away." in fit.note
    assert "seed-1/.lock: expected a file" in sweep.note
    assert nuctut("list")[0] == 0


@pytest.mark.parametrize("name", sorted(DAMAGED))
@pytest.mark.skipif(os.name == "nt", reason="no such files there")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(root, name):
    folder = make_fit(root)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert the_one().state in ("broken", "orphaned") and name in the_one().note


def test_a_fit_that_vanishes_meanwhile_is_left_out(root, monkeypatch):
    gone, stays = make_fit(root), make_fit(root, "other--s0--00")
    looked = runs._why_orphaned

    def vanish(folder):
        if folder == gone:
            shutil.rmtree(folder)
        return looked(folder)

    monkeypatch.setattr(runs, "_why_orphaned", vanish)
    assert [entry.path for entry in runs.inventory()] == [stays]


@pytest.fixture
def nobody(monkeypatch):
    """A place where this process has no more rights than a stranger, until the test ends."""
    if os.name == "nt":
        pytest.skip("other rights there")
    place = Path(tempfile.mkdtemp())  # those of pytest are for one user
    place.chmod(0o755)
    monkeypatch.setenv("NUCTUT_RUNS", str(place))
    user = os.geteuid()

    def become() -> None:
        if user == 0:
            os.seteuid(65534)

    yield place, become
    os.seteuid(user)
    for folder in (place, *place.rglob("*")):
        if folder.is_dir():
            folder.chmod(0o755)
    shutil.rmtree(place)


def test_what_cannot_be_read_is_told_and_the_rest_is_listed(nobody):
    place, become = nobody
    runs.inventory()  # all modules are loaded while they can be read
    make_fit(place, "closed--s0--00").chmod(0)
    make_fit(place)
    write(place / "02_closed" / "as-it-stands.ipynb").parent.chmod(0)
    write(place / "sweeps" / "s" / "a" / "run.json").parent.parent.chmod(0)
    (make_fit(place, "part--s0--00") / "done.json").chmod(0)
    become()
    told = {entry.name: (entry.state, entry.note) for entry in runs.inventory()}
    assert told.pop(f"{CHAPTER}/{NAME}") == ("finished", "3 of 10 epochs")
    assert told.pop(f"{CHAPTER}/part--s0--00")[1] == "done.json cannot be read (Permission denied)"
    assert set(told) == {f"{CHAPTER}/closed--s0--00", "02_closed", "sweeps/s"}
    for state, note in told.values():
        assert state == "broken" and "cannot be read (Permission denied); no " in note
    assert runs.find_fit(NAME).name == NAME


def test_looking_needs_no_right_to_write(nobody, holder):
    """Neither a lock of somebody else's, nor none, is in the way of who may only read."""
    place, become = nobody
    locked_once, held, never = (make_fit(place, f"{n}--s0--00", done=n != "b") for n in "abc")
    for folder in (locked_once, held):
        (folder / ".lock").touch()
        (folder / ".lock").chmod(0o644)
    holder(held)
    for folder in (locked_once, held, never, place / CHAPTER, place):
        folder.chmod(0o555)
    runs.inventory()
    before = sorted(path.name for path in never.iterdir())
    become()
    entries = runs.inventory()
    assert [entry.state for entry in entries][::2] == ["finished", "finished"]
    assert entries[1].state in ("running", "broken"), "who may not open a lock may not know"
    assert sorted(path.name for path in never.iterdir()) == before
    assert runs.delete(entries).kept == tuple(entries)


# --- finding -------------------------------------------------------------------------------------


def test_a_beginning_is_enough_with_or_without_the_chapter(root):
    one = make_fit(root)
    other = make_fit(root, "dl-consensus--s1--00")
    entries = runs.inventory()
    for text in (NAME, f"{CHAPTER}/{NAME}", f"{CHAPTER}/dl-consensus--s0", "dl-consensus--s0"):
        assert runs.find(text, entries).path == one
        assert runs.find_fit(text) == one
    assert runs.find_fit(str(other)) == other
    for text in ("dl", CHAPTER):
        with pytest.raises(ValueError, match=rf"names several .*{NAME}, .*dl-consensus--s1--00\."):
            runs.find_fit(text)
    for text in ("nope", "", "../01", "/"):
        with pytest.raises(ValueError, match=r"names none of what is below .*dl-consensus--s1"):
            runs.find(text, entries)


def test_a_whole_name_is_meant_even_where_others_begin_with_it(root):
    write(root / "sweeps" / "seeds" / "a" / "run.json")
    write(root / "sweeps" / "seeds-2" / "a" / "run.json")
    assert runs.find("seeds", runs.inventory()).name == "sweeps/seeds"


def test_a_notebook_is_no_fit(root):
    write(root / "01_a" / "seed-1--01234567.ipynb")
    with pytest.raises(ValueError, match="there is nothing"):
        runs.find_fit("seed-1")


def test_a_fit_is_described(root):
    make_fit(root, epochs=5)
    told = runs.describe(the_one())
    assert told["experiment"] == "labels_for_free" and told["variant"] == "dl-consensus, seed 0"
    assert told["data"] == "bbbc039 (real, 100 images)" and told["settings"] == "scale=log"
    assert told["best validation loss"] == "0.5, in epoch 2"
    assert told["time"] == "10 min on a card" and told["weights"] == "12,345"
    assert "last.ckpt  1.0 kB" in told["files"]
    assert told["use"].startswith(f"nuctut predict --run {CHAPTER}/{NAME}")


# --- deleting ------------------------------------------------------------------------------------


def test_deletion_frees_what_it_says_and_touches_nothing_else(root):
    make_fit(root)
    write(root / "results" / "x.json")
    kept = write(root / "results" / "01_a" / "x.json")
    entries = {entry.name: entry for entry in runs.inventory()}
    deleted = runs.delete([entries[f"{CHAPTER}/{NAME}"], entries["results"]])
    assert deleted.bytes == entries[f"{CHAPTER}/{NAME}"].bytes + 1 and deleted.kept == ()
    assert (the_one().name, kept.exists()) == ("results/01_a", True)


def test_what_was_taken_up_since_it_was_listed_is_kept(root, holder):
    folder = make_fit(root, done=False)
    entry = the_one()
    holder(folder)
    assert runs.delete([entry]) == runs.Deleted(0, (entry,))
    assert (folder / "best.safetensors").exists()


def test_what_has_changed_since_it_was_listed_is_kept(root):
    folder = make_fit(root, done=False, days=1)
    entry = the_one()
    write(folder / "done.json", "{}")  # another process finished it meanwhile
    assert runs.delete([entry]).kept == (entry,)
    assert (folder / "best.safetensors").exists()


def test_the_lock_is_held_while_deleting(root, monkeypatch):
    folder = make_fit(root)
    free = []

    def rmtree(path: Path) -> None:
        with locked(path, wait=False) as mine:
            free.append(mine)

    monkeypatch.setattr(runs.shutil, "rmtree", rmtree)
    runs.delete([the_one()])
    assert free == [False] and folder.exists()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_are_neither_listed_nor_followed(root, tmp_path):
    precious = write(tmp_path / "elsewhere" / "fit" / "best.safetensors")
    (root / "02_link").symlink_to(tmp_path / "elsewhere")
    (root / CHAPTER).mkdir()
    (root / CHAPTER / "linked").symlink_to(tmp_path / "elsewhere" / "fit")
    assert runs.inventory() == []
    folder = make_fit(root)
    (folder / "inside").symlink_to(precious.parent)
    (folder / "file").symlink_to(precious)
    assert runs.delete([the_one()]).kept == ()
    assert not folder.exists() and precious.exists()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_the_folder_itself_may_be_a_link(root, tmp_path, monkeypatch):
    make_fit(root)
    (tmp_path / "link").symlink_to(root)
    assert [entry.state for entry in runs.inventory(tmp_path / "link")] == ["finished"]


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture
def nuctut(root, monkeypatch, capsys):
    """Runs `nuctut runs …` and returns its exit status, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: str, answer: str = ""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        monkeypatch.setattr(sys, "argv", ["nuctut", "runs", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return ended.value.code, told.out, told.err

    return call


def test_list_has_a_total_and_a_hint(nuctut, root):
    make_fit(root, code=OTHER_CODE)
    write(root / "01_a" / "as-it-stands.failed.ipynb", "x" * 100)
    status, out, _ = nuctut("list")
    assert status == 0 and NAME in out and "orphaned" in out
    total = sum(entry.bytes for entry in runs.inventory())
    assert f"2 in all, {runs.decimal(total)}" in out
    assert "1 broken" in out and "nuctut runs clean" in out


def test_show_names_the_settings(nuctut, root):
    make_fit(root)
    status, out, _ = nuctut("show", "dl")
    assert status == 0 and "scale=log" in out and "nuctut predict --run" in out
    status, _, err = nuctut("show", "nope")
    assert status == 1 and err.startswith("Error: 'nope' names none")


@pytest.mark.parametrize("answer", ["", "\n", "n\n"])
def test_clean_deletes_nothing_unless_told_to(nuctut, root, answer):
    folder = make_fit(root, code=OTHER_CODE)
    status, out, _ = nuctut("clean", answer=answer)
    assert status == 1 and NAME in out and "Delete these? [y/N]" in out
    assert out.endswith("Nothing deleted.\n") and folder.exists()


def test_clean_deletes_orphans_and_leaves_the_rest(nuctut, root):
    orphan, broken = make_fit(root, code=OTHER_CODE), make_fit(root, "b--s0--00", done=False)
    status, out, _ = nuctut("clean", answer="y\n")
    assert status == 0 and "freed." in out
    assert not orphan.exists() and broken.exists()
    status, out, _ = nuctut("clean", "broken", "--yes")
    assert status == 0 and "Delete these?" not in out and not broken.exists()
    assert nuctut("clean")[:2] == (0, "There is nothing of that kind.\n")


def test_clean_takes_names_but_none_outside(nuctut, root, tmp_path):
    folder, outside = make_fit(root), write(tmp_path / "results" / "x.json")
    for name in ("../results", str(tmp_path / "results")):
        status, _, err = nuctut("clean", name, "--yes")
        assert status == 1 and "names none" in err and outside.exists()
    assert nuctut("clean", "dl-consensus", "--yes")[0] == 0
    assert not folder.exists()
