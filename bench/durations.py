"""How long cells take, learnt from the records of others."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import starmap
from statistics import fmean, stdev
from typing import Final

from bench.progress import duration
from bench.records import Record
from bench.specs import bare

# A record says nothing of the time where nothing ran, or where somebody else ended it.
_NO_MEASURE: Final = ("not-applicable", "import-error", "killed", "interrupted")
_NINE_IN_TEN: Final = 1.28  # standard deviations on one side
_FEW: Final = math.log(2) / _NINE_IN_TEN  # the spread where fewer than three tell
_LEAST: Final = 0.1  # spread: machines vary
_ELSEWHERE: Final = math.log(4) / _NINE_IN_TEN  # more of it, where only other settings tell


@dataclass(frozen=True, kw_only=True)
class Work:
    """Something to do, as far as its time depends on it."""

    name: str  # the defense; or VICTIMS, or ASSETS
    arch: str
    dataset: str


# What stands for a defense where something is built.
VICTIMS: Final = "victims to build"
ASSETS: Final = "assets to build"


@dataclass(frozen=True, kw_only=True)
class Span:
    """Seconds: nine times in ten more than ``low``, and nine times in ten less than ``high``.

    For a sum of cells the ends are farther apart than that: as if all were cheap, or all dear.
    """

    low: float
    median: float
    high: float

    def shared(self, slots: int) -> Span:
        """The same over several slots."""
        return Span(low=self.low / slots, median=self.median / slots, high=self.high / slots)

    def __str__(self) -> str:
        return f"{duration(self.low)} to {duration(self.high)}, probably {duration(self.median)}"


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the cells that are known will take together, and how many are not known."""

    known: Span | None  # None where nothing is known
    unknown: dict[str, int]  # how many cells of which defense

    def __str__(self) -> str:
        parts = [str(self.known)] if self.known and self.known.median else []
        if self.unknown:
            parts.append(f"? for {', '.join(starmap(_unknown, self.unknown.items()))}")
        return " + ".join(parts) or "no time"


def _unknown(name: str, count: int) -> str:
    if name in (VICTIMS, ASSETS):
        return f"{count} {name}"
    return f"{count} cell{'s' if count > 1 else ''} of {name}"


class Durations:
    """Spans by (defense, architecture, data set), else by the defense alone.

    Args:
        records: of any profile; only those of this kind of device count.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, records: Iterable[Record], device: str) -> None:
        self._seconds: dict[Work | str, list[float]] = {}
        for record in records:
            if record.env.get("device", device) == device and (seconds := seconds_of(record)):
                cell = record.cell
                self.learn(Work(name=cell.defense, arch=cell.arch, dataset=cell.dataset), seconds)

    def learn(self, work: Work, seconds: float) -> None:
        """Takes in what something has taken."""
        for key in (work, bare(work.name)):
            self._seconds.setdefault(key, []).append(math.log(seconds))

    def span(self, work: Work) -> Span | None:
        """What such a thing takes; None where nothing like it has been done."""
        if (known := self._seconds.get(work)) is not None:
            return _span(known, 0.0)
        known = self._seconds.get(bare(work.name))
        return None if known is None else _span(known, _ELSEWHERE)

    def forecast(self, todo: Sequence[Work], slots: int) -> Forecast:
        """All of it together, over so many slots."""
        spans = [(work, self.span(work)) for work in todo]
        known = [span for _, span in spans if span is not None]
        unknown = Counter(work.name for work, span in spans if span is None)
        total = Span(
            low=sum(span.low for span in known),
            median=sum(span.median for span in known),
            high=sum(span.high for span in known),
        )
        nothing = bool(unknown) and not known
        return Forecast(known=None if nothing else total.shared(slots), unknown=dict(unknown))


def _span(logs: Sequence[float], more: float) -> Span:
    spread = stdev(logs) if len(logs) > 2 else _FEW
    spread = max(spread, _LEAST) + more
    middle, reach = fmean(logs), _NINE_IN_TEN * spread
    return Span(
        low=math.exp(middle - reach), median=math.exp(middle), high=math.exp(middle + reach)
    )


def seconds_of(record: Record) -> float | None:
    """What a cell took from start to end, its evaluation included; None where nothing ran."""
    if record.status in _NO_MEASURE:
        return None
    try:
        begun, ended = map(datetime.datetime.fromisoformat, (record.started, record.ended))
        seconds = (ended - begun).total_seconds()
    except (ValueError, TypeError):  # no times, or one without a zone
        seconds = 0.0
    if seconds <= 0 and record.cost is not None:
        seconds = record.cost.seconds
    return seconds if seconds > 0 else None
