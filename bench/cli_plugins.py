"""The verbs for those who write plugins: check and new."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from bench.app import DataOption, JsonOption, PluginOption, app, leave


class NewWhat(enum.StrEnum):
    """What `bench new` can write."""

    DEFENSE = "defense"
    ATTACK = "attack"
    DATASET = "dataset"


@app.command()
def check(
    what: Annotated[str, typer.Argument(help="FILE.py, or a name like 'ft[steps=5]'")],
    plugin: PluginOption = None,
    data: DataOption = None,
    json_output: JsonOption = False,
) -> None:
    """Run the conformance suite over a plugin: what it owes the benchmark, and why."""
    from bench import checking

    leave(checking.check(what, plugin or [], data, json_output))


@app.command()
def new(
    what: Annotated[NewWhat, typer.Argument(help="what it is to be")],
    name: Annotated[str, typer.Argument(help="its name, e.g. my-prune")],
) -> None:
    """Write a plugin to start from, NAME.py in this folder; it passes `bench check`."""
    from bench.starting import new as write

    leave(write(what.value, name))
