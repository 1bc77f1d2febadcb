"""MINE and the staircase against closed forms; pasting and places; screening, samples, oracle."""

from __future__ import annotations

import math

import pytest
import torch

from defenses._mesa import (
    Critic,
    PatchGenerator,
    Staircase,
    critic_loss,
    learn_submodel,
    mutual_information,
    staircase_loss,
)
from defenses._patch_screen import (
    Place,
    Spot,
    best_of,
    best_of_each_size,
    draw_positions,
    highest,
    paste,
    picture,
    screen,
)
from defenses._unlearning import stamp_share
from defenses.base import NotApplicableError, NotDetectedError
from defenses.gdm import find, gdm, gdm_oracle, stamper
from tests.defenses.conftest import CLASSES, TARGET, Toy, textures, view_of
from zoo.train import DivergedError

LONG = {
    "submodel_steps": 15,
    "submodel_batch": 24,
    "screen_steps": 10,
    "screen_kept": 4,
    "screen_probes": 5,
    "steps": 40,
    "batch_size": 40,
}
CORNER = Place(target=TARGET, grid=6, row=5, column=5)
WHITE = Spot(place=CORNER, patch=torch.ones(3, 3, 3), reach=1.0)
SCHEDULE = Staircase(alpha=0.1, steps=5, batch_size=8, lr=1e-3)


def generator_of(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_constant_critic_sees_no_information() -> None:
    constant = torch.full((9,), 3.7)
    assert mutual_information(constant, constant).item() == pytest.approx(0.0, abs=1e-6)


def test_the_bound_is_that_of_a_slow_sum() -> None:
    g = generator_of()
    joint, product = torch.randn(7, generator=g), torch.randn(7, generator=g)
    mean = sum(math.exp(v) for v in product.tolist()) / 7
    expected = sum(joint.tolist()) / 7 - math.log(mean)
    assert mutual_information(joint, product).item() == pytest.approx(expected, rel=1e-5)


def test_the_optimal_critic_reaches_the_information_of_two_gaussians() -> None:
    """log p(x, z) / p(x) p(z) is optimal; the information is -log(1 - rho^2) / 2."""
    g, rho, n = generator_of(), 0.8, 200_000
    z, e = torch.randn(2, n, generator=g, dtype=torch.float64)
    x, other = rho * z + math.sqrt(1 - rho**2) * e, torch.randn(n, generator=g, dtype=torch.float64)

    def ratio(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        quadratic = (rho**2 * (x**2 + z**2) - 2 * rho * x * z) / (2 * (1 - rho**2))
        return -quadratic - 0.5 * math.log(1 - rho**2)

    estimate = mutual_information(ratio(x, z), ratio(x, other))
    assert estimate.item() == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.02)


def test_the_critics_gradient_is_that_of_the_bound_where_the_average_is_the_mean() -> None:
    g = generator_of()
    joint, product = (torch.randn(5, generator=g).requires_grad_() for _ in range(2))
    average = product.detach().exp().mean()
    ours = torch.autograd.grad(critic_loss(joint, product, average), [joint, product])
    bound = torch.autograd.grad(-mutual_information(joint, product), [joint, product])
    for a, b in zip(ours, bound, strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_is_gained_above_the_level() -> None:
    p = torch.tensor([0.2, 0.49, 0.51, 0.9], requires_grad=True)
    loss = staircase_loss(p, 0.5)
    assert loss.item() == pytest.approx(-(0.2 + 0.49 + 0.5 + 0.5) / 4)
    assert torch.autograd.grad(loss, p)[0].tolist() == [-0.25, -0.25, 0.0, 0.0]


def test_generated_patches_are_pixels_around_the_start() -> None:
    start = torch.rand(3, 5, 5, generator=generator_of())
    net = PatchGenerator(start, generator_of())
    z, patches = net.sample(400, generator_of())
    assert patches.shape == (400, 3, 5, 5)
    assert z.min() >= 0
    assert z.max() <= 1
    assert patches.min() >= 0
    assert patches.max() <= 1
    assert net(z).std(0).mean() > 0.05, "diverse from the beginning"
    assert (net(z).mean(0) - start).abs().mean() < 0.1
    assert Critic(75, generator_of())(patches, z).shape == (400,)


def test_pasting_replaces_one_square_per_image_and_nothing_else() -> None:
    g = generator_of()
    images, patches = torch.rand(4, 3, 8, 9, generator=g), torch.rand(4, 3, 3, 3, generator=g)
    top, left = torch.tensor([0, 5, 2, 1]), torch.tensor([6, 0, 3, 1])
    expected = images.clone()
    for i in range(4):
        expected[i, :, top[i] : top[i] + 3, left[i] : left[i] + 3] = patches[i]
    before = images.clone()
    assert torch.equal(paste(images, patches, top, left), expected)
    assert torch.equal(images, before)


def test_pasting_carries_gradients_to_the_patches() -> None:
    patches = torch.zeros(2, 1, 2, 2, requires_grad=True)
    pasted = paste(torch.ones(2, 1, 4, 4), patches, torch.tensor([0, 1]), torch.tensor([2, 1]))
    (slope,) = torch.autograd.grad(pasted.sum(), patches)
    assert torch.equal(slope, torch.ones_like(patches))


@pytest.mark.parametrize("grid", [1, 3, 6])
def test_cells_cover_all_positions_once_the_last_row_included(grid: int) -> None:
    seen = []
    for row in range(grid):
        places = [Place(target=0, grid=grid, row=row, column=row)] * 400
        top, left = draw_positions(places, 3, (3, 16, 16), generator_of(row))
        assert set(top.tolist()) == set(left.tolist())
        seen += sorted(set(top.tolist()))
    assert seen == list(range(14))


def test_quarters_of_a_cell_are_its_positions() -> None:
    place = Place(target=1, grid=3, row=2, column=0)
    quarters = place.quarters()
    assert [(q.grid, q.row, q.column) for q in quarters] == [
        (6, 4, 0),
        (6, 4, 1),
        (6, 5, 0),
        (6, 5, 1),
    ]
    top, left = draw_positions(quarters * 200, 5, (3, 32, 32), generator_of())
    assert set(top.tolist()) == set(range(18, 28))
    assert set(left.tolist()) == set(range(9))


def test_a_patch_almost_as_large_as_the_image_still_fits() -> None:
    places = [Place(target=0, grid=6, row=r, column=5 - r) for r in range(6)] * 20
    top, left = draw_positions(places, 5, (3, 7, 7), generator_of())
    assert {*top.tolist(), *left.tolist()} == {0, 1, 2}


def spot(target: int, reach: float, size: int = 3, grid: int = 6) -> Spot:
    place = Place(target=target, grid=grid, row=0, column=0)
    return Spot(place=place, patch=torch.ones(3, size, size), reach=reach)


def test_a_fine_search_overrules_a_coarse_one() -> None:
    spots = [spot(0, 0.9, 5, grid=3), spot(0, 0.4), spot(0, 0.6, 5), spot(1, 0.95, 5, grid=3)]
    assert best_of(spots, 0) is spots[2]
    assert best_of(spots, 1) is spots[3]
    assert best_of_each_size(spots, 0) == [spots[1], spots[2]]
    assert best_of_each_size(spots, 1) == [spots[3]]


def test_at_most_two_classes_are_flagged_highest_reach_first() -> None:
    spots = [spot(0, 0.85), spot(1, 0.1), spot(2, 0.9), spot(3, 1.0)]
    found = find(spots, 4, (3, 16, 16), 0.8, torch.Generator())
    assert found.flagged == (3, 2)
    torch.testing.assert_close(found.values, torch.tensor([0.85, 0.1, 0.9, 1.0]))
    assert find(spots, 4, (3, 16, 16), 0.95, torch.Generator()).flagged == (3,)
    assert found.triggers is not None
    assert found.triggers.shape == (4, 3, 16, 16)


def test_of_equal_classes_none_is_favoured() -> None:
    generator = torch.Generator().manual_seed(0)
    spots = [spot(target, 1.0 if target != 4 else 0.9) for target in range(10)]
    flagged = [find(spots, 10, (3, 16, 16), 0.8, generator).flagged for _ in range(400)]
    counts = torch.bincount(torch.tensor(flagged).flatten(), minlength=10)
    assert counts[4] == 0
    assert counts[counts > 0].min() > 50  # 800 / 9 = 89 are expected
    assert counts.max() < 130
    values = torch.tensor([0.1, 0.5, 0.5, 0.9])
    assert highest(values, 1, generator) == [3]
    assert set(highest(values, 3, generator)) == {1, 2, 3}
    assert len(highest(values, 9, generator)) == 4


def test_the_picture_shows_the_patch_in_its_cell() -> None:
    image = picture(WHITE, (3, 16, 16))
    assert int((image == 1).sum()) == 27
    rows = (image[0] == 1).any(1).nonzero().flatten()
    assert rows.min() >= 11
    assert rows.max() <= 15
    assert ((image == 1) | (image == 0.5)).all()


def test_the_screen_finds_class_and_corner(toy: Toy) -> None:
    images, labels = textures(100, 3)
    model, view = toy.copy(), view_of(images, labels)
    spots = screen(
        model, view, images, labels, range(CLASSES), sizes=(3, 5), steps=8, lr=0.3, kept=4, probes=5
    )
    assert len(spots) == CLASSES * 9 + 2 * 4 * 4
    found = find(spots, CLASSES, (3, 16, 16), 0.8, view.generator)
    assert found.values.argmax() == TARGET
    place = best_of(spots, TARGET).place
    # Flips and shifts were part of the victim's training: the trigger works at the left, too.
    assert place.row >= 3
    assert place.column in (0, 1, 4, 5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, toy.victim.state_dict()[name]), name


def test_information_grows_with_its_weight_and_weights_stay(toy: Toy) -> None:
    images, labels = textures(50, 3)
    model, spreads = toy.copy(), {}
    for alpha in (0.0, 1.0):
        schedule = Staircase(alpha=alpha, steps=60, batch_size=16, lr=1e-3)
        view = view_of(images, labels)
        net = learn_submodel(model, view, images, labels, WHITE, 0.5, schedule)
        spreads[alpha] = net(torch.rand(200, 64, generator=generator_of())).std(0).mean().item()
        assert view.curve[-1]["beta"] == 0.5
    assert spreads[1.0] > 1.3 * spreads[0.0]
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, toy.victim.state_dict()[name]), name


def test_samples_are_stamped_in_their_cell_on_the_share_asked_for(toy: Toy) -> None:
    images, labels = textures(40, 3)
    view = view_of(images, labels)
    net = learn_submodel(toy.copy(), view, images, labels, WHITE, 0.5, SCHEDULE)
    put = stamper(net, CORNER, generator_of())
    changed = (put(images) != images).any(1)  # (N, H, W)
    assert changed.flatten(1).any(1).all()
    assert not changed[:, :11].any()
    assert not changed[:, :, :11].any()
    share = stamp_share(images, [put], 0.1)
    assert int((share != images).flatten(1).any(1).sum()) == 4


def test_finds_and_removes_the_toy_backdoor(toy: Toy) -> None:
    images, labels = textures(200, 3)
    given, view = labels.clone(), view_of(images, labels)
    model = gdm(toy.copy(), view, **LONG)  # type: ignore[arg-type]
    assert view.finding is not None
    assert view.finding.flagged[0] == TARGET
    assert torch.equal(labels, given)
    assert toy.attack_success(model) < toy.attack_success(toy.victim) - 0.5
    assert toy.accuracy(model) > toy.accuracy(toy.victim) - 0.1
    levels = [(p["size"], p["beta"]) for p in view.curve if "beta" in p]
    assert levels[:6] == [(s, b) for s in (3, 5) for b in (0.5, 0.8, 0.9)]


def test_the_oracle_unlearns_the_class_it_is_told(toy: Toy) -> None:
    view = view_of(*textures(200, 3))
    view.target = TARGET
    model = gdm_oracle(toy.copy(), view, **LONG)  # type: ignore[arg-type]
    assert toy.attack_success(model) < toy.attack_success(toy.victim) - 0.3
    assert toy.accuracy(model) > toy.accuracy(toy.victim) - 0.1
    assert view.finding is None


@pytest.mark.parametrize("n", [1, 20])
def test_the_oracle_works_at_small_budgets(toy: Toy, n: int) -> None:
    images, labels = textures(n, 3)
    view = view_of(images, torch.full_like(labels, TARGET))  # no image of another class
    view.target = TARGET
    short = {**LONG, "screen_steps": 1, "screen_kept": 1, "submodel_steps": 2, "steps": 2}
    model = gdm_oracle(toy.copy(), view, **short)  # type: ignore[arg-type]
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_oracle_needs_a_target(toy: Toy) -> None:
    with pytest.raises(NotApplicableError, match="target"):
        gdm_oracle(toy.copy(), view_of(*textures(8, 3)))


def test_nothing_found_says_what_came_closest(toy: Toy) -> None:
    model, view = toy.copy(), view_of(*textures(20, 3))
    with torch.no_grad():
        model.head.bias[TARGET] = -1e3  # a model without that class has no backdoor to it
    with pytest.raises(NotDetectedError, match="of up to 5 pixels sends 100% of the images"):
        gdm(model, view, screen_steps=1, screen_kept=1, screen_probes=5, reach_threshold=1.0)
    assert view.finding is not None
    assert view.finding.flagged == ()
    assert view.finding.values[TARGET] == 0


def test_a_broken_model_diverges(toy: Toy) -> None:
    model = toy.copy()
    with torch.no_grad():
        model.head.bias[1] = math.nan
    with pytest.raises(DivergedError, match="screened patches"):
        gdm(model, view_of(*textures(8, 3)), screen_steps=1)
    images, labels = textures(8, 3)
    with pytest.raises(DivergedError, match="sub-model is nan"):
        learn_submodel(model, view_of(), images, labels, WHITE, 0.5, SCHEDULE)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"screen_steps": 0}, "expected screen_steps > 0, got 0"),
        ({"screen_probes": 0}, "expected screen_probes > 0, got 0"),
        ({"alpha": -1.0}, "expected alpha >= 0, got -1.0"),
        ({"submodel_batch": 1}, "expected submodel_batch > 1, got 1"),
        ({"submodel_lr": 0.0}, "expected submodel_lr > 0, got 0.0"),
        ({"share": 0.0}, "expected share > 0, got 0.0"),
    ],
)
def test_errors(toy: Toy, overrides: dict[str, float], message: str) -> None:
    view = view_of(*textures(4, 3))
    view.target = TARGET
    for function in (gdm, gdm_oracle):
        with pytest.raises(ValueError, match=message):
            function(toy.copy(), view, **overrides)  # type: ignore[arg-type]
