"""Where numbers come from: versions, hardware and the state of the source tree."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from zoo.errors import UserError


@functools.cache
def environment(device: str) -> dict[str, Any]:
    """Versions and hardware, for the record; no host name, no path."""
    import torch

    from zoo.train import has_fast_bfloat16

    kind = device.partition(":")[0]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "os": platform.system(),
        "cpu": cpu_name(),
        "cores": cores(),
        "device": kind,
        "gpu": torch.cuda.get_device_name() if kind == "cuda" else None,
        "precision": "bfloat16" if has_fast_bfloat16(kind) else "float32",
    }


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit of the source tree and whether it has been changed since; empty outside git."""
    here = Path(__file__).resolve().parent.parent
    sha = _git(here, "rev-parse", "HEAD")
    if not sha:
        return {}
    return {"sha": sha, "dirty": bool(_git(here, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def cpu_name() -> str:
    """The processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use; a batch system or ``taskset`` may grant only some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_device() -> str:
    """``cuda`` where there is one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> str:
    """The device itself; raises a UserError for one that torch does not have."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device}: {reason}. See: bench doctor") from error
    return device
