"""What an image looks like, and how it is shown to a method that knows others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuctut import datasets, views


def disc(ground, nucleus, dtype=np.uint8):
    """A disc of 40 pixels in diameter on 100 × 100; the values may be colours."""
    y, x = np.mgrid[:100, :100]
    inside = np.hypot(y - 50, x - 50) < 20
    shape = inside.shape + np.shape(ground)
    image = np.empty(shape, dtype)
    image[:], image[inside] = ground, nucleus
    return image, inside


PINK, PURPLE = (230, 180, 210), (110, 60, 150)


@pytest.mark.parametrize(
    ("ground", "nucleus", "kind"),
    [
        (10, 200, views.DARK),
        (200, 10, views.BRIGHT),
        ((10, 10, 10), (200, 200, 200), views.DARK),
        (PINK, PURPLE, views.COLOURED),
        (5, 5, views.DARK),
    ],
)
def test_what_an_image_looks_like(ground, nucleus, kind):
    assert views.kind(disc(ground, nucleus)[0]) == kind


@pytest.mark.parametrize(
    ("ground", "nucleus", "knows", "how"),
    [
        (10, 200, "dark", views.AS_IT_IS),
        (10, 200, "both", views.AS_IT_IS),
        (10, 200, "bright", "inverted"),
        (200, 10, "dark", "inverted"),
        (200, 10, "bright", views.AS_IT_IS),
        (PINK, PURPLE, "dark", "haematoxylin"),
        (PINK, PURPLE, "bright", views.AS_IT_IS),
        (PINK, PURPLE, "both", views.AS_IT_IS),
    ],
)
def test_a_method_is_shown_nuclei_as_it_knows_them(ground, nucleus, knows, how):
    image, inside = disc(ground, nucleus)
    assert views.view(image, knows) == how
    shown = views.shown(image, how)
    if how == views.AS_IT_IS:
        assert shown is image
    elif knows == "dark":
        assert shown[inside].min() > shown[~inside].max()
    else:
        assert shown[inside].max() < shown[~inside].min()


def test_inverted_brightness_may_stand_for_haematoxylin():
    image, inside = disc(PINK, PURPLE)
    assert views.view(image, "dark", "inverted") == "inverted"
    shown = views.shown(image, "inverted")
    assert shown.shape == inside.shape and shown.dtype == np.uint8
    assert shown[inside].min() > shown[~inside].max()


@given(values=st.lists(st.integers(0, 65535), min_size=4, max_size=4))
def test_what_is_inverted_twice_is_as_before(values):
    image = np.array(values, np.uint16).reshape(2, 2)
    twice = views.shown(views.shown(image, "inverted"), "inverted")
    np.testing.assert_array_equal(twice, image)


def test_haematoxylin_is_told_from_eosin():
    """By the stains' own absorptions: what is blue in the image is bright, what is pink is not."""
    absorbed = {"haematoxylin": (0.65, 0.70, 0.29), "eosin": (0.07, 0.99, 0.11)}
    colours = {name: np.rint(255 * 10 ** -np.array(of)) for name, of in absorbed.items()}
    image, inside = disc(colours["eosin"], colours["haematoxylin"])
    shown = views.shown(image, "haematoxylin")
    assert shown.dtype == np.uint16
    assert shown[inside].min() == 65535 and shown[~inside].max() < 6000


@pytest.mark.parametrize("name", ["bbbc039", "bitdepth_nucseg", "sbsst265_neuroblastoma", "tnbc"])
def test_the_excerpts_look_as_their_sets_are_known(name):
    expected = views.COLOURED if name == "tnbc" else views.DARK
    for sample in datasets.load(name, "test", "excerpt"):
        assert views.kind(sample.image) == expected


def test_the_excerpt_of_dsb2018_looks_as_its_modality():
    looks = {"fluorescence": views.DARK, "stained": views.COLOURED, "bright-field": views.BRIGHT}
    for sample in datasets.load("dsb2018", "test", "excerpt"):
        assert views.kind(sample.image) == looks[sample.tags["modality"]]
