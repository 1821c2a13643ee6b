"""Patches of partially labelled images, and how whole batches of them vary."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb, rgb2hed
from skimage.morphology import isotropic_dilation

from nuctut import augmentation, fits, training
from nuctut.augmentation import Augmentation, moved, stained_anew
from nuctut.background import LABELLED, LEVELS
from nuctut.masked_loss import MaskedCrossEntropy
from nuctut.models.unet import UNet
from nuctut.patches import PartialPatches, kept_windows
from nuctut.targets import dihedral


@pytest.fixture
def classes() -> np.ndarray:
    """A map of 120×150: outlined nuclei in one corner, sure background in the upper half."""
    made = np.zeros((120, 150), np.uint8)
    made[:70] = LEVELS
    made[70:] = LEVELS // 5
    for y, x in product(range(8, 60, 14), range(8, 70, 14)):
        made[y - 3 : y + 4, x - 3 : x + 4] = LABELLED
    return made


# --- which windows are kept -----------------------------------------------------------------------


@pytest.mark.parametrize("reach", [0, 3.0])
def test_windows_are_kept_where_both_masks_are_large_enough(classes, reach):
    size, stride = 40, 20
    outlined = classes == LABELLED
    sure = classes == LEVELS
    if reach:
        outlined, sure = isotropic_dilation(outlined, reach), isotropic_dilation(sure, reach)
    expected = []
    for y, x in product([0, 20, 40, 60, 80], [0, 20, 40, 60, 80, 100, 110]):
        window = np.s_[y : y + size, x : x + size]
        if outlined[window].mean() > 0.1 and sure[window].mean() > 0.4:
            expected.append((y, x))
    assert 0 < len(expected) < 35
    assert kept_windows(classes, size, stride, reach) == expected


def test_without_nuclei_or_background_nothing_is_kept():
    for value in (0, LEVELS, LABELLED):
        assert kept_windows(np.full((64, 64), value, np.uint8), 32, 16) == []


def test_a_set_without_any_window_says_what_to_do():
    image, nothing = np.zeros((64, 64, 3), np.uint8), np.full((64, 64), LEVELS, np.uint8)
    with pytest.raises(ValueError, match=r"no window of 32×32 .*dilate them further"):
        PartialPatches([image], [nothing], ["a"], size=32, stride=16)


# --- how a batch varies ---------------------------------------------------------------------------


class Fixed:
    """A generator that draws what it is told: orientations, and everything else 0."""

    def __init__(self, which: list[int]) -> None:
        self.which = np.array(which)

    def integers(self, high: int, size: int) -> np.ndarray:
        assert (high, size) == (8, len(self.which))
        return self.which

    def uniform(self, low: float, high: float, size: tuple[int, ...]) -> np.ndarray:
        return np.zeros(size)


def test_without_bending_each_item_is_one_of_the_eight_orientations():
    images = torch.rand(8, 3, 20, 20)
    classes = torch.randint(0, 256, (8, 20, 20), dtype=torch.uint8)
    seen = set()
    turned, kept = moved(images, classes, Fixed(list(range(8))), bend=0, knots=8)
    for item in range(8):
        found = [
            which
            for which in range(8)
            if np.array_equal(dihedral(classes[item].numpy(), which), kept[item].numpy())
        ]
        assert len(found) == 1
        seen |= set(found)
        expected = dihedral(images[item].numpy(), found[0])
        np.testing.assert_allclose(turned[item].numpy(), expected, atol=1e-4)
    assert seen == set(range(8))
    assert kept.dtype == torch.uint8


def test_a_bend_moves_pixels_smoothly_and_no_further_than_it_may():
    size, bend = 96, 5.0
    places = torch.stack(torch.meshgrid(*[torch.arange(size).float()] * 2, indexing="ij"))
    classes = torch.arange(size, dtype=torch.uint8).expand(1, size, size)
    rng = np.random.default_rng(1)
    rng_fixed = Fixed([0])
    rng_fixed.uniform = lambda low, high, shape: rng.uniform(low, high, shape)
    found, bent = moved(places[None], classes, rng_fixed, bend, 24)
    shift = (found[0] - places)[:, 8:-8, 8:-8]  # at the edge places are mirrored
    assert 0.5 < shift.abs().max() <= bend
    assert shift.diff(dim=1).abs().max() < 0.5 and shift.diff(dim=2).abs().max() < 0.5
    inside = np.s_[8:-8, 8:-8]
    assert (bent[0].float() - found[0, 1])[inside].abs().max() <= 0.51  # the nearest column


def test_the_spline_of_equal_values_is_flat():
    weights = augmentation._spline(100, 7 + 3, 16)
    torch.testing.assert_close(weights.sum(1), torch.ones(100))
    assert (weights >= 0).all()


def test_new_stains_are_those_of_scikit_image():
    rng = np.random.default_rng(0)
    stains = rng.uniform(0.005, 0.03, (9, 11, 3))
    image = hed2rgb(stains)
    given = torch.from_numpy(image.astype(np.float32)).movedim(-1, 0)[None]
    draws = np.array([[[0.5, -1.0, 0.25]], [[0, 0, 0]]])

    class Told:
        def uniform(self, low, high, size):
            assert size == (2, 1, 3)
            return draws

    found = stained_anew(given, Told(), gain=0.4, shift=0.1)[0].movedim(0, -1).numpy()
    expected = hed2rgb(stains * (1 + 0.4 * draws[0, 0]))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    draws = np.array([[[0, 0, 0]], [[1.0, 0, 0]]])
    found = stained_anew(given, Told(), gain=0.4, shift=0.1)[0].movedim(0, -1).numpy()
    more = (rgb2hed(found) - stains)[..., 0] * -np.log(1e-6)
    np.testing.assert_allclose(more, 0.1, atol=5e-3)


def test_stains_that_do_not_change_leave_the_image():
    images = torch.rand(2, 3, 6, 6).clamp(min=1 / 255)
    found = stained_anew(images, np.random.default_rng(0), 0, 0)
    torch.testing.assert_close(found, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("wrong", [{"bend": -1}, {"knots": 0}, {"stain_gain": float("nan")}])
def test_impossible_augmentations_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)


def test_what_is_not_square_cannot_be_turned():
    with pytest.raises(ValueError, match="square"):
        moved(torch.zeros(1, 3, 4, 6), torch.zeros(1, 4, 6, dtype=torch.uint8), Fixed([0]), 0, 4)


# --- what a network is fed ------------------------------------------------------------------------


def patches(classes: np.ndarray, how: Augmentation | None, seed: int = 0) -> PartialPatches:
    image = np.random.default_rng(0).integers(0, 256, (*classes.shape, 3), np.uint8)
    options = {"size": 48, "stride": 24, "reach": 3, "augmentation": how, "seed": seed}
    return PartialPatches([image], [classes], ["a"], **options)


def test_a_batch_without_augmentation_holds_the_windows(classes):
    data = patches(classes, None)
    batch = data.collate([data[0, 0], data[1, 1]])
    assert batch["image"].shape == (2, 3, 48, 48) and batch["image"].dtype == torch.float32
    assert batch["key"] == ["a", "a"]
    (_, y, x) = data.windows[1]
    window = np.s_[y : y + 48, x : x + 48]
    np.testing.assert_array_equal(batch["classes"][1], classes[window])
    seen = batch["image"][1].movedim(0, -1).numpy() * 255
    np.testing.assert_allclose(seen, data.images[0][window], atol=1e-4)


def test_another_map_may_say_which_windows_are_kept(classes):
    image, how = np.zeros((*classes.shape, 3), np.uint8), {"size": 48, "stride": 24, "reach": 3}
    upside_down = classes[::-1].copy()
    made = PartialPatches([image], [classes], ["a"], **how, kept=[upside_down])
    windows = kept_windows(upside_down, 48, 24, 3)
    assert made.windows == [(0, y, x) for y, x in windows] and windows != kept_windows(
        classes, 48, 24, 3
    )
    y, x = windows[-1]
    np.testing.assert_array_equal(
        made[len(windows) - 1, 0]["classes"], classes[y : y + 48, x : x + 48]
    )


def test_a_batch_depends_on_the_seed_and_the_draw_alone(classes):
    how = Augmentation(bend=3, knots=16, stain_gain=0.2, stain_shift=0.02)

    def batch(seed: int, draw: int) -> torch.Tensor:
        data = patches(classes, how, seed)
        return data.collate([data[0, draw], data[1, draw + 1]])["image"]

    first = batch(0, 4)
    assert torch.equal(first, batch(0, 4))
    assert not torch.equal(first, batch(0, 6)) and not torch.equal(first, batch(1, 4))
    assert 0 <= first.min() and first.max() <= 1


def test_a_small_image_is_mirrored_to_a_patch(classes):
    image = np.zeros((40, 60, 3), np.uint8)
    data = PartialPatches([image], [classes[:40, :60]], ["a"], size=64, stride=32, reach=3)
    assert len(data) == 1 and data[0, 0]["classes"].shape == (64, 64)


def test_a_network_is_fitted_to_them(classes, tmp_path):
    """In the weights of the loss, through `training.fit`, and the loss falls."""
    image = np.where((classes == LABELLED)[..., None], (90, 60, 140), (230, 170, 200))
    how = {"size": 48, "stride": 24, "reach": 3}
    data, checks = (
        PartialPatches([image.astype(np.uint8)], [classes], ["a"], augmentation=one, **how)
        for one in (Augmentation(bend=2, knots=16), None)
    )
    torch.manual_seed(0)
    model = UNet(classes=2, channels=(4, 4, 4, 4, 4), normalise=True)
    settings = training.FitSettings(
        epochs=2, updates=6, batch_size=2, learning_rate=0.02, l2=1e-5, device="cpu"
    )
    loss = MaskedCrossEntropy(2)
    result = training.fit(model, loss, data, checks, tmp_path / "fit", settings, progress=False)
    assert isinstance(result, fits.FitResult)
    assert result.history.val_loss.iloc[-1] < result.history.val_loss.iloc[0]
