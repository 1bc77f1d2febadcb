"""The same figures for machines, as CSV: records, boards, comparisons, published figures."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from bench.records import Metrics, canonical
from leaderboard.adversarial import CSV_HEADS, csv_values
from leaderboard.aggregate import FIGURES, CostSummary, Row
from leaderboard.analysis import Analysis, RowAnalysis
from leaderboard.comparison import Comparison, Difference
from leaderboard.outcomes import Outcome
from leaderboard.published import SOURCES, Beside
from leaderboard.statistics import Estimate

_CELL: Final = (
    "defense",
    "budget",
    "dataset",
    "arch",
    "attack",
    "label_rule",
    "poison_rate",
    "victim_seed",
    "defense_seed",
    "target",
    "twin",
    "needs",
    "panel",
    "origin",
    "paper",
)
_COST: Final = ("seconds", "images_forward", "images_backward", "peak_rss", "peak_gpu")
_ATTACKED: Final = ("asr", "ra", "asr_conditional", "asr_including_target")
_MODELS: Final = ("before", "after", "twin")
_ROW: Final = ("needs", "origin", "paper", "control", "oracle", "ok", "applicable")


def records_csv(outcomes: Sequence[Outcome]) -> str:
    """One line per record. ``counted_*`` is what the boards use, with failures as undefended."""
    strengths = _strengths(outcomes)
    heads = ["key", "status", "reason", *_CELL, "params", *(f"counted_{name}" for name in FIGURES)]
    for model in _MODELS:
        heads.append(f"{model}_acc")
        heads += [f"{model}_{name}_{figure}" for name in strengths for figure in _ATTACKED]
    heads += [*CSV_HEADS, *_COST, "started", "ended"]
    return _csv(heads, (_record(outcome, strengths) for outcome in outcomes))


def _strengths(outcomes: Iterable[Outcome]) -> list[str]:
    found: set[str] = set()
    for outcome in outcomes:
        for model in _MODELS:
            metrics: Metrics | None = getattr(outcome.record, model)
            if metrics is not None:
                found.update(metrics.strengths)
    return sorted(found)


def _record(outcome: Outcome, strengths: Sequence[str]) -> list[object]:
    record = outcome.record
    line: list[object] = [record.key, record.status, outcome.reason]
    line += [getattr(record.cell, name) for name in _CELL]
    line.append(canonical(record.cell.params))
    line += [outcome.figures.get(name) for name in FIGURES]
    for metrics in (record.before, record.after, record.twin):
        line += _metrics(metrics, strengths)
    line += csv_values(record.robust)
    line += [getattr(record.cost, name, None) for name in _COST]
    return [*line, record.started, record.ended]


def _metrics(metrics: Metrics | None, strengths: Sequence[str]) -> list[object]:
    if metrics is None:
        return [None] * (1 + len(_ATTACKED) * len(strengths))
    line: list[object] = [metrics.acc]
    for name in strengths:
        found = metrics.strengths.get(name)
        if found is None:
            line += [None] * len(_ATTACKED)
        else:
            line += (found.asr, found.ra, found.asr_conditional, found.asr_including_target)
    return line


def boards_csv(analyses: Iterable[Analysis]) -> str:
    """One line per board and defense: figures with their intervals, rank range, worst setting."""
    heads = ["budget", "defense", "ran_at", "not_applicable", *_ROW, "seeds_min", "seeds_max"]
    heads += ["rank_best", "rank_worst", "ranked", "pareto", "worst_setting", "worst_score"]
    for name in (*FIGURES, "removed", "removed_amplified"):
        heads += [name, f"{name}_low", f"{name}_high", f"{name}_settings"]
    heads += [f"cost_{field.name}" for field in dataclasses.fields(CostSummary)]
    lines = (
        [a.board.budget, *_board_row(row, a.rows.get(row.defense))]
        for a in analyses
        for row in a.board.rows
    )
    return _csv(heads, lines)


def _board_row(row: Row, found: RowAnalysis | None) -> list[object]:
    line: list[object] = [row.defense, row.budget, row.refusal]
    line += [getattr(row, name) for name in _ROW]
    line += row.seeds
    standing = found.standing if found else None
    line += (standing.best, standing.worst, standing.ranked) if standing else (None, None, None)
    line.append(found.pareto.place if found and found.pareto else None)
    worst = found.worst if found else None
    line += (worst.setting.key, worst.figures["score"].mean) if worst else (None, None)
    for name in FIGURES:
        line += _estimate(row.figures.get(name))
    for share in (found.removed, found.removed_amplified) if found else (None, None):
        line += _estimate(share)
    cost = dataclasses.astuple(row.cost) if row.cost else ()
    return [*line, *cost, *[None] * (len(dataclasses.fields(CostSummary)) - len(cost))]


def _estimate(value: Estimate | None) -> tuple[object, ...]:
    return (None,) * 4 if value is None else dataclasses.astuple(value)


def comparisons_csv(analyses: Iterable[Analysis]) -> str:
    """One line per ordered pair of defenses of a board, by score."""
    heads = ["budget", "one", "other", *(f.name for f in dataclasses.fields(Difference)), "holm"]
    lines = (
        [analysis.board.budget, *_comparison(comparison)]
        for analysis in analyses
        for comparison in analysis.matrix.values()
    )
    return _csv(heads, lines)


def _comparison(comparison: Comparison) -> Iterator[object]:
    yield comparison.one
    yield comparison.other
    yield from dataclasses.astuple(comparison.difference)
    yield comparison.holm


def published_csv(found: Iterable[Beside]) -> str:
    """One line per figure that stands beside a measured one; fractions."""
    heads = ["defense", "budget", "setting", "source", "table", "paper", "figure", "published"]
    heads += ["measured", "low", "high", "seeds", "difference", "inside", "differs"]
    return _csv(heads, (line for beside in found for line in _published(beside)))


def _published(beside: Beside) -> Iterator[list[object]]:
    entry = beside.published
    source = [entry.source, entry.table, SOURCES[entry.source].paper]
    for figure, gap in beside.gaps.items():
        measured = dataclasses.astuple(gap.measured)
        line = [beside.defense, beside.budget, beside.setting.key, *source, figure, gap.published]
        yield [*line, *measured, gap.mean, gap.holds, "; ".join(beside.differs)]


def _csv(heads: Sequence[str], lines: Iterable[Iterable[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(lines)
    return stream.getvalue()
