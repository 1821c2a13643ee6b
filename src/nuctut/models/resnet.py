"""Fully convolutional networks on a ResNet (Long et al. 2015, He et al. 2016)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, conv1x1
from torchvision.models.segmentation import FCN_ResNet101_Weights, fcn_resnet101
from torchvision.models.segmentation.fcn import FCNHead

from .pretrained import published_weights

DEPTHS = (18, 101)
WIDTH = 64  # of the original ResNets


class FCNResNet(nn.Module):
    """A ResNet whose last two stages are dilated instead of strided, and a head on top of it.

    The head gives one logit for every eight by eight pixels; bilinear interpolation brings them
    back to the size of the image. Depth 101 is torchvision's `fcn_resnet101`, the network of
    Wang & Song (section III.B.3) as far as their text tells; 18 is the same design at the size of
    a small computer.

    Args:
        depth: 18 or 101.
        pretrained: Start from weights trained on COCO (depth 101 only).
        width: Of `resnet18` (depth 18 only).
        restore: Do not get these weights: the caller loads a checkpoint of a network that had them.

    Attributes:
        depth, width, pretrained: As given.

    Shapes:
        (B, 3, H, W) float → (B, 1, H, W) logits; H and W multiples of 8.

    Raises:
        ValueError: When there is no such depth, none of this width, or none with weights.
        OSError: When the weights cannot be had.
    """

    stride = 8

    def __init__(
        self,
        depth: int = 101,
        pretrained: bool = True,
        width: int = WIDTH,
        restore: bool = False,
    ) -> None:
        super().__init__()
        check_size(depth, width, pretrained, DEPTHS)
        weights = None
        if pretrained and not restore:
            weights = published_weights(FCN_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1)
        self.depth, self.width, self.pretrained = depth, width, pretrained
        if depth == 101:
            whole = fcn_resnet101(weights=None, weights_backbone=None, aux_loss=False)
            if weights is not None:
                whole.load_state_dict(
                    {name: w for name, w in weights.items() if not name.startswith("aux_")}
                )
            self.backbone, self.head = whole.backbone, whole.classifier
            self.head[-1] = nn.Conv2d(self.head[-1].in_channels, 1, 1)
        else:
            self.backbone = _dilated(resnet18(width))
            self.head = FCNHead(8 * width, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image; see the class for shapes."""
        features = self.backbone(image)
        coarse = self.head(features["out"] if isinstance(features, dict) else features)
        return F.interpolate(coarse, size=image.shape[-2:], mode="bilinear", align_corners=False)


def check_size(depth: int, width: int, pretrained: bool, depths: tuple[int, int]) -> None:
    """Refuse a depth, a width or weights that a network on a ResNet does not have.

    Args:
        depth, width, pretrained: Of the network.
        depths: 18, and the one with weights from COCO.

    Raises:
        ValueError: Naming the argument and what it may be.
    """
    small, large = depths
    if depth not in depths:
        raise ValueError(f"depth must be one of {small}, {large}, not {depth}.")
    if pretrained and depth != large:
        raise ValueError(f"COCO weights exist for depth {large} only, not for {depth}.")
    if width != WIDTH and depth != small:
        raise ValueError(f"width must be {WIDTH} for depth {depth}: only depth {small} has others.")
    if width not in range(8, WIDTH + 1, 8):
        raise ValueError(f"width must be a multiple of 8 up to {WIDTH}, not {width}.")


def resnet18(
    width: int = WIDTH, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> nn.Sequential:
    """The ResNet-18 (He et al. 2016, table 1) without its classifier; a narrow one, if asked.

    Parts and weights have the names that they have in `torchvision.models.resnet18`, which always
    has 64 feature maps in its first stage.

    Args:
        width: Feature maps of the first stage; each of the other three has twice as many as the
            one before. The number of weights, 11 million for 64, grows with the square.
        norm: Called with a number of channels, gives their normalisation.

    Shapes:
        (B, 3, H, W) float → (B, 8 width, H / 32, W / 32).
    """
    stages = OrderedDict(
        conv1=nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
        bn1=norm(width),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
        layer1=_stage(width, width, 1, norm),
        layer2=_stage(width, 2 * width, 2, norm),
        layer3=_stage(2 * width, 4 * width, 2, norm),
        layer4=_stage(4 * width, 8 * width, 2, norm),
    )
    network = nn.Sequential(stages)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _stage(inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> nn.Module:
    shortcut = None
    if inputs != outputs:
        shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), norm(outputs))
    first = BasicBlock(inputs, outputs, stride, shortcut, norm_layer=norm)
    return nn.Sequential(first, BasicBlock(outputs, outputs, norm_layer=norm))


def _dilated(network: nn.Sequential) -> nn.Sequential:
    """A ResNet-18 with an output stride of 8; torchvision dilates deeper ones only."""
    for stage, dilation in ((network.layer3, 2), (network.layer4, 4)):
        for convolution in stage.modules():
            if isinstance(convolution, nn.Conv2d):
                convolution.stride = (1, 1)
                if convolution.kernel_size == (3, 3):
                    convolution.dilation = convolution.padding = (dilation, dilation)
    return network
