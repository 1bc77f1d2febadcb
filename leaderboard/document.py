"""The whole report as JSON: boards, settings, comparisons, ladders, published figures, findings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final

from leaderboard.adversarial import Panel, PanelTable
from leaderboard.aggregate import Board, Row, SettingRow
from leaderboard.analysis import Analysis, RowAnalysis
from leaderboard.comparison import Comparison
from leaderboard.degradation import Ladder
from leaderboard.published import SOURCES, Beside
from leaderboard.report import Report
from leaderboard.statistics import Estimate
from leaderboard.victims import Victim
from leaderboard.words import budget_words

JSON_SCHEMA: Final = 2  # 2: intervals are low and high; comparisons, ladders, published, findings


def to_json(report: Report, provenance: Mapping[str, object]) -> str:
    """Everything but the cells, which are in the CSV of records; equal input gives equal text."""
    payload = {
        "schema": JSON_SCHEMA,
        **provenance,
        "boards": [_analysis(analysis) for analysis in report.analyses],
        "adversarial": None if report.adversarial is None else _panel(report.adversarial),
        "ladders": [_ladder(ladder) for ladder in report.ladders],
        "published": [_beside(beside) for beside in report.published],
        "findings": [dataclasses.asdict(finding) for finding in report.findings],
        "victims": [_victim(victim) for victim in report.victims],
    }
    # Not indented, which Python does itself, and slowly: the file is for programs.
    return json.dumps(payload, sort_keys=True, allow_nan=False) + "\n"


def _analysis(analysis: Analysis) -> dict[str, Any]:
    board = analysis.board
    return {
        "budget": board.budget,
        "apart": board.apart,  # trained anew, not repaired: not to be ranked with the others
        "words": budget_words(board.budget),
        "rows": [_row(board, row, analysis.rows.get(row.defense)) for row in board.rows],
        "comparisons": [_comparison(comparison) for comparison in analysis.matrix.values()],
    }


def _row(board: Board, row: Row, found: RowAnalysis | None) -> dict[str, Any]:
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
        "analysis": None if found is None else _row_analysis(found),
        # A data-free defense ran once: its settings stand on the board where it ran.
        "settings": [] if same_as else [_setting(setting) for setting in row.settings],
    }


def _row_analysis(found: RowAnalysis) -> dict[str, Any]:
    return {
        "standing": None if found.standing is None else dataclasses.asdict(found.standing),
        "pareto": None if found.pareto is None else dataclasses.asdict(found.pareto),
        "removed": _estimate(found.removed),
        "removed_amplified": _estimate(found.removed_amplified),
        "worst_setting": None if found.worst is None else found.worst.setting.key,
        "profile": [list(step) for step in found.profile],
    }


def _setting(row: SettingRow) -> dict[str, Any]:
    return {
        "setting": row.setting.key,
        "figures": _figures(row.figures),
        "seeds": row.seeds,
        "coverage": {"ok": row.ok, "applicable": row.applicable},
        "not_applicable": row.refusal or None,
    }


def _figures(figures: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: dataclasses.asdict(value) for name, value in figures.items()}


def _estimate(value: Estimate | None) -> dict[str, Any] | None:
    return None if value is None else dataclasses.asdict(value)


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "images": list(panel.images),
        "autoattack_images": list(panel.autoattack_images),
        "autoattack": list(panel.autoattack),
        "tables": [_panel_table(table) for table in panel.tables],
    }


def _panel_table(table: PanelTable) -> dict[str, Any]:
    """Means over settings, and in ``parts`` the same over the seeds of each setting."""
    return {
        "name": table.name,
        "rows": [
            {**dataclasses.asdict(row), "figures": _figures(row.figures)} for row in table.rows
        ],
        "parts": [_panel_table(part) for part in table.parts],
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "one": comparison.one,
        "other": comparison.other,
        **dataclasses.asdict(comparison.difference),
        # Over the comparisons of `one` on this board: it changes with their number.
        "holm": comparison.holm,
    }


def _ladder(ladder: Ladder) -> dict[str, Any]:
    return {
        "defense": ladder.defense,
        "rungs": [
            {
                "budget": rung.budget,
                "score": _estimate(rung.score),
                "change": None if rung.change is None else dataclasses.asdict(rung.change),
                "not_applicable": rung.refusal or None,
            }
            for rung in ladder.rungs
        ],
    }


def _beside(beside: Beside) -> dict[str, Any]:
    return {
        "defense": beside.defense,
        "budget": beside.budget,
        "setting": beside.setting.key,
        "published": dataclasses.asdict(beside.published),
        "paper": SOURCES[beside.published.source].paper,
        "gaps": {
            name: {"difference": gap.mean, "inside": gap.holds} for name, gap in beside.gaps.items()
        },
        "differs": list(beside.differs),
    }


def _victim(victim: Victim) -> dict[str, Any]:
    twin = victim.twin_metrics
    return {
        "setting": victim.setting.key,
        "seed": victim.seed,
        "target": victim.target,
        "status": victim.status,
        "reasons": list(victim.reasons),
        "weights": victim.weights,
        "training": victim.training,
        "metrics": dataclasses.asdict(victim.metrics),
        "twin_metrics": None if twin is None else dataclasses.asdict(twin),
    }
