"""The U-Net on a ResNet-34: its sizes, its weights, and that it is the libraries' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import ResNet34_Weights, resnet34
from torchvision.models.resnet import BasicBlock

from nuctut.borders import BorderCrossEntropy
from nuctut.inference import predict
from nuctut.models import unet_resnet
from nuctut.models.unet import UNet
from nuctut.models.unet_resnet import UNetResNet


@pytest.fixture(scope="module")
def narrow() -> UNetResNet:
    torch.manual_seed(0)
    return UNetResNet(pretrained=False, width=8)


def weights_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("classes", [1, 3])
def test_logits_are_as_large_as_the_image(classes):
    model = UNetResNet(classes, pretrained=False, width=8)
    assert model(torch.rand(2, 3, 32, 64)).shape == (2, classes, 32, 64)
    assert (model.width, model.pretrained, model.stride) == (8, False, 32)


def test_any_size_of_image_by_prediction(narrow):
    image = np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)
    chances = predict(narrow, image, tile=64, overlap=0)
    assert chances.shape == (1, 45, 70) and np.isfinite(chances).all()


def test_a_narrow_one_ships():
    with torch.device("meta"):
        sizes = {w: weights_of(UNetResNet(pretrained=False, width=w)) for w in (16, 20)}
    assert 1.5e6 < sizes[16] < 1.6e6 and 2.3e6 < sizes[20] < 3e6


def test_every_weight_has_a_part_in_the_result(narrow):
    for module in narrow.train().modules():
        if hasattr(module, "bn2"):  # a residual block starts as the identity
            nn.init.ones_(module.bn2.weight)
    narrow.zero_grad()
    BorderCrossEntropy()(narrow(torch.rand(2, 3, 64, 64)), torch.randn(2, 64, 64)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in narrow.parameters())


def test_it_has_the_blocks_of_a_resnet_34(narrow):
    encoder = narrow.network.encoder
    blocks = [m for m in encoder.modules() if type(m).__name__ == "BasicBlock"]
    assert len(blocks) == 3 + 4 + 6 + 3
    expected = sum(isinstance(m, BasicBlock) for m in resnet34().modules())
    assert len(blocks) == expected
    assert encoder.out_channels == [3, 64, 8, 16, 32, 64]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"width": 6}, "width must be a multiple of 4 from 8 to 64, not 6"),
        ({"width": 128}, "not 128"),
        ({"width": 16, "pretrained": True}, "ImageNet weights exist for width 64 only, not for 16"),
    ],
)
def test_what_there_is_not_is_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        UNetResNet(**{"pretrained": False} | options)


@pytest.mark.slow
def test_it_starts_from_the_published_weights_unless_restored(monkeypatch):
    """The encoder then computes what torchvision's network computes with them."""
    torch.manual_seed(0)
    published = resnet34()
    asked = []

    def weights(which):
        asked.append(which)
        return published.state_dict()

    monkeypatch.setattr(unet_resnet, "published_weights", weights)
    model = UNetResNet().eval()
    assert asked == [ResNet34_Weights.IMAGENET1K_V1] and model.pretrained
    assert weights_of(model) == 24_436_369  # as the library counts, and 21.3 million of the encoder
    published.eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        value = published.maxpool(published.relu(published.bn1(published.conv1(image))))
        for stage in (published.layer1, published.layer2, published.layer3, published.layer4):
            value = stage(value)
        torch.testing.assert_close(model.network.encoder(image)[-1], value)
    with torch.device("meta"):
        assert UNetResNet(restore=True).pretrained and len(asked) == 1


def test_the_published_weights_carry_a_checksum():
    assert torch.hub.HASH_REGEX.search(ResNet34_Weights.IMAGENET1K_V1.url.rpartition("/")[2])


# --- the U-Net of table S-II, which is `UNet` with options ---------------------------------------


def test_the_u_net_of_the_paper_is_a_u_net_with_elu():
    model = UNet(1, 1, (4, 8, 16, 32, 64), normalise=True, activation=nn.ELU)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(nn.ELU) == kinds.count(nn.BatchNorm2d) == 18 and nn.ReLU not in kinds
    loss = BorderCrossEntropy()(model(torch.rand(2, 1, 32, 32)), torch.randn(2, 32, 32))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.device("meta"):
        lite = UNet(1, 1, (16, 32, 64, 128, 256), normalise=True, activation=nn.ELU)
    assert weights_of(lite) < 3e6
