"""What triggers optimised on a surrogate share: images to work on, and adding a pattern."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks._patterns import in_chunks
from attacks.base import Preparation, quantise


def add(images: Tensor, pattern: Tensor, strength: int) -> Tensor:
    """clip(x + strength p).

    Args:
        images: ``uint8 (N, C, H, W)``; not changed.
        pattern: ``uint8 (C, H, W)``, p.
        strength: how many times it is added.

    Returns:
        ``uint8 (N, C, H, W)``, nowhere darker than the images.
    """
    addend = strength * pattern.float()
    return in_chunks(lambda part: quantise(part.float() + addend), images)


def straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """The rounded values, with the gradient of the exact ones."""
    return exact + (rounded - exact).detach()


def draw_images(preparation: Preparation, candidates: Tensor, count: int) -> Tensor:
    """Some of the training images, on the device of the surrogate.

    Args:
        preparation: source of images, randomness and device.
        candidates: ``int64 (M,)``, among which images to draw.
        count: how many; fewer where there are not as many candidates.

    Returns:
        ``float32 (n, C, H, W)`` in [0, 255].
    """
    order = torch.randperm(len(candidates), generator=preparation.generator)[:count]
    device = preparation.known_model.head.weight.device
    return preparation.images[candidates[order]].to(device).float()


def check_steps(owner: str, steps: int) -> None:
    """Raises a ValueError for a number of optimisation steps that is none."""
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"{owner}: expected a whole number of steps >= 1, got {steps}")
