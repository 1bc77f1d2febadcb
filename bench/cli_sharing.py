"""Verbs to repeat, compare, put together and publish results; :mod:`bench.cli` brings them in.

Nothing here imports torch before a verb needs it.
"""

from __future__ import annotations

from typing import Annotated

import typer

from bench.app import (
    DataOption,
    DatasetOption,
    DeviceOption,
    DownloadOption,
    DryRunOption,
    JsonOption,
    PluginOption,
    ProfileOption,
    RootOption,
    app,
    leave,
    request_of,
    work,
)

CellArgument = Annotated[
    str, typer.Argument(metavar="CELL", help="the key of a record, or the beginning of one")
]


@app.command()
def repro(
    cell: CellArgument,
    root: RootOption = None,
    data: DataOption = None,
    dataset: DatasetOption = None,
    plugin: PluginOption = None,
    device: DeviceOption = None,
    download: DownloadOption = False,
    json_output: JsonOption = False,
) -> None:
    """Run one printed number again: REPRODUCED, or DRIFTED (exit 5)."""
    from bench import repeating

    request = request_of({**locals(), "profile": None})
    work(lambda: repeating.repro(request, cell, json_output))


@app.command()
def why(
    cell: CellArgument,
    profile: ProfileOption = None,
    root: RootOption = None,
    data: DataOption = None,
    dataset: DatasetOption = None,
    plugin: PluginOption = None,
    download: DownloadOption = False,
    json_output: JsonOption = False,
) -> None:
    """Say which input of a cell is no longer what its record says, and in which file."""
    from bench import staleness

    request = request_of({**locals(), "profile": None})
    leave(staleness.why(request, cell, profile, json_output))


@app.command()
def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="a root: a folder with records/")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="another one")],
    json_output: JsonOption = False,
) -> None:
    """Compare two roots: what changed beyond noise, as Markdown for a pull request."""
    from bench import rendering

    leave(rendering.diff(old, new, json_output))


@app.command()
def merge(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="roots to copy from, in this order")
    ],
    root: RootOption = None,
    dry_run: DryRunOption = False,
    json_output: JsonOption = False,
) -> None:
    """Copy the records, victims and assets of other roots into this one; overwrites nothing."""
    from bench import merging

    leave(merging.merge(sources, root, dry_run, json_output))


@app.command()
def release(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a date or a name: 2026-12-01")],
    root: RootOption = None,
    out: Annotated[
        str | None, typer.Option("--out", help="file to write [ROOT/releases/NAME.json]")
    ] = None,
    signed_off_by: Annotated[
        str, typer.Option("--signed-off-by", help='who stands for it: "Name <mail>"')
    ] = "",
    json_output: JsonOption = False,
) -> None:
    """Render the leaderboard under a name; hash it and all behind it into one file."""
    from bench import releasing

    leave(releasing.release(name, root, out, signed_off_by, json_output))


@app.command()
def verify(
    file: Annotated[str, typer.Argument(metavar="FILE", help="what bench release has written")],
    root: RootOption = None,
    json_output: JsonOption = False,
) -> None:
    """Check a root against a release: missing, changed and extra files (exit 5)."""
    from bench import releasing

    leave(releasing.verify(file, root, json_output))
