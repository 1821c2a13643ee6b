"""S-BSST265: how its csv, images and labels are read and split, and what is said of bad ones."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile

from nuctut import datasets
from nuctut.datasets import challenge, checking, sbsst265
from nuctut.datasets.fetching import FetchError
from nuctut.datasets.simulated.canvas import MARKER, Canvas
from nuctut.datasets.simulated.preparations import CYTOSPIN, SECTION, draw
from nuctut.datasets.simulated.sbsst265 import IMAGES, simulate_sbsst265
from nuctut.datasets.spec import SplitCount

SHAPE = (64, 80)
FEW = {"training": 4, "validation": 2, "test": 2, "other": 1}
PART = "sbsst265_neuroblastoma"

needs_real_data = pytest.mark.skipif(
    datasets.status(PART).state != "real",
    reason=f"{PART} is not on disk: `nuctut data fetch {PART}` says how to place it",
)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A tiny data set without the marker."""
    folder = simulate_sbsst265(tmp_path / "sbsst265", images=FEW, shape=SHAPE, seed=1)
    (folder / MARKER).unlink()
    return folder


def change_line(folder: Path, old: str, new: str) -> None:
    path = folder / "image_description.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# --- which images --------------------------------------------------------------------------------


def test_splits_are_disjoint_and_hold_the_numbers_asked_for(made: Path) -> None:
    report = checking.check(sbsst265.SPEC, made)
    assert report.ok, report.problems
    assert {split: count.images for split, count in report.counts.items()} == FEW
    assert all(count.nuclei for count in report.counts.values())


def test_the_test_images_are_eleven_and_none_is_for_validation() -> None:
    assert len(set(sbsst265.TEST)) == 11
    assert Counter(key.split("_")[0] for key in sbsst265.TEST) == {
        "normal": 6,
        "Neuroblastoma": 4,
        "Ganglioneuroblastoma": 1,
    }
    assert not set(sbsst265.TEST) & set(sbsst265.VALIDATION)


def test_names_of_simulated_images_are_in_the_split_that_they_are_for(tmp_path: Path) -> None:
    all_of_them = {split: len(keys) for split, keys in IMAGES.items()}
    folder = simulate_sbsst265(tmp_path / "set", images=all_of_them, shape=(64, 64))
    for split, keys in IMAGES.items():
        assert sbsst265.split_keys(folder, split) == sorted(keys)


def test_the_part_at_hand_is_of_one_specimen(tmp_path: Path) -> None:
    spec = datasets.REGISTRY[PART]
    folder = spec.simulate(tmp_path / PART, images=FEW, shape=SHAPE, seed=0)
    report = checking.check(spec, folder)
    assert report.ok and sum(count.images for count in report.counts.values()) == 9
    keys = [key for split in spec.splits for key in spec.split_keys(folder, split)]
    assert all(key.startswith("Neuroblastoma_") for key in keys)
    assert {spec.read(folder, key).tags["specimen"] for key in keys} == {"neuroblastoma"}


def test_an_image_of_another_specimen_is_not_of_the_part(made: Path) -> None:
    with pytest.raises(ValueError, match=r"Ganglioneuroblastoma_0\.tif is no image of this data"):
        datasets.REGISTRY[PART].split_keys(made, "test")


def test_the_derivation_stands_where_a_reader_sees_it() -> None:
    assert "JPEG copy, labels rebuilt" in datasets.REGISTRY[PART].title


# --- one image -----------------------------------------------------------------------------------


def test_tags_say_what_the_csv_says(made: Path) -> None:
    tags = sbsst265.read(made, "Neuroblastoma_1").tags
    assert tags["specimen"] == "neuroblastoma" and tags["preparation"] == "bone marrow cytospin"
    assert (tags["magnification"], tags["microscope"]) == ("63x", "FM")
    assert tags["challenge"] in challenge.LEVELS and "test class" not in tags
    assert sbsst265.read(made, "Ganglioneuroblastoma_0").tags["specimen"] == "ganglioneuroma"


def test_numbers_have_decimal_commas_and_classes_are_told(made: Path) -> None:
    path = made / "image_description.csv"
    lines = path.read_text().split("\n")
    changed = [
        line.replace(";-;63x;", ";NB-IV;63x;", 1).rsplit(";", 2)[0] + ";10,8;-"
        if line.startswith("Neuroblastoma_12")
        else line
        for line in lines
    ]
    path.write_bytes("\r\n".join(changed).encode("utf-8-sig"))  # as a spreadsheet would save it
    tags = sbsst265.read(made, "Neuroblastoma_12").tags
    assert tags["signal to noise"] == "10.8" and tags["test class"] == "NB-IV"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planes", [1, 3, 4])
def test_grey_is_read_from_whatever_form_it_has(made: Path, planes: int, dtype: type) -> None:
    grey = np.random.default_rng(0).integers(0, 255, SHAPE).astype(dtype)
    pixels = grey if planes == 1 else np.dstack([grey] * 3)
    if planes == 4:
        pixels = np.dstack([pixels, np.full(SHAPE, 255, dtype)])
    form = "minisblack" if planes == 1 else "rgb"
    tifffile.imwrite(made / "rawimages" / "normal_0.tif", pixels, photometric=form)
    image = sbsst265.read(made, "normal_0").image
    assert image.dtype == dtype and image.flags.c_contiguous
    np.testing.assert_array_equal(image, grey)


def test_ids_are_closed_up_and_an_id_in_two_parts_is_one_nucleus(made: Path) -> None:
    ids = np.zeros(SHAPE, np.uint16)
    ids[2:6, 2:6], ids[20:24, 2:6], ids[40:44, 2:6] = 7, 500, 7
    tifffile.imwrite(made / "groundtruth" / "normal_0.tif", ids)
    labels = sbsst265.read(made, "normal_0").labels
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, np.select([ids == 7, ids == 500], [1, 2]))


# --- bad input -----------------------------------------------------------------------------------


def faults(folder: Path) -> str:
    return "\n".join(checking.check(sbsst265.SPEC, folder).problems)


def test_a_line_without_an_image_is_named(made: Path) -> None:
    (made / "rawimages" / "normal_0.tif").unlink()
    told = r"image_description\.csv, line \d+, describes normal_0, .*no image .*normal_0\.tif"
    with pytest.raises(FileNotFoundError, match=told):
        sbsst265.split_keys(made, "test")
    assert "describes normal_0" in faults(made)


def test_an_image_without_a_line_is_named(made: Path) -> None:
    text = (made / "image_description.csv").read_text().split("\n")
    (made / "image_description.csv").write_text(
        "\n".join(line for line in text if not line.startswith("normal_0;"))
    )
    with pytest.raises(ValueError, match=r"normal_0\.tif is no image .* that image_description"):
        sbsst265.split_keys(made, "test")
    with pytest.raises(ValueError, match=r"image_description\.csv does not describe normal_0"):
        sbsst265.read(made, "normal_0")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (";BM cytospin;", ";bm smear;", r'line \d+ \(Neuroblastoma_1\): Preparation is "bm smear"'),
        (";Neuroblastoma;", ";Nephroblastoma;", r'Diagnosis is "Nephroblastoma"'),
        (";train;", ";both;", r'split is "both", expected is one of train, test'),
        ("normal_0;", "../normal_0;", r"'\.\./normal_0', which is no plain file name"),
        ("normal_0;", "Neuroblastoma_1;", r"names 'Neuroblastoma_1' twice"),
        ("Preparation;", "Prepared;", r"should have the columns Image_Name, Diagnosis"),
    ],
)
def test_what_the_csv_cannot_say_is_named_with_its_line(
    made: Path, old: str, new: str, told: str
) -> None:
    change_line(made, old, new)
    with pytest.raises(ValueError, match=told) as caught:
        sbsst265.split_keys(made, "training")
    assert "image_description.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_number_that_is_none_is_named(made: Path) -> None:
    path = made / "image_description.csv"
    lines = path.read_text().split("\n")
    lines[2] = lines[2].rsplit(";", 2)[0] + ";high;-"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r'line 3 .*Signal/Noise is "high", expected is a number'):
        sbsst265.split_keys(made, "training")


def test_a_missing_csv_is_named(made: Path) -> None:
    (made / "image_description.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"image_description\.csv is missing"):
        sbsst265.split_keys(made, "training")


def test_labels_of_another_size_are_named(made: Path) -> None:
    tifffile.imwrite(made / "groundtruth" / "normal_0.tif", np.zeros((64, 81), np.uint16))
    with pytest.raises(ValueError, match=r"groundtruth/normal_0\.tif has shape \(64, 81\)"):
        sbsst265.read(made, "normal_0")
    assert "groundtruth/normal_0.tif has shape" in faults(made)


@pytest.mark.parametrize(
    "ids", [np.zeros((*SHAPE, 3), np.uint8), np.zeros(SHAPE, np.float32), -np.ones(SHAPE, np.int16)]
)
def test_labels_that_are_no_ids_are_named(made: Path, ids: np.ndarray) -> None:
    tifffile.imwrite(made / "groundtruth" / "normal_0.tif", ids)
    with pytest.raises(ValueError, match=r"groundtruth/normal_0\.tif should hold one plane of ids"):
        sbsst265.read(made, "normal_0")


def test_labels_without_an_image_are_named(made: Path) -> None:
    tifffile.imwrite(made / "groundtruth" / "normal_77.tif", np.zeros(SHAPE, np.uint16))
    assert "normal_77.tif has no image" in faults(made)


def test_colour_is_refused(made: Path) -> None:
    pixels = np.full((*SHAPE, 3), 9, np.uint8)
    pixels[5, 6, 2] = 10
    tifffile.imwrite(made / "rawimages" / "normal_0.tif", pixels, photometric="rgb")
    with pytest.raises(ValueError, match=r"rawimages/normal_0\.tif is coloured"):
        sbsst265.read(made, "normal_0")


def test_an_image_that_is_transparent_in_places_is_refused(made: Path) -> None:
    pixels = np.full((*SHAPE, 4), 9, np.uint8)
    pixels[5, 6, 3] = 0
    tifffile.imwrite(made / "rawimages" / "normal_0.tif", pixels, photometric="rgb")
    with pytest.raises(ValueError, match=r"rawimages/normal_0\.tif is transparent in places"):
        sbsst265.read(made, "normal_0")


@pytest.mark.parametrize("shape", [(3, *SHAPE, 3), (*SHAPE, 2)])
def test_an_image_of_another_form_is_refused(made: Path, shape: tuple[int, ...]) -> None:
    path = made / "rawimages" / "normal_0.tif"
    tifffile.imwrite(path, np.zeros(shape, np.uint8), photometric="minisblack")
    with pytest.raises(ValueError, match=r"normal_0\.tif should hold grey, RGB or RGBA"):
        sbsst265.read(made, "normal_0")


# --- fetching and checking -----------------------------------------------------------------------


def test_fetching_the_part_says_how_to_place_it(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=rf"{PART} by hand: .*nuctut data fetch sbsst265"):
        datasets.fetch(PART, tmp_path)
    assert not list(tmp_path.iterdir())


def test_where_nobody_has_counted_any_number_of_nuclei_is_right(made: Path) -> None:
    counts = {split: SplitCount(number, None) for split, number in FEW.items()}
    assert checking.check(sbsst265.SPEC, made, counts).ok
    more = counts | {"test": SplitCount(3, None)}
    (problem,) = checking.check(sbsst265.SPEC, made, more).problems
    assert "expected are 3 with any number" in problem


# --- how hard an image is ------------------------------------------------------------------------


def two_pairs(gap: int) -> np.ndarray:
    """Four squares of 20 pixels; the first two are `gap` pixels apart, the others far."""
    labels = np.zeros((100, 100), np.int32)
    labels[10:30, 10:30], labels[10:30, 30 + gap : 50 + gap] = 1, 2
    labels[60:80, 10:30], labels[60:80, 60:80] = 3, 4
    return labels


@pytest.mark.parametrize(("gap", "share"), [(0, 0.5), (1, 0.0)])
def test_nuclei_touch_that_are_nearer_than_a_share_of_their_size(gap: int, share: float) -> None:
    assert challenge.share_near(two_pairs(gap)) == share  # 3 % of 22.6 pixels is one pixel
    larger = two_pairs(gap).repeat(3, 0).repeat(3, 1)  # and of 68 two
    assert challenge.share_near(larger) == share
    assert challenge.share_near(two_pairs(2)[::-1, ::-1].copy()) == 0


def test_levels_count_crowds_and_weak_light() -> None:
    crowded, apart = two_pairs(0), two_pairs(5)
    bright, weak = (np.where(crowded > 0, light, 100) for light in (500, 250))
    assert challenge.challenge(np.where(apart > 0, 500, 100), apart) == "low"
    assert challenge.challenge(np.where(apart > 0, 250, 100), apart) == "medium"
    assert challenge.challenge(bright, crowded) == "medium"
    assert challenge.challenge(weak, crowded) == "high"
    assert challenge.challenge(bright, np.zeros_like(crowded)) == "low"


# --- simulation ----------------------------------------------------------------------------------


def test_one_seed_repeats_to_the_byte_and_another_differs(made: Path, tmp_path: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (folder / "rawimages").iterdir()}

    again = simulate_sbsst265(tmp_path / "again", images=FEW, shape=SHAPE, seed=1)
    other = simulate_sbsst265(tmp_path / "other", images=FEW, shape=SHAPE, seed=2)
    assert contents(again) == contents(made)
    assert not set(contents(other).values()) & set(contents(made).values())
    fewer = simulate_sbsst265(tmp_path / "few", images=FEW | {"training": 2}, shape=SHAPE, seed=1)
    assert contents(fewer).items() < contents(made).items()


def test_every_nucleus_drawn_has_a_label_and_sections_are_denser_than_cytospins() -> None:
    touching = {}
    for look in (CYTOSPIN, SECTION):
        _, labels = draw(look, 16, (160, 160), np.random.default_rng(3))
        assert labels.max() > 5 and np.bincount(labels.ravel())[1:].min() >= 6
        touching[look] = challenge.share_near(labels)
    assert touching[SECTION] > touching[CYTOSPIN]


def test_labels_of_a_canvas_are_its_colours_pieces() -> None:
    canvas = Canvas((4, 5), np.random.default_rng(0))
    canvas.red[:2, 0], canvas.red[:2, 1], canvas.red[3, 3] = 1, 2, 1
    expected = [[1, 3, 0, 0, 0], [1, 3, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 2, 0]]
    np.testing.assert_array_equal(canvas.labels, expected)


def test_more_images_than_there_are_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at most 7 of test, not 8"):
        simulate_sbsst265(tmp_path / "set", images=FEW | {"test": 8}, shape=SHAPE)
    with pytest.raises(ValueError, match="training, validation, test, other"):
        simulate_sbsst265(tmp_path / "set", images={"training": 1}, shape=SHAPE)
    assert not list(tmp_path.iterdir())


# --- the real data -------------------------------------------------------------------------------


@needs_real_data
def test_the_real_test_set_has_the_papers_218_nuclei() -> None:
    samples = datasets.load(PART, "test", "real")
    assert samples.source == "real"
    assert {sample.key: sample.count for sample in samples} == {
        "Neuroblastoma_12": 22,
        "Neuroblastoma_13": 13,
        "Neuroblastoma_14": 59,
        "Neuroblastoma_15": 124,
    }
    levels = {sample.key[-2:]: sample.tags["challenge"] for sample in samples}
    assert levels == {"12": "low", "13": "low", "14": "low", "15": "medium"}
    prepared = {sample.key[-2:]: sample.tags["preparation"] for sample in samples}
    assert prepared == dict.fromkeys(("12", "13", "14"), "touch imprint") | {
        "15": "bone marrow cytospin"
    }


@needs_real_data
def test_the_real_part_is_whole_and_has_727_nuclei() -> None:
    report = datasets.check(PART)
    assert report.ok, report.problems
    assert sum(count.nuclei for count in report.counts.values()) == 727


@needs_real_data
def test_validation_is_every_fifth_of_each_diagnosis_and_preparation() -> None:
    rows = sbsst265._rows(datasets.status(PART).folder)
    assert Counter(row.split for row in rows.values()) == {
        split: count.images for split, count in sbsst265.SPEC.counts.items()
    }
    alike: dict[tuple[str, str], list[str]] = {}
    for key in sorted(rows, key=lambda key: int(key.rpartition("_")[2])):
        if rows[key].suggested == "train":
            alike.setdefault((rows[key].diagnosis, rows[key].preparation), []).append(key)
    assert {key for keys in alike.values() for key in keys[1::5]} == set(sbsst265.VALIDATION)


def test_the_whole_archive_takes_the_place_of_its_counts(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counts = {split: SplitCount(number, None) for split, number in FEW.items()}
    spec = dataclasses.replace(sbsst265.SPEC, counts=counts)
    monkeypatch.setitem(datasets.REGISTRY, "sbsst265", spec)
    monkeypatch.setenv("NUCTUT_DATA", str(tmp_path))
    samples = datasets.load("sbsst265", "other")
    assert samples.describe() == "sbsst265 other (real, 1 images)" and samples[0].image.ndim == 2
