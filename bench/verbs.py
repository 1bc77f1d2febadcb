"""What `build-zoo`, `run` and `status` do."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tabulate import tabulate

from bench.app import NOTHING_MATCHED, OK, SOME_FAILED
from bench.building import ZooState, build_zoo, check_data, tidy, zoo_state
from bench.config import Profile, load_profile
from bench.ending import summary
from bench.environment import check_device, cores, default_device
from bench.executors import Executor, check_executor
from bench.forecast import show_plan
from bench.harness import Harness, Settings, now
from bench.plan import PlannedCell, plan_cells
from bench.progress import Progress
from bench.records import Record, read_all, scan, write
from bench.registry import Registry
from bench.rendering import render, root_of
from bench.selection import Selection, select
from zoo.data import Library
from zoo.errors import UserError


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
    scheduler: str = ""
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


MOST_SEEDS: Final = 10_000  # of a range


def parse_seeds(text: str) -> tuple[int, ...]:
    """``0,2,5-7`` to (0, 2, 5, 6, 7).

    Raises:
        UserError: anything else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,7})(?:\s*-\s*(\d{1,7}))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise UserError(f"expected seeds like 0,1,2 or 0-13, got {text!r:.100}")
        found = range(int(match[1]), int(match[2] or match[1]) + 1)
        if len(found) > MOST_SEEDS:
            raise UserError(f"expected at most {MOST_SEEDS:,} seeds, got {text!r:.100}")
        seeds.extend(found)
    return tuple(dict.fromkeys(seeds))


def prepare(request: Request) -> tuple[Settings, Registry]:
    """Checks everything that can be checked before work begins.

    Raises:
        UserError: one clear message.
    """
    executor = check_executor(request.executor, request.scheduler, request.jobs, request.device)
    if request.jobs is not None and request.jobs < 1:
        raise UserError(f"expected -j >= 1, got {request.jobs}")
    root, library = root_of(request.root), library_of(request)
    registry = Registry.with_plugins(request.plugin or [])
    profile = choose(request, registry, library)
    device = request.device or default_device()
    if executor != "dask":  # whose workers have devices of their own, and are asked
        check_device(device)
    settings = Settings(
        root=root,
        profile=profile,
        library=library,
        device=device,
        jobs=request.jobs or usual_jobs(executor, device),
        executor=executor,
        scheduler=request.scheduler,
        retry_failed=request.retry_failed,
        plugins=tuple(registry.zoo_plugins()),
        sources=tuple(request.plugin or ()),
    )
    for name in profile.defenses:
        if name not in registry.broken:  # which has a row that says why
            registry.parse(name)
    for name, given in profile.params.items():
        registry.check_params(name, given)
    return settings, registry


def choose(request: Request, registry: Registry, library: Library) -> Profile:
    """The profile, narrowed to what was picked.

    What a plugin brings takes part without being named: alone, or with ``--all`` beside what the
    profile has. Of installed packages that holds for defenses; attacks and data sets are named.

    Raises:
        UserError: an unknown name.
    """
    profile, picked = load_profile(request.profile), request.selection()
    alone = bool(request.plugin) and not request.everything
    attacks, sets = registry.loose("attack"), registry.loose("data set")
    if not alone and sets:
        sets = [*dict.fromkeys(grid.dataset for grid in profile.grid), *sets]
    picked = dataclasses.replace(
        picked,
        attacks=picked.attacks or (alone and tuple(attacks)) or None,
        datasets=picked.datasets or tuple(sets) or None,
    )
    profile = select(profile, picked, library)
    if attacks and picked.attacks is None:
        grid = [g.model_copy(update={"attacks": [*g.attacks, *attacks]}) for g in profile.grid]
        profile = profile.model_copy(update={"grid": grid})
    if request.defense is None:
        own = [name for name in registry.plugins() if name not in profile.defenses]
        broken = registry.broken and not attacks and not sets  # nothing but what cannot be run
        defenses = own if alone and (own or broken) else [*profile.defenses, *own]
        profile = profile.model_copy(update={"defenses": defenses})
    return profile


def library_of(request: Request) -> Library:
    """Where data sets are found: `--data`, else `$BENCH_DATA`.

    Raises:
        UserError: there is no such folder.
    """
    data = request.data or os.environ.get("BENCH_DATA")
    if data and not Path(data).is_dir():
        raise UserError(f"--data {data}: there is no such folder")
    cache = root_of(request.root) / "cache"
    return Library(data=Path(data) if data else None, cache=cache, download=request.download)


def usual_jobs(executor: Executor, device: str) -> int:
    """How many cells at a time, where nobody says; with dask, how many on one GPU."""
    if executor == "dask":
        return 1
    return cores() if device == "cpu" else min(4, cores())


def build(request: Request, dry_run: bool, json_output: bool) -> int:
    """`bench build-zoo`."""
    settings, registry = prepare(request)
    # Of what an option names: it would build what that does not bring. A package may be broken.
    asked = [b for b in registry.broken.values() if not b.origin.startswith("entry-point:")]
    if asked:
        raise UserError("; ".join(f"{b.origin}: {b.reason}" for b in asked))
    state = zoo_state(settings)
    if not (state.built or state.steps):
        print("bench: the selection leaves no victim", file=sys.stderr)
        return NOTHING_MATCHED
    if dry_run:
        _show_zoo_plan(state, json_output)
        return OK
    failures = build_missing(settings, state)
    state = zoo_state(settings)
    _show_zoo(state, json_output)
    for failure in failures:
        print(f"bench: {failure}", file=sys.stderr)
    return SOME_FAILED if failures else OK


def build_missing(settings: Settings, state: ZooState) -> list[str]:
    """Builds the rest of the zoo; a message for each victim that could not be built."""
    failures: list[str] = []
    if state.steps:
        check_data(settings)
        with Progress("zoo", len(state.steps), settings.jobs) as progress:
            failures = build_zoo(settings, state, progress)
    tidy(settings.root)
    return failures


def run(request: Request, dry_run: bool, json_output: bool) -> int:
    """`bench run`."""
    settings, registry = prepare(request)
    state = zoo_state(settings)
    if dry_run:
        return show_plan(settings, registry, state, json_output)
    failures = build_missing(settings, state)
    cells, _ = plan_cells(settings.profile, registry, settings.root, settings.library)
    if not cells:
        return nothing_to_run(failures)
    records, ran = run_cells(settings, cells)
    confirm(settings.root, records)
    render(settings.root, json_output, profile=Path(request.profile).name)
    board = settings.root / "leaderboard" / "leaderboard.html"
    return summary(request, records, ran, failures, board)


def nothing_to_run(failures: Sequence[str]) -> int:
    """Says why there is no cell."""
    for failure in failures:
        print(f"bench: {failure}", file=sys.stderr)
    why = "not every victim could be built" if failures else "no victim was admitted"
    print(f"bench: no cell to run: {why}, see bench build-zoo", file=sys.stderr)
    return SOME_FAILED if failures else NOTHING_MATCHED


def confirm(root: Path, records: Sequence[Record]) -> None:
    """Makes these the records that count.

    Of an edit that was undone there is a later record of the same cell: the earlier one, which is
    fresh again, says so and comes after it.
    """
    from leaderboard.outcomes import latest

    if sum(1 for _ in scan(root)) == len(records):
        return  # there are no others
    counted = {record.key for record in latest(r for r in read_all(root)[0] if not r.cell.swept)[0]}
    for record in records:
        if record.key not in counted and not record.cell.swept:
            write(root, dataclasses.replace(record, env=record.env | {"confirmed": now()}))


def run_cells(settings: Settings, cells: Sequence[PlannedCell]) -> tuple[list[Record], int]:
    """Runs the cells that are not fresh; all their records, and how many were run."""
    with Harness(settings) as harness:
        todo, fresh = harness.todo(cells)
        with Progress("cells", len(todo), settings.jobs) as progress:
            return [*fresh, *harness.run(todo, progress)], len(todo)


def status(request: Request, watch: bool, json_output: bool) -> int:
    """`bench status`."""
    settings, registry = prepare(request)
    if watch:
        from bench.watching import watch as follow

        return follow(settings, registry, json_output)
    return show_plan(settings, registry, zoo_state(settings), json_output)


def _show_zoo_plan(state: ZooState, json_output: bool) -> None:
    """What would be done, in the order in which it would be."""
    if json_output:
        print(json.dumps({"built": len(state.built), "steps": state.plan()}, indent=1))
        return
    print(f"{len(state.built)} built, {state.to_judge} to judge, {len(state.to_build)} to build")
    for step in state.plan():
        after = f"; after {', '.join(step['after'])}" if step["after"] else ""
        print(f"  {step['label']}: {step['work']}{after}")


def _show_zoo(state: ZooState, json_output: bool) -> None:
    """Every victim and twin with its figures, in per cent."""
    if json_output:
        print(json.dumps([v.meta for v in state.built], indent=1))
        return
    if state.built:
        rows = [zoo_row(stored.meta) for stored in state.built]
        print(tabulate(rows, "keys", disable_numparse=True))


def zoo_row(meta: dict[str, Any]) -> dict[str, str]:
    """One victim as a line of a table; amplified figures in the order of their strengths."""

    def percent(values: list[float]) -> str:
        return " / ".join(f"{100 * value:.2f}" for value in values)

    own, twin = meta["metrics"], meta.get("twin_metrics")
    strengths = list(own["strengths"].values())
    return {
        "victim": meta["label"],
        "ACC": percent([own["acc"]]),
        "twin's": percent([twin["acc"]]) if twin else "",
        "ASR": percent([s["asr"] for s in strengths[:1]]),
        "amplified ASR": percent([s["asr"] for s in strengths[1:]]),
        "RA": percent([s["ra"] for s in strengths[:1]]),
        "twin's ASR": percent([s["asr"] for s in twin["strengths"].values()]) if twin else "",
        "verdict": "; ".join([meta["status"], *meta["reasons"]]),
    }
