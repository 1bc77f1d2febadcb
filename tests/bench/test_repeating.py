"""What could break: a number that cannot be had again, one that drifts unnoticed, a record touched."""

import dataclasses
import json
import random
from pathlib import Path

import pytest

import defenses
from bench.codehash import code_hash, file_hashes
from bench.metrics import Attacked, Metrics
from bench.records import read, read_all, scan, text_of, write
from bench.repeating import compare, judge, limits_of, seeds_of
from tests.leaderboard.synthetic import record as synthetic

PLUGIN = """\
from defenses import defense
from helper import FACTOR


@defense("shrink", paper="none", needs="labels")
def shrink(model, view, *, by: float = 0.5):
    images, labels = view.require_labelled()
    model.head.weight.data[0] *= FACTOR * by
    return model
"""
GREY = """\
import torch

from defenses import base_set


@base_set("grey", paper="none", needs="nothing")
def grey(model, view, *, level: float = 0.5):
    return torch.full((10, 3, 32, 32), level), torch.arange(10)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A defense with a helper beside it, and a builder; ``edit`` rewrites one of their files."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def edit(name, text):
        (folder / name).write_text(text)
        code_hash.cache_clear()
        file_hashes.cache_clear()
        monkeypatch.delitem(__import__("sys").modules, "helper", raising=False)
        return folder / name

    edit("helper.py", "FACTOR = 1.0\n")
    edit("grey.py", GREY)
    edit("shrink.py", PLUGIN)
    return edit


@pytest.fixture
def where(root, toy_data):
    return ["--root", root, "--data", toy_data, "--device", "cpu"]


def run(bench, where, toy_profile, *more):
    code, _, err = bench("run", "-p", toy_profile, *where, "-j", 1, *more)
    assert code == 0, err


def snapshot(root):
    files = (path for path in root.rglob("*") if path.is_file() and "cache" not in path.parts)
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def by_key(root, key):
    return next(read(path) for path in scan(root) if path.stem == key)


def key_of(root, defense, budget="20", attack="badnets"):
    records, _ = read_all(root)
    found = [
        r.key
        for r in records
        if (r.cell.defense, r.cell.budget, r.cell.attack) == (defense, budget, attack)
    ]
    assert len(found) == 1
    return found[0]


def test_random_cells_of_a_run_repeat_exactly_and_nothing_is_touched(
    bench, where, root, toy_profile
):
    run(bench, where, toy_profile, "--all")
    before = snapshot(root)
    keys = [path.stem for path in scan(root)]
    chosen = [
        *random.Random(7).sample(sorted(keys), 1),
        key_of(root, "ft", "ood"),
        key_of(root, "ft", "0"),  # not applicable: that repeats, too
    ]
    for key in chosen:
        code, out, err = bench("repro", key, *where, "--json")
        assert code == 0, err
        answer = json.loads(out)
        assert (answer["verdict"], answer["exactly"]) == ("REPRODUCED", True)
        assert answer["differences"] == []
        status = answer["status"]
        assert status["old"] == status["new"]
        assert bool(answer["figures"]) == (status["new"] == "ok")
    code, out, _ = bench("repro", key_of(root, "clp", "0")[:12], *where)
    assert code == 0
    assert out.startswith("REPRODUCED: all ")
    code, out, _ = bench("why", key_of(root, "clp", "0")[:12], *where[:-2])
    assert (code, out.splitlines()[-1]) == (0, "fresh: nothing differs")
    assert snapshot(root) == before

    # A record names the files behind it, and the limits that it ran under.
    record = by_key(root, key_of(root, "clp", "0"))
    assert {"defenses/clp.py", "zoo/models.py"} <= record.env["sources"].keys()
    assert len(json.dumps(record.env["sources"])) < 1500
    assert str(Path(defenses.__file__).parents[1]) not in text_of(record)
    assert record.env["limits"] == {"seconds": 60.0, "memory_gib": 4.0}
    assert limits_of(record).seconds == 600  # a slower machine is no drift
    assert limits_of(dataclasses.replace(record, status="timeout")).seconds == 60


def test_an_edited_defense_drifts_and_why_names_the_file(bench, where, root, toy_profile, plugin):
    file = plugin("shrink.py", PLUGIN)
    given = ["--plugin", file]
    run(bench, where, toy_profile, *given, "--budget", "20")
    key = key_of(root, "shrink")
    assert bench("repro", key, *where, *given).code == 0
    before = snapshot(root)

    plugin("helper.py", "FACTOR = -40.0\n")
    code, out, _ = bench("repro", key, *where, *given)
    assert code == 5
    assert out.startswith("DRIFTED\n")
    assert "one seed has no spread" in out
    (line,) = (line for line in out.splitlines() if line.startswith("ACC "))
    assert line.endswith("DRIFTED")
    (line,) = (line for line in out.splitlines() if line.startswith("code "))
    assert "helper.py (changed)" in line
    code, out, _ = bench("why", key, *where[:-2], *given, "--json")
    assert code == 0
    answer = json.loads(out)
    assert (answer["state"], answer["files"]) == ("stale", {"helper.py": "changed"})
    assert [d["input"] for d in answer["differences"]] == ["code"]
    assert not answer["recorded_anew"]

    # Its own file, too; a hyper-parameter that is new; and a helper that it no longer has.
    edited = PLUGIN.replace("from helper import FACTOR\n", "").replace("FACTOR * by", "by * more")
    plugin("shrink.py", edited.replace("by: float = 0.5", "by: float = 0.5, more: int = 2"))
    answer = json.loads(bench("why", key, *where[:-2], *given, "--json").out)
    assert answer["files"] == {"helper.py": "no longer used", "shrink.py": "changed"}
    by_name = {d["input"]: d for d in answer["differences"]}
    assert by_name.keys() == {"code", "params.more"}
    assert (by_name["params.more"]["old"], by_name["params.more"]["new"]) == ("-", "2")
    assert snapshot(root) == before

    # An older record has no hashes of files. What is no input, but moves digits, is said, too.
    write(root, dataclasses.replace(by_key(root, key), env={"torch": "1.0"}))
    plugin("shrink.py", PLUGIN)
    run(bench, where, toy_profile, *given, "--budget", "20")
    out = bench("why", key, *where[:-2], *given).out
    assert "stale: 1 input differs; its cell was recorded anew as" in out
    assert "cannot tell which file" in out
    out = bench("repro", key, *where, *given, "--json").out
    assert {"code", "torch"} <= {d["input"] for d in json.loads(out)["differences"]}


def test_a_base_set_is_made_again_and_its_builder_is_named(bench, where, root, toy_profile, plugin):
    given = ["--plugin", plugin("grey.py", GREY)]
    run(bench, where, toy_profile, *given, "--defense", "ft@grey", "--budget", "0")
    key = key_of(root, "ft@grey", "0")
    before = snapshot(root)
    answer = json.loads(bench("repro", key, *where, *given, "--json").out)
    assert (answer["verdict"], answer["exactly"]) == ("REPRODUCED", True)
    assert snapshot(root) == before

    plugin("grey.py", GREY.replace("arange(10)", "zeros(10, dtype=torch.long)"))
    answer = json.loads(bench("why", key, *where[:-2], *given, "--json").out)
    assert [d["input"] for d in answer["differences"]] == ["base.code"]
    assert answer["files"] == {"grey.py": "changed"}
    assert bench("repro", key, *where, *given).code == 5


def test_a_profile_a_victim_trained_again_and_a_damaged_one(
    bench, where, root, toy_profile, tmp_path
):
    run(bench, where, toy_profile, "--defense", "ft", "--budget", "20")
    key = key_of(root, "ft")

    def inputs(*more):
        done = bench("why", key, *where[:-2], *more, "--json")
        assert done.code == 0, done.err
        return [(d["input"], d["old"], d["new"]) for d in json.loads(done.out)["differences"]]

    changed = tmp_path / "changed.toml"
    changed.write_text(toy_profile.read_text().replace("steps = 2", "steps = 3"))
    assert inputs("-p", changed) == [("params.steps", "2", "3")]
    assert inputs("-p", toy_profile) == inputs() == []

    (path,) = root.glob("zoo/cifar10/small_vgg-0.125/badnets-*/victim.json")
    (twin,) = root.glob("zoo/cifar10/small_vgg-0.125/none-*/victim.json")
    meta, other = (json.loads(p.read_text()) for p in (path, twin))
    weights = path.with_name("weights.safetensors")
    weights.write_bytes(twin.with_name("weights.safetensors").read_bytes())
    code, _, err = bench("repro", key, *where)
    assert code == 2
    assert "it is not what victim.json says" in err
    path.write_text(json.dumps({**meta, "weights_sha256": other["weights_sha256"]}))
    assert [name for name, _, _ in inputs()] == ["victim"]
    path.unlink()
    code, _, err = bench("why", key, *where[:-2])
    assert code == 2
    assert "bench merge" in err


def test_what_is_no_key_is_refused_and_what_is_unknown_matches_nothing(bench, root):
    for item in (synthetic("clp", "0", n, needs="nothing") for n in range(40)):
        write(root, item)
    where = ["--root", root]
    assert bench("why", "../x", *where).code == 2
    code, _, err = bench("repro", "0" * 20, *where)
    assert (code, "no record" in err) == (4, True)
    first = sorted(path.stem for path in scan(root))
    shared = next(a[0] for a, b in zip(first, first[1:], strict=False) if a[0] == b[0])
    code, _, err = bench("why", shared, *where)
    assert code == 2
    assert "is the beginning of" in err


def shown(acc, asr, seed=0, **more):
    one = Attacked(asr=asr, ra=0.5, asr_conditional=None, asr_including_target=asr)
    metrics = Metrics(acc=acc, images=100, strengths={"x1": one})
    item = synthetic("ft", seed=seed, after=metrics, **more)
    return dataclasses.replace(item, score=50.0, der=0.5)


def verdict(root, old, new):
    return judge(old, new, compare(old, new, seeds_of(root, old)))


def test_the_spread_over_seeds_decides_and_without_one_a_fixed_tolerance(tmp_path: Path):
    old = shown(0.80, 0.5)
    write(tmp_path, old)
    assert verdict(tmp_path, old, old) == "REPRODUCED"
    assert verdict(tmp_path, old, shown(0.809, 0.51)) == "REPRODUCED within the spread"
    assert verdict(tmp_path, old, shown(0.811, 0.5)) == "DRIFTED"
    assert verdict(tmp_path, old, shown(0.80, 0.53)) == "DRIFTED"
    # Three seeds whose ASR has a standard deviation of 0.1: what lies within it is no drift.
    for seed, asr in ((1, 0.4), (2, 0.6)):
        write(tmp_path, shown(0.80, asr, seed))
    assert verdict(tmp_path, old, shown(0.80, 0.59)) == "REPRODUCED within the spread"
    assert verdict(tmp_path, old, shown(0.80, 0.61)) == "DRIFTED"
    assert verdict(tmp_path, old, shown(0.811, 0.5)) == "DRIFTED"  # accuracies have no spread
    # A superseded record, another budget and a failed cell are no seeds of it.
    apart = [shown(0.80, 0.0, 1, ended="2020"), shown(0.80, 0.0, 5, budget="100")]
    apart.append(synthetic("ft", seed=6, status="timeout"))
    write(tmp_path, shown(0.80, 0.4, 1, ended="2021"))
    for item in apart:
        write(tmp_path, item)
    assert verdict(tmp_path, old, shown(0.80, 0.61)) == "DRIFTED"


def test_another_status_is_drift_and_so_is_a_figure_that_is_gone():
    old = shown(0.8, 0.5)
    failed = synthetic("ft", status="timeout")
    assert judge(old, failed, compare(old, failed, [])) == "DRIFTED"
    assert judge(failed, failed, compare(failed, failed, [])) == "REPRODUCED"
    without = dataclasses.replace(old, der=None)
    assert judge(old, without, compare(old, without, [])) == "DRIFTED"
