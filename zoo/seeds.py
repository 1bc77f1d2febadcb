"""Every random number comes from a seed that is the SHA-256 of the axes it belongs to.

Two things that share their axes share their random numbers (common random numbers), whatever order
they run in; two that differ in one axis are independent.
"""

from __future__ import annotations

import hashlib

import torch


def seed_of(*axes: object) -> int:
    """A seed in [0, 2^63) for the given axes, for example ``("order", "gtsrb", 3)``."""
    text = "\x1f".join(str(axis) for axis in axes)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_of(*axes: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator, seeded by :func:`seed_of`."""
    return torch.Generator(device=device).manual_seed(seed_of(*axes))
