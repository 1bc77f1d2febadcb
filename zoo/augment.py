"""Augmentation of a whole batch at once, with parameters of its own for every image.

torchvision's v2 transforms draw one crop for the whole batch when they get a batch; that is a
silent loss of augmentation, and the reason why this module exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random crop after zero padding, then random horizontal flip."""

    crop: int = 4  # pixels of padding on each side; 0 switches it off
    flip: bool = True  # wrong for traffic signs and digits

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augments ``(N, C, H, W)`` of any dtype out of place; same shape, dtype and device.

        The generator must live on the device of the images.
        """
        if self.crop:
            images = random_crop(images, self.crop, generator)
        if self.flip:
            images = random_flip(images, generator)
        return images


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shifts every image by its own offset in [-padding, padding]^2; what moves in is zero."""
    n, _, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    top, left = torch.randint(
        2 * padding + 1, (2, n), generator=generator, device=images.device, dtype=torch.long
    )
    # A view of every possible crop, (N, C, offsets, offsets, H, W); one of each image is copied.
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(n, device=images.device), :, top, left]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors every image left to right with probability one half."""
    draw = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    chosen = draw.nonzero().flatten()
    flipped = images.clone()
    flipped[chosen] = images[chosen].flip(3)
    return flipped
