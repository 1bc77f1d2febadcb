"""The curve against closed forms, its ends, its gradient, and whose batch statistics are kept."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defenses.ft import ft
from defenses.mcr import (
    Weights,
    coefficients,
    curve_loss,
    mcr,
    parameters_of,
    point,
    put,
    refresh_statistics,
)
from tests.defenses.conftest import CLASSES, Toy, textures, view_of
from zoo.models import ArchSpec, Classifier, build_model
from zoo.train import predict_logits

MODULE = importlib.import_module("defenses.mcr")  # the package has a function of that name
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
QUICK = {"endpoint_steps": 3, "steps": 3}


def fresh(seed: int, name: str = "small_vgg") -> Classifier:
    spec = ArchSpec(name=name, num_classes=CLASSES, width=0.125, image_shape=(3, 16, 16))
    return build_model(spec, torch.Generator().manual_seed(seed))


def ends() -> tuple[Weights, Weights, Weights]:
    start, bend, end = (parameters_of(fresh(seed)) for seed in range(3))
    return start, bend, end


def assert_equal(state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("t", [0.0, 0.1, 0.3, 0.5, 0.77, 1.0])
def test_the_curve_is_that_of_de_casteljau(t: float) -> None:
    start, bend, end = ends()
    assert sum(coefficients(t)) == pytest.approx(1.0)
    for name, weight in point(start, bend, end, t).items():
        first, second = torch.lerp(start[name], bend[name], t), torch.lerp(bend[name], end[name], t)
        torch.testing.assert_close(weight, torch.lerp(first, second, t))


def test_known_points() -> None:
    start, bend, end = ends()
    assert coefficients(0.5) == (0.25, 0.5, 0.25)
    assert_equal(point(start, bend, end, 0.0), start)
    assert_equal(point(start, bend, end, 1.0), end)


def test_a_bend_halfway_makes_a_straight_line() -> None:
    start, _, end = ends()
    halfway = {name: (start[name] + end[name]) / 2 for name in start}
    for name, weight in point(start, halfway, end, 0.3).items():
        torch.testing.assert_close(weight, torch.lerp(start[name], end[name], 0.3))


def test_loss_and_gradient_equal_those_of_a_plain_model_at_the_point() -> None:
    """The chain rule: the gradient for the bend is 2 t (1 - t) times that for the point."""
    start, _, end = ends()
    (images, labels), decay, t = textures(20, 3), 0.01, 0.3
    bend, plain = fresh(1), fresh(5)
    loss = curve_loss(
        bend, point(start, dict(bend.named_parameters()), end, t), images, labels, decay
    )
    loss.backward()
    put(plain, point(start, parameters_of(bend), end, t))
    flat = torch.cat([p.flatten() for p in plain.parameters()])
    expected = F.cross_entropy(plain(images), labels) + 0.5 * decay * flat.dot(flat)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name, parameter in plain.named_parameters():
        gradient = dict(bend.named_parameters())[name].grad
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, 2 * t * (1 - t) * parameter.grad, rtol=1e-4, atol=1e-6)
    assert not any(w.requires_grad for w in [*start.values(), *end.values()])


def test_refreshing_on_one_batch_gives_its_mean_and_variance() -> None:
    model, images = fresh(0), textures(40, 3)[0]
    conv, bn = model.conv_bn_pairs()[0]
    bn.running_mean.fill_(99.0)  # type: ignore[union-attr]
    refresh_statistics(model, images, 40, torch.Generator())
    maps = conv(model.normalise(images)).detach().double().transpose(0, 1).flatten(1)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    torch.testing.assert_close(bn.running_mean.double(), maps.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bn.running_var.double(), maps.var(1), rtol=1e-4, atol=1e-5)


def test_refreshing_on_several_batches_averages_them_with_equal_weights() -> None:
    model, images = fresh(0, "resnet18"), textures(50, 3)[0]
    parts = images[torch.randperm(50, generator=torch.Generator().manual_seed(4))].tensor_split(3)
    seen = []
    for part in parts:  # 17, 17 and 16 images
        alone = fresh(0, "resnet18")
        refresh_statistics(alone, part, 50, torch.Generator())
        seen.append([bn.running_var for _, bn in alone.conv_bn_pairs()])
    refresh_statistics(model, images, 24, torch.Generator().manual_seed(4))
    for (_, bn), *variances in zip(model.conv_bn_pairs(), *seen, strict=True):
        torch.testing.assert_close(bn.running_var, torch.stack(variances).mean(0))


def test_refreshing_leaves_dropout_off_and_layers_as_they_were(toy: Toy) -> None:
    images = textures(40, 3)[0]
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = toy.copy()
        refresh_statistics(model, images, 20, torch.Generator().manual_seed(0))
        states.append(model.state_dict())
        assert not any(m.training for m in model.modules())
        assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    assert_equal(*states)
    assert_equal(parameters_of(model), parameters_of(toy.victim))


def test_the_ends_give_the_logits_of_victim_and_fine_tuned_copy(toy: Toy) -> None:
    images, labels = textures(40, 3)
    before = {k: v.clone() for k, v in toy.victim.state_dict().items()}
    victim = toy.copy()
    for t, expected in (
        (0.0, toy.copy()),
        (1.0, ft(toy.copy(), view_of(images, labels), steps=3)),
    ):
        model = mcr(victim, view_of(images, labels), t=t, **QUICK)
        assert model is not victim
        buffers = {k: v for k, v in expected.state_dict().items() if k.endswith(STATISTICS)}
        model.load_state_dict(buffers, strict=False)
        torch.testing.assert_close(predict_logits(model, images), predict_logits(expected, images))
    assert_equal(victim.state_dict(), before)


def test_the_bend_leaves_the_straight_line_and_statistics_are_those_of_the_point(toy: Toy) -> None:
    images, labels = textures(40, 3)
    model = mcr(toy.copy(), view_of(images, labels), t=0.5, **QUICK)
    tuned = ft(toy.copy(), view_of(images, labels), steps=3)
    line = (toy.victim.head.weight + tuned.head.weight) / 2
    assert not torch.allclose(model.head.weight, line, atol=1e-5)
    anew = build_model(model.spec)
    put(anew, parameters_of(model))
    anew.load_state_dict({k: model.state_dict()[k] for k in ("mean", "std")}, strict=False)
    refresh_statistics(anew, images, 64, torch.Generator())  # one batch, in any order
    torch.testing.assert_close(anew.state_dict(), model.state_dict(), rtol=1e-4, atol=1e-4)


def test_every_step_draws_a_point_of_its_own(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []

    def spy(start: Weights, bend: Weights, end: Weights, t: float) -> Weights:
        drawn.append(t)
        return point(start, bend, end, t)

    monkeypatch.setattr(MODULE, "point", spy)
    mcr(toy.copy(), view_of(*textures(4, 3)), endpoint_steps=1, steps=20)
    *path, kept = drawn
    assert kept == 0.3
    assert len(set(path)) == 20
    assert min(path) < 0.3 < 0.7 < max(path)
    assert all(0 <= t <= 1 for t in path)


@pytest.mark.parametrize("n", [1, 15])
def test_small_budgets_keep_the_running_statistics(toy: Toy, n: int) -> None:
    before = toy.victim.state_dict()
    after = mcr(toy.copy(), view_of(*textures(n, 3)), **QUICK).state_dict()
    for name, tensor in after.items():
        assert tensor.isfinite().all(), name
        if name.endswith(STATISTICS):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_weakens_the_toy_backdoor_and_keeps_accuracy(toy: Toy) -> None:
    view = view_of(*textures(120, 3))
    model = mcr(toy.copy(), view, t=0.5, lr=0.03, endpoint_steps=20, steps=30, batch_size=32)
    assert toy.attack_success(model) < toy.attack_success(toy.victim) - 0.1
    assert toy.accuracy(model) > toy.accuracy(toy.victim) - 0.1
    assert all(math.isfinite(point["loss"]) for point in view.curve)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"t": 1.1}, "expected 0 <= t <= 1, got 1.1"),
        ({"steps": 0}, "expected steps > 0, got 0"),
        ({"endpoint_steps": 0}, "expected endpoint_steps > 0, got 0"),
        ({"lr": -1.0}, "expected lr >= 0, got -1.0"),
    ],
)
def test_errors(toy: Toy, overrides: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mcr(toy.copy(), view_of(*textures(4, 3)), **overrides)  # type: ignore[arg-type]
