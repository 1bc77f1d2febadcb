"""Generators' ranges, which step changes which network, stop-gradients, statistics, collapse."""

from __future__ import annotations

import copy
import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses._generators import NoiseDecoder, Tail
from defenses.base import DefenderView
from defenses.dhbe import (
    Game,
    descend,
    dhbe,
    diversity,
    place,
    set_student_mode,
    student_losses,
    to_pixels,
    total_variation,
    trigger_response,
)
from tests.defenses.conftest import CLASSES, SIZE, Toy, stamp, view_of
from zoo.models import ArchSpec, Classifier, build_model
from zoo.train import DivergedError, predict_logits

MODULE = importlib.import_module("defenses.dhbe")  # the package has a function of that name
N = 16
SHORT: dict[str, Any] = {"iterations": 2, "student_steps": 1, "batch_size": N, "generator_width": 4}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(shape: tuple[int, int, int], tail: Tail) -> NoiseDecoder:
    return NoiseDecoder(shape, tail, 32, 4, rng())


def victim(shape: tuple[int, int, int] = (3, SIZE, SIZE), classes: int = CLASSES) -> Classifier:
    """Untrained, with statistics that are not those of its initialisation."""
    colours = shape[0]
    spec = ArchSpec(
        name="small_vgg",
        num_classes=classes,
        width=0.25,
        image_shape=shape,
        mean=(0.4, 0.5, 0.6)[:colours],
        std=(0.2, 0.25, 0.3)[:colours],
    )
    model = build_model(spec, rng())
    set_student_mode(model)
    with torch.no_grad():
        for seed in range(3):
            model(torch.rand(N, *shape, generator=rng(seed)))
    return model.eval()


def new_game(lam: float = 0.1) -> Game:
    teacher = victim()
    student = copy.deepcopy(teacher)
    with torch.no_grad():  # a student that has something to disagree about
        for weight in student.parameters():
            weight *= 1 + 0.2 * torch.randn(weight.shape, generator=rng(1))
    set_student_mode(student)
    return Game(
        teacher=teacher,
        student=student,
        sampler=network((3, SIZE, SIZE), "sample"),
        stamper=network((3, 5, 5), "trigger") if lam > 0 else None,
        batch_size=N,
        generator=rng(),
    )


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def buffers(module: nn.Module) -> list[Tensor]:
    return [b.detach().clone() for b in module.buffers()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), 1e-2)


# What the generators make


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 20, 35), (1, 5, 7)])
def test_samples_have_the_shape_and_normalised_channels(shape: tuple[int, int, int]) -> None:
    samples = network(shape, "sample").train()(torch.randn(64, 32, generator=rng()))
    assert samples.shape == (64, *shape)
    mean, variance = samples.mean((0, 2, 3)), samples.var((0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(shape[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(variance, torch.ones(shape[0]), atol=1e-3, rtol=0)


def test_generators_keep_no_statistics() -> None:
    for tail in ("sample", "trigger"):
        assert not list(network((3, 8, 8), tail).buffers())


@pytest.mark.parametrize("size", [1, 3, 5])
def test_triggers_are_bounded_small_and_at_one_place(size: int) -> None:
    patches = network((3, size, size), "trigger")(10 * torch.randn(N, 32, generator=rng()))
    assert patches.abs().max() < 1
    triggers = place(patches, (3, 9, 14), rng())
    touched = (triggers != 0).any(0).any(0)  # (9, 14), over all images and channels
    assert 0 < touched.sum() <= size**2
    rows, columns = touched.nonzero().unbind(1)
    assert rows.max() - rows.min() < size
    assert columns.max() - columns.min() < size
    assert triggers.abs().sum((1, 2, 3)).max() <= 3 * size**2


def test_patches_reach_every_corner_and_leave_none_out() -> None:
    g, counts = rng(), torch.zeros(4, 6)
    for _ in range(300):
        counts += place(torch.ones(1, 1, 3, 3), (1, 4, 6), g)[0, 0]
    assert counts.min() > 0
    placed = place(torch.arange(9.0).view(1, 1, 3, 3) + 1, (1, 3, 3), rng())
    assert torch.equal(placed, torch.arange(9.0).view(1, 1, 3, 3) + 1)


def test_triggers_are_added_to_pixels_not_to_normalised_values() -> None:
    model, p = victim(), torch.rand(N, 3, SIZE, SIZE, generator=rng(1))
    samples = torch.randn(N, 3, SIZE, SIZE, generator=rng(2))
    std = torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)
    torch.testing.assert_close(model.normalise(to_pixels(samples, model)), samples)
    torch.testing.assert_close(
        model.normalise(to_pixels(samples, model) + p), samples + p / std, atol=1e-5, rtol=1e-5
    )


def test_the_seed_makes_the_generators() -> None:
    torch.manual_seed(1)
    first = network((3, 8, 8), "sample")
    torch.manual_seed(2)
    assert same(weights(first), weights(network((3, 8, 8), "sample")))


# Losses


def test_a_student_that_is_the_teacher_has_no_loss() -> None:
    model = victim()
    images = torch.rand(N, 3, SIZE, SIZE, generator=rng())
    gap, response = student_losses(copy.deepcopy(model), model, images, torch.zeros_like(images))
    assert gap == 0
    assert response == 0


def test_losses_equal_means_over_all_logits() -> None:
    game = new_game()
    student, teacher = game.student.eval(), game.teacher
    images, triggers = torch.rand(2, N, 3, SIZE, SIZE, generator=rng())
    gap, response = student_losses(student, teacher, images, triggers)
    s, t, stamped = (
        predict_logits(m, x).double().tolist()
        for m, x in ((student, images), (teacher, images), (student, images + triggers))
    )
    size = N * CLASSES
    expected = sum(abs(s[i][k] - t[i][k]) for i in range(N) for k in range(CLASSES)) / size
    assert gap.item() == pytest.approx(expected, rel=1e-4)
    expected = sum(abs(s[i][k] - stamped[i][k]) for i in range(N) for k in range(CLASSES)) / size
    assert response.item() == pytest.approx(expected, rel=1e-4)
    assert trigger_response(student, images, triggers).item() == pytest.approx(expected, rel=1e-4)


def test_the_response_sends_no_gradient_through_the_plain_branch() -> None:
    game = new_game()
    student = game.student.eval()  # without batch statistics the branches are independent
    images, triggers = torch.rand(2, N, 3, SIZE, SIZE, generator=rng())
    _, response = student_losses(student, game.teacher, images, triggers)
    slopes = torch.autograd.grad(response, list(student.parameters()))

    fixed = student(images).detach()  # the reference: a constant in place of the plain branch
    reference = (student(images + triggers) - fixed).abs().mean()
    for got, want in zip(
        slopes, torch.autograd.grad(reference, list(student.parameters())), strict=True
    ):
        torch.testing.assert_close(got, want)
    both = (student(images + triggers) - student(images)).abs().mean()
    wrong = torch.autograd.grad(both, student.head.weight)[0]
    assert not torch.allclose(wrong, slopes[-2], rtol=0.01), "the test could not tell"


def test_total_variation_does_not_depend_on_the_batch_size() -> None:
    samples = torch.randn(8, 3, 6, 7, generator=rng())
    doubled = torch.cat([samples, samples])
    torch.testing.assert_close(total_variation(samples), total_variation(doubled))
    down = sum(float((s[:, 1:] - s[:, :-1]).square().sum()) for s in samples) ** 0.5
    across = sum(float((s[..., 1:] - s[..., :-1]).square().sum()) for s in samples) ** 0.5
    expected = (down + across) * math.sqrt(256 / 8)
    assert total_variation(samples).item() == pytest.approx(expected, rel=1e-5)


# Who learns in which step


def test_step_a_changes_the_student_only() -> None:
    game = new_game()
    assert game.stamper is not None
    before = [weights(m) for m in (game.teacher, game.sampler, game.stamper)]
    statistics, student = buffers(game.teacher), weights(game.student)
    game.train_student(torch.optim.SGD(game.student.parameters(), 0.01), 0.1)
    after = [weights(m) for m in (game.teacher, game.sampler, game.stamper)]
    assert all(same(b, a) for b, a in zip(before, after, strict=True))
    assert same(statistics, buffers(game.teacher))
    assert not same(student, weights(game.student))


@pytest.mark.parametrize("step", ["B", "C"])
def test_steps_b_and_c_leave_the_students_weights_but_not_its_statistics(step: str) -> None:
    game = new_game()
    assert game.stamper is not None
    learner, idle = game.sampler, game.stamper
    if step == "C":
        learner, idle = idle, learner
    kept = [weights(m) for m in (game.student, game.teacher, idle)]
    statistics, learned = buffers(game.student), weights(learner)
    if step == "B":
        game.train_sampler(adam(learner))
    else:
        game.train_stamper(adam(learner), learner)
    after = [weights(m) for m in (game.student, game.teacher, idle)]
    assert all(same(k, a) for k, a in zip(kept, after, strict=True))
    assert not same(learned, weights(learner))
    assert not same(statistics, buffers(game.student))
    for module in (game.student, game.teacher, idle):
        assert all(p.grad is None for p in module.parameters()), "a gradient nobody asked for"


def test_the_generators_climb_and_the_student_descends() -> None:
    game = new_game()
    assert game.stamper is not None
    game.student.eval()  # so that statistics do not move the losses as well
    noise = torch.randn(N, 32, generator=rng(5))

    def gap() -> float:
        images = to_pixels(game.sampler(noise), game.teacher)
        return student_losses(game.student, game.teacher, images, None)[0].item()

    def response() -> float:
        images = torch.rand(N, 3, SIZE, SIZE, generator=rng(6))
        assert game.stamper is not None
        patches = place(game.stamper(noise), (3, SIZE, SIZE), rng(7))
        return trigger_response(game.student, images, patches).item()

    start = gap()
    optimizer = adam(game.sampler)
    for _ in range(15):
        game.train_sampler(optimizer)
    assert gap() > start
    start = response()
    optimizer = adam(game.stamper)
    for _ in range(15):
        game.train_stamper(optimizer, game.stamper)
    assert response() > start
    start = gap()
    optimizer = torch.optim.SGD(game.student.parameters(), 0.01)
    for _ in range(15):
        game.train_student(optimizer, 0.1)
    assert gap() < start


def test_plain_and_stamped_images_pass_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    game, seen = new_game(), []
    original = Classifier.stages

    def stages(model: Classifier, images: Tensor) -> list[Tensor]:
        seen.append(("student" if model is game.student else "teacher", len(images)))
        return original(model, images)

    monkeypatch.setattr(Classifier, "stages", stages)
    game.train_student(torch.optim.SGD(game.student.parameters(), 0.01), 0.1)
    assert seen == [("teacher", N), ("student", N), ("student", N)]


def test_the_students_statistics_train_and_its_dropout_does_not() -> None:
    student = victim()
    assert set_student_mode(student) == 6
    training = {type(m) for m in student.modules() if m.training}
    assert training == {nn.BatchNorm2d}


# The method


def test_curve_tells_what_happened() -> None:
    view = view_of()
    dhbe(victim(), view, **{**SHORT, "iterations": 25})
    first, *points = view.curve
    assert first == {"step": 0, "bn_layers": 6}
    assert [p["step"] for p in points] == [math.ceil(1.25 * (i + 1)) for i in range(20)]
    assert all(p["gap"] > 0 and p["response"] > 0 and p["diversity"] > 0.1 for p in points)


@pytest.mark.parametrize(("lam", "tails"), [(0.0, ["sample"]), (0.1, ["sample", "trigger"])])
def test_lambda_zero_builds_no_trigger_generator_and_stamps_nothing(
    lam: float, tails: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    placed: list[Tensor] = []

    class Counted(NoiseDecoder):
        def __init__(self, shape: Any, tail: Tail, *rest: Any) -> None:
            built.append(tail)
            super().__init__(shape, tail, *rest)

    def spy(patches: Tensor, *rest: Any) -> Tensor:
        placed.append(patches)
        return place(patches, *rest)

    monkeypatch.setattr(MODULE, "NoiseDecoder", Counted)
    monkeypatch.setattr(MODULE, "place", spy)
    view = view_of()
    dhbe(victim(), view, lam=lam, **SHORT)
    assert built == tails
    assert bool(placed) == (lam > 0)
    assert (view.curve[-1]["response"] > 0) == (lam > 0)


def test_the_victim_stays_as_it_was_and_the_student_leaves_with_other_statistics() -> None:
    model = victim()
    before = [weights(model), buffers(model)]
    student = dhbe(model, view_of(), **{**SHORT, "student_steps": 3})
    assert same(before[0], weights(model))
    assert same(before[1], buffers(model))
    assert student is not model
    assert not any(m.training for m in student.modules())
    for (name, mine), theirs in zip(student.named_buffers(), model.buffers(), strict=True):
        if name.endswith("num_batches_tracked"):
            # twice: 3 of step A with 2 passes each, 1 pass in B, 2 in C
            assert mine == theirs + 2 * (3 * 2 + 1 + 2)
        elif "running" in name:
            assert not torch.equal(mine, theirs)


def test_k_steps_of_the_student_then_one_of_each_generator_at_rates_that_drop_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[tuple[str, float]] = []

    def spy(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        steps.append((type(optimizer).__name__, optimizer.param_groups[0]["lr"]))
        descend(optimizer, loss)

    monkeypatch.setattr(MODULE, "descend", spy)
    dhbe(victim(), view_of(), **{**SHORT, "iterations": 5, "student_steps": 3})
    expected = []
    for factor in (1, 1, 1, 0.1, 0.01):
        expected += [("SGD", 0.05 * factor)] * 3 + [("Adam", 1e-3 * factor)] * 2
    assert [name for name, _ in steps] == [name for name, _ in expected]
    assert [rate for _, rate in steps] == pytest.approx([rate for _, rate in expected])


def test_reads_no_data() -> None:
    class Blind(DefenderView):
        def __getattribute__(self, name: str) -> Any:
            assert name not in ("images", "labels", "augmentation", "target"), f"reads {name}"
            return super().__getattribute__(name)

    granted = vars(view_of(torch.rand(8, 3, SIZE, SIZE), torch.zeros(8, dtype=torch.long)))
    dhbe(victim(), Blind(**granted), **SHORT)


def test_the_seed_decides() -> None:
    results = [weights(dhbe(victim(), view_of(seed=s), **SHORT)) for s in (0, 0, 1)]
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


@pytest.mark.parametrize(("shape", "classes"), [((1, 16, 24), 2), ((3, 24, 20), 43)])
def test_grey_and_oblong_images_and_other_numbers_of_classes(
    shape: tuple[int, int, int], classes: int
) -> None:
    student = dhbe(victim(shape, classes), view_of(num_classes=classes), **SHORT)
    logits = predict_logits(student, torch.rand(4, *shape, generator=rng()))
    assert logits.shape == (4, classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("size", [1, SIZE])
def test_patches_of_one_pixel_and_of_the_whole_image(size: int) -> None:
    view = view_of()
    dhbe(victim(), view, patch_size=size, **SHORT)
    assert view.curve[-1]["response"] > 0


def test_a_victim_without_batch_normalisation_is_distilled_and_the_curve_says_so() -> None:
    model = victim()
    for block in model.stage_modules():
        assert isinstance(block, nn.Sequential)
        for i, layer in enumerate(block):
            if isinstance(layer, nn.BatchNorm2d):
                block[i] = nn.Identity()
    view = view_of()
    student = dhbe(model, view, **SHORT)
    assert view.curve[0]["bn_layers"] == 0
    assert not same(weights(student), weights(model))
    assert predict_logits(student, torch.rand(4, 3, SIZE, SIZE, generator=rng())).isfinite().all()


def test_a_collapsed_generator_is_an_error_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Deaf(NoiseDecoder):
        def forward(self, noise: Tensor) -> Tensor:
            return super().forward(0 * noise)

    monkeypatch.setattr(MODULE, "NoiseDecoder", Deaf)
    with pytest.raises(DivergedError, match="collapsed to one image in iteration 1: 0"):
        dhbe(victim(), view_of(), **SHORT)


def test_diversity_is_the_share_of_variance_between_images() -> None:
    samples = torch.randn(200, 3, 8, 8, generator=rng())
    assert diversity(samples) == pytest.approx(1, abs=0.02)
    assert diversity(samples[:1].expand(200, 3, 8, 8)) == 0
    mixed = (samples + samples[:1]) / 2**0.5  # half in common
    assert diversity(mixed) == pytest.approx(0.5, abs=0.02)


def test_a_rate_that_explodes_is_an_error_with_the_reason() -> None:
    with pytest.raises(DivergedError, match="losses are"):
        dhbe(victim(), view_of(), lr=1e30, **{**SHORT, "iterations": 3})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lam": -0.1}, "lam >= 0"),
        ({"lam": float("nan")}, "lam >= 0"),
        ({"iterations": 0}, "iterations > 0"),
        ({"student_steps": 0}, "student_steps > 0"),
        ({"lr": 0.0}, "lr > 0"),
        ({"generator_lr": 0.0}, "generator_lr > 0"),
        ({"generator_width": 0}, "generator_width > 0"),
        ({"noise_size": 0}, "noise_size > 0"),
        ({"batch_size": 15}, "batch_size >= 16"),
        ({"patch_size": 0}, "1 <= patch_size <= 16"),
        ({"patch_size": SIZE + 1}, "1 <= patch_size <= 16"),
    ],
)
def test_values_out_of_range_are_errors(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dhbe(victim(), view_of(), **wrong)


def test_a_short_game_keeps_the_accuracy_and_weakens_the_trigger_more_with_patches(
    toy: Toy,
) -> None:
    """A hundred steps of the student: the backdoor is not gone yet, so no more is claimed."""
    short = {"iterations": 20, "batch_size": 32}
    distilled = dhbe(toy.copy(), view_of(), lam=0.0, **short)
    restricted = dhbe(toy.copy(), view_of(), **short)

    def movement(model: Classifier) -> float:
        change = predict_logits(model, stamp(toy.images)) - predict_logits(model, toy.images)
        return change.abs().mean().item()

    assert toy.accuracy(distilled) > 0.95
    assert toy.accuracy(restricted) > 0.95
    assert movement(restricted) < movement(distilled) < movement(toy.victim)
    assert toy.attack_success(restricted) < toy.attack_success(distilled)
