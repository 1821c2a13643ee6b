"""Hand-drawn nuclei, their borders, and the weights of what lies between them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi
from torch.nn import functional as F

from nuctut.borders import (
    BORDER,
    BorderCrossEntropy,
    border_weights,
    bordered,
    eroded,
    weighted_mask,
)
from nuctut.postprocess import parted_by_borders, pieces_of_a_mask
from nuctut.targets import BACKGROUND, NUCLEUS


def drawn(text: str) -> np.ndarray:
    """Labels from a drawing: digits are nuclei, dots are background."""
    return np.array([[int(c.replace(".", "0")) for c in row] for row in text.split()], np.int32)


TOUCHING = drawn("........ .111222. .111222. .111222. .111222. ........")


@pytest.fixture(scope="module")
def crowd() -> np.ndarray:
    """Cells of a Voronoi diagram without some of them: nuclei that touch, and background."""
    rng = np.random.default_rng(0)
    seeds = np.zeros((60, 70), bool)
    seeds.flat[rng.choice(seeds.size, 40, replace=False)] = True
    nearest = ndi.distance_transform_edt(~seeds, return_distances=False, return_indices=True)
    cells = (ndi.label(seeds, np.ones((3, 3)))[0])[tuple(nearest)]
    return np.where(cells % 3 == 0, 0, cells).astype(np.int32)


def test_eroded_nuclei_lose_the_rim_where_they_meet_others():
    expected = drawn("........ ........ ..1..2.. ..1..2.. ........ ........")
    np.testing.assert_array_equal(eroded(TOUCHING), expected)


def test_the_edge_of_the_image_is_no_border():
    np.testing.assert_array_equal(eroded(np.ones((3, 4), np.int32)), np.ones((3, 4)))
    np.testing.assert_array_equal(eroded(drawn("11.. 11.. ....")), drawn("1... .... ...."))


def test_a_nucleus_that_would_vanish_stays_as_it_is():
    labels = drawn("..... .11.. ..... .222. .222. .222. .....")
    expected = drawn("..... .11.. ..... ..... ..2.. ..... .....")
    np.testing.assert_array_equal(eroded(labels), expected)


@pytest.mark.parametrize("radius", [1, 2])
def test_eroded_nuclei_never_touch(crowd, radius):
    inner = eroded(crowd, radius)
    assert set(np.unique(inner)) == set(np.unique(crowd)) and inner.dtype == crowd.dtype
    assert (inner[inner > 0] == crowd[inner > 0]).all()
    large = np.bincount(crowd.ravel()) > 30
    pieces = np.where(large[inner], inner, 0)
    for number in np.unique(pieces[pieces > 0]):
        own = pieces == number
        around = ndi.binary_dilation(own, np.ones((3, 3)))
        assert set(np.unique(pieces[around])) <= {0, number}
        # What is left is what a disc of this radius can be set into.
        y, x = np.indices((2 * radius + 1,) * 2) - radius
        disc = x**2 + y**2 <= radius**2
        whole = np.pad(crowd == number, radius, "symmetric")
        kept = ndi.binary_erosion(whole, disc)[radius:-radius, radius:-radius]
        np.testing.assert_array_equal(own, kept)


def test_weights_against_a_slow_reference(crowd):
    weights = border_weights(crowd, weight=7, sigma=4)
    assert weights.dtype == np.float32 and (weights[crowd > 0] == 1).all()
    away = [ndi.distance_transform_edt(crowd != n) for n in np.unique(crowd[crowd > 0])]
    first, second = np.sort(away, axis=0)[:2]
    expected = 1 + 7 * np.exp(-((first + second) ** 2) / (2 * 4**2))
    np.testing.assert_allclose(weights[crowd == 0], expected[crowd == 0], atol=1e-3)


@pytest.mark.parametrize("gap", [1, 2, 5, 9])
def test_the_weight_of_a_gap_is_that_of_the_formula(gap):
    labels = np.zeros((30, 60), np.int32)
    labels[:, :20], labels[:, 20 + gap : 50] = 1, 2
    weights = border_weights(labels)
    # Pixel k of a gap of g pixels is k + 1 from one nucleus and g - k from the other.
    expected = 1 + 10 * math.exp(-((gap + 1) ** 2) / 50)
    np.testing.assert_allclose(weights[:, 20 : 20 + gap], expected, rtol=1e-5)


@pytest.mark.parametrize("labels", [np.zeros((9, 9), np.int32), drawn("..... .111. .111. .....")])
def test_with_one_nucleus_or_none_nothing_weighs_more(labels):
    assert (border_weights(labels) == 1).all()
    weighted = weighted_mask(labels)
    np.testing.assert_array_equal(weighted, np.where(eroded(labels) > 0, 1, -1))


def test_a_weighted_mask_holds_class_and_weight(crowd):
    weighted = weighted_mask(crowd)
    inner = eroded(crowd)
    assert weighted.dtype == np.float32
    np.testing.assert_array_equal(weighted > 0, inner > 0)
    np.testing.assert_array_equal(np.abs(weighted), border_weights(inner))
    assert weighted.min() < -8  # the gaps left by the erosion are narrow


def test_the_loss_is_the_mean_of_weighted_cross_entropies():
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 5, 6, requires_grad=True)
    weighted = torch.randn(2, 5, 6)
    expected = 0.0
    for logit, weight in zip(logits.flatten().tolist(), weighted.flatten().tolist(), strict=True):
        chance = 1 / (1 + math.exp(-logit))
        expected -= abs(weight) * math.log(chance if weight > 0 else 1 - chance)
    loss = BorderCrossEntropy()(logits, weighted)
    assert loss.item() == pytest.approx(expected / 60, rel=1e-5)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_with_equal_weights_the_loss_is_the_ordinary_one():
    logits, mask = torch.randn(2, 1, 8, 8), torch.rand(2, 8, 8) > 0.5
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], mask.float())
    assert torch.allclose(BorderCrossEntropy()(logits, mask * 2.0 - 1), expected)


def test_a_pixel_of_weight_0_is_not_learned_from():
    logits = torch.randn(1, 1, 4, 4, requires_grad=True)
    weighted = torch.ones(1, 4, 4)
    weighted[0, 1] = 0
    BorderCrossEntropy()(logits, weighted).backward()
    assert ((logits.grad[0, 0] == 0).all(1) == torch.tensor([False, True, False, False])).all()


def test_the_loss_wants_one_logit():
    with pytest.raises(ValueError, match="one logit per pixel, not 3"):
        BorderCrossEntropy()(torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4))


def test_the_classes_with_a_border():
    expected = drawn("........ .222222. .212212. .212212. .222222. ........")
    classes = bordered(TOUCHING, radius=1)
    np.testing.assert_array_equal(classes, expected)
    assert classes.dtype == np.uint8 and not bordered(np.zeros((4, 5), np.int32)).any()


def certain(classes: np.ndarray) -> np.ndarray:
    """(3, H, W) probabilities that leave no doubt."""
    return (classes == np.arange(3)[:, None, None]).astype(np.float32)


def square_nuclei(sides: list[int]) -> np.ndarray:
    """Nuclei in a row, each touching the next."""
    labels = np.zeros((max(sides) + 6, sum(sides) + 6), np.int32)
    left = 3
    for number, side in enumerate(sides, start=1):
        labels[3 : 3 + side, left : left + side] = number
        left += side
    return labels


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(7, 20), min_size=1, max_size=5))
def test_what_is_taught_becomes_the_nuclei_again(sides):
    labels = square_nuclei(sides)
    found = parted_by_borders().labels(certain(bordered(labels)))
    assert found.max() == len(sides)
    np.testing.assert_array_equal(found > 0, labels > 0)
    assert np.mean(found == labels) > 0.97  # in corners the rim may go to the other nucleus
    shrunk = pieces_of_a_mask().labels((weighted_mask(labels) > 0)[None].astype(np.float32))
    np.testing.assert_array_equal(shrunk, eroded(labels))


def test_borders_part_only_above_the_threshold():
    chances = np.zeros((3, 6, 9), np.float32)
    chances[NUCLEUS, 1:5, 1:8], chances[BORDER, 1:5, 1:8] = 0.8, 0.2
    chances[NUCLEUS, :, 4] = 0.45  # most probable, and yet below one half
    chances[BORDER, :, 4] = 0.3
    chances[BACKGROUND] = 1 - chances.sum(0)
    assert parted_by_borders().labels(chances).max() == 2
    assert parted_by_borders(threshold=0.4).labels(chances).max() == 1
    assert parted_by_borders(min_area=13).labels(chances).max() == 0
    apart = parted_by_borders(growth=0).labels(chances)
    assert (apart[:, 4] == 0).all() and (parted_by_borders().labels(chances)[1:5, 4] > 0).all()
