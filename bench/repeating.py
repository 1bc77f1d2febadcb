"""`bench repro`: one printed number, run again and compared. The record itself is never touched."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tabulate import tabulate

from bench.app import DRIFT, OK
from bench.base_sets import BaseSets
from bench.config import Limits, Profile
from bench.environment import check_device, default_device, environment
from bench.harness import Harness, Settings
from bench.plan import PlannedCell
from bench.progress import Progress
from bench.records import EVALUATED, Record, RecordError, path_of, read
from bench.rendering import root_of
from bench.replan import evasion_of, find_record
from bench.staleness import Difference, differences, not_found, replanner
from bench.verbs import Request

ENVIRONMENT: Final = ("python", "torch", "device", "gpu", "cpu", "precision")
PATIENCE: Final = 10  # times the limit of a cell that did not reach it
LEAST_SEEDS: Final = 3  # fewer have no spread to speak of
# What counts as the same where there is none, and never less: as in the paired comparisons.
POINTS: Final = 2.0  # of score
ACCURACY: Final = 0.01
SHARE: Final = 0.02  # ASR, RA, DER and robust accuracy

Verdict = Literal["REPRODUCED", "REPRODUCED within the spread", "DRIFTED"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure, recorded and measured again."""

    name: str
    old: float | None  # None where a run has no such figure
    new: float | None
    tolerance: float
    seeds: int  # over which the tolerance was found; fewer than three: it is the fixed one

    @property
    def same(self) -> bool:
        """To the last digit."""
        return self.old == self.new

    @property
    def close(self) -> bool:
        """Within the tolerance."""
        if self.old is None or self.new is None:
            return self.same
        return abs(self.new - self.old) <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of running a cell again."""

    record: Record
    again: Record
    label: str  # of the cell
    figures: Sequence[Figure]
    differences: Sequence[Difference]
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "key": self.record.key,
            "cell": self.label,
            "verdict": self.verdict.partition(" ")[0],
            "exactly": self.verdict == "REPRODUCED",
            "status": {"old": self.record.status, "new": self.again.status},
            "figures": [asdict(figure) for figure in self.figures],
            "differences": [asdict(difference) for difference in self.differences],
            "error": self.again.error,
        }


class Rehearsal(Harness):
    """Runs cells as ever, with base sets made anew, and keeps nothing.

    Args:
        settings: where victims and priors are.
        scratch: a folder that is thrown away.
    """

    def __init__(self, settings: Settings, scratch: Path) -> None:
        super().__init__(settings)
        self._base_sets = BaseSets(scratch)

    def _write(
        self, record: Record, planned: PlannedCell, log_tail: str = "", picture: bytes = b""
    ) -> None:
        del record, planned, log_tail, picture


def repro(request: Request, cell: str, json_output: bool) -> int:
    """`bench repro`."""
    root = root_of(request.root)
    record = find_record(root, cell)
    if record is None:
        return not_found(root, cell)
    device = check_device(request.device or device_of(record))
    with tempfile.TemporaryDirectory(prefix="repro-") as folder:
        scratch = Path(folder)
        plans = replanner(request, root, scratch)
        planned = plans.plan(record)
        # No profile is known, nor needed: these two parts are all that a single cell asks of one.
        profile = Profile.model_construct(limits=limits_of(record), evasion=evasion_of(record))
        settings = Settings(
            root=root,
            profile=profile,
            library=plans.library,
            device=device,
            jobs=1,
            executor="serial",
        )
        with Rehearsal(settings, scratch) as harness, Progress("repro", 1, 1) as progress:
            (again,) = harness.run([planned], progress)
    figures = compare(record, again, seeds_of(root, record))
    answer = Answer(
        record=record,
        again=again,
        label=planned.label,
        figures=figures,
        differences=[*differences(record, planned), *surroundings(record, environment(device))],
        verdict=judge(record, again, figures),
    )
    if json_output:
        print(json.dumps(answer.to_dict(), indent=1))
    else:
        _show(answer)
    return DRIFT if answer.verdict == "DRIFTED" else OK


def limits_of(record: Record) -> Limits:
    """Those that the record ran under; more time where it needed less, for slower machines."""
    limits = Limits(**record.env.get("limits", {}))
    patience = 1 if record.status == "timeout" else PATIENCE
    return limits.model_copy(update={"seconds": patience * limits.seconds})


def device_of(record: Record) -> str:
    """Where the record was made, as far as this machine has that."""
    return "cpu" if record.env.get("device") == "cpu" else default_device()


def surroundings(record: Record, now: Mapping[str, Any]) -> Iterator[Difference]:
    """Versions and hardware that differ: no input of a key, but they can move digits."""
    for name in ENVIRONMENT:
        old, new = record.env.get(name), now.get(name)
        if old != new:
            words = "not part of the key, but digits can depend on it"
            yield Difference(input=name, old=str(old or "-"), new=str(new or "-"), words=words)


def figures_of(record: Record) -> dict[str, float]:
    """Everything that was measured after the defense, by name."""
    found: dict[str, float | None] = {"score": record.score, "DER": record.der}
    if record.after is not None:
        found["ACC"] = record.after.acc
        for strength, attacked in sorted(record.after.strengths.items()):
            found[f"ASR {strength}"] = attacked.asr
            found[f"RA {strength}"] = attacked.ra
            found[f"ASR {strength}, of those right when clean"] = attacked.asr_conditional
            found[f"ASR {strength}, target class included"] = attacked.asr_including_target
    if record.robust is not None and record.robust.after is not None:
        after = record.robust.after
        found["ACC of attacked images"] = after.acc
        found |= {f"PGD {epsilon}": share for epsilon, share in after.pgd.items()}
        found |= {f"AutoAttack {epsilon}": share for epsilon, share in after.autoattack.items()}
    return {name: value for name, value in found.items() if value is not None}


def fixed_tolerance(name: str) -> float:
    """What counts as the same without a spread over seeds."""
    if name == "score":
        return POINTS
    return ACCURACY if name.startswith("ACC") else SHARE


def compare(old: Record, new: Record, seeds: Sequence[Mapping[str, float]]) -> list[Figure]:
    """Every figure of either run.

    The tolerance is the standard deviation over the victim seeds of the same defense, setting and
    budget, where three or more are recorded; else, and where that is smaller, the fixed one.
    """
    one, other = figures_of(old), figures_of(new)
    found = []
    for name in [*one, *(name for name in other if name not in one)]:
        values = [seed[name] for seed in seeds if name in seed]
        spread = statistics.stdev(values) if len(values) >= LEAST_SEEDS else 0.0
        figure = Figure(
            name=name,
            old=one.get(name),
            new=other.get(name),
            tolerance=max(spread, fixed_tolerance(name)),
            seeds=len(values),
        )
        found.append(figure)
    return found


def seeds_of(root: Path, record: Record) -> list[dict[str, float]]:
    """The figures of every victim seed of the record's defense, setting and budget.

    Of several records of one cell the last counts; defense seeds are averaged.
    """
    cell = record.cell
    latest: dict[tuple[int, int], Record] = {}
    for path in sorted(path_of(root, record).parent.parent.glob("*/*.json")):
        try:
            other = read(path)
        except RecordError:
            continue
        if (other.cell.defense, other.cell.setting, other.cell.budget) != (
            cell.defense,
            cell.setting,
            cell.budget,
        ):
            continue
        place = (other.cell.victim_seed, other.cell.defense_seed)
        if other.status in EVALUATED and (place not in latest or latest[place].ended < other.ended):
            latest[place] = other
    by_seed: defaultdict[int, list[dict[str, float]]] = defaultdict(list)
    for (seed, _), one in latest.items():
        by_seed[seed].append(figures_of(one))
    return [_means(group) for group in by_seed.values()]


def _means(group: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name for figures in group for name in figures}
    return {n: statistics.fmean(f[n] for f in group if n in f) for n in names}


def judge(old: Record, new: Record, figures: Sequence[Figure]) -> Verdict:
    """The same status and figures, the same within the tolerance, or not."""
    if old.status != new.status or not all(figure.close for figure in figures):
        return "DRIFTED"
    same = all(figure.same for figure in figures)
    return "REPRODUCED" if same else "REPRODUCED within the spread"


def _show(answer: Answer) -> None:
    record, again, figures = answer.record, answer.again, answer.figures
    exactly = f": all {len(figures)} figures to the last digit" if figures else ""
    print(f"{answer.verdict}{exactly if answer.verdict == 'REPRODUCED' else ''}")
    print(f"{answer.label}, record {record.key[:12]}")
    if record.status != again.status:
        print(f"status: {record.status} in the record, {again.status} now")
        if again.error:
            print(f"now: {again.error.get('message', '')}", file=sys.stderr)
    else:
        print(f"status: {again.status}")
    if answer.verdict != "REPRODUCED" and figures:
        print(f"\n{_table(figures)}\n\n{_rule(figures)}")
    if answer.differences:
        rows = [[d.input, d.old, d.new, d.words] for d in answer.differences]
        heads = ["differs now", "record", "now", "what it means"]
        print("\n" + tabulate(rows, heads, disable_numparse=True))
    elif answer.verdict == "DRIFTED":
        print("\nno input and no version differs: the defense does not repeat itself")


def _table(figures: Sequence[Figure]) -> str:
    rows = [
        [f.name, _number(f.old), _number(f.new), _change(f), f"{f.tolerance:.4g}", _word(f)]
        for f in figures
    ]
    heads = ["figure", "record", "now", "change", "allowed", ""]
    return tabulate(rows, heads, disable_numparse=True, colalign=("left", *["right"] * 4, "left"))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _change(figure: Figure) -> str:
    if figure.old is None or figure.new is None:
        return "-"
    return f"{figure.new - figure.old:+.4g}"


def _word(figure: Figure) -> str:
    if figure.same:
        return "same"
    return "within" if figure.close else "DRIFTED"


def _rule(figures: Sequence[Figure]) -> str:
    seeds = max(figure.seeds for figure in figures)
    fixed = f"{ACCURACY} of accuracy, {SHARE} of other shares, {POINTS:g} points of score"
    if seeds < LEAST_SEEDS:
        few = f"{seeds} recorded seeds have no spread" if seeds != 1 else "one seed has no spread"
        return f"allowed: {fixed}, because {few}"
    return f"allowed: the standard deviation over {seeds} victim seeds, at least {fixed}"
