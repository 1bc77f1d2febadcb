"""What runs on a dask worker: a cell that it is named, or a job that it is sent with its files.

Workers get references and plain values, never objects of ours. Nothing here imports torch before a
worker has something to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zoo.errors import UserError
from zoo.files import file_digest, read_tail

if TYPE_CHECKING:
    from bench.harness import Harness, Settings
    from bench.launcher import Launcher
    from bench.plan import PlannedCell

_LOOK_SECONDS: Final = 1.0  # between two looks whether a task is still wanted
_LARGEST: Final = 2**30  # bytes of a file that a child has left; a VGG-16 has 60,000,000
_LOG: Final = 64_000  # letters of a log; the driver keeps no more
_PACKAGES: Final = ("attacks", "bench", "defenses", "zoo")


@functools.cache
def code_identity() -> tuple[str, str]:
    """Our version, and a hash of our source files as they were when this process first asked."""
    sources = hashlib.sha256()
    base = Path(__file__).resolve().parent.parent
    for package in _PACKAGES:
        for path in sorted((base / package).rglob("*.py")):
            sources.update(f"{path.relative_to(base).as_posix()}\0{file_digest(path)}\n".encode())
    return version("unbackdoor"), sources.hexdigest()


def greet(told: dict[str, Any]) -> dict[str, Any]:
    """What a worker is and sees: its code, whether the root is the driver's, what it lacks.

    Args:
        told: see :func:`told_of`.
    """
    return {"code": code_identity(), "shared": _sees(told), "lacks": _lacks(told)}


def _sees(told: dict[str, Any]) -> bool:
    """Whether the root at the driver's path is the driver's root."""
    try:
        return bool(Path(told["probe"]).read_text(encoding="utf-8") == told["run"])
    except OSError:
        return False


def _lacks(told: dict[str, Any]) -> list[str]:
    """Paths of data and plugins that are not here, or have other content."""
    folders = [path for path in (told["data"], *told["folders"].values()) if path]
    missing = [path for path in folders if not Path(path).is_dir()]
    for path, sha in told["plugin_files"].items():
        if not Path(path).is_file() or file_digest(Path(path)) != sha:
            missing.append(path)
    return missing


def told_of(settings: Settings, run: str, probe: Path, *, twins: bool) -> dict[str, Any]:
    """A run's settings as plain values, from which a worker makes the same plan.

    Args:
        settings: the driver's.
        run: a name of this run that no other has.
        probe: a file under the root that holds that name.
        twins: whether the plan has cells on clean twins.
    """
    library = settings.library
    sources = [str(Path(s).resolve()) if Path(s).is_file() else s for s in settings.sources]
    files = [Path(source) for source in sources if Path(source).is_file()]
    return {
        "run": run,
        "probe": str(probe.resolve()),
        "root": str(settings.root.resolve()),
        "profile": settings.profile.model_dump(mode="json"),
        "data": str(library.data.resolve()) if library.data else None,
        "cache": str(library.cache.resolve()),
        "download": library.download,
        "folders": {name: str(path.resolve()) for name, path in library.folders.items()},
        "device": settings.device,
        "plugins": sources,
        "plugin_files": {str(path): file_digest(path) for path in files},
        "code": code_identity(),
        "twins": twins,
    }


@dataclass
class _Plan:
    """One run's cells by key, and what runs them in this process."""

    harness: Harness
    cells: dict[str, PlannedCell]
    active: int = 0


@dataclass
class _Process:
    """What a worker process keeps from one task to the next."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    plans: dict[str, _Plan] = field(default_factory=dict)
    launchers: dict[str, dict[str, Launcher]] = field(default_factory=dict)
    halted: set[str] = field(default_factory=set)


_process: Final = _Process()


def run_cell(told: dict[str, Any], key: str, cell: dict[str, Any]) -> str:
    """Runs one cell and writes its record; returns the record's text.

    Args:
        told: see :func:`told_of`.
        key: the cell's.
        cell: the record's ``cell``; the driver knows whether a sweep alone has asked for it.

    Raises:
        UserError: this worker cannot run the driver's cells.
    """
    from bench.records import Cell, text_of

    with _planned(told) as plan, _unless_orphaned(told["run"]):
        planned = plan.cells.get(key)
        if planned is None:
            raise UserError(
                f"a worker plans other cells than the driver: it has none with the key {key[:12]}. "
                "Do both have the same data and packages? Restart the workers and run again"
            )
        record = plan.harness.run_cell(dataclasses.replace(planned, cell=Cell(**cell)))
    return text_of(record)


@contextlib.contextmanager
def _planned(told: dict[str, Any]) -> Iterator[_Plan]:
    """The run's plan, made by whichever task comes first."""
    with _process.lock:
        _refuse_halted(told["run"])
        if told["run"] not in _process.plans:
            for name in [name for name, plan in _process.plans.items() if not plan.active]:
                _process.plans.pop(name).harness.close()  # its driver has probably been killed
            _process.plans[told["run"]] = _make_plan(told)
        plan = _process.plans[told["run"]]
        plan.active += 1
    try:
        yield plan
    finally:
        with _process.lock:
            plan.active -= 1


def _make_plan(told: dict[str, Any]) -> _Plan:
    """Plans as the driver has done."""
    from bench.codehash import code_hash
    from bench.config import Profile
    from bench.environment import check_device
    from bench.harness import Harness, Settings
    from bench.plan import plan_cells
    from bench.registry import Registry
    from zoo.data import Library

    if tuple(told["code"]) != code_identity() or not _sees(told) or _lacks(told):
        raise UserError(
            "a worker that joined later has other code, or does not see the driver's files. "
            "Stop it, or start it as the others, and run again"
        )
    code_hash.cache_clear()  # a plugin may have been edited since an earlier run
    registry = Registry.with_plugins(told["plugins"])
    settings = Settings(
        root=Path(told["root"]),
        profile=Profile.model_validate(told["profile"]),
        library=Library(
            data=Path(told["data"]) if told["data"] else None,
            cache=Path(told["cache"]),
            download=told["download"],
            folders={name: Path(path) for name, path in told["folders"].items()},
        ),
        device=check_device(told["device"]),
        jobs=1,
        executor="serial",
        sources=tuple(told["plugins"]),
        plugins=tuple(registry.zoo_plugins()),
    )
    cells, _ = plan_cells(
        settings.profile, registry, settings.root, settings.library, twins=told["twins"]
    )
    return _Plan(Harness(settings), {planned.key: planned for planned in cells})


def run_job(
    run: str,
    target: str,
    job: dict[str, Any],
    files: dict[str, bytes],
    sources: dict[str, bytes],
    seconds: float,
    memory: int,
) -> dict[str, Any]:
    """Runs one job in a child of this worker; see :class:`bench.launcher.Launcher`.

    Args:
        run: the run that it belongs to.
        target: ``module:function``.
        job: what the child is told.
        files: what is in its folder.
        sources: the plugin file that the job refers to, and what that imports from its folder.
        seconds: wall-clock limit.
        memory: memory limit in bytes.

    Returns:
        How it ended, its log, and the files that it left.
    """
    scratch = Path(tempfile.mkdtemp(prefix="job-"))
    try:
        work, log = scratch / "work", scratch / "log.txt"
        _unpack(files, work)
        if sources:
            _unpack(sources, scratch / "plugin")
            name = Path(job["reference"]["file"]).name
            job = {**job, "reference": {**job["reference"], "file": str(scratch / "plugin" / name)}}
        with _unless_orphaned(run):
            ended = _launcher(run, target).run(
                job, cwd=work, log=log, seconds=seconds, memory=memory
            )
        # No link is followed: a defense could send a file of this machine to the driver.
        plain = (path for path in work.iterdir() if path.is_file() and not path.is_symlink())
        left = [p for p in plain if p.name not in files and p.stat().st_size <= _LARGEST]
        return {
            "exit": dataclasses.asdict(ended),
            "log": read_tail(log, _LOG).encode(),
            "files": {path.name: path.read_bytes() for path in left},
        }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unpack(files: dict[str, bytes], folder: Path) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _launcher(run: str, target: str) -> Launcher:
    """The warm server of a run in this process; those of other targets stay for their runs."""
    from bench.launcher import Launcher

    with _process.lock:
        _refuse_halted(run)
        launchers = _process.launchers.setdefault(run, {})
        if target not in launchers:
            launchers[target] = Launcher(target)
        return launchers[target]


@contextlib.contextmanager
def _unless_orphaned(run: str) -> Iterator[None]:
    """Ends the run in this process when nobody waits for the task any more: its driver is gone."""
    from distributed import get_worker

    worker, done = get_worker(), threading.Event()
    name = worker.get_current_task()

    def look() -> None:
        while not done.wait(_LOOK_SECONDS):
            task = worker.state.tasks.get(name)
            if task is None or task.state == "cancelled":
                _end(run)
                return

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _refuse_halted(run: str) -> None:
    if run in _process.halted:
        raise UserError("this run has been stopped")


def halt(run: str) -> None:
    """Ends what a run still has in this process: its children are killed and leave no record."""
    # In a thread of its own: it may wait for seconds, and a worker is called in its event loop.
    threading.Thread(target=_end, args=(run,), daemon=True).start()


def _end(run: str) -> None:
    with _process.lock:
        _process.halted.add(run)
        plan = _process.plans.pop(run, None)
        launchers = _process.launchers.pop(run, {})
    if plan is not None:
        plan.harness.close()
    for launcher in launchers.values():
        launcher.close()
