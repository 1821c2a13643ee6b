"""What is refused of an image file, and in which words.

Headers are held against these limits before anything is decoded: what a file says of itself may
be damaged, or made to fill the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from rich.filesize import decimal

LARGEST = 2**28  # bytes of pixels that are decoded in one piece
LONGEST = 2**20  # pixels of a side

CUT_OFF = "is cut off: the file says that it holds more than it does; copy or export it again."


class Refused(ValueError):
    """A sentence on a file that does not name it, and needs no other around it."""


@contextmanager
def decoding() -> Iterator[None]:
    """Whatever a decoder raises, which is a great many things, as one sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, Refused) or getattr(error, "errno", None) is not None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise Refused(
            f"cannot be read ({reason}): the file is damaged or of a kind that is not known here; "
            "copy or export it again."
        ) from error


def check_shape(height: int, width: int) -> None:
    """Raise Refused for an image of no pixels, or of sides that no image has."""
    if not (1 <= height <= LONGEST and 1 <= width <= LONGEST):
        raise Refused(
            f"has {width} × {height} pixels; expected 1 to {LONGEST:,} a side: export it again."
        )


def check_channels(channels: int) -> None:
    """Raise Refused for what is neither grey nor RGB."""
    if channels not in (1, 3):
        raise Refused(
            f"has {channels} channels; expected grey or RGB: save the channel that shows nuclei."
        )


def check_piece(size: int, what: str) -> None:
    """Raise Refused for so many bytes that would be in memory at once."""
    if size > LARGEST:
        raise Refused(
            f"has to be decoded in one piece ({what}) of {decimal(size)}; expected at most "
            f"{decimal(LARGEST)}: save it as a TIFF file of tiles or strips."
        )


def check_finite(pixels: np.ndarray) -> None:
    """Raise Refused for NaN and infinite values."""
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise Refused("holds pixels that are NaN or infinite; expected numbers: replace them.")
