"""Which defenses are worth their price: ASR left, accuracy lost and cost, by paired intervals.

Dots on a chart are one noise-width apart; here a defense is dominated only if the intervals say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from leaderboard.aggregate import Board
from leaderboard.comparison import CONTRASTS, Difference, Figure, Matrix, compared

# Accuracy is compared as it is: in one setting all defenses start from the same accuracy.
AXES: Final[tuple[Figure, ...]] = ("asr", "acc", "cost")

Place = Literal["dominated", "not dominated", "not separated", "not tested"]


@dataclass(frozen=True, kw_only=True)
class Pareto:
    """One defense against all others of its board, oracles aside.

    ``dominated``: another is shown to be better on one axis, and shown not to be worse by more than
    the margin (2 points of ASR, 1 of accuracy, 10 % of the cost) on the others.
    ``not dominated``: on some axis it is shown to be better than each of the others.
    ``not separated``: neither is shown.
    """

    place: Place
    dominated_by: tuple[str, ...]


def pareto(board: Board) -> dict[str, Pareto]:
    """The place of every ranked defense, oracles aside."""
    names = [row.defense for row in board.rows if row.ranked and not row.oracle]
    axes = {axis: compared(board, axis) for axis in AXES}
    return {name: _place(name, [other for other in names if other != name], axes) for name in names}


def _place(name: str, others: list[str], axes: Mapping[Figure, Matrix]) -> Pareto:
    against = {
        other: found for other in others if (found := _differences(name, other, axes)) is not None
    }
    above = tuple(other for other in others if other in against and _loses(against[other]))
    place: Place = "not separated"
    if not against:
        place = "not tested"
    elif above:
        place = "dominated"
    elif len(against) == len(others) and all(map(_holds, against.values())):
        place = "not dominated"
    return Pareto(place=place, dominated_by=above)


def _differences(
    one: str, other: str, axes: Mapping[Figure, Matrix]
) -> dict[Figure, Difference] | None:
    """One minus the other on every axis; None where an axis was not tested."""
    found = {
        axis: matrix[one, other].difference
        for axis, matrix in axes.items()
        if (one, other) in matrix
    }
    tested = [axis for axis, value in found.items() if value.verdict != "not tested"]
    return found if len(tested) == len(axes) else None


def _holds(found: Mapping[Figure, Difference]) -> bool:
    return any(value.verdict == "better" for value in found.values())


def _loses(found: Mapping[Figure, Difference]) -> bool:
    shown = any(value.verdict == "worse" for value in found.values())
    return shown and all(_at_most_tied(value, axis) for axis, value in found.items())


def _at_most_tied(value: Difference, axis: Figure) -> bool:
    """Whether the interval rules out that the one is better by more than the margin."""
    contrast = CONTRASTS[axis]
    end = value.high if contrast.sign > 0 else value.low
    return end is not None and contrast.sign * end <= contrast.margin
