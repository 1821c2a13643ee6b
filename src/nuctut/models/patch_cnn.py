"""A network that says of a small patch whether its middle is a nucleus, and so of every pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 32  # of a patch, in pixels
BEFORE, AFTER = SIDE // 2, SIDE // 2 - 1  # pixels of a patch above its middle, and below


class PatchCNN(nn.Module):
    """The network of Janowczyk & Madabhushi (2016, use case 1): Caffe's CIFAR-10-quick.

    Three 5×5 convolutions with 32, 32 and 64 feature maps, each followed by a pooling of 3×3 every
    second pixel (the largest value, then twice the mean) and a ReLU, which comes before the pooling
    but for the first; then 64 hidden units, without a ReLU, and two classes. Every convolution pads
    its patch with zeros, so that what it makes of a pixel depends on where its patch ends, and no
    convolution over a whole image gives the same.

    Without padding the layers are the same but for the poolings, which are of 2×2, and the third
    one, for which nothing is left: 32 → 28 → 14 → 10 → 5 → 1 pixels. Then all patches of an image
    can be looked at together, see `forward`. This is not in that paper.

    Args:
        padded: As in the paper, or not.

    Shapes:
        (B, 3, H, W) float → (B, 2, H − 31, W − 31) logits of background and nucleus, one for every
        patch; padded, H = W = 32.
    """

    optimiser = torch.optim.Adagrad  # as its authors fit it

    def __init__(self, padded: bool = False) -> None:
        super().__init__()
        self.padded = padded
        how = {"padding": 2 if padded else 0}
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 5, **how) for i, o in ((3, 32), (32, 32), (32, 64))
        )
        self.hidden = nn.Conv2d(64, 64, 4 if padded else 1)
        self.head = nn.Conv2d(64, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of every patch of an image, see the class for shapes.

        Of a single patch layer by layer; of a larger image densely: what a pooling leaves out
        belongs to other patches, so all of it is kept, and the layers that follow reach further
        instead (à trous).

        Raises:
            ValueError: When the image is smaller than a patch, or larger and the network padded.
        """
        size = tuple(image.shape[-2:])
        if size == (SIDE, SIDE):
            return self._of_patches(image)
        if self.padded or min(size) < SIDE:
            raise ValueError(
                f"the network takes {SIDE}×{SIDE} pixels, or more if it is not padded, not "
                f"{size[0]}×{size[1]}; EveryPixel pads an image and cuts it into patches."
            )
        first, second, third = self.convolutions
        features = F.max_pool2d(first(image), 2, stride=1).relu_()
        features = _means_apart(_dilated(features, second, 2).relu_(), 2)
        features = _dilated(features, third, 4).relu_()
        return self.head(self.hidden(features))

    def dense(self) -> EveryPixel:
        """The same network for whole images."""
        return EveryPixel(self)

    def _of_patches(self, patches: Tensor) -> Tensor:
        """(B, 2, 1, 1) logits of (B, 3, 32, 32) patches."""
        first, second, third = self.convolutions
        # as Caffe does it, windows may begin within the map and end outside
        pool = {"kernel_size": 3, "stride": 2, "ceil_mode": True}
        pool = pool if self.padded else {"kernel_size": 2, "stride": 2}
        features = F.max_pool2d(first(patches), **pool).relu_()
        features = F.avg_pool2d(second(features).relu_(), **pool)
        features = third(features).relu_()
        if self.padded:
            features = F.avg_pool2d(features, **pool)
        return self.head(self.hidden(features))


def _dilated(features: Tensor, convolution: nn.Conv2d, dilation: int) -> Tensor:
    return F.conv2d(features, convolution.weight, convolution.bias, dilation=dilation)


def _means_apart(features: Tensor, apart: int) -> Tensor:
    """Means of 2×2 values that lie so many pixels apart."""
    rows = features[..., :-apart, :] + features[..., apart:, :]
    return (rows[..., :-apart] + rows[..., apart:]) / 4


class EveryPixel(nn.Module):
    """A network of patches as one that gives a mask: each pixel is the middle of a patch.

    Beyond its edge the image is mirrored.

    Args:
        network: Of the patches.
        one_by_one: Look at every patch by itself, as Janowczyk & Madabhushi do, rather than at the
            whole image at once. A padded network always does.

    Shapes:
        (B, 3, H, W) float → (B, 2, H, W) logits, H and W at least 17.
    """

    stride = 1
    reach = BEFORE

    def __init__(self, network: PatchCNN, one_by_one: bool = False) -> None:
        super().__init__()
        self.network = network
        self.one_by_one = one_by_one or network.padded

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image; see the class for shapes."""
        padded = F.pad(image, (BEFORE, AFTER, BEFORE, AFTER), mode="reflect")
        if not self.one_by_one:
            return self.network(padded)
        rows = [self._row(padded[..., y : y + SIDE, :]) for y in range(image.shape[-2])]
        return torch.stack(rows, 2)

    def _row(self, strip: Tensor) -> Tensor:
        """(B, 2, W) logits of the patches of a strip, (B, 3, 32, W + 31)."""
        patches = strip.unfold(-1, SIDE, 1).movedim(-2, 1)  # (B, W, 3, 32, 32)
        logits = self.network(patches.flatten(0, 1))
        return logits.reshape(*patches.shape[:2], 2).movedim(-1, 1)
