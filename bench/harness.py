"""One cell from plan to record: hand over, run in a child, evaluate here, write.

The child gets the weights and the budget's images (or, where a defense trains anew, the victim's
training set) and returns weights. It never sees what this module holds: the trigger, the target and
the evaluation images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import shutil
import tempfile
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

import torch
from torch import Tensor

from bench import base_sets
from bench.base_sets import BaseSets, PlannedBase
from bench.config import Profile
from bench.detections import contact_strip
from bench.environment import environment, git_state
from bench.executors import Executor, run_all
from bench.handback import (
    HandbackError,
    failed,
    load_model,
    read_result,
    specs_of,
)
from bench.launcher import ClosedError, Launcher, Runner
from bench.plan import PlannedCell, existing
from bench.records import (
    EVALUATED,
    FAILED,
    Cost,
    Metrics,
    Record,
    Robustness,
    Status,
    metrics_from_dict,
    write,
)
from bench.registry import Broken
from bench.robustness import Siege, siege_of
from bench.specs import split_params
from zoo.assets import AssetStore
from zoo.build import judge_of, training_set_of
from zoo.data import Library
from zoo.errors import UserError
from zoo.evaluate import MetricsDict, der, evaluate, score
from zoo.files import read_tail
from zoo.models import ArchSpec, Classifier
from zoo.sets import facts_of
from zoo.store import Stored
from zoo.tensors import save_tensors

LOG_TAIL: Final = 64_000  # characters of a cell's output that are kept
ORACLE_KEEPS: Final = 0.9  # of the victim's accuracy, in BCU's and BackdoorBench's rule for ANP
# Of CIFAR-10, an evaluation set has about 60 MB, a training set 150.
_VICTIMS_IN_MEMORY: Final = 2
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run needs beside its cells."""

    root: Path
    profile: Profile
    library: Library
    device: str
    jobs: int
    executor: Executor = "local"
    scheduler: str = ""  # where dask's is
    retry_failed: bool = False
    plugins: tuple[dict[str, str], ...] = ()  # what builders must import: Registry.zoo_plugins
    sources: tuple[str, ...] = ()  # all plugins, as they were named
    fork: bool = hasattr(os, "fork")


class PerVictim(Generic[Made]):
    """What is made once of a victim (or twin), and shared by all its cells."""

    def __init__(self, make: Callable[[Stored], Made]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: OrderedDict[str, Made] = OrderedDict()

    def of(self, victim: Stored) -> Made:
        """What was made of a victim or twin; raises what making it raises."""
        with self._lock:
            if victim.hash not in self._made:
                self._made[victim.hash] = self._make(victim)
                while len(self._made) > _VICTIMS_IN_MEMORY:
                    self._made.popitem(last=False)
            self._made.move_to_end(victim.hash)
            return self._made[victim.hash]


class Harness:
    """Runs cells; use as a context manager, so that the fork server ends with it.

    Args:
        settings: of the run.
        launcher: what runs the children; default: a fork server of this process.
    """

    def __init__(self, settings: Settings, launcher: Runner | None = None) -> None:
        self.settings = settings
        library, root = settings.library, settings.root
        self._judges = PerVictim(lambda v: judge_of(v, library.load(v.meta["dataset"])))
        self._training_sets = PerVictim(lambda v: training_set_of(v, root, library))
        self._sieges = PerVictim(self._besiege)
        self._weights = PerVictim(Stored.checked_weights)  # hashed once, not for every cell
        self._base_sets, self._assets = BaseSets(root), AssetStore(root)
        self._base_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._launcher = launcher or Launcher("bench.child:run_cell", fork=settings.fork)

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the children that still run; their cells leave no record."""
        self._launcher.close()

    def todo(self, cells: Sequence[PlannedCell]) -> tuple[list[PlannedCell], list[Record]]:
        """Cells that must run, and the records of those that need not."""
        missing, fresh = [], []
        for planned in cells:
            record = existing(self.settings.root, planned)
            again = record is not None and record.status in FAILED and self.settings.retry_failed
            if record is None or again:
                missing.append(planned)
            else:
                fresh.append(self._claimed(record, planned))
        return missing, fresh

    def _claimed(self, record: Record, planned: PlannedCell) -> Record:
        """The record, put on the board (under its proper name) if only a sweep knew it so far."""
        if not record.cell.swept or planned.cell.swept:
            return record
        record = dataclasses.replace(record, cell=planned.cell)
        self._write(record, planned)
        return record

    def run(self, cells: Sequence[PlannedCell], watcher: Watcher) -> Iterator[Record]:
        """Runs cells and yields their records as they are written."""
        if self.settings.executor == "dask":
            from bench.distribution import run_cells  # needs the extra `dask`

            yield from run_cells(self, cells, watcher)
            return

        def one(planned: PlannedCell) -> Record:
            with watcher.task(planned.label) as done:
                try:
                    record = self.run_cell(planned)
                except ClosedError:
                    done("interrupted", "")
                    raise
                done(record.status, summary_of(record))
            return record

        yield from run_all(one, cells, self.settings.executor, self.settings.jobs)

    def killed(self, planned: PlannedCell, started: str, message: str) -> Record:
        """Records a cell that has taken down whatever was to run it."""
        error = {"type": "killed", "message": message, "traceback": ""}
        return self._record(planned, started, "killed", {"error": error})

    def run_cell(self, planned: PlannedCell) -> Record:
        """Runs one cell and writes its record.

        Raises:
            UserError: the disk is full, or stored weights are damaged.
            ClosedError: the run has been stopped; there is no record.
        """
        started = now()
        if isinstance(planned.entry, Broken):
            broken = planned.entry
            error = {"type": broken.error_type, "message": broken.message, "traceback": ""}
            return self._record(planned, started, "import-error", {"error": error})
        if planned.not_applicable:
            reason = {"type": "", "message": planned.not_applicable, "traceback": ""}
            return self._record(planned, started, "not-applicable", {"error": reason})
        scratch = Path(tempfile.mkdtemp(prefix="cell-"))
        try:
            work = scratch / "work"
            log = scratch / "log.txt"
            result, after = self._judged(planned, work, self._run_defense(planned, work, log))
            tail, picture = read_tail(log, LOG_TAIL), contact_strip(work / "triggers.safetensors")
            return self._record(planned, started, result["status"], result, after, tail, picture)
        except OSError as error:
            raise UserError(
                f"{error}. Is the disk full? Nothing recorded is lost; run again"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _judged(
        self, planned: PlannedCell, work: Path, result: dict[str, Any]
    ) -> tuple[dict[str, Any], MetricsDict | None]:
        """The child's account with robust accuracy, and the metrics of what it has left."""
        after: MetricsDict | None = None
        try:
            if result["status"] in EVALUATED:
                specs = specs_of(result, planned.victim.spec, planned.cell.needs)
                candidates = [
                    self._evaluate(planned, work / f"repaired-{n}.safetensors", spec)
                    for n, spec in enumerate(specs)
                ]
                after = oracle_choice(candidates, cast(MetricsDict, planned.victim.meta["metrics"]))
            return {**result, "robust": self._robustness(planned, work, result)}, after
        except HandbackError as error:
            result = failed(error)
            return {**result, "robust": self._robustness(planned, work, result)}, None

    def _run_defense(self, planned: PlannedCell, work: Path, log: Path) -> dict[str, Any]:
        """Runs the defense, on its base set where it has one."""
        try:
            self._weights.of(planned.victim)
            data = None if planned.base else self._data(planned)
        except UserError as error:  # damaged; what it was trained on cannot be made again
            return failed(error)
        if planned.base is None:
            return self._run_child(planned, self._job(planned), data, work, log)
        meta = self._base_set(planned, planned.base, work, log)
        if "key" not in meta:
            return meta  # the account of a builder that failed
        images = self._base_sets.images(planned.base)
        result = self._run_child(planned, self._job(planned), images, work, log)
        touched = {**result.get("data_touched", {}), "base_set": base_sets.summary(meta)}
        cost = base_sets.together(result.get("cost"), meta["cost"])
        return {**result, "data_touched": touched, "cost": cost}

    def _base_set(
        self, planned: PlannedCell, base: PlannedBase, work: Path, log: Path
    ) -> dict[str, Any]:
        """The metadata of a base set, made now if need be; else the result of its failed child."""
        with self._base_locks[base.key]:
            if (meta := self._base_sets.find(base)) is not None:
                return meta
            data, spec = planned.budget.file if base.clean else None, planned.victim.spec
            result = self._run_child(planned, self._base_job(planned, base), data, work, log)
            if result["status"] == "ok":
                try:
                    made = base_sets.load(
                        work / base_sets.IMAGES, spec.image_shape, spec.num_classes
                    )
                except UserError as wrong:
                    result = failed(wrong)
                else:
                    return self._base_sets.save(base, made, result)
            error = result["error"]
            message = f"base set {base.entry.builder.name}: {error['message']}"
            return {**result, "error": {**error, "message": message}, "cost": None}

    def _base_job(self, planned: PlannedCell, base: PlannedBase) -> dict[str, Any]:
        """What a child is told that makes a base set."""
        return {
            **self._job(planned),
            "reference": base.entry.reference.to_dict(),
            "params": base.params,
            "needs": "labels" if base.clean else "nothing",
            "data": base.clean,
            "prior": None if base.prior is None else base.prior.spec.to_dict(),
            "seed": base.seed,
        }

    def _run_child(
        self,
        planned: PlannedCell,
        job: dict[str, Any],
        data: Path | dict[str, Tensor] | None,
        work: Path,
        log: Path,
    ) -> dict[str, Any]:
        """Runs a job in a child; once more where the server, not the cell, was lost."""
        limits = self.settings.profile.limits
        on_gpu = self.settings.device.startswith("cuda")
        for _ in range(2):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            # Copies, under neutral names: a defense that writes to them harms nobody else.
            shutil.copyfile(planned.victim.weights_path, work / "model.safetensors")
            if isinstance(data, Path):
                shutil.copyfile(data, work / "data.safetensors")
            elif data is not None:
                save_tensors(data, work / "data.safetensors")
            if job.get("prior") is not None:
                assert planned.base is not None
                assert planned.base.prior is not None
                prior = self._assets.path_of(planned.base.prior)
                shutil.copyfile(prior, work / "prior.safetensors")
            ended = self._launcher.run(
                job,
                cwd=work,
                log=log,
                seconds=limits.seconds,
                memory=0 if on_gpu else int(limits.memory_gib * 2**30),
            )
            if not ended.lost:
                break
        return read_result(work / "result.json", ended, limits.seconds)

    def _data(self, planned: PlannedCell) -> Path | dict[str, Tensor] | None:
        """What the defense is given beside the weights: a file, tensors, or nothing."""
        if planned.cell.needs == "poisoned-train":
            images, labels = self._training_sets.of(planned.victim)
            return {"images": images, "labels": labels}
        return None if planned.cell.needs == "nothing" else planned.budget.file

    def _job(self, planned: PlannedCell) -> dict[str, Any]:
        """All that a child is told; the target class only where an oracle asks for it."""
        assert not isinstance(planned.entry, Broken)
        told = {"target": planned.cell.target} if planned.cell.needs == "target" else {}
        return {
            **told,
            "reference": planned.entry.reference.to_dict(),
            "params": split_params(planned.cell.params)[0],
            "needs": planned.entry.defense.needs,
            "data": planned.base is not None or planned.budget.images > 0,
            "spec": planned.victim.spec.to_dict(),
            "augmentation": dataclasses.asdict(facts_of(planned.cell.dataset).augmentation),
            "seed": planned.seed,
            "device": self.settings.device,
            "threads": 1,
        }

    def _evaluate(self, planned: PlannedCell, weights: Path, spec: ArchSpec) -> MetricsDict:
        """Attacks the repaired model; one thread, so that results do not depend on slots."""
        torch.set_num_threads(1)
        return evaluate(self._load(weights, spec), self._judges.of(planned.victim))

    def _load(self, weights: Path, spec: ArchSpec) -> Classifier:
        """What a child has left, on the device."""
        return load_model(weights, spec).to(self.settings.device)

    def _robustness(
        self, planned: PlannedCell, work: Path, result: dict[str, Any]
    ) -> Robustness | None:
        """Robust accuracy before and after, where the defense is measured by it."""
        if not planned.cell.panel or result["status"] == "not-applicable":
            return None
        torch.set_num_threads(1)
        siege = self._sieges.of(planned.victim)
        if result["status"] not in EVALUATED:
            return siege.robustness(None)
        spec = specs_of(result, planned.victim.spec, planned.cell.needs)[0]
        return siege.robustness(self._load(work / "repaired-0.safetensors", spec))

    def _besiege(self, victim: Stored) -> Siege:
        """The images of a victim that are attacked, and its own robust accuracy."""
        profile, device = self.settings.profile, self.settings.device
        return siege_of(victim, self._judges.of(victim), profile.evasion, device)

    def _record(
        self,
        planned: PlannedCell,
        started: str,
        status: str,
        result: dict[str, Any],
        after: MetricsDict | None = None,
        log_tail: str = "",
        picture: bytes = b"",
    ) -> Record:
        """Puts a record together and writes it."""
        meta = planned.victim.meta
        before = cast(MetricsDict, meta["metrics"])
        is_twin = planned.cell.attack == "none"
        twin = before if is_twin else cast(MetricsDict, meta["twin_metrics"])
        judged = after is not None and not is_twin
        cost = result.get("cost")
        record = Record(
            key=planned.key,
            status=cast(Status, status),
            cell=planned.cell,
            inputs=planned.inputs,
            before=metrics_of(before),
            after=metrics_of(after),
            twin=metrics_of(twin),
            score=score(after, twin) if after is not None and judged else None,
            der=der(before, after) if after is not None and judged else None,
            cost=None if cost is None else Cost(**cost),
            data_touched={
                "budget_sha256": planned.budget.sha256,
                "budget_images": planned.budget.images,
                **result.get("data_touched", {}),
            },
            curve=result.get("curve", []),
            finding=result.get("finding"),
            robust=result.get("robust"),
            env={
                **environment(self.settings.device),
                "limits": self.settings.profile.limits.model_dump(),
                "sources": planned.sources,
            },
            git=git_state(),
            error=result.get("error"),
            started=started,
            ended=now(),
        )
        self._write(record, planned, log_tail, picture)
        return record

    def _write(
        self, record: Record, planned: PlannedCell, log_tail: str = "", picture: bytes = b""
    ) -> None:
        try:
            write(self.settings.root, record, log_tail, picture)
        except OSError as error:
            raise UserError(
                f"cannot write the record of {planned.label}: {error}. Free some space and run "
                "again; what is recorded stays"
            ) from error


class Watcher:
    """Told when a task begins and how it ends; the silent one, progress displays derive from it."""

    @contextlib.contextmanager
    def task(self, label: str, share: Callable[[], float | None] | None = None) -> Iterator[Any]:
        """Surrounds one task; yields ``done(status, text)``. ``share``: how much of it is done."""
        del label, share
        yield lambda status, text: None


def oracle_choice(candidates: Sequence[MetricsDict], before: MetricsDict) -> MetricsDict:
    """The published rule for choosing on test data: the lowest ASR within 10 % of the accuracy.

    All but some oracles have a single candidate. Where none keeps 90 % of the victim's accuracy,
    the most accurate one is taken; on a clean twin, which has no ASR, too.
    """
    kept = [c for c in candidates if c["acc"] >= ORACLE_KEEPS * before["acc"]]
    if not kept or not before["strengths"]:
        return max(candidates, key=lambda c: c["acc"])
    return min(kept, key=lambda c: (c["strengths"]["x1"]["asr"], -c["acc"]))


def metrics_of(payload: MetricsDict | None) -> Metrics | None:
    """From the evaluation's form to the record's."""
    return metrics_from_dict(cast("dict[str, Any] | None", payload))


def summary_of(record: Record) -> str:
    """A few words on how a cell ended."""
    if record.after is None:
        lines = str((record.error or {}).get("message", "")).splitlines() or [""]
        return "".join(c if c.isprintable() else "\ufffd" for c in lines[0])[:100]
    parts = [f"ACC {100 * record.after.acc:.1f}"]
    if record.after.asr is not None:
        parts.append(f"ASR {100 * record.after.asr:.1f}")
    if record.score is not None:
        parts.append(f"score {record.score:.1f}")
    return "  ".join(parts)


def now() -> str:
    """UTC, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
