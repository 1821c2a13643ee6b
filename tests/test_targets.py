"""Hand-drawn labels, and what a network is taught of them."""

from __future__ import annotations

import numpy as np
import pytest

from nuctut.targets import (
    BACKGROUND,
    IGNORE,
    NUCLEUS,
    SEPARATION,
    Blocks,
    Normalisation,
    corner_tiles,
    dihedral,
    separations,
    standardise,
    three_classes,
)


def drawn(text: str) -> np.ndarray:
    """Labels from a drawing: digits are nuclei, dots are background."""
    rows = text.split()
    return np.array([[int(c.replace(".", "0")) for c in row] for row in rows], np.int32)


TOUCHING = """
    ......
    .1122.
    .1122.
    .1122.
    .1122.
    ......"""
GAP = """
    ......
    .1.22.
    .1.22.
    .1.22.
    ......
    ......"""
WIDE_GAP = """
    ......
    1..222
    1..222
    1..222
    ......
    ......"""
DIAGONAL = """
    ......
    .11...
    .11...
    ...22.
    ...22.
    ......"""
ALONE = """
    ......
    .111..
    .111..
    .111..
    ......
    ......"""


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        # Where they touch: a line two pixels wide, and the background pixels at its two ends.
        (TOUCHING, "..11.. ..11.. ..11.. ..11.. ..11.. ..11.."),
        # One pixel between them: the gap itself, no wider.
        (GAP, "..1... ..1... ..1... ..1... ..1... ......"),
        (WIDE_GAP, "...... ...... ...... ...... ...... ......"),
        (DIAGONAL, "...... ...... ..11.. ..11.. ...... ......"),
        (ALONE, "...... ...... ...... ...... ...... ......"),
    ],
)
def test_separations_lie_where_nuclei_meet(labels, expected):
    np.testing.assert_array_equal(separations(drawn(labels)), drawn(expected) > 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_separations_do_not_depend_on_the_ids_nor_their_type(dtype):
    labels = drawn(TOUCHING)
    other = np.array([0, 200, 7], dtype)[labels]
    np.testing.assert_array_equal(separations(other), separations(labels))


def test_separations_against_a_slow_reference():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (17, 13)) * (rng.random((17, 13)) < 0.5)
    expected = np.zeros(labels.shape, bool)
    for y, x in np.ndindex(labels.shape):
        around = labels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        expected[y, x] = len(set(around.ravel().tolist()) - {0}) >= 2
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(separations(labels), expected)


def test_three_classes():
    classes = three_classes(drawn(TOUCHING))
    assert classes.dtype == np.uint8
    expected = drawn("..22.. .1221. .1221. .1221. .1221. ..22..")
    np.testing.assert_array_equal(classes, expected)
    assert {BACKGROUND, NUCLEUS, SEPARATION} == set(np.unique(classes))


def test_ignored_pixels_override_every_class():
    ignore = np.zeros((6, 6), bool)
    ignore[:, 3:] = True
    classes = three_classes(drawn(TOUCHING), ignore)
    assert (classes[:, 3:] == IGNORE).all()
    np.testing.assert_array_equal(classes[:, :3], three_classes(drawn(TOUCHING))[:, :3])


def test_an_empty_image_teaches_background():
    empty = np.zeros((5, 7), np.int32)
    assert not separations(empty).any()
    assert not three_classes(empty).any()


def test_the_papers_images_have_four_corner_tiles():
    tiles = corner_tiles((520, 696))
    assert [(y.start, x.start) for y, x in tiles] == [(0, 0), (0, 184), (8, 0), (8, 184)]
    assert all(y.stop - y.start == x.stop - x.start == 512 for y, x in tiles)


@pytest.mark.parametrize(
    ("shape", "count"), [((520, 696), 4), ((1024, 600), 4), ((512, 700), 2), ((90, 33), 1)]
)
def test_corner_tiles_cover_every_pixel(shape, count):
    seen = np.zeros(shape, int)
    tiles = corner_tiles(shape)
    for tile in tiles:
        seen[tile] += 1
    assert len(tiles) == count and seen.min() == 1


def test_the_eight_orientations():
    array = np.arange(24).reshape(2, 3, 4)
    turned = [dihedral(array, which) for which in range(8)]
    assert len({(one.shape, one.tobytes()) for one in turned}) == 8
    first = array[0]
    expected = [first, first[::-1, ::-1], first[:, ::-1], first[::-1]]
    for one in (*expected, *(e.T for e in expected)):
        assert any(np.array_equal(one, t[0]) for t in turned)
    np.testing.assert_array_equal(turned[0], array)
    for which in range(4):
        np.testing.assert_array_equal(turned[which], np.rot90(array, which, (1, 2)))


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_standardise(scale):
    counts = np.random.default_rng(0).gamma(2, 300, (60, 70)).astype(np.uint16)
    result = standardise(counts, scale)
    assert result.dtype == np.float32
    assert abs(result.mean()) < 1e-4 and abs(result.std() - 1) < 1e-4
    order = np.argsort(counts, axis=None, kind="stable")
    assert (np.diff(result.ravel()[order]) >= 0).all()
    assert len(np.unique(result)) == len(np.unique(counts))
    # Gain and offset of the camera change nothing on the linear scale; on the log scale, offset.
    np.testing.assert_allclose(standardise(counts + np.uint16(500), scale), result, atol=1e-4)
    if scale == "linear":
        np.testing.assert_allclose(standardise(counts * 3.0, scale), result, atol=1e-4)


def test_the_scales():
    counts = np.array([[10, 11], [13, 17]], np.uint16)
    for scale, values in (("linear", counts.astype(float)), ("log", np.log([[1, 2], [4, 8]]))):
        expected = (values - values.mean()) / values.std()
        np.testing.assert_allclose(standardise(counts, scale), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"linear.*log.*range.*'sqrt'"):
        standardise(counts, "sqrt")


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_each_channel_of_an_image_is_normalised_by_itself(scale):
    rng = np.random.default_rng(0)
    image = rng.integers((0, 50, 100), (80, 120, 256), (9, 11, 3)).astype(np.uint8)
    result = standardise(image, scale)
    assert result.shape == image.shape and result.dtype == np.float32
    for channel in range(3):
        alone = standardise(image[..., channel], scale)
        np.testing.assert_allclose(result[..., channel], alone, atol=1e-5)
    flat = image.copy()
    flat[..., 1] = 9
    assert (standardise(flat, scale)[..., 1] == 0).all()
    # A grey image is the same with and without its three equal channels.
    grey = image[..., 1]
    thrice = standardise(np.repeat(grey[..., None], 3, -1), scale)
    for channel in range(3):
        np.testing.assert_allclose(thrice[..., channel], standardise(grey, scale), atol=1e-5)


@pytest.mark.parametrize(("dtype", "most"), [(np.uint8, 255), (np.uint16, 65535)])
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_the_range_is_that_of_the_dtype_and_not_of_the_image(dtype, most, shape):
    image = np.random.default_rng(0).integers(3, 200, shape).astype(dtype)
    image.flat[:2] = 0, most
    result = standardise(image, "range")
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, image / most, rtol=1e-6)
    assert result.min() == 0 and result.max() == 1
    constant = standardise(np.full(shape, 51, dtype), "range")
    np.testing.assert_allclose(constant, 51 / most, rtol=1e-6)


def test_only_integers_have_a_range():
    with pytest.raises(ValueError, match="integer"):
        standardise(np.ones((4, 4)), "range")


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("value", [0, 1593, 3442, 1234.567])
def test_a_constant_image_becomes_zeros(scale, value):
    for shape in ((1, 1), (413, 493), (525, 95)):
        assert not standardise(np.full(shape, value), scale).any()


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("shape", [(1, 7), (128, 5), (129, 5), (700, 31, 3)])
def test_an_image_in_blocks_of_rows_is_normalised_as_a_whole(scale, shape):
    image = np.random.default_rng(0).gamma(2, 300, shape).astype(np.uint16)
    asked = []

    def read(start: int, stop: int) -> np.ndarray:
        asked.append(stop - start)
        return image[start:stop]

    normalisation = Normalisation.of(Blocks(read, len(image), image.dtype), scale)
    values = image.astype(float) - image.min((0, 1))
    values = np.log1p(values) if scale == "log" else values
    expected = (values - values.mean((0, 1))) / values.std((0, 1))
    np.testing.assert_allclose(normalisation.apply(image), expected, atol=1e-4)
    np.testing.assert_array_equal(normalisation.apply(image), standardise(image, scale))
    # Any part is what it is in the whole, and nothing large was read on the way.
    part = normalisation.apply(image[3:9, 2:4])
    np.testing.assert_array_equal(part, standardise(image, scale)[3:9, 2:4])
    assert max(asked) <= 128 and sum(asked) == 3 * len(image)
