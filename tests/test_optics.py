"""Optics: kernels against formulas and slow references, noise against its statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, ndimage, special

from nuctut import optics
from nuctut.optics import Camera, Microscope

K = 2 * math.pi / 0.5  # of the default microscope, whose NA/n is 0.5


def integrated(r: float, z: float) -> float:
    """h(r, z) by adaptive integration of the formula as Yang et al. have it."""

    def field(rho: float) -> complex:
        return special.j0(K * 0.5 * r * rho) * np.exp(-0.5j * K * rho**2 * z * 0.25) * rho

    parts = [
        integrate.quad(lambda rho, part=part: part(field(rho)), 0, 1, limit=300)[0]
        for part in (np.real, np.imag)
    ]
    return parts[0] ** 2 + parts[1] ** 2


# --- kernels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [0, 2, 14.5, -32, 60])
def test_the_profile_is_the_integral_of_yang_et_al(z: float) -> None:
    r = np.array([0, 0.3, 1, 7, 16, 23])
    expected = [integrated(one, z) for one in r]
    np.testing.assert_allclose(optics.radial_profile(r, z), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("microscope", [Microscope(), Microscope(0.46, 0.45, 1.0, 0.645)])
def test_in_focus_it_is_the_airy_disc(microscope: Microscope) -> None:
    """|J₁(v)/v|², whose first zero is at 0.61 λ/NA."""
    zero = special.jn_zeros(1, 1)[0] / (2 * math.pi) * microscope.wavelength / microscope.aperture
    assert zero == pytest.approx(0.61 * microscope.wavelength / microscope.aperture, rel=1e-3)
    r = np.linspace(0.01, 3, 200)
    v = 2 * math.pi / microscope.wavelength * microscope.aperture * r
    expected = (special.j1(v) / v) ** 2
    np.testing.assert_allclose(optics.radial_profile(r, 0, microscope), expected, atol=1e-14)
    assert optics.radial_profile(np.array([zero]), 0, microscope)[0] < 1e-20


@pytest.mark.parametrize("z", [0, 4, 20])
def test_no_light_is_lost_between_planes(z: float) -> None:
    """By Parseval's theorem the whole plane holds π/(k·NA/n)², however far out of focus."""
    r = np.linspace(0, 60, 6001)
    light = integrate.simpson(2 * math.pi * r * optics.radial_profile(r, z), r)
    assert light == pytest.approx(math.pi / (K * 0.5) ** 2, rel=0.01)


@pytest.mark.parametrize("z", [0, 1, 20, 40])
def test_a_kernel_has_sum_1_and_every_symmetry_of_a_square(z: float) -> None:
    made = optics.kernel(z)
    assert made.shape[0] == made.shape[1] and made.shape[0] % 2 == 1
    assert made.sum() == pytest.approx(1) and made.min() >= 0
    for other in (made.T, made[::-1], made[:, ::-1], optics.kernel(-z)):
        np.testing.assert_array_equal(made, other)


def test_a_kernel_that_is_kept_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        optics.kernel(5)[0, 0] = 1


def test_far_from_focus_it_is_nearly_the_geometrical_disc() -> None:
    """Radius z·NA/n, so 24.6 pixels at 32 µm; a full disc has a mean radius of 2/3 of it."""
    made, reach = optics.kernel(32), optics.MICROSCOPE.radius(32)
    assert reach == pytest.approx(24.6, abs=0.05)
    middle = made.shape[0] // 2
    y, x = np.mgrid[: made.shape[0], : made.shape[1]] - middle
    away = np.hypot(y, x)
    assert made[away < reach].sum() > 0.9
    assert np.sum(made * away) == pytest.approx(2 / 3 * reach, rel=0.05)


@pytest.mark.parametrize(("z", "lost"), [(20, 0.007), (32, 0.024), (40, 0.144)])
def test_what_51_pixels_lose_is_as_the_docstring_says(z: float, lost: float) -> None:
    r = np.hypot(*(np.mgrid[:151, :151] - 75)) * 0.65
    whole = optics.radial_profile(r.ravel(), z).reshape(r.shape)
    assert 1 - whole[50:101, 50:101].sum() / whole.sum() == pytest.approx(lost, abs=0.003)


def test_blurring_twice_is_not_blurring_further() -> None:
    """As it is with Gaussians: two discs make a cone, and no disc of any size."""
    point = np.zeros((81, 81))
    point[40, 40] = 1
    twice = optics.defocus(optics.defocus(point, 10), 10)
    once = optics.defocus(point, 20)
    assert np.abs(twice - once).sum() > 0.3
    gaussian = ndimage.gaussian_filter(point, math.hypot(5, 5))
    again = ndimage.gaussian_filter(ndimage.gaussian_filter(point, 5), 5)
    assert np.abs(again - gaussian).sum() < 0.01


@pytest.mark.parametrize("size", [50, 1, -3, 0, 5.5])
def test_a_kernel_without_a_middle_is_refused(size: float) -> None:
    with pytest.raises(ValueError, match="size must be an odd number of pixels, at least 3"):
        optics.kernel(4, size)


@pytest.mark.parametrize("z", [math.nan, math.inf])
def test_a_depth_that_is_no_number_is_refused(z: float) -> None:
    with pytest.raises(ValueError, match="z must be a number of µm"):
        optics.kernel(z)


@pytest.mark.parametrize("name", ["wavelength", "aperture", "index", "pixel_size"])
@pytest.mark.parametrize("value", [-0.5, 0, math.nan])
def test_lengths_that_cannot_be_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive number"):
        Microscope(**{name: value})


def test_an_aperture_beyond_the_index_is_refused() -> None:
    with pytest.raises(ValueError, match=r"aperture must be at most the refractive index, 1\.33"):
        Microscope(aperture=1.4, index=1.33)
    Microscope(aperture=1.4, index=1.515)


# --- blurring ------------------------------------------------------------------------------------


def test_a_point_becomes_the_kernel() -> None:
    point = np.zeros((61, 61), np.uint16)
    point[30, 30] = 1000
    np.testing.assert_allclose(
        optics.defocus(point, 12, size=61), 1000 * optics.kernel(12, 61), atol=1e-9
    )


@pytest.mark.parametrize("size", [3, 9, 31])
def test_convolution_is_that_of_scipy_with_mirrored_borders(size: int) -> None:
    image = np.random.default_rng(0).random((20, 33))
    kernel = optics.kernel(3, size)
    expected = ndimage.convolve(image, kernel, mode="reflect")
    np.testing.assert_allclose(optics.convolve(image, kernel), expected, atol=1e-12)


def test_an_even_ground_stays_as_it_is_up_to_the_border() -> None:
    np.testing.assert_allclose(optics.defocus(np.full((40, 50), 300.0), 32), 300)


@pytest.mark.parametrize("shape", [(4, 5, 3), (9,)])
def test_images_with_more_or_fewer_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image must be \(H, W\)"):
        optics.defocus(np.zeros(shape), 3)


# --- light ---------------------------------------------------------------------------------------


def test_exposure_is_of_the_light_and_not_of_the_offset() -> None:
    camera = Camera(0.5, 100)
    image = np.array([[90, 100, 300]], np.uint16)
    np.testing.assert_allclose(optics.expose(image, 0.5, camera), [[100, 100, 200]])
    np.testing.assert_allclose(optics.expose(image, 0, camera), 100)
    with pytest.raises(ValueError, match="factor must not be negative"):
        optics.expose(image, -1)


@pytest.mark.parametrize("camera", [Camera(), Camera(1, 100), Camera(2.5, 0)])
def test_shot_noise_keeps_the_mean_and_grows_with_the_light(camera: Camera) -> None:
    rng = np.random.default_rng(1)
    for counts in (camera.offset, camera.offset + 50, 800):
        noisy = optics.shot_noise(np.full((200, 200), counts), rng, camera)
        expected = camera.gain * (counts - camera.offset)
        assert noisy.mean() == pytest.approx(counts, abs=5 * math.sqrt(expected) / 200)
        assert noisy.var() == pytest.approx(expected, rel=0.05)


def test_there_is_no_light_below_the_offset() -> None:
    noisy = optics.shot_noise(np.zeros((5, 5)), np.random.default_rng(0), Camera(0.4, 90))
    np.testing.assert_array_equal(noisy, 90)


@pytest.mark.parametrize(
    ("values", "name"),
    [({"gain": 0}, "gain"), ({"gain": -1}, "gain"), ({"offset": -5}, "offset")],
)
def test_cameras_that_cannot_be_are_named(values: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must"):
        Camera(**values)


def test_counts_are_rounded_and_clipped_to_their_type() -> None:
    values = np.array([-3.0, 0.4, 0.6, 254.7, 70_000.0])
    assert optics.as_counts(values, np.uint8).tolist() == [0, 0, 1, 255, 255]
    assert optics.as_counts(values, np.uint16).tolist() == [0, 0, 1, 255, 65_535]
    with pytest.raises(ValueError, match="whole numbers, which float32"):
        optics.as_counts(values, np.float32)


# --- augmentations -------------------------------------------------------------------------------

AUGMENTATIONS = [optics.psf_and_poisson, optics.gaussian, optics.poisson]


@pytest.mark.parametrize("augment", AUGMENTATIONS, ids=lambda one: one.__name__)
def test_an_augmentation_keeps_type_and_light_and_follows_its_generator(augment, scene) -> None:
    image, _ = scene((90, 120), [(40, 40, 12), (45, 80, 15)])
    before = image.copy()
    made = [augment(image, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert made[0].shape == image.shape and made[0].dtype == np.uint16
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] != made[2]).any() and (image == before).all()
    assert made[0].mean() == pytest.approx(image.mean(), rel=0.05)


def test_the_gaussian_is_as_wide_as_the_defocus_it_is_compared_with() -> None:
    point = np.zeros((121, 121), np.uint16)
    point[60, 60] = 60_000
    rng = np.random.default_rng(7)
    z = optics._depth(np.random.default_rng(7), optics.DEPTH)
    away = (np.arange(121) - 60.0) ** 2
    blurred = optics.gaussian(point, rng).astype(float)
    width = math.sqrt((blurred.sum(0) * away).sum() / blurred.sum())
    assert width == pytest.approx(optics.MICROSCOPE.radius(z) / 2, rel=0.05)


def test_depths_are_drawn_up_to_the_deepest_and_no_further() -> None:
    rng = np.random.default_rng(0)
    drawn = [optics._depth(rng, 4) for _ in range(300)]
    assert set(drawn) == set(np.arange(0, 4.5, 0.5))
    with pytest.raises(ValueError, match="depth must be"):
        optics.psf_and_poisson(np.zeros((9, 9), np.uint16), rng, depth=-1)


@pytest.mark.parametrize("z", [0, 1.5, 20])
def test_out_of_focus_an_image_has_the_camera_s_noise_and_not_more(z: float) -> None:
    """A flat field as the camera sees it: defocused, it should look as noisy as before."""
    rng, camera = np.random.default_rng(2), Camera(0.36, 90)
    sharp = optics.as_counts(optics.shot_noise(np.full((160, 160), 800), rng, camera), np.uint16)
    made = optics.out_of_focus(sharp, z, rng, camera=camera)
    assert made.var() == pytest.approx(0.36 * 710, rel=0.06)


# --- model beside reality ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def field() -> tuple[np.ndarray, np.ndarray]:
    """Labels of twelve discs, and the sharp image of them in different brightness."""
    rng = np.random.default_rng(5)
    labels = np.zeros((150, 200), np.int32)
    y, x = np.mgrid[:150, :200]
    for number in range(1, 13):
        top, left = divmod(number - 1, 4)
        labels[np.hypot(y - 30 - 45 * top, x - 28 - 48 * left) < 13] = number
    light = np.concatenate([[0], rng.uniform(200, 900, 12)])
    return labels, 110 + light[labels]


@pytest.mark.parametrize("z", [6, 14, 26])
def test_a_known_defocus_is_found_again(field, z: float) -> None:
    labels, sharp = field
    rng = np.random.default_rng(0)
    image = optics.as_counts(optics.shot_noise(optics.defocus(sharp, z), rng), np.uint16)
    depths = np.arange(2, 33, 4)
    for scene in (labels, sharp):
        fit = optics.fit_defocus(image, scene, depths)
        assert fit.z == z and fit.r2.max() > 0.97 and fit.r2.shape == depths.shape
        assert np.corrcoef(fit.modelled.ravel(), image.ravel())[0, 1] > 0.98


def test_the_camera_is_found_again(field) -> None:
    rng, camera = np.random.default_rng(0), Camera(0.36, 90)
    light = optics.defocus(np.tile(field[1], (3, 3)), 20)
    found = optics.fit_camera(optics.as_counts(optics.shot_noise(light, rng, camera), np.uint16))
    assert found.gain == pytest.approx(0.36, abs=0.02)
    assert found.offset == pytest.approx(90, abs=12)


def test_what_cannot_be_fitted_is_named(field) -> None:
    labels, sharp = field
    with pytest.raises(ValueError, match=r"scene is \(150, 200\) and image \(150, 199\)"):
        optics.fit_defocus(sharp[:, 1:], labels, [4])
    with pytest.raises(ValueError, match="same everywhere"):
        optics.fit_defocus(sharp, np.zeros_like(labels), [4])
    rising = np.linspace(0, 900, 400) * np.ones((400, 1))
    shaken = rising + np.random.default_rng(0).normal(0, 20 - rising / 60)
    with pytest.raises(ValueError, match="has no shot noise"):
        optics.fit_camera(shaken)
