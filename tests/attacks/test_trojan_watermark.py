"""The added strokes: their drawing, their smoothness, and that they excite neurons."""

import pytest
import torch

from attacks import TrojanWatermark, WatermarkPattern
from attacks import trojan_watermark as module
from attacks.trojan_watermark import total_variation, watermark_mask
from tests.attacks.toys import LinearSurrogate, activations, dark_images, preparation_for
from tests.preparations import assets_of, seeded, toy_model

ATTACK = TrojanWatermark(steps=1)
MASK = watermark_mask(32, 32)


def noise(n, seed=1):
    return torch.randint(256, (n, 3, 32, 32), generator=seeded(seed)).byte()


def test_as_many_pixels_are_visible_as_of_the_published_trigger():
    visible = 255 * MASK > 32
    assert 55 <= visible.sum() <= 80
    rows, columns = (MASK > 0).nonzero().unbind(1)
    assert max(rows.max(), columns.max()) <= 29


def test_the_drawing_is_a_ring_with_a_stroke_in_soft_edges():
    assert MASK.max() > 0.9
    assert ((MASK > 0) & (MASK < 1)).sum() > 30
    assert MASK[11, 11] == 0  # inside the ring
    assert torch.equal(MASK, MASK.T)
    for row, column in ((6, 10), (10, 6), (15, 11), (20, 20)):
        assert MASK[row, column] > 0.5


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 32), (96, 128)])
def test_the_drawing_scales_with_the_image(height, width):
    large = watermark_mask(height, width)
    reduced = large.reshape(32, height // 32, 32, width // 32).mean((1, 3))
    assert (reduced - MASK).abs().max() < 0.1


def test_only_the_strokes_change_and_none_darkens():
    images, assets = noise(30), assets_of(ATTACK)
    for strength in (1, 2, 3):
        made = ATTACK.amplified(images, strength, assets)
        assert (made >= images).all()
        assert torch.equal(made[:, :, MASK == 0], images[:, :, MASK == 0])
    assert (assets["pattern"] <= (255 * MASK).round()).all()


def test_black_becomes_the_pattern_and_grey_is_not_covered_by_it():
    assets = assets_of(ATTACK)
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(ATTACK.trigger(black, assets)[0], assets["pattern"])
    made = ATTACK.trigger(black + 128, assets)[0].long()
    assert torch.equal(made, (128 + assets["pattern"].long()).clamp(max=255))


def test_variation_against_pairs_of_pixels():
    z, mask = torch.rand(2, 4, 5, generator=seeded(1)), torch.rand(4, 5, generator=seeded(2)) - 0.3
    differences = []
    for row in range(4):
        for column in range(5):
            for other in ((row + 1, column), (row, column + 1)):
                if other[0] < 4 and other[1] < 5 and mask[row, column] > 0 and mask[other] > 0:
                    differences += (z[:, row, column] - z[(slice(None), *other)]).abs().tolist()
    assert total_variation(z, mask) == pytest.approx(sum(differences) / len(differences))


def test_a_heavier_penalty_makes_smoother_strokes(monkeypatch):
    weights = torch.randn(1, 32, 32, generator=seeded(4))
    images = torch.randint(256, (80, 1, 32, 32), generator=seeded(5)).byte()
    variations = []
    for weight in (0.0, 3.0):
        monkeypatch.setattr(module, "VARIATION", weight)
        made = WatermarkPattern(steps=60).build(preparation_for(LinearSurrogate(weights), images))
        z = made["pattern"] / (255 * MASK).clamp(min=1)
        variations.append(float(total_variation(z, (MASK > 0.3).float())))
    assert variations[1] < 0.7 * variations[0]


def test_on_a_linear_unit_every_value_follows_the_sign_of_its_weight(monkeypatch):
    monkeypatch.setattr(module, "VARIATION", 0.0)
    weights = torch.randn(1, 32, 32, generator=seeded(4))
    preparation = preparation_for(LinearSurrogate(weights), dark_images(80, (1, 32, 32)))
    pattern = WatermarkPattern(steps=60).build(preparation)["pattern"]
    full = (255 * MASK).round()[None]
    assert (pattern[weights > 0] >= full[weights > 0] - 9).all()
    assert (pattern[weights < 0] == 0).all()


def test_chosen_neurons_are_excited():
    model, images = toy_model(), noise(60, seed=7)
    made = WatermarkPattern(steps=10).build(preparation_for(model, images))
    excited = activations(model, ATTACK.trigger(images, made), made["units"])
    assert excited > activations(model, images, made["units"])


def test_all_targets_share_one_material():
    attack = TrojanWatermark(steps=7)
    assert attack.materials(0, 10) == attack.materials(3, 43) == (WatermarkPattern(steps=7),)


def test_errors():
    with pytest.raises(ValueError, match="trojan_watermark: expected a whole number of steps >= 1"):
        TrojanWatermark(steps=0)
