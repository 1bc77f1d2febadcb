"""The same figures for machines: CSV with one line per record, JSON with every board."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from bench.records import Metrics, canonical
from leaderboard.aggregate import Board, Row, SettingRow
from leaderboard.outcomes import Outcome
from leaderboard.statistics import Estimate
from leaderboard.victims import Victim
from leaderboard.words import budget_words

JSON_SCHEMA: Final = 1
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
    "origin",
    "paper",
)
_COUNTED: Final = ("score", "acc", "asr", "ra", "worst_asr", "der", "twin_loss")
_COST: Final = ("seconds", "images_forward", "images_backward", "peak_rss", "peak_gpu")


def to_csv(outcomes: Sequence[Outcome]) -> str:
    """One line per record. ``counted_*`` is what the boards use, with failures as undefended."""
    strengths = _strengths(outcomes)
    lines = [_line(outcome, strengths) for outcome in outcomes]
    stream = io.StringIO()
    names = list(lines[0]) if lines else ["key", "status", "reason", *_CELL]
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _strengths(outcomes: Iterable[Outcome]) -> list[str]:
    return sorted(
        {
            name
            for outcome in outcomes
            for metrics in (outcome.record.before, outcome.record.after, outcome.record.twin)
            if metrics is not None
            for name in metrics.strengths
        }
    )


def _line(outcome: Outcome, strengths: Sequence[str]) -> dict[str, object]:
    record = outcome.record
    line: dict[str, object] = {"key": record.key, "status": record.status, "reason": outcome.reason}
    line |= {name: getattr(record.cell, name) for name in _CELL}
    line["params"] = canonical(record.cell.params)
    line |= {f"counted_{name}": outcome.figures.get(name) for name in _COUNTED}
    for name in ("before", "after", "twin"):
        line |= _metrics(name, getattr(record, name), strengths)
    line |= {name: getattr(record.cost, name, None) for name in _COST}
    return line | {"started": record.started, "ended": record.ended}


def _metrics(prefix: str, metrics: Metrics | None, strengths: Sequence[str]) -> dict[str, object]:
    line: dict[str, object] = {f"{prefix}_acc": metrics.acc if metrics else None}
    for name in strengths:
        attacked = metrics.strengths.get(name) if metrics else None
        for figure in ("asr", "ra", "asr_conditional", "asr_including_target"):
            line[f"{prefix}_{name}_{figure}"] = getattr(attacked, figure, None)
    return line


def to_json(
    boards: Iterable[Board], victims: Iterable[Victim], provenance: dict[str, object]
) -> str:
    """Every board with every setting, and the victims; cells are in the CSV."""
    payload = {
        "schema": JSON_SCHEMA,
        **provenance,
        "boards": [_board(board) for board in boards],
        "victims": [_victim(victim) for victim in victims],
    }
    return json.dumps(payload, sort_keys=True, indent=1, allow_nan=False) + "\n"


def _board(board: Board) -> dict[str, Any]:
    return {
        "budget": board.budget,
        "apart": board.apart,  # trained anew, not repaired: not to be ranked with the others
        "words": budget_words(board.budget),
        "rows": [_row(board, row) for row in board.rows],
    }


def _row(board: Board, row: Row) -> dict[str, Any]:
    same_as = board.same_as(row)
    return {
        "defense": row.defense,
        "needs": row.needs,
        "origin": row.origin,
        "paper": row.paper,
        "control": row.control,
        "oracle": row.oracle,
        "same_as": same_as or None,
        "not_applicable": row.refusal or None,
        "figures": _figures(row.figures),
        "cost": None if row.cost is None else dataclasses.asdict(row.cost),
        "coverage": {"ok": row.ok, "applicable": row.applicable},
        "settings_counted": row.counted,
        "seeds": list(row.seeds),
        "remarks": list(row.remarks),
        # A data-free defense ran once: its settings stand on the board where it ran.
        "settings": [] if same_as else [_setting(setting) for setting in row.settings],
    }


def _setting(row: SettingRow) -> dict[str, Any]:
    return {
        "setting": row.setting.key,
        "figures": _figures(row.figures),
        "seeds": row.seeds,
        "coverage": {"ok": row.ok, "applicable": row.applicable},
        "not_applicable": row.refusal or None,
    }


def _figures(figures: dict[str, Estimate]) -> dict[str, Any]:
    return {name: dataclasses.asdict(value) for name, value in figures.items()}


def _victim(victim: Victim) -> dict[str, Any]:
    return {
        "setting": victim.setting.key,
        "seed": victim.seed,
        "target": victim.target,
        "status": victim.status,
        "reasons": list(victim.reasons),
        "metrics": dataclasses.asdict(victim.metrics),
        "twin_metrics": None
        if victim.twin_metrics is None
        else dataclasses.asdict(victim.twin_metrics),
    }
