"""The reduced U-Net and its loss."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn

from nuctut import inference
from nuctut.losses import LogDiceLoss
from nuctut.models.unet import ReducedUNet
from nuctut.targets import IGNORE

TINY = {"channels": (4, 4, 4, 4, 4), "last_channels": 4}


# --- the network --------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (32, 80)])
def test_logits_are_as_large_as_the_image(normalise, size):
    network = ReducedUNet(in_channels=2, classes=5, **TINY, normalise=normalise)
    assert network(torch.rand(3, 2, *size)).shape == (3, 5, *size)


@pytest.mark.parametrize("size", [(16, 17), (8, 16), (520, 696)])
def test_other_sizes_are_refused_with_the_way_out(size):
    with pytest.raises(ValueError, match=r"multiples of 16.*inference\.predict"):
        ReducedUNet(**TINY)(torch.rand(1, 1, *size))


def test_wrong_numbers_of_levels_are_refused():
    for wrong in ({"channels": (4, 4, 4, 4)}, {"dropout": (0.1,) * 5}):
        with pytest.raises(ValueError, match=r"five numbers.*four"):
            ReducedUNet(**wrong)


def test_the_papers_dropout_follows_every_pooling():
    network = ReducedUNet(**TINY)
    order: list[str] = []
    names = {network.pool: "pool"} | {one: f"drop {one.p}" for one in network.dropout}
    names |= {block: "down" for block in network.down} | {block: "up" for block in network.up}
    for module, name in names.items():
        module.register_forward_hook(lambda *_, name=name: order.append(name))
    network(torch.rand(1, 1, 16, 16))
    expected = ["down"]
    for rate in (0.2, 0.25, 0.3, 0.35):
        expected += ["pool", f"drop {rate}", "down"]
    assert order == expected + ["up"] * 4
    assert sum(isinstance(module, nn.Dropout) for module in network.modules()) == 4


def test_dropout_works_in_training_alone():
    network = ReducedUNet(**TINY)
    image = torch.rand(1, 1, 32, 32)
    assert not torch.equal(network(image), network(image))
    network.eval()
    assert torch.equal(network(image), network(image))


def test_selu_follows_every_convolution_but_the_last():
    network = ReducedUNet(**TINY)
    kinds = [type(m) for m in network.modules() if not list(m.children())]
    assert kinds.count(nn.SELU) == kinds.count(nn.Conv2d) - 1 == 18
    for block in (*network.down, *network.up):
        assert [type(one) for one in block] == [nn.Conv2d, nn.SELU] * 2
        assert all(one.padding == (1, 1) and one.padding_mode == "zeros" for one in block[::2])
    assert kinds.count(nn.ConvTranspose2d) == 4
    assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.ReLU) == 0


def test_normalised_blocks():
    network = ReducedUNet(**TINY, normalise=True)
    kinds = [type(m) for m in network.modules()]
    assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.ReLU) == 18
    assert kinds.count(nn.SELU) == 0


def test_glorot_normal_kernels_and_zero_biases():
    torch.manual_seed(0)
    network = ReducedUNet(channels=(16, 24, 32, 40, 48), last_channels=16)
    ratios = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            area = math.prod(module.kernel_size)
            fans = area * (module.in_channels + module.out_channels)
            ratios.append(module.weight.var().item() * fans / 2)
            assert not module.bias.any()
            if module.weight.numel() > 3000:
                assert module.weight.abs().max() > 3 * module.weight.std()  # no uniform has that
                assert abs(ratios[-1] - 1) < 0.15
    assert len(ratios) == 23 and abs(np.mean(ratios[1:-1]) - 1) < 0.05


def test_the_number_of_weights():
    def convolution(i, o, area=9):
        return i * o * area + o

    c, last = (3, 5, 7, 9, 11), 6
    expected = sum(
        convolution(i, o) + convolution(o, o) for i, o in zip((1, *c[:-1]), c, strict=True)
    )
    outs = (last, 5, 7, 9)
    for level in range(4):
        below = outs[level + 1] if level < 3 else c[4]
        expected += convolution(below, c[level], 4)
        expected += convolution(2 * c[level], outs[level]) + convolution(outs[level], outs[level])
    expected += convolution(last, 3, 1)
    network = ReducedUNet(channels=c, last_channels=last)
    assert sum(p.numel() for p in network.parameters()) == expected
    # The default is a reduced U-Net: a quarter of the original's 31 million weights.
    assert 7e6 < sum(p.numel() for p in ReducedUNet().parameters()) < 8.5e6


def test_every_weight_has_a_part_in_the_result():
    network = ReducedUNet(**TINY).eval()
    network(torch.rand(1, 1, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_fine_detail_comes_by_the_skips_alone():
    network = ReducedUNet(**TINY).eval()
    with torch.no_grad():
        for level in network.upsample:
            level.weight.zero_()
    one, other = torch.rand(2, 1, 1, 32, 32)
    assert not torch.equal(network(one), network(other))


def reach(network: ReducedUNet, length: int = 256) -> int:
    """How far from a pixel the image can change it, in pixels: by gradients, at every phase."""
    network = network.double().eval()
    network.pool = nn.AvgPool2d(2)  # a maximum hands its gradient to one pixel alone
    with torch.no_grad():
        for weight in network.parameters():
            weight.abs_()  # so that no path is cancelled by another
    farthest = 0
    for row in range(length // 2, length // 2 + network.stride):
        strip = torch.rand(1, 1, length, network.stride, dtype=torch.double, requires_grad=True)
        network(strip)[0, :, row].sum().backward()
        touched = torch.nonzero(strip.grad[0, 0].abs().sum(1)).ravel()
        farthest = max(farthest, row - int(touched.min()), int(touched.max()) - row)
    return farthest


def test_tiles_overlap_by_twice_the_reach_of_the_network():
    torch.manual_seed(0)
    found = reach(ReducedUNet(channels=(2, 2, 2, 2, 2), last_channels=2))
    # 92 pixels of convolutions on the five levels, and 15 where the poolings' grid lies badly.
    assert found == 92 + 15
    assert inspect.signature(inference.predict).parameters["overlap"].default >= 2 * found


# --- the loss -----------------------------------------------------------------------------------


def formula(chances: np.ndarray, classes: np.ndarray, weights=(0.2, 0.4, 0.4)) -> float:
    """Equations 1 and 2 of the paper, class by class, in numpy."""
    total = 0.0
    for c, weight in enumerate(weights):
        y = (classes == c).astype(float)
        p = np.where(classes == IGNORE, 0, chances[:, c])
        total -= weight * math.log((2 * (y * p).sum() + 1) / (y.sum() + p.sum() + 1))
    return total


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 2, (2, 3, 5, 6)).astype(np.float32))
    return logits, torch.from_numpy(rng.integers(0, 3, (2, 5, 6)).astype(np.uint8))


def test_log_dice_by_hand():
    # Two pixels, probabilities (½, ¼, ¼) and (¼, ½, ¼), of classes 0 and 1.
    chances = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])
    logits = chances.log().T.reshape(1, 3, 1, 2)
    classes = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    dice = (1 + 1) / (1 + 0.75 + 1)
    expected = -(0.2 * math.log(dice) + 0.4 * math.log(dice) + 0.4 * math.log(1 / (0.5 + 1)))
    assert LogDiceLoss()(logits, classes).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("weights", [(0.2, 0.4, 0.4), (1.0, 0.0, 2.0)])
def test_log_dice_against_the_formula(weights):
    logits, classes = drawn()
    classes[0, 2:4] = IGNORE
    expected = formula(logits.softmax(1).numpy(), classes.numpy(), weights)
    assert LogDiceLoss(weights)(logits, classes).item() == pytest.approx(expected, abs=1e-5)


def test_the_papers_weights_are_the_default():
    assert LogDiceLoss().weights.tolist() == pytest.approx([0.2, 0.4, 0.4])


@pytest.mark.parametrize("cross_entropy", [0.0, 1.5])
def test_ignored_pixels_neither_count_nor_teach(cross_entropy):
    loss = LogDiceLoss(cross_entropy=cross_entropy)
    logits, classes = drawn()
    classes[1, :, 3:] = IGNORE
    logits.requires_grad_()
    value = loss(logits, classes)
    value.backward()
    ignored = (classes == IGNORE).unsqueeze(1).expand_as(logits)
    assert not logits.grad[ignored].any()
    assert logits.grad[~ignored].abs().min() > 0
    changed = torch.where(ignored, torch.full_like(logits, 9.0), logits)
    assert loss(changed, classes).item() == value.item()


def test_a_tile_that_is_ignored_whole_costs_nothing():
    logits = drawn()[0].requires_grad_()
    value = LogDiceLoss(cross_entropy=1.0)(logits, torch.full((2, 5, 6), IGNORE))
    value.backward()
    assert value.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("cross_entropy", [0.0, 1.0])
def test_a_perfect_prediction_costs_nothing(cross_entropy):
    classes = drawn()[1]
    classes[0, 0] = IGNORE
    target = classes.long().clamp(max=2)
    perfect = 50.0 * nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    loss = LogDiceLoss(cross_entropy=cross_entropy)
    assert abs(loss(perfect, classes).item()) < 1e-5
    assert loss(-perfect, classes).item() > 1


def test_an_empty_image_can_be_learnt():
    classes = torch.zeros(1, 4, 4, dtype=torch.uint8)
    background = torch.zeros(1, 3, 4, 4)
    background[:, 0] = 50
    assert abs(LogDiceLoss()(background, classes).item()) < 1e-5
    assert LogDiceLoss()(torch.zeros(1, 3, 4, 4), classes).item() > 0.5


def test_the_cross_entropy_is_torchs():
    logits, classes = drawn()
    classes[0, :, 1] = IGNORE
    with_it = LogDiceLoss(cross_entropy=0.7)(logits, classes)
    added = nn.functional.cross_entropy(logits, classes.long(), ignore_index=IGNORE)
    assert (with_it - LogDiceLoss()(logits, classes)).item() == pytest.approx(0.7 * added.item())


def test_half_precision_logits_are_summed_in_full():
    logits = torch.zeros(1, 3, 300, 300, dtype=torch.bfloat16)
    value = LogDiceLoss()(logits, torch.ones(1, 300, 300, dtype=torch.uint8))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(
        formula(np.full((1, 3, 300, 300), 1 / 3), np.ones((1, 300, 300))), rel=1e-5
    )
