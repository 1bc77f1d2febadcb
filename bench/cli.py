"""The command line: building, running, showing.

Data goes to standard output, chatter to standard error.

Exit codes: 0 all fine, 1 internal error, 2 usage (or something that only the user can mend),
3 finished but some cells failed, 4 nothing matched, 5 drift, 130 interrupted.

Nothing here imports torch before a verb needs it.
"""

from __future__ import annotations

import enum
import errno
import sys
from typing import Annotated

import typer

from bench.app import (
    USAGE,
    ArchOption,
    AttackOption,
    BudgetOption,
    DataOption,
    DatasetOption,
    DefenseOption,
    DeviceOption,
    DownloadOption,
    DryRunOption,
    ExecutorOption,
    JobsOption,
    JsonOption,
    PluginOption,
    PresetOption,
    ProfileOption,
    RetryOption,
    RootOption,
    SchedulerOption,
    SeedsOption,
    app,
    leave,
    request_of,
    work,
)
from zoo.errors import UserError


class ListWhat(enum.StrEnum):
    """What `bench list` can list."""

    ATTACKS = "attacks"
    DEFENSES = "defenses"
    BASE_SETS = "base-sets"
    DATASETS = "datasets"
    MODELS = "models"
    PROFILES = "profiles"
    BUDGETS = "budgets"


@app.command("list")
def list_(
    what: Annotated[ListWhat | None, typer.Argument(help="one kind only")] = None,
    plugin: PluginOption = None,
    json_output: JsonOption = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="the page docs/defenses.md, of built-in defenses")
    ] = False,
) -> None:
    """What is there: attacks, defenses, base sets, data sets, models, profiles, budgets."""
    from bench import inspection

    if markdown:
        if what != ListWhat.DEFENSES or plugin or json_output:
            raise UserError("expected bench list defenses --markdown, with no other option")
        from bench.defense_page import page

        print(page(), end="")
        return
    leave(inspection.show_list(what.value if what else None, plugin or [], json_output))


@app.command("build-zoo")
def build_zoo(
    profile: ProfileOption = None,
    preset: PresetOption = None,
    root: RootOption = None,
    data: DataOption = None,
    attack: AttackOption = None,
    dataset: DatasetOption = None,
    arch: ArchOption = None,
    seeds: SeedsOption = None,
    plugin: PluginOption = None,
    jobs: JobsOption = None,
    device: DeviceOption = None,
    executor: ExecutorOption = "local",
    scheduler: SchedulerOption = "",
    download: DownloadOption = False,
    dry_run: DryRunOption = False,
    json_output: JsonOption = False,
) -> None:
    """Train and admit the profile's victims and clean twins; resumes."""
    from bench import verbs

    request = request_of(locals())
    work(lambda: verbs.build(request, dry_run, json_output))


@app.command()
def run(
    everything: Annotated[
        bool, typer.Option("--all", help="every defense of the profile on every victim")
    ] = False,
    profile: ProfileOption = None,
    preset: PresetOption = None,
    root: RootOption = None,
    data: DataOption = None,
    attack: AttackOption = None,
    defense: DefenseOption = None,
    dataset: DatasetOption = None,
    arch: ArchOption = None,
    budget: BudgetOption = None,
    seeds: SeedsOption = None,
    plugin: PluginOption = None,
    jobs: JobsOption = None,
    device: DeviceOption = None,
    executor: ExecutorOption = "local",
    scheduler: SchedulerOption = "",
    retry_failed: RetryOption = False,
    download: DownloadOption = False,
    dry_run: DryRunOption = False,
    json_output: JsonOption = False,
) -> None:
    """Build what is missing, run defenses, render the leaderboard; resumes."""
    from bench import verbs

    if not everything and not any((attack, defense, dataset, arch, budget, seeds, plugin)):
        raise UserError(
            "say --all, or pick something: --defense ft --budget 100 (see bench run --help)"
        )
    request = request_of(locals())
    work(lambda: verbs.run(request, dry_run, json_output))


@app.command()
def sweep(
    defense: Annotated[str, typer.Argument(help="e.g. ibau or 'ibau[mode=paper]'")],
    param: Annotated[str, typer.Option("--param", help="which hyper-parameter, e.g. lr")],
    values: Annotated[str, typer.Option("--values", help="two or more, e.g. 1e-4,3e-4,1e-3")],
    profile: ProfileOption = None,
    preset: PresetOption = None,
    root: RootOption = None,
    data: DataOption = None,
    attack: AttackOption = None,
    dataset: DatasetOption = None,
    arch: ArchOption = None,
    budget: BudgetOption = None,
    seeds: SeedsOption = None,
    plugin: PluginOption = None,
    jobs: JobsOption = None,
    device: DeviceOption = None,
    executor: ExecutorOption = "local",
    scheduler: SchedulerOption = "",
    retry_failed: RetryOption = False,
    download: DownloadOption = False,
    dry_run: DryRunOption = False,
    json_output: JsonOption = False,
) -> None:
    """Run one defense over a range of one hyper-parameter; draw ACC against ASR."""
    from bench import sweeping

    request = request_of({**locals(), "defense": None})
    work(lambda: sweeping.sweep(request, defense, param, values, dry_run, json_output))


@app.command()
def leaderboard(
    root: RootOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="exit 3 if a check before publishing finds something")
    ] = False,
    release: Annotated[
        str, typer.Option("--release", help="a date or name that the page is published under")
    ] = "",
    json_output: JsonOption = False,
) -> None:
    """Render leaderboard.html, .md, .csv and .json from the records."""
    from bench import rendering

    leave(rendering.leaderboard(root, strict, json_output, release))


@app.command()
def export(
    root: RootOption = None,
    out: Annotated[
        str | None, typer.Option("--out", help="folder to write to [ROOT/leaderboard/paper]")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Write the leaderboard for a paper: LaTeX tables, figures as PDF, BibTeX, a text."""
    from bench import rendering

    leave(rendering.export(root, out, json_output))


@app.command()
def gallery(
    profile: ProfileOption = None,
    preset: PresetOption = None,
    root: RootOption = None,
    data: DataOption = None,
    attack: AttackOption = None,
    dataset: DatasetOption = None,
    arch: ArchOption = None,
    seeds: SeedsOption = None,
    plugin: PluginOption = None,
    images: Annotated[int, typer.Option("--images", min=1, max=9, help="per attack")] = 3,
    download: DownloadOption = False,
    json_output: JsonOption = False,
) -> None:
    """Picture what every attack of the profile does to images: PNG and HTML."""
    from bench.gallery import gallery as show

    request = request_of(locals())
    work(lambda: show(request, images, json_output))


@app.command()
def stability(
    profile: ProfileOption = None,
    preset: PresetOption = None,
    root: RootOption = None,
    data: DataOption = None,
    attack: AttackOption = None,
    dataset: DatasetOption = None,
    arch: ArchOption = None,
    budget: BudgetOption = None,
    seeds: SeedsOption = None,
    plugin: PluginOption = None,
    device: DeviceOption = None,
    download: DownloadOption = False,
    json_output: JsonOption = False,
) -> None:
    """How stable victims are on their base sets, against clean images; resumes."""
    from bench.stability import stability as probe

    request = request_of(locals())
    work(lambda: probe(request, json_output))


@app.command("trigger-detection")
def trigger_detection(
    profile: ProfileOption = None,
    preset: PresetOption = None,
    root: RootOption = None,
    data: DataOption = None,
    attack: AttackOption = None,
    dataset: DatasetOption = None,
    arch: ArchOption = None,
    budget: BudgetOption = None,
    seeds: SeedsOption = None,
    plugin: PluginOption = None,
    device: DeviceOption = None,
    download: DownloadOption = False,
    json_output: JsonOption = False,
) -> None:
    """Whether base sets hold the trigger of their victim, by a trained detector; resumes."""
    from bench.trigger_detection import trigger_detection as detect

    request = request_of(locals())
    work(lambda: detect(request, json_output))


@app.command()
def status(
    profile: ProfileOption = None,
    preset: PresetOption = None,
    root: RootOption = None,
    data: DataOption = None,
    attack: AttackOption = None,
    defense: DefenseOption = None,
    dataset: DatasetOption = None,
    arch: ArchOption = None,
    budget: BudgetOption = None,
    seeds: SeedsOption = None,
    plugin: PluginOption = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="follow a run from another terminal until it is done")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Count fresh, stale, missing and failed cells."""
    from bench import verbs

    request = request_of({**locals(), "everything": True})
    leave(verbs.status(request, watch, json_output))


@app.command()
def doctor(
    root: RootOption = None, data: DataOption = None, json_output: JsonOption = False
) -> None:
    """Versions, device, precision, data, disk: what is there and how to get the rest."""
    from bench import inspection

    leave(inspection.doctor(root, data, json_output))


import bench.cli_plugins  # noqa: E402
import bench.cli_sharing  # noqa: E402, F401 (its verbs come after those above)

# A file where a folder should be, or no right to write there.
_NO_PLACE = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS)


def main() -> None:
    """Entry point: maps exceptions to exit codes."""
    try:
        app()
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(USAGE)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = "Free some space and run again; what is recorded stays"
        elif error.errno in _NO_PLACE:
            text = "Choose another place, or make room there"
        else:
            raise
        print(f"bench: {error}. {text}", file=sys.stderr)
        sys.exit(USAGE)


if __name__ == "__main__":
    main()
