"""Images damaged at random: each is read, or refused in one sentence, with little memory and soon.

The work is done in a process of its own, whose memory is its own, and which a crash of a decoder
would end.
"""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from nuctut.own_images.images import opened

COUNT = 600
SECONDS = 60  # it takes five
MEGABYTES = 400  # more than before: LARGEST, and what is around it
HUGE = (0, 1, 2, 7, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


# --- images that are whole -----------------------------------------------------------------------


def tiff(pixels: np.ndarray, **how) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **({"photometric": "minisblack"} | how))
    return buffer.getvalue()


def picture(pixels: np.ndarray, kind: str, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()


def whole_images() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 4096, (40, 48)).astype(np.uint16)
    byte, rgb = (grey // 16).astype(np.uint8), rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)
    stack, real = np.stack([grey] * 3), grey.astype(np.float32)
    colours = rng.integers(0, 65536, (3, 256)).astype(np.uint16)
    planes = np.ascontiguousarray(np.moveaxis(rgb, -1, 0))
    ome = {"axes": "TYX", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3, "PhysicalSizeXUnit": "µm"}
    return {
        "raw": tiff(grey),
        "raw strips": tiff(grey, rowsperstrip=7),
        "strips": tiff(grey, rowsperstrip=7, compression="zlib", predictor=True),
        "tiles": tiff(byte, tile=(16, 16), compression="lzw"),
        "zstd": tiff(real, tile=(16, 32), compression="zstd"),
        "packbits": tiff(byte, rowsperstrip=9, compression="packbits"),
        "jpeg": tiff(rgb, tile=(16, 16), compression="jpeg", photometric="rgb"),
        "jpeg 2000": tiff(byte, tile=(48, 48), compression="jpeg2000"),
        "jpeg xl": tiff(grey, compression="jpegxl", compressionargs={"lossless": True}),
        "12 bits": tiff(grey, bitspersample=12, rowsperstrip=8),
        "one bit": tiff(grey > 2000),
        "real": tiff(real),
        "big-endian": tiff(stack, byteorder=">", metadata=None),
        "BigTIFF": tiff(stack, bigtiff=True, compression="zlib"),
        "OME": tiff(stack, ome=True, metadata=ome),
        "ImageJ": tiff(stack, imagej=True, metadata={"unit": "um"}, resolution=(3, 3)),
        "palette": tiff(byte, photometric="palette", colormap=colours),
        "white": tiff(byte, photometric="miniswhite", compression="zlib"),
        "planar": tiff(planes, photometric="rgb", planarconfig="separate", compression="zlib"),
        "pyramid": pyramid(grey),
        "one header": tiff(stack, imagej=True, truncate=True),
        "PNG": imagecodecs.png_encode(grey),
        "coloured PNG": imagecodecs.png_encode(rgb),
        "palette PNG": picture(byte, "PNG", "P"),
        "JPEG": picture(rgb, "JPEG"),
        "grey JPEG": picture(byte, "JPEG"),
        "BMP": picture(rgb, "BMP"),
        "palette BMP": picture(byte, "BMP", "P"),
    }


def pyramid(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(pixels[::4, ::4], subfiletype=1, photometric="minisblack")
        file.write(pixels, subifds=1, photometric="minisblack", compression="zlib")
        file.write(pixels[::2, ::2], subfiletype=1, photometric="minisblack")
    return buffer.getvalue()


# --- and damaged ---------------------------------------------------------------------------------


def bytes_flipped(content: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(0, len(content), rng.integers(1, 9)):
        content[place] = rng.integers(256)
    return content


def header_flipped(content: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(0, min(400, len(content)), rng.integers(1, 5)):
        content[place] = rng.choice([0, 1, 127, 255, rng.integers(256)])
    return content


def cut(content: bytearray, rng: np.random.Generator) -> bytearray:
    return content[: rng.integers(0, len(content))]


def blanked(content: bytearray, rng: np.random.Generator) -> bytearray:
    start, length = rng.integers(len(content)), rng.integers(1, 200)
    content[start : start + length] = bytes(min(length, len(content) - start))
    return content


def number_changed(content: bytearray, rng: np.random.Generator) -> bytearray:
    """One of the numbers of the header, or of any place, is now a huge one, or 0."""
    size = int(rng.choice([2, 4, 8]))
    start = 2 * int(rng.integers(0, max(1, min(500, len(content) - size) // 2)))
    value = int(rng.choice(np.array(HUGE, object))) % 2 ** (8 * size)
    content[start : start + size] = value.to_bytes(size, str(rng.choice(["little", "big"])))
    return content


def tag_changed(content: bytearray, rng: np.random.Generator) -> bytearray:
    """Kind, count or value of one of a TIFF's tags is another, such as a huge one."""
    if content[:2] not in (b"II", b"MM"):
        return number_changed(content, rng)
    order, big = "<" if content[:2] == b"II" else ">", content[2:4] in (b"+\0", b"\0+")
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), content, first)
    tag = first + (8 if big else 2) + int(rng.integers(count)) * (20 if big else 12)
    fields = ((2, "H"), (4, "Q"), (12, "Q")) if big else ((2, "H"), (4, "I"), (8, "I"))
    offset, kind = fields[rng.choice(3, p=[0.1, 0.2, 0.7])]
    largest = 2 ** (8 * struct.calcsize(kind))
    value = int(rng.choice([*HUGE, *rng.integers(0, 70_000, 9).tolist()]) % largest)
    struct.pack_into(order + kind, content, tag + offset, value)
    return content


DAMAGES: tuple[Callable, ...] = (bytes_flipped, header_flipped, cut, blanked)
DAMAGES += (number_changed, tag_changed, tag_changed)


# --- read ----------------------------------------------------------------------------------------


def read(path: Path, folder: Path) -> str:
    """What became of an image: read, refused, or something that may not be."""
    try:
        with opened(path) as image:
            for page in range(min(image.pages, 4)):
                image.shape(page)
                image.pixel_size(page)
                image.spool(page, folder)
    except (ValueError, OSError) as error:
        told = str(error)
        assert told and "\n" not in told, told
        return "refused"
    return "read"


def go_through(count: int, seed: int = 0) -> Counter[str]:
    """Counts of what became of so many damaged images, and of all that are whole."""
    whole, outcomes = whole_images(), Counter()
    with tempfile.TemporaryDirectory() as scratch:
        path, folder = Path(scratch, "image"), Path(scratch)
        for content in whole.values():
            path.write_bytes(content)
            outcomes[f"whole {read(path, folder)}"] += 1
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            name = list(whole)[number % len(whole)]
            damage = DAMAGES[rng.integers(len(DAMAGES))]
            path.write_bytes(damage(bytearray(whole[name]), rng))
            try:
                outcomes[read(path, folder)] += 1
            except Exception:
                outcomes[f"{name}, {damage.__name__}, {number}: {traceback.format_exc()}"] += 1
    return outcomes


def report(count: int, seed: int) -> None:
    """Prints a line of megabytes of memory, and a line of outcomes."""
    warnings.simplefilter("ignore")
    read_all = go_through(0)  # what libraries take for themselves
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = go_through(count, seed)
    assert all(outcomes[one] == read_all[one] for one in read_all)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    print(dict(outcomes))


def test_damaged_images_are_read_or_refused():
    how = {"capture_output": True, "text": True, "timeout": SECONDS}
    made = subprocess.run([sys.executable, __file__, str(COUNT), "0"], **how)
    assert made.returncode == 0, made.stderr
    megabytes, outcomes = made.stdout.splitlines()
    counts = Counter(eval(outcomes))
    assert set(counts) == {"whole read", "read", "refused"}, outcomes
    assert counts["whole read"] == len(whole_images())
    assert counts["read"] + counts["refused"] == COUNT
    assert min(counts["read"], counts["refused"]) > COUNT // 5
    assert int(megabytes) < MEGABYTES


if __name__ == "__main__":
    report(int(sys.argv[1]), int(sys.argv[2]))
