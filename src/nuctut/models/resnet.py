"""Fully convolutional networks on a ResNet (Long et al. 2015, He et al. 2016)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18
from torchvision.models.segmentation import FCN_ResNet101_Weights, fcn_resnet101
from torchvision.models.segmentation.fcn import FCNHead

from .pretrained import published_weights

DEPTHS = (18, 101)


class FCNResNet(nn.Module):
    """A ResNet whose last two stages are dilated instead of strided, and a head on top of it.

    The head gives one logit for every eight by eight pixels; bilinear interpolation brings them
    back to the size of the image. Depth 101 is torchvision's `fcn_resnet101`, the network of
    Wang & Song (section III.B.3) as far as their text tells; 18 is the same design at the size of
    a small computer.

    Args:
        depth: 18 or 101.
        pretrained: Start from weights trained on COCO (depth 101 only), where they can be had.
        restore: Do not get these weights: the caller loads a checkpoint of a network that had them.

    Attributes:
        depth: As given.
        pretrained: Whether the weights were had.

    Shapes:
        (B, 3, H, W) float → (B, 1, H, W) logits; H and W multiples of 8.
    """

    stride = 8

    def __init__(self, depth: int = 101, pretrained: bool = True, restore: bool = False) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS))}, not {depth}.")
        if pretrained and depth != 101:
            raise ValueError(f"COCO weights exist for depth 101 only, not for {depth}.")
        weights = None
        if pretrained and not restore:
            weights = published_weights(FCN_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1)
        self.depth = depth
        self.pretrained = pretrained and (restore or weights is not None)
        if depth == 101:
            whole = fcn_resnet101(weights=None, weights_backbone=None, aux_loss=False)
            if weights is not None:
                whole.load_state_dict(
                    {name: w for name, w in weights.items() if not name.startswith("aux_")}
                )
            self.backbone, self.head = whole.backbone, whole.classifier
            self.head[-1] = nn.Conv2d(self.head[-1].in_channels, 1, 1)
        else:
            self.backbone, self.head = _dilated_resnet18(), FCNHead(512, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image; see the class for shapes."""
        features = self.backbone(image)
        coarse = self.head(features["out"] if isinstance(features, dict) else features)
        return F.interpolate(coarse, size=image.shape[-2:], mode="bilinear", align_corners=False)


def _dilated_resnet18() -> nn.Sequential:
    """ResNet-18 without its classifier, output stride 8; torchvision dilates deeper ones only."""
    whole = resnet18(weights=None)
    for stage, dilation in ((whole.layer3, 2), (whole.layer4, 4)):
        for convolution in stage.modules():
            if isinstance(convolution, nn.Conv2d):
                convolution.stride = (1, 1)
                if convolution.kernel_size == (3, 3):
                    convolution.dilation = convolution.padding = (dilation, dilation)
    stem = nn.Sequential(whole.conv1, whole.bn1, whole.relu, whole.maxpool)
    return nn.Sequential(stem, whole.layer1, whole.layer2, whole.layer3, whole.layer4)
