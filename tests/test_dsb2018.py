"""DSB2018: how its files are read, split and cached, and what is said of bad ones."""

import csv
import dataclasses
import hashlib
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from skimage.io import imread
from test_datasets import changes

from nuctut import datasets
from nuctut.datasets import cache, checking, dsb2018
from nuctut.datasets.simulated.canvas import MARKER
from nuctut.datasets.simulated.dsb2018 import SMALL_IMAGES, encode_runs, simulate_dsb2018
from nuctut.datasets.simulated.kinds import KINDS
from nuctut.datasets.spec import SplitCount

FEW = {"training": 3, "validation": 1, "test": 2}
TINY = (64, 64)
HEADER = "ImageId,EncodedPixels,Height,Width,Usage"

needs_real_data = pytest.mark.skipif(
    datasets.status("dsb2018").state != "real",
    reason="DSB2018 is not on disk: run `nuctut data fetch dsb2018` or set NUCTUT_DATA",
)

DRAWN = np.array(
    [
        [0, 0, 2, 2, 0],
        [1, 0, 2, 0, 0],
        [1, 1, 0, 0, 3],
        [1, 1, 0, 3, 3],
    ]
)
# the first pixel of what is drawn as 2 comes before that of 1
NUMBERED = np.array(
    [
        [0, 0, 1, 1, 0],
        [2, 0, 1, 0, 0],
        [2, 2, 0, 0, 3],
        [2, 2, 0, 3, 3],
    ]
)


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(pixels))
    return path


def write_image(folder: Path, stage: str, key: str, pixels: np.ndarray | None = None) -> Path:
    pixels = np.zeros((*DRAWN.shape, 3), np.uint8) if pixels is None else pixels
    return write_png(folder / stage / key / "images" / f"{key}.png", pixels)


def write_masks(folder: Path, stage: str, key: str, labels: np.ndarray = DRAWN) -> list[Path]:
    """One mask per id, named so that the names' order is not that of the pixels."""
    return [
        write_png(
            folder / stage / key / "masks" / f"mask{number}.png",
            np.where(labels == number, 255, 0).astype(np.uint8),
        )
        for number in range(1, labels.max() + 1)
    ]


def write_solution(folder: Path, *lines: str) -> Path:
    path = folder / "stage1_solution.csv"
    path.write_text("\n".join([HEADER, *lines, ""]))
    return path


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """One image "a" in stage1_train, one image "b" with run lengths in stage1_test."""
    folder = tmp_path / "dsb2018"
    write_image(folder, "stage1_train", "a")
    write_masks(folder, "stage1_train", "a")
    write_image(folder, "stage1_test", "b")
    write_solution(folder, *(f"b,{encode_runs(DRAWN == n)},4,5,Public" for n in (1, 2, 3)))
    return folder


# --- run lengths ---------------------------------------------------------------------------------


def test_runs_go_down_the_columns_and_count_from_one() -> None:
    # columns of a 3 × 4 image: pixels 1-3, 4-6, 7-9, 10-12
    pixels = dsb2018.decode_runs("2 3 9 1", (3, 4))
    drawn = np.zeros((3, 4), int)
    drawn.ravel()[pixels] = 1
    expected = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0]])
    np.testing.assert_array_equal(drawn, expected)
    assert (np.diff(pixels) > 0).all()


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_what_is_encoded_is_decoded(mask: np.ndarray) -> None:
    if mask.any():
        pixels = dsb2018.decode_runs(encode_runs(mask), mask.shape)
        np.testing.assert_array_equal(pixels, np.flatnonzero(mask))


@pytest.mark.parametrize(
    ("runs", "fault"),
    [
        ("", "empty nucleus"),
        ("1 2 3", "pairs of start and length"),
        ("1 two", "whole numbers"),
        ("1.5 2", "whole numbers"),
        ("0 3", "count pixels from 1"),
        ("3 0", "no run is shorter"),
        ("5 2 1 2", "ascending"),
        ("1 3 3 2", "run into each other"),
        ("11 3", "past the image's end"),
    ],
)
def test_run_lengths_that_cannot_be_are_refused_with_their_line(
    made: Path, runs: str, fault: str
) -> None:
    write_image(made, "stage1_test", "b", np.zeros((3, 4, 3), np.uint8))
    write_solution(made, "b,1 1,3,4,Public", f"b,{runs},3,4,Public")
    with pytest.raises(ValueError, match=rf"stage1_solution\.csv, line 3 \(b\).*{fault}"):
        dsb2018.read(made, "b")


# --- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_form_of_image_becomes_three_channels(made: Path, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, channels), np.uint8)
    if channels in (2, 4):
        pixels[..., -1] = 255
    write_image(made, "stage1_train", "a", pixels.squeeze())
    image = dsb2018.read(made, "a").image
    assert image.dtype == np.uint8
    expected = np.repeat(pixels[..., :1], 3, axis=2) if channels < 3 else pixels[..., :3]
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("channels", [2, 4])
def test_an_image_that_is_transparent_somewhere_is_refused(made: Path, channels: int) -> None:
    pixels = np.full((4, 5, channels), 255, np.uint8)
    pixels[1, 2, -1] = 254
    path = write_image(made, "stage1_train", "a", pixels)
    with pytest.raises(ValueError, match=rf"{path.name} is transparent"):
        dsb2018.read(made, "a")


def test_an_image_of_sixteen_bits_is_refused(made: Path) -> None:
    write_image(made, "stage1_train", "a", np.zeros((4, 5), np.uint16))
    with pytest.raises(ValueError, match=r"a\.png should hold 8-bit .* not uint16"):
        dsb2018.read(made, "a")


@pytest.mark.parametrize(
    ("ground", "nuclei", "expected"),
    [
        ((10, 10, 10), (200, 200, 200), "fluorescence"),
        ((10, 10, 40), (40, 60, 250), "fluorescence"),  # dark though coloured
        ((230, 200, 225), (90, 60, 140), "stained"),
        ((225, 225, 225), (80, 80, 80), "bright-field"),
        ((225, 225, 228), (80, 80, 80), "bright-field"),  # a lamp that is not quite white
    ],
)
def test_the_modality_is_told_from_the_ground_and_its_colour(
    ground: tuple, nuclei: tuple, expected: str
) -> None:
    image = np.full((10, 10, 3), ground, np.uint8)
    image[2:5, 2:6] = nuclei
    assert dsb2018.modality(image) == expected


@pytest.mark.parametrize(
    ("ground", "expected"),
    [
        ((20, 20, 20), "fluorescence 10×12"),
        ((225, 225, 225), "bright-field 10×12"),
        ((200, 199, 207), "stained 10×12 on white"),
        ((174, 154, 202), "stained 10×12 on purple"),
        ((200, 119, 191), "stained 10×12 on pink"),
    ],
)
def test_the_sort_is_told_from_modality_size_and_ground(ground: tuple, expected: str) -> None:
    image = np.full((10, 12, 3), ground, np.uint8)
    image[2:5, 2:6] = 90 if expected.startswith("bright") else (110, 40, 150)
    assert dsb2018.sort(image) == expected


# --- labels --------------------------------------------------------------------------------------


def test_labels_are_numbered_by_their_first_pixels_whatever_the_names(made: Path) -> None:
    sample = dsb2018.read(made, "a")
    np.testing.assert_array_equal(sample.labels, NUMBERED)
    assert sample.labels.dtype == np.int32 and dict(sample.tags) == {
        "modality": "fluorescence",
        "group": "fluorescence 4×5",
        "sort": "fluorescence 4×5",
    }
    masks = made / "stage1_train" / "a" / "masks"
    (masks / "mask1.png").rename(masks / "zz.png")
    np.testing.assert_array_equal(dsb2018.read(made, "a").labels, NUMBERED)


def test_run_lengths_and_masks_give_the_same_labels(made: Path) -> None:
    np.testing.assert_array_equal(dsb2018.read(made, "b").labels, NUMBERED)
    write_masks(made, "stage1_test", "b")
    assert dsb2018.files(made, "b")[1:] == ["stage1_solution.csv"]
    (made / "stage1_solution.csv").unlink()
    assert len(dsb2018.files(made, "b")) == 4
    np.testing.assert_array_equal(dsb2018.read(made, "b").labels, NUMBERED)


def test_the_csv_is_read_again_when_it_changes(made: Path) -> None:
    assert dsb2018.read(made, "b").count == 3
    write_solution(made, "b,1 1,4,5,Public")
    assert dsb2018.read(made, "b").count == 1


def test_overlapping_masks_are_both_named(made: Path) -> None:
    first, _, third = write_masks(made, "stage1_train", "a")
    mask = imread(third)
    mask[1, 0] = 255
    write_png(third, mask)
    with pytest.raises(ValueError, match=r"overlaps .* in 1 pixels") as caught:
        dsb2018.read(made, "a")
    assert str(first) in str(caught.value) and str(third) in str(caught.value)


def test_overlapping_run_lengths_are_both_named(made: Path) -> None:
    write_solution(made, "b,1 4,4,5,Public", "b,9 2,4,5,Public", "b,4 3,4,5,Public")
    with pytest.raises(ValueError, match=r"line 4 \(b\) overlaps .*line 2 \(b\) in 1 pixels"):
        dsb2018.read(made, "b")


def test_an_empty_mask_is_named(made: Path) -> None:
    path = write_masks(made, "stage1_train", "a")[1]
    write_png(path, np.zeros(DRAWN.shape, np.uint8))
    with pytest.raises(ValueError, match=r"mask2\.png marks no pixel"):
        dsb2018.read(made, "a")


def test_a_mask_of_another_shape_is_named(made: Path) -> None:
    write_png(made / "stage1_train" / "a" / "masks" / "mask2.png", np.full((4, 6), 255, np.uint8))
    with pytest.raises(ValueError, match=r"mask2\.png has shape \(4, 6\).* \(4, 5\)"):
        dsb2018.read(made, "a")


def test_a_mask_of_other_values_is_named(made: Path) -> None:
    path = write_masks(made, "stage1_train", "a")[1]
    write_png(path, np.arange(20, dtype=np.uint8).reshape(4, 5))
    with pytest.raises(ValueError, match=r"mask2\.png holds other values"):
        dsb2018.read(made, "a")


@pytest.mark.parametrize("name", ["images/a.png", "masks/mask2.png"])
@pytest.mark.parametrize("kept", [0, 20, 0.8])
def test_a_png_cut_short_is_named(made: Path, name: str, kept: float) -> None:
    path = made / "stage1_train" / "a" / name
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read, it is damaged or cut off"):
        dsb2018.read(made, "a")


def test_an_image_without_masks_is_named(made: Path) -> None:
    shutil.rmtree(made / "stage1_train" / "a" / "masks")
    with pytest.raises(FileNotFoundError, match=r"a\.png has no labels, no masks in "):
        dsb2018.read(made, "a")


def test_a_test_image_without_run_lengths_and_masks_is_named(made: Path) -> None:
    write_image(made, "stage1_test", "c")
    with pytest.raises(FileNotFoundError, match=r"c\.png has no labels, .* no line in .*csv"):
        dsb2018.read(made, "c")


def test_run_lengths_without_an_image_are_named(made: Path) -> None:
    solution = made / "stage1_solution.csv"
    solution.write_text(solution.read_text() + "ghost,1 1,4,5,Public\n")
    with pytest.raises(ValueError, match=r"stage1_solution\.csv has nuclei for ghost"):
        dsb2018.split_keys(made, "test")


def test_run_lengths_for_another_size_are_named(made: Path) -> None:
    write_solution(made, "b,1 1,5,4,Public")
    with pytest.raises(ValueError, match=r"line 2 \(b\) is for an image of 5 × 4.* 4 × 5"):
        dsb2018.read(made, "b")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ImageId,EncodedPixels\nb,1 1\n", "should have the columns"),
        ("", "should have the columns"),
        (f"{HEADER}\nb,1 1,4\n", r"line 2 \(b\) is cut off or damaged"),
        (f"{HEADER}\nb,1 1,four,5,Public\n", r"line 2 \(b\) is cut off or damaged"),
    ],
)
def test_a_csv_of_another_kind_is_named(made: Path, text: str, fault: str) -> None:
    (made / "stage1_solution.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"stage1_solution\.csv.*{fault}"):
        dsb2018.split_keys(made, "test")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\xff\xfe\x00", ": not a text in UTF-8"),
        (b"a" * 200_000, " cannot be read, it is damaged"),
    ],
)
def test_a_csv_that_is_no_text_or_endless_is_named(made: Path, content: bytes, fault: str) -> None:
    (made / "stage1_solution.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"stage1_solution\.csv{fault}"):
        dsb2018.split_keys(made, "test")


@pytest.mark.parametrize(
    "line",
    [
        "b,99999999999999999999 1,4,5,Public",
        "b,9223372036854775807 9223372036854775807,4,5,Public",
        "b,1 9223372036854775807,4,5,Public",
        f"b,{'9' * 5000} 1,4,5,Public",
        f"b,1 1,{'9' * 5000},5,Public",
        "b,1 1,-4,-5,Public",
        f"{'b' * 100_000},1 1,four,5,Public",
        ",1 1,4,5,Public",
        "b",
    ],
)
def test_a_line_that_cannot_be_is_one_short_sentence(made: Path, line: str) -> None:
    write_solution(made, line)
    with pytest.raises(ValueError, match=r"stage1_solution\.csv") as caught:
        dsb2018.split_keys(made, "test")
        dsb2018.read(made, "b")
    assert len(str(caught.value)) < 1000


def test_a_line_without_an_id_at_its_end_is_named(made: Path) -> None:
    path = made / "stage1_solution.csv"
    path.write_text("EncodedPixels,Height,Width,ImageId\n1 1,4,5,b\n1 1,4,5\n")
    with pytest.raises(ValueError, match=r"stage1_solution\.csv has nuclei for"):
        dsb2018.split_keys(made, "test")


@pytest.mark.parametrize(
    ("name", "key", "count"),
    [
        ("stage1_train/a/images/a.png", "a", 50),
        ("stage1_train/a/masks/mask2.png", "a", 100),
        ("stage1_solution.csv", "b", 200),
    ],
)
def test_a_changed_file_is_read_or_named(made: Path, name: str, key: str, count: int) -> None:
    path = made / name
    for changed in changes(path.read_bytes(), count, seed=2):
        path.write_bytes(changed)
        try:
            dsb2018.split_keys(made, "test")
            dsb2018.read(made, key)
        except (ValueError, FileNotFoundError) as error:
            assert path.name in str(error) and "\n" not in str(error)


# --- the validation split ------------------------------------------------------------------------


def test_of_invented_images_every_fourth_of_a_sort_is_for_validation(tmp_path: Path) -> None:
    for index in range(9):
        write_image(tmp_path, "stage1_train", f"a{index}", np.zeros((20, 20, 3), np.uint8))
    for index in range(3):
        write_image(tmp_path, "stage1_train", f"b{index}", np.zeros((20, 30, 3), np.uint8))
    assert dsb2018.split_keys(tmp_path, "validation") == ["a3", "a7"]
    training = dsb2018.split_keys(tmp_path, "training")
    assert len(training) == 10 and not {"a3", "a7"} & set(training)


def test_the_list_is_of_ids_and_decides_where_it_knows_one(made: Path) -> None:
    listed = sorted(dsb2018.listed_validation())
    assert len(listed) == 134
    assert all(len(key) == 64 and set(key) <= set("0123456789abcdef") for key in listed)
    write_image(made, "stage1_train", listed[0])
    assert dsb2018.split_keys(made, "validation") == [listed[0]]
    assert dsb2018.split_keys(made, "training") == ["a"]


# --- the real data -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Path:
    return datasets.data_root() / "dsb2018"


@needs_real_data
def test_the_list_holds_all_of_some_sorts_of_the_real_images(real: Path) -> None:
    keys = [path.name for path in (real / "stage1_train").iterdir()]
    sorts = {key: dsb2018.sort(dsb2018.read_image(real, key)) for key in keys}
    assert Counter(sort.split()[0] for sort in sorts.values()) == {
        "fluorescence": 546,
        "stained": 108,
        "bright-field": 16,
    }
    held_out = {key for key, sort in sorts.items() if sort in dsb2018.HELD_OUT}
    assert held_out == dsb2018.listed_validation()
    assert {sorts[key] for key in held_out} == set(dsb2018.HELD_OUT)
    training = set(dsb2018.split_keys(real, "training"))
    assert len(training) == 536 and training | held_out == set(keys)


@needs_real_data
def test_the_listed_fields_are_those_whose_edges_match(real: Path) -> None:
    """The rule that `_fields` states, taken from the images anew."""
    keys = dsb2018.split_keys(real, "test")
    grey = [dsb2018.read_image(real, key).mean(axis=2) for key in keys]
    fields = {key: {key} for key in keys}

    def go_on(one: np.ndarray, other: np.ndarray) -> bool:
        if one.shape != other.shape or min(one.std(), other.std()) < 2:  # edges without anything
            return False
        return np.corrcoef(one, other)[0, 1] > 0.95

    for i, j in itertools.permutations(range(len(keys)), 2):
        if go_on(grey[i][:, -1], grey[j][:, 0]) or go_on(grey[i][-1], grey[j][0]):
            joined = fields[keys[i]] | fields[keys[j]]
            fields |= dict.fromkeys(joined, joined)
    assert len({frozenset(field) for field in fields.values()}) == 32
    samples = datasets.load("dsb2018", "test", "real")
    listed: dict[str, set[str]] = {}
    for sample in samples:
        listed.setdefault(sample.tags.get("field", sample.key), set()).add(sample.key)
    assert set(map(frozenset, fields.values())) == set(map(frozenset, listed.values()))
    assert len({sample.tags["group"] for sample in samples}) == 11


@needs_real_data
def test_some_test_images_go_on_in_training_images(real: Path) -> None:
    stage = dsb2018._image_folders(real / "stage1_train")
    edges = [
        (one[0], one[-1], one[:, 0], one[:, -1])
        for one in (dsb2018.read_image(real, key).mean(axis=2) for key in stage)
    ]
    for start in dsb2018.GOES_ON_IN_TRAIN:
        (key,) = (key for key in dsb2018.split_keys(real, "test") if key.startswith(start))
        one = dsb2018.read_image(real, key).mean(axis=2)
        mine = (one[-1], one[0], one[:, -1], one[:, 0])
        matching = [
            np.corrcoef(mine[side], other[side])[0, 1]
            for other in edges
            for side in range(4)
            if mine[side].shape == other[side].shape and other[side].std() >= 2
        ]
        assert max(matching) > 0.95


@needs_real_data
@pytest.mark.parametrize(
    ("split", "images", "nuclei", "modalities"),
    [
        ("training", 536, 25_281, (450, 70, 16)),
        ("validation", 134, 4_180, (96, 38, 0)),
        ("test", 65, 4_152, (53, 12, 0)),
    ],
)
def test_real_counts(split: str, images: int, nuclei: int, modalities: tuple[int, ...]) -> None:
    samples = datasets.load("dsb2018", split, "real")
    assert (len(samples), sum(sample.count for sample in samples)) == (images, nuclei)
    found = Counter(sample.tags["modality"] for sample in samples)
    assert tuple(found[modality] for modality in dsb2018.MODALITIES) == modalities


def test_the_counts_are_those_of_the_publisher() -> None:
    counts = dsb2018.SPEC.counts
    outside = [counts["training"], counts["validation"]]
    assert sum(count.images for count in outside) == 670
    assert sum(count.nuclei for count in outside) == 29_461
    assert counts["test"] == SplitCount(65, 4_152)


@needs_real_data
def test_real_run_lengths_and_masks_give_the_same_labels(real: Path, tmp_path: Path) -> None:
    stage = real / "stage1_test"
    keys = [key for key in dsb2018.split_keys(real, "test") if (stage / key / "masks").is_dir()]
    if not keys:
        pytest.skip("this copy has no mask folders in stage1_test")
    (tmp_path / "stage1_test").symlink_to(stage)  # and no csv beside it
    for key in keys:
        from_csv, from_masks = dsb2018.read(real, key), dsb2018.read(tmp_path, key)
        np.testing.assert_array_equal(from_csv.labels, from_masks.labels)


@needs_real_data
def test_no_real_image_is_near_a_threshold_of_the_modality(real: Path) -> None:
    for key in dsb2018.split_keys(real, "test") + sorted(dsb2018.listed_validation()):
        image = dsb2018.read_image(real, key)
        brightness = np.median(image.sum(axis=2, dtype=np.uint16)) / 3
        colour = np.ptp(image, axis=2).mean()
        assert brightness <= 63 or brightness >= 149
        assert colour == 0 or colour >= 11.9


@needs_real_data
def test_four_real_test_images_are_fields_of_the_training_images(real: Path) -> None:
    for test, train in dsb2018.ALSO_IN_TRAIN.items():
        pair = [dsb2018.read_image(real, key)[..., 0].ravel() for key in (test, train)]
        assert (real / "stage1_test" / test).is_dir() and (real / "stage1_train" / train).is_dir()
        assert np.corrcoef(pair)[0, 1] > 0.99


# --- loading and the cache -----------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder and an empty cache; returns the data folder."""
    monkeypatch.setenv("NUCTUT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NUCTUT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny simulated set without its marker."""
    folder = tmp_path_factory.mktemp("original") / "dsb2018"
    images = {"training": 12, "validation": 4, "test": 2}
    simulate_dsb2018(folder, images=images, shape=TINY, seed=2)
    (folder / MARKER).unlink()
    return folder


@pytest.fixture
def as_if_real(original: Path, places: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny data set that passes as real: no marker, and counts that expect just it."""
    folder = places / "dsb2018"
    shutil.copytree(original, folder)
    spec = dataclasses.replace(dsb2018.SPEC, counts=checking.check(dsb2018.SPEC, folder).counts)
    monkeypatch.setitem(datasets.REGISTRY, "dsb2018", spec)
    return folder


def cached(places: Path) -> list[Path]:
    return sorted((places.parent / "cache" / "labels").iterdir())


@pytest.fixture
def no_masks_read(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts what is read in full, as the cache is to make needless."""
    read = Counter()
    plain = dsb2018.read

    def counting(folder: Path, key: str) -> object:
        read[key] += 1
        return plain(folder, key)

    spec = dataclasses.replace(datasets.REGISTRY["dsb2018"], read=counting)
    monkeypatch.setitem(datasets.REGISTRY, "dsb2018", spec)
    return read


def test_a_cached_sample_is_the_sample(as_if_real: Path, places: Path) -> None:
    for _ in range(2):  # from the files, then from the cache
        samples = datasets.load("dsb2018", "validation")
        assert samples.source == "real" and len(samples) == 4
        for sample in samples:
            expected = dsb2018.read(as_if_real, sample.key)
            np.testing.assert_array_equal(sample.image, expected.image)
            np.testing.assert_array_equal(sample.labels, expected.labels)
            assert sample.labels.dtype == np.int32 and sample.tags == expected.tags


def test_masks_are_read_once(as_if_real: Path, no_masks_read: Counter) -> None:
    first = datasets.load("dsb2018", "training")
    assert no_masks_read == dict.fromkeys(first.keys, 1)
    list(datasets.load("dsb2018", "training"))
    assert no_masks_read == dict.fromkeys(first.keys, 1)


def test_loading_the_test_split_reads_no_training_masks(
    as_if_real: Path, no_masks_read: Counter
) -> None:
    samples = datasets.load("dsb2018", "test")
    assert set(no_masks_read) == set(samples.keys)


def test_the_fingerprint_is_that_of_the_contents_and_not_of_place_or_time(
    as_if_real: Path, places: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    samples = datasets.load("dsb2018", "test")
    digest = hashlib.sha256()
    solution = (as_if_real / "stage1_solution.csv").read_bytes()
    for index, key in enumerate(samples.keys):
        digest.update((as_if_real / "stage1_test" / key / "images" / f"{key}.png").read_bytes())
        digest.update(b"" if index else solution)
    assert samples.fingerprint == digest.hexdigest()
    assert datasets.load("dsb2018", "test").fingerprint == digest.hexdigest()  # from the cache
    shutil.copytree(places, tmp_path / "elsewhere")
    monkeypatch.setenv("NUCTUT_DATA", str(tmp_path / "elsewhere"))
    for path in (tmp_path / "elsewhere").rglob("*"):
        os.utime(path, (1, 1))
    assert datasets.load("dsb2018", "test").fingerprint == digest.hexdigest()


def test_a_changed_mask_is_noticed(as_if_real: Path, places: Path) -> None:
    before = datasets.load("dsb2018", "validation")
    count = before[0].count
    masks = as_if_real / "stage1_train" / before.keys[0] / "masks"
    sorted(masks.iterdir())[0].unlink()
    after = datasets.load("dsb2018", "validation")
    assert after[0].count == count - 1 and after.fingerprint != before.fingerprint
    assert len(cached(places)) == 1  # the cache of the files as they were is gone


def test_an_added_mask_and_one_changed_in_place_are_noticed(as_if_real: Path) -> None:
    before = datasets.load("dsb2018", "validation")
    key, labels, untouched = before.keys[0], before[0].labels, before[1].labels
    pixel = np.argwhere(labels == 0)[0]
    masks = as_if_real / "stage1_train" / key / "masks"
    added = np.zeros(labels.shape, np.uint8)
    added[tuple(pixel)] = 255
    write_png(masks / "added.png", added)
    after = datasets.load("dsb2018", "validation")
    assert after[0].count == labels.max() + 1 and after.fingerprint != before.fingerprint
    added[tuple(pixel)], added[tuple(np.argwhere(labels == 0)[1])] = 0, 255
    write_png(masks / "added.png", added)
    again = datasets.load("dsb2018", "validation")
    assert again[0].labels[tuple(pixel)] == 0 and again.fingerprint != after.fingerprint
    np.testing.assert_array_equal(again[1].labels, untouched)


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "index", "no index", "pickle"])
def test_a_damaged_cache_is_made_anew(
    as_if_real: Path, places: Path, no_masks_read: Counter, damage: str
) -> None:
    key = datasets.load("dsb2018", "test").keys[0]
    expected = dsb2018.read(as_if_real, key).labels
    (folder,) = cached(places)
    labels, index = folder / f"{key}.npy", folder / cache.INDEX
    if damage == "cut":
        labels.write_bytes(labels.read_bytes()[:-100])
    elif damage == "flip":
        content = bytearray(labels.read_bytes())
        content[-1000] ^= 1
        labels.write_bytes(bytes(content))
    elif damage == "gone":
        labels.unlink()
    elif damage == "index":
        index.write_text(index.read_text().replace("fluorescence", "bright-field"))
    elif damage == "no index":
        index.unlink()
    else:
        np.save(labels, np.array([{"a": 1}], object), allow_pickle=True)
    samples = datasets.load("dsb2018", "test")
    np.testing.assert_array_equal(samples[0].labels, expected)
    assert samples[0].tags["modality"] == dsb2018.modality(samples[0].image)
    no_masks_read.clear()
    list(datasets.load("dsb2018", "test"))
    list(datasets.load("dsb2018", "test"))
    assert max(no_masks_read.values(), default=0) <= 1  # made anew, and whole again
    no_masks_read.clear()
    list(datasets.load("dsb2018", "test"))
    assert not no_masks_read


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "null",
        '{"fingerprint": 1, "entries": {}}',
        '{"fingerprint": "a", "entries": {}}',
        '{"fingerprint": "a", "entries": {"KEY": null}}',
        '{"fingerprint": "a", "entries": {"KEY": [1, {}]}}',
        '{"fingerprint": "a", "entries": {"KEY": {"crc32": 1e3, "tags": {}}}}',
        '{"fingerprint": "a", "entries": {"KEY": {"crc32": 1' + "0" * 400 + ', "tags": {}}}}',
        '{"fingerprint": "a", "entries": {"KEY": {"crc32": 1, "tags": {"modality": 7}}}}',
        '{"fingerprint": "a", "entries": ' + "[" * 100_000,
        "\ud800",
    ],
)
def test_an_index_of_another_form_is_made_anew(
    as_if_real: Path, places: Path, no_masks_read: Counter, content: str
) -> None:
    expected = datasets.load("dsb2018", "test")
    (folder,) = cached(places)
    text = content.replace("KEY", expected.keys[0])
    checksum = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    index = folder / cache.INDEX
    index.write_bytes(f"{checksum}\n{text}".encode(errors="surrogatepass"))
    no_masks_read.clear()
    assert datasets.load("dsb2018", "test").fingerprint == expected.fingerprint
    assert no_masks_read == dict.fromkeys(expected.keys, 1)
    list(datasets.load("dsb2018", "test"))
    assert no_masks_read == dict.fromkeys(expected.keys, 1)


@pytest.mark.parametrize("place", ["index", "labels", "folder"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "dangling", "file"])
def test_what_is_no_cache_is_made_anew(
    as_if_real: Path, places: Path, no_masks_read: Counter, place: str, kind: str
) -> None:
    expected = datasets.load("dsb2018", "test")
    (folder,) = cached(places)
    elsewhere = places.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    labels = folder / f"{expected.keys[0]}.npy"
    path = {"index": folder / cache.INDEX, "labels": labels, "folder": folder}[place]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link": lambda: path.symlink_to(elsewhere),
        "dangling": lambda: path.symlink_to(elsewhere / "nowhere"),
        "file": path.touch,
    }[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = datasets.load("dsb2018", "test")
        np.testing.assert_array_equal(samples[0].labels, expected[0].labels)
        list(datasets.load("dsb2018", "test"))
    no_masks_read.clear()
    list(datasets.load("dsb2018", "test"))
    assert not no_masks_read
    assert (elsewhere / "precious").is_file()


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((3, 3), np.uint8),  # of another image
        np.zeros((64, 64), np.float32),
        np.full((64, 64), 7, np.uint8),  # with gaps in its numbers
        np.asfortranarray(np.zeros((64, 80), np.uint8)),
        np.zeros(0, np.uint8),
    ],
)
def test_labels_that_cannot_be_are_not_taken_whatever_the_index_says(
    as_if_real: Path, places: Path, labels: np.ndarray
) -> None:
    key = datasets.load("dsb2018", "test").keys[0]
    expected = dsb2018.read(as_if_real, key)
    (folder,) = cached(places)
    np.save(folder / f"{key}.npy", labels)
    _, text = (folder / cache.INDEX).read_text().split("\n", 1)
    index = json.loads(text)
    index["entries"][key]["crc32"] = zlib.crc32(np.ascontiguousarray(labels))
    text = json.dumps(index)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / cache.INDEX).write_text(f"{digest}\n{text}")
    np.testing.assert_array_equal(datasets.load("dsb2018", "test")[0].labels, expected.labels)


def test_a_crash_half_way_leaves_no_cache(
    as_if_real: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cache._Store, "finish", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            datasets.load("dsb2018", "test")
    assert cached(places) == []
    assert datasets.load("dsb2018", "test")[0].count > 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_a_killed_process_left_is_not_taken_for_a_cache_and_goes_in_time(
    as_if_real: Path, places: Path
) -> None:
    labels = places.parent / "cache" / "labels"
    for name, age in (("old", 2 * cache.ABANDONED), ("new", 0)):
        folder = labels / f"{cache.BUILDING}{name}"
        folder.mkdir(parents=True)
        (folder / "half.npy").write_bytes(b"half")
        then = folder.stat().st_mtime - age
        os.utime(folder, (then, then))
    assert datasets.load("dsb2018", "test")[0].count > 0
    left = [path.name for path in labels.iterdir() if path.name.startswith(cache.BUILDING)]
    assert left == [f"{cache.BUILDING}new"]  # perhaps another process is at work on it


def test_two_processes_make_the_same_cache_at_once(original: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from nuctut.datasets import cache, checking, dsb2018\n"
        "spec, folder = dsb2018.SPEC, Path(sys.argv[1])\n"
        "listing = checking.list_split(spec, folder, 'training')\n"
        "for _ in range(3):\n"
        "    read, fingerprint = cache.open_split(spec, folder, 'training', listing)\n"
        "    print(fingerprint, sum(read(key).count for key in listing))\n"
    )
    environment = os.environ | {"NUCTUT_CACHE": str(tmp_path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, original], stdout=subprocess.PIPE, env=environment
        )
        for _ in range(2)
    ]
    answers = {line for process in running for line in process.communicate()[0].split(b"\n")}
    assert [process.returncode for process in running] == [0, 0]
    assert len(answers - {b""}) == 1
    assert len(list((tmp_path / "labels").iterdir())) == 1


def test_a_cache_that_cannot_be_written_costs_a_warning_and_time(
    as_if_real: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = datasets.load("dsb2018", "test")
    shutil.rmtree(places.parent / "cache")
    (places.parent / "cache").write_text("a file is in the way")
    with pytest.warns(UserWarning, match="NUCTUT_CACHE"):
        samples = datasets.load("dsb2018", "test")
    np.testing.assert_array_equal(samples[0].labels, expected[0].labels)
    assert samples.fingerprint == expected.fingerprint


def test_a_full_disk_costs_a_warning_and_time(
    as_if_real: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache.np, "save", full)
        with pytest.warns(UserWarning, match="No space left"):
            samples = datasets.load("dsb2018", "test")
    assert samples[0].count > 0 and cached(places) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets.load("dsb2018", "test")


def test_a_set_travels_to_another_process_without_its_pixels(as_if_real: Path) -> None:
    samples = datasets.load("dsb2018", "validation")
    packed = pickle.dumps(samples)
    assert len(packed) < 10_000
    np.testing.assert_array_equal(pickle.loads(packed)[0].labels, samples[0].labels)


def test_more_nuclei_than_a_byte_holds_come_back_from_the_cache(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.zeros((40, 40), int)
    labels[::2, ::2] = np.arange(1, 401).reshape(20, 20)
    folder = places / "made"
    write_image(folder, "stage1_train", "a", np.zeros((40, 40), np.uint8))
    write_masks(folder, "stage1_train", "a", labels)
    for _ in range(2):
        read, _ = cache.open_split(
            dsb2018.SPEC, folder, "training", checking.list_split(dsb2018.SPEC, folder, "training")
        )
        np.testing.assert_array_equal(read("a").labels, labels)


@pytest.mark.parametrize(
    "lost", ["stage1_solution.csv", "stage1_test", "stage1_train", "image", "masks"]
)
def test_an_incomplete_data_set_is_an_error_and_not_replaced(as_if_real: Path, lost: str) -> None:
    key = dsb2018.split_keys(as_if_real, "training")[0]
    inside = as_if_real / "stage1_train" / key
    paths = {"image": inside / "images" / f"{key}.png", "masks": inside / "masks"}
    path = paths.get(lost, as_if_real / lost)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert datasets.status("dsb2018").state == "incomplete"
    with pytest.raises(FileNotFoundError, match=path.name):
        datasets.load("dsb2018", "test")


def test_simulated_data_are_made_where_there_are_none(places: Path) -> None:
    samples = datasets.load("dsb2018", "validation", "simulated")
    assert samples.source == "simulated" and len(samples) == SMALL_IMAGES["validation"]
    assert not list(places.iterdir())


# --- check ---------------------------------------------------------------------------------------


def test_check_counts_what_is_there(as_if_real: Path) -> None:
    report = datasets.check("dsb2018")
    assert report.ok and report.counts["training"].images == 12
    assert report.counts["validation"].images == 4


def test_check_finds_every_kind_of_damage_and_names_the_file(as_if_real: Path) -> None:
    first, second, third, *_ = dsb2018.split_keys(as_if_real, "training")
    train = as_if_real / "stage1_train"
    masks = [sorted((train / key / "masks").iterdir()) for key in (first, second, third)]
    masks[0][0].write_bytes(masks[0][0].read_bytes()[:50])
    shutil.copy(masks[1][0], train / second / "masks" / "again.png")
    shutil.rmtree(train / third / "masks")
    stray = train / first / "images" / "stray.png"
    shutil.copy(train / first / "images" / f"{first}.png", stray)
    problems = datasets.check("dsb2018").problems
    for name, fault in [
        (masks[0][0].name, "cut off"),
        ("again.png", "overlaps"),
        (f"{third}.png", "has no labels"),
        ("stray.png", "is not the image of its folder"),
    ]:
        assert any(name in problem and fault in problem for problem in problems), (name, problems)
    assert len(problems) == 4


def test_check_compares_with_the_counts_of_the_real_data(as_if_real: Path) -> None:
    (problem,) = checking.check(dsb2018.SPEC, as_if_real, {"test": SplitCount(2, 10_000)}).problems
    assert "the test split has 2 images" in problem and "10,000" in problem


# --- simulation ----------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_simulated_layout_is_that_of_the_real_one(original: Path) -> None:
    assert {path.name for path in original.iterdir()} == {
        "stage1_train",
        "stage1_test",
        "stage1_solution.csv",
    }
    for folder in original.glob("stage1_*/*"):
        assert len(folder.name) == 64 and int(folder.name, 16)
        image = imread(folder / "images" / f"{folder.name}.png")
        assert image.dtype == np.uint8 and image.shape[2] == 4 and (image[..., 3] == 255).all()
        assert (folder / "masks").is_dir() == (folder.parent.name == "stage1_train")
    with (original / "stage1_solution.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["ImageId"] for row in rows} == {
        path.name for path in (original / "stage1_test").iterdir()
    }


def test_one_seed_repeats_to_the_byte_and_another_differs(original: Path, tmp_path: Path) -> None:
    images = {"training": 12, "validation": 4, "test": 2}
    again = contents(simulate_dsb2018(tmp_path / "again", images=images, shape=TINY, seed=2))
    del again[MARKER]
    assert again == contents(original)
    other = contents(simulate_dsb2018(tmp_path / "other", images=images, shape=TINY, seed=3))
    assert not set(other) & set(again) - {"stage1_solution.csv"}


@pytest.mark.usefixtures("places")
def test_every_split_has_every_kind_and_nuclei_that_touch() -> None:
    wanted = Counter((kind.modality, kind.scale) for kind in KINDS)
    height, width = dsb2018.SPEC.small.shape
    for split, count in SMALL_IMAGES.items():
        samples = datasets.load("dsb2018", split, "simulated")
        assert len(samples) == count
        found = Counter(
            (s.tags["modality"], (s.image.shape[0] / height, s.image.shape[1] / width))
            for s in samples
        )
        assert set(found) == set(wanted) and len(set(found.values())) == 1
        for sample in samples:
            assert sample.count >= 2
        assert sum(_touching(sample.labels) for sample in samples) >= count


def _touching(labels: np.ndarray) -> int:
    """Number of pairs of neighbouring pixels that belong to two nuclei."""
    sides = ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1]))
    return sum(int(((a > 0) & (b > 0) & (a != b)).sum()) for a, b in sides)


@pytest.mark.parametrize("images", [FEW, {"training": 15, "validation": 1, "test": 2}])
def test_numbers_that_the_rule_does_not_give_are_answered_with_those_it_does(
    images: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"the rule takes (0|4) for validation, not 1"):
        datasets.simulate("dsb2018", tmp_path / "set", images=images, shape=TINY)
    assert not list(tmp_path.iterdir())


def test_a_simulated_set_is_whole_in_its_own_eyes(tmp_path: Path) -> None:
    folder = datasets.simulate("dsb2018", tmp_path / "dsb2018", shape=TINY, seed=1)
    report = datasets.check("dsb2018", tmp_path)
    assert report.ok and report.simulated
    assert {split: count.images for split, count in report.counts.items()} == SMALL_IMAGES
    assert (folder / MARKER).is_file()
