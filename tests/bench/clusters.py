"""A real scheduler and real workers on loopback."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from distributed import Client

HERE = Path(__file__).parents[2]
PORT = "8786"
# Not three, after which a cell is given up: each death costs the start of a worker.
FEW_DEATHS = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}


def commands():
    """What docs/scaling.md says on one machine: the scheduler, and the workers."""
    text = (HERE / "docs" / "scaling.md").read_text().partition("## One machine")[2]
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1]
    found = [line.rstrip(" &") for line in block.splitlines() if line.startswith("dask ")]
    assert [line.split()[1] for line in found] == ["scheduler", "worker"]
    return found


@dataclass
class Cluster:
    address: str
    scheduler: subprocess.Popen

    def kill_scheduler(self):
        self.scheduler.kill()
        self.scheduler.wait()


@contextlib.contextmanager
def running_cluster(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    environment = {**os.environ, **FEW_DEATHS, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    processes = []
    try:
        for command in commands():
            words = shlex.split(command.replace(PORT, port))
            with (folder / f"{words[1]}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *words],
                        cwd=folder,
                        env=environment,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        wait_for_workers(address, 2)
        yield Cluster(address, processes[0])
    finally:
        lost = processes[0].poll() is not None  # then workers would wait for it
        for process in reversed(processes):
            if lost and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for_workers(address, count):
    """Until so many are there: after the start, or after one has died."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with Client(address, timeout=5, set_as_default=False) as client:
                client.wait_for_workers(count, timeout=max(1, deadline - time.monotonic()))
                return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
