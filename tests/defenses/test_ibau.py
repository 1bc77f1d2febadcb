"""The hypergradient against closed forms and finite differences; balls, patches and modes."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from defenses._hypergradient import hypergradient, solve_fixed_point
from defenses.ibau import (
    ascend_paper,
    ascend_repository,
    choose_perturbed,
    draw_batches,
    ibau,
    paper_round,
    perturbed_loss,
    project,
    repository_round,
)
from tests.defenses.conftest import Toy, textures, view_of
from zoo.models import ArchSpec, build_model
from zoo.train import DivergedError

RHO = 0.3
MODULE = importlib.import_module("defenses.ibau")  # the package has a function of that name


class Quadratic:
    """Inner 1/2 (d - A t)' Q (d - A t), outer 1/2 |d - b|^2 + rho/2 |t|^2; the spectrum is 1..8."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=torch.float64)).Q
        self.q = basis @ torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64)) @ basis.T
        self.a = torch.randn(8, 4, generator=g, dtype=torch.float64)
        self.b = torch.randn(8, generator=g, dtype=torch.float64)
        self.theta = torch.randn(4, generator=g, dtype=torch.float64).requires_grad_()

    def inner(self, delta: Tensor, theta: Tensor) -> Tensor:
        r = delta - self.a @ theta
        return 0.5 * r @ self.q @ r

    def outer(self, delta: Tensor, theta: Tensor) -> Tensor:
        return 0.5 * (delta - self.b).square().sum() + 0.5 * RHO * theta.square().sum()

    def gradient(self, delta: Tensor, iterations: int, step: float = 2 / 9) -> Tensor:
        losses = self.inner(delta, self.theta), self.outer(delta, self.theta)
        (result,) = hypergradient(*losses, delta, [self.theta], step=step, iterations=iterations)
        return result

    def solution(self) -> Tensor:
        return (self.a @ self.theta).detach().requires_grad_()


def test_hypergradient_equals_the_closed_form() -> None:
    toy = Quadratic()
    exact = toy.a.T @ (toy.a @ toy.theta - toy.b) + RHO * toy.theta
    torch.testing.assert_close(toy.gradient(toy.solution(), 200), exact.detach())


def test_hypergradient_equals_finite_differences() -> None:
    toy = Quadratic()
    h = 1e-6

    def value(theta: Tensor) -> Tensor:
        return toy.outer(toy.a @ theta, theta)  # delta(theta) is A theta

    with torch.no_grad():
        unit = h * torch.eye(4, dtype=torch.float64)
        numeric = [(value(toy.theta + u) - value(toy.theta - u)) / (2 * h) for u in unit]
    result = toy.gradient(toy.solution(), 200)
    torch.testing.assert_close(result, torch.stack(numeric), rtol=1e-5, atol=1e-5)


def slow_hypergradient(delta, inner, outer, weights, step, iterations):  # type: ignore[no-untyped-def]
    """Outer gradient - step * d/dtheta <grad_delta inner, v>, v a Neumann sum of a dense Hessian."""
    flat = delta.detach().flatten()
    hessian = torch.autograd.functional.hessian(lambda d: inner(d.view_as(delta)), flat)
    contraction = torch.eye(len(flat), dtype=flat.dtype) - step * hessian
    at = delta.detach().requires_grad_()
    slope = torch.autograd.grad(outer(at), at)[0].flatten()
    v = sum(torch.linalg.matrix_power(contraction, k) @ slope for k in range(iterations))
    h = 1e-5 / v.norm()
    ahead, behind = (
        torch.autograd.grad(inner((flat + s * h * v).view_as(delta)), weights) for s in (1, -1)
    )
    direct = torch.autograd.grad(outer(delta.detach()), weights)
    return [d - step * (a - b) / (2 * h) for d, a, b in zip(direct, ahead, behind, strict=True)]


@pytest.mark.parametrize("mode", ["paper", "repository"])
def test_both_modes_hand_over_the_losses_that_the_module_names(mode: str) -> None:
    """On a network, against the formula with every loss written out once more."""
    spec = ArchSpec(name="small_vgg", num_classes=4, width=0.1, image_shape=(3, 8, 8))
    model = build_model(spec, torch.Generator().manual_seed(0)).double()
    g = torch.Generator().manual_seed(3)
    batches = [
        (torch.rand(5, 3, 8, 8, generator=g, dtype=torch.float64), torch.tensor(labels))
        for labels in ([0, 1, 2, 3, 0], [1, 1, 2, 3, 0])
    ]
    weights = list(model.parameters())
    if mode == "paper":
        problems = paper_round(model, batches, steps=3, lr=1.0, radius=2.0)
    else:
        seeded = torch.Generator().manual_seed(0)
        problems = repository_round(model, batches, lr=10.0, generator=seeded)
    again = torch.Generator().manual_seed(0)
    first = batches[0]
    for (images, labels), (delta, inner, outer) in zip(batches, problems, strict=True):
        got = hypergradient(inner, outer, delta, weights, step=0.1, iterations=5)
        if mode == "paper":

            def outer_loss(d: Tensor) -> Tensor:
                return F.cross_entropy(model(images + d), labels)  # noqa: B023 (called at once)

            def inner_loss(d: Tensor) -> Tensor:
                return -outer_loss(d)
        else:
            chosen = torch.zeros(5, 1, 1, 1, dtype=torch.float64)
            chosen[torch.randperm(5, generator=again)[0]] = 1  # 1 % of five, and at least one

            def outer_loss(d: Tensor) -> Tensor:
                return F.cross_entropy(model(images + d * chosen), labels)  # noqa: B023

            def inner_loss(d: Tensor) -> Tensor:
                return 1e-3 * (d**2).sum() - F.cross_entropy(model(first[0] + d), first[1])

        slow = slow_hypergradient(delta, inner_loss, outer_loss, weights, 0.1, 5)
        error = sum((a - b).square().sum() for a, b in zip(got, slow, strict=True))
        size = sum(b.square().sum() for b in slow)
        assert error < 1e-16 * size  # a relative error of 1e-8


def test_a_loss_that_is_no_number_ends_it(toy: Toy) -> None:
    model = toy.copy()
    with torch.no_grad():
        model.head.bias[1] = math.nan
    with pytest.raises(DivergedError, match="the loss is nan in round 1 of 5"):
        ibau(model, view_of(*textures(20, 3)), round_steps=2)


@pytest.mark.parametrize("iterations", [1, 5, 20])
def test_error_of_the_truncated_solve_is_bounded_by_its_contraction(iterations: int) -> None:
    toy = Quadratic()
    delta = toy.solution()
    (slope,) = torch.autograd.grad(toy.inner(delta, toy.theta), delta, create_graph=True)
    g = (delta - toy.b).detach()
    v = solve_fixed_point(slope, g, delta, 2 / 9, iterations)
    exact = torch.linalg.solve(2 / 9 * toy.q, g)
    error = (v - exact).norm() / exact.norm()
    assert error <= (7 / 9) ** iterations + 1e-12  # kappa = 8
    assert error > 0


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_truncated_solve_is_the_partial_neumann_sum(iterations: int) -> None:
    toy = Quadratic()
    delta = toy.solution()
    (slope,) = torch.autograd.grad(toy.inner(delta, toy.theta), delta, create_graph=True)
    g = (delta - toy.b).detach()
    jacobian = torch.eye(8, dtype=torch.float64) - 0.1 * toy.q
    expected = sum(torch.linalg.matrix_power(jacobian, k) @ g for k in range(iterations))
    torch.testing.assert_close(solve_fixed_point(slope, g, delta, 0.1, iterations), expected)


def test_the_indirect_gradient_vanishes_at_a_stationary_outer_loss() -> None:
    toy = Quadratic()
    toy.b = (toy.a @ toy.theta).detach()  # now delta minimises both losses
    torch.testing.assert_close(toy.gradient(toy.solution(), 5), RHO * toy.theta.detach())


def test_the_sign_is_that_of_equation_4() -> None:
    """With inner = -H and outer = H: direct minus mixed' Hessian^-1 slope, not plus."""
    toy = Quadratic()
    delta = (toy.a @ toy.theta).detach() + 1.0
    delta.requires_grad_()
    h = -toy.inner(delta, toy.theta)  # concave in delta: delta maximises it
    (result,) = hypergradient(-h, h, delta, [toy.theta], step=2 / 9, iterations=300)
    r = (delta - toy.a @ toy.theta).detach()
    direct, slope, mixed, hessian = toy.a.T @ toy.q @ r, -toy.q @ r, toy.q @ toy.a, -toy.q
    expected = direct - mixed.T @ torch.linalg.solve(hessian, slope)
    torch.testing.assert_close(result, expected)


def test_gradients_do_not_accumulate_and_unused_parameters_get_zeros() -> None:
    toy = Quadratic()
    unused = torch.ones(3, requires_grad=True)
    first = toy.gradient(toy.solution(), 5)
    assert toy.theta.grad is None
    assert torch.equal(first, toy.gradient(toy.solution(), 5))
    delta = toy.solution()
    losses = toy.inner(delta, toy.theta), toy.outer(delta, toy.theta)
    _, zeros = hypergradient(*losses, delta, [toy.theta, unused], step=0.1, iterations=2)
    assert torch.equal(zeros, torch.zeros(3))


def test_projection() -> None:
    inside, outside = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 2, 2), 5.0)
    assert torch.equal(project(inside, 1.0 + 1e-6), inside)
    assert project(outside, 3.0).norm().item() == pytest.approx(3.0)
    assert torch.equal(project(torch.zeros(1, 1, 2, 2), 3.0), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize(("n", "count"), [(1, 1), (10, 1), (99, 1), (100, 1), (101, 2), (2500, 25)])
def test_repository_mode_perturbs_at_least_one_image(n: int, count: int) -> None:
    chosen = choose_perturbed(n, torch.Generator().manual_seed(0))
    assert chosen.shape == (n,)
    assert int(chosen.sum()) == count


def test_paper_ascent_fools_the_model_inside_the_ball(toy: Toy) -> None:
    model, batch = toy.copy(), textures(50, 3)
    delta = ascend_paper(model, batch, steps=10, lr=10.0, radius=2.0)
    assert delta.shape == (1, 3, 16, 16)
    assert delta.norm().item() <= 2.0 + 1e-5
    loss = perturbed_loss(model, batch, delta)
    assert loss > 2 * perturbed_loss(model, batch, torch.zeros_like(delta))
    assert all(p.grad is None for p in model.parameters())


def test_repository_ascent_is_unprojected_and_ignores_labels(toy: Toy) -> None:
    images, labels = textures(50, 3)
    batches, wrong = [(images, labels)] * 10, [(images, 3 - labels)] * 10
    model = toy.copy()
    delta = ascend_repository(model, batches, lr=1000.0)
    assert delta.norm() > 10
    assert torch.equal(delta, ascend_repository(model, wrong, lr=1000.0))


def test_a_round_has_the_same_steps_at_every_budget() -> None:
    images, labels = textures(101, 3)
    g = torch.Generator().manual_seed(0)
    assert [len(b[0]) for b in draw_batches(images, labels, 25, 2, g)] == [21, 20]
    assert [len(b[0]) for b in draw_batches(images[:1], labels[:1], 25, 3, g)] == [1, 1, 1]
    batches = draw_batches(images, labels, 25, 7, g)
    assert [len(b[0]) for b in batches] == [21, 20, 20, 20, 20, 21, 20]
    seen = torch.cat([b[0] for b in batches[:5]]).flatten(1).sum(1)  # the first pass: all of them
    torch.testing.assert_close(seen.sort().values, images.flatten(1).sum(1).sort().values)


def test_paper_mode_searches_anew_for_every_step_and_repository_mode_once(toy: Toy) -> None:
    model, batches = toy.copy(), [textures(10, 3), textures(10, 4)]
    paper = [d for d, _, _ in paper_round(model, batches, steps=2, lr=1.0, radius=9.0)]
    assert not torch.equal(paper[0], paper[1])
    code = [d for d, _, _ in repository_round(model, batches, lr=10.0, generator=torch.Generator())]
    assert torch.equal(code[0], code[1])


@pytest.mark.parametrize("mode", ["paper", "repository"])
@pytest.mark.parametrize("n", [1, 10, 60])
def test_running_statistics_are_bit_identical_and_weights_move(toy: Toy, mode: str, n: int) -> None:
    view, before = view_of(*textures(n, 3)), toy.victim.state_dict()
    model = ibau(toy.copy(), view, mode=mode, rounds=1, round_steps=2)
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), name
        if name not in dict(model.named_parameters()):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(model.head.weight, toy.victim.head.weight)
    assert all(p.grad is None for p in model.parameters())


def test_the_radius_is_scaled_to_the_image(toy: Toy) -> None:
    view = view_of(*textures(40, 3))
    ibau(toy.copy(), view, mode="paper", rounds=2, round_steps=2, ascent_lr=1e4, radius=3.0)
    for point in view.curve:
        assert point["delta_norm"] == pytest.approx(3.0 * math.sqrt(16 * 16 / 32**2), rel=1e-4)


def test_paper_mode_perturbs_every_image_and_repository_mode_one(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[torch.Size] = []
    compute = perturbed_loss

    def spy(model: object, batch: object, delta: Tensor) -> Tensor:
        shapes.append(delta.shape)
        if len(delta) > 1:
            touched = (delta.detach().flatten(1) != 0).any(1)
            assert int(touched.sum()) == 1
        return compute(model, batch, delta)  # type: ignore[arg-type]

    monkeypatch.setattr(MODULE, "perturbed_loss", spy)
    ibau(toy.copy(), view_of(*textures(20, 3)), mode="paper", rounds=1, round_steps=2)
    assert {shape[0] for shape in shapes} == {1}
    ibau(toy.copy(), view_of(*textures(20, 3)), mode="repository", rounds=1, round_steps=2)
    assert {shape[0] for shape in shapes} == {1, 20}


# Paper mode trains on perturbed images only, and at C = 10 pays for it with clean accuracy.
@pytest.mark.parametrize(("mode", "loss"), [("paper", 0.3), ("repository", 0.1)])
def test_removes_the_toy_backdoor_at_a_known_price(toy: Toy, mode: str, loss: float) -> None:
    model = ibau(toy.copy(), view_of(*textures(200, 3)), mode=mode, batch_size=40)
    assert toy.attack_success(model) < toy.attack_success(toy.victim) - 0.3
    assert toy.accuracy(model) > toy.accuracy(toy.victim) - loss


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mode": "exact"}, "expected mode in paper, repository, got 'exact'"),
        ({"rounds": 0}, "expected rounds > 0, got 0"),
        ({"radius": -1.0}, "expected radius > 0, got -1.0"),
        ({"fixed_point_steps": 0}, "expected fixed_point_steps > 0, got 0"),
        ({"round_steps": 0}, "expected round_steps > 0, got 0"),
    ],
)
def test_errors(toy: Toy, overrides: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ibau(toy.copy(), view_of(*textures(4, 3)), **overrides)  # type: ignore[arg-type]
