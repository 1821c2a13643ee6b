"""Fetching against a server on this machine: every failure is one sentence and leaves no trace."""

import contextlib
import dataclasses
import errno
import gzip
import hashlib
import io
import os
import pickle
import shutil
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from processes import wait_for

from nuctut import datasets
from nuctut.datasets import bbbc039, checking, dsb2018, fetching, unpacking
from nuctut.datasets.simulated.bbbc039 import simulate_bbbc039
from nuctut.datasets.simulated.canvas import MARKER
from nuctut.datasets.simulated.dsb2018 import simulate_dsb2018
from nuctut.datasets.spec import Archive, DatasetSpec

FEW = {"training": 2, "validation": 1, "test": 1}
Members = dict[str, bytes]


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut_after` closes the connection after so many bytes of an answer.

    A file that is in `answers` is answered by what is there, which is given the handler.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, Callable[[_Handler], None]] = {}
        self.cut_after: int | None = None
        self.knows_ranges = self.tells_length = True
        self.asked: list[tuple[str, str | None]] = []  # (file, Range header) of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, asked = self.path.strip("/"), self.headers.get("Range")
        self.server.asked.append((name, asked))
        if name in self.server.answers:
            self.server.answers[name](self)
            return
        content = self.server.files.get(name)
        start = int(asked[len("bytes=") : -1]) if asked and self.server.knows_ranges else 0
        if content is None or start >= len(content):
            self.send_error(404 if content is None else 416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.tells_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.cut_after])

    def answer(self, status: int, headers: dict[str, object], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy set for the machine does not know this machine's own servers."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked files of a tiny data set."""
    folder = tmp_path_factory.mktemp("original") / "bbbc039"
    simulate_bbbc039(folder, images=FEW, shape=(64, 80))
    (folder / MARKER).unlink()
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder that holds another data set already."""
    root = tmp_path / "data"
    (root / "other").mkdir(parents=True)
    (root / "other" / "file.txt").write_text("keep me")
    return root


def members_of(folder: Path, part: str) -> Members:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted((folder / part).iterdir())
    }


def packed(members: Members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("__MACOSX/images/._junk.tif", b"junk")
    return buffer.getvalue()


def offer(server: Server, original: Path, change: Callable[[str, Members], None]) -> DatasetSpec:
    """Puts the archives on the server, each changed first, and describes them as they are."""
    archives = []
    for part in ("images", "masks", "metadata"):
        members = members_of(original, part)
        change(part, members)
        content = packed(members)
        server.files[f"{part}.zip"] = content
        archives.append(Archive(f"{part}.zip", len(content), hashlib.sha256(content).hexdigest()))
    return dataclasses.replace(
        bbbc039.SPEC,
        base_url=server.url,
        archives=tuple(archives),
        unpacked_bytes=100_000,
        counts=checking.check(bbbc039.SPEC, original).counts,
    )


@pytest.fixture
def spec(server: Server, original: Path) -> DatasetSpec:
    return offer(server, original, lambda part, members: None)


def trace(root: Path) -> dict[str, bytes | None]:
    """Everything below the data folder: content of files, None for folders and links."""
    return {
        path.relative_to(root).as_posix(): (
            path.read_bytes() if path.is_file() and not path.is_symlink() else None
        )
        for path in sorted(root.rglob("*"))
    }


def assert_fails(spec: DatasetSpec, root: Path, *named: str) -> str:
    """Fetching fails in one sentence with these words, and leaves the data folder as it was."""
    before, beside = trace(root), sorted(root.parent.iterdir())
    with pytest.raises(fetching.FetchError) as caught:
        fetching.fetch(spec, root, progress=False)
    message = str(caught.value)
    assert trace(root) == before
    assert sorted(root.parent.iterdir()) == beside
    assert message.endswith(".") and "\n" not in message
    for words in named:
        assert words in message, message
    return message


# --- what goes right -----------------------------------------------------------------------------


def test_the_right_files_arrive_whole(spec: DatasetSpec, original: Path, root: Path) -> None:
    folder = fetching.fetch(spec, root, progress=False)
    assert folder == root / "bbbc039"
    assert trace(folder) == trace(original)  # and with it: nothing of __MACOSX
    assert sorted(path.name for path in root.iterdir()) == ["bbbc039", "other"]


def test_a_data_folder_that_is_not_there_yet_is_made(spec: DatasetSpec, tmp_path: Path) -> None:
    assert fetching.fetch(spec, tmp_path / "new" / "data", progress=False).is_dir()


def test_what_is_there_is_not_downloaded_again(
    spec: DatasetSpec, server: Server, root: Path
) -> None:
    fetching.fetch(spec, root, progress=False)
    server.asked.clear()
    fetching.fetch(spec, root, progress=False)
    assert server.asked == []


def test_fetching_by_name_uses_the_registry_and_the_data_folder(
    spec: DatasetSpec, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(datasets.REGISTRY, "bbbc039", spec)
    monkeypatch.setenv("NUCTUT_DATA", str(root))
    assert datasets.fetch("bbbc039", progress=False) == root / "bbbc039"
    assert datasets.load("bbbc039", "test").source == "real"


def test_progress_is_drawn_when_asked_for(
    spec: DatasetSpec, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetching.fetch(spec, root, progress=True)
    assert "images.zip" in capsys.readouterr().out
    shutil.rmtree(root / "bbbc039")
    fetching.fetch(spec, root, progress=False)
    assert capsys.readouterr().out == ""


def test_the_pinned_archives_are_those_of_the_publisher() -> None:
    assert bbbc039.SPEC.base_url == "https://data.broadinstitute.org/bbbc/BBBC039/"
    assert {archive.name: archive.bytes for archive in bbbc039.SPEC.archives} == {
        "images.zip": 77_915_748,
        "masks.zip": 2_753_811,
        "metadata.zip": 17_816,
    }
    assert all(len(archive.sha256) == 64 for archive in bbbc039.SPEC.archives)


# --- the way here --------------------------------------------------------------------------------


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_cut_connection_is_continued(
    spec: DatasetSpec,
    server: Server,
    original: Path,
    root: Path,
    knows_ranges: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching, "CHUNK", 1000)  # what is lost is less than one chunk
    server.knows_ranges = knows_ranges
    half = server.cut_after = spec.archives[0].bytes // 2
    before = trace(root)
    with pytest.raises(fetching.Interrupted, match=r"images\.zip.*fetch again to continue\.$"):
        fetching.fetch(spec, root, progress=False)
    kept = {name: content for name, content in trace(root).items() if ".partial" not in name}
    assert kept == before  # what is kept for next time is not where data are looked for
    part = (root / ".partial" / "bbbc039" / "images.zip.part").read_bytes()
    assert half - 1000 < len(part) <= half
    assert server.files["images.zip"].startswith(part)

    server.cut_after = None
    server.asked.clear()
    assert trace(fetching.fetch(spec, root, progress=False)) == trace(original)
    assert server.asked[0] == ("images.zip", f"bytes={len(part)}-")
    assert not (root / ".partial").exists()


def test_archives_that_came_whole_are_not_loaded_again(
    spec: DatasetSpec, server: Server, root: Path
) -> None:
    masks = server.files.pop("masks.zip")
    with pytest.raises(fetching.Interrupted, match=r"404.*masks\.zip"):
        fetching.fetch(spec, root, progress=False)
    server.files["masks.zip"] = masks
    server.asked.clear()
    fetching.fetch(spec, root, progress=False)
    assert [name for name, _ in server.asked] == ["masks.zip", "metadata.zip"]


def test_a_stale_part_of_another_file_is_thrown_away(
    spec: DatasetSpec, root: Path, original: Path
) -> None:
    part = root / ".partial" / "bbbc039" / "images.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"something else")
    with pytest.raises(fetching.FetchError, match=r"images\.zip has not the sha256"):
        fetching.fetch(spec, root, progress=False)
    assert trace(fetching.fetch(spec, root, progress=False)) == trace(original)


def test_an_interrupt_from_the_keyboard_keeps_the_download_and_no_half_data_set(
    spec: DatasetSpec, server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(unpacking, "_extract", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetching.fetch(spec, root, progress=False)
    assert sorted(path.name for path in root.iterdir()) == [".partial", "other"]
    assert not (root / ".partial" / "bbbc039" / "unpacked").exists()
    server.asked.clear()
    fetching.fetch(spec, root, progress=False)
    assert server.asked == []


def test_what_a_killed_run_left_unpacked_does_not_get_in(
    spec: DatasetSpec, original: Path, root: Path
) -> None:
    left = root / ".partial" / "bbbc039" / "unpacked" / "images" / "half.tif"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert trace(fetching.fetch(spec, root, progress=False)) == trace(original)


def test_no_server(spec: DatasetSpec, root: Path) -> None:
    nowhere = dataclasses.replace(spec, base_url="http://127.0.0.1:9/")
    assert_fails(nowhere, root, "images.zip", "fetch again")


def test_a_file_that_the_server_does_not_have(
    spec: DatasetSpec, server: Server, root: Path
) -> None:
    server.files.clear()
    assert_fails(spec, root, "404", "images.zip")


def test_wrong_checksum(spec: DatasetSpec, server: Server, root: Path) -> None:
    content = bytearray(server.files["masks.zip"])
    content[len(content) // 2] ^= 1
    server.files["masks.zip"] = bytes(content)
    assert_fails(spec, root, "masks.zip", spec.archives[1].sha256)


def test_a_longer_file_is_refused(spec: DatasetSpec, server: Server, root: Path) -> None:
    server.files["masks.zip"] += b"more"
    assert_fails(spec, root, "masks.zip", "size")


def test_a_shorter_file_is_refused_when_there_is_no_more(
    spec: DatasetSpec, server: Server, root: Path
) -> None:
    server.files["images.zip"] = server.files["images.zip"][:-4]
    server.tells_length = False
    with pytest.raises(fetching.Interrupted):
        fetching.fetch(spec, root, progress=False)
    with pytest.raises(fetching.FetchError, match=r"images\.zip is not of the size"):
        fetching.fetch(spec, root, progress=False)
    assert not (root / ".partial").exists()


# --- answers that must not be believed ------------------------------------------------------------


def test_a_web_page_instead_of_a_file_costs_nothing_that_is_there(
    spec: DatasetSpec,
    server: Server,
    original: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching, "CHUNK", 1000)
    server.cut_after = spec.archives[0].bytes // 2
    with pytest.raises(fetching.Interrupted):
        fetching.fetch(spec, root, progress=False)
    server.cut_after = None
    before = trace(root)
    page = b"<html>Please log in</html>"
    server.answers["images.zip"] = lambda handler: handler.answer(
        200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": len(page)}, page
    )
    with pytest.raises(fetching.Interrupted, match=r"web page .*images\.zip.*fetch again\.$"):
        fetching.fetch(spec, root, progress=False)
    assert trace(root) == before
    server.answers.clear()
    server.asked.clear()
    assert trace(fetching.fetch(spec, root, progress=False)) == trace(original)
    assert server.asked[0][1] is not None  # it was continued


@pytest.mark.parametrize("length", [10, 10**9])
def test_another_length_is_refused_at_once(
    spec: DatasetSpec, server: Server, root: Path, length: int
) -> None:
    server.answers["images.zip"] = lambda handler: handler.answer(
        200, {"Content-Length": length}, server.files["images.zip"][:10]
    )
    assert_fails(spec, root, "images.zip", "size")


@pytest.mark.parametrize("exact", [True, False])
def test_what_does_not_begin_like_a_zip_is_refused_at_once(
    spec: DatasetSpec, server: Server, root: Path, exact: bool
) -> None:
    first, *others = spec.archives
    spec = dataclasses.replace(spec, archives=(dataclasses.replace(first, exact=exact), *others))
    text = b"Please log in.".ljust(first.bytes)
    server.answers["images.zip"] = lambda handler: handler.answer(
        200, {"Content-Type": "text/plain"}, text
    )
    assert_fails(spec, root, "images.zip is not a zip file")


def test_an_answer_without_end_is_cut_off(server: Server, bowl: Path, root: Path) -> None:
    spec = offer_bowl(server, bowl)
    sent = 0

    def endless(handler: _Handler) -> None:
        nonlocal sent
        handler.answer(200, {}, b"PK\x03\x04")
        with contextlib.suppress(OSError):
            while sent < 10**9:
                sent += handler.wfile.write(bytes(100_000))

    server.answers["stage1_train.zip"] = endless
    assert_fails(spec, root, "stage1_train.zip", "size")
    assert sent < 10**8  # what the network's buffers hold


@pytest.mark.parametrize("length", ["", "-5", "12 apples"])
def test_a_length_that_is_no_number_says_nothing(
    server: Server, bowl: Path, root: Path, length: str
) -> None:
    spec = offer_bowl(server, bowl)
    name = spec.archives[0].name
    server.answers[name] = lambda handler: handler.answer(
        200, {"Content-Length": length}, server.files[name]
    )
    assert trace(fetching.fetch(spec, root, progress=False)) == trace(bowl)


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ("bytes 7-{last}/{size}", "another byte"),
        ("bytes 0-{last}/{size}", "another byte"),
        ("{half}-{last}", "another byte"),
        ("", "another byte"),
        ("bytes {half}-{last}/77", "size"),
    ],
)
def test_another_part_than_was_asked_for_is_not_put_behind_what_is_there(
    spec: DatasetSpec, server: Server, original: Path, root: Path, part: str, fault: str
) -> None:
    content = server.files["images.zip"]
    half = len(content) // 2
    begun = root / ".partial" / "bbbc039" / "images.zip.part"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(content[:half])
    said = part.format(half=half, last=len(content) - 1, size=len(content))
    server.answers["images.zip"] = lambda handler: handler.answer(
        206, {"Content-Range": said}, content[:half]
    )
    with pytest.raises(fetching.FetchError, match=fault):
        fetching.fetch(spec, root, progress=False)
    server.answers.clear()
    assert trace(fetching.fetch(spec, root, progress=False)) == trace(original)


def test_a_part_that_was_not_asked_for_is_refused(
    spec: DatasetSpec, server: Server, root: Path
) -> None:
    content = server.files["images.zip"]
    said = f"bytes 4-{len(content) - 1}/{len(content)}"
    server.answers["images.zip"] = lambda handler: handler.answer(
        206, {"Content-Range": said}, content[4:]
    )
    assert_fails(spec, root, "images.zip", "another byte")


def test_a_smaller_part_than_was_asked_for_is_continued(
    spec: DatasetSpec, server: Server, original: Path, root: Path
) -> None:
    content = server.files["images.zip"]
    said = f"bytes 0-999/{len(content)}"
    server.answers["images.zip"] = lambda handler: handler.answer(
        206, {"Content-Range": said, "Content-Length": 1000}, content[:1000]
    )
    with pytest.raises(fetching.Interrupted, match=r"after 1,000 of"):
        fetching.fetch(spec, root, progress=False)
    server.answers.clear()
    assert trace(fetching.fetch(spec, root, progress=False)) == trace(original)
    assert server.asked[1] == ("images.zip", "bytes=1000-")


def test_bytes_packed_once_more_are_refused(spec: DatasetSpec, server: Server, root: Path) -> None:
    content = gzip.compress(server.files["images.zip"])
    server.answers["images.zip"] = lambda handler: handler.answer(
        200, {"Content-Encoding": "gzip", "Content-Length": len(content)}, content
    )
    assert_fails(spec, root, "images.zip", "packed as gzip")


@pytest.mark.parametrize("goal", ["file:///etc/hostname", "http://[::bad", "http://.a" + "b" * 99])
def test_a_way_that_leads_nowhere_is_not_taken(
    spec: DatasetSpec, server: Server, root: Path, goal: str
) -> None:
    server.answers["images.zip"] = lambda handler: handler.answer(302, {"Location": goal}, b"")
    assert_fails(spec, root, "images.zip", "fetch again")


def test_headers_without_end_are_one_sentence(
    spec: DatasetSpec, server: Server, root: Path
) -> None:
    server.answers["images.zip"] = lambda handler: handler.answer(
        200, {f"X-{number}": "x" for number in range(1000)}, b""
    )
    assert_fails(spec, root, "images.zip", "fetch again")


@pytest.mark.parametrize("first", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\nPK"])
def test_a_server_that_drips_does_not_hold_us_for_ever(
    spec: DatasetSpec, server: Server, root: Path, first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PATIENCE", 0.4)
    gone = threading.Event()

    def drip(handler: _Handler) -> None:
        handler.wfile.write(first)
        with contextlib.suppress(OSError):
            for _ in range(200):
                handler.wfile.write(b"x")
                if gone.wait(0.05):
                    return

    server.answers["images.zip"] = drip
    begin = time.monotonic()
    with pytest.raises(fetching.Interrupted, match=r"images\.zip .*fetch again"):
        fetching.fetch(spec, root, progress=False)
    assert time.monotonic() - begin < 5
    gone.set()


# --- several at once, and killed ones -------------------------------------------------------------


@pytest.fixture
def paused(server: Server) -> Iterator[threading.Event]:
    """The server does not answer for masks.zip before this is set."""
    go = threading.Event()
    content = server.files["masks.zip"]

    def wait(handler: _Handler) -> None:
        go.wait(60)
        with contextlib.suppress(OSError):
            handler.answer(200, {"Content-Length": len(content)}, content)

    server.answers["masks.zip"] = wait
    yield go
    go.set()


def wait_for_words(capsys: pytest.CaptureFixture[str], words: str) -> None:
    wait_for(lambda: words in capsys.readouterr().out, f"for {words!r} to be printed")


def test_the_second_of_two_waits_and_finds_what_the_first_has_fetched(
    spec: DatasetSpec,
    server: Server,
    paused: threading.Event,
    original: Path,
    root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetching.fetch, spec, root, progress=False)
        wait_for(lambda: len(server.asked) == 2, "for the first to ask for masks.zip")
        second = pool.submit(fetching.fetch, spec, root, progress=False)
        wait_for_words(capsys, "Another process is fetching into")
        paused.set()
        assert first.result() == second.result() == root / "bbbc039"
    assert [name for name, _ in server.asked] == ["images.zip", "masks.zip", "metadata.zip"]
    assert trace(root / "bbbc039") == trace(original)
    assert not (root / ".partial").exists()


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
def test_when_the_first_of_two_is_killed_the_second_goes_on(
    spec: DatasetSpec,
    server: Server,
    paused: threading.Event,
    original: Path,
    root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = (
        "import pickle, sys; from pathlib import Path; from nuctut.datasets import fetching\n"
        "spec = pickle.load(sys.stdin.buffer)\n"
        "fetching.fetch(spec, Path(sys.argv[1]), progress=False)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, root], stdin=subprocess.PIPE)
    killed.stdin.write(pickle.dumps(spec))
    killed.stdin.close()
    with ThreadPoolExecutor(1) as pool:
        wait_for(lambda: len(server.asked) == 2, "for the first to ask for masks.zip")
        second = pool.submit(fetching.fetch, spec, root, progress=False)
        wait_for_words(capsys, "Another process is fetching into")
        killed.kill()
        killed.wait()
        paused.set()
        assert second.result() == root / "bbbc039"
    names = [name for name, _ in server.asked]
    assert names == ["images.zip", "masks.zip", "masks.zip", "metadata.zip"]  # one is continued
    assert trace(root / "bbbc039") == trace(original)
    assert not (root / ".partial").exists()


def test_what_was_left_by_one_killed_at_the_very_end_goes(
    spec: DatasetSpec, server: Server, original: Path, root: Path
) -> None:
    shutil.copytree(original, root / "bbbc039")
    work = root / ".partial" / "bbbc039"
    work.mkdir(parents=True)
    (work / "images.zip").write_bytes(server.files["images.zip"])
    assert trace(fetching.fetch(spec, root, progress=False)) == trace(original)
    assert not (root / ".partial").exists() and server.asked == []


def test_an_interrupt_while_the_checksum_is_taken_keeps_the_download(
    spec: DatasetSpec, server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetching.fetch(spec, root, progress=False)
    server.asked.clear()
    fetching.fetch(spec, root, progress=False)
    assert [name for name, _ in server.asked] == ["masks.zip", "metadata.zip"]


# --- the disk ------------------------------------------------------------------------------------


def test_no_room_is_noticed_before_anything_is_downloaded(
    spec: DatasetSpec, server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(archive.bytes for archive in spec.archives) + spec.unpacked_bytes
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    assert_fails(spec, root, str(root), "NUCTUT_DATA")
    assert server.asked == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    assert fetching.fetch(spec, root, progress=False).is_dir()


def test_the_disk_fills_up_while_downloading(
    spec: DatasetSpec, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullFile(io.FileIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            raise OSError(errno.ENOSPC, "No space left on device")

    plain_open = Path.open

    def open_(path: Path, mode: str = "r", *rest: object) -> object:
        if path.name == "masks.zip.part":
            return FullFile(path, mode)
        return plain_open(path, mode, *rest)

    monkeypatch.setattr(Path, "open", open_)
    assert_fails(spec, root, "disk is full", "masks.zip")


def test_the_disk_fills_up_while_unpacking(
    spec: DatasetSpec, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unpacking, "_extract", full)
    assert_fails(spec, root, "disk is full", "images.zip")


def test_a_data_folder_that_cannot_be_written_to(
    spec: DatasetSpec, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(root))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert_fails(spec, root, str(root), "NUCTUT_DATA")


# --- archives that must not be trusted -----------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../outside.txt", "images/../../outside.txt", "/tmp/outside.txt", "..\\x", "C:/x.txt"]
)
def test_a_member_that_would_leave_the_folder(
    name: str, server: Server, original: Path, root: Path
) -> None:
    def change(part: str, members: Members) -> None:
        if part == "masks":
            members[name] = b"outside"

    assert_fails(offer(server, original, change), root, "masks.zip", repr(name))


def test_a_link_among_the_members(server: Server, original: Path, root: Path) -> None:
    spec = offer(server, original, lambda part, members: None)
    link = zipfile.ZipInfo("masks/link.png")
    link.create_system = 3  # Unix
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO(server.files["masks.zip"])
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(link, "../../other/file.txt")
    spec = repin(spec, server, "masks.zip", buffer.getvalue())
    assert_fails(spec, root, "masks/link.png", "is a link")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "has no name"),
        ("./", "has no name"),
        ("metadata/\x1b[2J.txt", "has no name"),
        ("metadata/test.txt", "has the name of another one"),
        ("Metadata/TEST.txt", "has the name of another one"),
        ("metadata", "is a file and a folder"),
        ("METADATA", "is a file and a folder"),
        ("metadata/test.txt/", "is a file and a folder"),
        ("metadata/test.txt/inside.txt", "is a file and a folder"),
        ("metadata/x.txt:stream", "Windows name"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_of_an_impossible_name(
    name: str, fault: str, spec: DatasetSpec, server: Server, root: Path
) -> None:
    buffer = io.BytesIO(server.files["metadata.zip"])
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"")
    spec = repin(spec, server, "metadata.zip", buffer.getvalue())
    assert_fails(spec, root, "metadata.zip", fault, "nothing of it was unpacked")


def test_a_name_that_differs_in_how_its_letters_are_written(
    spec: DatasetSpec, server: Server, root: Path
) -> None:
    buffer = io.BytesIO(server.files["metadata.zip"])
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("metadata/\u00e9.txt", b"")
        archive.writestr("metadata/e\u0301.txt", b"")
    spec = repin(spec, server, "metadata.zip", buffer.getvalue())
    assert_fails(spec, root, "metadata.zip", "has the name of another one")


def with_first_member(content: bytes, change: Callable[[bytearray, int, int], None]) -> bytes:
    """A zip file with something changed; `change` is told where the first member's headers are."""
    changed = bytearray(content)
    change(changed, content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02"))
    return bytes(changed)


def test_an_encrypted_member(spec: DatasetSpec, server: Server, root: Path) -> None:
    def encrypt(content: bytearray, local: int, central: int) -> None:
        content[local + 6] |= 1
        content[central + 8] |= 1

    content = with_first_member(server.files["images.zip"], encrypt)
    assert_fails(repin(spec, server, "images.zip", content), root, "images.zip", "is encrypted")


def test_a_stream_that_cannot_be_unpacked(spec: DatasetSpec, server: Server, root: Path) -> None:
    def damage(content: bytearray, local: int, central: int) -> None:
        name, extra = (int.from_bytes(content[local + at :][:2], "little") for at in (26, 28))
        content[local + 30 + name + extra] = 0b111  # a block of a kind that there is not

    content = with_first_member(server.files["images.zip"], damage)
    spec = repin(spec, server, "images.zip", content)
    assert_fails(spec, root, "images.zip is not a zip file that can be read")


def test_bytes_changed_anywhere_are_one_sentence(
    spec: DatasetSpec, server: Server, root: Path, tmp_path: Path
) -> None:
    """All that `zipfile` raises, found by changing each byte of the headers and some others."""
    content = server.files["metadata.zip"]
    path = tmp_path / "changed.zip"
    random = np.random.default_rng(0)
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= int(random.integers(1, 256))
        path.write_bytes(changed)
        try:
            unpacking.unpack(path, tmp_path / "unpacked" / str(at), 100_000)
        except fetching.FetchError as error:
            assert "changed.zip" in str(error) and "\n" not in str(error)
    assert {one.name for one in tmp_path.iterdir()} <= {"changed.zip", "unpacked", "data"}


def test_an_archive_that_unpacks_to_far_too_much(
    server: Server, original: Path, root: Path, tmp_path: Path
) -> None:
    def change(part: str, members: Members) -> None:
        if part == "masks":
            members["masks/zeros.png"] = bytes(20_000_000)

    spec = offer(server, original, change)
    assert_fails(spec, root, "masks.zip unpacks to more than")
    path = tmp_path / "masks.zip"
    path.write_bytes(server.files["masks.zip"])
    with pytest.raises(fetching.FetchError):
        unpacking.unpack(path, tmp_path / "unpacked", 100_000)
    files = [one for one in (tmp_path / "unpacked").rglob("*") if one.is_file()]
    assert sum(one.stat().st_size for one in files) <= 100_000


@pytest.mark.parametrize("name", ["SIMULATED.txt", "SIMULATED.txt/more.txt"])
def test_the_mark_of_simulated_data_in_an_archive(
    server: Server, original: Path, root: Path, name: str
) -> None:
    def change(part: str, members: Members) -> None:
        if part == "metadata":
            members[name] = b"These images are simulated."

    assert_fails(offer(server, original, change), root, "SIMULATED.txt", "not the real ones")


def test_a_file_that_is_no_zip(spec: DatasetSpec, server: Server, root: Path) -> None:
    spec = repin(spec, server, "masks.zip", b"<html>come back later</html>")
    assert_fails(spec, root, "masks.zip", "not a zip file")


def test_a_zip_with_a_damaged_member(spec: DatasetSpec, server: Server, root: Path) -> None:
    content = bytearray(server.files["images.zip"])
    middle = len(content) // 3
    content[middle : middle + 50] = bytes(50)
    assert_fails(repin(spec, server, "images.zip", bytes(content)), root, "images.zip")


def test_a_member_that_comes_twice(spec: DatasetSpec, server: Server, root: Path) -> None:
    buffer = io.BytesIO(server.files["metadata.zip"])
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("metadata/test.txt", "another.png")
    assert_fails(repin(spec, server, "metadata.zip", buffer.getvalue()), root, "metadata.zip")


def repin(spec: DatasetSpec, server: Server, name: str, content: bytes) -> DatasetSpec:
    """The same data set with another content for one archive, pinned as it is."""
    server.files[name] = content
    pinned = Archive(name, len(content), hashlib.sha256(content).hexdigest())
    archives = tuple(pinned if archive.name == name else archive for archive in spec.archives)
    return dataclasses.replace(spec, archives=archives)


# --- archives that do not hold what they should --------------------------------------------------


def test_a_missing_folder(server: Server, original: Path, root: Path) -> None:
    def change(part: str, members: Members) -> None:
        if part == "metadata":
            members.clear()

    assert_fails(offer(server, original, change), root, "bbbc039/metadata is missing")


def test_an_image_without_its_mask(server: Server, original: Path, root: Path) -> None:
    def change(part: str, members: Members) -> None:
        members.pop("masks/simulated_test_000.png", None)

    spec = offer(server, original, change)
    assert_fails(spec, root, "bbbc039/images/simulated_test_000.tif has no mask")


def test_a_truncated_tiff(server: Server, original: Path, root: Path) -> None:
    def change(part: str, members: Members) -> None:
        if part == "images":
            name = "images/simulated_validation_000.tif"
            members[name] = members[name][: len(members[name]) // 2]

    assert_fails(offer(server, original, change), root, "simulated_validation_000.tif", "cut off")


def test_a_mask_of_another_shape(server: Server, original: Path, root: Path) -> None:
    def change(part: str, members: Members) -> None:
        if part == "masks":
            members["masks/simulated_training_001.png"] = mask_of_shape(64, 90)

    spec = offer(server, original, change)
    assert_fails(spec, root, "simulated_training_001.png", "(64, 90)", "(64, 80)")


def mask_of_shape(height: int, width: int) -> bytes:
    return imageio.imwrite("<bytes>", np.zeros((height, width, 4), np.uint8), extension=".png")


def test_another_number_of_nuclei(server: Server, original: Path, root: Path) -> None:
    def change(part: str, members: Members) -> None:
        if part == "masks":
            members["masks/simulated_training_001.png"] = mask_of_shape(64, 80)

    assert_fails(offer(server, original, change), root, "the training split", "nuclei")


# --- something in the way ------------------------------------------------------------------------


def test_a_half_data_set_in_the_way_is_not_touched(spec: DatasetSpec, root: Path) -> None:
    (root / "bbbc039" / "images").mkdir(parents=True)
    assert_fails(spec, root, "bbbc039", "move the folder away")


def test_simulated_data_in_the_way_are_not_touched(spec: DatasetSpec, root: Path) -> None:
    simulate_bbbc039(root / "bbbc039", images=FEW, shape=(64, 80))
    assert_fails(spec, root, "simulated data")


def test_an_empty_folder_is_not_in_the_way(spec: DatasetSpec, root: Path) -> None:
    (root / "bbbc039").mkdir()
    assert (fetching.fetch(spec, root, progress=False) / "masks").is_dir()


@pytest.mark.parametrize("place", ["bbbc039", ".partial", ".partial/bbbc039"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_a_file_or_a_link_where_a_folder_is_to_be(
    spec: DatasetSpec, server: Server, root: Path, tmp_path: Path, place: str, kind: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    if kind == "link":
        elsewhere.mkdir()
    (root / place).parent.mkdir(exist_ok=True)
    (root / place).touch() if kind == "file" else (root / place).symlink_to(elsewhere)
    assert_fails(spec, root, f"{root / place} is in the way")
    assert server.asked == []
    assert kind != "link" or not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", ["images.zip", "images.zip.part", "unpacked", "other"])
@pytest.mark.parametrize("kind", ["link", "link to a folder", "second name", "pipe"])
def test_links_beside_the_downloads_are_not_followed(
    spec: DatasetSpec, original: Path, root: Path, tmp_path: Path, name: str, kind: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"PK")
    before = trace(elsewhere)
    planted = root / ".partial" / "bbbc039" / name
    planted.parent.mkdir(parents=True)
    if kind == "link":
        planted.symlink_to(elsewhere / "precious")
    elif kind == "link to a folder":
        planted.symlink_to(elsewhere)
    elif kind == "second name":
        os.link(elsewhere / "precious", planted)
    else:
        os.mkfifo(planted)
    assert trace(fetching.fetch(spec, root, progress=False)) == trace(original)
    assert trace(elsewhere) == before
    assert not (root / ".partial").exists()


def test_a_linked_data_set_is_there(
    spec: DatasetSpec, server: Server, original: Path, root: Path
) -> None:
    (root / "bbbc039").symlink_to(original)
    assert fetching.fetch(spec, root, progress=False) == root / "bbbc039"
    assert server.asked == []


# --- archives of another kind: a plain file, sizes not known to the byte -------------------------


@pytest.fixture(scope="module")
def bowl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked files of a tiny DSB2018."""
    folder = tmp_path_factory.mktemp("bowl") / "dsb2018"
    images = {"training": 3, "validation": 1, "test": 2}
    simulate_dsb2018(folder, images=images, shape=(64, 64))
    (folder / MARKER).unlink()
    return folder


def offer_bowl(server: Server, bowl: Path, names: str = "") -> DatasetSpec:
    """Puts DSB2018's files on the server; members' names in the zip files begin with `names`."""
    archives = []
    for archive in dsb2018.SPEC.archives:
        content = (bowl / archive.name).read_bytes() if not archive.folder else b""
        if archive.folder:
            stage = bowl / archive.folder
            files = [path for path in sorted(stage.rglob("*")) if path.is_file()]
            prefix = names and f"{archive.folder}/"
            content = packed(
                {
                    f"{prefix}{path.relative_to(stage).as_posix()}": path.read_bytes()
                    for path in files
                }
            )
        server.files[archive.name] = content
        digest = hashlib.sha256(content).hexdigest()
        size = len(content) if archive.exact else round(len(content), -2)
        archives.append(dataclasses.replace(archive, bytes=size, sha256=digest))
    return dataclasses.replace(
        dsb2018.SPEC,
        base_url=server.url,
        archives=tuple(archives),
        unpacked_bytes=100_000,
        counts=checking.check(dsb2018.SPEC, bowl).counts,
    )


@pytest.mark.parametrize("names", ["", "stage1_train/"])
def test_zip_files_with_and_without_a_folder_of_their_own(
    server: Server, bowl: Path, root: Path, names: str
) -> None:
    folder = fetching.fetch(offer_bowl(server, bowl, names), root, progress=False)
    assert trace(folder) == trace(bowl)
    assert not (root / ".partial").exists()


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_cut_connection_is_noticed_and_continued_without_an_exact_size(
    server: Server, bowl: Path, root: Path, knows_ranges: bool
) -> None:
    spec = offer_bowl(server, bowl)
    server.knows_ranges = knows_ranges
    server.cut_after = len(server.files["stage1_train.zip"]) - 10
    with pytest.raises(fetching.Interrupted, match=r"stage1_train\.zip.*fetch again to continue"):
        fetching.fetch(spec, root, progress=False)
    server.cut_after = None
    assert trace(fetching.fetch(spec, root, progress=False)) == trace(bowl)


def test_a_download_that_was_whole_when_the_process_died_is_taken(
    server: Server, bowl: Path, root: Path
) -> None:
    spec = offer_bowl(server, bowl)
    part = root / ".partial" / "dsb2018" / "stage1_train.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.files["stage1_train.zip"])
    assert trace(fetching.fetch(spec, root, progress=False)) == trace(bowl)
    assert server.asked[0] == (
        "stage1_train.zip",
        f"bytes={len(server.files['stage1_train.zip'])}-",
    )


def test_the_checksum_is_asked_for_whatever_is_known_of_the_size(
    server: Server, bowl: Path, root: Path
) -> None:
    spec = offer_bowl(server, bowl)
    server.files["stage1_test.zip"] += b"more"
    assert_fails(spec, root, "stage1_test.zip", spec.archives[1].sha256)


def test_a_plain_file_is_checked_too(server: Server, bowl: Path, root: Path) -> None:
    spec = offer_bowl(server, bowl)
    content = server.files["stage1_solution.csv"]
    server.files["stage1_solution.csv"] = content.replace(b"Public", b"public", 1)
    assert_fails(spec, root, "stage1_solution.csv", "sha256")


def test_a_bowl_that_lacks_masks_does_not_get_in(
    server: Server, bowl: Path, root: Path, tmp_path: Path
) -> None:
    spec = offer_bowl(server, bowl)
    lacking = tmp_path / "lacking"
    shutil.copytree(bowl, lacking)
    key = dsb2018.split_keys(lacking, "training")[0]
    shutil.rmtree(lacking / "stage1_train" / key / "masks")
    worse = dataclasses.replace(offer_bowl(server, lacking), counts=spec.counts)
    shutil.rmtree(lacking)
    assert_fails(worse, root, f"{key}.png has no labels", "dsb2018/stage1_train")
