"""Files are read against a schema, and written whole or not at all; folders are marked, locked."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from nuctut import files
from nuctut.files import STRICT, Count, Malformed, Measure, Text, locked, replacing

# --- reading -------------------------------------------------------------------------------------


def even(number: int) -> int:
    if number % 2:
        raise ValueError(f"is {number}, and must be even.")
    return number


@dataclass(config=STRICT)
class Run:
    name: Text
    count: Count = 0
    seconds: Measure | None = None
    state: Literal["done", "failed"] = "done"
    wide: bool = False
    ids: tuple[int, ...] = ()
    tags: Annotated[list[str], Field(min_length=2)] = Field(default_factory=lambda: ["a", "b"])
    values: dict[str, int | str] = Field(default_factory=dict)
    nothing: None = None
    code: Annotated[str, Field(pattern="^[a-f]{4}$")] = "abcd"
    pair: Annotated[int, AfterValidator(even)] = 2
    extra: dict[str, Any] = Field(default_factory=dict)


@dataclass(config=STRICT)
class Sweep:
    runs: list[Run]


def read(tmp_path, text):
    (tmp_path / "sweep.json").write_bytes(text.encode())
    return files.read_json(tmp_path / "sweep.json", Sweep)


def test_a_sound_file_is_read_as_its_schema(tmp_path):
    text = '{"runs": [{"name": "a", "count": 3, "seconds": 1, "values": {"x": 1, "y": "z"}}]}'
    assert read(tmp_path, text) == Sweep([Run("a", 3, 1.0, values={"x": 1, "y": "z"})])


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        ('"count": 1.5', "runs.0.count must be a whole number, not 1.5."),
        ('"count": "1"', 'runs.0.count must be a whole number, not "1".'),
        ('"count": true', "runs.0.count must be a whole number, not true."),
        ('"count": -1', "runs.0.count must be 0 or more, not -1."),
        ('"count": null', "runs.0.count must be a whole number, not null."),
        (f'"count": {10**400}', f"runs.0.count must be {2**53} or less, not 1{56 * '0'}...."),
        ('"seconds": "soon"', 'runs.0.seconds must be a number, not "soon".'),
        ('"seconds": NaN', "runs.0.seconds must be a finite number, not NaN."),
        ('"seconds": 1e999', "runs.0.seconds must be a finite number, not Infinity."),
        (f'"seconds": {10**400}', f"runs.0.seconds must be a finite number, not 1{56 * '0'}...."),
        ('"seconds": 1e301', "runs.0.seconds must be 1e+300 or less, not 1e+301."),
        ('"seconds": -0.5', "runs.0.seconds must be 0 or more, not -0.5."),
        ('"state": "good"', "runs.0.state must be one of 'done' or 'failed', not \"good\"."),
        ('"wide": 1', "runs.0.wide must be true or false, not 1."),
        ('"ids": 1', "runs.0.ids must be a list, not 1."),
        ('"ids": [1, "2"]', 'runs.0.ids.1 must be a whole number, not "2".'),
        ('"tags": ["a"]', 'runs.0.tags must be a list of 2 or more, not ["a"].'),
        ('"values": []', "runs.0.values must be an object, not []."),
        ('"values": {"x": []}', "runs.0.values.x must be a whole number or a text, not []."),
        ('"nothing": 0', "runs.0.nothing must be null, not 0."),
        ('"code": "{0}"', 'runs.0.code must be a text like ^[a-f]{4}$, not "{0}".'),
        ('"pair": 3', "runs.0.pair: is 3, and must be even."),
        ('"mood": "good"', "runs.0.mood is no field of it; remove it."),
        ('"name": "b"', 'an object has two fields named "name"; remove one.'),
        ('"extra": {"x": {"y": 1, "y": 1}}', 'an object has two fields named "y"; remove one.'),
        ('"extra": {"x": [NaN]}', "NaN is no finite number; write null."),
        ('"extra": {"x": [-Infinity]}', "-Infinity is no finite number; write null."),
        ('"extra": {"x": [1e999]}', "1e999 is no finite number; write null."),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, field, sentence):
    with pytest.raises(Malformed) as raised:
        read(tmp_path, f'{{"runs": [{{"name": "a", {field}}}]}}')
    assert str(raised.value) == f"{tmp_path / 'sweep.json'}: {sentence}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "its content must be an object, not []."),
        ("{}", "runs is missing."),
        ('{"runs": [{}]}', "runs.0.name is missing."),
        ('{"runs": [{"name": ""}]}', 'runs.0.name must be a text that is not empty, not "".'),
        ('{"runs": [7]}', "runs.0 must be an object, not 7."),
        ("", "not a JSON file (EOF while parsing a value at line 1 column 0)."),
        ('{"runs": [{"name": "a"', "not a JSON file (EOF while parsing an object at line 1"),
        ('{"runs": ' + 10_000 * "[", "not a JSON file (recursion limit exceeded at line 1"),
        ('{"runs": 1' + 5000 * "0" + "}", "not a JSON file (number out of range at line 1"),
        ('{"runs": "\\ud800"}', "not a JSON file (unexpected end of hex escape at line 1"),
        ("\ufeff{}", "not a JSON file (expected value at line 1 column 1)."),
    ],
)
def test_what_is_no_such_file_at_all_is_said_too(tmp_path, text, sentence):
    with pytest.raises(Malformed) as raised:
        read(tmp_path, text)
    assert str(raised.value).startswith(f"{tmp_path / 'sweep.json'}: {sentence}")


def test_what_was_found_is_cut_where_it_is_long():
    assert files.shown("x" * 100) == '"' + "x" * 56 + "..."
    assert files.shown(10**5000) == "int"
    nested = []
    for _ in range(100_000):
        nested = [nested]
    assert files.shown(nested) == "list"


def test_a_text_that_is_not_utf_8_is_refused_by_name(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"runs": "\xff"}')
    with pytest.raises(Malformed, match=r"a\.json: not a text in UTF-8"):
        files.read_json(path, Sweep)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes among its files")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(Malformed, match=r"a\.json: expected a file, and it is none"):
        files.read_text(tmp_path / "a.json")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(Malformed, match=r"expected a file, and it is none"):
        files.read_text(tmp_path)


def test_a_file_too_large_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"1")
    os.truncate(path, files.LARGEST)  # a hole on the disk: it costs nothing
    assert len(files.read_text(path)) == files.LARGEST
    os.truncate(path, files.LARGEST + 1)
    with pytest.raises(Malformed, match=r"a\.json: expected at most 67,108,864 bytes, not 67,"):
        files.read_text(path)


def test_no_file_is_no_malformed_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "a.json", Sweep)


def test_what_is_written_as_json_is_read_again(tmp_path):
    made = Sweep([Run("a", seconds=0.1 + 0.2, ids=(1, 2), extra={"ü": [None, True]})])
    files.write_json(tmp_path / "a.json", made)
    assert files.read_json(tmp_path / "a.json", Sweep) == made
    files.write_json(tmp_path / "a.json", {"x": [1, float("nan")]})
    assert files.read_json(tmp_path / "a.json", dict[str, Any]) == {"x": [1, None]}


# --- writing -------------------------------------------------------------------------------------


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


# --- folders -------------------------------------------------------------------------------------


def test_a_new_folder_is_marked_as_our_own(tmp_path):
    folder = tmp_path / "a" / "b"
    assert files.own(folder) == folder
    assert files.is_own(folder) and not files.is_own(folder.parent)
    (folder / "run.json").write_text("{}")
    assert files.is_own(files.own(folder))  # and stays so, filled


def test_an_empty_folder_becomes_our_own(tmp_path):
    assert not files.is_own(tmp_path)
    assert files.is_own(files.own(tmp_path))


def test_a_folder_with_anything_in_it_stays_its_owners(tmp_path):
    (tmp_path / ".hidden").touch()
    assert not files.is_own(files.own(tmp_path))
    assert os.listdir(tmp_path) == [".hidden"]


def test_a_marker_or_folder_behind_a_link_marks_nothing(tmp_path):
    ours, theirs = files.own(tmp_path / "ours"), tmp_path / "theirs"
    theirs.mkdir()
    (theirs / files.MARKER).symlink_to(ours / files.MARKER)
    assert not files.is_own(theirs)
    (tmp_path / "link").symlink_to(ours)
    assert files.is_own(ours) and not files.is_own(tmp_path / "link")


def test_a_marker_that_is_a_folder_and_no_folder_at_all_mark_nothing(tmp_path):
    (tmp_path / files.MARKER).mkdir()
    assert not files.is_own(tmp_path)
    assert not files.is_own(tmp_path / "nowhere")


def test_where_a_file_is_no_folder_is_made(tmp_path):
    (tmp_path / "a").write_text("theirs")
    with pytest.raises(OSError):
        files.own(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "theirs"


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
