"""What could break: exit codes, what goes to which stream, errors without a remedy."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from bench.app import AttackOption, DefenseOption
from bench.cli import app
from bench.forecast import BYTES_PER_RECORD
from bench.records import write
from bench.registry import Registry
from bench.specs import parse_spec
from bench.verbs import parse_seeds
from tests.leaderboard.synthetic import grid
from zoo.errors import UserError
from zoo.recipes import make_attack

FAULTY = Path(__file__).parents[1] / "plugins" / "faulty.py"


@pytest.fixture
def where(root, toy_data, toy_profile):
    return ["-p", toy_profile, "--root", root, "--data", toy_data]


def test_help_names_the_verbs_and_loads_no_torch():
    """Importing torch would make every start slow."""
    done = subprocess.run(
        [sys.executable, "-c", "from bench.cli import main; main()", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "build-zoo" in done.stdout
    assert "Exit codes" in done.stdout
    code = (
        "import sys\nfrom bench.cli import main\nsys.argv = ['bench', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_run_renders_and_resumes(bench, where, root):
    first = bench("run", "--all", *where, "-j", 2)
    assert first.code == 0, first.err
    assert "leaderboard.html" in first.out
    assert "[1/" in first.err
    html = (root / "leaderboard" / "leaderboard.html").read_text()
    assert "scramble" in html
    assert "unlabeled" in html
    again = bench("run", "--all", *where, "--json")
    assert again.code == 0
    paths = json.loads(again.out)
    assert Path(paths["html"]).exists()
    assert "0 cells run" in again.err
    assert (root / "leaderboard" / "leaderboard.html").read_text() == html
    status = json.loads(bench("status", *where, "--json").out)
    assert status["cells_to_run"] == 0
    assert status["cells"]["ft"] == {"fresh": 10}
    some = json.loads(bench("status", *where, "--defense", "ft", "--budget", "0", "--json").out)
    assert list(some["cells"]) == ["ft"]
    assert sum(some["cells"]["ft"].values()) < 10


def test_dry_run_does_nothing_and_counts_right(bench, where, root):
    plan = bench("run", "--all", *where, "--dry-run", "--json")
    assert plan.code == 0
    counted = json.loads(plan.out)
    assert counted["cells_to_run"] == 2 * (3 + 5)
    assert counted["seconds_low"] is None
    assert not (root / "records").exists()
    assert counted["unknown"] == {"identity": 2, "scramble": 2, "clp": 2, "ft": 8}
    text = bench("run", "--all", *where, "--dry-run").out
    unknown = "? for 2 cells of identity, 2 cells of scramble, 2 cells of clp, 8 cells of ft"
    assert f"16 cells to run: {unknown}; " in text


def test_times_are_learnt_from_what_is_recorded(bench, where, root):
    assert bench("run", *where, "--defense", "ft", "--budget", "1", "--budget", "20").code == 0
    counted = json.loads(bench("run", "--all", *where, "--dry-run", "--json").out)
    assert 0 < counted["seconds_low"] <= counted["seconds_median"] <= counted["seconds_high"]
    assert counted["unknown"] == {"identity": 2, "scramble": 2, "clp": 2}
    text = bench("run", "--all", *where, "--dry-run").out
    assert " + ? for 2 cells of identity, 2 cells of scramble, 2 cells of clp; " in text
    more = [*where, "--seeds", "0,1", "--dry-run", "--json"]  # victims to be built are known, too
    plan = json.loads(bench("run", "--all", *more).out)
    assert "victims to build" not in plan["unknown"]
    weights = plan["disk_bytes"] - plan["cells_to_run"] * BYTES_PER_RECORD
    one = next(root.glob("zoo/**/weights.safetensors")).stat().st_size
    files = plan["victims"]["to_build"] * one  # which have a header, here of 1.6 kB
    assert 0.8 * files < weights < files


def test_failures_leave_with_three_and_say_what(bench, where, root):
    arguments = ["--plugin", FAULTY, "--defense", "raises", "--defense", "identity"]
    result = bench("run", *where, *arguments)
    assert result.code == 3
    assert "a bug in somebody's code" in result.err
    page = (root / "leaderboard" / "leaderboard.html").read_text()
    assert "a bug in somebody&#39;s code" in page
    again = bench("run", *where, *arguments)
    assert again.code == 3  # still failed, not run again
    assert "0 cells run, 4 were fresh: 2 error, 2 ok" in again.err
    assert f"board: {root / 'leaderboard' / 'leaderboard.html'}" in again.err


def test_the_end_says_why_not_what_took_long_and_how_to_repeat_a_failure(bench, where):
    arguments = ["--plugin", FAULTY, "--defense", "raises", "--defense", "ft"]
    result = bench("run", *where, *arguments)
    assert "  2 not-applicable: needs labels; this budget has none" in result.err
    slowest = next(line for line in result.err.splitlines() if line.startswith("slowest: "))
    assert slowest.count(";") == 4
    line = next(line for line in result.err.splitlines() if line.startswith("the first of them"))
    command = shlex.split(line.partition(": ")[2])
    assert command[0] == "bench"
    repeated = bench(*command[1:])
    assert repeated.code == 3
    assert "2 cells run, 0 were fresh: 2 error" in repeated.err  # the victim's and its twin's


def test_a_plugin_takes_part_in_all(bench, where, tmp_path, root):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from defenses import defense\n\n\n"
        '@defense("mine", paper="none", needs="labels")\n'
        "def mine(model, view):\n    return model\n"
    )
    result = bench("run", "--all", *where, "--budget", "20", "--plugin", plugin)
    assert result.code == 0, result.err
    assert "mine" in (root / "leaderboard" / "leaderboard.md").read_text()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("nope", "unknown attack 'nope'"),
        ("sig[label_rule=all-to-all]", "expected label_rule in clean-label, got 'all-to-all'"),
        ("badnets[poison_rate=0.00001]", "poison_rate 1e-05 rounds to no image of 300"),
        ("sig[poison_rate=1.2]", "expected 0 < poison_rate <= 1, got 1.2"),
        ("wanet[noise_rate=0.95]", "poison_rate + noise_rate <= 1"),
        ("badnets[poison_rate=0.95]", "expected at least 285 images to poison, got 270"),
    ],
)
def test_an_attack_that_cannot_be_made_is_one_error_before_any_training(
    bench, tmp_path, toy_data, toy_profile, attack, message
):
    where = ["-p", toy_profile, "--root", tmp_path, "--data", toy_data]
    result = bench("build-zoo", *where, "--attack", "badnets", "--attack", attack)
    assert result.code == 2
    assert message in result.err
    assert not list(tmp_path.glob("zoo/**/*.safetensors"))


def test_more_targets_than_classes_and_a_target_that_is_none(
    bench, tmp_path, toy_data, toy_profile
):
    folder = tmp_path / "shapes"
    for name in ("a", "b", "c"):
        (folder / "train" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(folder / "train" / name / f"{i}.png")
    where = ["-p", toy_profile, "--root", tmp_path / "root", "--data", toy_data]
    mine = ["--dataset", f"folder:{folder}"]
    result = bench("build-zoo", *where, *mine, "--attack", "multi_trigger")
    assert result.code == 2
    assert "expected at least 7 classes, one for each trigger, got 3" in result.err
    profile = tmp_path / "target.toml"
    profile.write_text(toy_profile.read_text().replace("width =", "target = 10\nwidth ="))
    where = ["-p", profile, "--root", tmp_path / "root", "--data", toy_data]
    result = bench("build-zoo", *where)
    assert result.code == 2
    assert "expected a target from 0 to 9, got 10" in result.err


def test_profile_and_preset_exclude_each_other(bench, toy_profile):
    result = bench("build-zoo", "-p", toy_profile, "--preset", "ibau")
    assert result.code == 2
    assert "expected --profile or --preset, got both" in result.err
    result = bench("build-zoo", "--preset", "quick")
    assert "unknown preset 'quick'. Known: ibau, bcu, dhbe, fred" in result.err


def test_build_zoo_shows_what_there_is(bench, where):
    result = bench("build-zoo", *where)
    assert result.code == 0
    header, _, twin, victim = result.out.splitlines()
    columns = ["victim", "ACC", "twin's", "ASR", "amplified ASR", "RA", "twin's ASR", "verdict"]
    assert re.split(r"  +", header.strip()) == columns
    assert "clean twin seed 0" in twin
    assert twin.endswith("twin")
    assert victim.count(" / ") == 3  # x4 and x9 of the victim; x1, x4 and x9 of its twin
    assert "admitted" in victim
    assert json.loads(bench("build-zoo", *where, "--json").out)[0]["status"] == "twin"
    plan = bench("build-zoo", *where, "--seeds", "3,4", "--dry-run")
    assert "4 to build" in plan.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "say --all, or pick something"),
        (["run", "--all", "-p", "nope"], "unknown profile 'nope'. Known: quick"),
        (["run", "--defense", "ibua"], "Did you mean 'ibau'"),
        (["run", "--attack", "badnetz"], "unknown attack 'badnetz'. Did you mean 'badnets'?"),
        (["run", "--dataset", "cifar"], "unknown data set 'cifar'"),
        (["run", "--budget", "-5"], "expected a budget"),
        (["run", "--seeds", "a"], "expected seeds like 0,1,2 or 0-13"),
        (["run", "--all", "-j", "0"], "expected -j >= 1"),
        (["run", "--all", "--device", "cuda:9"], "See: bench doctor"),
        (["run", "--all", "--executor", "slurm"], "unknown executor"),
        (["run", "--all", "--plugin", "nowhere.py"], "no such file"),
        (["run", "--all", "--plugin", "no.such.module"], "there is no such module"),
        (["run", "--all", "--plugin", ""], "there is no such module"),
        (["run", "--defense", "ibau@"], "expected the name of a base set after the @"),
        (["run", "--defense", "ft[lr=1, lr=2]"], "'lr' is given twice"),
        (["run", "--all", "--data", "/nowhere"], "no such folder"),
        (["build-zoo", "-p", "cpu"], "cifar10/train.parquet"),
        (["leaderboard", "--root", "/nowhere"], "Make some first: bench run --all"),
    ],
)
def test_usage_errors_are_one_clear_message(bench, tmp_path, arguments, message):
    root = [] if "--root" in arguments else ["--root", tmp_path]
    result = bench(*arguments, *root)
    assert result.code == 2
    assert message in result.err
    assert result.err.startswith("bench: ")
    assert "Traceback" not in result.err
    assert result.out == ""


PRUNE = """
import torch
from defenses import defense

@defense("my-prune", paper="x", needs="nothing")
def my_prune(model, view, *, ratio: float = {ratio}):
    with torch.no_grad():
        model.head.weight.mul_(ratio)
        model.head.bias[0] += 1 - ratio
    return model
"""


def test_an_edit_that_is_undone_has_its_first_figures_again(bench, where, root, tmp_path):
    plugin, first, second = tmp_path / "my_prune.py", PRUNE.format(ratio=1.0), PRUNE.format(ratio=0)

    def shown(text: str) -> str:
        plugin.write_text(text)
        arguments = ["--plugin", plugin, "--defense", "my-prune"]
        assert bench("run", *where, *arguments).code == 0
        page = (root / "leaderboard" / "leaderboard.md").read_text()
        assert bench("leaderboard", "--root", root).code == 0
        assert (root / "leaderboard" / "leaderboard.md").read_text() == page
        return page

    before, after = shown(first), shown(second)
    assert before != after
    line = next(line for line in before.splitlines() if "| my-prune" in line)
    assert line not in after
    assert line in shown(first)
    assert next(line for line in after.splitlines() if "| my-prune" in line) in shown(second)


def test_a_plugin_that_leaves_the_process_is_a_broken_one(bench, where, tmp_path):
    plugin = tmp_path / "leaves.py"
    plugin.write_text("import sys\nsys.exit()\n")
    rows = json.loads(bench("list", "defenses", "--plugin", plugin, "--json").out)
    assert any("it calls sys.exit() when it is imported" in str(row) for row in rows)
    result = bench("build-zoo", *where, "--plugin", plugin)  # which would build something else
    assert result.code == 2
    assert "cannot be imported: ImportError: it calls sys.exit()" in result.err


def test_a_module_of_which_the_ending_was_forgotten(bench, where, tmp_path, monkeypatch):
    (tmp_path / "forgotten.py").write_text(PRUNE.format(ratio=1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    result = bench("run", *where, "--plugin", "forgotten", "--dry-run")
    assert result.code == 2
    assert "there is no such module. Did you mean --plugin forgotten.py?" in result.err


def test_a_run_that_could_build_nothing_says_so(bench, tmp_path, toy_data, toy_profile):
    hot = tmp_path / "hot.toml"
    text = Path(toy_profile).read_text()
    hot.write_text(text.replace("[grid.training]\n", "[grid.training]\nlr = 1e9\n"))
    result = bench("run", "--all", "-p", hot, "--root", tmp_path / "hot", "--data", toy_data)
    assert result.code == 3
    assert "DivergedError" in result.err
    assert "not every victim could be built" in result.err


def test_the_examples_of_the_help_can_be_parsed():
    for option, parse in (
        (AttackOption, lambda text: make_attack(*parse_spec(text))),
        (DefenseOption, Registry().parse),
    ):
        text = option.__metadata__[0].help.removeprefix("e.g. ")
        assert parse(text)


def test_unknown_options_and_verbs_leave_with_two(bench):
    assert bench("run", "--everything").code == 2
    assert bench("fly").code == 2


def test_nothing_matched(bench, where, root):
    for path in root.glob("zoo/**/victim.json"):
        meta = json.loads(path.read_text())
        path.write_text(json.dumps({**meta, "status": "rejected"}))
    result = bench("run", "--all", *where)
    assert result.code == 4
    assert "no victim was admitted" in result.err


@pytest.mark.parametrize(
    "what", ["attacks", "defenses", "datasets", "models", "profiles", "budgets"]
)
def test_list(bench, what):
    rows = json.loads(bench("list", what, "--json").out)
    assert rows
    text = bench("list", what).out
    key = next(iter(rows[0]))
    assert all(str(row[key]) in text for row in rows)


def test_list_shows_broken_plugins(bench, tmp_path):
    (tmp_path / "bad.py").write_text("import nope_nope\n")
    rows = json.loads(bench("list", "defenses", "--plugin", tmp_path / "bad.py", "--json").out)
    assert "import-error" in rows[-1]["parameters"]


def test_what_is_asked_for_twice_is_one_cell(bench, where):
    twice = ["--defense", "ft", "--defense", "ft", "--defense", "ft[momentum=0.9]"]
    plan = bench("run", *where, *twice, "--budget", 20, "--budget", 20, "--dry-run", "--json")
    assert json.loads(plan.out)["cells_to_run"] == 2  # a victim and its twin


def test_a_broken_plugin_alone_is_a_row_and_not_the_whole_profile(bench, where, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_that_name")
    for chosen in ([], ["--defense", "broken"]):
        plan = bench(
            "run", *where, "--plugin", path, *chosen, "--budget", 20, "--dry-run", "--json"
        )
        assert plan.code == 0, plan.err
        assert json.loads(plan.out)["cells_to_run"] == 2  # a victim and its twin


def test_help_shows_brackets(bench):
    assert "ibau[rounds=3]" in bench("run", "--help").out


def test_a_file_in_the_place_of_a_folder_is_named(bench, tmp_path):
    write(tmp_path, grid(("ft",))[0])
    (tmp_path / "leaderboard").write_text("")
    done = bench("leaderboard", "--root", tmp_path)
    assert (done.code, str(tmp_path / "leaderboard") in done.err) == (2, True)
    assert "Choose another place" in done.err


def test_doctor(bench, tmp_path, toy_data):
    result = bench("doctor", "--root", tmp_path, "--data", toy_data, "--json")
    assert result.code == 0, result.out
    checks = {c["check"]: c for c in json.loads(result.out)}
    assert checks["torch"]["state"] == "ok"
    assert "cifar10" in checks["data"]["found"]
    assert bench("doctor", "--root", tmp_path, "--data", tmp_path).code == 2


@pytest.mark.parametrize(
    ("text", "seeds"), [("0", (0,)), ("0,2", (0, 2)), ("3-5,4", (3, 4, 5)), (" 1 , 0 ", (1, 0))]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "1,", "5-3", "-1", "x"])
def test_seeds_that_are_not(text):
    with pytest.raises(UserError, match="expected seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("folder", "remedy"), [("/splits/", "Free some space"), ("/budgets/", "Is the disk full?")]
)
def test_a_full_disk_while_planning_is_one_clear_message(bench, where, monkeypatch, folder, remedy):
    fsync = os.fsync

    def full(handle):
        if folder in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    result = bench("run", "--all", *where)
    assert result.code == 2
    assert "No space left" in result.err
    assert remedy in result.err
    assert "Traceback" not in result.err


def test_root_and_data_come_from_the_environment(bench, root, toy_data, toy_profile, monkeypatch):
    monkeypatch.setenv("BENCH_ROOT", str(root))
    monkeypatch.setenv("BENCH_DATA", str(toy_data))
    assert bench("run", "-p", toy_profile, "--defense", "clp").code == 0
    assert list(root.glob("records/clp/*/*.json"))


def test_interrupting_leaves_with_130_and_resumes(where, root, tmp_path):
    import signal

    plugin = tmp_path / "slow.py"
    plugin.write_text(
        "import time\nfrom defenses import defense\n\n\n"
        '@defense("slow", paper="none", needs="labels")\n'
        "def slow(model, view):\n    time.sleep(30)\n    return model\n"
    )
    command = [sys.executable, "-m", "bench.cli", "run", *map(str, where)]
    process = subprocess.Popen(
        [*command, "--defense", "slow", "--plugin", str(plugin), "--budget", "20"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CI": "1"},
        # A shell's background jobs ignore Ctrl-C, and would hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "to do" in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command resumes" in err
    assert not list(root.glob("records/slow/*/*.json"))  # what was under way has left nothing


def test_runner_and_entry_point_are_the_same_app():
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
