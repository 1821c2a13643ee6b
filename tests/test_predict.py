"""Nuclei in images of one's own: the same whatever their size and kind, and nothing half done."""

from __future__ import annotations

import errno
import functools
import io
import os
import socket
import subprocess
import sys
from collections import namedtuple
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage as ndi
from skimage.io import imread
from skimage.measure import regionprops_table
from torch import Tensor, nn

from nuctut import cli, detection, experiments, fits, inference, targets
from nuctut.experiments import labels_for_free
from nuctut.files import locked, write_json
from nuctut.fits import Description
from nuctut.models.mask_rcnn import Detection
from nuctut.models.unet import ReducedUNet
from nuctut.own_images import bands, images, predict, spooled, tables
from nuctut.own_images.predict import Network, predict_files
from nuctut.postprocess import LabelRule, parted_by_lines, pieces_of_a_mask

CODE = "0123456789abcdef"
LEVELS = (100, 900, 500)  # grey values of background, nucleus and separation


class Bright(nn.Module):
    """What is brighter than the mean is nucleus; remembers what it was given."""

    stride = 16

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(tuple(image.shape[1:]))
        return 20 * self.gain * image.mean(1, keepdim=True)


class ByLevel(Bright):
    """Three classes, told by the grey values above in an image of 16 bits that is not stretched."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([-((image * 65535 - level) ** 2) * self.gain for level in LEVELS], 1)


@dataclass
class Made:
    """A network as `experiments.load` gives it, made by hand."""

    model: nn.Module = field(default_factory=Bright)
    rule: LabelRule | None = field(default_factory=pieces_of_a_mask)
    channels: int = 1
    scale: str = "linear"
    diameter: float | None = None
    variant: str = "made"

    channelled = experiments.Trained.channelled
    factor = experiments.Trained.factor

    @property
    def settings(self) -> Any:
        return SimpleNamespace(scale=self.scale, precision="fp32")

    def labels(self, image: np.ndarray) -> np.ndarray:
        normalise = partial(targets.standardise, scale=self.scale)
        return self.rule.labels(inference.predict(self.model, image, normalise=normalise))


def network(made: Made | None = None, data: str = "bbbc039") -> Network:
    about = {"name": data, "source": "simulated", "fingerprint": "ab", "images": 12}
    description = Description("labels_for_free", "made", 3, {}, False, about, CODE)
    return Network(made or Made(), description)


@pytest.fixture
def run(tmp_path):
    """Predicts into `out/`, and gives the report."""

    def call(*inputs: Path, made: Made | None = None, data: str = "bbbc039", **how):
        return predict_files(network(made, data), inputs, tmp_path / "out", progress=False, **how)

    return call


@pytest.fixture
def nuctut(monkeypatch, capsys, tmp_path):
    """Runs the command with a network made by hand; exit status, standard output and error."""
    monkeypatch.setattr(predict, "load", lambda name: network())
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        words = ["nuctut", "predict", "--run", "made", "-o", tmp_path / "out", *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        lines = [
            line.split("\r")[-1].strip() for line in told.err.replace("\x1b[A", "").split("\n")
        ]
        return ended.value.code, told.out, [line for line in lines if line and "it/s" not in line]

    return call


def nuclei(shape: tuple[int, int] = (90, 120), seed: int = 0) -> np.ndarray:
    """A mask of blobs, some of them at the border."""
    return ndi.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3) > 0.05


def grey(mask: np.ndarray, dark: float = 10, light: float = 200, dtype: str = "u1") -> np.ndarray:
    return np.where(mask, light, dark).astype(dtype)


def write(path: Path, pixels: np.ndarray, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(pixels))
        return path
    colours = pixels.shape[-1] in (3, 4)
    tifffile.imwrite(path, pixels, photometric="rgb" if colours else "minisblack", **how)
    return path


def labels_of(tmp_path: Path, name: str = "a") -> np.ndarray:
    return tifffile.imread(tmp_path / "out" / f"{name}_labels.tif")


def table_of(tmp_path: Path) -> pd.DataFrame:
    return pd.read_csv(tmp_path / "out" / "objects.csv")


def names(tmp_path: Path) -> set[str]:
    """What is in the folder of results, but for the lock."""
    return {path.name for path in (tmp_path / "out").iterdir()} - {".lock"}


# --- the same nuclei as on the whole -------------------------------------------------------------


def set_bands(monkeypatch, pixels: int) -> None:
    """Of so many pixels, where nothing else is asked for."""
    monkeypatch.setattr(predict, "bands", lambda shape, p=pixels: bands.bands(shape, p))


@pytest.fixture
def small_bands(monkeypatch):
    """Bands of 100 rows or so, in an image that has more than one tile."""
    set_bands(monkeypatch, 2**17)
    monkeypatch.setattr(predict, "labels_in_bands", partial(bands.labels_in_bands, pixels=2**17))


SHAPE = (1100, 1310)


def test_tiles_and_bands_leave_no_trace_in_lines(tmp_path, run, small_bands):
    rng = np.random.default_rng(0)
    classes = nuclei(SHAPE).astype(int)
    classes[(ndi.gaussian_filter(rng.normal(size=SHAPE), 1) > 0.45) & (classes > 0)] = 2
    image = np.array(LEVELS)[classes] + rng.integers(-50, 50, SHAPE)
    made = Made(ByLevel(), parted_by_lines(20), scale="range")
    expected = made.labels(image.astype(np.uint16))
    run(write(tmp_path / "a.tif", image.astype(np.uint16), tile=(256, 256)), made=made)
    assert expected.max() > 500
    np.testing.assert_array_equal(labels_of(tmp_path), expected)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_tiles_and_bands_leave_no_trace_in_a_mask(tmp_path, run, small_bands, scale):
    """A network whose probabilities depend on all there is around a pixel."""
    torch.manual_seed(1)
    unet = ReducedUNet(channels=(2, 2, 2, 2, 2), last_channels=2, classes=1).eval()
    image = np.random.default_rng(0).gamma(2, 100, SHAPE).astype(np.uint16)
    standardised = targets.standardise(image, scale)
    threshold = float(np.median(inference.predict(unet, image, normalise=lambda _: standardised)))
    made = Made(unet, pieces_of_a_mask(threshold, 7), scale=scale)
    expected = made.labels(image)
    run(write(tmp_path / "a.tif", image, rowsperstrip=17, compression="zlib"), made=made)
    assert expected.max() > 500
    np.testing.assert_array_equal(labels_of(tmp_path), expected)


def test_a_rescaled_image_gives_the_labels_of_the_rescaled_whole(tmp_path, run, small_bands):
    mask = nuclei((700, 900))
    image = grey(mask) + np.random.default_rng(0).integers(0, 9, mask.shape).astype(np.uint8)
    made = Made(rule=pieces_of_a_mask(0.5, 30))
    run(write(tmp_path / "a.tif", image), made=made, pixel_size=0.328)
    rows, columns = (spooled.resampling(n, n // 2) for n in image.shape)
    scaled = rows @ image.astype(np.float32)
    scaled = (columns @ scaled.T).T
    expected = made.labels(scaled).repeat(2, 0).repeat(2, 1)
    assert expected.max() > 100
    np.testing.assert_array_equal(labels_of(tmp_path), expected)


class Detector(nn.Module):
    """Finds what hangs together in a tile, and is the surer the larger it is."""

    def detect(self, images: list[Tensor], mask_threshold: float) -> list[list[Detection]]:
        labels, _ = ndi.label(images[0][0].numpy() > 0)
        spans = enumerate(ndi.find_objects(labels), start=1)
        masks = [(labels[span] == number, span) for number, span in spans]
        return [[Detection(m, y.start, x.start, 1 - 1 / (1 + m.sum())) for m, (y, x) in masks]]


class MadeDetector(Made):
    """A network that gives nuclei, as chapter 2 has one."""

    @property
    def settings(self) -> Any:
        return SimpleNamespace(threshold=0.95, min_area=25)

    def labels(self, image: np.ndarray) -> np.ndarray:
        how = {"min_score": self.settings.threshold, "min_area": self.settings.min_area}
        return detection.segment(self.model, image, **how)


@pytest.mark.parametrize("colours", [False, True])
def test_tiles_leave_no_trace_in_detections(tmp_path, run, small_bands, colours):
    rng = np.random.default_rng(0)
    image = (grey(nuclei(SHAPE)) + rng.integers(0, 9, SHAPE)).astype(np.uint8)
    coloured = (
        np.stack([image, image // 2, image // 3], -1) if colours else np.stack([image] * 3, -1)
    )
    made = MadeDetector(Detector(), None, channels=3)
    expected = made.labels(coloured)
    run(write(tmp_path / "a.tif", coloured if colours else image), made=made)
    assert expected.max() > 500
    np.testing.assert_array_equal(labels_of(tmp_path), expected)


# --- images of every kind ------------------------------------------------------------------------


KINDS = {
    "8 bits": (grey(nuclei()), ".tif"),
    "12 bits": (grey(nuclei(), 100, 3000, "u2"), ".tif"),
    "16 bits": (grey(nuclei(), 1000, 60000, "u2"), ".tif"),
    "float": (grey(nuclei(), 0.1, 0.7, "f4"), ".tif"),
    "negative": (grey(nuclei(), -5, 7, "i2"), ".tif"),
    "PNG": (grey(nuclei()), ".png"),
    "RGB": (np.stack([grey(nuclei(), 5, light) for light in (200, 90, 9)], -1), ".tif"),
    "RGBA": (np.stack([grey(nuclei(), 5, light) for light in (200, 90, 9, 5)], -1), ".tif"),
    "RGB of 16 bits": (np.stack([grey(nuclei(), 5, 9999, "u2")] * 3, -1), ".png"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind(tmp_path, run, kind, channels):
    pixels, suffix = KINDS[kind]
    made = Made(channels=channels)
    report = run(write(tmp_path / f"a{suffix}", pixels), made=made)
    expected, count = ndi.label(nuclei())
    assert (report.nuclei, report.failed, made.model.seen[0][0]) == (count, {}, channels)
    np.testing.assert_array_equal(labels_of(tmp_path), expected)
    values = pixels if pixels.ndim == 2 else pixels[..., :3].mean(-1)
    means = ndi.mean(values, expected, np.arange(1, count + 1))
    np.testing.assert_allclose(table_of(tmp_path).mean_intensity, means, rtol=1e-6)


def test_every_page_is_an_image(tmp_path, run):
    masks = [nuclei(seed=seed) for seed in range(3)]
    run(write(tmp_path / "a.tif", np.stack([grey(mask) for mask in masks])))
    expected = [ndi.label(mask) for mask in masks]
    np.testing.assert_array_equal(labels_of(tmp_path), [labels for labels, _ in expected])
    overlays = {f"a_page{number}_overlay.png" for number in range(3)}
    assert names(tmp_path) == {"a_labels.tif", "objects.csv"} | overlays
    table = table_of(tmp_path)
    assert table.groupby("page").size().tolist() == [count for _, count in expected]
    assert table.groupby("page").label.max().tolist() == [count for _, count in expected]


def test_pages_of_several_sizes_are_images_of_their_own(tmp_path, run):
    masks = [nuclei(), nuclei((50, 60), 1), nuclei((90, 120), 2)]
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for mask, side in zip(masks, (0.65, 0.66, 0.65), strict=True):
            metadata = ome(side)["metadata"] | {"PhysicalSizeXUnit": "micrometer"}
            metadata["PhysicalSizeYUnit"] = "micrometer"
            file.write(grey(mask), photometric="minisblack", metadata=metadata)
    report = run(path)
    assert not report.failed and report.done[0].left_out == 0 and not report.done[0].assumed
    with tifffile.TiffFile(tmp_path / "out" / "a_labels.tif") as file:
        found = [series.asarray() for series in file.series]
        assert file.ome_metadata.count('PhysicalSizeX="0.65"') == 2
    with images.opened(tmp_path / "out" / "a_labels.tif") as image:
        assert [image.pixel_size(page) for page in (0, 1)] == [(0.65, 0.65), (0.66, 0.66)]
    for mask, labels in zip(masks, found, strict=True):
        np.testing.assert_array_equal(labels, ndi.label(mask)[0])
    table = table_of(tmp_path)
    assert table.groupby("page").size().tolist() == [ndi.label(mask)[1] for mask in masks]
    per_pixel = (table.area_um2 / table.area).groupby(table.page).mean()
    np.testing.assert_allclose(per_pixel, [0.65**2, 0.66**2, 0.65**2])
    run(path, page=1, overwrite=True)
    np.testing.assert_array_equal(labels_of(tmp_path), ndi.label(masks[1])[0])


def test_one_page_of_several(tmp_path, run):
    masks = [nuclei(seed=seed) for seed in range(3)]
    path = write(tmp_path / "a.tif", np.stack([grey(mask) for mask in masks]))
    run(path, page=1)
    np.testing.assert_array_equal(labels_of(tmp_path), ndi.label(masks[1])[0])
    assert names(tmp_path) == {"a_labels.tif", "objects.csv", "a_page1_overlay.png"}
    assert set(table_of(tmp_path).page) == {1}
    report = run(write(tmp_path / "b.tif", grey(masks[0])), path, page=3, overwrite=True)
    assert [told.split(";")[0] for told in report.failed.values()] == [
        "there is no page 3: it has 1, counted from 0",
        "there is no page 3: it has 3, counted from 0",
    ]
    assert "a_labels.tif" in names(tmp_path)  # what fails leaves what was there


def test_a_network_of_the_range_of_integers_takes_no_others(tmp_path, run):
    report = run(write(tmp_path / "a.tif", KINDS["float"][0]), made=Made(scale="range"))
    assert "needs an integer image, not float32" in report.failed[str(tmp_path / "a.tif")]


def test_an_image_of_one_value_has_no_nuclei(tmp_path, run):
    report = run(write(tmp_path / "a.tif", np.full((40, 50), 7, np.uint8)))
    assert (report.nuclei, report.failed) == (0, {})
    assert not labels_of(tmp_path).any() and len(table_of(tmp_path)) == 0


# --- scale ---------------------------------------------------------------------------------------


def ome(width: float, height: float | None = None) -> dict[str, Any]:
    sides = {"PhysicalSizeX": width, "PhysicalSizeY": height or width}
    return {"ome": True, "metadata": {"axes": "YX"} | sides}


def imagej(size: float) -> dict[str, Any]:
    return {"imagej": True, "metadata": {"unit": "um"}, "resolution": (1 / size, 1 / size)}


GIVEN = {"given": ({}, 0.328), "ome": (ome(0.328), None), "imagej": (imagej(0.328), None)}


@pytest.mark.parametrize("source", GIVEN)
def test_twice_the_magnification_gives_the_same_nuclei(tmp_path, run, source):
    how, given = GIVEN[source]
    mask = nuclei()
    big = np.kron(grey(mask), np.ones((2, 2), np.uint8))
    made = Made()
    run(write(tmp_path / "a.tif", grey(mask)), write(tmp_path / "c.tif", big), made=made)
    assert made.model.seen[1] == (1, 192, 240)  # nothing says that it is another scale
    report = run(write(tmp_path / "b.tif", big, **how), made=made, pixel_size=given)
    assert made.model.seen[2] == made.model.seen[0] == (1, 96, 128)
    assert not report.done[0].assumed
    once, twice = labels_of(tmp_path), labels_of(tmp_path, "b")
    assert once.max() == twice.max() == 20
    # Interpolation moves some pixels on outlines.
    assert (once.repeat(2, 0).repeat(2, 1) != twice).mean() < 1e-3
    table = table_of(tmp_path)
    a, b = (table[table.image == f"{name}.tif"].reset_index() for name in "ab")
    np.testing.assert_allclose(b.centroid_x, 2 * a.centroid_x + 0.5, atol=0.5)
    np.testing.assert_allclose(b.area_um2, a.area * 0.656**2, rtol=0.1)
    assert a.area_um2.isna().all()


@pytest.mark.parametrize(
    ("how", "given", "data", "shape"),
    [
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None, "bbbc039", (1, 96, 128)),
        ({}, 0.65, "bbbc039", (1, 96, 128)),  # as good as 0.656
        ({}, 1.312, "bbbc039", (1, 192, 240)),
        ({}, 1.312, "dsb2018", (1, 96, 128)),  # of many scales
        (ome(1.312), 0.656, "bbbc039", (1, 96, 128)),  # what is given counts
        (ome(0.3, 0.4), 0.656, "bbbc039", (1, 96, 128)),
    ],
)
def test_what_is_rescaled(tmp_path, run, how, given, data, shape):
    made = Made()
    path = write(tmp_path / "a.tif", grey(nuclei()), **how)
    report = run(path, made=made, pixel_size=given, data=data)
    assert made.model.seen == [shape]
    assert report.done[0].assumed == (given is None)


def test_pixels_that_are_not_square_are_refused_only_where_something_is_rescaled(tmp_path, run):
    path = write(tmp_path / "a.tif", grey(nuclei()), **ome(0.3, 0.4))
    told = run(path).failed[str(path)]
    assert (
        "has pixels of 0.3 × 0.4 µm, but they should be square" in told and "--pixel-size" in told
    )
    report = run(path, data="dsb2018")  # of many scales
    assert not report.failed and report.done[0].oblong == (0.4, 0.3)
    table = table_of(tmp_path)
    np.testing.assert_allclose(table.area_um2, table.area * 0.12, rtol=1e-7)
    with images.opened(tmp_path / "out" / "a_labels.tif") as image:
        assert image.pixel_size(0) == (0.4, 0.3)
    lines = predict.summary(report)
    assert any("a.tif has pixels of 0.3 × 0.4 µm" in line for line in lines)
    report = run(path, overwrite=True, pixel_size=0.656)
    assert not report.failed and report.done[0].oblong is None
    near = write(tmp_path / "b.tif", grey(nuclei()), **ome(0.65, 0.66))  # as good as 0.656
    report = run(near)
    assert not report.failed and report.done[0].oblong == (0.66, 0.65)


def test_nuclei_that_get_lost_on_the_way_back_leave_no_gaps(tmp_path, run):
    """Of nuclei one pixel wide at twice the resolution, some fall between those of the image."""

    class Dots(Bright):
        def forward(self, image: Tensor) -> Tensor:
            chances = torch.full_like(image[:, :1], -9) * self.gain
            chances[..., ::3, ::3] = 9
            return chances

    run(write(tmp_path / "a.tif", grey(nuclei((60, 60)))), made=Made(Dots()), pixel_size=1.312)
    labels = labels_of(tmp_path)
    assert sorted(np.unique(labels)) == list(range(labels.max() + 1))
    assert 100 < labels.max() < 1600 and len(table_of(tmp_path)) == labels.max()


def test_a_network_that_knows_nuclei_of_one_size_sees_them_so(tmp_path, run):
    """Dots of one pixel's reach at half the scale: the labels come back on the image's own grid."""
    mask = np.kron(nuclei((60, 60)), np.ones((2, 2), bool))
    path, made = write(tmp_path / "a.tif", grey(mask)), Made(diameter=10.0)
    report = run(path, made=made, data="sbsst265", diameter=20)
    labels = tifffile.imread(tmp_path / "out" / "a_labels.tif")
    assert labels.shape == mask.shape and ((labels > 0) == mask).mean() > 0.99
    assert (
        predict.summary(report)[0]
        == "All images were rescaled, as their nuclei are 20 pixels wide."
    )
    report = run(path, made=made, data="sbsst265", overwrite=True)
    assert "knows nuclei 10 pixels wide" in predict.summary(report)[0]
    for wrong in (0, -3, 1.2, 81, np.nan, np.inf):  # an eighth and eight times are the ends
        with pytest.raises(ValueError, match="diameter must be that of nuclei in pixels"):
            run(path, made=made, diameter=wrong)
    with pytest.raises(ValueError, match="made did not learn from nuclei of one size"):
        run(path, diameter=20)
    with pytest.raises(ValueError, match="choose one by --run"):
        predict_files(None, [path], tmp_path / "out", diameter=20)


def test_a_pixel_size_that_must_be_a_mistake(tmp_path, run):
    path = write(tmp_path / "a.tif", grey(nuclei()))
    report = run(path, pixel_size=65.6)
    assert "100 times as large" in report.failed[str(path)]
    for size in (0, -1, float("nan"), float("inf"), 1e-30, 1e30):
        with pytest.raises(ValueError, match="pixel_size must be a length"):
            run(path, pixel_size=size)


# --- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [1, 2])
def test_the_label_file_is_one_that_every_program_reads(tmp_path, run, pages):
    stack = np.stack([grey(nuclei((300, 120), seed)) for seed in range(pages)])
    run(write(tmp_path / "a.tif", stack if pages > 1 else stack[0]), pixel_size=0.5)
    path = tmp_path / "out" / "a_labels.tif"
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == pages and not file.is_bigtiff
        for page in file.pages:
            assert not page.is_tiled and page.dtype == np.uint16 and page.compression == 8
        assert "µm" in file.ome_metadata
    for read in (tifffile.imread, imread):
        np.testing.assert_array_equal(read(path), labels_of(tmp_path))
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.array(image), labels_of(tmp_path).reshape(-1, 300, 120)[0])
        assert image.tag_v2[282] == pytest.approx(20000)  # pixels per centimetre
    with images.opened(path) as image:
        assert (image.pages, image.pixel_size(0)) == (pages, (0.5, 0.5))


def test_more_nuclei_than_16_bits_can_count(tmp_path, run):
    dots = np.zeros((520, 520), bool)
    dots[::2, ::2] = True
    report = run(write(tmp_path / "a.tif", grey(dots)))
    labels = labels_of(tmp_path)
    assert labels.dtype == np.uint32 and labels.max() == report.nuclei == 260**2
    with Image.open(tmp_path / "out" / "a_labels.tif") as image:
        np.testing.assert_array_equal(np.array(image), labels)


def test_the_table_is_what_the_labels_say(tmp_path, run, monkeypatch):
    set_bands(monkeypatch, 7 * 120)
    rng = np.random.default_rng(0)
    image = (grey(nuclei(), 1000, 9000, "u2") + rng.integers(0, 500, (90, 120))).astype(np.uint16)
    run(write(tmp_path / "a.tif", image), pixel_size=0.656)
    names = ("label", "area", "centroid", "bbox", "mean_intensity")
    expected = pd.DataFrame(regionprops_table(labels_of(tmp_path), image, properties=names))
    table = table_of(tmp_path)
    assert tuple(table) == predict.COLUMNS and set(table.image) == {"a.tif"}
    ours = ["label", "area", "centroid_y", "centroid_x", "top", "left", "bottom", "right"]
    np.testing.assert_allclose(table[[*ours, "mean_intensity"]], expected, rtol=1e-7)
    np.testing.assert_allclose(table.area_um2, expected.area * 0.656**2, rtol=1e-7)
    labels = labels_of(tmp_path)
    edge = set(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])) - {0}
    assert set(table.label[table.touches_border]) == edge and 0 < len(edge) < len(table)
    assert "true" in (tmp_path / "out" / "objects.csv").read_text()


def test_the_overlay_shows_outlines_on_the_image(tmp_path, run):
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    run(write(tmp_path / "a.tif", grey(mask, 100, 3000, "u2")))
    picture = imread(tmp_path / "out" / "a_overlay.png")
    edge = mask & ~ndi.binary_erosion(mask)
    assert picture.shape == (40, 60, 3)
    assert (picture[edge] == (230, 159, 0)).all()
    assert (picture[~mask] == 0).all() and (picture[mask & ~edge] == 255).all()


def test_the_same_image_gives_the_same_files(tmp_path):
    paths = [write(tmp_path / f"{name}.tif", np.stack([grey(nuclei())] * 2)) for name in "ab"]
    for out in ("first", "second"):
        predict_files(network(), paths, tmp_path / out, progress=False)
    first = sorted((tmp_path / "first").iterdir())
    assert len(first) == 8
    for path in first:
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
    texts = [
        tifffile.TiffFile(tmp_path / "first" / f"{name}_labels.tif").ome_metadata for name in "ab"
    ]
    assert len({text.partition("UUID=")[2][:50] for text in texts}) == 2  # each has its own


@pytest.mark.parametrize("channels", [1, 3])
def test_the_overlay_of_a_large_image_is_smaller(tmp_path, run, monkeypatch, channels):
    monkeypatch.setattr(predict, "SIDE", 50)
    set_bands(monkeypatch, 7 * 140)
    mask = np.zeros((101, 140), bool)
    mask[31:61, 30:90] = True  # a third of 10…20 and of 10…30
    image = grey(mask)
    run(write(tmp_path / "a.tif", np.stack([image] * 3, -1) if channels == 3 else image))
    picture = imread(tmp_path / "out" / "a_overlay.png")
    assert picture.shape == (34, 47, 3)
    coloured = (picture == (230, 159, 0)).all(-1)
    rows, columns = np.nonzero(coloured)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 20, 10, 29)
    assert not coloured[12:19, 12:28].any() and (picture[12:19, 12:28] == 255).all()
    assert (picture[:10] == 0).all() and (picture[22:] == 0).all()


# --- what is wrong with one stops no other -------------------------------------------------------


def test_bad_files_among_good_ones(tmp_path, nuctut):
    folder = tmp_path / "in"
    good = grey(nuclei())
    for name in ("a", "z"):
        write(folder / f"{name}.tif", good)
    broken = good.astype(np.float32)
    broken[3, 4] = np.nan
    write(folder / "nan.tif", broken)
    cut = write(folder / "cut.tif", good)
    cut.write_bytes(cut.read_bytes()[:-5000])
    write(folder / "five.tif", np.zeros((9, 9, 5), np.uint8), planarconfig="contig")
    (folder / "text.png").write_text("no image")
    (folder / "notes.txt").write_text("no image, and nobody says that it is one")
    empty = tmp_path / "empty"
    empty.mkdir()
    status, out, err = nuctut(folder, folder / "notes.txt", empty, tmp_path / "*.tif", "gone.tif")
    assert status == 1
    assert "2 images" in out and "8 failed: " in out
    reasons = {
        folder / "cut.tif": "is cut off",
        folder / "five.tif": "has 5 channels; expected grey or RGB",
        folder / "nan.tif": "holds pixels that are NaN or infinite",
        folder / "text.png": "is no image",
        folder / "notes.txt": "is no image",
        empty: "holds no images; expected files that end in .tif",
        tmp_path / "*.tif": "there is no such file or folder",
        "gone.tif": "there is no such file or folder",
    }
    assert len(err) == len(reasons)
    for (path, reason), line in zip(reasons.items(), err, strict=True):
        assert line.startswith(f"{path}: {reason}") and line.endswith(".")
    made = {f"{name}_{what}" for name in "az" for what in ("labels.tif", "overlay.png")}
    assert names(tmp_path) == made | {"objects.csv"}
    assert set(table_of(tmp_path).image) == {"a.tif", "z.tif"}


def test_good_files_end_with_status_0(tmp_path, nuctut):
    write(tmp_path / "in" / "a.tif", grey(nuclei()))
    write(tmp_path / "in" / "b.png", grey(nuclei()))
    status, out, err = nuctut(f"{tmp_path}/in/*")
    count = 2 * ndi.label(nuclei())[1]
    assert (status, err) == (0, [])
    assert "Network: made, seed 3 (labels_for_free), learned from 12 simulated images" in out
    assert "pixel size of 2 images: the scale that the network learned, 0.656 µm" in out
    assert f"2 images, {count} nuclei: {tmp_path / 'out' / 'objects.csv'}\n" in out
    options = ["--overwrite", "--pixel-size", 0.6, "--page", 0]
    status, out, _ = nuctut(tmp_path / "in" / "a.tif", *options)
    assert status == 0 and "assumed" not in out and "1 image, " in out


def test_what_is_there_is_not_done_again_unless_asked_for(tmp_path, nuctut):
    a, b = (write(tmp_path / f"{name}.tif", grey(nuclei())) for name in "ab")
    assert nuctut(a)[0] == 0
    before = (tmp_path / "out" / "a_labels.tif").stat().st_mtime_ns
    status, _, err = nuctut(a, b)
    target = tmp_path / "out" / "a_labels.tif"
    assert status == 1
    assert err == [f"{a}: {target} exists: choose another folder, or --overwrite."]
    assert target.stat().st_mtime_ns == before and "b_labels.tif" in names(tmp_path)

    write(a, grey(nuclei(seed=5)))
    assert nuctut(a, "--overwrite")[0] == 0
    np.testing.assert_array_equal(labels_of(tmp_path), ndi.label(nuclei(seed=5))[0])
    table = table_of(tmp_path)
    counts = {"a.tif": ndi.label(nuclei(seed=5))[1], "b.tif": ndi.label(nuclei())[1]}
    assert table.groupby("image").size().to_dict() == counts


def test_overwriting_leaves_no_overlays_of_pages_that_are_gone(tmp_path, run):
    stack = np.stack([grey(nuclei())] * 2)
    run(write(tmp_path / "a.tif", stack), write(tmp_path / "a_page9.tif", stack[0]))
    run(write(tmp_path / "a.tif", stack[0]), overwrite=True)
    made = {f"a{page}_{what}" for page in ("", "_page9") for what in ("labels.tif", "overlay.png")}
    assert names(tmp_path) == made | {"objects.csv"}


def test_files_of_one_name(tmp_path, run):
    first, second = (write(tmp_path / folder / "a.tif", grey(nuclei())) for folder in "xy")
    third = write(tmp_path / "x" / "a.png", grey(nuclei()))
    report = run(first, tmp_path / "x", second, third, tmp_path / "x" / ".." / "x" / "a.tif")
    assert [one.path for one in report.done] == [first]
    assert set(report.failed) == {str(second), str(third)}
    assert all(f"those of {first}: " in told for told in report.failed.values())
    notes = tmp_path / "x" / "b.txt"
    notes.write_text("no image")
    report = run(notes, write(tmp_path / "b.tif", grey(nuclei())))
    assert list(report.failed) == [str(notes)] and len(report.done) == 1


def test_results_in_the_folder_of_the_images_are_no_images(tmp_path):
    folder = tmp_path / "in"
    write(folder / "a.tif", grey(nuclei()))
    write(folder / "._b.tif", grey(nuclei()))  # such as some systems leave
    predict_files(network(), [folder], folder, progress=False)
    report = predict_files(network(), [folder], folder, progress=False, overwrite=True)
    assert [one.path for one in report.done] == [folder / "a.tif"] and not report.failed


def test_out_must_be_a_folder_of_ones_own(tmp_path, run):
    path = write(tmp_path / "a.tif", grey(nuclei()))
    with pytest.raises(ValueError, match=r"a\.tif cannot be a folder of results"):
        predict_files(network(), [path], path, progress=False)
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(ValueError, match="by another process"):
        run(path)
    (tmp_path / "out" / "objects.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match=r"objects\.csv is no table of predicted objects"):
        run(path)
    with pytest.raises(ValueError, match="page must be 0"):
        run(path, page=-1)


# --- without a network asked for -----------------------------------------------------------------


def coloured(mask: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None], np.uint8([120, 60, 160]), np.uint8([230, 190, 220]))


LOOKS = {
    "grey on a dark ground": lambda mask: grey(mask & (np.arange(120) > 60)),
    "grey on a bright ground": lambda mask: grey(mask & (np.arange(120) > 60), 220, 40),
    "coloured": coloured,
}


@pytest.mark.parametrize("kind", LOOKS)
@pytest.mark.parametrize("thrice", [False, True])
def test_the_kind_of_an_image_is_told_from_its_pixels(tmp_path, kind, thrice):
    image = LOOKS[kind](nuclei())
    if thrice and image.ndim == 2:
        image = np.repeat(image[..., None], 3, -1)  # grey for all that
    with images.opened(write(tmp_path / "a.tif", image)) as opened:
        assert predict.kind_of(opened.spool(0, tmp_path)) == kind


def test_colour_is_told_whatever_the_range_of_the_numbers(tmp_path):
    faint = coloured(nuclei()).astype(np.float32) / 1e5
    with images.opened(write(tmp_path / "a.tif", faint)) as opened:
        assert predict.kind_of(opened.spool(0, tmp_path)) == "coloured"


def test_an_image_without_contrast_has_a_kind(tmp_path):
    with images.opened(write(tmp_path / "a.tif", np.full((9, 9), 7, np.uint8))) as opened:
        assert predict.kind_of(opened.spool(0, tmp_path)) == "grey on a dark ground"


def test_each_image_gets_the_network_of_its_kind(tmp_path, monkeypatch):
    made = {kind: network(Made(), "bbbc039" if "dark" in kind else "dsb2018") for kind in LOOKS}
    monkeypatch.setattr(predict, "suited", made.get)
    paths = [
        write(tmp_path / f"{index}.tif", draw(nuclei()))
        for index, draw in enumerate(LOOKS.values())
    ]
    report = predict_files(None, paths, tmp_path / "out", progress=False)
    assert [one.why for one in report.done] == list(LOOKS)
    assert [one.network for one in report.done] == list(made.values())
    assert [one.assumed for one in report.done] == [True, False, False]
    lines = predict.summary(report)
    assert lines[0].startswith("1 image, grey on a dark ground: by made, seed 3")
    assert lines[2].startswith("1 image, coloured: by made")
    assert any("pixel size of 1 image:" in line for line in lines)


def test_the_scale_is_that_of_the_chosen_network(tmp_path, monkeypatch):
    made = Made()
    monkeypatch.setattr(predict, "suited", lambda kind: network(made))
    path = write(tmp_path / "a.tif", LOOKS["grey on a dark ground"](nuclei()), **ome(1.312))
    assert not predict_files(None, [path], tmp_path / "out", progress=False).failed
    assert made.model.seen == [(1, 192, 240)]


def test_where_no_network_comes_with_the_book_the_image_fails_by_name(tmp_path, monkeypatch):
    for marker in ("pyproject.toml", "_config.yml"):
        (tmp_path / marker).touch()
    monkeypatch.chdir(tmp_path)
    predict.suited.cache_clear()
    path = write(tmp_path / "a.tif", grey(nuclei()))
    told = predict_files(None, [path], tmp_path / "out", progress=False).failed[str(path)]
    assert told.startswith("No network dl-ground-truth of 01_labels_for_free comes with the book")


def test_a_fit_is_found_by_the_beginning_of_its_name(tmp_path, run, monkeypatch):
    monkeypatch.setenv("NUCTUT_RUNS", str(tmp_path / "runs"))
    folder = tmp_path / "runs" / "01_labels_for_free" / "dl-ground-truth--s3--0123456789abcdef"
    settings = labels_for_free.Settings(
        **{"data": "real", "images": None, "crop": None, "scale": "log", "gain": 0.0},
        **{"channels": (2,) * 5, "last_channels": 2, "dropout": (0.0,) * 4, "normalise": True},
        **{"cross_entropy": 0.0, "min_area": 0, "epochs": 1, "updates": None, "batch_size": 1},
        **{"learning_rate": 1e-3, "schedule": "constant", "l2": 0.0, "precision": "fp32"},
        patience=None,
    )
    about = {"name": "bbbc039", "source": "real", "fingerprint": "ab", "images": 100}
    with pytest.raises(ValueError, match="names none of what is below"):
        predict.load("dl")
    folder.mkdir(parents=True)
    name = ("labels_for_free", "dl-ground-truth")
    write_json(folder / "network.json", Description(*name, 3, asdict(settings), False, about, CODE))
    with pytest.raises(ValueError, match="is not finished"):
        predict.load("dl")
    unet = ReducedUNet(channels=(2,) * 5, last_channels=2, dropout=(0,) * 4, normalise=True)
    fits.save_weights(unet, folder / fits.WEIGHTS)
    (folder / "history.csv").write_text("step,train_loss,val_loss,learning_rate,seconds\n")
    counts = dict.fromkeys(("updates", "images_seen", "seconds", "weights", "peak_memory_gb"), 0)
    words = dict.fromkeys(("device", "precision", "started", "ended", "git_commit"), "some")
    sums = {"code": CODE, "weights_sha256": fits.checksum(folder / fits.WEIGHTS)}
    write_json(folder / "done.json", fits.Summary(**counts, **words, **sums))
    loaded = predict.load("01_labels_for_free/dl-ground", device="cpu")
    assert str(loaded) == (
        "dl-ground-truth, seed 3 (labels_for_free), learned from 100 real images of bbbc039, "
        "0.656 µm per pixel"
    )
    image = np.random.default_rng(0).integers(0, 4096, (70, 90), dtype=np.uint16)
    path = write(tmp_path / "a.tif", image)
    report = predict_files(loaded, [path], tmp_path / "out", progress=False)
    assert not report.failed
    np.testing.assert_array_equal(labels_of(tmp_path), loaded.trained.labels(image))


# --- names ---------------------------------------------------------------------------------------


def test_whatever_one_file_raises_is_its_own(tmp_path, run, monkeypatch):
    real = images.opened

    def opened(path: Path):
        if path.stem in faults:
            raise faults[path.stem]
        return real(path)

    faults = {
        "b": AttributeError("no\nsuch"),
        "c": KeyError("x"),
        "d": RecursionError(),
        "e": EOFError(),
    }
    monkeypatch.setattr(images, "opened", opened)
    paths = [write(tmp_path / f"{name}.tif", grey(nuclei())) for name in "abcdef"]
    report = run(*paths)
    assert [one.path.stem for one in report.done] == ["a", "f"]
    told = dict(zip("bcde", report.failed.values(), strict=True))
    assert told["b"] == "failed in a way that nobody expected (AttributeError: no)."
    assert all("\n" not in text and text.endswith(".") for text in told.values())


def test_an_acquisition_that_was_stopped_stops_nothing(tmp_path, run):
    stack = np.stack([grey(nuclei(seed=seed)) for seed in range(2)])
    path = write(tmp_path / "a.tif", stack, ome=True, metadata={"axes": "TYX"})
    path.write_bytes(path.read_bytes().replace(b'SizeT="2"', b'SizeT="5"'))
    report = run(path, write(tmp_path / "b.tif", stack[0]))
    assert not report.failed and len(report.done) == 2
    np.testing.assert_array_equal(
        labels_of(tmp_path), [ndi.label(nuclei(seed=s))[0] for s in (0, 1)]
    )


def test_a_page_and_an_image_of_its_name_do_not_overwrite_each_other(tmp_path, run):
    stack = np.stack([grey(nuclei(seed=seed)) for seed in range(2)])
    first, second = (tmp_path / f"x{rest}.tif" for rest in ("", "_page0"))
    write(first, stack), write(second, stack[1])
    overlay = tmp_path / "out" / "x_page0_overlay.png"
    for one, other in ((first, second), (second, first)):
        report = run(one, other, overwrite=True)
        assert [done.path for done in report.done] == [one]
        told = report.failed[str(other)]
        assert f"x_page0_overlay.png would take the place of that of {one.stem}: predict" in told
        before = overlay.read_bytes()
        report = run(other)  # and in a later call
        assert list(report.failed) == [str(other)] and overlay.read_bytes() == before
        (tmp_path / "out" / f"{one.stem}_labels.tif").unlink()
    report = run(second, write(tmp_path / "x.tif", stack[0]), overwrite=True)  # of one page
    assert len(report.done) == 2
    for path in (first, second):  # and again, in any order
        assert not run(path, overwrite=True).failed


def test_what_is_neither_a_file_nor_a_folder_is_refused(tmp_path, run, monkeypatch):
    good = write(tmp_path / "in" / "a.tif", grey(nuclei()))
    pipe, loop, broken = (tmp_path / "in" / f"{name}.tif" for name in ("pipe", "loop", "broken"))
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    broken.symlink_to(tmp_path / "gone")
    long = str(tmp_path / ("x" * 300 + ".tif"))
    monkeypatch.chdir(tmp_path)  # whose name may be too long for a socket's
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket.tif")
        given = ["", pipe, loop, broken, long, "socket.tif", "/dev/null", "a\0b", good]
        report = run(*given)
    assert [one.path for one in report.done] == [good]
    told = {str(name): text for name, text in report.failed.items()}
    assert list(told) == [*map(str, given[:-1])]
    assert told[""].startswith("is no name")
    assert "symbolic links" in told[str(loop)] and "too long" in told[long]
    assert told[str(broken)] == "there is no such file or folder."
    for name in (str(pipe), "socket.tif", "/dev/null"):
        assert told[name] == "is neither a file nor a folder; give an image."
    report = run(tmp_path / "in", overwrite=True)  # a folder with all of that in it
    assert [one.path for one in report.done] == [good] and not report.failed


def test_a_folder_that_may_not_be_read_stops_nothing(tmp_path, run, monkeypatch):
    good = write(tmp_path / "in" / "a.tif", grey(nuclei()))
    closed, real = tmp_path / "closed", Path.iterdir
    closed.mkdir()

    def iterdir(folder: Path):
        if folder == closed:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    report = run(closed, good)
    assert report.failed == {str(closed): "Permission denied."} and len(report.done) == 1


def test_a_name_that_is_too_long_with_what_is_added_to_it(tmp_path, run):
    good = write(tmp_path / "a.tif", grey(nuclei()))
    made = Made()
    labels, pages = tmp_path / ("y" * 250 + ".tif"), tmp_path / ("z" * 242 + ".tif")
    write(labels, grey(nuclei())), write(pages, np.stack([grey(nuclei())] * 2))
    report = run(labels, pages, good, made=made)
    assert [one.path for one in report.done] == [good] and len(made.model.seen) == 1
    assert set(report.failed.values()) == {"File name too long."}


ODD = ["+1", "=1+1", "-a", "@sum", "'quoted", "''", 'a"b', "a,b", " a", "a\nb", "a\rb", "a\tb"]
ODD += ["a\\b", "\\xe9", "caf\udce9", "α→é", "a\u2028b", "[a]", "*"]


def test_odd_names_are_no_formulas_and_are_read_back(tmp_path, run):
    paths = [write(tmp_path / "in" / f"{name}.tif", grey(nuclei())) for name in ODD]
    for _ in range(2):
        report = run(tmp_path / "in", overwrite=True)
        assert not report.failed
    cells = table_of(tmp_path).image
    assert {tables.name_of(cell) for cell in cells} == {path.name for path in paths}
    assert not any(cell.startswith(tuple("=+-@\t\r")) for cell in cells)
    assert cells.value_counts().nunique() == 1  # the second time replaced the first
    for name in ODD:
        assert tables.name_of(tables.cell_of(name)) == name


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1))
def test_every_name_is_read_back(name):
    assert tables.name_of(tables.cell_of(name)) == name


@pytest.mark.parametrize("content", ["x,y\n1,2\n", "mine", "image,page\n", "\xff", "{header}a,1\n"])
def test_a_file_that_is_no_table_of_ours_is_left_alone(tmp_path, run, content):
    table = tmp_path / "out" / "objects.csv"
    table.parent.mkdir()
    text = content.replace("{header}", tables.HEADER).encode("latin-1")
    table.write_bytes(text)
    with pytest.raises(ValueError, match=r"objects\.csv is no table of predicted objects"):
        run(write(tmp_path / "a.tif", grey(nuclei())))
    assert table.read_bytes() == text
    table.unlink()
    os.mkfifo(table)
    with pytest.raises(ValueError, match=r"objects\.csv is no table of predicted objects"):
        run(tmp_path / "a.tif")


def test_no_character_is_too_much_for_a_terminal(tmp_path, nuctut, monkeypatch):
    paths = [write(tmp_path / f"{name}.tif", grey(nuclei())) for name in ("a→b", "caf\udce9")]
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    status, _, _ = nuctut(*paths, tmp_path / "gone→\udce9.tif", "-o", tmp_path / "out→")
    terminal.flush()
    told = terminal.buffer.getvalue().decode("cp1252")
    assert status == 1 and "2 images" in told and r"out\u2192" in told
    sys.stderr.flush()
    assert rb"gone\u2192\udce9.tif" in sys.stderr.buffer.getvalue()


# --- no space, and being killed ------------------------------------------------------------------


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


PLACES = {
    "scratch": (spooled.DiskArray, "__setitem__"),
    "labels": (tifffile.TiffWriter, "write"),
    "overlay": (Path, "write_bytes"),
    "table": (pd.DataFrame, "to_csv"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_disk_that_is_full_for_one_image(tmp_path, run, place, monkeypatch):
    paths = [write(tmp_path / f"{name}.tif", grey(nuclei())) for name in "abc"]
    run(paths[0])
    owner, method = PLACES[place]
    real, calls = getattr(owner, method), []

    def once(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return full() if len(calls) == 1 else real(*arguments, **options)

    monkeypatch.setattr(owner, method, once)
    report = run(*paths[1:])
    assert "no space is left where" in report.failed[str(paths[1])]
    assert [one.path for one in report.done] == paths[2:]
    made = {f"{name}_{what}" for name in "ac" for what in ("labels.tif", "overlay.png")}
    assert names(tmp_path) == made | {"objects.csv"}
    assert set(table_of(tmp_path).image) == {"a.tif", "c.tif"}


def test_rows_are_added_whole_or_not_at_all(tmp_path, run, monkeypatch):
    """A disk that takes a part of the rows, and then no more."""
    a, b = (write(tmp_path / f"{name}.tif", grey(nuclei())) for name in "ab")
    run(a)
    table = tmp_path / "out" / "objects.csv"
    before, real = table.read_bytes(), pd.DataFrame.to_csv

    def partly(objects: pd.DataFrame, **how: Any) -> None:
        with table.open("a") as file:
            file.write(real(objects, **how)[:100])
        full()

    monkeypatch.setattr(pd.DataFrame, "to_csv", partly)
    assert list(run(b).failed) == [str(b)]
    assert table.read_bytes() == before


def test_a_disk_that_is_too_small_is_seen_at_once(tmp_path, run, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(predict.shutil, "disk_usage", lambda _: usage(10**6, 9 * 10**5, 10**5))
    path = write(tmp_path / "a.tif", grey(nuclei()))
    made = Made()
    told = run(path, made=made).failed[str(path)]
    assert "needs up to 183.6 kB" in told and "100.0 kB are free" in told
    assert not made.model.seen and names(tmp_path) == set()


def test_a_killed_process_leaves_nothing_that_counts(tmp_path, run):
    a, b = (write(tmp_path / f"{name}.tif", grey(nuclei())) for name in "ab")
    run(a)
    out, table = tmp_path / "out", tmp_path / "out" / "objects.csv"
    good = table.read_text()
    # Killed while it worked on b, just before its label file got its name; then while writing rows.
    (out / ".predicting-abc").mkdir()
    (out / ".predicting-abc" / "classes").write_bytes(b"0")
    (out / ".objects.csv.1234").write_text("half of")
    (out / "b_overlay.png").write_bytes(b"0")
    rows = good.partition("\n")[2].replace("a.tif", "b.tif")
    for torn in (rows, rows[:-9], rows + "c.t", rows + 'c.tif,0,1,"', ""):
        table.write_text(good + torn)
        report = run(a)
        assert list(report.failed) == [str(a)]
        assert table.read_text() == good
        assert names(tmp_path) == {"a_labels.tif", "a_overlay.png", "b_overlay.png", "objects.csv"}
    table.write_text(good + rows)
    run(b)
    assert table.read_text() == good + rows
    table.write_text(good[:20])  # killed at the very first row
    (out / "a_labels.tif").unlink()
    run(a)
    assert table.read_text() == good


def test_an_interrupt_leaves_nothing_half_done(tmp_path, run):
    class Interrupted(Bright):
        def forward(self, image: Tensor) -> Tensor:
            raise KeyboardInterrupt

    a, b = (write(tmp_path / f"{name}.tif", grey(nuclei())) for name in "ab")
    run(a)
    before = names(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(b, made=Made(Interrupted()))
    assert names(tmp_path) == before


PHASES = {
    "rows": (pd.DataFrame, "to_csv"),
    "labels": (tifffile.TiffWriter, "write"),
    "places": (Path, "replace"),
}


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("phase", PHASES)
def test_an_interrupt_at_any_time_leaves_what_is_done(tmp_path, run, phase, call, monkeypatch):
    a, b, c = (write(tmp_path / f"{name}.tif", grey(nuclei())) for name in "abc")
    run(a)
    before, table = names(tmp_path), (tmp_path / "out" / "objects.csv").read_bytes()
    owner, method = PHASES[phase]
    real, calls, told = getattr(owner, method), [], []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(owner, method, interrupted)
        run(b, c, tell=told.append)
    at = c if call == 2 and phase != "places" else b
    done = 1 if at == c else 0
    assert told == [f"Stopped at {at}. What is done stays: {done} image{'' if done else 's'}."]
    if at == b:
        assert names(tmp_path) == before
        assert (tmp_path / "out" / "objects.csv").read_bytes() == table
    else:
        assert names(tmp_path) == before | {"b_labels.tif", "b_overlay.png"}
        assert set(table_of(tmp_path).image) == {"a.tif", "b.tif"}
    report = run(b, c)
    assert len(report.done) == 2 - done and set(table_of(tmp_path).image) == {
        "a.tif",
        "b.tif",
        "c.tif",
    }


# --- large images --------------------------------------------------------------------------------


PEAK = """
import sys
sys.path.insert(0, {tests!r})
from functools import partial
from nuctut import machine
from nuctut.own_images import bands, predict
from test_predict import network
predict.bands = lambda shape, pixels=2**20: bands.bands(shape, pixels)
predict.labels_in_bands = partial(bands.labels_in_bands, pixels=2**20)
report = predict.predict_files(network(), [{path!r}], {out!r}, progress=False)
assert not report.failed, report.failed
print(report.nuclei, machine.peak_memory_gb())
"""


@functools.cache
def tile_of_nuclei() -> np.ndarray:
    return grey(nuclei((500, 500)), 100, 3000, "u2")


def peak(tmp_path: Path, side: int) -> tuple[int, float]:
    """Nuclei in a compressed image of so many pixels a side, and the memory it took in MB."""
    path = tmp_path / f"{side}.tif"
    image = np.tile(tile_of_nuclei(), (side // 500, side // 500))
    write(path, image, compression="zlib", rowsperstrip=64)
    code = PEAK.format(tests=str(Path(__file__).parent), path=str(path), out=str(tmp_path / "out"))
    how = {"capture_output": True, "text": True, "check": True}
    count, gigabytes = subprocess.run([sys.executable, "-c", code], **how).stdout.split()
    return int(count), 1000 * float(gigabytes)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image(tmp_path):
    """A number kept of every pixel, as float32 or int32, would take 72 MB more."""
    (few, small), (many, large) = peak(tmp_path, 1500), peak(tmp_path, 4500)
    assert 8 * few < many
    assert large - small < 55  # the same size twice differs by up to 20
