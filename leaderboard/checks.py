"""What to look at before publishing: figures that cannot be right, or cannot be compared.

Each check answers to an error found in a published table of backdoor defenses: the numbers of one
data set under the name of another, undefended rows that are the same at two poison rates, ASR and
RA that add up to more than one, cells that were never run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from bench.records import EVALUATED, Metrics, Record
from bench.specs import bare
from leaderboard.outcomes import Outcome
from leaderboard.words import percent, plural

GAIN: Final = 0.05  # a defense that adds more accuracy than this to victim and twin is no defense
INSIDE: Final = 3  # figures strictly between 0 and 1 that must agree before a copy is suspected
ROUNDING: Final = 1e-9
ENVIRONMENT: Final = ("torch", "device", "gpu", "precision", "cpu")

Kind = Literal["impossible", "implausible", "duplicate", "missing", "mixed", "changed"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to look at: what it is, in words, and the records that show it."""

    kind: Kind
    text: str
    keys: tuple[str, ...]  # of records; empty where there are none, or too many to name


def findings(outcomes: Sequence[Outcome]) -> list[Finding]:
    """Everything that should be looked at before these cells are published, gravest first."""
    attacked = [outcome for outcome in outcomes if not outcome.setting.clean]
    records = [outcome.record for outcome in outcomes]
    return [
        *_impossible(outcomes),
        *_implausible(attacked),
        *_copied_cells(attacked),
        *_copied_victims(attacked),
        *_mixed(records),
        *_victims(records),
        *_schedules(records),
        *_aliases(records),
        *_codes(records),
        *_changed(records),
        *_missing([outcome for outcome in outcomes if not outcome.record.cell.panel]),
    ]


def name_of(record: Record) -> str:
    """A cell for people."""
    cell = record.cell
    return f"{cell.defense} at {cell.budget}, {cell.setting}, seed {cell.victim_seed}"


def _impossible(outcomes: Iterable[Outcome]) -> Iterator[Finding]:
    """Shares outside [0, 1], and ASR + RA > 1: no image can be both t and y."""
    seen: set[tuple[str, int, str]] = set()
    for outcome in outcomes:
        record = outcome.record
        for part in ("after", "before", "twin"):
            # The victim and its twin are the same in all cells of the victim.
            place = (outcome.setting.key, record.cell.victim_seed, part)
            if place in seen:
                continue
            if part != "after":
                seen.add(place)
            if problem := _problem(getattr(record, part)):
                text = f"{name_of(record)}, {part} the defense: {problem}"
                yield Finding(kind="impossible", text=text, keys=(record.key,))


def _problem(metrics: Metrics | None) -> str:
    if metrics is None:
        return ""
    for strength, attacked in metrics.strengths.items():
        if attacked.asr + attacked.ra > 1 + ROUNDING:
            return f"ASR + RA = {attacked.asr + attacked.ra:.4f} at {strength}"
        if attacked.asr < 0 or attacked.ra < 0:
            return f"a share of {min(attacked.asr, attacked.ra):.4f} at {strength}"
    return "" if 0 <= metrics.acc <= 1 else f"an accuracy of {metrics.acc:.4f}"


def _shares(metrics: Metrics) -> tuple[float, ...]:
    """All figures that identify a model: accuracy, and ASR and RA at every strength."""
    found = [metrics.acc]
    for attacked in metrics.strengths.values():
        found += (attacked.asr, attacked.ra)
    return tuple(found)


def _implausible(outcomes: Iterable[Outcome]) -> Iterator[Finding]:
    for record in (outcome.record for outcome in outcomes if outcome.evaluated):
        if record.after is None or record.before is None:
            continue
        best = max(record.before.acc, record.twin.acc if record.twin else 0.0)
        if record.after.acc > best + GAIN:
            text = (
                f"{name_of(record)}: accuracy {percent(record.after.acc)} % after the defense, "
                f"{percent(best)} % in the better of victim and clean twin"
            )
            yield Finding(kind="implausible", text=text, keys=(record.key,))


def _copied_cells(outcomes: Iterable[Outcome]) -> Iterator[Finding]:
    """The same figures, all of them, for two victims of one defense and budget."""
    same: defaultdict[tuple[tuple[str, str], tuple[float, ...]], list[Record]] = defaultdict(list)
    for record in (outcome.record for outcome in outcomes if outcome.evaluated):
        if record.after is not None:
            place = (record.cell.defense, record.cell.budget)
            same[place, _shares(record.after)].append(record)
    found = (group for (_, shares), group in same.items() if len(group) > 1 and _telling(shares))
    yield from _copies(found, name_of)


def _copied_victims(outcomes: Iterable[Outcome]) -> Iterator[Finding]:
    """The same figures for two undefended victims."""
    victims: dict[tuple[str, int], tuple[Record, Metrics]] = {}
    for outcome in outcomes:
        record = outcome.record
        if record.before is not None:
            place = (outcome.setting.key, record.cell.victim_seed)
            victims.setdefault(place, (record, record.before))
    same: defaultdict[tuple[float, ...], list[Record]] = defaultdict(list)
    for record, before in victims.values():
        same[_shares(before)].append(record)
    found = (group for shares, group in same.items() if len(group) > 1 and _telling(shares))
    yield from _copies(found, _victim_of)


def _victim_of(record: Record) -> str:
    return f"the victim {record.cell.setting}, seed {record.cell.victim_seed}"


def _copies(groups: Iterable[list[Record]], name: Callable[[Record], str]) -> Iterator[Finding]:
    for group in groups:
        victims = {(r.cell.setting, r.cell.victim_seed): r for r in group}
        if len(victims) > 1:
            found = [victims[place] for place in sorted(victims)]
            text = f"all figures are the same: {'; '.join(name(record) for record in found)}"
            yield Finding(kind="duplicate", text=text, keys=tuple(r.key for r in found))


def _telling(shares: Iterable[float]) -> bool:
    """Whether equal figures mean a copy: two models that answer one class everywhere are alike."""
    return sum(0 < share < 1 for share in set(shares)) >= INSIDE


def _missing(outcomes: Iterable[Outcome]) -> Iterator[Finding]:
    """Victims that other cells know and that a defense was never run on at one of its budgets."""
    run: defaultdict[tuple[str, str], set[tuple[str, int]]] = defaultdict(set)
    for outcome in outcomes:
        cell = outcome.record.cell
        run[cell.defense, cell.budget].add((outcome.setting.key, cell.victim_seed))
    everywhere = set().union(*run.values())
    for (defense, budget), done in sorted(run.items()):
        if holes := sorted(everywhere - done):
            settings = Counter(setting for setting, _ in holes)
            where = "; ".join(f"{setting} ({plural(n, 'seed')})" for setting, n in settings.items())
            text = f"{defense} at {budget} was not run on {plural(len(holes), 'victim')}: {where}"
            yield Finding(kind="missing", text=text, keys=())


def _mixed(records: Sequence[Record]) -> Iterator[Finding]:
    """Metric versions and environments that differ within one set of results."""
    versions = Counter(str(record.inputs.get("metric", "not stated")) for record in records)
    values = {"metric version": versions}
    for name in ENVIRONMENT:
        values[name] = Counter(str(record.env.get(name) or "none") for record in records)
    for name, counts in values.items():
        if len(counts) > 1:
            found = ", ".join(f"{v} ({plural(n, 'record')})" for v, n in sorted(counts.items()))
            yield Finding(kind="mixed", text=f"{name} differs: {found}", keys=())


def _schedules(records: Sequence[Record]) -> Iterator[Finding]:
    """Rows that stand for several schedules: profiles set hyper-parameters that no name shows."""
    by_name: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_name[record.cell.defense].append(record)
    for name, found in sorted(by_name.items()):
        if len({repr(record.cell.params) for record in found}) == 1:
            continue
        differing = []
        for param in sorted(set().union(*(record.cell.params for record in found))):
            values = Counter(str(record.cell.params.get(param, "none")) for record in found)
            if len(values) > 1:
                counts = (f"{v} ({plural(n, 'record')})" for v, n in sorted(values.items()))
                differing.append(f"{param} is {', '.join(counts)}")
        if differing:
            text = f"{name} stands for several schedules: {'; '.join(differing)}"
            yield Finding(kind="mixed", text=text, keys=())


def _victims(records: Sequence[Record]) -> Iterator[Finding]:
    """Cells of one setting and seed that rest on several victims: a zoo may hold two recipes."""
    seen: defaultdict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for record in records:
        if "victim" in record.inputs:
            place = record.cell.setting, record.cell.victim_seed
            seen[place][str(record.inputs["victim"])] += 1
    for (setting, seed), counts in sorted(seen.items()):
        if len(counts) > 1:
            found = ", ".join(f"{v[:8]} ({plural(n, 'record')})" for v, n in sorted(counts.items()))
            text = f"{setting}, seed {seed}, is several victims: {found}"
            yield Finding(kind="mixed", text=text, keys=())


def _aliases(records: Sequence[Record]) -> Iterator[Finding]:
    """Rows that are one method with the same hyper-parameters, of which each has fewer settings."""
    names: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        if record.status in EVALUATED:
            cell = record.cell
            names[bare(cell.defense), repr(cell.params)].add(cell.defense)
    for found in sorted(map(sorted, names.values())):
        if len(found) > 1:
            text = f"{' and '.join(found)} are one schedule under {len(found)} names"
            yield Finding(kind="mixed", text=text, keys=())


def _codes(records: Sequence[Record]) -> Iterator[Finding]:
    """Rows whose cells were run by several versions of the defense's code."""
    versions: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.status in EVALUATED and "code" in record.inputs:
            versions[record.cell.defense].add(str(record.inputs["code"]))
    found = [f"{name} ({len(codes)})" for name, codes in sorted(versions.items()) if len(codes) > 1]
    if found:
        text = f"run by several versions of their code: {', '.join(found)}"
        yield Finding(kind="mixed", text=text, keys=())


def _changed(records: Sequence[Record]) -> Iterator[Finding]:
    changed = sum(bool(record.git.get("dirty")) for record in records)
    if changed:
        text = f"{plural(changed, 'record')} made by code with local changes: not to be repeated"
        yield Finding(kind="changed", text=text, keys=())
