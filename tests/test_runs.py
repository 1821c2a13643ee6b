"""What is on disk: nothing is called broken that is at work, and nothing deleted that is."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nuctut import cli, targets
from nuctut.experiments import four_architectures, labels_for_free
from nuctut.files import locked
from nuctut.running import runs
from nuctut.samples import Sample, SampleSet

CHAPTER = "01_labels_for_free"
NAME = "dl-consensus--s0--0123456789abcdef"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setenv("NUCTUT_RUNS", str(folder))
    return folder


def write(path: Path, text: str = "x", days: float = 0.0) -> Path:
    """A file that last changed some days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    moment = time.time() - 24 * 3600 * days
    os.utime(path, (moment, moment))
    return path


def make_fit(
    root: Path, name: str = NAME, *, epochs: int = 3, done: bool = True, days: float = 0.0, **about
) -> Path:
    """A fit of ten epochs at most, with the files that `training.fit` writes."""
    folder = root / CHAPTER / name
    made = {
        "experiment": "labels_for_free",
        "variant": "dl-consensus",
        "seed": 0,
        "settings": {"scale": "log"},
        "pretrained": False,
        "data": {"name": "bbbc039", "source": "real", "fingerprint": "ab", "images": 100},
        "code": labels_for_free.current_code("dl-consensus"),
    }
    losses = "".join(f"{n},1,{abs(n - 2) + 0.5},1,1\n" for n in range(1, epochs + 1))
    header = "step,train_loss,val_loss,learning_rate,seconds\n"
    settings = {"epochs": 10, "devices": about.pop("devices", 1)}
    write(folder / "network.json", json.dumps(made | about), days)
    write(folder / "settings.json", json.dumps(settings), days)
    write(folder / "history.csv", header + losses, days)
    write(folder / "last.ckpt", "x" * 1000, days)
    write(folder / "best.ckpt", "x" * 500, days)
    if done:
        summary = {"seconds": 600.0, "device": "a card", "weights": 12345}
        write(folder / "done.json", json.dumps(summary), days)
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
    labels_for_free.train(
        "dl-consensus",
        lambda one: targets.three_classes(one.labels),
        *sets,
        settings,
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
        ({"code": "0" * 16}, "the code of its fit has changed"),
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
    monkeypatch.setattr(labels_for_free, "CODE_OF_A_FIT", ("targets", "losses"))
    assert the_one().state == "orphaned"
    assert f"nuctut predict --run {CHAPTER}/{NAME}" in runs.describe(the_one())["use"]


def test_every_network_of_the_second_chapter_is_known(root):
    for variant in four_architectures.NETWORKS:
        code = four_architectures.current_code(variant)
        about = {"experiment": "four_architectures", "variant": variant, "code": code}
        make_fit(root, f"{variant}--s0--00", **about)
    assert [entry.state for entry in runs.inventory()] == ["finished"] * 4


def test_notebooks_are_finished_or_failed(root):
    write(root / "01_a" / "seed-1--ab.ipynb")
    write(root / "01_a" / "seed-2--cd.failed.ipynb")
    found = [(entry.name, entry.kind, entry.state) for entry in runs.inventory()]
    assert found == [
        ("01_a/seed-1--ab.ipynb", "notebook", "finished"),
        ("01_a/seed-2--cd.failed.ipynb", "notebook", "broken"),
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
    write(root / "01_a" / f".seed-1--ab.{dead}.ipynb", days=2)
    write(fit / f".last.ckpt.{dead}", "12345", days=2)
    leftovers = [entry for entry in runs.inventory() if entry.kind == "leftover"]
    assert [(entry.path.name, entry.state) for entry in leftovers] == [
        (f".seed-1--ab.{dead}.ipynb", "orphaned"),
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
    write(root / "01_a" / "seed-1--ab.ipynb")
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
    assert (folder / "best.ckpt").exists()


def test_what_has_changed_since_it_was_listed_is_kept(root):
    folder = make_fit(root, done=False, days=1)
    entry = the_one()
    write(folder / "done.json", "{}")  # another process finished it meanwhile
    assert runs.delete([entry]).kept == (entry,)
    assert (folder / "best.ckpt").exists()


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
    precious = write(tmp_path / "elsewhere" / "fit" / "best.ckpt")
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
    make_fit(root, code="0")
    write(root / "01_a" / "x.failed.ipynb", "x" * 100)
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
    folder = make_fit(root, code="0")
    status, out, _ = nuctut("clean", answer=answer)
    assert status == 1 and NAME in out and "Delete these? [y/N]" in out
    assert out.endswith("Nothing deleted.\n") and folder.exists()


def test_clean_deletes_orphans_and_leaves_the_rest(nuctut, root):
    orphan, broken = make_fit(root, code="0"), make_fit(root, "b--s0--00", done=False)
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
