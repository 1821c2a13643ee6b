"""New images from real nuclei: shapes and intensities of which everything is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi
from scipy.stats import ks_2samp

from nuctut import artificial
from nuctut.artificial import Cutout, Material, Pairs, Recipe, Rim, altered, invent, material, rim
from nuctut.samples import Sample, SampleSet

NODES = Recipe(size=120, grids=(9,), place=1.0, offset=0.0)  # middles at 20, 60 and 100


@pytest.fixture(scope="module")
def sample(scene) -> Sample:
    """Five discs, of which the edge cuts one."""
    discs = [(30, 30, 12), (30, 52, 11), (80, 40, 14), (80, 100, 13), (0, 100, 10)]
    return Sample("discs", *scene((120, 130), discs), tags={"tissue": "disc"})


def flat(mask: np.ndarray, light: float = 900.0) -> Cutout:
    return Cutout(np.where(mask, np.float32(light), np.float32(100)), mask)


def plain(*nuclei: Cutout, ground=(100,)) -> Material:
    return Material("plain", {}, np.dtype(np.uint16), np.array(ground, np.uint16), nuclei)


def disc(radius: float) -> np.ndarray:
    y, x = np.mgrid[: 2 * math.ceil(radius) + 1, : 2 * math.ceil(radius) + 1]
    return np.hypot(y - math.ceil(radius), x - math.ceil(radius)) <= radius


def sampled(*samples: Sample) -> SampleSet:
    by_key = {one.key: one for one in samples}
    how = {"name": "discs", "split": "training", "source": "simulated", "fingerprint": "f"}
    return SampleSet(list(by_key), by_key.__getitem__, **how)


def arrays_of(one: Sample) -> tuple[bytes, bytes]:
    return one.image.tobytes(), one.labels.tobytes()


# --- taking apart --------------------------------------------------------------------------------


def test_the_background_is_what_a_disc_15_across_leaves(sample):
    dilated = ndi.binary_dilation(sample.labels > 0, disc(7))
    assert np.array_equal(artificial.background(sample), sample.image[~dilated])


def test_whole_nuclei_are_cut_out_with_their_own_pixels(sample):
    nuclei = material(sample).nuclei
    assert len(nuclei) == 4
    for label, one in enumerate(nuclei, start=1):
        own = sample.labels == label
        assert np.array_equal(one.image[one.mask], sample.image[own].astype(np.float32))
        assert not one.mask[[0, -1]].any() and not one.mask[:, [0, -1]].any()


def test_what_no_image_can_be_made_of_is_named():
    image, labels = np.zeros((30, 30), np.uint8), np.zeros((30, 30), np.int32)
    with pytest.raises(ValueError, match=r"bare: .* no nucleus that lies wholly"):
        material(Sample("bare", image, labels))
    labels[0, :3] = 1
    with pytest.raises(ValueError, match=r"cut: .* no nucleus that lies wholly"):
        material(Sample("cut", image, labels))
    labels[::5, ::5] = np.arange(1, 37).reshape(6, 6)
    with pytest.raises(ValueError, match=r"full: .* no background"):
        material(Sample("full", image, labels))
    with pytest.raises(ValueError, match=r"coloured: .* grey"):
        material(Sample("coloured", np.zeros((30, 30, 3), np.uint8), labels))


# --- a new image ---------------------------------------------------------------------------------


def test_the_drawn_background_has_the_real_ones_statistics(sample):
    made = invent(material(sample), np.random.default_rng(0))
    real = artificial.background(sample)
    assert made.ground.dtype == sample.image.dtype
    assert set(np.unique(made.ground)) <= set(np.unique(real))
    assert ks_2samp(made.ground.ravel(), real).statistic < 0.02
    noise = made.ground - made.ground.mean()  # every pixel is drawn for itself
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 0.02 * noise.var()


def test_outside_of_the_nuclei_there_is_nothing_but_background(sample):
    made = invent(material(sample), np.random.default_rng(1))
    bare = made.labels == 0
    assert np.array_equal(made.image[bare], made.ground[bare])
    assert (made.image[~bare] > made.ground.max()).mean() > 0.9


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_labels_run_without_gaps_and_count_the_nuclei(seed):
    recipe = Recipe(size=128)
    made = invent(plain(flat(disc(6)), flat(disc(9))), np.random.default_rng(seed), recipe)
    ids = np.unique(made.labels)
    assert np.array_equal(ids[ids > 0], np.arange(1, made.labels.max() + 1))
    assert 1 <= made.labels.max() <= len(made.cut) == len(made.altered) <= 49
    assert made.labels.dtype == np.int32 and made.image.dtype == np.uint16


def test_nuclei_stand_in_the_middle_of_their_fields():
    made = invent(plain(flat(disc(6))), np.random.default_rng(0), NODES)
    centres = np.array(ndi.center_of_mass(made.labels > 0, made.labels, range(1, 10)))
    expected = [(y, x) for y in (20, 60, 100) for x in (20, 60, 100)]
    assert np.abs(centres - expected).max() <= 2  # bent ones are not symmetric


@pytest.mark.parametrize("offset", [0.3, 0.7, 1.0])
def test_the_offset_is_a_share_of_half_the_way_to_the_next(offset):
    recipe = Recipe(size=120, grids=(9,), place=1.0, offset=offset)
    rng = np.random.default_rng(0)
    spots = np.array([artificial._spots(recipe, rng) for _ in range(300)])
    expected = [(y, x) for y in (20, 60, 100) for x in (20, 60, 100)]
    off = np.abs(spots - expected)
    assert 0.98 * offset * 20 < off.max() <= offset * 20
    assert off.mean() == pytest.approx(offset * 10, rel=0.05)


def test_places_are_taken_with_the_probability_given():
    rng = np.random.default_rng(0)
    counts = [len(artificial._spots(Recipe(grids=(49,)), rng)) for _ in range(400)]
    assert np.mean(counts) == pytest.approx(24.5, abs=0.6)
    assert np.std(counts) == pytest.approx(3.5, abs=0.4)
    rare = [len(artificial._spots(Recipe(grids=(9,), place=0.01), rng)) for _ in range(20)]
    assert min(rare) == 1


@pytest.mark.parametrize("shines_through", [None, 0.2])
def test_where_two_meet_the_later_hides_or_adds(shines_through):
    light, labels = np.full((20, 20), 10, np.float32), np.zeros((20, 20), np.int32)
    square = flat(np.ones((8, 8), bool), 500)
    other = flat(np.ones((8, 8), bool), 300)
    artificial._set(light, labels, square, np.array([8, 8]), 1, shines_through)
    artificial._set(light, labels, other, np.array([12, 12]), 2, shines_through)
    met = 500 + 0.2 * 300 if shines_through else 300
    assert (light[4:12, 4:8] == 500).all() and (light[12:16, 8:16] == 300).all()
    assert (light[8:12, 8:12] == np.float32(met)).all()
    assert (light[labels == 0] == 10).all()
    # in the labels nothing is lost: both are there, the later one whole
    assert (labels == 2).sum() == 64 and (labels == 1).sum() == 48


def test_what_lies_outside_is_cut_off():
    light, labels = np.zeros((20, 20), np.float32), np.zeros((20, 20), np.int32)
    square = flat(np.ones((8, 8), bool), 500)
    for label, spot in enumerate([(0, 0), (20, 20), (0, 20), (40, 40)], start=1):
        artificial._set(light, labels, square, np.array(spot), label, None)
    assert np.bincount(labels.ravel()).tolist() == [400 - 48, 16, 16, 16]


def test_light_stays_within_what_the_camera_can_say():
    made = artificial._as(np.dtype(np.uint8), np.array([[-3.0, 2.6, 300.0]], np.float32))
    assert made.dtype == np.uint8 and made.tolist() == [[0, 3, 255]]
    assert artificial._as(np.dtype(np.float32), np.float32([0.3])).tolist() == [np.float32(0.3)]


# --- altering ------------------------------------------------------------------------------------


def some_altered(nucleus: Cutout, recipe: Recipe, count: int = 60) -> list[Cutout]:
    return [altered(nucleus, 100.0, np.random.default_rng(seed), recipe) for seed in range(count)]


def test_turning_keeps_the_area_and_bending_nearly():
    nucleus = flat(np.pad(disc(12)[:, :20], 2))
    for bend, tolerance in ((0.0, 0.04), (0.2, 0.3)):
        areas = [one.mask.sum() for one in some_altered(nucleus, Recipe(bend=bend))]
        assert np.abs(np.array(areas) / nucleus.mask.sum() - 1).max() < tolerance
        assert np.mean(areas) == pytest.approx(nucleus.mask.sum(), rel=0.03)
        assert len(set(areas)) > 3
    for one in some_altered(nucleus, Recipe()):
        assert ndi.label(one.mask)[1] == 1


def test_dimming_goes_down_to_the_share_given_and_keeps_the_dark():
    lights = {round(float(one.image[one.mask].mean())) for one in
              some_altered(flat(disc(9)), Recipe(dim=0.25, bend=0.0))}  # fmt: skip
    assert max(lights) == 900 and 300 <= min(lights) < 400  # 100 + 0.25 × 800
    assert all(one.image.min() == 100 for one in some_altered(flat(disc(9)), Recipe()))


def test_some_nuclei_keep_their_very_pixels():
    rng = np.random.default_rng(0)
    nucleus = Cutout(rng.random((11, 14), np.float32), rng.random((11, 14)) < 0.5)
    same = [one for one in some_altered(nucleus, Recipe(dim=1.0), 200) if one is not None]
    kept = [np.array_equal(one.image, nucleus.image) for one in same]
    assert 0.05 < np.mean(kept) < 0.25  # neither mirrored, turned nor bent: one in eight


def test_a_nucleus_of_one_pixel_stays():
    for one in some_altered(flat(np.pad(np.ones((1, 1), bool), 2)), Recipe()):
        assert one.mask.any()


@pytest.mark.parametrize(
    "wrong",
    [{"size": 8}, {"grids": ()}, {"grids": (9, 10)}, {"place": 0}, {"offset": 1.5}, {"dim": -1}],
)
def test_a_recipe_that_cannot_be_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**wrong)


# --- a set of them -------------------------------------------------------------------------------


def test_a_set_is_the_same_for_the_same_seed_and_grows_at_its_end(sample):
    recipe, real = Recipe(size=64), sampled(sample)
    few, many = (artificial.invented(real, n, recipe, seed=3) for n in (2, 4))
    again, other = (artificial.invented(real, 2, recipe, seed=seed) for seed in (3, 4))
    assert [arrays_of(one) for one in few] == [arrays_of(one) for one in many][:2]
    assert [arrays_of(one) for one in few] == [arrays_of(one) for one in again]
    assert arrays_of(few[0]) != arrays_of(few[1]) != arrays_of(other[1])
    assert few.fingerprint == again.fingerprint
    assert len({one.fingerprint for one in (few, many, other)}) == 3
    assert dict(few[0].tags) == {"tissue": "disc", "made_of": "discs"}
    assert few.describe() == "artificial images of discs training (simulated, 2 images)"


def test_a_set_is_made_of_all_images(sample):
    twin = Sample("twin", sample.image, sample.labels)
    made = artificial.invented(sampled(sample, twin), 12, Recipe(size=32))
    assert {one.tags["made_of"] for one in made} == {"discs", "twin"}


def test_nothing_of_nothing(sample):
    with pytest.raises(ValueError, match="0 artificial images of 1"):
        artificial.invented(sampled(sample), 0)
    with pytest.raises(ValueError, match="artificial images of 0"):
        artificial.invented(sampled(), 3)
    empty = Sample("bare", sample.image, np.zeros_like(sample.labels))
    with pytest.raises(ValueError, match="bare"):
        artificial.invented(sampled(empty), 1)[0]


# --- pairs ---------------------------------------------------------------------------------------


def test_a_pair_differs_in_the_background_alone(sample):
    pairs = Pairs([sample], size=64)
    ground = set(np.unique(artificial.background(sample)).tolist())
    for draw in range(8):
        drawn, natural = pairs[0, draw]
        assert drawn.shape == natural.shape == (64, 64)
        assert drawn.dtype == natural.dtype == np.float32
        same = drawn == natural
        assert set(drawn[~same].tolist()) <= ground
        assert same[natural > 700].all() and (natural > 700).any()  # a nucleus in every tile
        assert np.array_equal(drawn, pairs[0, draw][0])
        assert not np.array_equal(drawn, pairs[0, draw + 1][0])


def test_nuclei_on_drawn_background_stay_where_they_are(sample):
    made = artificial.on_drawn_background(sample, np.random.default_rng(0))
    inside = sample.labels > 0
    assert made.dtype == sample.image.dtype
    assert np.array_equal(made[inside], sample.image[inside])
    assert set(np.unique(made[~inside])) <= set(np.unique(artificial.background(sample)))


def test_pairs_of_an_image_smaller_than_a_tile(sample):
    drawn, natural = Pairs([sample], size=160)[0, 1]
    assert drawn.shape == natural.shape == (160, 160)


def test_pairs_of_nothing_are_named(sample):
    with pytest.raises(ValueError, match="one real image"):
        Pairs([])
    empty = Sample("bare", sample.image, np.zeros_like(sample.labels))
    with pytest.raises(ValueError, match=r"bare: .* no nucleus"):
        Pairs([empty], size=64)[0, 0]


# --- rims ----------------------------------------------------------------------------------------


def blurred_square(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros((120, 120), np.int32)
    labels[30:90, 30:90] = 1
    return 100 + 800 * ndi.gaussian_filter((labels > 0).astype(float), sigma), labels


def test_the_rim_of_a_blurred_edge_is_as_wide_as_its_formula_says():
    """Light falls as the normal distribution: from 90 % to 10 % in 2 × 1.2816 σ."""
    for sigma in (1.5, 3.0):
        found = rim([blurred_square(sigma)], reach=12)
        assert found.nuclei == 1
        assert found.width == pytest.approx(2 * 1.2816 * sigma, rel=0.06)
        assert found.light[12:].max() < 0.5 < found.light[:12].min()


def test_a_cut_out_edge_has_half_a_rim():
    image, labels = blurred_square(3.0)
    cut = np.where(labels > 0, image, 100)
    whole, half = rim([(image, labels)], reach=12), rim([(cut, labels)], reach=12)
    assert np.allclose(half.light[:12], whole.light[:12])
    assert not half.light[12:].any()
    assert half.width < 0.65 * whole.width


def test_a_hard_edge_is_one_pixel_wide():
    _, labels = blurred_square(3.0)
    found = rim([(100.0 + 800 * (labels > 0), labels)], reach=5)
    assert found.light.tolist() == [1] * 5 + [0] * 5
    assert found.width == pytest.approx(0.8)
    assert found.distance.tolist() == [-4.5, -3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 4.5]


def test_a_neighbour_does_not_count():
    """Where another nucleus is near, pixels are left out; a brighter one changes nothing."""
    image, labels = blurred_square(1.5)
    alone = rim([(image, labels)], reach=8)
    labels[30:90, 90:95] = 2  # touches, and is too thin to be looked at itself
    image[30:90, 90:95] = 5000
    beside = rim([(image, labels)], reach=8)
    assert beside.nuclei == 1
    assert np.allclose(beside.light, alone.light, atol=0.02)


def test_every_nucleus_counts_once_whatever_its_light():
    (dim, labels), (bright, _) = blurred_square(2.0), blurred_square(2.0)
    bright = 100 + 5 * (bright - 100)
    found = rim([(dim, labels), (bright, labels)], reach=8)
    assert found.nuclei == 2
    assert np.allclose(found.light, rim([(dim, labels)], reach=8).light)


def test_a_profile_that_does_not_fall_has_no_width():
    distance = np.arange(-2, 2) + 0.5
    assert math.isnan(Rim(distance, np.array([1.0, 0.9, 0.8, 0.5]), 1).width)


def test_where_no_nucleus_can_be_looked_at():
    image, labels = blurred_square(2.0)
    with pytest.raises(ValueError, match="no nucleus is more than 40 pixels deep"):
        rim([(image, labels)], reach=40)
    with pytest.raises(ValueError, match="no nucleus"):
        rim([(image, np.zeros_like(labels))])
