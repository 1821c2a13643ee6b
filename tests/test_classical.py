"""IdentifyPrimaryObjects on drawn nuclei."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage as ndi

from nuctut import classical
from nuctut.classical import CONFIGURATIONS, consensus, identify_primary_objects, segment

PAIR = [(40, 30, 12), (40, 52, 12)]  # two discs that touch


def flat(shape: tuple[int, int], mask: np.ndarray) -> np.ndarray:
    """Nuclei of one brightness on a dark ground, without noise."""
    return np.where(mask, 1000.0, 100.0).reshape(shape)


def disc(shape: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(rows - y, columns - x) <= radius


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_configuration_finds_lone_nuclei(scene, configuration):
    image, truth = scene((90, 120), [(25, 25, 9), (25, 70, 14), (65, 40, 11), (62, 90, 18)])
    labels = segment(image, configuration)
    assert labels.dtype == np.int32 and labels.shape == image.shape
    assert sorted(np.unique(labels)) == [0, 1, 2, 3, 4]
    for index in range(1, 5):
        mine, found = truth == index, labels == labels[truth == index].max()
        assert (mine & found).sum() / (mine | found).sum() > 0.8


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_touching_nuclei_are_parted(scene, configuration):
    image, truth = scene((80, 82), PAIR)
    if configuration.startswith("intensity"):
        # Intensity seeds need nuclei brighter in the middle, as real ones are.
        depth = ndi.distance_transform_edt(truth == 1) + ndi.distance_transform_edt(truth == 2)
        image = (image + 40 * depth).astype(np.uint16)
    assert ndi.label(classical.foreground(image), np.ones((3, 3)))[1] == 1
    labels = segment(image, configuration)
    assert labels.max() == 2
    left, right = labels[40, 30], labels[40, 52]
    assert left != right and left and right
    # The border between them lies where the circles meet, at column 41.
    row = labels[40, 19:64]
    assert abs(int(np.argmax(row == right)) + 19 - 41) <= 2


def test_only_shape_seeds_part_a_dumbbell_of_one_brightness():
    shape = (60, 110)
    mask = disc(shape, 30, 30, 15) | disc(shape, 30, 80, 15)
    mask[25:36, 30:80] = True
    # Brightest on the bridge: the intensities tell of one nucleus, the outline of two.
    glow = 300 * np.exp(-((np.mgrid[:60, :110][1] - 55) ** 2) / 400)
    image = flat(shape, mask) + glow * mask
    assert identify_primary_objects(image, "shape", "shape").max() == 2
    assert identify_primary_objects(image, "intensity", "shape").max() == 1


def test_a_bright_nucleus_does_not_swallow_its_dim_neighbour_across_a_gap():
    image = np.full((40, 60), 100.0)
    columns = np.arange(60)
    # Both grow brighter to where they face each other, three pixels apart, and the right one is
    # twice as bright: smoothed, the gap outshines the left one.
    image[12:28, 12:28] = (300 + 20 * (columns - 12))[12:28]
    image[12:28, 31:47] = (600 + 40 * (46 - columns))[31:47]
    assert ndi.label(classical.foreground(image), np.ones((3, 3)))[1] == 2
    labels = identify_primary_objects(image, "intensity", "intensity")
    assert labels.max() == 2 and len({labels[20, 20], labels[20, 40], 0}) == 3


def test_lines_follow_what_they_are_told_to():
    """An 8 whose dark valley does not lie at its neck."""
    shape = (60, 90)
    mask = disc(shape, 30, 30, 16) | disc(shape, 30, 58, 16)  # neck at column 44
    image = flat(shape, mask)
    image[:, 37:39] = np.where(mask[:, 37:39], 700, 100)  # valley at columns 37 and 38
    cuts = {}
    for lines in ("intensity", "shape"):
        labels = identify_primary_objects(image, "shape", lines)
        assert labels.max() == 2
        row = labels[30]
        cuts[lines] = int(np.argmax(row == row[58]))
    assert 36 <= cuts["intensity"] <= 39
    assert 43 <= cuts["shape"] <= 46


@pytest.mark.parametrize(
    # The threshold of a picture of two values lies near the darker one, and the smoothing lets
    # a disc grow by a pixel or more: so these are areas of the foreground, either side of π·5²
    # and π·25².
    ("radius", "area", "kept"),
    [(2, 69, False), (2.5, 81, True), (24.2, 1937, True), (24.5, 1969, False)],
)
def test_areas_outside_discs_of_ten_and_fifty_pixels_are_dropped(radius, area, kept):
    shape = (80, 80)
    image = flat(shape, disc(shape, 40, 40, radius))
    assert np.count_nonzero(classical.foreground(image)) == area
    assert identify_primary_objects(image, "shape", "shape").max() == kept


def test_the_limits_themselves_are_kept():
    labels = np.zeros((4, 10), np.int32)
    labels[0, :3], labels[1, :4], labels[2, :8], labels[3, :9] = 5, 2, 9, 7
    kept = classical._keep_areas(labels, 4, 8)
    assert sorted(np.bincount(kept.ravel())[1:]) == [4, 8]
    assert set(np.unique(kept)) == {0, 1, 2}


def test_the_diameter_is_the_callers():
    shape = (60, 60)
    image = flat(shape, disc(shape, 30, 30, 4))
    assert identify_primary_objects(image, diameter=(5, 20)).max() == 1
    image = flat(shape, disc(shape, 30, 30, 15))
    assert identify_primary_objects(image, diameter=(5, 20)).max() == 0


def test_nuclei_at_the_edge_are_dropped_unless_wanted(scene):
    image, _ = scene((80, 80), [(2, 40, 10), (40, 79, 10), (78, 30, 10), (30, 1, 10), (40, 40, 10)])
    inner = segment(image)
    assert inner.max() == 1 and inner[40, 40] == 1
    every = segment(image, drop_border=False)
    assert every.max() == 5 and sorted(np.unique(every)) == list(range(6))


def test_the_foreground_is_the_smoothed_image_above_the_threshold_of_the_raw_one(scene):
    image, _ = scene((80, 82), PAIR, noise=60)
    # Li & Lee's threshold is where it equals the logarithmic mean of the two sides' means.
    pixels = image.astype(float) - image.min()
    threshold = pixels.mean()
    for _ in range(100):
        dark, bright = pixels[pixels <= threshold].mean(), pixels[pixels > threshold].mean()
        threshold = (bright - dark) / np.log(bright / dark)
    smoothed = ndi.gaussian_filter(image.astype(float), 1.0)
    np.testing.assert_array_equal(classical.foreground(image), smoothed >= threshold + image.min())


def test_holes_are_filled():
    shape = (70, 70)
    ring = disc(shape, 35, 35, 15) & ~disc(shape, 35, 35, 5)
    labels = segment(flat(shape, ring))
    assert labels.max() == 1 and labels[35, 35] == 1
    # What the edge of the image cuts off is no hole, nor is what is larger than a nucleus.
    assert not classical._fill_holes(np.eye(3) < 1, 9)[0, 0]
    frame = np.ones((62, 62), bool)
    frame[1:-1, 1:-1] = False
    assert not classical._fill_holes(frame, 3600)[30, 30]
    assert classical._fill_holes(frame, 3601).all()


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_constant_image_holds_no_nuclei(configuration, dtype):
    for drop_border in (True, False):
        labels = segment(np.full((30, 40), 117, dtype), configuration, drop_border=drop_border)
        assert labels.dtype == np.int32 and labels.shape == (30, 40) and not labels.any()


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_noise_is_survived(configuration):
    noise = np.random.default_rng(3).normal(300, 20, (97, 130)).astype(np.uint16)
    labels = segment(noise, configuration)
    areas = np.bincount(labels.ravel())[1:]
    # Filling holes after the size filter may add to an area, never take from it.
    assert (areas >= np.pi * 25).all()


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_gain_offset_and_type_of_the_camera_change_nothing(scene, configuration):
    image, _ = scene((90, 100), [*PAIR, (70, 80, 10), (20, 80, 14)], noise=30, seed=2)
    labels = segment(image, configuration)
    assert labels.max() >= 3
    for other in (
        image.astype(np.float64),
        image.astype(np.float32) / 4096,
        image * 16,
        image.astype(float) * 0.5 + 64,
        image.astype(np.int32) + 1000,
    ):
        np.testing.assert_array_equal(segment(other, configuration), labels)


def test_the_same_image_gives_the_same_labels(scene):
    image, _ = scene((90, 100), PAIR, noise=30)
    before = image.copy()
    np.testing.assert_array_equal(segment(image), segment(image))
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(
        segment(image, "intensity/shape"), identify_primary_objects(image, "intensity", "shape")
    )


def test_unknown_names_are_refused():
    image = np.zeros((9, 9))
    with pytest.raises(ValueError, match=r"shape/intensity.*'shape'"):
        segment(image, "shape")
    with pytest.raises(ValueError, match=r"seeds must be.*'colour'"):
        identify_primary_objects(image, seeds="colour")
    with pytest.raises(ValueError, match=r"lines must be.*'none'"):
        identify_primary_objects(image, lines="none")
    with pytest.raises(ValueError, match=r"\(H, W\), not \(9, 9, 3\)"):
        segment(np.zeros((9, 9, 3)))


def slow_markers(height: np.ndarray, clumps: np.ndarray, radius: float) -> np.ndarray:
    """The first pixel of every plateau of pixels with nothing higher near in their clump."""
    inside = list(zip(*np.nonzero(clumps), strict=True))
    peaks = np.zeros(height.shape, bool)
    for y, x in inside:
        near = [
            height[v, u]
            for v, u in inside
            if (v - y) ** 2 + (u - x) ** 2 <= radius**2 and clumps[v, u] == clumps[y, x]
        ]
        peaks[y, x] = height[y, x] >= max(near)
    first = np.zeros(height.shape, bool)
    plateaus, count = ndi.label(peaks, np.ones((3, 3)))
    for index in range(1, count + 1):
        first[tuple(np.argwhere(plateaus == index)[0])] = True
    return first


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [4, None])
def test_markers_against_a_slow_reference(seed, levels):
    rng = np.random.default_rng(seed)
    shape = (14, 17)
    # Few levels make plateaus; bright background lies beside dim clumps.
    height = rng.integers(0, levels, shape).astype(float) if levels else rng.random(shape)
    clumps, _ = ndi.label(rng.random(shape) < (0.3, 0.6)[seed % 2], np.ones((3, 3)))
    for radius in (1.5, 2.5, 6.17):
        markers = classical._markers(height, clumps, radius)
        np.testing.assert_array_equal(markers > 0, slow_markers(height, clumps, radius))
        count = np.count_nonzero(markers)
        assert sorted(markers[markers > 0]) == list(range(1, count + 1))


def test_every_clump_has_a_marker_even_beside_a_brighter_one():
    clumps = np.zeros((5, 9), np.int32)
    clumps[2, 1:3], clumps[1:4, 5:8] = 1, 2
    height = np.exp(-((np.mgrid[:5, :9][1] - 6.0) ** 2) / 8)  # clump 1 sits on the slope of 2
    markers = classical._markers(height, clumps, 6)
    assert set(clumps[markers > 0]) == {1, 2}


def test_the_consensus_ignores_exactly_the_clusters_that_are_counted_differently():
    first, second, third = np.zeros((3, 12, 40), np.int32)
    first[1:5, 1:5], second[2:6, 1:5], third[1:5, 1:4] = 3, 1, 1  # one nucleus to all
    first[1:9, 10:14], first[1:9, 14:18] = 1, 2  # two to the first …
    second[1:9, 10:18] = 2  # … and one to the second
    third[1:9, 10:14], third[1:9, 14:18] = 2, 3
    third[2:8, 30:36] = 4  # seen by the third alone
    labels, ignore = consensus([first, second, third])
    np.testing.assert_array_equal(labels, first)
    expected = np.zeros((12, 40), bool)
    expected[1:9, 10:18] = expected[2:8, 30:36] = True
    assert ignore.dtype == bool
    np.testing.assert_array_equal(ignore, expected)


def test_a_cluster_is_joined_by_what_any_of_them_saw():
    first, second = np.zeros((2, 8, 20), np.int32)
    first[2:6, 2:8], first[2:6, 10:16] = 1, 2  # two apart
    second[2:6, 2:6], second[2:6, 6:16] = 1, 2  # the same two, and the gap between them
    assert not consensus([first, second])[1].any()
    second[second == 2] = 1
    np.testing.assert_array_equal(consensus([first, second])[1], second > 0)


def test_a_consensus_without_disagreement(scene):
    image, _ = scene((90, 100), [(25, 25, 12), (60, 65, 14)])
    found = [segment(image, name) for name in CONFIGURATIONS]
    assert found[0].max() == 2 and not consensus(found)[1].any()
    empty = np.zeros((6, 6), np.int32)
    labels, ignore = consensus([empty, empty, empty])
    assert not labels.any() and not ignore.any()
