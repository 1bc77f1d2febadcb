"""The victims as the page lists them: one line per setting, and each one that was turned away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.records import Metrics
from leaderboard.victims import Setting, Victim
from leaderboard.words import percent


@dataclass(frozen=True)
class Gate:
    """All victims of one setting, as they came out of training; figures are means over seeds."""

    setting: Setting
    victims: tuple[Victim, ...]

    @property
    def admitted(self) -> int:
        """How many may be defended: those that passed, or that stand in records."""
        return sum(victim.status != "rejected" for victim in self.victims)

    @property
    def rejected(self) -> int:
        """How many the gate turned away."""
        return len(self.victims) - self.admitted

    @property
    def training(self) -> str:
        """How long they were trained: ``8 epochs``; more than one where seeds differ."""
        return ", ".join(sorted({v.training for v in self.victims if v.training})) or "—"

    @property
    def own(self) -> Sequence[Metrics]:
        """The figures of the victims."""
        return [victim.metrics for victim in self.victims]

    @property
    def twins(self) -> Sequence[Metrics]:
        """The figures of their clean twins under the same triggers, where they are known."""
        return [v.twin_metrics for v in self.victims if v.twin_metrics is not None]


def gates(victims: Iterable[Victim]) -> list[Gate]:
    """One line per setting, in order."""
    found: dict[str, list[Victim]] = {}
    for victim in victims:
        found.setdefault(victim.setting.key, []).append(victim)
    return [Gate(found[key][0].setting, tuple(found[key])) for key in sorted(found)]


def spread(values: Iterable[float | None]) -> str:
    """``99.1``, or ``98.2–99.8`` where seeds differ, in percent; a dash without values."""
    known = [value for value in values if value is not None]
    if not known:
        return "—"
    low, high = percent(min(known)), percent(max(known))
    return low if low == high else f"{low}–{high}"


def by_strength(metrics: Sequence[Metrics]) -> str:
    """Mean ASR at each strength, in order: ``99.1 / 99.8 / 100.0``."""
    names = sorted({name for m in metrics for name in m.strengths})
    means = (fmean(m.strengths[n].asr for m in metrics if n in m.strengths) for n in names)
    return " / ".join(percent(mean) for mean in means) or "—"
