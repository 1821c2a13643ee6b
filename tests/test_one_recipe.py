"""Chapter 7: five data sets as one, five ideas that can be left out, and what each is worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_records import rows
from notebook_presets import presets_of

from nuctut import datasets, experiments, targets, views
from nuctut.datasets import dsb2018
from nuctut.experiments import common_ground
from nuctut.experiments import one_recipe as chapter
from nuctut.experiments.one_recipe import DIAMETER, IDEAS, SETS, VARIANTS, Settings
from nuctut.rescaling import mean_diameter

SETTINGS = Settings(
    data="simulated",
    images=1,
    channels=(4, 4, 4, 4, 4),
    crop=64,
    scale="linear",
    gain=0.1,
    colour=0.1,
    gamma=0.2,
    zoom=1.2,
    cross_entropy=1.0,
    distance=15.0,
    smoothing=3.0,
    min_area=0,
    epochs=1,
    updates=2,
    batch_size=2,
    learning_rate=1e-3,
    schedule="one-cycle",
    l2=0.0,
    precision="fp32",
    patience=None,
)


@pytest.fixture(scope="module")
def some():
    return {split: chapter.union(split, "simulated", 1) for split in ("training", "validation")}


# --- the union -----------------------------------------------------------------------------------


def test_a_union_has_images_of_every_set_in_three_channels(some):
    one_of_each = list(some["training"])
    assert [one.tags["set"] for one in one_of_each] == list(SETS)
    assert all(one.image.ndim == 3 and one.key.startswith(f"{one.tags['set']}/")
               for one in one_of_each)  # fmt: skip
    assert some["training"].source == "simulated"
    assert [spec.name for spec in datasets.specs(some["training"].name)] == list(SETS)


def test_a_union_is_as_real_as_the_least_real_of_its_sets():
    assert chapter.FARTHEST_FROM_REAL.index("stand-in") > chapter.FARTHEST_FROM_REAL.index("real")
    auto = chapter.union("training", "auto", 1)
    parts = [datasets.load(name, "training", "auto").source for name in SETS]
    assert auto.source == max(parts, key=chapter.FARTHEST_FROM_REAL.index)


@pytest.mark.skipif(datasets.status("dsb2018").state != "real", reason="dsb2018 is not on disk")
@pytest.mark.skipif(datasets.status("tnbc").state != "real", reason="tnbc is not on disk")
def test_nothing_is_learned_from_that_is_tested_on():
    whole = {split: chapter.union(split, "real") for split in ("training", "validation")}
    learned = {key for one in whole.values() for key in one.keys}
    assert len(learned) == sum(map(len, whole.values()))
    tested_whole = {name for name in SETS if datasets.REGISTRY[name].all_tested}
    for name in set(SETS) - tested_whole:
        tested = common_ground.test_set(name, "auto").keys
        assert not learned & {f"{name}/{key}" for key in tested}
    assert not learned & {f"dsb2018/{key}" for key in dsb2018.in_bbbc039()}


def test_at_the_common_scale_nuclei_are_of_one_size(some):
    sized = chapter.equally_sized(some["validation"])
    for one, before in zip(sized, some["validation"], strict=True):
        assert one.image.dtype == before.image.dtype
        assert mean_diameter(one.labels) == pytest.approx(DIAMETER, rel=0.1)


def test_an_image_without_nuclei_stays_as_it_is(some):
    def emptied(one):
        return type(one)(one.key, one.image, np.zeros_like(one.labels), one.tags)

    empty = some["training"].changed("emptied", emptied)
    assert chapter.equally_sized(empty)[0].image.shape == some["training"][0].image.shape


def test_copies_out_of_focus_are_of_bbbc039_alone_and_only_to_learn_from(some):
    copies = chapter.out_of_focus(chapter.union("training", "simulated", 2))
    assert [one.tags["z"] for one in copies] == ["8", "16"]
    assert {one.tags["sort"] for one in copies} == {"bbbc039 out of focus"}
    whole = chapter.lessons("all-ideas", some["training"])
    assert len(whole) == len(SETS) + 1
    assert len(chapter.lessons("without-blur", some["training"])) == len(SETS)
    assert len(chapter.lessons("all-ideas", some["validation"])) == len(SETS)
    sharp, copy = whole[0].image[..., 0].astype(float), whole[len(SETS)].image[..., 0].astype(float)
    assert np.abs(np.diff(copy, axis=1)).mean() < np.abs(np.diff(sharp, axis=1)).mean()
    assert np.array_equal(whole[0].labels, whole[len(SETS)].labels)


# --- the ideas -----------------------------------------------------------------------------------


def test_each_variant_leaves_one_idea_out():
    for idea in IDEAS:
        assert [name for name in VARIANTS[:-1] if not chapter.has(name, idea)] == [
            f"without-{idea}"
        ]
        assert chapter.has("common", idea) == (idea in chapter.KEPT)
    with pytest.raises(ValueError, match="variant must be one of all-ideas"):
        chapter.has("without-luck", "blur")


def test_what_looks_like_an_overlooked_nucleus_is_left_out(some):
    whole = next(one for one in some["training"] if one.tags["set"] == "tnbc")
    kept = int(np.bincount(whole.labels.ravel())[1:].argmax()) + 1
    one = replace(whole, labels=(whole.labels == kept).astype(np.int32))
    taught = chapter.lesson("all-ideas", one)
    left_out = taught == targets.IGNORE
    overlooked = (whole.labels > 0) & (whole.labels != kept)
    assert left_out[overlooked].mean() > 0.8 > 0.35 > left_out[whole.labels == 0].mean()
    assert not left_out[one.labels > 0].any()
    assert not (chapter.lesson("without-masking", one) == targets.IGNORE).any()


def test_of_fluorescence_nothing_is_left_out(some):
    dark = [one for one in some["training"] if one.tags["set"] != "tnbc"]
    for one in (one for one in dark if views.kind(one.image) == views.DARK):
        assert not (chapter.lesson("all-ideas", one) == targets.IGNORE).any()


def test_separations_are_a_class_of_their_own(some):
    one = some["training"][0]
    with_lines = chapter.lesson("all-ideas", one)
    assert np.array_equal(with_lines, targets.three_classes(one.labels))
    assert set(np.unique(chapter.lesson("without-separations", one))) == {0, 1}
    assert chapter.network("without-separations", SETTINGS).head.out_channels == 2
    assert len(chapter.loss("without-separations", SETTINGS).weights) == 2


def test_balance_draws_rare_sorts_more_often(some):
    many = chapter.lessons("all-ideas", chapter.union("training", "simulated", 2))
    fed = {
        name: chapter.items(name, many, SETTINGS, seed=0, progress=False)
        for name in ("all-ideas", "without-balance")
    }
    shares = dict(zip(many.keys, fed["all-ideas"].shares, strict=True))
    sorts = [one.tags["sort"] for one in many]
    rare = min(sorts, key=sorts.count)
    common = max(sorts, key=sorts.count)
    assert sorts.count(rare) < sorts.count(common)
    assert shares[many.keys[sorts.index(rare)]] > shares[many.keys[sorts.index(common)]]
    assert fed["without-balance"].shares is None
    assert fed["without-balance"].jitter.gamma == fed["without-balance"].jitter.colour == 0


# --- fitted and measured -------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["common", "without-one-size", "without-separations"])
def test_a_network_is_fitted_measured_and_loaded(variant, some, tmp_path: Path):
    pair = tuple(chapter.lessons(variant, one) for one in some.values())
    made = experiments.train(
        chapter, variant, pair, SETTINGS, device="cpu", runs=tmp_path, progress=False
    )
    assert made.diameter == (None if variant == "without-one-size" else DIAMETER)
    assert made.name == "U-Net, 4 to 4 feature maps"
    measured = chapter.measure(made, some["validation"], progress=False)
    assert [row["key"] for row in measured.rows] == list(some["validation"].keys)
    again = experiments.load(made.fit.best.parent, "cpu")
    one = some["validation"][0]
    width = mean_diameter(one.labels) if made.diameter else None
    assert np.array_equal(again(one.image, width), made(one.image, width))


def by_hand(*counts):
    """Two images of each set, of which all have the same outcome."""
    made = []
    for name, count in zip(SETS, counts, strict=True):
        for at, row in enumerate(rows(count, count)):
            made.append(row | {"key": f"{name}/{at}", "tags": {"set": name}})
    return made


def test_the_sets_count_alike_in_the_mean():
    half = by_hand((5, 5, 5), *[(10, 0, 0)] * 4)
    table = chapter.by_set({"one": half}, "f1_50")
    assert list(table.columns) == [*SETS, "mean"]
    assert table.loc["one"].tolist() == pytest.approx([0.5, 1, 1, 1, 1, 0.9])


def test_what_an_idea_is_worth_is_the_mean_difference_over_the_sets():
    whole = by_hand(*[(10, 0, 0)] * 5)
    less = by_hand((5, 5, 5), *[(10, 0, 0)] * 4)
    found = chapter.worth(whole, less, "f1_50")
    assert found.value == pytest.approx(0.1)
    assert found.interval() == pytest.approx((0.1, 0.1))
    assert chapter.worth(less, whole, "f1_50").value == pytest.approx(-0.1)


def test_the_notebook_gives_the_recipe_more_updates_than_what_is_compared():
    presets = presets_of("07_one_recipe")
    for name in ("lite", "paper"):
        updates = {of: one[name].epochs * one[name].updates for of, one in presets.items()}
        assert updates["recipe"] > updates["compared"]
