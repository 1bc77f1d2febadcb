"""What could break: the wrong training set, one that betrays its poison, or one made again and again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench import harness as harness_module
from tests.bench.test_harness import PLUGINS, Setup, by_cell, hashes_of
from tests.plugins.retrains import twin
from zoo.build import judge_of
from zoo.data import Library
from zoo.errors import UserError
from zoo.evaluate import evaluate
from zoo.store import Stored

TOKEN = "poisoned-train"


def plugin_in(folder: Path, name: str, old: str, new: str) -> Path:
    """A copy of a plugin with one line changed."""
    text = (PLUGINS / name).read_text()
    assert text.count(old) == 1
    path = folder / name
    path.write_text(text.replace(old, new))
    return path


def stored_in(root: Path) -> dict[str, Stored]:
    metas = {path: json.loads(path.read_text()) for path in root.glob("zoo/**/victim.json")}
    return {meta["attack"]: Stored(folder=p.parent, meta=meta) for p, meta in metas.items()}


@pytest.fixture
def setup(root, toy_data, toy_profile):
    return Setup(root, toy_data, toy_profile, [PLUGINS / "retrains.py"])


def test_the_set_is_the_one_the_victim_was_trained_on(root, toy_data, toy_profile, tmp_path):
    plugin = plugin_in(tmp_path, "retrains.py", 'PLACE = ""', f'PLACE = "{tmp_path}"')
    found = by_cell(Setup(root, toy_data, toy_profile, [plugin]).run("retrains"))
    assert {k: r.status for k, r in found.items()} == {
        ("retrains", TOKEN, "badnets"): "ok",
        ("retrains", TOKEN, "none"): "ok",
    }
    victim = stored_in(root)["badnets"]
    attack, assets = victim.attack()
    clean = Library(data=toy_data, cache=root / "cache").load("cifar10").train
    given = [load_file(path) for path in tmp_path.glob("*.safetensors")]
    changed = {}
    for data in given:
        images = (data["images"] * 255).round().to(torch.uint8)
        index = (images != clean.images).flatten(1).any(1).nonzero().flatten()
        changed[len(index)] = (index, images, data["labels"])
    assert sorted(changed) == [0, victim.meta["poisoned_images"]]  # the twin's, the victim's
    assert torch.equal(changed[0][2], clean.labels)
    index, images, labels = changed[victim.meta["poisoned_images"]]
    assert torch.equal(images[index], attack.trigger(clean.images[index], assets))
    assert (labels[index] == victim.meta["target"]).all()
    others = torch.ones(len(labels), dtype=torch.bool)
    others[index] = False
    assert torch.equal(labels[others], clean.labels[others])


def test_it_runs_once_whatever_the_budgets_and_the_record_says_what_it_got(setup):
    found = by_cell(setup.run("retrains", "identity", budgets=("1", "20")))
    assert {k[1] for k in found if k[0] == "retrains"} == {TOKEN}
    record = found["retrains", TOKEN, "badnets"]
    touched = record.data_touched
    assert (touched["granted_images"], touched["granted_labels"]) == (300, "training")
    assert touched["budget_images"] == 300
    assert touched["read_images"]
    # Two sets: a retrained victim, another trigger or other data make another key.
    assert (
        touched["budget_sha256"] != found["retrains", TOKEN, "none"].data_touched["budget_sha256"]
    )
    assert record.inputs["budget"] == touched["budget_sha256"]


def test_a_returned_model_may_differ_in_its_normalisation_and_in_nothing_else(setup):
    names = ("retrains", "keeps-the-norm", "other-width", "no-right-to-it")
    found = by_cell(setup.run(*names, budgets=("20",)))
    record = found["retrains", TOKEN, "badnets"]
    victim = stored_in(setup.root)["badnets"]
    judge = judge_of(victim, setup.library.load("cifar10"))
    expected = evaluate(twin(victim.spec, "group"), judge)
    assert record.after.acc == expected["acc"]
    assert record.after.asr == expected["strengths"]["x1"]["asr"]
    assert found["keeps-the-norm", TOKEN, "badnets"].after == record.before
    for name, budget in (("other-width", TOKEN), ("no-right-to-it", "20")):
        record = found[name, budget, "badnets"]
        assert record.status == "error"
        assert "model of the architecture it was given" in record.error["message"]


def test_training_privately_goes_the_whole_way(setup):
    pytest.importorskip("opacus")
    name = "dp[batch_size=30, steps=3]"
    found = by_cell(setup.run(name))
    for attack in ("badnets", "none"):
        record = found[name, TOKEN, attack]
        assert record.status == "ok", record.error
        assert record.after.images == record.before.images
        assert 60 < record.cost.images_forward == record.cost.images_backward < 120  # 90 expected
        assert record.curve[-1]["step"] == 3
        assert 0 < record.curve[-1]["epsilon"] < 10
        assert record.curve[-1]["delta"] == 1 / 300
    assert found[name, TOKEN, "badnets"].score is not None


def test_all_cells_of_a_victim_share_one_set(setup, monkeypatch):
    made = []

    def counted(victim, *rest):
        made.append(victim.hash)
        return original(victim, *rest)

    original = harness_module.training_set_of
    monkeypatch.setattr(harness_module, "training_set_of", counted)
    records = setup.run("retrains", "keeps-the-norm", "other-width")
    assert len(records) == 6
    assert len(made) == len(set(made)) == 2


def test_poison_that_was_never_a_set_is_not_applicable(setup):
    victim = stored_in(setup.root)["badnets"]
    path = victim.folder / "victim.json"
    path.write_text(json.dumps({**victim.meta, "poisoned_images": None}))
    found = by_cell(setup.run("retrains"))
    assert found["retrains", TOKEN, "none"].status == "ok"
    record = found["retrains", TOKEN, "badnets"]
    assert record.status == "not-applicable"
    assert "made anew in every batch" in record.error["message"]


def test_a_set_that_cannot_be_made_again_costs_its_own_cells(setup, monkeypatch):
    original = harness_module.training_set_of

    def lost(victim, *rest):
        if victim.meta["attack"] != "none":
            raise UserError("the material is gone; build it again")
        return original(victim, *rest)

    monkeypatch.setattr(harness_module, "training_set_of", lost)
    found = by_cell(setup.run("retrains", "identity"))
    record = found["retrains", TOKEN, "badnets"]
    assert (record.status, record.error["message"]) == (
        "error",
        "the material is gone; build it again",
    )
    assert found["retrains", TOKEN, "none"].status == "ok"
    assert found["identity", "0", "badnets"].status == "ok"


def test_nothing_but_the_set_reaches_the_defense(root, toy_data, toy_profile, tmp_path):
    plugin = plugin_in(tmp_path, "snoop.py", 'needs="labels"', f'needs="{TOKEN}"')
    found = by_cell(Setup(root, toy_data, toy_profile, [plugin]).run("snoop"))
    assert found["snoop", TOKEN, "badnets"].status == "ok"
    seen = json.loads(plugin.with_suffix(".json").read_text())
    assert set(seen["files"]) == {"model.safetensors", "data.safetensors"}
    assert not {"trigger", "attack", "index"} & set(seen["attributes"])
    words = [*seen["strings"], *seen["arguments"], seen["cmdline"], seen["environ"]]
    assert not {"badnets", "poison_rate", "poisoned_images", "recipe"} & set(words)
    assert not any(str(root) in word or str(toy_data) in word for word in words)
    knowing = ("attacks", "zoo.build", "zoo.store", "zoo.evaluate", "zoo.data", "zoo.recipes")
    assert not [m for m in seen["modules"] if m.startswith(knowing)]
    victim = stored_in(root)["badnets"]
    judge = judge_of(victim, Library(data=toy_data, cache=root / "cache").load("cifar10"))
    found_hashes = set(seen["hashes"])
    assert len(found_hashes) >= 300
    for images in (judge.clean, *judge.triggered.values()):
        assert not found_hashes & hashes_of(images)
