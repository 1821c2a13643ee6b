"""The networks that classify pixels, and their losses."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.segmentation import FCN_ResNet101_Weights, fcn_resnet101

from nuctut import inference
from nuctut.losses import IoULoss, LogDiceLoss
from nuctut.models import resnet
from nuctut.models.cnn import SimpleCNN
from nuctut.models.resnet import FCNResNet
from nuctut.models.unet import ReducedUNet, UNet
from nuctut.targets import IGNORE

TINY = {"channels": (4, 4, 4, 4, 4), "last_channels": 4}


# --- the reduced U-Net --------------------------------------------------------------------------


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


def reach(network: UNet, channels: int = 1, length: int = 256) -> int:
    """How far from a pixel the image can change it, in pixels: by gradients, at every phase."""
    network = network.double().eval()
    network.pool = nn.AvgPool2d(2)  # a maximum hands its gradient to one pixel alone
    with torch.no_grad():
        for weight in network.parameters():
            weight.abs_()  # so that no path is cancelled by another
    farthest = 0
    for row in range(length // 2, length // 2 + network.stride):
        shape = (1, channels, length, network.stride)
        strip = torch.rand(shape, dtype=torch.double, requires_grad=True)
        network(strip)[0, :, row].sum().backward()
        touched = torch.nonzero(strip.grad[0].abs().sum((0, 2))).ravel()
        farthest = max(farthest, row - int(touched.min()), int(touched.max()) - row)
    return farthest


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        (lambda: ReducedUNet(channels=(2, 2, 2, 2, 2), last_channels=2), 1),
        (lambda: UNet(channels=(2, 2, 2, 2, 2)), 3),
    ],
    ids=["reduced u-net", "u-net"],
)
def test_tiles_overlap_by_twice_the_reach_of_the_network(make, channels):
    torch.manual_seed(0)
    found = reach(make(), channels)
    # 92 pixels of convolutions on the five levels, and 15 where the poolings' grid lies badly.
    assert found == 92 + 15
    assert inference.OVERLAP >= 2 * found


# --- the U-Net ----------------------------------------------------------------------------------


def counts(network: nn.Module) -> dict[type, int]:
    kinds = [type(module) for module in network.modules()]
    return {kind: kinds.count(kind) for kind in kinds}


@pytest.mark.parametrize("normalise", [False, True])
def test_the_u_net_has_19_convolutions_and_4_transposed_ones(normalise):
    network = UNet(channels=(2,) * 5, normalise=normalise)
    found = counts(network)
    assert (found[nn.Conv2d], found[nn.ConvTranspose2d], found[nn.MaxPool2d]) == (19, 4, 1)
    assert found[nn.ReLU] == 18 and found.get(nn.BatchNorm2d, 0) == 18 * normalise
    sizes = [m.kernel_size for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert sizes.count((3, 3)) == 18 and network.head.kernel_size == (1, 1)
    assert nn.SELU not in found
    assert not any(module.p for module in network.dropout)
    for block in (*network.down, *network.up):
        order = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] if normalise else [nn.Conv2d, nn.ReLU]
        assert [type(one) for one in block] == order * 2


def test_the_u_net_is_the_originals_in_size():
    with torch.device("meta"):
        network = UNet()
    widths = (64, 128, 256, 512, 1024)
    expected = 0
    for inputs, width in zip((3, *widths[:-1]), widths, strict=True):
        expected += 9 * inputs * width + width + 9 * width * width + width
    for width, below in pairwise(widths):
        expected += 4 * below * width + width
        expected += 9 * 2 * width * width + width + 9 * width * width + width
    expected += 64 + 1
    assert sum(p.numel() for p in network.parameters()) == expected
    assert network(torch.empty(2, 3, 32, 48, device="meta")).shape == (2, 1, 32, 48)
    assert network.channels == widths


def test_the_reduced_u_net_is_a_u_net_of_its_own_style():
    reduced = ReducedUNet(**TINY)
    assert isinstance(reduced, UNet) and reduced.stride == UNet.stride == 16
    plain = UNet(1, 3, **TINY, dropout=(0.2, 0.25, 0.3, 0.35), activation=nn.SELU)
    plain.load_state_dict(reduced.state_dict())
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(plain.eval()(image), reduced.eval()(image))


@pytest.mark.parametrize("normalise", [False, True])
def test_every_weight_of_the_u_net_has_a_part_in_the_result(normalise):
    torch.manual_seed(0)
    network = UNet(channels=(4,) * 5, normalise=normalise)
    network(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


# --- the simple CNN -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (7, 30), (33, 50)])
def test_the_simple_cnn_takes_any_size(size):
    assert SimpleCNN(in_channels=2, channels=3)(torch.rand(2, 2, *size)).shape == (2, 1, *size)


def test_the_layers_of_the_simple_cnn():
    layers = list(SimpleCNN(channels=5).layers)
    assert [type(one) for one in layers] == [nn.BatchNorm2d, *[nn.Conv2d, nn.ReLU] * 6, nn.Conv2d]
    convolutions = [one for one in layers if isinstance(one, nn.Conv2d)]
    assert {one.kernel_size for one in convolutions} == {(3, 3)}
    widths = [(one.in_channels, one.out_channels) for one in convolutions]
    assert widths == [(3, 5), *[(5, 5)] * 5, (5, 1)]
    # nothing but these: 3 + 3 of the normalisation, and kernels with biases
    expected = 6 + (27 * 5 + 5) + 5 * (45 * 5 + 5) + (45 + 1)
    assert sum(p.numel() for p in SimpleCNN(channels=5).parameters()) == expected


def test_the_simple_cnn_sees_15_by_15_pixels():
    torch.manual_seed(0)
    network = SimpleCNN(channels=3).double().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.abs_()  # so that no path is cancelled by another
    image = torch.rand(1, 3, 31, 33, dtype=torch.double, requires_grad=True)
    network(image)[0, 0, 15, 16].backward()
    touched = image.grad[0].abs().sum(0) > 0
    expected = torch.zeros(31, 33, dtype=torch.bool)
    expected[8:23, 9:24] = True
    assert torch.equal(touched, expected)


# --- the ResNet ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet18() -> FCNResNet:
    torch.manual_seed(0)
    return FCNResNet(18, pretrained=False).eval()


@pytest.mark.parametrize("size", [(16, 24), (64, 40)])
def test_the_resnet_gives_one_logit_per_pixel_from_one_per_eight_by_eight(resnet18, size):
    coarse: list[torch.Tensor] = []
    hook = resnet18.head.register_forward_hook(lambda *given: coarse.append(given[-1]))
    with torch.no_grad():
        logits = resnet18(torch.rand(1, 3, *size))
    hook.remove()
    assert logits.shape == (1, 1, *size)
    assert coarse[0].shape == (1, 1, size[0] // resnet18.stride, size[1] // resnet18.stride)
    expected = nn.functional.interpolate(coarse[0], scale_factor=8, mode="bilinear")
    torch.testing.assert_close(logits, expected)


def test_the_last_two_stages_are_dilated_instead_of_strided(resnet18):
    stages = list(resnet18.backbone)[-4:]
    strides, dilations = [], []
    for stage in stages:
        kernels = [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
        strides.append(max(one.stride[0] for one in kernels))
        large = [one for one in kernels if one.kernel_size == (3, 3)]
        assert len(large) == 4 and all(one.padding == one.dilation for one in large)
        dilations.append({one.dilation for one in large})
    assert strides == [1, 2, 1, 1]
    assert dilations == [{(1, 1)}, {(1, 1)}, {(2, 2)}, {(4, 4)}]
    assert sum(isinstance(m, nn.Conv2d) for m in stages for m in m.modules()) == 16 + 3


def test_every_weight_of_the_resnet_has_a_part_in_the_result():
    torch.manual_seed(0)
    network = FCNResNet(18, pretrained=False)
    network(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_depth_101_is_torchvisions_with_one_class():
    with torch.device("meta"):
        network = FCNResNet(101, pretrained=False)
    published = FCN_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1.meta["num_params"]
    auxiliary = 1024 * 256 * 9 + 2 * 256 + 256 * 21 + 21
    classes = 20 * (512 + 1)
    assert sum(p.numel() for p in network.parameters()) == published - auxiliary - classes
    assert network(torch.empty(1, 3, 64, 40, device="meta")).shape == (1, 1, 64, 40)
    assert (network.depth, network.pretrained) == (101, False)


def test_coco_weights_are_loaded_but_for_the_last_layer(monkeypatch):
    with torch.device("meta"):
        whole = fcn_resnet101(weights=None, weights_backbone=None, aux_loss=True)
    quarter = torch.tensor(0.25)
    weights = {name: quarter.expand(one.shape) for name, one in whole.state_dict().items()}
    asked = []
    monkeypatch.setattr(resnet, "published_weights", lambda one: asked.append(one) or weights)
    monkeypatch.setattr(nn.init, "kaiming_normal_", lambda weight, **_: weight)  # they take seconds
    network = FCNResNet()
    assert asked == [FCN_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1]
    assert network.pretrained and network.depth == 101
    for name, weight in network.named_parameters():
        assert bool((weight == 0.25).all()) is not name.startswith("head.4."), name
    assert network.head[-1].weight.shape == (1, 512, 1, 1)


def test_depths_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"depth must be one of 18, 101, not 50"):
        FCNResNet(50)
    with pytest.raises(ValueError, match=r"COCO weights exist for depth 101 only, not for 18"):
        FCNResNet(18)


def test_widths_that_do_not_exist_are_refused():
    for width in (0, 20, 72):
        with pytest.raises(ValueError, match=rf"multiple of 8 up to 64, not {width}"):
            FCNResNet(18, False, width)
    with pytest.raises(ValueError, match=r"width must be 64 for depth 101: only depth 18"):
        FCNResNet(101, False, 24)


def test_of_64_feature_maps_it_is_torchvisions_resnet18():
    theirs = torchvision.models.resnet18().eval()
    mine = resnet.resnet18().eval()
    mine.load_state_dict({n: w for n, w in theirs.state_dict().items() if n[:3] != "fc."})
    assert [n for n, _ in mine.named_children()] == [n for n, _ in theirs.named_children()][:-2]
    with torch.no_grad():
        image = torch.rand(1, 3, 64, 96)
        pooled = theirs.avgpool(mine(image)).flatten(1)
        torch.testing.assert_close(theirs.fc(pooled), theirs(image))


def test_a_resnet_begins_as_torchvisions_do():
    torch.manual_seed(0)
    mine, theirs = resnet.resnet18(), torchvision.models.resnet18()
    for name, weight in theirs.named_parameters():
        if name[:3] != "fc.":
            own = mine.get_parameter(name).detach()
            assert own.std() == pytest.approx(weight.std().item(), rel=0.05, abs=1e-9), name
            assert own.mean() == pytest.approx(weight.mean().item(), abs=0.01), name


@pytest.mark.parametrize("width", [8, 24])
def test_a_narrow_resnet_has_fewer_weights_in_the_same_layers(width, resnet18):
    narrow = FCNResNet(18, False, width)
    wide = dict(resnet18.named_parameters())
    for name, weight in narrow.named_parameters():
        expected = [n * width // 64 if n % 64 == 0 else n for n in wide.pop(name).shape]
        assert list(weight.shape) == expected, name
    assert not wide and narrow.width == width
    assert narrow(torch.rand(2, 3, 32, 40)).shape == (2, 1, 32, 40)


def test_the_resnet_of_24_feature_maps_fits_into_six_megabytes():
    with torch.device("meta"):
        network = FCNResNet(18, False, 24)
    assert sum(one.numel() for one in network.state_dict().values()) < 2e6  # two bytes each


# --- the log-Dice loss --------------------------------------------------------------------------


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


# --- the loss of intersection over union --------------------------------------------------------


def masked(seed: int = 0, shape: tuple[int, ...] = (2, 5, 6)) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 2, shape).astype(np.float32)).unsqueeze(1)
    return logits, torch.from_numpy(rng.integers(0, 2, shape).astype(np.uint8))


def test_iou_by_hand():
    # Probabilities ½ ¾ on nuclei, ¼ ¾ on background: I = 1.25, U = 2 + 1 = 3, and 1 added to both.
    chances = torch.tensor([0.5, 0.75, 0.25, 0.75])
    logits = torch.logit(chances).reshape(1, 1, 2, 2)
    classes = torch.tensor([[[1, 1], [0, 0]]], dtype=torch.uint8)
    assert IoULoss()(logits, classes).item() == pytest.approx(1 - 2.25 / 4, abs=1e-6)
    assert IoULoss(iou=3.0)(logits, classes).item() == pytest.approx(3 * (1 - 2.25 / 4), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_iou_against_the_papers_formula(seed):
    """Over many pixels, what is added to I and U does not matter."""
    logits, classes = masked(seed, (3, 200, 200))
    x = 1 / (1 + np.exp(-logits[:, 0].numpy().astype(float)))
    y = classes.numpy().astype(float)
    expected = 1 - (x * y).sum() / (x + y - x * y).sum()
    assert IoULoss()(logits, classes).item() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(
    ("truth", "found", "iou"),
    [
        (slice(0, 40), slice(0, 40), 1),
        (slice(0, 40), slice(20, 60), 1 / 3),
        (slice(0, 40), slice(0, 80), 1 / 2),
        (slice(0, 40), slice(40, 80), 0),
    ],
)
def test_iou_of_certain_predictions_is_that_of_the_masks(truth, found, iou):
    classes = torch.zeros(1, 100, 500, dtype=torch.uint8)
    logits = torch.full((1, 1, 100, 500), -40.0)
    classes[0, truth], logits[0, 0, found] = 1, 40.0
    assert IoULoss()(logits, classes).item() == pytest.approx(1 - iou, abs=1e-4)


def test_the_sums_of_iou_run_over_the_batch():
    logits, classes = masked()
    together = torch.cat(list(logits), -1)[None], torch.cat(list(classes), -1)[None]
    assert IoULoss()(logits, classes).item() == pytest.approx(IoULoss()(*together).item())


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_cross_entropy_beside_iou_is_torchs(weight):
    logits, classes = masked()
    expected = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], classes.float())
    alone = IoULoss(iou=0.0, cross_entropy=weight)(logits, classes)
    assert alone.item() == pytest.approx(weight * expected.item(), rel=1e-6)
    both = IoULoss(iou=2.0, cross_entropy=weight)(logits, classes)
    assert both.item() == pytest.approx(2 * IoULoss()(logits, classes).item() + alone.item())
    # Pixels that are ignored are no part of the mean.
    classes[1, :, 2:] = IGNORE
    known = classes != IGNORE
    expected = nn.functional.binary_cross_entropy_with_logits(
        logits[:, 0][known], classes[known].float()
    )
    alone = IoULoss(iou=0.0, cross_entropy=weight)(logits, classes)
    assert alone.item() == pytest.approx(weight * expected.item(), rel=1e-6)


def test_every_class_but_background_is_foreground():
    logits, classes = masked()
    several = classes * torch.randint(1, 4, classes.shape, dtype=torch.uint8)
    for loss in (IoULoss(), IoULoss(0.0, 1.0)):
        assert loss(logits, several).item() == loss(logits, classes).item()


LOSSES = [IoULoss(), IoULoss(0.0, 1.0), IoULoss(1.0, 0.5)]


@pytest.mark.parametrize("loss", LOSSES, ids=["iou", "cross-entropy", "both"])
def test_pixels_that_are_ignored_neither_count_nor_teach_iou(loss):
    logits, classes = masked()
    classes[1, :, 3:] = IGNORE
    logits.requires_grad_()
    value = loss(logits, classes)
    value.backward()
    ignored = (classes == IGNORE).unsqueeze(1)
    assert not logits.grad[ignored].any() and logits.grad[~ignored].all()
    changed = torch.where(ignored, torch.full_like(logits, 9.0), logits)
    assert loss(changed, classes).item() == value.item()
    kept = torch.cat([logits[0, 0].ravel(), logits[1, 0, :, :3].ravel()])
    truth = torch.cat([classes[0].ravel(), classes[1, :, :3].ravel()])
    without = loss(kept.reshape(1, 1, 1, -1), truth.reshape(1, 1, -1))
    assert without.item() == pytest.approx(value.item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=["iou", "cross-entropy", "both"])
def test_it_pulls_nuclei_up_and_background_down(loss):
    logits, classes = masked()
    logits.requires_grad_()
    loss(logits, classes).backward()
    gradient, nuclei = logits.grad[:, 0], classes == 1
    assert (gradient[nuclei] < 0).all() and (gradient[~nuclei] > 0).all()


@pytest.mark.parametrize("loss", LOSSES, ids=["iou", "cross-entropy", "both"])
def test_a_batch_without_nuclei_teaches_background(loss):
    nothing = torch.zeros(1, 4, 5, dtype=torch.uint8)
    logits = torch.zeros(1, 1, 4, 5, requires_grad=True)
    value = loss(logits, nothing)
    value.backward()
    assert value > 0.5 and (logits.grad > 0).all()
    assert abs(loss(torch.full((1, 1, 4, 5), -40.0), nothing).item()) < 1e-6


@pytest.mark.parametrize("loss", LOSSES, ids=["iou", "cross-entropy", "both"])
def test_a_batch_that_is_ignored_whole_costs_nothing(loss):
    logits = masked()[0].requires_grad_()
    value = loss(logits, torch.full((2, 5, 6), IGNORE, dtype=torch.uint8))
    value.backward()
    assert value.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("loss", LOSSES, ids=["iou", "cross-entropy", "both"])
def test_half_precision_probabilities_are_summed_in_full(loss):
    logits = torch.zeros(1, 1, 300, 300, dtype=torch.bfloat16)
    value = loss(logits, torch.ones(1, 300, 300, dtype=torch.uint8))
    assert value.dtype == torch.float32
    iou, entropy = 1 - 45_001 / 90_001, math.log(2)
    assert value.item() == pytest.approx(loss.iou * iou + loss.cross_entropy * entropy, rel=1e-5)


@pytest.mark.parametrize("weights", [(0, 0), (-1, 2), (2, -1), (-1, -1)])
def test_weights_that_weigh_nothing_are_refused(weights):
    with pytest.raises(ValueError, match=rf"at least one is above 0; got {weights[0]} and"):
        IoULoss(*weights)
