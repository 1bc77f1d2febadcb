"""From records of sweeps to curves: one picture per setting, one panel per budget."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bench.records import Metrics, Record
from bench.sweeps import Scalar, Sweep
from leaderboard.aggregate import SettingRow, setting_row
from leaderboard.outcomes import Outcome, latest, outcomes
from leaderboard.statistics import estimate
from leaderboard.victims import Setting
from leaderboard.words import TRAINING_SET, budget_order

_COUNTED: Final = ("acc", "asr", "ra", "worst_asr", "score")
Place = tuple[float, float]  # ACC and ASR, in percent


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of the hyper-parameter in one setting at one budget."""

    value: Scalar
    row: SettingRow

    @property
    def mean(self) -> Place:
        """Over victim seeds; a failed cell counts as the undefended model, as on the boards."""
        return 100 * self.row.figures["acc"].mean, 100 * self.row.figures["asr"].mean

    @property
    def seeds(self) -> list[Place]:
        """Every cell for itself."""
        return [
            (100 * o.figures["acc"], 100 * o.figures["asr"])
            for o in self.row.outcomes
            if "asr" in o.figures
        ]

    @property
    def failed(self) -> bool:
        """Whether a cell failed, so that the point is in part that of the undefended model."""
        return any(o.failed for o in self.row.outcomes)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One sweep in one setting at one budget: its evaluated values, in their order."""

    title: str
    sweep: Sweep
    points: tuple[Point, ...]
    budget: str  # where it really ran
    anywhere: bool  # it needs no data: it stands in every panel


@dataclass(frozen=True, kw_only=True)
class Panel:
    """All curves at one budget."""

    budget: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """All curves of one setting, and what they are compared with."""

    setting: Setting
    panels: tuple[Panel, ...]
    victim: Place | None
    twin: Place | None
    table: str  # the figures as CSV


def titles(sweeps: Sequence[Sweep]) -> list[str]:
    """``ibau: lr``; with what differs elsewhere, where that would name two sweeps."""
    names = [f"{s.label}: {s.param}" for s in sweeps]
    found = []
    for sweep, name in zip(sweeps, names, strict=True):
        twins = [s for s, other in zip(sweeps, names, strict=True) if other == name]
        differing = [
            f"{key}={value}"
            for key, value in sweep.fixed.items()
            if any(s.fixed.get(key) != value for s in twins)
        ]
        found.append(f"{name} ({', '.join(differing)})" if differing else name)
    return found


def pictures(sweeps: Sequence[Sweep], records: Iterable[Record]) -> list[Picture]:
    """Every setting in which something was swept and evaluated, in order."""
    stored = [r for r in records if r.cell.attack != "none"]
    members = [_members(sweep, stored) for sweep in sweeps]
    named = list(zip(titles(sweeps), sweeps, members, strict=True))
    settings = {o.setting.key: o.setting for found in members for o, _ in found}
    drawn = [_picture(settings[key], named) for key in sorted(settings)]
    return [picture for picture in drawn if picture.panels]


Member = tuple[Outcome, Scalar]
Named = tuple[str, Sweep, list[Member]]


def _members(sweep: Sweep, records: Iterable[Record]) -> list[Member]:
    """The newest record of every cell of a sweep, with its value."""
    found: list[Record] = []
    for record in records:
        if (value := sweep.value_of(record.cell)) is not None:
            # One name for all records of a value: the default's may be called by the plain name.
            cell = dataclasses.replace(record.cell, defense=f"{sweep.defense}[{value}]")
            found.append(dataclasses.replace(record, cell=cell))
    return [(o, o.record.cell.params[sweep.param]) for o in outcomes(latest(found)[0], {})]


def _picture(setting: Setting, named: Sequence[Named]) -> Picture:
    here = [
        (title, sweep, [m for m in members if m[0].setting == setting])
        for title, sweep, members in named
    ]
    curves = [curve for one in here for curve in _curves(*one)]
    everyone = [o.record for _, _, members in here for o, _ in members]
    return Picture(
        setting=setting,
        panels=_panels(curves),
        victim=_mean([(r.cell.victim_seed, r.before) for r in everyone]),
        twin=_mean([(r.cell.victim_seed, r.twin) for r in everyone]),
        table=_table(here),
    )


def _curves(title: str, sweep: Sweep, members: Sequence[Member]) -> list[Curve]:
    """One curve per budget at which something can be counted."""
    found = []
    for budget in sorted({o.record.cell.budget for o, _ in members}, key=budget_order):
        rows = []
        for value in sweep.values:
            cells = [o for o, v in members if v == value and o.record.cell.budget == budget]
            if cells and "asr" in (row := setting_row(cells)).figures:
                rows.append(Point(value=value, row=row))
        if rows:
            cell = rows[0].row.outcomes[0].record.cell
            free = cell.needs == "nothing"
            found.append(
                Curve(
                    title=title + " (no data)" * free + " (oracle)" * cell.oracle,
                    sweep=sweep,
                    points=tuple(rows),
                    budget=budget,
                    anywhere=free,
                )
            )
    return found


def _panels(curves: Sequence[Curve]) -> tuple[Panel, ...]:
    """By budget. As on the boards, what needs no data stands at each but the training set."""
    budgets = {c.budget for c in curves if not c.anywhere}
    if not budgets - {TRAINING_SET}:
        budgets |= {c.budget for c in curves}
    return tuple(
        Panel(budget=b, curves=tuple(c for c in curves if c.budget == b or _joins(c, b)))
        for b in sorted(budgets, key=budget_order)
    )


def _joins(curve: Curve, budget: str) -> bool:
    return curve.anywhere and budget != TRAINING_SET


def _mean(found: Iterable[tuple[int, Metrics | None]]) -> Place | None:
    """Mean ACC and ASR over seeds, each seed once."""
    seeds = {seed: m for seed, m in found if m is not None and m.asr is not None}
    acc = estimate([m.acc for m in seeds.values()])
    asr = estimate([m.asr for m in seeds.values() if m.asr is not None])
    return None if acc is None or asr is None else (100 * acc.mean, 100 * asr.mean)


def _table(named: Iterable[Named]) -> str:
    """One line per cell. Figures as they count: those of the undefended model where it failed."""
    lines = []
    for title, sweep, members in named:
        for o, value in sorted(members, key=lambda m: _line_order(sweep, m)):
            cell, before, twin = o.record.cell, o.record.before, o.record.twin
            lines.append(
                {
                    **dataclasses.asdict(o.setting),
                    "budget": cell.budget,
                    "sweep": title,
                    "defense": sweep.label,
                    "param": sweep.param,
                    "value": value,
                    "victim_seed": cell.victim_seed,
                    "defense_seed": cell.defense_seed,
                    "status": o.record.status,
                    **{name: o.figures.get(name) for name in _COUNTED},
                    "victim_acc": before.acc if before else None,
                    "victim_asr": before.asr if before else None,
                    "twin_acc": twin.acc if twin else None,
                    "twin_asr": twin.asr if twin else None,
                    "key": o.record.key,
                }
            )
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _line_order(sweep: Sweep, member: Member) -> tuple[tuple[int, int, str], int, int, int]:
    outcome, value = member
    cell = outcome.record.cell
    place = sweep.values.index(value)
    return budget_order(cell.budget), place, cell.victim_seed, cell.defense_seed
