"""What could break: a merge that loses or overwrites results, or follows links; a release that lies."""

import csv
import dataclasses
import json
import os
import random
import shutil
import subprocess

import pytest

from bench.holdings import results
from bench.records import Cost, digest, path_of, read, scan, text_of, write
from bench.sweeps import Sweep, remember
from bench.sweeps import read_all as read_sweeps
from leaderboard.render import files
from leaderboard.report import collect
from tests.leaderboard.synthetic import grid, record, store


def merge(bench, root, *sources, code=0, options=()):
    done = bench("merge", *sources, "--root", root, "--json", *options)
    assert done.code == code, done.err
    return json.loads(done.out)


def copied(answer):
    return {kind: counts["copied"] for kind, counts in answer["counts"].items() if counts["copied"]}


def tree(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "cache" not in path.parts
    }


def board(root):
    """All texts of the leaderboard."""
    return files(collect(root), {})


def boards(root):
    """The boards of a real run, without what they cost in time and memory."""
    with (root / "leaderboard" / "boards.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert lines
    drop = {name for name in lines[0] if "seconds" in name or "memory" in name or "peak" in name}
    assert drop
    return [{k: v for k, v in line.items() if k not in drop} for line in lines]


# -- merge


def test_a_run_over_two_roots_and_merged_is_one_run(
    bench, built_root, root, toy_data, toy_profile, tmp_path
):
    where = ["-p", toy_profile, "--data", toy_data, "--device", "cpu", "-j", 1]

    def run(place, *defenses):
        picked = [part for name in defenses for part in ("--defense", name)]
        done = bench("run", *where, "--root", place, *picked)
        assert done.code == 0, done.err
        return done.err

    other, whole, target = (tmp_path / name for name in ("other", "whole", "target"))
    for place in (other, whole):
        shutil.copytree(built_root, place)
    run(root, "identity")
    run(other, "clp")
    run(whole, "identity", "clp")
    answer = merge(bench, target, root, other)
    assert copied(answer) == {"records": 4, "models": 2, "others": 1}
    assert answer["counts"]["models"]["there"] == 2
    assert (answer["refused"], answer["conflicts"]) == ([], [])
    assert "4 were fresh" in run(target, "identity", "clp")  # nothing runs again
    assert boards(target) == boards(whole)
    assert sum(answer["counts"]["records"].values()) == 4
    again = merge(bench, target, root, other)
    assert copied(again) == {}


def test_split_records_merged_give_the_same_bytes_on_the_board(bench, tmp_path):
    records = grid(("identity", "ft", "bcu"), ("0", "100"))
    random.Random(3).shuffle(records)
    store(tmp_path / "whole", records)
    store(tmp_path / "a", records[::2])
    store(tmp_path / "b", records[1::2])
    answer = merge(bench, tmp_path / "both", tmp_path / "a", tmp_path / "b")
    assert copied(answer) == {"records": len(records)}
    assert board(tmp_path / "both") == board(tmp_path / "whole")
    # The other way round, and into one of the two.
    merge(bench, tmp_path / "a", tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "both") == tree(tmp_path / "whole")


def test_a_dry_run_says_the_same_and_writes_nothing(bench, tmp_path):
    store(tmp_path / "a", [record(seed=0), record(seed=1)])
    store(tmp_path / "b", [record(seed=1), record(seed=2)])
    conflicting = dataclasses.replace(record(seed=0), score=1.0)
    store(tmp_path / "b", [conflicting])
    sources = [tmp_path / "a", tmp_path / "b"]
    dry = merge(bench, tmp_path / "c", *sources, options=["--dry-run"], code=3)
    assert not (tmp_path / "c").exists()
    real = merge(bench, tmp_path / "c", *sources, code=3)
    assert {**dry, "dry_run": False} == real
    out = bench("merge", *sources, "--root", tmp_path / "d", "--dry-run").out
    assert "nothing is written" in out


def test_equal_results_of_another_day_and_machine_are_no_conflict(bench, tmp_path):
    ours = record()
    theirs = dataclasses.replace(
        ours,
        env={"torch": "9.9"},
        git={},
        started="2031",
        ended="2032",
        cost=Cost(seconds=99.0, images_forward=2000, images_backward=1000, peak_rss=1),
    )
    store(tmp_path / "ours", [ours])
    store(tmp_path / "theirs", [theirs])
    before = tree(tmp_path / "ours")
    answer = merge(bench, tmp_path / "ours", tmp_path / "theirs")
    assert answer["counts"]["records"]["there"] == 1
    assert tree(tmp_path / "ours") == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"score": 12.0}, "score"),
        ({"status": "timeout", "after": None, "score": None, "der": None}, "after, der, score, st"),
        ({"inputs": {"code": "x"}}, "inputs"),
        (
            {"cost": Cost(seconds=3.0, images_forward=1, images_backward=1000, peak_rss=2**29)},
            "cost",
        ),
    ],
)
def test_another_result_is_a_conflict_and_ours_is_kept(bench, tmp_path, change, named):
    ours, fine = record(), record(seed=1)
    store(tmp_path / "ours", [ours])
    store(tmp_path / "theirs", [dataclasses.replace(ours, **change), fine])
    answer = merge(bench, tmp_path / "ours", tmp_path / "theirs", code=3)
    (conflict,) = answer["conflicts"]
    assert ours.key in conflict["path"]
    assert f"differs in {named}" in conflict["why"]
    assert read(path_of(tmp_path / "ours", ours)) == read(path_of(tmp_path / "ours", ours))
    assert results(read(path_of(tmp_path / "ours", ours))) == results(ours)
    assert path_of(tmp_path / "ours", fine).exists()  # nothing else is lost
    done = bench("merge", tmp_path / "theirs", "--root", tmp_path / "ours")
    assert (done.code, "conflict, ours is kept" in done.err) == (3, True)


def test_edited_misplaced_and_unreadable_records_are_named_and_left_out(bench, tmp_path):
    kinds = ("edited", "rubbish", "misplaced", "fine")
    found = {name: record(seed=n) for n, name in enumerate(kinds)}
    theirs = tmp_path / "theirs"
    store(theirs, found.values())
    paths = {name: path_of(theirs, item) for name, item in found.items()}
    text = paths["edited"].read_text()
    paths["edited"].write_text(text.replace('"score": ', '"score": 1', 1))
    assert paths["edited"].read_text() != text
    paths["rubbish"].write_bytes(b"\xff{")
    moved = paths["misplaced"].with_name("0" * 64 + ".json")
    paths["misplaced"].rename(moved)
    answer = merge(bench, tmp_path / "ours", theirs, code=3)
    assert {refused["path"] for refused in answer["refused"]} == {
        str(paths["edited"]),
        str(paths["rubbish"]),
        str(moved),
    }
    assert [path.stem for path in scan(tmp_path / "ours")] == [found["fine"].key]


def test_links_are_refused_on_either_side_and_lead_nowhere(bench, tmp_path):
    outside, theirs, ours = (tmp_path / name for name in ("outside", "theirs", "ours"))
    store(outside, [record(seed=9)])
    store(theirs, [record(seed=0), record("clp", seed=1)])
    secret = path_of(outside, record(seed=9))
    link = path_of(theirs, record(seed=9))
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(secret)
    (theirs / "records" / "linked").symlink_to(outside / "records")
    (theirs / "assets").symlink_to(outside)
    fifo = theirs / "records" / "clp" / "00" / "pipe.json"
    fifo.parent.mkdir(exist_ok=True)
    os.mkfifo(fifo)
    answer = merge(bench, ours, theirs, code=3)
    assert {refused["path"] for refused in answer["refused"]} == {
        str(path) for path in (link, theirs / "records" / "linked", theirs / "assets", fifo)
    }
    assert len(list(scan(ours))) == 2

    # A link below the root that is merged into.
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (target / "records").mkdir(parents=True)
    (target / "records" / "clp").symlink_to(elsewhere)
    answer = merge(bench, target, theirs, code=3)
    assert any("out of the root" in refused["why"] for refused in answer["refused"])
    assert list(elsewhere.iterdir()) == []
    assert path_of(target, record(seed=0)).exists()


def victims(root):
    return sorted(root.glob("zoo/**/victim.json"))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_victims_are_whole_and_another_one_in_its_place_is_a_conflict(bench, root, tmp_path):
    badnets, twin = sorted(victims(root), key=lambda path: "none-" in path.parent.name)
    target = tmp_path / "target"
    unfinished = badnets.parent.with_name("badnets-s9-00000000")
    unfinished.mkdir()
    (unfinished / "checkpoint.safetensors").write_bytes(b"half")
    answer = merge(bench, target, root)
    assert answer["unfinished"] == 1
    assert copied(answer)["models"] == 2
    assert {p for p in tree(target) if "/splits/" not in p} == {
        p for p in tree(root) if p.startswith("zoo/") and "/splits/" not in p and "s9" not in p
    }

    # The same weights, trained in another time: nothing to do.
    meta = json.loads(badnets.read_text())
    edit(badnets, training={**meta["training"], "seconds": 1e6, "torch": "9.9"})
    answer = merge(bench, target, root)
    assert answer["counts"]["models"]["there"] == 2
    # Weights that are not what the metadata says, then a victim trained to other weights.
    weights = badnets.with_name("weights.safetensors")
    weights.write_bytes(twin.with_name("weights.safetensors").read_bytes())
    answer = merge(bench, target, root, code=3)
    assert "weights.safetensors is not what victim.json says" in answer["refused"][0]["why"]
    assert answer["counts"]["models"]["there"] == 1
    edit(badnets, weights_sha256=json.loads(twin.read_text())["weights_sha256"])
    before = tree(target)
    answer = merge(bench, target, root, code=3)
    assert answer["conflicts"] == [{"path": str(badnets), "why": "differs in weights_sha256"}]
    assert tree(target) == before


def test_logs_pictures_and_measurements_come_along(bench, tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    write(theirs, record(), log_tail="hello", picture=b"png")
    measured = theirs / "measurements" / "stability" / "ab" / "abc.json"
    measured.parent.mkdir(parents=True)
    measured.write_text("{}")
    half = path_of(theirs, record()).with_name(".half.json")
    half.write_text("{")
    assert copied(merge(bench, ours, theirs)) == {"records": 1, "others": 1}
    found = tree(ours)
    assert {name.rpartition(".")[2] for name in found} == {"json", "log", "png"}
    assert len(found) == 4


def test_what_was_swept_here_and_asked_for_there_goes_on_the_board(bench, tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    asked = record("clp", "0", needs="nothing")
    swept = dataclasses.replace(asked, cell=dataclasses.replace(asked.cell, swept=True))
    store(ours, [swept])
    store(theirs, [asked])
    for place, values in ((ours, (1, 2)), (theirs, (2, 3))):
        sweep = Sweep(defense="clp", label="clp", param="u", values=values, fixed={})
        remember(place, sweep)
    assert collect(ours).records == []
    merge(bench, ours, theirs)
    assert [r.key for r in collect(ours).records] == [asked.key]
    assert [sweep.values for sweep in read_sweeps(ours)[0]] == [(1, 2, 3)]
    # The mark never comes back from a root that only swept.
    store(theirs, [swept])
    assert copied(merge(bench, ours, theirs)) == {}
    assert len(collect(ours).records) == 1


def test_what_is_no_root_is_refused(bench, tmp_path):
    store(tmp_path / "ours", [record()])
    for source, words in ((tmp_path, "expected a root"), (tmp_path / "ours", "merge into")):
        code, _, err = bench("merge", source, "--root", tmp_path / "ours")
        assert code == 2
        assert words in err


# -- release and verify


@pytest.fixture
def released(bench, tmp_path):
    """A root with a release of it."""
    root = tmp_path / "root"
    store(root, grid(("identity", "ft"), ("100",), seeds=1, failures=0))
    write(root, record("clp", "0", needs="nothing"), log_tail="hello")
    folder = root / "zoo" / "cifar10" / "small_vgg" / "badnets-s0-12345678"
    folder.mkdir(parents=True)
    for name in ("weights.safetensors", "checkpoint.safetensors"):
        (folder / name).write_bytes(b"weights")
    done = bench("release", "2026-12-01", "--root", root, "--signed-off-by", "A B <a@b.org>")
    assert done.code == 0, done.err
    return root, root / "releases" / "2026-12-01.json"


def verify(bench, file, root):
    done = bench("verify", file, "--root", root, "--json")
    assert done.code in (0, 5), done.err
    answer = json.loads(done.out)
    found = {name: answer[name] for name in ("missing", "changed", "extra") if answer[name]}
    assert bool(found) == (done.code == 5)
    return found


def test_a_release_is_the_same_twice_and_holds_what_it_should(bench, released, tmp_path):
    root, file = released
    first, page = file.read_bytes(), (root / "leaderboard" / "leaderboard.html").read_bytes()
    payload = json.loads(first)
    assert b"2026-12-01" in page
    assert payload["release"] == "2026-12-01"
    assert payload["signed_off_by"] == "A B <a@b.org>"
    assert payload["counts"]["records"] == len(list(scan(root)))
    assert payload["versions"]["torch"] == ["2.15.0"]
    tops = {path.split("/")[0] for path in payload["files"]}
    assert tops == {"records", "zoo", "leaderboard"}
    assert any(path.endswith(".log") for path in payload["files"])
    assert not any("checkpoint" in path for path in payload["files"])
    assert payload.pop("payload_sha256") == digest(payload)
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    out = tmp_path / "again.json"
    done = bench(
        *("release", "2026-12-01", "--root", moved, "--out", out),
        *("--signed-off-by", "A B <a@b.org>", "--json"),
    )
    assert json.loads(done.out)["file"] == str(out)
    assert out.read_bytes() == first
    assert verify(bench, file, moved) == {}
    assert "all as released" in bench("verify", file, "--root", root).out


def test_verify_names_every_kind_of_change(bench, released, tmp_path):
    root, file = released
    records = [path.relative_to(root).as_posix() for path in scan(root)]
    weights = "zoo/cifar10/small_vgg/badnets-s0-12345678/weights.safetensors"
    (root / records[0]).unlink()
    assert verify(bench, file, root) == {"missing": [records[0]]}
    text = (root / records[1]).read_text()
    (root / records[1]).write_text(text.replace("0", "1", 1))  # of the same size
    (root / weights).write_bytes(b"longer weights")
    page = "leaderboard/leaderboard.md"
    (root / page).write_text("# I won\n")
    copy = tmp_path / "copy.json"
    (root / records[2]).rename(copy)
    (root / records[2]).symlink_to(copy)  # the same content, but it can change under the root
    store(root, [record("new", "100", seed=77)])
    extra = path_of(root, record("new", "100", seed=77)).relative_to(root).as_posix()
    assert verify(bench, file, root) == {
        "missing": [records[0]],
        "changed": sorted([records[1], records[2], weights, page]),
        "extra": [extra],
    }
    (root / "assets").symlink_to(tmp_path)  # a whole folder
    assert "assets" in verify(bench, file, root)["extra"]
    code, out, _ = bench("verify", file, "--root", root)
    assert code == 5
    assert f"changed: {weights}\n" in out
    assert out.endswith("NOT as released\n")


def resealed(file, **changes):
    payload = {**json.loads(file.read_text()), **changes}
    payload.pop("payload_sha256")
    return json.dumps({**payload, "payload_sha256": digest(payload)})


def test_a_damaged_edited_or_foreign_release_is_refused(bench, released, tmp_path):
    root, file = released
    sealed = file.read_text()
    entry = {"sha256": "0" * 64, "bytes": 1}
    bad = {
        "cannot read": sealed[: len(sealed) // 2],
        "edited or damaged": sealed.replace('"A B <a@b.org>"', '"C D <c@d.org>"'),
        "is no release": resealed(file, kind="something"),
        "schema 1, got 2": resealed(file, schema=2),
        "its entries": resealed(file, files={"zoo/../../etc/passwd": entry}),
        " entries": resealed(file, files={"/etc/passwd": entry}),
        "entries are": resealed(file, files={"zoo/x": {"sha256": "0", "bytes": 1}}),
        "cannot read release": "[" * 100_000,
    }
    for words, text in bad.items():
        broken = tmp_path / "broken.json"
        broken.write_text(text)
        code, out, err = bench("verify", broken, "--root", root)
        assert (code, out) == (2, "")
        assert words in err
    assert bench("verify", tmp_path / "none.json", "--root", root).code == 2
    assert bench("verify", file, "--root", tmp_path / "none").code == 2


def test_what_cannot_be_released(bench, tmp_path):
    root = tmp_path / "root"
    code, _, err = bench("release", "one", "--root", root)
    assert (code, "no records" in err) == (2, True)
    store(root, [record()])
    for options, words in (
        (("--signed-off-by", "nobody"), "Name <mail>"),
        (("--out", root / "records" / "x.json"), "cannot lie among"),
    ):
        code, _, err = bench("release", "one", "--root", root, *options)
        assert code == 2
        assert words in err
    assert bench("release", " ", "--root", root).code == 2
    path = path_of(root, record())
    copy = tmp_path / "copy.log"
    copy.write_text("x")
    path.with_suffix(".log").symlink_to(copy)
    code, _, err = bench("release", "one", "--root", root)
    assert (code, "symbolic link" in err) == (2, True)
    path.with_suffix(".log").unlink()
    path.write_text(text_of(record()).replace('"score": ', '"score": 1', 1))
    code, _, err = bench("release", "one", "--root", root)
    assert code == 2
    assert path.name in err
    assert not (root / "releases").exists()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_the_commands_of_the_docs_sign_and_check_a_release(released, tmp_path):
    _, file = released
    key, allowed = tmp_path / "key", tmp_path / "allowed_signers"

    def ssh(*arguments, **more):
        command = ["ssh-keygen", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, check=False, **more).returncode

    assert ssh("-q", "-t", "ed25519", "-N", "", "-f", key) == 0
    assert ssh("-Y", "sign", "-f", key, "-n", "unbackdoor", file) == 0
    allowed.write_text(f"a@b.org {key.with_suffix('.pub').read_text()}")
    check = [
        "-Y",
        "verify",
        "-f",
        allowed,
        "-I",
        "a@b.org",
        "-n",
        "unbackdoor",
        "-s",
        f"{file}.sig",
    ]
    assert ssh(*check, input=file.read_bytes()) == 0
    assert ssh(*check, input=file.read_bytes() + b" ") != 0
