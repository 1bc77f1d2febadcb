"""The picture of what a detector recovered, stored beside the record."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from zoo.errors import UserError
from zoo.tensors import read_tensors

GAP: Final = 2  # pixels of white between two classes
COLUMNS: Final = 10
MAX_PIXELS: Final = 4_000_000  # a plugin decides how many tiles there are


def contact_strip(path: Path) -> bytes:
    """A PNG with one tile per class, ten in a row, class 0 first; empty where there is no file.

    Args:
        path: safetensors with ``triggers``, ``uint8 (K, C, H, W)``.
    """
    if not path.exists():
        return b""
    try:
        tiles = read_tensors(path).get("triggers")
    except UserError:
        return b""
    if tiles is None or tiles.dtype != torch.uint8 or tiles.dim() != 4 or not tiles.numel():
        return b""
    if tiles.shape[1] not in (1, 3) or tiles.numel() > MAX_PIXELS:
        return b""
    return contact_sheet(tiles)


def contact_sheet(tiles: Tensor) -> bytes:
    """A PNG of images ``uint8 (N, C, H, W)``, ten in a row."""
    k, _, height, width = tiles.shape
    columns = min(COLUMNS, k)
    rows = -(-k // columns)
    size = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    for n, tile in enumerate(tiles.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()):
        place = ((n % columns) * (width + GAP), (n // columns) * (height + GAP))
        sheet.paste(Image.fromarray(tile), place)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
