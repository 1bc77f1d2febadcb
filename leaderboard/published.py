"""What papers printed, beside what was measured here.

``data/published.csv`` holds figures of four papers and a small part of a public leaderboard, as
they were printed (``data/README.md``). What stands beside a measured setting is decided by rule:

1. Same data set, attack, label rule and defense. Parameters of ours (``ibau[mode=paper]``) do not
   count: no paper prints them.
2. Same kind of data: none, labelled, unlabelled, out-of-distribution or the poisoned training set.
3. Of what a source prints, the nearest number of images on a logarithmic scale, at most four times
   as many or as few. Of equals the same architecture, then the nearest poison rate, then the first
   in the source's own order.
4. Whatever else differs is named.

One row per source: how far two papers lie apart on the same method is worth seeing.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from leaderboard.aggregate import Board, SettingRow
from leaderboard.statistics import Estimate
from leaderboard.victims import Setting
from leaderboard.words import TRAINING_SET

DATA: Final = Path(__file__).parent / "data" / "published.csv"
FARTHEST: Final = 4.0  # times as many images, or as few
CLASSES: Final = {"cifar10": 10, "cifar100": 100, "gtsrb": 43}
FIGURES: Final = ("acc", "asr", "ra")
UNLABELLED: Final = 2500  # images of the budgets `unlabeled` and `ood`, where the set has as many


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where figures come from, and what holds for all of them."""

    paper: str  # key in data/references.bib
    runs: str  # repetitions behind a figure
    asr: str  # how its ASR differs from ours; empty if it does not


SOURCES: Final = {
    "ibau": Source(
        paper="arXiv:2110.03735",
        runs="no repetition stated",
        asr="not said whether ASR counts images of the target class",
    ),
    "bcu": Source(
        paper="arXiv:2211.12044",
        runs="mean of 14 models",
        asr="not said whether ASR counts images of the target class",
    ),
    "dhbe": Source(
        paper="arXiv:2306.08009",
        runs="no repetition stated",
        asr="ASR counts images only that are right without the trigger",
    ),
    "fred": Source(
        paper="arXiv:2206.07018",
        runs="no repetition stated",
        asr="not said whether ASR counts images of the target class",
    ),
    "backdoorbench": Source(paper="arXiv:2206.12654", runs="one seed", asr=""),
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One printed result; figures are fractions."""

    source: str
    table: str
    dataset: str
    arch: str  # "unstated" where the source does not say
    attack: str
    label_rule: str
    poison_rate: float | None  # of the target class for clean-label attacks, as in our settings
    trigger: str  # what is said of trigger and target, in words
    defense: str
    data: str  # "none", "labelled", "unlabelled", "ood" or "poisoned-train"
    images: int  # 0 where there are none, and for the training set
    figures: dict[str, float]
    note: str


@dataclass(frozen=True, kw_only=True)
class Gap:
    """One figure, measured minus published, as fractions."""

    measured: Estimate
    published: float

    @property
    def mean(self) -> float:
        """The difference of the measured mean over seeds and the printed figure."""
        return self.measured.mean - self.published

    @property
    def holds(self) -> bool | None:
        """Whether our interval over seeds holds the printed figure; None without an interval."""
        if self.measured.low is None or self.measured.high is None:
            return None
        return self.measured.low <= self.published <= self.measured.high


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One of our settings and the nearest setting of one source."""

    defense: str  # ours, with its parameters
    budget: str
    setting: Setting
    published: Published
    gaps: dict[str, Gap]
    differs: tuple[str, ...]  # conditions that are not the same, in words


@cache
def published() -> tuple[Published, ...]:
    """All printed results, in the order of the file."""
    with DATA.open(encoding="utf-8", newline="") as stream:
        return tuple(_parse(line) for line in csv.DictReader(stream))


def _parse(line: Mapping[str, str]) -> Published:
    return Published(
        **{name: line[name] for name in ("source", "table", "dataset", "arch", "attack")},
        **{name: line[name] for name in ("label_rule", "trigger", "defense", "data", "note")},
        poison_rate=float(line["poison_rate"]) if line["poison_rate"] else None,
        images=int(line["images"] or 0),
        figures={name: float(line[name]) / 100 for name in FIGURES if line[name]},
    )


def beside(boards: Iterable[Board], known: Iterable[Published] | None = None) -> list[Beside]:
    """Every measured setting with the nearest one of each source that has a comparable one.

    A row that stands on other boards as "same as" is compared on its own board only.
    """
    table: dict[tuple[str, str, str, str, str], list[Published]] = {}
    for entry in published() if known is None else known:
        table.setdefault(
            (entry.defense, entry.dataset, entry.attack, entry.label_rule, entry.data), []
        ).append(entry)
    return [found for board in boards for found in _on_board(board, table)]


def _on_board(
    board: Board, table: Mapping[tuple[str, str, str, str, str], list[Published]]
) -> Iterator[Beside]:
    for row in board.rows:
        for measured in () if board.same_as(row) else row.settings:
            setting = measured.setting
            kind, images = data_of(board.budget, setting.dataset)
            names = (_plain(row.defense), setting.dataset, _plain(setting.attack))
            entries = table.get((*names, setting.label_rule, kind), [])
            for entry in _nearest(entries, setting, images):
                yield _beside(entry, row.defense, board.budget, measured, images)


def _plain(name: str) -> str:
    return name.split("[")[0]


def data_of(budget: str, dataset: str) -> tuple[str, int]:
    """The kind of data that a budget grants, and how many images; 0 where that is not known."""
    named = {
        "0": ("none", 0),
        "1t": ("labelled", 1),
        "unlabeled": ("unlabelled", UNLABELLED),
        "ood": ("ood", UNLABELLED),
        TRAINING_SET: ("poisoned-train", 0),
    }
    if budget in named:
        return named[budget]
    if match := re.fullmatch(r"1|(\d+)pc", budget):
        return "labelled", int(match[1] or 1) * CLASSES.get(dataset, 0)
    return "labelled", int(budget) if budget.isdecimal() else 0


def _nearest(entries: Iterable[Published], setting: Setting, images: int) -> Iterator[Published]:
    """One entry per source; the first in its order of those that are equally near."""
    best: dict[str, tuple[tuple[float, bool, float], Published]] = {}
    for entry in entries:
        apart = _apart(entry.images, images)
        if apart > math.log(FARTHEST) + 1e-9:
            continue
        other_arch = entry.arch != _plain_arch(setting.arch)
        far = (apart, other_arch, _apart(entry.poison_rate or 0.0, setting.poison_rate))
        if entry.source not in best or far < best[entry.source][0]:
            best[entry.source] = far, entry
    return (entry for _, entry in best.values())


def _apart(one: float, other: float) -> float:
    """The distance of two amounts on a logarithmic scale; infinite if only one of them is zero."""
    if one == other:
        return 0.0
    return abs(math.log(one / other)) if one > 0 and other > 0 else math.inf


def _plain_arch(arch: str) -> str:
    return arch.split("*")[0]


def _beside(
    entry: Published, defense: str, budget: str, measured: SettingRow, images: int
) -> Beside:
    return Beside(
        defense=defense,
        budget=budget,
        setting=measured.setting,
        published=entry,
        gaps={
            name: Gap(measured=measured.figures[name], published=value)
            for name, value in entry.figures.items()
            if name in measured.figures
        },
        differs=tuple(_differences(entry, measured, images)),
    )


def _differences(entry: Published, measured: SettingRow, images: int) -> Iterator[str]:
    """What is not the same, the weightiest first."""
    setting, source = measured.setting, SOURCES[entry.source]
    if entry.arch != setting.arch:
        yield f"architecture {entry.arch}, ours {setting.arch}"
    if entry.images != images:
        yield f"{entry.images:,} images, ours {images:,}"
    if entry.poison_rate is None:
        yield f"poison rate not stated, ours {setting.poison_rate:g}"
    elif entry.poison_rate != setting.poison_rate:
        yield f"poison rate {entry.poison_rate:g}, ours {setting.poison_rate:g}"
    if entry.trigger:
        yield f"trigger: {entry.trigger}"
    ours = (("attack", setting.attack), ("defense", measured.defense))
    yield from (f"our {what} is {spec}" for what, spec in ours if "[" in spec)
    if entry.note:
        yield entry.note
    if source.asr:
        yield source.asr
    seeds = f"{measured.seeds} seed{'s' * (measured.seeds != 1)}"
    if not (source.runs == "one seed" and measured.seeds == 1):
        yield f"{source.runs}, ours {seeds}"
