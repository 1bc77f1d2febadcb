"""Which weights are randomised, the temperature, and that the teacher is left alone."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defenses.bcu import bcu, distillation_loss, randomise, stage_ratios, temperature
from tests.defenses.conftest import Toy, textures, view_of
from zoo.models import ArchSpec, Classifier, build_model

RESNET_STAGES = ["stem", "stage1", "stage2", "stage3", "stage4", "head"]
RESNET_RATIOS = dict(zip(RESNET_STAGES, [0.01, 0.01, 0.03, 0.09, 0.27, 0.1], strict=True))


def fresh(name: str, width: float, seed: int = 0) -> Classifier:
    spec = ArchSpec(name=name, num_classes=43, width=width)
    return build_model(spec, torch.Generator().manual_seed(seed))


def randomised_names(model: nn.Module) -> set[str]:
    """Weights of convolutions and linear layers: found by type, not by the code under test."""
    return {
        f"{owner}.{name}"
        for owner, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        for name, _ in module.named_parameters(recurse=False)
    }


def test_ratios_of_resnet18_are_the_papers() -> None:
    assert stage_ratios(RESNET_STAGES, 0.01, 0.27, 0.1) == pytest.approx(RESNET_RATIOS)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_ratios_of_other_networks_rise_geometrically(n: int) -> None:
    names = [f"stage{i + 1}" for i in range(n)] + ["head"]
    ratios = stage_ratios(names, 0.01, 0.27, 0.1)
    values = [ratios[name] for name in names]
    assert values[0] == pytest.approx(0.01)
    assert values[-1] == 0.1
    if n > 1:
        assert values[-2] == pytest.approx(0.27)
        growth = [b / a for a, b in itertools.pairwise(values[:-1])]
        assert growth == pytest.approx([growth[0]] * (n - 1))


@pytest.mark.parametrize(("name", "width"), [("resnet18", 0.25), ("small_vgg", 1.0)])
def test_changed_fraction_per_stage_is_binomial(name: str, width: float) -> None:
    model = fresh(name, width)
    ratios = stage_ratios(model.stage_names(), 0.01, 0.27, 0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    after = randomise(model, ratios, torch.Generator().manual_seed(1)).state_dict()
    changed = dict.fromkeys(model.stage_names(), 0)
    total = dict.fromkeys(model.stage_names(), 0)
    for key in randomised_names(model):
        if not key.endswith("bias"):  # both biases start at zero: no change to be seen
            stage = model.stage_of(key)
            changed[stage] += int((after[key] != before[key]).sum())
            total[stage] += before[key].numel()
    for stage, n in total.items():
        if n:
            expected, p = n * ratios[stage], ratios[stage]
            assert abs(changed[stage] - expected) <= 4 * (n * p * (1 - p)) ** 0.5, stage
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), "the teacher changed"
        if key not in randomised_names(model):
            assert torch.equal(after[key], before[key]), key


def test_overall_share_of_resnet18_is_the_papers_fifth() -> None:
    model = fresh("resnet18", 1.0)
    sizes = dict(model.named_parameters())
    names = randomised_names(model)
    weighted = sum(sizes[k].numel() * RESNET_RATIOS[model.stage_of(k)] for k in names)
    assert weighted / sum(sizes[k].numel() for k in names) == pytest.approx(0.221, abs=0.001)


def test_ratio_one_replaces_everything_but_batch_normalisation(toy: Toy) -> None:
    ratios = dict.fromkeys(toy.victim.stage_names(), 1.0)
    student = randomise(toy.victim, ratios, torch.Generator().manual_seed(1))
    random = build_model(toy.victim.spec, torch.Generator().manual_seed(1)).state_dict()
    names = randomised_names(student)
    for key, tensor in student.state_dict().items():
        source = random if key in names else toy.victim.state_dict()
        assert torch.equal(tensor, source[key]), key


def test_ratio_zero_gives_the_teacher_and_no_loss(toy: Toy) -> None:
    ratios = dict.fromkeys(toy.victim.stage_names(), 0.0)
    student = randomise(toy.victim, ratios, torch.Generator().manual_seed(1))
    images, _ = textures(20, 3)
    with torch.no_grad():
        loss = distillation_loss(toy.victim(images), student(images), 1.5)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_loss_is_the_divergence_from_the_teacher() -> None:
    g = torch.Generator().manual_seed(0)
    t, s = torch.randn(2, 6, 5, generator=g, dtype=torch.float64)
    p, q = F.softmax(t / 3, 1), F.softmax(s / 3, 1)
    expected = (p * (p.log() - q.log())).sum(1).mean()
    assert distillation_loss(t, s, 3.0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert distillation_loss(s, t, 3.0).item() != pytest.approx(expected.item(), rel=1e-3)


def test_temperature_end_points() -> None:
    assert temperature(0, 100) == pytest.approx(1 + 3 / 100)
    assert temperature(99, 100) == pytest.approx(4.0)
    assert temperature(0, 1) == pytest.approx(4.0)


def test_the_temperature_of_training_reaches_both_ends(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    divergence = distillation_loss

    def spy(teacher: torch.Tensor, student: torch.Tensor, tau: float) -> torch.Tensor:
        seen.append(tau)
        return divergence(teacher, student, tau)

    module = importlib.import_module("defenses.bcu")  # the package has a function of that name
    monkeypatch.setattr(module, "distillation_loss", spy)
    bcu(toy.copy(), view_of(textures(20, 3)[0]), steps=7)
    assert seen == pytest.approx([1 + 3 * (e + 1) / 7 for e in range(7)])


def test_teacher_is_untouched_and_without_gradients(toy: Toy) -> None:
    teacher = toy.copy()
    student = bcu(teacher, view_of(textures(40, 3)[0]), steps=3)
    assert student is not teacher
    assert not teacher.training
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, toy.victim.state_dict()[name]), name
    assert all(p.grad is None for p in teacher.parameters())


def test_removes_the_toy_backdoor_and_keeps_accuracy(toy: Toy) -> None:
    model = bcu(toy.copy(), view_of(textures(200, 3)[0]), steps=150, batch_size=100)
    assert toy.attack_success(model) < toy.attack_success(toy.victim) - 0.3
    assert toy.accuracy(model) > toy.accuracy(toy.victim) - 0.1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"deep_ratio": 1.5}, "expected 0 <= deep_ratio <= 1, got 1.5"),
        ({"shallow_ratio": 0.0}, "expected shallow_ratio > 0, got 0.0"),
        ({"head_ratio": -0.1}, "expected 0 <= head_ratio <= 1, got -0.1"),
        ({"steps": 0}, "expected steps > 0, got 0"),
    ],
)
def test_errors(toy: Toy, overrides: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bcu(toy.copy(), view_of(textures(4, 3)[0]), **overrides)  # type: ignore[arg-type]
