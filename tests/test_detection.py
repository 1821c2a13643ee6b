"""Detectors' crops, and labels from detections: nuclei at every seam, each once and whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

from nuctut import detection
from nuctut.detection import InstanceCrops, labels_from
from nuctut.models.mask_rcnn import Detection
from nuctut.samples import Sample, SampleSet
from nuctut.targets import dihedral, standardise
from nuctut.training import Jitter


class Oracle:
    """Finds exactly what an image of ids shows of each nucleus, with scores of its own."""

    def __init__(self, labels: np.ndarray) -> None:
        self.values = np.unique(standardise(image_of(labels)))
        self.ids = np.unique(labels)
        self.rng = np.random.default_rng(0)
        self.tiles: list[tuple[int, ...]] = []

    def detect(self, images: list[torch.Tensor], mask_threshold: float) -> list[list[Detection]]:
        return [self._one(image[0].numpy()) for image in images]

    def _one(self, pixels: np.ndarray) -> list[Detection]:
        self.tiles.append(pixels.shape)
        labels = self.ids[np.searchsorted(self.values, pixels)]
        return detections_of(labels, lambda: float(self.rng.uniform(0.5, 1)))


class Scripted:
    """Gives prepared detections, one list per tile."""

    def __init__(self, *answers: list[Detection]) -> None:
        self.answers = list(answers)

    def detect(self, images: list[torch.Tensor], mask_threshold: float) -> list[list[Detection]]:
        return [self.answers.pop(0) for _ in images]


def image_of(labels: np.ndarray) -> np.ndarray:
    return np.repeat(labels[..., None], 3, 2)


def detections_of(labels: np.ndarray, score: callable) -> list[Detection]:
    return [
        Detection(labels[span] == number, span[0].start, span[1].start, score())
        for number, span in enumerate(ndi.find_objects(labels), start=1)
        if span is not None
    ]


def block(top: int, left: int, height: int, width: int, score: float, **more) -> Detection:
    return Detection(np.ones((height, width), bool), top, left, score, **more)


def discs(shape: tuple[int, int], *where: tuple[float, float, float]) -> np.ndarray:
    y, x = np.indices(shape)
    labels = np.zeros(shape, np.int32)
    for number, (cy, cx, radius) in enumerate(where, start=1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = number
    return labels


def assert_same_nuclei(labels: np.ndarray, truth: np.ndarray) -> None:
    pairs = np.unique(np.stack([labels.ravel(), truth.ravel()]), axis=1)
    for side in pairs:
        assert len(np.unique(side)) == pairs.shape[1]  # each with one of the other, and only it
    assert ((labels == 0) == (truth == 0)).all()


GRID = [(y, x, 6) for y in range(0, 160, 14) for x in range(0, 180, 14)]


@pytest.mark.parametrize(
    ("shape", "where"),
    [
        ((150, 170), GRID),  # on every seam and every corner of seams, and on the image's border
        ((131, 97), GRID),
        ((150, 170), [(50, 50, 15), (100, 100, 22), (50, 140, 29)]),  # larger than the overlap
        ((200, 230), [(100, 100, 75)]),  # larger than a tile
        ((64, 170), GRID),
        ((40, 50), GRID),  # smaller than a tile
        ((65, 64), GRID),
    ],
)
def test_tiles_give_each_nucleus_once_and_whole(shape, where):
    truth = discs(shape, *where)
    oracle = Oracle(truth)
    labels = detection.segment(oracle, image_of(truth), tile=64, overlap=16)
    assert labels.dtype == np.int32 and labels.shape == shape
    assert_same_nuclei(labels, truth)
    assert all(side <= 64 for tile in oracle.tiles for side in tile)
    assert (len(oracle.tiles) > 1) == (max(shape) > 64)


def test_an_image_without_nuclei_has_no_labels():
    truth = np.zeros((100, 90), np.int32)
    assert not detection.segment(Oracle(truth), image_of(truth), tile=64, overlap=16).any()


@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    tile=st.integers(4, 24),
    overlap=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_any_grid_of_tiles_leaves_no_trace(seed, height, width, tile, overlap):
    rng = np.random.default_rng(seed)
    truth = np.zeros((height, width), np.int32)
    for number in range(1, 9):
        y, x, h, w = rng.integers([0, 0, 1, 1], [height, width, 20, 20])
        if not truth[y : y + h, x : x + w].any():
            truth[y : y + h, x : x + w] = number
    labels = detection.segment(Oracle(truth), image_of(truth), tile=tile, overlap=overlap)
    assert_same_nuclei(labels, truth)


# Two tiles of an image 28 pixels wide: columns 0…19 and 8…27; both see columns 8…19.
TWO_TILES = {"image": np.zeros((20, 28, 3)), "tile": 20, "overlap": 12}


def test_the_tile_that_sees_the_whole_nucleus_is_believed():
    piece, whole = block(4, 14, 4, 5, 0.9), block(4, 6, 4, 8, 0.6)  # columns 14…18 and 14…21
    found = detection.detections(Scripted([piece], [whole]), **TWO_TILES)
    assert [(one.score, one.left, one.mask.shape) for one in found] == [(0.6, 14, (4, 8))]
    assert not found[0].cut


def test_of_two_whole_detections_the_higher_score_counts():
    first, second = block(4, 12, 4, 4, 0.7), block(4, 4, 4, 5, 0.8)  # columns 12…15 and 12…16
    found = detection.detections(Scripted([first], [second]), **TWO_TILES)
    assert [(one.score, one.left, one.mask.shape) for one in found] == [(0.8, 12, (4, 5))]


def test_pieces_of_a_nucleus_that_no_tile_sees_whole_are_united():
    left, right = block(4, 2, 4, 18, 0.7), block(3, 0, 5, 18, 0.8)  # columns 2…19 and 8…25
    (found,) = detection.detections(Scripted([left], [right]), **TWO_TILES)
    expected = np.ones((5, 24), bool)
    expected[0, :6] = False
    assert (found.top, found.left, found.score, found.cut) == (3, 2, 0.8, True)
    assert (found.mask == expected).all()


def test_masks_that_agree_by_half_or_less_are_two_nuclei():
    first, second = block(4, 12, 4, 4, 0.7), block(4, 6, 4, 4, 0.8)  # columns 12…15 and 14…17
    found = detection.detections(Scripted([first], [second]), **TWO_TILES)
    assert sorted(one.score for one in found) == [0.7, 0.8]


def test_wrong_images_and_tiles_are_refused():
    oracle = Oracle(np.zeros((8, 8), np.int32))
    with pytest.raises(ValueError, match=r"\(H, W, 3\), not \(8, 8\)"):
        detection.segment(oracle, np.zeros((8, 8)))
    for overlap in (0, 64):
        with pytest.raises(ValueError, match="overlap must be from 1 to 63"):
            detection.segment(oracle, np.zeros((8, 8, 3)), tile=64, overlap=overlap)


# --- labels from masks that overlap ---------------------------------------------------------------


def drawn(*rows: str) -> list[list[int]]:
    return [[int(c) if c.isdigit() else 0 for c in row] for row in rows]


def test_a_pixel_goes_to_the_highest_score():
    found = [block(1, 1, 2, 3, 0.6), block(0, 0, 2, 2, 0.9)]
    assert labels_from(found, (4, 5)).tolist() == drawn("11...", "1122.", ".222.", ".....")


def test_what_loses_more_than_half_is_dropped():
    first = block(0, 0, 2, 2, 0.9)
    keeps_half, keeps_less = block(0, 1, 2, 2, 0.8), block(0, 0, 1, 3, 0.7)
    found = [first, keeps_less, keeps_half]
    assert labels_from(found, (2, 4)).tolist() == drawn("112.", "112.")
    assert labels_from([first, keeps_less], (2, 4)).tolist() == drawn("11..", "11..")


def test_scores_and_areas_below_the_least_are_dropped_without_gaps():
    found = [block(0, 0, 1, 1, 0.9), block(0, 2, 2, 2, 0.5), block(0, 5, 2, 1, 0.4)]
    assert labels_from(found, (2, 6)).tolist() == drawn("1.22..", "..22..")
    assert labels_from(found, (2, 6), min_area=2).tolist() == drawn("..11..", "..11..")
    assert labels_from(found, (2, 6), min_score=0.4).tolist() == drawn("1.22.3", "..22.3")
    assert labels_from([], (1, 3)).tolist() == drawn("...")


def test_pieces_come_after_whole_nuclei():
    piece, whole = block(0, 0, 2, 2, 0.9, cut=True), block(0, 1, 2, 3, 0.6)
    assert labels_from([piece, whole], (2, 4)).tolist() == drawn("2111", "2111")


@given(seed=st.integers(0, 2**32 - 1), min_area=st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_labels_obey_the_rule(seed, min_area):
    rng = np.random.default_rng(seed)
    found = [
        Detection(rng.random((5, 6)) < 0.7, *rng.integers(0, 8, 2), score=float(rng.random()))
        for _ in range(8)
    ]
    labels = labels_from(found, (13, 14), min_score=0.3, min_area=min_area)
    areas = np.bincount(labels.ravel())[1:]
    assert (areas >= max(1, min_area)).all()  # and so the ids have no gaps
    shuffled = [found[i] for i in rng.permutation(len(found))]
    again = labels_from(shuffled, (13, 14), min_score=0.3, min_area=min_area)
    assert (labels == again).all()


# --- crops ----------------------------------------------------------------------------------------


def coloured(labels: np.ndarray) -> np.ndarray:
    """An image whose pixels tell where they lie."""
    y, x = np.indices(labels.shape)
    return np.stack([labels, y, x], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def crops() -> InstanceCrops:
    labels = [discs((90, 120), *GRID[3:40]), np.zeros((80, 64), np.int32)]
    return InstanceCrops([coloured(one) for one in labels], labels, ["full", "empty"], 64, seed=3)


@pytest.mark.parametrize("draw", range(12))
def test_boxes_and_masks_agree_with_the_labels(crops, draw):
    item = crops[0, draw]
    target, image = item["target"], item["image"]
    assert item["key"] == "full" and image.shape == (3, 64, 64) and image.dtype == torch.float32
    masks = target["masks"].numpy().astype(bool)
    assert len(masks) == len(target["boxes"]) == len(target["labels"])
    assert masks.any((1, 2)).all() and (masks.sum(0) <= 1).all()
    # The first channel shows the labels, normalised with the whole image: one level per nucleus.
    whole = standardise(crops.images[0])
    values = np.unique(whole[..., 0])
    ids = np.searchsorted(values, image[0].numpy())
    for mask, (x0, y0, x1, y1) in zip(masks, target["boxes"].tolist(), strict=True):
        (number,) = np.unique(ids[mask])
        assert number > 0 and ((ids == number) == mask).all()
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        assert (y0, y1) == (rows[0] - 0.5, rows[-1] + 0.5)
        assert (x0, x1) == (columns[0] - 0.5, columns[-1] + 0.5)
    left_out = np.bincount(ids[~masks.any(0)], minlength=2)[1:]
    assert (left_out < detection.SLIVER).all()


def test_a_draw_is_a_function_of_seed_and_number(crops):
    other = InstanceCrops(crops.images, crops.labels, crops.keys, 64, seed=4)
    same = InstanceCrops(crops.images, crops.labels, crops.keys, 64, seed=3)
    assert torch.equal(same[0, 5]["image"], crops[0, 5]["image"])
    assert torch.equal(same[0, 5]["target"]["masks"], crops[0, 5]["target"]["masks"])
    assert not torch.equal(crops[0, 6]["image"], crops[0, 5]["image"])
    assert not torch.equal(other[0, 5]["image"], crops[0, 5]["image"])


def test_crops_come_in_all_eight_orientations():
    labels = np.arange(1, 7, dtype=np.int32).reshape(2, 3).repeat(8, 0).repeat(8, 1)
    crops = InstanceCrops([coloured(labels)], [labels], ["one"], 64)
    seen = {crops[0, draw]["image"].numpy().tobytes() for draw in range(80)}
    whole = standardise(coloured(labels)).transpose(2, 0, 1)
    assert seen == {dihedral(whole, which).tobytes() for which in range(8)}


def test_crops_without_nuclei_have_empty_targets(crops):
    target = crops[1, 0]["target"]
    assert target["boxes"].shape == (0, 4) and target["boxes"].dtype == torch.float32
    assert target["labels"].shape == (0,) and target["labels"].dtype == torch.int64
    assert target["masks"].shape == (0, 64, 64) and target["masks"].dtype == torch.uint8


def test_slivers_are_no_targets_but_small_nuclei_are():
    labels = np.zeros((40, 40), np.int32)
    labels[:4, :8] = 1  # a crop's corner can leave any part of it, from one pixel to all
    labels[20, 20] = 2
    crops = InstanceCrops([coloured(labels)], [labels], ["one"], 36)
    areas = {
        int(area)
        for draw in range(100)
        for area in crops[0, draw]["target"]["masks"].numpy().sum((1, 2))
    }
    assert areas == {1} | {h * w for h in range(1, 5) for w in range(4, 9) if h * w >= 8}


def test_gain_scales_the_intensities(crops):
    louder = InstanceCrops(
        crops.images, crops.labels, crops.keys, 64, seed=3, jitter=Jitter(gain=0.5)
    )
    ratio = louder[0, 2]["image"] / crops[0, 2]["image"]
    assert ratio.max() - ratio.min() < 1e-4 and 0.5 <= ratio.mean() <= 1.5 and ratio.mean() != 1


def test_validation_sees_the_same_crops_whatever_the_seed():
    labels = [discs((50, 70), (20, 20, 6)), discs((90, 60), (30, 30, 9))]
    samples = [Sample(f"{i}", coloured(one), one) for i, one in enumerate(labels)]
    common = {"name": "made", "source": "simulated", "fingerprint": "0"}

    def crops(split: str, seed: int) -> InstanceCrops:
        chosen = SampleSet(["0", "1"], lambda key: samples[int(key)], split=split, **common)
        return detection.instance_crops(
            chosen, size=32, jitter=Jitter(gain=0.3), seed=seed, progress=False
        )

    one, other = crops("validation", 1), crops("validation", 2)
    assert one[1, 1]["image"].shape == (3, 50, 50)
    assert torch.equal(one[1, 1]["image"], other[1, 1]["image"])
    one, other = crops("training", 1), crops("training", 2)
    assert one[1, 1]["image"].shape == (3, 32, 32)
    assert not torch.equal(one[1, 1]["image"], other[1, 1]["image"])


def test_a_batch_holds_lists(crops):
    batch = crops.collate([crops[0, 0], crops[1, 1]])
    assert batch["key"] == ["full", "empty"]
    assert [len(target["boxes"]) > 0 for target in batch["target"]] == [True, False]
    assert all(image.shape == (3, 64, 64) for image in batch["image"])
