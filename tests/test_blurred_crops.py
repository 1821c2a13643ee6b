"""Crops that are blurred as they are drawn, and fits of the networks that learn from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage as ndi

from nuctut.blurred_crops import BlindSpots, BlurredPairs, FocusPatches, hide
from nuctut.fits import FitResult
from nuctut.joint_losses import CrossEntropy, DenoiSegLoss, JointLoss
from nuctut.models.alexnet import AlexNet
from nuctut.models.forked_unet import ForkedUNet
from nuctut.models.unet import UNet
from nuctut.targets import standardise, three_classes
from nuctut.training import FitSettings, fit


def as_it_is(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image


def gaussian(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A blur that reaches 12 pixels."""
    light = ndi.gaussian_filter(image.astype(np.float32), rng.uniform(1, 3), radius=12)
    return rng.poisson(light).astype(np.uint16)


def steady(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return ndi.gaussian_filter(image.astype(np.float64), 2, radius=8)


def ramp(shape: tuple[int, int] = (40, 52)) -> np.ndarray:
    """An image in which every pixel has a value of its own."""
    return np.arange(np.prod(shape), dtype=np.float64).reshape(shape)


def pairs(blur=as_it_is, **options) -> BlurredPairs:
    image = ramp()
    return BlurredPairs([image], [(image % 251).astype(np.uint8)], ["a"], blur, size=16, **options)


# --- pairs ---------------------------------------------------------------------------------------


def test_image_sharp_and_classes_stay_together():
    """The margin takes in the whole image, so that it says how to undo the normalisation."""
    whole = ramp()
    corners, orientations = set(), set()
    for draw in range(150):
        item = pairs(margin=99)[0, draw]
        assert torch.equal(item["image"], item["sharp"]) and item["key"] == "a"
        assert item["image"].shape == (1, 16, 16) and item["image"].dtype == torch.float32
        values = np.rint(item["sharp"][0].numpy() * whole.std() + whole.mean()).astype(int)
        np.testing.assert_array_equal(item["classes"], values % 251)
        assert item["classes"].dtype == torch.uint8
        corners.add(divmod(values.min(), 52))
        orientations.add((values[0, 1] - values[0, 0], values[1, 0] - values[0, 0]))
    assert len(orientations) == 8 and max(corners) <= (24, 36)
    assert {y for y, _ in corners} == set(range(25)) and len({x for _, x in corners}) > 30


def test_pairs_are_a_function_of_seed_and_draw():
    def images(seed, draws):
        items = pairs(gaussian, seed=seed)
        return [items[0, draw]["image"].numpy().tobytes() for draw in draws]

    assert images(3, range(9)) == images(3, reversed(range(9)))[::-1]
    assert len(set(images(3, range(9)) + images(4, range(9)))) == 18


def test_every_blur_sees_the_same_crops():
    for draw in range(9):
        sharp, blurred = pairs(gain=0.2)[0, draw], pairs(gaussian, gain=0.2)[0, draw]
        assert torch.equal(sharp["sharp"], blurred["sharp"])
        assert torch.equal(sharp["classes"], blurred["classes"])
        assert not torch.equal(sharp["image"], blurred["image"])


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_with_a_wide_margin_a_crop_is_cut_from_the_blurred_whole(scale):
    blurred, sharp = (standardise(one, scale) for one in (steady(ramp(), None), ramp()))
    items = pairs(steady, margin=99, scale=scale)
    for draw in range(20):
        item = items[0, draw]
        at = np.abs(sharp - item["sharp"].min().item()).argmin()
        y, x = divmod(int(at), 52)
        crop = blurred[y : y + 16, x : x + 16]
        assert item["image"].min().item() == pytest.approx(crop.min(), abs=1e-5)
        assert sorted(item["image"].ravel().tolist()) == pytest.approx(
            sorted(crop.ravel().tolist()), abs=1e-5
        )


def test_light_from_outside_the_crop_reaches_it():
    """A margin that is no less than the blur reaches leaves no edge of its own."""
    image = np.random.default_rng(0).uniform(100, 4000, (60, 70))
    crops = np.lib.stride_tricks.sliding_window_view(steady(image, None), (16, 16))
    crops = crops.reshape(-1, 256)
    crops = np.sort((crops - crops.mean(1, keepdims=True)) / crops.std(1, keepdims=True))

    def off(margin: int) -> float:
        items = BlurredPairs([image], [np.zeros((60, 70), np.uint8)], ["a"], steady, 16, margin)
        found = []
        for draw in range(20):
            made = np.sort(items[0, draw]["image"].numpy().ravel())
            found.append(np.abs(crops - (made - made.mean()) / made.std()).max(1).min())
        return max(found)

    assert off(8) < 1e-3 < off(0)


def test_the_gain_is_common_to_both():
    factors = []
    for draw in range(100):
        plain, item = pairs(steady)[0, draw], pairs(steady, gain=0.3)[0, draw]
        factor = (item["sharp"] / plain["sharp"]).median().item()
        torch.testing.assert_close(item["image"], factor * plain["image"], rtol=1e-4, atol=1e-5)
        factors.append(factor)
    assert 0.7 <= min(factors) < 0.73 and 1.27 < max(factors) <= 1.3


def test_an_image_without_room_is_named():
    with pytest.raises(ValueError, match=r"^a: .*\(40, 52\).*41×41"):
        BlurredPairs([ramp()], [ramp()], ["a"], as_it_is, size=41)
    with pytest.raises(ValueError, match=r"^b: .*41×41"):
        FocusPatches([np.zeros((41, 41)), ramp()], ["a", "b"], as_it_is, as_it_is, size=41)


# --- blind spots ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (30, 41), (1, 2), (2, 1), (9, 8)])
def test_no_pixel_sees_itself(shape):
    image, rng = ramp(shape), np.random.default_rng(0)
    for _ in range(50):
        changed, hidden = hide(image, rng)
        np.testing.assert_array_equal(changed != image, hidden)
        rows, columns = np.nonzero(hidden)
        from_rows, from_columns = np.divmod(changed[hidden], shape[1])
        assert np.abs(from_rows - rows).max() <= 5 and np.abs(from_columns - columns).max() <= 5
    np.testing.assert_array_equal(image, ramp(shape))


def test_one_pixel_of_every_cell_is_hidden_and_any_may_be():
    rng, times = np.random.default_rng(0), np.zeros((24, 40), int)
    for _ in range(1200):
        _, hidden = hide(ramp((24, 40)), rng)
        assert (hidden.reshape(3, 8, 5, 8).sum((1, 3)) == 1).all()
        times += hidden
    # 1200 / 64 each, a binomial number
    assert 3 <= times.min() and times.max() <= 45 and abs(times.std() - 4.3) < 0.6


def test_all_pixels_within_reach_are_alike_likely():
    rng, seen = np.random.default_rng(0), np.zeros((11, 11), int)
    image = ramp((60, 60))
    for _ in range(400):
        changed, hidden = hide(image, rng)
        hidden[:5] = hidden[-5:] = hidden[:, :5] = hidden[:, -5:] = False
        rows, columns = np.nonzero(hidden)
        from_rows, from_columns = np.divmod(changed[hidden].astype(int), 60)
        np.add.at(seen, (from_rows - rows + 5, from_columns - columns + 5), 1)
    assert seen[5, 5] == 0
    others = np.delete(seen.ravel(), 60)
    assert np.abs(others / others.mean() - 1).max() < 0.4


@pytest.mark.parametrize("shape", [(1, 1), (0, 4), (4, 4, 2)])
def test_what_has_no_other_pixel_is_refused(shape):
    with pytest.raises(ValueError, match=r"image must be \(H, W\) with two pixels or more"):
        hide(np.zeros(shape), np.random.default_rng(0))


def test_blind_spots_keep_what_was_seen():
    plain, items = pairs(gaussian), BlindSpots(pairs(gaussian))
    assert len(items) == 1
    item = items[0, 7]
    for name, other in (("seen", "image"), ("sharp", "sharp"), ("classes", "classes")):
        assert torch.equal(item[name], plain[0, 7][other])
    hidden = item["hidden"]
    assert hidden.shape == (1, 16, 16) and hidden.dtype == torch.bool and hidden.sum() == 4
    assert torch.equal(item["image"][~hidden], item["seen"][~hidden])
    assert torch.equal(items[0, 7]["hidden"], hidden)
    assert not torch.equal(items[0, 8]["hidden"], hidden)
    assert not torch.equal(BlindSpots(pairs(gaussian), seed=1)[0, 7]["hidden"], hidden)


# --- patches for the quality control -------------------------------------------------------------


def test_half_of_the_patches_are_blurred():
    image = np.random.default_rng(0).uniform(100, 4000, (80, 90))
    patches = FocusPatches([image], ["a"], as_it_is, steady, size=32)
    rough = []
    for draw in range(200):
        item = patches[0, draw]
        assert item["image"].shape == (1, 32, 32) and item["classes"].dtype == torch.int64
        assert abs(item["image"].mean()) < 1e-5
        assert abs(item["image"].std(correction=0) - 1) < 1e-4
        steps = item["image"].diff(dim=2).abs().mean().item()
        rough.append((steps > 0.8) == (item["classes"].item() == 0))
    assert all(rough)
    verdicts = [patches[0, draw]["classes"].item() for draw in range(200)]
    assert 75 < sum(verdicts) < 125
    assert verdicts == [patches[0, draw]["classes"].item() for draw in range(200)]


# --- fits ----------------------------------------------------------------------------------------


SETTINGS = FitSettings(
    epochs=3, updates=6, batch_size=2, learning_rate=5e-3, l2=0, schedule="one-cycle", device="cpu"
)


def learned(model, loss, items, folder: Path) -> FitResult:
    """A fit that must lower its loss on what it is checked on."""
    result = fit(model, loss, items(0), items(1), folder, SETTINGS, progress=False)
    assert result.history["val_loss"].iloc[-1] < result.history["val_loss"].iloc[0]
    assert result.updates == 18
    return result


def fields(scene) -> tuple[list[np.ndarray], list[np.ndarray]]:
    made = [scene((64, 80), [(20, 24, 9), (22, 40, 9), (48, 60, 8)], seed=i) for i in range(2)]
    return [image for image, _ in made], [three_classes(labels) for _, labels in made]


@pytest.mark.parametrize("deblurring", [True, False])
def test_a_network_with_two_answers_is_fitted(scene, tmp_path, deblurring):
    images, classes = fields(scene)
    torch.manual_seed(0)
    model = ForkedUNet(3, channels=(4,) * 5, normalise=True, objective=JointLoss(deblurring))

    def items(seed: int) -> BlurredPairs:
        return BlurredPairs(images, classes, ["a", "b"], gaussian, 32, seed=seed)

    result = learned(model, None, items, tmp_path)
    torch.manual_seed(5)
    again = ForkedUNet(3, channels=(4,) * 5, normalise=True, objective=JointLoss(deblurring))
    assert fit(again, None, items(0), items(1), tmp_path, SETTINGS).best == result.best
    pixels = standardise(images[0])
    # channels come first or last in memory, so sums are rounded otherwise
    np.testing.assert_allclose(again.restored(pixels), model.restored(pixels), atol=1e-5)


def test_the_other_networks_are_fitted(scene, tmp_path):
    images, classes = fields(scene)

    def items(seed: int) -> BlurredPairs:
        return BlurredPairs(images, classes, ["a", "b"], gaussian, 32, seed=seed)

    torch.manual_seed(0)
    plain = UNet(1, 3, (4,) * 5, normalise=True)
    learned(plain, CrossEntropy(), items, tmp_path / "plain")
    one_head = ForkedUNet(1, channels=(4,) * 5, normalise=True, objective=DenoiSegLoss())
    learned(one_head, None, lambda seed: BlindSpots(items(seed), seed), tmp_path / "denoiseg")


def test_a_judge_of_focus_is_fitted(scene, tmp_path):
    images, _ = fields(scene)

    def items(seed: int) -> FocusPatches:
        return FocusPatches(images, ["a", "b"], as_it_is, steady, 64, seed=seed)

    torch.manual_seed(0)
    result = fit(
        AlexNet(2, dropout=0.0),
        torch.nn.CrossEntropyLoss(),
        items(0),
        items(1),
        tmp_path,
        SETTINGS,
        progress=False,
    )
    assert result.updates == 18 and np.isfinite(result.history["val_loss"]).all()
