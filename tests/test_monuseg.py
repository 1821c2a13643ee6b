"""MoNuSeg: Kumar's 30 and what else there is, polygons filled in; what is wrong is named."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from skimage.draw import polygon

from nuctut import datasets
from nuctut.datasets import checking, monuseg, polygons
from nuctut.datasets.simulated.canvas import MARKER
from nuctut.datasets.simulated.kinds import draw
from nuctut.datasets.simulated.tissue import TISSUE, simulate_monuseg

FEW = {"training": 2, "validation": 1, "test": 3}
SHAPE = (64, 80)

needs_real_data = pytest.mark.skipif(
    datasets.status("monuseg").state != "real",
    reason="MoNuSeg is not on disk: run `nuctut data fetch monuseg` or set NUCTUT_DATA",
)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return simulate_monuseg(tmp_path / "monuseg", images=FEW, shape=SHAPE, seed=1)


def first(folder: Path) -> tuple[str, Path, Path]:
    """A key, its image and its outlines."""
    key = monuseg.split_keys(folder, "test")[0]
    return key, *(folder / name for name in monuseg.files(folder, key))


def xml(*regions: list[tuple[object, object]]) -> str:
    """A file of outlines."""
    inside = "".join(
        f'<Region Id="{number}"><Vertices>'
        + "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in corners)
        + "</Vertices></Region>"
        for number, corners in enumerate(regions, start=1)
    )
    return f"<Annotations><Annotation><Regions>{inside}</Regions></Annotation></Annotations>"


def square(x: float, y: float, side: float) -> list[tuple[float, float]]:
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


# --- filling -------------------------------------------------------------------------------------


def test_a_square_of_the_file_covers_the_pixels_between_its_lines(tmp_path: Path) -> None:
    """Pixel (0, 0) reaches from 0 to 1, so lines at whole numbers run between pixels."""
    (tmp_path / "a.xml").write_text(xml(square(2, 1, 3)))
    expected = np.zeros((6, 7), int)
    expected[1:4, 2:5] = 1
    np.testing.assert_array_equal(polygons.labels_of_xml(tmp_path / "a.xml", (6, 7)), expected)


def test_where_two_overlap_the_pixel_is_the_first_one_s() -> None:
    corners = [np.array(square(at, at, 3)) for at in (1.5, 2.5, 0.5)]
    filled = polygons.fill(corners, (6, 6))
    assert filled.dtype == np.int32
    assert [(filled == number).sum() for number in (1, 2, 3)] == [9, 5, 5]
    assert filled[3, 3] == 1 and filled[5, 5] == 2 and filled[1, 1] == 3


def test_what_lies_outside_is_cut_off() -> None:
    filled = polygons.fill([np.array(square(-5.5, 2.5, 100))], (4, 5))
    np.testing.assert_array_equal(np.argwhere(filled), [[3, column] for column in range(5)])


def test_polygons_that_share_an_edge_share_no_pixel_and_leave_none_out() -> None:
    halves = [np.array([(0, 0), (8, 0), (8, 8)]), np.array([(0, 0), (8, 8), (0, 8)])]
    separate = [polygons.fill([half], (8, 8)) for half in halves]
    assert (sum(separate) == 1).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-3, 12)] * 2), min_size=3, max_size=9))
@example([(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_filling_agrees_with_a_slow_reference(corners: list[tuple[float, float]]) -> None:
    """But for centres on an edge; none is on these, moved by two irrational numbers."""
    moved = np.array(corners).round(2) + np.sqrt([2, 3]) / 1000
    expected = np.zeros((10, 11), int)
    expected[polygon(moved[:, 1], moved[:, 0], expected.shape)] = 1
    np.testing.assert_array_equal(polygons.fill([moved], (10, 11)), expected)


def test_outlines_drawn_round_labels_give_them_back(tmp_path: Path) -> None:
    folder = simulate_monuseg(tmp_path / "set", images=FEW, shape=SHAPE, seed=5)
    _, labels = draw(TISSUE, SHAPE, np.random.default_rng([5, 0, 0]))
    key = next(key for key in monuseg.split_keys(folder, "training") if key.endswith("_00"))
    read = monuseg.read(folder, key).labels
    np.testing.assert_array_equal(read, labels)
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        assert (np.roll(read, step, axis) == labels).mean() < 0.96


# --- what is there -------------------------------------------------------------------------------


def test_kumar_s_parts_are_16_8_and_6_and_validation_has_one_of_each_organ() -> None:
    assert len(monuseg.ORGAN) == 30
    assert Counter(monuseg.PART.values()) == dict(zip(monuseg.PARTS, (16, 8, 6), strict=True))
    assert sorted(map(monuseg.ORGAN.get, monuseg.VALIDATION)) == sorted(monuseg.KUMAR)
    others = {monuseg.PART[key] for key, organ in monuseg.ORGAN.items() if organ == "colon"}
    assert others == {"different organ"}


@needs_real_data
def test_real_counts() -> None:
    folder = datasets.status("monuseg").folder
    keys = {split: monuseg.split_keys(folder, split) for split in monuseg.SPEC.counts}
    assert {split: len(own) for split, own in keys.items()} == {
        "training": 23,
        "validation": 7,
        "test": 30,
    }
    assert sorted(keys["training"] + keys["validation"]) == keys["test"] == sorted(monuseg.ORGAN)
    outlines = [folder / monuseg.files(folder, key)[1] for key in keys["test"]]
    rebuilt = sum(monuseg.REBUILT in path.read_bytes()[:200] for path in outlines)
    if rebuilt != 17:
        pytest.skip("other copies than the one whose regions were counted")
    assert sum(path.read_bytes().count(b"<Region ") for path in outlines) == 16_961


@needs_real_data
@pytest.mark.parametrize("key", ["TCGA-50-5931-01Z-00-DX1", "TCGA-G9-6362-01Z-00-DX1"])
def test_no_shift_by_a_pixel_lies_better_on_the_dye(key: str) -> None:
    folder = datasets.status("monuseg").folder
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # regions known to be none are none to warn of
        sample = monuseg.read(folder, key)
    light, inside = sample.image[..., 0].astype(np.float32), sample.labels > 0

    def contrast(step: int, axis: int) -> float:
        return -np.corrcoef(light.ravel(), np.roll(inside, step, axis).ravel())[0, 1]

    shifted = [contrast(step, axis) for step in (-1, 1) for axis in (0, 1)]
    assert contrast(0, 0) > max(shifted)


def test_tags(made: Path) -> None:
    for key in monuseg.split_keys(made, "test"):
        tags = monuseg.read(made, key).tags
        assert tags["organ"] in monuseg.KUMAR and tags["part"] in monuseg.PARTS
        assert tags["patient"] == key and tags["outlines"] == "original"
    assert monuseg._tags("TCGA-G2-A2EK-01A-02-TSB") == {
        "patient": "TCGA-G2-A2EK",
        "organ": "bladder",
        "part": "different organ",
    }


def test_rebuilt_outlines_say_so(made: Path) -> None:
    key, _, outlines = first(made)
    outlines.write_text("<!-- RECONSTRUCTED -->\n" + outlines.read_text())
    assert monuseg.read(made, key).tags["outlines"] == "rebuilt"


def test_further_images_and_the_challenge_are_there_where_they_are(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUCTUT_DATA", str(made.parent))
    for split in ("further", "challenge"):
        with pytest.raises(FileNotFoundError, match=f"no image of the {split} split"):
            datasets.load("monuseg", split, "simulated")
    assert [*checking.check(monuseg.SPEC, made).counts] == [*FEW]
    _, image, outlines = first(made)
    (made / monuseg.CHALLENGE).mkdir()
    for place, key in ((monuseg.IMAGES, "TCGA-XX-0001-a"), (monuseg.CHALLENGE, "TCGA-XX-0002-b")):
        (made / place / f"{key}.tif").write_bytes(image.read_bytes())
        (made / place.replace("Tissue Images", "Annotations") / f"{key}.xml").write_bytes(
            outlines.read_bytes()
        )
    (further,) = datasets.load("monuseg", "further", "simulated")
    (challenge,) = datasets.load("monuseg", "challenge", "simulated")
    assert (further.key, challenge.key) == ("TCGA-XX-0001-a", "TCGA-XX-0002-b")
    assert dict(further.tags) == {"patient": "TCGA-XX-0001", "outlines": "original"}
    report = checking.check(monuseg.SPEC, made)
    assert report.ok and report.counts["challenge"].images == 1
    assert (made / MARKER).is_file()


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("corners", "fault"),
    [
        ([(3, 3), (9, 9)], "has 2 corners"),
        (square(300, 5, 9), "lies outside of its image of 64 × 80"),
        (square(5, -30, 9), "lies outside of its image"),
        (square(10.1, 10.1, 4), "has no pixel of its own"),
    ],
)
def test_a_region_without_a_pixel_is_left_out_and_named(
    made: Path, corners: list[tuple[float, float]], fault: str
) -> None:
    key, _, outlines = first(made)
    outlines.write_text(xml(square(10, 10, 5), corners, square(30, 30, 5)))
    with pytest.warns(UserWarning, match=rf"{key}\.xml: region 2 {fault}"):
        sample = monuseg.read(made, key)
    assert np.bincount(sample.labels.ravel())[1:].tolist() == [25, 25]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<Annotations/>", "outlines no region"),
        ("<Annotations><Region>", "cannot be read"),
        ("", "cannot be read"),
        (xml([]), "region 1 has a corner that is no pair"),
        (xml([(1, 2), (3, "x"), (4, 4)]), "region 1 has a corner that is no pair"),
        (xml([(1, 2), (3, "nan"), (4, 4)]), "region 1 has a corner that is no pair"),
        (xml(square(900, 900, 9), [(1, 1), (2, 2)]), "none of its 2 regions lies in its image"),
    ],
)
def test_outlines_that_cannot_be_are_named(made: Path, text: str, fault: str) -> None:
    key, _, outlines = first(made)
    outlines.write_text(text)
    with pytest.raises(ValueError, match=rf"{key}\.xml:? {fault}"):
        monuseg.read(made, key)


def test_what_has_no_partner_is_named(made: Path) -> None:
    key, _, outlines = first(made)
    outlines.rename(outlines.with_name("other.xml"))
    problems = " ".join(checking.check(monuseg.SPEC, made).problems)
    assert f"{key}.xml is missing" in problems
    assert "other.xml has no image other.tif" in problems


@pytest.mark.parametrize(
    ("pixels", "options", "fault"),
    [
        (np.full((*SHAPE, 4), 9, np.uint8), {"photometric": "separated"}, r"holds inks \(CMYK\)"),
        (np.full((*SHAPE, 4), 9, np.uint8), {"photometric": "rgb"}, "is transparent in places"),
        (np.full((*SHAPE, 3), 9, np.uint16), {"photometric": "rgb"}, "should hold 8-bit"),
        (np.full(SHAPE, 9, np.uint8), {}, "should hold colours"),
    ],
)
def test_an_image_of_other_colours_is_named(
    made: Path, pixels: np.ndarray, options: dict, fault: str
) -> None:
    key, image, _ = first(made)
    tifffile.imwrite(image, pixels, **options)
    with pytest.raises(ValueError, match=rf"{key}\.tif {fault}"):
        monuseg.read(made, key)
