"""The command line in processes that need no seconds to import everything, so that many can be killed.

They are forked by the very server that forks jobs.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import bench.verbs
from bench.cli import main


class Drivers:
    """Runs ``bench``, one process at a time; use as a context manager."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        self.server = subprocess.Popen(
            [sys.executable, "-m", "bench.forkserver", "tests.bench.driver:drive"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "CI": "1"},
        )
        return self

    def __exit__(self, *_):
        self.server.stdin.close()  # it ends its children, then itself
        self.server.wait(30)
        self.server.stdout.close()

    def start(self, *arguments):
        job = {"arguments": [str(a) for a in arguments]}
        log = str(self.folder / "driver.log")
        line = {"id": 0, "job": job, "cwd": str(self.folder), "log": log, "memory": 0}
        self.server.stdin.write(json.dumps(line).encode() + b"\n")
        self.pid = json.loads(self.server.stdout.readline())["pid"]

    def wait(self, seconds):
        """The exit code, None if it still runs after so many seconds."""
        ready, _, _ = select.select([self.server.stdout], [], [], max(0, seconds))
        return json.loads(self.server.stdout.readline())["rc"] if ready else None

    def kill(self):
        """``kill -9``: it can clean up nothing."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return self.wait(60)


def drive(job):
    """In the forked process: the verb, and its exit code."""
    assert bench.verbs  # imported before the fork
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in any program of Python's
    sys.argv = ["bench", *job["arguments"]]
    try:
        main()
    except SystemExit as leave:
        sys.stderr.flush()
        os._exit(leave.code or 0)
