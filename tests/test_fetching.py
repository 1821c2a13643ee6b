"""Fetching against a server on this machine: every failure is one sentence and leaves no trace."""

import dataclasses
import errno
import hashlib
import io
import shutil
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from nuctut import datasets
from nuctut.datasets import bbbc039, checking, dsb2018, fetching
from nuctut.datasets.simulated.bbbc039 import simulate_bbbc039
from nuctut.datasets.simulated.canvas import MARKER
from nuctut.datasets.simulated.dsb2018 import simulate_dsb2018
from nuctut.datasets.spec import Archive, DatasetSpec

FEW = {"training": 2, "validation": 1, "test": 1}
Members = dict[str, bytes]


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut_after` closes the connection after so many bytes of an answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
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
        patch.setattr(fetching, "_extract", interrupt)
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

    monkeypatch.setattr(fetching, "_extract", full)
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
