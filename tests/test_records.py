"""Records: what is counted, what follows from it, and that a file is whole or refused."""

import copy
import json
import math
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from made_records import FIT, record, row, rows

from nuctut import files, machine, metrics, records, scoreboard
from nuctut.machine import git_commit  # before conftest puts another in its place
from nuctut.samples import SOURCES, SampleSet


def squares(*corners, size=6, shape=(30, 30)):
    """Labels of squares with these top left corners."""
    labels = np.zeros(shape, np.int32)
    for number, (y, x) in enumerate(corners, start=1):
        labels[y : y + size, x : x + size] = number
    return labels


# --- rows and scores ----------------------------------------------------------------------------


def test_a_row_counts_what_is_there():
    # one nucleus found exactly, one shifted by 2 of 6 columns (IoU 24/48), one missed, one invented
    true = squares((2, 2), (2, 12), (12, 2))
    pred = squares((2, 2), (2, 14), (12, 20))
    made = records.image_row("a", true, pred, seconds=0.25)
    assert made["n_true"] == 3
    assert made["match"]["0.50"] == {"tp": 2, "fp": 1, "fn": 1, "iou_sum": 1.5}
    assert made["match"]["0.55"] == {"tp": 1, "fp": 2, "fn": 2, "iou_sum": 1.0}
    assert made["object"] == {"n_true": 3, "n_pred": 3, "matched": 2}
    assert made["nuclei"] == {"tp": 60, "fp": 48, "fn": 48, "tn": 900 - 156}
    assert made["separations"] is None
    # an IoU of one half does not find by Kromp's rule
    assert made["kromp"] == {
        "tp": 1, "fp": 2, "fn": 2, "us": 0, "os": 0, "shared": 60, "union": 120, "dice_sum": 1.0,
    }  # fmt: skip
    assert made["aggregated_jaccard"] == pytest.approx(60 / 156, abs=1e-6)
    assert made["seconds"] == 0.25


def test_object_pred_is_used_for_the_object_jaccard_only():
    labels = squares((5, 5), size=12)
    cut = labels.copy()
    cut[:, 11] = 0
    cut[:, 12:][cut[:, 12:] > 0] = 2
    made = records.image_row("a", labels, labels, object_pred=cut)
    assert made["object"] == {"n_true": 1, "n_pred": 2, "matched": 0}
    assert made["match"]["0.95"]["tp"] == 1
    assert made["nuclei"]["fn"] == 0


def test_masks_given_replace_those_of_the_labels():
    labels = squares((5, 5))
    inner = squares((6, 6), size=4) > 0
    made = records.image_row(
        "a", labels, labels, nuclei_true=labels > 0, nuclei_pred=inner,
        separations_true=inner, separations_pred=labels > 0,
    )  # fmt: skip
    assert made["nuclei"] == {"tp": 16, "fp": 0, "fn": 20, "tn": 864}
    assert made["separations"] == {"tp": 16, "fp": 20, "fn": 0, "tn": 864}


def test_one_separation_mask_alone_is_refused():
    with pytest.raises(ValueError, match=r"image 7.*both"):
        records.image_row("image 7", squares(), squares(), separations_true=squares() > 0)


def test_pooled_weighs_nuclei_and_the_mean_weighs_images():
    made = rows((90, 5, 5), (0, 5, 5))
    assert records.scores(made)["average_precision_50"] == pytest.approx(90 / 110)
    assert records.scores(made)["f1_50"] == pytest.approx(180 / 200)
    assert records.scores(made)["object_jaccard"] == pytest.approx(90 / 110)
    assert records.scores(made)["dice_nuclei"] == pytest.approx(180 / 200)
    means = records.scores_per_image_mean(made)
    assert means["average_precision_50"] == pytest.approx(0.45)
    assert means["f1_50"] == pytest.approx(180 / 190 / 2)
    assert means["aggregated_jaccard"] == pytest.approx(0.45)


def test_mean_average_precision_is_the_mean_over_thresholds():
    made = rows((10, 0, 0))
    for threshold in records.THRESHOLD_KEYS[5:]:
        made[0]["match"][threshold] = {"tp": 0, "fp": 10, "fn": 10, "iou_sum": 0.0}
    assert records.scores(made)["mean_average_precision"] == pytest.approx(0.5)
    assert records.scores(made)["average_precision_50"] == 1


def test_an_image_empty_on_both_sides_changes_nothing():
    full, empty = (8, 1, 3), (0, 0, 0)
    assert records.scores(rows(full, empty)) == records.scores(rows(full))
    assert records.scores_per_image_mean(rows(full, empty)) == records.scores_per_image_mean(
        rows(full)
    )
    assert all(math.isnan(value) for value in records.scores(rows(empty)).values())
    assert all(math.isnan(value) for value in records.scores_per_image_mean(rows(empty)).values())


def test_an_image_empty_on_one_side_scores_0_but_where_the_background_counts():
    background = {"pixel_accuracy": 100 / 104, "mean_class_iou": 100 / 104 / 2}
    expected = dict.fromkeys(records.METRICS, 0.0) | background | {"count_error": 1.0}
    missed, invented = rows((0, 0, 4)), rows((0, 4, 0))
    assert records.scores(missed) == pytest.approx(expected)
    assert records.scores_per_image_mean(missed) == pytest.approx(expected)
    nothing_to_count = expected | dict.fromkeys(records.ERRORS, math.nan)
    assert records.scores(invented) == pytest.approx(nothing_to_count, nan_ok=True)
    assert records.scores_per_image_mean(invented) == pytest.approx(nothing_to_count, nan_ok=True)


def test_the_count_error_is_a_share_of_what_is_there_and_may_exceed_1():
    # two found of three, then five found of one: the errors, 1 and 4, do not cancel
    made = rows((2, 0, 1), (1, 4, 0))
    assert records.scores(made)["count_error"] == pytest.approx(5 / 4)
    assert records.per_image(made, "count_error") == pytest.approx([1 / 3, 4])
    # nuclei in an empty image are counted against what the other images hold
    assert records.scores([*made, row("empty", 0, 3)])["count_error"] == pytest.approx(8 / 4)
    assert records.ERRORS == {"count_error", "us_rate", "os_rate"}
    assert records.UNBOUNDED == {"count_error"}


def test_kromps_scores_pool_counts_and_pixels():
    one, other = rows((6, 1, 2), (0, 3, 4))
    one["kromp"] |= {"us": 2, "dice_sum": 5.0, "shared": 50, "union": 80}
    other["kromp"] |= {"os": 1, "shared": 10, "union": 70}
    made = records.scores([one, other])
    assert {name: made[name] for name in records.KROMP_METRICS} == pytest.approx(
        {
            "recall": 6 / 12,
            "precision": 6 / 10,
            "f1_kromp": 12 / 22,
            "us_rate": 2 / 12,
            "os_rate": 1 / 12,
            "dice_found": 5 / 6,
            "aggregated_jaccard_kromp": 60 / 150,
        }
    )
    assert records.per_image([one, other], "recall").tolist() == [6 / 8, 0]


def test_who_finds_nothing_has_a_precision_of_0():
    assert records.scores(rows((0, 0, 4)))["precision"] == 0
    drawn = np.array([[2, 0], [1, 1]])
    assert records.pooled(rows((0, 0, 4), (3, 1, 0)), "precision", drawn).tolist() == [0, 3 / 4]


def test_means_over_images_are_the_same_however_they_are_asked_for():
    made = rows((90, 5, 5), (0, 5, 5), (0, 0, 0))
    pooled, means = records.scores(made), records.scores_per_image_mean(made)
    for metric in ("aggregated_jaccard", "mean_average_precision_per_image", "pixel_iou_per_image"):
        assert pooled[metric] == pytest.approx(0.45)
        assert means[metric] == pytest.approx(0.45)
    assert pooled["pixel_iou"] == pytest.approx(90 / 110)
    assert means["pixel_iou"] == pooled["pixel_iou_per_image"]


def test_the_mean_class_iou_weighs_background_and_nuclei_alike():
    made = rows((60, 20, 20))  # and 100 background pixels that both sides agree on
    assert records.scores(made)["mean_class_iou"] == pytest.approx((60 / 100 + 100 / 140) / 2)
    assert records.scores(made)["pixel_accuracy"] == pytest.approx(160 / 200)


@pytest.fixture(scope="module")
def random_pairs():
    """Labels of squares, and predictions of them shifted, some lost and some invented."""
    rng = np.random.default_rng(0)
    corners = [(y, x) for y in range(1, 40, 9) for x in range(1, 40, 9)]
    pairs = []
    for _ in range(4):
        moved = [(y + rng.integers(3), x + rng.integers(3)) for y, x in corners]
        kept = rng.permutation(len(moved))[: rng.integers(10, 25)]
        pred = squares(*(moved[i] for i in kept), shape=(60, 60))
        pairs.append((squares(*corners[:20], shape=(60, 60)), pred))
    return pairs


def test_scores_agree_with_metrics_on_random_labels(random_pairs):
    made = [records.image_row(str(i), t, p) for i, (t, p) in enumerate(random_pairs)]
    matches = [metrics.match(t, p, metrics.IOU_THRESHOLDS) for t, p in random_pairs]
    by_threshold = [metrics.pool(at) for at in zip(*matches, strict=True)]
    objects = [metrics.object_jaccard(t, p) for t, p in random_pairs]
    pixels = [metrics.pixel_scores(t > 0, p > 0) for t, p in random_pairs]
    backgrounds = [metrics.pixel_scores(t == 0, p == 0) for t, p in random_pairs]
    detections = [metrics.detection(t, p) for t, p in random_pairs]
    half, all_pixels, detected = by_threshold[0], metrics.pool(pixels), metrics.pool(detections)
    counts = [(len(np.unique(t)) - 1, len(np.unique(p)) - 1) for t, p in random_pairs]
    expected = {
        "object_jaccard": metrics.pool(objects).jaccard,
        "f1_50": half.f1,
        "average_precision_50": half.average_precision,
        "mean_average_precision": metrics.mean_average_precision(by_threshold),
        "dice_nuclei": all_pixels.dice,
        "dice_separations": math.nan,
        "aggregated_jaccard": np.mean([metrics.aggregated_jaccard(t, p) for t, p in random_pairs]),
        "mean_average_precision_per_image": metrics.per_image_mean(
            metrics.mean_average_precision(of_image) for of_image in matches
        ),
        "panoptic_quality": half.panoptic_quality,
        "count_error": sum(abs(n - m) for n, m in counts) / sum(n for n, _ in counts),
        "pixel_accuracy": all_pixels.accuracy,
        "pixel_iou": all_pixels.jaccard,
        "pixel_iou_per_image": metrics.per_image_mean(pixels, "jaccard"),
        "mean_class_iou": (all_pixels.jaccard + metrics.pool(backgrounds).jaccard) / 2,
        "recall": detected.recall,
        "precision": detected.precision,
        "f1_kromp": detected.f1,
        "us_rate": detected.us_rate,
        "os_rate": detected.os_rate,
        "dice_found": detected.mean_dice,
        "aggregated_jaccard_kromp": detected.aggregated_jaccard,
    }
    assert records.scores(made) == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert list(expected) == list(records.METRICS)

    means = records.scores_per_image_mean(made)
    at_half = [at[0] for at in matches]
    for metric, results, score in (
        ("object_jaccard", objects, "jaccard"),
        ("f1_50", at_half, "f1"),
        ("average_precision_50", at_half, "average_precision"),
        ("panoptic_quality", at_half, "panoptic_quality"),
        ("dice_nuclei", pixels, "dice"),
        ("pixel_accuracy", pixels, "accuracy"),
        ("precision", detections, "precision"),
        ("aggregated_jaccard_kromp", detections, "aggregated_jaccard"),
    ):
        assert means[metric] == pytest.approx(metrics.per_image_mean(results, score), abs=1e-6)


@pytest.mark.parametrize("metric", records.METRICS)
def test_weights_mean_drawing_an_image_that_often(metric):
    made = rows((5, 1, 0), (2, 2, 2), (0, 0, 0), (7, 0, 9))
    drawn = np.array([[1, 1, 1, 1], [0, 3, 1, 0], [2, 0, 0, 2]])
    expected = [
        records.pooled([made[i] for i in range(4) for _ in range(line[i])], metric)
        for line in drawn
    ]
    assert records.pooled(made, metric, drawn) == pytest.approx(expected)


@pytest.mark.parametrize("score", [records.pooled, records.per_image])
def test_an_unknown_metric_is_refused(score):
    with pytest.raises(ValueError, match=r"'accuracy' is no metric; .*pixel_accuracy"):
        score(rows((1, 0, 0)), "accuracy")


def uneven_images():
    """Images whose numbers give another last digit when they are added up in another order."""
    made = rows(*[(1 + n % 7, n % 3, n % 5) for n in range(40)])
    for number, one in enumerate(made):
        one |= {"aggregated_jaccard": (number + 1) / 41, "seconds": 0.1 / (number + 1)}
        one["tags"] = {"kind": "abc"[number % 3]}
        for match in one["match"].values():
            match["iou_sum"] = match["tp"] * (1 - 0.001 / (number + 3))
    return made


def test_the_order_of_the_images_shows_in_no_digit():
    made, rng = uneven_images(), np.random.default_rng(0)
    for _ in range(5):
        turned = [made[i] for i in rng.permutation(len(made))]
        for numbers in (
            records.scores,
            records.scores_per_image_mean,
            records.seconds_per_megapixel,
            lambda images: records.scores_by_tag(images, "kind").to_csv(),
            lambda images: record(images).budget["seconds_per_image"],
        ):
            assert repr(numbers(turned)) == repr(numbers(made))


# --- groups of images ---------------------------------------------------------------------------


def test_a_row_keeps_its_tags_and_does_without():
    labels = squares((5, 5))
    tags = {"modality": "stained"}
    made = records.image_row("a", labels, labels, tags=tags)
    assert made["tags"] == tags and made["tags"] is not tags
    assert "tags" not in records.image_row("a", labels, labels)
    assert "tags" not in records.image_row("a", labels, labels, tags={})


def tagged(*groups):
    """Images of (modality, tp, fp, fn)."""
    return [
        row(str(index), *counts) | {"tags": {"modality": modality}}
        for index, (modality, *counts) in enumerate(groups)
    ]


def test_scores_by_tag_are_those_of_the_images_that_bear_it():
    made = tagged(("stained", 9, 1, 0), ("fluorescence", 3, 0, 1), ("stained", 1, 0, 9))
    table = records.scores_by_tag(made, "modality")
    assert table.index.tolist() == ["fluorescence", "stained"]
    assert table.index.name == "modality"
    assert table.columns.tolist() == ["images", *records.METRICS]
    assert table["images"].tolist() == [1, 2]
    stained = records.scores([made[0], made[2]])
    assert table.loc["stained"].to_dict() == pytest.approx(stained | {"images": 2})


def test_of_two_seeds_an_image_counts_once():
    one, other = tagged(("stained", 9, 1, 0)), tagged(("stained", 5, 1, 4))
    table = records.scores_by_tag([*one, *other], "modality")
    assert table.loc["stained", "images"] == 1
    assert table.loc["stained", "f1_50"] == records.scores([*one, *other])["f1_50"]


def patients(*groups):
    """Images of (patient, tp, fp, fn, tn) pixels."""
    made = []
    for index, (patient, *counts) in enumerate(groups):
        pixels = dict(zip(("tp", "fp", "fn", "tn"), counts, strict=True))
        one = row(str(index), 1) | {"nuclei": pixels, "aggregated_jaccard": counts[0] / 100}
        made.append(one | ({"tags": {"patient": patient}} if patient else {}))
    return made


SICK = patients(("1", 30, 10, 20, 40), ("1", 10, 0, 30, 60), ("2", 25, 25, 0, 50))


@pytest.mark.parametrize(
    ("metric", "of_images"),
    [
        ("pixel_recall", (30 / 50, 10 / 40, 25 / 25)),
        ("pixel_precision", (30 / 40, 10 / 10, 25 / 50)),
        ("dice_nuclei", (60 / 90, 20 / 50, 50 / 75)),
        ("pixel_accuracy", (0.7, 0.7, 0.75)),
        ("pixel_iou", (30 / 60, 10 / 40, 25 / 50)),
        ("jaccard_with_background", (0.7 / 1.3, 0.7 / 1.3, 0.75 / 1.25)),
        ("aggregated_jaccard", (0.3, 0.1, 0.25)),
    ],
)
def test_means_over_images_and_over_patients(metric, of_images):
    a, b, c = of_images
    by_patient = f"{metric}_per_patient"
    assert records.per_image(SICK, by_patient) == pytest.approx(of_images)
    assert records.pooled(SICK, by_patient) == pytest.approx(((a + b) / 2 + c) / 2)
    by_image = "aggregated_jaccard" if metric == "aggregated_jaccard" else f"{metric}_per_image"
    assert records.pooled(SICK, by_image) == pytest.approx((a + b + c) / 3)
    spread = records.spread(SICK, by_image)
    assert spread == pytest.approx((3, np.mean(of_images), np.std(of_images, ddof=1)))
    of_patients = ((a + b) / 2, c)
    spread = records.spread(SICK, by_image, by="patient")
    assert spread == pytest.approx((2, np.mean(of_patients), np.std(of_patients, ddof=1)))


def test_a_patient_drawn_twice_weighs_twice():
    drawn = np.array([[2, 2, 1], [0, 0, 3]])
    values = records.pooled(SICK, "pixel_recall_per_patient", drawn)
    one, other = (30 / 50 + 10 / 40) / 2, 1.0
    assert values == pytest.approx([(2 * one + other) / 3, other])


def test_an_image_counts_for_its_patient_if_it_has_a_score():
    made = patients(("1", 10, 0, 0, 90), ("1", 0, 0, 0, 100), ("", 1, 0, 99, 0))
    assert records.pooled(made, "pixel_recall_per_patient") == 1
    assert records.pooled(made[2:], "pixel_recall_per_patient", np.ones((1, 1))) == pytest.approx(
        [math.nan], nan_ok=True
    )
    assert math.isnan(records.spread(made[:2], "pixel_recall_per_image").deviation)


def test_where_one_side_is_empty_recall_and_precision_are_0():
    for counts in ((0, 5, 0, 95), (0, 0, 5, 95)):
        made = patients(("1", *counts))
        for metric in ("pixel_recall_per_image", "pixel_precision_per_image"):
            assert records.pooled(made, metric) == 0


def test_what_is_derived_is_not_stored():
    assert not set(records.DERIVED) & set(record(SICK).scores) - {"pixel_iou_per_image"}
    same = (
        records.DERIVED["pixel_iou_per_image"](SICK),
        records.FRACTIONS["pixel_iou_per_image"](SICK),
    )
    np.testing.assert_array_equal(*same)


def test_the_harmonic_mean_of_sharp_and_blurred_images():
    focus = [("sharp", 8, 2, 0), ("blurred", 1, 1, 0), ("blurred", 2, 0, 4), ("", 0, 9, 9)]
    made = [
        row(str(n), *counts) | {"tags": {"focus": of} if of else {}}
        for n, (of, *counts) in enumerate(focus)
    ]
    sharp, blurred = 16 / 18, 6 / 11
    mean = 2 * sharp * blurred / (sharp + blurred)
    assert records.pooled(made, "nhm") == pytest.approx(mean)
    drawn = records.pooled(made, "nhm", np.array([[1, 1, 1, 1], [2, 3, 0, 0], [1, 0, 0, 5]]))
    second = 2 / (1 / sharp + 1 / (2 / 3))
    assert drawn == pytest.approx([mean, second, math.nan], nan_ok=True)
    made[0] |= row("0", 0, 9, 9)
    assert records.pooled(made, "nhm") == 0  # nothing is found in sharp images
    assert math.isnan(records.pooled(made[1:], "nhm"))  # and now there are none


def test_nuclei_are_counted_at_a_looser_iou_too(tmp_path):
    labels = squares((4, 4), (20, 20))
    shifted = squares((4, 6), (20, 23))  # of 6 × 6: IoU 24/48 and 18/54
    made = records.image_row("a", labels, shifted)
    assert made["match"]["0.50"]["tp"] == 1
    assert made["loose"] == {"tp": 2, "fp": 0, "fn": 0}
    assert records.pooled([made], "f1_25") == 1 > records.pooled([made], "f1_50")
    assert math.isnan(records.pooled(rows((8, 1, 3)), "f1_25"))  # of an older record
    path = records.write(record([made]), tmp_path)
    assert records.read(path).images == [made]
    path.write_text(path.read_text().replace('"loose": {"tp": 2', '"loose": {"tp": 0'))
    with pytest.raises(ValueError, match="loose must count the nuclei that match counts"):
        records.read(path)


def test_an_image_without_the_tag_is_named():
    made = [*tagged(("stained", 9, 1, 0)), row("seven", 1)]
    with pytest.raises(ValueError, match=r"seven: the row has no tag 'modality'"):
        records.scores_by_tag(made, "modality")


def test_seeds_of_different_images_are_in_no_table_by_tag():
    one = tagged(("stained", 9, 1, 0), ("stained", 8, 1, 0))
    with pytest.raises(ValueError, match=r"^1: 1 rows of this image, and 2 of others"):
        records.scores_by_tag([*one, one[0]], "modality")


def test_tags_survive_the_file(tmp_path):
    made = tagged(("stained", 9, 1, 0), ("fluorescence", 3, 0, 1))
    assert records.read(records.write(record(made), tmp_path)).images == made


# --- files --------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    made = record(rows((8, 1, 3), (4, 0, 0)), seed=3, preset="paper")
    path = records.write(made, tmp_path)
    assert path == tmp_path / "01_labels_for_free" / "dl-ground-truth--paper--s3.json"
    again = records.read(path)
    assert again == made
    assert again.path == path
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def many(separations=False, **tags):
    """Rows enough for a table, of a dozen measured images, each with the tags and its own."""
    rng, measured = np.random.default_rng(5), []
    true = squares((2, 2), (2, 12), (14, 3), (20, 20))
    for number in range(12):
        pred = np.roll(true, rng.integers(-3, 4, 2), (0, 1)) * (number > 0)
        masks = {"separations_true": true == 1, "separations_pred": pred == 1}
        how = {"seconds": float(rng.random())} | (masks if separations else {})
        measured.append(records.image_row("", true, pred, **how))
    made = []
    for index in range(records.MANY + 1):
        own = {"field": f"field {index // 6}", "z": str(index % 6)} | tags
        made.append(copy.deepcopy(measured[index % 12]) | {"key": str(index), "tags": own})
    return made


def without_upper_sums(images):
    """Rows without the sums of IoUs that a table leaves out."""
    made = copy.deepcopy(images)
    for one in made:
        for name in records.THRESHOLD_KEYS[1:]:
            one["match"][name].pop("iou_sum", None)
    return made


@pytest.mark.parametrize("separations", [True, False])
def test_many_images_are_written_as_a_table_and_read_as_they_were(tmp_path, separations):
    images = many(separations, kind="a/b.c")
    path = records.write(record(images), tmp_path)
    assert json.loads(path.read_text())["images"].keys() == {"columns", "texts", "rows"}
    again = records.read(path)
    assert again.images == without_upper_sums(images)
    for metric in (*records.METRICS, *records.DERIVED):
        before, after = (records.per_image(one, metric) for one in (images, again.images))
        np.testing.assert_array_equal(before, after)
    first = path.read_text()
    assert records.write(again, tmp_path).read_text() == first  # and again the same


def test_few_images_and_unlike_ones_are_written_one_by_one(tmp_path):
    images = many()
    assert records.read(records.write(record(images[:-1]), tmp_path)).images == images[:-1]
    images[7]["tags"]["mood"] = "good"
    assert records.read(records.write(record(images), tmp_path)).images == images


def test_a_table_is_a_fraction_of_the_rows(tmp_path):
    """Of a chapter's seed with sixteen networks, 300 images each, all fits into 1.5 MB."""
    key = "IXMtest_A09_s1_w1CE70AD49-290D-4312-82E6-CDC717F3263"
    images = []
    for one in many(well="A09", site="1", focus="blurred", crowded="no"):
        field = f"{key}{one['tags']['field']}"
        images.append(one | {"key": f"{key}{one['key']}", "tags": one["tags"] | {"field": field}})
    size = records.write(record(images), tmp_path).stat().st_size
    assert size / len(images) < 270 < len(json.dumps(images)) / len(images) / 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda of: of["rows"][3].pop(), "images: expected a list, or a table"),
        (lambda of: of["rows"].append(3), "images: expected a list, or a table"),
        (lambda of: of.pop("texts"), "images must be a list"),
        (lambda of: of["texts"].pop(), "images: expected a list, or a table"),
        (lambda of: of["columns"].pop(1), "images: expected a list, or a table"),
        (lambda of: of["columns"].__setitem__(2, ["mood"]), r"images\.0\.n_true is missing"),
        (lambda of: of["rows"][2].__setitem__(1, -1), r"images\.2 must be 0 or more, not -1"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, change, reason):
    path = records.write(record(many()), tmp_path)
    payload = json.loads(path.read_text())
    change(payload["images"])
    path.write_text(json.dumps(payload))
    with pytest.raises(files.Malformed, match=rf"--s0\.json: {reason}"):
        records.read(path)


def test_a_score_that_is_not_there_is_null_in_the_file_and_nan_in_memory(tmp_path):
    images = [row("a", 3, separations=False)]
    path = records.write(record(images), tmp_path)
    assert json.loads(path.read_text())["scores"]["dice_separations"] is None
    assert math.isnan(records.read(path).scores["dice_separations"])


def test_a_count_error_above_1_is_a_sound_score(tmp_path):
    made = record(rows((1, 4, 0)))
    assert records.read(records.write(made, tmp_path)).scores["count_error"] == 4


def test_numpy_numbers_and_paths_are_written(tmp_path):
    made = record(rows((1, 0, 0)), budget={"updates": np.int64(7), "seconds": np.float32(0.5)})
    made.parameters["folder"] = tmp_path
    again = records.read(records.write(made, tmp_path))
    assert (again.budget["updates"], again.budget["seconds"]) == (7, 0.5)
    assert again.parameters["folder"] == str(tmp_path)


def test_of_run_fills_in_what_the_run_need_not_know():
    made = record(rows((1, 0, 0), (1, 1, 0)))
    assert made.budget["seconds_per_image"] == 0.5
    assert made.budget["device"]
    assert made.versions["python"] and made.versions["numpy"] == np.__version__
    assert made.scores == records.scores(made.images)
    given = record(rows((1, 0, 0)), budget={"seconds_per_image": 9.0, "device": "abacus"})
    assert (given.budget["seconds_per_image"], given.budget["device"]) == (9.0, "abacus")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = records.write(record(rows((1, 0, 0))), tmp_path)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        records.write(record(rows((2, 0, 0))), tmp_path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_malformed_record_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"dl-ground-truth--lite--s0\.json: data\.source"):
        records.write(record(rows((1, 0, 0)), source="dreamt"), tmp_path)
    with pytest.raises(ValueError, match="chapter"):
        made = record(rows((1, 0, 0)))
        object.__setattr__(made, "chapter", "../elsewhere")
        records.write(made, tmp_path)
    assert list(tmp_path.iterdir()) == []


SEVEN = {"tp": 7, "fp": 2, "fn": 4, "iou_sum": 7.0}  # found where all other thresholds find 8
MALFORMED = [
    ("schema", 2, "schema must be one of 1, not 2"),
    ("chapter", None, "chapter must be a text, not null"),
    ("chapter", "../elsewhere", "chapter must be a name"),
    ("variant", "DL GT", "variant must be a name"),
    ("variant", "a--b", "variant must be a name"),
    ("preset", "huge", "preset must be one of 'smoke', 'read', 'lite' or 'paper', not"),
    ("seed", -1, "seed must be 0 or more"),
    ("seed", True, "seed must be a whole number"),
    ("seed", 1.5, "seed must be a whole number"),
    ("created", "yesterday", "created must be an ISO 8601 time"),
    ("created", "2026-01-01T00:00:00", "created must be an ISO 8601 time with its zone"),
    ("data", [], "data must be an object"),
    ("data.source", "dreamt", "data.source must be one of 'real', 'excerpt', "),
    ("data.fingerprint", "", "data.fingerprint must be a text"),
    ("data.count", 3, "images must hold data.count = 3 rows, not 2"),
    ("data.training", {"split": "training"}, "data.training.fingerprint is missing"),
    ("scores.f1_50", 1.5, "scores.f1_50 must be .*, as the images give, not 1.5"),
    ("scores.f1_50", 0.5, "scores.f1_50 must be .*, as the images give, not 0.5"),
    ("scores.f1_50", None, "scores.f1_50 must be .*, as the images give, not null"),
    ("scores_per_image_mean.aggregated_jaccard", "high", "scores_per_image_mean.aggregated_"),
    ("images", [], "images must be a list of 1 or more"),
    ("images", {}, "images must be a list"),
    ("images.1.key", "0", 'images hold the key "0" more than once'),
    ("images.1", "text", r"images\.1 must be an object, not"),
    ("images.1.object.matched", -1, r"images\.1\.object\.matched must be 0 or more"),
    ("images.0.nuclei.tp", 1.5, r"images\.0\.nuclei\.tp must be a whole number"),
    ("images.0.separations", None, "separations in every row, or null in every row"),
    ("images.0.aggregated_jaccard", 2, r"images\.0\.aggregated_jaccard must be 1 or less"),
    ("images.0.seconds", -1, r"images\.0\.seconds must be 0 or more"),
    ("images.0.tags", "stained", r"images\.0\.tags must be an object"),
    ("images.0.tags", {"modality": 3}, r"images\.0\.tags\.modality must be a text"),
    ("images.0.tags", {"modality": ""}, r"images\.0\.tags\.modality must be a text that is not"),
    ("scores.count_error", -0.5, "scores.count_error must be 0 or more"),
    ("budget.updates", 0.5, "budget.updates must be a whole number"),
    ("budget.device", None, "budget.device must be a text"),
    ("versions", "3.11", "versions must be an object"),
    ("git_commit", 5, "git_commit must be a text"),
    ("parameters", None, "parameters must be an object"),
    ("git_commit", "", "git_commit must be a text that is not empty"),
    ("data.mood", "good", "data.mood is no field of it"),
    ("images.0.mood", "good", r"images\.0\.mood is no field of it"),
    ("images.0.match.0~99", {}, r"images\.0\.match\.0\.99 is no field of it"),
    ("path", "/elsewhere", "path is no field of it"),
    ("path", None, "path is no field of it"),
    ("seed", 10**400, "seed must be 9007199254740992 or less"),
    ("budget.seconds", 10**400, "budget.seconds must be a finite number"),
    ("budget.seconds", None, "budget.seconds must be a number"),
    ("budget.weights", "many", "budget.weights must be a whole number"),
    ("budget.seconds_per_tile", "long", "budget: seconds_per_tile must be a number, 0 or more"),
    ("budget.seconds_per_tile", True, "budget: seconds_per_tile must be a number, 0 or more"),
    ("budget.seconds_per_tile", -1, "budget: seconds_per_tile must be a number, 0 or more"),
    ("budget.seconds_per_tile", 10**400, "budget: seconds_per_tile must be a number, 0 or more"),
    ("parameters.rate", math.inf, "Infinity is no finite number"),
    ("parameters.rate", [{"x": math.nan}], "NaN is no finite number"),
    ("scores.f1_50", math.nan, "scores.f1_50 must be a finite number"),
    ("scores.f1_50", 10**400, "scores.f1_50 must be a finite number"),
    ("fit", [], "fit must be an object"),
    ("fit", {}, "fit.git_commit is missing"),
    ("fit", FIT | {"git_commit": 5}, "fit.git_commit must be a text"),
    ("fit", FIT | {"code": "A" * 16}, "fit.code must be 16 hexadecimal digits"),
    ("fit", FIT | {"weights_sha256": "b" * 63}, "fit.weights_sha256 must be 64 hexadecimal digits"),
    ("fit", FIT | {"started": "2026-01-01"}, "fit.started must be an ISO 8601 time with its zone"),
    ("fit", FIT | {"ended": 5}, "fit.ended must be a text"),
    ("fit", FIT | {"accepted_old_code": 1}, "fit.accepted_old_code must be true or false"),
    ("fit", FIT | {"mood": "good"}, "fit.mood is no field of it"),
    # what must agree within an image: 8 found, 1 invented, 3 missed
    ("images.0.n_true", 12, r"images\.0: match\.0\.50: tp \+ fn must be n_true = 12"),
    ("images.0.match.0~75.fn", 4, r"images\.0: match\.0\.75: tp \+ fn must be n_true = 11"),
    ("images.0.match.0~75.fp", 2, r"images\.0: match\.0\.75: tp \+ fp must be 9, as at 0\.50"),
    ("images.0.match.0~50.iou_sum", 8.01, r"images\.0: match\.0\.50\.iou_sum must lie from 8\.0"),
    ("images.0.match.0~50.iou_sum", 7.99, r"images\.0: match\.0\.50\.iou_sum must lie from 8\.0"),
    ("images.0.match.0~95.iou_sum", 7.59, r"images\.0: match\.0\.95\.iou_sum must lie from 7\.6"),
    ("images.0.match.0~95.iou_sum", 8.01, r"must lie from 7\.600000 to 8\.000000, .* not 8\.01"),
    ("images.0.match.0~70", SEVEN, r"images\.0: match\.0\.75\.tp must be at most that of 0\.70"),
    ("images.0.object.n_true", 12, r"images\.0: object\.n_true must be at most n_true = 11"),
    ("images.0.object.matched", 10, r"images\.0: object\.matched must be at most"),
    ("images.0.nuclei.tn", 101, r"images\.0: nuclei and separations must count equally many"),
    ("images.0.aggregated_jaccard", None, r"images\.0: aggregated_jaccard must be null where both"),
    ("images.0.kromp.tp", 7, r"images\.0: kromp: tp \+ fn must be 11, as match counts"),
    ("images.0.kromp.fp", 2, r"images\.0: kromp: tp \+ fp must be 9, as match counts"),
    ("images.0.kromp.us", 4, r"images\.0: kromp\.us must be at most 3"),
    ("images.0.kromp.os", 12, r"images\.0: kromp\.os must be at most 11"),
    ("images.0.kromp.shared", 13, r"images\.0: kromp\.shared must be at most 12"),
    ("images.0.kromp.dice_sum", 5.3, r"images\.0: kromp\.dice_sum must lie from two thirds of tp"),
    ("images.0.kromp", None, r"images\.0\.kromp must be an object"),
    ("scores.recall", None, "scores.recall must be .*, as the images give, not null"),
    ("mood", "good", "mood is no field of it; remove it"),
]


def step(place, name):
    return int(name) if isinstance(place, list) else name.replace("~", ".")


@pytest.mark.parametrize(("field", "value", "message"), MALFORMED)
def test_a_malformed_record_is_refused_by_file_and_field(tmp_path, field, value, message):
    path = records.write(record(rows((8, 1, 3), (4, 0, 0))), tmp_path)
    payload = json.loads(path.read_text())
    place = payload
    *way, last = field.split(".")
    for name in way:
        place = place[step(place, name)]
    place[step(place, last)] = value
    path.write_text(json.dumps(payload))
    with pytest.raises(ValueError, match=rf"dl-ground-truth--lite--s0\.json: .*{message}"):
        records.read(path)


def without_kromp(path, of=slice(None)):
    """The file as the book wrote it before it counted by Kromp's rule."""
    payload = json.loads(path.read_text())
    for image in payload["images"][of]:
        del image["kromp"]
    for block in ("scores", "scores_per_image_mean"):
        for name in records.KROMP_METRICS:
            del payload[block][name]
    path.write_text(json.dumps(payload))


def test_a_record_without_kromps_counts_still_reads(tmp_path):
    path = records.write(record(rows((8, 1, 3), (4, 0, 0))), tmp_path)
    without_kromp(path)
    old = records.read(path)
    assert list(old.scores) == list(records.METRICS)
    assert {name for name, value in old.scores.items() if math.isnan(value)} == {
        *records.KROMP_METRICS
    }
    assert records.read(records.write(old, tmp_path)).scores == pytest.approx(
        old.scores, nan_ok=True
    )


def test_kromps_counts_are_of_all_images_or_of_none(tmp_path):
    path = records.write(record(rows((8, 1, 3), (4, 0, 0))), tmp_path)
    without_kromp(path, slice(1))
    with pytest.raises(ValueError, match="images must have kromp in every row, or in none"):
        records.read(path)


@pytest.mark.parametrize("name", ["chapter", "data", "scores", "images", "budget", "git_commit"])
def test_a_missing_field_is_named(tmp_path, name):
    path = records.write(record(rows((8, 1, 3))), tmp_path)
    payload = json.loads(path.read_text())
    del payload[name]
    path.write_text(json.dumps(payload))
    with pytest.raises(ValueError, match=rf"json: {name} is missing"):
        records.read(path)


def test_pairs_that_a_threshold_loses_have_ious_below_it(tmp_path):
    """Of 8 pairs, one has an IoU from 0.70 to 0.75: what that may be is told."""
    made = row("a", 8, 1, 3)
    for threshold in records.THRESHOLD_KEYS[5:]:
        made["match"][threshold] = {"tp": 7, "fp": 2, "fn": 4, "iou_sum": 6.9}
    for sum_below, sound in ((7.6, True), (7.65, True), (7.599, False), (7.651, False)):
        for threshold in records.THRESHOLD_KEYS[:5]:
            made["match"][threshold]["iou_sum"] = sum_below
        if sound:
            records.write(record([made]), tmp_path)
            continue
        with pytest.raises(
            ValueError, match=r"0\.70\.iou_sum must lie from 7\.600000 to 7\.650000"
        ):
            records.write(record([made]), tmp_path)


def test_an_image_of_no_pixels_is_none(tmp_path):
    made = row("a", 0, separations=False)
    made["nuclei"]["tn"] = 0
    with pytest.raises(
        ValueError, match=r"images\.0: nuclei and separations must count .* 1 or more"
    ):
        records.write(record([made]), tmp_path)


def test_rounding_to_six_digits_makes_no_record_malformed(tmp_path):
    """Every pair just reaches a threshold, or just misses the next, and is rounded past it."""
    for beside in (1e-9, 0.05 - 1e-9):
        made = row("a", 10)
        for index, name in enumerate(records.THRESHOLD_KEYS):
            left = [at + beside for at in metrics.IOU_THRESHOLDS[index:]]
            iou_sum = round(math.fsum(left), 6)
            made["match"][name] = {"tp": len(left), "fp": index, "fn": index, "iou_sum": iou_sum}
        made |= {"n_true": 10, "object": {"n_true": 10, "n_pred": 10, "matched": 9}}
        assert records.read(records.write(record([made]), tmp_path)).images == [made]


def test_two_fields_of_one_name_are_refused(tmp_path):
    path = records.write(record(rows((8, 1, 3))), tmp_path)
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1, "seed": 0'))
    with pytest.raises(files.Malformed, match=r'--s0\.json: .* two fields named "seed"'):
        records.read(path)


def test_what_nests_too_deeply_is_refused_by_name(tmp_path):
    path = records.write(record(rows((8, 1, 3))), tmp_path)
    deep = 100_000 * "[" + 100_000 * "]"
    path.write_text(path.read_text().replace('"learning_rate": 0.001', f'"learning_rate": {deep}'))
    with pytest.raises(files.Malformed, match=r"--s0\.json: not a JSON file \(recursion limit"):
        records.read(path)


POOL = (None, True, False, 0, -1, 1.5, -0.5, 10**20, 10**400, 1e308, math.nan, math.inf, "", "x",
        "0.5", "2026-01-01", "\u0000", [], {}, [[]], {"a": {}}, 7 * [None])  # fmt: skip


def places(value, way=()):
    """Every way into nested dicts and lists."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in pairs:
        yield (*way, name)
        if isinstance(item, dict | list):
            yield from places(item, (*way, name))


def mutated(text, rng):
    """A text that was damaged in one place: a field of it, or its letters."""
    kind = rng.integers(6)
    where = int(rng.integers(len(text)))
    if kind == 0:
        return text[:where]
    if kind == 1:
        return text[:where] + chr(rng.integers(1, 300)) + text[where + 1 :]
    if kind == 2:
        return text[:where] + text[where : where + int(rng.integers(1, 60))] + text[where:]
    content = json.loads(text)
    ways = list(places(content))
    *way, last = ways[rng.integers(len(ways))]
    place = content
    for name in way:
        place = place[name]
    if kind == 3:
        del place[last]
    else:
        item = POOL[rng.integers(len(POOL))]
        for _ in range(int(rng.choice((0, 0, 0, 1, 300)))):
            item = [item]
        place[last] = item
    return json.dumps(content)


def test_a_damaged_record_is_read_or_refused_by_name_and_nothing_else(tmp_path):
    images = [one | {"tags": {"kind": "b"}} for one in rows((8, 1, 3), (4, 0, 0), (0, 0, 0))]
    path = records.write(record(images, fit=FIT), tmp_path)
    sound = path.read_text()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(600):
        path.write_text(mutated(sound, rng), encoding="utf-8")
        try:
            made = records.read(path)
        except files.Malformed as error:
            assert str(error).startswith(f"{path}: ") and len(str(error)) < 600
            refused += 1
            continue
        # what is read can be worked with, too
        records.write(made, tmp_path / "again")
        assert len(records.as_table([made])) == 1
        assert scoreboard.record_cards([made], pd.DataFrame({"files": [scoreboard.file_of(made)]}))
    assert 300 < refused < 600  # both happen


def test_a_missing_threshold_is_named(tmp_path):
    path = records.write(record(rows((8, 1, 3))), tmp_path)
    payload = json.loads(path.read_text())
    del payload["images"][0]["match"]["0.75"]
    path.write_text(json.dumps(payload))
    with pytest.raises(ValueError, match=r"json: images\.0\.match\.0\.75 is missing"):
        records.read(path)


@pytest.mark.parametrize("content", [b"", b'{"schema": 1', b'{"seed": nan}'])
def test_what_is_not_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "broken--lite--s0.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken--lite--s0\.json: not a JSON file"):
        records.read(path)


def test_a_list_is_no_record(tmp_path):
    path = tmp_path / "list.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"list\.json: its content must be an object, not"):
        records.read(path)


def test_a_renamed_record_is_refused(tmp_path):
    path = records.write(record(rows((8, 1, 3))), tmp_path)
    renamed = path.rename(path.with_name("dl-consensus--lite--s0.json"))
    with pytest.raises(ValueError, match=r"belongs into a file named dl-ground-truth--lite--s0"):
        records.read(renamed)


def test_read_all_is_sorted_and_names_the_broken_one(tmp_path):
    assert records.read_all(tmp_path / "nowhere") == []
    for seed in (2, 0, 1):
        records.write(record(rows((1, 0, 0)), seed=seed), tmp_path)
    assert [one.seed for one in records.read_all(tmp_path)] == [0, 1, 2]
    (tmp_path / "01_labels_for_free" / "zzz.json").write_text("{")
    with pytest.raises(ValueError, match=r"zzz\.json: .* Restore it, or remove it and"):
        records.read_all(tmp_path)


def test_the_table_has_a_line_per_record(tmp_path):
    one = record(rows((8, 1, 1), (0, 0, 0)), budget={"weights": 1234, "peak_memory_gb": 1.5})
    one.parameters["network"] = "U-Net, 16 channels"
    records.write(one, tmp_path)
    table = records.as_table([*records.read_all(tmp_path), record(rows((1, 0, 0)), seed=5)])
    assert table["seed"].tolist() == [0, 5]
    assert table["object_jaccard"].tolist() == pytest.approx([0.8, 1.0])
    assert table["aggregated_jaccard"].tolist() == pytest.approx([0.8, 1.0])
    assert table["network"].tolist() == ["U-Net, 16 channels", ""]
    assert table["weights"].tolist() == pytest.approx([1234, math.nan], nan_ok=True)
    assert table["peak_memory_gb"][0] == 1.5
    # two images of half a second each, of 110 pixels and of 100
    assert table["seconds_per_megapixel"][0] == pytest.approx(1e6 / 210)
    assert table["file"].tolist() == ["dl-ground-truth--lite--s0.json", ""]
    assert list(records.as_table([]).columns) == list(table.columns)


# --- evidence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", records.PRESETS)
@pytest.mark.parametrize("source", SOURCES)
def test_only_evidence_and_what_stands_in_for_it_is_committed(preset, source):
    folder = records.folder_for(preset, source)
    if source in ("real", "stand-in") and preset in ("lite", "paper"):
        assert folder == records.results_root()
    else:
        assert folder == records.runs_root() / "results"


DIRTY = f"{40 * '1'}-dirty"


@pytest.mark.parametrize(
    ("made", "obstacle"),
    [
        ({}, ""),
        ({"preset": "paper", "fit": FIT}, ""),
        ({"git_commit": None, "fit": FIT | {"git_commit": None}}, ""),
        ({"preset": "smoke"}, "smoke preset"),
        ({"source": "stand-in"}, "stand-in data"),
        ({"source": "excerpt", "preset": "paper"}, "excerpt data"),
        ({"git_commit": DIRTY, "source": "simulated"}, "simulated data"),
        ({"git_commit": DIRTY}, "measured from a changed checkout"),
        ({"git_commit": DIRTY, "fit": FIT}, "measured from a changed checkout"),
        ({"fit": FIT | {"git_commit": DIRTY}}, "trained from a changed checkout"),
        ({"fit": FIT | {"git_commit": f"{DIRTY}, abc"}}, "trained from a changed checkout"),
    ],
)
def test_a_record_says_what_keeps_it_from_being_evidence(made, obstacle):
    one = record(rows((1, 0, 0)), **made)
    assert one.obstacle == obstacle
    assert one.is_evidence == (not obstacle)
    assert one.flaw == ("" if obstacle == "stand-in data" else obstacle)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Where `results/` and `runs/` are."""
    monkeypatch.setattr(records, "results_root", lambda: tmp_path / "results")
    monkeypatch.setenv("NUCTUT_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv(records.OWN_FOLDER, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("made", "how"),
    [
        ({"git_commit": DIRTY}, "measured"),
        ({"fit": FIT | {"git_commit": DIRTY}}, "trained"),
    ],
)
def test_a_record_of_a_changed_checkout_is_written_below_runs(project, made, how):
    with pytest.warns(UserWarning, match=rf"^No evidence: {how} from a changed checkout.*commit"):
        path = records.write(record(rows((1, 0, 0)), **made))
    assert path.parent == project / "runs" / "results" / "01_labels_for_free"
    assert not (project / "results").exists()


@pytest.mark.filterwarnings("error")
def test_evidence_is_written_below_results(project):
    path = records.write(record(rows((1, 0, 0)), fit=FIT))
    assert path.parent == project / "results" / "01_labels_for_free"
    smoke = records.write(record(rows((1, 0, 0)), preset="smoke", git_commit=DIRTY))
    assert smoke.is_relative_to(project / "runs")


def test_records_of_a_stand_in_are_committed_apart_from_real_ones(project):
    real, stand_in = record(rows((1, 0, 0))), record(rows((1, 0, 0)), source="stand-in")
    apart = records.write(stand_in)
    assert records.write(real).parent == project / "results" / "01_labels_for_free"
    assert apart.parent == project / "results" / "01_labels_for_free" / "stand-in"
    assert [one.is_evidence for one in records.read_all(project / "results")] == [True, False]
    smoke = record(rows((1, 0, 0)), source="stand-in", preset="smoke")
    assert records.write(smoke).is_relative_to(project / "runs" / "results")
    dirty = record(rows((1, 0, 0)), source="stand-in", git_commit=DIRTY)
    with pytest.warns(UserWarning, match="measured from a changed checkout"):
        assert records.write(dirty).is_relative_to(project / "runs" / "results")


def test_in_a_changed_checkout_records_belong_below_runs(project, monkeypatch):
    monkeypatch.setattr(machine, "git_commit", lambda: DIRTY)
    with pytest.warns(UserWarning, match="measured from a changed checkout"):
        assert records.folder_for("lite", "real") == project / "runs" / "results"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing to say where it would be no evidence anyway
        assert records.folder_for("smoke", "real") == project / "runs" / "results"
        assert records.folder_for("lite", "real", "9") == project / "runs" / "swept" / "9"
        monkeypatch.setenv(records.OWN_FOLDER, str(project / "own"))
        assert records.folder_for("lite", "real") == project / "own"
        assert records.folder_for("lite", "real", "9") == project / "own"
    monkeypatch.setenv(records.OWN_FOLDER, "")
    monkeypatch.setattr(machine, "git_commit", lambda: None)  # no git, no complaint
    assert records.folder_for("lite", "real") == project / "results"


def test_all_committed_records_belong_there():
    made = records.read_all(records.results_root())
    assert made
    assert {one.path.name: one.flaw for one in made} == {one.path.name: "" for one in made}


def test_where_a_network_came_from_is_kept(tmp_path):
    made = record(rows((1, 0, 0)), fit=FIT)
    path = records.write(made, tmp_path)
    assert json.loads(path.read_text())["fit"] == FIT
    assert records.read(path).fit == made.fit == FIT and made.fit is not FIT


def test_a_record_older_than_the_fit_block_is_read(tmp_path):
    path = records.write(record(rows((1, 0, 0))), tmp_path)
    content = json.loads(path.read_text())
    assert content.pop("fit") is None
    path.write_text(json.dumps(content))
    assert records.read(path).fit is None


# --- provenance ---------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder taken for the project's own."""
    monkeypatch.setattr(machine, "project_root", lambda: tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def git(folder, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_says_when_what_runs_differs_from_it(checkout):
    assert git_commit() is None
    git(checkout, "init")
    for name in ("src/code.py", "tools/tool.py", "results/old.json"):
        (checkout / name).parent.mkdir()
        (checkout / name).write_text("1")
    (checkout / ".gitignore").write_text("*.pyc\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "one")
    commit = git_commit()
    assert len(commit) == 40
    # records, logs and scripts that git does not know change nothing that runs
    (checkout / "results" / "new.json").write_text("{}")
    (checkout / "results" / "old.json").write_text("2")
    for name in ("run.log", "tools/try.py", "src/code.pyc"):
        (checkout / name).write_text("2")
    assert git_commit() == commit
    for name in ("src/new.py", "src/lists/new.txt", "book/new.ipynb"):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("2")
        assert git_commit() == f"{commit}-dirty"
        (checkout / name).unlink()
    assert git_commit() == commit
    for name in ("src/code.py", "tools/tool.py"):
        (checkout / name).write_text("2")
        assert git_commit() == f"{commit}-dirty"
        (checkout / name).write_text("1")
    (checkout / "tools" / "tool.py").unlink()
    assert git_commit() == f"{commit}-dirty"


def test_without_git_there_is_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_peak_memory_grows_by_what_was_allocated():
    pytest.importorskip("resource", reason="this system does not tell")
    code = (
        "import numpy as np; from nuctut.machine import peak_memory_gb as peak;"
        "before = peak(); block = np.ones(400_000_000 // 8); print(peak() - before)"
    )
    parents = np.ones(600_000_000 // 8)  # what the parent holds must not count
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.3 < float(run.stdout) <= 0.41
    del parents


def test_the_data_block_says_what_was_learned_from():
    def some(split, count):
        return SampleSet(
            [str(i) for i in range(count)], None, name="bbbc039", split=split, source="simulated",
            fingerprint=split,
        )  # fmt: skip

    block = records.describe_data(some("test", 4), some("training", 9), labels="shape/intensity")
    assert (block["source"], block["count"], block["fingerprint"]) == ("simulated", 4, "test")
    assert block["training"] == {
        "split": "training", "fingerprint": "training", "count": 9, "labels": "shape/intensity",
    }  # fmt: skip
    assert records.describe_data(some("test", 4))["training"] is None


def test_records_do_not_share_what_they_were_made_from(tmp_path):
    budget = {"updates": 1, "images_seen": 1, "seconds": 1.0, "precision": "fp32"}
    given = copy.deepcopy(budget)
    record(rows((1, 0, 0)), budget=given)
    assert given == budget
