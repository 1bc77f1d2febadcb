"""What `build-zoo`, `run` and `status` do."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from bench.building import ZooState, build_zoo, check_data, describe, zoo_state
from bench.cli import NOTHING_MATCHED, OK, SOME_FAILED
from bench.config import load_profile
from bench.environment import default_device
from bench.executors import EXECUTORS, Executor
from bench.harness import Harness, Settings
from bench.plan import PlannedCell, Selection, cells_per_victim, plan_cells, select, states
from bench.progress import Progress, duration
from bench.records import FAILED, Record, read_all
from bench.registry import Registry
from bench.rendering import render, root_of
from zoo.data import Library
from zoo.errors import UserError

BYTES_PER_RECORD: Final = 6_000  # measured: a record and its log tail


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of a verb, as given."""

    profile: str
    root: str | None = None
    data: str | None = None
    attack: list[str] | None = None
    defense: list[str] | None = None
    dataset: list[str] | None = None
    arch: list[str] | None = None
    budget: list[str] | None = None
    seeds: str | None = None
    plugin: list[str] | None = None
    jobs: int | None = None
    device: str | None = None
    executor: str = "local"
    download: bool = False
    retry_failed: bool = False
    everything: bool = False

    def selection(self) -> Selection:
        """What was picked."""
        return Selection(
            attacks=tuple(self.attack) if self.attack else None,
            defenses=tuple(self.defense) if self.defense else None,
            datasets=tuple(self.dataset) if self.dataset else None,
            archs=tuple(self.arch) if self.arch else None,
            budgets=tuple(self.budget) if self.budget else None,
            seeds=parse_seeds(self.seeds) if self.seeds else None,
        )


def parse_seeds(text: str) -> tuple[int, ...]:
    """``0,2,5-7`` to (0, 2, 5, 6, 7).

    Raises:
        UserError: anything else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise UserError(f"expected seeds like 0,1,2 or 0-13, got {text!r}")
        seeds.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(dict.fromkeys(seeds))


def prepare(request: Request) -> tuple[Settings, Registry]:
    """Checks everything that can be checked before work begins.

    Raises:
        UserError: one clear message.
    """
    if request.executor not in EXECUTORS:
        known = ", ".join(EXECUTORS)
        raise UserError(f"unknown executor {request.executor!r}. Known: {known}")
    if request.jobs is not None and request.jobs < 1:
        raise UserError(f"expected -j >= 1, got {request.jobs}")
    root = root_of(request.root)
    data = request.data or os.environ.get("BENCH_DATA")
    if data and not Path(data).is_dir():
        raise UserError(f"--data {data}: there is no such folder")
    library = Library(
        data=Path(data) if data else None, cache=root / "cache", download=request.download
    )
    registry = Registry()
    registry.add_entry_points()
    for file in request.plugin or []:
        registry.add_file(Path(file))
    profile = select(load_profile(request.profile), request.selection(), library)
    if request.defense is None:  # plugins take part without being named
        extra = [name for name in registry.plugins() if name not in profile.defenses]
        chosen = [*profile.defenses, *extra]
        if request.plugin and not request.everything:
            chosen = extra
        profile = profile.model_copy(update={"defenses": chosen})
    device = check_device(request.device or default_device())
    jobs = request.jobs or (min(4, os.cpu_count() or 1) if device != "cpu" else os.cpu_count() or 1)
    settings = Settings(
        root=root,
        profile=profile,
        library=library,
        device=device,
        jobs=jobs,
        executor=cast(Executor, request.executor),
        retry_failed=request.retry_failed,
    )
    for name in profile.defenses:
        registry.parse(name)
    return settings, registry


def check_device(device: str) -> str:
    """The device itself; raises a UserError for one that torch does not have."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device}: {reason}. See: bench doctor") from error
    return device


def build(request: Request, dry_run: bool, json_output: bool) -> int:
    """`bench build-zoo`."""
    settings, _ = prepare(request)
    state = zoo_state(settings)
    if not (state.built or state.unjudged or state.missing):
        print("bench: the selection leaves no victim", file=sys.stderr)
        return NOTHING_MATCHED
    if dry_run:
        _show_zoo_plan(state, json_output)
        return OK
    failures = _build(settings, state)
    state = zoo_state(settings)
    _show_zoo(state, json_output)
    for failure in failures:
        print(f"bench: {failure}", file=sys.stderr)
    return SOME_FAILED if failures else OK


def _build(settings: Settings, state: ZooState) -> list[str]:
    total = 2 * len(state.missing) + len(state.unjudged)
    if total == 0:
        return []
    check_data(settings)
    with Progress("zoo", total, settings.jobs) as progress:
        return build_zoo(settings, progress)


def run(request: Request, dry_run: bool, json_output: bool) -> int:
    """`bench run`."""
    settings, registry = prepare(request)
    state = zoo_state(settings)
    if dry_run:
        return _show_plan(settings, registry, state, json_output)
    failures = _build(settings, state)
    cells, _ = plan_cells(settings.profile, registry, settings.root, settings.library)
    if not cells:
        print("bench: no cell to run: no victim was admitted, see bench build-zoo", file=sys.stderr)
        return NOTHING_MATCHED
    with Harness(settings) as harness:
        todo, fresh = harness.todo(cells)
        with Progress("cells", len(todo), settings.jobs) as progress:
            records = [*fresh, *harness.run(todo, progress)]
    code = render(settings.root, json_output)
    _summary(records, len(todo), failures)
    bad = [r for r in records if r.status in FAILED]
    return SOME_FAILED if bad or failures else code


def _summary(records: Sequence[Record], ran: int, failures: Sequence[str]) -> None:
    """What happened, in a few lines on standard error."""
    counts = Counter(r.status for r in records)
    text = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    print(f"{ran} cells run, {len(records) - ran} were fresh: {text}", file=sys.stderr)
    for failure in failures:
        print(f"not built: {failure}", file=sys.stderr)
    bad = [r for r in records if r.status in FAILED]
    for record in bad[:5]:
        cell = record.cell
        message = (record.error or {}).get("message", "").splitlines() or [""]
        print(f"  {record.status}: {cell.defense} @{cell.budget}: {message[0]}", file=sys.stderr)
    if len(bad) > 5:
        print(f"  and {len(bad) - 5} more; the leaderboard lists them", file=sys.stderr)


def status(request: Request, json_output: bool) -> int:
    """`bench status`."""
    settings, registry = prepare(request)
    return _show_plan(settings, registry, zoo_state(settings), json_output)


def _show_plan(settings: Settings, registry: Registry, state: ZooState, json_output: bool) -> int:
    """Cells by state and defense, the zoo, and what the rest would take."""
    cells, missing = plan_cells(settings.profile, registry, settings.root, settings.library)
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
            "to_build": len(state.missing),
            "to_judge": len(state.unjudged),
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
        return OK
    _print_plan(plan, table)
    for problem in problems:
        print(f"bench: {problem}", file=sys.stderr)
    return OK


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


def _show_zoo_plan(state: ZooState, json_output: bool) -> None:
    if json_output:
        labels = [r.label for r in state.missing]
        print(json.dumps({"built": len(state.built), "to_build": labels}, indent=1))
        return
    print(
        f"{len(state.built)} built, {len(state.unjudged)} to judge, {len(state.missing)} to build"
    )
    for recipe in state.missing:
        print(f"  {recipe.label}: {recipe.training.epochs} epochs")


def _show_zoo(state: ZooState, json_output: bool) -> None:
    if json_output:
        print(json.dumps([v.meta for v in state.built], indent=1))
        return
    for stored in state.built:
        print(f"{stored.meta['label']}: {describe(stored)}")
