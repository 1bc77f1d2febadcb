"""Child processes in milliseconds: a warm server has torch imported and forks for every job.

The server is started with a clean environment, an empty working directory and nothing but the
target's modules loaded, so a child inherits no trigger, no target and no image. It never runs a
torch operation itself, which is what makes forking safe. Where there is no ``fork`` (or on request)
every job gets a fresh interpreter instead: slower, otherwise the same.

Messages are lines of JSON: ``{"id", "job", "cwd", "log", "memory"}`` in, ``{"id", "pid"}`` and
``{"id", "rc"}`` out; ``rc`` is negative where a signal ended the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> None:
    """Entry point of the server process."""
    module, _, function = arguments[0].partition(":")
    if arguments[1:] == ["--once"]:
        message = json.loads(sys.stdin.readline())
        _child(message, module, function)
    importlib.import_module(module)
    _serve(module, function)


def _serve(module: str, function: str) -> None:
    """Forks for every line until standard input ends; then kills what is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    commands, replies = os.dup(0), os.dup(1)
    with open(os.devnull, "r+b") as null:
        os.dup2(null.fileno(), 0)
        os.dup2(2, 1)
    children: dict[int, int] = {}  # pid -> id
    buffer = b""
    while True:
        ready, _, _ = select.select([commands, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _reap(children, replies)
        if commands in ready:
            chunk = os.read(commands, 1 << 16)
            if not chunk:
                break
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                message = json.loads(line)
                server = os.getpid()
                pid = os.fork()
                if pid == 0:
                    end_with(server)
                    signal.set_wakeup_fd(-1)
                    for fd in (commands, replies, wake_read, wake_write):
                        os.close(fd)
                    _child(message, module, function)
                children[pid] = message["id"]
                _reply(replies, {"id": message["id"], "pid": pid})
    for pid in children:
        kill_child(pid)


def kill_child(pid: int) -> None:
    """Kills a child and its children."""
    for kill in (os.killpg, os.kill):  # one that was just forked leads no group yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _reap(children: dict[int, int], replies: int) -> None:
    """Reports every child that has ended."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if pid in children:
            code = os.waitstatus_to_exitcode(status)
            _reply(replies, {"id": children.pop(pid), "rc": code})


def _reply(replies: int, event: dict[str, int]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(replies, json.dumps(event).encode() + b"\n")


def _child(message: dict[str, Any], module: str, function: str) -> None:
    """Runs one job in this process and never returns."""
    code = 1
    try:
        if hasattr(os, "setsid"):
            with contextlib.suppress(PermissionError):  # a fresh interpreter leads already
                os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(message["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.chdir(message["cwd"])
        limit_memory(message["memory"])
        getattr(importlib.import_module(module), function)(message["job"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def end_with(parent: int) -> None:
    """Ends this process with its parent, even where that is killed and can end nothing. Linux."""
    if not sys.platform.startswith("linux"):
        return
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it went before it could be said
        os._exit(1)


def limit_memory(extra: int) -> None:
    """Limits private memory to what is in use now plus ``extra`` bytes; 0 sets no limit.

    RLIMIT_DATA counts private writable pages, not the reserved address space that CUDA and large
    libraries need. Linux only.
    """
    if not extra or not sys.platform.startswith("linux"):
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])  # data + stack
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    main(sys.argv[1:])
