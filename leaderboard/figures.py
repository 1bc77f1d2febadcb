"""The charts of the page: what is drawn, what it means in words, and the same as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from markupsafe import Markup

from leaderboard import chart, heat, lines
from leaderboard.aggregate import Board, reference_board
from leaderboard.amplified import Family, Known, families
from leaderboard.analysis import Analysis
from leaderboard.canvas import Plot, Size, to_svg
from leaderboard.comparison import CONTRASTS
from leaderboard.degradation import ladders
from leaderboard.statistics import Estimate
from leaderboard.words import decimals, percent, plural, points

LEAST: Final = 2  # ranked defenses or attacks below which a chart says nothing
LEAST_PROFILE: Final = 3  # settings


@dataclass(frozen=True)
class Table:
    """The numbers of a chart; the first of each line names it."""

    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A chart before it is drawn: on the page, or for a paper."""

    name: str
    title: str
    caption: str
    alt: str
    plot: Plot
    size: Size
    table: Table | None = None  # None where a table of the page holds the same

    @property
    def wide(self) -> bool:
        """Whether it needs the whole width of the page."""
        return self.size[0] > 7

    @property
    def svg(self) -> Markup:
        """The drawing in the colours of the page."""
        return Markup(to_svg(self.plot, self.size, self.name, self.alt))


def drawings(analyses: Sequence[Analysis], known: Known) -> list[Drawing]:
    """Every chart for which there is enough to draw."""
    boards = [analysis.board for analysis in analyses]
    reference = reference_board(boards)
    if reference is None:
        return []
    analysis = next(a for a in analyses if a.board is reference)
    found = (
        _tradeoff(analysis),
        _profiles(analysis),
        _ladder([board for board in boards if not board.apart]),
        _amplified(reference, families(reference, known)),
        _attacks(reference),
        _pairs(analysis),
    )
    return [drawing for drawing in found if drawing is not None]


def _tradeoff(analysis: Analysis) -> Drawing | None:
    found = chart.points(analysis)
    if not found:
        return None
    told = "; ".join(
        f"{p.name}: ASR {percent(p.asr / 100)}, ACC {percent(p.acc / 100)}" for p in found
    )
    return Drawing(
        name="tradeoff",
        title="What is left of the backdoor, and of the accuracy",
        caption=f"Budget {analysis.board.budget}: mean ASR against mean ACC. The upper left corner "
        "is the goal. A hollow mark is a defense that another one is shown to dominate, in ASR, "
        "accuracy lost and cost, by paired intervals; grey marks are controls and oracles; a "
        "triangle lies below the axis. Points that are close are not claimed to differ.",
        alt=f"Scatter plot of mean ASR against mean ACC at budget {analysis.board.budget}. {told}.",
        plot=chart.tradeoff(found),
        size=chart.SIZE,
    )


def _profiles(analysis: Analysis) -> Drawing | None:
    board = analysis.board
    ranked, settings = [row for row in board.rows if row.ranked], board.full
    rows = [row for row in ranked if row.counted >= settings]  # a share of one setting is 0 or 100
    if len(rows) < LEAST or settings < LEAST_PROFILE:
        return None
    left_out = plural(len(ranked) - len(rows), "row") + " with fewer settings left out. "
    marks = (0.01, 0.05, 0.1, 0.2, 0.5, 0.9)
    found, shares = [], []
    for row in rows:
        steps = analysis.rows[row.defense].profile
        xs = (0.0, *(100 * x for x, _ in steps), 100.0)
        ys = (0.0, *(100 * share for _, share in steps), 100.0)
        found.append(lines.Line(row.defense, row.control or row.oracle, xs, ys))
        reached = [max((s for x, s in steps if x <= mark), default=0.0) for mark in marks]
        shares.append((row.defense, *(percent(share) for share in reached)))
    panel = lines.Panel("", tuple(found), (), "ASR at most, %")
    made = lines.Chart((panel,), "share of settings, %", steps=True)
    return Drawing(
        name="profiles",
        title="In how many settings the backdoor is gone",
        caption=f"Budget {board.budget}, performance profiles over {plural(settings, 'setting')}: "
        "the share of settings in which the mean ASR is at most x. Early and high is good. A "
        "line that rises at both ends is a defense that works or fails outright. "
        + left_out
        * (len(rows) < len(ranked)),
        alt=f"Performance profiles at budget {board.budget}; the table below holds the shares.",
        plot=lines.plot(made),
        size=made.size,
        table=Table(("Defense", *(f"ASR ≤ {100 * m:g} %" for m in marks)), tuple(shares)),
    )


def _ladder(boards: Sequence[Board]) -> Drawing | None:
    found = ladders(boards)
    if not found:
        return None
    quiet = {row.defense: row.control or row.oracle for board in boards for row in board.rows}
    budgets = [rung.budget for rung in found[0].rungs]
    drawn = []
    for number, ladder in enumerate(found):
        known = [(i, r.score) for i, r in enumerate(ladder.rungs) if r.score is not None]
        ends = [(e.low, e.high) for _, e in known if e.low is not None and e.high is not None]
        bounded = len(ends) == len(known)
        drawn.append(
            lines.Line(
                ladder.defense,
                quiet[ladder.defense],
                tuple(lines.dodge(i, number, len(found)) for i, _ in known),
                tuple(e.mean for _, e in known),
                tuple(low for low, _ in ends) if bounded else (),
                tuple(high for _, high in ends) if bounded else (),
            )
        )
    panel = lines.Panel("", tuple(drawn), tuple(budgets), "budget, from the largest down to none")
    made = lines.Chart((panel,), "mean score")
    return Drawing(
        name="ladder",
        title="What each defense loses with its data",
        caption="Mean score and 95 % intervals, from the largest labelled budget down to none. A "
        "line ends where a defense cannot work. The overview above holds the numbers.",
        alt="Mean score by labelled budget, one line per defense; the overview holds the numbers.",
        plot=lines.plot(made),
        size=made.size,
    )


def _amplified(board: Board, found: Sequence[Family]) -> Drawing | None:
    shown = [family for family in found if len(family.lines) >= LEAST]
    if not shown:
        return None
    panels, table = [], []
    for family in shown:
        title = f"{plural(family.settings, 'setting')} at {', '.join(family.steps)}"
        panels.append(
            lines.Panel(title, tuple(_rise(family)), family.steps, "strength of the trigger")
        )
        for row, values in family.lines:
            texts = (f"{s} {_asr(v)}" for s, v in zip(family.steps, values, strict=True))
            table.append((row.defense, str(family.settings), ", ".join(texts)))
    made = lines.Chart(tuple(panels), "mean ASR, %")
    return Drawing(
        name="amplified",
        title="Repaired models under amplified triggers",
        caption=f"Budget {board.budget}: mean ASR as the trigger grows, patches (copies) and "
        "whole-image triggers (strength) apart. A repair that hides the backdoor shows here.",
        alt="Mean ASR by strength of the trigger; the table below holds the numbers.",
        plot=lines.plot(made),
        size=made.size,
        table=Table(("Defense", "Settings", "Mean ASR, %, by strength"), tuple(table)),
    )


def _rise(family: Family) -> list[lines.Line]:
    drawn = []
    for row, values in family.lines:
        known = [(float(i), 100 * v.mean) for i, v in enumerate(values) if v is not None]
        xs, ys = zip(*known, strict=True)
        drawn.append(lines.Line(row.defense, row.control or row.oracle, xs, ys))
    return drawn


def _asr(value: Estimate | None) -> str:
    return "—" if value is None else percent(value.mean)


def _attacks(board: Board) -> Drawing | None:
    rows = [row for row in board.rows if row.ranked]
    attacks = sorted({s.attack for s in board.settings if not s.clean})
    if len(rows) < LEAST or len(attacks) < LEAST:
        return None
    values = []
    for row in rows:
        here = [s for s in row.settings if "asr" in s.figures]
        by_attack = [
            [s.figures["asr"].mean for s in here if s.setting.attack == a] for a in attacks
        ]
        values.append(tuple(100 * fmean(found) if found else None for found in by_attack))
    texts = tuple(tuple("" if v is None else points(v) for v in line) for line in values)
    names = tuple(row.defense for row in rows)
    made = heat.Heat(names, tuple(attacks), tuple(values), texts, top=100.0)
    lines_ = tuple((name, *line) for name, line in zip(names, texts, strict=True))
    return Drawing(
        name="attacks",
        title="Which backdoor survives which defense",
        caption=f"Budget {board.budget}: mean ASR in percent, over the data sets and architectures "
        "of each attack. Less colour is better. Accuracy stands in the tables by setting.",
        alt="Heat map of mean ASR, defenses by attacks; the table below holds the numbers.",
        plot=heat.plot(made),
        size=made.size,
        table=Table(("Defense", *attacks), lines_),
    )


def _pairs(analysis: Analysis) -> Drawing | None:
    names = [row.defense for row in analysis.board.rows if row.ranked]
    tested = [c for c in analysis.matrix.values() if c.difference.verdict != "not tested"]
    if not tested:
        return None
    found = {(c.one, c.other): c.difference for c in tested}
    values = tuple(
        tuple(found[one, other].mean if (one, other) in found else None for other in names)
        for one in names
    )
    texts = tuple(
        tuple(
            decimals(found[one, other].mean, 0)
            + "*" * (found[one, other].verdict != "not separated")
            if (one, other) in found
            else ""
            for other in names
        )
        for one in names
    )
    top = max((abs(v) for line in values for v in line if v is not None), default=1.0)
    made = heat.Heat(tuple(names), tuple(names), values, texts, top=top or 1.0, signed=True)
    return Drawing(
        name="pairs",
        title="Every pair of defenses",
        caption=f"Budget {analysis.board.budget}: mean difference of the score, row minus column, "
        "over the settings that both have; * where the 95 % interval of the pair leaves zero out. "
        f"Up to {CONTRASTS['score'].margin:g} points in a setting are a tie. The board’s table "
        "of pairs has the intervals.",
        alt="Matrix of paired differences in score; the board’s table of pairs holds the numbers.",
        plot=heat.plot(made),
        size=made.size,
    )
