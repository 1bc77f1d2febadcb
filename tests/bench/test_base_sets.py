"""Base sets in the harness: made once, shared, stored; a builder that fails costs its own cells."""

import json

import pytest
from safetensors.torch import load_file

from bench.registry import Registry
from bench.specs import split_base
from tests.bench.test_harness import FAULTY, Setup, by_cell
from zoo.errors import UserError


@pytest.fixture
def setup(root, toy_data, toy_profile):
    return Setup(root, toy_data, toy_profile, [FAULTY])


def base_sets(setup, builder):
    found = (setup.root / "assets" / "base-sets" / builder).glob("*/*/base-set.json")
    return [(path.parent, json.loads(path.read_text())) for path in sorted(found)]


def test_a_defense_runs_on_what_a_builder_makes_and_two_share_it(setup):
    names = ("ft[steps=2]@grey", "works@grey")
    found = by_cell(setup.run(*names, budgets=("0", "unlabeled")))
    assert {k[:2] for k in found} == {(name, "0") for name in names}
    assert {r.status for r in found.values()} == {"ok"}
    record = found["ft[steps=2]@grey", "0", "badnets"]
    assert record.cell.needs == "optional"
    assert record.cell.params["steps"] == 2
    assert record.cell.params["grey.per_class"] == 2
    made = base_sets(setup, "grey")
    assert len(made) == 2, "one for the victim, one for its twin; both defenses share them"
    told = record.data_touched["base_set"]
    assert (told["builder"], told["images"], told["classes"]) == ("grey", 20, 10)
    assert told["reached"] == 0.5
    folder, meta = next(pair for pair in made if pair[1]["key"] == told["key"])
    tensors = load_file(folder / "base-set.safetensors")
    assert tensors["images"].shape == (20, 3, 32, 32)
    assert tensors["labels"].tolist() == [y for y in range(10) for _ in "12"]
    assert (folder / "base-set.png").read_bytes().startswith(b"\x89PNG")
    assert record.cost.seconds >= meta["cost"]["seconds"]
    assert record.data_touched["granted_images"] == 20
    assert record.data_touched["granted_labels"] == "true"


def test_other_parameters_make_another_set_and_the_same_ones_none(setup):
    setup.run("ft[steps=1]@grey", budgets=("0",))
    setup.run("ft[steps=1]@grey[per_class=3]", "ft[steps=2]@grey", budgets=("0",))
    sizes = sorted(meta["images"] for _, meta in base_sets(setup, "grey"))
    assert sizes == [20, 20, 30, 30]


def test_a_booster_takes_the_clean_images_of_a_labelled_budget(setup):
    found = by_cell(setup.run("works@grey", budgets=("0", "20", "ood")))
    assert {k[1] for k in found} == {"0", "20"}
    boosted = found["works@grey", "20", "badnets"]
    assert boosted.data_touched["base_set"]["images"] == 40
    assert boosted.curve == [{"step": 1, "images": 40.0, "lr": 0.5}]


def test_a_set_whose_file_was_damaged_is_made_again(setup):
    setup.run("ft[steps=1]@grey", budgets=("0",))
    folder, meta = base_sets(setup, "grey")[0]
    (folder / "base-set.safetensors").write_bytes(b"nothing")
    setup.run("ft[steps=2]@grey", budgets=("0",))
    assert base_sets(setup, "grey")[0][1]["tensors_sha256"] == meta["tensors_sha256"]
    assert len(load_file(folder / "base-set.safetensors")["labels"]) == 20


def test_a_builder_that_fails_costs_its_own_cells(setup):
    names = ("works@wrong-labels", "works@sees-a-prior", "works@grey")
    found = by_cell(setup.run(*names, budgets=("0",)))
    wrong = found["works@wrong-labels", "0", "badnets"]
    assert wrong.status == "error"
    assert wrong.error["message"] == "base set wrong-labels: expected labels below 10"
    without = found["works@sees-a-prior", "0", "badnets"]
    assert without.status == "not-applicable"
    assert "generative prior" in without.error["message"]
    assert found["works@grey", "0", "badnets"].status == "ok"
    assert not base_sets(setup, "wrong-labels")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ft@gray", "unknown base set 'gray'. Did you mean 'grey'"),
        ("clp@grey", "clp takes no images"),
        ("ft@grey[size=3]", "grey has no hyper-parameter 'size'; it has: per_class"),
        ("ft@grey[per_class=x]", "expected a value of type int, got 'x'"),
    ],
)
def test_bad_combinations_are_refused_by_name(text, message):
    registry = Registry()
    registry.add_file(FAULTY)
    with pytest.raises(UserError) as error:
        registry.parse(text)
    assert message in str(error.value)


def test_names_survive_the_way_there_and_back():
    registry = Registry()
    registry.add_file(FAULTY)
    text = "ft[lr=0.1, steps=3]@grey[per_class=4]"
    entry, overrides = registry.parse(text)
    assert entry.label(overrides) == text
    assert entry.name == "ft@grey"
    assert entry.resolve({}, {"grey": {"per_class": 7}, "ft": {"steps": 5}})["grey.per_class"] == 7
    assert split_base("a[b=x@y]@c[d=1]") == ("a[b=x@y]", "c[d=1]")
    assert split_base("a[b=1]") == ("a[b=1]", "")
