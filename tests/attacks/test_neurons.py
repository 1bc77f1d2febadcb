"""The neuron objective: which units, what is ascended, what is kept; and adding a pattern."""

import numpy as np
import pytest
import torch

from attacks import _neurons
from attacks._crafted import add, check_steps, draw_images, straight_through
from attacks._neurons import Search, choose_units, optimise, render_levels, stamp_added
from tests.attacks.toys import LinearSurrogate, dark_images, preparation_for
from tests.preparations import seeded, toy_model


def signed_weights(shape, seed=5):
    """+1 and -1 at random."""
    return (torch.randint(2, shape, generator=seeded(seed)) * 2 - 1).float()


def additive(shape, steps, **more):
    return Search(shape=shape, render=render_levels, stamp=stamp_added, steps=steps, **more)


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_adding_every_pair_of_values(strength):
    x = torch.arange(256, dtype=torch.uint8).repeat(256, 1)[None, None]
    p = x[0].transpose(1, 2).contiguous()
    expected = np.minimum(x.numpy().astype(int) + strength * p.numpy().astype(int), 255)
    np.testing.assert_array_equal(add(x, p, strength).numpy(), expected)


def test_images_are_drawn_from_the_candidates_once_each():
    images = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    preparation = preparation_for(toy_model((1, 8, 8)), images)
    candidates = torch.arange(10, 40, 3)
    drawn = draw_images(preparation, candidates, 6)
    assert drawn.shape == (6, 1, 2, 2)
    assert drawn.dtype == torch.float32
    values = drawn[:, 0, 0, 0].long()
    assert len(values.unique()) == 6
    assert torch.isin(values, candidates).all()
    assert len(draw_images(preparation, candidates, 99)) == len(candidates)
    again = draw_images(preparation_for(toy_model((1, 8, 8)), images), candidates, 6)
    assert torch.equal(again, drawn)


@pytest.mark.parametrize("steps", [0, -3, 2.0, "5"])
def test_steps_are_counted(steps):
    with pytest.raises(
        ValueError, match=f"smooth: expected a whole number of steps >= 1, got {steps}"
    ):
        check_steps("smooth", steps)


def test_rounding_passes_gradients_straight_through():
    z = torch.tensor([0.0, 0.1, 0.5, 0.9991, 1.0], requires_grad=True)
    levels = render_levels(z)
    assert torch.equal(levels.detach().round(), torch.tensor([0.0, 26.0, 128.0, 255.0, 255.0]))
    (gradient,) = torch.autograd.grad(levels.sum(), z)
    assert torch.equal(gradient, torch.full((5,), 255.0))
    exact = torch.tensor([0.3], requires_grad=True)
    (gradient,) = torch.autograd.grad(straight_through(2 * exact, torch.tensor([9.0])).sum(), exact)
    assert gradient.item() == 2


def test_units_are_ranked_by_weight_times_reach(monkeypatch):
    monkeypatch.setattr(_neurons, "UNITS", 4)
    generator = seeded(1)
    head, clean, triggered = (torch.randn(n, 9, generator=generator) for n in (3, 5, 5))
    scores = []
    for d in range(9):
        weight = sum(abs(float(head[k, d])) for k in range(3))
        reach = sum(abs(float(triggered[n, d] - clean[n, d])) for n in range(5)) / 5
        scores.append(weight * reach)
    expected = sorted(range(9), key=lambda d: -scores[d])[:4]
    assert choose_units(head, clean, triggered).tolist() == expected


def test_a_unit_out_of_reach_is_not_chosen_however_heavy(monkeypatch):
    monkeypatch.setattr(_neurons, "UNITS", 1)
    head = torch.tensor([[100.0, 1.0]])
    clean = torch.zeros(4, 2)
    assert choose_units(head, clean, clean + torch.tensor([0.0, 0.1])).tolist() == [1]


def test_all_units_are_taken_where_there_are_few():
    chosen = choose_units(torch.ones(2, 3), torch.zeros(4, 3), torch.ones(4, 3))
    assert chosen.sort().values.tolist() == [0, 1, 2]


def test_a_linear_unit_is_excited_as_far_as_pixels_go():
    weights = signed_weights((3, 6, 6))
    preparation = preparation_for(LinearSurrogate(weights), dark_images(200, (3, 6, 6)))
    pixels, units = optimise(additive((3, 6, 6), 60), preparation)
    assert units.tolist() == [0]
    assert (pixels[weights > 0] >= 255 - 9).all()  # brighter only where an image is darker still
    assert (pixels[weights < 0] == 0).all()


def test_a_penalty_holds_the_search_back():
    weights = torch.ones(1, 4, 4)
    preparation = preparation_for(LinearSurrogate(weights), dark_images(200, (1, 4, 4)))
    penalty = additive((1, 4, 4), 60, penalty=lambda z: 1e6 * (z - 0.5).abs().mean())
    pixels, _ = optimise(penalty, preparation)
    assert (pixels.float() - 127.5).abs().max() < 20  # a step of Adam is 13 levels


def test_parameters_are_projected_after_every_step():
    seen = []

    def project(z):
        seen.append(float(z.max()))
        return z.clamp(0, 0.25)

    preparation = preparation_for(LinearSurrogate(torch.ones(1, 4, 4)), dark_images(80, (1, 4, 4)))
    pixels, _ = optimise(additive((1, 4, 4), 7, project=project), preparation)
    assert len(seen) == _neurons.RESTARTS * (1 + 7)
    assert (pixels == 64).all()


def test_the_best_start_is_kept(monkeypatch):
    ends = iter([0.2, 0.9, 0.5])
    monkeypatch.setattr(_neurons, "RESTARTS", 3)
    monkeypatch.setattr(_neurons, "_ascend", lambda *_: torch.full((1, 4, 4), next(ends)))
    model = LinearSurrogate(torch.ones(1, 4, 4))
    pixels, _ = optimise(additive((1, 4, 4), 1), preparation_for(model, dark_images(40, (1, 4, 4))))
    assert (pixels == 230).all()


def test_few_images_and_dead_units_do_no_harm():
    # The second unit never moves: its spread is 0 and its reach too.
    model = LinearSurrogate(torch.ones(1, 4, 4), torch.zeros(1, 4, 4))
    pixels, units = optimise(
        additive((1, 4, 4), 30), preparation_for(model, dark_images(3, (1, 4, 4)))
    )
    assert units[0] == 0
    assert pixels.float().mean() > 200


def test_the_model_is_left_as_it_was():
    model = toy_model((1, 16, 16)).requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randint(256, (40, 1, 16, 16), generator=seeded()).byte()
    optimise(additive((1, 16, 16), 2), preparation_for(model, images))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
