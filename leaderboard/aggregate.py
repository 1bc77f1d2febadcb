"""From outcomes to boards: seeds within a setting first, settings second, one board per budget.

No figure of a row depends on another row: adding a method changes no existing number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, TypeVar

from leaderboard.outcomes import Outcome
from leaderboard.remarks import remarks, why_not_applicable
from leaderboard.statistics import Estimate, estimate
from leaderboard.victims import Setting
from leaderboard.words import TRAINING_SET, budget_order, is_control, labelled_size

Item = TypeVar("Item")
Key = TypeVar("Key", str, tuple[str, str, str])

# Every figure of a row; where it is all or nothing, the upper end of its range (see statistics).
FIGURES: Final[dict[str, float | None]] = {
    "acc": None,
    "asr": 1.0,
    "ra": 1.0,
    "score": 100.0,
    "worst_asr": 1.0,
    "der": 1.0,
    "twin_loss": None,
}


@dataclass(frozen=True, kw_only=True)
class CostSummary:
    """What one repair takes: means over settings, and the highest peak of memory."""

    seconds: float
    images: float  # forward and backward passes together
    memory: int  # bytes
    gpu: int  # bytes


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """One defense at one budget in one setting; the estimates are over victim seeds."""

    defense: str
    setting: Setting
    figures: dict[str, Estimate]
    seeds: int
    ok: int
    applicable: int
    outcomes: tuple[Outcome, ...]

    @property
    def budget(self) -> str:
        """The budget it ran at."""
        return self.outcomes[0].record.cell.budget

    @property
    def refusal(self) -> str:
        """Why the defense does not apply here at all; empty if it does."""
        return "" if self.applicable else why_not_applicable(self.outcomes)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One defense on one board; the estimates are over setting means."""

    defense: str
    needs: str
    origin: str
    paper: str
    control: bool
    oracle: bool  # knows or chooses by what no defender has: stands after the others
    budget: str  # where it really ran
    figures: dict[str, Estimate]
    cost: CostSummary | None
    ok: int  # cells of victims that were evaluated
    applicable: int  # cells of victims that are not "not-applicable"
    seeds: tuple[int, int]  # fewest and most victim seeds in a setting
    remarks: tuple[str, ...]
    settings: tuple[SettingRow, ...]  # clean twins' settings too

    @property
    def counted(self) -> int:
        """The number of settings, clean twins aside, that the figures rest on."""
        return sum("acc" in row.figures and not row.setting.clean for row in self.settings)

    @property
    def refusal(self) -> str:
        """Why the defense does not apply at this budget at all; empty if it does."""
        if any(row.applicable for row in self.settings):
            return ""
        return why_not_applicable(o for row in self.settings for o in row.outcomes)

    @property
    def ranked(self) -> bool:
        """Whether it takes part in the order: something of it was evaluated."""
        return self.ok > 0 and "score" in self.figures


@dataclass(frozen=True, kw_only=True)
class Board:
    """All defenses at one budget: the ordered ones, then those that failed or do not apply."""

    budget: str
    rows: tuple[Row, ...]

    @property
    def apart(self) -> bool:
        """Whether these are no repairs under a budget, and not to be compared with any."""
        return self.budget == TRAINING_SET

    def same_as(self, row: Row) -> str:
        """The budget that a data-free defense really ran at; empty if it ran at this one."""
        return "" if row.budget == self.budget else row.budget

    @property
    def images(self) -> int:
        """The most images that the budget had anywhere: ``20pc`` are 860 of 43 classes."""
        cells = (o.record for row in self.rows for s in row.settings for o in s.outcomes)
        here = (r.data_touched for r in cells if r.cell.budget == self.budget and r.data_touched)
        return max((int(touched.get("budget_images") or 0) for touched in here), default=0)

    @property
    def full(self) -> int:
        """How many settings a row must have to stand among the first, see :func:`most_settings`."""
        return most_settings(self.rows)

    def part(self, row: Row) -> str:
        """``1 of 6 settings``, where a row rests on fewer than others; else empty."""
        whole = not row.ranked or row.counted >= self.full
        return "" if whole else f"{row.counted} of {self.full} settings"

    @property
    def uneven(self) -> bool:
        """Whether the ordered rows rest on different settings, so that their means differ too."""
        keys = {
            frozenset(s.setting.key for s in row.settings if "score" in s.figures)
            for row in self.rows
            if row.ranked
        }
        return len(keys) > 1

    def at(self, setting: Setting) -> list[tuple[Row, SettingRow]]:
        """All defenses in one setting, in the order of the board."""
        pairs = ((row, s) for row in self.rows for s in row.settings)
        return [(row, s) for row, s in pairs if s.setting == setting]

    @property
    def settings(self) -> list[Setting]:
        """Every setting on this board, attacked ones first."""
        found = {s.setting.key: s.setting for row in self.rows for s in row.settings}
        return sorted(found.values(), key=lambda setting: (setting.clean, setting.key))


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by key, sorted."""
    groups: defaultdict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(sorted(groups.items()))


def setting_row(outcomes: Sequence[Outcome]) -> SettingRow:
    """Summarises the cells of one defense, budget and setting."""
    ordered = sorted(outcomes, key=_seeds)
    by_seed: defaultdict[int, list[Outcome]] = defaultdict(list)
    for outcome in ordered:
        by_seed[outcome.record.cell.victim_seed].append(outcome)
    return SettingRow(
        defense=ordered[0].record.cell.defense,
        setting=ordered[0].setting,
        figures=_estimates([_seed_means(group) for group in by_seed.values()]),
        seeds=sum(any(o.figures for o in group) for group in by_seed.values()),
        ok=sum(o.evaluated for o in ordered),
        applicable=sum(o.applicable for o in ordered),
        outcomes=tuple(ordered),
    )


def _seeds(outcome: Outcome) -> tuple[int, int]:
    return outcome.record.cell.victim_seed, outcome.record.cell.defense_seed


def _seed_means(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means over the defense seeds of one victim: they are no replicates of the victim."""
    if len(outcomes) == 1:
        return outcomes[0].figures
    values = {name: [o.figures[name] for o in outcomes if name in o.figures] for name in FIGURES}
    return {name: fmean(found) for name, found in values.items() if found}


def _estimates(groups: Sequence[dict[str, float]]) -> dict[str, Estimate]:
    """One estimate per figure that at least one group has."""
    found = {
        name: estimate([g[name] for g in groups if name in g], top) for name, top in FIGURES.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def row(settings: Sequence[SettingRow]) -> Row:
    """Summarises the settings of one defense at one budget."""
    attacked = [s for s in settings if not s.setting.clean]
    means = [_means(s) for s in attacked]
    schedules = {_schedule(o) for s in attacked for o in s.outcomes}
    losses = [
        {"twin_loss": s.figures["twin_loss"].mean}
        for s in settings
        if _has_loss(s) and (not attacked or {_schedule(o) for o in s.outcomes} <= schedules)
    ]
    counts = [s.seeds for s in attacked if s.seeds] or [0]
    cell = settings[0].outcomes[0].record.cell
    return Row(
        defense=cell.defense,
        needs=cell.needs,
        origin=cell.origin,
        paper=cell.paper,
        control=is_control(cell.defense),
        oracle=cell.oracle,
        budget=cell.budget,
        figures=_estimates(means) | _estimates(losses),
        cost=_cost(attacked),
        ok=sum(s.ok for s in attacked),
        applicable=sum(s.applicable for s in attacked),
        seeds=(min(counts), max(counts)),
        remarks=remarks([o for s in settings for o in s.outcomes]),
        settings=tuple(settings),
    )


def _means(setting: SettingRow) -> dict[str, float]:
    return {name: value.mean for name, value in setting.figures.items()}


def _has_loss(setting: SettingRow) -> bool:
    return setting.setting.clean and "twin_loss" in setting.figures


def _schedule(outcome: Outcome) -> str:
    """The hyper-parameters: a twin may have been repaired before the profile changed them."""
    return repr(outcome.record.cell.params)


def _cost(settings: Iterable[SettingRow]) -> CostSummary | None:
    """Over evaluated cells only: what a crashed one took says nothing about the method."""
    groups = [
        [o.record.cost for o in s.outcomes if o.evaluated and o.record.cost] for s in settings
    ]
    groups = [group for group in groups if group]
    if not groups:
        return None
    return CostSummary(
        seconds=fmean(fmean(c.seconds for c in g) for g in groups),
        images=fmean(fmean(c.images_forward + c.images_backward for c in g) for g in groups),
        memory=max(c.peak_rss for g in groups for c in g),
        gpu=max(c.peak_gpu for g in groups for c in g),
    )


def most_settings(rows: Iterable[Row]) -> int:
    """The number of settings of those ranked rows that have most of them.

    Where there are others, what needs no data does not count: it stands on every board, and would
    leave none of them whole before the last setting has been run.
    """
    ranked = [row for row in rows if row.ranked]
    own = [row for row in ranked if row.needs != "nothing"]
    return max((row.counted for row in own or ranked), default=0)


def _order(row: Row, full: int) -> tuple[int, float, str]:
    """By score, descending; then oracles, rows that failed throughout, and refusals.

    Rows that rest on fewer settings than others stand after those: their means are of other things.
    """
    score = row.figures.get("score")
    kind = 2 * row.oracle + (row.counted < full) if row.ranked else 4 + bool(row.refusal)
    return kind, -score.mean if score else 0.0, row.defense


def boards(outcomes: Iterable[Outcome]) -> tuple[Board, ...]:
    """One board per budget; what has a panel of its own stands on no board."""
    return boards_of(setting_rows([o for o in outcomes if not o.record.cell.panel]))


def setting_rows(outcomes: Iterable[Outcome]) -> list[SettingRow]:
    """Summarises all cells, setting by setting."""
    groups = grouped(
        outcomes, lambda o: (o.record.cell.budget, o.record.cell.defense, o.setting.key)
    )
    return [setting_row(group) for group in groups.values()]


def boards_of(settings: Iterable[SettingRow]) -> tuple[Board, ...]:
    """One board per budget. A defense that needs nothing ran once, and stands on every board.

    Training anew from the poisoned set has a board of its own, on which nothing else stands.
    """
    own = {
        budget: {name: row(found) for name, found in grouped(group, lambda s: s.defense).items()}
        for budget, group in grouped(settings, lambda s: s.budget).items()
    }
    everywhere = {name: r for name, r in own.get("0", {}).items() if r.needs == "nothing"}
    found = []
    for budget in sorted(own, key=budget_order):
        rows = own[budget] if budget == TRAINING_SET else everywhere | own[budget]
        full = most_settings(rows.values())
        ordered = sorted(rows.values(), key=lambda row: _order(row, full))
        found.append(Board(budget=budget, rows=tuple(ordered)))
    return tuple(found)


def reference_board(found: Sequence[Board]) -> Board | None:
    """The board of the largest labelled budget; without labelled ones, the first of a budget."""
    found = [board for board in found if not board.apart]
    sizes = {board.budget: labelled_size(board.budget) for board in found}
    labelled = [board for board in found if sizes[board.budget] is not None]
    if labelled:
        return max(labelled, key=lambda board: (board.images, sizes[board.budget] or ()))
    return found[0] if found else None
