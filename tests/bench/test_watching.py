"""What could break: a watch that plans or reads everything anew, or that never ends."""

import json
import threading

import pytest

from bench import watching
from bench.harness import Settings
from bench.records import scan
from bench.registry import Registry
from bench.watching import View, Watch
from tests.bench.setups import Setup


@pytest.fixture
def setup(root, toy_data, toy_profile):
    return Setup(root, toy_data, toy_profile)


@pytest.fixture
def store(setup):
    settings = Settings(
        root=setup.root,
        profile=setup.profile,
        library=setup.library,
        device="cpu",
        jobs=1,
    )
    return Watch(settings, Registry())


def test_only_what_is_new_is_read_and_the_plan_is_made_once(setup, store, monkeypatch):
    before = store.look()
    assert before.total == {"identity": 2, "scramble": 2, "clp": 2, "ft": 10}
    assert (before.left, before.new, before.pace) == (16, 0, "no new record yet")
    assert "0/16 cells, 0 failed" in before.line
    setup.run("identity", "scramble")
    reads = []
    monkeypatch.setattr(watching, "plan_cells", None)
    read = watching.read
    monkeypatch.setattr(watching, "read", lambda path: reads.append(path) or read(path))
    found = store.look()
    assert found.done == {"identity": 2, "scramble": 2}
    assert (found.left, found.new) == (12, 4)
    assert "cells a minute, ETA " in found.pace
    assert "clp 0/2, ft 0/10" in found.line
    assert len(reads) == 4
    store.look()
    assert len(reads) == 4


def test_a_failed_cell_that_is_run_again_is_seen(setup, store):
    setup.run("clp")
    paths = list(scan(setup.root))
    good = [path.read_text() for path in paths]
    for path in setup.root.glob("zoo/**/weights.safetensors"):
        path.write_bytes(b"damaged")
    for path in paths:
        path.unlink()
    setup.run("clp")
    assert store.look().failed == {"clp": 2}
    for path, text in zip(paths, good, strict=True):
        path.write_text(text)
    found = store.look()
    assert (found.done, found.failed) == ({"clp": 2}, {})


def test_a_new_victim_is_planned_for(setup, store):
    for path in setup.root.glob("zoo/**/victim.json"):
        meta = json.loads(path.read_text())
        if meta["attack"] != "none":
            path.rename(path.with_suffix(".away"))
    missing = store.look()
    assert missing.total == store.look().total == {"identity": 2, "scramble": 2, "clp": 2, "ft": 10}
    for path in setup.root.glob("zoo/**/victim.away"):
        path.rename(path.with_suffix(".json"))
    assert store.look().total == missing.total


def test_the_verb_ends_with_the_run(setup, bench, toy_data, toy_profile, monkeypatch):
    monkeypatch.setattr(watching, "EVERY", 0.05)
    where = ["-p", toy_profile, "--root", setup.root, "--data", toy_data]
    runner = threading.Thread(target=setup.run)
    runner.start()
    result = bench("status", "--watch", *where, "--json")
    runner.join()
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert lines[-1]["left"] == 0
    left = [line["left"] for line in lines]
    assert left == sorted(set(left), reverse=True)  # a line for every change, and for nothing else
    again = bench("status", "--watch", *where)
    assert again.out.startswith("16/16 cells, 0 failed; nothing is missing")


def test_ctrl_c_ends_a_watch_cleanly(setup, bench, toy_data, toy_profile, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", interrupt)
    result = bench("status", "--watch", "-p", toy_profile, "--root", setup.root, "--data", toy_data)
    assert result.code == 130
    assert "Traceback" not in result.err
    assert "goes on without this watch" in result.err


def test_a_terminal_shows_a_row_per_defense():
    view = View(total={"ft": 4, "clp": 2}, done={"ft": 1}, failed={"clp": 1}, new=2, seconds=60)
    assert view.table().row_count == 2
    assert "2 done; 2 cells a minute, ETA " in str(view.table().title)
