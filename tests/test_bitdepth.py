"""BitDepth_NucSeg: two annotations, a split by tissue and objective, and a stand-in's source."""

import dataclasses
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
from skimage.segmentation import relabel_sequential

from nuctut import datasets
from nuctut.datasets import bitdepth, checking
from nuctut.datasets.fetching import FetchError
from nuctut.datasets.simulated.bitdepth import OBJECTIVES, TISSUES, simulate_bitdepth
from nuctut.datasets.simulated.canvas import MARKER

NAME = "bitdepth_nucseg"
SHAPE = (64, 80)
FEW = {"training": 3, "validation": 1, "test": 2}
IMAGE = Path("20x", "images_16bit", "bone_20x_1.tif")
CURATED, FIRST = (Path("20x", name, IMAGE.name) for name in ("label masks modify", "label masks"))

needs_real_data = pytest.mark.skipif(
    datasets.status(NAME).state != "real",
    reason=f"BitDepth_NucSeg is not on disk: `nuctut data fetch {NAME}` says how to place it",
)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A tiny data set without the marker: three images of bone at 20×, two of heart at 40×."""
    folder = simulate_bitdepth(tmp_path / NAME, images=FEW, shape=SHAPE, seed=1)
    (folder / MARKER).unlink()
    return folder


@pytest.fixture
def as_if_real(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same where `load` looks for the real set, and counts that expect just it."""
    spec = dataclasses.replace(bitdepth.SPEC, counts=checking.check(bitdepth.SPEC, made).counts)
    monkeypatch.setitem(datasets.REGISTRY, NAME, spec)
    monkeypatch.setenv("NUCTUT_DATA", str(made.parent))
    return made


def faults(folder: Path) -> str:
    return "\n".join(checking.check(bitdepth.SPEC, folder).problems)


# --- which images --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "training", "validation", "test"),
    [
        ([2], [2], [], []),
        ([1, 2], [1], [], [2]),
        ([2, 3, 5], [2], [3], [5]),
        ([9, 10, 11, 2], [2, 9], [10], [11]),  # by number, and not by name
    ],
)
def test_the_last_is_for_testing_and_the_last_but_one_for_validation(
    tmp_path: Path, numbers: list, training: list, validation: list, test: list
) -> None:
    for number in numbers:
        path = tmp_path / "63x oil" / "images_16bit" / f"liver_63x_oil_{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for split, wanted in (("training", training), ("validation", validation), ("test", test)):
        keys = [f"liver_63x_oil_{number}" for number in wanted]
        assert bitdepth.split_keys(tmp_path, split) == sorted(keys)


def test_images_of_one_field_are_for_training(tmp_path: Path) -> None:
    keys = [f"muscle_40x_air_{number}" for number in (1, 2, 3, 4)]
    for key in keys:
        path = tmp_path / "40x air" / "images_16bit" / f"{key}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert bitdepth.split_keys(tmp_path, "training") == keys[1:3]
    assert bitdepth.split_keys(tmp_path, "validation") == keys[:1]
    assert bitdepth.split_keys(tmp_path, "test") == keys[3:]


@pytest.mark.parametrize("count", [2, 3])
def test_where_all_images_are_of_known_fields_none_is_held_out(count: int) -> None:
    keys = [key for field in bitdepth.FIELDS for key in field][:count]
    assert bitdepth._divided(keys) == dict.fromkeys(keys, "training")


def test_splits_hold_the_numbers_asked_for(made: Path) -> None:
    report = checking.check(bitdepth.SPEC, made)
    assert report.ok, report.problems
    assert {split: count.images for split, count in report.counts.items()} == FEW


# --- one image -----------------------------------------------------------------------------------


def test_the_curated_annotation_gives_the_labels_and_the_first_can_be_had(made: Path) -> None:
    curated, first = bitdepth.read(made, "bone_20x_1"), bitdepth.read_first(made, "bone_20x_1")
    for sample, path in ((curated, CURATED), (first, FIRST)):
        ids = tifffile.imread(made / path)
        np.testing.assert_array_equal(sample.labels, relabel_sequential(ids)[0])
    assert first.count > curated.count
    np.testing.assert_array_equal(first.image, curated.image)
    assert first.tags == curated.tags
    assert curated.tags["tissue"] == "bone" and curated.tags["objective"] == "20x"


def test_an_id_in_two_parts_is_one_nucleus(made: Path) -> None:
    ids = np.zeros(SHAPE, np.uint16)
    ids[2:6, 2:6], ids[20:24, 2:6], ids[40:44, 2:6] = 7, 500, 7
    tifffile.imwrite(made / CURATED, ids)
    labels = bitdepth.read(made, "bone_20x_1").labels
    np.testing.assert_array_equal(labels, np.select([ids == 7, ids == 500], [1, 2]))


def test_images_of_one_field_share_its_name(made: Path) -> None:
    for kind in ("images_16bit", "label masks", "label masks modify"):
        path = made / "63x oil" / kind / "muscle_63x_oil_5.tif"
        path.write_bytes((made / "20x" / kind / "bone_20x_1.tif").read_bytes())
    tags = bitdepth.read(made, "muscle_63x_oil_5").tags
    assert tags["field"] == "muscle_40x_air_2"
    assert (tags["objective"], tags["magnification"]) == ("63x oil", "63x")
    assert "field" not in bitdepth.read(made, "bone_20x_1").tags


# --- what it passes as ---------------------------------------------------------------------------


def test_real_files_are_a_stand_in(as_if_real: Path) -> None:
    assert datasets.status(NAME).state == "real"
    for source in ("auto", "real"):
        samples = datasets.load(NAME, "test", source)
        assert samples.source == "stand-in"
        assert samples.describe() == f"{NAME} test (stand-in, 2 images)"


def test_simulated_files_are_simulated(as_if_real: Path) -> None:
    (as_if_real / MARKER).touch()
    assert datasets.status(NAME).state == "simulated"
    assert datasets.load(NAME, "test", "simulated").source == "simulated"


def test_another_annotation_has_the_same_keys_and_another_fingerprint(as_if_real: Path) -> None:
    own = datasets.load(NAME, "training")
    first = datasets.load(NAME, "training", annotation="first")
    assert first.keys == own.keys and first.source == "stand-in"
    assert first.fingerprint != own.fingerprint
    assert first[0].count > own[0].count


@pytest.mark.parametrize(("name", "others"), [(NAME, "first"), ("bbbc039", "none")])
def test_an_annotation_that_is_not_there_is_named(name: str, others: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} has no annotation 'silver' .* but {others}\."):
        datasets.load(name, "training", annotation="silver")


def test_fetching_says_how_to_place_it(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"by hand: .*Clone https://github\.com/masih4/BitDepth"):
        datasets.fetch(NAME, tmp_path)
    assert not list(tmp_path.iterdir())


def test_fetching_what_is_there_finds_it(as_if_real: Path) -> None:
    assert datasets.fetch(NAME, as_if_real.parent) == as_if_real


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["brain_20x_1", "bone_10x_1", "bone_20x_a", "bone_20x_01"])
def test_an_image_with_another_name_is_named(made: Path, name: str) -> None:
    (made / IMAGE).with_name(f"{name}.tif").write_bytes((made / IMAGE).read_bytes())
    with pytest.raises(ValueError, match=rf"{name}\.tif is no image of bitdepth_nucseg"):
        bitdepth.split_keys(made, "training")


def test_an_image_in_the_folder_of_another_objective_is_named(made: Path) -> None:
    (made / IMAGE).with_name("bone_63x_oil_1.tif").write_bytes((made / IMAGE).read_bytes())
    with pytest.raises(ValueError, match=r"bone_63x_oil_1\.tif lies among images of another"):
        bitdepth.split_keys(made, "training")


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no images"):
        bitdepth.split_keys(tmp_path, "training")


@pytest.mark.parametrize("path", [CURATED, FIRST])
def test_labels_that_are_missing_damaged_or_of_another_size_are_named(
    made: Path, path: Path
) -> None:
    tifffile.imwrite(made / path, np.zeros((64, 81), np.uint16))
    assert f"{path} has shape (64, 81)" in faults(made)
    (made / path).write_bytes(b"II*")
    assert f"{path} cannot be read" in faults(made)
    (made / path).unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} is missing"):
        checking.list_split(bitdepth.SPEC, made, "training")


def test_labels_without_an_image_are_named(made: Path) -> None:
    (made / IMAGE).unlink()
    told = faults(made)
    assert f"{CURATED} has no image" in told and f"{FIRST} has no image" in told


@pytest.mark.parametrize("pixels", [np.zeros(SHAPE, np.uint8), np.zeros((*SHAPE, 3), np.uint16)])
def test_an_image_of_another_kind_is_named(made: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(made / IMAGE, pixels)
    with pytest.raises(ValueError, match=r"bone_20x_1\.tif should hold one uint16 plane"):
        bitdepth.read(made, "bone_20x_1")


# --- simulation ----------------------------------------------------------------------------------


def test_simulated_nuclei_grow_with_the_objective(tmp_path: Path) -> None:
    sizes = {"training": 20, "validation": 1, "test": 20}
    folder = simulate_bitdepth(tmp_path / "set", images=sizes, shape=(96, 96), seed=0)
    keys = bitdepth.split_keys(folder, "test")
    assert Counter(key.split("_")[0] for key in keys) == dict.fromkeys(TISSUES, 4)
    for tissue in TISSUES:
        areas = {}
        for key in keys:
            if key.startswith(tissue):
                sample = bitdepth.read(folder, key)
                areas[sample.tags["magnification"]] = (sample.labels > 0).sum() / sample.count
        assert all(a < b for a, b in pairwise(areas[x] for x in ("20x", "40x", "63x"))), areas


def test_the_same_arguments_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    again = simulate_bitdepth(tmp_path / "again", images=FEW, shape=SHAPE, seed=1)
    for path in (IMAGE, CURATED, FIRST):
        assert (again / path).read_bytes() == (made / path).read_bytes()


@pytest.mark.parametrize(("validation", "test"), [(2, 1), (1, 4), (1, 21)])
def test_splits_that_the_rule_cannot_give_are_refused(
    tmp_path: Path, validation: int, test: int
) -> None:
    images = {"training": 30 if test > 20 else 3, "validation": validation, "test": test}
    with pytest.raises(ValueError, match="the split is by tissue and objective"):
        simulate_bitdepth(tmp_path / "set", images=images, shape=SHAPE)
    assert not list(tmp_path.iterdir())


# --- the real data -------------------------------------------------------------------------------


@needs_real_data
def test_the_real_set_has_3394_curated_ids_and_3632_first_ones() -> None:
    report = datasets.check(NAME)
    assert report.ok, report.problems
    assert sum(count.nuclei for count in report.counts.values()) == 3_394
    folder = datasets.status(NAME).folder
    first = {split: bitdepth.split_keys(folder, split) for split in bitdepth.COUNTS}
    keys = [key for split in first.values() for key in split]
    assert len(keys) == 70
    shape = (512, 512)
    ids = [
        bitdepth.read_labels(folder / bitdepth._file(bitdepth.FIRST, key), shape).max()
        for key in keys
    ]
    assert sum(ids) == 3_632


@needs_real_data
def test_every_tissue_and_objective_is_in_every_part_but_at_20x() -> None:
    folder = datasets.status(NAME).folder
    kinds = {
        split: {bitdepth._parts(key)[:2] for key in bitdepth.split_keys(folder, split)}
        for split in bitdepth.COUNTS
    }
    every = {(tissue, objective) for tissue in TISSUES for objective in OBJECTIVES}
    low = {kind for kind in every if kind[1] == "20x"}
    assert kinds["training"] == every
    assert kinds["test"] == every - {("bone", "20x")}
    assert kinds["validation"] == every - low
    held_out = {*bitdepth.split_keys(folder, "validation"), *bitdepth.split_keys(folder, "test")}
    assert not held_out & bitdepth.FIELD_OF.keys()
