"""Pieces of the page's tables: figures with intervals, links to papers, what to know first."""

from __future__ import annotations

import re
from typing import Final

from markupsafe import Markup, escape

from leaderboard.aggregate import Board, Row, SettingRow
from leaderboard.comparison import Comparison
from leaderboard.published import SOURCES, Beside, Gap
from leaderboard.statistics import Estimate
from leaderboard.words import BOARD, Column, points

_PAPERS: Final = (
    (re.compile(r"arXiv:(\d{4}\.\d{4,5})(v\d+)?"), "https://arxiv.org/abs/{0}"),
    (re.compile(r"(?:doi:)?(10\.\d{4,9}/[\w.()/:;-]+)"), "https://doi.org/{0}"),
    (re.compile(r"https://([\w.-]+/[\w./%~#?=&-]*)"), "https://{0}"),
)
_SCORE, _ACC, _ASR = BOARD[:3]


def interval(value: Estimate, column: Column) -> str:
    """``78.1–82.0``, the ends of the 95 % interval; empty where there is none."""
    if value.low is None or value.high is None:
        return ""
    return f"{column.text(value.low)}–{column.text(value.high)}"


def number(value: Estimate | None, column: Column, *, note: str = "") -> Markup:
    """A table cell: the mean, and small its interval, or the note in its place.

    ``data-v`` lets it sort by all digits.
    """
    if value is None:
        return Markup("<td>—")
    small = note or interval(value, column)
    below = Markup("<small>{}</small>").format(small) if small else ""
    return Markup(
        f'<td data-v="{value.mean:.6g}"{_heat(value, column)}>{column.text(value.mean)}{below}'
    )


def in_setting(here: SettingRow) -> Markup:
    """A cell of the table of settings: the score, and small ACC / ASR; or why there is none."""
    if here.refusal:
        return Markup('<td class="void">n/a')
    score, acc, asr = (here.figures.get(column.key) for column in (_SCORE, _ACC, _ASR))
    if score is None or acc is None or asr is None:
        return Markup('<td class="void">—')
    small = f"{_ACC.text(acc.mean)} / {_ASR.text(asr.mean)}"
    lost = here.applicable - here.ok
    failed = f"<small class=partial>{lost}/{here.applicable} failed</small>" if lost else ""
    last = "" if here.ok else " data-last"
    heat = _heat(score, _SCORE)
    return Markup(f"<td{heat}{last}>{_SCORE.text(score.mean)}<small>{small}</small>{failed}")


def _heat(value: Estimate, column: Column) -> str:
    """The score's background, as an aid; the number stands there anyway."""
    if column.key != "score":
        return ""
    return f" class=h{min(9, max(0, int(value.mean // 10)))}"


def pair(found: Comparison | None) -> Markup:
    """A cell of the table of pairs: the mean difference of the score, and its interval."""
    if found is None:
        return Markup("<td>")
    difference = found.difference
    verdict = {"better": " class=better", "worse": " class=worse"}.get(difference.verdict, "")
    low, high = difference.low, difference.high
    small = "not tested" if low is None or high is None else f"{points(low)} to {points(high)}"
    return Markup(f"<td{verdict}>{points(difference.mean)}<small>{small}</small>")


def difference(gap: Gap | None, column: Column) -> Markup:
    """A cell of the table of published figures: ours minus theirs, then ours, then theirs."""
    if gap is None:
        return Markup("<td>—")
    sign = "+" if gap.mean > 0 else ""
    off = " class=off" if gap.holds is False else ""
    ours = " ".join(filter(None, (column.text(gap.measured.mean), interval(gap.measured, column))))
    return Markup(
        f"<td{off}><b>{sign}{column.text(gap.mean)}</b>"
        f"<small>ours {ours}</small><small>theirs {column.text(gap.published)}</small>"
    )


def particular(line: Beside) -> list[str]:
    """What differs on this line alone; what holds for its source is said once, above the table."""
    source = SOURCES[line.published.source]
    told = tuple(filter(None, (source.asr, source.runs)))
    return [text for text in line.differs if not text.startswith(told)]


def breakable(text: str) -> Markup:
    """A long name, which may be broken where its parameters begin."""
    return escape(text).replace("[", Markup("<wbr>["))


def paper(text: str) -> Markup:
    """A link for arXiv, DOI and plain https addresses; anything else stays text."""
    for pattern, address in _PAPERS:
        if match := pattern.fullmatch(text):
            link = address.format(match[1])
            return Markup('<a href="{}" rel="noreferrer">{}</a>').format(link, text)
    return escape(text)


def kind(row: Row) -> str:
    """One word for the filter: controls and oracles first, then whether it came from outside."""
    if row.control:
        return "control"
    if row.oracle:
        return "oracle"
    return "built-in" if row.origin == "built-in" else "plugin"


def same_as(board: Board, row: Row) -> str:
    """``same as 0`` where a data-free defense stands on a board that it did not run at."""
    budget = board.same_as(row)
    return f"same as {budget}" if budget else ""


def tags(board: Board, row: Row) -> list[str]:
    """What a reader must know about a row before reading its numbers."""
    labelled = row.needs in ("labels", "optional", "target")
    labels_from_victim = labelled and board.budget in ("unlabeled", "ood")
    found = {
        board.part(row): bool(board.part(row)),
        "control": row.control,
        "oracle": row.oracle,
        same_as(board, row): bool(board.same_as(row)),
        "pseudo-labels": labels_from_victim and not row.refusal,
        row.origin: row.origin != "built-in",
        "every cell failed": row.applicable > 0 and not row.ok,
        "clean twins only": row.applicable == 0 and not row.refusal,
    }
    return [tag for tag, holds in found.items() if holds]
