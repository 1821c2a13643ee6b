"""The hand that outlines few nuclei: nested, repeatable, and in what counts like a real one."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nuctut.partial import order_of_a_hand, partly_outlined, shown
from nuctut.samples import Sample, SampleSet

SIDE, PITCH = 1000, 25  # 40 × 40 nuclei, about as many diameters across as Janowczyk's images


def nuclei(seed: int = 0) -> np.ndarray:
    """Squares of 11 to 19 pixels' side on a grid, in chance order."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((SIDE, SIDE), np.int32)
    places = [(y, x) for y in range(0, SIDE, PITCH) for x in range(0, SIDE, PITCH)]
    for number, at in enumerate(rng.permutation(len(places)), start=1):
        (y, x), side = places[at], int(rng.integers(11, 20))
        labels[y + 2 : y + 2 + side, x + 2 : x + 2 + side] = number
    return labels


LABELS = nuclei()


def of_whole(part: np.ndarray) -> set[int]:
    """Which of all nuclei are shown; each must be whole."""
    ids = set(np.unique(LABELS[part > 0]).tolist())
    np.testing.assert_array_equal(np.isin(LABELS, list(ids)), part > 0)
    return ids


@settings(max_examples=10, deadline=None)
@given(st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 99))
def test_a_larger_share_holds_all_of_a_smaller_one(one: float, other: float, seed: int) -> None:
    less, more = sorted((one, other))
    few, many = (shown(read("a").labels, share, seed) for share in (less, more))
    assert few.max() == max(round(less * 64), 1)
    assert not ((few > 0) & (many == 0)).any()


def test_labels_keep_their_order_and_have_no_gaps() -> None:
    part = shown(LABELS, 0.05, 3)
    assert part.dtype == np.int32 and part.max() == 80 == len(of_whole(part))
    kept = [LABELS[part == number][0] for number in range(1, 81)]
    assert kept == sorted(kept)


def test_all_are_shown_in_the_end_and_none_is_where_none_is() -> None:
    np.testing.assert_array_equal(shown(LABELS, 1, 0), LABELS)
    assert not shown(np.zeros((5, 6), np.int32), 0.5, 0).any()
    one = np.eye(1, dtype=np.int32)
    np.testing.assert_array_equal(shown(one, 0.01, 0), one)


def test_the_seed_decides() -> None:
    np.testing.assert_array_equal(shown(LABELS, 0.05, 3), shown(LABELS, 0.05, 3))
    assert of_whole(shown(LABELS, 0.05, 3)) != of_whole(shown(LABELS, 0.05, 4))


@pytest.mark.parametrize("share", [0, -1, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share must be above 0"):
        shown(LABELS, share, 0)


def test_outlined_nuclei_lie_together_and_are_large_as_a_hand_s_are() -> None:
    """Within the quartiles of 15 masks of Janowczyk & Madabhushi, widened by a fifth."""
    areas, begin = np.bincount(LABELS.ravel())[1:], np.unique(LABELS, return_index=True)[1]
    spread, larger = [], []
    for seed in range(16):
        ids = np.sort(order_of_a_hand(LABELS, seed)[:80])
        larger.append(areas[ids - 1].mean() / areas.mean())
        places = np.unravel_index(begin[ids], LABELS.shape)
        counts = np.histogram2d(*places, bins=8, range=[[0, SIDE]] * 2)[0]
        spread.append((counts.var() - counts.mean()) / counts.mean() ** 2)
    assert 0.6 < np.median(spread) < 2.5  # 0 by chance
    assert np.percentile(spread, 90) > 2 * np.percentile(spread, 10)  # hands differ
    assert 1.1 < np.mean(larger) < 1.6


def read(key: str) -> Sample:
    ids = np.unique(LABELS[:200, :200], return_inverse=True)[1].reshape(200, 200)
    return Sample(key, np.zeros(ids.shape, np.uint8), ids.astype(np.int32), {"a": key})


def test_a_set_of_partly_outlined_images_stands_in_for_another() -> None:
    about = {"name": "n", "split": "training", "fingerprint": "f"}
    whole = SampleSet(["a", "b"], read, source="real", **about)
    part = partly_outlined(whole, 0.25, seed=1)
    copy = pickle.loads(pickle.dumps(part))
    assert (part.source, part.keys, part.split) == ("stand-in", whole.keys, "training")
    assert [sample.count for sample in part] == [16, 16]
    assert (part[0].labels != part[1].labels).any()  # chance of its own
    assert dict(part[1].tags) == {"a": "b"}
    prints = {partly_outlined(whole, *how).fingerprint for how in ((0.25, 1), (0.25, 2), (0.5, 1))}
    assert len(prints | {whole.fingerprint}) == 4
    np.testing.assert_array_equal(copy[0].labels, part[0].labels)
    simulated = SampleSet(["a"], read, source="simulated", **about)
    assert partly_outlined(simulated, 0.5, seed=0).source == "simulated"
