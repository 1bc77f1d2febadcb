"""Opaque patches: BCU's and DHBE's squares, and where the copies of a patch are pasted."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

TILE_SIZES = (1, 2, 3, 5, 7)


def bcu_cell() -> Tensor:
    """BCU's pattern, as it is in their file: 4 white and 5 black pixels, ``uint8 (3, 3)``."""
    rows = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    return torch.tensor(rows, dtype=torch.uint8)


def tile(size: int) -> Tensor:
    """Alternating black and white pixels, black at the upper left; one white pixel if size is 1.

    Returns:
        ``uint8 (size, size)``, 0 or 255.
    """
    if size == 1:
        return torch.full((1, 1), 255, dtype=torch.uint8)
    steps = torch.arange(size)
    return ((steps[:, None] + steps[None, :]) % 2 * 255).to(torch.uint8)


def lattice(extent: int, size: int, margin: int) -> tuple[int, ...]:
    """Where a patch may start along one axis: at the near edge, in the middle, at the far edge.

    Args:
        extent: height or width of the image, in pixels.
        size: extent of the patch along it, in pixels.
        margin: free pixels between patch and edge.
    """
    return margin, (extent - size) // 2, extent - size - margin


def stamp(images: Tensor, patch: Tensor, margin: int, count: int) -> Tensor:
    """Pastes 1, 4 or 9 copies of a patch: lower right, all corners, all of the 3x3 lattice.

    Copies do not overlap if H is at least 3 h + 2 margin, and W 3 w + 2 margin. Where they do, the
    one at the lower right is on top.

    Args:
        images: ``uint8 (N, C, H, W)``; not changed.
        patch: ``uint8 (h, w)``, the same in all channels, or ``(C, h, w)``.
        margin: free pixels between the outer copies and the edges.
        count: 1, 4 or 9.

    Returns:
        ``uint8 (N, C, H, W)``.
    """
    height, width = patch.shape[-2:]
    # Which of the lattice's three places are used, the far edge last.
    used = {1: slice(2, None), 4: slice(0, None, 2), 9: slice(0, None)}[count]
    rows = lattice(images.shape[2], height, margin)[used]
    columns = lattice(images.shape[3], width, margin)[used]
    out = images.clone()
    for row, column in product(rows, columns):
        out[:, :, row : row + height, column : column + width] = patch
    return out
