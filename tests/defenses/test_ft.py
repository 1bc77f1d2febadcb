"""Fine-tuning must train the weights on the labels, and survive tiny budgets."""

from __future__ import annotations

import pytest
import torch

from defenses._training import too_few_for_statistics
from defenses.ft import ft
from tests.defenses.conftest import CLASSES, Toy, textures, view_of

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def test_rate_zero_changes_running_statistics_only(toy: Toy) -> None:
    before = toy.victim.state_dict()
    after = ft(toy.copy(), view_of(*textures(40, 3)), lr=0.0, steps=2).state_dict()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) != name.endswith(STATISTICS), name


def test_labels_matter(toy: Toy) -> None:
    images, labels = textures(40, 3)
    right = ft(toy.copy(), view_of(images, labels), steps=2).head.weight
    wrong = ft(toy.copy(), view_of(images, (labels + 1) % CLASSES), steps=2).head.weight
    assert not torch.equal(right, wrong)


@pytest.mark.parametrize("n", [1, 15])
def test_small_budgets_keep_the_running_statistics(toy: Toy, n: int) -> None:
    before = toy.victim.state_dict()
    after = ft(toy.copy(), view_of(*textures(n, 3)), steps=3).state_dict()
    for name, tensor in after.items():
        assert tensor.isfinite().all(), name
        if name.endswith(STATISTICS):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_batches_are_equal_so_that_no_rest_is_too_small() -> None:
    assert too_few_for_statistics(15, 64)
    assert not too_few_for_statistics(16, 64)
    assert not too_few_for_statistics(65, 64)  # 33 + 32, not 64 + 1
    assert too_few_for_statistics(17, 16)  # 9 + 8
    assert too_few_for_statistics(1000, 8)


def test_the_curve_is_short(toy: Toy) -> None:
    view = view_of(*textures(1, 3))
    ft(toy.copy(), view, steps=60)
    assert len(view.curve) == 20
    assert view.curve[-1]["step"] == 60


def test_removes_the_toy_backdoor_and_keeps_accuracy(toy: Toy) -> None:
    model = ft(toy.copy(), view_of(*textures(200, 3)), steps=200)
    assert toy.attack_success(model) < toy.attack_success(toy.victim) - 0.3
    assert toy.accuracy(model) > toy.accuracy(toy.victim) - 0.1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lr": -1.0}, "expected lr >= 0, got -1.0"),
        ({"steps": 0}, "expected steps > 0, got 0"),
        ({"batch_size": 0}, "expected batch_size > 0, got 0"),
        ({"momentum": float("nan")}, "expected momentum >= 0, got nan"),
    ],
)
def test_errors(toy: Toy, overrides: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ft(toy.copy(), view_of(*textures(4, 3)), **overrides)  # type: ignore[arg-type]
