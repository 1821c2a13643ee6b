"""The images that come with the book: real ones, few, small, and never taken for the whole set."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from nuctut import datasets
from nuctut.datasets import checking, dsb2018
from nuctut.paths import excerpts_root

# licences under which images may lie in the repository
FREE = ("CC0 1.0", "Apache-2.0", "CC BY 4.0")
SET_LIMIT, ALL_LIMIT, FILE_LIMIT = 3_000_000, 12_000_000, 2**20  # bytes
FOLDERS = sorted(path for path in excerpts_root().iterdir())
NAMES = [folder.name for folder in FOLDERS]
SPLITS = [
    (folder.name, split)
    for folder in FOLDERS
    for split in datasets.REGISTRY[folder.name].splits
    if datasets.REGISTRY[folder.name].split_keys(folder, split)
]


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder and an empty cache; returns the data folder."""
    monkeypatch.setenv("NUCTUT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NUCTUT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


# --- what lies there -----------------------------------------------------------------------------


def bytes_in(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", NAMES)
def test_the_licence_lets_images_lie_in_the_repository(name: str) -> None:
    assert datasets.REGISTRY[name].licence in FREE


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_an_excerpt_is_small(folder: Path) -> None:
    sizes = bytes_in(folder)
    assert sum(sizes) <= SET_LIMIT and max(sizes) <= FILE_LIMIT


def test_all_excerpts_together_are_small() -> None:
    assert sum(bytes_in(excerpts_root())) <= ALL_LIMIT


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_every_file_is_read_and_none_is_too_many(folder: Path) -> None:
    spec = datasets.REGISTRY[folder.name]
    report = checking.check(spec, folder)
    assert report.ok, report.problems
    keys = {split: spec.split_keys(folder, split) for split in spec.splits}
    read = {name for split in keys.values() for key in split for name in spec.files(folder, key)}
    lists = {f"metadata/{split}.txt" for split in spec.splits}  # of BBBC039
    lists.add("LICENSE")  # which Apache-2.0 wants beside every copy
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert read <= there <= read | lists


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_every_pixel_and_label_is_the_real_one(name: str, split: str) -> None:
    if datasets.status(name).state != "real":
        pytest.skip(f"{name} is not on disk: run `nuctut data fetch {name}` or set NUCTUT_DATA")
    spec, real = datasets.REGISTRY[name], datasets.status(name).folder
    whole = spec.split_keys(real, split)
    samples = datasets.load(name, split, "excerpt")
    assert samples.whole == len(whole) > len(samples)
    for sample in samples:
        assert sample.key in whole
        original = spec.read(real, sample.key)
        assert sample.image.dtype == original.image.dtype and sample.tags == original.tags
        np.testing.assert_array_equal(sample.image, original.image)
        np.testing.assert_array_equal(sample.labels, original.labels)


def test_bbbc039_shows_an_empty_a_crowded_and_a_littered_field() -> None:
    splits = [datasets.load("bbbc039", split, "excerpt") for split in ("training", "test")]
    assert [len(samples) for samples in splits] == [6, 4]
    assert 0 in [sample.count for sample in splits[0]]
    assert max(sample.count for sample in splits[1]) > 200
    for samples in splits:
        areas = [np.bincount(sample.labels.ravel())[1:] for sample in samples]
        assert max(np.mean(one < 60) for one in areas if one.size) > 0.2


def test_dsb2018_shows_every_kind_of_image() -> None:
    def kinds(split: str) -> set[str]:
        samples = datasets.load("dsb2018", split, "excerpt")
        modality = {one.tags["modality"] for one in samples}
        return modality | {one.tags["sort"].partition(" on ")[2] for one in samples} - {""}

    assert kinds("training") == {*dsb2018.MODALITIES, "purple", "pink"}
    assert kinds("validation") == {"fluorescence", "stained", "white"}
    assert kinds("test") == {"fluorescence", "stained", "white", "pink"}


def test_a_dsb2018_image_that_is_also_in_training_comes_with_its_twin() -> None:
    tested = datasets.load("dsb2018", "test", "excerpt").keys
    twins = {twin for key, twin in dsb2018.ALSO_IN_TRAIN.items() if key in tested}
    assert len(twins) == 1 and twins <= {*datasets.load("dsb2018", "training", "excerpt").keys}


# --- what it passes as ---------------------------------------------------------------------------


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("name", NAMES)
def test_auto_takes_the_excerpt_where_the_real_data_are_missing(name: str) -> None:
    assert datasets.status(name) == datasets.Status(name, excerpts_root() / name, "excerpt")
    samples = datasets.load(name, "test")
    assert (
        samples.source == "excerpt" and samples.keys == datasets.load(name, "test", "excerpt").keys
    )
    assert "test (real, excerpt: " in samples.describe()
    with pytest.raises(FileNotFoundError, match=f"nuctut data fetch {name}"):
        datasets.load(name, "test", "real")


@pytest.mark.parametrize("name", NAMES)
def test_an_excerpt_in_place_of_the_real_data_is_neither(name: str, no_data: Path) -> None:
    shutil.copytree(excerpts_root() / name, no_data / name)
    assert datasets.status(name).state == "incomplete"
    for source in ("auto", "real"):
        with pytest.raises(FileNotFoundError, match=r"the training split lists \d images, not"):
            datasets.load(name, "test", source)
    assert not datasets.check(name).ok


def test_the_folder_of_excerpts_is_no_folder_of_real_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUCTUT_DATA", str(excerpts_root()))
    assert datasets.status("bbbc039").state == "excerpt"
    assert datasets.load("bbbc039", "test").source == "excerpt"


@pytest.mark.usefixtures("no_data", "no_checkout")
def test_without_a_checkout_there_is_no_excerpt_to_ask_for() -> None:
    with pytest.raises(FileNotFoundError, match=r"no excerpt of bbbc039 here: .*clone"):
        datasets.load("bbbc039", "test", "excerpt")
