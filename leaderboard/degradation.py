"""What a defense loses with its data: its score from the largest labelled budget down to none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leaderboard.aggregate import Board, Row
from leaderboard.comparison import CONTRASTS, Difference, by_setting, difference
from leaderboard.statistics import Estimate
from leaderboard.words import labelled_size


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One budget of one defense."""

    budget: str
    score: Estimate | None
    # Against the defense's first rung, over the settings of both; None there and without a score.
    change: Difference | None
    paired: bool  # whether both rungs have the same settings, so that the change is of the scores
    refusal: str  # why the defense does not apply; empty if it does or if nobody has run it


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """One defense, from the largest labelled budget down to none."""

    defense: str
    rungs: tuple[Rung, ...]


def ladders(boards: Sequence[Board]) -> tuple[Ladder, ...]:
    """A ladder for every defense with a score at two budgets or more; names in order.

    Unlabelled budgets are no part of it: they are not less of the same.
    """
    sizes = {board.budget: labelled_size(board.budget) for board in boards}
    steps = [board for board in boards if sizes[board.budget] is not None]
    steps.sort(key=lambda board: (board.images, sizes[board.budget] or ()), reverse=True)
    steps += [board for board in boards if board.budget == "0"]
    rows = {board.budget: {row.defense: row for row in board.rows} for board in steps}
    names = sorted({name for found in rows.values() for name in found})
    found = (_ladder(name, {budget: rows[budget].get(name) for budget in rows}) for name in names)
    return tuple(ladder for ladder in found if sum(r.score is not None for r in ladder.rungs) > 1)


def _ladder(name: str, rows: dict[str, Row | None]) -> Ladder:
    first = next((row for row in rows.values() if row is not None and row.ranked), None)
    return Ladder(
        defense=name,
        rungs=tuple(_rung(budget, row, first) for budget, row in rows.items()),
    )


def _rung(budget: str, row: Row | None, first: Row | None) -> Rung:
    if row is None or not row.ranked:
        refusal = row.refusal if row else ""
        return Rung(budget=budget, score=None, change=None, paired=False, refusal=refusal)
    return Rung(
        budget=budget,
        score=row.figures["score"],
        change=_change(row, first),
        paired=first is not None
        and by_setting(row, "score").keys() == by_setting(first, "score").keys(),
        refusal="",
    )


def _change(row: Row, first: Row | None) -> Difference | None:
    if first is None or row is first:
        return None
    now, then = by_setting(row, "score"), by_setting(first, "score")
    shared = sorted(now.keys() & then.keys())
    if not shared:
        return None
    return difference([now[k] for k in shared], [then[k] for k in shared], CONTRASTS["score"])
