"""What runs in the child process of a build: one asset, one victim, or its way through the gate."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimiser would, in two seconds; here the server does, once

from bench.registry import adopt
from zoo.asset_recipes import asset_from_dict
from zoo.build import admit, build
from zoo.data import Library
from zoo.errors import StorageError, UserError
from zoo.recipes import VictimRecipe
from zoo.store import Zoo
from zoo.surrogates import build_asset


def run(job: dict[str, Any]) -> None:
    """Runs the job and writes ``result.json`` into the current directory."""
    result: dict[str, Any] = {"error": None}
    try:
        _run(job)
    except UserError as error:
        storage = isinstance(error, StorageError)
        result["error"] = {"storage": storage, "message": str(error)}
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        message = f"{type(error).__name__}: {error} ({where}, in {frame.name})"
        result["error"] = {"storage": False, "message": message}
    Path("result.json.tmp").write_text(json.dumps(result), encoding="utf-8")
    os.replace("result.json.tmp", "result.json")


def _run(job: dict[str, Any]) -> None:
    for plugin in job["plugins"]:
        adopt(plugin)
    library = Library(
        data=Path(job["data"]) if job["data"] else None,
        cache=Path(job["cache"]),
        download=job["download"],
        folders={name: Path(path) for name, path in job["folders"].items()},
    )
    root = Path(job["root"])
    if "asset" in job["recipe"]:
        asset = asset_from_dict(job["recipe"])
        judge = VictimRecipe.from_dict(job["judge"]) if job["judge"] else None
        build_asset(asset, root, library, job["device"], job["threads"], judge)
        return
    recipe = VictimRecipe.from_dict(job["recipe"])
    if job["task"] == "build":
        build(recipe, root, library, job["device"], job["threads"])
        return
    torch.set_num_threads(job["threads"])
    zoo = Zoo(root)
    victim, twin = zoo.find(recipe), zoo.find(recipe.twin())
    if victim is None or twin is None:
        raise UserError(f"{recipe.label}: not built, or its twin is not")
    admit(zoo, victim, twin, library.load(recipe.dataset), job["device"])
