"""Who is to be cited for a board: methods, attacks, data sets, sources of printed figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from leaderboard.latex import escape
from leaderboard.published import Beside
from leaderboard.report import Report

DATA: Final = Path(__file__).parent / "data" / "references.bib"
CONTROL: Final = "control"  # in place of a paper
_ENTRY: Final = re.compile(r"^@\w+\{(?P<key>[^,\s]+),\n.*?^\}\n", re.MULTILINE | re.DOTALL)
_KEYWORDS: Final = re.compile(r"^  keywords = \{(.*)\},$", re.MULTILINE)
_PREPRINT: Final = re.compile(r"arXiv:(\d{4}\.\d{4,5})(?:v\d+)?")
_DOI: Final = re.compile(r"doi:(10\.\d{4,9}/[\w.()/:;-]+)")


@dataclass(frozen=True)
class Reference:
    """One BibTeX entry, and what of ours it stands for, beside the paper of its key."""

    key: str
    text: str
    topics: frozenset[str]  # "attack badnets", "data set gtsrb", "base set fred", "source bcu"


@dataclass(frozen=True)
class Citations:
    """What a report is to cite, by topic; and for what nothing is known."""

    keys: dict[str, tuple[str, ...]]  # "defense ibau", "attack badnets", ... -> keys
    entries: tuple[Reference, ...]
    missing: tuple[str, ...]

    def of(self, topic: str) -> str:
        r"""``\cite{...}`` for a topic; empty where there is nothing to cite."""
        keys = self.keys.get(topic, ())
        return rf"\cite{{{','.join(keys)}}}" if keys else ""


@cache
def references() -> dict[str, Reference]:
    """All entries of ``data/references.bib``, by key."""
    text = DATA.read_text(encoding="utf-8")
    found = [_reference(match["key"], match[0]) for match in _ENTRY.finditer(text)]
    return {reference.key: reference for reference in found}


def _reference(key: str, text: str) -> Reference:
    keywords = _KEYWORDS.search(text)
    topics = keywords[1].split(", ") if keywords else []
    return Reference(key, text, frozenset(topics))


def citations(report: Report) -> Citations:
    """What the methods, attacks, data sets and printed figures of a report are to be cited by."""
    papers = dict(_papers(report))
    keys = {topic: _keys(topic, paper) for topic, paper in papers.items()}
    entries: dict[str, Reference] = {}
    for topic, found in keys.items():
        for key in found:
            entries[key] = references().get(key) or _bare(topic, key)
    missing = (t for t, paper in papers.items() if not keys[t] and paper != CONTROL)
    return Citations(
        keys={topic: found for topic, found in keys.items() if found},
        entries=tuple(entries[key] for key in sorted(entries)),
        missing=tuple(sorted(missing)),
    )


def _papers(report: Report) -> Iterator[tuple[str, str]]:
    """Every topic of a report with the paper that it names; empty where the data file knows."""
    for outcome in report.outcomes:
        cell, setting = outcome.record.cell, outcome.setting
        name, _, builder = cell.defense.partition("@")
        yield f"defense {_plain(name)}", cell.paper
        if builder:
            yield f"base set {_plain(builder)}", ""
        if not setting.clean:
            yield f"attack {_plain(setting.attack)}", ""
        yield f"data set {setting.dataset}", ""
    yield from _sources(report.published)


def _sources(found: Iterable[Beside]) -> Iterator[tuple[str, str]]:
    for source in {beside.published.source for beside in found}:
        yield f"source {source}", ""


def _plain(name: str) -> str:
    return name.split("[")[0]


def _keys(topic: str, paper: str) -> tuple[str, ...]:
    """The keys of a topic: of its paper, or of all entries that stand for it."""
    if match := _PREPRINT.fullmatch(paper):
        return (f"arXiv:{match[1]}",)  # whatever the version
    if _DOI.fullmatch(paper):
        return (paper,)
    return tuple(sorted(key for key, found in references().items() if topic in found.topics))


def _bare(topic: str, key: str) -> Reference:
    """An entry for a paper that only a plugin knows: its number, to be completed by hand."""
    kind, _, number = key.partition(":")
    field = f"eprint = {{{number}}},\n  archiveprefix = {{arXiv}}"
    field = field if kind == "arXiv" else f"doi = {{{number}}}"
    title = f"({escape(topic)}: title to be completed)"
    return Reference(key, f"@misc{{{key},\n  title = {{{title}}},\n  {field},\n}}\n", frozenset())
