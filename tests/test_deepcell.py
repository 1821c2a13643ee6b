"""DeepCell: the network of patches, the same one dense, and the patches it learns from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from nuctut.balanced_patches import Patches
from nuctut.borders import bordered
from nuctut.inference import fold_normalisation, predict
from nuctut.models.deepcell import SIZE, DeepCell, DenseDeepCell
from nuctut.targets import IGNORE, dihedral, standardise
from nuctut.training import FitSettings, fit


@pytest.fixture(scope="module")
def network() -> DeepCell:
    """A narrow one, whose normalisation has seen something."""
    torch.manual_seed(0)
    network = DeepCell(channels=4, features=6)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.weight, module.running_var):
                    values.uniform_(0.7, 1.4)
                for values in (module.bias, module.running_mean):
                    values.normal_(0, 0.3)
    return network.eval()


def pictures(count: int = 2, shape: tuple[int, int] = (70, 80)) -> tuple[list, list, list]:
    """Images of two bright squares that touch, their classes, and their keys."""
    rng = np.random.default_rng(0)
    labels = np.zeros(shape, np.int32)
    labels[20:50, 10:40], labels[20:50, 40:70] = 1, 2
    images = [rng.normal(100 + 300 * (labels > 0), 20).astype(np.float32) for _ in range(count)]
    return images, [bordered(labels)] * count, [f"field_{i}" for i in range(count)]


# --- the network ---------------------------------------------------------------------------------


def test_the_layers_are_the_papers():
    network = DeepCell()
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [m.kernel_size[0] for m in convolutions] == [3, 4, 3, 3, 3, 3, 4, 1, 1]
    assert [m.out_channels for m in convolutions] == [64] * 6 + [200, 200, 3]
    kinds = [type(m) for m in network.layers]
    assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.ReLU) == 8
    # A dense layer on 200 maps of one pixel is a kernel of 1, with as many weights.
    kernels = [9, *[16 * 64] * 1, *[9 * 64] * 4]
    expected = 64 * sum(kernels) + 200 * 16 * 64 + 200 * 200 + 3 * 200 + 3
    expected += 2 * (6 * 64 + 2 * 200)  # of the normalisations
    assert sum(p.numel() for p in network.parameters()) == expected


def test_sizes_go_down_to_a_single_pixel(network):
    sizes, value = [], torch.rand(1, 1, SIZE, SIZE)
    for layer in network.layers:
        value = layer(value)
        sizes.append(value.shape[-1])
    assert sorted(set(sizes), reverse=True) == [59, 56, 28, 26, 24, 12, 10, 8, 4, 1]
    assert network(torch.rand(2, 1, SIZE, SIZE)).shape == (2, 3, 1, 1)


@pytest.mark.parametrize("size", [(60, 61), (61, 62), (128, 128)])
def test_what_is_no_patch_is_refused_with_the_way_out(network, size):
    with pytest.raises(ValueError, match=r"61×61 pixels, not .* DenseDeepCell"):
        network(torch.rand(1, 1, *size))


def patches_of(image: torch.Tensor) -> torch.Tensor:
    """A patch around each pixel of a (C, H, W) image, row by row."""
    around = [(SIZE // 2,) * 2] * 2
    padded = torch.from_numpy(np.pad(image.numpy(), [(0, 0), *around], "reflect"))
    _, height, width = image.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    return torch.stack([padded[:, y : y + SIZE, x : x + SIZE] for y, x in places])


@torch.inference_mode()
def test_dense_gives_the_numbers_of_patch_by_patch(network):
    """At every pixel, so at every phase of the three poolings, and at the edges too."""
    image = torch.randn(1, 33, 35)
    dense = DenseDeepCell(network)(image[None])
    assert dense.shape == (1, 3, 33, 35)
    one_by_one = network(patches_of(image)).reshape(33, 35, 3).movedim(-1, 0)
    assert one_by_one.std() > 0.05
    torch.testing.assert_close(dense[0], one_by_one, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_dense_is_a_copy_and_leaves_the_network_alone(network):
    patch = torch.randn(1, 1, SIZE, SIZE)
    before = network(patch)
    dense = DenseDeepCell(network)
    assert torch.equal(network(patch), before)
    with torch.no_grad():
        dense.layers[0].weight.zero_()
    assert torch.equal(network(patch), before)
    middle = DenseDeepCell(network)(patch)[..., SIZE // 2, SIZE // 2]
    torch.testing.assert_close(middle, before[..., 0, 0], rtol=1e-4, atol=1e-4)


def test_tiles_leave_no_trace_and_folding_changes_nothing(network):
    image = np.random.default_rng(0).gamma(2, 100, (70, 150)).astype(np.uint16)
    dense = DenseDeepCell(network)
    whole = predict(dense, image)
    assert whole.shape == (3, 70, 150)
    np.testing.assert_allclose(predict(dense, image, tile=100, overlap=60), whole, atol=1e-5)
    folded = fold_normalisation(dense)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    np.testing.assert_allclose(predict(folded, image), whole, atol=1e-4)


def test_an_image_smaller_than_the_reflection_is_refused(network):
    with pytest.raises(ValueError, match=r"more than 30 pixels a side, not \(30, 90\); enlarge"):
        DenseDeepCell(network)(torch.rand(1, 1, 30, 90))


# --- the patches ---------------------------------------------------------------------------------


def test_classes_take_turns_whatever_their_share():
    images, classes, keys = pictures(2)
    items = Patches(images, classes, keys, per_image=60)
    assert len(items) == 120
    found = [items[i, i] for i in range(120)]
    assert [item["key"] for item in found] == ["field_0"] * 60 + ["field_1"] * 60
    seen = np.bincount([int(item["classes"]) for item in found])
    assert seen.tolist() == [40, 40, 40]
    assert found[0]["image"].shape == (1, 61, 61) and found[0]["image"].dtype == torch.float32
    assert found[0]["classes"].shape == (1, 1) and found[0]["classes"].dtype == torch.int64


def test_the_middle_of_a_patch_is_the_pixel_of_its_class():
    image = np.arange(40 * 50, dtype=np.float32).reshape(40, 50)
    classes = (np.arange(40 * 50) % 7 % 3).astype(np.uint8).reshape(40, 50)
    items = Patches([image], [classes], ["a"], per_image=300, size=7)
    whole = np.pad(standardise(image), 3, "reflect")
    middles, turns = set(), set()
    for number in range(300):
        patch = items[number, number]["image"][0].numpy()
        value = round(float(patch[3, 3]) * image.std() + image.mean())
        assert classes.flat[value] == int(items[number, number]["classes"]) == number % 3
        row, column = divmod(value, 50)
        around = whole[row : row + 7, column : column + 7]
        alike = {which for which in range(8) if np.array_equal(dihedral(around, which), patch)}
        assert alike  # several, where a reflection makes it symmetric
        middles.add(value)
        turns |= alike if len(alike) == 1 else set()
    assert turns == set(range(8)) and len(middles) > 200
    assert any(row in (0, 39) for row in np.array(list(middles)) // 50)  # edges count


def test_patches_are_a_function_of_seed_and_draw():
    def bytes_of(seed: int, draws: range) -> list[bytes]:
        items = Patches(*pictures(1), per_image=9, seed=seed)
        return [items[4, draw]["image"].numpy().tobytes() for draw in draws]

    assert bytes_of(1, range(9)) == bytes_of(1, range(9))
    assert len(set(bytes_of(1, range(9)))) == 9
    assert not set(bytes_of(1, range(9))) & set(bytes_of(2, range(9)))


def test_what_is_ignored_is_never_a_middle():
    images, classes, keys = pictures(1)
    classes = [np.where(np.arange(80) < 40, IGNORE, classes[0]).astype(np.uint8)]
    items = Patches(images, classes, keys, per_image=30)
    assert {int(items[i, i]["classes"]) for i in range(30)} == {0, 1, 2}
    none = [np.full((70, 80), IGNORE, np.uint8)]
    with pytest.raises(ValueError, match="field_0: no pixel has a class"):
        Patches(images, none, keys, per_image=3)


def test_an_image_without_nuclei_teaches_background_and_colours_have_channels():
    items = Patches([np.ones((40, 40, 3))], [np.zeros((40, 40), np.uint8)], ["a"], per_image=4)
    assert {int(items[i, i]["classes"]) for i in range(4)} == {0}
    assert items[0, 0]["image"].shape == (3, 61, 61)


def test_a_small_image_is_named():
    with pytest.raises(ValueError, match=r"a: patches of 61 pixels need .* 30 pixels"):
        Patches([np.ones((30, 90))], [np.zeros((30, 90), np.uint8)], ["a"], per_image=1)


def test_it_learns_from_patches_as_other_networks_learn(tmp_path):
    torch.manual_seed(0)
    model = DeepCell(channels=4, features=8)
    items = Patches(*pictures(), per_image=60)
    settings = FitSettings(epochs=3, updates=8, batch_size=12, learning_rate=1e-2, l2=1e-5)
    settings = dataclasses.replace(settings, device="cpu")
    result = fit(model, nn.CrossEntropyLoss(), items, items, tmp_path, settings, progress=False)
    assert result.history["val_loss"].iloc[-1] < np.log(3) - 0.2
    chances = predict(DenseDeepCell(model), pictures()[0][0])
    assert np.mean(chances.argmax(0) == pictures()[1][0]) > 0.6
