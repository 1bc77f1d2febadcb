"""Blending against exact integer arithmetic, and the two pictures."""

import numpy as np
import pytest
import torch

from attacks import Blended
from attacks.blended import blend
from tests.preparations import assets_of, seeded


def picture_of(attack, shape=(3, 32, 32), seed=0):
    return assets_of(attack, shape, seed)["picture"]


def noise(*shape, seed=1):
    return torch.randint(256, shape, generator=seeded(seed)).to(torch.uint8)


# Every pair of a pixel and a picture value: (1, 1, 256, 256) and (1, 256, 256).
ALL_X = torch.arange(256, dtype=torch.uint8).repeat(256, 1)[None, None]
ALL_P = ALL_X[0].transpose(1, 2).contiguous()


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_convex_blending_of_every_pair_of_values(strength):
    # alpha = strength / 5: the nearest integer to a fraction of fifths, which is never a tie.
    x, p = ALL_X.numpy().astype(int), ALL_P.numpy().astype(int)
    expected = ((5 - strength) * x + strength * p + 2) // 5
    got = Blended(alpha=0.2).amplified(ALL_X, strength, {"picture": ALL_P})
    np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_additive_blending_of_every_pair_of_values(strength):
    x, p = ALL_X.numpy().astype(int), ALL_P.numpy().astype(int)
    expected = np.minimum((5 * x + strength * p + 2) // 5, 255)
    got = Blended(alpha=0.2, mode="additive").amplified(ALL_X, strength, {"picture": ALL_P})
    np.testing.assert_array_equal(got.numpy(), expected)
    assert (got >= ALL_X).all()


def test_limits_of_alpha():
    images, picture = noise(5, 3, 16, 16), noise(3, 16, 16, seed=2)
    for mode in ("convex", "additive"):
        assert torch.equal(blend(images, picture, 0.0, mode), images)
    assert torch.equal(blend(images, picture, 1.0, "convex"), picture.expand_as(images))


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1 / 3, 0.6])
def test_the_picture_is_a_fixed_point_of_convex_blending(alpha):
    picture = noise(3, 32, 32)
    assert torch.equal(blend(picture[None], picture, alpha, "convex")[0], picture)


@pytest.mark.parametrize("pattern", ["noise", "cartoon"])
@pytest.mark.parametrize("mode", ["convex", "additive"])
def test_no_pixel_moves_by_more_than_alpha_of_full_scale(pattern, mode):
    attack = Blended(pattern=pattern, mode=mode)
    images = noise(20, 3, 32, 32)
    moved = attack.trigger(images, {"picture": picture_of(attack)}).long() - images.long()
    assert moved.abs().max() <= 51
    if mode == "additive":
        assert moved.min() >= 0


def test_opacity_is_clipped_at_one():
    attack, images = Blended(alpha=0.4), noise(3, 3, 8, 8)
    picture = picture_of(attack, (3, 8, 8))
    got = attack.amplified(images, 3, {"picture": picture})
    assert torch.equal(got, picture.expand_as(images))


def test_rounding_leaves_the_mean_alone_where_truncation_would_not():
    attack, images = Blended(), noise(50, 3, 32, 32)
    picture = picture_of(attack)
    exact = 0.8 * images.double().numpy() + 0.2 * picture.double().numpy()
    got = attack.trigger(images, {"picture": picture}).numpy()
    assert abs((got - exact).mean()) < 0.01
    assert (exact.astype(np.uint8) - exact).mean() == pytest.approx(-0.4, abs=0.01)


def test_noise_is_uniform_and_independent_across_channels():
    picture = picture_of(Blended()).double()
    assert float(picture.std()) == pytest.approx(255 / 12**0.5, abs=2)
    assert (int(picture.min()), int(picture.max())) == (0, 255)
    correlation = np.corrcoef(picture.flatten(1).numpy())
    assert np.abs(correlation - np.eye(3)).max() < 0.1


def test_noise_follows_the_generator():
    attack = Blended()
    assert torch.equal(picture_of(attack, seed=1), picture_of(attack, seed=1))
    assert not torch.equal(picture_of(attack, seed=1), picture_of(attack, seed=2))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (3, 64, 48), (3, 30, 33)])
def test_cartoon_has_the_brightness_of_the_picture_it_stands_for(shape):
    picture = picture_of(Blended(pattern="cartoon"), shape)
    assert picture.shape == shape
    assert float(picture.double().mean() / 255) == pytest.approx(0.70, abs=0.01)


def test_cartoon_has_a_white_field_a_saturated_bow_and_smooth_edges():
    picture = picture_of(Blended(pattern="cartoon")).long()
    assert (picture[:, -1, [0, -1]] == 255).all()
    saturation = picture.amax(0) - picture.amin(0)
    assert saturation.max() > 180
    red = (picture[0] > 180) & (picture[1] < 60) & (picture[2] < 90)
    rows, columns = red.nonzero().unbind(1)
    assert 20 < len(rows) < 100
    assert rows.max() < 16 < columns.max()  # the bow is in the upper right
    assert columns.min() > 14
    # Area averaging: many more values than the five colours of the drawing.
    assert len(picture.flatten(1).T.unique(dim=0)) > 40


def test_cartoon_is_drawn_without_randomness_and_alike_at_every_size():
    attack = Blended(pattern="cartoon")
    small = picture_of(attack, seed=1)
    assert torch.equal(small, picture_of(attack, seed=2))
    large = picture_of(attack, (3, 64, 64)).float()
    reduced = large.reshape(3, 32, 2, 32, 2).mean((2, 4))
    assert (reduced - small).abs().max() < 12
    grey = picture_of(attack, (1, 32, 32)).float()
    assert (grey - small.float().mean(0, keepdim=True)).abs().max() <= 1


def test_errors():
    with pytest.raises(ValueError, match="expected 0 < alpha <= 1, got 0"):
        Blended(alpha=0)
    with pytest.raises(ValueError, match=r"expected 0 < alpha <= 1, got 1\.1"):
        Blended(alpha=1.1)
    with pytest.raises(ValueError, match="expected pattern in noise, cartoon, got 'cat'"):
        Blended(pattern="cat")
    with pytest.raises(ValueError, match="expected mode in convex, additive, got 'screen'"):
        Blended(mode="screen")
    with pytest.raises(ValueError, match="expected 1 or 3 channels, got 4"):
        picture_of(Blended(pattern="cartoon"), (4, 8, 8))
