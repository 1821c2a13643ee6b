"""Predictions do not know how the image was cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nuctut.inference import fold_normalisation, number_of_tiles, predict, predict_tiles
from nuctut.models.cnn import SimpleCNN
from nuctut.models.resnet import FCNResNet
from nuctut.models.unet import ReducedUNet, UNet
from nuctut.targets import standardise


@pytest.fixture(scope="module")
def network() -> ReducedUNet:
    torch.manual_seed(1)
    return ReducedUNet(channels=(2, 2, 2, 2, 2), last_channels=2)


class Echo(nn.Module):
    """Logits that are the image itself and its negative; remembers what it was given."""

    stride = 16

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.seen: list[tuple[tuple[int, ...], bool]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append((tuple(image.shape), self.training))
        return torch.cat([image * self.gain, -image], 1)


def echo_of(image: np.ndarray) -> np.ndarray:
    first = 1 / (1 + np.exp(-2 * standardise(image).astype(float)))
    return np.stack([first, 1 - first])


@pytest.mark.parametrize(
    ("tile", "overlap", "batch_size"), [(256, 224, 4), (288, 224, 1), (320, 256, 3), (384, 224, 2)]
)
def test_the_grid_of_tiles_leaves_no_trace(network, tile, overlap, batch_size):
    image = np.random.default_rng(0).gamma(2, 100, (301, 413)).astype(np.uint16)
    whole = predict(network, image, tile=1024)
    tiled = predict(network, image, tile=tile, overlap=overlap, batch_size=batch_size)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_the_grid_does_show_where_the_overlap_is_too_small(network):
    image = np.random.default_rng(0).gamma(2, 100, (301, 413)).astype(np.uint16)
    whole = predict(network, image, tile=1024)
    assert np.abs(predict(network, image, tile=256, overlap=0) - whole).max() > 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (300, 7), (16, 32), (33, 50)])
def test_any_size_of_image(network, shape):
    image = np.random.default_rng(0).integers(0, 4096, shape, dtype=np.uint16)
    chances = predict(network, image)
    assert chances.shape == (3, *shape) and chances.dtype == np.float32
    assert np.isfinite(chances).all() and (chances >= 0).all()
    np.testing.assert_allclose(chances.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (7, 90), (64, 64), (77, 130)])
@pytest.mark.parametrize(("tile", "overlap"), [(32, 0), (48, 32), (1024, 224)])
def test_every_pixel_comes_from_its_own_place(shape, tile, overlap):
    image = np.random.default_rng(0).integers(0, 4096, shape, dtype=np.uint16)
    result = predict(Echo(), image, tile=tile, overlap=overlap, batch_size=3)
    np.testing.assert_allclose(result, echo_of(image), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (7, 90), (77, 130), (130, 16)])
@pytest.mark.parametrize(("tile", "overlap"), [(32, 0), (48, 32), (1024, 224)])
def test_tile_by_tile_it_is_the_same_and_no_tile_reads_more_than_itself(shape, tile, overlap):
    image = np.random.default_rng(0).integers(0, 4096, shape, dtype=np.uint16)
    how = {"tile": tile, "overlap": overlap}
    pixels, asked = standardise(image), []

    def read(rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        asked.append(max(rows[1] - rows[0], columns[1] - columns[0]))
        return pixels[slice(*rows), slice(*columns)]

    result = np.full((2, *shape), np.nan, np.float32)
    made = list(predict_tiles(Echo(), read, shape, **how))
    for rows, columns, chances in made:
        window = result[:, slice(*rows), slice(*columns)]
        assert np.isnan(window).all()  # no pixel twice
        window[:] = chances
    np.testing.assert_array_equal(result, predict(Echo(), image, **how))
    assert len(made) == number_of_tiles(Echo(), shape, **how) and max(asked) <= tile
    assert [rows for rows, _, _ in made] == sorted(rows for rows, _, _ in made)


def test_of_the_tiles_of_mercadier_the_middle_counts():
    """Tiles of 256 every 128, of which the central 128 are taken; at the edge, all up to it."""
    tiles = predict_tiles(
        Echo(), lambda y, x: np.zeros((256, 256), np.float32), (640, 512), tile=256, overlap=128
    )
    rows, columns = (set(spans) for spans in zip(*((y, x) for y, x, _ in tiles), strict=True))
    assert rows == {(0, 192), (192, 320), (320, 448), (448, 640)}
    assert columns == {(0, 192), (192, 320), (320, 512)}


@pytest.mark.parametrize(
    ("length", "number", "side"),
    [(1, 1, 16), (1024, 1, 1024), (1025, 2, 640), (1824, 2, 1024), (1825, 3, 768)],
)
def test_tiles_are_no_larger_than_their_number_asks_for(length, number, side):
    """With tiles of 1024 that overlap by 224, n of them reach over 800·n + 224 pixels."""
    echo = Echo()
    image = np.random.default_rng(0).integers(0, 4096, (3, length), dtype=np.uint16)
    result = predict(echo, image)
    assert {shape for shape, _ in echo.seen} == {(1, 1, 16, side)}
    assert len(echo.seen) == number_of_tiles(Echo(), image.shape) == number
    np.testing.assert_allclose(result, echo_of(image), atol=1e-5)


def test_an_overlap_that_is_asked_for_comes_with_the_tiles_that_are(network):
    echo = Echo()
    predict(echo, np.zeros((16, 1040)), overlap=224)
    assert [shape for shape, _ in echo.seen] == [(1, 1, 16, 1024)] * 2


def test_a_network_is_left_as_it_was_when_nobody_wants_more_tiles():
    echo = Echo().train()
    tiles = predict_tiles(
        echo, lambda y, x: np.zeros((32, 32), np.float32), (64, 64), tile=32, overlap=0
    )
    next(tiles)
    tiles.close()
    assert echo.training


class Colours(nn.Module):
    """One class per channel: the logits are the image itself."""

    stride = 4

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.gain


@pytest.mark.parametrize("shape", [(1, 1), (5, 90), (61, 43)])
@pytest.mark.parametrize(("tile", "overlap"), [(16, 0), (24, 8), (1024, 224)])
def test_every_channel_comes_to_its_own_place(shape, tile, overlap):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    result = predict(Colours(), image, tile=tile, overlap=overlap, batch_size=3)
    powers = np.exp(standardise(image).astype(float))
    expected = np.moveaxis(powers / powers.sum(-1, keepdims=True), -1, 0)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(("tile", "overlap"), [(32, 0), (1024, 224)])
def test_an_image_of_one_channel_is_a_grey_image(network, tile, overlap):
    image = np.random.default_rng(0).integers(0, 4096, (50, 41), dtype=np.uint16)
    how = {"tile": tile, "overlap": overlap}
    np.testing.assert_array_equal(
        predict(network, image[..., None], **how), predict(network, image, **how)
    )


class Brightness(Colours):
    """A single class, the more probable the brighter the first channel."""

    def forward(self, image: Tensor) -> Tensor:
        return image[:, :1] * self.gain


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_single_class_is_the_chance_of_being_foreground(precision):
    image = np.random.default_rng(0).integers(0, 256, (19, 23, 3), dtype=np.uint8)
    result = predict(Brightness(), image, precision=precision)
    assert result.shape == (1, 19, 23) and result.dtype == np.float32
    expected = 1 / (1 + np.exp(-standardise(image)[..., 0].astype(float)))
    np.testing.assert_allclose(result[0], expected, atol=1e-5)


@pytest.fixture(scope="module")
def colour_network() -> UNet:
    torch.manual_seed(2)
    return UNet(channels=(2, 2, 2, 2, 2), activation=nn.SELU)  # no unit of it is dead


def test_tiles_leave_no_trace_in_a_colour_image(colour_network):
    image = np.random.default_rng(0).gamma(2, 40, (120, 413, 3)).clip(0, 255).astype(np.uint8)
    whole = predict(colour_network, image)
    assert whole.shape == (1, 120, 413) and np.ptp(whole) > 0.01
    tiled = predict(colour_network, image, tile=256, overlap=224, batch_size=2)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
    assert np.abs(predict(colour_network, image, tile=256, overlap=0) - whole).max() > 1e-3


def test_tiles_are_batched_and_no_larger_than_asked_for():
    echo = Echo()
    predict(echo, np.random.default_rng(0).random((64, 100)), tile=32, overlap=0, batch_size=3)
    # 2 × 4 tiles: the last column overlaps its neighbour, 112 = 100 padded to the stride.
    assert [shape for shape, _ in echo.seen] == [(3, 1, 32, 32), (3, 1, 32, 32), (2, 1, 32, 32)]


def test_an_image_without_nuclei(network):
    chances = predict(network, np.full((40, 50), 117, np.uint16))
    assert np.isfinite(chances).all()
    np.testing.assert_allclose(chances.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_evaluated_and_left_as_it_was(training):
    echo = Echo().train(training)
    predict(echo, np.ones((20, 20)))
    assert [mode for _, mode in echo.seen] == [False]
    assert echo.training is training


def test_dropout_is_off(network):
    network.train()
    image = np.random.default_rng(0).random((48, 48))
    np.testing.assert_array_equal(predict(network, image), predict(network, image))


def test_the_callers_normalisation_sees_the_whole_image():
    image = np.random.default_rng(0).random((50, 40))
    seen = []

    def normalise(pixels: np.ndarray) -> np.ndarray:
        seen.append(pixels)
        return np.zeros(pixels.shape, np.float32)

    result = predict(Echo(), image, normalise=normalise, tile=32, overlap=0)
    assert len(seen) == 1 and seen[0] is image
    np.testing.assert_array_equal(result, np.full((2, 50, 40), 0.5, np.float32))


def test_bf16_is_close_to_fp32(network):
    image = np.random.default_rng(0).random((64, 64))
    half = predict(network, image, precision="bf16")
    full = predict(network, image)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.05


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tile": 100}, "multiple of 16.*tile=100"),
        ({"tile": 256, "overlap": 48}, "32 below it.*overlap=48"),
        ({"tile": 224, "overlap": 224}, "overlap=224"),
        ({"overlap": -32}, "overlap=-32"),
        ({"precision": "fp16"}, "precision must be.*'fp16'"),
    ],
)
def test_what_does_not_fit_is_refused(network, options, reason):
    with pytest.raises(ValueError, match=reason):
        predict(network, np.zeros((32, 32)), **options)


@pytest.mark.parametrize("shape", [(32,), (32, 32, 3, 1), ()])
def test_what_is_no_image_is_refused(network, shape):
    with pytest.raises(ValueError, match=r"\(H, W\) or \(H, W, channels\), not \("):
        predict(network, np.zeros(shape))


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: UNet(channels=(4,) * 5, normalise=True), 0),
        (lambda: ReducedUNet(3, channels=(4,) * 5, last_channels=4, normalise=True), 0),
        # The first layer normalises the image itself: no convolution is before it.
        (lambda: SimpleCNN(channels=4), 1),
        # Within a residual block the layers stand side by side, not in a sequence.
        (lambda: FCNResNet(18, pretrained=False), 16),
    ],
    ids=["u-net", "reduced u-net", "simple-cnn", "resnet"],
)
def test_folded_normalisation_gives_the_same_probabilities(make, left):
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.weight, module.running_var):
                    values.uniform_(0.8, 1.25)
                for values in (module.bias, module.running_mean):
                    values.normal_(0, 0.5)
    image = np.random.default_rng(0).random((50, 70, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold_normalisation(model)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == left
    expected = predict(model, image)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(predict(folded, image), expected, atol=1e-4)
    # The network itself can still be trained.
    assert model.training and folded.training is False
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_network_without_normalisation_is_copied_as_it_is(network):
    folded = fold_normalisation(network)
    image = np.random.default_rng(0).random((33, 48))
    np.testing.assert_array_equal(predict(folded, image), predict(network, image))
    with torch.no_grad():
        folded.head.weight.zero_()
    assert network.head.weight.any()
