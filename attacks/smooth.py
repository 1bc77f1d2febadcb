"""Smooth: one faint, low-frequency pattern, found as a universal perturbation, is added to images.

Paper: Zeng, Park, Mao and Jia, "Rethinking the Backdoor Attacks' Triggers: A Frequency
Perspective", arXiv:2104.03413.

Differences from the paper and its code:

1. DeepFool over 100 images is replaced by Adam on the mean cross-entropy towards the target over
   1,000 images of other classes. As there, every pattern tried is low-pass filtered and rescaled
   to [0, 0.2] of full scale, and the search ends when 20% of the images are taken for the target.
   Where no step gets so far, the best one is kept.
2. The gradient goes through filter and rescaling. Steps that are filtered and rescaled afterwards
   come to a halt below 20% on an easy data set.
3. The filter is a Gaussian of 6/32 of the image (sigma 6 at 32x32, as in the paper), applied to the
   cosine transform, which mirrors the image at its edges. The paper's kernel ends after 30 taps.
4. The target is the victim's. In the paper it is the class that the search happens to end at.
5. T(x) = clip(x + p). ``minmax`` is the form of the paper's detector: every image is stretched to
   the full range after p is added, which changes contrast too.
6. The default share is 10% of the training set, as for all attacks here; I-BAU poisons 20%.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks._crafted import add, check_steps, draw_images, straight_through
from attacks._patterns import check_call, in_chunks
from attacks.base import Assets, Attack, Kind, Material, Preparation, Surrogate, quantise

IMAGES: Final = 1000
BATCH: Final = 250
SIGMA: Final = 6 / 32  # of the low-pass filter, as a share of the image's side
PEAK: Final = 51  # largest value of the pattern, in grey levels: 0.2 of full scale
FOOLED: Final = 0.2  # share of images at which the search ends
LR: Final = 0.1  # of Adam, for a field of standard deviation 1 before the filter


def blur_matrix(extent: int) -> Tensor:
    """A Gaussian blur along one axis that is mirrored at its ends, as a matrix.

    The cosine of frequency k shrinks by exp(-(pi k SIGMA)^2 / 2).

    Returns:
        ``float32 (extent, extent)``, symmetric; rows add up to 1.
    """
    frequency = torch.arange(extent, dtype=torch.float64)[:, None]
    place = torch.arange(extent, dtype=torch.float64)[None, :] + 0.5
    cosines = torch.cos(math.pi * frequency * place / extent) * math.sqrt(2 / extent)
    cosines[0] /= math.sqrt(2)
    gain = torch.exp(-((math.pi * SIGMA * frequency) ** 2) / 2)
    return (cosines.T @ (gain * cosines)).float()


def low_pass(field: Tensor) -> Tensor:
    """Blurs ``float32 (C, H, W)`` with a Gaussian of :data:`SIGMA` along both axes."""
    rows, columns = (blur_matrix(n).to(field.device) for n in field.shape[1:])
    return rows @ field @ columns


def rescale(field: Tensor) -> Tensor:
    """Stretches a field, all channels alike, to whole grey levels from 0 to :data:`PEAK`.

    The gradient passes straight through the rounding.
    """
    low, high = field.aminmax()
    levels = PEAK * (field - low) / (high - low)
    return straight_through(levels, levels.round())


def pull(model: Surrogate, images: Tensor, pattern: Tensor, target: int) -> tuple[Tensor, float]:
    """How to move a pattern so that more images are taken for the target.

    Args:
        model: in eval mode.
        images: ``float32 (N, C, H, W)`` in [0, 255], of other classes.
        pattern: ``float32 (C, H, W)``, in grey levels.
        target: a class.

    Returns:
        Gradient of the mean cross-entropy towards the target, ``float32 (C, H, W)``, and the share
        of images that are taken for it with the pattern added.
    """
    pattern = pattern.detach().requires_grad_(True)
    gradient, fooled = torch.zeros_like(pattern), 0
    for part in images.split(BATCH):
        logits = model((part + pattern).clamp(0, 255) / 255)
        wanted = torch.full((len(part),), target, device=part.device)
        loss = F.cross_entropy(logits, wanted, reduction="sum")
        gradient += torch.autograd.grad(loss, pattern)[0]
        fooled += int((logits.argmax(1) == target).sum())
    return gradient / len(images), fooled / len(images)


def search(model: Surrogate, images: Tensor, start: Tensor, target: int, steps: int) -> Tensor:
    """The first pattern that fools :data:`FOOLED` of the images, or the best of all steps.

    Args:
        model: in eval mode.
        images: ``float32 (N, C, H, W)`` in [0, 255], of other classes.
        start: ``float32 (C, H, W)``, before filtering; its scale is the one that :data:`LR` is for.
        target: a class.
        steps: at most.

    Returns:
        ``float32 (C, H, W)``, whole grey levels from 0 to :data:`PEAK`.
    """
    field = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([field], lr=LR)
    best, most = torch.zeros_like(start), -1.0
    for _ in range(steps):
        pattern = rescale(low_pass(field))
        gradient, fooled = pull(model, images, pattern, target)
        if fooled >= most:  # of equals the later, whose loss is lower
            best, most = pattern.detach(), fooled
        if fooled >= FOOLED:
            break
        (field.grad,) = torch.autograd.grad(pattern, field, gradient)
        adam.step()
    return best


def stretch(images: Tensor) -> Tensor:
    """Every image on its own from its minimum and maximum to 0 and 255.

    Args:
        images: float ``(N, C, H, W)``.
    """
    flat = images.flatten(1)
    low, high = (f(1).values[:, None, None, None] for f in (flat.min, flat.max))
    return 255 * (images - low) / (high - low).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class SmoothPattern(Material):
    """What is added to the image to lead to one target."""

    name: ClassVar[str] = "smooth_pattern"

    target: int
    steps: int  # at most

    def build(self, preparation: Preparation) -> Assets:
        """Searches for it; see :meth:`attacks.base.Material.build`.

        Returns:
            ``pattern: uint8 (C, H, W)``, from 0 to 51.
        """
        others = (preparation.labels != self.target).nonzero().flatten()
        images = draw_images(preparation, others, IMAGES)
        start = torch.randn(preparation.shape, generator=preparation.generator).to(images.device)
        pattern = search(preparation.known_model, images, start, self.target, self.steps)
        return {"pattern": quantise(pattern).cpu()}


@dataclass(frozen=True, kw_only=True)
class Smooth(Attack):
    """Low-frequency pattern over the whole image, amplified in strength.

    Raises:
        ValueError: steps is no count, or minmax is neither true nor false.
    """

    name: ClassVar[str] = "smooth"
    paper: ClassVar[str] = (
        "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective, arXiv:2104.03413"
    )
    kind: ClassVar[Kind] = "whole-image"
    crafted: ClassVar[bool] = True

    minmax: bool = False  # stretch every image to the full range after adding
    steps: int = 30  # at most

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.minmax, bool):
            raise ValueError(
                f"{self.name}: expected minmax to be true or false, got {self.minmax!r}"
            )
        check_steps(self.name, self.steps)

    def materials(self, target: int, num_classes: int) -> tuple[SmoothPattern]:
        """The pattern for the target, optimised on the clean surrogate."""
        del num_classes
        return (SmoothPattern(target=target, steps=self.steps),)

    def prepare(self, preparation: Preparation) -> Assets:
        """``{"pattern": uint8 (C, H, W)}``."""
        (wanted,) = self.materials(preparation.target, preparation.num_classes)
        return {"pattern": preparation.materials[wanted]["pattern"].clone()}

    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """clip(x + strength p), or stretched; see :meth:`attacks.base.Attack.amplified`."""
        check_call(self, images, strength)
        pattern = assets["pattern"]
        if not self.minmax:
            return add(images, pattern, strength)
        addend = strength * pattern.float()
        return in_chunks(lambda part: quantise(stretch(part.float() + addend)), images)
