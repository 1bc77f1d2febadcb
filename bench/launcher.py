"""The parent's side of :mod:`bench.forkserver`: start it, hand it jobs, wait, kill what hangs."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from bench.forkserver import kill_child

# What a child may know of the parent's environment.
_PASSED: Final = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "VIRTUAL_ENV"),
    *("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME"),
)
_GRACE_SECONDS: Final = 2.0  # between SIGTERM and SIGKILL
_CLOSE_SECONDS: Final = 5.0  # for what runs to be killed
_START_SECONDS: Final = 900.0  # for a server to import torch, on the slowest of machines

# What a server tells of a child; None where the server is gone, _STOP where the launcher is closed.
_Events = queue.Queue[dict[str, Any] | None]
_STOP: Final[dict[str, Any]] = {"stop": True}


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a child ended."""

    rc: int
    timed_out: bool
    lost: bool = False  # the server went away: nothing is known about the job itself
    note: str = ""  # how it ended, where the exit code does not tell


class ClosedError(Exception):
    """The work has been stopped: what is under way leaves nothing."""


class Runner(Protocol):
    """Runs jobs somewhere: in children of this process, or of a worker elsewhere."""

    def run(
        self, job: dict[str, Any], *, cwd: Path, log: Path, seconds: float, memory: int
    ) -> Exit:
        """Runs one job and waits for it; see :meth:`Launcher.run`."""

    def close(self) -> None:
        """Ends everything that still runs."""


class Launcher:
    """Runs jobs in children of a warm server (or in fresh interpreters); thread-safe.

    All launchers of a process share one server per target: whoever comes later finds it warm.

    Args:
        target: ``module:function``, called with the job in the child.
        fork: False starts a fresh interpreter for every job.
    """

    def __init__(self, target: str, fork: bool = hasattr(os, "fork")) -> None:
        self._target = target
        self._fork = fork
        self._idle = threading.Condition()  # guards the two below
        self._waiting: set[_Events] = set()
        self._closed = False

    def run(
        self, job: dict[str, Any], *, cwd: Path, log: Path, seconds: float, memory: int
    ) -> Exit:
        """Runs one job and waits for it.

        Args:
            job: JSON values.
            cwd: working directory of the child.
            log: file that gets its output.
            seconds: wall-clock limit.
            memory: limit on private memory in bytes beyond the warm interpreter's; 0 for none.

        Raises:
            ClosedError: this launcher has been closed, before or while the job ran.
        """
        message = {"job": job, "cwd": str(cwd), "log": str(log), "memory": memory}
        if not self._fork:
            return _run_fresh(self._target, message, seconds)
        events: _Events = queue.Queue()
        with self._idle:
            if self._closed:  # a slot that has not heard of the end must start nothing new
                raise ClosedError
            self._waiting.add(events)
        try:
            ended = _server_of(self._target).run(message, seconds, events)
        finally:
            with self._idle:
                self._waiting.discard(events)
                self._idle.notify_all()
        if ended.lost and self._closed:
            raise ClosedError
        return ended

    def close(self) -> None:
        """Ends every child this launcher still has; whatever is run later is refused."""
        with self._idle:
            self._closed = True
            for events in self._waiting:
                events.put(_STOP)
            self._idle.wait_for(lambda: not self._waiting, _CLOSE_SECONDS)


class _Server:
    """The parent's side of one server process."""

    def __init__(self, target: str, environment: dict[str, str]) -> None:
        self.environment = environment
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.forkserver", target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=os.path.abspath(os.sep),
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self._events: dict[int, _Events] = {}
        self._running: dict[int, int] = {}  # process ids
        self._lock = threading.Lock()
        self._next = 0
        self.alive = True
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def idle(self) -> bool:
        """Whether nobody waits for a child of this server."""
        return not self._events

    def run(self, message: dict[str, Any], seconds: float, events: _Events) -> Exit:
        """Runs one job; a child that nobody waits for any more, for whatever reason, is killed."""
        with self._lock:
            number = self._next
            self._next += 1
            self._events[number] = events
            try:
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps({"id": number, **message}) + "\n")
            except (OSError, ValueError):  # it died (_listen tells the waiting calls), or is closed
                self.alive = False
                del self._events[number]
                return Exit(rc=-1, timed_out=False, lost=True)
        try:
            return _await(events, seconds)
        finally:
            with self._lock:
                del self._events[number]
                pid = self._running.get(number)
            if pid is not None and self.alive:
                kill_child(pid)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()  # the server ends its children, then itself
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            number = event["id"]
            with self._lock:
                if "pid" in event:
                    self._running[number] = event["pid"]
                    if number not in self._events:  # its launcher was closed in the meantime
                        kill_child(event["pid"])
                else:
                    self._running.pop(number, None)
                if (events := self._events.get(number)) is not None:
                    events.put(event)
        self.alive = False
        with self._lock:
            for events in self._events.values():
                events.put(None)


_servers: dict[str, _Server] = {}  # by target
_servers_lock: Final = threading.Lock()


def _server_of(target: str) -> _Server:
    """The warm server of a target; a new one where there is none, or none of this environment."""
    environment = clean_environment()
    with _servers_lock:
        server = _servers.get(target)
        if server is not None and server.alive and server.environment == environment:
            return server
        if server is not None and (server.idle or not server.alive):
            server.close()  # a busy one of another environment ends with this process
        _servers[target] = _Server(target, environment)
        return _servers[target]


@atexit.register
def _close_servers() -> None:
    with _servers_lock:
        while _servers:
            _servers.popitem()[1].close()


def _await(events: _Events, seconds: float) -> Exit:
    """Waits for a child's end; kills its process group when the time is up.

    The time begins with the child: that a server needs a minute to start is no fault of a job's.
    """
    deadline = time.monotonic() + _START_SECONDS
    pid: int | None = None
    stage = 0  # how many signals it has got
    while True:
        try:
            event = events.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            if pid is None:
                return Exit(rc=-1, timed_out=False, lost=True)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGTERM if stage == 0 else signal.SIGKILL)
            stage += 1
            deadline = time.monotonic() + _GRACE_SECONDS
            continue
        if event is None:
            return Exit(rc=-1, timed_out=False, lost=True)
        if event is _STOP:
            raise ClosedError
        if "pid" in event:
            pid = event["pid"]
            deadline = time.monotonic() + seconds
        else:
            return Exit(rc=event["rc"], timed_out=stage > 0)


def _run_fresh(target: str, message: dict[str, Any], seconds: float) -> Exit:
    """One job in a fresh interpreter."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.forkserver", target, "--once"],
        stdin=subprocess.PIPE,
        env=clean_environment(),
        text=True,
        start_new_session=True,
    )
    try:
        process.communicate(json.dumps(message) + "\n", timeout=seconds)
        return Exit(rc=process.returncode, timed_out=False)
    except subprocess.TimeoutExpired:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        return Exit(rc=process.returncode, timed_out=True)


def clean_environment() -> dict[str, str]:
    """The environment of server and children: what a program needs to run, and no path of ours."""
    kept = {name: os.environ[name] for name in _PASSED if name in os.environ}
    # Children are given their threads explicitly; hashing and cuBLAS are made repeatable.
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads starve each other on a busy machine
        "PYTHONHASHSEED": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONUNBUFFERED": "1",
    }
