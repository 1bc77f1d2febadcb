"""The HTML page: one file, complete without JavaScript, and provably offline by its own policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.records import SCHEMA
from bench.specs import bare
from leaderboard import canvas, gate, markdown, markup, words
from leaderboard.aggregate import Board, Row, reference_board
from leaderboard.comparison import CONTRASTS, LEAST_SETTINGS
from leaderboard.figures import drawings
from leaderboard.grids import grids
from leaderboard.payload import KEY_LENGTH, Index, index, pack, payload
from leaderboard.provenance import Provenance
from leaderboard.published import SOURCES
from leaderboard.report import Report
from leaderboard.ties import ties

HERE: Final = Path(__file__).parent
COLUMNS: Final = len(words.BOARD) + 11  # of a board; the first names the defense
STYLES: Final = ("page.css", "tables.css", "controls.css")
# In this order: each file looks after one part of the page, and uses those before it.
SCRIPTS: Final = (
    "state.js",
    "tables.js",
    "filter.js",
    "data.js",
    "drill.js",
    "compare.js",
    "start.js",
)


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that the page shows."""

    report: Report
    provenance: Provenance
    logs: Mapping[str, str] = field(default_factory=dict)  # tails of logs, by key of the record
    profile: str = ""  # for the commands that repeat a cell; empty where it is not known

    @property
    def defenses(self) -> int:
        """The number of different methods, controls included; variants of one are one."""
        return len({bare(row.defense) for board in self.report.boards for row in board.rows})

    @property
    def budgets(self) -> Sequence[Board]:
        """The boards of budgets, which can be compared with each other."""
        return [board for board in self.report.boards if not board.apart]

    @property
    def settings(self) -> int:
        """The number of different settings, clean twins aside."""
        found = {s.key for board in self.report.boards for s in board.settings if not s.clean}
        return len(found)


@dataclass(frozen=True)
class Survey:
    """One line of the overview: a defense, and its row on each board or None."""

    defense: str
    rows: tuple[tuple[Board, Row | None], ...]

    @property
    def any(self) -> Row:
        """A row of the defense, for what is the same on all boards."""
        return next(row for _, row in self.rows if row is not None)


def to_html(page: Page) -> str:
    """The page as text; equal input gives equal bytes."""
    style = canvas.style_sheet() + _static(STYLES)
    script = _static(SCRIPTS)
    report = page.report
    places = index(report.boards, report.victims)
    known = {victim.key: victim for victim in report.victims}
    packed = payload(report.analyses, report.victims, places, page.logs)
    packed["profile"] = page.profile
    return (
        _environment()
        .get_template("leaderboard.html.j2")
        .render(
            page=page,
            report=report,
            policy=policy(script, style),
            style=Markup(style),
            script=Markup(script),
            overview=overview(page.budgets),
            figures=drawings(report.analyses, known),
            choices=choices(report.boards),
            places=places,
            payload=Markup(pack(packed)),
        )
    )


def _static(names: Sequence[str]) -> str:
    return "\n".join((HERE / "static" / name).read_text(encoding="utf-8") for name in names)


def policy(script: str, style: str) -> str:
    """A content-security policy that lets nothing in but this script and this style."""
    return (
        f"default-src 'none'; script-src '{_integrity(script)}'; "
        f"style-src '{_integrity(style)}'; base-uri 'none'; form-action 'none'"
    )


def _integrity(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def overview(boards: Sequence[Board]) -> list[Survey]:
    """Defense by budget, in the order of the board that the charts show."""
    first = reference_board(boards)
    if first is None:
        return []
    by_board = [(board, {row.defense: row for row in board.rows}) for board in boards]
    names = [row.defense for row in first.rows]
    names += sorted({name for _, rows in by_board for name in rows} - set(names))
    return [Survey(name, tuple((b, rows.get(name)) for b, rows in by_board)) for name in names]


def choices(boards: Sequence[Board]) -> list[tuple[str, str, list[str]]]:
    """The filters: their name, their label and what there is to choose."""
    rows = [row for board in boards for row in board.rows]
    settings = [s for board in boards for s in board.settings if not s.clean]
    return [
        ("dataset", "Data set", sorted({s.dataset for s in settings})),
        ("attack", "Attack", sorted({s.attack for s in settings})),
        ("needs", "Needs", sorted({row.needs for row in rows})),
        ("kind", "Kind", sorted({markup.kind(row) for row in rows})),
    ]


def marks(board: Board | None, row: Row, places: Index) -> Markup:
    """Attributes by which the script knows a row: its defense, and the budget it really ran at.

    Without a board, where the columns are budgets: if it ran at one budget for all of them.
    """
    found = {"d": str(places.defenses[row.defense]), "needs": row.needs, "kind": markup.kind(row)}
    if board.same_as(row) if board else row.needs == "nothing":
        found["b"] = str(places.budgets[row.budget])
    return Markup(" ").join(Markup('data-{}="{}"').format(k, v) for k, v in found.items())


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,  # by hand: the automatic choice goes by file name, and ours end in .j2
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(
        BOARD=words.BOARD,
        COLUMNS=COLUMNS,
        GONE=words.Column("gone", "ASR < 10 %", "% of settings", "high", words.percent),
        LEAST_SETTINGS=LEAST_SETTINGS,
        MARGIN=CONTRASTS["score"].margin,
        PUBLISHED=words.BOARD[1:4],
        SOURCES=SOURCES,
        CLEAN_DETAIL=words.CLEAN_DETAIL,
        KEY_LENGTH=KEY_LENGTH,
        SCHEMA=SCHEMA,
        grids=grids,
        in_setting=markup.in_setting,
        marks=marks,
        number=markup.number,
        pair=markup.pair,
        same_as=markup.same_as,
        tags=markup.tags,
        ties=ties,
    )
    environment.filters.update(
        board_title=words.board_title,
        breakable=markup.breakable,
        budget_words=words.budget_words,
        count=words.count,
        duration=words.duration,
        gates=gate.gates,
        letter=lambda number: chr(ord("A") + number),
        paper=markup.paper,
        particular=markup.particular,
        rank=markdown.rank,
        plural=words.plural,
        points=words.points,
        difference=markup.difference,
        seeds=markdown.seeds,
        shorten=words.shorten,
        size=words.size,
        spread=gate.spread,
        tested=lambda matrix: len(matrix) // 2,
        strengths=gate.by_strength,
    )
    return environment
