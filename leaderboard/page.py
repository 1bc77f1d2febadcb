"""The HTML page: one file, complete without JavaScript, and provably offline by its own policy."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from leaderboard import chart, markdown, words
from leaderboard.aggregate import Board, Row, reference_board
from leaderboard.remarks import brief
from leaderboard.statistics import Estimate
from leaderboard.victims import Victim
from leaderboard.words import Column

HERE: Final = Path(__file__).parent
KEY_LENGTH: Final = 12  # hex digits of a key that the page prints; CSV and JSON hold all 64
_PAPERS: Final = (
    (re.compile(r"arXiv:(\d{4}\.\d{4,5})(v\d+)?"), "https://arxiv.org/abs/{0}"),
    (re.compile(r"(?:doi:)?(10\.\d{4,9}/[\w.()/:;-]+)"), "https://doi.org/{0}"),
    (re.compile(r"https://([\w.-]+/[\w./%~#?=&-]*)"), "https://{0}"),
)


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that the page shows."""

    boards: Sequence[Board]
    victims: Sequence[Victim]
    twins: int
    records: int
    problems: Sequence[str]
    omissions: Sequence[str]
    environment: dict[str, list[str]]

    @property
    def defenses(self) -> int:
        """The number of different defenses, controls included."""
        return len({row.defense for board in self.boards for row in board.rows})

    @property
    def budgets(self) -> Sequence[Board]:
        """The boards of budgets, which can be compared with each other."""
        return [board for board in self.boards if not board.apart]

    @property
    def settings(self) -> int:
        """The number of different settings, clean twins aside."""
        found = {s.key for board in self.boards for s in board.settings if not s.clean}
        return len(found)


@dataclass(frozen=True)
class Ladder:
    """One line of the overview: a defense, and its row on each board or None."""

    defense: str
    control: bool
    oracle: bool
    rows: tuple[tuple[Board, Row | None], ...]


@dataclass(frozen=True)
class Figure:
    """The chart of one board, once for each colour scheme, as ``data:`` addresses."""

    budget: str
    light: str
    dark: str
    alt: str


def to_html(page: Page) -> str:
    """The page as text; equal input gives equal bytes."""
    style = (HERE / "static" / "leaderboard.css").read_text(encoding="utf-8")
    script = (HERE / "static" / "leaderboard.js").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template("leaderboard.html.j2")
        .render(
            page=page,
            policy=policy(script, style),
            style=Markup(style),
            script=Markup(script),
            ladders=ladders(page.budgets),
            figure=figure(page.boards),
        )
    )


def policy(script: str, style: str) -> str:
    """A content-security policy that lets nothing in but this script and this style."""
    return (
        f"default-src 'none'; script-src '{_integrity(script)}'; "
        f"style-src '{_integrity(style)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _integrity(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def ladders(boards: Sequence[Board]) -> list[Ladder]:
    """Defense by budget, in the order of the board that the chart shows."""
    first = reference_board(boards)
    if first is None:
        return []
    by_board = [(board, {row.defense: row for row in board.rows}) for board in boards]
    names = [row.defense for row in first.rows]
    names += sorted({name for _, rows in by_board for name in rows} - set(names))
    oracles = {row.defense for _, rows in by_board for row in rows.values() if row.oracle}
    return [
        Ladder(
            name,
            words.is_control(name),
            name in oracles,
            tuple((b, rows.get(name)) for b, rows in by_board),
        )
        for name in names
    ]


def figure(boards: Sequence[Board]) -> Figure | None:
    """The trade-off chart, if there is anything to draw."""
    board = reference_board(boards)
    found = chart.points(board) if board else []
    if board is None or not found:
        return None
    alt = "; ".join(
        f"{p.name}: ASR {words.percent(p.asr / 100)}, ACC {words.percent(p.acc / 100)}"
        for p in found
    )
    return Figure(
        budget=board.budget,
        light=_address(chart.draw(found, chart.LIGHT)),
        dark=_address(chart.draw(found, chart.DARK)),
        alt=f"Scatter plot of mean ASR against mean ACC. {alt}.",
    )


def _address(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def number(
    value: Estimate | None, column: Column, *, exact: bool = False, note: str = ""
) -> Markup:
    """A table cell: the mean, and small its half-width, or the note in its place.

    ``exact`` lets it sort by all digits.
    """
    if value is None:
        return Markup("<td>—")
    small = note or ("" if value.half is None else f"±{column.text(value.half)}")
    half = Markup("<small>{}</small>").format(small) if small else ""
    sort = f' data-v="{value.mean:.6g}"' if exact else ""
    return Markup(f"<td{sort}{_heat(value, column)}>{column.text(value.mean)}{half}")


def _heat(value: Estimate, column: Column) -> str:
    """The score's background, as an aid; the number stands there anyway."""
    if column.key != "score":
        return ""
    return f' class="h{min(9, max(0, int(value.mean // 10)))}"'


def paper(text: str) -> Markup:
    """A link for arXiv, DOI and plain https addresses; anything else stays text."""
    for pattern, address in _PAPERS:
        if match := pattern.fullmatch(text):
            link = address.format(match[1])
            return Markup('<a href="{}" rel="noreferrer">{}</a>').format(link, text)
    return escape(text)


def same_as(board: Board, row: Row) -> str:
    """``same as 0`` where a data-free defense stands on a board that it did not run at."""
    budget = board.same_as(row)
    return f"same as {budget}" if budget else ""


def tags(board: Board, row: Row) -> list[str]:
    """What a reader must know about a row before reading its numbers."""
    labelled = row.needs in ("labels", "optional", "target")
    labels_from_victim = labelled and board.budget in ("unlabeled", "ood")
    found = {
        "control": row.control,
        "oracle": row.oracle,
        same_as(board, row): bool(board.same_as(row)),
        "pseudo-labels": labels_from_victim and not row.refusal,
        row.origin: row.origin != "built-in",
        "every cell failed": row.applicable > 0 and not row.ok,
        "clean twins only": row.applicable == 0 and not row.refusal,
    }
    return [tag for tag, holds in found.items() if holds]


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
        DETAIL=words.DETAIL,
        CLEAN_DETAIL=words.CLEAN_DETAIL,
        KEY_LENGTH=KEY_LENGTH,
        STATUS_WORDS=words.STATUS_WORDS,
        number=number,
        same_as=same_as,
        tags=tags,
    )
    environment.filters.update(
        admission=markdown.admission,
        board_title=words.board_title,
        brief=brief,
        budget_words=words.budget_words,
        by_strength=markdown.by_strength,
        count=words.count,
        duration=words.duration,
        optional=markdown.optional,
        paper=paper,
        percent=words.percent,
        plural=words.plural,
        points=words.points,
        seeds=markdown.seeds,
        shorten=words.shorten,
        size=words.size,
    )
    return environment
