"""L2-invisible: a faint added pattern of bounded L2 norm excites chosen neurons of a clean model.

Paper: Li, Zhao, Yu, Xue, Kaafar and Zhu, "Invisible Backdoor Attacks Against Deep Neural Networks",
arXiv:1909.02742; settings from I-BAU (arXiv:2110.03735) and its group's published trigger.

Differences from the paper:

1. The perturbation is not negative, T(x) = clip(x + p) with p >= 0: the published trigger is an
   unsigned picture, in which a negative half would have been lost. Its norm (3.2, of images in
   [0, 1]) and peak (68 of 255) are the bounds here.
2. Every pattern tried has exactly that norm: free parameters are scaled to it, and the gradient
   goes through the scaling. The paper has a regularisation with a weight of its own.
3. Neurons, steps and starts are those of the Trojan square; the paper drives chosen neurons to a
   multiple of their usual activation.
4. The norm is not scaled with the image: 3.2 is fainter on larger images.
5. The default share is 10% of the training set, as for all attacks here; I-BAU poisons 20%.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

from torch import Tensor

from attacks._crafted import add, check_steps
from attacks._neurons import Search, optimise, render_levels, stamp_added
from attacks._patterns import check_call
from attacks.base import Assets, Attack, Kind, Material, Preparation

PEAK: Final = 68 / 255  # of the published trigger


def onto_sphere(z: Tensor, radius: float) -> Tensor:
    """clip(s z, 0, 1) with the scale s that gives it a norm.

    The norm grows with s, so that s is found by halving an interval. The gradient knows that a
    longer z is scaled down by as much: it points along the sphere.

    Args:
        z: float of any shape; negative entries become 0.
        radius: the wanted norm. It cannot be reached with fewer than radius^2 positive entries,
            which then all become 1, or nearly.

    Returns:
        Float of the shape of z, in [0, 1].
    """
    positive = z.clamp(min=0)
    fixed = positive.detach()
    low, high = 0.0, 1.0
    while float((high * fixed).clamp(max=1).norm()) < radius and high < 2**40:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        if float((middle * fixed).clamp(max=1).norm()) < radius:
            low = middle
        else:
            high = middle
    length = positive.norm().clamp(min=1e-12)
    scale: Tensor = low * length.detach() / length
    return (scale * positive).clamp(max=1)


@dataclass(frozen=True, kw_only=True)
class L2Perturbation(Material):
    """What is added to the image; the same for every target."""

    name: ClassVar[str] = "l2_perturbation"

    norm: float  # of images in [0, 1]
    steps: int  # of Adam, for each start

    def build(self, preparation: Preparation) -> Assets:
        """Optimises it; see :meth:`attacks.base.Material.build`.

        Returns:
            ``pattern: uint8 (C, H, W)``, and ``units: int64 (S,)``, the neurons it excites.
        """
        search = Search(
            shape=preparation.shape,
            render=lambda z: render_levels(PEAK * onto_sphere(z, self.norm / PEAK)),
            stamp=stamp_added,
            steps=self.steps,
            project=lambda z: z.clamp(min=0),
        )
        pattern, units = optimise(search, preparation)
        return {"pattern": pattern, "units": units}


@dataclass(frozen=True, kw_only=True)
class L2Invisible(Attack):
    """Faint pattern over the whole image, amplified in strength.

    Raises:
        ValueError: norm is not positive, or steps is no count.
    """

    name: ClassVar[str] = "l2_invisible"
    paper: ClassVar[str] = (
        "Invisible Backdoor Attacks Against Deep Neural Networks, arXiv:1909.02742"
    )
    kind: ClassVar[Kind] = "whole-image"
    crafted: ClassVar[bool] = True

    norm: float = 3.2  # of images in [0, 1] (measured on the published trigger)
    steps: int = 100  # of Adam, for each start

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.norm > 0:
            raise ValueError(f"{self.name}: expected norm > 0, got {self.norm}")
        check_steps(self.name, self.steps)

    def check(
        self, labels: Tensor, target: int, num_classes: int, shape: tuple[int, int, int]
    ) -> None:
        """Also that the norm can be reached; see :meth:`attacks.base.Attack.check`."""
        super().check(labels, target, num_classes, shape)
        largest = PEAK * math.sqrt(math.prod(shape))
        if self.norm > largest:
            raise ValueError(
                f"{self.name}: expected norm <= {largest:.2f} for images {shape}, with no pixel "
                f"above {255 * PEAK:.0f} of 255, got {self.norm}"
            )

    def materials(self, target: int, num_classes: int) -> tuple[L2Perturbation]:
        """The perturbation, optimised on the clean surrogate."""
        del target, num_classes
        # Float: 3 and 3.0 from a command line are equal, but not in the hash of a recipe.
        return (L2Perturbation(norm=float(self.norm), steps=self.steps),)

    def prepare(self, preparation: Preparation) -> Assets:
        """``{"pattern": uint8 (C, H, W)}``."""
        (wanted,) = self.materials(preparation.target, preparation.num_classes)
        return {"pattern": preparation.materials[wanted]["pattern"].clone()}

    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """clip(x + strength p); see :meth:`attacks.base.Attack.amplified`."""
        check_call(self, images, strength)
        return add(images, assets["pattern"], strength)
