"""Drawn class maps, and the nuclei they hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi
from skimage.morphology import skeletonize
from skimage.segmentation import expand_labels

from nuctut import postprocess
from nuctut.targets import BACKGROUND, NUCLEUS, SEPARATION, dihedral, three_classes


def two_nuclei(gap: int = 0) -> np.ndarray:
    """Two halves of a 24×40 block with a two-pixel line between them, open for `gap` pixels."""
    classes = np.full((40, 60), BACKGROUND)
    classes[8:32, 10:50] = NUCLEUS
    classes[8:32, 29:31] = SEPARATION
    classes[19 : 19 + gap, 29:31] = NUCLEUS
    return classes


def chances(classes: np.ndarray) -> np.ndarray:
    """A probability map whose most probable classes are these."""
    return np.stack([np.where(classes == c, 0.4, 0.3) for c in range(3)]).astype(np.float32)


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_a_predicted_line_parts_two_nuclei_even_with_a_small_gap_in_it(gap):
    labels = postprocess.nuclei(chances(two_nuclei(gap)))
    assert labels.dtype == np.int32
    assert sorted(np.unique(labels)) == [0, 1, 2]
    assert len({labels[20, 15], labels[20, 45], 0}) == 3


def test_a_line_with_a_wide_gap_does_not_part():
    labels = postprocess.nuclei(chances(two_nuclei(12)))
    assert labels[20, 15] == labels[20, 45] > 0


def test_lines_are_three_pixels_wide():
    labels = postprocess.nuclei(chances(two_nuclei()))
    for row in labels[12:28]:
        cut = np.flatnonzero(row[10:50] == 0) + 10
        assert len(cut) == 3 and 28 <= cut.min() and cut.max() <= 31


def test_a_lone_nucleus_keeps_its_outline():
    classes = np.full((40, 60), BACKGROUND)
    classes[8:32, 10:50] = NUCLEUS
    np.testing.assert_array_equal(postprocess.from_classes(classes), classes == NUCLEUS)


def test_what_touches_by_a_corner_is_one_nucleus():
    classes = np.random.default_rng(0).choice([0, 1, 1, 1, 1, 2], (60, 60))
    labels = postprocess.from_classes(classes)
    assert labels.max() > 5
    for one, other in (
        (labels[1:], labels[:-1]),
        (labels[:, 1:], labels[:, :-1]),
        (labels[1:, 1:], labels[:-1, :-1]),
        (labels[1:, :-1], labels[:-1, 1:]),
    ):
        touching = (one > 0) & (other > 0)
        np.testing.assert_array_equal(one[touching], other[touching])


def flooded(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """The 4-connected sets of pixels, one by one and slowly."""
    left = set(map(tuple, np.argwhere(mask).tolist()))
    found = []
    while left:
        edge, piece = [left.pop()], set()
        while edge:
            y, x = edge.pop()
            piece.add((y, x))
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in left:
                    left.remove(near)
                    edge.append(near)
        found.append(piece)
    return found


@pytest.mark.parametrize("min_area", [0, 1, 2, 5])
def test_components_against_a_slow_reference(min_area):
    mask = np.random.default_rng(3).random((30, 41)) < 0.45
    labels = postprocess.components(mask, min_area)
    assert labels.dtype == np.int32 and labels.shape == mask.shape
    expected = [piece for piece in flooded(mask) if len(piece) >= min_area]
    assert len(expected) > 10 and sorted(np.unique(labels)) == list(range(len(expected) + 1))
    found = [set(map(tuple, np.argwhere(labels == i + 1).tolist())) for i in range(len(expected))]
    assert all(piece in expected for piece in found)


def test_what_touches_by_a_corner_alone_is_two_components():
    mask = np.kron(np.eye(2), np.ones((3, 3))) > 0
    assert postprocess.components(mask).max() == 2
    mask[2, 3] = True  # a shared side
    assert (postprocess.components(mask) == mask).all()


def test_masks_that_are_empty_or_full():
    empty, full = np.zeros((5, 7), bool), np.ones((5, 7), bool)
    for min_area in (0, 35, 36):
        assert not postprocess.components(empty, min_area).any()
        assert (postprocess.components(full, min_area) == (min_area <= 35)).all()


def test_a_probability_map_is_read_by_its_most_probable_class():
    rng = np.random.default_rng(0)
    map_ = rng.dirichlet([1, 1, 1], (20, 30)).transpose(2, 0, 1).astype(np.float32)
    expected = postprocess.from_classes(map_.argmax(0))
    np.testing.assert_array_equal(postprocess.nuclei(map_), expected)


def test_maps_of_one_class():
    empty = postprocess.nuclei(chances(np.full((20, 30), BACKGROUND)))
    assert empty.shape == (20, 30) and empty.dtype == np.int32 and not empty.any()
    full = postprocess.nuclei(chances(np.full((20, 30), NUCLEUS)))
    assert (full == 1).all()
    lines = postprocess.nuclei(chances(np.full((20, 30), SEPARATION)))
    assert lines.shape == (20, 30)
    assert not postprocess.give_back(empty, np.zeros((20, 30), bool)).any()
    assert not postprocess.drop_border(empty).any()


def test_small_labels_are_dropped_and_the_others_renumbered():
    classes = np.full((60, 70), BACKGROUND)
    classes[6:9, 6:9] = classes[20:30, 10:20] = classes[40:48, 40:60] = classes[50:54, 10:12] = 1
    areas = np.bincount(postprocess.from_classes(classes).ravel())[1:].tolist()
    assert areas == [9, 100, 160, 8]
    for min_area, kept in ((8, 4), (9, 3), (10, 2), (100, 2), (101, 1), (999, 0)):
        labels = postprocess.nuclei(chances(classes), min_area)
        assert sorted(np.unique(labels)) == list(range(kept + 1))
        assert all(np.bincount(labels.ravel())[1:] >= min_area)


@pytest.mark.parametrize("seed", range(16))
def test_lines_are_those_of_the_whole_backgrounds_skeleton(scene, seed):
    """Only a band of the background is thinned; inside the nuclei that changes nothing."""
    rng = np.random.default_rng(seed)
    discs = np.column_stack([rng.uniform(0, 1, (16, 2)) * (150, 220), rng.uniform(7, 14, 16)])
    classes = three_classes(scene((150, 220), discs)[1])
    square = np.ones((3, 3), bool)
    outside = (classes == BACKGROUND) | ndi.binary_dilation(classes == SEPARATION, square)
    lines = ndi.binary_dilation(skeletonize(outside), square)
    expected, count = ndi.label((classes != BACKGROUND) & ~lines, square)
    assert count > 8 and ((classes == NUCLEUS) & lines).sum() > 10
    labels = postprocess.from_classes(classes)
    assert labels.max() == count
    np.testing.assert_array_equal(labels > 0, expected > 0)


@pytest.mark.parametrize("shape", [(20, 30), (2, 20, 30), (4, 20, 30), (1, 3, 20, 30)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(3, H, W\), not"):
        postprocess.nuclei(np.zeros(shape, np.float32))


def test_the_pixels_under_a_line_go_back_to_the_nearest_nucleus():
    classes = two_nuclei()
    cut = postprocess.from_classes(classes)
    mask = classes != BACKGROUND
    whole = postprocess.give_back(cut, mask)
    assert whole.dtype == np.int32
    np.testing.assert_array_equal(whole > 0, mask)
    np.testing.assert_array_equal(whole[cut > 0], cut[cut > 0])
    left, right = cut[20, 15], cut[20, 45]
    for y, x in np.argwhere(mask & (cut == 0)):
        reach = [np.hypot(*(np.argwhere(cut == one) - (y, x)).T).min() for one in (left, right)]
        if reach[0] != reach[1]:
            assert whole[y, x] == (left, right)[int(np.argmin(reach))]


def test_nothing_is_given_back_beyond_its_reach():
    labels = np.zeros((3, 12), np.int32)
    labels[:, :2] = 1
    mask = np.ones((3, 12), bool)
    mask[0, 2] = False
    grown = postprocess.give_back(labels, mask, reach=3)
    assert grown[1].tolist() == [1] * 5 + [0] * 7
    assert grown[0, 2] == 0


def test_nuclei_at_the_edge_are_dropped_and_the_others_renumbered():
    labels = np.zeros((8, 10), np.int32)
    labels[0, 1], labels[3:5, 9], labels[7, 4], labels[4, 0] = 1, 2, 3, 5
    labels[2:4, 2:4], labels[5, 5:7] = 7, 4
    labels[2, 6], labels[0, 6] = 6, 6  # in two pieces, of which one touches
    inner = postprocess.drop_border(labels)
    assert inner.dtype == np.int32
    expected = np.zeros((8, 10), np.int32)
    expected[5, 5:7], expected[2:4, 2:4] = 1, 2
    np.testing.assert_array_equal(inner, expected)


def test_divide_parts_two_discs_and_leaves_the_mask_alone():
    y, x = np.mgrid[:40, :60]
    mask = np.hypot(y - 20, x - 18) < 12
    mask |= np.hypot(y - 20, x - 38) < 12
    together = postprocess.components(mask)
    assert together.max() == 1
    apart = postprocess.divide(together)
    assert apart.dtype == np.int32 and apart.max() == 2
    np.testing.assert_array_equal(apart > 0, mask)
    assert apart[20, 10] != apart[20, 46]
    left = np.count_nonzero(apart == apart[20, 10])
    assert abs(left - mask.sum() / 2) <= 24  # half and half, but for the column where they meet


def test_divide_leaves_a_disc_whole_and_an_empty_image_empty():
    y, x = np.mgrid[:40, :40]
    disc = (np.hypot(y - 20, x - 20) < 10).astype(np.int32)
    np.testing.assert_array_equal(postprocess.divide(disc), disc)
    assert not postprocess.divide(0 * disc).any()


@pytest.mark.parametrize("density", [0.02, 0.2, 0.5, 0.9])
def test_divide_moves_no_pixel_between_nucleus_and_background(density):
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = postprocess.components(rng.random((30, 40)) < density)
        divided = postprocess.divide(labels)
        np.testing.assert_array_equal(divided > 0, labels > 0)
        pairs = np.unique(np.stack([divided[divided > 0], labels[divided > 0]]), axis=1)
        assert pairs.shape[1] == divided.max()  # no piece holds two labels


# --- rules ---------------------------------------------------------------------------------------


def test_small_nuclei_must_be_certain_and_grow_by_a_pixel():
    """Four squares of 3 pixels, one of 6: with all, five, four and none of nine pixels certain."""
    foreground = np.zeros((40, 60), np.float32)
    certain = (9, 5, 4, 0)
    for index, count in enumerate(certain):
        square = np.full(9, 0.7, np.float32)
        square[:count] = 0.95
        foreground[5:8, 10 * index + 5 : 10 * index + 8] = square.reshape(3, 3)
    foreground[20:26, 20:26] = 0.7
    chances = np.stack([1 - foreground, foreground, np.zeros_like(foreground)])

    def areas(*limits):
        return np.bincount(postprocess.parted_by_lines(*limits).labels(chances).ravel())[1:]

    assert areas().tolist() == [9, 9, 9, 9, 36]
    assert areas(10).tolist() == [36]
    assert areas(0, 20, 0.9).tolist() == [21, 21, 36]  # a square of 3 and its four sides
    assert areas(0, 20, 0.96).tolist() == [36]
    assert areas(10, 20, 0.9).tolist() == [36]  # nothing so certain that it may be smaller
    classes = postprocess.parted_by_lines(0, 20, 0.9).classes(chances)
    assert (classes == postprocess.CERTAIN).sum() == sum(certain)


def test_small_nuclei_grow_into_the_background_only():
    rule = postprocess.LabelRule(lambda p: p, lambda c: c == 1, small_area=5)
    classes = np.array(
        [[0, 0, 0, 0, 0], [0, 1, 2, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]], np.uint8
    )
    labels = np.array(
        [[0, 0, 0, 0, 0], [0, 1, 0, 2, 0], [0, 0, 0, 2, 0], [0, 0, 0, 2, 2]], np.int32
    )
    grown = rule.swollen(labels, classes, np.array([False, True, False]))
    assert grown.tolist() == [[0, 1, 0, 0, 0], [1, 1, 0, 2, 0], [0, 1, 0, 2, 0], [0, 0, 0, 2, 2]]


def test_rules_are_their_functions_in_steps():
    rng = np.random.default_rng(5)
    noise = ndi.gaussian_filter(rng.normal(size=(3, 90, 120)), (0, 4, 4))
    chances = np.exp(30 * noise) / np.exp(30 * noise).sum(0)
    for min_area in (0, 40):
        whole = postprocess.nuclei(chances, min_area)
        expected = postprocess.give_back(whole, chances.argmax(0) > 0)
        assert expected.max() > 5
        labels = postprocess.parted_by_lines(min_area).labels(chances)
        np.testing.assert_array_equal(labels, expected)
        mask = postprocess.pieces_of_a_mask(0.4, min_area).labels(chances[1:2])
        np.testing.assert_array_equal(mask, postprocess.components(chances[1] > 0.4, min_area))
        assert labels.dtype == mask.dtype == np.int32


# --- markers and watershed -----------------------------------------------------------------------


def discs(*those: tuple[float, float, float], shape: tuple[int, int] = (80, 120)) -> np.ndarray:
    """A mask of discs (y, x, radius)."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.any([np.hypot(y - cy, x - cx) <= radius for cy, cx, radius in those], axis=0)


@pytest.mark.parametrize("smoothing", [0, 2.0])
@pytest.mark.parametrize("apart", [16, 20, 23])
def test_two_discs_that_overlap_are_cut_where_they_meet(apart, smoothing):
    mask = discs((40, 40, 12), (40, 40 + apart, 12))
    result = postprocess.part_by_watershed(mask, distance=12, smoothing=smoothing)
    cut = np.argwhere(mask & ~result)
    # the chord, in the middle between the centres, one pixel wide
    assert np.abs(cut[:, 1] - (40 + apart / 2)).max() <= 1
    assert len(np.unique(cut[:, 0])) == len(cut) == np.count_nonzero(mask[:, 40 + apart // 2])
    assert postprocess.components(result).max() == 2


@pytest.mark.parametrize("distance, parts", [(5, 3), (19, 3), (21, 2), (41, 1), (np.inf, 1)])
def test_of_markers_that_are_too_near_the_lower_goes(distance, parts):
    """Three discs in a row, 20 pixels apart, the middle one the smallest."""
    mask = discs((40, 30, 13), (40, 50, 11), (40, 70, 12))
    result = postprocess.part_by_watershed(mask, distance)
    assert postprocess.components(result).max() == parts
    assert (result <= mask).all() and (parts > 1 or (result == mask).all())


def test_only_nuclei_with_several_markers_change():
    lone, pair = discs((20, 20, 10)), discs((50, 60, 11), (50, 78, 11))
    ragged = np.zeros_like(lone)
    ragged[60:75, 5:30] = True  # its maximum is a ridge, not a point
    mask = lone | pair | ragged
    result = postprocess.part_by_watershed(mask, 10)
    assert (result[~pair] == mask[~pair]).all() and (result != mask).any()
    assert postprocess.components(result).max() == 4


def test_nuclei_that_nearly_touch_do_not_take_each_others_markers():
    """The gap is one pixel wide, and the distance larger than that between the centres."""
    mask = np.zeros((40, 80), bool)
    mask[10:30, 10:30] = mask[10:30, 31:51] = True
    assert (postprocess.part_by_watershed(mask, 30) == mask).all()
    labels = postprocess.components(mask)
    assert labels.max() == 2


def test_masks_that_are_empty_or_full_have_nothing_to_cut():
    for mask in (np.zeros((30, 41), bool), np.ones((30, 41), bool)):
        assert (postprocess.part_by_watershed(mask, 5) == mask).all()


@pytest.mark.parametrize("which", range(8))
def test_markers_do_not_depend_on_orientation(which):
    mask = discs((30, 30, 12), (33, 50, 11), (52, 40, 13))
    turned = postprocess.part_by_watershed(dihedral(mask, which).copy(), 12)
    assert postprocess.components(turned).max() == 3


def drawn(mask: np.ndarray, boundary: np.ndarray) -> np.ndarray:
    return chances(np.where(boundary, SEPARATION, np.where(mask, NUCLEUS, BACKGROUND)))


def test_boundaries_are_subtracted_and_given_back():
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:50] = True
    line = np.zeros_like(mask)
    line[10:30, 29:31] = True
    ring = mask ^ ndi.binary_erosion(mask, iterations=2)
    labels = postprocess.parted_by_watershed(12).labels(drawn(mask, line | ring))
    np.testing.assert_array_equal(labels > 0, mask)
    assert labels.max() == 2 and len(np.unique(labels[:, 10:29])) == 2
    thin = postprocess.parted_by_watershed(12, growth=0).labels(drawn(mask, line | ring))
    np.testing.assert_array_equal(thin > 0, mask & ~line & ~ring)


def test_without_watershed_a_gap_in_the_boundary_joins_and_with_it_it_does_not():
    mask = discs((40, 40, 12), (40, 62, 12))
    line = np.zeros_like(mask)
    line[:, 51] = mask[:, 51]
    line[40] = False
    of_lines = postprocess.parted_by_watershed(np.inf).labels(drawn(mask, line))
    of_both = postprocess.parted_by_watershed(12).labels(drawn(mask, line))
    assert (of_lines.max(), of_both.max()) == (1, 2)
    np.testing.assert_array_equal(of_lines > 0, of_both > 0)
    assert of_both.dtype == np.int32


def test_small_pieces_go():
    mask = discs((40, 40, 12), (10, 10, 2))
    areas = np.bincount(postprocess.components(mask).ravel())[1:]
    for min_area, left in ((0, 2), (areas.min(), 2), (areas.min() + 1, 1)):
        rule = postprocess.parted_by_watershed(12, min_area)
        assert rule.labels(drawn(mask, np.zeros_like(mask))).max() == left


@pytest.mark.parametrize("distance", [0, -1, float("nan")])
def test_a_distance_that_is_none_is_refused(distance):
    with pytest.raises(ValueError, match="distance must be above 0 pixels"):
        postprocess.parted_by_watershed(distance)


def test_the_distance_of_markers_is_learned_from_centres():
    """A row of squares whose gaps grow: distances to the nearest are 8, 8, 10, 12, …, 22."""
    labels = np.zeros((30, 200), np.int32)
    starts = 5 + np.cumsum([0, 8, 10, 12, 14, 16, 18, 20, 22])
    for number, x in enumerate(starts, start=1):
        labels[10:15, x : x + 5] = number
    nearest = [8, 8, *range(10, 23, 2)]
    for quantile in (0, 0.05, 0.5, 1):
        found = postprocess.marker_distance([labels, labels.T.copy()], quantile)
        assert found == pytest.approx(np.quantile(nearest * 2, quantile))


def test_the_distance_of_images_with_a_nucleus_or_none_is_refused():
    one = np.zeros((9, 9), np.int32)
    alone = one.copy()
    alone[2:4, 2:4] = 1
    with pytest.raises(ValueError, match="no image with two nuclei"):
        postprocess.marker_distance([one, alone])


def test_denoisegs_threshold_is_on_the_nucleus_alone():
    map_ = np.zeros((3, 9, 12), np.float32)
    map_[NUCLEUS, 2:5, 2:5], map_[NUCLEUS, 5, 5] = 0.5625, 0.6875  # they meet by a corner
    map_[SEPARATION, 2:5, 6:9] = 0.9
    counts = [postprocess.nuclei_above(t).labels(map_).max() for t in (0.5, 0.5625, 0.6, 0.6875)]
    assert counts == [2, 1, 1, 0]
    assert postprocess.nuclei_above(0.5, min_area=2).labels(map_).max() == 1


# --- the same by the slow way --------------------------------------------------------------------


def slow(monkeypatch) -> None:
    """Each step by a library's function that looks at all of the image, and takes its time."""

    def grown(labels, free, reach):
        return np.where(free, expand_labels(labels, reach), labels)

    steps = {
        "most_probable": lambda chances: chances.argmax(0).astype(np.uint8),
        "_depth": lambda mask: ndi.distance_transform_edt(mask).astype(np.float32),
        "_dilated": lambda image, reach=1: ndi.maximum_filter(image, size=2 * reach + 1),
        "_grown": grown,
    }
    for name, step in steps.items():
        monkeypatch.setattr(postprocess, name, step)


RULES = {
    "lines": lambda: postprocess.parted_by_lines(6, 60, 0.6),
    "borders": lambda: postprocess.parted_by_borders(0.4, 9),
    "watershed": lambda: postprocess.parted_by_watershed(6, 9, 1.0),
    "watershed, not smoothed": lambda: postprocess.parted_by_watershed(4, 0, 0.0),
    "no watershed": lambda: postprocess.parted_by_watershed(np.inf, 9),
}


def blobs(shape: tuple[int, int], sigma: float, sharpness: float = 6) -> np.ndarray:
    """(3, H, W) float32 probabilities of blobs as large as σ, in pixels, and lines in them."""
    noise = np.random.default_rng(int(10 * sigma)).normal(size=(3, *shape))
    smooth = ndi.gaussian_filter(noise, (0, sigma, sigma))
    smooth *= sharpness / smooth.std()
    smooth[SEPARATION] -= 1
    return (np.exp(smooth) / np.exp(smooth).sum(0)).astype(np.float32)


@pytest.mark.parametrize("name", RULES)
def test_labels_are_those_of_the_slow_way(name, monkeypatch, scene):
    rng = np.random.default_rng(4)
    places = np.column_stack([rng.uniform(0, 1, (30, 2)) * (150, 220), rng.uniform(3, 16, 30)])
    crowd = three_classes(scene((150, 220), places)[1])
    alone = np.zeros((30, 300), int)
    alone[:, 20:60] = NUCLEUS  # from edge to edge
    maps = [blobs((90, 131), sigma) for sigma in (0.7, 1.5, 3, 8)]
    maps += [chances(drawn) for drawn in (crowd, alone, crowd[:1], crowd[:, :1], 0 * crowd)]
    fast = [RULES[name]().labels(one) for one in maps]
    slow(monkeypatch)
    for one, found in zip(maps, fast, strict=True):
        expected = RULES[name]().labels(one)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype == np.int32


def test_a_nucleus_that_is_wide_and_deep_is_parted_as_by_the_slow_way(monkeypatch):
    mask = discs((200, 200, 150), (200, 420, 150), shape=(400, 620))
    found = postprocess.part_by_watershed(mask, 50)
    slow(monkeypatch)
    np.testing.assert_array_equal(found, postprocess.part_by_watershed(mask, 50))
    assert postprocess.components(found).max() == 2


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_of_labels_as_near_as_each_other_the_same_grows_as_in_the_library(data):
    shape = data.draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    labels = rng.integers(1, 9, shape).astype(np.int32)
    labels[rng.random(shape) > data.draw(st.sampled_from([0.03, 0.1, 0.3, 0.8]))] = 0
    mask = rng.random(shape) < data.draw(st.sampled_from([0.5, 1.0]))
    reach = data.draw(st.sampled_from([0, 1, 1.5, 2, 3, 5]))
    expected = np.where(mask, expand_labels(labels, reach), 0)
    np.testing.assert_array_equal(postprocess.give_back(labels, mask, reach), expected)


def test_of_equal_chances_the_first_class_is_taken():
    map_ = np.random.default_rng(0).integers(0, 3, (4, 40, 50)).astype(np.float32)
    found = postprocess.most_probable(map_)
    np.testing.assert_array_equal(found, map_.argmax(0))
    assert found.dtype == np.uint8
