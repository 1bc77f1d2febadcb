"""Two defenses on one board, compared in the settings that both have.

The test is the sign-flip permutation test: were the two alike, every difference could as well have
the other sign. The interval is the test turned round, all shifts that it does not reject. Both come
from the same numbers, the means of subsets of the differences: flipping the signs of a subset S
lifts the sum above the observed one exactly if the sum over S is negative (Hartigan, "Using
subsample values as typical values", JASA 1969). So p > 0.05 exactly if the interval holds 0.

Nothing here depends on a third defense but ``holm``, which depends on how many there are by
definition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean, median
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from leaderboard.aggregate import Board, Row, SettingRow
from leaderboard.statistics import CONFIDENCE

LEAST_SETTINGS: Final = 6  # with five, the least p there can be is 2 / 2^5 = 0.0625: no test
EXACT: Final = 12  # settings up to which every subset is taken
SUBSETS: Final = 2**EXACT  # drawn where there are more
ROUNDING: Final = 1e-9  # of sums that would be zero in exact arithmetic

Verdict = Literal["better", "worse", "not separated", "not tested"]
Figure = Literal["score", "asr", "acc", "cost"]


@dataclass(frozen=True)
class Contrast:
    """What counts as better in one figure, and as the same in practice."""

    sign: int  # 1: higher is better
    margin: float  # differences up to this are ties


CONTRASTS: Final[dict[Figure, Contrast]] = {
    "score": Contrast(1, 2.0),  # points
    "asr": Contrast(-1, 0.02),
    "acc": Contrast(1, 0.01),
    "cost": Contrast(-1, math.log(1.1)),  # natural logarithm of images: 10 %
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One defense minus another, over the settings that both have."""

    n: int  # settings
    mean: float
    median: float
    low: float | None  # the 95 % interval of the mean; None with fewer than six settings
    high: float | None
    p: float | None  # two-sided, as it stands: not adjusted for other comparisons
    wins: int  # settings in which the one is better by more than the margin
    ties: int
    losses: int
    verdict: Verdict  # of the one, by the interval

    def reversed(self) -> Difference:
        """The other minus the one."""
        turned: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}
        return replace(
            self,
            mean=-self.mean,
            median=-self.median,
            low=None if self.high is None else -self.high,
            high=None if self.low is None else -self.low,
            wins=self.losses,
            losses=self.wins,
            verdict=turned.get(self.verdict, self.verdict),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """``one`` against ``other``; positive differences mean that ``one`` has the higher figure."""

    one: str
    other: str
    difference: Difference
    # The p-value after Holm over all comparisons of ``one`` on its board: it grows with every
    # method that joins. None where nothing was tested.
    holm: float | None


Matrix = Mapping[tuple[str, str], Comparison]


@dataclass(frozen=True)
class Subsets:
    """Subsets of ``n`` values: ``members`` are 0-1 rows ``(s, n)``, none of them empty."""

    members: NDArray[np.float64]
    sizes: NDArray[np.float64]  # (s,)
    empty: int  # empty ones, which belong to the test: a sum of zero lies on either side


@lru_cache(maxsize=64)
def subsets(n: int) -> Subsets:
    """All subsets of up to ``EXACT`` values; of more values random ones, the same for everybody."""
    if n <= EXACT:
        rows = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        rows = np.random.default_rng(n).integers(0, 2, size=(SUBSETS, n))
        rows[0] = 0  # the signs as they were observed
    sizes = rows.sum(axis=1)
    filled = sizes > 0
    return Subsets(
        members=rows[filled].astype(np.float64),
        sizes=sizes[filled].astype(np.float64),
        empty=int(np.count_nonzero(~filled)),
    )


def difference(one: Sequence[float], other: Sequence[float], contrast: Contrast) -> Difference:
    """Compares values paired by position.

    Args:
        one: a figure of the one defense, ``(n,)``; one value per setting.
        other: the same figure of the other defense in the same settings, ``(n,)``.
        contrast: which is better, and from where on.
    """
    found = [a - b for a, b in zip(one, other, strict=True)]
    gains = [contrast.sign * d for d in found]
    low, high, p = _sign_flips(found)
    wins, losses = (sum(s * gain > contrast.margin for gain in gains) for s in (1, -1))
    return Difference(
        n=len(found),
        mean=fmean(found),
        median=median(found),
        low=low,
        high=high,
        p=p,
        wins=wins,
        ties=len(found) - wins - losses,
        losses=losses,
        verdict=_verdict(low, high, contrast.sign),
    )


def _sign_flips(found: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """The ends of the interval, and p."""
    if len(found) < LEAST_SETTINGS:
        return None, None, None
    chosen = subsets(len(found))
    # One product for each pair, never one for all: the last digits of a matrix product can depend
    # on how many columns it has, and so on how many methods there are.
    sums = chosen.members @ np.array(found)
    sums[np.abs(sums) < ROUNDING] = 0.0
    total = len(sums) + chosen.empty
    fewer = min(np.count_nonzero(sums <= 0), np.count_nonzero(sums >= 0)) + chosen.empty
    skipped = int((1 - CONFIDENCE) / 2 * total) - chosen.empty  # means outside, at either end
    ends = np.partition(sums / chosen.sizes, [skipped, len(sums) - 1 - skipped])
    p = min(1.0, 2 * fewer / total)
    return float(ends[skipped]), float(ends[len(sums) - 1 - skipped]), p


def _verdict(low: float | None, high: float | None, sign: int) -> Verdict:
    if low is None or high is None:
        return "not tested"
    if low <= 0 <= high:
        return "not separated"
    return "better" if (low > 0) == (sign > 0) else "worse"


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values, in their order (Scand. J. Statist. 1979)."""
    adjusted = [0.0] * len(values)
    reached = 0.0
    for step, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        reached = max(reached, min(1.0, (len(values) - step) * values[place]))
        adjusted[place] = reached
    return adjusted


def by_setting(row: Row, figure: str) -> dict[str, float]:
    """A figure's mean in every setting that has it, clean twins aside; settings in order.

    ``cost`` is the natural logarithm of 1 + images, over cells that were evaluated.
    """
    attacked = [s for s in row.settings if not s.setting.clean]
    if figure == "cost":
        costs = {s.setting.key: _log_images(s) for s in attacked}
        return {key: cost for key, cost in costs.items() if cost is not None}
    return {s.setting.key: s.figures[figure].mean for s in attacked if figure in s.figures}


def _log_images(setting: SettingRow) -> float | None:
    """Of images forward and backward: schedules differ by factors, so factors are compared."""
    costs = [o.record.cost for o in setting.outcomes if o.evaluated and o.record.cost]
    if not costs:
        return None
    return math.log1p(fmean(c.images_forward + c.images_backward for c in costs))


def compared(board: Board, figure: Figure = "score") -> Matrix:
    """Every ranked defense of a board against every other, both ways round.

    Two defenses without a common setting are left out.
    """
    found = {row.defense: by_setting(row, figure) for row in board.rows if row.ranked}
    names = list(found)
    plain: dict[tuple[str, str], Difference] = {}
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            shared = sorted(found[one].keys() & found[other].keys())
            if shared:
                pair = [[found[name][key] for key in shared] for name in (one, other)]
                plain[one, other] = difference(pair[0], pair[1], CONTRASTS[figure])
                plain[other, one] = plain[one, other].reversed()
    return {pair: comparison for name in names for pair, comparison in _family(name, plain)}


def _family(
    one: str, plain: Mapping[tuple[str, str], Difference]
) -> list[tuple[tuple[str, str], Comparison]]:
    """All comparisons of one defense, with Holm over them."""
    pairs = [pair for pair in plain if pair[0] == one]
    values = {pair: p for pair in pairs if (p := plain[pair].p) is not None}
    adjusted = dict(zip(values, holm(list(values.values())), strict=True))
    return [
        (
            pair,
            Comparison(one=one, other=pair[1], difference=plain[pair], holm=adjusted.get(pair)),
        )
        for pair in pairs
    ]
