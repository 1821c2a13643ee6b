"""The scoreboard: intervals of known width, planted effects, and verdicts by the book."""

import dataclasses
import math
import re

import numpy as np
import pandas as pd
import pytest
from made_records import record, rows

from nuctut import records, scoreboard
from nuctut.scoreboard import Claim, Published, PublishedScore, PublishedTime

BEST, OTHER = "dl-ground-truth", "dl-consensus"


def paper(value=0.5, *, images=4, claims=(), times=(), metric="object_jaccard"):
    """A paper with one cell, for `BEST`."""
    return Published(
        name="made up",
        title="Made up",
        authors="Nobody",
        chapter="01_labels_for_free",
        data="bbbc039",
        split="test",
        images=images,
        scores=(PublishedScore("Table 1", "Row", BEST, metric, value),),
        times=tuple(times),
        claims=tuple(claims),
    )


def claim(better=BEST, worse=OTHER):
    return paper(
        claims=[Claim("Training on truth is best", better, worse, "object_jaccard", 0.1)],
        images=50,
    )


def line(paper, *made):
    return scoreboard.compare_scores(paper, made).iloc[0]


def judged(paper, *made):
    return scoreboard.judge_claims(paper, made).iloc[0]


# --- published numbers --------------------------------------------------------------------------


def test_the_first_paper_says_what_its_tables_say():
    free = scoreboard.published("labels_for_free")
    cells = {(cell.variant, cell.metric): cell.value for cell in free.scores}
    assert len(cells) == len(free.scores) == 15
    assert cells["dl-ground-truth", "object_jaccard"] == 0.892
    assert cells["dl-shape-intensity", "object_jaccard"] == 0.838
    assert cells["dl-consensus", "object_jaccard"] == 0.805
    assert sum(cells.values()) == pytest.approx(3.809 + 1.394 + 4.235)  # by column of the tables
    assert [time.seconds for time in free.times] == [5, 9, 0.012, 0.043, 140]
    # the abstract calls them 0.34 (the difference of rounded numbers) and 0.02
    assert [claim.published_effect for claim in free.claims[:2]] == [0.334, 0.019]
    assert {claim.better for claim in free.claims} <= {variant for variant, _ in cells}
    assert scoreboard.papers()[0] == "labels_for_free"


def test_the_second_paper_says_what_its_table_says():
    four = scoreboard.published("four_architectures")
    cells = {(cell.variant, cell.metric): cell.value for cell in four.scores}
    assert len(cells) == len(four.scores) == 20
    networks = ("simple-cnn", "resnet", "u-net", "mask-rcnn")
    of_training = [cells[f"{name}-on-training", "pixel_accuracy"] for name in networks]
    assert of_training == [0.931, 0.963, 0.9975, 0.9968]
    assert [cells[name, "pixel_accuracy"] for name in networks] == [0.937, 0.961, 0.98, 0.992]
    for reading in ("pixel_iou_per_image", "pixel_iou", "mean_class_iou"):
        assert [cells[name, reading] for name in networks] == [0.62, 0.77, 0.83, 0.88]
    assert {four.measured_on(name) for name in networks} == {("test", 65)}
    assert {four.measured_on(f"{name}-on-training") for name in networks} == {("training", 65)}
    # each network beats the one before it, and once more by more in IoU than in accuracy
    steps = list(zip(networks[1:], networks[:-1], strict=True))
    assert [(claim.better, claim.worse) for claim in four.claims[:3]] == steps
    assert [claim.published_effect for claim in four.claims] == [0.15, 0.06, 0.05, 0.205]
    assert four.claims[3].against == "pixel_accuracy"
    assert [time.seconds for time in four.times] == [24 * 3600]


def test_every_metric_has_a_name():
    assert tuple(scoreboard.METRIC_NAMES) == records.METRICS
    assert len(set(scoreboard.METRIC_NAMES.values())) == len(records.METRICS)


def test_an_unknown_paper_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'nobody'.*labels_for_free"):
        scoreboard.published("nobody")


GOOD = """
title = "T"
authors = "A"
chapter = "01_labels_for_free"
data = "bbbc039"
split = "test"
images = 50
[[scores]]
table = "Table 1"
row = "One"
variant = "a"
metric = "f1_50"
value = 0.75
[[scores]]
table = "Table 1"
row = "Other"
variant = "b"
metric = "f1_50"
value = 0.5
[[times]]
what = "One image"
variant = "a"
budget = "seconds_per_image"
seconds = 5
machine = "abacus"
[[claims]]
text = "One beats other"
better = "a"
worse = "b"
metric = "f1_50"
published_effect = 0.25
"""


def test_a_published_file_is_read(tmp_path):
    path = tmp_path / "some_paper.toml"
    path.write_text(GOOD)
    read = scoreboard.read_published(path)
    assert (read.name, read.images, len(read.scores)) == ("some_paper", 50, 2)
    assert read.claims == (Claim("One beats other", "a", "b", "f1_50", 0.25),)


def test_a_cell_may_be_of_other_images_than_the_papers(tmp_path):
    path = tmp_path / "some_paper.toml"
    path.write_text(GOOD.replace("value = 0.5\n", 'value = 0.5\nsplit = "training"\nimages = 7\n'))
    read = scoreboard.read_published(path)
    assert read.measured_on("a") == ("test", 50)
    assert read.measured_on("b") == ("training", 7)
    assert read.measured_on("unheard-of") == ("test", 50)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "T"', "title = ", "not a TOML file"),
        ('title = "T"', "", "title is missing"),
        ("images = 50", 'images = "many"', 'images must be a whole number, not "many"'),
        ("images = 50", "images = 50\nmood = 1", "mood is no field"),
        ("value = 0.75", "", r"scores\.0\.value is missing"),
        ("value = 0.5\n", "value = true\n", r"scores\.1\.value must be a number, not true"),
        ("value = 0.75", "value = 75", r"scores\.0\.value must lie from 0 to 1"),
        ("value = 0.75", "value = 0.75\nextra = 1", r"scores\.0\.extra is no field"),
        ('variant = "b"', 'variant = "a"', r"scores\.1: a has a f1_50 already"),
        ('metric = "f1_50"\nvalue', 'metric = "f2"\nvalue', r"scores\.0\.metric must be one of"),
        ("seconds = 5", "seconds = 0", r"times\.0\.seconds must be above 0"),
        ("published_effect = 0.25", "published_effect = 0.3", r"claims\.0\..* be 0.250, as"),
        ("value = 0.75", "value = 0.75\nimages = 0.5", r"scores\.0\.images must be a whole number"),
        (
            'variant = "b"\nmetric = "f1_50"',
            'variant = "a"\nsplit = "training"\nmetric = "dice_nuclei"',
            r"scores\.1: a has other split or images in an earlier entry",
        ),
        (
            "published_effect = 0.25",
            'published_effect = 0.25\nagainst = "f2"',
            r"claims\.0\.against must be one of .*\"f2\"",
        ),
        ('better = "a"', "better = 1", r"claims\.0\.better must be a text"),
    ],
)
def test_a_malformed_published_file_is_refused_by_entry_and_field(tmp_path, old, new, message):
    path = tmp_path / "some_paper.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"some_paper\.toml: .*{message}"):
        scoreboard.read_published(path)


# --- intervals ----------------------------------------------------------------------------------


def test_the_interval_of_a_share_is_the_binomial_one():
    # 400 images of one nucleus each, found in half of them: standard error √(¼/400) = 0.025
    images = rows(*[(1, 0, 0), (0, 0, 1)] * 200)
    made = line(paper(images=400), record(images))
    assert made["measured"] == 0.5
    assert made["low"] == pytest.approx(0.5 - 1.96 * 0.025, abs=0.004)
    assert made["high"] == pytest.approx(0.5 + 1.96 * 0.025, abs=0.004)


def test_images_that_are_all_alike_leave_no_doubt():
    made = line(paper(), record(rows(*[(3, 1, 0)] * 4)))
    assert (made["low"], made["measured"], made["high"]) == (0.75, 0.75, 0.75)


def test_two_seeds_share_the_images_and_are_drawn_themselves():
    # without any spread over images, what is drawn is one seed, the other, or one of each
    made = [record(rows(*[(tp, 10 - tp, 0)] * 4), seed=tp) for tp in (4, 8)]
    values, counts = np.unique(
        scoreboard.resampled(made, "object_jaccard").round(6), return_counts=True
    )
    assert values.tolist() == [0.4, 0.6, 0.8]
    assert counts / counts.sum() == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    both = line(paper(), *made)
    assert (both["measured"], both["low"], both["high"]) == pytest.approx((0.6, 0.4, 0.8))
    assert both["seeds"] == "4, 8"


def test_the_same_seeds_twice_say_no_more_than_once():
    images = rows((1, 2, 0), (5, 0, 1), (2, 2, 2), (9, 1, 0))
    once = scoreboard.resampled([record(images)], "f1_50")
    twice = scoreboard.resampled([record(images), record(images, seed=1)], "f1_50")
    assert scoreboard.interval(once) == pytest.approx(scoreboard.interval(twice))


def test_the_order_of_the_images_in_a_file_does_not_matter():
    images = rows((1, 2, 0), (5, 0, 1), (2, 2, 2), (9, 1, 0))
    other = rows((4, 2, 0), (6, 0, 1), (3, 2, 2), (8, 1, 0))
    straight = [record(images), record(other, seed=1)]
    turned = [record(images), record(other[::-1], seed=1)]
    assert np.array_equal(
        scoreboard.resampled(straight, "f1_50"), scoreboard.resampled(turned, "f1_50")
    )


def test_empty_images_neither_help_nor_harm_the_score():
    full = [(3, 1, 0), (2, 0, 2)]
    made = line(paper(images=3), record(rows(*full, (0, 0, 0))))
    assert made["measured"] == 5 / 8
    # a draw of nothing but the empty image has no score and is left out
    assert np.isnan(scoreboard.resampled([record(rows(*full, (0, 0, 0)))], "f1_50")).any()
    assert made["low"] == 0.5 and made["high"] == 0.75


def test_nothing_to_score_is_said_so():
    made = line(paper(images=2), record(rows((0, 0, 0), (0, 0, 0))))
    assert math.isnan(made["measured"]) and math.isnan(made["low"])
    assert (made["verdict"], made["reason"]) == ("not comparable", scoreboard.NO_SCORE)


# --- verdicts of numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "low", "high", "expected"),
    [
        (0.60, 0.45, 0.75, "reproduced"),  # within the interval
        (0.519, 0.51, 0.53, "reproduced"),  # outside, within the tolerance
        (0.481, 0.47, 0.49, "reproduced"),
        (0.53, 0.51, 0.55, "better"),
        (0.47, 0.45, 0.49, "worse"),
    ],
)
def test_the_rule_of_verdicts(measured, low, high, expected):
    assert scoreboard.verdict("f1_50", 0.5, measured, low, high) == expected


def test_of_a_count_error_less_is_better():
    assert scoreboard.verdict("count_error", 0.5, 0.53, 0.51, 0.55) == "worse"
    assert scoreboard.verdict("count_error", 0.5, 0.47, 0.45, 0.49) == "better"
    found = line(paper(1.5, metric="count_error"), record(rows(*[(1, 3, 0)] * 4)))
    assert (found["measured"], found["verdict"]) == (3, "worse")


def test_a_cell_of_other_images_is_measured_on_those():
    cell = PublishedScore("T", "Row", BEST, "f1_50", 0.5, split="training", images=2)
    made_of = dataclasses.replace(paper(), scores=(cell,))
    found = line(made_of, record(rows((1, 0, 1), (1, 0, 1)), split="training"))
    assert (found["measured"], found["verdict"]) == (pytest.approx(2 / 3), "better")
    assert line(made_of, record(FOUR))["reason"] == "measured on bbbc039 test, not bbbc039 training"
    assert line(made_of, record(FOUR, split="training"))["reason"] == "measured on 4 of 2 images"


def test_what_was_not_run_is_said_so():
    made = line(paper())
    assert made["verdict"] == "not yet run"
    assert math.isnan(made["measured"]) and math.isnan(made["difference"])
    assert made["files"] == made["data"] == ""


FOUR = rows(*[(1, 0, 1)] * 4)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (record(FOUR, source="simulated"), "simulated data"),
        (record(FOUR, source="stand-in"), "stand-in data"),
        (record(FOUR, preset="smoke"), "smoke preset"),
        (record(FOUR[:2]), "measured on 2 of 4 images"),
        (record(FOUR, split="validation"), "measured on bbbc039 validation"),
    ],
)
def test_what_may_not_stand_beside_the_paper_is_said_so(made, reason):
    found = line(paper(), made)
    assert found["verdict"] == "not comparable"
    assert reason in found["reason"]
    assert found["measured"] == 0.5  # shown, and not taken from what the paper has
    assert math.isnan(found["difference"])


def test_real_data_of_the_highest_preset_speak():
    good, fair, poor = rows(*[(8, 0, 2)] * 4), rows(*[(6, 0, 4)] * 4), rows(*[(1, 0, 9)] * 4)
    smoke = record(poor, preset="smoke")
    invented = record(poor, preset="paper", source="simulated", fingerprint="other")
    lite, full = record(fair), record(good, preset="paper")
    assert line(paper(), smoke, invented, lite, full)["measured"] == 0.8
    assert line(paper(), smoke, invented, lite)["measured"] == 0.6
    assert line(paper(), smoke, invented)["data"] == "bbbc039 test (simulated, 4 images)"


def test_other_chapters_do_not_speak():
    made = dataclasses.replace(record(FOUR), chapter="02_four_architectures")
    assert line(paper(), made)["verdict"] == "not yet run"


def test_seeds_of_different_images_are_refused():
    with pytest.raises(ValueError, match=r"--s0\.json and .*--s1\.json .* different images"):
        line(paper(), record(FOUR), record(FOUR, seed=1, fingerprint="other"))


def test_leftovers_of_older_images_are_passed_over():
    old = record(FOUR, source="simulated", preset="smoke", fingerprint="old")
    old = dataclasses.replace(old, created="2020-01-01T00:00:00+00:00")
    new = record(FOUR, source="simulated", preset="smoke", seed=1)
    assert line(paper(), old, new)["seeds"] == "1"


def test_one_run_twice_is_refused():
    with pytest.raises(ValueError, match="two records of the same run"):
        line(paper(), record(FOUR), record(FOUR))


def test_provenance_names_every_value_once(tmp_path):
    made = [
        records.read(records.write(record(FOUR, seed=seed, budget={"device": "abacus"}), tmp_path))
        for seed in (0, 1)
    ]
    found = line(paper(), *made)
    assert found["device"] == "abacus"
    assert found["preset"] == "lite"
    assert found["files"] == (
        "01_labels_for_free/dl-ground-truth--lite--s0.json, "
        "01_labels_for_free/dl-ground-truth--lite--s1.json"
    )


# --- claims -------------------------------------------------------------------------------------


def spread(gain, variant, seed=0, **keywords):
    """50 images from empty-handed to nearly perfect, each `gain` nuclei of 100 up."""
    images = rows(*[(tp + gain, 0, 100 - tp - gain) for tp in range(0, 100, 2)])
    return record(images, variant=variant, seed=seed, **keywords)


def test_a_small_effect_on_every_image_holds_though_the_scores_overlap():
    better, worse = spread(2, BEST), spread(0, OTHER)
    found = judged(claim(), better, worse)
    assert found["verdict"] == "holds"
    assert (found["measured_effect"], found["low"], found["high"]) == pytest.approx((0.02,) * 3)
    apart = [scoreboard.interval(scoreboard.resampled([r], "f1_50")) for r in (better, worse)]
    assert apart[0][0] < apart[1][1]  # the two intervals overlap widely


def test_the_opposite_effect_fails():
    found = judged(claim(), spread(0, BEST), spread(2, OTHER))
    assert found["verdict"] == "fails"
    assert found["measured_effect"] == pytest.approx(-0.02)


def test_an_effect_within_chance_is_unclear():
    rng = np.random.default_rng(1)
    found_by = [
        [(int(tp), 0, 100 - int(tp)) for tp in rng.integers(40, 60, size=50)] for _ in range(2)
    ]
    better, worse = (
        record(rows(*counts), variant=variant)
        for counts, variant in zip(found_by, (BEST, OTHER), strict=True)
    )
    found = judged(claim(), better, worse)
    assert found["low"] < 0 < found["high"]
    assert found["verdict"] == "unclear"
    assert judged(claim(), spread(0, BEST), spread(0, OTHER))["verdict"] == "unclear"


def test_seeds_are_paired():
    # seed 1 lifts both sides alike; unpaired, the seeds alone would hide the effect
    made = [
        record(rows(*[(base + gain, 0, 100 - base - gain)] * 50), variant=variant, seed=seed)
        for seed, base in enumerate((40, 60))
        for gain, variant in ((5, BEST), (0, OTHER))
    ]
    found = judged(claim(), *made)
    assert (found["low"], found["high"]) == pytest.approx((0.05, 0.05))
    assert found["seeds"] == "0, 1"


def test_a_claim_about_counts_holds_where_the_error_is_less():
    fewer, more = (
        record(rows(*[(50, 0, missed)] * 50), variant=variant)
        for missed, variant in ((10, BEST), (20, OTHER))
    )
    made_of = paper(claims=[Claim("Counts better", BEST, OTHER, "count_error", 0.1)], images=50)
    found = judged(made_of, fewer, more)
    assert found["verdict"] == "holds"
    assert found["measured_effect"] == pytest.approx(20 / 70 - 10 / 60)


def test_a_claim_against_a_second_metric_is_about_the_difference_of_differences():
    def with_background(hits, variant):
        images = rows(*[(hits, 0, 100 - hits)] * 50)
        for one in images:
            one["nuclei"]["tn"] = 900
        return record(images, variant=variant)

    better, worse = with_background(80, BEST), with_background(60, OTHER)
    hidden = Claim("Accuracy hides it", BEST, OTHER, "pixel_iou", 0.18, against="pixel_accuracy")
    found = judged(paper(claims=[hidden], images=50), better, worse)
    assert found["measured_effect"] == pytest.approx(0.20 - 0.02)
    assert (found["low"], found["high"]) == pytest.approx((0.18, 0.18))
    assert found["verdict"] == "holds"
    other_way = dataclasses.replace(hidden, metric="pixel_accuracy", against="pixel_iou")
    found = judged(paper(claims=[other_way], images=50), better, worse)
    assert (found["measured_effect"], found["verdict"]) == (pytest.approx(-0.18), "fails")
    page = scoreboard.show_claims(scoreboard.judge_claims(paper(claims=[hidden]), [])).to_html()
    assert "pixel IoU, pooled, against pixel accuracy" in page


# --- readings -----------------------------------------------------------------------------------


def test_the_reading_that_fits_best_comes_first():
    cells = pd.DataFrame(
        [
            ("f1_50", 0.1),
            ("f1_50", -0.1),
            ("pixel_iou", -0.05),
            ("pixel_iou", -0.03),
            ("pixel_iou", math.nan),
            ("dice_nuclei", math.nan),
        ],
        columns=["metric", "difference"],
    )
    table = scoreboard.readings(cells)
    assert table.index.tolist() == ["pixel_iou", "f1_50"]
    assert table["rows"].tolist() == [2, 2]
    assert table["mean_difference"].tolist() == pytest.approx([-0.04, 0])
    assert table["mean_absolute_difference"].tolist() == pytest.approx([0.04, 0.1])


def test_without_evidence_no_reading_fits():
    four = scoreboard.published("four_architectures")
    assert scoreboard.readings(scoreboard.compare_scores(four, [])).empty


def test_only_seeds_that_both_sides_ran_count():
    made = [spread(2, BEST), spread(40, BEST, seed=1), spread(0, OTHER), spread(0, OTHER, seed=2)]
    found = judged(claim(), *made)
    assert found["measured_effect"] == pytest.approx(0.02)
    assert found["seeds"] == "0"


def test_the_highest_preset_that_both_sides_ran_counts():
    made = [spread(2, BEST), spread(0, OTHER), spread(40, BEST, preset="paper")]
    found = judged(claim(), *made)
    assert (found["preset"], found["verdict"]) == ("lite", "holds")


@pytest.mark.parametrize(
    ("made", "verdict", "reason"),
    [
        ([], "not yet run", "no record of dl-ground-truth and dl-consensus"),
        ([spread(2, BEST)], "not yet run", "no record of dl-consensus"),
        ([spread(2, BEST), spread(0, OTHER, seed=1)], "not comparable", "no preset and seed"),
        (
            [spread(2, BEST), spread(0, OTHER, preset="paper")],
            "not comparable",
            "no preset and seed",
        ),
        (
            [spread(2, BEST), spread(0, OTHER, fingerprint="other")],
            "not comparable",
            "different images",
        ),
        (
            [spread(2, BEST, source="simulated"), spread(0, OTHER, source="simulated")],
            "not comparable",
            "simulated data",
        ),
        (
            [spread(2, BEST, preset="smoke"), spread(0, OTHER, preset="smoke")],
            "not comparable",
            "smoke preset",
        ),
    ],
)
def test_what_cannot_be_judged_is_said_so(made, verdict, reason):
    found = judged(claim(), *made)
    assert found["verdict"] == verdict
    assert reason in found["reason"]


# --- times, tallies, pages ----------------------------------------------------------------------


def test_times_of_other_machines_are_shown_and_not_judged():
    times = [
        PublishedTime("Image", BEST, "seconds_per_image", 5.0, "laptop"),
        PublishedTime("Update", BEST, "seconds_per_update", 0.043, "tower"),
        PublishedTime("Post", BEST, "seconds_per_postprocessing", 9.0, "laptop"),
    ]
    table = scoreboard.compare_times(
        paper(times=times), [record(FOUR, budget={"updates": 10, "seconds": 4.0})]
    )
    assert table["measured"].tolist()[:2] == pytest.approx([0.5, 0.4])
    assert table["ratio"].tolist()[:2] == pytest.approx([10, 0.1075])
    assert table["verdict"].tolist() == ["not comparable", "not comparable", "not yet run"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.012, "12 ms"),
        (5, "5 s"),
        (140, "140 s"),
        (1800, "30 min"),
        (86400, "24 h"),
        (math.nan, ""),
    ],
)
def test_times_are_shown_in_units_that_fit(seconds, shown):
    times = [PublishedTime("Training", BEST, "seconds", seconds, "tower")]
    table = scoreboard.compare_times(paper(times=times), [])
    assert f">{shown}</td>" in scoreboard.show_times(table).to_html()


def test_a_tally_counts_what_is_there():
    made = [spread(2, BEST), spread(0, OTHER)]
    assert scoreboard.tally(scoreboard.judge_claims(claim(), made)) == "holds 1"
    free = scoreboard.published("labels_for_free")
    assert scoreboard.tally(scoreboard.compare_scores(free, [])) == "not yet run 15"


def test_a_figure_can_say_what_it_rests_on():
    table = scoreboard.compare_scores(paper(), [record(FOUR, source="simulated")])
    assert scoreboard.sources(table) == "bbbc039 test (simulated, 4 images)"
    assert scoreboard.sources(scoreboard.compare_scores(paper(), [])) == "nothing yet"


def test_every_link_of_a_table_leads_to_a_card():
    free = scoreboard.published("labels_for_free")
    made = [spread(2, BEST), spread(0, OTHER), spread(1, "not-in-any-table")]
    scores, claims = scoreboard.compare_scores(free, made), scoreboard.judge_claims(free, made)
    times = scoreboard.compare_times(free, made)
    page = "".join(
        show(table).to_html()
        for show, table in (
            (scoreboard.show_scores, scores),
            (scoreboard.show_claims, claims),
            (scoreboard.show_times, times),
        )
    )
    cards = scoreboard.record_cards(made, scores, claims, times)
    targets = set(re.findall(r'href="scoreboard\.html#([^"]+)"', page))
    assert len(targets) == 2
    assert targets == set(re.findall(r'id="([^"]+)"', cards))
    assert "f00d" in cards and "learning_rate = 0.001" in cards


def test_a_page_says_what_network_was_really_measured():
    made = spread(2, BEST)
    made.parameters["network"] = "Mask R-CNN, ResNet-18, from <scratch>"
    other = spread(0, OTHER)
    other.parameters["network"] = "U-Net, 16 channels"
    scores = scoreboard.compare_scores(paper(images=50), [made])
    claims = scoreboard.judge_claims(claim(), [made, other])
    page = scoreboard.show_scores(scores).to_html()
    assert "<br>Here: Mask R-CNN, ResNet-18, from &lt;scratch&gt;</small>" in page
    page = scoreboard.show_claims(claims).to_html()
    assert "from &lt;scratch&gt;; U-Net, 16 channels</small>" in page
    untold = scoreboard.compare_scores(paper(), [record(FOUR)])
    assert "Here:" not in scoreboard.show_scores(untold).to_html()


def test_claims_of_two_papers_share_a_table_that_names_them():
    judgements = [
        scoreboard.judge_claims(scoreboard.published(name), []) for name in scoreboard.papers()
    ]
    claims = pd.concat(judgements, ignore_index=True)
    page = scoreboard.show_claims_at_a_glance(claims).to_html()
    assert page.count("Wang &amp; Song") == len(judgements[1])
    assert scoreboard.tally(claims) == f"not yet run {len(claims)}"


def test_two_tables_of_a_page_do_not_share_their_tints():
    free, four = map(scoreboard.published, scoreboard.papers())
    pages = [scoreboard.show_claims(scoreboard.judge_claims(one, [])) for one in (free, four)]
    pages += [scoreboard.show_scores(scoreboard.compare_scores(one, [])) for one in (free, four)]
    names = [re.search(r'<table id="([^"]+)"', page.to_html()).group(1) for page in pages]
    assert len(set(names)) == 4


def test_pages_work_without_any_record():
    free = scoreboard.published("labels_for_free")
    claims = scoreboard.judge_claims(free, [])
    page = scoreboard.show_claims(claims).to_html()
    assert page.count("not yet run") == len(free.claims)
    assert "href" not in page and "nan" not in page
    assert free.claims[0].text in scoreboard.show_claims_at_a_glance(claims).to_html()
    scores = scoreboard.compare_scores(free, [])
    assert "nan" not in scoreboard.show_scores(scores).to_html()
    assert scoreboard.record_cards([], scores, claims) == "<p>No record yet.</p>"


@pytest.mark.parametrize("preset", ["smoke", "lite"])
def test_a_page_says_simulated_where_it_is(preset):
    made = [
        spread(gain, variant, source="simulated", preset=preset)
        for gain, variant in ((2, BEST), (0, OTHER))
    ]
    claims = scoreboard.judge_claims(claim(), made)
    scores = scoreboard.compare_scores(paper(images=50), made)
    for shown in (
        scoreboard.show_claims(claims),
        scoreboard.show_claims_at_a_glance(claims),
        scoreboard.show_scores(scores),
    ):
        assert "bbbc039 test (simulated, 50 images)" in shown.to_html()
        assert re.search(r"not comparable<br><small>simulated data", shown.to_html())


def test_what_a_record_says_cannot_break_the_page():
    made = record(FOUR, budget={"device": "<script>alert(1)</script>"})
    table = scoreboard.compare_scores(paper(), [made])
    assert "<script>" not in scoreboard.record_cards([made], table)
    assert "&lt;script&gt;" in scoreboard.record_cards([made], table)


def test_the_committed_records_can_be_shown():
    made = records.read_all(records.results_root())
    for name in scoreboard.papers():
        paper = scoreboard.published(name)
        assert len(scoreboard.compare_scores(paper, made)) == len(paper.scores)
        assert len(scoreboard.judge_claims(paper, made)) == len(paper.claims)
