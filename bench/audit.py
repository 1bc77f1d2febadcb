"""Which files a piece of code writes, and whom it calls: Python's audit events, for `bench check`.

It sees what goes through Python. A plugin that means harm gets around it: this is for accidents.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CALLS: Final = ("socket.connect", "socket.getaddrinfo", "urllib.Request", "subprocess.Popen")
_CHANGES: Final = ("os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "os.mkdir", "os.symlink")
_listening: list[list[str]] = []
_installed: list[bool] = []


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collects, in words, what is written outside the temporary folder and what is called."""
    if not _installed:  # once: such a hook stays for the life of the process
        sys.addaudithook(_hook)
        _installed.append(True)
    seen: list[str] = []
    _listening.append(seen)
    try:
        yield seen
    finally:
        _listening.remove(seen)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _listening:
        return
    if event in _CALLS:
        _listening[-1].append(f"{event} {arguments[:2]}"[:200])
    elif event == "open" and arguments[2] & _WRITING and _is_elsewhere(arguments[0]):
        _listening[-1].append(f"writes {arguments[0]}")
    elif event in _CHANGES and _is_elsewhere(arguments[0]):
        _listening[-1].append(f"{event} {arguments[0]}")


def _is_elsewhere(path: object) -> bool:
    """Whether a path is none of the places that may be written to."""
    if not isinstance(path, str | bytes | os.PathLike):
        return False  # a file that is open already
    full = Path(os.path.realpath(os.fsdecode(path)))
    allowed = (os.path.realpath(tempfile.gettempdir()), "/dev", "/proc")
    return "__pycache__" not in full.parts and not any(map(full.is_relative_to, allowed))
