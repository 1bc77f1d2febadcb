"""The data behind the numbers of the page: every setting and every cell, packed.

Columns of small integers in JSON, compressed and in base64: 24,000 cells would fill megabytes as
markup. The page's script unpacks it when a reader asks; the boards themselves do not need it.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bench.records import Metrics, slug
from leaderboard.aggregate import Board, Row, SettingRow
from leaderboard.amplified import Known, counted
from leaderboard.analysis import Analysis
from leaderboard.comparison import Comparison, Matrix
from leaderboard.markup import kind
from leaderboard.outcomes import Outcome
from leaderboard.statistics import Estimate
from leaderboard.victims import Setting, Victim
from leaderboard.words import STATUS_WORDS, shorten

KEY_LENGTH: Final = 12  # hex digits of a key that the page holds; CSV and JSON hold all 64
STRENGTHS: Final = 3  # that a setting has at most
FIGURES: Final = ("score", "acc", "asr", "ra", "worst_asr")
_REASON: Final = 400  # characters
CELL: Final = (
    *("seed", "again", "status", "key", "seconds", "score", "acc"),
    *(f"{name}{step}" for step in range(STRENGTHS) for name in ("asr", "ra")),
    *("reason", "log"),
)
VICTIM: Final = ("s", "seed", "target", "status", "acc", "asr", "ra", "twin")
PAIR: Final = (
    *("b", "one", "other", "mean", "low", "high", "p", "holm", "holm_back"),
    *("wins", "ties", "losses", "n"),
)


@dataclass
class Numbered:
    """Texts by number, in the order in which they came."""

    texts: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def __call__(self, text: str) -> int:
        """The number of a text; -1 for an empty one."""
        if not text:
            return -1
        if text not in self.numbers:
            self.numbers[text] = len(self.texts)
            self.texts.append(text)
        return self.numbers[text]


@dataclass(frozen=True)
class Index:
    """Where each defense, budget and setting stands in the payload; the tables refer to it."""

    defenses: Mapping[str, int]
    budgets: Mapping[str, int]
    settings: Mapping[str, int]


def index(boards: Sequence[Board], victims: Iterable[Victim]) -> Index:
    """Numbers everything that is on the page."""
    defenses = sorted({row.defense for board in boards for row in board.rows})
    settings = {s.key: s for board in boards for s in board.settings}
    settings |= {v.setting.key: v.setting for v in victims}
    ordered = sorted(settings, key=lambda key: (settings[key].clean, key))
    return Index(
        {name: number for number, name in enumerate(defenses)},
        {board.budget: number for number, board in enumerate(boards)},
        {key: number for number, key in enumerate(ordered)},
    )


def pack(content: Mapping[str, Any]) -> str:
    """JSON, deflated, in base64; equal input gives equal text."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 9)).decode()


def payload(
    analyses: Sequence[Analysis],
    victims: Sequence[Victim],
    places: Index,
    logs: Mapping[str, str],
) -> dict[str, Any]:
    """Everything that the drill-down shows. ``logs`` has the tail of a log by the record's key."""
    boards = [analysis.board for analysis in analyses]
    own = [
        (row, s) for b in boards for row in b.rows if row.budget == b.budget for s in row.settings
    ]
    cells = Cells({victim.key: victim for victim in victims}, logs)
    return {
        "budgets": list(places.budgets),
        "defenses": _defenses(boards, places),
        "settings": _settings(boards, victims, places),
        "statuses": list(STATUS_WORDS.values()),
        "rows": _columns(
            ("d", "b", "s", *FIGURES, *(f"{n}_{end}" for n in FIGURES for end in ("low", "high"))),
            [[*_place(row, setting, places), *_summary(setting)] for row, setting in own],
        )
        | _columns(("seeds", "ok", "of"), [(s.seeds, s.ok, s.applicable) for _, s in own]),
        "cells": _columns(
            ("d", "b", "s", *CELL),
            [
                [*_place(row, setting, places), *cells.line(outcome)]
                for row, setting in own
                for outcome in setting.outcomes
            ],
        ),
        "reasons": cells.reasons.texts,
        "logs": cells.tails.texts,
        "victims": _columns(VICTIM, [_victim(victim, places) for victim in victims]),
        "pairs": _columns(
            PAIR,
            [
                [places.budgets[a.board.budget], *_pair(pair, a.matrix, places)]
                for a in analyses
                for pair in a.matrix.values()
                if pair.one < pair.other
            ],
        ),
    }


def _columns(names: Sequence[str], lines: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """By column: neighbours are alike, which compresses well."""
    return {name: [line[i] for line in lines] for i, name in enumerate(names)}


def _place(row: Row, setting: SettingRow, places: Index) -> tuple[int, int, int]:
    return (
        places.defenses[row.defense],
        places.budgets[row.budget],
        places.settings[setting.setting.key],
    )


def _thousandths(value: float | None) -> int | None:
    """What is printed with one decimal of a percent needs no more."""
    return None if value is None else round(1000 * value)


def _scaled(name: str, value: float | None) -> int | None:
    return _thousandths(value if value is None or name != "score" else value / 100)


def _summary(setting: SettingRow) -> list[int | None]:
    found = [(name, setting.figures.get(name)) for name in FIGURES]
    means = [_scaled(name, value.mean if value else None) for name, value in found]
    ends = [(n, end) for n, value in found for end in _ends(value)]
    return means + [_scaled(name, end) for name, end in ends]


def _ends(value: Estimate | None) -> tuple[float | None, float | None]:
    return (value.low, value.high) if value else (None, None)


class Cells:
    """Turns outcomes into lines; texts that many cells share are held once."""

    def __init__(self, known: Known, logs: Mapping[str, str]) -> None:
        self.known, self.logs = known, logs
        self.reasons, self.tails = Numbered(), Numbered()

    def line(self, outcome: Outcome) -> list[Any]:
        """One cell, in the order of ``CELL``."""
        record, figures = outcome.record, outcome.figures
        return [
            record.cell.victim_seed,
            record.cell.defense_seed,
            list(STATUS_WORDS).index(record.status),
            record.key[:KEY_LENGTH],
            None if record.cost is None else round(record.cost.seconds, 1),
            _scaled("score", figures.get("score")),
            _thousandths(figures.get("acc")),
            *_attacked(counted(outcome, self.known)),
            self.reasons(shorten(outcome.reason, _REASON)),
            self.tails(self.logs.get(record.key, "")),
        ]


def _attacked(metrics: Metrics | None) -> list[int | None]:
    """ASR and RA at every strength, weakest first."""
    found = [] if metrics is None else [metrics.strengths[n] for n in sorted(metrics.strengths)]
    pairs = [(_thousandths(a.asr), _thousandths(a.ra)) for a in found[:STRENGTHS]]
    pairs += [(None, None)] * (STRENGTHS - len(pairs))
    return [value for pair in pairs for value in pair]


def _defenses(boards: Iterable[Board], places: Index) -> list[dict[str, str]]:
    rows = {row.defense: row for board in boards for row in board.rows}
    return [
        {
            "name": name,
            "needs": rows[name].needs,
            "kind": kind(rows[name]),
            "origin": rows[name].origin,
            "folder": slug(name.split("[")[0]),
        }
        for name in places.defenses
    ]


def _settings(
    boards: Iterable[Board], victims: Iterable[Victim], places: Index
) -> list[dict[str, Any]]:
    known: dict[str, tuple[Setting, list[str]]] = {}
    for victim in victims:
        known[victim.setting.key] = (victim.setting, sorted(victim.metrics.strengths))
    for setting in (s for board in boards for s in board.settings):
        known.setdefault(setting.key, (setting, []))
    return [_setting(*known[key]) for key in places.settings]


def _setting(setting: Setting, strengths: list[str]) -> dict[str, Any]:
    return {
        "label": setting.label,
        "dataset": setting.dataset,
        "arch": setting.arch,
        "attack": setting.attack,
        "options": options(setting),
        "strengths": strengths,
    }


def options(setting: Setting) -> list[str]:
    """What ``bench run`` must be told to run this setting; a twin comes with any of its victims.

    Width belongs to the profile; label rule and poison rate are no part of an attack's name here.
    """
    found = ["--dataset", setting.dataset, "--arch", setting.arch.split("*")[0]]
    if setting.clean:
        return found
    name, _, inner = setting.attack.removesuffix("]").partition("[")
    rule = f"label_rule={setting.label_rule}, poison_rate={setting.poison_rate:g}"
    return [*found, "--attack", f"{name}[{', '.join(filter(None, (inner, rule)))}]"]


def _victim(victim: Victim, places: Index) -> list[Any]:
    twin = victim.twin_metrics
    return [
        places.settings[victim.setting.key],
        victim.seed,
        victim.target,
        victim.status,
        _thousandths(victim.metrics.acc),
        _thousandths(victim.metrics.asr),
        _thousandths(victim.metrics.ra),
        _thousandths(twin.acc if twin else None),
    ]


def _pair(pair: Comparison, matrix: Matrix, places: Index) -> list[Any]:
    """The other way round all signs turn, and Holm's family is another one."""
    found = pair.difference
    return [
        places.defenses[pair.one],
        places.defenses[pair.other],
        *(None if v is None else round(10 * v) for v in (found.mean, found.low, found.high)),
        *(_rounded(p) for p in (found.p, pair.holm, matrix[pair.other, pair.one].holm)),
        *(found.wins, found.ties, found.losses, found.n),
    ]


def _rounded(p: float | None) -> float | None:
    return None if p is None else round(p, 5)
