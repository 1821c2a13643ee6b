"""Scores of sharp and blurred images, crowded images, verdicts on focus, deblurred images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage as ndi
from torch import nn

from nuctut import focus, postprocess
from nuctut.metrics import Match
from nuctut.targets import NUCLEUS


def found(tp: int, fp: int, fn: int, iou: float = 0.5) -> Match:
    return Match(iou, tp, fp, fn, float(tp))


# --- scores --------------------------------------------------------------------------------------


def test_scores_pool_their_images_and_keep_their_threshold():
    made = focus.focus_scores([found(9, 1, 1, 0.25), found(0, 0, 2, 0.25)], [found(3, 3, 3, 0.25)])
    assert made.iou == 0.25
    assert made.sharp == pytest.approx(18 / 22) and made.blurred == pytest.approx(0.5)
    assert made.nhm == pytest.approx(2 / (22 / 18 + 2))


@pytest.mark.parametrize(
    "blurred, sharp, nhm",
    [(0.598, 0.923, 0.726), (0.815, 0.925, 0.867), (0.845, 0.933, 0.887), (0.677, 0.869, 0.761)],
)
def test_the_papers_means_follow_from_its_scores(blurred, sharp, nhm):
    assert focus.FocusScores(0.5, sharp, blurred).nhm == pytest.approx(nhm, abs=6e-4)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_harmonic_mean_lies_between_and_is_symmetric(a, b):
    nhm = focus.FocusScores(0.5, a, b).nhm
    assert min(a, b) - 1e-12 <= nhm <= max(a, b) + 1e-12
    assert nhm == pytest.approx(focus.FocusScores(0.5, b, a).nhm)


def test_what_was_not_there_has_no_mean():
    assert math.isnan(focus.focus_scores([found(0, 0, 0)], [found(1, 0, 0)]).nhm)
    assert focus.focus_scores([found(0, 1, 0)], [found(0, 0, 1)]).nhm == 0


def test_scores_of_two_thresholds_are_refused():
    with pytest.raises(ValueError, match=r"one IoU, not 0\.5 and 0\.25"):
        focus.focus_scores([found(1, 0, 0)], [found(1, 0, 0, 0.25)])


def test_a_relative_gain():
    assert focus.relative_gain(0.887, 0.867) == pytest.approx(0.0231, abs=1e-4)
    assert focus.relative_gain(0.5, 1.0) == -0.5
    assert math.isnan(focus.relative_gain(0.5, 0.0))


# --- crowded images ------------------------------------------------------------------------------


def test_half_is_not_more_than_half():
    labels = np.zeros((5, 20), np.int32)
    labels[1:4, 1:4], labels[1:4, 4:7], labels[1:4, 9:12], labels[1:4, 14:17] = 1, 2, 3, 4
    assert not focus.is_crowded(labels)
    assert focus.is_crowded(labels[:, :13])
    assert not focus.is_crowded(np.zeros((5, 5), np.int32))


# --- choices -------------------------------------------------------------------------------------


def test_the_threshold_is_the_one_that_finds_most():
    """Two nuclei joined by a bridge of lower probability, and a third that is faint."""
    truth = np.zeros((20, 40), np.int32)
    truth[5:15, 3:12], truth[5:15, 15:24], truth[5:15, 28:37] = 1, 2, 3
    map_ = np.zeros((3, 20, 40), np.float32)
    map_[NUCLEUS][truth > 0], map_[NUCLEUS, 5:15, 12:15], map_[NUCLEUS][truth == 3] = 0.9, 0.5, 0.7
    thresholds = (0.3, 0.55, 0.65, 0.8)
    best = focus.best_threshold(postprocess.nuclei_above, [map_, map_], [truth, truth], thresholds)
    assert best == 0.55
    with pytest.raises(ValueError, match="thresholds is empty"):
        focus.best_threshold(postprocess.nuclei_above, [map_], [truth], ())


class Smoothness(nn.Module):
    """Holds a patch for blurred by as much as neighbours are alike; keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.steepness = nn.Parameter(torch.tensor(20.0))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(image.shape))
        steps = image.diff(dim=3).abs().mean((1, 2, 3))
        return torch.stack(
            [self.steepness * steps, self.steepness * 0.5 * torch.ones_like(steps)], 1
        )


def test_a_verdict_is_the_mean_over_patches_that_cover_the_image():
    sharp = np.random.default_rng(0).uniform(100, 4000, (50, 90))
    blurred = ndi.gaussian_filter(sharp, 3)
    model = Smoothness()
    assert focus.chance_of_blur(model, sharp, size=32) < 0.01
    assert focus.chance_of_blur(model, blurred, size=32) > 0.99
    assert model.shapes == [(6, 1, 32, 32)] * 2
    half = np.hstack([sharp[:, :32], blurred[:, :32]])
    assert focus.chance_of_blur(model, half, size=32) == pytest.approx(0.5, abs=0.05)
    assert focus.chance_of_blur(model, sharp[:32, :32], size=32) < 0.01 and len(model.shapes) == 4


@pytest.mark.parametrize("shape", [(31, 64), (64, 64, 3)])
def test_an_image_without_room_for_a_patch_is_refused(shape):
    with pytest.raises(ValueError, match=r"image must be \(H, W\), 32 or more"):
        focus.chance_of_blur(Smoothness(), np.zeros(shape), size=32)


# --- deblurred images ----------------------------------------------------------------------------


def test_a_restoration_is_judged_whatever_its_unit():
    rng = np.random.default_rng(0)
    sharp = ndi.gaussian_filter(rng.uniform(0, 4000, (60, 70)), 1)
    noisy = sharp + rng.normal(0, 50, sharp.shape)
    one = focus.restoration(sharp, noisy)
    assert one.psnr == pytest.approx(20 * math.log10(np.ptp(sharp) / 50), abs=0.3)
    for other in (
        focus.restoration(sharp, 0.01 * noisy - 7),
        focus.restoration(3 * sharp, noisy),
    ):
        assert other.psnr == pytest.approx(one.psnr) and other.ssim == pytest.approx(one.ssim)
    blurred = focus.restoration(sharp, ndi.gaussian_filter(sharp, 3))
    assert blurred.psnr < one.psnr and blurred.ssim < one.ssim < 1


def test_nothing_restored_is_as_good_as_the_mean():
    sharp = np.random.default_rng(0).uniform(0, 1, (20, 30)).astype(np.float32)
    made = focus.restoration(sharp, np.zeros((20, 30)))
    assert made.psnr == pytest.approx(20 * math.log10(np.ptp(sharp) / sharp.std()), rel=1e-3)
    assert focus.restoration(sharp, sharp).psnr > 100


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="of one shape"):
        focus.restoration(np.zeros((20, 30)), np.zeros((30, 20)))
    with pytest.raises(ValueError, match="sharp is constant"):
        focus.restoration(np.ones((20, 30)), np.zeros((20, 30)))
