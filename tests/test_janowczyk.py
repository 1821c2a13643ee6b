"""Janowczyk's partial labels: layout, split by patient, archive, and what is wrong named."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from skimage.io import imsave

from nuctut.datasets import checking, janowczyk
from nuctut.datasets.simulated.kinds import draw
from nuctut.datasets.simulated.tissue import TISSUE, simulate_janowczyk
from nuctut.datasets.unpacking import FetchError, unpack

FEW = {"training": 2, "validation": 1, "test": 1}
SHAPE = (128, 144)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return simulate_janowczyk(tmp_path / "janowczyk", images=FEW, shape=SHAPE, seed=1)


def empty_files(folder: Path, keys: list[str]) -> Path:
    (folder / janowczyk.TOP).mkdir()
    for key in keys:
        (folder / janowczyk.TOP / f"{key}_original.tif").touch()
    return folder


# --- what is there -------------------------------------------------------------------------------


def test_143_images_of_137_patients_give_121_5_and_15(tmp_path: Path) -> None:
    numbers = [*range(8863, 8863 + 137), *range(8900, 8906)]  # six patients have two images
    keys = [f"{number}_500_f{place:05d}" for place, number in enumerate(numbers)]
    folder = empty_files(tmp_path, keys)
    splits = {split: janowczyk.split_keys(folder, split) for split in janowczyk.COUNTS}
    assert {split: len(own) for split, own in splits.items()} == {
        "training": 121,
        "validation": 5,
        "test": 15,
    }
    patients = [set(map(janowczyk.patient, own)) for own in splits.values()]
    assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
    assert all(own == sorted(own) for own in splits.values())


def test_a_simulated_set_shows_few_of_its_nuclei(made: Path) -> None:
    report = checking.check(janowczyk.SPEC, made)
    assert report.ok and {split: count.images for split, count in report.counts.items()} == FEW
    _, labels = draw(TISSUE, SHAPE, np.random.default_rng([1, 0, 0]))
    sample = janowczyk.read(made, janowczyk.split_keys(made, "training")[0])
    assert dict(sample.tags) == {"patient": "training000"}
    assert 0 < sample.count <= 0.3 * labels.max()
    outlined = np.unique(labels[sample.labels > 0])
    assert 0 not in outlined  # nothing but nuclei, and those whole
    np.testing.assert_array_equal(np.isin(labels, outlined), sample.labels > 0)


def test_the_image_is_the_file_s(made: Path) -> None:
    (key,) = janowczyk.split_keys(made, "test")
    image = tifffile.imread(made / janowczyk.files(made, key)[0])
    np.testing.assert_array_equal(janowczyk.read(made, key).image, image)


# --- what is wrong -------------------------------------------------------------------------------


def test_what_cannot_be_is_named(made: Path) -> None:
    first, second = janowczyk.split_keys(made, "training")
    (only,) = janowczyk.split_keys(made, "validation")
    place = made / janowczyk.TOP
    imsave(place / f"{first}_mask.png", np.zeros(SHAPE, np.uint8), check_contrast=False)
    (place / f"{second}_mask.png").unlink()
    (place / f"{only}_original.tif").unlink()
    problems = " ".join(checking.check(janowczyk.SPEC, made).problems)
    assert f"{first}_mask.png marks no nucleus" in problems
    assert f"{second}_original.tif has no mask" in problems
    assert f"{only}_mask.png has no image" in problems


def test_a_name_that_is_no_key_is_named(made: Path) -> None:
    (made / janowczyk.TOP / "other_original.tif").touch()
    with pytest.raises(ValueError, match=r"other_original\.tif should read <patient>_500_f"):
        janowczyk.split_keys(made, "test")
    assert "other_original.tif" in checking.check(janowczyk.SPEC, made).problems[0]


def test_no_folder_and_no_image_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nuclei is missing"):
        janowczyk.split_keys(tmp_path, "test")
    with pytest.raises(ValueError, match="holds no images"):
        janowczyk.split_keys(empty_files(tmp_path, []), "test")


# --- its archive ---------------------------------------------------------------------------------


def tgz(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """An archive of files; a member whose content is a text is a link to it."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def test_a_tgz_file_is_unpacked_into_its_folder(tmp_path: Path) -> None:
    path = tgz(tmp_path / "a.tgz", ("./1_500_f1_mask.png", b"12"), ("sub/b", b"345"))
    assert unpack(path, tmp_path / "out", 5, "nuclei") == 5
    assert (tmp_path / "out" / "nuclei" / "1_500_f1_mask.png").read_bytes() == b"12"
    assert (tmp_path / "out" / "nuclei" / "sub" / "b").read_bytes() == b"345"


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ([("a", b"1"), ("../b", b"2")], "leads out of its folder"),
        ([("a", b"1"), ("/b", b"2")], "has an absolute"),
        ([("a", b"1"), ("b", "/etc/passwd")], "is a link"),
        ([("a", b"1"), ("A", b"2")], "has the name of another one"),
    ],
)
def test_a_tgz_file_with_an_unsafe_member_is_refused(
    tmp_path: Path, members: list, fault: str
) -> None:
    path = tgz(tmp_path / "a.tgz", *members)
    with pytest.raises(FetchError, match=f"a.tgz: the member .* {fault}"):
        unpack(path, tmp_path / "out", 9)
    assert not (tmp_path / "out").exists()


def test_a_tgz_file_that_is_none_or_too_large_is_named(tmp_path: Path) -> None:
    path = tgz(tmp_path / "a.tgz", ("a", bytes(1000)))
    with pytest.raises(FetchError, match="unpacks to more than 999 bytes"):
        unpack(path, tmp_path / "out", 999)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FetchError, match=r"a\.tgz is not a tgz file that can be read"):
        unpack(path, tmp_path / "more", 9999)
