"""Intervals that cover at their rate, p-values that agree with them, and corrections by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from nuctut import uncertainty
from nuctut.uncertainty import Estimate, draws, holm


def estimate(images: np.ndarray, units: list[str] | None = None) -> Estimate:
    """The mean over (seeds, images) scores."""
    drawn = draws(units or [f"{index:03d}" for index in range(images.shape[1])])
    resampled = drawn @ images.mean(0) / drawn.sum(1)
    return Estimate(float(images.mean()), resampled, tuple(images.mean(1)))


# --- fields -------------------------------------------------------------------------------------


def test_each_draw_takes_as_many_units_as_there_are_and_units_whole():
    drawn = draws(["b", "a", "b", "c", "b"])
    assert drawn.shape == (uncertainty.RESAMPLES, 5)
    assert (drawn[:, 0] == drawn[:, 2]).all() and (drawn[:, 0] == drawn[:, 4]).all()
    assert (drawn[:, [0, 1, 3]].sum(1) == 3).all()
    assert drawn.mean(0) == pytest.approx(np.ones(5), abs=0.03)


def test_draws_go_by_the_names_and_not_by_their_order():
    names = ["c", "a", "b", "a"]
    order = [2, 0, 3, 1]
    np.testing.assert_array_equal(draws([names[i] for i in order]), draws(names)[:, order])


def test_the_interval_of_a_mean_is_the_normal_one():
    scores = np.random.default_rng(0).normal(size=(1, 400))
    low, high = estimate(scores).interval()
    error = scores.std() / 20
    assert low == pytest.approx(scores.mean() - 1.96 * error, abs=0.01)
    assert high == pytest.approx(scores.mean() + 1.96 * error, abs=0.01)


def test_pieces_of_one_field_are_no_independent_images():
    fields = np.random.default_rng(0).normal(size=(1, 50))
    pieces = np.repeat(fields, 4, axis=1)
    names = [f"{index:03d}" for index in range(50)]
    alone = np.subtract(*estimate(fields).interval())
    assert np.subtract(*estimate(pieces, sorted(names * 4)).interval()) == pytest.approx(alone)
    assert np.subtract(*estimate(pieces).interval()) == pytest.approx(alone / 2, rel=0.05)


# --- seeds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_without_any_spread_over_fields_the_interval_is_students(seeds):
    values = np.random.default_rng(1).normal(0.7, 0.1, seeds)
    low, high = estimate(np.repeat(values[:, None], 20, axis=1)).interval()
    expected = student.interval(0.95, seeds - 1, values.mean(), values.std(ddof=1) / seeds**0.5)
    assert (low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_field"),
    [(2, 1.0, 0.01), (2, 0.3, 1.0), (3, 1.0, 1.0), (3, 0.1, 1.0), (1, 0.0, 1.0)],
)
def test_the_interval_covers_at_its_rate(seeds, of_seed, of_field):
    """Of 300 made experiments whose truth is zero; at most a little more often than promised."""
    rng, covered, rounds = np.random.default_rng(2), 0, 300
    for _ in range(rounds):
        scores = rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, of_field, (1, 40))
        low, high = estimate(scores).interval()
        covered += low <= 0 <= high
    spread = 3 * math.sqrt(0.95 * 0.05 / rounds)
    assert 0.95 - 0.015 - spread < covered / rounds  # a bootstrap of 40 falls short by about 0.01
    if min(of_seed, 0.1) > of_field or seeds == 1:  # one of both alone: no more either
        assert covered / rounds < 0.95 + spread


def test_two_seeds_do_not_halve_what_is_unknown_of_them():
    """The interval of two seeds is that of a t with one degree of freedom: very wide."""
    scores = np.array([[0.70] * 30, [0.72] * 30])
    low, high = estimate(scores).interval()
    assert high - low == pytest.approx(2 * 12.706 * 0.01, rel=1e-3)


def test_seeds_that_agree_and_one_alone_add_nothing():
    scores = np.random.default_rng(3).normal(size=(1, 30))
    alone = estimate(scores).interval()
    assert estimate(np.repeat(scores, 3, axis=0)).interval() == pytest.approx(alone)


# --- p-values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.05, 0.1, 0.2, -0.15])
def test_a_p_value_is_the_normal_one_where_only_fields_vary(mean):
    scores = np.random.default_rng(4).normal(size=(1, 400))
    scores += mean - scores.mean()
    expected = 2 * norm.sf(abs(mean) / (scores.std() / 20))
    assert estimate(scores).p_value() == pytest.approx(expected, rel=0.25, abs=4e-4)


def test_a_p_value_is_students_where_only_seeds_vary():
    values = np.array([0.1, 0.2, 0.4])
    made = estimate(np.repeat(values[:, None], 20, axis=1))
    t = values.mean() / (values.std(ddof=1) / 3**0.5)
    assert made.p_value() == pytest.approx(2 * student.sf(t, 2), rel=1e-4)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_p_value_and_interval_never_disagree(level):
    rng = np.random.default_rng(5)
    for _ in range(60):
        made = estimate(rng.normal(0.25, 1, (3, 40)))
        low, high = made.interval(level)
        assert (made.p_value() < 1 - level) == (low > 0 or high < 0)


def test_a_p_value_is_no_finer_than_the_draws():
    assert estimate(np.ones((3, 5))).p_value() == 2 / uncertainty.RESAMPLES
    assert estimate(np.zeros((3, 5))).p_value() == pytest.approx(1)


def test_where_nothing_was_measured_nothing_is_claimed():
    nothing = Estimate(math.nan, np.full(10, math.nan), (math.nan,))
    assert np.isnan(nothing.interval()).all() and math.isnan(nothing.p_value())
    some = Estimate(0.5, np.array([math.nan, 0.4, 0.6]), (0.5,))
    assert some.interval() == pytest.approx((0.405, 0.595))


# --- many claims --------------------------------------------------------------------------------


def test_holm_by_hand():
    # sorted .005 .01 .03 .04: times 4, 3, 2, 1 are .02 .03 .06 .04, and the last may not be less
    assert holm([0.03, 0.005, 0.04, 0.01]) == pytest.approx([0.06, 0.02, 0.06, 0.03])
    assert holm([0.6, 0.5]) == pytest.approx([1, 1])
    assert holm([0.02]) == pytest.approx([0.02])
    assert holm([]).size == 0


def test_holm_leaves_out_what_was_not_judged():
    corrected = holm([math.nan, 0.01, 0.02])
    assert math.isnan(corrected[0]) and corrected[1:] == pytest.approx([0.02, 0.02])


def test_holm_keeps_its_promise():
    """Of 2,000 families of ten true null hypotheses, 5 % have one that is rejected, not more."""
    families = np.random.default_rng(6).uniform(size=(2000, 10))
    wrong = np.mean([holm(family).min() < 0.05 for family in families])
    assert 0.035 < wrong < 0.065
