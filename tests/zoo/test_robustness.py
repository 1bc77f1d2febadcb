"""What could break: an image counts as robust that is not, or models are attacked differently."""

from pathlib import Path

import pytest
import torch

from bench.codehash import code_tokens
from tests.preparations import seeded
from tests.zoo.test_pgd import SHAPE, Linear
from zoo import autoattack, pgd, robustness
from zoo.autoattack import autoattack_version, withstands_autoattack
from zoo.files import digest
from zoo.robustness import evasion_set, robust_accuracy

AXES = ("toy", 0)


def on_a_ladder(count, model):
    """``uint8`` images at all distances up to 30 levels from the border; and their classes."""
    lead = (model.head.weight[0] - model.head.weight[1]).detach().sign().view(1, *SHAPE)
    distance = torch.linspace(-30, 30, count)[torch.randperm(count, generator=seeded())]
    images = (127 + distance[:, None, None, None] * lead).round().byte()
    return images, model(images.float() / 255).argmax(1)


@pytest.fixture
def without_autoattack(monkeypatch):
    monkeypatch.setattr(robustness, "autoattack_version", lambda: "")


@pytest.mark.usefixtures("without_autoattack")
def test_the_robust_accuracy_of_a_linear_model_is_the_closed_form():
    model = Linear()
    images, labels = on_a_ladder(300, model)
    labels[:60] = 1 - labels[:60]  # a fifth is wrong without an attack
    given = evasion_set(images, labels, pgd=300, autoattack=50, axes=AXES)
    assert torch.equal(given.images, images), "all of them, in their order"
    found = robust_accuracy(model, given)
    right = model(images.float() / 255).argmax(1) == labels
    assert found["acc"] == float(right.double().mean())
    expected = {
        str(e): float((model.margins(images.float() / 255, labels, e / 255) > 0).double().mean())
        for e in (8, 10, 16)
    }
    assert found["pgd"] == pytest.approx(expected)
    assert 0.9 > found["acc"] > expected["8"] > expected["10"] > expected["16"] > 0
    assert found["autoattack"] == {}


def test_sets_are_stratified_seeded_and_the_same_for_every_model(monkeypatch):
    monkeypatch.setattr(robustness, "autoattack_version", lambda: "there")
    labels = torch.arange(400) % 4
    images = torch.arange(400)[:, None, None, None].expand(400, 1, 2, 2)
    one = evasion_set(images, labels, pgd=100, autoattack=40, axes=AXES)
    again = evasion_set(images, labels, pgd=100, autoattack=40, axes=AXES)
    other = evasion_set(images, labels, pgd=100, autoattack=40, axes=("toy", 1))
    assert one.labels.bincount().tolist() == [25] * 4
    assert one.labels[one.chosen].bincount().tolist() == [10] * 4
    assert torch.equal(one.images[:, 0, 0, 0] % 4, one.labels)
    assert -1 <= float(one.noise.min()) < -0.9 < 0.9 < float(one.noise.max()) <= 1
    assert all(torch.equal(getattr(one, n), getattr(again, n)) for n in ("images", "noise"))
    assert not torch.equal(one.images, other.images)
    assert (one.seed == again.seed, one.seed == other.seed) == (True, False)
    assert len(evasion_set(images, labels, pgd=9999, autoattack=0, axes=AXES).labels) == 400


def test_three_classes_are_too_few_for_autoattack_and_without_it_nothing_is_chosen(monkeypatch):
    images = torch.zeros(60, 1, 2, 2, dtype=torch.uint8)
    for classes, version, chosen in ((4, "there", 20), (3, "there", 0), (4, "", 0)):
        monkeypatch.setattr(robustness, "autoattack_version", lambda v=version: v)
        labels = torch.arange(60) % classes
        given = evasion_set(images, labels, pgd=60, autoattack=20, axes=AXES)
        assert int(given.chosen.sum()) == chosen


def test_autoattack_gets_what_pgd_leaves_and_what_it_breaks_stays_broken(monkeypatch):
    """With a stand-in that breaks every second image it is given."""
    asked = []

    def breaks_half(model, images, labels, *, epsilon, seed):
        asked.append((epsilon, len(labels)))
        return torch.arange(len(labels)) % 2 == 0

    monkeypatch.setattr(robustness, "autoattack_version", lambda: "there")
    monkeypatch.setattr(robustness, "withstands_autoattack", breaks_half)
    model = Linear()
    images, labels = on_a_ladder(80, model)
    monkeypatch.setattr(robustness, "LEAST_CLASSES", 2)
    monkeypatch.setattr(robustness, "withstands", lambda m, x, *_, **__: torch.ones(len(x)).bool())
    given = evasion_set(images, labels, pgd=80, autoattack=40, axes=AXES)
    found = robust_accuracy(model, given)
    assert found["pgd"] == {"8": 1.0, "10": 1.0, "16": 1.0}
    assert found["autoattack"] == {"8": 0.5, "10": 0.25}
    assert asked == [(8, 40), (10, 20)]


def test_autoattack_agrees_with_the_closed_form_and_leaves_the_generator_alone(monkeypatch):
    library = pytest.importorskip("pyautoattack")
    original = library.AutoAttack._set_version

    def with_fewer_queries(self, version):
        original(self, version)
        assert self.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
        assert (self.square.n_queries, self.fab.n_iter, self.apgd.n_iter) == (5000, 100, 100)
        self.square.n_queries, self.fab.n_iter = 50, 5

    monkeypatch.setattr(library.AutoAttack, "_set_version", with_fewer_queries)
    model = Linear(classes=4)
    with torch.no_grad():
        model.head.weight[2:] = 0  # two classes that are never right: the other two decide
        model.head.bias[2:] = -100
    model.requires_grad_(False)
    images, labels = on_a_ladder(24, model)
    assert set(labels.tolist()) == {0, 1}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    epsilon = 8.0
    images = images.float() / 255
    found = withstands_autoattack(model, images, labels, epsilon=epsilon, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    margins = model.margins(images, labels, epsilon / 255)
    sure = margins.abs() > 1e-4
    assert torch.equal(found[sure], (margins > 0)[sure])
    assert 0 < int(found.sum()) < 24


def test_a_change_of_the_attacks_needs_a_new_version():
    """If this fails, ROBUST_VERSION must be raised, or old records would look fresh."""
    texts = [Path(m.__file__).read_text("utf-8") for m in (robustness, autoattack, pgd)]
    now = digest([code_tokens(text) for text in texts])[:16]
    assert (robustness.ROBUST_VERSION, now) == (1, "35e6d5670b664b8b")


def test_the_version_names_the_package():
    pytest.importorskip("pyautoattack")
    assert autoattack_version().startswith("pyautoattack ")
