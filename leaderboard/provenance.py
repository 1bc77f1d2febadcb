"""What the numbers were made by and with: methods as they ran, versions, hardware and hashes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bench.records import Record, digest

SHORT: Final = 12  # hex digits that are printed of a hash


@dataclass(frozen=True, kw_only=True)
class Method:
    """One defense as it ran; more than one entry where its cells do not agree."""

    defense: str
    needs: str
    origin: str
    paper: str
    params: tuple[str, ...]  # every hyper-parameter with its value, defaults too
    codes: tuple[str, ...]  # hashes of the code, comments aside


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything that a second run would have to agree with."""

    methods: tuple[Method, ...] = ()
    environment: Mapping[str, Sequence[str]] = field(default_factory=dict)
    hashes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of what lies beside the page
    release: str = ""  # a date or a name, given by whoever publishes the page


def provenance(records: Sequence[Record], files: Mapping[str, str], release: str) -> Provenance:
    """Collected over all records that are counted."""
    return Provenance(
        methods=tuple(methods(records)),
        environment=environment(records),
        hashes=hashes(records),
        files=files,
        release=release,
    )


def methods(records: Iterable[Record]) -> list[Method]:
    """By name, with every set of hyper-parameters and every state of the code that occurs."""
    cells: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        cells[record.cell.defense].append(record)
    return [
        Method(
            defense=name,
            needs=found[0].cell.needs,
            origin=found[0].cell.origin,
            paper=found[0].cell.paper,
            params=tuple(sorted({settings_of(r.cell.params) for r in found if r.cell.params})),
            codes=tuple(
                sorted({str(r.inputs["code"])[:SHORT] for r in found if "code" in r.inputs})
            ),
        )
        for name, found in sorted(cells.items())
    ]


def settings_of(params: Mapping[str, Any]) -> str:
    """``lr=0.01, steps=625``."""
    return ", ".join(f"{name}={value}" for name, value in sorted(params.items()))


def environment(records: Iterable[Record]) -> dict[str, list[str]]:
    """The distinct values of every plain entry of the records' environments, and git states."""
    values: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, value in record.env.items():
            if isinstance(value, str | int | float) and value != "":
                values[name].add(str(value))
        if record.git.get("sha"):
            state = " with local changes" if record.git.get("dirty") else ""
            values["git"].add(f"{record.git['sha']}{state}")
    return {name: sorted(values[name]) for name in sorted(values)}


def hashes(records: Iterable[Record]) -> dict[str, list[str]]:
    """Metric versions, splits by data set, and one hash over the weights of all victims."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    victims: set[str] = set()
    for record in records:
        inputs = record.inputs
        if "metric" in inputs:
            found["metric version"].add(str(inputs["metric"]))
        if "split" in inputs:
            found[f"split of {record.cell.dataset}"].add(str(inputs["split"])[:SHORT])
        if "victim" in inputs:
            victims.add(str(inputs["victim"]))
    if victims:
        found[f"weights of {len(victims):,} models together"].add(digest(sorted(victims))[:SHORT])
    return {name: sorted(found[name]) for name in sorted(found)}
