"""Building the zoo: twins, then victims, then the gate; each in a child process of its own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.executors import run_all
from bench.harness import Settings, Watcher
from bench.launcher import Launcher
from bench.plan import plan_victims, twins_of
from zoo.errors import UserError
from zoo.recipes import VictimRecipe
from zoo.store import Stored, Zoo

_A_WEEK: Final = 7 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class ZooState:
    """What a profile's zoo has and lacks."""

    built: list[Stored]
    unjudged: list[VictimRecipe]  # trained, not yet through the gate
    missing: list[VictimRecipe]  # twins first


def zoo_state(settings: Settings) -> ZooState:
    """Compares a profile's victims and twins with what is stored."""
    zoo = Zoo(settings.root)
    victims = plan_victims(settings.profile)
    built, unjudged, missing = [], [], []
    for recipe, _ in [*twins_of(victims), *victims]:
        stored = zoo.find(recipe)
        if stored is None:
            missing.append(recipe)
        elif stored.meta["metrics"] is None:
            unjudged.append(recipe)
        else:
            built.append(stored)
    return ZooState(built=built, unjudged=unjudged, missing=missing)


def check_data(settings: Settings) -> None:
    """Decodes every data set once, and fails before anything is trained.

    Raises:
        UserError: one is missing or damaged.
    """
    for name in sorted({g.dataset for g in settings.profile.grid}):
        settings.library.load(name)


def build_zoo(settings: Settings, watcher: Watcher) -> list[str]:
    """Trains and judges what is missing; returns one message per failure.

    Raises:
        UserError: a full disk, which no other victim could survive either.
    """
    state = zoo_state(settings)
    launcher = Launcher("bench.builder:run", fork=settings.fork)
    try:
        failures = _pass(settings, watcher, launcher, "build", state.missing)
        broken = {recipe.hash() for recipe, _ in failures}
        unjudged = [
            recipe
            for recipe in [*state.unjudged, *state.missing]
            if recipe.hash() not in broken and recipe.twin().hash() not in broken
        ]
        failures += _pass(settings, watcher, launcher, "judge", unjudged)
    finally:
        launcher.close()
    return [f"{recipe.label}: {message}" for recipe, message in failures]


def _pass(
    settings: Settings,
    watcher: Watcher,
    launcher: Launcher,
    task: str,
    recipes: Sequence[VictimRecipe],
) -> list[tuple[VictimRecipe, str]]:
    """Runs one kind of task over recipes; returns what failed and why."""
    jobs = min(settings.jobs, max(1, len(recipes)))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    zoo = Zoo(settings.root)

    def one(recipe: VictimRecipe) -> tuple[VictimRecipe, str]:
        with watcher.task(f"{task} {recipe.label}") as done:
            message = _run(settings, launcher, task, recipe, threads)
            stored = zoo.find(recipe)
            done("error" if message else "ok", message or (describe(stored) if stored else ""))
        return recipe, message

    outcomes = run_all(one, recipes, settings.executor, jobs)
    return [(recipe, message) for recipe, message in outcomes if message]


def _run(
    settings: Settings, launcher: Launcher, task: str, recipe: VictimRecipe, threads: int
) -> str:
    """Runs one task in a child; returns an error message or nothing."""
    library = settings.library
    scratch = Path(tempfile.mkdtemp(prefix="build-"))
    try:
        ended = launcher.run(
            {
                "task": task,
                "recipe": recipe.to_dict(),
                "root": str(settings.root.resolve()),
                "data": str(library.data.resolve()) if library.data else None,
                "cache": str(library.cache.resolve()),
                "download": library.download,
                "folders": {name: str(path) for name, path in library.folders.items()},
                "device": settings.device,
                "threads": threads,
            },
            cwd=scratch,
            log=scratch / "log.txt",
            seconds=_A_WEEK,
            memory=0,
        )
        path = scratch / "result.json"
        if not path.exists():
            return f"the process ended with {ended.rc} and left no result"
        error: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8"))["error"]
        if error is None:
            return ""
        if error["user"]:
            raise UserError(error["message"])
        return str(error["message"])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def describe(stored: Stored) -> str:
    """A few words on a victim: training speed, then figures and the verdict of the gate."""
    meta, metrics = stored.meta, stored.meta["metrics"]
    if metrics is None:
        training = meta["training"]
        return f"{training['images_per_second']:.0f} images/s, loss {training['final_loss']:.3f}"
    text = f"ACC {100 * metrics['acc']:.2f}"
    if metrics["strengths"]:
        text += f"  ASR {100 * metrics['strengths']['x1']['asr']:.2f}"
    return text + f"  {meta['status']}" + "".join(f"; {r}" for r in meta["reasons"])
