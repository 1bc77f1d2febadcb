"""kill -9 of `bench run` at random moments: nothing torn, nothing lost, nothing done twice."""

import os
import random
import shutil
import subprocess
import sys
import time

import pytest

from bench.records import read_all
from bench.rendering import render

KILLS = int(os.environ.get("BENCH_TEST_KILLS", "3"))  # by hand: two hundred
PROFILE_SEEDS = list(range(6))


@pytest.fixture
def setup(root, toy_data, toy_profile, tmp_path):
    profile = tmp_path / "kill.toml"
    text = toy_profile.read_text().replace(
        "seeds = [0]", f"seeds = [0]\ndefense_seeds = {PROFILE_SEEDS}"
    )
    text = text.replace('["0", "1", "20", "unlabeled", "ood"]', '["0", "20"]')
    profile.write_text(text)
    arguments = ["-p", profile, "--data", toy_data, "-j", "2"]
    return root, [sys.executable, "-m", "bench.cli", "run", "--all", *map(str, arguments)]


def start(command, root):
    return subprocess.Popen(
        [*command, "--root", str(root)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "CI": "1"},
    )


def figures(root):
    records, problems = read_all(root)
    assert problems == []
    return {r.key: (r.status, r.after, r.score) for r in records}


def stamps(root):
    return {p: p.stat().st_mtime_ns for p in root.glob("records/*/??/*.json")}


def test_kills_at_random_moments(setup, tmp_path):
    root, command = setup
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(root, undisturbed)
    begun = time.monotonic()
    assert start(command, undisturbed).wait(timeout=300) == 0
    whole = time.monotonic() - begun
    expected = figures(undisturbed)
    cells = len(expected)

    rng = random.Random(0)
    kills, seen = 0, stamps(root)
    interrupted_work = 0
    while kills < KILLS:
        begun = time.monotonic()
        process = start(command, root)
        try:
            process.wait(timeout=rng.uniform(0.2, 0.9) * whole)
            whole = min(whole, time.monotonic() - begun)  # the machine is faster than it was
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        now = stamps(root)
        assert all(now[path] == stamp for path, stamp in seen.items())  # none recomputed
        figures(root)  # every record readable
        interrupted_work += 0 < len(now) < cells
        seen = now
        if len(now) == cells:  # all done: begin again, for more chances to be hit
            shutil.rmtree(root / "records")
            seen = {}
    assert interrupted_work > KILLS // 4  # the kills did hit unfinished runs
    assert start(command, root).wait(timeout=300) == 0
    now = stamps(root)
    assert all(now[path] == stamp for path, stamp in seen.items())
    assert figures(root) == expected
    litter = [p for p in (root / "records").rglob(".*")]
    assert len(litter) <= KILLS  # a kill between write and rename leaves a hidden file, no record
    for place in (root, undisturbed):
        render(place, json_output=True)
    tables = [(p / "leaderboard" / "leaderboard.md").read_text() for p in (root, undisturbed)]
    assert without_costs(tables[0]) == without_costs(tables[1])


def without_costs(table):
    """The rows without what depends on the clock: seconds, memory, an edit of the code meanwhile."""
    lines = []
    for line in table.splitlines():
        if line.startswith("- changed: "):
            continue
        cells = [c.strip() for c in line.split("|")]
        lines.append([c for c in cells if not c.endswith((" s", "MB", "GB", "MiB", "GiB", "ms"))])
    return lines
