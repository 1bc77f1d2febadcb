"""Ranks with resolution: the range of places that the paired comparisons leave a defense.

A place is lost to every method that is shown to be better, and gained on every method that is shown
to be worse, each by the 95 % interval of that pair alone. So a method that joins moves others only
by the places that it takes itself; it cannot turn the verdict between two of them, which an
adjustment for their number would do.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from leaderboard.aggregate import Board
from leaderboard.comparison import Matrix


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a defense stands among the ranked ones of its board; oracles are not counted."""

    best: int  # 1 + the number of defenses shown to be better
    worst: int  # all, less the number of defenses shown to be worse
    ranked: int  # defenses in the order
    tested: int  # of the others, those with enough common settings

    @property
    def leads(self) -> bool:
        """No other is shown to be better: the best, or not separated from it."""
        return self.best == 1


def standings(board: Board, matrix: Matrix) -> dict[str, Standing]:
    """The rank range of each defense that could be tested against at least one other.

    Args:
        board: the board whose ranked rows, oracles aside, make up the order.
        matrix: ``comparison.compared(board)``.
    """
    names = [row.defense for row in board.rows if row.ranked and not row.oracle]
    found = {}
    for name in names:
        pairs = [matrix[name, other] for other in names if (name, other) in matrix]
        verdicts = Counter(pair.difference.verdict for pair in pairs)
        tested = len(pairs) - verdicts["not tested"]
        if tested:
            found[name] = Standing(
                best=1 + verdicts["worse"],
                worst=len(names) - verdicts["better"],
                ranked=len(names),
                tested=tested,
            )
    return found
