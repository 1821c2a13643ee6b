"""A sharp data set out of focus: what is blurred, what is not, and what the set says of itself."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from nuctut import optics
from nuctut.datasets.defocused import defocused
from nuctut.samples import Sample, SampleSet

DEPTHS = (-8, 0, 8)


class Drawn:
    """Reads samples that were drawn before; a class, so that it travels to other processes."""

    def __init__(self, drawn: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        self.drawn = drawn

    def __call__(self, key: str) -> Sample:
        return Sample(key, *self.drawn[key], {"well": "A01"})


@pytest.fixture
def sharp(scene) -> SampleSet:
    drawn = {
        key: scene((70, 90), [(30, 30, 10), (40, 60, 12)], seed=seed)
        for seed, key in enumerate(("first", "second"))
    }
    about = {"name": "bbbc039", "split": "test", "fingerprint": "ab"}
    return SampleSet(list(drawn), Drawn(drawn), source="real", **about)


def test_a_set_of_every_sample_at_every_depth(sharp: SampleSet) -> None:
    made = defocused(sharp, DEPTHS)
    assert made.keys == tuple(
        f"{key}_z{depth}" for key in sharp.keys for depth in ("-8", "+0", "+8")
    )
    assert made.describe() == "bbbc039 test-defocused (stand-in, 6 images)"
    last = made[5]
    assert dict(last.tags) == {"field": "second", "well": "A01", "z": "8"}
    assert last.labels is sharp[1].labels and last.image.dtype == np.uint16


def test_in_focus_the_image_is_as_it_was_and_out_of_focus_as_the_model_has_it(sharp) -> None:
    below, focus, above = (defocused(sharp, DEPTHS)[index] for index in range(3))
    np.testing.assert_array_equal(focus.image, sharp[0].image)
    light = optics.defocus(sharp[0].image, 8)
    for made in (below, above):
        assert np.abs(made.image - light).mean() < 3 * np.sqrt(optics.CAMERA.gain * light.mean())
    assert (below.image != above.image).any()  # two exposures have not the same noise


def test_images_are_the_same_each_time_and_not_kept(sharp: SampleSet) -> None:
    made = defocused(sharp, DEPTHS)
    first, again = made[2], made[2]
    assert first is not again
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.image != defocused(sharp, DEPTHS, seed=1)[2].image).any()
    few = defocused(sharp, (8,))[0]  # whatever else is in the set
    np.testing.assert_array_equal(first.image, few.image)


def test_the_fingerprint_follows_everything_that_images_depend_on(sharp: SampleSet) -> None:
    sets = [
        defocused(sharp, DEPTHS),
        defocused(sharp, (-8, 8)),
        defocused(sharp, DEPTHS, microscope=optics.Microscope(aperture=0.45)),
        defocused(sharp, DEPTHS, camera=optics.Camera(1, 100)),
        defocused(sharp, DEPTHS, seed=1),
        defocused(sharp.take(1), DEPTHS),
    ]
    assert len({one.fingerprint for one in sets}) == len(sets)
    assert defocused(sharp, DEPTHS).fingerprint == sets[0].fingerprint


@pytest.mark.parametrize(("source", "whole"), [("excerpt", 50), ("simulated", None)])
def test_what_is_no_real_data_stays_none(sharp: SampleSet, source: str, whole: int | None) -> None:
    sharp.source, sharp.whole = source, whole
    made = defocused(sharp, DEPTHS)
    assert made.source == source and made.whole == (whole and 3 * whole)


def test_a_set_travels_to_another_process(sharp: SampleSet) -> None:
    made = defocused(sharp, DEPTHS)
    copy = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(copy[2].image, made[2].image)


@pytest.mark.parametrize("depths", [(), (2, 2), (2, 2.0), (np.nan,), (np.inf, 1)])
def test_depths_that_cannot_be_are_refused(sharp: SampleSet, depths: tuple) -> None:
    with pytest.raises(ValueError, match="depths must be different numbers"):
        defocused(sharp, depths)
