"""Means and t-intervals. A bootstrap over a handful of seeds covers far too little; t does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from scipy.special import stdtrit

CONFIDENCE: Final = 0.95
LEAST: Final = 3  # fewer values give a mean, but no interval


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over ``n`` values; ``half`` is the half-width of its 95 % interval, if it has one."""

    mean: float
    half: float | None
    n: int


@cache
def t_quantile(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's t."""
    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and t-interval; None without values, no interval under three of them.

    Equal values give the honest degenerate interval of width zero. Sums are exactly rounded, so
    that the order of the values changes nothing.
    """
    n = len(values)
    if n == 0:
        return None
    if min(values) == max(values):
        return Estimate(values[0], 0.0 if n >= LEAST else None, n)
    mean = math.fsum(values) / n
    if n < LEAST:
        return Estimate(mean, None, n)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Estimate(mean, t_quantile(n - 1) * math.sqrt(variance / n), n)
