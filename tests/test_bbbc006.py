"""BBBC006: stacks joined by well and site, parts of it, and what is wrong with them named."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from skimage.io import imread, imsave

from nuctut import datasets
from nuctut.datasets import bbbc006, fetching
from nuctut.datasets.simulated.canvas import MARKER
from nuctut.datasets.spec import Archive

FEW = {"training": 2, "validation": 1, "test": 2}
SHAPE = (64, 80)
LABELS = "BBBC006_v1_labels"

needs_blurred_fields = pytest.mark.skipif(
    datasets.status("bbbc006").state != "real"
    or not (datasets.data_root() / "bbbc006" / "BBBC006_v1_images_z_00").is_dir(),
    reason="plane 0 is not on disk: run `nuctut data fetch bbbc006 --planes 0` or set NUCTUT_DATA",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "bbbc006"
    return bbbc006.simulate(folder, images=FEW, shape=SHAPE, seed=3)


@pytest.fixture
def part(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small part of the plate that passes as real: it has no marker."""
    monkeypatch.setenv("NUCTUT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NUCTUT_CACHE", str(tmp_path / "cache"))
    for path in made.rglob("*.*"):
        if path.name != MARKER:
            copy = tmp_path / "data" / "bbbc006" / path.relative_to(made)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path / "data" / "bbbc006"


def image_of(folder: Path, plane: int, field: str) -> Path:
    (path,) = folder.glob(f"BBBC006_v1_images_z_{plane:02d}/*_{field}_w1*.tif")
    return path


def labels_of(folder: Path, field: str) -> Path:
    return folder / LABELS / f"mcf-z-stacks-03212011_{field}.png"


# --- layout and splits ---------------------------------------------------------------------------


def test_the_layout_on_disk_is_the_publisher_s(made: Path) -> None:
    planes = sorted(path.name for path in made.glob("BBBC006_v1_images_z_*"))
    assert planes == [f"BBBC006_v1_images_z_{plane:02d}" for plane in range(0, 34, 4)]
    fields = sorted(path.stem[-6:] for path in (made / LABELS).iterdir())
    assert fields == ["a01_s1", "a01_s2", "a02_s1", "a02_s2", "a10_s1"]
    uuids = {image_of(made, plane, "a01_s1").name.partition("_w1")[2] for plane in (0, 16, 32)}
    assert len(uuids) == 3  # another one in every plane
    image, ids = tifffile.imread(image_of(made, 16, "a01_s1")), imread(labels_of(made, "a01_s1"))
    assert (image.shape, image.dtype) == (SHAPE, np.uint16) and image.max() <= 4095
    assert ids.shape == SHAPE and set(np.unique(ids)) == set(range(ids.max() + 1))


def test_one_seed_repeats_to_the_byte(made: Path, tmp_path: Path) -> None:
    again = bbbc006.simulate(tmp_path / "again", images=FEW, shape=SHAPE, seed=3)
    for path in made.rglob("*.*"):
        assert (again / path.relative_to(made)).read_bytes() == path.read_bytes()


def test_every_field_of_the_plate_is_in_one_split_by_its_site() -> None:
    plate = [f"{row}{n:02d}_s{site}" for row in bbbc006.ROWS for n in range(1, 25) for site in "12"]
    splits = {field: bbbc006.part_of(field) for field in plate}
    assert Counter(splits.values()) == bbbc006.FIELDS
    assert {splits[field] for field in plate if field.endswith("s2")} == {"test"}
    held_out = [field for field in plate if splits[field] == "validation"]
    assert held_out[:4] == ["a10_s1", "a20_s1", "b06_s1", "b16_s1"]


def test_the_counts_are_all_planes_of_all_fields() -> None:
    counts = {split: count.images for split, count in bbbc006.SPEC.counts.items()}
    assert sum(counts.values()) == 34 * 768
    assert counts["test"] == 13 * 384 and counts["test-blurred"] == 21 * 384


def test_a_split_holds_the_planes_of_its_kind(made: Path) -> None:
    keys = bbbc006.split_keys(made, "validation")
    assert keys == ["z12_a10_s1", "z16_a10_s1", "z20_a10_s1"]
    blurred = bbbc006.split_keys(made, "test-blurred")
    assert [key[:3] for key in blurred[::2]] == ["z00", "z04", "z08", "z24", "z28", "z32"]
    assert {key[4:] for key in blurred} == {"a01_s2", "a02_s2"}


# --- one image -----------------------------------------------------------------------------------


def test_images_and_labels_are_joined_by_well_and_site(part: Path) -> None:
    samples = {one.key: one for one in datasets.load("bbbc006", "test-blurred")}
    far, near = samples["z00_a02_s2"], samples["z24_a02_s2"]
    np.testing.assert_array_equal(far.image, tifffile.imread(image_of(part, 0, "a02_s2")))
    np.testing.assert_array_equal(far.labels, imread(labels_of(part, "a02_s2")))
    np.testing.assert_array_equal(far.labels, near.labels)
    assert dict(far.tags) == {
        "field": "a02_s2",
        "well": "a02",
        "site": "2",
        "plane": "0",
        "z": "-32",
        "labels": "automatic",
    }
    assert near.tags["z"] == "16"


def test_planes_are_the_more_blurred_the_further_from_focus(made: Path) -> None:
    images = [tifffile.imread(image_of(made, plane, "a01_s2")) for plane in (16, 12, 8, 0)]
    contrast = [np.percentile(image, 99) - np.median(image) for image in images]
    assert contrast == sorted(contrast, reverse=True)


@pytest.mark.parametrize("key", ["z00_a01_s3", "z00_q01_s1", "a01_s1", "z0_a01_s1", "../x"])
def test_a_key_of_another_kind_is_refused(made: Path, key: str) -> None:
    with pytest.raises(ValueError, match="like z16_a01_s1"):
        bbbc006.read(made, key)


def test_ids_with_gaps_are_numbered_anew(part: Path) -> None:
    ids = np.zeros(SHAPE, np.uint16)
    ids[3:9, 3:9], ids[20:30, 20:30] = 300, 7
    imsave(labels_of(part, "a01_s2"), ids, check_contrast=False)
    labels = bbbc006.read(part, "z16_a01_s2").labels
    assert labels[5, 5] == 2 and labels[25, 25] == 1 and labels.max() == 2


# --- a part of it --------------------------------------------------------------------------------


def test_a_part_is_real_and_says_how_much_it_is(part: Path) -> None:
    assert datasets.status("bbbc006").state == "real"
    samples = datasets.load("bbbc006", "training", "real")
    assert samples.describe() == "bbbc006 training (real, part: 6 of 4498 images)"
    assert datasets.check("bbbc006").ok
    for path in (part / "BBBC006_v1_images_z_16").iterdir():
        path.unlink()
    (part / "BBBC006_v1_images_z_16").rmdir()
    assert len(datasets.load("bbbc006", "training", "real")) == 4


def test_of_a_split_that_is_not_there_one_is_told_how_to_get_it(part: Path) -> None:
    for path in part.glob("BBBC006_v1_images_z_*/*_s2_*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no image of the test split: get it with `nuctut"):
        datasets.load("bbbc006", "test", "auto")


def test_images_without_labels_are_in_no_split_but_can_be_looked_at(part: Path) -> None:
    labels_of(part, "a01_s2").unlink()
    assert {key[4:] for key in bbbc006.split_keys(part, "test")} == {"a02_s2"}
    found = dict(bbbc006.unlabelled(part))
    assert list(found) == [f"z{plane:02d}_a01_s2" for plane in range(0, 34, 4)]
    assert found["z00_a01_s2"].shape == SHAPE
    assert any("fields without labels" in note for note in datasets.check("bbbc006").notes)


def test_labels_without_an_image_are_told_and_no_fault(part: Path) -> None:
    for path in part.glob("BBBC006_v1_images_z_*/*_a02_s2_*"):
        path.unlink()
    report = datasets.check("bbbc006")
    assert report.ok
    assert "labels of fields without an image: a02_s2" in report.summary[-1]


def test_labels_alone_are_no_data_set(part: Path) -> None:
    for path in part.glob("BBBC006_v1_images_z_*/*"):
        path.unlink()
    assert "holds no image with labels" in datasets.status("bbbc006").problem


@pytest.mark.parametrize("name", ["q01_s1", "a25_s1", "a00_s2", "a01_s3"])
def test_labels_of_a_field_that_cannot_be_are_named(part: Path, name: str) -> None:
    labels_of(part, "a01_s1").rename(labels_of(part, name))
    (problem,) = datasets.check("bbbc006").problems
    assert f"{name}.png is of no field of the plate" in problem


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("plane", [4, 16, 28])
def test_a_hole_in_a_stack_is_named(part: Path, plane: int) -> None:
    image_of(part, plane, "a02_s2").unlink()
    fault = rf"images_z_{plane:02d} has no image of field a02_s2, though planes before and after"
    with pytest.raises(ValueError, match=fault):
        bbbc006.split_keys(part, "test")
    assert any("a02_s2" in problem for problem in datasets.check("bbbc006").problems)
    with pytest.raises(FileNotFoundError, match=fault):
        datasets.load("bbbc006", "test")


@pytest.mark.parametrize("plane", [0, 32])
def test_a_stack_may_begin_later_or_end_earlier(part: Path, plane: int) -> None:
    image_of(part, plane, "a02_s2").unlink()
    assert datasets.check("bbbc006").ok
    with pytest.raises(FileNotFoundError, match=rf"z_{plane:02d} has no image of field a02_s2"):
        bbbc006.read(part, f"z{plane:02d}_a02_s2")


def test_two_images_of_one_well_site_and_plane_are_named(part: Path) -> None:
    first = image_of(part, 8, "a01_s1")
    second = first.with_name("mcf-z-stacks-03212011_a01_s1_w1ffffffff-0000.tif")
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="two images of field a01_s1") as caught:
        bbbc006.split_keys(part, "training")
    assert first.name in str(caught.value) and second.name in str(caught.value)


def test_the_other_channel_is_no_second_image(part: Path) -> None:
    first = image_of(part, 8, "a01_s1")
    first.with_name(first.name.replace("_w1", "_w2")).write_bytes(first.read_bytes())
    assert datasets.check("bbbc006").ok


def test_an_image_squeezed_into_8_bits_is_named(part: Path) -> None:
    path = image_of(part, 16, "a01_s1")
    tifffile.imwrite(path, (tifffile.imread(path) / 16).astype(np.uint8))
    with pytest.raises(ValueError, match="holds 8 bits a pixel, but the camera gave 12") as caught:
        bbbc006.read(part, "z16_a01_s1")
    assert path.name in str(caught.value)


def test_an_image_of_another_kind_is_named(part: Path) -> None:
    path = image_of(part, 16, "a01_s1")
    tifffile.imwrite(path, np.zeros((3, *SHAPE), np.uint16), photometric="minisblack")
    with pytest.raises(ValueError, match="should hold one uint16 plane"):
        bbbc006.read(part, "z16_a01_s1")


@pytest.mark.parametrize(
    ("ids", "fault"),
    [
        (np.zeros((64, 81), np.uint8), r"has shape \(64, 81\), but its image"),
        (np.zeros((64, 80, 3), np.uint8), "one plane of ids"),
    ],
)
def test_labels_of_another_shape_are_named(part: Path, ids: np.ndarray, fault: str) -> None:
    imsave(labels_of(part, "a01_s1"), ids, check_contrast=False)
    with pytest.raises(ValueError, match=rf"_a01_s1\.png.*{fault}"):
        bbbc006.read(part, "z16_a01_s1")


def test_more_fields_than_the_plate_has_cannot_be_simulated(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="validation split has 38 fields, not 39"):
        bbbc006.simulate(tmp_path / "x", images=FEW | {"validation": 39}, shape=SHAPE, seed=0)


# --- fetching ------------------------------------------------------------------------------------


@pytest.fixture
def publisher(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A publisher of the small set; lists the archives that were asked for."""
    offered, asked = {}, []
    for place in sorted(path for path in made.iterdir() if path.is_dir()):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for path in sorted(place.iterdir()):
                archive.writestr(f"{place.name}/{path.name}", path.read_bytes())
        offered[f"{place.name}.zip"] = packed.getvalue()

    def receive(url: str, archive: Archive, partial: Path, on_bytes: object) -> None:
        asked.append(archive.name)
        partial.write_bytes(offered[archive.name])

    content = offered[f"{LABELS}.zip"]
    sha256 = hashlib.sha256(content).hexdigest()
    pinned = Archive(f"{LABELS}.zip", len(content), sha256, folder=LABELS)
    monkeypatch.setattr(fetching, "_receive", receive)
    monkeypatch.setattr(bbbc006, "_LABELS_ARCHIVE", pinned)
    monkeypatch.setattr(bbbc006, "_PLANE_BYTES", 1_000_000)
    monkeypatch.setattr(bbbc006, "SHA256", {})
    monkeypatch.setattr(bbbc006, "FIELDS", FEW)
    monkeypatch.setenv("NUCTUT_DATA", str(tmp_path / "data"))
    return asked


def test_planes_are_fetched_one_after_another_and_put_beside_those_there(publisher) -> None:
    folder = datasets.fetch("bbbc006", planes=[16], progress=False)
    assert publisher == [f"{LABELS}.zip", "BBBC006_v1_images_z_16.zip"]
    assert sorted(path.name for path in folder.iterdir()) == ["BBBC006_v1_images_z_16", LABELS]
    assert datasets.fetch("bbbc006", planes=[0, 16], progress=False) == folder
    assert publisher[2:] == ["BBBC006_v1_images_z_00.zip"]
    assert len(datasets.load("bbbc006", "test-blurred", "real")) == 2
    assert not (folder.parent / ".partial").exists()


def test_a_plane_that_lacks_a_field_is_not_put_there(publisher, monkeypatch) -> None:
    folder = datasets.fetch("bbbc006", planes=[16], progress=False)
    monkeypatch.setattr(bbbc006, "FIELDS", FEW | {"test": 3})
    with pytest.raises(fetching.FetchError, match="expected are 3"):
        datasets.fetch("bbbc006", planes=[4], progress=False)
    assert sorted(path.name for path in folder.iterdir()) == ["BBBC006_v1_images_z_16", LABELS]


def test_simulated_data_in_the_way_stay_as_they_are(publisher, made: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bbbc006").symlink_to(made)
    with pytest.raises(fetching.FetchError, match="simulated data: move it away"):
        datasets.fetch("bbbc006", planes=[1], progress=False)


@pytest.mark.parametrize("planes", [[34], [-1], [0, 99], []])
def test_planes_that_there_are_not_cannot_be_fetched(planes: list[int]) -> None:
    with pytest.raises(ValueError, match="has the planes 0 to 33"):
        datasets.fetch("bbbc006", planes=planes)


def test_of_other_data_sets_no_planes_can_be_chosen() -> None:
    with pytest.raises(ValueError, match="bbbc039 comes whole"):
        datasets.fetch("bbbc039", planes=[0])


def test_the_archives_are_34_planes_and_the_labels() -> None:
    archives = bbbc006.SPEC.archives
    assert len(archives) == 35 and archives[0].bytes == 10_099_211 and archives[0].exact
    pinned = {one.name for one in archives if one.sha256}
    assert pinned == {f"{LABELS}.zip"} | {
        f"BBBC006_v1_images_z_{plane}.zip" for plane in ("00", "15", "16")
    }
    assert [one.archives[1].name[-6:-4] for one in bbbc006.pieces([3, 0, 3])] == ["03", "00"]


# --- the real data -------------------------------------------------------------------------------


@needs_blurred_fields
def test_the_fields_that_are_both_blurred_and_labelled() -> None:
    found = {one.key: one for one in datasets.load("bbbc006", "test-blurred", "real")}
    expected = {"z00_i05_s2": 116, "z00_i07_s2": 29, "z00_i16_s2": 163}
    assert {key: found[key].count for key in expected} == expected
    sample = found["z00_i07_s2"]
    assert sample.image.shape == (520, 696) and sample.image.dtype == np.uint16
    assert sample.tags["z"] == "-32" and sample.tags["labels"] == "automatic"
