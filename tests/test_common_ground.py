"""Common ground: what is tested on, by whom, and how a method is shown an image."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from skimage.measure import label

from nuctut import datasets, machine, records, scoreboard, views
from nuctut.datasets import dsb2018, monuseg, sbsst265
from nuctut.experiments import common_ground, shipping
from nuctut.experiments.common_ground import AS_TAKEN, ESTIMATED, TRUE_SIZE, Method
from nuctut.samples import Sample, SampleSet


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        datasets.status(name).state != "real", reason=f"{name} is not on disk"
    )


def bright(image: np.ndarray, seen: list | None = None) -> np.ndarray:
    """Whatever is brighter than the middle of its range."""
    if seen is not None:
        seen.append(image)
    grey = (image if image.ndim == 2 else image.mean(-1)).astype(float)
    return label(grey > (grey.max() + grey.min()) / 2).astype(np.int32)


def method(**changes) -> Method:
    about = {"name": "bright", "knows": "dark", "size": 20.0, "learned_from": ("bbbc039",)}
    about |= {"as_taken": ("bbbc039",), "labels": bright, "estimate": None, "record": None}
    return Method(**about | changes)


@pytest.fixture
def discs(scene) -> Sample:
    image, labels = scene((96, 120), [(30, 30, 10), (60, 80, 10)])
    return Sample("discs", image, labels, {"well": "A1", "patient": "7"})


# --- leakage -------------------------------------------------------------------------------------


def test_the_fields_in_two_sets_are_as_many_as_they_are():
    both = dsb2018.in_bbbc039()
    assert len(both) == len(set(both.values())) == 43
    assert not set(both) & dsb2018.listed_validation()


@needs("bbbc039")
def test_the_fields_in_two_sets_are_in_the_splits_of_bbbc039():
    shared = set(dsb2018.in_bbbc039().values())
    of = {split: set(datasets.load("bbbc039", split, "real").keys) for split in
          ("training", "validation", "test")}  # fmt: skip
    assert {split: len(keys & shared) for split, keys in of.items()} == {
        "training": 25,
        "validation": 9,
        "test": 9,
    }
    tested = common_ground.test_set("bbbc039")
    assert len(tested) == 41 and set(tested.keys) == of["test"] - shared


@needs("bbbc039")
@needs("dsb2018")
def test_a_field_in_two_sets_is_one_field():
    """The first of them, pixel by pixel; and it is an image that networks learn from."""
    theirs, ours = next(iter(dsb2018.in_bbbc039().items()))
    folder = datasets.data_root() / "dsb2018"
    assert theirs in dsb2018.split_keys(folder, "training")
    image = dsb2018.read_image(folder, theirs).mean(-1)
    keys = [split for split in ("training", "validation", "test")]
    sets = [datasets.load("bbbc039", split, "real") for split in keys]
    found = next(one.picked([ours])[0] for one in sets if ours in one.keys)
    assert np.corrcoef(image.ravel(), found.image.ravel())[0, 1] > 0.97


@needs("dsb2018")
def test_no_test_image_of_dsb2018_shows_what_a_training_image_shows():
    tested = common_ground.test_set("dsb2018")
    whole = datasets.load("dsb2018", "test", "real")
    gone = set(whole.keys) - set(tested.keys)
    assert len(tested) == 57 and set(dsb2018.ALSO_IN_TRAIN) < gone
    begin = {key[:8] for key in gone - set(dsb2018.ALSO_IN_TRAIN)}
    assert begin == set(dsb2018.GOES_ON_IN_TRAIN)


def test_kumar_is_tested_on_what_is_not_his_training_part():
    left = {key for key in monuseg.PART if not common_ground.was_seen("monuseg", key)}
    assert len(left) == 14
    assert {monuseg.PART[key] for key in left} == {"same organ", "different organ"}


@needs("monuseg")
def test_kumars_part_is_of_his_images_and_of_no_other_split():
    tested = common_ground.test_set("monuseg")
    assert len(tested) == 14 and set(tested.keys) <= set(monuseg.PART)
    folder = datasets.data_root() / "monuseg"
    for other in ("further", "challenge"):
        try:
            assert not set(monuseg.split_keys(folder, other)) & set(monuseg.PART)
        except FileNotFoundError:
            pass  # nobody has to have these


def test_neuroblastoma_is_tested_on_what_the_whole_set_does_not_teach():
    assert not set(sbsst265.TEST) & set(sbsst265.VALIDATION)


@pytest.mark.parametrize("name", ["tnbc", "monuseg"])
def test_who_learned_from_a_set_that_is_tested_whole_has_no_cell_in_it(name):
    learned = method(learned_from=(name,))
    assert not learned.may_be_tested_on(name)
    assert learned.may_be_tested_on("bbbc039") and method().may_be_tested_on(name)
    planned = common_ground.plan([learned], common_ground.TEST_SETS, {})
    assert name not in {data for _, data, _, _ in planned}
    assert len(planned) == len(common_ground.TEST_SETS) - 1


# --- which methods -------------------------------------------------------------------------------


def test_all_networks_that_ship_are_there_and_say_what_they_know():
    found = common_ground.methods()
    shipped = {folder.name for folder in shipping.folders()}
    assert set(found) == shipped - {"qc"} | {"classical"}
    assert found["u-net"].size is None and found["u-net"].knows == "both"
    ours = found["dl-ground-truth"]
    assert (ours.size, ours.way("bbbc039"), ours.way("tnbc")) == (27.6, AS_TAKEN, TRUE_SIZE)
    scaled = found["u-net-scaled-neuroblastoma"]
    assert scaled.way("sbsst265_neuroblastoma") == TRUE_SIZE and scaled.size == 34
    assert {one.record.variant for one in found.values() if one.record} == shipped - {"qc"}
    assert len(set(map(scoreboard.in_words, found))) == len(found)


def test_of_one_chapter():
    assert all(one.record.chapter == "03_many_tissues" for one in common_ground.methods(3).values())


@pytest.mark.parametrize("name", ["bbbc039", "tnbc"])
def test_the_size_of_nuclei_is_that_of_the_training_images(name):
    if datasets.status(name).state != "real":
        pytest.skip(f"{name} is not on disk")
    areas = [np.bincount(one.labels.ravel())[1:] for one in datasets.load(name, "training")]
    diameter = np.sqrt(4 / np.pi * np.concatenate(areas).mean())
    assert common_ground.SIZES[name] == pytest.approx(diameter, abs=0.05)


# --- one image -----------------------------------------------------------------------------------


def test_as_taken_nothing_is_rescaled(discs):
    seen = []
    labels, how = common_ground.segment(method(labels=partial(bright, seen=seen)), discs, AS_TAKEN)
    assert how == views.AS_IT_IS and seen[0] is discs.image
    assert labels.max() == 2


def test_at_its_true_size_a_method_sees_nuclei_as_large_as_it_knows_them(discs):
    seen = []
    larger = method(size=40.0, labels=partial(bright, seen=seen))
    labels, _ = common_ground.segment(larger, discs, TRUE_SIZE)
    assert labels.shape == discs.labels.shape and labels.max() == 2
    assert np.allclose(seen[0].shape, np.multiply(discs.image.shape, 2), rtol=0.03)


def test_an_estimate_takes_the_place_of_the_labels(discs):
    seen = []
    blind = method(labels=partial(bright, seen=seen), estimate=lambda image: 0.5)
    common_ground.segment(blind, discs, ESTIMATED)
    assert seen[0].shape == (48, 60)


def test_without_a_nucleus_an_image_is_shown_as_taken(discs):
    empty = Sample("empty", discs.image, np.zeros_like(discs.labels))
    assert common_ground.segment(method(), empty, TRUE_SIZE)[0].max() == 2


def test_nuclei_of_a_stain_are_found_by_who_knows_bright_ones_alone(discs):
    colours = np.where(discs.labels[..., None] > 0, (110, 60, 150), (230, 180, 210))
    stained = Sample("stained", colours.astype(np.uint8), discs.labels)
    for dye in ("haematoxylin", "inverted"):
        labels, how = common_ground.segment(method(), stained, AS_TAKEN, dye)
        assert how == dye
        np.testing.assert_array_equal(labels > 0, discs.labels > 0)


def test_a_window_lies_in_the_middle(discs):
    small = common_ground._centre(50, discs)
    assert small.image.shape == (50, 50) and small.labels.shape == (50, 50)
    np.testing.assert_array_equal(small.image, discs.image[23:73, 35:85])
    assert common_ground._centre(500, discs).image.shape == discs.image.shape


# --- records -------------------------------------------------------------------------------------


def test_a_record_says_how_it_was_measured(discs, tmp_path):
    about = {"name": "tnbc", "split": "test", "source": "real", "fingerprint": "f00d"}
    samples = SampleSet(["discs"], lambda key: discs, **about)
    made = common_ground.record(
        method(), samples, TRUE_SIZE, preset="lite", folder=tmp_path, progress=False
    )
    path = tmp_path / common_ground.CHAPTER / "bright-on-tnbc--lite--s0.json"
    (read,) = records.read_all(tmp_path)
    assert read.path == path and read.scores["f1_50"] == 1.0 and read.is_evidence
    assert made.parameters["way"] == TRUE_SIZE and made.parameters["method"] == "bright"
    (row,) = read.images
    assert row["tags"] == {"patient": "7", "sees": "as it is", "crowded": "no"}
    assert "kromp" not in row and "loose" not in row


def test_a_network_keeps_what_it_cost_and_where_it_comes_from(discs, tmp_path):
    committed = records.results_root() / "01_labels_for_free"
    own = records.read(committed / "dl-ground-truth--lite--s1.json")
    about = {"name": "tnbc", "split": "test", "source": "real", "fingerprint": "f00d"}
    samples = SampleSet(["discs"], lambda key: discs, **about)
    made = common_ground.record(
        replace(method(), record=own), samples, TRUE_SIZE, "inverted", preset="smoke",
        folder=tmp_path, progress=False,
    )  # fmt: skip
    assert made.variant == "bright-on-tnbc-inverted" and made.seed == own.seed
    assert made.fit == own.fit and made.data["training"] == own.data["training"]
    for name in ("seconds", "updates", "weights"):
        assert made.budget[name] == own.budget[name]
    assert shipping.record_of(shipping.folder_of(own.chapter, own.variant), [made, own]) == own


def test_memory_is_what_a_method_needs_beyond_what_was_held(discs, tmp_path):
    machine.reset_peak_memory()
    held = np.ones(2 * 10**7)  # 160 MB
    if machine.peak_memory_gb() is None:
        pytest.skip("this system does not tell")

    def greedy(image):
        return bright(image) * np.ones(10**7, np.int32)[0]  # 40 MB

    about = {"name": "tnbc", "split": "test", "source": "real", "fingerprint": "f00d"}
    samples = SampleSet(["discs"], lambda key: discs, **about)
    how = {"preset": "smoke", "folder": tmp_path, "progress": False}
    made = common_ground.record(method(labels=greedy), samples, TRUE_SIZE, **how)
    assert made.budget["peak_memory_gb"] == pytest.approx(0.04, abs=0.03)
    assert held.any()


def test_what_is_measured_besides_is_where_it_matters():
    tested = method()
    names = ("bbbc039", "bitdepth_nucseg", "tnbc")
    planned = common_ground.plan([tested], names, {"bright": "estimated, inverted"})
    assert [(data, way, dye) for _, data, way, dye in planned] == [
        ("bbbc039", AS_TAKEN, "haematoxylin"),
        ("bitdepth_nucseg", TRUE_SIZE, "haematoxylin"),
        ("bitdepth_nucseg", ESTIMATED, "haematoxylin"),
        ("tnbc", TRUE_SIZE, "haematoxylin"),
        ("tnbc", ESTIMATED, "haematoxylin"),
        ("tnbc", TRUE_SIZE, "inverted"),
    ]
