"""Labels made band by band are those of the whole, to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage as ndi

from nuctut import postprocess
from nuctut.own_images.bands import bands, labels_in_bands
from nuctut.postprocess import CERTAIN, LabelRule, parted_by_lines, pieces_of_a_mask
from nuctut.targets import three_classes

RULES = {
    "lines": parted_by_lines,
    "small": lambda min_area: parted_by_lines(min_area, 60, 0.9),
    "pieces": lambda min_area: pieces_of_a_mask(0.5, min_area),
}


def banded(rule: LabelRule, classes: np.ndarray, pixels: int) -> np.ndarray:
    scratch = np.full(classes.shape, -1, np.int32)
    made = list(labels_in_bands(rule, classes, scratch, pixels=pixels))
    assert [start for (start, _), _ in made] == [0, *(stop for (_, stop), _ in made[:-1])]
    return np.concatenate([labels for _, labels in made])


def whole(rule: LabelRule, classes: np.ndarray) -> np.ndarray:
    """Labels by the rule itself, of probabilities that have these classes."""
    count = 3 if rule.growth else 1
    first = 0 if rule.growth else 1
    chances = np.stack([classes == first + one for one in range(count)]).astype(np.float32)
    if rule.small_area:
        chances[1][classes == CERTAIN] = 1
        chances[:2, classes == 1] = [[0.3], [0.7]]  # a nucleus, and not certain
    np.testing.assert_array_equal(rule.classes(chances), classes)
    return rule.labels(chances)


def noise(rng: np.random.Generator, shape: tuple[int, int], coarse: float) -> np.ndarray:
    values = ndi.gaussian_filter(rng.normal(size=shape), coarse)
    return np.argsort(np.argsort(values, None)).reshape(shape) / values.size  # uniform in 0…1


def ragged(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A class map of blobs and lines of many sizes, such as no good network makes."""
    classes = (noise(rng, shape, rng.uniform(0, 8)) > rng.uniform(0.1, 0.9)).astype(np.uint8)
    lines = np.abs(noise(rng, shape, rng.uniform(0, 3)) - 0.5) < rng.uniform(0, 0.1)
    classes[lines & (classes > 0)] = 2
    return classes


def crowd(scene, seed: int, shape: tuple[int, int] = (700, 100)) -> np.ndarray:
    """The class map of touching nuclei, a little worn as networks give it."""
    rng = np.random.default_rng(seed)
    count = shape[0] * shape[1] // 400
    discs = np.column_stack([rng.uniform(0, 1, (count, 2)) * shape, rng.uniform(6, 14, count)])
    classes = three_classes(scene(shape, discs)[1])
    classes[noise(rng, shape, 1.0) < 0.05] = 0
    classes[(noise(rng, shape, 0.7) < 0.03) & (classes > 0)] = 2
    return classes


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(1, 13))
def test_bands_leave_no_trace(rule, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(20, 250, 2))
    made = RULES[rule](int(rng.integers(0, 40)))
    classes = ragged(rng, shape)
    classes = classes if made.growth else np.minimum(classes, 1)
    if made.small_area:
        classes[(noise(rng, shape, 3.0) < 0.5) & (classes == 1)] = CERTAIN
    expected = whole(made, classes)
    assert expected.any()
    for rows in (9, 64):
        np.testing.assert_array_equal(banded(made, classes, rows * shape[1]), expected)


@pytest.mark.parametrize("rule", RULES)
def test_nuclei_at_every_seam(rule, scene):
    made = RULES[rule](20)
    classes = crowd(scene, 0)
    classes = classes if made.growth else (classes == 1).astype(np.uint8)
    expected = whole(made, classes)
    assert expected.max() > 50
    for rows in (40, 93):
        np.testing.assert_array_equal(banded(made, classes, rows * 100), expected)


def drawn(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows], np.uint8)


SPIRAL = drawn(
    "#########",
    "........#",
    "#######.#",
    "#.....#.#",
    "#.###.#.#",
    "#.#...#.#",
    "#.#####.#",
    "#.......#",
    "#########",
)
# The right arm comes first, another nucleus stands between, and the arms meet only at the end.
CUP = drawn(".....#", "#....#", "#.##.#", "#.##.#", "#....#", "######")
TWO_CUPS = drawn("#..#..#", "#..#..#", "####..#", "......#", "#######")
CORNERS = drawn("#....#", ".#..#.", "..##..", ".#..#.", "#....#")


@pytest.mark.parametrize("rows", range(1, 10))
@pytest.mark.parametrize(
    ("classes", "counts"),
    [(SPIRAL, (1, 1)), (CUP, (2, 2)), (TWO_CUPS, (2, 2)), (CORNERS, (1, 9))],
)
@pytest.mark.parametrize("corners", [True, False])
def test_what_meets_only_later_is_one_nucleus(classes, counts, rows, corners):
    structure = postprocess.SQUARE if corners else postprocess.CROSS
    rule = LabelRule(
        lambda chances: (chances[0] > 0.5).astype(np.uint8),
        lambda classes: classes > 0,
        structure=structure,
    )
    expected, count = ndi.label(classes, structure)
    made = banded(rule, classes, rows * classes.shape[1])
    np.testing.assert_array_equal(made, expected)
    assert count == counts[0 if corners else 1]


def test_areas_are_those_of_whole_nuclei_and_numbers_have_no_gaps():
    rule = pieces_of_a_mask(min_area=5)
    classes = drawn("#..##", "#..##", "#....", "#..#.", "#..#.")
    expected = drawn("#....", "#....", "#....", "#....", "#....")
    for pixels in (5, 10, 25):
        np.testing.assert_array_equal(banded(rule, classes, pixels), expected)


def test_an_image_without_nuclei():
    for rule in (parted_by_lines(5), pieces_of_a_mask()):
        empty = np.zeros((30, 20), np.uint8)
        np.testing.assert_array_equal(banded(rule, empty, 100), empty)


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (300, 7), (64, 64)])
@pytest.mark.parametrize("pixels", [1, 100, 2**23])
def test_bands_cover_every_row_once(shape, pixels):
    made = bands(shape, pixels)
    rows = [row for start, stop in made for row in range(start, stop)]
    assert rows == list(range(shape[0]))
    assert all((stop - start) * shape[1] <= max(pixels, shape[1]) for start, stop in made)


@pytest.fixture(scope="module")
def maps(scene) -> list[np.ndarray]:
    """Nuclei, a gap across, and a map chosen of 600 because thinning comes far in it."""
    y, x = np.mgrid[:700, :160]
    gap = (np.abs(y - 350 - x) > 10).astype(np.uint8)
    return [crowd(scene, 1), gap, ragged(np.random.default_rng(189), (700, 160))]


def lines_differ(classes: np.ndarray, reach: int) -> bool:
    """Whether lines inside nuclei are others where only so many rows around are seen."""
    expected = postprocess.separation_lines(classes) & (classes > 0)
    for start in range(200, 470, 53):
        window = classes[start - reach : start + 40 + reach]
        seen = (postprocess.separation_lines(window) & (window > 0))[reach:-reach]
        if not np.array_equal(seen, expected[start : start + 40]):
            return True
    return False


def test_lines_are_felt_no_further_than_said(maps):
    """40 pixels were enough in 466 windows of such maps; `LINES_REACH` leaves room."""
    assert any(lines_differ(classes, 16) for classes in maps)
    for reach in (64, postprocess.LINES_REACH):
        assert not any(lines_differ(classes, reach) for classes in maps)
