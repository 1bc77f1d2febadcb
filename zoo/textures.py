"""The embedded out-of-distribution set ``textures``: procedural colour patterns without signs.

Every image mixes three colours by two patterns (gratings, checkers, fractal noise, blobs, edges) of
its own direction, scale and contrast. The data set ``signs`` takes its backgrounds and its camera
from here, so the two sets share what is around a sign and nothing that is one.

Per-pixel arithmetic is limited to exactly rounded operations (no sines): the bytes do not depend on
the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.seeds import generator_of

SIZE: Final = 32  # pixels, height and width
CHUNK: Final = 200  # images rendered at once: few enough to stay in the caches
_BLOBS: Final = 6
_GAIN: Final = (0.4, 1.2)  # exposure
_HAZE: Final = 0.75  # largest share of grey
_BLUR_ROUNDS: Final = 2
_NOISE: Final = (0.01, 0.1)  # standard deviation


def textures(count: int, seed: int) -> Tensor:
    """Texture images, ``uint8 (count, 3, 32, 32)`` in [0, 255].

    Args:
        count: at least 1.
        seed: equal arguments give equal bytes on one machine.

    Raises:
        ValueError: count is below 1.
    """
    check_count(count)
    generator = generator_of("textures", seed)
    images = torch.empty(count, 3, SIZE, SIZE, dtype=torch.uint8)
    for part in chunks(count):
        painted = paint_textures(part.stop - part.start, generator)
        images[part] = _to_bytes(painted, uniform(0.0, 0.05, len(painted), generator), generator)
    return images


def paint_textures(count: int, generator: torch.Generator) -> Tensor:
    """Textures before the camera, float ``(count, 3, 32, 32)`` within [0, 1]."""
    noise = fractal_noise(count, generator)
    fields = torch.stack(
        [
            noise,
            _grating(noise, generator),
            _checker(noise, generator),
            _blobs(count, generator),
            _edge(count, generator),
        ]
    )
    picks = torch.randint(len(fields), (2, count), generator=generator)
    first, second = fields[picks, torch.arange(count)].unsqueeze(2).unbind()  # (N, 1, H, W) each
    base, mixed, overlay = _palette(count, generator)[..., None, None].unbind()
    strength = uniform(0.2, 0.8, count, generator).view(-1, 1, 1, 1)
    image = base + (mixed - base) * first
    return (image + (overlay - image) * (second * strength)).clamp_(0, 1)


def fractal_noise(count: int, generator: torch.Generator) -> Tensor:
    """Sums of smooth random grids with a random roughness, float ``(count, 32, 32)`` in [0, 1]."""
    total = torch.zeros(count, SIZE, SIZE)
    roughness = uniform(0.3, 0.9, count, generator).view(-1, 1, 1)
    weight = torch.ones(count, 1, 1)
    for cells in (3, 5, 9, 17):
        grid = torch.rand(count, 1, cells, cells, generator=generator).sub_(0.5)
        smooth = F.interpolate(grid, (SIZE, SIZE), mode="bilinear", align_corners=True)
        total += smooth.squeeze(1) * weight
        weight = weight * roughness
    return total.mul_(1.2).add_(0.5).clamp_(0, 1)


def _grating(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Straight to wavy stripes; ``(N, H, W)`` in [0, 1]."""
    n = len(noise)
    along, _ = _turned_grid(n, generator)
    warp = uniform(0.0, 1.0, n, generator).view(-1, 1, 1) * noise
    return _wave(along * uniform(0.5, 4.5, n, generator).view(-1, 1, 1) + warp)


def _checker(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Turned checkers and tiles, soft or hard; ``(N, H, W)`` in [0, 1]."""
    n = len(noise)
    along, across = _turned_grid(n, generator)
    rates = uniform(0.6, 3.0, 2 * n, generator).view(2, n, 1, 1)
    product = (_wave(along * rates[0]) - 0.5) * (_wave(across * rates[1]) - 0.5)
    hardness = uniform(2.0, 20.0, n, generator).view(-1, 1, 1)
    return (product * hardness + noise * 0.3 + 0.35).clamp_(0, 1)


def _blobs(count: int, generator: torch.Generator) -> Tensor:
    """Distance to the nearest of a few points (cells, leaves, stones); ``(N, H, W)`` in [0, 1]."""
    axis = pixel_axis()
    points = uniform(-1.2, 1.2, 2 * _BLOBS * count, generator).view(_BLOBS, 2, count, 1, 1)
    nearest = torch.full((count, SIZE, SIZE), 9.0)
    for x, y in points:
        square = (axis.view(1, 1, -1) - x) ** 2 + (axis.view(1, -1, 1) - y) ** 2
        nearest = torch.minimum(nearest, square)
    scale = uniform(1.0, 5.0, count, generator).view(-1, 1, 1)
    return (nearest.sqrt_() * scale).clamp_(0, 1)


def _edge(count: int, generator: torch.Generator) -> Tensor:
    """A hard horizon, a wide gradient, or between; ``(N, H, W)`` in [0, 1]."""
    along, _ = _turned_grid(count, generator)
    slope = uniform(-1.0, 1.0, count, generator) ** 3 * 12
    offset = uniform(-0.6, 0.6, count, generator)
    return ((along - offset.view(-1, 1, 1)) * slope.view(-1, 1, 1) + 0.5).clamp_(0, 1)


def _palette(count: int, generator: torch.Generator) -> Tensor:
    """Three colours per image, most of them dull; ``(3, N, 3)`` in [0, 1]."""
    grey = uniform(0.05, 0.95, 3 * count, generator).view(3, count, 1)
    hue = torch.rand(3, count, 3, generator=generator)
    saturation = torch.rand(3, count, 1, generator=generator) ** 2
    return grey + (hue - grey) * saturation


def _turned_grid(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Coordinates along and across a random direction, two of ``(N, H, W)``."""
    angle = uniform(0.0, 2 * torch.pi, count, generator).view(-1, 1, 1)
    cosine, sine = angle.cos(), angle.sin()
    x, y = pixel_axis().view(1, 1, -1), pixel_axis().view(1, -1, 1)
    return cosine * x + sine * y, cosine * y - sine * x


def _wave(phase: Tensor) -> Tensor:
    """A smooth periodic curve in [0, 1] with period 1, close to a sine."""
    folded = (phase - phase.floor()).mul_(2).sub_(1).abs_()  # triangle wave
    return folded * folded * (3 - 2 * folded)


def pixel_axis() -> Tensor:
    """Pixel centres along one side, ``(32,)`` in (-1, 1)."""
    return (torch.arange(SIZE) + 0.5) / (SIZE / 2) - 1


def uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """Uniform draws in [low, high), ``(count,)``."""
    return torch.rand(count, generator=generator) * (high - low) + low


def photograph(scenes: Tensor, generator: torch.Generator) -> Tensor:
    """What the camera sees of float scenes ``(N, 3, 32, 32)`` in [0, 1]: light, blur, noise, bytes.

    Haze and noise are skewed: most images are clear, a few are next to hopeless.
    """
    image = _blur(_light(scenes, generator), generator)
    low, high = _NOISE
    sigma = low + (high - low) * uniform(0.0, 1.0, len(image), generator) ** 3
    return _to_bytes(image, sigma, generator)


def _to_bytes(images: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """Adds Gaussian noise of standard deviation ``sigma (N,)`` and rounds [0, 1] to ``uint8``."""
    noise = torch.randn(images.shape, generator=generator).mul_(sigma.view(-1, 1, 1, 1))
    return noise.add_(images).clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def _light(image: Tensor, generator: torch.Generator) -> Tensor:
    """Exposure, colour cast, haze, and the edge of a shadow."""
    n = len(image)
    gain = uniform(*_GAIN, n, generator).view(-1, 1)
    gain = gain * uniform(0.85, 1.15, 3 * n, generator).view(n, 3)
    along, _ = _turned_grid(n, generator)
    slope = uniform(0.3, 6.0, n, generator).view(-1, 1, 1)
    ramp = (along * slope + uniform(0.0, 1.0, n, generator).view(-1, 1, 1)).clamp_(0, 1)
    shade = 1 - uniform(0.0, 0.6, n, generator).view(-1, 1, 1) * ramp
    image = image * shade.unsqueeze(1) * gain[..., None, None]
    haze = (_HAZE * uniform(0.0, 1.0, n, generator) ** 3).view(-1, 1, 1, 1)
    return image + (uniform(0.2, 0.8, n, generator).view(-1, 1, 1, 1) - image) * haze


def _blur(image: Tensor, generator: torch.Generator) -> Tensor:
    """Binomial blur in place, of a strength of its own for rows and columns."""
    weights = uniform(0.0, 0.5, 2 * len(image), generator).view(2, -1, 1, 1, 1)
    for _ in range(_BLUR_ROUNDS):
        for axis, weight in zip((2, 3), weights, strict=True):
            inner = image.narrow(axis, 1, SIZE - 2)
            sides = image.narrow(axis, 0, SIZE - 2) + image.narrow(axis, 2, SIZE - 2)
            smooth = inner + (sides * 0.5 - inner) * weight
            inner.copy_(smooth)
    return image


def chunks(count: int) -> Iterator[slice]:
    """Cuts ``range(count)`` into slices of at most :data:`CHUNK`."""
    for start in range(0, count, CHUNK):
        yield slice(start, min(count, start + CHUNK))


def check_count(count: int) -> None:
    """Raises ValueError unless ``count`` is at least 1."""
    if count < 1:
        raise ValueError(f"expected count >= 1, got {count}")
