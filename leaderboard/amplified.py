"""What is left of a backdoor when its trigger is amplified: mean ASR by strength."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.records import Metrics
from leaderboard.aggregate import Board, Row, SettingRow
from leaderboard.outcomes import Outcome, VictimKey
from leaderboard.statistics import Estimate, estimate
from leaderboard.victims import Victim

Known = Mapping[VictimKey, Victim]
Steps = tuple[str, ...]  # ("x1", "x4", "x9")


@dataclass(frozen=True)
class Family:
    """The attacks whose triggers are amplified in the same steps, at one budget."""

    steps: Steps
    settings: int
    lines: tuple[tuple[Row, tuple[Estimate | None, ...]], ...]  # ASR at each step, fractions


def counted(outcome: Outcome, known: Known) -> Metrics | None:
    """The model that a cell counts with: the repaired one, or the undefended one if it failed."""
    record = outcome.record
    if not outcome.applicable:
        return None
    if outcome.evaluated:
        return record.after
    victim = known.get((record.cell.setting, record.cell.victim_seed))
    return record.before or (victim.metrics if victim else None)


def families(board: Board, known: Known) -> list[Family]:
    """Means over seeds, then over settings, of every ranked row; patches and whole images apart."""
    found: defaultdict[Steps, list[tuple[Row, list[dict[str, float]]]]] = defaultdict(list)
    keys: defaultdict[Steps, set[str]] = defaultdict(set)
    for row in (row for row in board.rows if row.ranked):
        by_steps: defaultdict[Steps, list[dict[str, float]]] = defaultdict(list)
        for setting in row.settings:
            means = in_setting(setting, known)
            if len(means) > 1:
                by_steps[tuple(sorted(means))].append(means)
                keys[tuple(sorted(means))].add(setting.setting.key)
        for steps, settings in by_steps.items():
            found[steps].append((row, settings))
    return [
        Family(steps, len(keys[steps]), tuple((r, _means(steps, s)) for r, s in found[steps]))
        for steps in sorted(found)
    ]


def in_setting(setting: SettingRow, known: Known) -> dict[str, float]:
    """Mean ASR over victim seeds at each strength; defense seeds are no replicates of a victim."""
    seeds: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for outcome in setting.outcomes:
        metrics = counted(outcome, known)
        for name, attacked in (metrics.strengths if metrics else {}).items():
            seeds[name, outcome.record.cell.victim_seed].append(attacked.asr)
    by_step: defaultdict[str, list[float]] = defaultdict(list)
    for (name, _), values in seeds.items():
        by_step[name].append(fmean(values))
    return {name: fmean(values) for name, values in by_step.items()}


def _means(steps: Steps, settings: Sequence[Mapping[str, float]]) -> tuple[Estimate | None, ...]:
    return tuple(estimate([means[step] for means in settings], 1.0) for step in steps)
