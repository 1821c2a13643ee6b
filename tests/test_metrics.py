"""The yardstick against overlaps known by formula, drawings, properties and a slow reference."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import binary_erosion
from scipy.optimize import linear_sum_assignment

from nuctut import metrics
from nuctut.cases import CASES
from nuctut.metrics import (
    IOU_THRESHOLDS,
    Detection,
    Match,
    ObjectJaccard,
    PixelScores,
    aggregated_jaccard,
    aggregated_jaccard_kromp,
    aggregated_jaccard_plus,
    detection,
    match,
    mean_average_precision,
    object_jaccard,
    overlap_table,
    per_image_mean,
    pixel_scores,
    pool,
)

LABEL_SCORES = [match, aggregated_jaccard, aggregated_jaccard_plus, object_jaccard, overlap_table]


def draw(picture: str) -> np.ndarray:
    """Labels from a picture, one digit or dot (background) per pixel."""
    rows = picture.split()
    return np.array([[0 if c == "." else int(c) for c in row] for row in rows], np.int32)


def square(top: int, left: int, side: int, shape=(40, 40)) -> np.ndarray:
    labels = np.zeros(shape, np.int32)
    labels[top : top + side, left : left + side] = 1
    return labels


def disc(row: float, column: float, radius: float, shape=(400, 400)) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2).astype(np.int32)


def cells(seed: int, size: int = 200, step: int = 20, jitter: float = 4.0) -> np.ndarray:
    """About a hundred discs on a jittered grid, many of them touching or cut by a neighbour."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    centres = [(r, c) for r in range(10, size, step) for c in range(10, size, step)]
    for label, (row, column) in enumerate(centres, start=1):
        down, right = rng.normal(0, jitter, 2)
        grown = disc(row + down, column + right, rng.uniform(5, 12), labels.shape)
        labels[grown > 0] = label
    return labels


# ------------------------------------------------------------------ known by formula


@pytest.mark.parametrize("shift", range(0, 12))
def test_shifted_squares(shift):
    side = 10
    true, pred = square(5, 5, side), square(5, 5 + shift, side)
    shared = side * max(0, side - shift)
    iou = shared / (2 * side**2 - shared)
    for threshold in (0.1, 0.25, 0.5, 0.75, 1.0):
        result = match(true, pred, threshold)
        hit = iou >= threshold
        assert (result.tp, result.fp, result.fn) == (hit, not hit, not hit)
        assert result.iou_sum == pytest.approx(iou if hit else 0)
    assert aggregated_jaccard(true, pred) == pytest.approx(iou)
    assert aggregated_jaccard_plus(true, pred) == pytest.approx(iou)
    # The eroded squares are two pixels narrower, and as far apart.
    assert object_jaccard(true, pred).matched == (shift < side - 2)
    pixels = pixel_scores(true, pred)
    assert pixels.jaccard == pytest.approx(iou)
    assert pixels.dice == pytest.approx(2 * iou / (1 + iou))
    assert pixels.accuracy == pytest.approx(1 - 2 * (side**2 - shared) / true.size)


@pytest.mark.parametrize("distance", [0, 20, 60, 120, 199])
def test_shifted_discs(distance):
    radius = 100
    true, pred = disc(200, 140, radius), disc(200, 140 + distance, radius)
    lens = 2 * radius**2 * math.acos(distance / (2 * radius)) - distance / 2 * math.sqrt(
        4 * radius**2 - distance**2
    )
    iou = lens / (2 * math.pi * radius**2 - lens)
    assert match(true, pred, 1e-9).iou_sum == pytest.approx(iou, abs=0.005)
    assert aggregated_jaccard(true, pred) == pytest.approx(iou, abs=0.005)


def test_every_threshold_is_reached_exactly():
    # A bar of 20 pixels and k of them: IoU is k/20, which is each threshold in turn.
    true = np.zeros((1, 22), np.int32)
    true[0, 1:21] = 1
    assert len(IOU_THRESHOLDS) == 10
    for index, k in enumerate(range(10, 20)):
        pred = np.zeros_like(true)
        pred[0, 1 : 1 + k] = 1
        assert IOU_THRESHOLDS[index] == float(f"{k / 20:.2f}")
        hits = [result.tp for result in match(true, pred, IOU_THRESHOLDS)]
        assert hits == [1] * (index + 1) + [0] * (9 - index)


# ---------------------------------------------------------------------- hand-drawn

# Truth 2 is found whole, 1 loses a column, 3 is missed; prediction 7 is invented.
TRUE = draw("""
    111.22
    111.22
    ....22
    3.....
    3.....
    3.....
""")
PRED = draw("""
    55..44
    55..44
    ....44
    ......
    ..777.
    ......
""")


def test_overlap_table_of_a_drawing():
    table = overlap_table(TRUE, PRED)
    assert table.true_ids.tolist() == [1, 2, 3]
    assert table.pred_ids.tolist() == [4, 5, 7]
    assert table.true_areas.tolist() == [6, 6, 3]
    assert table.pred_areas.tolist() == [6, 4, 3]
    assert table.true_index.tolist() == [0, 1]
    assert table.pred_index.tolist() == [1, 0]
    assert table.intersections.tolist() == [4, 6]
    assert table.ious.tolist() == [4 / 6, 1]
    assert table.matched_pairs(0.7).tolist() == [1]


def test_scores_of_a_drawing():
    result = match(TRUE, PRED)
    assert result == Match(iou=0.5, tp=2, fp=1, fn=1, iou_sum=1 + 4 / 6)
    assert result.precision == result.recall == result.f1 == pytest.approx(2 / 3)
    assert result.average_precision == 2 / 4
    assert result.mean_matched_iou == pytest.approx((1 + 4 / 6) / 2)
    assert result.panoptic_quality == pytest.approx((1 + 4 / 6) / 3)
    # shared 4 + 6; unions 6 + 6, truth 3 and prediction 7 add 3 each
    assert aggregated_jaccard(TRUE, PRED) == pytest.approx(10 / 18)
    assert aggregated_jaccard_plus(TRUE, PRED) == pytest.approx(10 / 18)
    assert pixel_scores(TRUE, PRED) == PixelScores(tp=10, fp=3, fn=5, tn=18)
    assert object_jaccard(TRUE, PRED) == ObjectJaccard(n_true=0, n_pred=1, matched=0)


def test_counts_and_scores_are_plain_numbers():
    found = match(TRUE, PRED)
    pixels = pixel_scores(TRUE, PRED)
    objects = object_jaccard(TRUE, PRED)
    for count in (found.tp, found.fp, found.fn, pixels.tp, pixels.tn, objects.n_true):
        assert type(count) is int
    for score in (found.iou_sum, found.f1, aggregated_jaccard(TRUE, PRED), objects.jaccard):
        assert type(score) is float
    assert type(objects.matched) is int


def test_asymmetric_counts_give_the_named_scores():
    result = Match(iou=0.5, tp=6, fp=2, fn=4, iou_sum=4.5)
    assert result.precision == 6 / 8
    assert result.recall == 6 / 10
    assert result.f1 == 12 / 18
    assert result.average_precision == 6 / 12
    assert result.mean_matched_iou == 4.5 / 6
    assert result.panoptic_quality == 4.5 / 9
    pixels = PixelScores(tp=6, fp=2, fn=4, tn=8)
    assert pixels.accuracy == 14 / 20
    assert pixels.precision == 6 / 8
    assert pixels.recall == 6 / 10
    assert pixels.dice == 12 / 18
    assert pixels.jaccard == 6 / 12
    assert ObjectJaccard(n_true=10, n_pred=8, matched=6).jaccard == 6 / 12


def test_a_merge_parts_the_aggregated_indices():
    true = draw("11112222")
    pred = draw("33333333")
    # Kumar lets both truths take the prediction: 8 / (8 + 8). One-to-one: 4 / (8 + 4).
    assert aggregated_jaccard(true, pred) == 8 / 16
    assert aggregated_jaccard_plus(true, pred) == 4 / 12
    assert aggregated_jaccard(pred, true) == 4 / 12, "the sides are not alike to Kumar's index"
    assert pixel_scores(true, pred).jaccard == 1


def test_best_partner_is_by_iou_not_by_intersection():
    # Truth 1 shares 3 pixels with prediction 5 (IoU 3/9), 2 with prediction 6 (IoU 2/5).
    true = draw("11111....")
    pred = draw("665555555")
    assert overlap_table(true, pred).ious.tolist() == [3 / 9, 2 / 5]
    assert aggregated_jaccard(true, pred) == 2 / (5 + 7)
    assert aggregated_jaccard_plus(true, pred) == 2 / (5 + 7)
    # Even a slightly better IoU (8/20 against 12/31) wins over many more shared pixels.
    true = draw("1" * 20 + "." * 11)
    pred = draw("5" * 8 + "6" * 23)
    assert aggregated_jaccard(true, pred) == aggregated_jaccard_plus(true, pred) == 8 / (20 + 23)


def test_ties_of_iou_go_to_the_larger_intersection():
    # Both predictions reach IoU 1/4 with the truth: 1 of 4 pixels, and 2 of 8.
    true = draw("1111....")
    for pred in (draw("5.666666"), draw("6.555555")):
        assert overlap_table(true, pred).ious.tolist() == [0.25, 0.25]
        assert aggregated_jaccard(true, pred) == 2 / (4 + 6 - 2 + 1)
        assert aggregated_jaccard_plus(true, pred) == 2 / (4 + 6 - 2 + 1)


def test_full_ties_leave_the_least_area_unused():
    # Truth 1 is halved by two equal predictions, and truth 2 (one pixel) can only take the
    # first of them. Truth 1 must then take the other, whatever the ids are.
    true = draw("""
        1111..
        .2....
    """)
    for picture in ("3344.. .34...", "4433.. .43..."):
        # truth 1: 2 pixels shared of 5; truth 2: 1 of 3; no prediction unused
        assert aggregated_jaccard(true, draw(picture)) == 3 / (5 + 3)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_matches_are_one_to_one_at_low_thresholds(threshold):
    true = draw("1111")
    pred = draw("5566")
    result = match(true, pred, threshold)
    assert (result.tp, result.fp, result.fn, result.iou_sum) == (1, 1, 0, 0.5)


def test_low_thresholds_seek_many_matches_before_good_ones():
    # 1-8 has the best IoU, but taking it would leave 2 and 7 alone.
    true = draw("1111111111222222")
    pred = draw("7778888888888...")
    assert overlap_table(true, pred).ious.tolist() == [3 / 10, 7 / 13, 3 / 13]
    assert match(true, pred, 0.2).tp == 2
    assert match(true, pred, 0.2).iou_sum == pytest.approx(3 / 10 + 3 / 13)
    # AJI+ seeks the sum of IoU: 7/13 > 3/10 + 3/13
    assert aggregated_jaccard_plus(true, pred) == pytest.approx(7 / (16 + 13 - 7))


def test_among_as_many_matches_the_better_is_taken():
    true = draw("1111111222")
    pred = draw("5555666666")
    # 5 and 6 both reach 1 at 0.3; 2 reaches 6 only.
    assert match(true, pred, 0.3).tp == 2
    lone = draw("1111111...")
    assert overlap_table(lone, pred).ious.tolist() == [4 / 7, 3 / 10]
    assert match(lone, pred, 0.3).iou_sum == 4 / 7


# ------------------------------------------------------------------- the paper's J


def test_object_jaccard_needs_overlap_of_eroded_objects_one_to_one():
    true = np.zeros((12, 20), np.int32)
    true[2:10, 2:8] = 1
    true[2:10, 8:14] = 2
    assert object_jaccard(true, true) == ObjectJaccard(2, 2, 2)
    # One pixel over the line is forgiven by the erosion ...
    shifted = np.zeros_like(true)
    shifted[2:10, 2:9] = 1
    shifted[2:10, 9:14] = 2
    assert object_jaccard(true, shifted) == ObjectJaccard(2, 2, 2)
    # ... three are not: prediction 1 then reaches truth 2, and neither pair is one to one.
    shifted[2:10, 9:11] = 1
    assert object_jaccard(true, shifted) == ObjectJaccard(2, 2, 0)
    merged = (true > 0).astype(np.int32)
    assert object_jaccard(true, merged) == ObjectJaccard(2, 1, 0)
    assert object_jaccard(merged, true) == ObjectJaccard(1, 2, 0)


@pytest.mark.parametrize("edge", [(0, 5), (11, 5), (5, 0), (5, 11)])
def test_object_jaccard_drops_border_objects_on_each_side_by_itself(edge):
    inside = square(3, 3, 5, (12, 12))
    reaching = inside.copy()
    row, column = edge
    reaching[min(row, 5) : max(row, 5) + 1, min(column, 5) : max(column, 5) + 1] = 1
    assert object_jaccard(inside, inside) == ObjectJaccard(1, 1, 1)
    assert object_jaccard(inside, reaching) == ObjectJaccard(1, 0, 0)
    assert object_jaccard(reaching, inside) == ObjectJaccard(0, 1, 0)
    assert math.isnan(object_jaccard(reaching, reaching).jaccard)


def test_object_jaccard_counts_what_erosion_removes():
    true = square(2, 2, 9, (16, 16))
    pred = true.copy()
    pred[2:4, 2:11] = 2  # a sliver, two pixels high: counted, in nobody's way
    assert object_jaccard(true, pred) == ObjectJaccard(n_true=1, n_pred=2, matched=1)
    thin = square(2, 2, 2, (16, 16))
    assert object_jaccard(thin, thin) == ObjectJaccard(1, 1, 0)
    assert object_jaccard(thin, thin).jaccard == 0


def test_object_jaccard_erodes_by_a_full_square():
    # One missing corner costs a 3x3 object its only inner pixel.
    whole = square(1, 1, 3, (5, 5))
    assert object_jaccard(whole, whole).matched == 1
    for row in range(1, 4):
        for column in range(1, 4):
            dented = whole.copy()
            dented[row, column] = 0
            assert object_jaccard(dented, whole).matched == 0


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (1, 1), (2, 7), (7, 2)])
def test_object_jaccard_of_images_without_inside(shape):
    labels = np.ones(shape, np.int32)
    assert object_jaccard(labels, labels) == ObjectJaccard(0, 0, 0)


# ------------------------------------------------------------- Kromp's counts and AJI


def counts(found: Detection) -> tuple[int, ...]:
    return found.tp, found.fp, found.fn, found.us, found.os


def test_there_are_sixteen_cases_and_no_box_hides_another():
    assert "".join(CASES) == "ABCDEFGHIJKLMNOP"
    for case in CASES.values():
        for boxes, labels in ((case.true, case.labels_true), (case.pred, case.labels_pred)):
            areas = [(bottom - top) * (right - left) for top, left, bottom, right in boxes]
            assert np.bincount(labels.ravel())[1:].tolist() == areas


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_papers_cases_count_as_the_paper_says(case):
    assert counts(detection(case.labels_true, case.labels_pred)) == case.counts


def test_which_truth_of_a_case_is_found():
    """Of D the left one; of M the right one."""
    for name, found in (("D", 1), ("M", 2)):
        case = CASES[name]
        alone = np.where(case.labels_true == found, case.labels_true, 0)
        assert detection(alone, case.labels_pred).tp == 1


@pytest.mark.parametrize("shift", range(10))
def test_shifted_squares_are_found_above_one_half(shift):
    true, pred = square(5, 5, 12), square(5, 5 + shift, 12)
    shared = 12 * (12 - shift)
    found = detection(true, pred)
    hit = shared / (288 - shared) > 0.5  # at a shift of 4, it is one half
    assert counts(found) == (hit, not hit, not hit, 0, 0)
    assert found.dice_sum == pytest.approx(shared / 144 if hit else 0)
    assert found.aggregated_jaccard == pytest.approx(shared / (288 - shared))


def test_a_speck_held_beside_a_nucleus_spoils_it():
    """Jaccard 16/20 with the large one, which `match` takes; but it holds the small one, too."""
    true = draw("11111111111111112222")
    pred = draw("33333333333333333333")
    assert match(true, pred).tp == 1
    assert counts(detection(true, pred)) == (0, 1, 2, 2, 0)


def test_a_nucleus_may_be_found_and_split_at_once():
    true, pred = draw("1111111111"), draw("2222222.33")
    assert counts(detection(true, pred)) == (1, 1, 0, 0, 1)


def test_rates_are_shares_of_the_truths():
    case = CASES["P"]
    found = detection(case.labels_true, case.labels_pred)
    assert (found.recall, found.precision, found.f1) == (0, 0, 0)
    assert (found.us_rate, found.os_rate) == (2 / 3, 1 / 3)
    both = pool([found, detection(*2 * [CASES["D"].labels_true])])
    assert counts(both) == (2, 3, 3, 2, 1)
    assert (both.recall, both.precision, both.f1) == (2 / 5, 2 / 5, 2 / 5)
    assert (both.us_rate, both.mean_dice) == (2 / 5, 1)
    assert both.aggregated_jaccard == (found.shared + 200) / (found.union + 200)


def test_kromps_aji_takes_every_improving_candidate_and_forgets_the_missed():
    true = draw("1111111111.2222")
    pred = draw("3344444....5...")
    # 3 shares 2 of 10, then 4 does better with 5; 5 shares 1 of 4: all three are paired
    assert aggregated_jaccard_kromp(true, pred) == (2 + 5 + 1) / (10 + 10 + 4)
    assert aggregated_jaccard(true, pred) == (5 + 1) / (10 + 4 + 2)
    # the other way round the small piece comes too late, and is left over
    turned = draw("4433333....5...")
    assert aggregated_jaccard_kromp(true, turned) == (5 + 1) / (10 + 4 + 2)
    # a truth that nobody meets costs nothing
    missed = draw("1111111111.2222")
    assert aggregated_jaccard_kromp(missed, draw("1111111111.....")) == 1
    assert aggregated_jaccard(missed, draw("1111111111.....")) == 10 / 14


# ------------------------------------------------------------------------- empty sides


def test_two_empty_sides_score_nan():
    empty = np.zeros((5, 5), np.int32)
    results = [match(empty, empty), object_jaccard(empty, empty), pixel_scores(empty, empty)]
    for result in results:
        names = [k for k, v in vars(type(result)).items() if isinstance(v, property)]
        assert names
        for name in names:
            assert math.isnan(getattr(result, name)), name
    assert math.isnan(aggregated_jaccard(empty, empty))
    assert math.isnan(aggregated_jaccard_plus(empty, empty))
    assert math.isnan(mean_average_precision(match(empty, empty, IOU_THRESHOLDS)))


@pytest.mark.parametrize("swap", [False, True])
def test_one_empty_side_scores_zero(swap):
    sides = (np.zeros((8, 8), np.int32), square(2, 2, 4, (8, 8)))
    true, pred = sides[::-1] if swap else sides
    result = match(true, pred)
    assert (result.tp, result.fp, result.fn) == (0, not swap, swap)
    pixels = pixel_scores(true, pred)
    zeros = [
        *(result.precision, result.recall, result.f1, result.average_precision),
        *(result.mean_matched_iou, result.panoptic_quality, object_jaccard(true, pred).jaccard),
        *(pixels.precision, pixels.recall, pixels.dice, pixels.jaccard),
        *(aggregated_jaccard(true, pred), aggregated_jaccard_plus(true, pred)),
    ]
    assert zeros == [0] * len(zeros)
    assert pixels.accuracy == 48 / 64, "accuracy alone credits the background"


def test_objects_apart_score_zero():
    true, pred = square(1, 1, 4), square(20, 20, 4)
    assert match(true, pred).mean_matched_iou == 0
    assert aggregated_jaccard(true, pred) == aggregated_jaccard_plus(true, pred) == 0


def test_no_background_at_all():
    full = np.full((6, 6), 3)
    halves = np.repeat([[4, 9]], 6, axis=0).repeat(3, axis=1)
    assert overlap_table(full, halves).intersections.tolist() == [18, 18]
    assert match(full, full).tp == 1
    assert aggregated_jaccard(full, halves) == 18 / (36 + 18)


# ------------------------------------------------------------------- what is accepted

DTYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">u2"]


def scores_of(true, pred):
    return (
        match(true, pred, (0.2, 0.5, 0.8)),
        aggregated_jaccard(true, pred),
        aggregated_jaccard_plus(true, pred),
        object_jaccard(true, pred),
        pixel_scores(true, pred),
    )


@pytest.fixture(scope="module")
def pair():
    return cells(1, size=100), cells(2, size=100)


@pytest.mark.parametrize("dtype_true", DTYPES)
@pytest.mark.parametrize("dtype_pred", ["i1", "u8", ">i4"])
def test_any_integer_dtype(pair, dtype_true, dtype_pred):
    true, pred = pair
    assert true.max() < 128
    assert scores_of(true.astype(dtype_true), pred.astype(dtype_pred)) == scores_of(true, pred)


@pytest.mark.parametrize(
    ("dtype", "step", "offset"),
    [("i4", 1000, 7), ("i4", 10**7, 10**9), ("i8", 10**16, 0), ("u8", 1, 2**64 - 200)],
)
def test_gaps_and_huge_ids(pair, dtype, step, offset):
    true, pred = pair
    spread = [np.where(x > 0, x.astype(dtype) * step + offset, 0).astype(dtype) for x in pair]
    assert scores_of(*spread) == scores_of(true, pred)
    assert scores_of(spread[0], pred) == scores_of(true, pred)
    table = overlap_table(*spread)
    ids = [int(i) for i in np.unique(true)[1:]]
    assert [int(i) for i in table.true_ids] == [i * step + offset for i in ids]


def test_any_memory_layout(pair):
    true, pred = pair
    expected = scores_of(true, pred)
    wide = np.zeros((true.shape[0] * 2, true.shape[1] * 3), np.int32)
    strided = wide[::2, ::3]
    strided[...] = true
    read_only = pred.copy()
    read_only.setflags(write=False)
    assert scores_of(strided, read_only) == expected
    assert scores_of(np.asfortranarray(true), pred) == expected
    assert scores_of(true[::-1, ::-1], pred[::-1, ::-1]) == expected
    assert scores_of(true.tolist(), pred.tolist()) == expected


def test_arguments_are_left_alone(pair):
    before = [side.copy() for side in pair]
    scores_of(*pair)
    for side, copy in zip(pair, before, strict=True):
        np.testing.assert_array_equal(side, copy)


def test_pixel_scores_take_masks_and_labels_alike(pair):
    true, pred = pair
    assert pixel_scores(true > 0, pred) == pixel_scores(true, pred)
    assert pixel_scores(true > 0, pred > 0) == pixel_scores(true, pred)


@pytest.mark.parametrize("score", [*LABEL_SCORES, pixel_scores])
def test_refusals_name_the_side_and_the_reason(score):
    good = np.zeros((4, 4), np.int32)
    kind = "mask" if score is pixel_scores else "labels"
    with pytest.raises(ValueError, match=rf"{kind}_pred must not be negative \(found -1\)"):
        score(good, good - 1)
    with pytest.raises(ValueError, match=f"{kind}_true must hold .* not float64"):
        score(good.astype(float), good)
    with pytest.raises(ValueError, match=f"{kind}_pred must hold .* not complex"):
        score(good, good.astype(complex))
    with pytest.raises(ValueError, match=r"same shape, got \(4, 4\) and \(4, 3\)"):
        score(good, good[:, :3])
    with pytest.raises(ValueError, match=r"same shape, got \(4, 4\) and \(16,\)"):
        score(good, good.ravel())


@pytest.mark.parametrize("score", LABEL_SCORES)
def test_masks_are_not_labels(score):
    good = np.zeros((4, 4), np.int32)
    with pytest.raises(ValueError, match="labels_true must hold integer ids, not booleans"):
        score(good > 0, good)


def test_object_jaccard_wants_images():
    with pytest.raises(ValueError, match=r"images \(H, W\), got shape \(2, 4, 4\)"):
        object_jaccard(np.zeros((2, 4, 4), int), np.zeros((2, 4, 4), int))


@pytest.mark.parametrize("iou", [0, -0.5, 1.01, math.nan])
def test_thresholds_outside_zero_to_one_are_refused(iou):
    with pytest.raises(ValueError, match="iou must lie above 0 and not above 1"):
        match(TRUE, PRED, iou)
    with pytest.raises(ValueError, match="iou must lie above 0 and not above 1"):
        match(TRUE, PRED, [0.5, iou])


def test_thresholds_at_once_are_thresholds_one_by_one(pair):
    for thresholds in (IOU_THRESHOLDS, [0.9, 0.1], np.array([0.5]), ()):
        assert match(*pair, thresholds) == [match(*pair, float(t)) for t in thresholds]
    assert [result.iou for result in match(*pair, IOU_THRESHOLDS)] == list(IOU_THRESHOLDS)


# --------------------------------------------------------------------------- averaging


def test_pooling_and_averaging_differ():
    many = Match(iou=0.5, tp=90, fp=10, fn=10, iou_sum=80.0)
    few = Match(iou=0.5, tp=0, fp=1, fn=1, iou_sum=0.0)
    none = Match(iou=0.5, tp=0, fp=0, fn=0, iou_sum=0.0)
    pooled = pool([many, few, none])
    assert pooled == Match(iou=0.5, tp=90, fp=11, fn=11, iou_sum=80.0)
    assert pooled.f1 == 180 / 202
    assert per_image_mean([many, few, none], "f1") == pytest.approx(0.45), "NaN is left out"
    assert per_image_mean(iter([many, few]), "panoptic_quality") == pytest.approx(0.4)


def test_pooling_other_results():
    assert pool([ObjectJaccard(1, 2, 1), ObjectJaccard(4, 3, 2)]) == ObjectJaccard(5, 5, 3)
    assert pool(iter([PixelScores(1, 2, 3, 4)] * 2)) == PixelScores(2, 4, 6, 8)
    assert per_image_mean([PixelScores(1, 0, 1, 0), PixelScores(0, 0, 0, 9)], "jaccard") == 0.5


def test_per_image_mean_of_numbers():
    assert per_image_mean([0.5, math.nan, 1.0]) == 0.75
    assert math.isnan(per_image_mean([math.nan]))
    assert math.isnan(per_image_mean([ObjectJaccard(0, 0, 0)], "jaccard"))


def test_averaging_refuses_what_it_cannot_average():
    half, most = Match(0.5, 1, 1, 1, 0.9), Match(0.75, 1, 1, 1, 0.9)
    with pytest.raises(ValueError, match="different IoU thresholds"):
        pool([half, most])
    with pytest.raises(ValueError, match=r"one kind \(Match, .*, got Match, ObjectJaccard"):
        pool([half, ObjectJaccard(1, 1, 1)])
    with pytest.raises(ValueError, match="got none"):
        pool([])
    with pytest.raises(ValueError, match="got list"):
        pool([[half, most]])
    with pytest.raises(ValueError, match="Match has no score 'dice'; it has precision, recall"):
        per_image_mean([half], "dice")
    with pytest.raises(ValueError, match="has no score 'tp'"):
        per_image_mean([half], "tp")
    with pytest.raises(ValueError, match="no image"):
        per_image_mean([])
    with pytest.raises(ValueError, match="matches is empty"):
        mean_average_precision([])


def test_mean_average_precision():
    bar = draw("." + "1" * 20 + ".")
    found = draw("." + "1" * 15 + "......")  # IoU 0.75: reaches 6 of the 10 thresholds
    assert mean_average_precision(match(bar, found, IOU_THRESHOLDS)) == pytest.approx(0.6)


# -------------------------------------------------------------- a slow, separate reference


def slow_overlaps(true, pred):
    """{(true id, pred id): (shared, union)} by looking at every pair of objects."""
    overlaps = {}
    for a in set(true[true > 0].tolist()):
        for b in set(pred[pred > 0].tolist()):
            shared = int(((true == a) & (pred == b)).sum())
            if shared:
                overlaps[a, b] = (shared, int(((true == a) | (pred == b)).sum()))
    return overlaps


def all_pairings(pairs):
    """Every way of choosing pairs so that nobody is chosen twice."""
    if not pairs:
        yield []
        return
    (a, b), rest = pairs[0], pairs[1:]
    yield from all_pairings(rest)
    for chosen in all_pairings([(c, d) for c, d in rest if c != a and d != b]):
        yield [(a, b), *chosen]


def slow_match(true, pred, iou):
    overlaps = {p: Fraction(*v) for p, v in slow_overlaps(true, pred).items()}
    close = [p for p, value in overlaps.items() if float(value) >= iou]
    return max((len(c), sum(overlaps[p] for p in c)) for c in all_pairings(close))


def slow_aji_plus(true, pred):
    overlaps = slow_overlaps(true, pred)
    _, shared = max(
        (sum(Fraction(*overlaps[p]) for p in c), sum(overlaps[p][0] for p in c))
        for c in all_pairings(list(overlaps))
    )
    return shared / (int((true > 0).sum() + (pred > 0).sum()) - shared)


def slow_aji(true, pred):
    """Kumar's index, literally, for every way of settling ties; the least unused area wins."""
    overlaps = slow_overlaps(true, pred)
    ways = [(0, 0, frozenset())]
    for a in set(true[true > 0].tolist()):
        mine = {p: (Fraction(*v), v[0]) for p, v in overlaps.items() if p[0] == a}
        if not mine:
            alone = int((true == a).sum())
            ways = [(i, u + alone, used) for i, u, used in ways]
            continue
        best = [p for p in mine if mine[p] == max(mine.values())]
        ways = [
            (i + overlaps[p][0], u + overlaps[p][1], used | {p[1]})
            for i, u, used in ways
            for p in best
        ]
    return max(i / (u + int(((pred > 0) & ~np.isin(pred, [*used])).sum())) for i, u, used in ways)


def slow_object_jaccard(true, pred):
    def survivors(labels):
        masks = []
        for label in set(labels[labels > 0].tolist()):
            mask = labels == label
            if not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()):
                masks.append(binary_erosion(mask, np.ones((3, 3))))
        return masks

    trues, preds = survivors(true), survivors(pred)
    touch = np.array([[bool((a & b).any()) for b in preds] for a in trues])
    touch = touch.reshape(len(trues), len(preds))
    matched = sum(
        bool(touch[i, j] and touch[i].sum() == 1 and touch[:, j].sum() == 1)
        for i in range(len(trues))
        for j in range(len(preds))
    )
    return ObjectJaccard(len(trues), len(preds), matched)


def small_labels(shape, largest=4):
    """Labels of a few objects: noise, or noise drawn with a broad brush."""
    noise = hnp.arrays(np.int32, shape, elements=st.integers(0, largest))
    return st.one_of(noise, noise.map(_broadened))


def _broadened(labels):
    rows, columns = labels.shape
    return labels[: -(-rows // 3), : -(-columns // 3)].repeat(3, 0).repeat(3, 1)[:rows, :columns]


@st.composite
def small_pairs(draw, longest=8):
    shape = (draw(st.integers(1, longest)), draw(st.integers(1, longest)))
    true = draw(small_labels(shape))
    pred = draw(st.one_of(small_labels(shape), st.just(np.roll(true, 1, axis=1))))
    return true, pred


slowly = settings(max_examples=150, deadline=None, derandomize=True)


@slowly
@given(small_pairs(), st.sampled_from([0.05, 0.1, 0.25, 1 / 3, 0.5, 0.6, 1.0]))
def test_match_agrees_with_the_reference(pair, iou):
    count, total = slow_match(*pair, iou)
    result = match(*pair, iou)
    assert result.tp == count
    assert result.iou_sum == pytest.approx(float(total))
    assert result.tp + result.fn == np.count_nonzero(np.unique(pair[0]))
    assert result.tp + result.fp == np.count_nonzero(np.unique(pair[1]))


@slowly
@given(small_pairs())
def test_aggregated_jaccards_agree_with_the_reference(pair):
    if not (pair[0].any() or pair[1].any()):
        return
    assert aggregated_jaccard(*pair) == pytest.approx(slow_aji(*pair))
    assert aggregated_jaccard_plus(*pair) == pytest.approx(slow_aji_plus(*pair))


@slowly
def slow_detection(true, pred):
    """By the words of the paper's supplement and the lines of its code, object by object."""

    def jaccard(a, b):
        return Fraction(int((a & b).sum()), int((a | b).sum()))

    def covers(a, b):  # more than half of b
        return 2 * (a & b).sum() > b.sum()

    truths = [true == i for i in np.unique(true[true > 0])]
    preds = [pred == i for i in np.unique(pred[pred > 0])]
    held = [[t for t in truths if covers(p, t)] for p in preds]
    tp = sum(
        len(of) == 1 and jaccard(of[0], p) > Fraction(1, 2)
        for p, of in zip(preds, held, strict=True)
    )
    us = sum(
        len(of) * (len(of) > 1 and jaccard(np.logical_or.reduce(of), p) > Fraction(1, 2))
        for p, of in zip(preds, held, strict=True)
    )
    pieces = [[p for p in preds if covers(t, p)] for t in truths]
    os = sum(
        len(of) > 1 and jaccard(np.logical_or.reduce(of), t) > Fraction(1, 2)
        for t, of in zip(truths, pieces, strict=True)
    )
    return tp, len(preds) - tp, len(truths) - tp, us, os


def slow_kromp_aji(true, pred):
    shared, union, used = 0, 0, set()
    for i in np.unique(true[true > 0]):
        best = 0
        for j in np.unique(pred[pred > 0]):
            both, either = ((true == i) & (pred == j)).sum(), ((true == i) | (pred == j)).sum()
            if j not in used and Fraction(int(both), int(either)) > best:
                best = Fraction(int(both), int(either))
                shared, union, used = shared + both, union + either, {*used, j}
    union += sum((pred == j).sum() for j in np.unique(pred[pred > 0]) if j not in used)
    return shared, union


@given(small_pairs(longest=14))
def test_detection_agrees_with_the_reference(pair):
    found = detection(*pair)
    assert counts(found) == slow_detection(*pair)
    assert (found.shared, found.union) == slow_kromp_aji(*pair)


@given(small_pairs(longest=14))
def test_object_jaccard_agrees_with_the_reference(pair):
    assert object_jaccard(*pair) == slow_object_jaccard(*pair)


@pytest.mark.parametrize("seed", range(3))
def test_crowded_images_agree_with_a_dense_assignment(seed):
    true, pred = cells(seed, jitter=8), cells(seed + 10, jitter=8)
    overlaps = slow_overlaps(true, pred)
    iou = np.zeros((true.max() + 1, pred.max() + 1))
    shared = np.zeros_like(iou)
    for pair, (inner, outer) in overlaps.items():
        iou[pair], shared[pair] = inner / outer, inner
    rows, columns = linear_sum_assignment(iou, maximize=True)
    total = shared[rows, columns].sum()
    expected = total / (np.count_nonzero(true) + np.count_nonzero(pred) - total)
    assert aggregated_jaccard_plus(true, pred) == pytest.approx(expected)
    for threshold in (0.05, 0.2, 0.35, 0.5, 0.7):
        gain = np.where(iou >= threshold, 1000 + iou, 0)
        rows, columns = linear_sum_assignment(gain, maximize=True)
        expected = iou[rows, columns][gain[rows, columns] > 0]
        result = match(true, pred, threshold)
        assert result.tp == expected.size
        assert result.iou_sum == pytest.approx(expected.sum())
    assert object_jaccard(true, pred) == slow_object_jaccard(true, pred)
    assert aggregated_jaccard(true, pred) == pytest.approx(slow_aji(true, pred))


# -------------------------------------------------------------------------- properties


@slowly
@given(small_pairs(longest=10), st.randoms(use_true_random=False))
def test_permuting_ids_changes_nothing(pair, random):
    def renamed(labels):
        names = random.sample(range(1, 100), int(labels.max()))
        return np.array([0, *names])[labels]

    if pair[0].any() or pair[1].any():  # NaN is not equal to NaN
        assert scores_of(*map(renamed, pair))[:3] == scores_of(*pair)[:3]
    assert scores_of(*map(renamed, pair))[3:] == scores_of(*pair)[3:]


def test_permuting_many_ids_changes_not_even_rounding(pair):
    rng = np.random.default_rng(0)
    names = [np.array([0, *rng.permutation(np.arange(1, 200))]) for _ in pair]
    assert scores_of(names[0][pair[0]], names[1][pair[1]]) == scores_of(*pair)


@slowly
@given(small_pairs(longest=10))
def test_transposing_changes_nothing(pair):
    if pair[0].any() or pair[1].any():
        assert scores_of(pair[0].T, pair[1].T) == scores_of(*pair)


@slowly
@given(small_pairs(longest=10), st.sampled_from([0.1, 0.5, 0.7]))
def test_swapping_sides_swaps_the_counts(pair, iou):
    true, pred = pair
    one, other = match(true, pred, iou), match(pred, true, iou)
    assert (one.tp, one.fp, one.fn) == (other.tp, other.fn, other.fp)
    assert one.iou_sum == pytest.approx(other.iou_sum)
    one, other = object_jaccard(true, pred), object_jaccard(pred, true)
    assert (one.n_true, one.n_pred, one.matched) == (other.n_pred, other.n_true, other.matched)
    one, other = pixel_scores(true, pred), pixel_scores(pred, true)
    assert (one.tp, one.fp, one.fn, one.tn) == (other.tp, other.fn, other.fp, other.tn)
    plus = aggregated_jaccard_plus(true, pred)
    assert plus == pytest.approx(aggregated_jaccard_plus(pred, true), nan_ok=True)


@slowly
@given(small_pairs(longest=10))
def test_no_aggregated_index_beats_the_pixel_jaccard(pair):
    if pair[0].any() or pair[1].any():
        pixels = pixel_scores(*pair).jaccard
        assert 0 <= aggregated_jaccard(*pair) <= pixels <= 1
        assert 0 <= aggregated_jaccard_plus(*pair) <= pixels


@slowly
@given(small_pairs(longest=10))
def test_labels_against_themselves_are_perfect(pair):
    labels = pair[0]
    if labels.any():
        for result in match(labels, labels, (*IOU_THRESHOLDS, 0.01, 1)):
            assert result.f1 == result.panoptic_quality == 1
        assert aggregated_jaccard(labels, labels) == aggregated_jaccard_plus(labels, labels) == 1
        assert pixel_scores(labels, labels).accuracy == 1


@slowly
@given(small_pairs(longest=10))
def test_higher_thresholds_never_match_more(pair):
    found = [result.tp for result in match(*pair, IOU_THRESHOLDS)]
    assert found == sorted(found, reverse=True)


def test_public_names_exist():
    assert all(hasattr(metrics, name) for name in metrics.__all__)
