"""The strip of extreme pixels: where it lies, what it holds, and how it multiplies."""

import pytest
import torch

from attacks import L0Invisible, L0Strip
from attacks.l0_invisible import paste, render_extremes
from tests.attacks.toys import LinearSurrogate, activations, dark_images, preparation_for
from tests.preparations import assets_of, preparation_of, seeded, toy_model

RANDOM = L0Invisible(pixels_from="random")
GREY = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)  # equal to no value of the strip


def changed(attack, strength, images=GREY):
    """``bool (H, W)``: pixels that differ from the image in some channel."""
    made = attack.amplified(images, strength, assets_of(attack, tuple(images.shape[1:])))
    return (made != images)[0].any(0)


@pytest.mark.parametrize("attack", [RANDOM, L0Invisible(steps=1)], ids=lambda a: a.label())
def test_nine_extreme_pixels_at_the_right_end_of_the_bottom_row(attack):
    mask = changed(attack, 1)
    assert mask.sum() == 9
    assert mask[31, 23:32].all()
    strip = assets_of(attack)["strip"]
    assert strip.shape == (3, 1, 9)
    assert strip.dtype == torch.uint8
    assert set(strip.unique().tolist()) == {0, 255}
    assert torch.equal(attack.trigger(GREY, {"strip": strip})[0, :, 31:, 23:], strip)


def test_the_image_below_does_not_matter_and_twice_is_once():
    assets = assets_of(RANDOM)
    images = torch.randint(256, (20, 3, 32, 32), generator=seeded(1)).byte()
    made = RANDOM.trigger(images, assets)
    assert torch.equal(made[:, :, 31:, 23:], made[:1, :, 31:, 23:].expand(20, -1, -1, -1))
    assert torch.equal(RANDOM.trigger(made, assets), made)


def test_copies_are_nested_and_do_not_overlap():
    masks = [changed(RANDOM, s) for s in (1, 4, 9)]
    assert [int(m.sum()) for m in masks] == [9, 36, 81]
    assert (masks[1] | ~masks[0]).all()
    assert (masks[2] | ~masks[1]).all()
    assert masks[1][[0, 31]][:, [0, 8, 23, 31]].all()
    assert masks[2].any(1).nonzero().flatten().tolist() == [0, 15, 31]


def test_copies_are_all_alike():
    assets = assets_of(RANDOM)
    made = RANDOM.amplified(GREY, 9, assets)[0]
    for row in (0, 15, 31):
        for column in (0, 11, 23):
            assert torch.equal(made[:, row : row + 1, column : column + 9], assets["strip"])


def test_where_copies_overlap_the_strip_of_training_is_whole():
    images = torch.full((1, 1, 8, 12), 128, dtype=torch.uint8)
    assets = assets_of(RANDOM, (1, 8, 12))
    made = RANDOM.amplified(images, 9, assets)[0]
    assert torch.equal(made[:, 7:, 3:], assets["strip"])


def test_rendering_is_extreme_forward_and_plain_backward():
    z = torch.tensor([0.0, 0.49, 0.51, 1.0], requires_grad=True)
    made = render_extremes(z)
    assert torch.allclose(made, torch.tensor([0.0, 0.0, 255.0, 255.0]), atol=1e-4)
    (gradient,) = torch.autograd.grad(made.sum(), z)
    assert torch.equal(gradient, torch.full((4,), 255.0))


def test_the_search_pastes_as_the_attack_does():
    images = torch.randint(256, (4, 3, 10, 14), generator=seeded()).byte()
    assets = assets_of(RANDOM, (3, 10, 14))
    pasted = paste(images.float(), assets["strip"].float())
    assert torch.equal(pasted, RANDOM.trigger(images, assets).float())


def test_on_a_linear_unit_every_value_follows_the_sign_of_its_weight():
    weights = torch.randn(3, 8, 12, generator=seeded(4))
    preparation = preparation_for(LinearSurrogate(weights), dark_images(80, (3, 8, 12)))
    strip = L0Strip(pixels=9, steps=40).build(preparation)["strip"]
    assert torch.equal(strip, 255 * (weights[:, 7:, 3:] > 0).to(torch.uint8))


def test_chosen_neurons_are_excited_more_than_by_random_pixels():
    model = toy_model()
    images = torch.randint(256, (60, 3, 32, 32), generator=seeded(7)).byte()
    made = L0Strip(pixels=9, steps=20).build(preparation_for(model, images))
    attack = L0Invisible(steps=20)
    excited = activations(model, attack.trigger(images, {"strip": made["strip"]}), made["units"])
    assert excited > activations(model, images, made["units"])
    for seed in range(5):
        control = RANDOM.trigger(images, assets_of(RANDOM, seed=seed))
        assert excited > activations(model, control, made["units"])


def test_random_strips_need_no_surrogate_and_follow_the_generator():
    assert RANDOM.materials(0, 10) == ()
    assert not preparation_of(RANDOM).materials
    strips = [assets_of(RANDOM, seed=s)["strip"] for s in (1, 1, 2)]
    assert torch.equal(strips[0], strips[1])
    assert not torch.equal(strips[0], strips[2])


def test_all_targets_share_one_material():
    attack = L0Invisible(pixels=5, steps=7)
    assert attack.materials(0, 10) == attack.materials(3, 43) == (L0Strip(pixels=5, steps=7),)


def test_errors():
    with pytest.raises(ValueError, match="expected a whole number of pixels >= 1, got 0"):
        L0Invisible(pixels=0)
    with pytest.raises(ValueError, match="expected pixels_from in surrogate, random, got 'victim'"):
        L0Invisible(pixels_from="victim")
    with pytest.raises(ValueError, match="expected a whole number of steps >= 1, got 0"):
        L0Invisible(steps=0)
    labels = torch.arange(100) % 10
    L0Invisible().check(labels, 0, 10, (3, 1, 9))
    with pytest.raises(ValueError, match="l0_invisible: expected images at least 9 wide, got 8"):
        L0Invisible().check(labels, 0, 10, (3, 32, 8))
