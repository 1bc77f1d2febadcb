"""Cells on a dask cluster: by reference where workers see the root, else by their files.

One cell per free slot is handed out at a time. The scheduler gives a cell whose worker died to
another one, up to a number of times; but it blames all cells of that worker, so that a cell that
has lost too many is tried once more at the end, alone. If it kills again, it is recorded as killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import queue
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bench import remote
from bench.base_sets import BaseSets
from bench.cluster import LOST_WORKER, Cluster, RemoteLauncher, connect, result_of
from bench.harness import Harness, Watcher, now, summary_of
from bench.plan import PlannedCell
from bench.records import Record, parse

if TYPE_CHECKING:
    from distributed import Future

_COUNT_AGAIN: Final = 1.0  # seconds for which a number of slots is believed
_PATIENCE: Final = 10.0  # seconds until somebody is told that there is no worker


def run_cells(harness: Harness, cells: Sequence[PlannedCell], watcher: Watcher) -> Iterator[Record]:
    """Runs cells on the cluster of the harness's settings; yields records as they come.

    Raises:
        UserError: see :func:`bench.cluster.connect`; the scheduler went away.
    """
    if not cells:
        return
    settings = harness.settings
    with connect(settings, twins=any(c.cell.attack == "none" for c in cells)) as cluster:
        how = (
            "workers see the root: they evaluate and write records themselves"
            if cluster.shared
            else "workers do not see the root: files travel, this machine evaluates"
        )
        count, slots = len(cluster.workers()), cluster.slots()
        print(f"dask: {count} workers, {slots} slots; {how}", file=sys.stderr, flush=True)
        if cluster.shared:
            yield from _Handout(cluster, harness, cells, watcher).run()
            return
        here = dataclasses.replace(settings, executor="local", jobs=slots)
        with Harness(here, RemoteLauncher(cluster, "bench.child:run_cell")) as evaluator:
            yield from evaluator.run(cells, watcher)


@dataclass(kw_only=True)
class _Running:
    """A cell that has been handed out."""

    planned: PlannedCell
    started: str
    shown: contextlib.ExitStack
    done: Any  # the watcher's, told of status and words
    alone: bool = False  # whether it runs once more, and nothing beside it


class _Handout:
    """Hands cells to workers that see the root, as slots fall free."""

    def __init__(
        self, cluster: Cluster, harness: Harness, cells: Sequence[PlannedCell], watcher: Watcher
    ) -> None:
        self._cluster, self._harness, self._watcher = cluster, harness, watcher
        self._waiting = list(reversed(cells))
        self._running: dict[Future[Any], _Running] = {}
        self._ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._suspects: list[_Running] = []  # have lost their workers; run again, one at a time
        self._slots, self._counted = 0, -math.inf
        self._deserted = False  # whether there is no worker, and that has been said
        self._base_sets = BaseSets(harness.settings.root)
        self._in_the_making: set[str] = set()  # base sets; who needs the same one waits

    def run(self) -> Iterator[Record]:
        """Yields records as cells end."""
        try:
            while self._waiting or self._running or self._suspects:
                self._fill()
                with contextlib.suppress(queue.Empty):
                    record = self._collect(self._ended.get(timeout=_PATIENCE))
                    if record is not None:
                        yield record
        finally:  # if somebody has ended the run, there is something left
            for running in (*self._running.values(), *self._suspects):
                running.done("interrupted", "")
                running.shown.close()

    def _fill(self) -> None:
        """Hands out as many cells as there are free slots."""
        if time.monotonic() - self._counted > _COUNT_AGAIN:
            self._slots, self._counted = self._cluster.slots(), time.monotonic()
        slots = self._slots
        if not slots and not self._deserted:
            text = "dask: no worker is left; waiting for one. Ctrl-C ends, the same command resumes"
            print(text, file=sys.stderr, flush=True)
        self._deserted = not slots
        while len(self._running) < slots and (planned := self._take()) is not None:
            shown = contextlib.ExitStack()
            done = shown.enter_context(self._watcher.task(planned.label))
            self._submit(_Running(planned=planned, started=now(), shown=shown, done=done))
        if slots and not self._running and self._suspects:
            running = self._suspects.pop()
            running.alone = True
            self._submit(running)

    def _submit(self, running: _Running) -> None:
        cell = dataclasses.asdict(running.planned.cell)
        key, told = running.planned.key, self._cluster.told
        future = self._cluster.submit(remote.run_cell, told, key, cell)
        self._running[future] = running
        future.add_done_callback(self._ended.put)

    def _take(self) -> PlannedCell | None:
        """The next cell whose base set nobody is just making."""
        for place in range(len(self._waiting) - 1, -1, -1):
            base = self._waiting[place].base
            if base is None or base.key not in self._in_the_making:
                if base is not None and self._base_sets.find(base) is None:
                    self._in_the_making.add(base.key)
                return self._waiting.pop(place)
        return None

    def _collect(self, future: Future[Any]) -> Record | None:
        """The record of a cell that has ended; None for one that will be tried again."""
        from distributed import KilledWorker

        running = self._running.pop(future)
        planned = running.planned
        if planned.base is not None:
            self._in_the_making.discard(planned.base.key)
        try:
            record = parse(result_of(future).encode())
        except KilledWorker:
            if not running.alone:
                self._suspects.append(running)
                return None
            record = self._harness.killed(planned, running.started, LOST_WORKER)
        except BaseException:
            self._running[future] = running  # to be shown as ended with all others
            raise
        with running.shown:
            running.done(record.status, summary_of(record))
        return record
