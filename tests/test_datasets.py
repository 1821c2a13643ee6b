"""Loading data sets: what is read, what a set says of itself, and what its errors name."""

import dataclasses
import hashlib
import os
import pickle
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from skimage.io import imsave

from nuctut import datasets
from nuctut.datasets import bbbc039, checking
from nuctut.datasets.simulated.bbbc039 import simulate_bbbc039
from nuctut.datasets.simulated.canvas import MARKER
from nuctut.datasets.spec import SmallSet, SplitCount

FEW = {"training": 2, "validation": 1, "test": 1}
SHAPE = (64, 80)

needs_real_data = pytest.mark.skipif(
    datasets.status("bbbc039").state != "real",
    reason="BBBC039 is not on disk: run `nuctut data fetch bbbc039` or set NUCTUT_DATA",
)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder and an empty cache; returns the data folder."""
    monkeypatch.setenv("NUCTUT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NUCTUT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes simulated sets tiny, for tests that are not about their size."""
    spec = dataclasses.replace(datasets.REGISTRY["bbbc039"], small=SmallSet(FEW, SHAPE, 1))
    monkeypatch.setitem(datasets.REGISTRY, "bbbc039", spec)


@pytest.fixture
def as_if_real(places: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny data set that passes as real: no marker, and counts that expect just it."""
    folder = simulate_bbbc039(places / "bbbc039", images=FEW, shape=SHAPE, seed=1)
    (folder / MARKER).unlink()
    counts = checking.check(bbbc039.SPEC, folder).counts
    spec = dataclasses.replace(bbbc039.SPEC, counts=counts)
    monkeypatch.setitem(datasets.REGISTRY, "bbbc039", spec)
    return folder


def write_mask(path: Path, red: np.ndarray) -> None:
    rgba = np.zeros((*red.shape, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = red, 255
    imsave(path, rgba, check_contrast=False)


# --- masks ---------------------------------------------------------------------------------------


def test_instances_are_4_connected_components_of_one_red_value() -> None:
    red = np.array(
        [
            [1, 1, 0, 1, 0],
            [0, 2, 2, 0, 1],  # the 2s touch the first 1s; the last two 1s meet at a corner only
            [0, 0, 2, 0, 0],
            [3, 0, 0, 0, 2],
        ],
        np.uint8,
    )
    rgba = np.dstack([red, red * 0, red * 0, np.full_like(red, 255)])
    expected = np.array(
        [
            [1, 1, 0, 2, 0],
            [0, 3, 3, 0, 4],
            [0, 0, 3, 0, 0],
            [5, 0, 0, 0, 6],
        ]
    )
    labels = bbbc039.instances_from_mask(rgba)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, expected)


def test_a_mask_without_nuclei_gives_no_labels() -> None:
    assert not bbbc039.instances_from_mask(np.zeros((5, 6, 4), np.uint8)).any()


@pytest.mark.parametrize(
    "mask", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 4), int)]
)
def test_arrays_that_are_no_colour_coded_mask_are_refused(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 4\)"):
        bbbc039.instances_from_mask(mask)


def test_a_mask_with_other_colours_is_refused() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[1, 1, 1] = 7
    with pytest.raises(ValueError, match="red channel alone"):
        bbbc039.instances_from_mask(rgba)


# --- the real data -------------------------------------------------------------------------------


@needs_real_data
@pytest.mark.parametrize(
    ("split", "images", "nuclei", "empty"),
    [("training", 100, 12_001, 2), ("validation", 50, 5_896, 1), ("test", 50, 5_720, 0)],
)
def test_real_counts(split: str, images: int, nuclei: int, empty: int) -> None:
    samples = datasets.load("bbbc039", split, source="real")
    counts = [sample.count for sample in samples]
    assert (len(counts), sum(counts), counts.count(0)) == (images, nuclei, empty)
    assert samples.source == "real"


@needs_real_data
def test_real_images_are_as_the_data_card_says() -> None:
    sample = datasets.load("bbbc039", "test", source="auto")[0]
    assert sample.image.shape == (520, 696) and sample.image.dtype == np.uint16
    assert sample.key.startswith("IXMtest_A09_s1_") and "." not in sample.key
    assert dict(sample.tags) == {"well": "A09", "site": "1"}


# --- load ----------------------------------------------------------------------------------------


def test_files_are_loaded_in_one_order_whatever_that_of_the_list(as_if_real: Path) -> None:
    before = datasets.load("bbbc039", "training")
    listing = as_if_real / "metadata" / "training.txt"
    listing.write_text("\r\n".join(listing.read_text().splitlines()[::-1]))
    samples = datasets.load("bbbc039", "training")
    assert samples.source == "real"
    assert samples.keys == before.keys == ("simulated_training_000", "simulated_training_001")
    assert samples.fingerprint == before.fingerprint
    expected = tifffile.imread(as_if_real / "images" / "simulated_training_001.tif")
    np.testing.assert_array_equal(samples[1].image, expected)


def test_files_are_read_when_asked_for(as_if_real: Path) -> None:
    samples = datasets.load("bbbc039", "training")
    broken = as_if_real / "images" / f"{samples.keys[1]}.tif"
    broken.write_bytes(b"")
    assert samples[0].key == samples.keys[0]
    with pytest.raises(ValueError, match=broken.name):
        samples[1]


def test_the_fingerprint_is_the_sha256_of_the_split_s_files(as_if_real: Path) -> None:
    samples = datasets.load("bbbc039", "training")
    digest = hashlib.sha256()
    for key in samples.keys:
        digest.update((as_if_real / "images" / f"{key}.tif").read_bytes())
        digest.update((as_if_real / "masks" / f"{key}.png").read_bytes())
    assert samples.fingerprint == digest.hexdigest()


def test_the_fingerprint_follows_the_labels(as_if_real: Path) -> None:
    before = datasets.load("bbbc039", "test").fingerprint
    key = datasets.load("bbbc039", "test").keys[0]
    write_mask(as_if_real / "masks" / f"{key}.png", np.ones(SHAPE, np.uint8))
    assert datasets.load("bbbc039", "test").fingerprint != before


def test_a_set_travels_to_another_process(as_if_real: Path) -> None:
    samples = datasets.load("bbbc039", "test")
    copy = pickle.loads(pickle.dumps(samples))
    np.testing.assert_array_equal(copy[0].labels, samples[0].labels)


@pytest.mark.usefixtures("small", "no_checkout")
def test_auto_falls_back_to_simulated_and_says_so(places: Path) -> None:
    assert datasets.status("bbbc039").state == "missing"
    samples = datasets.load("bbbc039", "training", source="auto")
    assert samples.source == "simulated"
    assert len(samples) == FEW["training"] and samples[0].image.shape == SHAPE
    assert not list(places.iterdir())  # the data folder is for real data


@pytest.mark.usefixtures("small")
def test_simulated_is_simulated_though_real_data_are_there(as_if_real: Path) -> None:
    samples = datasets.load("bbbc039", "test", source="simulated")
    assert samples.source == "simulated"
    assert samples.keys[0] == "simulated_test_000"
    assert not samples.fingerprint == datasets.load("bbbc039", "test", "real").fingerprint


@pytest.mark.usefixtures("small")
def test_simulated_data_in_the_data_folder_never_pass_as_real(places: Path) -> None:
    datasets.simulate("bbbc039", places / "bbbc039", seed=5)
    assert datasets.status("bbbc039").state == "simulated"
    with pytest.raises(FileNotFoundError, match="simulated data, not the real"):
        datasets.load("bbbc039", "test", source="real")
    assert datasets.load("bbbc039", "test", source="auto").source == "excerpt"
    assert datasets.load("bbbc039", "test", source="simulated").source == "simulated"
    assert not datasets.simulated_root().exists()  # those that lie there were taken


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("bbbc040", "test", "auto"), "bbbc039"),
        (("bbbc039", "train", "auto"), "training, validation, test"),
        (("bbbc039", "test", "fake"), "auto, real, excerpt, simulated"),
    ],
)
def test_unknown_words_are_answered_with_what_exists(arguments: tuple, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        datasets.load(*arguments)


@pytest.mark.usefixtures("places")
def test_missing_real_data_are_answered_with_the_command_that_gets_them() -> None:
    with pytest.raises(FileNotFoundError, match="nuctut data fetch bbbc039"):
        datasets.load("bbbc039", "test", source="real")


@pytest.mark.parametrize("source", ["auto", "real"])
def test_an_incomplete_data_set_is_an_error_and_not_replaced(as_if_real: Path, source: str) -> None:
    mask = next((as_if_real / "masks").iterdir())
    mask.unlink()
    assert datasets.status("bbbc039").state == "incomplete"
    with pytest.raises(FileNotFoundError, match=f"{mask.name} is missing"):
        datasets.load("bbbc039", "test", source=source)


def test_a_split_list_that_is_too_short_is_no_whole_data_set(as_if_real: Path) -> None:
    listing = as_if_real / "metadata" / "training.txt"
    listing.write_text(listing.read_text().splitlines()[0])
    with pytest.raises(FileNotFoundError, match="training split lists 1 images, not 2"):
        datasets.load("bbbc039", "test", source="auto")


# --- damaged files -------------------------------------------------------------------------------


def changes(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """A file cut off, with bits turned, a piece zeroed or doubled; half of it at the beginning."""
    random = np.random.default_rng(seed)
    for number in range(count):
        reach = min(len(content), 64) if number % 2 else len(content)
        at, length = int(random.integers(reach)), int(random.integers(1, 40))
        changed = bytearray(content)
        match number % 5:
            case 0:
                del changed[at:]
            case 1 | 2:
                changed[at] ^= 1 << int(random.integers(8))
            case 3:
                changed[at : at + length] = bytes(length)
            case 4:
                changed[at:at] = changed[at : at + length]
        yield bytes(changed)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("images/{key}.tif", 120),
        ("packed", 120),
        ("masks/{key}.png", 80),
        ("metadata/test.txt", 40),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_changed_file_is_read_or_named(as_if_real: Path, name: str, count: int) -> None:
    (key,) = bbbc039.split_keys(as_if_real, "test")
    path = as_if_real / name.format(key=key)
    if name == "packed":
        path = as_if_real / "images" / f"{key}.tif"
        tifffile.imwrite(path, tifffile.imread(path), compression="deflate", tile=(16, 16))
    refused = 0
    for changed in changes(path.read_bytes(), count, seed=1):
        path.write_bytes(changed)
        try:
            for listed in bbbc039.split_keys(as_if_real, "test"):
                bbbc039.read(as_if_real, listed)
        except (ValueError, FileNotFoundError) as error:
            assert str(as_if_real) in str(error) and "\n" not in str(error)
            assert isinstance(error, FileNotFoundError) or path.name in str(error)
            refused += 1
    assert refused > count / 10


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (50_000, 50_000)])
def test_an_absurd_size_is_refused_before_it_is_decoded(
    as_if_real: Path, size: tuple[int, int]
) -> None:
    (key,) = bbbc039.split_keys(as_if_real, "test")
    mask = as_if_real / "masks" / f"{key}.png"
    header = struct.pack(">4sIIBBBBB", b"IHDR", *size, 8, 6, 0, 0, 0)
    content = mask.read_bytes()
    header += struct.pack(">I", zlib.crc32(header))
    mask.write_bytes(content[:12] + header + content[33:])
    with pytest.raises(ValueError, match=rf"{key}\.png cannot be read.*it declares {size[0]:,} × "):
        bbbc039.read(as_if_real, key)
    image = as_if_real / "images" / f"{key}.tif"
    with tifffile.TiffFile(image) as file:
        offsets = [file.pages[0].tags[name].valueoffset for name in ("ImageLength", "ImageWidth")]
    content = bytearray(image.read_bytes())
    for offset, side in zip(offsets, size, strict=True):
        kind = "<I" if content[offset - 6] == 4 else "<H"
        content[offset : offset + struct.calcsize(kind)] = struct.pack(kind, side % 2**16 or side)
    image.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{key}\.tif cannot be read"):
        bbbc039.read(as_if_real, key)


@pytest.mark.parametrize("part", ["images/{key}.tif", "masks/{key}.png"])
def test_what_is_no_file_is_named_and_not_waited_for(as_if_real: Path, part: str) -> None:
    (key,) = bbbc039.split_keys(as_if_real, "test")
    path = as_if_real / part.format(key=key)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{path.name}: expected a file"):
        bbbc039.read(as_if_real, key)


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ("../images/a.png", "no plain file name"),
        ("/tmp/a.png", "no plain file name"),
        ("C:a.png", "no plain file name"),
        ("..", "no plain file name"),
        ("a\x00b.png", "no plain file name"),
        ("a.png\nb.png\na.png", "'a.png' twice"),
        ("\n \n", "lists no images"),
    ],
)
def test_names_that_cannot_be_are_refused_with_their_list(
    as_if_real: Path, names: str, fault: str
) -> None:
    (as_if_real / "metadata" / "test.txt").write_text(names)
    with pytest.raises(ValueError, match=rf"test\.txt .*{fault}"):
        bbbc039.split_keys(as_if_real, "test")
    assert fault in datasets.status("bbbc039").problem
    assert any(fault in problem for problem in datasets.check("bbbc039").problems)


def test_an_image_in_two_splits_is_no_test(as_if_real: Path) -> None:
    (key,) = bbbc039.split_keys(as_if_real, "test")
    (as_if_real / "metadata" / "validation.txt").write_text(f"{key}.png")
    fault = f"{key} is in the validation split and in the test split"
    assert fault in datasets.status("bbbc039").problem
    assert any(fault in problem for problem in datasets.check("bbbc039").problems)


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling"])
def test_anything_by_the_marker_s_name_marks_simulated_data(as_if_real: Path, kind: str) -> None:
    marker = as_if_real / MARKER
    {
        "folder": marker.mkdir,
        "pipe": lambda: os.mkfifo(marker),
        "dangling": lambda: marker.symlink_to("nowhere"),
    }[kind]()
    assert datasets.status("bbbc039").state == "simulated"


# --- places --------------------------------------------------------------------------------------


def test_the_data_folder_is_found_from_the_chapters_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "book").mkdir(parents=True)
    for marker in ("pyproject.toml", "_config.yml"):
        (checkout / marker).touch()
    monkeypatch.chdir(checkout / "book")
    monkeypatch.delenv("NUCTUT_DATA", raising=False)
    assert datasets.data_root() == (checkout / "data").resolve()
    monkeypatch.setenv("NUCTUT_DATA", "../elsewhere")
    assert datasets.data_root() == (tmp_path / "elsewhere").resolve()
    (checkout / "elsewhere").mkdir()
    assert datasets.data_root() == (checkout / "elsewhere").resolve()


@pytest.mark.usefixtures("places")
def test_a_simulated_set_is_made_once_per_seed_and_size(tmp_path: Path) -> None:
    first = datasets.simulate("bbbc039", images=FEW, shape=SHAPE)
    stamp = (first / MARKER).stat().st_mtime_ns
    assert first.is_relative_to(tmp_path / "cache" / "simulated")
    assert datasets.simulate("bbbc039", images=FEW, shape=SHAPE) == first
    assert (first / MARKER).stat().st_mtime_ns == stamp
    assert datasets.simulate("bbbc039", images=FEW, shape=SHAPE, seed=1) != first
    assert datasets.simulate("bbbc039", images=FEW, shape=(64, 96)) != first
    assert datasets.simulate("bbbc039", images=FEW | {"test": 2}, shape=SHAPE) != first


# --- check ---------------------------------------------------------------------------------------


def test_check_counts_what_is_there(as_if_real: Path) -> None:
    report = datasets.check("bbbc039")
    assert report.ok and report.folder == as_if_real
    assert report.counts["training"].images == 2
    assert any(line.startswith("training: 2 images, ") for line in report.summary)


def test_check_of_a_missing_data_set_says_how_to_get_it(places: Path) -> None:
    report = datasets.check("bbbc039")
    assert not report.ok and "nuctut data fetch bbbc039" in report.summary[-1]


@pytest.mark.usefixtures("small")
def test_check_expects_no_certain_number_of_simulated_images(places: Path) -> None:
    datasets.simulate("bbbc039", places / "bbbc039")
    report = datasets.check("bbbc039")
    assert report.ok and "(simulated)" in report.summary[0]


def test_check_finds_every_kind_of_damage_and_names_the_file(as_if_real: Path) -> None:
    images, masks = as_if_real / "images", as_if_real / "masks"
    first, second = bbbc039.split_keys(as_if_real, "training")
    (only,) = bbbc039.split_keys(as_if_real, "validation")
    truncated = images / f"{first}.tif"
    truncated.write_bytes(truncated.read_bytes()[:1000])
    write_mask(masks / f"{second}.png", np.zeros((64, 81), np.uint8))
    (masks / f"{only}.png").unlink()
    (images / "stray.tif").write_bytes((images / f"{second}.tif").read_bytes())
    problems = datasets.check("bbbc039").problems
    for name, fault in [
        (f"{first}.tif", "damaged or cut off"),
        (f"{second}.png", r"shape"),
        (f"{only}.tif", "has no mask"),
        (f"{only}.png", "is missing"),
        ("stray.tif", "has no mask"),
    ]:
        assert any(name in problem and fault in problem for problem in problems), (name, problems)


def test_check_compares_with_the_counts_of_the_real_data(
    as_if_real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = dict(datasets.REGISTRY["bbbc039"].counts)
    counts["test"] = SplitCount(1, counts["test"].nuclei + 1)
    spec = dataclasses.replace(datasets.REGISTRY["bbbc039"], counts=counts)
    monkeypatch.setitem(datasets.REGISTRY, "bbbc039", spec)
    (problem,) = datasets.check("bbbc039").problems
    assert "the test split" in problem and f"{counts['test'].nuclei:,}" in problem


def test_an_image_of_another_kind_is_refused(as_if_real: Path) -> None:
    (key,) = bbbc039.split_keys(as_if_real, "test")
    tifffile.imwrite(as_if_real / "images" / f"{key}.tif", np.zeros(SHAPE, np.uint8))
    with pytest.raises(ValueError, match=rf"{key}\.tif should hold one uint16 plane, not uint8"):
        bbbc039.read(as_if_real, key)
