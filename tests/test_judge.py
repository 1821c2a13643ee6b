"""`nuctut judge`: every method on labelled images of one's own, and what is wrong with some."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from test_cli import nuctut  # noqa: F401
from test_common_ground import method

from nuctut.experiments import common_ground
from nuctut.own_images import judge


def nothing(image: np.ndarray) -> np.ndarray:
    return np.zeros(image.shape[:2], np.int32)


METHODS = {
    "blind": method(name="blind", labels=nothing),
    "bright": method(name="bright", size=None),
}


@pytest.fixture
def folders(tmp_path, scene) -> tuple[Path, Path]:
    """Six images with labels under names of both kinds."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for number in range(6):
        image, ids = scene((64, 80), [(20, 20, 8), (40, 55, 9)], seed=number)
        ending = "_labels.tif" if number % 2 else ".png"
        tifffile.imwrite(images / f"field_{number}.tif", image)
        if number % 2:
            tifffile.imwrite(labels / f"field_{number}{ending}", 3 * ids.astype(np.uint16))
        else:
            Image.fromarray(ids.astype(np.uint8)).save(labels / f"field_{number}{ending}")
    return images, labels


def run(folders, **how) -> judge.Judged:
    return judge.judge(*folders, METHODS, progress=False, **how)


def test_the_better_method_is_named_first_with_its_interval(folders):
    judged = run(folders)
    assert judged.images == 6 and judged.enough and not judged.failed
    table = judged.table().set_index("method")
    assert list(table.index) == ["bright", "blind"]
    found = table.loc["bright"]
    assert found["f1_50"] == found["f1_50_low"] == found["f1_50_high"] == 1.0
    assert table.loc["blind", "aggregated_jaccard"] == 0
    assert judge.summary(judged) == ["Highest F1 on 6 images: bright."]


def test_who_cannot_be_told_from_the_best_is_said(folders):
    twins = {"one": METHODS["bright"], "other": METHODS["bright"]}
    first, second, third = judge.summary(judge.judge(*folders, twins, progress=False))
    assert first == "Highest F1 on 6 images: one."
    assert second == "Not to be told apart from it (95 %): other."
    assert third.startswith("The fastest of these: ")


@pytest.mark.parametrize(("left", "said"), [(1, "1 image is too few"), (4, "4 images are too few")])
def test_few_images_have_no_intervals_and_that_is_said(folders, left, said):
    for path in sorted(folders[0].iterdir())[left:]:
        path.unlink()
    judged = run(folders)
    assert not judged.enough
    assert math.isnan(judged.table()["f1_50_low"][0])
    (line,) = judge.summary(judged)
    assert said in line and "at least 5" in line


def spoil(folders: tuple[Path, Path], how: str) -> None:
    """Something goes wrong with field 0."""
    images, labels = folders
    image, ids = images / "field_0.tif", labels / "field_0.png"
    match how:
        case "missing":
            ids.unlink()
        case "size":
            Image.fromarray(np.ones((64, 79), np.uint8)).save(ids)
        case "colours":
            Image.fromarray(np.ones((64, 80, 3), np.uint8)).save(ids)
        case "damaged image":
            image.write_bytes(image.read_bytes()[:200])
        case "damaged labels":
            ids.write_bytes(b"no image at all")
        case "pages":
            tifffile.imwrite(image, np.ones((3, 64, 80), np.uint16), photometric="minisblack")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", "has no labels: expected field_0.tif, .png or field_0_labels.tif in"),
        ("size", "has 80 × 64 pixels, but its labels field_0.png have 79 × 64"),
        ("colours", "its labels field_0.png are uint8 of shape (64, 80, 3): expected one plane"),
        ("damaged image", ""),
        ("damaged labels", "its labels field_0.png: is no image"),
        ("pages", "has 3 pages: save the one that is labelled by itself"),
    ],
)
def test_one_bad_file_costs_no_other(folders, how, told):
    spoil(folders, how)
    said = []
    judged = run(folders, tell=said.append)
    assert judged.images == 5 and list(judged.failed) == ["field_0.tif"]
    assert told in judged.failed["field_0.tif"] and "\n" not in judged.failed["field_0.tif"]
    assert said == [f"field_0.tif: {judged.failed['field_0.tif']}"]
    assert judged.table()["f1_50"][0] == 1.0


def test_labels_may_lie_beside_their_images(folders):
    images, labels = folders
    for path in labels.iterdir():
        stem = path.stem.removesuffix("_labels")
        path.rename(images / f"{stem}_labels{path.suffix}")
    assert run((images, images)).images == 6


def test_an_image_is_not_its_own_labels(folders):
    images, _ = folders
    with pytest.raises(ValueError, match=r"No image of .* has labels in"):
        run((images, images))


@pytest.mark.parametrize("which", [0, 1])
def test_a_folder_that_is_none_is_named(folders, which):
    given = list(folders)
    given[which] = given[which] / "nowhere"
    with pytest.raises(ValueError, match="nowhere"):
        run(tuple(given))


def test_an_empty_folder_is_named(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        run((tmp_path / "empty", folders[1]))


def test_intensities_of_any_kind_are_taken(folders, scene):
    image, _ = scene((64, 80), [(20, 20, 8), (40, 55, 9)])
    for number, dtype in enumerate((np.float32, np.int16, np.uint32)):
        tifffile.imwrite(folders[0] / f"field_{number}.tif", image.astype(dtype))
    judged = run(folders)
    assert not judged.failed and judged.table()["f1_50"][0] == 1.0


def test_both_tables_are_written(folders, tmp_path):
    judged = run(folders)
    whole, by_image = map(pd.read_csv, judge.write(judged, tmp_path / "new" / "out"))
    assert whole["method"].tolist() == ["bright", "blind"]
    assert len(by_image) == 12
    assert by_image.groupby("method")["f1_50"].mean().to_dict() == {"blind": 0, "bright": 1}


def test_the_command_prints_a_table_and_fails_where_a_file_does(
    folders, tmp_path, monkeypatch, nuctut  # noqa: F811
):  # fmt: skip
    monkeypatch.setattr(common_ground, "methods", lambda: METHODS)
    how = ["judge", "--images", str(folders[0]), "--labels", str(folders[1])]
    code, out, _ = nuctut(*how, "-o", str(tmp_path / "out"))
    assert code == 0 and "bright" in out and "Highest F1 on 6 images: bright." in out
    assert (tmp_path / "out" / judge.TABLE).is_file()
    spoil(folders, "missing")
    code, out, err = nuctut(*how)
    assert code == 1 and "field_0.tif: has no labels" in err
    assert "Highest F1 on 5 images" in out
