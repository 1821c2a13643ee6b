"""pix2pix: two small networks against each other, killed and started again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage as ndi

from nuctut import translation
from nuctut.files import Malformed
from nuctut.models.pix2pix import Discriminator, Generator
from nuctut.training import NonFiniteLoss
from nuctut.translation import COLUMNS, TranslationSettings, translate

SIZE = 32


class Blurred:
    """Squares with hard edges, to be translated into blurred ones."""

    def __init__(self, stop_at: int | None = None, bad: float = 0.0) -> None:
        self.stop_at, self.bad = stop_at, bad

    def __len__(self) -> int:
        return 2

    def __getitem__(self, item: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        which, draw = item
        if draw == self.stop_at:
            raise KeyboardInterrupt
        sharp = np.full((SIZE, SIZE), 100, np.float32)
        sharp[6 + 4 * which : 20, 8:24] = 900
        return sharp, ndi.gaussian_filter(sharp, 1.5) + np.float32(self.bad)


def networks(seed: int = 0, width: int = 4) -> tuple[Generator, Discriminator]:
    torch.manual_seed(seed)
    return Generator(width, depth=2), Discriminator(width=4)


def settings(epochs: int = 3, updates: int = 4, **other) -> TranslationSettings:
    return TranslationSettings(epochs, updates, **other)


def fit(folder, pairs=None, how=None, seed=0, width=4):
    generator, judge = networks(seed, width)
    pairs = Blurred() if pairs is None else pairs
    result = translation.fit(generator, judge, pairs, folder, how or settings(), progress=False)
    return generator, result


def weights(generator) -> torch.Tensor:
    return torch.cat([one.detach().ravel() for one in generator.parameters()])


# --- the networks --------------------------------------------------------------------------------


def test_the_papers_networks_are_those_of_isola():
    """54.4 million weights translate, 2.8 million judge patches of 70×70 pixels."""
    with torch.device("meta"):
        generator, judge = Generator(), Discriminator()
        image = torch.empty(1, 1, 256, 256)
        assert generator(image).shape == (1, 1, 256, 256)
        assert judge(image, image).shape == (1, 1, 30, 30)
    assert sum(one.numel() for one in generator.parameters()) == pytest.approx(54.4e6, rel=2e-3)
    assert sum(one.numel() for one in judge.parameters()) == pytest.approx(2.77e6, rel=2e-3)
    assert sum(isinstance(one, torch.nn.Dropout) for one in generator.modules()) == 3


def test_a_judges_patch_is_70_pixels_wide():
    judge = Discriminator(width=2)
    for module in judge.modules():  # normalisation would let every pixel count
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.forward = lambda x: x
    image = torch.rand(1, 1, 128, 128, requires_grad=True)
    judge(image, torch.rand(1, 1, 128, 128))[0, 0, 7, 7].backward()
    rows = image.grad[0, 0].abs().sum(1).nonzero()
    assert rows.max() - rows.min() + 1 == 70


def test_the_generator_says_which_sizes_it_takes():
    with pytest.raises(ValueError, match="multiples of 8, not \\(32, 36\\)"):
        Generator(width=2, depth=3)(torch.zeros(1, 1, 32, 36))
    with pytest.raises(ValueError, match="depth at least 2"):
        Generator(depth=1)


# --- fitting -------------------------------------------------------------------------------------


def test_two_pairs_are_learned_by_heart(tmp_path):
    generator, result = fit(tmp_path, how=settings(4, 65), width=16)
    history = result.history
    assert tuple(history) == COLUMNS and history["step"].tolist() == [65, 130, 195, 260]
    assert history["l1"].iloc[-1] < history["l1"].iloc[0] / 3
    sharp, soft = Blurred()[0, 0]
    made = translate(generator, sharp)
    assert made.dtype == sharp.dtype
    assert np.abs(made - soft).mean() < 0.6 * np.abs(sharp - soft).mean()


def test_a_fit_that_was_cut_off_ends_with_the_same_weights(tmp_path):
    whole, result = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", Blurred(stop_at=6))
    assert (tmp_path / "cut" / "last.safetensors").exists()
    again, other = fit(tmp_path / "cut", seed=7)  # other weights at first: the state is taken up
    assert torch.equal(weights(whole), weights(again))
    assert other.weights_sha256 == result.weights_sha256 and other.updates == 12
    losses = list(COLUMNS[:-1])
    assert other.history[losses].equals(result.history[losses])
    assert not (tmp_path / "cut" / "last.safetensors").exists()


def test_a_finished_fit_is_read_not_repeated(tmp_path):
    first, result = fit(tmp_path)
    second, other = fit(tmp_path, Blurred(stop_at=0), seed=7)
    assert torch.equal(weights(first), weights(second))
    assert other.weights_sha256 == result.weights_sha256 and other.seconds == result.seconds


def test_another_seed_gives_other_weights_and_torchs_own_numbers_stay(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    generator, judge = networks()
    torch.manual_seed(5)
    translation.fit(generator, judge, Blurred(), tmp_path / "a", settings(), progress=False)
    translate(generator, Blurred()[0, 0][0], seed=3)
    assert torch.equal(torch.rand(3), expected)
    other, _ = fit(tmp_path / "b", how=settings(seed=1))
    assert not torch.equal(weights(generator), weights(other))


def test_other_settings_are_refused_the_folder(tmp_path):
    fit(tmp_path)
    with pytest.raises(ValueError, match="other settings"):
        fit(tmp_path, how=settings(4))


@pytest.mark.parametrize("name", ["generator.safetensors", "history.csv", "done.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    fit(tmp_path)
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(Malformed, match=name):
        fit(tmp_path)


def test_a_damaged_state_is_named(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Blurred(stop_at=6))
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Malformed, match=r"last\.safetensors is damaged.*delete the file"):
        fit(tmp_path)


def test_a_loss_that_is_no_number_names_the_pair(tmp_path):
    with pytest.raises(NonFiniteLoss, match="update 0 on pair"):
        fit(tmp_path, Blurred(bad=np.nan))


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"updates": 0}, {"seed": -1}])
def test_settings_that_cannot_be_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TranslationSettings(**{"epochs": 1, "updates": 1} | wrong)


# --- translating ---------------------------------------------------------------------------------


def test_translating_depends_on_the_seed_alone():
    torch.manual_seed(0)
    generator = Generator(width=4, depth=6)  # deep enough to have dropout
    for one in generator.parameters():
        torch.nn.init.normal_(one, 0, 0.3)
    image = np.random.default_rng(0).integers(0, 4095, (64, 64)).astype(np.uint16)
    first = translate(generator, image, seed=1)
    assert first.dtype == np.uint16 and first.shape == image.shape
    assert np.array_equal(first, translate(generator, image, seed=1))
    assert not np.array_equal(first, translate(generator, image, seed=2))


def test_intensities_keep_their_range():
    """A generator that gives back what it gets: the image comes out as it went in."""

    class Same(torch.nn.Module):
        stride = 4

        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(1))

        def forward(self, image):
            return image * self.one

    image = np.arange(1023, dtype=np.uint16).reshape(33, 31) + np.uint16(300)
    image[0, 0] = 60000
    bright = np.percentile(image, translation.BRIGHT)
    expected = np.minimum(image, np.uint16(np.rint(bright)))
    assert np.abs(translate(Same(), image).astype(int) - expected).max() <= 1
    constant = np.full((8, 8), 7, np.uint8)
    assert np.array_equal(translate(Same(), constant), constant)
