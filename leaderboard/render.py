"""Reads what is under a root and writes the leaderboard: HTML, Markdown, CSV and JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.records import FAILED, SCHEMA, Record, collector_paused, path_of, read_tail, write_atomic
from leaderboard.checks import Finding
from leaderboard.document import to_json
from leaderboard.markdown import to_markdown
from leaderboard.page import Page, to_html
from leaderboard.provenance import environment, provenance
from leaderboard.report import Report, collect
from leaderboard.tables import boards_csv, comparisons_csv, published_csv, records_csv

LOG: Final = 1200  # characters of one log that the page holds
LOGS: Final = 400_000  # of all logs; what is beyond stays in the files beside the records


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """Where the leaderboard is, and what it was made from."""

    html: Path
    markdown: Path
    csv: Path
    json: Path
    records: int  # used
    stale: int  # left out: their key is not a current one
    superseded: int  # left out: a later record of the same cell exists
    findings: tuple[Finding, ...]  # what to look at before publishing
    problems: tuple[str, ...]  # files that could not be read


@collector_paused()
def render(
    root: Path, current_keys: Set[str] | None = None, release: str = "", profile: str = ""
) -> Rendered:
    """Writes ``root/leaderboard/leaderboard.html`` and the files beside it, each atomically.

    Args:
        root: holds ``records`` and ``zoo``.
        current_keys: as for ``report.collect``.
        release: a date or a name, which stands on the page; nothing else on it knows the time.
        profile: stands in the commands that repeat a cell; left to the reader where it is empty.
    """
    report = collect(root, current_keys)
    records = report.records
    origin: dict[str, object] = {
        "record_schema": SCHEMA,
        "release": release,
        "records": len(records),
        "stale": report.stale,
        "superseded": report.superseded,
        "problems": list(report.problems),
        "environment": environment(records),
    }
    texts = {name: encodable(text) for name, text in files(report, origin).items()}
    page = Page(
        report=report,
        provenance=provenance(records, {n: sha256_of(t) for n, t in texts.items()}, release),
        logs=log_tails(root, records),
        profile=profile,
    )
    texts["leaderboard.html"] = encodable(to_html(page))
    folder = root / "leaderboard"
    for name, text in texts.items():
        write_atomic(folder / name, text)
    return Rendered(
        html=folder / "leaderboard.html",
        markdown=folder / "leaderboard.md",
        csv=folder / "leaderboard.csv",
        json=folder / "leaderboard.json",
        records=len(records),
        stale=report.stale,
        superseded=report.superseded,
        findings=report.findings,
        problems=report.problems,
    )


def files(report: Report, origin: Mapping[str, object]) -> dict[str, str]:
    """What lies beside the page, by name."""
    return {
        "leaderboard.csv": records_csv(report.outcomes),
        "boards.csv": boards_csv(report.analyses),
        "comparisons.csv": comparisons_csv(report.analyses),
        "published.csv": published_csv(report.published),
        "leaderboard.json": to_json(report, origin),
        "leaderboard.md": to_markdown(report),
    }


def encodable(text: str) -> str:
    """Without lone surrogates, which a plugin's message may hold and no file can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def log_tails(root: Path, records: Iterable[Record]) -> dict[str, str]:
    """The last lines of what failed cells wrote, by key; as many as the page can hold."""
    tails: dict[str, str] = {}
    room = LOGS
    for record in records:
        if record.status not in FAILED or room <= 0:
            continue
        # Not through a link, which would publish whatever file it points at.
        if text := read_tail(path_of(root, record).with_suffix(".log"), LOG + 1):
            tails[record.key] = text if len(text) <= LOG else f"…{text[-LOG:]}"
            room -= len(tails[record.key])
    return tails


def sha256_of(text: str) -> str:
    """Of the file that a text is written to."""
    return hashlib.sha256(text.encode()).hexdigest()
