"""What could break: robust accuracy of another model, measured twice, or in the keys of others."""

import dataclasses

import pytest

from bench import robustness as module
from bench.config import Evasion, Profile
from bench.plan import plan_cells
from bench.records import path_of, read
from tests.bench.test_harness import FAULTY, PLUGINS, Setup, by_cell
from zoo.build import judge_of
from zoo.robustness import evasion_set, robust_accuracy

HARDENS = PLUGINS / "hardens.py"


@pytest.fixture
def setup(root, toy_data, toy_profile):
    return Setup(root, toy_data, toy_profile, [HARDENS, FAULTY])


def test_a_model_that_comes_back_as_it_was_withstands_as_much(setup):
    found = by_cell(setup.run("hardens", "identity"))
    for attack in ("badnets", "none"):
        record = found["hardens", "0", attack]
        assert record.status == "ok", record.error
        assert record.cell.panel == "adversarial"
        robust = record.robust
        assert robust.after == robust.before
        assert (robust.images, robust.autoattack_images, robust.autoattack) == (100, 0, "")
        assert list(robust.before.pgd) == ["8", "10", "16"]
        assert robust.before.acc == record.before.acc  # of so few images, all are attacked
        assert 1 >= robust.before.acc >= robust.before.pgd["8"] >= robust.before.pgd["16"]
        stored = read(path_of(setup.root, record))
        assert dataclasses.replace(stored, payload_sha256="") == record
        other = found["identity", "0", attack]
        assert (other.cell.panel, other.robust) == ("", None)


def test_figures_are_those_of_the_victims_own_weights(setup):
    record = by_cell(setup.run("hardens"))["hardens", "0", "badnets"]
    victim = next(c.victim for c in setup.cells if c.key == record.key)
    judge = judge_of(victim, setup.library.load("cifar10"))
    given = evasion_set(judge.clean, judge.labels, pgd=500, autoattack=0, axes=("cifar10", 0))
    expected = robust_accuracy(victim.model(), given)
    assert dataclasses.asdict(record.robust.before) == expected
    assert expected["pgd"]["8"] < expected["acc"]


def test_fine_tuning_on_adversarial_images_goes_the_whole_way(setup):
    names = ("advft[pgd_steps=1, steps=2]", "advft[pgd_steps=1, steps=2]@grey")
    found = by_cell(setup.run(*names, budgets=("0", "20", "ood")))
    plain, based = names
    for key in ((plain, "20"), (plain, "ood"), (based, "0"), (based, "20")):
        record = found[*key, "badnets"]
        assert record.status == "ok", record.error
        assert record.robust.after != record.robust.before
        assert record.score is not None
    refused = found[plain, "0", "badnets"]
    assert (refused.status, refused.robust) == ("not-applicable", None)
    one, other = (found[plain, b, "badnets"].robust.before for b in ("20", "ood"))
    assert one == other


def test_a_failed_cell_tells_how_the_victim_fares(setup):
    record = by_cell(setup.run("shatters"))["shatters", "0", "badnets"]
    assert (record.status, record.error["message"]) == ("error", "too brittle")
    assert record.robust.after is None
    assert record.robust.before.pgd["8"] >= 0


def test_a_victim_is_attacked_once_for_all_its_cells(setup, monkeypatch):
    attacked = []

    def counted(model, given):
        attacked.append(model)
        return original(model, given)

    original = module.robust_accuracy
    monkeypatch.setattr(module, "robust_accuracy", counted)
    records = setup.run("hardens", "hardens[by=0.1]", "shatters")
    assert len(records) == 6
    assert len(attacked) == 2 + 4  # the victim and its twin, and the four models that came back


def test_the_attacks_are_in_the_keys_of_those_measured_by_them_and_in_no_other(setup):
    def keys(**evasion):
        profile: Profile = setup.profile.model_copy(
            update={"evasion": Evasion(**evasion), "defenses": ["identity", "ft", "hardens"]}
        )
        cells, _ = plan_cells(profile, setup.registry, setup.root, setup.library)
        for cell in cells:
            assert ("robust" in cell.inputs) == (cell.cell.defense == "hardens")
        return {(c.cell.defense, c.cell.budget, c.cell.attack): c.key for c in cells}

    default, more, stronger = keys(), keys(pgd_images=7), keys(autoattack_images=7)
    for place, key in default.items():
        same = place[0] != "hardens"
        assert (more[place] == key) == (stronger[place] == key) == same
