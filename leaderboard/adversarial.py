"""Adversarial fine-tuning, on a panel of its own: robust accuracy, as in FRED's Tables 2 and 8.

What withstands adversarial examples need not be rid of its backdoor, so these rows stand on no
board, and none of the boards' on this panel. Clean models, which FRED tunes, have a table, and
backdoored ones another. As on the boards: seeds within a setting first, settings second, and failed
cells count as the model before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from bench.records import Metrics, RobustAccuracy, Robustness
from leaderboard.outcomes import Outcome
from leaderboard.remarks import remarks, why_not_applicable
from leaderboard.statistics import Estimate, estimate
from leaderboard.victims import Setting
from leaderboard.words import Column, budget_order, percent

PANEL: Final = "adversarial"
EPSILONS: Final = {"pgd": ("8", "10", "16"), "autoattack": ("8", "10")}  # grey levels of 255
_NAMES: Final = {"pgd": "PGD", "autoattack": "AutoAttack"}
COLUMNS: Final = (
    Column("acc", "ACC", "%", "high", percent),
    *(
        Column(f"{attack}_{epsilon}", f"{_NAMES[attack]} {epsilon}", "%", "high", percent)
        for attack, epsilons in EPSILONS.items()
        for epsilon in epsilons
    ),
    Column("asr", "ASR", "%", "low", percent),
)
BEFORE: Final = "before"  # the row of the models that were tuned

Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class PanelRow:
    """One base set or budget; or the models before, which has no budget and no cost."""

    defense: str
    budget: str
    figures: dict[str, Estimate]
    seconds: float | None  # with what a base set took; a mean over settings
    ok: int
    applicable: int
    settings: int
    seeds: tuple[int, int]  # fewest and most in a setting
    remarks: tuple[str, ...]
    refusal: str  # why it does not apply here at all; empty if it does


@dataclass(frozen=True, kw_only=True)
class PanelTable:
    """All rows over some settings; ``parts`` has the same for each of them alone."""

    name: str
    rows: tuple[PanelRow, ...]
    parts: tuple[PanelTable, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Robust accuracy of everything that was made against adversarial examples."""

    tables: tuple[PanelTable, ...]
    images: tuple[int, ...]  # attacked by PGD, per model; several where records differ
    autoattack_images: tuple[int, ...]
    autoattack: tuple[str, ...]  # its versions; empty where it was not run

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those that anything is known in."""
        known = {name for table in self.tables for row in table.rows for name in row.figures}
        return tuple(column for column in COLUMNS if column.key in known)


def panel(outcomes: Iterable[Outcome]) -> Panel | None:
    """The panel; None without a cell that belongs on it."""
    own = [outcome for outcome in outcomes if outcome.record.cell.panel == PANEL]
    if not own:
        return None
    found = [o.record.robust for o in own if o.record.robust is not None]
    kinds = {
        "Clean models": [o for o in own if o.setting.clean],
        "Backdoored models": [o for o in own if not o.setting.clean],
    }
    return Panel(
        tables=tuple(_table(name, cells) for name, cells in kinds.items() if cells),
        images=tuple(sorted({robust.images for robust in found})),
        autoattack_images=tuple(sorted({r.autoattack_images for r in found} - {0})),
        autoattack=tuple(sorted({robust.autoattack for robust in found} - {""})),
    )


def _table(name: str, cells: Sequence[Outcome]) -> PanelTable:
    settings: defaultdict[Setting, list[Outcome]] = defaultdict(list)
    for outcome in cells:
        settings[outcome.setting].append(outcome)
    ordered = sorted(settings, key=lambda setting: setting.key)
    parts = [PanelTable(name=s.label, rows=_rows(settings[s])) for s in ordered]
    return PanelTable(name=name, rows=_rows(cells), parts=tuple(parts))


def _rows(cells: Sequence[Outcome]) -> tuple[PanelRow, ...]:
    """The models before, then every defense at every budget."""
    groups: defaultdict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in cells:
        groups[outcome.record.cell.defense, outcome.record.cell.budget].append(outcome)
    ordered = sorted(groups, key=lambda place: (place[0], budget_order(place[1])))
    return (_row_before(cells), *(_row(groups[place]) for place in ordered))


def _row_before(cells: Sequence[Outcome]) -> PanelRow:
    samples = {_model(o): figures_before(o) for o in cells if o.record.robust is not None}
    figures, settings, seeds = _summary([(*model, found) for model, found in samples.items()])
    return PanelRow(
        defense=BEFORE,
        budget="",
        figures=figures,
        settings=settings,
        seeds=seeds,
        seconds=None,
        ok=len(samples),
        applicable=len(samples),
        remarks=(),
        refusal="",
    )


def _row(cells: Sequence[Outcome]) -> PanelRow:
    """One defense at one budget."""
    ok = [o for o in cells if o.evaluated]
    applicable = sum(o.applicable for o in cells)
    figures, settings, seeds = _summary(
        [(*_model(o), found) for o in cells if (found := figures_after(o))]
    )
    cell = cells[0].record.cell
    return PanelRow(
        defense=cell.defense,
        budget=cell.budget,
        figures=figures,
        settings=settings,
        seeds=seeds,
        seconds=_seconds(ok),
        ok=len(ok),
        applicable=applicable,
        remarks=remarks(cells),
        refusal="" if applicable else why_not_applicable(cells),
    )


def _model(outcome: Outcome) -> tuple[str, int]:
    return outcome.setting.key, outcome.record.cell.victim_seed


def _summary(
    samples: Iterable[tuple[str, int, Figures]],
) -> tuple[dict[str, Estimate], int, tuple[int, int]]:
    """Figures, settings and seeds; with a single setting, the estimates are over its seeds."""
    settings: defaultdict[str, defaultdict[int, list[Figures]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for setting, seed, figures in samples:
        settings[setting][seed].append(figures)
    by_setting = [[_means(group) for group in seeds.values()] for seeds in settings.values()]
    alone = len(by_setting) == 1
    values = by_setting[0] if alone else [_means(seeds) for seeds in by_setting]
    counts = [len(seeds) for seeds in by_setting] or [0]
    return _estimates(values), len(by_setting), (min(counts), max(counts))


def _means(groups: Sequence[Figures]) -> Figures:
    names = {name for figures in groups for name in figures}
    return {name: fmean(g[name] for g in groups if name in g) for name in sorted(names)}


def _estimates(values: Sequence[Figures]) -> dict[str, Estimate]:
    found = {}
    for column in COLUMNS:
        top = 1.0 if column.key == "asr" else None  # all or nothing
        value = estimate([figures[column.key] for figures in values if column.key in figures], top)
        if value is not None:
            found[column.key] = value
    return found


def _seconds(cells: Iterable[Outcome]) -> float | None:
    """Mean over settings of the mean cost of cells that were evaluated."""
    by_setting: defaultdict[str, list[float]] = defaultdict(list)
    for outcome in cells:
        if outcome.record.cost is not None:
            by_setting[outcome.setting.key].append(outcome.record.cost.seconds)
    return fmean(map(fmean, by_setting.values())) if by_setting else None


def figures_before(outcome: Outcome) -> Figures:
    """Of the model that was tuned."""
    robust = outcome.record.robust
    return {} if robust is None else _figures(outcome.record.before, robust.before)


def figures_after(outcome: Outcome) -> Figures:
    """Of what came back; where nothing did, of the model before."""
    robust = outcome.record.robust
    if robust is None or robust.after is None or outcome.record.after is None:
        return figures_before(outcome)
    return _figures(outcome.record.after, robust.after)


def _figures(metrics: Metrics | None, robust: RobustAccuracy) -> Figures:
    found = {} if metrics is None else {"acc": metrics.acc}
    if metrics is not None and metrics.asr is not None:
        found["asr"] = metrics.asr
    for attack in EPSILONS:
        values: dict[str, float] = getattr(robust, attack)
        found |= {f"{attack}_{epsilon}": value for epsilon, value in values.items()}
    return found


CSV_HEADS: Final = (
    "robust_images",
    "robust_autoattack_images",
    *(
        f"robust_{model}_{name}"
        for model in ("before", "after")
        for name in ("acc", *(c.key for c in COLUMNS if c.key not in ("acc", "asr")))
    ),
)


def csv_values(robust: Robustness | None) -> list[object]:
    """What stands below :data:`CSV_HEADS` for one record; its ``acc`` is of the same images."""
    if robust is None:
        return [None] * len(CSV_HEADS)
    line: list[object] = [robust.images, robust.autoattack_images]
    for model in (robust.before, robust.after):
        line.append(model.acc if model else None)
        for attack, epsilons in EPSILONS.items():
            values: dict[str, float] = getattr(model, attack) if model else {}
            line += [values.get(epsilon) for epsilon in epsilons]
    return line
