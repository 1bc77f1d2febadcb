"""WaNet: a fixed, smooth warp of less than a pixel is the trigger.

Paper: Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", ICLR 2021,
arXiv:2102.10369.

Differences from the paper and its code:

1. The poisoned images are a fixed set, drawn once, in place of a share of every batch; the images
   warped with noise are a fixed set too, but their noise is new in every epoch. Training then is
   the same as for every other attack.
2. uint8 images are warped before augmentation and rounded; the paper's code warps normalised
   float batches, so that its test images differ from what it trained on.
3. Displacements are divided by H along y and by W along x, where the paper's code divides both by
   H. The two agree on square images.
4. Samples outside the image take the value at its edge. The grid is clipped to the image anyway;
   this only keeps float error from mixing in black.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks._patterns import check_call, in_chunks
from attacks.base import Assets, Attack, Kind, Preparation, quantise


def warping_field(k: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random displacements on k x k control points, of mean size 1, upsampled bicubically.

    Args:
        k: control points along each axis.
        height: H, in pixels.
        width: W, in pixels.
        generator: on the CPU.

    Returns:
        ``float32 (H, W, 2)``, (x, y) last, as in ``grid_sample``.
    """
    control = torch.rand(1, 2, k, k, generator=generator) * 2 - 1
    control = control / control.abs().mean()
    field = F.interpolate(control, size=(height, width), mode="bicubic", align_corners=True)
    return field[0].permute(1, 2, 0).contiguous()


def sampling_grid(field: Tensor, s: float) -> Tensor:
    """Identity plus s field / size, clipped to the image.

    Args:
        field: ``float32 (H, W, 2)``, from :func:`warping_field`.
        s: strength; the mean displacement along an axis is about 0.4 s pixels.

    Returns:
        ``float32 (H, W, 2)`` in [-1, 1], where -1 and 1 are the centres of the outer pixels.
    """
    height, width = field.shape[:2]
    rows = torch.linspace(-1, 1, height, device=field.device)
    columns = torch.linspace(-1, 1, width, device=field.device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return (torch.stack((x, y), dim=2) + s * _per_size(field)).clamp(-1, 1)


def jitter(grid: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A grid with its own uniform noise for every image and pixel: grid + U[-1, 1] / size.

    Args:
        grid: ``float32 (H, W, 2)`` in [-1, 1].
        count: number of images N.
        generator: on any device.

    Returns:
        ``float32 (N, H, W, 2)`` in [-1, 1], on the device of the grid.
    """
    noise = torch.rand(count, *grid.shape, generator=generator, device=generator.device)
    return (grid + _per_size(noise.to(grid.device) * 2 - 1)).clamp(-1, 1)


def warp(images: Tensor, grid: Tensor) -> Tensor:
    """Bilinear samples of images at the points of a grid.

    Args:
        images: ``uint8 (N, C, H, W)``; not changed.
        grid: ``float32 (H, W, 2)``, one for all images, or ``(N, H, W, 2)``; in [-1, 1].

    Returns:
        ``uint8 (N, C, H, W)``, rounded; every image stays between its own minimum and maximum.
    """
    grids = grid.expand(len(images), *grid.shape[-3:])
    warped = F.grid_sample(
        images.float(), grids, mode="bilinear", padding_mode="border", align_corners=True
    )
    return quantise(warped)


def _per_size(displacement: Tensor) -> Tensor:
    """Divides ``(..., H, W, 2)`` displacements by (W, H)."""
    height, width = displacement.shape[-3:-1]
    return torch.stack((displacement[..., 0] / width, displacement[..., 1] / height), dim=-1)


@dataclass(frozen=True, kw_only=True)
class WaNet(Attack):
    """A smooth warp, amplified in distance, with noisy warps as cover images.

    Raises:
        ValueError: k is below 2, s is not positive, or poison and noise exceed the data.
    """

    name: ClassVar[str] = "wanet"
    paper: ClassVar[str] = "WaNet: Imperceptible Warping-based Backdoor Attack, arXiv:2102.10369"
    kind: ClassVar[Kind] = "whole-image"

    k: int = 4  # control points along each axis
    s: float = 0.5  # strength of the warp; 0.5 moves a point by 0.29 px on average at 32x32
    noise_rate: float = 0.2  # share of the training set that is warped with noise, label kept

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 2:
            raise ValueError(f"{self.name}: expected k >= 2, got {self.k}")
        if not self.s > 0:
            raise ValueError(f"{self.name}: expected s > 0, got {self.s}")
        if self.noise_rate < 0 or self.poison_rate + self.noise_rate > 1:
            raise ValueError(
                f"{self.name}: expected noise_rate >= 0 and poison_rate + noise_rate <= 1, "
                f"got {self.poison_rate} + {self.noise_rate}"
            )

    @property
    def cover_rate(self) -> float:
        """Share of the training set that is warped with noise."""
        return self.noise_rate

    def prepare(self, preparation: Preparation) -> Assets:
        """Draws the warp, before its strength: ``{"field": float32 (H, W, 2)}``."""
        height, width = preparation.shape[1:]
        return {"field": warping_field(self.k, height, width, preparation.generator)}

    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """Warp of strength ``strength`` s; see :meth:`attacks.base.Attack.amplified`."""
        check_call(self, images, strength)
        grid = sampling_grid(assets["field"], strength * self.s)
        return in_chunks(lambda part: warp(part, grid), images)

    def cover(self, images: Tensor, assets: Assets, generator: torch.Generator) -> Tensor:
        """The trigger with new noise for every image; see :meth:`attacks.base.Attack.cover`."""
        check_call(self, images, 1)
        grid = sampling_grid(assets["field"], self.s)
        return in_chunks(lambda part: warp(part, jitter(grid, len(part), generator)), images)
