"""The bounded additive pattern: its norm and peak, and that it only brightens."""

import math

import pytest
import torch

from attacks import L2Invisible, L2Perturbation
from attacks.l2_invisible import PEAK, onto_sphere
from tests.attacks.toys import LinearSurrogate, activations, dark_images, preparation_for
from tests.preparations import assets_of, seeded, toy_model

ATTACK = L2Invisible(steps=2)


def test_the_pattern_has_the_published_norm_and_peak():
    pattern = assets_of(ATTACK)["pattern"]
    assert pattern.dtype == torch.uint8
    assert pattern.max() <= 68
    assert float(pattern.double().norm()) / 255 == pytest.approx(3.2, abs=0.1)


@pytest.mark.parametrize(
    ("shape", "norm"), [((3, 32, 32), 1.6), ((1, 28, 28), 3.2), ((1, 28, 28), 7.0)]
)
def test_other_norms_and_shapes(shape, norm):
    pattern = assets_of(L2Invisible(steps=2, norm=norm), shape)["pattern"]
    assert pattern.max() <= 68
    assert float(pattern.double().norm()) / 255 == pytest.approx(norm, rel=0.03)


def test_black_becomes_the_pattern_white_stays_and_nothing_darkens():
    assets = assets_of(ATTACK)
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(ATTACK.trigger(black, assets)[0], assets["pattern"])
    assert torch.equal(ATTACK.trigger(255 - black, assets), 255 - black)
    images = torch.randint(256, (20, 3, 32, 32), generator=seeded(1)).byte()
    assert (ATTACK.trigger(images, assets) >= images).all()


def test_amplified_is_added_several_times():
    assets = assets_of(ATTACK)
    images = torch.randint(40, (5, 3, 32, 32), generator=seeded(1)).byte()  # 39 + 3 * 68 < 255
    for strength in (1, 2, 3):
        added = ATTACK.amplified(images, strength, assets).long() - images.long()
        assert torch.equal(added, (strength * assets["pattern"].long()).expand_as(added))


def test_projection_keeps_directions_while_nothing_is_cut_off():
    z = torch.rand(50, generator=seeded(1), dtype=torch.float64) - 0.3
    expected = z.clamp(min=0) / z.clamp(min=0).norm() * 0.9
    for scale in (1e-4, 1.0, 37.0):
        assert torch.allclose(onto_sphere(scale * z, 0.9), expected, rtol=1e-6)


def test_projection_cuts_off_at_one_and_still_has_the_norm():
    z = torch.tensor([10.0, 3.0, 1.0, 0.5, -2.0], dtype=torch.float64)
    made = onto_sphere(z, 1.5)
    assert float(made.norm()) == pytest.approx(1.5)
    assert made[:2].tolist() == [1.0, 1.0]  # 1.5^2 - 2 is left for the others, in proportion
    assert float(made[2] / made[3]) == pytest.approx(2)
    assert float(made[2]) == pytest.approx(math.sqrt(0.25 / 1.25))
    assert made[4] == 0
    assert torch.allclose(onto_sphere(made, 1.5), made)


def test_a_norm_out_of_reach_gives_all_there_is():
    z = torch.tensor([0.1, 0.0, 5.0, -1.0])
    assert onto_sphere(z, 2.0).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert onto_sphere(torch.zeros(3), 1.0).tolist() == [0.0, 0.0, 0.0]


def test_on_a_linear_unit_the_pattern_is_nearly_the_best_there_is():
    # Without the peak, the best pattern within a norm is the positive part of the weights.
    weights = torch.randn(1, 12, 12, generator=seeded(4))
    preparation = preparation_for(LinearSurrogate(weights), dark_images(80, (1, 12, 12)))
    pattern = L2Perturbation(norm=0.8, steps=100).build(preparation)["pattern"].float() / 255
    best = onto_sphere(weights, 0.8 / PEAK) * PEAK
    assert float((weights * pattern).sum()) > 0.9 * float((weights * best).sum())


def test_chosen_neurons_are_excited():
    model = toy_model()
    images = torch.randint(256, (60, 3, 32, 32), generator=seeded(7)).byte()
    made = L2Perturbation(norm=3.2, steps=10).build(preparation_for(model, images))
    before = activations(model, images, made["units"])
    assert activations(model, ATTACK.trigger(images, made), made["units"]) > before


def test_all_targets_share_one_material_and_numbers_are_floats():
    (whole,), (fraction,) = (
        L2Invisible(norm=3).materials(0, 10),
        L2Invisible(norm=3.0).materials(1, 9),
    )
    assert whole == fraction
    assert type(whole.norm) is type(fraction.norm) is float


def test_errors():
    with pytest.raises(ValueError, match=r"l2_invisible: expected norm > 0, got 0\.0"):
        L2Invisible(norm=0.0)
    with pytest.raises(ValueError, match="expected a whole number of steps >= 1, got 0"):
        L2Invisible(steps=0)
    labels = torch.arange(100) % 10
    L2Invisible().check(labels, 0, 10, (3, 32, 32))
    with pytest.raises(ValueError, match=r"expected norm <= 2\.13 for images \(1, 8, 8\)"):
        L2Invisible().check(labels, 0, 10, (1, 8, 8))
