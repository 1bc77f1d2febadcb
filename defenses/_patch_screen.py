"""Which classes a small opaque patch can reach, and where in the image it has to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from defenses._others import Others
from defenses.base import DefenderView
from zoo.models import Classifier
from zoo.train import DivergedError

COARSE: Final = 3  # cells along a side of the first grid; a cell of the second is a quarter of one
PATCHES_AT_ONCE: Final = 32
IMAGES_PER_PATCH: Final = 2  # in a step of the search
GREY: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Place:
    """A class to reach, and cell ``(row, column)`` of a grid of positions to do it from."""

    target: int
    grid: int
    row: int
    column: int

    def quarters(self) -> list[Place]:
        """The four cells of the grid twice as fine that this one consists of."""
        return [
            Place(target=self.target, grid=2 * self.grid, row=row, column=column)
            for row in (2 * self.row, 2 * self.row + 1)
            for column in (2 * self.column, 2 * self.column + 1)
        ]


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A patch ``(C, p, p)`` in [0, 1] and the share of images that it sends to its class."""

    place: Place
    patch: Tensor
    reach: float


def paste(images: Tensor, patches: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Replaces a square of every image, out of place.

    Args:
        images: ``(N, C, H, W)``.
        patches: ``(N, C, p, p)``; gradients flow to them.
        top: ``int64 (N,)``, rows of the upper left corners.
        left: ``int64 (N,)``, their columns.
    """
    n, _, p, _ = patches.shape
    offsets = torch.arange(p, device=images.device)
    rows = (top.to(images.device)[:, None] + offsets)[:, :, None]
    columns = (left.to(images.device)[:, None] + offsets)[:, None, :]
    pasted = images.clone()
    index = torch.arange(n, device=images.device)[:, None, None]
    pasted[index, :, rows, columns] = patches.permute(0, 2, 3, 1).to(images.dtype)
    return pasted


def draw_positions(
    places: Sequence[Place], size: int, shape: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows and columns ``(N,)`` of upper left corners, uniform in the cell of each place.

    The H - p + 1 positions along a side, the last included, are cut into ``grid`` parts that are
    equal where that divides and differ by one elsewhere. A part without any gets a neighbour's.
    """
    corners = []
    for length, cells in zip(
        shape[-2:], ([p.row for p in places], [p.column for p in places]), strict=True
    ):
        count = length - size + 1
        grid = torch.tensor([p.grid for p in places])
        first = torch.tensor(cells) * count // grid
        last = torch.maximum((torch.tensor(cells) + 1) * count // grid, first + 1)
        share = torch.rand(len(places), generator=generator, dtype=torch.float64)
        corners.append((first + share * (last - first)).long())
    return corners[0], corners[1]


def paste_somewhere(
    images: Tensor, patches: Tensor, places: Sequence[Place], generator: torch.Generator
) -> Tensor:
    """Each patch on its image, at a position drawn from the cell of its place."""
    top, left = draw_positions(places, patches.shape[-1], images.shape, generator)
    return paste(images, patches, top, left)


def search_patches(
    model: Classifier,
    view: DefenderView,
    images: Tensor,
    labels: Tensor,
    places: Sequence[Place],
    *,
    size: int,
    steps: int,
    lr: float,
    probes: int,
) -> list[Spot]:
    """One patch for each place, by Adam on the cross-entropy of images of other classes.

    Each is judged on ``probes`` images that it may have been optimised on.

    Raises:
        DivergedError: the gradients are not finite.
    """
    others, channels = Others(labels, view.num_classes), images.shape[1]

    def predict(logits: Tensor, places: Sequence[Place], repeats: int) -> tuple[Tensor, Tensor]:
        everywhere = list(places) * repeats
        aims = torch.tensor([p.target for p in everywhere])
        chosen = images[others.draw(aims, view.generator).to(images.device)]
        patches = logits.sigmoid().repeat(repeats, 1, 1, 1)
        stamped = paste_somewhere(chosen, patches, everywhere, view.generator)
        return model(stamped).float(), aims.to(images.device)

    spots = []
    for begin in range(0, len(places), PATCHES_AT_ONCE):
        some = places[begin : begin + PATCHES_AT_ONCE]
        start = torch.randn(len(some), channels, size, size, generator=view.generator)
        logits = start.to(images.device).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=lr)
        for _ in range(steps):
            predicted, aims = predict(logits, some, IMAGES_PER_PATCH)
            loss = F.cross_entropy(predicted, aims, reduction="sum")
            (logits.grad,) = torch.autograd.grad(loss, logits)
            optimizer.step()
        if not logits.isfinite().all():
            raise DivergedError("the screened patches are not finite")
        with torch.no_grad():
            predicted, aims = predict(logits, some, probes)
        hits = (predicted.argmax(1) == aims).float().unflatten(0, (probes, len(some))).mean(0)
        patches = logits.detach().sigmoid()
        spots += [
            Spot(place=place, patch=patch, reach=float(hit))
            for place, patch, hit in zip(some, patches, hits, strict=True)
        ]
    return spots


def screen(
    model: Classifier,
    view: DefenderView,
    images: Tensor,
    labels: Tensor,
    classes: Sequence[int],
    *,
    sizes: Sequence[int],
    steps: int,
    lr: float,
    kept: int,
    probes: int,
) -> list[Spot]:
    """All patches found: for every class and cell of a coarse grid; the best of these, finer.

    The coarse search has the largest size alone, for a patch can hold a smaller one. The ``kept``
    places of highest reach are searched again by quarters, for every size, with twice the steps and
    judged on four times the images.
    """
    cells = [(row, column) for row in range(COARSE) for column in range(COARSE)]
    places = [
        Place(target=target, grid=COARSE, row=row, column=column)
        for target in classes
        for row, column in cells
    ]
    find = partial(search_patches, model, view, images, labels, lr=lr)
    coarse = find(places, size=max(sizes), steps=steps, probes=probes)
    reach = torch.tensor([spot.reach for spot in coarse])
    promising = [coarse[i] for i in highest(reach, kept, view.generator)]
    quarters = [quarter for spot in promising for quarter in spot.place.quarters()]
    fine = [find(quarters, size=size, steps=2 * steps, probes=4 * probes) for size in sizes]
    return coarse + [spot for spots in fine for spot in spots]


def highest(values: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Indices of the ``count`` highest of ``(N,)``, highest first.

    Ties, which are common among shares of a few images, are broken at random: an order by class
    would favour low numbers, and attacks often aim at the lowest.
    """
    order = torch.randperm(len(values), generator=generator)
    chosen = order[values[order].argsort(descending=True, stable=True)]
    return [int(i) for i in chosen[:count]]


def best_of(spots: Sequence[Spot], target: int) -> Spot:
    """The spot of highest reach for a class, of the finest grid on which it was searched."""
    own = [spot for spot in spots if spot.place.target == target]
    return max(own, key=lambda spot: (spot.place.grid, spot.reach))


def best_of_each_size(spots: Sequence[Spot], target: int) -> list[Spot]:
    """The same for every size of which the class has a patch, the smallest size first."""
    own = [spot for spot in spots if spot.place.target == target]
    sizes = sorted({spot.patch.shape[-1] for spot in own})
    return [best_of([s for s in own if s.patch.shape[-1] == size], target) for size in sizes]


def picture(spot: Spot, shape: tuple[int, int, int]) -> Tensor:
    """The patch in the middle of its cell, on grey: ``(C, H, W)``."""
    image = torch.full(shape, GREY, device=spot.patch.device)
    p, grid = spot.patch.shape[-1], spot.place.grid
    top, left = (
        (2 * cell + 1) * (length - p + 1) // (2 * grid)
        for cell, length in zip((spot.place.row, spot.place.column), shape[1:], strict=True)
    )
    image[:, top : top + p, left : left + p] = spot.patch
    return image
