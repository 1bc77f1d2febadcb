"""What could break: an interval that promises 95 % and holds less, or NaN where all is equal."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from leaderboard.statistics import Estimate, estimate

SETTINGS, SEEDS, WORLDS = 12, 5, 1000
Array = NDArray[np.float64]


def test_interval_of_a_figure_that_spreads_is_students() -> None:
    # n = 5, mean 3, variance 2.5, and t(4) at 97.5 % is 2.776445.
    value = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert value is not None
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert (value.mean, value.low, value.high) == pytest.approx((3.0, 3 - half, 3 + half), rel=1e-6)


def test_three_values_at_least_for_an_interval() -> None:
    assert estimate([]) is None
    assert estimate([0.4]) == Estimate(0.4, None, None, 1)
    assert estimate([0.4, 0.6], 1.0) == Estimate(0.5, None, None, 2)
    value = estimate([0.4, 0.5, 0.6])
    assert value is not None
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (value.low, value.high) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-6)


@pytest.mark.parametrize("same", [0.0, 0.1, 1 / 3, 1.0])
def test_equal_values_have_an_honest_interval(same: float) -> None:
    assert estimate([same] * 7) == Estimate(same, same, same, 7)
    value = estimate([same] * 7, 1.0)
    assert value is not None
    assert value.low is not None
    assert value.high is not None
    assert value.mean == same
    assert 0 <= value.low <= same <= value.high <= 1
    assert value.high - value.low > 0.1  # seven seeds alike do not prove an eighth


@pytest.mark.parametrize(("ones", "n"), [(0, 5), (1, 12), (6, 12), (14, 14)])
def test_interval_of_zeros_and_ones_is_jeffreys(ones: int, n: int) -> None:
    value = estimate([1.0] * ones + [0.0] * (n - ones), 1.0)
    assert value is not None
    low, high = stats.beta.interval(0.95, ones + 0.5, n - ones + 0.5)
    low, high = (0.0 if ones == 0 else low), (1.0 if ones == n else high)
    assert (value.low, value.high) == pytest.approx((low, high))


def test_interval_is_the_one_of_a_dirichlet_process() -> None:
    # Mean and variance of the posterior that the beta distribution stands for, by simulation.
    values = np.array([0.02, 0.05, 0.0, 0.9, 0.1, 0.97])
    weights = np.random.default_rng(0).dirichlet([1.0] * 6 + [0.5] * 2, 200_000)
    means = weights @ np.append(values, [0.0, 1.0])
    centre, variance = means.mean(), means.var()
    size = centre * (1 - centre) / variance - 1
    value = estimate(list(values), 1.0)
    assert value is not None
    expected = stats.beta.interval(0.95, centre * size, (1 - centre) * size)
    assert (value.low, value.high) == pytest.approx(expected, abs=2e-3)
    scaled = estimate(list(100 * values), 100.0)
    assert scaled is not None
    assert scaled.low == pytest.approx(100 * (value.low or 0))


def test_order_of_values_changes_nothing() -> None:
    values = [0.1 * i + 1e-9 * i**3 for i in range(10)]
    for top in (None, 1.0):
        assert estimate(values, top) == estimate(values[::-1], top)


def simulated(survival: float, alike: float) -> tuple[Array, float]:
    """Setting means of ASR in many worlds, ``(WORLDS, SETTINGS)``, and the mean of all settings.

    A backdoor survives in a seed with the chance of its setting, which is drawn around
    ``survival``: the smaller ``alike``, the more is a setting won or lost as a whole.
    """
    rng = np.random.default_rng(0)
    chance = rng.beta(survival * alike, (1 - survival) * alike, (WORLDS, SETTINGS, 1))
    survives = rng.random((WORLDS, SETTINGS, SEEDS)) < chance
    shape = survives.shape
    asr = np.where(survives, rng.beta(8, 1.5, shape), rng.beta(1, 20, shape))
    return asr.mean(axis=2), survival * 8 / 9.5 + (1 - survival) / 21


def coverage(means: Array, truth: float, top: float | None) -> float:
    found = [estimate(list(world), top) for world in means]
    return float(np.mean([e.low <= truth <= e.high for e in found]))  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("alike", [0.3, 2.0])
@pytest.mark.parametrize("survival", [0.1, 0.2, 0.35, 0.5, 0.7])
def test_a_nominal_interval_covers_when_asr_is_all_or_nothing(
    survival: float, alike: float
) -> None:
    assert 0.92 <= coverage(*simulated(survival, alike), top=1.0) <= 0.985


def test_students_interval_does_not_cover_a_rare_survival() -> None:
    # Why the other one exists: eleven settings won say little about the twelfth.
    assert coverage(*simulated(0.1, 0.3), top=None) < 0.85
    assert coverage(*simulated(0.5, 0.3), top=None) > 0.92


def test_students_interval_covers_accuracies() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(0.88, 0.03, (WORLDS, SETTINGS)) + rng.normal(0, 0.004, (WORLDS, SETTINGS))
    assert 0.92 <= coverage(means, 0.88, None) <= 0.98
