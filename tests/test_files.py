"""Writing beside and renaming: a file is whole, or as it was. A folder is one process's."""

import os
import signal
import stat
import subprocess
import sys

import pytest

from nuctut import files
from nuctut.files import locked, replacing


def test_what_was_written_takes_the_place_of_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # else the renaming would not be one step
        assert temporary.suffix != path.suffix
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["table.csv"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_others_may_read_it_whatever_the_mask(tmp_path):
    path = tmp_path / "table.csv"
    before = os.umask(0o077)
    try:
        with replacing(path) as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("failure", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(type(failure)), replacing(path) as temporary:
        temporary.write_text("ne")
        raise failure
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_rename_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def refused(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError), replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_two_processes_use_two_temporary_files(tmp_path):
    path = tmp_path / "table.csv"
    code = (
        "import sys; from pathlib import Path; from nuctut.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary: temporary.write_text('other')"
    )
    with replacing(path) as temporary:
        temporary.write_text("mine")
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        assert path.read_text() == "other"
        assert temporary.read_text() == "mine"
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["table.csv"]


HOLD = """
import sys, time; from pathlib import Path; from nuctut.files import locked
with locked(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


def test_a_folder_is_locked_until_its_process_is_gone(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "True\n"
        with locked(tmp_path, wait=False) as mine:
            assert not mine
        other.send_signal(signal.SIGKILL)
        other.wait()
    with locked(tmp_path) as mine:
        assert mine
    with locked(tmp_path, wait=False) as mine:
        assert mine


@pytest.mark.parametrize(
    "failure", [NotImplementedError("no flock"), OSError(files.errno.ENOTSUP, "not supported")]
)
def test_where_there_are_no_locks_everybody_works(tmp_path, monkeypatch, failure):
    """As on some mounted drives: two at work are better than none."""

    def refused(self):
        raise failure

    monkeypatch.setattr(files.FileLock, "acquire", refused)
    with locked(tmp_path, wait=False) as mine:
        assert mine
