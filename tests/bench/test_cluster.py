"""What could break: other records than on one machine, a worker with other code, an unclear refusal."""

import dataclasses
import importlib.util
import json
import shutil
import signal
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench import cluster, remote
from bench.records import read_all
from tests.bench.clusters import running_cluster, wait_for_workers
from tests.bench.setups import Setup
from zoo.errors import UserError

FAULTY = Path(__file__).parents[1] / "plugins" / "faulty.py"
# All that depends on the clock, or on the process that a cell ran in.
BY_THE_CLOCK = {"cost": None, "started": "", "ended": "", "payload_sha256": ""}


def results(root):
    records, problems = read_all(root)
    assert problems == []
    stripped = {}
    for record in records:
        touched = json.loads(json.dumps(record.data_touched))
        touched.get("base_set", {}).pop("seconds", None)
        error = record.error and {**record.error, "traceback": ""}  # has paths
        changes = {**BY_THE_CLOCK, "data_touched": touched, "error": error}
        stripped[record.key] = dataclasses.replace(record, **changes)
    return stripped


@pytest.fixture
def workers(scheduler):
    wait_for_workers(scheduler, 2)
    return scheduler


@pytest.mark.parametrize("shared", [True, False])
def test_the_records_are_those_of_one_machine(
    workers, root, toy_data, toy_profile, tmp_path, monkeypatch, capsys, shared
):
    plugin = Path(shutil.copy(FAULTY, tmp_path / "faulty.py"))
    names = ("ft", "ft@grey", "works", "peeks", "finds-class-two", "raises")
    here = tmp_path / "here"
    shutil.copytree(root, here)
    expected = Setup(here, toy_data, toy_profile, [plugin], executor="serial")
    expected.run(*names, budgets=("0", "20"))
    if not shared:  # workers find no proof that the root is the same
        monkeypatch.setattr(cluster, "write_atomic", lambda *_: None)
    setup = Setup(root, toy_data, toy_profile, [plugin], executor="dask", scheduler=workers)
    sent = []
    submit = cluster.Cluster.submit
    monkeypatch.setattr(
        cluster.Cluster,
        "submit",
        lambda self, function, *given: (
            sent.append((function, given)) or submit(self, function, *given)
        ),
    )
    setup.run(*names, budgets=("0", "20"))
    assert ("files travel" in capsys.readouterr().err) == (not shared)
    assert results(root) == results(here)
    assert len(results(root)) == 2 * 11
    logs = sorted(p.name for p in root.glob("records/*/*/*.log"))
    assert logs == sorted(p.name for p in here.glob("records/*/*/*.log"))
    if not shared:
        assert {function for function, _ in sent} == {remote.run_job}
        assert str(root) not in str([given[:3] for _, given in sent])  # nothing there to look for
    else:
        assert {function for function, _ in sent} == {remote.run_cell}
    assert not list((root / "cache").glob("probe-*"))


def test_the_zoo_is_built_by_workers_that_see_it(bench, workers, tmp_path, toy_data, toy_profile):
    where = ["-p", toy_profile, "--root", tmp_path / "root", "--data", toy_data, "--device", "cpu"]
    done = bench("build-zoo", *where, "--executor", "dask", "--scheduler", workers)
    assert done.code == 0, done.err
    built = [json.loads(p.read_text()) for p in (tmp_path / "root").glob("zoo/**/victim.json")]
    assert {meta["training"]["threads"] for meta in built} == {1}
    assert {meta["attack"] for meta in built} == {"none", "badnets"}


def test_the_zoo_cannot_be_built_by_others(
    bench, workers, tmp_path, toy_data, toy_profile, monkeypatch
):
    monkeypatch.setattr(cluster, "write_atomic", lambda *_: None)
    where = ["-p", toy_profile, "--root", tmp_path / "root", "--data", toy_data, "--device", "cpu"]
    refused = bench("run", "--all", *where, "--executor", "dask", "--scheduler", workers)
    assert refused.code == 2
    assert "Build it here first: bench build-zoo" in refused.err


def test_other_code_is_refused(bench, workers, root, toy_data, toy_profile, monkeypatch):
    monkeypatch.setattr(remote, "code_identity", lambda: ("9.9", "0" * 64))
    where = ["-p", toy_profile, "--root", root, "--data", toy_data, "--device", "cpu"]
    refused = bench("run", "--all", *where, "--executor", "dask", "--scheduler", workers)
    assert refused.code == 2
    assert "has other code than this driver: version " in refused.err
    assert "here 9.9 (000000000000). Install the same version there" in refused.err


def test_a_worker_without_our_code_is_refused(
    bench, workers, root, toy_data, toy_profile, monkeypatch
):
    def greet(told):
        raise AssertionError("nobody can load this")

    absent = types.ModuleType("not_installed_there")
    absent.greet, greet.__module__, greet.__qualname__ = greet, absent.__name__, "greet"
    monkeypatch.setitem(sys.modules, absent.__name__, absent)
    monkeypatch.setattr(remote, "greet", greet)
    where = ["-p", toy_profile, "--root", root, "--data", toy_data, "--device", "cpu"]
    refused = bench("run", "--all", *where, "--executor", "dask", "--scheduler", workers)
    assert refused.code == 2
    assert "cannot load Unbackdoor: " in refused.err
    assert "No module named 'not_installed_there'" in refused.err


def test_gpus_are_asked_for(bench, workers, root, toy_data, toy_profile):
    """These workers offer none."""
    where = ["-p", toy_profile, "--root", root, "--data", toy_data, "--device", "cuda", "-j", 3]
    refused = bench("run", "--all", *where, "--executor", "dask", "--scheduler", workers)
    assert refused.code == 2
    assert "no worker offers a GPU. Start one per GPU: CUDA_VISIBLE_DEVICES=0" in refused.err


@pytest.mark.parametrize(("jobs", "slots"), [(1, 3), (3, 7), (7, 9)])
def test_shares_of_gpus_and_threads_make_slots(jobs, slots):
    """Three GPUs; two workers have four threads, one has a single one."""
    share = cluster.share_of("cuda", jobs)
    assert share * jobs <= 1
    facts = [{"nthreads": n, "resources": {"GPU": 1}} for n in (4, 4, 1)]
    found = cluster.Cluster(None, {}, share)
    found.workers = lambda: dict(enumerate(facts))
    assert found.slots() == slots
    assert cluster.share_of("cpu", jobs) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--executor", "dask"], "needs a scheduler. Start a scheduler with: dask scheduler"),
        (["--executor", "dask", "--scheduler", "tcp://127.0.0.1:9"], "cannot reach a scheduler"),
        (["--executor", "dask", "--scheduler", "nonsense"], "cannot reach a scheduler"),
        (["--executor", "dask", "--scheduler", "x", "-j", "2"], "leave -j out"),
        (["--scheduler", "tcp://127.0.0.1:9"], "goes with --executor dask, not with local"),
    ],
)
def test_refusals_are_one_clear_message(
    bench, root, toy_data, toy_profile, monkeypatch, arguments, message
):
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.5)
    where = ["-p", toy_profile, "--root", root, "--data", toy_data, "--device", "cpu"]
    refused = bench("run", "--all", *where, *arguments)
    assert refused.code == 2
    assert message in refused.err
    assert "Traceback" not in refused.err


def test_without_the_package_the_extra_is_named(bench, root, toy_data, toy_profile, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "distributed" else find(name, *rest),
    )
    where = ["-p", toy_profile, "--root", root, "--data", toy_data]
    refused = bench("run", "--all", *where, "--executor", "dask", "--scheduler", "tcp://x:1")
    assert refused.code == 2
    assert "pip install 'unbackdoor[dask]'" in refused.err


def test_whatever_is_asked_of_a_lost_scheduler_says_so(tmp_path):
    with running_cluster(tmp_path) as running:
        reached = cluster.Cluster(cluster._client(running.address), {"run": "none"}, None)
        with pytest.raises(TypeError):  # what a call has raised is its own
            cluster.result_of(reached.submit(len, 4))
        done = reached.submit(len, "four")
        while not done.done():
            time.sleep(0.02)
        running.scheduler.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor() as threads:  # it dies between the question and its answer
            answer = threads.submit(cluster.result_of, done)
            time.sleep(0.5)
            running.kill_scheduler()
            assert "the scheduler went away" in str(answer.exception(60))
        for ask in (
            lambda: cluster.result_of(done),
            lambda: cluster.result_of(reached.submit(len, "four")),
            reached.slots,
        ):
            with pytest.raises(UserError, match="the scheduler went away"):
                ask()
        reached.close()
