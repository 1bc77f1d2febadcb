"""What is said at the end of a run, on standard error: how many, why not, how long, what to do."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.app import OK, SOME_FAILED
from bench.durations import seconds_of
from bench.progress import duration
from bench.records import FAILED, Record

if TYPE_CHECKING:
    from bench.verbs import Request

SHOWN: Final = 5  # failures, and slow cells
SKIPPED: Final = "not-applicable"


def summary(
    request: Request,
    records: Sequence[Record],
    ran: int,
    failures: Sequence[str],
    board: Path | None = None,
) -> int:
    """Says what happened; the exit code.

    Args:
        request: what was asked for, for the command that repeats a cell.
        records: of all cells; those that were run come last.
        ran: how many those are.
        failures: a message for each victim that could not be built.
        board: the page that was drawn.
    """
    bad = [record for record in records if record.status in FAILED]
    lines = [
        f"{ran} cells run, {len(records) - ran} were fresh: {_counts(records)}",
        *_reasons(record for record in records if record.status == SKIPPED),
        *(f"not built: {failure}" for failure in failures),
        *_slowest(records[len(records) - ran :]),
        *_failures(request, bad),
        *([f"board: {board}"] if board else []),
    ]
    print("\n".join(lines), file=sys.stderr)
    return SOME_FAILED if bad or failures else OK


def _counts(records: Sequence[Record]) -> str:
    counts = Counter(record.status for record in records)
    return ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))


def _reasons(skipped: Iterator[Record]) -> list[str]:
    counts = Counter(message_of(record) for record in skipped)
    return [f"  {n} {SKIPPED}: {why}" for why, n in counts.most_common()]


def _slowest(records: Sequence[Record]) -> list[str]:
    """The cells that have taken longest, where there are enough for that to tell anything."""
    timed = [(seconds, record) for record in records if (seconds := seconds_of(record))]
    if len(timed) <= SHOWN:
        return []
    timed.sort(key=lambda pair: pair[0], reverse=True)
    found = [f"{_name(record)} {duration(seconds)}" for seconds, record in timed[:SHOWN]]
    return [f"slowest: {'; '.join(found)}"]


def _failures(request: Request, bad: Sequence[Record]) -> list[str]:
    if not bad:
        return []
    lines = [f"  {record.status}: {_name(record)}: {message_of(record)}" for record in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"  and {len(bad) - SHOWN} more; the leaderboard lists them")
    return [*lines, f"the first of them again: {again(request, bad[0])}"]


def _name(record: Record) -> str:
    cell = record.cell
    return f"{cell.defense} @{cell.budget} on {cell.attack} s{cell.victim_seed}"


def message_of(record: Record) -> str:
    """The first line of what is said of a cell that was not evaluated."""
    lines = str((record.error or {}).get("message", "")).splitlines()
    return lines[0] if lines else ""


def again(request: Request, record: Record) -> str:
    """The command that runs a failed cell again, and few beside it."""
    from leaderboard.payload import options
    from leaderboard.victims import setting_of

    cell = record.cell
    words = ["bench", "run", "--retry-failed", "-p", request.profile]
    for name, value in (("--root", request.root), ("--data", request.data)):
        words += [name, value] if value else []
    for plugin in request.plugin or []:
        words += ["--plugin", plugin]
    chosen = options(setting_of(vars(cell)))
    if cell.dataset.startswith("folder:"):  # which has no path in the record
        chosen = [*chosen[2:], *(w for path in request.dataset or [] for w in ("--dataset", path))]
    words += [*chosen, "--defense", cell.defense, "--seeds", str(cell.victim_seed)]
    if cell.needs != "poisoned-train":
        words += ["--budget", cell.budget]
    return shlex.join(words)
