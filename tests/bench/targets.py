"""Jobs for the tests of the fork server; imports no torch."""

import os
import signal
import subprocess
import time
from pathlib import Path


def run(job):
    action = job["action"]
    if action == "write":
        print("printed", job["text"])
        Path("out.txt").write_text(job["text"])
    elif action == "raise":
        raise RuntimeError("asked to")
    elif action == "exit":
        os._exit(7)
    elif action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "kill-server":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    elif action == "eat":
        eat()
    elif action == "hang":
        hang()
    elif action == "environment":
        Path("out.txt").write_text(f"{os.environ[job['variable']]} {os.getppid()}")


def eat():
    hoard = []
    try:
        while True:
            hoard.append(bytearray(16 * 2**20))
    except MemoryError:
        hoard.clear()
        Path("out.txt").write_text("MemoryError")


def hang():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    process = subprocess.Popen(["sleep", "60"])
    Path("pid.txt.tmp").write_text(str(process.pid))
    os.rename("pid.txt.tmp", "pid.txt")
    while True:
        time.sleep(1)
