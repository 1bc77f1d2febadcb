"""All that is said of a board beyond its figures, computed once for every format."""

from __future__ import annotations

from dataclasses import dataclass

from leaderboard.aggregate import Board, SettingRow
from leaderboard.comparison import Matrix, compared
from leaderboard.pareto import Pareto, pareto
from leaderboard.profiles import Step, profile, removed, worst_setting
from leaderboard.standing import Standing, standings
from leaderboard.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class RowAnalysis:
    """What the settings of one row say, and what its comparisons say."""

    standing: Standing | None  # None for oracles, and where nothing could be tested
    pareto: Pareto | None  # None for oracles
    removed: Estimate | None  # share of settings with ASR < 10 %
    removed_amplified: Estimate | None  # the same at the worst strength of the trigger
    worst: SettingRow | None  # the setting of the lowest score
    profile: tuple[Step, ...]  # (x, share of settings with ASR <= x)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """One board: every pair of ranked defenses by score, and every ranked row by name."""

    board: Board
    matrix: Matrix
    rows: dict[str, RowAnalysis]


def analyse(board: Board) -> Analysis:
    """Compares, ranks and profiles the ranked rows of a board."""
    matrix = compared(board)
    ranks, places = standings(board, matrix), pareto(board)
    rows = {
        row.defense: RowAnalysis(
            standing=ranks.get(row.defense),
            pareto=places.get(row.defense),
            removed=removed(row),
            removed_amplified=removed(row, "worst_asr"),
            worst=worst_setting(row),
            profile=profile(row),
        )
        for row in board.rows
        if row.ranked
    }
    return Analysis(board=board, matrix=matrix, rows=rows)
