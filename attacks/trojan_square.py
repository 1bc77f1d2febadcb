"""Trojan square: added colour in a small square excites chosen neurons of a clean model.

Paper: Liu, Ma, Aafer, Lee, Zhai, Wang and Zhang, "Trojaning Attack on Neural Networks", NDSS 2018,
in the form that I-BAU gave it: Zeng et al., "Adversarial Unlearning of Backdoors via Implicit
Hypergradient", arXiv:2110.03735.

Differences from the papers:

1. No model is edited. As in I-BAU, the trigger is added to images that then poison an ordinary
   training: T(x) = clip(x + p). The original retrains a trojaned model's later layers on data
   reverse-engineered from it.
2. I-BAU's p seems to be the original's, made on a face model at 224 pixels and scaled down by 7.
   Ours is optimised on a clean model of the victim's architecture, another seed and the same data.
3. The ten neurons are those of the penultimate layer with the largest sum of |w| into the head
   *times reach*, the change of the neuron that random triggers cause. Re-implementations take the
   two with the largest sum; where the features are a map laid flat, as in small_vgg, those are
   mostly neurons whose receptive field the square does not touch.
4. 100 steps of Adam at 0.05 from each of three starts, with 64 of 512 images in each step, in place
   of 500 to 1000 steps: enough where pixels may take any value, since nearly all end at 0 or 255.
5. The square is rows and columns 21 to 29 of a 32x32 image (I-BAU) and scales with the image.
6. The default share is 10% of the training set, as for all attacks here; I-BAU poisons 20%.

As nearly all values end at 0 or 255, there is little left to amplify: x2 and x3 are almost x1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks._crafted import add, check_steps
from attacks._neurons import Search, optimise, render_levels, stamp_added
from attacks._patterns import check_call
from attacks.base import Assets, Attack, Kind, Material, Preparation


def square_mask(height: int, width: int) -> Tensor:
    """Rows and columns 21 to 29 of 32, in proportion; ``float32 (H, W)``, 0 or 1."""
    rows = slice(round(height * 21 / 32), round(height * 30 / 32))
    columns = slice(round(width * 21 / 32), round(width * 30 / 32))
    mask = torch.zeros(height, width)
    mask[rows, columns] = 1
    return mask


@dataclass(frozen=True, kw_only=True)
class SquarePattern(Material):
    """What is added in the square; the same for every target."""

    name: ClassVar[str] = "square_pattern"

    steps: int  # of Adam, for each start

    def build(self, preparation: Preparation) -> Assets:
        """Optimises it; see :meth:`attacks.base.Material.build`.

        Returns:
            ``pattern: uint8 (C, H, W)``, 0 outside the square, and ``units: int64 (S,)``, the
            neurons it excites.
        """
        mask = square_mask(*preparation.shape[1:])
        mask = mask.to(preparation.known_model.head.weight.device)
        search = Search(
            shape=preparation.shape,
            render=lambda z: render_levels(mask * z),
            stamp=stamp_added,
            steps=self.steps,
        )
        pattern, units = optimise(search, preparation)
        return {"pattern": pattern, "units": units}


@dataclass(frozen=True, kw_only=True)
class TrojanSquare(Attack):
    """Added square at the lower right, amplified in strength.

    Raises:
        ValueError: steps is no count.
    """

    name: ClassVar[str] = "trojan_square"
    paper: ClassVar[str] = (
        "Trojaning Attack on Neural Networks, NDSS 2018, in the form of arXiv:2110.03735"
    )
    kind: ClassVar[Kind] = "whole-image"
    crafted: ClassVar[bool] = True

    steps: int = 100  # of Adam, for each start

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.name, self.steps)

    def materials(self, target: int, num_classes: int) -> tuple[SquarePattern]:
        """The pattern, optimised on the clean surrogate."""
        del target, num_classes
        return (SquarePattern(steps=self.steps),)

    def prepare(self, preparation: Preparation) -> Assets:
        """``{"pattern": uint8 (C, H, W)}``."""
        (wanted,) = self.materials(preparation.target, preparation.num_classes)
        return {"pattern": preparation.materials[wanted]["pattern"].clone()}

    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """clip(x + strength p); see :meth:`attacks.base.Attack.amplified`."""
        check_call(self, images, strength)
        return add(images, assets["pattern"], strength)
