"""Tables below a board: every defense in every setting, one table per data set and architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leaderboard.aggregate import FIGURES, Board, Row, SettingRow
from leaderboard.statistics import Estimate, estimate
from leaderboard.victims import Setting


@dataclass(frozen=True)
class Line:
    """One defense: its score over the settings of the table, and each of them."""

    row: Row
    mean: Estimate | None
    cells: tuple[SettingRow | None, ...]  # as the table's settings; None where nothing was run


@dataclass(frozen=True)
class Grid:
    """One data set and architecture at one budget; columns are attacks, or the clean twin."""

    dataset: str
    arch: str
    settings: tuple[Setting, ...]
    lines: tuple[Line, ...]


def grids(board: Board, *, clean: bool = False) -> list[Grid]:
    """All tables of a board, those of the attacked settings or those of the clean twins."""
    chosen = [setting for setting in board.settings if setting.clean is clean]
    places = sorted({(setting.dataset, setting.arch) for setting in chosen})
    return [_grid(board, [s for s in chosen if (s.dataset, s.arch) == place]) for place in places]


def _grid(board: Board, settings: Sequence[Setting]) -> Grid:
    keys = [setting.key for setting in settings]
    lines = []
    for row in board.rows:
        here = {s.setting.key: s for s in row.settings}
        cells = tuple(here.get(key) for key in keys)
        if any(cell is not None and cell.applicable for cell in cells):
            lines.append(Line(row, _mean(cells), cells))
    return Grid(settings[0].dataset, settings[0].arch, tuple(settings), tuple(lines))


def _mean(cells: Sequence[SettingRow | None]) -> Estimate | None:
    scores = [cell.figures["score"].mean for cell in cells if cell and "score" in cell.figures]
    return estimate(scores, FIGURES["score"])
