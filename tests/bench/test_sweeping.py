"""What could break: keys that no run would make, cells on the board, records run twice or lost."""

import csv
import json

import pytest

from bench.records import scan
from bench.registry import Registry
from bench.specs import bare
from bench.sweeping import texts_of
from bench.sweeps import Sweep, in_order, read, read_all, remember
from tests.bench.test_harness import FAULTY
from zoo.errors import UserError


@pytest.fixture
def where(root, toy_data, toy_profile):
    return ["-p", toy_profile, "--root", root, "--data", toy_data, "--device", "cpu", "-j", 1]


def keys(root, defense="clp"):
    return {path.stem: json.loads(path.read_text()) for path in root.glob(f"records/{defense}/*/*")}


def rows(bench, root):
    """The names on the boards."""
    code, out, _ = bench("leaderboard", "--root", root, "--json")
    assert code == 0
    with open(json.loads(out)["json"]) as stream:
        return {row["defense"] for board in json.load(stream)["boards"] for row in board["rows"]}


def test_a_sweep_makes_the_cells_of_runs_and_keeps_them_off_the_board(bench, where, root):
    sweep = ["sweep", "clp", "--param", "u", "--values", "1,3.0,4"]
    code, out, _ = bench(*sweep, *where, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["cells_to_run"] == 3  # none on the clean twin
    assert not (root / "sweeps").exists()

    code, out, err = bench(*sweep, *where, "--json")
    assert code == 0, err
    (picture,) = json.loads(out)
    for kind in ("svg", "png", "csv"):
        assert picture[kind].startswith(str(root / "sweeps"))
    swept = keys(root)
    assert sorted(r["cell"]["params"]["u"] for r in swept.values()) == [1.0, 3.0, 4.0]
    assert all(r["cell"]["swept"] for r in swept.values())
    assert rows(bench, root) == set()

    code, out, err = bench(*sweep, *where)
    assert code == 0
    assert "0 cells run, 3 were fresh" in err
    assert out.split() == [picture[kind] for kind in ("svg", "png", "csv")]

    # Asked for by name, the same cells go on the board; 1 is the profile's, and so it is plain clp.
    code, _, err = bench("run", *where, "--defense", "clp", "--defense", "clp[u=4]")
    assert "2 cells run, 2 were fresh" in err  # what ran are the clean twin's
    assert rows(bench, root) == {"clp", "clp[u=4]"}

    # And there they stay when they are swept again, with one more value.
    more = ["--values", "3,4,5", "--retry-failed"]
    assert bench("sweep", "clp", "--param", "u", *more, *where)[0] == 0
    assert rows(bench, root) == {"clp", "clp[u=4]"}
    (asked,), _ = read_all(root)
    assert asked.values == (1.0, 3.0, 4.0, 5.0)
    assert len(list(scan(root))) == 6
    with open(picture["csv"]) as stream:
        assert len(stream.readlines()) == 1 + 4


def test_a_sweep_of_data_is_drawn_against_the_number_of_images_too(bench, where):
    sweep = ["sweep", "works@grey", "--param", "grey.per_class", "--values", "1,2"]
    code, out, err = bench(*sweep, *where, "--plugin", FAULTY, "--budget", "0", "--json")
    assert code == 0, err
    trade_off, sizes = json.loads(out)
    assert (trade_off["kind"], sizes["kind"]) == ("trade-off", "sizes")
    with open(sizes["csv"]) as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["line"], line["per_class"]) for line in lines] == [
        ("works@grey", "1"),
        ("works@grey", "2"),
    ]


def test_the_keys_are_those_that_a_run_makes(bench, where, root):
    bench("run", *where, "--defense", "clp[u=2]", "--defense", "clp[u=3.5]")
    before = keys(root)
    code, _, err = bench("sweep", "clp", "--param", "u", "--values", "2,3.5", *where)
    assert code == 0
    assert "0 cells run, 2 were fresh" in err
    assert keys(root) == before


def test_a_profiles_schedule_is_kept_and_failed_cells_leave_with_three(bench, where, root):
    values = ["--param", "lr", "--values", "0.001,1e30"]
    code, out, err = bench("sweep", "ft[batch_size=8]", *values, *where, "--budget", "20")
    assert code == 3
    assert "diverged: ft[batch_size=8, lr=1e+30] @20" in err
    assert len(out.split()) == 3  # drawn nevertheless
    assert {r["cell"]["params"]["steps"] for r in keys(root, "ft").values()} == {2}
    (asked,), _ = read_all(root)
    assert asked.label == "ft[batch_size=8]"
    assert asked.fixed["steps"] == 2
    assert asked.fixed["batch_size"] == 8


def test_nothing_matched(bench, where, root):
    for path in root.glob("zoo/**/victim.json"):
        meta = json.loads(path.read_text())
        path.write_text(json.dumps({**meta, "status": "rejected"}))
    code, _, err = bench("sweep", "clp", "--param", "u", "--values", "2,3", *where)
    assert code == 4
    assert "no victim was admitted" in err
    assert not (root / "sweeps").exists()


@pytest.mark.parametrize(
    ("text", "param", "values", "message"),
    [
        ("ibua", "lr", "1,2", "Did you mean 'ibau'"),
        ("ibau", "llr", "1,2", "no hyper-parameter 'llr'. Did you mean 'lr'? It has: mode, rounds"),
        ("ibau[llr=1]", "lr", "1,2", "no hyper-parameter 'llr'"),
        ("identity", "lr", "1,2", "identity has no hyper-parameter: there is nothing to sweep"),
        ("ibau[lr=0.1]", "lr", "1,2", "ibau[lr=0.1] sets lr already"),
        ("ibau", "lr", "0.1", "expected at least two different values of lr, got '0.1'"),
        ("ibau", "lr", "0.1,1e-1", "expected at least two different values of lr"),
        ("ibau", "lr", "0.1,,1", "expected --values like 1e-4,3e-4,1e-3, got an empty one"),
        ("ibau", "lr", "0.1,fast", "ibau[lr]: expected a value of type float, got 'fast'"),
        ("ibau", "rounds", "1,2.5", "ibau[rounds]: expected a value of type int, got 2.5"),
        ("ibau", "lr", "0.1,nan", "ibau[lr]: expected a finite number, got nan"),
        ("ibau", "lr", "0.1,a=b]", "expected a value of type float"),
    ],
)
def test_usage_errors_say_what_to_do(text, param, values, message):
    with pytest.raises(UserError) as caught:
        texts_of(text, param, values, Registry())
    assert message in str(caught.value)


def test_an_error_of_the_command_is_one_clear_message(bench, tmp_path):
    arguments = ["ibau", "--param", "lr", "--values", "1e-3", "--root", tmp_path]
    code, out, err = bench("sweep", *arguments)
    assert code == 2
    assert err.startswith("bench: expected at least two different values")
    assert out == ""
    assert bench("sweep", "ibau", "--param", "lr")[0] == 2


def test_values_are_what_a_run_would_be_told():
    registry = Registry()
    assert texts_of("ibau[mode=paper]", "lr", " 1, 1e-4,1e-04", registry) == [
        "ibau[lr=0.0001, mode=paper]",
        "ibau[lr=1, mode=paper]",
    ]
    assert texts_of("ibau", "mode", "repository,paper", registry) == [
        "ibau[mode=repository]",
        "ibau[mode=paper]",
    ]
    assert texts_of("ft[steps=5]@naive", "lr", "1,2", registry) == [
        "ft[lr=1, steps=5]@naive",
        "ft[lr=2, steps=5]@naive",
    ]
    assert texts_of("ft@naive", "naive.steps", "20,3", registry) == [
        "ft@naive[steps=3]",
        "ft@naive[steps=20]",
    ]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("ibau", "ibau"),
        ("ibau[lr=1, mode=paper]", "ibau"),
        ("ibau@fred", "ibau@fred"),
        ("ibau[lr=1]@fred[steps=5]", "ibau@fred"),
    ],
)
def test_a_name_without_its_brackets(name, left):
    assert bare(name) == left


def test_order_of_values():
    assert in_order([3, 1.0, 2, 1]) == (1.0, 2, 3)
    assert in_order(["b", "a", "b"]) == ("b", "a")
    assert in_order([True, False]) == (False, True)


def test_a_sweep_is_remembered_with_all_values_and_apart_from_others(tmp_path):
    fixed = {"rounds": 1}
    sweep = Sweep(defense="ibau", label="ibau", param="lr", values=(0.1, 0.2), fixed=fixed)
    remember(tmp_path, sweep)
    remember(tmp_path, Sweep(**{**vars(sweep), "values": (0.3, 0.1)}))
    remember(tmp_path, Sweep(**{**vars(sweep), "fixed": {"rounds": 2}}))
    found, problems = read_all(tmp_path)
    assert sorted(s.values for s in found) == [(0.1, 0.2), (0.1, 0.2, 0.3)]
    assert problems == []
    (tmp_path / "sweeps" / "x.json").write_text("[")
    assert "cannot read sweep x.json" in read_all(tmp_path)[1][0]
    with pytest.raises(ValueError, match="cannot read sweep"):
        read(tmp_path / "nothing.json")
