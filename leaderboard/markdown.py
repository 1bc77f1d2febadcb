"""The short board for a repository: one table per budget, and the victims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate

from bench.records import Metrics
from leaderboard.aggregate import Board, Row
from leaderboard.statistics import Estimate
from leaderboard.victims import Victim
from leaderboard.words import (
    BOARD,
    Column,
    board_title,
    budget_words,
    duration,
    percent,
    plural,
    shorten,
)

EMPTY = "No records yet. `bench run --all` fills this page; `bench leaderboard` draws it again.\n"


def to_markdown(boards: Sequence[Board], victims: Sequence[Victim], notes: Sequence[str]) -> str:
    """The whole page; equal input gives equal text."""
    parts = ["# Unbackdoor leaderboard\n"]
    parts += [_legend()] if boards else [EMPTY]
    parts += [_board(board) for board in boards]
    if victims:
        parts.append(_victims(victims))
    if notes:
        parts.append("## Problems\n\n" + "".join(f"- {escape(note)}\n" for note in notes))
    return "\n".join(parts)


def escape(text: str) -> str:
    """Text that can neither leave its table cell nor become markup."""
    flat = " ".join(text.split())
    for mark in ("\\", "|", "`"):
        flat = flat.replace(mark, "\\" + mark)
    # A bracket is left alone, or every ibau[mode=repository] would be unreadable: only links go.
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")


def _legend() -> str:
    return (
        "ACC, ASR and RA in percent; score 0 to 100, higher is better. Mean over settings ± half "
        "of a 95 % t-interval (three settings at least). Sorted by mean score: neighbouring rows "
        "are not claimed to differ; oracles, which know or choose by what no defender has, stand "
        "after the others. Failed cells count as the undefended model. Details, seeds "
        "and definitions are in `leaderboard.html`.\n"
    )


def _board(board: Board) -> str:
    # The loss on twins and the DER are in the HTML: a table in a repository must stay narrow.
    columns = BOARD[:5]
    heads = [
        "Defense",
        *(c.title for c in columns),
        "Cost",
        "Coverage",
        "Settings × seeds",
        "Notes",
    ]
    body = [_row(board, row, columns) for row in board.rows]
    align = ["left", *["right"] * (len(columns) + 3), "left"]
    title = f"## {escape(board_title(board.budget))}: {escape(budget_words(board.budget))}\n\n"
    return title + _table(heads, body, align)


def _row(board: Board, row: Row, columns: Sequence[Column]) -> list[str]:
    if row.refusal:
        reason = f"not applicable: {escape(row.refusal)}"
        return [escape(row.defense), *["—"] * (len(columns) + 3), reason]
    same = board.same_as(row)
    notes = ["control"] * row.control + ["oracle"] * row.oracle + [f"same as {same}"] * bool(same)
    return [
        escape(row.defense),
        *(figure(row.figures.get(column.key), column) for column in columns),
        duration(row.cost.seconds) if row.cost else "—",
        f"{row.ok}/{row.applicable}",
        f"{row.counted} × {seeds(row.seeds)}",
        escape("; ".join([*notes, *row.remarks])),
    ]


def figure(value: Estimate | None, column: Column) -> str:
    """A mean with the ends of its interval."""
    if value is None:
        return "—"
    if value.low is None or value.high is None:
        return column.text(value.mean)
    return f"{column.text(value.mean)} [{column.text(value.low)}, {column.text(value.high)}]"


def seeds(span: tuple[int, int]) -> str:
    """``3``, or ``2–3`` where settings differ."""
    return str(span[0]) if span[0] == span[1] else f"{span[0]}–{span[1]}"


def _victims(victims: Iterable[Victim]) -> str:
    heads = ["Victim", "Seed", "Target", "ACC", "Twin", "ASR", "RA", "ASR by strength", "Admission"]
    body = [
        [
            escape(victim.setting.label),
            str(victim.seed),
            "—" if victim.target is None else str(victim.target),
            percent(victim.metrics.acc),
            percent(victim.twin_metrics.acc) if victim.twin_metrics else "—",
            optional(victim.metrics.asr),
            optional(victim.metrics.ra),
            by_strength(victim.metrics),
            escape(admission(victim)),
        ]
        for victim in victims
    ]
    align = ["left", *["right"] * 7, "left"]
    return f"## Victims: {plural(len(body), 'model')}\n\n" + _table(heads, body, align)


def optional(value: float | None) -> str:
    """Percent, or a dash."""
    return "—" if value is None else percent(value)


def by_strength(metrics: Metrics | None) -> str:
    """ASR at each strength, in order: ``99.1 / 99.8 / 100.0``."""
    if metrics is None or not metrics.strengths:
        return "—"
    return " / ".join(percent(metrics.strengths[name].asr) for name in sorted(metrics.strengths))


def admission(victim: Victim) -> str:
    """Admitted, or rejected and why."""
    if victim.status == "used":
        return "in the records; not in this zoo"
    reasons = f": {'; '.join(victim.reasons)}" if victim.reasons else ""
    return shorten(victim.status + reasons, 200)


def _table(heads: Sequence[str], body: Sequence[Sequence[str]], align: Sequence[str]) -> str:
    # Numbers are text already: tabulate must not parse and reprint them.
    table = tabulate(body, heads, tablefmt="pipe", disable_numparse=True, colalign=align)
    return table + "\n"
