"""The command line. Data goes to standard output, chatter to standard error.

Exit codes: 0 all fine, 1 internal error, 2 usage (or something that only the user can mend),
3 finished but some cells failed, 4 nothing matched, 5 drift, 130 interrupted.

Nothing here imports torch before a verb needs it.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from zoo.errors import UserError

if TYPE_CHECKING:
    from bench.verbs import Request

OK: Final = 0
INTERNAL_ERROR: Final = 1
USAGE: Final = 2
SOME_FAILED: Final = 3
NOTHING_MATCHED: Final = 4
INTERRUPTED: Final = 130

app = typer.Typer(
    name="bench",
    help="Unbackdoor: a benchmark of backdoor removal under matched data budgets.",
    epilog="Exit codes: 0 fine, 1 internal error, 2 usage, 3 some cells failed, 4 nothing matched, "
    "5 drift, 130 interrupted.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


class ListWhat(enum.StrEnum):
    """What `bench list` can list."""

    ATTACKS = "attacks"
    DEFENSES = "defenses"
    DATASETS = "datasets"
    MODELS = "models"
    PROFILES = "profiles"
    BUDGETS = "budgets"


ProfileOption = Annotated[
    str | None, typer.Option("--profile", "-p", help="quick, cpu, paper or FILE.toml [quick]")
]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="a paper's exact conditions: ibau, bcu, dhbe, fred")
]
RootOption = Annotated[
    str | None, typer.Option("--root", help="where artefacts live [$BENCH_ROOT, else ./runs]")
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="folder with data sets [$BENCH_DATA]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable output")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="say what would be done, do nothing")]
JobsOption = Annotated[int | None, typer.Option("-j", "--jobs", help="at a time [number of cores]")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ... [auto]")]
ExecutorOption = Annotated[str, typer.Option("--executor", help="local or serial")]
PluginOption = Annotated[
    list[str] | None, typer.Option("--plugin", help="FILE.py with defenses; may be repeated")
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="let torchvision download missing data sets")
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="run failed cells again")]
AttackOption = Annotated[list[str] | None, typer.Option("--attack", help="e.g. badnets[size=5]")]
DefenseOption = Annotated[list[str] | None, typer.Option("--defense", help="e.g. ibau[rounds=3]")]
DatasetOption = Annotated[list[str] | None, typer.Option("--dataset", help="name or folder:PATH")]
ArchOption = Annotated[list[str] | None, typer.Option("--arch", help="small_vgg, resnet18, vgg16")]
BudgetOption = Annotated[list[str] | None, typer.Option("--budget", help="e.g. 100")]
SeedsOption = Annotated[str | None, typer.Option("--seeds", help="e.g. 0,1,2 or 0-13")]


@app.command("list")
def list_(
    what: Annotated[ListWhat | None, typer.Argument(help="one kind only")] = None,
    plugin: PluginOption = None,
    json_output: JsonOption = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="the page docs/defenses.md, of built-in defenses")
    ] = False,
) -> None:
    """What is there: attacks, defenses, data sets, models, profiles, budgets."""
    from bench import inspection

    if markdown:
        if what != ListWhat.DEFENSES or plugin or json_output:
            raise UserError("expected bench list defenses --markdown, with no other option")
        from bench.defense_page import page

        print(page(), end="")
        return
    _leave(inspection.show_list(what.value if what else None, plugin or [], json_output))


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
    jobs: JobsOption = None,
    device: DeviceOption = None,
    executor: ExecutorOption = "local",
    download: DownloadOption = False,
    dry_run: DryRunOption = False,
    json_output: JsonOption = False,
) -> None:
    """Train and admit the profile's victims and clean twins; resumes."""
    from bench import verbs

    request = _request(locals())
    _work(lambda: verbs.build(request, dry_run, json_output))


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
    request = _request(locals())
    _work(lambda: verbs.run(request, dry_run, json_output))


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
    retry_failed: RetryOption = False,
    download: DownloadOption = False,
    dry_run: DryRunOption = False,
    json_output: JsonOption = False,
) -> None:
    """Run one defense over a range of one hyper-parameter; draw ACC against ASR."""
    from bench import sweeping

    request = _request({**locals(), "defense": None})
    _work(lambda: sweeping.sweep(request, defense, param, values, dry_run, json_output))


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

    _leave(rendering.leaderboard(root, strict, json_output, release))


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

    _leave(rendering.export(root, out, json_output))


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
    images: Annotated[int, typer.Option("--images", min=1, max=9, help="per attack")] = 3,
    download: DownloadOption = False,
    json_output: JsonOption = False,
) -> None:
    """Picture what every attack of the profile does to images: PNG and HTML."""
    from bench.gallery import gallery as show

    request = _request(locals())
    _work(lambda: show(request, images, json_output))


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

    request = _request(locals())
    _work(lambda: probe(request, json_output))


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

    request = _request(locals())
    _work(lambda: detect(request, json_output))


@app.command()
def status(
    profile: ProfileOption = None,
    preset: PresetOption = None,
    root: RootOption = None,
    data: DataOption = None,
    plugin: PluginOption = None,
    json_output: JsonOption = False,
) -> None:
    """Count fresh, stale, missing and failed cells."""
    from bench import verbs

    request = _request({**locals(), "everything": True})
    _leave(verbs.status(request, json_output))


@app.command()
def doctor(
    root: RootOption = None, data: DataOption = None, json_output: JsonOption = False
) -> None:
    """Versions, device, precision, data, disk: what is there and how to get the rest."""
    from bench import inspection

    _leave(inspection.doctor(root, data, json_output))


def _request(options: dict[str, Any]) -> Request:
    """Those of a verb's options that say what to work on, and where."""
    from bench.verbs import Request

    names = {field.name for field in dataclasses.fields(Request)} - {"profile"}
    chosen = {name: options[name] for name in names & options.keys()}
    return Request(profile=chosen_profile(options["profile"], options.get("preset")), **chosen)


def chosen_profile(profile: str | None, preset: str | None) -> str:
    """The profile that the two options name together; ``quick`` where they name none.

    Raises:
        UserError: both are given, or the preset is unknown.
    """
    from bench.config import PRESETS

    if preset is None:
        return profile or "quick"
    if profile is not None:
        raise UserError("expected --profile or --preset, got both")
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}. Known: {', '.join(PRESETS)}")
    return preset


def _leave(code: int) -> None:
    if code:
        raise typer.Exit(code)


def _work(verb: Callable[[], int]) -> None:
    """Runs a long verb; typer would turn Ctrl-C into a silent exit."""
    try:
        _leave(verb())
    except KeyboardInterrupt:
        print("bench: interrupted; the same command resumes", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def main() -> None:
    """Entry point: maps exceptions to exit codes."""
    try:
        app()
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(USAGE)


if __name__ == "__main__":
    main()
