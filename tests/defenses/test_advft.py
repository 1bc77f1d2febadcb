"""Adversarial fine-tuning must buy robustness, be plain fine-tuning at epsilon 0, and be marked."""

from __future__ import annotations

import pytest
import torch

import defenses
from defenses import NotApplicableError, Robustifier, robustifier
from defenses._training import Tuning, train_on_budget
from defenses.advft import advft
from tests.defenses.conftest import Toy, textures, view_of
from tests.zoo.test_pgd import brittle
from zoo.models import ArchSpec, Classifier, build_model, clone
from zoo.robustness import evasion_set, robust_accuracy
from zoo.train import Recipe, train

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def figures(model: Classifier) -> tuple[float, float]:
    """Accuracy, and accuracy under PGD within 8 levels, on images that nobody has seen."""
    images, labels, _ = brittle(64, 2)
    given = evasion_set(images, labels, pgd=64, autoattack=0, axes=("toy",))
    found = robust_accuracy(clone(model), given)
    return found["acc"], found["pgd"]["8"]


def test_it_gives_up_the_feature_that_noise_can_hide() -> None:
    """Brittle images: one feature is always right and easily hidden, one is right for 5 in 8."""
    images, labels, _ = brittle(256, 1)
    spec = ArchSpec(name="small_vgg", num_classes=4, width=0.125)
    model = build_model(spec, torch.Generator().manual_seed(0))
    recipe = Recipe(epochs=5, batch_size=32, lr=0.05)
    train(model, images, labels, recipe, generator=torch.Generator().manual_seed(1))
    before = figures(model)
    assert before[0] > 0.95
    assert before[1] < 0.1
    view = view_of(images.float() / 255, labels, crop=0)
    view.augmentation = type(view.augmentation)(crop=0, flip=False)  # the quadrant must stay
    tuned = advft(model, view, lr=0.05, steps=40, batch_size=32, pgd_steps=1)
    after = figures(tuned)
    _, labels, bright = brittle(64, 2)
    best = float((bright == labels).double().mean())
    assert after == pytest.approx((best, best), abs=0.1)


def test_without_a_ball_it_is_fine_tuning_with_its_schedule(toy: Toy) -> None:
    data = textures(40, 3)
    tuned = advft(toy.copy(), view_of(*data), epsilon=0.0, pgd_steps=2, steps=3)
    plain = toy.copy()
    tuning = Tuning(
        lr=0.01, steps=3, batch_size=64, momentum=0.9, weight_decay=5e-4, schedule="one-cycle"
    )
    train_on_budget(plain, view_of(*data), *data, tuning)
    for name, tensor in tuned.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name
    other = advft(toy.copy(), view_of(*data), epsilon=8.0, pgd_steps=2, steps=3)
    assert not torch.equal(other.head.weight, plain.head.weight)


def test_small_budgets_keep_the_running_statistics(toy: Toy) -> None:
    before = toy.victim.state_dict()
    after = advft(toy.copy(), view_of(*textures(3, 3)), steps=2, pgd_steps=1).state_dict()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) or not name.endswith(STATISTICS), name
    assert not torch.equal(after["head.weight"], before["head.weight"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epsilon": -1.0}, "expected epsilon >= 0, got -1.0"),
        ({"pgd_steps": 0}, "expected pgd_steps > 0, got 0"),
        ({"steps": 0}, "expected steps > 0, got 0"),
        ({"lr": -1.0}, "expected lr >= 0, got -1.0"),
    ],
)
def test_errors(toy: Toy, overrides: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        advft(toy.copy(), view_of(*textures(4, 3)), **overrides)  # type: ignore[arg-type]


def test_the_mark_is_a_defense_like_any_other_and_one_more_thing() -> None:
    entry = advft.defense  # type: ignore[attr-defined]
    assert isinstance(entry, Robustifier)
    assert (entry.name, entry.needs, entry.oracle) == ("advft", "labels", False)
    assert entry.run is advft
    assert [d.name for d in defenses.ALL if isinstance(d, Robustifier)] == ["advft"]
    with pytest.raises(NotApplicableError):
        entry.run(None, view_of())
    with pytest.raises(ValueError, match="expected needs in"):
        robustifier("mine", paper="", needs="magic")  # type: ignore[arg-type]
