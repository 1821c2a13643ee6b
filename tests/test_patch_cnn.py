"""The network of patches: as in Caffe, patch by patch and densely, and what it learns from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nuctut import inference
from nuctut.background import LABELLED, LEVELS
from nuctut.masked_loss import MaskedCrossEntropy
from nuctut.models.patch_cnn import AFTER, BEFORE, EveryPixel, PatchCNN
from nuctut.pixel_patches import PixelPatches, chosen_pixels, surely_background


@pytest.fixture(params=[False, True], ids=["unpadded", "padded"])
def network(request) -> PatchCNN:
    torch.manual_seed(0)
    return PatchCNN(padded=request.param).eval()


def by_hand(network: PatchCNN, patch: torch.Tensor) -> torch.Tensor:
    """The layers one after the other, for one (3, 32, 32) patch; poolings by plain loops."""

    def pool(maps: torch.Tensor, reduce: str) -> torch.Tensor:
        size = 3 if network.padded else 2
        side = maps.shape[-1]
        count = -(-(side - size) // 2) + 1
        out = torch.empty(maps.shape[0], count, count)
        for y in range(count):
            for x in range(count):
                window = maps[:, 2 * y : 2 * y + size, 2 * x : 2 * x + size].flatten(1)
                out[:, y, x] = getattr(window, reduce)(1)
        return out

    def convolve(maps: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
        padding = 2 if network.padded else 0
        return nn.functional.conv2d(maps[None], layer.weight, layer.bias, padding=padding)[0]

    first, second, third = network.convolutions
    maps = pool(convolve(patch, first), "amax").relu()
    maps = pool(convolve(maps, second).relu(), "mean")
    maps = convolve(maps, third).relu()
    maps = pool(maps, "mean") if network.padded else maps
    hidden = network.hidden.weight.flatten(1) @ maps.flatten() + network.hidden.bias
    return network.head.weight.flatten(1) @ hidden + network.head.bias


def test_a_patch_passes_the_layers_of_the_paper(network):
    patch = torch.rand(3, 32, 32)
    with torch.inference_mode():
        found = network(patch[None])
    assert found.shape == (1, 2, 1, 1)
    torch.testing.assert_close(found.flatten(), by_hand(network, patch), atol=1e-5, rtol=1e-4)


def test_the_padded_network_has_the_numbers_of_cifar10_quick():
    """Of Caffe's own for ten classes, less the eight classes that there are no more."""
    weights = sum(one.numel() for one in PatchCNN(padded=True).parameters())
    assert weights == 145_578 - 8 * 65


def test_densely_it_is_the_same_map_as_patch_by_patch():
    torch.manual_seed(0)
    network = PatchCNN().eval()
    crop = torch.rand(2, 3, 20, 26)
    with torch.inference_mode():
        dense = EveryPixel(network)(crop)
        single = EveryPixel(network, one_by_one=True)(crop)
    assert dense.shape == (2, 2, 20, 26)
    torch.testing.assert_close(dense, single, atol=1e-5, rtol=1e-4)


def test_each_pixel_is_the_middle_of_its_patch(network):
    crop = torch.rand(1, 3, 18, 24)
    padded = nn.functional.pad(crop, (BEFORE, AFTER, BEFORE, AFTER), mode="reflect")
    with torch.inference_mode():
        found = EveryPixel(network)(crop)
        for y, x in ((0, 0), (17, 23), (11, 5)):
            patch = padded[..., y : y + 32, x : x + 32]
            torch.testing.assert_close(patch[0, :, 16, 16], crop[0, :, y, x])
            expected = network(patch).flatten()
            torch.testing.assert_close(found[0, :, y, x], expected, atol=1e-5, rtol=1e-4)


def test_it_gives_itself_for_whole_images():
    network = PatchCNN()
    whole = network.dense()
    assert isinstance(whole, EveryPixel) and whole.network is network and not whole.one_by_one
    assert PatchCNN(padded=True).dense().one_by_one


def test_in_tiles_it_leaves_no_trace():
    torch.manual_seed(0)
    model = EveryPixel(PatchCNN()).eval()
    image = np.random.default_rng(0).integers(0, 256, (90, 110, 3), np.uint8)
    how = {"normalise": lambda one: one.astype(np.float32) / 255, "overlap": 2 * model.reach}
    whole = inference.predict(model, image, tile=256, **how)
    tiled = inference.predict(model, image, tile=64, batch_size=2, **how)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


@pytest.mark.parametrize("size", [(31, 40), (16, 16)])
def test_what_is_smaller_than_a_patch_is_refused(network, size):
    with pytest.raises(ValueError, match=r"32×32 pixels.*EveryPixel"):
        network(torch.rand(1, 3, *size))


def test_the_padded_network_cannot_look_at_more_than_a_patch():
    with pytest.raises(ValueError, match="if it is not padded"):
        PatchCNN(padded=True)(torch.rand(1, 3, 40, 40))


# --- what it learns from --------------------------------------------------------------------------


@pytest.fixture
def field() -> tuple[np.ndarray, np.ndarray]:
    """Two dark squares in a bright field, of which one is outlined."""
    image = np.full((160, 200, 3), 220, np.uint8)
    mask = np.zeros((160, 200), bool)
    for y, x in ((40, 40), (110, 60)):
        image[y : y + 20, x : x + 20, 0] = 60
    image[5:8, 150:153, 0] = 60  # nine pixels are no nucleus
    mask[40:60, 40:60] = True
    return image, mask


def test_background_is_what_lies_far_from_anything_dark(field):
    image, _ = field
    sure = surely_background(image)
    expected = np.ones(image.shape[:2], bool)
    for y, x in ((40, 40), (110, 60)):
        expected[y - 25 : y + 20 + 25, x - 25 : x + 20 + 25] = False
    assert np.count_nonzero(sure != expected) <= 4 * (70 + 70)  # a row or column
    assert sure[6, 151]


def test_pixels_are_drawn_from_nuclei_their_ring_and_the_background(field):
    image, mask = field
    places, classes = chosen_pixels(image, mask, np.random.default_rng(0), positives=100)
    nuclear = classes == LABELLED
    assert nuclear.sum() == 100 and len(classes) == 230 and set(classes) == {LABELLED, LEVELS}
    at = tuple(places.T)
    assert (mask[at] == nuclear).all()
    ring = np.zeros_like(mask)
    ring[37:63, 37:63] = True
    negatives = tuple(places[~nuclear].T)
    assert np.count_nonzero(ring[negatives]) == 100
    assert len({tuple(one) for one in places.tolist()}) == len(places)
    assert not (image[negatives][:, 0] == 60).any()  # the other nucleus is left alone


def test_there_are_no_more_than_there_are(field):
    image, mask = field
    _, classes = chosen_pixels(image, mask, np.random.default_rng(0))
    assert (classes == LABELLED).sum() == 400
    with pytest.raises(ValueError, match="no nucleus is outlined"):
        chosen_pixels(image, np.zeros_like(mask), np.random.default_rng(0))


def test_a_patch_shows_its_pixel_and_is_learned_from(field):
    image, mask = field
    data = PixelPatches([image], [mask], ["a"], positives=20, augment=False)
    assert len(data) == 46
    for number in (0, 25, 45):
        item = data[number, number]
        _, y, x, kind = data.items[number]
        assert item["image"].shape == (3, 32, 32) and item["classes"].tolist() == [[kind]]
        np.testing.assert_allclose(item["image"][:, 16, 16].numpy(), image[y, x] / 255, rtol=1e-6)
    batch = [data[number, number] for number in (0, 45)]
    logits = PatchCNN()(torch.stack([item["image"] for item in batch]))
    classes = torch.stack([item["classes"] for item in batch])
    expected = nn.functional.cross_entropy(logits.flatten(1), torch.tensor([1, 0]))
    torch.testing.assert_close(MaskedCrossEntropy()(logits, classes), expected)


def test_patches_are_turned_by_the_draw_alone(field):
    data = PixelPatches(*([one] for one in field), ["a"], positives=20)
    seen = {data[0, draw]["image"].numpy().tobytes() for draw in range(30)}
    assert len(seen) <= 4 and torch.equal(data[0, 7]["image"], data[0, 7]["image"])
