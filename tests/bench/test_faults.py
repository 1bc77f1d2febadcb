"""What could break: a bad cell, a full disk, a lost worker or a killed driver costs more than itself.

Six good cells run beside every fault, on every executor, and all six are delivered.
"""

import errno
import itertools
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from distributed import Client

from bench.records import FAILED, path_of, read_all
from tests.bench.clusters import running_cluster, wait_for_workers
from tests.bench.driver import Drivers
from tests.bench.setups import Setup
from zoo.errors import UserError

FAULTY = Path(__file__).parents[1] / "plugins" / "faulty.py"
EXECUTORS = ("serial", "local", "dask")
SECONDS = 6  # a cell's limit
GOOD = ("identity", "scramble", "clp", "works", "works[lr=1]", "ft")
FAULTS = {
    "raises": ("error", "a bug in somebody's code"),
    "kills-itself": ("killed", "signal 9"),
    "leaves": ("error", "exit code 7"),
    "hangs": ("timeout", f"stopped after {SECONDS} s"),
    "wrong-shape": ("error", "wrong shape: head.bias"),
    "wrong-type": ("error", "return a Classifier, got NoneType"),
    "nan": ("diverged", "weights are not finite: head.weight"),
    "eats-memory": ("out-of-memory", "memory"),
}


@pytest.fixture
def plugin(tmp_path):
    """A copy, which may leave marks beside itself."""
    return Path(shutil.copy(FAULTY, tmp_path / "faulty.py"))


@pytest.fixture(params=EXECUTORS)
def setup(request, root, toy_data, toy_profile, plugin):
    return setup_of(request.param, request, root, toy_data, toy_profile, plugin)


@pytest.fixture
def on_dask(request, root, toy_data, toy_profile, plugin):
    return setup_of("dask", request, root, toy_data, toy_profile, plugin)


def setup_of(executor, request, root, data, profile, plugin):
    options = {}
    if executor == "dask":  # started only where it is needed
        options["scheduler"] = request.getfixturevalue("scheduler")
        wait_for_workers(options["scheduler"], 2)
    return Setup(root, data, profile, [plugin], executor=executor, **options)


def run(setup, *faults):
    """The six good cells with faults among them: records by defense."""
    names = [n for pair in itertools.zip_longest(faults, GOOD) for n in pair if n is not None]
    records = setup.run(*names, budgets=("20",), twins=False, seconds=SECONDS, memory_gib=0.5)
    return {record.cell.defense: record for record in records}


def delivered(found):
    return {name for name in GOOD if name in found and found[name].status == "ok"}


def test_every_fault_costs_its_own_cell(setup):
    found = run(setup, *FAULTS)
    assert delivered(found) == set(GOOD)
    for name, (status, message) in FAULTS.items():
        record = found[name]
        assert record.status == status, (name, record.error)
        assert message in record.error["message"]
        assert (record.after, record.score) == (None, None)
    assert {r.status for r in found.values()} - {"ok"} <= FAILED
    run(setup, *FAULTS)
    assert setup.ran == []


def test_a_lost_worker_costs_a_retry_and_one_that_a_cell_always_kills_costs_that_cell(on_dask):
    found = run(on_dask, "kills-its-worker-once", "kills-its-worker")
    assert delivered(found) == set(GOOD)
    assert found["kills-its-worker-once"].status == "ok"
    poison = found["kills-its-worker"]
    assert poison.status == "killed"
    assert "died, and again when it was tried once more" in poison.error["message"]
    wait_for_workers(on_dask.options["scheduler"], 2)  # the pool is whole again
    assert read_all(on_dask.root)[1] == []


class Full:
    """A disk that takes two more records, and says so where a real one does: at the fsync."""

    real = staticmethod(os.fsync)

    def __init__(self):
        self.files = itertools.count()

    def __call__(self, handle):
        record = "/records/" in os.readlink(f"/proc/self/fd/{handle}")
        if record and next(self.files) >= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        Full.real(handle)


def fill(dask_worker=None):
    os.fsync = Full()


def empty(dask_worker=None):
    os.fsync = Full.real


def half_files(root):
    """Temporary files of records."""
    return list((root / "records").rglob(".*"))


def on_the_writers(setup, function):
    """Where records are written: here, or in the workers."""
    if setup.executor != "dask":
        function()
        return
    with Client(setup.options["scheduler"], set_as_default=False) as client:
        client.run(function)


def test_a_full_disk_ends_the_run_and_the_next_one_does_the_rest(setup):
    """No test can have a small file system, so that ENOSPC comes from a patched ``os.fsync``.

    That is below all code of ours: half a file is there by then, under its temporary name.
    """
    on_the_writers(setup, fill)
    try:
        with pytest.raises(UserError, match=r"No space left.*Free some space and run again"):
            run(setup)
    finally:
        on_the_writers(setup, empty)
    deadline = time.monotonic() + 20
    while half_files(setup.root) and time.monotonic() < deadline:
        time.sleep(0.1)  # another slot was writing, and ends that
    kept = {r.cell.defense: path_of(setup.root, r) for r in read_all(setup.root)[0]}
    assert 0 < len(kept) < len(GOOD)
    assert not half_files(setup.root)
    stamps = {name: path.stat().st_mtime_ns for name, path in kept.items()}
    assert delivered(run(setup)) == set(GOOD)
    # Not equal: a slot that was at work when the disk was full may end after we have looked.
    assert {r.cell.defense for r in setup.ran} <= set(GOOD) - set(kept)
    assert {name: path.stat().st_mtime_ns for name, path in kept.items()} == stamps


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
    with Drivers(tmp_path_factory.mktemp("drivers")) as found:
        yield found


def start_a_run_that_hangs(setup, drivers, profile, plugin):
    """It comes to a cell that takes a minute when some of the good ones are recorded."""
    where = ["-p", profile, "--root", setup.root, "--data", setup.library.data]
    names = [*GOOD[:3], "takes-a-while", *GOOD[3:]]
    chosen = [word for name in names for word in ("--defense", name)]
    scheduler = setup.options.get("scheduler")
    how = ["--scheduler", scheduler] if scheduler else ["-j", 2]
    how += ["--executor", setup.executor, "--device", "cpu"]
    drivers.start("run", *where, "--plugin", plugin, "--budget", 20, *chosen, *how)


def records_of(root):
    return {path: path.stat().st_mtime_ns for path in root.glob("records/*/??/*.json")}


def test_a_killed_driver_costs_what_was_under_way(setup, drivers, toy_profile, plugin):
    start_a_run_that_hangs(setup, drivers, toy_profile, plugin)
    wait_until(lambda: len(records_of(setup.root)) >= 3)
    drivers.kill()
    resume(setup)


def test_ctrl_c_ends_a_run_on_dask_and_the_next_one_does_the_rest(
    on_dask, drivers, toy_profile, plugin
):
    start_a_run_that_hangs(on_dask, drivers, toy_profile, plugin)
    wait_until(lambda: len(records_of(on_dask.root)) >= 3)
    os.kill(drivers.pid, signal.SIGINT)
    assert drivers.wait(60) == 130
    assert "the same command resumes" in (drivers.folder / "driver.log").read_text()
    resume(on_dask)


def test_a_lost_scheduler_ends_the_run_and_the_next_one_does_the_rest(
    tmp_path, root, toy_data, toy_profile, plugin, drivers
):
    with running_cluster(tmp_path) as cluster:
        options = {"executor": "dask", "scheduler": cluster.address}
        setup = Setup(root, toy_data, toy_profile, [plugin], **options)
        start_a_run_that_hangs(setup, drivers, toy_profile, plugin)
        wait_until(lambda: len(records_of(root)) >= 3)
        cluster.kill_scheduler()
        assert drivers.wait(120) == 2
    said = (drivers.folder / "driver.log").read_text()
    assert "the scheduler went away. Start it again; the same command resumes" in said
    assert re.search(r"cells: \d+ done in [^,]*, [12] interrupted", said)
    resume(Setup(root, toy_data, toy_profile, [plugin]))


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def resume(setup):
    """What is recorded stays, what was under way has left no record, the rest is run."""
    kept = records_of(setup.root)
    assert not list((setup.root / "records").glob("takes-a-while/*/*.json"))
    records = setup.run(*GOOD, budgets=("20",))
    assert [r.status for r in records] == 2 * len(GOOD) * ["ok"]  # victim and clean twin
    assert len(setup.ran) == len(records) - len(kept)
    assert {path: records_of(setup.root)[path] for path in kept} == kept
