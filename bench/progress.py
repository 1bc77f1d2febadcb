"""Progress on standard error: live on a terminal, one plain line a task elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.harness import Watcher

Share = Callable[[], float | None] | None  # how much of a task is done, where that is known
GOOD: Final = ("ok", "not-applicable", "not-detected")


class Progress(Watcher):
    """Counts tasks, shows which ones run, and says when all will be done.

    Args:
        title: what is being done.
        total: number of tasks.
        jobs: how many run at a time, for the estimate.
        live: draw on a terminal; default: when standard error is one and CI is not set.
    """

    def __init__(self, title: str, total: int, jobs: int, live: bool | None = None) -> None:
        self._title, self._total, self._jobs = title, total, max(1, jobs)
        self._console = Console(stderr=True, highlight=False)
        wanted = self._console.is_terminal and not os.environ.get("CI")
        self._live = (
            Live(console=self._console, refresh_per_second=4)
            if live or (live is None and wanted)
            else None
        )
        self._lock = threading.Lock()
        self._running: dict[int, tuple[str, float, Share]] = {}
        self._next = self._done = self._failed = self._stopped = 0
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.__enter__()
            self._live.update(self)
        elif self._total:
            print(f"{self._title}: {self._total} to do", file=sys.stderr, flush=True)
        return self

    def __exit__(self, *details: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)
        if self._done or self._stopped:
            text = f"{self._title}: {self._done} done in {duration(self._elapsed())}"
            counts = {"failed": self._failed, "interrupted": self._stopped}
            more = [f", {count} {what}" for what, count in counts.items() if count]
            print(text + "".join(more), file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def task(self, label: str, share: Share = None) -> Iterator[Callable[[str, str], None]]:
        """Surrounds one task; the yielded function takes its status and a few words."""
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._running[number] = (label, time.monotonic(), share)
        outcome = ["error", ""]

        def done(status: str, text: str) -> None:
            outcome[:] = [status, text]

        try:
            yield done
        finally:
            self._finish(number, label, *outcome)

    def _finish(self, number: int, label: str, status: str, text: str) -> None:
        with self._lock:
            seconds = time.monotonic() - self._running.pop(number)[1]
            what = f"{label}: {status}, {duration(seconds)}  {text}".rstrip()
            if status == "interrupted":  # neither done nor failed: the next run does it
                self._stopped += 1
                return
            self._done += 1
            bad = status not in GOOD
            self._failed += bad
            line = f"[{self._done}/{self._total}] {what}"
            if self._live is None:
                print(f"{line}  (ETA {self.eta()})", file=sys.stderr, flush=True)
            elif bad:
                self._console.print(Text(line, style="red"))

    def eta(self) -> str:
        """How long the rest will take at the pace so far, as a range."""
        left = self._total - self._done
        if left == 0:
            return "now"
        if self._done < self._jobs:
            return "?"
        return " to ".join(map(duration, eta_range(left, self._done, self._elapsed())))

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def __rich__(self) -> Group:
        """What the terminal shows now."""
        with self._lock:
            bar = Table.grid(padding=(0, 1))
            failed = f"{self._failed} failed" if self._failed else ""
            bar.add_row(
                Text(self._title, style="bold"),
                ProgressBar(total=max(1, self._total), completed=self._done, width=30),
                f"{self._done}/{self._total}",
                f"ETA {self.eta()}",
                Text(failed, style="red"),
            )
            lines = [
                Text(f"  {label}  {duration(time.monotonic() - begun)}{_part(share)}", style="dim")
                for label, begun, share in self._running.values()
            ]
            return Group(bar, *lines)


def eta_range(left: int, done: int, elapsed: float) -> tuple[float, float]:
    """Seconds that the rest will take at the pace so far; wide while few are done."""
    pace, spread = elapsed / done, 0.5 / done**0.5
    return left * pace * (1 - spread), left * pace * (1 + spread)


def _part(share: Share) -> str:
    """``  41 %``, or nothing where nobody knows."""
    done = None if share is None else share()
    return "" if done is None else f"  {100 * done:.0f} %"


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
