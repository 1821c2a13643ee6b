"""Writing beside and renaming: a file is whole, or as it was."""

import os
import stat
import subprocess
import sys

import pytest

from nuctut.files import replacing


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
