"""The warp against a bilinear sampler and a bicubic upsampler written in NumPy."""

import numpy as np
import pytest
import torch

from attacks import WaNet
from attacks.wanet import jitter, sampling_grid, warp, warping_field
from tests.preparations import assets_of, seeded


def noise(*shape, seed=1):
    return torch.randint(256, shape, generator=seeded(seed)).to(torch.uint8)


def pixels(grid):
    """Displacements in pixels of a grid ``(H, W, 2)`` from the identity."""
    height, width = grid.shape[:2]
    columns = (grid[..., 0].double() + 1) / 2 * (width - 1) - torch.arange(width)
    rows = (grid[..., 1].double() + 1) / 2 * (height - 1) - torch.arange(height)[:, None]
    return torch.stack((columns, rows), dim=2).numpy()


def bilinear(image, grid):
    """Samples one image ``(C, H, W)`` at a grid ``(H, W, 2)``, in float64, point by point."""
    channels, height, width = image.shape
    out = np.zeros((channels, height, width))
    for i in range(height):
        for j in range(width):
            x = np.clip((grid[i, j, 0] + 1) / 2 * (width - 1), 0, width - 1)
            y = np.clip((grid[i, j, 1] + 1) / 2 * (height - 1), 0, height - 1)
            left, top = int(np.floor(x)), int(np.floor(y))
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            a, b = x - left, y - top
            upper = (1 - a) * image[:, top, left] + a * image[:, top, right]
            lower = (1 - a) * image[:, bottom, left] + a * image[:, bottom, right]
            out[:, i, j] = (1 - b) * upper + b * lower
    return out


def cubic_matrix(n, k):
    """The ``(n, k)`` matrix of cubic convolution (A = -0.75) with aligned corners."""
    matrix = np.zeros((n, k))
    for i in range(n):
        position = i * (k - 1) / (n - 1)
        base = int(np.floor(position))
        for tap in range(base - 1, base + 3):
            d = abs(position - tap)
            near = 1.25 * d**3 - 2.25 * d**2 + 1
            far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[i, min(max(tap, 0), k - 1)] += near if d <= 1 else far if d < 2 else 0
    return matrix


def assert_rounds_to(got, exact):
    """``got`` is ``exact`` rounded, wherever float error cannot decide; off by one elsewhere."""
    sure = np.abs(exact % 1 - 0.5) > 1e-3
    assert sure.mean() > 0.98
    np.testing.assert_array_equal(got[sure], np.round(exact[sure]))
    assert np.abs(got - exact).max() < 0.502


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 20, 28)])
@pytest.mark.parametrize("strength", [1, 3])
def test_trigger_equals_the_definition_from_the_drawn_numbers_on(shape, strength):
    attack, (_, height, width) = WaNet(k=4, s=0.5), shape
    control = torch.rand(1, 2, 4, 4, generator=seeded(5)).double().numpy()[0] * 2 - 1
    control /= np.abs(control).mean()
    rows, columns = cubic_matrix(height, 4), cubic_matrix(width, 4)
    x, y = (rows @ c @ columns.T for c in control)
    grid = np.stack(
        (
            np.linspace(-1, 1, width)[None, :] + strength * 0.5 * x / width,
            np.linspace(-1, 1, height)[:, None] + strength * 0.5 * y / height,
        ),
        axis=2,
    ).clip(-1, 1)
    image = noise(*shape)
    got = attack.amplified(image[None], strength, assets_of(attack, shape, seed=5))[0]
    assert_rounds_to(got.double().numpy(), bilinear(image.double().numpy(), grid))


def test_cover_equals_the_definition_with_its_own_noise_per_image_and_pixel():
    attack, images = WaNet(), noise(3, 3, 16, 16)
    assets = assets_of(attack, (3, 16, 16))
    got = attack.cover(images, assets, seeded(7)).double().numpy()
    draws = torch.rand(3, 16, 16, 2, generator=seeded(7)).double().numpy() * 2 - 1
    base = sampling_grid(assets["field"], 0.5).double().numpy()
    for image, result, draw in zip(images.double().numpy(), got, draws, strict=True):
        assert_rounds_to(result, bilinear(image, (base + draw / 16).clip(-1, 1)))


def test_no_strength_is_no_change():
    field, images = warping_field(4, 32, 32, seeded()), noise(20, 3, 32, 32)
    grid = sampling_grid(field, 0.0)
    assert torch.equal(warp(images, grid), images)
    # Before rounding: 1e-5 of full scale.
    sampled = torch.nn.functional.grid_sample(
        images.float() / 255, grid.expand(20, 32, 32, 2), align_corners=True
    )
    assert (sampled - images / 255).abs().max() < 1e-5


def test_a_constant_image_is_a_fixed_point():
    attack = WaNet()
    assets = assets_of(attack)
    for value in (0, 1, 77, 254, 255):
        images = torch.full((2, 3, 32, 32), value, dtype=torch.uint8)
        assert torch.equal(attack.amplified(images, 3, assets), images)
        assert torch.equal(attack.cover(images, assets, seeded()), images)


def test_displacements_in_pixels():
    fields = [warping_field(4, 32, 32, seeded(s)) for s in range(200)]
    lengths = np.array([np.linalg.norm(pixels(sampling_grid(f, 0.5)), axis=2) for f in fields])
    means, largest = lengths.mean((1, 2)), lengths.max((1, 2))
    assert means.mean() == pytest.approx(0.28, abs=0.02)
    assert np.mean(np.abs(means - 0.28) < 0.06) > 0.9
    assert largest.mean() == pytest.approx(0.6, abs=0.05)
    assert largest.max() < 0.9


def test_the_grid_never_leaves_the_image():
    grid = sampling_grid(warping_field(4, 32, 32, seeded()), 100.0)
    assert (grid.min(), grid.max()) == (-1, 1)
    noisy = jitter(sampling_grid(warping_field(4, 32, 32, seeded()), 1.5), 10, seeded())
    assert (noisy.min(), noisy.max()) == (-1, 1)


def test_output_stays_between_minimum_and_maximum_of_every_channel():
    attack = WaNet()
    assets = assets_of(attack)
    images = (noise(10, 3, 32, 32) // 4 + 90).to(torch.uint8)
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    for got in (
        *(attack.amplified(images, s, assets) for s in attack.strengths),
        attack.cover(images, assets, seeded()),
    ):
        assert (got >= low).all()
        assert (got <= high).all()


def test_all_images_get_the_same_warp_and_every_victim_its_own():
    attack, image = WaNet(), noise(1, 3, 32, 32)
    got = attack.trigger(image.expand(5, -1, -1, -1), assets_of(attack))
    assert torch.equal(got, got[:1].expand_as(got))
    assert not torch.equal(attack.trigger(image, assets_of(attack, seed=1)), got[:1])


def test_cover_noise_is_half_a_pixel_and_new_in_every_draw():
    grid = sampling_grid(warping_field(4, 32, 32, seeded()), 0.0)
    noisy = jitter(grid, 50, seeded())
    moved = np.stack([pixels(g) for g in noisy])[:, 1:-1, 1:-1]  # the border is clipped
    assert np.abs(moved).max() == pytest.approx(31 / 64, abs=0.001)
    assert moved.std() == pytest.approx(31 / 64 / 3**0.5, abs=0.002)

    attack, images = WaNet(), noise(1, 3, 32, 32).expand(2, -1, -1, -1)
    assets, generator = assets_of(attack), seeded()
    first, second = (attack.cover(images, assets, generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, attack.cover(images, assets, seeded()))
    assert not torch.equal(first, attack.trigger(images, assets))


def test_strength_scales_the_displacement():
    field = warping_field(4, 32, 32, seeded())
    inner = (slice(4, -4), slice(4, -4))  # where nothing is clipped
    one, three = (pixels(sampling_grid(field, s))[inner] for s in (0.5, 1.5))
    np.testing.assert_allclose(three, 3 * one, atol=1e-4)


def test_cover_rate_is_the_noise_rate():
    assert WaNet().cover_rate == 0.2
    assert WaNet(noise_rate=0.0).cover_rate == 0.0
    assert WaNet(poison_rate=0.8, noise_rate=0.2).cover_rate == 0.2


def test_errors():
    with pytest.raises(ValueError, match="expected k >= 2, got 1"):
        WaNet(k=1)
    with pytest.raises(ValueError, match="expected s > 0, got 0"):
        WaNet(s=0)
    with pytest.raises(ValueError, match=r"poison_rate \+ noise_rate <= 1, got 0\.1 \+ 0\.95"):
        WaNet(noise_rate=0.95)
    with pytest.raises(ValueError, match="expected noise_rate >= 0 and"):
        WaNet(noise_rate=-0.1)
