"""What could break: a dead child takes others with it, a hung one stays, a server outlives its parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.launcher import ClosedError, Launcher, clean_environment

TARGET = "tests.bench.targets:run"


@pytest.fixture(params=[True, False], ids=["fork", "fresh"])
def launcher(request, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    launcher = Launcher(TARGET, fork=request.param)
    yield launcher
    launcher.close()


def run(launcher, tmp_path, name="x", seconds=60.0, memory=0, **job):
    cwd = tmp_path / name
    cwd.mkdir()
    log = tmp_path / f"{name}.log"
    ended = launcher.run(job, cwd=cwd, log=log, seconds=seconds, memory=memory)
    return ended, cwd, log.read_text()


def stat(pid):
    """State and parent's process id."""
    state, parent = Path(f"/proc/{pid}/stat").read_text().split()[2:4]
    return state, int(parent)


def gone(pid):
    return not Path(f"/proc/{pid}").exists() or stat(pid)[0] == "Z"


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def child_in(folder):
    """The process id of a child that hangs: the parent of the one it tells of."""
    wait_for((folder / "pid.txt").exists)
    return stat(int((folder / "pid.txt").read_text()))[1]


def test_a_job_runs_in_its_folder_and_its_output_is_kept(launcher, tmp_path):
    ended, cwd, log = run(launcher, tmp_path, action="write", text="hello")
    assert (ended.rc, ended.timed_out) == (0, False)
    assert (cwd / "out.txt").read_text() == "hello"
    assert "printed hello" in log


@pytest.mark.parametrize(("action", "rc"), [("raise", 1), ("exit", 7), ("kill", -signal.SIGKILL)])
def test_failures_are_told_apart(launcher, tmp_path, action, rc):
    ended, _, log = run(launcher, tmp_path, action=action)
    assert (ended.rc, ended.timed_out, ended.lost) == (rc, False, False)
    assert ("RuntimeError: asked to" in log) == (action == "raise")


def test_a_hung_child_is_ended_with_its_own_children(launcher, tmp_path):
    begun = time.monotonic()
    ended, cwd, _ = run(launcher, tmp_path, seconds=4.0, action="hang")
    assert ended.timed_out
    assert time.monotonic() - begun < 20
    grandchild = int((cwd / "pid.txt").read_text())
    wait_for(lambda: gone(grandchild))


def test_memory_is_limited(launcher, tmp_path):
    ended, cwd, log = run(launcher, tmp_path, memory=200 * 2**20, action="eat")
    assert ended.rc == 0
    assert (cwd / "out.txt").read_text() == "MemoryError", log


def test_children_run_side_by_side_and_do_not_harm_each_other(launcher, tmp_path):
    results = {}

    def one(i):
        action = "kill" if i % 3 == 0 else "write"
        results[i] = run(launcher, tmp_path, str(i), action=action, text=str(i))[0].rc

    threads = [threading.Thread(target=one, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: -9, 1: 0, 2: 0, 3: -9, 4: 0, 5: 0}


def test_a_lost_server_is_noticed_and_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    launcher = Launcher(TARGET)
    assert run(launcher, tmp_path, "a", action="write", text="1")[0].rc == 0
    ended, _, _ = run(launcher, tmp_path, "b", action="kill-server")
    assert ended.lost
    assert run(launcher, tmp_path, "c", action="write", text="1")[0].rc == 0
    launcher.close()


def test_server_and_children_end_with_their_parent(tmp_path):
    """The parent is killed and can clean up nothing."""
    script = f"""
import sys, pathlib
from bench.launcher import ClosedError, Launcher
cwd = pathlib.Path({str(tmp_path)!r})
Launcher({TARGET!r}).run({{"action": "hang"}}, cwd=cwd, log=cwd / "log", seconds=60, memory=0)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", script], env=env)
    wait_for((tmp_path / "pid.txt").exists)
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    child = int((tmp_path / "pid.txt").read_text())
    wait_for(lambda: gone(child))


def test_the_environment_is_an_allow_list(monkeypatch):
    monkeypatch.setenv("BENCH_DATA", "/secret")
    monkeypatch.setenv("SOMETHING", "else")
    environment = clean_environment()
    assert not {"BENCH_DATA", "SOMETHING"} & set(environment)
    assert environment["OMP_NUM_THREADS"] == "1"


def test_children_end_with_a_server_that_was_killed(tmp_path, monkeypatch):
    """It can end nothing itself; a build that went on beside its successor would be in its way."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux ends a process with its parent")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    launcher = Launcher(TARGET)
    ended = []
    thread = threading.Thread(
        target=lambda: ended.append(run(launcher, tmp_path, action="hang")[0])
    )
    thread.start()
    child = child_in(tmp_path / "x")
    server = stat(child)[1]
    assert b"bench.forkserver" in Path(f"/proc/{server}/cmdline").read_bytes()
    os.kill(server, signal.SIGKILL)
    thread.join(30)
    assert ended[0].lost
    wait_for(lambda: gone(child))
    os.kill(int((tmp_path / "x" / "pid.txt").read_text()), signal.SIGKILL)
    launcher.close()


def test_a_closed_launcher_starts_nothing(tmp_path, monkeypatch):
    """A slot that has not heard of the end yet."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    launcher = Launcher(TARGET)
    launcher.close()
    (tmp_path / "log").touch()
    with pytest.raises(ClosedError):
        launcher.run({}, cwd=tmp_path, log=tmp_path / "log", seconds=1, memory=0)
    assert (tmp_path / "log").read_text() == ""


def test_launchers_share_a_server_and_end_only_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    first, second = Launcher(TARGET), Launcher(TARGET)
    ended = {}

    def hang(name, launcher):
        try:
            ended[name] = run(launcher, tmp_path, name, seconds=30, action="hang")[0]
        except ClosedError:
            ended[name] = "closed"

    launchers = {"a": first, "b": second}
    threads = [threading.Thread(target=hang, args=item) for item in launchers.items()]
    for thread in threads:
        thread.start()
    children = {name: child_in(tmp_path / name) for name in launchers}
    assert stat(children["a"])[1] == stat(children["b"])[1]
    first.close()
    threads[0].join(10)
    assert ended == {"a": "closed"}
    wait_for(lambda: gone(children["a"]))
    assert not gone(children["b"])
    assert run(second, tmp_path, "c", action="write", text="1")[0].rc == 0
    second.close()
    threads[1].join(10)
    wait_for(lambda: gone(children["b"]))


def test_another_environment_is_another_server(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    servers = []
    for i, folder in enumerate(("one", "one", "other")):
        monkeypatch.setenv("TMPDIR", folder)
        launcher = Launcher(TARGET)
        run(launcher, tmp_path, str(i), action="environment", variable="TMPDIR")
        found, server = (tmp_path / str(i) / "out.txt").read_text().split()
        assert found == folder
        servers.append(server)
        launcher.close()
    assert servers[0] == servers[1] != servers[2]
    wait_for(lambda: gone(int(servers[0])))
