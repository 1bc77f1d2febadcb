"""Every regulariser against loops; what the quality compares; detection of the toy's backdoor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from defenses._inversion import Candidates, Search, Triggers, invert, mask_norm
from defenses._outliers import anomaly_index, flag_small
from defenses.base import NotDetectedError
from defenses.tabor import (
    alone,
    crop_loss,
    cropped,
    elastic,
    explanation_loss,
    quality,
    roughness,
    success_rates,
    tabor,
    weighted,
)
from tests.defenses.conftest import CLASSES, TARGET, Toy, stamp, textures, view_of

LONG = {
    "rounds": 15,
    "round_steps": 2,
    "search_batch": 16,
    "search_lr": 0.3,
    "patience": 1,
    "steps": 60,
}


def candidates(toy: Toy, n: int = 5, *, seed: int = 3, zero: bool = False) -> Candidates:
    g = torch.Generator().manual_seed(4)
    images, labels = textures(n, seed)
    masks = torch.rand(2, 1, 16, 16, generator=g)
    patterns = torch.rand(2, 3, 16, 16, generator=g)
    return Candidates(
        model=toy.victim,
        classes=torch.tensor([2, 0]),
        masks=masks * (not zero),
        patterns=patterns,
        images=images,
        labels=labels,
    )


def slow_smoothness(z: np.ndarray) -> float:
    """Squared differences of all neighbours in ``(C, H, W)``, one by one."""
    total = 0.0
    for plane in z:
        height, width = plane.shape
        for i in range(height):
            for j in range(width):
                if i + 1 < height:
                    total += (plane[i, j] - plane[i + 1, j]) ** 2
                if j + 1 < width:
                    total += (plane[i, j] - plane[i, j + 1]) ** 2
    return total


def test_roughness_equals_loops_over_pixels() -> None:
    z = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = [slow_smoothness(plane) for plane in z.numpy()]
    np.testing.assert_allclose(roughness(z).numpy(), expected)


def test_roughness_counts_both_axes_alike_and_a_constant_not_at_all() -> None:
    stripes = (torch.arange(8) % 2).float().expand(1, 1, 8, 8)
    both = torch.cat([stripes, stripes.mT])
    assert roughness(both).tolist() == [56.0, 56.0]
    assert roughness(torch.full((1, 3, 8, 8), 0.4)).tolist() == [0.0]


def test_elastic_is_both_norms() -> None:
    z = torch.tensor([[[[0.5, -2.0]]], [[[0.0, 1.0]]]])
    assert elastic(z).tolist() == [2.5 + 4.25, 2.0]


@pytest.mark.parametrize("chosen", range(6))
@torch.no_grad()
def test_each_weight_scales_its_own_term(toy: Toy, chosen: int) -> None:
    c = candidates(toy)
    weights = [0.0] * 6
    weights[chosen] = 0.7
    result = weighted(tuple(weights))(c)
    for row in range(2):
        m, d = c.masks[row], c.patterns[row]
        outside = ((1 - m) * d).numpy()
        trigger = (m * d)[None]
        black = torch.stack([x * (1 - m) for x in c.images])
        term = [
            lambda m=m: m.abs().sum() + (m**2).sum(),
            lambda o=outside: np.abs(o).sum() + (o**2).sum(),
            lambda m=m: slow_smoothness(m.numpy()),
            lambda o=outside: slow_smoothness(o),
            lambda b=black: F.cross_entropy(toy.victim(b), c.labels),
            lambda t=trigger, r=row: -toy.victim(t).log_softmax(1)[0, int(c.classes[r])],
        ][chosen]()
        assert float(result[row]) == pytest.approx(0.7 * float(term), rel=1e-4)


def test_without_weights_it_is_neural_cleanse_without_a_cost(toy: Toy) -> None:
    def find(penalty: object, initial_cost: float) -> Triggers:
        search = Search(
            rounds=5,
            round_steps=2,
            search_batch=8,
            search_lr=0.1,
            patience=1,
            initial_cost=initial_cost,
        )
        data = textures(20, 3)
        return invert(toy.copy(), view_of(), *data, range(CLASSES), penalty, search)  # type: ignore[arg-type]

    ours, plain = find(weighted((0.0,) * 6), 1.0), find(mask_norm, 0.0)
    torch.testing.assert_close(ours.masks, plain.masks)
    torch.testing.assert_close(ours.patterns, plain.patterns)
    assert not torch.allclose(ours.masks, find(mask_norm, 1e-2).masks)


def test_the_explanation_ignores_the_images(toy: Toy) -> None:
    first, second = candidates(toy, seed=3), candidates(toy, n=9, seed=8)
    assert torch.equal(explanation_loss(first), explanation_loss(second))


def test_an_empty_mask_crops_nothing(toy: Toy) -> None:
    c = candidates(toy, zero=True)
    clean = F.cross_entropy(toy.victim(c.images), c.labels)
    torch.testing.assert_close(crop_loss(c), clean.expand(2))


def test_black_is_zero_in_pixel_space(toy: Toy) -> None:
    c = candidates(toy, zero=True)
    black = toy.victim(torch.zeros(1, 3, 16, 16))
    torch.testing.assert_close(alone(c), black.expand(2, 1, CLASSES))
    full = Candidates(**{**vars(c), "masks": torch.ones_like(c.masks)})
    torch.testing.assert_close(cropped(full), black.expand(2, 5, CLASSES))
    assert not torch.allclose(toy.victim.normalise(torch.zeros(1, 3, 1, 1)), torch.zeros(1))


def test_quality_by_hand() -> None:
    size, rough = torch.tensor([10.0, 40.0, 0.0]), torch.tensor([5.0, 20.0, 0.0])
    rates = torch.tensor([[1.0, 0.5, 0.0], [0.8, 0.5, 0.0], [1.0, 0.5, 0.0]])
    result = quality(size, rough, rates)
    assert float(result[0]) == pytest.approx(np.log(10) + np.log(5) - np.log(0.8))
    assert float(result[1]) == pytest.approx(np.log(40) + np.log(20) + 3 * np.log(2))
    assert result.isfinite().all()
    for rate in range(3):  # success makes a class more suspicious, size and roughness less
        better = rates.clone()
        better[rate, 1] = 0.9
        assert quality(size, rough, better)[1] < result[1]


def test_normalising_by_the_image_changes_no_index() -> None:
    g = torch.Generator().manual_seed(0)
    size, rough = torch.rand(2, 9, generator=g) + 0.1
    rates = torch.rand(3, 9, generator=g)
    plain, scaled = quality(size, rough, rates), quality(size / 1024, rough / 992, rates)
    torch.testing.assert_close(anomaly_index(plain), anomaly_index(scaled), rtol=1e-4, atol=1e-4)
    index = anomaly_index(plain)
    assert flag_small(plain, index, 1.0) == flag_small(scaled, index, 1.0)


@torch.no_grad()
def test_success_rates_of_the_true_trigger(toy: Toy) -> None:
    masks = torch.zeros(CLASSES, 1, 16, 16)
    masks[..., -4:-1, -4:-1] = 1.0
    patterns = torch.ones(CLASSES, 3, 16, 16)
    images, labels = toy.images, toy.labels
    rates = success_rates(toy.victim, images, labels, Triggers(masks=masks, patterns=patterns))
    assert rates.shape == (3, CLASSES)

    def share(x: Tensor, wanted: Tensor | int) -> float:
        return float((toy.victim(x).argmax(1) == wanted).float().mean())

    for t in range(CLASSES):
        assert float(rates[0, t]) == pytest.approx(share(stamp(images), t))
        holes = images.clone()
        holes[..., -4:-1, -4:-1] = 0.0
        assert float(rates[1, t]) == pytest.approx(share(holes, labels))
    black = toy.victim(stamp(torch.zeros(1, 3, 16, 16))).softmax(1)[0]
    torch.testing.assert_close(rates[2], black)
    assert float(rates[0].argmax()) == TARGET


def test_finds_and_unlearns_the_toy_backdoor(toy: Toy) -> None:
    view = view_of(*textures(200, 3))
    model = tabor(toy.copy(), view, **LONG)  # type: ignore[arg-type]
    assert view.finding is not None
    assert view.finding.flagged == (TARGET,)
    assert toy.attack_success(model) < toy.attack_success(toy.victim) - 0.5
    assert toy.accuracy(model) > toy.accuracy(toy.victim) - 0.1


def test_nothing_detected_is_said_and_nothing_done(toy: Toy) -> None:
    model, view = toy.copy(), view_of(*textures(8, 3))
    with pytest.raises(NotDetectedError, match="above 900"):
        tabor(model, view, rounds=2, round_steps=1, index_threshold=900.0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, toy.victim.state_dict()[name]), name
    assert all(p.requires_grad for p in model.parameters())
    assert view.finding is not None
    assert view.finding.triggers is not None


def test_labels_steer_the_search(toy: Toy) -> None:
    images, labels = textures(8, 3)
    views = [view_of(images, labels), view_of(images, (labels + 1) % CLASSES)]
    for view in views:
        with pytest.raises(NotDetectedError):
            tabor(toy.copy(), view, rounds=9, round_steps=1, patience=1, index_threshold=900.0)
    triggers = [view.finding.triggers for view in views if view.finding is not None]
    assert triggers[0] is not None
    assert triggers[1] is not None
    assert not torch.equal(triggers[0], triggers[1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lambda3": -1.0}, "expected lambda3 >= 0, got -1.0"),
        ({"lambda6": -1.0}, "expected lambda6 >= 0, got -1.0"),
        ({"patience": 0}, "expected patience > 0, got 0"),
        ({"index_threshold": -2.0}, "expected index_threshold >= 0, got -2.0"),
        ({"steps": 0}, "expected steps > 0, got 0"),
    ],
)
def test_errors(toy: Toy, overrides: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tabor(toy.copy(), view_of(*textures(4, 3)), **overrides)  # type: ignore[arg-type]
