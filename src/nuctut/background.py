"""Where the background is when only some nuclei are outlined (Mercadier et al., section 2.2).

Of an image of which somebody outlined a few nuclei, a pixel outside of them may be background, or a
nucleus that nobody outlined. How much it counts as background is its weight, from 0 to 1: high near
the outlined nuclei, and lower where the colour alone speaks for it. What the paper leaves open are
arguments here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage as ndi
from scipy.cluster.vq import kmeans, vq
from skimage.color import rgb2hed
from skimage.morphology import isotropic_erosion
from skimage.util import img_as_float32

LABELLED = 255  # in a map of `taught`: a nucleus that somebody outlined
LEVELS = 254  # and what stands there for a weight of 1
CONVERGED = 1e-8  # change of the mean distance to the nearer centre; the stains lie from 0 to 1
FITTED = 2**17  # pixels that the centres are found on, at most twice as many


@dataclass(frozen=True)
class Clusters:
    """The two colours of an H&E image.

    Attributes:
        nuclei: (H, W) bool, the cluster with more hematoxylin, which is that of the nuclei.
        centres: (2, 2) float64, hematoxylin and eosin of the background (first row) and of the
            nuclei, in the units of `hematoxylin_eosin`.
    """

    nuclei: np.ndarray
    centres: np.ndarray

    @property
    def swapped(self) -> bool:
        """Whether the nuclei's cluster is the larger one, which the paper takes for background."""
        return 2 * np.count_nonzero(self.nuclei) > self.nuclei.size

    def surely_background(self, radius: float) -> np.ndarray:
        """(H, W) bool, the other cluster eroded by a disc: b ⊖ c of equation 4.

        Args:
            radius: Of the disc, in pixels; 0 leaves the cluster as it is. Beyond the image's edge
                nothing is known, and nothing is eroded from there.
        """
        background = ~self.nuclei
        return isotropic_erosion(background, radius) if radius > 0 else background


def hematoxylin_eosin(image: np.ndarray) -> np.ndarray:
    """The two stains of an H&E image by colour deconvolution (Ruifrok & Johnston 2001).

    Args:
        image: (H, W, 3), of an integer dtype over its whole range, or floats from 0 to 1.

    Returns:
        (H, W, 2) float32 hematoxylin and eosin, 0 or more, in the units of `skimage.color.rgb2hed`.

    Raises:
        ValueError: When the image is not coloured.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"colour deconvolution needs an image (H, W, 3), not {image.shape}.")
    return rgb2hed(img_as_float32(image))[..., :2]


def clusters(image: np.ndarray, key: str = "the image") -> Clusters:
    """The pixels of an image parted in two by their stains (k-means, k = 2).

    The paper takes the larger cluster for background. Where most of an image is nuclei, or the two
    clusters are tissue and glass, that is wrong: here background is what holds less hematoxylin,
    and `Clusters.swapped` tells where the two rules differ. The stains are taken as they are: made
    equally wide, eosin would part the pixels as often as hematoxylin.

    Args:
        image: See `hematoxylin_eosin`.
        key: Names the image in an error.

    Raises:
        ValueError: When the image is not coloured, or its pixels have one colour.
    """
    stains = hematoxylin_eosin(image)
    points = stains.reshape(-1, 2)
    dark = stains[..., 0] > stains[..., 0].mean()
    if not dark.any():
        raise ValueError(
            f"{key}: all pixels hold as much hematoxylin, so k-means finds one colour where there "
            "should be two; leave the image out, or do without the clusters."
        )
    # Neighbours are alike: of a large image a regular grid of pixels has the same two centres.
    step = max(1, math.isqrt(dark.size // FITTED))
    few, few_dark = stains[::step, ::step].reshape(-1, 2), dark[::step, ::step].ravel()
    if not few_dark.any() or few_dark.all():
        few, few_dark = points, dark.ravel()
    start = np.stack([few[~few_dark].mean(0), few[few_dark].mean(0)])
    centres, _ = kmeans(few.astype(np.float64), start.astype(np.float64), thresh=CONVERGED)
    centres = centres[np.argsort(centres[:, 0])]
    nearest, _ = vq(points, centres.astype(np.float32))
    return Clusters((nearest == 1).reshape(dark.shape), centres)


@dataclass(frozen=True)
class BackgroundModel:
    """How much each pixel counts as background (equations 2 to 4).

    None of the numbers is in the paper, but for λ = 0.5 in its figure 2.

    Attributes:
        alpha: α, up to which distance from an outlined nucleus the weight is 1, in pixels; infinity
            makes background of everything that nobody outlined.
        beta: β, how fast it falls beyond, per pixel.
        strength: λ, weight of what the colours call background; 0 does without them.
        radius: Of the disc that this is eroded by, in pixels.

    Raises:
        ValueError: Naming the number that is out of its range.
    """

    alpha: float = 5.0
    beta: float = 0.5
    strength: float = 0.5
    radius: float = 3.0

    def __post_init__(self) -> None:
        for name, most in (
            ("alpha", math.inf),
            ("beta", math.inf),
            ("strength", 1),
            ("radius", 99),
        ):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ValueError(f"{name} must lie from 0 to {most}, not {value}.")

    def weights(
        self, mask: np.ndarray, colours: Clusters | None = None, key: str = "the image"
    ) -> np.ndarray:
        """The weights of an image.

        The paper joins the two parts by ⊎ and does not say what that is. Here it is the larger of
        the two weights: so they stay from 0 to 1, as its equation 1 asks, and next to an outlined
        nucleus the weight is 1, whatever the colours say.

        Args:
            mask: (H, W) bool, the nuclei that somebody outlined.
            colours: Of the image; None, or a `strength` of 0, leaves the distance alone.
            key: Names the image in an error.

        Returns:
            (H, W) float32, m̂ of equation 4. Inside the outlined nuclei it means nothing.

        Raises:
            ValueError: When nobody outlined a nucleus, so that there is no distance.
        """
        weights = near(mask, self.alpha, self.beta, key)
        if colours is not None and self.strength > 0:
            background = colours.surely_background(self.radius)
            np.maximum(weights, np.float32(self.strength), out=weights, where=background)
        return weights


def near(mask: np.ndarray, alpha: float, beta: float, key: str = "the image") -> np.ndarray:
    """(H, W) float32 weights by the distance to the outlined nuclei (equations 2 and 3).

    Args:
        mask, key: Of `BackgroundModel.weights`.
        alpha, beta: Of `BackgroundModel`.

    Raises:
        ValueError: When nobody outlined a nucleus.
    """
    if not mask.any():
        raise ValueError(
            f"{key}: no nucleus is outlined, so nothing is near one; leave the image out."
        )
    if math.isinf(alpha):
        return np.ones(mask.shape, np.float32)
    distance = ndi.distance_transform_edt(~mask)
    return np.exp(-beta * np.maximum(distance - alpha, 0)).astype(np.float32)


def taught(mask: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Outlined nuclei and weights as one map of bytes, the classes of a training item.

    Args:
        mask: (H, W) bool, the nuclei that somebody outlined.
        weights: (H, W) float, from 0 to 1.

    Returns:
        (H, W) uint8: `LABELLED` in the outlined nuclei, elsewhere the weight in `LEVELS` steps.
    """
    levels = np.rint(LEVELS * weights).astype(np.uint8)
    levels[mask] = LABELLED
    return levels


# --- how wrong it is, where the truth is known ---------------------------------------------------


@dataclass(frozen=True)
class MaskErrors:
    """What the weights say of pixels of which the truth is known; all counts are in pixels.

    Attributes:
        outlined: Pixels of the outlined nuclei.
        nuclear: Pixels of all nuclei.
        called_background: Of these, those that the eroded cluster calls background.
        wrong: Sum of the weights on nuclei that nobody outlined.
        right: Sum of the weights on what is background.
    """

    outlined: int
    nuclear: int
    called_background: int
    wrong: float
    right: float

    def __add__(self, other: MaskErrors) -> MaskErrors:
        return MaskErrors(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    @property
    def share_called_background(self) -> float:
        """Share of the nuclear pixels that the colours call background."""
        return self.called_background / self.nuclear

    @property
    def wrong_to_outlined(self) -> float:
        """How much the nuclei that count as background weigh beside those that count as nuclei.

        A network whose loss weighs the outlined nuclei less than this learns to find no nucleus.
        """
        return self.wrong / self.outlined

    @property
    def wrong_share(self) -> float:
        """Share of the background's weight that lies on nuclei."""
        return self.wrong / (self.wrong + self.right)


def mask_errors(
    model: BackgroundModel, mask: np.ndarray, truth: np.ndarray, colours: Clusters | None = None
) -> MaskErrors:
    """How much of the weights of an image lies on nuclei.

    Args:
        model, mask, colours: As for `BackgroundModel.weights`.
        truth: (H, W) bool, all nuclei.
    """
    weights = model.weights(mask, colours)
    hidden = truth & ~mask
    called = 0
    if colours is not None:
        called = np.count_nonzero(colours.surely_background(model.radius) & truth)
    return MaskErrors(
        outlined=int(np.count_nonzero(mask)),
        nuclear=int(np.count_nonzero(truth)),
        called_background=int(called),
        wrong=float(weights[hidden].sum(dtype=np.float64)),
        right=float(weights[~truth & ~mask].sum(dtype=np.float64)),
    )


def pooled_errors(errors: Iterable[MaskErrors]) -> MaskErrors:
    """The counts of several images, added up."""
    return sum(errors, MaskErrors(0, 0, 0, 0.0, 0.0))
