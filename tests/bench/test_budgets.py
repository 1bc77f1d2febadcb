"""What could break: budgets that are not nested, not balanced, not the same for all, or leak."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from bench.budgets import Budgets, count_of, deal, draw_manifest
from zoo.data import Library
from zoo.errors import UserError
from zoo.seeds import generator_of


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 5))
def test_every_prefix_is_balanced(labels, seed):
    labels = torch.tensor(labels)
    order = deal(labels, generator_of("t", seed))
    assert order.sort().values.tolist() == list(range(len(labels)))
    totals = labels.bincount(minlength=5)
    for n in range(len(labels) + 1):
        counts = labels[order[:n]].bincount(minlength=5)
        top = int(counts.max())
        # A class lags behind the fullest by more than one only when it has run out.
        assert bool(((counts >= top - 1) | (counts == totals)).all())


@pytest.mark.parametrize(
    ("token", "count"),
    [("1", 43), ("1t", 1), ("100", 100), ("20pc", 860), ("unlabeled", 2500), ("ood", 2500)],
)
def test_tokens(token, count):
    assert count_of(token, 43) == count


@pytest.fixture
def setup(toy_data, tmp_path):
    library = Library(data=toy_data, cache=tmp_path / "cache")
    data = library.load("cifar10")
    budgets = Budgets(tmp_path, library)
    return budgets, data, budgets.manifest(data, 0)


def images(budget):
    return {tuple(i.flatten().tolist()) for i in load_file(budget.file)["images"]}


def test_budgets_are_nested_and_from_the_pool_only(setup):
    budgets, data, manifest = setup
    ladder = [images(budgets.budget(data, manifest, t)) for t in ("1t", "1", "20", "3pc", "100")]
    assert [len(s) for s in ladder] == [1, 10, 20, 30, 100]
    assert all(a < b for a, b in zip(ladder, ladder[1:], strict=False))
    judged = {tuple(i.flatten().tolist()) for i in data.test.images[manifest.split.eval]}
    trained = {tuple(i.flatten().tolist()) for i in data.train.images}
    assert not ladder[-1] & (judged | trained)


def test_one_per_class_has_every_class_once(setup):
    budgets, data, manifest = setup
    stored = load_file(budgets.budget(data, manifest, "1").file)
    assert sorted(stored["labels"].tolist()) == list(range(10))


def test_unlabelled_budgets_hold_no_labels(setup):
    budgets, data, manifest = setup
    unlabelled = budgets.budget(data, manifest, "unlabeled")
    assert set(load_file(unlabelled.file)) == {"images"}
    assert unlabelled.images == 100  # the whole pool, where it is smaller than 2,500
    assert images(unlabelled) == images(budgets.budget(data, manifest, "100"))
    ood = budgets.budget(data, manifest, "ood")
    assert (ood.images, ood.labels) == (60, "none")
    assert not images(ood) & images(unlabelled)


def test_nothing_is_nothing(setup):
    budgets, data, manifest = setup
    assert budgets.budget(data, manifest, "0").file is None


def test_a_budget_beyond_the_pool_says_so(setup):
    budgets, data, manifest = setup
    with pytest.raises(UserError, match="needs 101 images, but the pool of cifar10 has 100"):
        budgets.budget(data, manifest, "101")


def test_one_file_per_set_and_seed_that_repeats(setup, toy_data, tmp_path):
    _, data, manifest = setup
    stored = json.loads(next(tmp_path.glob("zoo/cifar10/splits/seed-0-*.json")).read_text())
    assert stored == manifest.to_dict()
    again = draw_manifest(data, 0, manifest.ood, 60)
    other = draw_manifest(data, 1, manifest.ood, 60)
    assert again.to_dict() == manifest.to_dict()
    assert other.split_sha256() != manifest.split_sha256()


def test_hashes_tell_labels_and_images_apart(setup):
    budgets, data, manifest = setup
    tokens = ("0", "1", "100", "unlabeled", "ood")
    hashes = [budgets.budget(data, manifest, t).sha256 for t in tokens]
    assert len(set(hashes)) == 5
