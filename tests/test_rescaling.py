"""Discs of known diameter at any scale, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi
from skimage.segmentation import expand_labels

from nuctut.rescaling import (
    DIAMETER,
    SPECK,
    equally_sized,
    estimated_factor,
    labels_on,
    mean_diameter,
    rescaled,
    rescaled_image,
    rescaled_labels,
    scale_factor,
    segment_rescaled,
    smallest_area,
    typical_diameter,
)
from nuctut.samples import Sample, SampleSet


def discs(diameter: float, across: int = 4) -> np.ndarray:
    """Labels of across × across discs, each in a square of twice its diameter."""
    side = round(2 * diameter)
    y, x = np.indices((side, side)) - (side - 1) / 2
    disc = y**2 + x**2 <= (diameter / 2) ** 2
    numbers = np.arange(1, across**2 + 1).reshape(across, across)
    return np.kron(numbers, disc).astype(np.int32)


def specks(labels: np.ndarray, each: int) -> np.ndarray:
    """The labels and many more, of a single pixel each, on every so many pixels of background."""
    free = np.flatnonzero(labels == 0)[::each]
    more = labels.copy()
    more.flat[free] = np.arange(len(free)) + labels.max() + 1
    return more


# --- how large nuclei are ------------------------------------------------------------------------


@pytest.mark.parametrize("diameter", [10, 34, 69])
@pytest.mark.parametrize("measure", [mean_diameter, typical_diameter])
def test_the_diameter_of_discs(measure, diameter):
    assert measure(discs(diameter)) == pytest.approx(diameter, rel=0.02)


def test_it_is_the_diameter_of_the_mean_area_and_not_the_mean_diameter():
    labels = np.zeros((60, 60), np.int32)
    labels[:10, :10], labels[20:50, 20:50] = 3, 7  # ids with gaps
    assert mean_diameter(labels) == pytest.approx(math.sqrt(4 / math.pi * (100 + 900) / 2))


def test_specks_do_not_fool_the_typical_diameter():
    labels = discs(20)
    with_specks = specks(labels, each=9)
    assert with_specks.max() > 50 * labels.max()  # most labels are specks, by far
    areas = np.bincount(with_specks.ravel())[1:]
    assert np.median(areas) == 1 and mean_diameter(with_specks) < 5
    assert typical_diameter(with_specks) == typical_diameter(labels)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_the_typical_diameter_against_its_definition(areas):
    labels = np.repeat(np.arange(1, len(areas) + 1), areas)[None]
    pixels = sorted(area for area in areas for _ in range(area))
    median = pixels[math.ceil(len(pixels) / 2) - 1]
    kept = [area for area in areas if area >= SPECK * median]
    expected = math.sqrt(4 / math.pi * sum(kept) / len(kept))
    assert typical_diameter(labels) == pytest.approx(expected)


@pytest.mark.parametrize("measure", [mean_diameter, typical_diameter, scale_factor])
def test_without_nuclei_there_is_no_scale(measure):
    with pytest.raises(ValueError, match="no nucleus"):
        measure(np.zeros((5, 5), np.int32))


def test_the_smallest_area_follows_the_scale():
    assert smallest_area() == 45
    assert smallest_area(2 * DIAMETER) == pytest.approx(4 * smallest_area(), abs=3)
    areas = np.bincount(discs(12).ravel())[1:]
    assert smallest_area(12) == pytest.approx(areas.mean() / 20, abs=1)


# --- to the common scale and back ----------------------------------------------------------------


@pytest.mark.parametrize("diameter", [10, 20, 34, 69])
def test_after_rescaling_nuclei_have_the_common_size(diameter):
    labels = discs(diameter)
    factor = scale_factor(labels)
    assert factor == pytest.approx(DIAMETER / diameter, rel=0.02)
    new = rescaled_labels(labels, factor)
    assert new.dtype == np.int32 and new.max() == labels.max()
    assert mean_diameter(new) == pytest.approx(DIAMETER, rel=0.02)


@pytest.mark.parametrize("factor", [0.3, 0.49, 1.0, 1.7, 3.4])
@pytest.mark.parametrize("shape", [(61, 84), (61, 84, 3)])
def test_image_and_labels_stay_together(factor, shape):
    """Of an image that shows its labels, each half way between tells where an outline is."""
    labels = np.zeros(shape[:2], np.int32)
    labels[10:40, 20:70] = 1
    image = np.zeros(shape, np.uint16)
    image[labels > 0] = 1000
    new = rescaled_image(image, factor)
    of_it = rescaled_labels(labels, factor)
    assert new.dtype == np.uint16 and new.shape[:2] == of_it.shape
    assert new.shape == (round(61 * factor), round(84 * factor), *shape[2:])
    flat = new[..., 0] if new.ndim == 3 else new
    # A pixel of the new image may be half in and half out; all others agree.
    assert ((flat > 500) != (of_it > 0)).sum() <= 1.05 * (2 * (30 + 50) * factor + 4)
    inner = ndi.binary_erosion(of_it > 0, iterations=2)
    outer = ndi.binary_dilation(of_it > 0, iterations=2)
    assert (flat[inner] > 900).all() and (flat[~outer] < 100).all()


def test_detail_finer_than_the_new_pixels_becomes_grey():
    stripes = np.zeros((90, 90), np.uint8)
    stripes[:, ::2] = 200
    inside = rescaled_image(stripes, 0.4)[4:-4, 4:-4].astype(int)
    assert np.abs(inside - 100).max() < 10


def test_the_factor_one_changes_nothing():
    rng = np.random.default_rng(0)
    for image in (rng.integers(0, 65536, (17, 23), np.uint16), rng.random((9, 8, 3))):
        np.testing.assert_array_equal(rescaled_image(image, 1), image)
    labels = discs(7)
    np.testing.assert_array_equal(rescaled_labels(labels, 1), labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_images_keep_their_dtype_and_their_range(dtype):
    image = np.random.default_rng(0).integers(0, 250, (30, 31)).astype(dtype)
    for factor in (0.5, 2.3):
        new = rescaled_image(image, factor)
        assert new.dtype == dtype and new.min() >= image.min() and new.max() <= image.max()


@pytest.mark.parametrize("factor", [0, -1, 0.12, 8.1, math.nan, math.inf])
def test_absurd_factors_are_refused(factor):
    for rescale in (rescaled_image, rescaled_labels):
        with pytest.raises(ValueError, match=r"factor must be from 0\.125 to 8, not"):
            rescale(np.ones((9, 9), np.uint8), factor)


def test_specks_and_a_filled_image_give_no_factor():
    for labels in (specks(np.zeros((30, 30), np.int32), 7), np.ones((600, 600), np.int32)):
        with pytest.raises(ValueError, match="specks, or fill the image"):
            scale_factor(labels)


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(1, 90))
def test_labels_come_from_the_nearest_pixel(height, width, new_height, new_width):
    labels = np.arange(1, height * width + 1, dtype=np.int32).reshape(height, width)
    found = labels_on(labels, (new_height, new_width))
    assert found.shape == (new_height, new_width) and found.dtype == np.int32
    ids = np.unique(found)
    np.testing.assert_array_equal(ids, np.arange(1, len(ids) + 1))
    # Numbers ascend with row and column, and so do those that are left of them.
    assert (np.diff(found, axis=0) >= 0).all() and (np.diff(found, axis=1) >= 0).all()
    if new_height >= height and new_width >= width:
        np.testing.assert_array_equal(labels_on(found, (height, width)), labels)


def test_nuclei_that_fall_between_the_pixels_leave_no_gap_in_the_ids():
    labels = np.zeros((40, 40), np.int32)
    labels[0, 0], labels[10:30, 10:30] = 1, 2
    assert np.unique(labels_on(labels, (10, 10))).tolist() == [0, 1]


def sample(diameter: float, key: str = "a") -> Sample:
    labels = discs(diameter, across=3)
    return Sample(key, (100 + 50 * (labels > 0)).astype(np.uint8), labels, {"tissue": "heart"})


def test_a_sample_at_another_scale_says_so():
    new = rescaled(sample(12), 2.5)
    assert new.key == "a" and new.tags == {"tissue": "heart", "factor": "2.5"}
    assert new.image.shape == new.labels.shape == (180, 180) and new.count == 9


def split(*diameters: float) -> SampleSet:
    kept = {str(diameter): diameter for diameter in diameters}
    return SampleSet(
        list(kept),
        lambda key: sample(kept[key], key),
        name="made",
        split="training",
        source="simulated",
        fingerprint="00",
    )


def test_a_split_at_the_common_scale():
    before = split(12, 34, 60)
    after = equally_sized(before)
    for one in after:
        assert mean_diameter(one.labels) == pytest.approx(DIAMETER, rel=0.02)
    assert after.keys == before.keys and after.describe() == before.describe()
    prints = {one.fingerprint for one in (before, after, equally_sized(before, 20))}
    assert len(prints) == 3


def test_a_sample_without_a_scale_is_named():
    with pytest.raises(ValueError, match=r"2: factor must be from 0\.125 to 8, not 15"):
        equally_sized(split(34, 2))[1]


# --- the scale from the image alone --------------------------------------------------------------


def picture(diameter: float) -> np.ndarray:
    return (discs(diameter) > 0).astype(np.float32) * 1000


def bright(image: np.ndarray) -> np.ndarray:
    return ndi.label(image > 500)[0]


@pytest.mark.parametrize("diameter", [10, 34, 69])
def test_a_good_segmentation_tells_the_scale(diameter):
    factor = estimated_factor(bright, picture(diameter))
    assert factor == pytest.approx(DIAMETER / diameter, rel=0.03)
    found = segment_rescaled(bright, picture(diameter), factor)
    truth = discs(diameter)
    assert found.shape == truth.shape and found.max() == truth.max()
    assert np.mean((found > 0) == (truth > 0)) > 0.98


def test_the_second_prediction_corrects_the_first():
    """A segmentation that works near the scale that it knows: off it, nuclei are too large."""

    def at_one_scale(image: np.ndarray) -> np.ndarray:
        labels = bright(image)
        true = mean_diameter(labels)
        return labels if 20 < true < 60 else expand_labels(labels, 0.15 * true)

    first = DIAMETER / mean_diameter(at_one_scale(picture(12)))
    factor = estimated_factor(at_one_scale, picture(12))
    assert first * 12 < 30  # what the first prediction alone would make of the nuclei
    assert abs(factor * 12 - DIAMETER) < 0.5 * abs(first * 12 - DIAMETER)


def test_where_nothing_is_found_the_image_stays_as_it_is():
    assert estimated_factor(lambda image: np.zeros(image.shape, int), picture(12)) == 1


def test_an_estimate_keeps_within_bounds():
    seen = []

    def dust(image: np.ndarray) -> np.ndarray:
        seen.append(image.shape)
        return specks(np.zeros(image.shape, np.int32), 9)

    assert estimated_factor(dust, np.zeros((20, 30))) == 8
    assert seen == [(20, 30), (160, 240)]
