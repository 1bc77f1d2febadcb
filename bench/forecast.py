"""What a run would do and take: `status` and `--dry-run`."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from bench.building import ZooState
from bench.durations import ASSETS, VICTIMS, Durations, Forecast, Work
from bench.harness import Settings
from bench.plan import PlannedCell, cells_to_come, plan_cells, states
from bench.records import Record, read_all
from bench.registry import Broken, Registry
from zoo.asset_recipes import AssetRecipe
from zoo.models import ArchSpec, build_model
from zoo.recipes import VictimRecipe

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
    table: dict[str, Counter[str]] = {}
    to_run: list[PlannedCell] = []
    for planned, what in zip(cells, states(settings.root, cells, records), strict=True):
        table.setdefault(planned.cell.defense, Counter())[what] += 1
        again = what == "failed" and settings.retry_failed
        if what in ("stale", "missing") or again:
            to_run.append(planned)
    unbuilt = len(cells_to_come(settings.profile, registry)) * len(missing)
    works = works_of(settings, registry, to_run, missing)
    time = forecast(settings, state, works, records)
    known = time.known
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
        "seconds_low": None if known is None else round(known.low, 1),
        "seconds_median": None if known is None else round(known.median, 1),
        "seconds_high": None if known is None else round(known.high, 1),
        "unknown": time.unknown,
        "disk_bytes": (len(to_run) + unbuilt) * BYTES_PER_RECORD + weights_of(state.to_build),
        "disk_free_bytes": shutil.disk_usage(_existing_parent(settings.root)).free,
        "unreadable_records": len(problems),
    }
    if json_output:
        print(json.dumps(plan, indent=1))
        return 0
    _print_plan(plan, table, time)
    for problem in problems:
        print(f"bench: {problem}", file=sys.stderr)
    return 0


def _print_plan(plan: dict[str, Any], table: dict[str, Counter[str]], time: Forecast) -> None:
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
    on_unbuilt = plan["cells_on_unbuilt_victims"]
    also = f" ({on_unbuilt} of them on victims to be built)" if on_unbuilt else ""
    print(
        f"{plan['cells_to_run']} cells to run{also}: {time}; "
        f"{plan['disk_bytes'] / 1e6:.1f} MB of {plan['disk_free_bytes'] / 1e9:.0f} GB free"
    )


def weights_of(to_build: Sequence[VictimRecipe | AssetRecipe]) -> int:
    """Bytes of the weights of victims and twins, each as if it had ten classes.

    Surrogates, priors and base sets are not counted: there are few of them, or they are small.
    """
    archs = Counter((r.arch, r.width) for r in to_build if isinstance(r, VictimRecipe))
    total = 0
    for (arch, width), victims in archs.items():
        with torch.device("meta"):
            model = build_model(ArchSpec(name=arch, num_classes=10, width=width))
        total += victims * sum(t.nbytes for t in model.state_dict().values())
    return total


def works_of(
    settings: Settings,
    registry: Registry,
    cells: Sequence[PlannedCell],
    unbuilt: Sequence[VictimRecipe],
) -> list[Work]:
    """What takes time of some cells, and of those on victims that are not built."""
    works = [
        Work(name=c.cell.defense, arch=c.cell.arch, dataset=c.cell.dataset)
        for c in cells
        if not c.not_applicable and not isinstance(c.entry, Broken)
    ]
    for recipe in unbuilt:
        works += [
            Work(name=name, arch=recipe.arch_label, dataset=recipe.dataset)
            for name, runs in cells_to_come(settings.profile, registry)
            if runs
        ]
    return works


def forecast(
    settings: Settings, state: ZooState, works: Sequence[Work], records: Sequence[Record]
) -> Forecast:
    """What cells and the building of the zoo would take, as records and built victims tell."""
    durations = Durations(records, settings.device.partition(":")[0])
    for stored in state.built:
        meta = stored.meta
        place = Work(name=VICTIMS, arch=meta["arch"], dataset=meta["dataset"])
        if (seconds := meta.get("training", {}).get("seconds")) and seconds > 0:
            durations.learn(place, seconds)
    building = [
        Work(name=VICTIMS, arch=recipe.arch_label, dataset=recipe.dataset)
        if isinstance(recipe, VictimRecipe)
        else Work(name=ASSETS, arch="", dataset="")
        for recipe in state.to_build
    ]
    return durations.forecast([*building, *works], max(1, settings.jobs))


def _existing_parent(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
