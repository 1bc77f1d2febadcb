"""The board for a repository: a short table per budget, then full tables per data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from tabulate import tabulate

from bench.records import Metrics
from leaderboard.adversarial import Panel, PanelRow
from leaderboard.aggregate import Board, Row, boards_of
from leaderboard.analysis import Analysis, RowAnalysis
from leaderboard.comparison import LEAST_SETTINGS
from leaderboard.degradation import Ladder, Rung
from leaderboard.report import Report
from leaderboard.standing import Standing
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
    points,
    shorten,
)

EMPTY = "No records yet. `bench run --all` fills this page; `bench leaderboard` draws it again.\n"
SCORE: Final = BOARD[0]
FULL: Final = BOARD[:5]  # loss on twins and DER are in the HTML: tables here must stay narrow


def to_markdown(report: Report) -> str:
    """The whole page; equal input gives equal text."""
    parts = ["# Unbackdoor leaderboard\n"]
    parts += [_legend()] if report.analyses else [EMPTY]
    parts += [_short(analysis) for analysis in report.analyses]
    if report.ladders:
        parts.append(_ladders(report.ladders))
    parts += [_full(name, found) for name, found in _by_dataset(report)]
    if report.adversarial:
        parts.append(_adversarial(report.adversarial))
    if report.victims:
        parts.append(_victims(report.victims))
    notes = [f"{finding.kind}: {finding.text}" for finding in report.findings]
    parts += _list("To look at before publishing", notes)
    parts += _list("Problems", [*report.omissions, *report.problems])
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
        "ACC, ASR and RA in percent; score 0 to 100, higher is better. Means over settings with "
        "95 % intervals (three settings at least). Sorted by mean score; *rank* is the range of "
        "places that paired comparisons leave (95 % for each pair, not adjusted for their number; "
        f"{LEAST_SETTINGS} common settings at least, else no test and no rank). *ASR below 10 %* "
        "counts settings in which the backdoor is gone, and of them those in which it is at every "
        "strength of the trigger; the *worst setting* is that of the lowest score. Rows with fewer "
        "settings than others stand after those, oracles, which know or choose by what no defender "
        "has, after both. "
        "Failed cells count as the undefended model and lower the coverage. Details, seeds and "
        "definitions are in `leaderboard.html`; every pair is in `comparisons.csv`, printed "
        "figures of papers beside ours in `published.csv`.\n"
    )


def _short(analysis: Analysis) -> str:
    heads = ["Rank", "Defense", "Score", "ASR below 10 %", "Worst setting", "Coverage", "Notes"]
    board = analysis.board
    body = [_short_row(board, row, analysis.rows.get(row.defense)) for row in board.rows]
    align = ["right", "left", "right", "right", "left", "right", "left"]
    title = f"## {escape(board_title(board.budget))}: {escape(budget_words(board.budget))}\n\n"
    return title + to_table(heads, body, align)


def _short_row(board: Board, row: Row, found: RowAnalysis | None) -> list[str]:
    if row.refusal:
        return ["—", escape(row.defense), *["—"] * 4, f"not applicable: {escape(row.refusal)}"]
    same = board.same_as(row)
    part = board.part(row)
    notes = [part] * bool(part) + ["control"] * row.control + ["oracle"] * row.oracle
    notes += [f"same as {same}"] * bool(same)
    return [
        rank(found.standing if found else None),
        escape(row.defense),
        figure(row.figures.get("score"), SCORE),
        _gone(found),
        escape(_worst(found)),
        coverage(row),
        escape("; ".join([*notes, *row.remarks])),
    ]


def rank(standing: Standing | None) -> str:
    """``3``, or ``3–7`` where that is all that can be said."""
    if standing is None:
        return "—"
    first, last = standing.best, standing.worst
    return str(first) if first == last else f"{first}–{last}"


def share(value: Estimate | None) -> str:
    """``11/12``: how many settings of all."""
    return "—" if value is None else f"{round(value.mean * value.n)}/{value.n}"


def _gone(found: RowAnalysis | None) -> str:
    """``11/12, 9``: in how many settings the backdoor is gone, and at every strength."""
    plain, every = (found.removed, found.removed_amplified) if found else (None, None)
    return share(plain) + (f", {round(every.mean * every.n)}" if every else "")


def coverage(row: Row) -> str:
    """``58/60``: cells that were evaluated, of those to which the defense applies."""
    return f"{row.ok}/{row.applicable}"


def _worst(found: RowAnalysis | None) -> str:
    if found is None or found.worst is None:
        return "—"
    return f"{found.worst.setting.key}: {points(found.worst.figures['score'].mean)}"


def _ladders(ladders: Sequence[Ladder]) -> str:
    """Scores down to no data, and what was lost against the first of them."""
    budgets = [rung.budget for rung in ladders[0].rungs]
    body = [[escape(ladder.defense), *map(_rung, ladder.rungs)] for ladder in ladders]
    title = (
        "## From the largest labelled budget to none\n\n"
        "Score, and in brackets the mean paired difference to the defense's first score; *in 2*: "
        "over the two settings that both have, where they do not have the same. A dagger: its 95 % "
        "interval does not hold zero.\n\n"
    )
    return title + to_table(["Defense", *budgets], body, ["left", *["right"] * len(budgets)])


def _rung(rung: Rung) -> str:
    if rung.score is None:
        return "n/a" if rung.refusal else "—"
    if rung.change is None:
        return points(rung.score.mean)
    mark = "†" if rung.change.verdict in ("better", "worse") else ""
    sign = "+" if rung.change.mean > 0 else ""
    of = "" if rung.paired else f" in {rung.change.n}"
    return escape(f"{points(rung.score.mean)} ({sign}{points(rung.change.mean)}{mark}{of})")


def _by_dataset(report: Report) -> list[tuple[str, Sequence[Board]]]:
    """The boards of each data set alone; a single one's are those of all."""
    names = sorted({setting.dataset for board in report.boards for setting in board.settings})
    if len(names) == 1:
        return [(names[0], report.boards)]
    rows = [row for board in report.boards for row in board.rows if not board.same_as(row)]
    ran = [setting for row in rows for setting in row.settings]
    return [(name, boards_of(s for s in ran if s.setting.dataset == name)) for name in names]


def _full(dataset: str, found: Iterable[Board]) -> str:
    """All figures of one data set, budget by budget."""
    heads = ["Defense", *(c.title for c in FULL), "Cost", "Coverage", "Settings × seeds"]
    align = ["left", *["right"] * (len(heads) - 1)]
    parts = [f"## Data set {escape(dataset)}\n"]
    for board in found:
        body = [_full_row(row) for row in board.rows if not row.refusal]
        if body:
            title = f"### {escape(dataset)}, {escape(board_title(board.budget).lower())}\n\n"
            parts.append(title + to_table(heads, body, align))
    return "\n".join(parts)


def _full_row(row: Row) -> list[str]:
    return [
        escape(row.defense),
        *(figure(row.figures.get(column.key), column) for column in FULL),
        duration(row.cost.seconds) if row.cost else "—",
        coverage(row),
        f"{row.counted} × {seeds(row.seeds)}",
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


def _adversarial(panel: Panel) -> str:
    """Robust accuracy, of clean models and of backdoored ones."""
    heads = ["Defense", "Budget", *(c.title for c in panel.columns), "Cost", "Coverage"]
    heads += ["Settings × seeds", "Notes"]
    align = ["left", "left", *["right"] * (len(heads) - 3), "left"]
    sizes = " or ".join(map(str, panel.images))
    parts = [
        "## Adversarial fine-tuning\n",
        f"Accuracy, and the share of {sizes} images per model that no attack within so many of 255 "
        "grey levels gets misclassified. Not about backdoors, and on no board.\n",
    ]
    for table in panel.tables:
        body = [_adversarial_row(row, panel) for row in table.rows]
        parts.append(f"### {table.name}\n\n" + to_table(heads, body, align))
    return "\n".join(parts)


def _adversarial_row(row: PanelRow, panel: Panel) -> list[str]:
    if row.refusal:
        reason = f"not applicable: {escape(row.refusal)}"
        return [escape(row.defense), row.budget, *["—"] * (len(panel.columns) + 3), reason]
    return [
        escape(row.defense),
        row.budget or "—",
        *(figure(row.figures.get(column.key), column) for column in panel.columns),
        "—" if row.seconds is None else duration(row.seconds),
        f"{row.ok}/{row.applicable}",
        f"{row.settings} × {seeds(row.seeds)}",
        escape("; ".join(row.remarks)),
    ]


def _victims(victims: Iterable[Victim]) -> str:
    heads = ["Victim", "Seed", "Target", "Trained", "ACC", "Twin", "ASR", "RA"]
    heads += ["ASR by strength", "Admission"]
    body = [
        [
            escape(victim.setting.label),
            str(victim.seed),
            "—" if victim.target is None else str(victim.target),
            victim.training or "—",
            percent(victim.metrics.acc),
            percent(victim.twin_metrics.acc) if victim.twin_metrics else "—",
            optional(victim.metrics.asr),
            optional(victim.metrics.ra),
            by_strength(victim.metrics),
            escape(admission(victim)),
        ]
        for victim in victims
    ]
    align = ["left", *["right"] * 8, "left"]
    return f"## Victims: {plural(len(body), 'model')}\n\n" + to_table(heads, body, align)


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


def _list(title: str, notes: Iterable[str]) -> list[str]:
    """A section with one line per note; nothing without notes."""
    lines = [f"- {escape(note)}\n" for note in notes]
    return [f"## {title}\n\n{''.join(lines)}"] if lines else []


def to_table(heads: Sequence[str], body: Sequence[Sequence[str]], align: Sequence[str]) -> str:
    """A table of texts, one column aligned as each word says."""
    # Numbers are text already: tabulate must not parse and reprint them.
    table = tabulate(body, heads, tablefmt="pipe", disable_numparse=True, colalign=align)
    return table + "\n"
