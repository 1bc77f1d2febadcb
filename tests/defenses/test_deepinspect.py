"""Trigger loss and tuning against slow references; the generator, the finding, real and no data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from defenses._inversion_images import invert, total_variation
from defenses._others import Others
from defenses._trigger_generator import (
    TriggerGenerator,
    running_success,
    size_of,
    stamp,
    stamper,
    tune,
)
from defenses.base import NotDetectedError
from defenses.deepinspect import (
    deepinspect,
    find,
    learn_triggers,
    measure,
    trigger_loss,
    why_nothing,
)
from tests.defenses.conftest import CLASSES, TARGET, Toy, textures, view_of
from zoo.train import DivergedError

SHAPE = (3, 16, 16)
# Of four classes none can have an index above 1.35, so the toy needs a lower bar.
SHORT = {
    "search_steps": 150,
    "search_batch": 24,
    "search_lr": 3e-3,
    "tuning_rate": 0.05,
    "success": 0.9,
    "index_threshold": 0.7,
    "steps": 30,
    "batch_size": 40,
    "inverted": 60,
    "inversion_steps": 30,
}


def generator_of(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(net: TriggerGenerator) -> TriggerGenerator:
    """A generator whose last layer is not zero any more."""
    nn.init.normal_(net.outer.weight, std=0.1, generator=generator_of(5))
    return net


def test_training_begins_without_any_trigger() -> None:
    net = TriggerGenerator(CLASSES, SHAPE, generator_of())
    images, _ = textures(6, 3)
    triggers = net.sample(torch.arange(6) % CLASSES, generator_of())
    assert torch.equal(stamp(images, triggers), images)


def test_classes_and_noise_both_change_the_trigger() -> None:
    net = moved(TriggerGenerator(CLASSES, SHAPE, generator_of()))
    z = torch.randn(1, 64, generator=generator_of()).repeat(CLASSES, 1)
    per_class = net(z, torch.arange(CLASSES))
    assert all(not torch.equal(per_class[0], other) for other in per_class[1:])
    first, second = net.sample(torch.zeros(2, dtype=torch.long), generator_of())
    assert not torch.equal(first, second)


def test_triggers_are_added_and_the_sum_is_clipped() -> None:
    images = torch.tensor([0.0, 0.4, 0.9]).view(3, 1, 1, 1)
    triggers = torch.tensor([-0.5, 0.3, 0.3]).view(3, 1, 1, 1)
    torch.testing.assert_close(stamp(images, triggers).flatten(), torch.tensor([0.0, 0.7, 1.0]))
    assert torch.equal(size_of(torch.full((2, 3, 4, 4), -0.5)), torch.tensor([24.0, 24.0]))


def test_the_loss_is_that_of_a_slow_sum() -> None:
    g = generator_of()
    logits, classes = torch.randn(5, 3, generator=g), torch.tensor([0, 2, 1, 1, 0])
    sizes, gamma2 = torch.tensor([0.5, 2.0, 7.0, 1.0, 3.0]), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    expected = 0.0
    for i in range(5):
        exponentials = [math.exp(v) for v in logits[i].tolist()]
        p = exponentials[classes[i]] / sum(exponentials)
        hinge = max(0.0, sizes[i].item() - 1.0)
        expected += (-math.log(p) + 2.0 * (p - 1) ** 2 + gamma2[i].item() * hinge) / 5
    loss = trigger_loss(logits, classes, sizes, gamma1=2.0, gamma2=gamma2, limit=1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_size_below_the_limit_costs_nothing() -> None:
    sizes = torch.tensor([0.2, 5.0], requires_grad=True)
    loss = trigger_loss(
        torch.zeros(2, 3), torch.tensor([0, 1]), sizes, gamma1=1.0, gamma2=torch.ones(2), limit=1.0
    )
    assert torch.autograd.grad(loss, sizes)[0].tolist() == [0.0, 0.5]


def test_size_gets_dearer_with_success_and_cheaper_without() -> None:
    weights = tune(torch.ones(3), torch.tensor([1.0, 0.95, 0.5]), aim=0.95, rate=0.25)
    torch.testing.assert_close(weights, torch.tensor([1.25, 1.25, 0.8]))


def test_running_success_is_a_moving_average_of_attempts() -> None:
    start = torch.tensor([0.0, 0.5, 1.0])
    classes, hits = torch.tensor([0, 2, 2]), torch.tensor([True, False, False])
    success, seen = running_success(start, classes, hits)
    torch.testing.assert_close(success, torch.tensor([0.1, 0.5, 0.81]))  # 1 in 10; 0.9 squared
    assert seen.tolist() == [True, False, True]


def test_others_are_uniform_over_all_images_of_other_classes() -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 0])
    drawn = Others(labels, 4).draw(torch.zeros(6000, dtype=torch.long), generator_of())
    counts = torch.bincount(drawn, minlength=6)
    assert counts[labels == 0].sum() == 0
    assert all(abs(c - 2000) < 150 for c in counts[labels != 0].tolist())
    # A class without images excludes none; a class that has them all excludes none, either.
    absent = Others(labels, 4).draw(torch.full((500,), 3), generator_of())
    assert set(absent.tolist()) == set(range(6))
    alone = Others(torch.full((3,), 7), 9).draw(torch.full((200,), 7), generator_of())
    assert set(alone.tolist()) == {0, 1, 2}


def test_only_abnormally_small_triggers_that_work_are_flagged() -> None:
    sizes = torch.tensor([100.0, 102, 98, 101, 99, 103, 97, 500, 101, 20])
    triggers = torch.zeros(10, *SHAPE)
    works = torch.ones(10)
    found = find(sizes, works, triggers, threshold=2.0, required=0.8)
    # At or below the median of 100.5: 100, 98, 99, 97, 20; deviations 0.5, 2.5, 1.5, 3.5, 80.5.
    assert found.flagged == (9,)
    assert found.index[9].item() == pytest.approx(80.5 / (1.4826 * 2.5))
    assert found.index[7] == 0, "a large one is no outlier of the left tail"
    works[9] = 0.5
    fails = find(sizes, works, triggers, threshold=2.0, required=0.8)
    assert fails.flagged == ()
    assert "of class 9" in why_nothing(fails)
    assert found.triggers is not None
    assert (found.triggers == 0.5).all()


@pytest.mark.parametrize("k", [2, 4])
def test_few_classes_cannot_be_judged_and_the_reason_says_so(k: int) -> None:
    sizes = torch.arange(k) + 1e6
    sizes[0] = 1e-6
    found = find(sizes, torch.ones(k), torch.zeros(k, *SHAPE), threshold=2.0, required=0.8)
    assert found.flagged == ()
    assert why_nothing(found).endswith(f"one of {k} classes")


def test_measuring_is_on_other_classes_and_changes_nothing(toy: Toy) -> None:
    model = toy.copy()
    net = TriggerGenerator(CLASSES, SHAPE, generator_of())
    images, labels = toy.images[:80], toy.labels[:80]
    sizes, success, pictures = measure(model, net, images, labels, generator_of())
    assert sizes.tolist() == [0.0] * CLASSES
    assert success.tolist() == [0.0] * CLASSES, "images of the class itself would count as moved"
    assert pictures.shape == (CLASSES, *SHAPE)


def test_searching_leaves_the_classifier_alone(toy: Toy) -> None:
    model = toy.copy()
    images, labels = textures(20, 3)
    view = view_of(images, labels)
    settings = {"gamma1": 1.0, "gamma2": 1e-3, "limit": 1.0, "success": 0.9, "tuning_rate": 0.1}
    net = learn_triggers(model, view, images, labels, steps=3, batch_size=8, lr=1e-3, **settings)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, toy.victim.state_dict()[name]), name
    assert all(p.grad is None for p in model.parameters())
    stamped = stamper(net, TARGET, generator_of())(images)
    assert not torch.equal(stamped, images)
    assert stamped.min() >= 0
    assert stamped.max() <= 1


def test_inverted_images_do_not_depend_on_each_other_or_harm_the_model(toy: Toy) -> None:
    model, labels = toy.copy(), torch.arange(CLASSES).repeat(2)
    whole = invert(model, labels, generator_of(), steps=5)
    parts = invert(model, labels, generator_of(), steps=5, batch_size=3)
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=0)
    assert (whole >= 0).all()
    assert (whole <= 1).all()
    assert not torch.equal(whole[0], whole[CLASSES]), "two restarts of one class"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, toy.victim.state_dict()[name]), name
    smooth = invert(model, labels, generator_of(), steps=5, smoothness=100.0)
    assert total_variation(smooth).mean() < total_variation(whole).mean()


def test_total_variation() -> None:
    assert total_variation(torch.full((2, 3, 4, 4), 0.3)).tolist() == [0.0, 0.0]
    stripes = torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(1, 1, 4, 4)
    assert total_variation(stripes).item() == total_variation(stripes.mT).item() == 1.0


def test_finds_and_removes_the_toy_backdoor(toy: Toy) -> None:
    view = view_of(*textures(200, 3))
    model = deepinspect(toy.copy(), view, **SHORT)  # type: ignore[arg-type]
    assert view.finding is not None
    assert view.finding.flagged == (TARGET,)
    assert view.finding.values.argmin() == TARGET
    assert toy.attack_success(model) < toy.attack_success(toy.victim) - 0.5
    assert toy.accuracy(model) > toy.accuracy(toy.victim) - 0.1


def test_works_without_any_data_and_keeps_the_victims_statistics(toy: Toy) -> None:
    view = view_of()
    model = deepinspect(toy.copy(), view, **SHORT)  # type: ignore[arg-type]
    assert view.finding is not None
    assert TARGET in view.finding.flagged
    assert toy.attack_success(model) < toy.attack_success(toy.victim) - 0.3
    for (_, bn), (_, before) in zip(model.conv_bn_pairs(), toy.victim.conv_bn_pairs(), strict=True):
        assert torch.equal(bn.running_mean, before.running_mean)


def test_nothing_found_says_what_it_saw(toy: Toy) -> None:
    view = view_of(*textures(20, 3))
    with pytest.raises(NotDetectedError, match="one of 4 classes"):
        deepinspect(toy.copy(), view, search_steps=2, search_batch=8)
    assert view.finding is not None
    assert view.finding.values.shape == view.finding.index.shape == (CLASSES,)
    assert view.finding.triggers.shape == (CLASSES, *SHAPE)


def test_a_broken_model_diverges(toy: Toy) -> None:
    model = toy.copy()
    with torch.no_grad():
        model.head.bias[1] = math.nan
    with pytest.raises(DivergedError, match="loss of the generator is nan after 0 steps"):
        deepinspect(model, view_of(*textures(8, 3)), search_steps=2)
    with pytest.raises(DivergedError, match="inverted images"):
        deepinspect(model, view_of(), inversion_steps=2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"inverted": 0}, "expected inverted > 0, got 0"),
        ({"search_steps": 0}, "expected search_steps > 0, got 0"),
        ({"gamma1": -1.0}, "expected gamma1 >= 0, got -1.0"),
        ({"gamma2": 0.0}, "expected gamma2 > 0, got 0.0"),
        ({"success": 1.5}, "expected 0 <= success <= 1, got 1.5"),
        ({"share": 0.0}, "expected share > 0, got 0.0"),
    ],
)
def test_errors(toy: Toy, overrides: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deepinspect(toy.copy(), view_of(*textures(4, 3)), **overrides)  # type: ignore[arg-type]
