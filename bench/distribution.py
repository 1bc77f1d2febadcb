"""Cells on a dask cluster: by reference where workers see the root, else by their files.

One cell per free slot is handed out at a time, so that a worker's death is blamed on no cell that
only waited there. The scheduler gives a cell whose worker died to another one; a cell that kills
four is recorded as killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bench import remote
from bench.base_sets import BaseSets
from bench.cluster import Cluster, RemoteLauncher, connect, lost_worker, result_of
from bench.harness import Harness, Watcher, now, summary_of
from bench.plan import PlannedCell
from bench.records import Record, parse

if TYPE_CHECKING:
    from distributed import Future

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


class _Handout:
    """Hands cells to workers that see the root, as slots fall free."""

    def __init__(
        self, cluster: Cluster, harness: Harness, cells: Sequence[PlannedCell], watcher: Watcher
    ) -> None:
        self._cluster, self._harness, self._watcher = cluster, harness, watcher
        self._waiting = list(reversed(cells))
        self._running: dict[Future[Any], _Running] = {}
        self._ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._base_sets = BaseSets(harness.settings.root)
        self._in_the_making: set[str] = set()  # base sets; who needs the same one waits

    def run(self) -> Iterator[Record]:
        """Yields records as cells end."""
        try:
            while self._waiting or self._running:
                self._fill(self._cluster.slots())
                with contextlib.suppress(queue.Empty):
                    yield self._collect(self._ended.get(timeout=_PATIENCE))
        finally:
            for running in self._running.values():
                running.shown.close()

    def _fill(self, slots: int) -> None:
        """Hands out as many cells as there are free slots."""
        if not slots:
            text = "dask: no worker is left; waiting for one. Ctrl-C ends, the same command resumes"
            print(text, file=sys.stderr, flush=True)
        while len(self._running) < slots and (planned := self._take()) is not None:
            shown = contextlib.ExitStack()
            done = shown.enter_context(self._watcher.task(planned.label))
            cell = dataclasses.asdict(planned.cell)
            future = self._cluster.submit(remote.run_cell, self._cluster.told, planned.key, cell)
            self._running[future] = _Running(planned=planned, started=now(), shown=shown, done=done)
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

    def _collect(self, future: Future[Any]) -> Record:
        """The record of a cell that has ended."""
        from distributed import KilledWorker

        running = self._running.pop(future)
        planned = running.planned
        if planned.base is not None:
            self._in_the_making.discard(planned.base.key)
        with running.shown:
            try:
                record = parse(result_of(future).encode())
            except KilledWorker as error:
                record = self._harness.killed(planned, running.started, lost_worker(error))
            running.done(record.status, summary_of(record))
        return record
