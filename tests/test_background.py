"""Where the background is when only some of the nuclei are outlined, and the loss that knows it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import hed2rgb

from nuctut import background
from nuctut.background import LABELLED, LEVELS, BackgroundModel
from nuctut.masked_loss import MaskedCrossEntropy
from nuctut.metrics import pixel_scores


def disc(shape: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def stained(mask: np.ndarray, *, nuclear: float = 0.12, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: nuclei full of hematoxylin in a ground of eosin, with a little noise."""
    rng = np.random.default_rng(seed)
    stains = np.zeros((*mask.shape, 3))
    stains[..., 0] = np.where(mask, nuclear, 0.01) + rng.normal(0, 0.002, mask.shape)
    stains[..., 1] = np.where(mask, 0.01, 0.05) + rng.normal(0, 0.002, mask.shape)
    return (255 * hed2rgb(stains.clip(0))).round().astype(np.uint8)


TWO = disc((90, 120), 30, 30, 12) | disc((90, 120), 60, 85, 15)


# --- the colours --------------------------------------------------------------------------------


def test_the_two_stains_are_told_apart():
    found = background.clusters(stained(TWO))
    np.testing.assert_array_equal(found.nuclei, TWO)
    assert found.centres.shape == (2, 2) and not found.swapped
    assert found.centres[1, 0] > found.centres[0, 0] and found.centres[1, 1] < found.centres[0, 1]


def test_it_is_hematoxylin_that_makes_a_nucleus_not_the_smaller_area():
    crowded = ~TWO
    found = background.clusters(stained(crowded))
    np.testing.assert_array_equal(found.nuclei, crowded)
    assert found.swapped


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_other_dtypes_hold_the_same_colours(dtype):
    image = stained(TWO)
    other = image.astype(np.uint16) * 257 if dtype == np.uint16 else (image / 255).astype(dtype)
    np.testing.assert_array_equal(background.clusters(other).nuclei, TWO)


def test_of_a_large_image_a_grid_of_pixels_is_enough(monkeypatch):
    whole = background.clusters(stained(TWO))
    monkeypatch.setattr(background, "FITTED", 500)
    np.testing.assert_array_equal(background.clusters(stained(TWO)).nuclei, whole.nuclei)


def test_an_image_of_one_colour_is_refused_by_name():
    with pytest.raises(ValueError, match=r"slide 7: .*one colour"):
        background.clusters(np.full((20, 30, 3), 200, np.uint8), "slide 7")
    with pytest.raises(ValueError, match=r"\(H, W, 3\), not \(20, 30\)"):
        background.clusters(np.zeros((20, 30), np.uint8))


def test_the_clusters_erosion_is_a_disc_and_the_edge_erodes_nothing():
    found = background.Clusters(disc((41, 41), 20, 20, 0), np.zeros((2, 2)))
    np.testing.assert_array_equal(found.surely_background(4), ~disc((41, 41), 20, 20, 4))
    np.testing.assert_array_equal(found.surely_background(0), ~found.nuclei)


# --- equations 2 to 4 ---------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 20), st.floats(0, 3), st.integers(0, 39), st.integers(0, 49))
def test_around_a_single_pixel_the_weight_is_a_formula(alpha, beta, y, x):
    mask = np.zeros((40, 50), bool)
    mask[y, x] = True
    rows, columns = np.mgrid[:40, :50]
    distance = np.hypot(rows - y, columns - x)
    expected = np.where(distance <= alpha, 1, np.exp(-beta * (distance - alpha)))
    np.testing.assert_allclose(background.near(mask, alpha, beta), expected, atol=1e-6)


def test_both_parts_are_joined_to_the_larger_weight():
    colours = background.clusters(stained(TWO))
    mask = disc(TWO.shape, 30, 30, 12)
    model = BackgroundModel(alpha=4, beta=0.3, strength=0.5, radius=3)
    near = background.near(mask, 4, 0.3)
    joined = model.weights(mask, colours)
    sure = colours.surely_background(3)
    np.testing.assert_array_equal(joined, np.where(sure, np.maximum(near, 0.5), near))
    assert joined.dtype == np.float32 and 0 <= joined.min() and joined.max() == 1
    np.testing.assert_array_equal(model.weights(mask), near)
    np.testing.assert_array_equal(BackgroundModel(4, 0.3, 0).weights(mask, colours), near)


def test_naive_training_is_a_distance_without_end():
    assert (BackgroundModel(alpha=math.inf, strength=0).weights(TWO) == 1).all()


def test_a_mask_without_a_nucleus_is_refused_by_name():
    with pytest.raises(ValueError, match=r"slide 7: no nucleus is outlined"):
        BackgroundModel().weights(np.zeros((9, 9), bool), key="slide 7")


@pytest.mark.parametrize(
    "wrong", [{"alpha": -1}, {"beta": math.nan}, {"strength": 1.1}, {"radius": -1}]
)
def test_impossible_numbers_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BackgroundModel(**wrong)


def test_the_taught_map_holds_nuclei_and_weights():
    mask = np.array([[True, False, False, False]])
    weights = np.array([[1, 1, 0.5, 0]], np.float32)
    assert background.taught(mask, weights).tolist() == [[LABELLED, LEVELS, LEVELS // 2, 0]]
    assert background.taught(mask, weights).dtype == np.uint8


# --- how wrong it is ----------------------------------------------------------------------------


def test_wrong_weight_is_counted_in_pixels():
    mask = np.zeros((1, 8), bool)
    mask[0, :2] = True
    truth = mask.copy()
    truth[0, 4:6] = True
    colours = background.Clusters(np.array([[1, 1, 0, 0, 1, 0, 0, 0]], bool), np.zeros((2, 2)))
    model = BackgroundModel(alpha=1, beta=50, strength=0.5, radius=0)
    found = background.mask_errors(model, mask, truth, colours)
    assert (found.outlined, found.nuclear, found.called_background) == (2, 4, 1)
    assert found.wrong == pytest.approx(0.5) and found.right == pytest.approx(1 + 3 * 0.5)
    assert found.share_called_background == 1 / 4
    assert found.wrong_to_outlined == pytest.approx(1 / 4)
    assert found.wrong_share == pytest.approx(0.5 / 3)
    both = background.pooled_errors([found, found])
    assert both.nuclear == 8 and both.wrong_share == found.wrong_share


def test_full_labels_carry_no_wrong_weight():
    assert background.mask_errors(BackgroundModel(), TWO, TWO).wrong == 0


# --- the loss -----------------------------------------------------------------------------------


def test_the_loss_is_equation_1_with_its_sign_turned():
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 5, 7, dtype=torch.float64)
    mask = torch.rand(2, 5, 7) < 0.3
    levels = torch.randint(0, LEVELS + 1, (2, 5, 7))
    classes = torch.where(mask, LABELLED, levels).to(torch.uint8)
    chances = logits.softmax(1).numpy()
    expected = 0.0
    for item, y, x in np.ndindex(2, 5, 7):
        if mask[item, y, x]:
            expected -= 3 * math.log(chances[item, 1, y, x])
        else:
            weight = int(levels[item, y, x]) / LEVELS
            expected -= weight * math.log(chances[item, 0, y, x])
    assert float(MaskedCrossEntropy(3)(logits, classes)) == pytest.approx(expected / 70, rel=1e-5)


def test_what_weighs_nothing_teaches_nothing():
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    classes = torch.tensor([[[LABELLED, 0], [LEVELS, 0]]], dtype=torch.uint8)
    MaskedCrossEntropy()(logits, classes).backward()
    pull = logits.grad[0, 1]
    assert pull[0, 0] < 0 < pull[1, 0] and (pull[:, 1] == 0).all()
    # a step against the gradient makes nuclei of the one, and background of the other
    assert pull[0, 0] == -pull[1, 0]


def test_the_loss_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="foreground"):
        MaskedCrossEntropy(0)
    with pytest.raises(ValueError, match="two logits"):
        MaskedCrossEntropy()(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8))


def test_k_means_alone_is_a_segmentation():
    assert pixel_scores(TWO, background.clusters(stained(TWO)).nuclei).jaccard == 1
