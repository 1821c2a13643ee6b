"""TNBC: its layout, its folds by patient, its masks; what is wrong with a file is named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from skimage.io import imread, imsave

from nuctut import datasets
from nuctut.datasets import checking, stained, tnbc
from nuctut.datasets.simulated.tissue import simulate_tnbc

FEW = {"training": 2, "validation": 1, "test": 3}
SHAPE = (64, 80)

needs_real_data = pytest.mark.skipif(
    datasets.status("tnbc").state != "real",
    reason="TNBC is not on disk: run `nuctut data fetch tnbc` or set NUCTUT_DATA",
)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return simulate_tnbc(tmp_path / "tnbc", images=FEW, shape=SHAPE, seed=1)


def mask_of(folder: Path, key: str) -> Path:
    return folder / tnbc.files(folder, key)[1]


# --- what is there -------------------------------------------------------------------------------


@needs_real_data
def test_real_counts() -> None:
    samples = datasets.load("tnbc", "test", "real")
    counts = Counter(sample.tags["patient"] for sample in samples)
    assert list(counts.values()) == [7, 3, 5, 8, 4, 3, 3, 4, 6, 4, 3]
    assert [int(patient) for patient in counts] == list(range(1, 12))
    assert sum(sample.count for sample in samples) == tnbc.COUNTS["test"].nuclei == 4_056
    assert {sample.image.shape for sample in samples} == {(512, 512, 3)}
    for split in ("training", "validation"):
        keys = datasets.load("tnbc", split, "real").keys
        own = [sample for sample in samples if sample.key in keys]
        assert len(own) == len(keys) == tnbc.COUNTS[split].images
        assert sum(sample.count for sample in own) == tnbc.COUNTS[split].nuclei


def test_patients_are_dealt_out_in_turn() -> None:
    patients = {number: tnbc.fold(f"{number:02d}_1") for number in range(1, 12)}
    assert list(patients.values()) == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3]


def test_training_and_validation_are_the_whole_by_patient(made: Path) -> None:
    keys = {split: tnbc.split_keys(made, split) for split in FEW}
    assert {split: len(own) for split, own in keys.items()} == FEW
    assert sorted(keys["training"] + keys["validation"]) == sorted(keys["test"])
    assert not {key[:2] for key in keys["training"]} & {key[:2] for key in keys["validation"]}
    report = checking.check(tnbc.SPEC, made)
    assert report.ok and report.counts["test"].images == 3


def test_an_image_and_its_nuclei(made: Path) -> None:
    (key,) = tnbc.split_keys(made, "validation")
    sample = tnbc.read(made, key)
    assert dict(sample.tags) == {"patient": "04", "fold": "4"}
    assert sample.image.shape == (*SHAPE, 3) and sample.image.dtype == np.uint8
    np.testing.assert_array_equal(sample.labels > 0, imread(mask_of(made, key)) == 255)


def test_images_are_ordered_by_number(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        (tmp_path / tnbc.TOP / "Slide_03").mkdir(parents=True, exist_ok=True)
        (tmp_path / tnbc.TOP / "Slide_03" / f"03_{number}.png").touch()
    assert tnbc.split_keys(tmp_path, "test") == ["03_1", "03_2", "03_10"]


def test_pieces_that_meet_at_a_corner_are_two(tmp_path: Path) -> None:
    mask = np.array([[255, 0, 0], [0, 255, 255], [0, 0, 255]], np.uint8)
    imsave(tmp_path / "mask.png", mask, check_contrast=False)
    labels = stained.nuclei_of_mask(tmp_path / "mask.png")
    np.testing.assert_array_equal(labels, [[1, 0, 0], [0, 2, 2], [0, 0, 2]])
    assert labels.dtype == np.int32


def test_a_simulation_needs_a_test_split_that_is_the_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ask for 3 test images, not 1"):
        simulate_tnbc(tmp_path / "set", images=FEW | {"test": 1}, shape=SHAPE, seed=0)
    assert not list(tmp_path.iterdir())


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "fault"),
    [
        (np.zeros(SHAPE, np.uint8), "marks no nucleus"),
        (np.full(SHAPE, 7, np.uint8), "should hold one plane of 0 and 255"),
        (np.full((*SHAPE, 3), 255, np.uint8), "should hold one plane of 0 and 255"),
        (np.full((64, 81), 255, np.uint8), r"has shape \(64, 81\), but its image has \(64, 80\)"),
    ],
)
def test_a_mask_that_cannot_be_is_named(made: Path, mask: np.ndarray, fault: str) -> None:
    imsave(mask_of(made, "01_1"), mask, check_contrast=False)
    with pytest.raises(ValueError, match=rf"01_1\.png {fault}"):
        tnbc.read(made, "01_1")


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (np.full((*SHAPE, 4), 200, np.uint8), "is transparent in places"),
        (np.full(SHAPE, 200, np.uint8), "should hold colours"),
    ],
)
def test_an_image_of_another_kind_is_named(made: Path, image: np.ndarray, fault: str) -> None:
    imsave(made / tnbc.files(made, "01_1")[0], image, check_contrast=False)
    with pytest.raises(ValueError, match=rf"01_1\.png {fault}"):
        tnbc.read(made, "01_1")


def test_an_opaque_alpha_channel_is_left_out(made: Path) -> None:
    path = made / tnbc.files(made, "01_1")[0]
    colours = imread(path)
    imsave(path, np.dstack([colours, np.full(SHAPE, 255, np.uint8)]), check_contrast=False)
    np.testing.assert_array_equal(tnbc.read(made, "01_1").image, colours)


def test_what_has_no_partner_is_named(made: Path) -> None:
    mask_of(made, "01_1").unlink()
    (made / tnbc.files(made, "04_1")[0]).unlink()
    problems = " ".join(checking.check(tnbc.SPEC, made).problems)
    assert "Slide_01/01_1.png has no mask GT_01/01_1.png" in problems
    assert "GT_04/04_1.png has no image Slide_04/04_1.png" in problems


@pytest.mark.parametrize("name", ["Slide_01/02_1.png", "Slide_01/a.png", "Slide_1/1_1.png"])
def test_a_name_that_is_no_key_is_named(made: Path, name: str) -> None:
    (made / tnbc.TOP / name).parent.mkdir(exist_ok=True)
    (made / tnbc.TOP / name).touch()
    with pytest.raises(ValueError, match=f"{name} should read"):
        tnbc.split_keys(made, "test")
    assert any(name in problem for problem in checking.check(tnbc.SPEC, made).problems)


def test_a_folder_without_slides_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tnbc.TOP} is missing"):
        tnbc.split_keys(tmp_path, "test")
    (tmp_path / tnbc.TOP).mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        tnbc.split_keys(tmp_path, "test")
