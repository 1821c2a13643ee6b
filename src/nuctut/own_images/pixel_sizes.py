"""How large a pixel is, from what image files say of it, which is often nothing or not true."""

from __future__ import annotations

import unicodedata
from contextlib import suppress
from xml.etree import ElementTree

import tifffile

Sides = tuple[float, float]  # height and width of a pixel in µm

# In the spelling of `_micrometres`: lower case, and without the s of a plural.
MICROMETRES = {
    **dict.fromkeys(("å", "angstrom", "ångström"), 1e-4),
    **dict.fromkeys(("nm", "nanometer"), 1e-3),
    **dict.fromkeys(("μm", "um", "micron", "micrometer"), 1.0),
    **dict.fromkeys(("mm", "millimeter"), 1e3),
    **dict.fromkeys(("cm", "centimeter"), 1e4),
    **dict.fromkeys(("m", "meter"), 1e6),
    **dict.fromkeys(("in", "inch", "inche", '"'), 25400.0),
}
UNIT_TAG = {2: 25400.0, 3: 1e4}  # µm, by the values of a TIFF file's ResolutionUnit
# Of a microscope's pixel, in µm. Software that knows nothing writes 72 or 96 dots per inch, or 1.
PLAUSIBLE = (0.02, 5.0)
SQUARE = 0.01  # by how much the sides of a pixel may differ


def of_tiff(file: tifffile.TiffFile, page: tifffile.TiffPage) -> Sides | None:
    """Sides of a page's pixels, which TIFF files tell in three ways; None when none is plausible.

    A file whose description cannot be understood may hold a good image: it is unknown as well.
    """
    for told in (_ome, _imagej, _resolution):
        with suppress(Exception):  # of whatever form, and whatever tifffile makes of it
            sides = told(file, page)
            if sides and all(PLAUSIBLE[0] <= side <= PLAUSIBLE[1] for side in sides):
                return sides
    return None


def is_square(sides: Sides) -> bool:
    """Whether both sides are the same, or nearly."""
    return abs(sides[0] / sides[1] - 1) <= SQUARE


def shown(sides: Sides) -> str:
    """Width and height, as a sentence can hold them."""
    return f"{sides[1]:.4g} × {sides[0]:.4g} µm"


def _ome(file: tifffile.TiffFile, page: tifffile.TiffPage) -> Sides | None:
    """From OME-XML: of the images that have the page's shape, or of all, if they agree."""
    if not file.is_ome:
        return None
    root = ElementTree.fromstring(file.ome_metadata)
    images = [e.attrib for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"]
    shape = str(page.imagelength), str(page.imagewidth)
    fitting = [one for one in images if (one.get("SizeY"), one.get("SizeX")) == shape] or images
    found = {tuple(_ome_side(one, axis) for axis in "YX") for one in fitting}
    return found.pop() if len(found) == 1 else None


def _ome_side(pixels: dict[str, str], axis: str) -> float:
    """In µm; 0 when it is not told, or in no unit of length."""
    length = float(pixels.get(f"PhysicalSize{axis}", 0))
    return length * _micrometres(pixels.get(f"PhysicalSize{axis}Unit", "µm"))


def _imagej(file: tifffile.TiffFile, page: tifffile.TiffPage) -> Sides | None:
    if not file.is_imagej:
        return None
    return _of_tags(page, _micrometres(str(file.imagej_metadata.get("unit", ""))))


def _resolution(file: tifffile.TiffFile, page: tifffile.TiffPage) -> Sides | None:
    return _of_tags(page, UNIT_TAG.get(int(page.tags["ResolutionUnit"].value), 0.0))


def _of_tags(page: tifffile.TiffPage, unit: float) -> Sides:
    """From a page's resolution in pixels per unit of so many µm."""
    (across, units_across), (down, units_down) = (
        page.tags[name].value for name in ("XResolution", "YResolution")
    )
    return unit * units_down / down, unit * units_across / across


def _micrometres(unit: str) -> float:
    """Of a unit of length, however it is spelled; 0 of any other."""
    unit = unit.replace("\\u00B5", "µ").replace("Âµ", "µ")  # ImageJ's, and UTF-8 taken for Latin-1
    unit = unicodedata.normalize("NFKC", unit).strip().casefold()  # µ has two codes
    return MICROMETRES.get(unit.replace("metre", "meter").removesuffix("s"), 0.0)
