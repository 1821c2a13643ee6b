"""What an image looks like, and how it is shown to a method that learned from others.

Nuclei are bright on a dark ground where they fluoresce, and dark on a bright ground where tissue is
stained. A method that knows the one kind alone is shown the other as what comes nearest to it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from skimage.color import rgb2hed

DARK, BRIGHT, COLOURED = "grey on a dark ground", "grey on a bright ground", "coloured"
COLOUR = 0.05  # see kind(), as the next is
FAINTEST = 0.005

Ground = Literal["dark", "bright", "both"]
Dye = Literal["haematoxylin", "inverted"]
AS_IT_IS = "as it is"


def kind(pixels: np.ndarray) -> str:
    """What an image looks like: `DARK`, `BRIGHT` or `COLOURED`.

    Coloured is one whose channels differ, in the mean over pixels, by more than a twentieth
    (`COLOUR`) of the range of its brightness; dark is a ground when the median brightness is nearer
    to the darkest pixels than to the brightest (`FAINTEST` of them left out at either end).

    Args:
        pixels: (H, W) or (H, W, 3), any real dtype.
    """
    pixels = pixels.astype(np.float64)
    grey = pixels if pixels.ndim == 2 else pixels.mean(-1)
    low, middle, high = np.quantile(grey, (FAINTEST, 0.5, 1 - FAINTEST))
    if pixels.ndim == 3 and np.ptp(pixels, axis=-1).mean() > COLOUR * (high - low):
        return COLOURED
    return DARK if middle - low <= high - middle else BRIGHT


def view(image: np.ndarray, knows: Ground, dye: Dye = "haematoxylin") -> str:
    """How an image is shown to a method: `AS_IT_IS`, "haematoxylin" or "inverted".

    A method that knows nuclei on both grounds, or on this one, sees the image as it is. One that
    knows bright nuclei alone sees a coloured image as its haematoxylin, and a grey one with its
    brightness inverted; one that knows dark nuclei alone sees bright ones inverted.

    Args:
        image: (H, W) or (H, W, 3), any real dtype.
        knows: The ground of the images that the method learned from.
        dye: "inverted" shows coloured images as their inverted brightness instead.
    """
    ground = "dark" if (looks := kind(image)) == DARK else "bright"
    if knows in (ground, "both"):
        return AS_IT_IS
    return dye if looks == COLOURED else "inverted"


def shown(image: np.ndarray, how: str) -> np.ndarray:
    """An image as `view` says.

    Args:
        image: (H, W) or (H, W, 3), any real dtype; for haematoxylin (H, W, 3).
        how: One of the answers of `view`.

    Returns:
        The image itself, or (H, W): its haematoxylin as uint16, by colour deconvolution (Ruifrok &
        Johnston 2001) and brightest where there is most of it; or its inverted brightness, in its
        own dtype.
    """
    if how == AS_IT_IS:
        return image
    if how == "haematoxylin":
        # what is not measured in 8 bits is brought to 0…1 first, as the unmixing wants it
        pixels = image if image.dtype == np.uint8 else image / max(float(image.max()), 1e-12)
        dye = rgb2hed(pixels)[..., 0].clip(0)
        return np.rint(dye * (65535 / max(float(dye.max()), 1e-12))).astype(np.uint16)
    grey = (image if image.ndim == 2 else image.mean(-1)).astype(np.float64)
    return (grey.max() + grey.min() - grey).astype(image.dtype)
