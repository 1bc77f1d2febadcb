"""What could break: a plugin that breaks a rule passes, or one that keeps them all does not."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from bench import checking, codehash
from bench.attack_rules import RULES as ATTACK_RULES
from bench.attack_rules import AttackTrial
from bench.audit import watched
from bench.conformance import findings
from bench.defense_rules import RULES as DEFENSE_RULES
from bench.set_rules import RULES as SET_RULES
from bench.set_rules import SetTrial
from bench.trials import Trial
from tests.plugins import marks, misbehaves
from zoo.adoption import ATTACKS, MATERIALS
from zoo.errors import UserError
from zoo.sets import SETS

PLUGINS = Path(__file__).parents[1] / "plugins"
FROZEN = "from dataclasses import dataclass\n@dataclass(frozen=True, kw_only=True)\n"


@pytest.fixture(autouse=True)
def _forget():
    yield
    for names in (ATTACKS, MATERIALS, SETS):
        names.forget()


def verdicts(name, trial, rules):
    """Rules that did not pass, with the first line of what was seen."""
    found = findings(name, trial, rules)
    return {f.rule: (f.verdict, f.seen.splitlines()[0]) for f in found if f.verdict != "pass"}


@pytest.mark.parametrize(
    ("name", "rule", "verdict", "seen"),
    [
        ("says_nothing", "facts", "fail", "paper is empty"),
        ("returns_weights", "returns-a-model", "fail", "expected the defense to return a Classif"),
        ("reads_labels", "declared-data-only", "fail", "needs='images', and reads view.labels"),
        ("asks_for_too_much", "declared-data-only", "note", "never reads view.labels"),
        ("draws_at_large", "same-seed-same-result", "fail", "came to different results"),
        ("scribbles", "data-unchanged", "fail", "view.images were changed in place"),
        ("repairs_the_wrong_one", "model-in-place-or-copy", "note", "returned another one"),
        ("leaves_a_hook", "nothing-left-behind", "fail", "a hook is left on head"),
        ("freezes", "nothing-left-behind", "fail", "it left changed: gradients are on"),
        ("chatters", "a-sane-curve", "note", "5000 points were logged; 200 are kept"),
        ("takes_notes", "returns-a-model", "fail", "FileNotFoundError"),
        ("knows_ten_classes", "every-number-of-classes", "fail", "RuntimeError: The size of"),
        ("wants_many", "every-budget", "fail", "ZeroDivisionError"),
        ("knows_the_layers", "every-architecture", "fail", "StopIteration"),
    ],
)
def test_a_defense_that_breaks_a_rule_is_told_which(name, rule, verdict, seen):
    trial = Trial(getattr(misbehaves, name).defense)
    found = verdicts(name, trial, DEFENSE_RULES)
    assert found[rule][0] == verdict
    assert seen in found[rule][1]
    # What cannot run at all breaks every rule that looks at a run, and one image is an extreme
    # that the rule on architectures tries as well; nothing else is blamed.
    broken = {"returns_weights", "takes_notes"}
    assert name in broken or set(found) <= {
        rule,
        *({"every-architecture"} & {*found} if name == "wants_many" else ()),
    }


def test_what_is_written_elsewhere_or_called_is_seen(tmp_path, monkeypatch):
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    allowed.mkdir()
    other.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(allowed))
    (other / "known.txt").write_text("before anybody looks")
    with watched() as events:
        (allowed / "scratch.txt").write_text("in the temporary folder")
        (other / "known.txt").read_text()
    assert events == []
    with watched() as events:
        (other / "notes.txt").write_text("elsewhere")
        (other / "known.txt").unlink()
        socket.getaddrinfo("localhost", 80)
    assert [event.split()[0] for event in events] == ["writes", "os.remove", "socket.getaddrinfo"]
    assert str(other / "notes.txt") in events[0]


def test_a_defense_that_writes_elsewhere_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "allowed"))
    monkeypatch.setattr(misbehaves, "DIARY", tmp_path / "diary.txt")
    found = verdicts("x", Trial(misbehaves.keeps_a_diary.defense), DEFENSE_RULES)
    assert found == {"no-files-no-network": ("fail", f"writes {tmp_path / 'diary.txt'}")}


def test_a_base_set_that_changes_its_victim():
    found = verdicts("x", Trial(misbehaves.changes_the_victim.base_set), DEFENSE_RULES)
    assert found == {
        "model-in-place-or-copy": ("fail", "a base-set builder changed the victim's head.bias")
    }


@pytest.mark.parametrize(
    ("attack", "rule", "seen"),
    [
        (marks.Painter, "leaves-its-input-alone", "it returns the images it was given"),
        (marks.Shy, "changes-every-image", "some images come back unchanged"),
        (marks.Moody, "same-seed-same-trigger", "the same assets make different images"),
        (marks.Steady, "grows-with-strength", "distances do not grow"),
    ],
)
def test_an_attack_that_breaks_a_rule_is_told_which(attack, rule, seen):
    found = verdicts(attack.name, AttackTrial(attack), ATTACK_RULES)
    assert found[rule][0] == "fail"
    assert seen in found[rule][1]
    assert verdicts("frame", AttackTrial(marks.Frame), ATTACK_RULES) == {}


@pytest.mark.parametrize(
    ("function", "rule", "seen"),
    [
        ("leaky", "no-image-in-both-parts", "240 test images are training images"),
        ("restless", "same-every-time", "two readings of 'train' differ"),
        ("gappy", "every-class-is-there", "images per class in the training part: [60, 0, 60"),
        ("floaty", "images-and-labels", "expected images uint8 (N, 3, 32, 32), got float32"),
        ("alone", "out-of-distribution-set", "ood='nowhere' is not the name of another set"),
    ],
)
def test_a_data_set_that_breaks_a_rule_is_told_which(function, rule, seen):
    mark = getattr(marks, function).dataset
    found = verdicts(mark.name, SetTrial(mark.name, mark.facts), SET_RULES)
    assert found[rule][0] == "fail"
    assert seen in found[rule][1]
    good = marks.four_greys.dataset
    assert verdicts("four-greys", SetTrial("four-greys", good.facts), SET_RULES) == {}


@pytest.mark.parametrize("what", ["defense", "attack", "dataset"])
def test_what_new_writes_passes_and_is_not_overwritten(bench, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    made = bench("new", what, "my-thing")
    assert made.out == "my_thing.py\n"
    assert "next: bench check my_thing.py, then: bench run --plugin my_thing.py" in made.err
    result = bench("check", "my_thing.py", "--json")
    assert result.code == 0, result
    assert {f["verdict"] for f in json.loads(result.out)} == {"pass"}
    again = bench("new", what, "my-thing")
    assert again.code == 2
    assert "is there already" in again.err


@pytest.mark.parametrize("name", ["My-Thing", "../x", "class", ""])
def test_names_that_new_refuses(bench, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    result = bench("new", "defense", name)
    assert result.code == 2
    assert "expected a name like 'my-defense'" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "name"), [("defense", "ft"), ("attack", "badnets"), ("dataset", "cifar10")]
)
def test_new_takes_no_name_that_is_built_in(bench, tmp_path, monkeypatch, what, name):
    monkeypatch.chdir(tmp_path)
    result = bench("new", what, name)
    assert result.code == 2
    assert f"'{name}' is a built-in {what}: choose another name" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "rule", "seen"),
    [
        ("    import time\n    time.sleep(60)", "finishes", "not all rules were reached"),
        ("    import os\n    os._exit(7)", "finishes", "it died: code 7"),
    ],
)
def test_a_plugin_that_hangs_or_dies_ends_the_check_only(
    bench, tmp_path, monkeypatch, body, rule, seen
):
    monkeypatch.setattr(checking, "SECONDS", 12.0)
    path = tmp_path / "bad.py"
    head = 'from defenses import defense\n@defense("bad", paper="x", needs="nothing")\n'
    path.write_text(f'{head}def bad(model, view, *, steps: int = 5):\n    """Bad."""\n{body}\n')
    result = bench("check", path)
    assert result.code == 3
    assert f"fail  {rule}: {seen}" in result.out
    if "not all" in seen:
        assert "bad[...=...]', of steps" in " ".join(result.out.split())


def test_a_plugin_that_cannot_be_imported_and_a_name_that_is_taken(bench, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_that_name\n")
    result = bench("check", broken)
    assert result.code == 3
    assert "fail  imports: ModuleNotFoundError: No module named 'nothing_of_" in result.out
    taken = tmp_path / "taken.py"
    taken.write_text(
        'from defenses import defense\n@defense("ft", paper="x", needs="nothing")\n'
        "def ft(model, view):\n    return model\n"
    )
    result = bench("check", taken)
    assert result.code == 2
    assert "two defenses are called 'ft': one from built-in, one from file:taken.py" in result.err
    assert "nothing is called 'nope'" in bench("check", "nope").err


# The same fifteen lines for all three ways onto the board.
PRUNE = textwrap.dedent(
    '''
    import torch
    from defenses import DefenderView, defense
    from zoo.models import Classifier

    @defense("quiet-{way}", paper="unpublished", needs="images")
    def quiet(model: Classifier, view: DefenderView, *, ratio: float = 0.1) -> Classifier:
        """Silences the quietest features."""
        with torch.no_grad():
            activity = model.features(view.require_images()).mean(0)
            silent = activity.argsort()[: round(ratio * len(activity))]
            model.head.weight[:, silent] = 0
        view.log(step=0, silenced=len(silent))
        return model
    '''
)


def bench_in(cwd, *arguments, path=""):
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


def test_three_ways_onto_the_board(root, toy_data, toy_profile, tmp_path):
    """A loose file, a module by its name, and a package that pip has installed."""
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "loose.py").write_text(PRUNE.format(way="file"))
    (site / "some_module.py").write_text(PRUNE.format(way="module"))
    (site / "some_package.py").write_text(PRUNE.format(way="package"))
    info = site / "some_package-1.0.dist-info"  # what pip leaves behind
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n")
    points = "[unbackdoor.defenses]\nquiet = some_package:quiet\n"
    points += "gone = some_package:not_there\n"
    (info / "entry_points.txt").write_text(points)
    where = ["-p", toy_profile, "--root", root, "--data", toy_data, "-j", "1", "--device", "cpu"]
    plugins = ["--plugin", "loose.py", "--plugin", "some_module"]
    result = bench_in(tmp_path, "run", *plugins, "--budget", "20", *where, path=site)
    assert result.returncode == 3, result.stderr  # of the entry point that is not there
    assert "import-error: gone" in result.stderr
    assert "cannot read" not in result.stderr  # of the victims, for the page on the gate
    board = (root / "leaderboard" / "leaderboard.csv").read_text()
    for way in ("file", "module", "package"):
        assert f"quiet-{way}" in board
    assert "gone" in board


def test_an_attack_and_a_data_set_of_a_plugin_are_built_and_judged(bench, tmp_path, toy_profile):
    where = ["-p", toy_profile, "--root", tmp_path / "root", "-j", "1", "--device", "cpu"]
    plugin = tmp_path / "greys.py"
    text = (PLUGINS / "marks.py").read_text()
    plugin.write_text(
        text[: text.index("@dataclass(frozen=True, kw_only=True)\nclass Painter")]
        + text[text.index("def colours") : text.index('@dataset("leaky")')]
    )
    dry = bench("build-zoo", "--plugin", plugin, *where, "--dry-run")
    assert "four-greys small_vgg*0.125 frame seed 0" in dry.out
    assert "badnets" not in dry.out  # what a loose plugin brings stands alone
    built = bench("build-zoo", "--plugin", plugin, *where, "--json")
    assert built.code == 0, built.err
    victim = next(v for v in json.loads(built.out) if v["attack"] == "frame")
    assert victim["dataset"] == "four-greys"
    assert list(victim["metrics"]["strengths"]) == ["x1", "x2", "x3"]
    recipe = victim["recipe"]["attack"]
    assert recipe["code"]
    # An edited trigger is another victim (in another process: this one remembers the hash).
    codehash.code_hash.cache_clear()
    plugin.write_text(plugin.read_text().replace("fill_(255)", "fill_(250)"))
    again = bench("build-zoo", "--plugin", plugin, *where, "--dry-run", "--json")
    assert [step["label"] for step in json.loads(again.out)["steps"]] == [
        "four-greys small_vgg*0.125 frame seed 0"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class A(Attack):\n    name = 'a'", "expected the class fact paper: str"),
        (
            "class A(Attack):\n    name = 'A!'\n    paper = 'x'\n    kind = 'patch'",
            "a name of its own",
        ),
        ("class A(Attack):\n    name = 'a'\n    paper = 'x'\n    kind = 'patch'", "frozen=True"),
        (
            f"{FROZEN}class A(Attack):\n    name = 'a'\n    paper = 'x'\n    kind = 'loud'",
            "kind in",
        ),
    ],
)
def test_an_attack_without_its_facts_is_kept_with_its_reason(tmp_path, text, message):
    from bench.registry import Registry

    body = "\n    def prepare(self, p): return {}\n    def amplified(self, i, s, a): return i\n"
    path = tmp_path / "odd.py"
    path.write_text(f"from attacks import Attack\n{text}{body}")
    registry = Registry()
    registry.add_file(path)
    assert message in registry.broken["odd"].message


def test_two_plugins_with_an_attack_of_one_name(tmp_path):
    from bench.registry import Registry

    text = (PLUGINS / "marks.py").read_text()
    text = text[: text.index("@dataclass(frozen=True, kw_only=True)\nclass Painter")]
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(text)
    registry = Registry()
    registry.add_file(tmp_path / "one.py")
    registry.add_file(tmp_path / "one.py")  # the same file again is the same attack
    with pytest.raises(UserError, match=r"attacks are called 'frame': one from file:one.py, one"):
        registry.add_file(tmp_path / "two.py")


def blocks(language):
    """The fenced blocks of the page on adding a defense, in order."""
    page = (Path(__file__).parents[2] / "docs" / "adding-a-defense.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.M | re.S)


def test_the_page_on_adding_a_defense_works_as_written(
    bench, root, toy_data, toy_profile, tmp_path, monkeypatch
):
    """All its code and commands in order; only the run is told of a small profile."""
    monkeypatch.chdir(tmp_path)
    plugin, test = blocks("python")
    new, check, run = (block.split("#")[0].split()[1:] for block in blocks("bash"))
    assert bench(*new).code == 0
    Path("my_prune.py").write_text(plugin)
    checked = bench(*check)
    assert checked.code == 0, checked.out
    assert "my-prune: 12 pass" in checked.out
    small = ["-p", toy_profile, "--data", toy_data, "--root", root, "-j", "1", "--device", "cpu"]
    ran = bench(*run, *small)
    assert ran.code == 0, ran.err
    assert "my-prune" in (root / "leaderboard" / "leaderboard.md").read_text()
    own: dict[str, object] = {"__file__": str(tmp_path / "test_my_prune.py")}
    exec(compile(test, "test_my_prune.py", "exec"), own)
    (parametrize,) = own["test_my_prune"].pytestmark
    assert len(parametrize.args[1]) == 12
    for case in parametrize.args[1]:
        own["test_my_prune"](*case.values)
