"""What could break: an order in which nothing can be built, slots that wait for each other, one
failure that takes the rest with it, things built twice."""

import itertools
import json
import random
import shutil
import signal
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from bench import building
from bench.building import Step, ZooState, build_zoo, zoo_state
from bench.cli import main
from bench.config import load_profile
from bench.harness import Settings, Watcher
from bench.launcher import Exit
from zoo.asset_recipes import MaterialRecipe, SurrogateRecipe, asset_from_dict
from zoo.assets import AssetStore
from zoo.checkpoint import CHECKPOINT
from zoo.data import Library
from zoo.errors import StorageError
from zoo.files import file_digest
from zoo.recipes import VictimRecipe
from zoo.store import Stored, Zoo

# A patch; one adversarial surrogate and one material for three; one that edits the clean twin.
PLAIN, EDIT = "badnets", "trojaning[steps=2, epochs=2, neurons=2]"
CRAFTED = ["label_consistent[steps=2]", "label_consistent[steps=2, mirrored=false]"]
OTHER = "clean_label[steps=3]"  # another material on the same surrogate
PROFILE = """\
name = "building"
description = "every kind of step"
seeds = [0, 1]
budgets = ["0"]
defenses = ["identity"]

[[grid]]
dataset = "cifar10"
arch = "small_vgg"
width = 0.125
attacks = {attacks}

[grid.training]
epochs = 2
batch_size = 100

[grid.robust]
epochs = 1
steps = 1
"""


@pytest.fixture(scope="module")
def library(toy_data, tmp_path_factory):
    return Library(data=toy_data, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "building.toml"
    path.write_text(PROFILE.format(attacks=json.dumps([EDIT, *CRAFTED, PLAIN, OTHER])))
    return path


@pytest.fixture
def settings(library, profile, tmp_path):
    def make(jobs=2, executor="local"):
        return Settings(
            root=tmp_path / "root",
            profile=load_profile(str(profile)),
            library=library,
            device="cpu",
            jobs=jobs,
            executor=executor,
        )

    return make


def kind(step: Step) -> str:
    recipe = step.recipe
    if isinstance(recipe, SurrogateRecipe):
        return "surrogate"
    if isinstance(recipe, MaterialRecipe):
        return "material"
    if recipe.attack is None:
        return "twin"
    return "dependent" if step.needs else "plain"


# --- the order ------------------------------------------------------------------------------------


def test_the_order_of_an_empty_zoo(settings):
    """What begins the longest chains first, then what fills the slots meanwhile."""
    steps = zoo_state(settings()).steps
    kinds = [kind for kind, _ in itertools.groupby(steps, kind)]
    assert kinds == ["surrogate", "twin", "plain", "material", "dependent"]
    counts = {k: sum(kind(s) == k for s in steps) for k in kinds}
    # Two seeds share a target, so that a surrogate and two materials serve all of them.
    expected = {"surrogate": 1, "twin": 2, "plain": 2, "material": 2, "dependent": 8}
    assert counts == expected


@given(built=st.sets(st.integers(0, 14)), judged=st.sets(st.integers(0, 14)))
@examples(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_needed_stands_before_whatever_is_there_already(settings, built, judged):
    everything = [step.recipe for step in zoo_state(settings()).steps]
    assert len(everything) == 15
    there = {everything[i].hash(): i in judged for i in built}

    def victim(_, recipe):
        if recipe.hash() not in there:
            return None
        return Stored(folder=None, meta={"metrics": {} if there[recipe.hash()] else None})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Zoo, "find", victim)
        patch.setattr(AssetStore, "find", lambda _, r: {} if r.hash() in there else None)
        state = zoo_state(settings())
    place = {step.recipe.hash(): i for i, step in enumerate(state.steps)}
    assert len(place) == len(state.steps)  # nothing twice
    assert state.planned == 12
    for step in state.steps:
        recipe = step.recipe
        for need in step.needs:
            assert need in there or place[need] < place[recipe.hash()]
        # Nothing is built that is there; nothing is done for its own sake.
        assert recipe.hash() not in there or (step.trained and not there[recipe.hash()])
        if kind(step) in ("surrogate", "material"):
            assert any(recipe.hash() in other.needs for other in state.steps)


def test_a_victim_named_twice_is_built_once(settings, library, profile):
    text = profile.read_text().replace(f'"{PLAIN}"', f'"{PLAIN}", "badnets[poison_rate=0.1]"')
    profile = profile.with_name("twice.toml")
    profile.write_text(text)
    twice = Settings(
        root=settings().root,
        profile=load_profile(str(profile)),
        library=library,
        device="cpu",
        jobs=2,
    )
    assert len(zoo_state(twice).steps) == 15


# --- the driver, without any training -------------------------------------------------------------


class FakeLauncher:
    """Children that take no time to speak of, build nothing, and write down when they ran."""

    def __init__(self, seed=0, failing=(), outcome=None):
        self.rng, self.failing, self.outcome = random.Random(seed), set(failing), outcome
        self.begun, self.ended, self.jobs = [], [], []
        self.lock = threading.Lock()

    def __call__(self, target, fork):
        assert target == "bench.builder:run"
        return self

    def run(self, job, *, cwd, log, seconds, memory):
        payload = json.loads(json.dumps(job))["recipe"]
        recipe = (asset_from_dict if "asset" in payload else VictimRecipe.from_dict)(payload)
        with self.lock:
            self.begun.append((job["task"], recipe, set(self.ended)))
            self.jobs.append(job)
            pause = self.rng.choice([0, 0.001, 0.01])
        time.sleep(pause)
        ended = self.outcome(job["task"], recipe) if self.outcome else None
        if isinstance(ended, Exit):
            return ended
        message = f"{recipe.label}: broken" if recipe.hash() in self.failing else None
        error = ended or (message and {"storage": False, "message": message})
        (cwd / "result.json").write_text(json.dumps({"error": error}))
        with self.lock:
            self.ended.append((job["task"], recipe.hash()))
        return Exit(rc=0, timed_out=False)

    def close(self):
        self.closed = True

    def ran(self, task):
        return [recipe.hash() for what, recipe, _ in self.begun if what == task]


def drive(settings, state, launcher, monkeypatch, seconds=60):
    """Builds in a thread, so that a deadlock is a failure; returns the messages."""
    monkeypatch.setattr(building, "Launcher", launcher)
    result = []

    def go():
        try:
            result.append(build_zoo(settings, state, Watcher()))
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "the slots wait for each other"
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


KINDS = ("surrogate", "twin", "plain", "material", "dependent")
SLOTS = [(1, "local"), (2, "local"), (5, "local"), (40, "local"), (2, "serial")]


@pytest.mark.parametrize(("jobs", "executor"), SLOTS)
@pytest.mark.parametrize("seed", range(3))
def test_everything_is_built_once_and_after_what_it_needs(
    settings, monkeypatch, jobs, executor, seed
):
    state = zoo_state(settings())
    launcher = FakeLauncher(seed)
    assert drive(settings(jobs, executor), state, launcher, monkeypatch) == []
    assert launcher.closed
    needs = {step.recipe.hash(): step.needs for step in state.steps}
    assert sorted(launcher.ran("build")) == sorted(needs)
    victims = [s.recipe for s in state.steps if isinstance(s.recipe, VictimRecipe)]
    assert sorted(launcher.ran("judge")) == sorted(r.hash() for r in victims)
    for task, recipe, done in launcher.begun:
        if task == "build":
            assert {("build", need) for need in needs[recipe.hash()]} <= done
        else:  # the gate compares with the twin
            assert ("build", recipe.twin().hash()) in done
            assert ("build", recipe.hash()) in done


@pytest.mark.parametrize(("jobs", "executor"), SLOTS)
def test_a_failure_is_one_message_for_each_that_depends_on_it(
    settings, monkeypatch, jobs, executor
):
    """One failing thing after another: the rest is built, nobody waits for ever."""
    state = zoo_state(settings())
    victims = [s.recipe for s in state.steps if isinstance(s.recipe, VictimRecipe)]
    for broken in [next(s for s in state.steps if kind(s) == k) for k in KINDS]:
        name, label = broken.recipe.hash(), broken.recipe.label
        # Directly, or through a material; the twin holds up the gate of all its victims.
        lost = {s.recipe.hash() for s in state.steps if name in s.needs}
        lost |= {s.recipe.hash() for s in state.steps if lost & set(s.needs)}
        unjudged = {v.hash() for v in victims if kind(broken) == "twin" and v.twin().hash() == name}
        launcher = FakeLauncher(failing=[name])
        messages = drive(settings(jobs, executor), state, launcher, monkeypatch)
        assert len(messages) == 1 + len((lost | unjudged) - {name})
        assert f"{label}: broken" in messages
        others = [m for m in messages if m != f"{label}: broken"]
        assert all(": needs " in m and m.endswith("which could not be built") for m in others)
        assert {m.split(": needs ")[0] for m in others} == {
            s.recipe.label for s in state.steps if s.recipe.hash() in (lost | unjudged) - {name}
        }
        everything = {s.recipe.hash() for s in state.steps}
        assert set(launcher.ran("build")) == everything - lost
        assert set(launcher.ran("judge")) == {v.hash() for v in victims} - lost - unjudged - {name}


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_a_disk_that_cannot_be_written_ends_the_build(settings, monkeypatch, jobs):
    state = zoo_state(settings())
    broken = next(s for s in state.steps if kind(s) == "plain").recipe.hash()

    def outcome(task, recipe):
        full = recipe.hash() == broken
        return {"storage": True, "message": "cannot write it"} if full else None

    launcher = FakeLauncher(outcome=outcome)
    with pytest.raises(StorageError, match="cannot write it"):
        drive(settings(jobs), state, launcher, monkeypatch)
    assert launcher.closed
    assert ("judge", broken) not in [(t, r.hash()) for t, r, _ in launcher.begun]
    assert len(launcher.ran("build")) < len(state.steps)


def test_a_lost_server_costs_no_victim(settings, monkeypatch):
    """It is lost once for every step; each is tried once more."""
    seen = set()

    def outcome(task, recipe):
        if (task, recipe.hash()) in seen:
            return None
        seen.add((task, recipe.hash()))
        return Exit(rc=-1, timed_out=False, lost=True)

    state = zoo_state(settings())
    assert drive(settings(), state, FakeLauncher(outcome=outcome), monkeypatch) == []


@pytest.mark.parametrize(
    ("ended", "message"),
    [
        (Exit(rc=-1, timed_out=False, lost=True), "the server of the child processes was lost"),
        (Exit(rc=-signal.SIGKILL, timed_out=False), "ended by signal 9; is there enough memory"),
        (Exit(rc=-signal.SIGSEGV, timed_out=False), "ended by signal 11"),
        (Exit(rc=7, timed_out=False), "left with exit code 7 and no result"),
    ],
)
def test_a_child_without_a_result_is_a_message(settings, monkeypatch, ended, message):
    state = ZooState(built=[], steps=zoo_state(settings()).steps[:1])
    (got,) = drive(settings(), state, FakeLauncher(outcome=lambda *_: ended), monkeypatch)
    assert message in got
    assert got.startswith("cifar10 small_vgg*0.125 robust surrogate: ")


@pytest.mark.parametrize(
    ("jobs", "cores", "threads"), [(2, 8, 4), (2, 2, 1), (40, 24, 2), (1, 3, 3)]
)
def test_threads_do_not_follow_from_what_is_left(settings, monkeypatch, jobs, cores, threads):
    """A victim's last bits depend on them: the last step has no more than the first had."""
    monkeypatch.setattr(building, "cores", lambda: cores)
    state = zoo_state(settings())
    for left in (15, 12, 1):
        steps = state.steps[-left:]
        victims = sum(isinstance(s.recipe, VictimRecipe) for s in steps)
        built = [Stored(folder=None, meta={})] * (12 - victims)
        launcher = FakeLauncher()
        drive(settings(jobs), ZooState(built=built, steps=steps), launcher, monkeypatch)
        assert {job["threads"] for job in launcher.jobs} == {threads}


# --- real ones, small -----------------------------------------------------------------------------


@pytest.fixture
def bench(bench, profile, toy_data):
    """`bench build-zoo`."""

    def run(root, *arguments, seeds="0"):
        where = ["-p", profile, "--root", root, "--data", toy_data, "--seeds", seeds, "-j", 2]
        return bench("build-zoo", *where, *arguments)

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, toy_data, profile):
    """A root in which everything of seed 0 is built."""
    root = tmp_path_factory.mktemp("whole")
    arguments = ["-p", profile, "--root", root, "--data", toy_data, "--seeds", "0", "-j", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bench", "build-zoo", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
    assert left.value.code == 0
    return root


@pytest.fixture
def root(whole, tmp_path):
    """A private copy of it; its cache is left behind."""
    for name in ("zoo", "assets"):
        shutil.copytree(whole / name, tmp_path / "copy" / name)
    return tmp_path / "copy"


def plan_of(bench, root, **options):
    code, out, _ = bench(root, "--dry-run", "--json", **options)
    assert code == 0
    return json.loads(out)


def test_materials_are_built_once_and_shared(whole):
    surrogates = list(whole.glob("assets/surrogates/*/*/*"))
    materials = list(whole.glob("assets/materials/*/*/*"))
    assert [len(surrogates), len(materials)] == [1, 2]
    victims = {path.parent.name: path.parent for path in whole.glob("zoo/*/*/*/victim.json")}
    assert len(victims) == 6
    assert sum(name.startswith("label_consistent") for name in victims) == 2
    for folder in [*surrogates, *materials]:
        assert {p.name for p in folder.iterdir()} == {"asset.json", "tensors.safetensors"}
    for folder in victims.values():
        expected = {"victim.json", "weights.safetensors", "train.jsonl", "trigger.safetensors"}
        files = {p.name for p in folder.iterdir()}
        assert files == (expected - {"trigger.safetensors"} if "none" in folder.name else expected)


def test_a_dry_run_shows_the_order_and_what_each_waits_for(bench, tmp_path):
    plan = plan_of(bench, tmp_path, seeds="0")
    assert plan["built"] == 0
    where = "cifar10 small_vgg*0.125"
    surrogate, twin = f"{where} robust surrogate", f"{where} clean twin seed 0"
    labels = [step["label"] for step in plan["steps"]]
    assert labels[:3] == [surrogate, twin, f"{where} badnets seed 0"]
    after = {step["label"]: step["after"] for step in plan["steps"]}
    materials = [label for label in labels if "adversarial_images" in label]
    assert all(after[label] == [surrogate] for label in materials)
    shared = f"{where} label_consistent[steps=2] clean-label seed 0"
    assert after[shared] == [materials[0]]
    (edit,) = (label for label in labels if "trojaning" in label)
    assert after[edit] == [twin]
    assert after[surrogate] == after[twin] == []
    work = {step["label"]: step["work"] for step in plan["steps"]}
    assert work[surrogate] == "1 epoch"
    assert work[twin] == work[edit] == "2 epochs"
    assert work[materials[0]] == "optimised on the robust surrogate"

    code, out, _ = bench(tmp_path, "--dry-run")
    head, *lines = out.splitlines()
    assert (code, head) == (0, "0 built, 0 to judge, 9 to build")
    assert lines[0] == f"  {surrogate}: 1 epoch"
    assert f"  {edit}: 2 epochs; after {twin}" in lines
    assert f"  {shared}: 2 epochs; after {materials[0]}" in lines
    assert [line.strip().rsplit(": ", 1)[0] for line in lines] == labels
    assert not (tmp_path / "zoo").exists()
    assert not (tmp_path / "assets").exists()


def test_a_gate_that_was_not_reached_is_a_step_of_its_own(bench, root):
    """It waits for the twin, where that must be built again."""
    shutil.rmtree(next(root.glob("zoo/*/*/none-s0-*")))
    path = next(root.glob("zoo/*/*/badnets-s0-*")) / "victim.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "metrics": None, "status": "trained"}))
    twin, gate = plan_of(bench, root)["steps"]
    assert twin["label"] == "cifar10 small_vgg*0.125 clean twin seed 0"
    assert gate["label"] == "cifar10 small_vgg*0.125 badnets seed 0"
    assert (gate["work"], gate["after"]) == ("gate", [twin["label"]])
    assert bench(root)[0] == 0
    again = json.loads(path.read_text())
    for changed in (again, meta):  # a twin built again is the same twin
        del changed["asr_by_part"], changed["reasons"]
    assert again == meta
    assert plan_of(bench, root)["steps"] == []


def test_a_deleted_surrogate_is_not_missed_while_its_materials_are_there(bench, root):
    shutil.rmtree(root / "assets/surrogates")
    victim = next(root.glob("zoo/*/*/label_consistent-steps-2-s0-*"))
    digest = file_digest(victim / "weights.safetensors")
    shutil.rmtree(victim)
    (step,) = plan_of(bench, root)["steps"]
    assert "label_consistent" in step["label"]
    assert step["after"] == []
    assert bench(root)[0] == 0
    assert file_digest(victim / "weights.safetensors") == digest
    assert not (root / "assets/surrogates").exists()
    # A material that is gone as well needs it again.
    shutil.rmtree(victim)
    shutil.rmtree(root / "assets/materials")
    kinds = [step["work"] for step in plan_of(bench, root)["steps"]]
    assert kinds == ["1 epoch", "optimised on the robust surrogate", "2 epochs"]


def test_assets_copied_to_another_root_are_found(bench, whole, tmp_path):
    """For another seed too: they belong to no victim."""
    shutil.copytree(whole / "assets", tmp_path / "assets")
    labels = [step["label"] for step in plan_of(bench, tmp_path, seeds="0-2")["steps"]]
    assert len(labels) == 3 * 6
    assert not [label for label in labels if "surrogate" in label or "images" in label]
    attack = ["--attack", "label_consistent[steps=2]"]
    assert bench(tmp_path, *attack)[0] == 0
    name = "zoo/*/*/label_consistent-steps-2-s0-*/weights.safetensors"
    assert file_digest(next(tmp_path.glob(name))) == file_digest(next(whole.glob(name)))


def test_a_damaged_surrogate_fails_what_needs_it_and_nothing_else(bench, root):
    (surrogate,) = root.glob("assets/surrogates/*/*/*/tensors.safetensors")
    surrogate.write_bytes(surrogate.read_bytes()[:-100])
    shutil.rmtree(root / "assets/materials")
    shutil.rmtree(root / "zoo")
    code, out, err = bench(root)
    assert code == 3
    messages = [line for line in err.splitlines() if line.startswith("bench: ")]
    assert len(messages) == 2 + 3  # two materials, three victims
    assert sum("cannot read" in m and "Delete its folder" in m for m in messages) == 2
    assert sum("which could not be built" in m for m in messages) == 3
    assert "clean twin seed 0" in out
    assert "badnets seed 0" in out
    assert "trojaning" in out


def test_a_failed_twin_fails_its_own_victims_and_no_others(bench, whole, tmp_path):
    shutil.copytree(whole / "assets", tmp_path / "assets")
    found = next(whole.glob("zoo/*/*/none-s0-*"))
    # A folder stands where the twin's log belongs.
    (tmp_path / found.relative_to(whole) / "train.jsonl").mkdir(parents=True)
    attacks = ["--attack", PLAIN, "--attack", EDIT]
    code, out, err = bench(tmp_path, *attacks, seeds="0,1")
    assert code == 3
    messages = [line for line in err.splitlines() if line.startswith("bench: ")]
    assert len(messages) == 3
    where = "cifar10 small_vgg*0.125"
    assert any(f"{where} clean twin seed 0: IsADirectoryError" in m for m in messages)
    lost = f"needs {where} clean twin seed 0, which could not be built"
    assert sum(lost in m for m in messages) == 2
    assert out.count("seed 1") == 3
    assert "seed 0" not in out


def test_what_a_kill_left_beside_something_finished_is_removed(bench, root):
    """Killed after the last file was written, before the checkpoint was removed."""
    victim = next(root.glob("zoo/*/*/badnets-s0-*"))
    surrogate = next(root.glob("assets/surrogates/*/*/*"))
    left = [victim / CHECKPOINT, surrogate / CHECKPOINT]
    left += [victim / ".weights.safetensors.abcdefgh", surrogate / ".tensors.safetensors.12345678"]
    for path in left:
        path.write_bytes(b"x")
    unfinished = root / "zoo/cifar10/small_vgg-0.125/other-s0-00000000"
    unfinished.mkdir()
    (unfinished / CHECKPOINT).write_bytes(b"x")
    assert bench(root)[0] == 0
    assert not [path for path in left if path.exists()]
    assert (unfinished / CHECKPOINT).exists()
    assert (victim / "weights.safetensors").exists()
