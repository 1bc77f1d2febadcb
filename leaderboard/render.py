"""Reads what is under a root and writes the leaderboard: HTML, Markdown, CSV and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path

from bench.records import SCHEMA, Record, read_all, write_atomic
from leaderboard.aggregate import boards
from leaderboard.markdown import to_markdown
from leaderboard.outcomes import latest, outcomes
from leaderboard.page import Page, to_html
from leaderboard.tables import to_csv, to_json
from leaderboard.victims import merge, read_zoo
from leaderboard.words import plural


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
    problems: tuple[str, ...]  # files that could not be read


def render(root: Path, current_keys: Set[str] | None = None) -> Rendered:
    """Writes ``root/leaderboard/leaderboard.{html,md,csv,json}``, each atomically.

    Cells that only a sweep has asked for are left out: a row for every value that somebody tried
    would bury the methods. With ``current_keys``, records of other keys are stale: left out, and
    counted.
    """
    stored, record_problems = read_all(root)
    fresh = [r for r in stored if current_keys is None or r.key in current_keys]
    asked = [r for r in fresh if not r.cell.swept]
    records, superseded = latest(asked)
    zoo, zoo_problems = read_zoo(root)
    problems = (*record_problems, *zoo_problems)
    known = merge(zoo, records)
    counted = outcomes(records, known)
    found = boards(counted)
    victims = [victim for victim in known.values() if victim.status != "twin"]
    page = Page(
        boards=found,
        victims=victims,
        twins=len(known) - len(victims),
        records=len(records),
        problems=problems,
        omissions=omissions(len(stored) - len(fresh), superseded, len(fresh) - len(asked)),
        environment=environment(records),
    )
    provenance: dict[str, object] = {
        "record_schema": SCHEMA,
        "records": len(records),
        "stale": len(stored) - len(fresh),
        "superseded": superseded,
        "problems": list(problems),
        "environment": page.environment,
    }
    base = root / "leaderboard" / "leaderboard"
    texts = {
        ".csv": to_csv(counted),
        ".json": to_json(found, victims, provenance),
        ".md": to_markdown(found, victims, [*page.omissions, *problems]),
        ".html": to_html(page),
    }
    for suffix, text in texts.items():
        write_atomic(base.with_suffix(suffix), encodable(text))
    return Rendered(
        html=base.with_suffix(".html"),
        markdown=base.with_suffix(".md"),
        csv=base.with_suffix(".csv"),
        json=base.with_suffix(".json"),
        records=len(records),
        stale=len(stored) - len(fresh),
        superseded=superseded,
        problems=problems,
    )


def encodable(text: str) -> str:
    """Without lone surrogates, which a plugin's message may hold and no file can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def omissions(stale: int, superseded: int, swept: int) -> tuple[str, ...]:
    """What was read and left out on purpose, in words."""
    found = (
        (stale, "left out as stale: the code or the data behind it has changed"),
        (superseded, "left out: a later record of the same cell exists"),
        (swept, "of hyper-parameter sweeps left out: pictured by bench sweep, not ranked"),
    )
    return tuple(f"{plural(number, 'record')} {words}" for number, words in found if number)


def environment(records: Iterable[Record]) -> dict[str, list[str]]:
    """The distinct values of every plain entry of the records' environments, and git states."""
    values: dict[str, set[str]] = {}
    for record in records:
        for name, value in record.env.items():
            if isinstance(value, str | int | float) and value != "":
                values.setdefault(name, set()).add(str(value))
        if record.git.get("sha"):
            state = " with local changes" if record.git.get("dirty") else ""
            values.setdefault("git", set()).add(f"{record.git['sha']}{state}")
    return {name: sorted(values[name]) for name in sorted(values)}
