"""New images from real nuclei on real background (Kromp et al., "Artificial image generation").

`material` takes a real image apart, `invent` makes a new one of it, `Invented` makes many, and
`Pairs` gives what a network learns from to make them look natural. `rim` measures what they lack
without it: the blurred rim of a nucleus, which is lost where it is cut out.

Where the paper gives no number, it is that of the authors' code (perlfloccri/
NuclearSegmentationPipeline), or ours; which, is said at each. Their code also smooths the drawn
background (σ = 3) and takes a pixel off every cut-out; the paper does neither, nor do we.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage as ndi
from skimage.segmentation import relabel_sequential

from nuctut.samples import Sample, SampleSet
from nuctut.targets import dihedral

AROUND = 7  # pixels around nuclei that are no background: the paper's disc is 15 across
MARGIN = 2  # pixels of surroundings that a cut-out brings along, to interpolate at its edge
TILE_BEND = 1 / 16  # of a tile's side; as far as the authors' elastic deformation moves a pixel


# --- a real image, taken apart -------------------------------------------------------------------


@dataclass(frozen=True)
class Cutout:
    """One nucleus and what is right around it.

    Attributes:
        image: (h, w) float32 intensities in camera counts.
        mask: (h, w) bool, true where the nucleus is.
    """

    image: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Material:
    """What new images are made of: the nuclei and the background of one real image.

    Attributes:
        key, tags, dtype: Of the real image.
        ground: (n,) intensities of its background pixels.
        nuclei: Those of its nuclei that the image's edge does not cut.
    """

    key: str
    tags: Mapping[str, str]
    dtype: np.dtype
    ground: np.ndarray
    nuclei: tuple[Cutout, ...]


def material(sample: Sample) -> Material:
    """Take a real image apart.

    Nuclei at the image's edge stay out, as in the authors' code: they are not whole.

    Raises:
        ValueError: Naming the image, when it is coloured, has no background or no whole nucleus.
    """
    nuclei = []
    edge = sample.labels.copy()
    edge[1:-1, 1:-1] = 0
    cut = set(np.unique(edge).tolist())
    ground = background(sample)
    for label, window in enumerate(ndi.find_objects(sample.labels), start=1):
        if label not in cut:
            around = tuple(slice(max(0, s.start - MARGIN), s.stop + MARGIN) for s in window)
            mask = sample.labels[around] == label
            nuclei.append(Cutout(sample.image[around].astype(np.float32), mask))
    if not nuclei:
        raise ValueError(
            f"{sample.key}: no artificial image can be made of it, for it has no nucleus that "
            "lies wholly in the image; leave the image out."
        )
    return Material(sample.key, sample.tags, sample.image.dtype, ground, tuple(nuclei))


def background(sample: Sample) -> np.ndarray:
    """(n,) intensities of the pixels that are more than 7 pixels away from every nucleus.

    The paper dilates the nuclei by a disc 15 pixels across, so that their blur does not count.

    Raises:
        ValueError: Naming the image, when it is coloured or has no such pixel.
    """
    if sample.image.ndim != 2:
        raise ValueError(f"{sample.key}: artificial images are made of grey images, (H, W), only.")
    pixels = sample.image[_away(sample.labels > 0) > AROUND]
    if not pixels.size:
        raise ValueError(
            f"{sample.key}: no artificial image can be made of it, for it has no background: no "
            f"pixel is more than {AROUND} pixels away from every nucleus; leave the image out."
        )
    return pixels


def _away(mask: np.ndarray) -> np.ndarray:
    """How far from the mask every pixel is; infinitely, where the mask is empty."""
    return ndi.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)


# --- a new image ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How new images are made.

    Attributes:
        size: Side of the square images in pixels.
        grids: How many places for a nucleus an image may have, square numbers (authors' code).
        place: Probability that a place is taken (authors' code).
        offset: How far a nucleus may be off its place, as a share of half the distance to the
            next: with 0 they stand in rows, with 1 two may meet half way (authors' code).
        overlap: Share of a nucleus' light that is added where it lies over another (authors' code).
        dim: The least that dimming may leave of a nucleus' light above the background (ours).
        bend: Half-width of the random shifts that bend a nucleus, in diameters (ours).
    """

    size: int = 256
    grids: tuple[int, ...] = (9, 16, 25, 36, 49)
    place: float = 0.5
    offset: float = 0.7
    overlap: float = 0.2
    dim: float = 0.4
    bend: float = 0.2

    def __post_init__(self) -> None:
        if self.size < 16:
            raise ValueError(f"size must be at least 16 pixels, not {self.size}.")
        if not self.grids or any(n < 1 or math.isqrt(n) ** 2 != n for n in self.grids):
            raise ValueError(f"grids must hold square numbers such as 9 and 16, not {self.grids}.")
        if not 0 < self.place <= 1:
            raise ValueError(f"place is a probability above 0, not {self.place}.")
        for name in ("offset", "overlap", "dim", "bend"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}.")


RECIPE = Recipe()


@dataclass(frozen=True)
class Artificial:
    """A new image, and the steps on the way to it (figure 3 of the paper).

    Attributes:
        image: (size, size), of the real image's dtype.
        labels: (size, size) int32, 1…N without gaps.
        ground: (size, size), the background before any nucleus was set on it.
        cut, altered: The nuclei in the order in which they were set, as they were cut out and as
            they were set. One that later ones hide entirely is here and not in `labels`.
    """

    image: np.ndarray
    labels: np.ndarray
    ground: np.ndarray
    cut: tuple[Cutout, ...]
    altered: tuple[Cutout, ...]


def invent(of: Material, rng: np.random.Generator, recipe: Recipe = RECIPE) -> Artificial:
    """A new image of what a real one is made of (paper, "Artificial image generation").

    Every pixel of the background is drawn from the real one's. A grid of square fields is laid
    over it; a nucleus, drawn and altered at random, stands in the middle of a field, give or take
    an offset, or the field stays empty. (In the authors' code the last row and column of the grid
    lie outside of the image.) Where a nucleus meets one that is there, it hides it, or the share
    `overlap` of its light is added, each with probability ½; in the labels it hides it either way.

    Args:
        of: A real image, taken apart.
        rng: Decides everything.
        recipe: See `Recipe`.
    """
    ground = of.ground[rng.integers(len(of.ground), size=(recipe.size, recipe.size))]
    light, labels = ground.astype(np.float32), np.zeros(ground.shape, np.int32)
    dark = float(of.ground.mean())
    cut, changed = [], []
    for label, spot in enumerate(_spots(recipe, rng), start=1):
        cut.append(of.nuclei[rng.integers(len(of.nuclei))])
        changed.append(altered(cut[-1], dark, rng, recipe))
        shines_through = recipe.overlap if rng.random() < 0.5 else None
        _set(light, labels, changed[-1], spot, label, shines_through)
    labels = relabel_sequential(labels)[0].astype(np.int32)
    return Artificial(_as(of.dtype, light), labels, ground, tuple(cut), tuple(changed))


def altered(
    nucleus: Cutout, dark: float, rng: np.random.Generator, recipe: Recipe = RECIPE
) -> Cutout:
    """A nucleus mirrored, turned, bent and dimmed, each with probability ½ (authors' code).

    It is turned by any angle. To bend it, its pixels are shifted along a cubic Bézier surface of
    4×4 random points. What is neither turned nor bent keeps its very pixels.

    Args:
        nucleus: As cut out.
        dark: Mean intensity of the background: what stays of a nucleus of which no light is left.
        rng: Decides.
        recipe: Gives `dim` and `bend`.
    """
    mirrors, turns, bends, dims = rng.random(4) < 0.5
    image, mask = nucleus.image, nucleus.mask
    if mirrors:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if turns or bends:
        angle = rng.uniform(0, 2 * math.pi) if turns else 0.0
        reach = recipe.bend * 2 * math.sqrt(mask.sum() / math.pi) if bends else 0.0
        image, mask = _warped(image, mask, angle, reach, rng)
    if dims:
        image = dark + np.float32(rng.uniform(recipe.dim, 1)) * (image - np.float32(dark))
    return Cutout(np.float32(image), mask)


def _warped(
    image: np.ndarray, mask: np.ndarray, angle: float, reach: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """An image and its mask, turned by an angle and bent by shifts of up to `reach` pixels."""
    diagonal = math.hypot(*mask.shape)  # by an even number longer: what is not turned stays in line
    sides = [n + 2 * math.ceil((diagonal - n) / 2 + reach) for n in mask.shape]
    centred = np.indices(sides) - (np.reshape(sides, (2, 1, 1)) - 1) / 2
    cos, sin = math.cos(angle), math.sin(angle)
    where = np.tensordot([[cos, -sin], [sin, cos]], centred, 1)
    where += (np.reshape(mask.shape, (2, 1, 1)) - 1) / 2 + _shifts(sides, reach, rng)
    inside = ndi.map_coordinates(mask.astype(np.float32), where, order=1) > 0.5
    if not inside.any():  # a nucleus of a pixel or two
        return image, mask
    window = ndi.find_objects(inside.astype(np.uint8))[0]
    moved = ndi.map_coordinates(image, where[(slice(None), *window)], order=1, mode="nearest")
    return moved, inside[window]


def _shifts(sides: Sequence[int], reach: float, rng: np.random.Generator) -> np.ndarray:
    """(2, *sides) smooth shifts of at most `reach` pixels: a Bézier surface of 4×4 points."""
    down, across = (_bernstein(side) for side in sides)
    return down.T @ rng.uniform(-reach, reach, (2, 4, 4)) @ across


def _bernstein(count: int) -> np.ndarray:
    """(4, count) weights of the four points of a cubic Bézier curve along it."""
    t = np.linspace(0, 1, count)
    return np.stack([math.comb(3, k) * t**k * (1 - t) ** (3 - k) for k in range(4)])


def _spots(recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """(n, 2) centres in pixels of the nuclei to be set, one at least, row by row."""
    across = math.isqrt(int(rng.choice(recipe.grids)))
    step = recipe.size / across
    middles = (np.stack(np.divmod(np.arange(across**2), across), axis=1) + 0.5) * step
    taken = np.zeros(len(middles), bool)
    while not taken.any():
        taken = rng.random(len(middles)) < recipe.place
    off = rng.uniform(-1, 1, middles.shape) * recipe.offset * step / 2
    return (middles + off)[taken]


def _set(
    light: np.ndarray,
    labels: np.ndarray,
    nucleus: Cutout,
    spot: np.ndarray,
    label: int,
    shines_through: float | None,
) -> None:
    """Set a nucleus into an image and its labels; what lies outside of them is cut off."""
    starts = [round(at - length / 2) for at, length in zip(spot, nucleus.mask.shape, strict=True)]
    spans = list(zip(starts, nucleus.mask.shape, labels.shape, strict=True))
    window = tuple(slice(max(0, at), min(at + n, whole)) for at, n, whole in spans)
    part = tuple(slice(max(0, -at), min(n, whole - at)) for at, n, whole in spans)
    mask, own = nucleus.mask[part], nucleus.image[part]
    if shines_through is not None:
        own = np.where(labels[window] > 0, light[window] + shines_through * own, own)
    light[window][mask] = own[mask]
    labels[window][mask] = label


def _as(dtype: np.dtype, light: np.ndarray) -> np.ndarray:
    """Intensities as a camera would have kept them: rounded and cut off where its dtype ends."""
    if np.issubdtype(dtype, np.integer):
        light = np.rint(light).clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    return light.astype(dtype)


def invented(
    samples: SampleSet, count: int, recipe: Recipe = RECIPE, *, seed: int = 0
) -> SampleSet:
    """New images of real ones, each made of one that is drawn at random.

    The paper makes them of the images of one tissue. An image depends on the seed and on its
    number, so a larger set begins with the images of a smaller one.

    Args:
        samples: Real images, scaled as the new ones shall be.
        count: How many to make.
        recipe: See `Recipe`.
        seed: Not negative.

    Returns:
        A set of the same split and source. A sample has the tags of the real image that it is made
        of, whose key is its tag "made_of".

    Raises:
        ValueError: When there is nothing to make, or nothing to make it of; and, when a sample is
            read, as `material` does.
    """
    if count < 1 or not len(samples):
        raise ValueError(
            f"{count} artificial images of {len(samples)} real ones cannot be made: give a count "
            "and a set of 1 or more."
        )
    keys = [f"artificial_{number:05d}" for number in range(count)]
    taken: dict[int, Material] = {}

    def read(key: str) -> Sample:
        rng = np.random.default_rng([seed, keys.index(key)])
        which = int(rng.integers(len(samples)))
        if which not in taken:
            taken[which] = material(samples[which])
        made = invent(taken[which], rng, recipe)
        tags = {**taken[which].tags, "made_of": taken[which].key}
        return Sample(key, made.image, made.labels, tags)

    text = f"{samples.fingerprint}:{recipe}:{seed}:{count}"
    return SampleSet(
        keys,
        read,
        name=f"artificial images of {samples.name}",
        split=samples.split,
        source=samples.source,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
    )


# --- what a network learns from, to make them look natural --------------------------------------


def on_drawn_background(sample: Sample, rng: np.random.Generator) -> np.ndarray:
    """A real image whose nuclei stay where they are, all else drawn from its background.

    Args:
        sample: The real image.
        rng: Decides.

    Returns:
        (H, W) of the image's dtype.

    Raises:
        ValueError: As `background` does.
    """
    return _drawn_around(sample.labels > 0, sample.image, background(sample), rng)


def _drawn_around(
    mask: np.ndarray, image: np.ndarray, ground: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    return np.where(mask, image, ground[rng.integers(len(ground), size=mask.shape)])


@dataclass(frozen=True)
class Pairs:
    """Tiles of real images, and the same tiles with the real nuclei set on artificial background.

    "Nuclei are cropped from natural image patches and placed at the very same position on a new
    image patch" (paper; supplementary figure 1): from the second a network learns to give back the
    first. Tiles are drawn so that there is a nucleus in each, and lie in one of eight orientations;
    one in two is bent. A tile's background is drawn from that of the whole image.

    Attributes:
        samples: Real images, scaled as the artificial ones are.
        size: Side of the square tiles in pixels; smaller images are padded by reflection.
        seed: What is drawn is a function of it and of the number of the draw.

    Raises:
        ValueError: When there is no image; and, when one without nuclei or without background is
            drawn, naming it.
    """

    samples: Sequence[Sample]
    size: int = 256
    seed: int = 0
    _grounds: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not len(self.samples):
            raise ValueError("Pairs needs one real image at least, and got none.")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The (image, draw) asked for: artificial and natural (size, size) float32 tiles."""
        which, draw = item
        sample = self.samples[which]
        if which not in self._grounds:
            self._grounds[which] = background(sample)
        rng = np.random.default_rng([self.seed, draw])
        natural, mask = self._tile(sample, rng)
        made = _drawn_around(mask, natural, self._grounds[which], rng)
        return made.astype(np.float32), natural

    def _tile(self, sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A tile of a real image with a nucleus in it, and where its nuclei are."""
        if not sample.count:
            raise ValueError(f"{sample.key}: no pair can be made of it, for it has no nucleus.")
        short = [(0, max(0, self.size - length)) for length in sample.labels.shape]
        image = np.pad(sample.image.astype(np.float32), short, mode="symmetric")
        mask = np.pad(sample.labels > 0, short, mode="symmetric")
        spots = np.argwhere(sample.labels == rng.integers(sample.count) + 1)
        starts = spots[rng.integers(len(spots))] - rng.integers(self.size, size=2)
        starts = np.clip(starts, 0, np.array(mask.shape) - self.size)
        window = tuple(slice(start, start + self.size) for start in starts)
        orientation = int(rng.integers(8))
        image, mask = dihedral(image[window], orientation), dihedral(mask[window], orientation)
        if rng.random() < 0.5:
            sides = (self.size, self.size)
            where = np.indices(sides) + _shifts(sides, self.size * TILE_BEND, rng)
            image = ndi.map_coordinates(image, where, order=1, mode="reflect")
            mask = ndi.map_coordinates(mask.astype(np.float32), where, order=1, mode="reflect")
        return np.ascontiguousarray(image), mask > 0.5


# --- what a cut-out lacks ------------------------------------------------------------------------


@dataclass(frozen=True)
class Rim:
    """How bright nuclei are on average, from inside to outside.

    Attributes:
        distance: (2 · reach,) pixels from the outline, negative inside.
        light: (2 · reach,) mean over nuclei: 0 is the background, 1 the innermost pixels.
        nuclei: How many were looked at.
    """

    distance: np.ndarray
    light: np.ndarray
    nuclei: int

    @property
    def width(self) -> float:
        """Pixels over which the light falls from 90 % to 10 %; NaN where it does not fall so far.

        Each end is where the mean profile first falls below the share, between two pixels by a
        straight line.
        """
        return self._falls_to(0.1) - self._falls_to(0.9)

    def _falls_to(self, share: float) -> float:
        below = np.flatnonzero(self.light < share)
        if not below.size or below[0] == 0:
            return math.nan
        pair = slice(below[0] - 1, below[0] + 1)
        return float(np.interp(-share, -self.light[pair], self.distance[pair]))


def rim(pairs: Sequence[tuple[np.ndarray, np.ndarray]], reach: int = 10) -> Rim:
    """The mean radial profile of nuclei, each of them counted once.

    A pixel's distance from a nucleus' outline is that to the nearest pixel on the other side, less
    ½. Pixels of other nuclei, and those that are nearer to one than `reach`, are left out, and so
    are nuclei of which then a distance has no pixel: small ones, and those in a crowd. The
    background of an image is the median of the pixels further than `reach` from all nuclei.

    Args:
        pairs: (H, W) intensities and (H, W) integer labels of each image.
        reach: How far inside and outside to look, in pixels.

    Raises:
        ValueError: When no nucleus can be looked at.
    """
    profiles = [one for image, labels in pairs for one in _profiles(image, labels, reach)]
    if not profiles:
        raise ValueError(
            f"no nucleus is more than {reach} pixels deep and stands {reach} pixels clear of "
            "others somewhere, above a background; give other images or a smaller reach."
        )
    distance = np.arange(-reach, reach) + 0.5
    return Rim(distance, np.mean(profiles, axis=0), len(profiles))


def _profiles(image: np.ndarray, labels: np.ndarray, reach: int) -> list[np.ndarray]:
    """(2 · reach,) light of each nucleus, from inside to outside."""
    ground = image[_away(labels > 0) > reach]
    if not ground.size:
        return []
    dark, found = np.median(ground), []
    for label, window in enumerate(ndi.find_objects(labels), start=1):
        if window is None:
            continue
        around = tuple(slice(max(0, s.start - reach - 1), s.stop + reach + 1) for s in window)
        near, own = labels[around], labels[around] == label
        steps = np.where(own, -np.ceil(_away(~own)), np.ceil(_away(own)) - 1)
        counts = (np.abs(steps + 0.5) < reach) & (_away((near > 0) & ~own) > reach)
        places = (steps[counts] + reach).astype(int)
        pixels = np.bincount(places, minlength=2 * reach)
        light = np.bincount(places, image[around][counts] - dark, minlength=2 * reach)
        if pixels.all() and light[0] > 0:
            found.append(light / pixels / (light[0] / pixels[0]))
    return found
