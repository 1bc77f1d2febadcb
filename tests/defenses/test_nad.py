"""Attention against loops, its bounds, the one forward pass, and fine-tuning as the limit."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defenses.base import NotApplicableError
from defenses.ft import ft
from defenses.nad import attention, attention_distance, nad, nad_loss, stage_weights
from tests.defenses.conftest import Toy, textures, view_of
from zoo.models import ArchSpec, Classifier, build_model
from zoo.train import DivergedError, seeded_dropout, set_training_mode

MODULE = importlib.import_module("defenses.nad")  # the package has a function of that name


def maps_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_attention(maps: np.ndarray, p: float) -> np.ndarray:
    """From the paper: F_sum^p, flattened, over its norm."""
    n, c, h, w = maps.shape
    result = np.zeros((n, h * w))
    for i in range(n):
        for y in range(h):
            for x in range(w):
                result[i, y * w + x] = sum(abs(maps[i, k, y, x]) ** p for k in range(c))
        result[i] /= np.sqrt((result[i] ** 2).sum()) + 1e-6
    return result


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_attention_equals_the_slow_reference(p: float) -> None:
    maps = maps_of(3, 5, 4, 6)
    expected = torch.from_numpy(slow_attention(maps.double().numpy(), p)).float()
    torch.testing.assert_close(attention(maps, p), expected)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_distance_lies_between_zero_and_2_over_hw(size: int) -> None:
    student, teacher = maps_of(4, 3, size, size), maps_of(4, 3, size, size, seed=1)
    assert 0 < attention_distance(student, teacher, 2.0) < 2 / size**2
    left, right = torch.zeros(2, 1, 3, size, size)
    left[..., 0, 0], right[..., 0, 1] = 5.0, 3.0  # attention that does not overlap
    distance = attention_distance(left, right, 2.0).item()
    assert distance == pytest.approx(2 / size**2, rel=1e-5)


def test_equal_and_scaled_maps_have_no_distance() -> None:
    maps = maps_of(4, 3, 4, 4)
    assert attention_distance(maps, maps, 2.0) == 0
    assert attention_distance(-7 * maps, maps, 2.0) < 1e-12


def test_every_map_larger_than_a_point_teaches_and_a_point_does_not() -> None:
    for size, moves in ((1, False), (2, True), (8, True)):
        student = maps_of(4, 3, size, size).requires_grad_()
        (slope,) = torch.autograd.grad(
            attention_distance(student, maps_of(4, 3, size, size, seed=1), 2.0), student
        )
        assert bool(slope.abs().max() > 1e-5) is moves, size


def test_a_dead_stage_has_a_finite_slope() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(attention_distance(student, maps_of(2, 3, 4, 4), 2.0), student)
    assert slope.isfinite().all()


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((16, 8, 4), {0: 2000.0, 1: 1000.0, 2: 250.0}),  # small_vgg
        ((32, 32, 16, 8, 4), {2: 2000.0, 3: 1000.0, 4: 250.0}),  # resnet18
        ((16, 8, 4, 2, 1), {1: 500.0, 2: 250.0, 3: 62.5}),  # vgg16: its last map is a point
        ((2, 1, 1), {0: 62.5}),
        ((1, 1), {}),
    ],
)
def test_beta_is_scaled_to_the_last_three_maps(
    sizes: tuple[int, ...], expected: dict[int, float]
) -> None:
    maps = [torch.zeros(1, 2, size, size) for size in sizes]
    assert stage_weights(maps, (500.0, 1000.0, 1000.0)) == expected


def test_the_loss_equals_one_made_of_separate_passes() -> None:
    """Cross-entropy of ``model(x)``, maps caught by hooks: in eval mode passes do not interact."""
    spec = ArchSpec(name="resnet18", num_classes=3, width=0.125, image_shape=(3, 16, 16))
    student, teacher = (build_model(spec, torch.Generator().manual_seed(s)) for s in (0, 1))
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 1, 2, 0, 1])
    caught: list[Tensor] = []
    expected = 0.0
    for stage, weight in ((2, 3.0), (4, 70.0)):
        for model in (student, teacher):
            hook = model.stage_modules()[stage].register_forward_hook(
                lambda _m, _i, output: caught.append(output.detach())
            )
            logits = model(images)
            hook.remove()
            if model is student and stage == 2:
                expected += F.cross_entropy(logits, labels).item()
        a, b = (slow_attention(m.double().numpy(), 2.0) for m in caught[-2:])
        expected += weight * float(((a - b) ** 2).mean())
    loss = nad_loss(student, teacher, images, labels, weights={2: 3.0, 4: 70.0}, p=2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert student.head.weight.grad is not None
    assert all(p.grad is None for p in teacher.parameters())


def test_equal_networks_have_no_distance_under_dropout() -> None:
    spec = ArchSpec(name="small_vgg", num_classes=3, width=0.25, image_shape=(3, 16, 16))
    student, teacher = (build_model(spec, torch.Generator().manual_seed(0)) for _ in range(2))
    images, labels = textures(6, 3)[0], torch.tensor([0, 1, 2, 0, 1, 2])
    weights = {0: 1e6, 1: 1e6, 2: 1e6}
    for model in (student, teacher):
        set_training_mode(model, freeze_bn=True)
    with seeded_dropout(0, images.device):
        loss = nad_loss(student, teacher, images, labels, weights=weights, p=2.0)
        after = torch.rand(1)
    with seeded_dropout(0, images.device):
        expected = F.cross_entropy(student(images), labels)
        assert torch.equal(loss, expected)
        assert torch.equal(after, torch.rand(1)), "the teacher's pass left a mark"
    teacher.eval()
    assert nad_loss(student, teacher, images, labels, weights=weights, p=2.0) > 2 * loss


def short(toy: Toy, n: int = 20, **overrides: float) -> Classifier:
    view = view_of(*textures(n, 3))
    settings = {"teacher_steps": 3, "steps": 4, **overrides}
    return nad(toy.copy(), view, **settings)  # type: ignore[arg-type]


def assert_same(first: nn.Module, second: nn.Module) -> None:
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("n", [4, 20])
def test_without_attention_it_is_fine_tuning_step_for_step(toy: Toy, n: int) -> None:
    model = short(toy, n, beta1=0.0, beta2=0.0, beta3=0.0)
    view = view_of(*textures(n, 3))
    ft(toy.copy(), view, lr=0.1, steps=3)  # the teacher takes its share of the randomness
    assert_same(model, ft(toy.copy(), view, lr=0.1, steps=4))


def test_the_teacher_is_a_fine_tuned_copy_and_stays_so(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Classifier] = []
    monkeypatch.setattr(MODULE, "clone", lambda _: copies.append(toy.copy()) or copies[-1])
    short(toy)
    assert_same(copies[0], ft(toy.copy(), view_of(*textures(20, 3)), lr=0.1, steps=3))


@pytest.mark.parametrize(("n", "updates"), [(4, 0), (20, 4)])
def test_batch_statistics_are_updated_once_per_step_or_never(
    toy: Toy, n: int, updates: int
) -> None:
    model = short(toy, n)
    for (_, bn), (_, before) in zip(model.conv_bn_pairs(), toy.victim.conv_bn_pairs(), strict=True):
        assert bn.num_batches_tracked - before.num_batches_tracked == updates
        assert torch.equal(bn.running_var, before.running_var) is (updates == 0)
        assert not torch.equal(bn.weight, before.weight)


def test_the_student_comes_to_look_where_the_teacher_does(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Classifier] = []
    monkeypatch.setattr(MODULE, "clone", lambda _: copies.append(toy.copy()) or copies[-1])
    images = textures(64, 5)[0]

    @torch.no_grad()
    def distance(student: Classifier) -> float:
        pairs = zip(student.stages(images), copies[-1].eval().stages(images), strict=True)
        return sum(float(a.shape[2] ** 2 * attention_distance(a, b, 2.0)) for a, b in pairs)

    settings = {"teacher_steps": 20, "steps": 20, "batch_size": 32, "lr": 0.02}
    attentive = short(toy, 200, **settings)
    close = distance(attentive)
    assert close < 0.9 * distance(short(toy, 200, **settings, beta1=0.0, beta2=0.0, beta3=0.0))
    assert toy.accuracy(attentive) > toy.accuracy(toy.victim) - 0.05
    assert toy.attack_success(attentive) < toy.attack_success(toy.victim) - 0.1


def test_two_classes() -> None:
    spec = ArchSpec(name="small_vgg", num_classes=2, width=0.25, image_shape=(3, 16, 16))
    model = build_model(spec, torch.Generator().manual_seed(0))
    images, labels = textures(20, 3)
    repaired = nad(model, view_of(images, labels % 2, num_classes=2), teacher_steps=1, steps=2)
    assert repaired(images).isfinite().all()


def test_a_network_without_maps_is_refused() -> None:
    spec = ArchSpec(name="resnet18", num_classes=4, width=0.125, image_shape=(3, 1, 1))
    images = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NotApplicableError, match="larger than 1x1"):
        nad(build_model(spec), view_of(images, torch.arange(4)))


def test_divergence_is_reported(toy: Toy) -> None:
    with pytest.raises(DivergedError, match="the loss is"):
        short(toy, lr=1e20)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"beta2": -1.0}, "expected beta2 >= 0, got -1.0"),
        ({"p": 0.5}, "expected p >= 1, got 0.5"),
        ({"teacher_steps": 0}, "expected teacher_steps > 0, got 0"),
        ({"steps": 0}, "expected steps > 0, got 0"),
        ({"lr": float("nan")}, "expected lr >= 0, got nan"),
    ],
)
def test_errors(toy: Toy, overrides: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        short(toy, **overrides)
