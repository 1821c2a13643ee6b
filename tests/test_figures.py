"""Figures: what they count on hand-drawn labels, and what ends up on the canvas."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.colors import to_rgb
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from nuctut import artificial, figures, metrics
from nuctut.cases import CASES
from nuctut.samples import Sample

SOURCE = "drawn by hand · simulated"


def drawn(*rows: str) -> np.ndarray:
    """Labels from text: one digit per pixel, a dot is background."""
    return np.array([[0 if c == "." else int(c) for c in row] for row in rows], np.int32)


def block(*boxes: tuple[int, int, int, int], shape=(12, 12)) -> np.ndarray:
    """Labels 1, 2, … from boxes (top, bottom, left, right), ends not included."""
    labels = np.zeros(shape, np.int32)
    for label, (top, bottom, left, right) in enumerate(boxes, start=1):
        labels[top:bottom, left:right] = label
    return labels


def picture(fig) -> np.ndarray:
    """The pixels that a figure of one image shows."""
    return fig.axes[0].images[0].get_array()


def legend(fig) -> list[str]:
    return [text.get_text() for text in fig.legends[0].get_texts()]


# --- display_range -----------------------------------------------------------------------------


def test_display_range_spans_black_to_white_between_the_percentiles():
    image = np.arange(101, dtype=np.uint16)[None, :] * 40
    view = figures.display_range(image, low=10, high=90)
    assert view.dtype == np.uint8
    assert (view[0, :11] == 0).all() and (view[0, 90:] == 255).all()
    assert view[0, 50] == 128  # half way between the two percentiles


def test_gamma_below_one_lifts_the_dim_and_leaves_the_ends():
    image = np.array([[0, 1000, 4000]], np.uint16)
    plain = figures.display_range(image, low=0, high=100)
    lifted = figures.display_range(image, low=0, high=100, gamma=0.5)
    assert plain.tolist() == [[0, 64, 255]]
    assert lifted.tolist() == [[0, 128, 255]]  # the root of a quarter is a half


def test_an_image_of_one_value_is_black():
    assert not figures.display_range(np.full((4, 4), 700, np.uint16)).any()


# --- outlines and touching pairs ---------------------------------------------------------------


def test_the_outline_of_a_square_is_its_rim():
    labels = block((2, 7, 2, 7))
    expected = labels > 0
    expected[3:6, 3:6] = False
    assert (figures.outlines(labels) == expected).all()


def test_touching_nuclei_keep_a_line_each_and_the_image_edge_is_none():
    labels = drawn("111222", "111222", "111222")
    expected = drawn("..11..", "..11..", "..11..") > 0
    assert (figures.outlines(labels) == expected).all()


# --- classify_objects --------------------------------------------------------------------------

WIDE = block((2, 8, 1, 11))  # one nucleus, 6 by 10
PAIR = block((2, 8, 1, 6), (2, 8, 6, 11))  # two that touch, 6 by 5 each
TRIPLE = block((2, 8, 1, 4), (2, 8, 4, 8), (2, 8, 8, 11))  # 3, 4 and 3 columns
COUNTS = ("matched", "missed", "false", "split", "merged")


@pytest.mark.parametrize(
    ("true", "pred", "counts"),
    [
        (PAIR, PAIR, (2, 0, 0, 0, 0)),
        (WIDE, np.zeros_like(WIDE), (0, 1, 0, 0, 0)),
        (np.zeros_like(WIDE), WIDE, (0, 0, 1, 0, 0)),
        (np.zeros_like(WIDE), np.zeros_like(WIDE), (0, 0, 0, 0, 0)),
        (WIDE, TRIPLE, (0, 0, 0, 1, 0)),
        (TRIPLE, WIDE, (0, 0, 0, 0, 1)),
        (WIDE, np.roll(WIDE, 4, axis=0), (0, 1, 1, 0, 0)),  # IoU 2 / 10 rows
        (WIDE, np.roll(WIDE, 1, axis=0), (1, 0, 0, 0, 0)),  # IoU 5 / 7 rows
    ],
    ids=["same", "miss", "false", "empty", "split", "merge", "far shift", "near shift"],
)
def test_each_kind_of_error_is_counted_as_itself(true, pred, counts):
    assert figures.classify_objects(true, pred).counts == dict(zip(COUNTS, counts, strict=True))


def test_an_uneven_split_keeps_its_match_and_names_the_piece():
    pred = block((2, 8, 1, 8), (2, 8, 8, 11))  # 7 and 3 of the 10 columns
    classes = figures.classify_objects(WIDE, pred)
    assert classes.true == {1: "matched"}
    assert classes.pred == {1: "matched", 2: "split"}
    assert classes.counts["split"] == 1


def test_an_uneven_merge_keeps_its_match_and_names_the_swallowed():
    true = block((2, 8, 1, 8), (2, 8, 8, 11))
    classes = figures.classify_objects(true, WIDE)
    assert classes.true == {1: "matched", 2: "merged"}
    assert classes.pred == {1: "matched"}
    assert classes.counts["merged"] == 1


def test_two_exact_halves_match_once_since_matching_is_one_to_one():
    classes = figures.classify_objects(WIDE, PAIR)
    assert sorted(classes.pred.values()) == ["matched", "split"]
    assert classes.counts["matched"] == 1


def test_the_threshold_is_the_callers():
    pred = np.roll(WIDE, 1, axis=0)  # IoU 5 / 7
    assert figures.classify_objects(WIDE, pred, iou=0.8).counts["missed"] == 1


def test_ids_may_have_gaps():
    classes = figures.classify_objects(PAIR * 50, PAIR * 7)
    assert classes.true == {50: "matched", 100: "matched"}
    assert classes.pred == {7: "matched", 14: "matched"}


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(12, 12\).*\(3, 6\)"):
        figures.classify_objects(WIDE, np.zeros((3, 6), np.int32))


small_labels = arrays(np.int32, (6, 6), elements=st.integers(0, 4))


@given(small_labels, small_labels, st.sampled_from([0.3, 0.5, 0.75]))
def test_matched_is_the_number_the_tables_print(true, pred, iou):
    classes = figures.classify_objects(true, pred, iou)
    result = metrics.match(true, pred, iou)
    assert classes.counts["matched"] == result.tp
    assert sum(name != "matched" for name in classes.true.values()) == result.fn
    assert sum(name != "matched" for name in classes.pred.values()) == result.fp


# --- ranks -------------------------------------------------------------------------------------


def test_ranks_start_at_the_best_and_ties_share_their_mean():
    scores = pd.DataFrame({"dice": [0.9, 0.7, 0.9, np.nan], "f1": [0.1, 0.2, 0.3, 0.4]})
    placed = figures.ranks(scores)
    assert placed["dice"].tolist()[:3] == [1.5, 3.0, 1.5] and np.isnan(placed["dice"][3])
    assert placed["f1"].tolist() == [4, 3, 2, 1]


def test_of_an_error_the_smallest_is_best():
    scores = pd.DataFrame({"count_error": [0.1, 3.0, 0.5], "off by": [0.1, 3.0, 0.5]})
    assert figures.ranks(scores)["count_error"].tolist() == [1, 3, 2]
    assert figures.ranks(scores)["off by"].tolist() == [3, 1, 2]
    assert figures.ranks(scores, ["off by"])["off by"].tolist() == [1, 3, 2]


def test_scores_equal_but_for_rounding_are_ties():
    scores = pd.DataFrame({"dice": [0.3, 0.1 + 0.2]})
    assert figures.ranks(scores)["dice"].tolist() == [1.5, 1.5]


# --- what is on the canvas ---------------------------------------------------------------------

IMAGE = np.arange(144, dtype=np.uint16).reshape(12, 12)
HISTORY = pd.DataFrame(
    {"step": [0, 1, 2], "train_loss": [3.0, 2.0, 1.0], "val_loss": [3.5, np.nan, 1.5]}
)
CELLS = pd.DataFrame(
    {
        "label": ["network", "teacher"],
        "published": [0.9, 0.5],
        "measured": [0.8, np.nan],
        "low": [0.7, np.nan],
        "high": [0.85, np.nan],
        "verdict": ["lower", "not yet run"],
    }
)
SCORES = pd.DataFrame({"dice": [0.9, 0.9], "f1": [0.2, 0.4]}, index=["split", "merge"])
COLOUR = np.stack([IMAGE, IMAGE[::-1], IMAGE.T], axis=2).astype(np.uint8)
GROUPS = pd.DataFrame(
    {"images": [5, 1], "pixel_iou": [0.9, 0.8], "f1_50": [0.7, 0.3]},
    index=["fluorescence", "stained"],
)
LESSON = np.array([[0, 1, 2, 255]], np.uint8)
SAMPLES = [Sample("a", IMAGE, block((1, 4, 1, 4), (4, 8, 1, 4), (9, 11, 9, 11)))]
EVERY_FIGURE = {
    "images": lambda: figures.images([IMAGE, PAIR, PAIR > 0], ["a", "b", "c"], source=SOURCE),
    "overlay": lambda: figures.overlay(IMAGE, PAIR, WIDE, source=SOURCE),
    "error_map": lambda: figures.error_map(IMAGE, PAIR, WIDE, source=SOURCE),
    "overlay in colour": lambda: figures.overlay(COLOUR, PAIR, WIDE, source=SOURCE),
    "error_map in colour": lambda: figures.error_map(COLOUR, PAIR, WIDE, source=SOURCE),
    "images in colour": lambda: figures.images([COLOUR], ["a"], source=SOURCE),
    "error_maps": lambda: figures.error_maps(
        [(COLOUR, PAIR, WIDE), (IMAGE, WIDE, WIDE)], ["a", "b"], source=SOURCE
    ),
    "data_comparison in colour": lambda: figures.data_comparison(
        [Sample("a", COLOUR, PAIR)], SAMPLES, source=SOURCE
    ),
    "scores_by_group": lambda: figures.scores_by_group(
        {"one": GROUPS, "other": GROUPS}, {"pixel_iou": "pixel IoU", "f1_50": "F1"}, source=SOURCE
    ),
    "class_maps": lambda: figures.class_maps([LESSON, LESSON], ["a", "b"], source=SOURCE),
    "probability_map": lambda: figures.probability_map(np.full((3, 4, 4), 1 / 3), source=SOURCE),
    "loss_curves": lambda: figures.loss_curves(HISTORY, source=SOURCE),
    "data_comparison": lambda: figures.data_comparison(SAMPLES, SAMPLES, source=SOURCE),
    "published": lambda: figures.published_against_measured(CELLS, source=SOURCE),
    "rank_chart": lambda: figures.rank_chart(SCORES, source=SOURCE),
    "background_weights": lambda: figures.background_weights(
        {"a": np.ones((12, 12))}, PAIR == 1, PAIR > 0, source=SOURCE
    ),
}


@pytest.mark.parametrize("name", EVERY_FIGURE)
def test_every_figure_names_its_source_on_white_and_is_shown_once(name, tmp_path):
    fig = EVERY_FIGURE[name]()
    assert SOURCE in fig.get_suptitle()
    assert fig.get_facecolor() == (1, 1, 1, 1)
    assert not plt.get_fignums(), "an open figure would be shown a second time"
    fig.savefig(tmp_path / "figure.png")


def test_the_error_map_paints_its_categories_and_counts_them():
    true = block((1, 5, 1, 5), (7, 11, 1, 5))
    pred = block((1, 5, 1, 5), (7, 11, 7, 11))
    flat = np.zeros((12, 12), np.uint16)  # a black image, so that only the paint shows
    fig = figures.error_map(flat, true, pred, source=SOURCE)
    assert legend(fig)[:3] == ["matched 1", "missed 1", "false 1"]
    shown = picture(fig)
    for place, category in {(2, 2): "matched", (9, 2): "missed", (9, 9): "false"}.items():
        expected = 0.6 * np.array(to_rgb(figures.CATEGORY_COLOURS[category]))
        np.testing.assert_allclose(shown[place], expected)
    assert (shown[1, 1] == 1).all(), "the true outline is white"
    assert (shown[6, 6] == 0).all(), "the background stays as it is"


def test_split_nuclei_are_striped_and_merged_ones_crossed():
    true = block((0, 12, 0, 40), (14, 22, 0, 20), (14, 22, 20, 40), shape=(24, 40))
    thirds = (0, 12, 0, 13), (0, 12, 13, 27), (0, 12, 27, 40)
    pred = block(*thirds, (14, 22, 0, 40), shape=(24, 40))
    shown = picture(figures.error_map(np.zeros((24, 40)), true, pred, source=SOURCE))
    white = (shown == 1).all(axis=2) & ~figures.outlines(true)
    split, merged = white[1:11, 1:39], white[15:21, 1:19]
    assert 0.1 < split.mean() < merged.mean() < 0.5
    assert (split[1:, :-1] == split[:-1, 1:]).all(), "the stripes of the one rise"
    assert not (merged[1:, :-1] == merged[:-1, 1:]).all()


# Machado, Oliveira & Fernandes (2009), severity 1: what is left of linear red, green and blue.
VISIONS = {
    "all colours": np.eye(3),
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
}


def as_seen(colour: np.ndarray, vision: str) -> np.ndarray:
    """An sRGB colour as somebody sees it, in L*a*b*."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    left = np.clip(np.asarray(VISIONS[vision]) @ linear, 0, 1)
    return rgb2lab(np.where(left <= 0.0031308, 12.92 * left, 1.055 * left ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize("vision", VISIONS)
def test_error_maps_can_be_read_without_red_or_green(vision):
    """Over any grey, no two categories look alike, and none like a nucleus without paint."""
    for grey in (0.0, 0.3, 0.6, 0.9):
        paint = [np.array(to_rgb(colour)) for colour in figures.CATEGORY_COLOURS.values()]
        seen = [as_seen(0.4 * grey + 0.6 * colour, vision) for colour in paint]
        seen.append(as_seen(np.full(3, grey), vision))
        assert min(deltaE_ciede2000(a, b) for a, b in combinations(seen, 2)) > 12


@pytest.mark.parametrize("size, told, pixels", [(0.656, "10 µm", 10 / 0.656), (0.1, "2 µm", 20)])
def test_a_scale_bar_is_as_long_as_it_says(size, told, pixels):
    image = np.zeros((80, 120), np.uint8)
    ax = figures.images([image], ["a"], source=SOURCE, pixel_size=size).axes[0]
    assert ax.texts[0].get_text() == told
    left, right = ax.lines[0].get_xdata()
    assert right - left == pytest.approx(pixels) and right < 120
    assert not figures.images([image], ["a"], source=SOURCE).axes[0].lines


def test_class_maps_have_the_colours_of_their_legend():
    fig = figures.class_maps([LESSON], ["a"], source=SOURCE)
    assert legend(fig) == ["background", "nucleus", "separation", "ignored"]
    expected = [to_rgb(patch.get_facecolor()) for patch in fig.legends[0].get_patches()]
    np.testing.assert_allclose(picture(fig)[0], expected)


def test_a_network_keeps_its_colour_and_no_other_line_takes_it():
    alone = figures._colours(["U-Net, 16 to 192 feature maps"])
    beside = figures._colours(["something", "ground truth", "u-net", "Mask R-CNN, ResNet-18"])
    assert beside[2:] == [*alone, figures.NETWORK_COLOURS["maskrcnn"]]
    assert figures._colours(["dl-ground-truth"]) == beside[1:2]
    assert len(set(beside)) == 4
    assert len(set(figures._colours(["u-net", "u-net, cut"]))) == 2
    assert len(set(figures.NETWORK_COLOURS.values())) == len(figures.NETWORK_COLOURS)


def test_a_point_per_network_and_condition_stands_where_it_scored():
    points = pd.DataFrame(
        [
            ("U-Net", "unscaled", 0.64, 0.79, "all"),
            ("U-Net", "scaled", 0.85, 0.87, "all"),
            ("Mask R-CNN", "scaled", 0.87, 0.91, "all"),
            ("U-Net", "scaled", 0.75, np.nan, "crowded"),
        ],
        columns=["network", "condition", "recall", "precision", "group"],
    )
    fig = figures.precision_recall(points, source=SOURCE)
    everything, crowded = fig.axes
    assert [ax.get_title() for ax in fig.axes] == ["all", "crowded"]
    assert legend(fig) == ["U-Net", "Mask R-CNN", "unscaled", "scaled"]
    drawn = [line for line in everything.lines if line.get_marker() not in ("None", None, "")]
    assert [tuple(np.ravel(line.get_data())) for line in drawn] == [
        (0.64, 0.79), (0.85, 0.87), (0.87, 0.91)
    ]  # fmt: skip
    colours = figures.NETWORK_COLOURS
    assert {line.get_color() for line in drawn} == {colours["unet"], colours["maskrcnn"]}
    assert everything.axis() == crowded.axis()
    assert SOURCE in fig.get_suptitle()


def test_without_groups_there_is_one_panel():
    points = pd.DataFrame({"network": ["DeepCell"], "condition": ["scaled"], "recall": [0.48],
                           "precision": [0.74]})  # fmt: skip
    fig = figures.precision_recall(points, source=SOURCE)
    assert len(fig.axes) == 1
    (line,) = (line for line in fig.axes[0].lines if line.get_marker() == "o")
    assert line.get_color() == figures.NETWORK_COLOURS["deepcell"]


def test_curves_of_equal_f1_are_such():
    fig = figures.precision_recall(
        pd.DataFrame({"network": ["a"] * 2, "condition": ["b", "c"], "recall": [0.2, 1.0],
                      "precision": [0.3, 1.0]}),
        source=SOURCE,
    )  # fmt: skip
    curves = [line for line in fig.axes[0].lines if line.get_color() == "#DDDDDD"]
    assert len(curves) == 9
    for line, f1 in zip(curves, np.arange(1, 10) / 10, strict=True):
        recall, precision = line.get_data()
        np.testing.assert_allclose(2 * recall * precision / (recall + precision), f1)


def test_every_case_has_its_verdict_below():
    pairs = {name: (case.labels_true, case.labels_pred) for name, case in CASES.items()}
    fig = figures.cases(pairs, source=SOURCE)
    said = {ax.get_title(): ax.get_xlabel() for ax in fig.axes if ax.axison}
    assert list(said) == list(CASES)
    assert said["A"] == "1 TP" and said["D"] == "1 TP, 1 FN"
    assert said["I"] == "1 FN, 2 FP, 1 OS" and said["P"] == "3 FN, 3 FP, 2 US, 1 OS"
    merged = fig.axes[list(CASES).index("K")]
    assert [line.get_linestyle() for line in merged.lines] == ["-", "-", "--"]
    x, y = merged.lines[2].get_data()
    assert (x.min(), x.max(), y.min(), y.max()) == (3.5, 23.5, 3.5, 13.5)
    assert legend(fig) == ["truth", "prediction"]


def test_an_odd_number_of_cases_leaves_places_empty():
    fig = figures.cases({"a": (block((1, 5, 1, 5)), block())}, source=SOURCE, columns=2)
    assert [ax.axison for ax in np.ravel(fig.axes)] == [True, False]
    assert fig.axes[0].get_xlabel() == "1 FN"


def test_weights_are_red_on_what_nobody_outlined():
    outlined, truth = block((1, 4, 1, 4)) > 0, block((1, 4, 1, 4), (6, 9, 6, 9)) > 0
    weights = {"half": np.full((12, 12), 0.5)}
    shown = picture(figures.background_weights(weights, outlined, truth, source=SOURCE))
    for place, colour in (((2, 2), figures.SKY), ((7, 7), figures.VERMILLION), ((0, 0), "white")):
        strength = 1 if place == (2, 2) else 0.5
        expected = 255 * strength * np.array(to_rgb(colour))
        np.testing.assert_allclose(shown[place], expected, atol=1.01)


def test_the_overlay_draws_agreement_white_and_each_side_in_its_colour():
    true, pred = block((1, 5, 1, 5)), block((1, 5, 1, 7))
    shown = picture(figures.overlay(np.zeros((12, 12)), true, pred, source=SOURCE))
    assert (shown[1, 1] == 1).all()
    np.testing.assert_allclose(shown[2, 4], to_rgb(figures.ORANGE))
    np.testing.assert_allclose(shown[2, 6], to_rgb(figures.SKY))


def test_on_a_bright_image_lines_are_dark():
    true, pred = block((1, 5, 1, 5)), block((1, 5, 1, 7))
    tissue = np.full((12, 12, 3), 240, np.uint8)
    tissue[0] = 10
    shown = picture(figures.overlay(tissue, true, pred, source=SOURCE))
    assert (shown[1, 1] == 0).all(), "agreement"
    np.testing.assert_allclose(shown[2, 4], to_rgb(figures.VERMILLION))
    np.testing.assert_allclose(shown[2, 6], to_rgb(figures.BLUE))
    assert (shown[8, 8] == 1).all(), "the ground stays bright"
    shown = picture(figures.error_map(tissue, true, pred, source=SOURCE))
    assert (shown[1, 1] == 0).all(), "the true outline"


def test_under_the_paint_a_coloured_image_is_grey_and_keeps_its_order():
    shown = picture(figures.overlay(COLOUR, np.zeros((12, 12), np.int32), source=SOURCE))
    assert (shown == shown[..., :1]).all()
    grey = np.repeat(IMAGE[..., None].astype(np.uint8), 3, axis=2)  # as dsb2018 has it
    of_grey = picture(figures.overlay(grey, PAIR, source=SOURCE))
    np.testing.assert_array_equal(of_grey, picture(figures.overlay(IMAGE, PAIR, source=SOURCE)))


def test_error_maps_count_below_every_title_and_share_one_legend():
    far = block((1, 5, 1, 5)), block((7, 11, 7, 11))
    panels = [(IMAGE, PAIR, PAIR), (IMAGE[:6], *(labels[:6] for labels in far))]
    fig = figures.error_maps(panels, ["best", "worst"], source=SOURCE, columns=2)
    best, worst = (ax.get_title().replace("\N{NO-BREAK SPACE}", " ") for ax in fig.axes)
    assert best == "best\nmatched 2"
    assert worst == "worst\nmissed 1"
    assert legend(fig) == list(figures.CATEGORY_COLOURS)
    np.testing.assert_array_equal(
        fig.axes[0].images[0].get_array(),
        picture(figures.error_map(IMAGE, PAIR, PAIR, source=SOURCE)),
    )


def test_long_counts_are_broken_between_categories():
    counts = {"matched": 280, "missed": 48, "false": 12, "split": 31, "merged": 5}
    lines = figures._counted(counts, letters=30).split("\n")
    assert len(lines) == 2 and max(map(len, lines)) <= 30
    assert all(line[-1] in ",5" for line in lines), "no count is parted from its name"


def test_a_title_too_few_or_too_many_is_refused():
    with pytest.raises(ValueError, match="titles must hold one per panel, 2, not 1"):
        figures.error_maps([(IMAGE, PAIR, PAIR)] * 2, ["one"], source=SOURCE)
    with pytest.raises(ValueError, match="titles must hold one per panel, 1, not 2"):
        figures.images([IMAGE], ["one", "two"], source=SOURCE)


def test_pictures_of_all_shapes_share_a_sheet():
    strip, wide = np.zeros((90, 10), np.uint8), np.zeros((10, 90), np.uint8)
    fig = figures.images([strip, wide, wide], ["a", "b", "c"], source=SOURCE, columns=2)
    upper, lower = fig.axes[0].get_gridspec().get_height_ratios()
    assert upper > 3 * lower, "a row is as high as it must be"
    assert fig.get_size_inches()[1] < 6, "and a strip is not drawn at any length"
    assert not fig.axes[3].axison


def test_an_overlay_of_one_set_has_no_prediction_in_its_legend():
    assert legend(figures.overlay(IMAGE, PAIR, source=SOURCE)) == ["truth"]


def test_touching_nuclei_never_share_a_colour():
    labels = np.arange(1, 37, dtype=np.int32).reshape(6, 6).repeat(2, 0).repeat(2, 1)
    # The palette has 7 colours: without care, 1 and 8 would touch in the same one.
    colours = picture(figures.images([labels], ["labels"], source=SOURCE))
    first = {label: tuple(colours[labels == label][0]) for label in range(1, 37)}
    assert all(first[a] != first[b] for a, b in figures.touching_pairs(labels).tolist())
    assert len(set(first.values())) > 2


def test_background_is_black_and_masks_are_white():
    labels, mask = figures.images([PAIR, PAIR > 0], ["labels", "mask"], source=SOURCE).axes
    assert (labels.images[0].get_array()[0, 0] == 0).all()
    assert set(np.unique(mask.images[0].get_array())) == {0, 255}


def test_a_sure_pixel_has_its_class_colour_and_an_unsure_one_the_mixture():
    probabilities = np.zeros((3, 1, 2))
    probabilities[1, 0, 0] = 1
    probabilities[1:, 0, 1] = 0.5
    shown = picture(figures.probability_map(probabilities, source=SOURCE))
    nucleus, separation = (np.array(to_rgb(c)) for c in (figures.SKY, figures.ORANGE))
    np.testing.assert_allclose(shown[0, 0], nucleus)
    np.testing.assert_allclose(shown[0, 1], (nucleus + separation) / 2)


def test_a_probability_map_of_two_classes_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 4, 4\)"):
        figures.probability_map(np.zeros((2, 4, 4)), source=SOURCE)


def test_loss_curves_skip_missing_values_and_name_missing_columns():
    fig = figures.loss_curves({"a": HISTORY, "b": HISTORY}, source=SOURCE)
    assert len(fig.axes) == 1
    train, validation = fig.axes[0].lines[:2]
    assert train.get_ydata().tolist() == [3.0, 2.0, 1.0]
    assert validation.get_xdata().tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"'b' lacks the columns \['val_loss'\]"):
        figures.loss_curves({"b": HISTORY.drop(columns="val_loss")}, source=SOURCE)


def test_the_learning_rate_has_its_own_panel():
    fig = figures.loss_curves(HISTORY.assign(learning_rate=1e-3), source=SOURCE)
    assert [ax.get_ylabel() for ax in fig.axes] == ["loss", "learning rate"]


def test_data_comparison_counts_nuclei_that_touch():
    apart = [Sample("b", IMAGE, block((1, 3, 1, 3), (6, 9, 6, 9)))]
    fig = figures.data_comparison(SAMPLES, apart, source=SOURCE)
    touching = [bar.get_height() for bar in fig.axes[2].patches]
    assert touching == pytest.approx([200 / 3, 0])  # two of three, none of two


def test_data_comparison_takes_images_without_nuclei():
    empty = [Sample("empty", IMAGE, np.zeros((12, 12), np.int32))]
    fig = figures.data_comparison(SAMPLES, empty, source=SOURCE)
    assert fig.axes[2].patches[1].get_height() == 0


def test_a_pixel_of_colour_counts_by_its_luminance_and_in_its_dtype():
    image = np.array([[[255, 0, 0], [0, 255, 0], [7, 7, 7]]], np.uint8)
    grey = figures._luminance(image)
    assert grey.dtype == np.uint8 and grey.tolist() == [[76, 150, 7]]
    assert figures._luminance(image / 255)[0, 1] == pytest.approx(0.587)


def test_no_bin_of_grey_values_is_empty_by_construction():
    edges = figures._log_bins(np.arange(256, dtype=np.uint8))
    assert edges[0] == 1 and edges[-1] == 256
    assert (np.diff(edges) >= 1).all()


def test_groups_stand_in_rows_with_a_dot_per_method_and_panel():
    other = GROUPS.assign(f1_50=[0.5, 0.1])
    fig = figures.scores_by_group(
        {"one": GROUPS, "other": other}, {"pixel_iou": "pixel IoU", "f1_50": "F1"}, source=SOURCE
    )
    pixel, f1 = fig.axes
    assert (pixel.get_xlabel(), f1.get_xlabel()) == ("pixel IoU", "F1")
    assert [line.get_xdata().tolist() for line in f1.lines] == [[0.7, 0.3], [0.5, 0.1]]
    rows = [line.get_ydata().round().tolist() for line in pixel.lines]
    assert rows == [[0, 1], [0, 1]]
    shown = [label.get_text() for label in pixel.get_yticklabels()]
    assert shown == ["fluorescence\n5 images", "stained\n1 image"]
    assert pixel.get_xlim() == f1.get_xlim()
    assert legend(fig) == ["one", "other"]


def test_methods_measured_on_other_images_are_not_drawn_together():
    fewer = GROUPS.assign(images=[4, 1])
    with pytest.raises(ValueError, match=r"'other' was measured on .*4.* not on .*5"):
        figures.scores_by_group({"one": GROUPS, "other": fewer}, {"f1_50": "F1"}, source=SOURCE)


def test_published_and_measured_stand_at_their_values_first_row_on_top():
    ax = figures.published_against_measured(CELLS, source=SOURCE).axes[0]
    interval, measured, published = ax.lines[:3]
    assert interval.get_xdata() == pytest.approx([0.7, 0.85])
    assert measured.get_xdata() == pytest.approx([0.8])
    assert published.get_xdata() == pytest.approx([0.9])
    assert ax.get_ylim() == (1.5, -0.5)
    assert [text.get_text() for text in ax.texts] == ["lower", "not yet run"]


def test_an_unknown_verdict_is_refused():
    with pytest.raises(ValueError, match="splendid"):
        figures.published_against_measured(CELLS.assign(verdict="splendid"), source=SOURCE)


def test_the_rank_chart_puts_the_best_on_top_and_ties_apart():
    ax = figures.rank_chart(SCORES, source=SOURCE).axes[0]
    split, merge = (line.get_ydata() for line in ax.lines[::2])
    assert merge[1] == 1 and split[1] == 2
    assert split[0] != merge[0] and split[0] + merge[0] == 3
    bottom, top = ax.get_ylim()
    assert bottom > top, "rank 1 is on top"


# --- sweep_chart ---------------------------------------------------------------------------------


def swept(**columns) -> pd.DataFrame:
    count = len(next(iter(columns.values())))
    runs = {"run": [f"r{i}" for i in range(count)], "variant": ["a"] * count}
    score = columns.pop("score")
    ends = {"low": [s - 0.1 for s in score], "high": [s + 0.2 for s in score]}
    return pd.DataFrame(runs | columns | {"score": score} | ends)


def test_a_swept_score_has_a_dot_per_run_and_a_line_through_their_means():
    rates, seeds = [0.1, 0.1, 0.01, 0.01], [1, 2, 1, 2]
    fig = figures.sweep_chart(
        swept(rate=rates, seed=seeds, score=[0.5, 0.7, 0.2, 0.4]), "rate", measure="F1",
        source=SOURCE,
    )  # fmt: skip
    (ax,) = fig.axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.01", "0.1"]
    dots, means = ax.lines[0], ax.lines[-1]
    assert sorted(dots.get_ydata()) == [0.2, 0.4, 0.5, 0.7]
    assert len(set(dots.get_xdata())) == 4, "seeds stand beside each other"
    np.testing.assert_allclose(means.get_ydata(), [0.3, 0.6])
    (bars,) = ax.collections
    np.testing.assert_allclose(
        sorted(tuple(np.round(one[:, 1], 6)) for one in bars.get_segments()),
        [(0.1, 0.4), (0.3, 0.6), (0.4, 0.7), (0.6, 0.9)],
    )
    assert ax.get_ylabel() == "F1" and not fig.legends and SOURCE in fig.get_suptitle()


def test_what_else_varies_gets_a_line_of_its_own():
    table = swept(rate=[1, 2, 1, 2], width=[8, 8, 16, 16], seed=[1] * 4, score=[0.1, 0.2, 0.3, 0.4])
    fig = figures.sweep_chart(table, "rate", measure="F1", source=SOURCE)
    assert legend(fig) == ["width = 8", "width = 16"]
    table["variant"] = ["a", "a", "b", "b"]
    fig = figures.sweep_chart(table, "rate", measure="F1", source=SOURCE)
    assert legend(fig) == ["a, width = 8", "b, width = 16"]
    fig = figures.sweep_chart(table.drop(columns="width"), "rate", measure="F1", source=SOURCE)
    assert legend(fig) == ["a", "b"]
    words = swept(scale=["log", "linear"], score=[0.1, 0.2])
    fig = figures.sweep_chart(words, "scale", measure="F1", source=SOURCE)
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["linear", "log"]


# --- the picture that answers to sliders -------------------------------------------------------

SQUARES = block((2, 12, 2, 12), (2, 12, 24, 34), shape=(20, 50))
MOVED = {step: np.roll(SQUARES, step, axis=1) for step in (0, 2, 5, 10)}
IOUS = (0.3, 0.5, 0.75)


def f1_and_overlap(labels_true, labels_pred, iou):
    shared = ((labels_true > 0) & (labels_pred > 0)).sum() / (labels_true > 0).sum()
    return {"F1 < all": metrics.match(labels_true, labels_pred, iou).f1, "shared": shared}


@pytest.fixture(scope="module")
def explored() -> str:
    image = np.where(SQUARES > 0, 3000, 100).astype(np.uint16)
    how = {"source": SOURCE, "parameter": "shift, px", "start": 5, "ious": IOUS}
    return figures.explorer(image, SQUARES, MOVED, f1_and_overlap, **how)


def embedded(page: str) -> dict:
    return json.loads(re.search(r"<script type=.application/json.>(.*?)</script>", page)[1])


def test_an_explorer_holds_every_state(explored):
    """Squares of 10 pixels moved by s share (10 - s) columns, so their IoU is (10 - s)/(10 + s)."""
    data = embedded(explored)
    assert data["values"] == ["0", "2", "5", "10"] and data["ious"] == ["0.30", "0.50", "0.75"]
    for of_step, step in zip(data["states"], MOVED, strict=True):
        for state, iou in zip(of_step, IOUS, strict=True):
            found = (10 - step) / (10 + step) >= iou and step < 10
            assert state["true"] == state["pred"] == ("11" if found else "00")
            assert state["scores"] == ["1.00" if found else "0.00", f"{(10 - step) / 10:.2f}"]
            left = 0 if found else 2
            assert state["said"].startswith(f"{2 - left} of 2 true nuclei")
            assert f"; {left} of 2 predicted ones are false" in state["said"]


def test_an_explorer_draws_nuclei_where_they_are(explored):
    for shapes, labels in zip(embedded(explored)["shapes"], MOVED.values(), strict=True):
        for shape, label in zip(shapes, (1, 2), strict=True):
            x, y = np.array(re.findall(r"[-\d.]+", shape), float).reshape(-1, 2).T
            rows, columns = np.nonzero(labels == label)
            assert (y.min(), y.max()) == (rows.min(), rows.max() + 1)
            assert (x.min(), x.max()) == (columns.min(), columns.max() + 1)


def test_an_explorer_shows_its_first_state_where_nothing_moves(explored):
    state = embedded(explored)["states"][2][0]
    assert state["scores"] == ["1.00", "0.50"]
    assert re.findall(r"</th><td>([\d.]+)</td>", explored) == state["scores"]
    assert re.findall(r"width: (\d+%)\"></i>", explored) == ["100%", "50%"]
    assert re.findall(r"<output>([^<]+)", explored) == ["5", "0.30"]
    assert f'role="status">{state["said"]}<' in explored and "class=no" not in explored
    (picture,) = re.findall(r"data:image/png;base64,([^\"]+)", explored)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
    assert ((pixels[..., 0] == 255) == (SQUARES > 0)).all()


def test_what_is_missed_is_marked_from_the_start():
    how = {"source": SOURCE, "parameter": "shift, px", "start": 10, "ious": (0.5,)}
    page = figures.explorer(SQUARES, SQUARES, MOVED, f1_and_overlap, **how)
    assert page.count("class=no") == 4  # both, true and predicted


class Tags(HTMLParser):
    """The tags of a page with their attributes, and the labels that are open around each."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), self.open.count("label")))
        if tag not in ("input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs), self.open.count("label")))


def test_an_explorer_can_be_used_from_the_keyboard_and_needs_nothing_else(explored):
    page = Tags(explored)
    sliders = [(attrs, labels) for tag, attrs, labels in page.found if tag == "input"]
    assert [labels for _, labels in sliders] == [1, 1]
    assert {attrs["type"] for attrs, _ in sliders} == {"range"}
    assert [(a["min"], a["max"], a["value"]) for a, _ in sliders] == [
        ("0", "3", "2"),
        ("0", "2", "0"),
    ]
    assert page.open == []
    assert "http" not in explored and "id=" not in explored
    assert "F1 &lt; all" in explored


# --- artificial images -------------------------------------------------------------------------


def test_the_steps_of_an_artificial_image_share_one_grey_scale():
    real = np.full((40, 40), 50, np.uint16)
    labels = block((4, 14, 4, 14), (20, 32, 20, 30), shape=(40, 40))
    real[labels > 0] = 450
    sample = Sample("drawn", real, labels)
    recipe = artificial.Recipe(size=64, dim=0.5)
    rng = np.random.default_rng(1)
    made = artificial.invent(artificial.material(sample), rng, recipe)
    fig = figures.artificial_steps(sample, made, made.image, source=SOURCE)
    titles = [ax.get_title() for ax in fig.axes]
    assert [title[0] for title in titles] == list("ABCDDE")
    shown = {title: ax.images[0].get_array() for title, ax in zip(titles, fig.axes, strict=True)}
    assert (shown["A · real"][figures.outlines(labels)] == to_rgb(figures.ORANGE)).all()
    assert (shown["B · cut out"] == 255).sum() == sum(one.mask.sum() for one in made.cut)
    assert (shown["C · altered"] > 50).sum() == sum(one.mask.sum() for one in made.altered)
    assert (shown["D · set on background"] == shown["E · made natural"]).all()
    assert (shown["D · set on background"] == 0).sum() == (made.image == 50).sum()
    assert SOURCE in fig.get_suptitle()
    assert len(figures.artificial_steps(sample, made, source=SOURCE).axes) == 6  # one is blank


def test_a_mosaic_keeps_every_piece():
    pieces = [np.full((3, 5), 1, np.uint8), np.full((6, 2), 2, np.uint8), np.ones((1, 1), np.uint8)]
    made = figures._mosaic(pieces)
    assert made.shape == (16, 16)
    assert np.bincount(made.ravel())[1:].tolist() == [16, 12]


def test_rim_profiles_say_how_wide_they_are():
    distance = np.arange(-3, 3) + 0.5
    sharp = artificial.Rim(distance, np.array([1.0, 1, 1, 0, 0, 0]), 7)
    never = artificial.Rim(distance, np.array([1.0, 1, 0.8, 0.6, 0.4, 0.2]), 3)
    fig = figures.rim_profiles({"cut out": sharp, "real": never}, source=SOURCE)
    assert legend(fig) == [
        "cut out (7 nuclei): rim 0.8 px",
        "real (3 nuclei): does not fall to 10 %",
    ]
    assert fig.axes[0].lines[0].get_xydata().tolist() == np.c_[distance, sharp.light].tolist()


# --- methods over data sets ----------------------------------------------------------------------


def test_a_grid_has_a_number_for_each_cell_and_a_frame_around_those_at_home():
    scores = pd.DataFrame({"a": [0.91, np.nan], "b": [0.2, 1.0]}, ["x", "y"])
    home = pd.DataFrame({"a": [True, False], "b": [False, False]}, ["x", "y"])
    fig = figures.score_grid(scores, home, source=SOURCE)
    ax = fig.axes[0]
    assert sorted(text.get_text() for text in ax.texts) == ["", ".20", ".91", "1.00"]
    (frame,) = ax.patches
    middle = frame.get_x() + frame.get_width() / 2, frame.get_y() + frame.get_height() / 2
    assert middle == (0, 0)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]


def test_mean_ranks_stand_on_a_line_and_bars_join_what_is_alike():
    ranks = pd.Series([1.5, 2.0, 4.0], ["x", "y", "z"])
    fig = figures.critical_difference(ranks, [("x", "y")], 1.2, source=SOURCE)
    ax = fig.axes[0]
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert dots == [1.5, 2.0, 4.0]
    bars = [list(line.get_xdata()) for line in ax.lines if line.get_linewidth() == 3]
    assert bars == [[1.5, 2.0]]
    (scale,) = (line for line in ax.lines if line.get_marker() == "|")
    assert list(scale.get_xdata()) == [1.0, 2.2]
    assert ax.texts[0].get_text() == "  x, 1.5"


def test_a_line_joins_the_methods_that_nothing_as_fast_beats():
    costs = pd.DataFrame(
        {"score": [0.5, 0.9, 0.7], "seconds_per_megapixel": [1, 10, 20], "best": [1, 1, 0]},
        ["fast", "good", "neither"],
    ).astype({"best": bool})
    ax = figures.cost_against_score(costs, measure="F1", source=SOURCE).axes[0]
    assert list(ax.lines[0].get_xdata()) == [1, 10] and ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.texts] == [" fast", " good", " neither"]
