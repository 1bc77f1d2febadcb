"""Means and their intervals. A bootstrap over a handful of seeds covers far too little.

Two kinds of figures need two kinds of intervals:

* Accuracies spread around their mean: Student's t.
* What is left of a backdoor is usually all or nothing. The mean of a share that is near 0 in eleven
  settings and near 1 in the twelfth is no matter for t, whose interval collapses when the rare case
  happens not to be there. Such a figure gets Jeffreys' interval for a proportion, carried over to
  any values in [0, 1]: the posterior of a mean under a Dirichlet process with half a value at each
  end of the range is matched, in mean and variance, by a beta distribution. For values that are 0
  or 1 this is Jeffreys' interval exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from scipy.special import betaincinv, stdtrit

CONFIDENCE: Final = 0.95
LEAST: Final = 3  # fewer values give a mean, but no interval
PSEUDO: Final = 0.5  # Jeffreys: half a value at either end of the range


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over ``n`` values, and the ends of its 95 % interval if it has one."""

    mean: float
    low: float | None
    high: float | None
    n: int


@cache
def t_quantile(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's t."""
    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))


def estimate(values: Sequence[float], top: float | None = None) -> Estimate | None:
    """Mean and interval; None without values, no interval under three of them.

    Sums are exactly rounded, so that the order of the values changes nothing.

    Args:
        values: what is averaged: seeds of a setting, or means of settings.
        top: the upper end of a range [0, top] within which values are all or nothing; None for a
            figure that spreads around its mean.
    """
    n = len(values)
    if n == 0:
        return None
    # Not fsum / n, which may differ from equal values in the last digit.
    mean = values[0] if min(values) == max(values) else math.fsum(values) / n
    if n < LEAST:
        return Estimate(mean, None, None, n)
    low, high = _t(values, mean) if top is None else _jeffreys(values, mean, top)
    return Estimate(mean, low, high, n)


def _t(values: Sequence[float], mean: float) -> tuple[float, float]:
    """Equal values give the degenerate interval of width zero, never NaN."""
    n = len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = t_quantile(n - 1) * math.sqrt(variance / n)
    return mean - half, mean + half


def _jeffreys(values: Sequence[float], mean: float, top: float) -> tuple[float, float]:
    """Equal values give an interval all the same: three zeros do not prove a fourth."""
    weight = len(values) + 2 * PSEUDO
    shares = [value / top for value in values]
    centre = (math.fsum(shares) + PSEUDO) / weight
    squares = math.fsum((share - centre) ** 2 for share in shares)
    squares += PSEUDO * (centre**2 + (1 - centre) ** 2)
    size = centre * (1 - centre) * weight * (weight + 1) / squares - 1  # as if of so many 0s and 1s
    tail = (1 - CONFIDENCE) / 2
    low, high = (
        top * float(betaincinv(centre * size, (1 - centre) * size, q)) for q in (tail, 1 - tail)
    )
    return min(low, mean), max(high, mean)
