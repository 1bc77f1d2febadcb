"""What the verbs of the command line share: the application, options, exit codes.

Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from zoo.errors import UserError

if TYPE_CHECKING:
    from bench.verbs import Request

OK: Final = 0
USAGE: Final = 2
SOME_FAILED: Final = 3
NOTHING_MATCHED: Final = 4
DRIFT: Final = 5
INTERRUPTED: Final = 130

app = typer.Typer(
    name="bench",
    help="Unbackdoor: a benchmark of backdoor removal under matched data budgets.",
    epilog="Exit codes: 0 fine, 1 internal error, 2 usage, 3 some cells failed, 4 nothing matched, "
    "5 drift, 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # the default one takes ``ibau[rounds=3]`` for markup
    add_completion=True,
    pretty_exceptions_enable=False,
)


ProfileOption = Annotated[
    str | None, typer.Option("--profile", "-p", help="quick, cpu, paper or FILE.toml [quick]")
]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="a paper's conditions: ibau, bcu, dhbe, fred")
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
ExecutorOption = Annotated[str, typer.Option("--executor", help="local, serial or dask")]
SchedulerOption = Annotated[
    str, typer.Option("--scheduler", help="dask's, e.g. tcp://127.0.0.1:8786")
]
PluginOption = Annotated[
    list[str] | None, typer.Option("--plugin", help="FILE.py or module; may be repeated")
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="let torchvision download missing data sets")
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="run failed cells again")]
AttackOption = Annotated[list[str] | None, typer.Option("--attack", help="e.g. blended[alpha=0.1]")]
DefenseOption = Annotated[list[str] | None, typer.Option("--defense", help="e.g. ibau[rounds=3]")]
DatasetOption = Annotated[list[str] | None, typer.Option("--dataset", help="name or folder:PATH")]
ArchOption = Annotated[list[str] | None, typer.Option("--arch", help="small_vgg, resnet18, vgg16")]
BudgetOption = Annotated[list[str] | None, typer.Option("--budget", help="e.g. 100")]
SeedsOption = Annotated[str | None, typer.Option("--seeds", help="e.g. 0,1,2 or 0-13")]


def request_of(options: dict[str, Any]) -> Request:
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


def leave(code: int) -> None:
    """Ends the program with an exit code other than 0."""
    if code:
        raise typer.Exit(code)


def work(verb: Callable[[], int]) -> None:
    """Runs a long verb; typer would turn Ctrl-C into a silent exit."""
    try:
        leave(verb())
    except KeyboardInterrupt:
        print("bench: interrupted; the same command resumes", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
