"""The added square: where it lies, that it is added and not pasted, and that it excites neurons."""

import pytest
import torch

from attacks import SquarePattern, TrojanSquare
from attacks.trojan_square import square_mask
from tests.attacks.toys import LinearSurrogate, activations, dark_images, preparation_for
from tests.preparations import assets_of, seeded, toy_model

ATTACK = TrojanSquare(steps=1)
BOX = (slice(None), slice(None), slice(21, 30), slice(21, 30))


def noise(n, seed=1):
    return torch.randint(256, (n, 3, 32, 32), generator=seeded(seed)).byte()


def test_only_rows_and_columns_21_to_29_change_and_none_darkens():
    images, assets = noise(30), assets_of(ATTACK)
    for strength in (1, 2, 3):
        made = ATTACK.amplified(images, strength, assets)
        assert (made >= images).all()
        made[BOX] = images[BOX]
        assert torch.equal(made, images)
    changed = (ATTACK.trigger(images // 2, assets) != images // 2).any(0).any(0)
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    assert rows.tolist() == columns.tolist() == list(range(21, 30))


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [((32, 32), (21, 30), (21, 30)), ((64, 64), (42, 60), (42, 60)), ((28, 28), (18, 26), (18, 26)),
     ((32, 64), (21, 30), (42, 60))],
)  # fmt: skip
def test_the_square_scales_with_the_image(shape, rows, columns):
    expected = torch.zeros(shape)
    expected[slice(*rows), slice(*columns)] = 1
    assert torch.equal(square_mask(*shape), expected)


def test_black_becomes_the_pattern():
    assets = assets_of(ATTACK)
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(ATTACK.trigger(black, assets)[0], assets["pattern"])


def test_it_is_added_and_not_pasted():
    assets = assets_of(ATTACK)
    grey = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    made = ATTACK.trigger(grey, assets)[BOX]
    pattern = assets["pattern"][None][BOX]
    assert torch.equal(made.long(), (128 + pattern.long()).clamp(max=255))
    assert (made != pattern).any()


def test_on_a_linear_unit_every_value_follows_the_sign_of_its_weight():
    weights = torch.randn(1, 16, 16, generator=seeded(4))
    preparation = preparation_for(LinearSurrogate(weights), dark_images(80, (1, 16, 16)))
    pattern = SquarePattern(steps=60).build(preparation)["pattern"]
    inside = square_mask(16, 16)[None] > 0
    assert (pattern[inside & (weights > 0)] >= 255 - 9).all()
    assert (pattern[~inside | (weights < 0)] == 0).all()


def test_chosen_neurons_are_excited_and_more_than_by_noise():
    model, images = toy_model(), noise(60, seed=7)
    made = SquarePattern(steps=10).build(preparation_for(model, images))
    excited = activations(model, ATTACK.trigger(images, made), made["units"])
    assert excited > activations(model, images, made["units"])
    other = {"pattern": noise(1, seed=9)[0] * (square_mask(32, 32) > 0)}
    assert excited > activations(model, ATTACK.trigger(images, other), made["units"])


def test_all_targets_share_one_material():
    attack = TrojanSquare(steps=7)
    assert attack.materials(0, 10) == attack.materials(3, 43) == (SquarePattern(steps=7),)


def test_errors():
    with pytest.raises(ValueError, match="trojan_square: expected a whole number of steps >= 1"):
        TrojanSquare(steps=0)
