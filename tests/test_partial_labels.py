"""Chapter 4: tiny networks that learn from some of the nuclei, and what is measured of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from notebook_presets import assert_it_learned, presets_of
from skimage.color import hed2rgb
from torch import nn

from nuctut import background, experiments, partial, records, scoreboard
from nuctut.background import LABELLED, LEVELS
from nuctut.experiments import Trained
from nuctut.experiments import partial_labels as chapter
from nuctut.experiments.partial_labels import CONDITIONS, Settings
from nuctut.models.patch_cnn import EveryPixel
from nuctut.patches import PartialPatches
from nuctut.pixel_patches import PixelPatches
from nuctut.samples import Sample, SampleSet

SETTINGS = Settings(
    data="simulated",
    images=None,
    options={},
    crop=64,
    scale="range",
    gain=0.0,
    alpha=5.0,
    beta=0.5,
    strength=0.5,
    radius=2.0,
    foreground=3.0,
    reach=10.0,
    bend=2.0,
    stain_gain=0.2,
    stain_shift=0.05,
    positives=20,
    cross_entropy=1.0,
    min_area=0,
    epochs=1,
    updates=2,
    batch_size=2,
    learning_rate=1e-3,
    schedule="one-cycle",
    l2=1e-5,
    precision="fp32",
    patience=None,
)
PINK, PURPLE = (230, 170, 210), (110, 70, 150)
DISCS = [(20, 20, 9), (20, 70, 9), (60, 30, 9), (62, 74, 9)]


@pytest.fixture(scope="module")
def sets(scene) -> dict[str, SampleSet]:
    """Three splits of two stained images each, four nuclei in every one, of two patients."""

    def split(name: str) -> SampleSet:
        def sample(key: str) -> Sample:
            _, labels = scene((96, 104), DISCS)
            colours = np.where(labels[..., None] > 0, PURPLE, PINK)
            noise = np.random.default_rng(len(key)).normal(0, 6, colours.shape)
            image = (colours + noise).clip(0, 255).astype(np.uint8)
            return Sample(key, image, labels, {"patient": key.partition("_")[0]})

        about = {"name": "tnbc", "split": name, "source": "simulated", "fingerprint": name}
        return SampleSet([f"01_{name}", f"02_{name}"], sample, **about)

    return {name: split(name) for name in ("training", "validation", "test")}


@pytest.fixture(scope="module")
def some(sets) -> list[SampleSet]:
    """Half of the nuclei of two splits."""
    return [partial.partly_outlined(sets[name], 0.5, 0) for name in ("training", "validation")]


def settings_of(condition: str, **changes) -> Settings:
    small = {"padded": False} if condition == "patch-cnn" else {"channels": (4, 4, 4, 4, 4)}
    return dataclasses.replace(SETTINGS, **{"options": small, **changes})


def train(some, runs, condition: str, settings: Settings) -> Trained:
    how = {"device": "cpu", "runs": runs, "progress": False}
    return experiments.train(chapter, f"{condition}-tnbc", tuple(some), settings, **how)


@pytest.fixture(scope="module")
def trained(some, tmp_path_factory):
    """A network of each condition, fitted when first asked for."""
    folder, made = tmp_path_factory.mktemp("fits"), {}

    def of(condition: str) -> Trained:
        if condition not in made:
            made[condition] = train(some, folder, condition, settings_of(condition))
        return made[condition]

    return of


class ByColour(nn.Module):
    """Says nucleus where the green light is weak."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(120 / 255))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        nucleus = 50 * (self.level - image[:, 1:2])
        return torch.cat([-nucleus, nucleus], 1)


@pytest.fixture
def by_colour(trained) -> Trained:
    return dataclasses.replace(trained("naive"), model=ByColour())


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("share", chapter.SHARES)
@pytest.mark.parametrize("tested_on", chapter.NAMED)
def test_a_name_tells_condition_and_share(condition, share, tested_on):
    name = chapter.variant_of(condition, tested_on, share)
    assert chapter.parts_of(name) == (condition, share)
    assert ("percent" in name) is (share != "5")


@pytest.mark.parametrize("name", ["naive", "nave-tnbc", "proposed-watershed-tnbc", "naive-dsb2018"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="naive, distance, proposed"):
        chapter.parts_of(name)


def test_the_main_table_is_trained_first_and_nothing_twice():
    whole = chapter.plan(CONDITIONS, chapter.SHARES)
    assert whole[: len(CONDITIONS)] == [(one, "5") for one in CONDITIONS]
    assert len(whole) == len(set(whole)) == len(CONDITIONS) + 5 * 4 - 1
    assert ("naive", "100") not in whole and ("full-labels", "2") not in whole
    assert chapter.plan(["patch-cnn"], ["2"]) == []


# --- what networks are fed ------------------------------------------------------------------------


def lesson(condition, sample, **changes):
    return chapter.lesson(condition, dataclasses.replace(SETTINGS, **changes), sample)


def test_what_each_condition_takes_for_background(some):
    sample = some[0][0]
    outlined = sample.labels > 0
    taught = {name: lesson(name, sample) for name in ("naive", "distance", "proposed", "balanced")}
    assert all(((one == LABELLED) == outlined).all() for one in taught.values())
    assert (taught["naive"][~outlined] == LEVELS).all()
    far = np.s_[40, 52]  # stroma, between all nuclei
    assert [taught[name][far] for name in taught] == [LEVELS, 0, LEVELS // 2, LEVELS // 2]
    hidden = (chapter.clusters(sample.image).nuclei) & ~outlined
    assert taught["proposed"][hidden].max() < 10 and taught["naive"][hidden].min() == LEVELS
    np.testing.assert_array_equal(lesson("proposed", sample, strength=0.0), taught["distance"])


def test_colours_that_are_known_are_not_found_again(some, monkeypatch):
    sample = some[0][0]
    expected, known = lesson("proposed", sample), background.clusters(sample.image)
    monkeypatch.setattr(chapter, "clusters", None)
    np.testing.assert_array_equal(chapter.lesson("proposed", SETTINGS, sample, known), expected)


def test_a_balance_makes_the_outlined_weigh_as_all_nuclei(sets):
    sample = sets["training"][0]
    parted = background.clusters(sample.image)
    nuclear = np.count_nonzero(parted.nuclei)
    whole = background.taught(parted.nuclei, np.ones(parted.nuclei.shape))
    assert chapter.balance([whole], [parted]) == 1
    first = (sample.labels == 1) & parted.nuclei
    half = background.taught(first, np.where(parted.nuclei, 0, 0.5))
    expected = 0.5 * nuclear / np.count_nonzero(first)
    assert chapter.balance([half], [parted]) == pytest.approx(expected, abs=0.06)


def test_all_conditions_learn_from_the_same_windows(some):
    fed = {}
    for name in ("naive", "distance", "proposed"):
        how = {"seed": 0, "progress": False}
        fed[name] = chapter.items(f"{name}-tnbc", some[0], settings_of(name), **how)
    assert all(isinstance(one, PartialPatches) for one in fed.values())
    assert fed["naive"].windows == fed["distance"].windows == fed["proposed"].windows
    assert fed["naive"].augmentation.stain_gain == 0
    jittered = chapter.items("stain-jitter-tnbc", some[0], settings_of("naive"), **how)
    assert jittered.augmentation.stain_gain == 0.2
    checks = chapter.items("naive-tnbc", some[1], settings_of("naive"), **how)
    assert checks.augmentation is None and len(checks) <= len(fed["naive"])
    patches = chapter.items("patch-cnn-tnbc", some[0], settings_of("patch-cnn"), **how)
    assert isinstance(patches, PixelPatches)


def test_only_what_is_balanced_weighs_the_outlined_more():
    weights = {name: chapter.loss(f"{name}-tnbc", SETTINGS).foreground for name in CONDITIONS}
    assert weights.pop("balanced") == 3 and set(weights.values()) == {1}


def test_mistakes_are_those_of_the_images_together(sets, some):
    colours = {one.key: background.clusters(one.image) for one in some[0]}
    found = chapter.mistakes("naive", SETTINGS, some[0], sets["training"], colours)
    hidden = sum((one.labels > 0).sum() for one in sets["training"])
    hidden -= sum((one.labels > 0).sum() for one in some[0])
    assert found.wrong == hidden
    near = chapter.mistakes("distance", SETTINGS, some[0], sets["training"], colours)
    assert near.wrong < 0.05 * hidden


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", ["proposed", "no-normalisation", "patch-cnn"])
def test_a_network_is_trained_predicts_whole_images_and_is_loaded(trained, sets, condition):
    made = trained(condition)
    image = sets["test"][0].image
    labels = chapter.segment(made, image)
    assert labels.shape == image.shape[:2] and labels.dtype == np.int32
    loaded = experiments.load(made.fit.best.parent, "cpu")
    assert (loaded.variant, loaded.name) == (f"{condition}-tnbc", made.name)
    np.testing.assert_array_equal(chapter.segment(loaded, image), labels)


def test_what_networks_are_called(trained):
    assert trained("proposed").name == "U-Net, 4 to 4 feature maps"
    assert trained("patch-cnn").name == "network of patches, no padding"
    assert isinstance(trained("patch-cnn").model, EveryPixel)
    plain = chapter.network("no-normalisation-tnbc", settings_of("no-normalisation"))
    assert not any(isinstance(one, nn.BatchNorm2d) for one in plain.modules())


@pytest.mark.parametrize("condition", ["proposed", "patch-cnn"])
def test_both_kinds_take_two_updates_of_the_paper_preset(some, tmp_path, condition):
    paper = presets_of("04_partial_labels")["patch-cnn" if condition == "patch-cnn" else "u-net"]
    less = {"crop": 64, "epochs": 1, "updates": 2, "batch_size": 2, "positives": 20}
    if condition == "proposed":
        less["options"] = {"channels": (8, 8, 8, 8, 8)}
    settings = dataclasses.replace(paper["paper"], **less)
    made = train(some, tmp_path, condition, settings)
    torch.manual_seed(0)
    start = chapter.network(f"{condition}-tnbc", settings)
    assert_it_learned(made, start, updates=2)


# --- measuring ------------------------------------------------------------------------------------


def test_a_network_is_measured_as_it_is_cut_and_restained(by_colour, sets):
    measured = chapter.measure(by_colour, sets["test"], progress=False)
    assert measured.variant == "naive-tnbc" and measured.scores["f1_50"] == 1
    cut = chapter.measure(by_colour, sets["test"], after=chapter.parted, progress=False)
    assert cut.scores["pixel_iou"] == measured.scores["pixel_iou"]
    dark = chapter.measure(by_colour, sets["test"], before=np.zeros_like, progress=False)
    assert dark.scores["pixel_iou"] < 0.2
    times = {"seconds_per_slide": 7.0}
    assert (
        chapter.measure(by_colour, sets["test"], times=times, progress=False).seconds[
            "seconds_per_slide"
        ]
        == 7
    )


def test_k_means_alone_finds_purple_on_pink(sets):
    measured = chapter.measure_clusters(sets["test"], "k-means-tnbc", progress=False)
    assert measured.scores["f1_50"] == 1 and measured.scores["pixel_iou"] > 0.95


def test_stains_are_made_alike(sets):
    """The same tissue, once with more of both stains."""
    nuclei = sets["test"][0].labels > 0
    stains = np.stack([np.where(nuclei, a, b) for a, b in ((0.12, 0.02), (0.03, 0.08), (0, 0))], -1)
    stains *= np.random.default_rng(0).uniform(0.7, 1.3, stains.shape)
    image, dark = ((255 * hed2rgb(more * stains)).astype(np.uint8) for more in (1, 1.4))
    alike = chapter.stained_like(image)(dark)
    assert alike.shape == image.shape and alike.dtype == np.uint8
    gap, before = (np.abs(one.astype(float) - image).mean() for one in (alike, dark))
    assert gap < before / 5


def test_the_clock_goes_by_the_pixels(trained):
    slide = chapter.clocked(trained("proposed"), 64, 10.0)
    assert slide.keys() == {"seconds_per_slide"} and slide["seconds_per_slide"] > 0
    patches = chapter.clocked(trained("patch-cnn"), 100, 5000.0)
    assert patches["seconds_per_slide"] == pytest.approx(2 * patches["seconds_patch_by_patch"])


# --- tables ---------------------------------------------------------------------------------------


def record_of(measured, variant: str, seed: int = 0) -> records.Record:
    return records.Record.of_run(
        chapter="04_partial_labels",
        variant=variant,
        preset="smoke",
        seed=seed,
        data=records.describe_data(measured.test_set),
        images=measured.rows,
        budget={"updates": 0, "images_seen": 0, "seconds": 0.0, "precision": "none"},
        parameters={},
    )


def test_means_stand_before_their_deviation(by_colour, sets):
    measured = chapter.measure(by_colour, sets["test"], progress=False)
    made = {"it": record_of(measured, "naive-tnbc")}
    for by in ("", "patient"):
        table = chapter.means(made, by)
        assert table.columns.tolist() == list(chapter.COLUMNS.values())
        assert table.loc["it", "recall"] == "1.00 (0.00)"


def test_full_labels_end_the_naive_line_and_others_stand_on_none(by_colour, sets):
    measured = chapter.measure(by_colour, sets["test"], progress=False)
    names = ("naive-tnbc", "naive-25-percent-tnbc", "full-labels-tnbc", "naive-kumar")
    names += ("k-means-tnbc", "patch-cnn-tnbc", "proposed-watershed-tnbc")
    lines = chapter.share_curves([record_of(measured, name) for name in names], "tnbc")
    assert lines[chapter.OUTLINED].tolist() == [5, 25, 100]
    assert set(lines["variant"]) == {"naive"} and (lines["low"] <= lines["score"]).all()


def test_the_papers_table_is_printed_as_it_is():
    table = chapter.printed(scoreboard.published("partial_labels"))
    assert table.shape == (6, 6) and not table.isna().any(axis=None)
    of = table.xs("U-Net, distance and k-means (proposed)", level="method")
    assert of.loc["DS 2"].tolist() == [0.73, 0.82, 0.76, 0.89, 0.62, 0.78]
    assert of.loc["DS 1, by patient", "AJI"] == 0.88
