"""What could break: sets of another victim or of old code, a reference that is no reference, a
measurement made twice, a number of one set beside the name of another."""

import csv
import dataclasses
import functools
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from attacks import MultiTrigger
from bench import stability, trigger_detection
from bench.base_sets import BaseSets
from bench.config import load_profile
from bench.measurements import measured
from bench.plan import plan_cells
from bench.records import Cost, digest
from bench.registry import Registry
from bench.selection import Selection, select
from bench.subjects import ProbedSet, Subjects, without
from bench.verbs import Request, prepare
from tests.bench.test_harness import FAULTY
from zoo.data import Library
from zoo.stability import Probe
from zoo.trigger_detector import DetectorSchedule

COST = Cost(seconds=1.0, images_forward=1, images_backward=1, peak_rss=1)
BUDGETS = ("0", "20")


def stock(root, data, profile, defense, budget):
    """Stores what the builder `grey` would make for a victim and its twin, and appends what it got."""
    library, registry = Library(data=data, cache=root / "cache"), Registry()
    registry.add_file(FAULTY)
    pick = Selection(defenses=(defense,), budgets=(budget,))
    cells, _ = plan_cells(
        select(load_profile(str(profile)), pick, library), registry, root, library
    )
    for planned in cells:
        base = planned.base
        labels = torch.arange(10).repeat_interleave(base.params["per_class"])
        draw = torch.Generator().manual_seed(base.seed)
        images = torch.randint(256, (len(labels), 3, 32, 32), generator=draw).byte()
        if base.clean:
            given = load_file(planned.budget.file)
            images = torch.cat([images, given["images"]])
            labels = torch.cat([labels, given["labels"]])
        made = {"images": images, "labels": labels}
        BaseSets(root).save(base, made, {"cost": dataclasses.asdict(COST), "curve": []})


@pytest.fixture(scope="module")
def stocked(built_root, toy_data, toy_profile, tmp_path_factory):
    """A root with base sets of the builder `grey`: two sizes, one with clean images of budget 20."""
    root = tmp_path_factory.mktemp("stocked") / "root"
    shutil.copytree(built_root, root)
    stock(root, toy_data, toy_profile, "works@grey", "0")
    stock(root, toy_data, toy_profile, "works@grey", "20")
    stock(root, toy_data, toy_profile, "works@grey[per_class=3]", "0")
    return root


@pytest.fixture
def root(stocked, tmp_path):
    shutil.copytree(stocked, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def where(root, toy_data, toy_profile):
    return {
        "profile": str(toy_profile),
        "root": str(root),
        "data": str(toy_data),
        "plugin": [str(FAULTY)],
        "device": "cpu",
        "budget": list(BUDGETS),
    }


@pytest.fixture
def bench(bench, where, monkeypatch):
    """Runs the real entry point in this process, with short schedules."""
    short = functools.partial(Probe, steps=2, starts=2, scout_steps=1, norms=(0.0, 1.0, 8.0))
    monkeypatch.setattr(stability, "Probe", short)
    quick = functools.partial(DetectorSchedule, images=100, steps=4, batch_size=32, width=0.125)
    monkeypatch.setattr(trigger_detection, "DetectorSchedule", quick)

    def run(*arguments, plugin=True, **changes):
        options = where | changes | ({} if plugin else {"plugin": []})
        words = [
            word
            for name, value in options.items()
            for one in (value if isinstance(value, list) else [value])
            for word in (f"--{name}", one)
        ]
        return bench(*arguments, *words)

    return run


def only_subject(where):
    (subject,) = Subjects(*prepare(Request(**where)))
    return subject


def rows_of(images):
    return {image.numpy().tobytes() for image in images}


def test_a_victim_comes_with_its_own_sets_and_what_a_builder_was_given_is_left_out(where):
    subject = only_subject(where)
    assert subject.victim.meta["attack"] == "badnets"  # its twin has sets, too, and is no subject
    sets = {probed.label: probed for probed in subject.sets}
    assert list(sets) == ["grey", "grey (+20)", "grey[per_class=3]"]
    assert [len(probed.labels) for probed in sets.values()] == [
        20,
        20,
        30,
    ]  # not 40 with clean ones
    assert [probed.per_class for probed in sets.values()] == [2, 2, 3]
    assert sets["grey"].labels.tolist() == [y for y in range(10) for _ in "12"]
    assert torch.equal(
        sets["grey"].images, sets["grey (+20)"].images
    )  # its noise has the same seed
    assert all(str(probed.sheet).startswith("assets/base-sets/grey/") for probed in subject.sets)


def test_references_are_of_the_pool_and_of_the_clean_training_set(where):
    subject = only_subject(where)
    assert subject.sizes() == [2, 3]
    clean, training = subject.clean(2), subject.training(2)
    split, data = subject.manifest.split, subject.data
    assert rows_of(clean.images) <= rows_of(data.test.images[split.pool])
    assert not rows_of(clean.images) & rows_of(data.test.images[split.eval])
    assert rows_of(training.images) <= rows_of(data.train.images)  # without any trigger
    for reference in (clean, training):
        assert reference.labels.bincount().tolist() == [2] * 10
    assert torch.equal(subject.clean(1).labels, clean.labels[:10])  # nested, as budgets are


def test_without_keeps_the_order_and_what_only_looks_alike():
    images = torch.arange(24, dtype=torch.uint8).view(4, 1, 2, 3)
    assert without(images, images[[2, 0]]).tolist() == [1, 3]
    assert without(images, images[:0]).tolist() == [0, 1, 2, 3]
    assert without(images, images + 1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"code": "0" * 64}, "of an older version of their builder"),
        ({"prior": "0" * 64}, "of another prior than the profile's"),
        ({"budget": "0" * 64}, "of a budget that the profile lacks"),
        ({"victim": "0" * 64}, ""),
    ],
)
def test_what_is_not_current_is_left_out_and_counted(where, root, capfd, change, words):
    victim = only_subject(where).victim
    for path in list(root.glob("assets/base-sets/*/*/*/base-set.json")):
        meta = json.loads(path.read_text())
        if meta["inputs"]["victim"] == victim.hash and meta["images"] == 20:
            other = {**meta["inputs"], **change}
            key = digest(other)
            moved = path.parents[2] / key[:2] / key
            moved.parent.mkdir(exist_ok=True)
            shutil.move(path.parent, moved)
            text = json.dumps({**meta, "inputs": other, "key": key})
            (moved / path.name).write_text(text)
    subjects = Subjects(*prepare(Request(**where)))
    labels = [probed.label for subject in subjects for probed in subject.sets]
    assert labels == ["grey (+20)", "grey[per_class=3]"]
    subjects.explain()
    told = capfd.readouterr().err
    assert (f"1 left out: base sets {words}" in told) if words else told == ""


def test_a_measurement_is_made_once_for_its_inputs(tmp_path):
    calls = []

    def of(inputs, value=1.5):
        return measured(tmp_path, "length", inputs, lambda: calls.append(1) or {"value": value})

    assert of({"a": 1}) == of({"a": 1}, value=9) == {"value": 1.5}
    assert len(calls) == 1
    assert of({"a": 2}, value=9) == {"value": 9}
    (path,) = [p for p in tmp_path.glob("measurements/length/*/*.json") if "9" in p.read_text()]
    path.write_text("{")  # a damaged file is measured again
    assert of({"a": 2}, value=7) == {"value": 7}


# -- bench stability


def test_stability_of_every_set_and_its_references(bench, root, monkeypatch):
    code, out, err = bench("stability", "--json")
    assert code == 0, err
    shown = json.loads(out)
    sets = [(row["set"], row["budget"], row["per_class"], row["kind"]) for row in shown["rows"]]
    assert sets == [
        ("grey", "", 2, "base-set"),
        ("grey", "20", 2, "base-set"),
        ("grey[per_class=3]", "", 3, "base-set"),
        *(("clean", "", size, "clean") for size in (2, 3)),
        *(("training", "", size, "training") for size in (2, 3)),
    ]
    with open(shown["csv"]) as stream:
        assert [line["set"] for line in csv.DictReader(stream)] == [
            row["set"] for row in shown["rows"]
        ]
    first = shown["rows"][0]
    assert 0 <= first["misclassified_at_0"] <= 1
    assert 0 < first["gradient_median"] <= first["gradient_90"]
    (picture,) = shown["pictures"]
    assert picture["svg"].startswith(str(root / "leaderboard" / "stability"))
    with open(picture["csv"]) as stream:
        lines = list(csv.DictReader(stream))
    gradients = [line for line in lines if line["quantity"] == "gradient"]
    assert len(gradients) == sum(row["images"] for row in shown["rows"])

    def again(*_):
        raise AssertionError("it has been measured")

    monkeypatch.setattr(stability, "measure_set", again)
    code, out, err = bench("stability")
    assert code == 0, err
    assert "norm for 50 % wrong" in out
    assert "(training)" in out
    assert out.split()[-4:] == [shown["csv"], picture["svg"], picture["png"], picture["csv"]]


def test_what_is_measured_is_of_the_labels_and_of_the_triggers_goal():
    """A model that says 1 to dark images and 2 to bright ones, whatever else they are."""

    class Bright(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor([0.0, -9.0, 9.0]))

        def forward(self, images):
            middle = images.flatten(1).mean(1, keepdim=True) - 0.5
            return middle * self.slope - torch.tensor([99.0, 0, 0])

    images = torch.tensor([0, 0, 255, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 4, 4)
    labels = torch.tensor([1, 0, 1, 2])
    probed = ProbedSet(
        kind="base-set", name="x", per_class=1, images=images.contiguous(), labels=labels
    )
    goals = torch.tensor([[2], [2], [2], [2]])
    found = stability.measure_set(Bright(), probed, goals, Probe(norms=(0.0, 20.0)))
    # Untouched, image 1 is taken for 1 and image 2 for 2. Bright enough, all are taken for 2.
    assert found["misclassified"] == [0.5, 0.75]
    assert found["as_trigger"] == [0.25, 0.75]
    assert len(found["gradients"]) == 4


def test_the_goals_of_an_attack_with_several_triggers_are_all_of_them():
    attack = MultiTrigger()
    meta = {"target": 1}
    subject = SimpleNamespace(
        victim=SimpleNamespace(attack=lambda: (attack, {}), meta=meta),
        data=SimpleNamespace(num_classes=10),
    )
    goals = stability.goals_of(subject, torch.tensor([0, 5]))
    one_by_one = [attack.relabel(torch.zeros(7, dtype=torch.long), 1, 10).tolist()]
    assert goals.tolist() == one_by_one * 2


def test_half_of_the_misclassified_are_read_where_half_are_reached():
    m = SimpleNamespace(misclassified=(0.0, 0.4, 0.8, 1.0), as_trigger=(0.0, 0.4, 0.2, 0.0))
    assert stability.as_trigger(m) == pytest.approx(0.25)
    never = SimpleNamespace(misclassified=(0.0, 0.4), as_trigger=(0.0, 0.4))
    assert stability.as_trigger(never) is None


# -- bench trigger-detection


def test_trigger_detection_of_every_set(bench, root, monkeypatch):
    code, out, err = bench("trigger-detection", "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [row["kind"] for row in rows] == ["base-set"] * 3 + ["clean"] * 2
    shares = ("right_clean", "right_triggered", "triggered", "stamped")
    assert all(0 <= row[name] <= 1 for row in rows for name in shares)
    assert len({(row["right_clean"], row["right_triggered"]) for row in rows}) == 1
    with open(root / "leaderboard" / "trigger-detection.csv") as stream:
        lines = list(csv.DictReader(stream))
    assert [float(line["stamped"]) for line in lines] == [row["stamped"] for row in rows]

    def again(*_):
        raise AssertionError("it has been detected")

    monkeypatch.setattr(trigger_detection, "detect", again)
    code, out, err = bench("trigger-detection")
    assert code == 0, err
    assert "taken for triggered" in out


def test_a_detector_that_knows_the_trigger_says_what_is_in_the_sets(where, monkeypatch):
    """One set made of triggered images, one of clean ones: the answers stand in their order."""
    subject = only_subject(where)
    attack, assets = subject.victim.attack()
    clean = subject.clean(5)
    fields = {"kind": "base-set", "per_class": 5, "labels": clean.labels}
    stamped = ProbedSet(name="a", images=attack.trigger(clean.images, assets), **fields)
    schedule = DetectorSchedule(steps=40, batch_size=32, width=0.25)
    found = trigger_detection.detect(subject, (stamped, clean), schedule, "cpu")
    assert min(found["right_clean"], found["right_triggered"]) > 0.9
    assert found["sets"][0]["triggered"] > 0.9 > 0.1 > found["sets"][1]["triggered"]
    assert found["sets"][1]["stamped"] == found["sets"][0]["triggered"]
    monkeypatch.setattr(trigger_detection, "HELD_OUT", 30)
    seen = trigger_detection.held_out(subject.victim, subject.data)
    assert len(seen) == 30
    assert rows_of(seen) <= rows_of(subject.data.test.images[subject.manifest.split.eval])


# -- both


@pytest.mark.parametrize("verb", ["stability", "trigger-detection"])
def test_nothing_to_look_at(bench, root, verb):
    code, out, err = bench(verb, plugin=False)
    assert (code, out) == (4, "")
    assert "of the builder grey, which is not registered: --plugin FILE.py" in err
    assert "bench: there is no base set to look at" in err
    for path in root.glob("zoo/**/victim.json"):
        meta = json.loads(path.read_text())
        path.write_text(json.dumps({**meta, "status": "rejected"}))
    code, _, err = bench(verb)
    assert code == 4
    assert "victims not built or not admitted: bench build-zoo" in err
