"""Two sets of records compared, cell by cell: what changed beyond noise, and what came and went.

A cell is paired with the one of the same defense, setting, budget and seeds. Noise is what pairs
differ by among themselves: over victim seeds within a setting, over settings within a board.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final, Literal

from bench.records import Record, collector_paused, read_all
from leaderboard.adversarial import figures_after
from leaderboard.comparison import CONTRASTS, LEAST_SETTINGS, Contrast
from leaderboard.comparison import difference as over_settings
from leaderboard.outcomes import Outcome, latest, outcomes
from leaderboard.statistics import LEAST, estimate
from leaderboard.victims import Victim, merge, read_zoo
from leaderboard.words import budget_order

# What is compared. RA at every strength is in the score; robust accuracy is of its panel alone.
FIGURES: Final[dict[str, Contrast]] = {
    **{str(name): contrast for name, contrast in CONTRASTS.items()},
    "pgd_8": Contrast(1, 0.02),
}

Place = tuple[str, str, str, int, int]  # defense, budget, setting, victim seed, defense seed
Group = tuple[str, str, str]  # defense, budget, setting
Pair = tuple[Outcome, Outcome]
Found = Literal["beyond", "within", "too few"]


@dataclass(frozen=True, kw_only=True)
class Shift:
    """One figure of one defense and budget that is not what it was."""

    defense: str
    budget: str
    setting: str  # empty: over all settings
    figure: str
    old: float
    new: float
    change: float  # the mean paired difference, new minus old
    low: float | None  # its 95 % interval; None with too few pairs
    high: float | None
    pairs: int  # victim seeds, or settings where ``setting`` is empty
    better: bool
    found: Found


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Cells whose status is another, or victims whose verdict of the gate is."""

    name: str  # "ft at 100", or "victim"
    setting: str
    old: str
    new: str
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Cells of one defense and budget that only one side has."""

    defense: str
    budget: str
    cells: int
    settings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Everything that differs between two roots."""

    records: tuple[int, int]  # that count on either side
    paired: int
    equal: int  # of those, with the same status and figures
    shifts: tuple[Shift, ...]
    statuses: tuple[Turn, ...]
    victims: tuple[Turn, ...]
    appeared: tuple[Block, ...]
    disappeared: tuple[Block, ...]
    inputs: Mapping[str, Mapping[str, int]]  # by defense: which inputs differ, in how many cells
    problems: tuple[str, ...]  # files that could not be read

    def of(self, found: Found) -> list[Shift]:
        """The shifts of one kind."""
        return [shift for shift in self.shifts if shift.found == found]


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one root holds."""

    cells: Mapping[Place, Outcome]
    victims: Mapping[tuple[str, int], Victim]
    problems: tuple[str, ...]


@collector_paused()
def difference(old: Path, new: Path) -> Changes:
    """Compares two roots; cells that only a sweep has asked for are left out."""
    one, other = side(old), side(new)
    shared = [place for place in one.cells if place in other.cells]
    pairs = {place: (one.cells[place], other.cells[place]) for place in shared}
    return Changes(
        records=(len(one.cells), len(other.cells)),
        paired=len(pairs),
        equal=sum(_equal(pair) for pair in pairs.values()),
        shifts=tuple(_shifts(pairs)),
        statuses=tuple(_statuses(pairs)),
        victims=tuple(_victims(one.victims, other.victims)),
        appeared=_blocks(place for place in other.cells if place not in pairs),
        disappeared=_blocks(place for place in one.cells if place not in pairs),
        inputs=_inputs(pairs),
        problems=(*one.problems, *other.problems),
    )


def side(root: Path) -> Side:
    """The newest record of every cell, in order, as the board counts it."""
    stored, problems = read_all(root)
    records, _ = latest(r for r in stored if not r.cell.swept)
    zoo, zoo_problems = read_zoo(root)
    counted = outcomes(records, merge(zoo, records))
    found = {place_of(outcome.record): outcome for outcome in counted}
    return Side(
        cells={place: found[place] for place in sorted(found, key=_order)},
        victims={victim.key: victim for victim in zoo},
        problems=(*problems, *zoo_problems),
    )


def place_of(record: Record) -> Place:
    """What is the same cell on both sides."""
    cell = record.cell
    return (cell.defense, cell.budget, cell.setting, cell.victim_seed, cell.defense_seed)


def _order(place: Place) -> tuple[object, ...]:
    return (place[0], budget_order(place[1]), *place[2:])


def figures(outcome: Outcome) -> dict[str, float]:
    """The compared figures of one cell; cost as the natural logarithm of 1 + images."""
    known = outcome.figures
    if outcome.record.cell.panel:
        known = known | figures_after(outcome)
    found = {name: known[name] for name in FIGURES if name in known}
    cost = outcome.record.cost
    if outcome.evaluated and cost is not None:
        found["cost"] = math.log1p(cost.images_forward + cost.images_backward)
    return found


def _equal(pair: Pair) -> bool:
    one, other = pair
    same = one.record.status == other.record.status and one.record.after == other.record.after
    return same and figures(one) == figures(other)


def _shifts(pairs: Mapping[Place, Pair]) -> list[Shift]:
    """Over all settings first, then setting by setting, for every defense and budget."""
    groups: defaultdict[Group, list[Place]] = defaultdict(list)
    for place in pairs:
        groups[place[:3]].append(place)
    seeds = {
        group: _by_seed([(p[3], pairs[p]) for p in places]) for group, places in groups.items()
    }
    clean = {place[2] for place, (one, _) in pairs.items() if one.setting.clean}
    boards: defaultdict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in groups:
        boards[group[:2]].append(group)
    found: list[Shift] = []
    for board in boards.values():
        for name in FIGURES:
            attacked = [_means(seeds[group][name]) for group in board if group[2] not in clean]
            found += _row(board[0], name, [mean for mean in attacked if mean])
        for group in board:
            found += [shift for name in FIGURES for shift in _cell(group, name, seeds[group][name])]
    return found


Values = list[tuple[float, float]]  # old and new, one per seed or setting


def _by_seed(pairs: Sequence[tuple[int, Pair]]) -> dict[str, Values]:
    """Every figure of every victim seed; defense seeds are averaged."""
    groups: defaultdict[int, list[tuple[dict[str, float], dict[str, float]]]] = defaultdict(list)
    for seed, (one, other) in pairs:
        groups[seed].append((figures(one), figures(other)))
    found: dict[str, Values] = {name: [] for name in FIGURES}
    for group in groups.values():
        for name, values in found.items():
            both = [(a[name], b[name]) for a, b in group if name in a and name in b]
            values += _means(both)
    return found


def _means(values: Values) -> Values:
    """The means of old and new, as a single pair; nothing without values."""
    if not values:
        return []
    return [(fmean(old for old, _ in values), fmean(new for _, new in values))]


def _cell(group: Group, name: str, values: Values) -> list[Shift]:
    """One setting: t over the paired differences of its victim seeds."""
    changes = [new - old for old, new in values]
    if not any(changes):
        return []
    found = estimate(changes)
    assert found is not None  # there is at least one
    return [_shift(group, name, values, found.mean, found.low, found.high)]


def _row(group: Group, name: str, settings: Sequence[Values]) -> list[Shift]:
    """All settings: the sign-flip interval over the paired differences of their means."""
    values = [value for means in settings for value in means]
    if len(values) < LEAST_SETTINGS or not any(new != old for old, new in values):
        return []
    one, other = [new for _, new in values], [old for old, _ in values]
    found = over_settings(one, other, FIGURES[name])
    return [_shift((*group[:2], ""), name, values, found.mean, found.low, found.high)]


def _shift(
    group: Group, name: str, values: Values, change: float, low: float | None, high: float | None
) -> Shift:
    """Beyond noise: the interval does not hold zero, and the change is more than the margin."""
    large = abs(change) > FIGURES[name].margin
    if low is None or high is None:
        found: Found = "too few" if large else "within"
    else:
        found = "beyond" if large and not low <= 0 <= high else "within"
    ((old, new),) = _means(values)
    return Shift(
        defense=group[0],
        budget=group[1],
        setting=group[2],
        figure=name,
        old=old,
        new=new,
        change=change,
        low=low,
        high=high,
        pairs=len(values),
        better=change * FIGURES[name].sign > 0,
        found=found,
    )


def _statuses(pairs: Mapping[Place, Pair]) -> list[Turn]:
    turned: defaultdict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for (defense, budget, setting, seed, _), (one, other) in pairs.items():
        if one.record.status != other.record.status:
            name = f"{defense} at {budget}"
            turned[name, setting, one.record.status, other.record.status].append(seed)
    return _turns(turned)


def _victims(
    old: Mapping[tuple[str, int], Victim], new: Mapping[tuple[str, int], Victim]
) -> list[Turn]:
    turned: defaultdict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for key in sorted(old.keys() | new.keys()):
        one, other = (side[key].status if key in side else "not there" for side in (old, new))
        if one != other:
            turned["victim", key[0], one, other].append(key[1])
    return _turns(turned)


def _turns(turned: Mapping[tuple[str, str, str, str], list[int]]) -> list[Turn]:
    return [
        Turn(name=name, setting=setting, old=old, new=new, seeds=tuple(sorted(set(seeds))))
        for (name, setting, old, new), seeds in turned.items()
    ]


def _blocks(places: Iterable[Place]) -> tuple[Block, ...]:
    groups: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for place in places:
        groups[place[:2]].append(place[2])
    return tuple(
        Block(defense=d, budget=b, cells=len(names), settings=tuple(sorted(set(names))))
        for (d, b), names in groups.items()
    )


def _inputs(pairs: Mapping[Place, Pair]) -> dict[str, dict[str, int]]:
    """Why keys differ: by defense, each input that does and in how many cells."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for place, (one, other) in pairs.items():
        old, new = one.record.inputs, other.record.inputs
        names = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
        found[place[0]].update(names)
    return {name: dict(sorted(counts.items())) for name, counts in found.items() if counts}


def rule() -> str:
    """How it is decided, in words."""
    margins = "2 points of score, ASR and robust accuracy, 1 point of accuracy, 10 % of the cost"
    return (
        "A cell is paired with the one of the same defense, budget, setting and seeds; of several "
        "records of a cell the last counts, and a failed one counts as the undefended model. "
        f"A change is beyond noise if it is more than what counts as the same ({margins}) and its "
        "95 % interval does not hold zero. In one setting that is Student's t over the paired "
        f"differences of at least {LEAST} victim seeds; over all settings the sign-flip interval "
        f"over at least {LEAST_SETTINGS} settings. Intervals are not adjusted for their number. "
        "Cost is images forward and backward."
    )
