"""The two networks of pix2pix (Isola et al. 2017): one translates images, one judges them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SLOPE = 0.2  # of the leaky units
DROPPED_BELOW = 4  # halvings; what lies deeper has dropout on the way up


class Generator(nn.Module):
    """The U-Net that translates an image (Isola et al. 2017, section 6.1.1).

    Convolutions of 4×4 with stride 2 down to a pixel for 2^depth × 2^depth, transposed ones up
    again, with a skip between those of one size. Dropout of ½ in the blocks deeper than four
    halvings (the three deepest of the original's eight) stands for the noise of a GAN; it stays at
    work when an image is translated. The original normalises over a batch, also of one image and
    when translating: over one image that is instance normalisation, which is used here. The
    deepest block has none, which would leave nothing of a single pixel.

    Args:
        width: Feature maps of the first convolution, `ngf`; they double down to 8 × width.
        depth: How often the image is halved; the original's 8 bring 256 pixels down to 1.

    Shapes:
        (B, 1, H, W) float, −1…1 → the same; H and W multiples of 2^depth.
    """

    def __init__(self, width: int = 64, depth: int = 8) -> None:
        super().__init__()
        if width < 1 or depth < 2:
            raise ValueError(
                f"width must be at least 1 and depth at least 2, not {width} and {depth}."
            )
        self.width, self.depth, self.stride = width, depth, 2**depth
        maps = [min(2**level, 8) * width for level in range(depth)]
        downs = [nn.Conv2d(1, width, 4, 2, 1)]
        ups = [nn.ConvTranspose2d(2 * width, 1, 4, 2, 1)]
        for level in range(1, depth):
            deepest = level == depth - 1
            inner, outer = maps[level], maps[level - 1]
            norm = [] if deepest else [nn.InstanceNorm2d(inner, affine=True)]
            downs.append(
                nn.Sequential(nn.LeakyReLU(SLOPE), nn.Conv2d(outer, inner, 4, 2, 1), *norm)
            )
            back = nn.ConvTranspose2d(inner if deepest else 2 * inner, outer, 4, 2, 1)
            noise = [nn.Dropout(0.5)] * (level > DROPPED_BELOW)
            ups.append(
                nn.Sequential(nn.ReLU(), back, nn.InstanceNorm2d(outer, affine=True), *noise)
            )
        self.down, self.up = nn.ModuleList(downs), nn.ModuleList(ups)
        self.apply(_as_in_dcgan)

    def forward(self, image: Tensor) -> Tensor:
        """The image translated; see the class for shapes.

        Raises:
            ValueError: When height or width is no multiple of 2^depth.
        """
        if image.shape[-2] % self.stride or image.shape[-1] % self.stride:
            raise ValueError(
                f"the generator needs height and width in multiples of {self.stride}, not "
                f"{tuple(image.shape[-2:])}; give other images, or a generator of less depth."
            )
        skips = []
        for down in self.down:
            image = down(image)
            skips.append(image)
        for level in reversed(range(1, self.depth)):
            image = torch.cat([skips[level - 1], self.up[level](image)], 1)
        return torch.tanh(self.up[0](torch.relu(image)))


class Discriminator(nn.Module):
    """PatchGAN: is a patch of the second image the translation of the first, or made up?

    (Isola et al. 2017, section 6.1.2.) Each logit looks at 70×70 pixels of both images.

    Args:
        width: Feature maps of the first convolution, `ndf`; they double twice more, and once again.

    Shapes:
        Two (B, 1, H, W) float → (B, 1, H/8 − 2, W/8 − 2) logits, high for a true translation.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        layers: list[nn.Module] = [nn.Conv2d(2, width, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for factor, stride in ((2, 2), (4, 2), (8, 1)):
            inner = nn.Conv2d(factor // 2 * width, factor * width, 4, stride, 1)
            norm = nn.InstanceNorm2d(factor * width, affine=True)
            layers += [inner, norm, nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))
        self.apply(_as_in_dcgan)

    def forward(self, source: Tensor, image: Tensor) -> Tensor:
        """Logits for each patch; see the class for shapes."""
        return self.layers(torch.cat([source, image], 1))


def _as_in_dcgan(module: nn.Module) -> None:
    """Weights as at the start of the original's training: N(0, 0.02), of a norm N(1, 0.02)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.InstanceNorm2d):
        normalises = isinstance(module, nn.InstanceNorm2d)
        nn.init.normal_(module.weight, float(normalises), 0.02)
        nn.init.zeros_(module.bias)
