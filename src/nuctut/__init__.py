"""The shared ground of a book that rebuilds five papers on finding cell nuclei."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nuctut.experiments import Trained

__version__ = "0.1.0"


def load(name: str = "labels-for-free", device: str = "auto") -> Trained:
    """A network that comes with the book, to be called with an image: `load()(image)` → labels.

    Args:
        name: "labels-for-free" (grey images on a dark ground), "four-architectures" (any), or
            chapter and variant such as "02_four_architectures/u-net".
        device: "auto" (a GPU where there is one), "cpu" or "gpu".

    Returns:
        Called with a grey (H, W) or coloured (H, W, 3) image it gives (H, W) int32 labels; 0 is
        background. It knows nuclei of one size in pixels, see its card beside the weights.

    Raises:
        ValueError, FileNotFoundError: When there is no such network; the message names others.
    """
    from nuctut.experiments import named

    return named(name, device)
