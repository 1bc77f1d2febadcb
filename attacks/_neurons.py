"""Triggers that excite a model's own neurons (Liu et al., "Trojaning Attack on Neural Networks").

Some units of the penultimate layer are chosen that a trigger can move and that matter to the
logits; the trigger's pixels are then optimised so that clean images carrying it excite these units.
A victim trained with the trigger finds features for it close to those it learns anyway.

The trigger is described by parameters z in [0, 1] and made of whole grey levels from them, so that
what is optimised is what will be stamped; gradients pass straight through the rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from attacks._crafted import draw_images, straight_through
from attacks.base import Preparation, Surrogate, quantise

IMAGES: Final = 512  # clean training images that carry the trigger
BATCH: Final = 64  # of these, drawn anew in every step
UNITS: Final = 10  # neurons to excite
RESTARTS: Final = 3
LR: Final = 0.05  # of Adam, for z in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Search:
    """A space of triggers, and how long to search it.

    Attributes:
        shape: of z; a search starts from uniform noise in [0, 1].
        render: z to the trigger's pixels in whole grey levels, differentiable.
        stamp: ``float32 (N, C, H, W)`` images in [0, 255] and pixels to triggered images.
        steps: of Adam, for each of :data:`RESTARTS` starts.
        project: z to a permitted one, after every step.
        penalty: subtracted from the objective, as a function of z; in standard deviations of the
            units' clean activations.
    """

    shape: tuple[int, ...]
    render: Callable[[Tensor], Tensor]
    stamp: Callable[[Tensor, Tensor], Tensor]
    steps: int
    project: Callable[[Tensor], Tensor] = lambda z: z.clamp(0, 1)
    penalty: Callable[[Tensor], Tensor] | None = None


def render_levels(z: Tensor) -> Tensor:
    """Whole grey levels in [0, 255] of z in [0, 1]."""
    levels = 255 * z
    return straight_through(levels, levels.round())


def stamp_added(images: Tensor, pixels: Tensor) -> Tensor:
    """clip(x + p) of float images in [0, 255], differentiable in p."""
    return (images + pixels).clamp(0, 255)


def choose_units(head: Tensor, clean: Tensor, triggered: Tensor) -> Tensor:
    """The units through which a trigger can move the logits most: largest sum of |w| times reach.

    Args:
        head: ``float32 (K, D)``, the weights w from units to logits.
        clean: ``float32 (N, D)``, activations on images.
        triggered: ``float32 (N, D)``, activations on the same images with random triggers; a
            unit's reach is the mean absolute change.

    Returns:
        ``int64 (S,)``, :data:`UNITS` of them or all D, the first the most important.
    """
    weight = head.abs().sum(0) * (triggered - clean).abs().mean(0)
    return weight.topk(min(UNITS, len(weight))).indices


def optimise(search: Search, preparation: Preparation) -> tuple[Tensor, Tensor]:
    """The trigger that excites the surrogate's neurons most, of several starts.

    Returns:
        Its pixels, ``uint8`` of the shape that ``search.render`` gives, and the chosen units,
        ``int64 (S,)``; both on the CPU.
    """
    model, generator = preparation.known_model, preparation.generator
    pool = draw_images(preparation, torch.arange(len(preparation.images)), IMAGES)
    starts = [_start(search, generator).to(pool.device) for _ in range(RESTARTS)]
    clean = _activations(model, pool)
    triggered = [_activations(model, search.stamp(pool, search.render(z))) for z in starts]
    units = choose_units(model.head.weight, clean.repeat(RESTARTS, 1), torch.cat(triggered))
    spread = clean[:, units].std(0, correction=0).clamp(min=1e-6)

    best, pixels = -torch.inf, search.render(starts[0])
    for start in starts:
        z = _ascend(search, model, pool, start, units, spread, generator)
        candidate = search.render(z)
        excited = _activations(model, search.stamp(pool, candidate))[:, units]
        if (value := float((excited / spread).mean())) > best:
            best, pixels = value, candidate
    return quantise(pixels).cpu(), units.cpu()


def _start(search: Search, generator: torch.Generator) -> Tensor:
    return search.project(torch.rand(search.shape, generator=generator))


def _ascend(
    search: Search,
    model: Surrogate,
    pool: Tensor,
    start: Tensor,
    units: Tensor,
    spread: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Adam on the mean activation of the units, each in its own standard deviations."""
    z = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([z], lr=LR, maximize=True)
    for _ in range(search.steps):
        drawn = torch.randperm(len(pool), generator=generator)[:BATCH]
        images = search.stamp(pool[drawn.to(pool.device)], search.render(z))
        value = (model.features(images / 255)[:, units] / spread).mean()
        if search.penalty is not None:
            value = value - search.penalty(z)
        (z.grad,) = torch.autograd.grad(value, z)
        adam.step()
        with torch.no_grad():
            z.copy_(search.project(z))
    return z.detach()


@torch.no_grad()
def _activations(model: Surrogate, images: Tensor) -> Tensor:
    """``float32 (N, D)`` of images in [0, 255]."""
    return torch.cat([model.features(part / 255) for part in images.split(BATCH)])
