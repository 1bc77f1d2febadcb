"""What the attacks share: input checks, memory-bounded float arithmetic, and a drawn picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.base import Attack

CHUNK = 4096 * 3 * 32 * 32  # pixel values that may be float at the same time (50 MB)
OVERSAMPLING = 8  # the cartoon is drawn at 8 times the image size: 256 px for 32 px

Point = tuple[float, float]  # (x, y), from (0, 0) upper left to (1, 1) lower right

WHITE = (255, 255, 255)
BLUE = (90, 135, 205)
INK = (25, 20, 35)
YELLOW = (250, 200, 40)
RED = (225, 15, 50)


def check_call(attack: Attack, images: Tensor, strength: int) -> None:
    """Checks the arguments of :meth:`attacks.base.Attack.amplified`.

    Raises:
        TypeError: the images are not ``uint8 (N, C, H, W)``.
        ValueError: the strength is not one of the attack's.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        got = f"{images.dtype} {tuple(images.shape)}"
        raise TypeError(f"{attack.name}: expected images torch.uint8 (N, C, H, W), got {got}")
    if strength not in attack.strengths:
        allowed = ", ".join(str(s) for s in attack.strengths)
        raise ValueError(f"{attack.name}: expected strength in {allowed}, got {strength}")


def in_chunks(change: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Applies ``change`` to as many images at a time as :data:`CHUNK` allows.

    Args:
        change: ``uint8 (n, C, H, W)`` to the same, each image on its own.
        images: ``uint8 (N, C, H, W)``, N may be 0; not changed.

    Returns:
        ``uint8 (N, C, H, W)`` on the device of the images.
    """
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    step = max(1, CHUNK // images.shape[1:].numel())
    for start in range(0, len(images), step):
        out[start : start + step] = change(images[start : start + step])
    return out


def cartoon(shape: tuple[int, int, int]) -> Tensor:
    """A cat's head with a bow on a white field, drawn here so that no picture is shipped.

    Drawn in hard edges at :data:`OVERSAMPLING` times the size, then averaged over areas; the mean
    is 0.70 of full scale, as in the Hello Kitty picture that is usually blended in.

    Args:
        shape: (C, H, W); C is 3 for colour or 1 for the mean of the colours.

    Returns:
        ``uint8 (C, H, W)``.

    Raises:
        ValueError: C is neither 1 nor 3.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise ValueError(f"cartoon: expected 1 or 3 channels, got {channels}")
    y = (torch.arange(height * OVERSAMPLING) + 0.5)[:, None] / (height * OVERSAMPLING)
    x = (torch.arange(width * OVERSAMPLING) + 0.5)[None, :] / (width * OVERSAMPLING)
    canvas = torch.empty(3, height * OVERSAMPLING, width * OVERSAMPLING)

    def paint(region: Tensor | bool, colour: tuple[int, int, int]) -> None:
        value = torch.tensor(colour, dtype=canvas.dtype)[:, None, None]
        canvas.copy_(torch.where(torch.as_tensor(region), value, canvas))

    paint(True, WHITE)
    for side in (-1, 1):
        ear = ((0.5 + side * 0.42, 0.06), (0.5 + side * 0.44, 0.52), (0.5 + side * 0.08, 0.26))
        paint(_triangle(x, y, *ear), BLUE)
    paint(_ellipse(x, y, (0.5, 0.58), (0.46, 0.36)), BLUE)
    for side in (-1, 1):
        paint(_ellipse(x, y, (0.5 + side * 0.22, 0.58), (0.05, 0.07)), INK)
    paint(_ellipse(x, y, (0.5, 0.70), (0.06, 0.04)), YELLOW)
    for side in (-1, 1):
        outer = 0.70 + side * 0.20
        paint(_triangle(x, y, (0.70, 0.24), (outer, 0.11), (outer, 0.37)), RED)
    paint(_ellipse(x, y, (0.70, 0.24), (0.06, 0.06)), RED)

    if channels == 1:
        canvas = canvas.mean(0, keepdim=True)
    return torch.nn.functional.avg_pool2d(canvas, OVERSAMPLING).round().to(torch.uint8)


def _ellipse(x: Tensor, y: Tensor, centre: Point, radii: Point) -> Tensor:
    """Points inside an ellipse along the axes; x ``(1, W)`` and y ``(H, 1)`` to ``bool (H, W)``."""
    return ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1


def _triangle(x: Tensor, y: Tensor, a: Point, b: Point, c: Point) -> Tensor:
    """Points on one side of all three edges; x ``(1, W)`` and y ``(H, 1)`` to ``bool (H, W)``."""
    sides = [
        (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) for p, q in ((a, b), (b, c), (c, a))
    ]
    turns = torch.stack(sides)
    return (turns >= 0).all(0) | (turns <= 0).all(0)
