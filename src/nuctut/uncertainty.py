"""How sure a measured number is: fields of view drawn anew, seeds, and many claims at once.

Two things could have come out otherwise: which fields were tested on, and the seed of the training.
The first is told by a percentile bootstrap (Efron & Tibshirani 1993, chapter 13) that draws fields,
not images: the pieces of one field are alike, and drawn or left out together. The second is told by
the scatter of a few seeds, and Student's t knows how little a few can tell. Both distances from
the measured value are added in quadrature, side by side (the method of variance
estimates recovery of Zou & Donner 2008), so that where only the one varies, its own
interval is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.stats import t as student

RESAMPLES = 10_000
BOOTSTRAP_SEED = 0
LEVEL = 0.95
HALVINGS = 30  # of the interval that a p-value is searched in


def draws(units: Sequence[str]) -> np.ndarray:
    """How often each image is drawn when units are drawn with replacement, each with all it holds.

    Args:
        units: The unit of each image, such as its field of view.

    Returns:
        (resamples, images) float64. The same for the same units in the same order.
    """
    names = sorted(set(units))
    place = [names.index(unit) for unit in units]
    return _drawn(len(names))[:, place]


@cache
def _drawn(units: int) -> np.ndarray:
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    return rng.multinomial(units, np.full(units, 1 / units), size=RESAMPLES).astype(float)


@dataclass(frozen=True)
class Estimate:
    """A measured number, and what it could have been.

    Attributes:
        value: As measured, the mean over the seeds.
        drawn: (resamples,) the same of drawn fields; NaN where a draw gives none.
        by_seed: The number of each seed by itself, of all fields. With one seed, or a method
            without any, nothing is known of their scatter, and it is left out.
    """

    value: float
    drawn: np.ndarray
    by_seed: Sequence[float]

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The two ends between which the number lies at this level; NaN where there is none."""
        drawn = self.drawn[~np.isnan(self.drawn)]
        if math.isnan(self.value) or not drawn.size:
            return math.nan, math.nan
        low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
        of_seeds = self._of_seeds(level)
        return (
            self.value - math.hypot(max(self.value - low, 0), of_seeds),
            self.value + math.hypot(max(high - self.value, 0), of_seeds),
        )

    def _of_seeds(self, level: float) -> float:
        """Half the width of the t-interval that the seeds alone give."""
        count = len(self.by_seed)
        if count < 2:
            return 0.0
        error = np.std(self.by_seed, ddof=1) / math.sqrt(count)
        return float(student.ppf((1 + level) / 2, count - 1) * error) if error else 0.0

    def p_value(self) -> float:
        """The share beyond the level at which the interval just reaches zero (two-sided).

        No less than twice one in `RESAMPLES`, which is as fine as so many draws can tell; NaN
        where there is no interval.
        """
        if math.isnan(self.interval()[0]):
            return math.nan
        least, most = 2 / RESAMPLES, 1.0
        if not self._reaches_zero(least):
            return least
        for _ in range(HALVINGS):
            middle = (least + most) / 2
            if self._reaches_zero(middle):
                least = middle
            else:
                most = middle
        return most

    def _reaches_zero(self, p: float) -> bool:
        low, high = self.interval(1 - p)
        return low <= 0 <= high


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values that may all be held against one level (Holm 1979); NaN stays, and does not count.

    The smallest of n is multiplied by n, the next by n − 1, and so on, and none becomes smaller
    than one before it, or larger than 1.
    """
    p = np.asarray(p_values, float)
    corrected = np.full(p.shape, math.nan)
    judged = np.flatnonzero(~np.isnan(p))
    order = judged[np.argsort(p[judged], kind="stable")]
    factors = np.arange(order.size, 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1)
    return corrected
