"""Defocus, exposure and photons: what a widefield microscope makes of a sharp image.

The kernel is the defocus model of Yang et al. 2018 (BMC Bioinformatics 19:77), which Mandal et al.
take their blur from (section III.B), as its public code has it (google/microscopeimagequality,
`degrade.py`). All lengths are in µm, all grey values in camera counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from scipy import ndimage, signal, sparse, special

SMALLEST = 3  # pixels on a side of a kernel
MARGIN = 4.0  # µm of a kernel beyond the geometrical disc, where the fringes fade
DEPTH = 32.0  # µm; BBBC006's outermost plane, and as far as the augmentations go
STEP = 0.5  # µm between the depths that augmentations draw, few enough for kernels to be kept
BINS = 20  # of brightness, in which noise is measured


@dataclass(frozen=True)
class Microscope:
    """What the width of the blur depends on. The defaults are those of Yang et al.

    Attributes:
        wavelength: Of the light in the medium, in µm.
        aperture: Numerical aperture of the objective.
        index: Refractive index of the medium, 1.0 for air.
        pixel_size: Side of a pixel in the sample, in µm.

    Raises:
        ValueError: For one that is not positive, or an aperture beyond the index.
    """

    wavelength: float = 0.5
    aperture: float = 0.5
    index: float = 1.0
    pixel_size: float = 0.65

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name} must be a positive number, not {value}.")
        if self.aperture > self.index:
            raise ValueError(
                f"aperture must be at most the refractive index, {self.index}, because it is that "
                f"times the sine of an angle; it is {self.aperture}."
            )

    @property
    def slope(self) -> float:
        """Radius of the geometrical blur disc for each µm of defocus."""
        return self.aperture / self.index

    def radius(self, z: float) -> float:
        """Radius of the geometrical blur disc at a defocus of z µm, in pixels."""
        return abs(z) * self.slope / self.pixel_size


@dataclass(frozen=True)
class Camera:
    """How light becomes counts: counts = offset + gain × photo-electrons.

    The defaults are what `fit_camera` finds in real images of BBBC006, plane 0: in twelve of them
    a gain of 0.32 to 0.33 and an offset of 91 to 98. One count for each electron, as Yang et al.
    have it, would be three times the variance.

    Attributes:
        gain: Counts of one photo-electron.
        offset: Counts without any light.

    Raises:
        ValueError: For a gain that is not positive, or a negative offset.
    """

    gain: float = 0.33
    offset: float = 95.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gain) and self.gain > 0):
            raise ValueError(f"gain must be a positive number, not {self.gain}.")
        if not (math.isfinite(self.offset) and self.offset >= 0):
            raise ValueError(f"offset must not be negative, as {self.offset} is.")


MICROSCOPE = Microscope()
CAMERA = Camera()


# --- blur ----------------------------------------------------------------------------------------


def kernel(z: float, size: int | None = None, microscope: Microscope = MICROSCOPE) -> np.ndarray:
    """Image of a point that is z µm out of focus (Yang et al. 2018).

    h(r, z) = |∫₀¹ J₀(k·(NA/n)·r·ρ) · exp(−½·i·k·ρ²·z·(NA/n)²) · ρ dρ|² with k = 2π/λ, taken at the
    middles of the pixels, and divided by its sum. At z = 0 it is the Airy disc, whose first zero is
    at 0.61·λ·n/NA.

    Cut to 51 × 51 pixels, as Yang et al. do, it loses less than 1 % of its light at 20 µm, 2.4 % at
    32 µm, where the geometrical disc just fits, and 14 % at 40 µm: dividing by the sum hides that.

    Args:
        z: Defocus in µm; both signs give the same.
        size: Pixels on a side, odd; by default as many as the blur disc and its fringes need.
        microscope: Its optics.

    Returns:
        (size, size) float64 of sum 1, read-only.

    Raises:
        ValueError: For an even or too small size, or a z that is no number.
    """
    if not math.isfinite(z):
        raise ValueError(f"z must be a number of µm, not {z}.")
    if size is None:
        size = 2 * math.ceil(microscope.radius(z) + MARGIN / microscope.pixel_size) + 1
    if size != int(size) or size < SMALLEST or size % 2 == 0:
        raise ValueError(
            f"size must be an odd number of pixels, at least {SMALLEST}, so that the kernel has a "
            f"middle; not {size}."
        )
    return _kernel(abs(float(z)), int(size), microscope)


@lru_cache(maxsize=128)
def _kernel(z: float, size: int, microscope: Microscope) -> np.ndarray:
    steps = np.arange(size) - size // 2
    squares, where = np.unique(steps[:, None] ** 2 + steps**2, return_inverse=True)
    profile = radial_profile(np.sqrt(squares) * microscope.pixel_size, z, microscope)
    made = (profile / profile[where].sum())[where].reshape(size, size)
    made.flags.writeable = False
    return made


def radial_profile(r: np.ndarray, z: float, microscope: Microscope = MICROSCOPE) -> np.ndarray:
    """h(r, z) as `kernel` gives the formula, not normalised: ¼ at r = z = 0.

    Integrated by Gauss's rule with nodes enough for every turn of the integrand: exact to 1e-12.

    Args:
        r: (...) distances from the axis in µm.
        z: Defocus in µm.
    """
    k, slope = 2 * math.pi / microscope.wavelength, microscope.slope
    across, along = k * slope * np.asarray(r, float), k * abs(z) * slope**2 / 2
    turns = across.max(initial=0) + along  # of the integrand, in radians: a node for each
    rho, weights = _nodes(32 * math.ceil(turns / 32 + 1))
    field = weights * rho * np.exp(-1j * along * rho**2)
    return np.abs(special.j0(across[..., None] * rho) @ field) ** 2


@lru_cache(maxsize=32)
def _nodes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss's rule from 0 to 1."""
    at, weights = np.polynomial.legendre.leggauss(count)
    return (at + 1) / 2, weights / 2


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Blurs an image; beyond its border it goes on as in a mirror, so that none of it darkens.

    Args:
        image: (H, W), any number type.
        kernel: (n, n) with n odd.

    Returns:
        (H, W) float64.
    """
    margin = kernel.shape[0] // 2
    padded = np.pad(np.asarray(image, float), margin, mode="symmetric")
    return signal.fftconvolve(padded, kernel, mode="valid")


def defocus(
    image: np.ndarray, z: float, size: int | None = None, microscope: Microscope = MICROSCOPE
) -> np.ndarray:
    """A sharp image as it were z µm out of focus, without noise: what Yang et al. simulate.

    Args:
        image: (H, W) counts.
        z, size, microscope: As of `kernel`.

    Returns:
        (H, W) float64 counts.

    Raises:
        ValueError: As `kernel` does, or when the image has not two axes.
    """
    return convolve(_grey(image), kernel(z, size, microscope))


# --- light ---------------------------------------------------------------------------------------


def expose(image: np.ndarray, factor: float, camera: Camera = CAMERA) -> np.ndarray:
    """The same light for `factor` times as long.

    Args:
        image: (H, W) counts; what lies below the offset is no light.
        factor: Not negative.

    Returns:
        (H, W) float64 counts.

    Raises:
        ValueError: For a factor that is negative or no number.
    """
    if not (math.isfinite(factor) and factor >= 0):
        raise ValueError(f"factor must not be negative, as {factor} is.")
    return camera.offset + factor * np.maximum(np.asarray(image, float) - camera.offset, 0)


def shot_noise(image: np.ndarray, rng: np.random.Generator, camera: Camera = CAMERA) -> np.ndarray:
    """Counts as the camera reads them where the light comes in single photo-electrons.

    Args:
        image: (H, W) counts without noise; what lies below the offset is no light.

    Returns:
        (H, W) float64 counts of the same mean, and variance gain × (counts − offset).
    """
    light = np.maximum(np.asarray(image, float) - camera.offset, 0)
    return camera.offset + camera.gain * rng.poisson(light / camera.gain)


def as_counts(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounded, and clipped to what the type holds.

    Raises:
        ValueError: For a type that is not of whole numbers.
    """
    if not np.issubdtype(dtype, np.integer):
        raise ValueError(f"counts are whole numbers, which {np.dtype(dtype)} does not hold.")
    limits = np.iinfo(dtype)
    return np.clip(np.rint(image), limits.min, limits.max).astype(dtype)


# --- augmentations -------------------------------------------------------------------------------


def out_of_focus(
    image: np.ndarray,
    z: float,
    rng: np.random.Generator,
    microscope: Microscope = MICROSCOPE,
    camera: Camera = CAMERA,
) -> np.ndarray:
    """A sharp image as the camera would have seen it z µm out of focus.

    The sharp image has noise of its own. Blur with a kernel h leaves Σh² of that noise's variance,
    so only the rest is added: all of it where the blur is wide, next to nothing where there is
    none. Yang et al. add all of it everywhere.

    Args:
        image: (H, W) counts of a whole-number type.
        z, microscope: As of `kernel`.
        rng: Drawn from.

    Returns:
        (H, W) counts of the same type.
    """
    made = kernel(z, None, microscope)
    light = np.maximum(convolve(_grey(image), made), camera.offset)
    noise = shot_noise(light, rng, camera) - light
    return as_counts(light + math.sqrt(1 - np.sum(made**2)) * noise, image.dtype)


def psf_and_poisson(
    image: np.ndarray,
    rng: np.random.Generator,
    depth: float = DEPTH,
    microscope: Microscope = MICROSCOPE,
    camera: Camera = CAMERA,
) -> np.ndarray:
    """`out_of_focus` by up to `depth` µm: what Mandal et al. found best (section III.B).

    How far the paper does not say: here all distances are as likely, in steps of `STEP`.

    Args:
        image: (H, W) counts of a whole-number type.
        rng: Drawn from.
        depth: Largest defocus in µm.

    Returns:
        (H, W) counts of the same type.
    """
    return out_of_focus(image, _depth(rng, depth), rng, microscope, camera)


def gaussian(
    image: np.ndarray,
    rng: np.random.Generator,
    depth: float = DEPTH,
    microscope: Microscope = MICROSCOPE,
) -> np.ndarray:
    """Gaussian blur as wide as a defocus of up to `depth` µm, which the paper compares with.

    A disc of radius R has a standard deviation of R/2 along each axis, and so has the Gaussian.
    Arguments and result as of `psf_and_poisson`.
    """
    sigma = microscope.radius(_depth(rng, depth)) / 2
    blurred = ndimage.gaussian_filter(_grey(image).astype(float), sigma, mode="reflect")
    return as_counts(blurred, image.dtype)


def poisson(image: np.ndarray, rng: np.random.Generator, camera: Camera = CAMERA) -> np.ndarray:
    """Shot noise alone, which the paper compares with. Arguments and result as above."""
    return as_counts(shot_noise(_grey(image), rng, camera), image.dtype)


def _depth(rng: np.random.Generator, depth: float) -> float:
    """A defocus from 0 to `depth` µm, each step as likely."""
    if not (math.isfinite(depth) and depth >= 0):
        raise ValueError(f"depth must be a number of µm and not negative, as {depth} is.")
    return STEP * int(rng.integers(int(depth / STEP) + 1))


# --- model beside reality ------------------------------------------------------------------------


@dataclass(frozen=True)
class DefocusFit:
    """How well a sharp scene, defocused, explains an image.

    Attributes:
        z: The defocus in µm that explains most.
        r2: (depths,) at each depth: 1 − squared residual / squared deviation from the mean.
        modelled: (H, W) float64: the image as the model has it at z, in counts.
    """

    z: float
    r2: np.ndarray
    modelled: np.ndarray


def fit_defocus(
    image: np.ndarray,
    scene: np.ndarray,
    depths: Sequence[float],
    microscope: Microscope = MICROSCOPE,
) -> DefocusFit:
    """The defocus at which a sharp scene looks most like an image.

    At each depth the defocused scene is fitted to the image by least squares: background and
    brightness, of labels the brightness of each nucleus.

    Args:
        image: (H, W) counts.
        scene: (H, W) the same field in focus: labels (int32), or an image of any other type.
        depths: To choose from, in µm.

    Raises:
        ValueError: When shapes differ, or either is the same everywhere.
    """
    image, scene = _grey(image).astype(float), _grey(scene)
    if image.shape != scene.shape:
        raise ValueError(f"scene is {scene.shape} and image {image.shape}: they show one field.")
    if not (np.ptp(image) and np.ptp(scene)):
        raise ValueError("image or scene is the same everywhere: there is nothing to fit.")
    columns = _blurred_nuclei if scene.dtype == np.int32 else _blurred_whole
    made = [_fitted(columns(scene, kernel(z, None, microscope)), image) for z in depths]
    r2 = np.array([1 - np.mean((image - one) ** 2) / image.var() for one in made])
    best = int(r2.argmax())
    return DefocusFit(float(depths[best]), r2, made[best])


def _blurred_whole(scene: np.ndarray, kernel: np.ndarray) -> sparse.sparray:
    return sparse.csc_array(convolve(scene, kernel).reshape(-1, 1))


def _blurred_nuclei(labels: np.ndarray, kernel: np.ndarray) -> sparse.sparray:
    """(pixels, nuclei): each nucleus blurred, what leaves the image cut off."""
    height, width = labels.shape
    margin = kernel.shape[0] // 2
    places = np.pad(np.arange(labels.size).reshape(labels.shape), margin, constant_values=-1)
    values, rows, columns = [], [], []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        light = signal.fftconvolve((labels[box] == number).astype(float), kernel)
        where = places[tuple(slice(side.start, side.stop + 2 * margin) for side in box)]
        values.append(light[where >= 0])
        rows.append(where[where >= 0])
        columns.append(np.full(rows[-1].size, number - 1))
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return sparse.csc_array(entries, shape=(height * width, len(values)))


def _fitted(columns: sparse.sparray, image: np.ndarray) -> np.ndarray:
    """The sum of a constant and multiples of the columns that is nearest to the image."""
    flat = image.ravel() - image.mean()
    means = columns.mean(axis=0)
    products = (columns.T @ columns).toarray() - flat.size * np.outer(means, means)
    factors = np.linalg.lstsq(products, columns.T @ flat, rcond=None)[0]
    return (image.mean() + columns @ factors - means @ factors).reshape(image.shape)


def fit_camera(image: np.ndarray) -> Camera:
    """Gain and offset from the noise of one image: its variance grows by the gain with each count.

    The noise is what is left of each square of 2 × 2 pixels beside its mean and its slopes, so the
    image must be blurred by more than a few pixels, or its texture counts as noise too. Read noise
    makes the offset seem smaller than it is.

    Args:
        image: (H, W) counts.

    Raises:
        ValueError: When the noise does not grow with the light.
    """
    counts = _grey(image).astype(float)
    squares = [counts[i : -1 + i or None, j : -1 + j or None] for i in (0, 1) for j in (0, 1)]
    noise = (squares[0] - squares[1] - squares[2] + squares[3]) / 2
    level = ndimage.uniform_filter(counts, 7)[:-1, :-1]
    order = np.array_split(np.argsort(level, axis=None), BINS)
    levels = [level.ravel()[bin].mean() for bin in order]
    variances = [np.mean(noise.ravel()[bin] ** 2) for bin in order]
    weights = 1 / np.array(variances)  # the error of a variance is in proportion to it
    gain, intercept = np.polyfit(levels, variances, 1, w=weights)
    if gain <= 0:
        raise ValueError("the noise of image does not grow with its light: it has no shot noise.")
    return Camera(float(gain), max(float(-intercept / gain), 0.0))


def _grey(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 2:
        raise ValueError(f"image must be (H, W), not {image.shape}.")
    return image
