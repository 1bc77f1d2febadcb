"""What a run would do and take: `status` and `--dry-run`."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.building import ZooState
from bench.harness import Settings
from bench.plan import PlannedCell, cells_per_victim, plan_cells, states
from bench.progress import duration
from bench.records import Record, read_all
from bench.registry import Registry

BYTES_PER_RECORD: Final = 4_096  # one file system block; 400 test records took 2.8 kB each


def show_plan(
    settings: Settings,
    registry: Registry,
    state: ZooState,
    json_output: bool,
    *,
    twins: bool = True,
) -> int:
    """Cells by state and defense, the zoo, and what the rest would take."""
    cells, missing = plan_cells(
        settings.profile, registry, settings.root, settings.library, twins=twins
    )
    records, problems = read_all(settings.root)
    per_victim = cells_per_victim(settings.profile, registry)
    table: dict[str, Counter[str]] = {}
    to_run: list[PlannedCell] = []
    for planned, what in zip(cells, states(settings.root, cells, records), strict=True):
        table.setdefault(planned.cell.defense, Counter())[what] += 1
        again = what == "failed" and settings.retry_failed
        if what in ("stale", "missing") or again:
            to_run.append(planned)
    unbuilt = per_victim * len(missing)
    low, high = estimate(to_run, unbuilt, records, settings.jobs)
    plan: dict[str, Any] = {
        "profile": settings.profile.name,
        "victims": {
            "built": len(state.built),
            "rejected": sum(not v.admitted for v in state.built),
            "to_build": len(state.to_build),
            "to_judge": state.to_judge,
        },
        "cells": {name: dict(counts) for name, counts in table.items()},
        "cells_to_run": len(to_run) + unbuilt,
        "cells_on_unbuilt_victims": unbuilt,
        "seconds_low": low,
        "seconds_high": high,
        "disk_bytes": (len(to_run) + unbuilt) * BYTES_PER_RECORD,
        "disk_free_bytes": shutil.disk_usage(_existing_parent(settings.root)).free,
        "unreadable_records": len(problems),
    }
    if json_output:
        print(json.dumps(plan, indent=1))
        return 0
    _print_plan(plan, table)
    for problem in problems:
        print(f"bench: {problem}", file=sys.stderr)
    return 0


def _print_plan(plan: dict[str, Any], table: dict[str, Counter[str]]) -> None:
    from tabulate import tabulate

    v = plan["victims"]
    print(
        f"profile {plan['profile']}: {v['built']} victims and twins built "
        f"({v['rejected']} rejected), "
        f"{v['to_build']} to build, {v['to_judge']} to judge"
    )
    columns = ("fresh", "stale", "missing", "failed")
    if table:
        rows = [[name, *(counts[c] for c in columns)] for name, counts in table.items()]
        print(tabulate(rows, ["defense", *columns], disable_numparse=True))
    span = (
        "?"
        if plan["seconds_low"] is None
        else (f"{duration(plan['seconds_low'])} to {duration(plan['seconds_high'])}")
    )
    on_unbuilt = plan["cells_on_unbuilt_victims"]
    also = f" ({on_unbuilt} of them on victims to be built)" if on_unbuilt else ""
    print(
        f"{plan['cells_to_run']} cells to run{also}: {span}, "
        f"{plan['disk_bytes'] / 1e6:.1f} MB of {plan['disk_free_bytes'] / 1e9:.0f} GB free"
    )


def estimate(
    to_run: Sequence[PlannedCell], unbuilt: int, records: Sequence[Record], jobs: int
) -> tuple[float | None, float | None]:
    """A time range in seconds learnt from records of the same defense; None where none tells.

    The range is half to twice the mean: what other cells of the same defense took.
    """
    seconds: dict[str, list[float]] = {}
    for record in records:
        if record.cost is not None:
            seconds.setdefault(record.cell.defense, []).append(record.cost.seconds)
    if unbuilt or any(planned.cell.defense not in seconds for planned in to_run):
        return None, None
    total = sum(sum(seconds[p.cell.defense]) / len(seconds[p.cell.defense]) for p in to_run) / max(
        1, jobs
    )
    return round(total / 2, 1), round(total * 2, 1)


def _existing_parent(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
