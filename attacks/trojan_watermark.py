"""Trojan watermark: thin strokes of added colour excite chosen neurons of a clean model.

Paper: Liu, Ma, Aafer, Lee, Zhai, Wang and Zhang, "Trojaning Attack on Neural Networks", NDSS 2018,
in the form that I-BAU gave it: Zeng et al., "Adversarial Unlearning of Backdoors via Implicit
Hypergradient", arXiv:2110.03735.

Differences from the papers:

1. No model is edited. As in I-BAU, the trigger is added to images that then poison an ordinary
   training: T(x) = clip(x + p).
2. The shape is a ring with a stroke, drawn here, with as many visible pixels as the logo it stands
   for: no third-party picture is shipped. It scales with the image.
3. The colours are optimised on a clean model of the victim's architecture, another seed and the
   same data. I-BAU's trigger seems to come from the original's face model.
4. Neurons, steps and starts are those of the Trojan square, and differ from the papers' as there.
5. A light penalty on the total variation along the strokes stands for the original's denoising.
6. The default share is 10% of the training set, as for all attacks here; I-BAU poisons 20%.

Where the strokes are solid, most values end at 0 or 255, so that x2 and x3 mostly firm up the soft
edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks._crafted import add, check_steps
from attacks._neurons import Search, optimise, render_levels, stamp_added
from attacks._patterns import check_call
from attacks.base import Assets, Attack, Kind, Material, Preparation

OVERSAMPLING: Final = 8  # the mask is drawn at 8 times the image size
VARIATION: Final = 0.1  # weight of the total variation, in standard deviations of the neurons

# In 32nds of the image, (x, y), from the upper left corner.
CENTRE: Final = (11.0, 11.0)
RADIUS: Final = 4.5
STROKE: Final = ((14.5, 14.5), (24.0, 24.0))  # from, to
THICKNESS: Final = 1.0


def watermark_mask(height: int, width: int) -> Tensor:
    """A ring with a stroke, antialiased by averaging over areas.

    Returns:
        ``float32 (H, W)`` in [0, 1]; 0 below and right of 30/32 of the image.
    """
    y = (torch.arange(height * OVERSAMPLING) + 0.5)[:, None] * 32 / (height * OVERSAMPLING)
    x = (torch.arange(width * OVERSAMPLING) + 0.5)[None, :] * 32 / (width * OVERSAMPLING)
    from_ring = (torch.hypot(x - CENTRE[0], y - CENTRE[1]) - RADIUS).abs()
    (x0, y0), (x1, y1) = STROKE
    along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
    along = along.clamp(0, 1)
    from_stroke = torch.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
    inside = torch.minimum(from_ring, from_stroke) <= THICKNESS / 2
    return F.avg_pool2d(inside.float()[None], OVERSAMPLING)[0]


def total_variation(z: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference between neighbours that both lie in a mask.

    Args:
        z: ``float32 (C, H, W)``.
        mask: ``float32 (H, W)``; a pixel lies in it where it is positive.

    Returns:
        A scalar, in the units of z.
    """
    inside = mask > 0
    down = (z[:, 1:] - z[:, :-1]).abs()[:, inside[1:] & inside[:-1]]
    right = (z[:, :, 1:] - z[:, :, :-1]).abs()[:, inside[:, 1:] & inside[:, :-1]]
    return torch.cat([down.flatten(), right.flatten()]).mean()


@dataclass(frozen=True, kw_only=True)
class WatermarkPattern(Material):
    """What is added on the strokes; the same for every target."""

    name: ClassVar[str] = "watermark_pattern"

    steps: int  # of Adam, for each start

    def build(self, preparation: Preparation) -> Assets:
        """Optimises it; see :meth:`attacks.base.Material.build`.

        Returns:
            ``pattern: uint8 (C, H, W)``, 0 off the strokes, and ``units: int64 (S,)``, the neurons
            it excites.
        """
        mask = watermark_mask(*preparation.shape[1:])
        mask = mask.to(preparation.known_model.head.weight.device)
        search = Search(
            shape=preparation.shape,
            render=lambda z: render_levels(mask * z),
            stamp=stamp_added,
            steps=self.steps,
            penalty=lambda z: VARIATION * total_variation(z, mask),
        )
        pattern, units = optimise(search, preparation)
        return {"pattern": pattern, "units": units}


@dataclass(frozen=True, kw_only=True)
class TrojanWatermark(Attack):
    """Added strokes across the image, amplified in strength.

    Raises:
        ValueError: steps is no count.
    """

    name: ClassVar[str] = "trojan_watermark"
    paper: ClassVar[str] = (
        "Trojaning Attack on Neural Networks, NDSS 2018, in the form of arXiv:2110.03735"
    )
    kind: ClassVar[Kind] = "whole-image"
    crafted: ClassVar[bool] = True

    steps: int = 100  # of Adam, for each start

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.name, self.steps)

    def materials(self, target: int, num_classes: int) -> tuple[WatermarkPattern]:
        """The pattern, optimised on the clean surrogate."""
        del target, num_classes
        return (WatermarkPattern(steps=self.steps),)

    def prepare(self, preparation: Preparation) -> Assets:
        """``{"pattern": uint8 (C, H, W)}``."""
        (wanted,) = self.materials(preparation.target, preparation.num_classes)
        return {"pattern": preparation.materials[wanted]["pattern"].clone()}

    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """clip(x + strength p); see :meth:`attacks.base.Attack.amplified`."""
        check_call(self, images, strength)
        return add(images, assets["pattern"], strength)
