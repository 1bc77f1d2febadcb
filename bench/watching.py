"""`bench status --watch`: follows a run from another terminal, whatever executes it.

It reads the store and nothing else. The plan is made once, and again only when the zoo has changed;
of the records only new files are read.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bench.app import INTERRUPTED, OK, SOME_FAILED
from bench.harness import Settings
from bench.plan import cells_to_come, plan_cells
from bench.progress import duration, eta_range
from bench.records import FAILED, RecordError, read, scan
from bench.registry import Registry

EVERY: Final = 3.0  # seconds
State = Literal["done", "failed"]


@dataclass(frozen=True, kw_only=True)
class View:
    """How far a run has come."""

    total: dict[str, int]  # cells by defense
    done: dict[str, int]
    failed: dict[str, int]
    new: int  # records that have appeared since the watch began
    seconds: float  # since then

    @property
    def left(self) -> int:
        """Cells without a record."""
        return sum(self.total.values()) - sum(self.done.values()) - sum(self.failed.values())

    @property
    def pace(self) -> str:
        """How fast records appear, and when the last will."""
        if not self.left:
            return "nothing is missing"
        if not self.new:
            return "no new record yet"
        rate = 60 * self.new / max(self.seconds, 1e-3)
        span = " to ".join(map(duration, eta_range(self.left, self.new, self.seconds)))
        return f"{rate:.3g} cells a minute, ETA {span}"

    @property
    def line(self) -> str:
        """All in one line."""
        total, failed = sum(self.total.values()), sum(self.failed.values())
        text = f"{total - self.left}/{total} cells, {failed} failed; {self.pace}"
        open_ones = [
            f"{name} {self.done.get(name, 0) + self.failed.get(name, 0)}/{count}"
            for name, count in self.total.items()
            if self.done.get(name, 0) + self.failed.get(name, 0) < count
        ]
        return f"{text}; {', '.join(open_ones)}" if open_ones else text

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        own = {"total": self.total, "done": self.done, "failed": self.failed}
        eta = eta_range(self.left, self.new, self.seconds) if self.new else None
        return {**own, "left": self.left, "new": self.new, "eta_seconds": eta}

    def table(self) -> Table:
        """What a terminal shows."""
        table = Table(title=f"{sum(self.total.values()) - self.left} done; {self.pace}")
        table.add_column("defense")
        for name in ("done", "failed", "missing"):
            table.add_column(name, justify="right")
        for name, count in self.total.items():
            done, failed = self.done.get(name, 0), self.failed.get(name, 0)
            table.add_row(name, str(done), str(failed), str(count - done - failed))
        return table


class Watch:
    """Reads what is new in a store.

    Args:
        settings: of the run that is watched.
        registry: its defenses.
    """

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings, self._registry = settings, registry
        self._zoo: Mapping[Path, int] | None = None
        self._defense_of: dict[str, str] = {}
        self._to_come: Counter[str] = Counter()  # cells on victims that are not built yet
        self._states: dict[str, State] = {}
        self._stamps: dict[Path, int] = {}  # of records that may be replaced
        self._begun = time.monotonic()
        self._at_first = 0
        self.look()
        self._at_first = len(self._states)

    def look(self) -> View:
        """What the store holds now."""
        zoo = {path: _stamp(path) for path in self._settings.root.glob("zoo/*/*/*/victim.json")}
        if zoo != self._zoo:
            self._zoo = zoo
            self._plan()
        for path in scan(self._settings.root):
            if path.stem in self._defense_of and self._is_new(path):
                try:
                    record = read(path)
                except RecordError:
                    continue  # the run will find that out and write it again
                self._states[path.stem] = "failed" if record.status in FAILED else "done"
        by_state: dict[State, Counter[str]] = {"done": Counter(), "failed": Counter()}
        for key, state in self._states.items():
            by_state[state][self._defense_of[key]] += 1
        return View(
            total=dict(Counter(self._defense_of.values()) + self._to_come),
            done=dict(by_state["done"]),
            failed=dict(by_state["failed"]),
            new=len(self._states) - self._at_first,
            seconds=time.monotonic() - self._begun,
        )

    def _plan(self) -> None:
        """What there is to be done, with the zoo as it is now."""
        s = self._settings
        cells, missing = plan_cells(s.profile, self._registry, s.root, s.library)
        self._defense_of = {planned.key: planned.cell.defense for planned in cells}
        to_come = [name for name, _ in cells_to_come(s.profile, self._registry)]
        self._to_come = Counter(to_come * len(missing))
        self._states = {k: state for k, state in self._states.items() if k in self._defense_of}

    def _is_new(self, path: Path) -> bool:
        """Whether a file has not been read yet; failed cells may be run again."""
        if self._states.get(path.stem) == "done":
            return False
        before, self._stamps[path] = self._stamps.get(path), _stamp(path)
        return before != self._stamps[path]


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # just being replaced
        return 0


def watch(settings: Settings, registry: Registry, json_output: bool) -> int:
    """Shows how a run goes until nothing is missing; the exit code is then that of a run."""
    views = _views(Watch(settings, registry))
    try:
        on_terminal = Console().is_terminal and not json_output
        last = _live(views) if on_terminal else _plain(views, json_output)
    except KeyboardInterrupt:
        print("bench: the run goes on without this watch", file=sys.stderr)
        return INTERRUPTED
    return SOME_FAILED if last.failed else OK


def _views(store: Watch) -> Iterator[View]:
    """Every few seconds what there is, until nothing is missing."""
    while True:
        view = store.look()
        yield view
        if not view.left:
            return
        time.sleep(EVERY)


def _live(views: Iterator[View]) -> View:
    view = next(views)
    with Live(view.table(), auto_refresh=False) as live:
        for view in views:
            live.update(view.table(), refresh=True)
    return view


def _plain(views: Iterator[View], json_output: bool) -> View:
    """A line for every change."""
    shown: tuple[Any, ...] = ()
    for view in views:
        counts = (view.total, view.done, view.failed)
        if counts != shown:
            print(json.dumps(view.to_dict()) if json_output else view.line, flush=True)
            shown = counts
    return view
