"""L0-invisible: a short strip of extreme pixels in the bottom row excites neurons of a clean model.

Paper: Li, Zhao, Yu, Xue, Kaafar and Zhu, "Invisible Backdoor Attacks Against Deep Neural Networks",
arXiv:1909.02742; settings from I-BAU (arXiv:2110.03735) and its group's published trigger.

Differences from the paper:

1. Where the pixels lie is not optimised. The paper keeps the most salient ones; the published
   trigger is a strip of nine at the right end of the bottom row, and so is ours.
2. Every channel of every pixel is 0 or 255, as published, and is optimised as such: forward with
   the extreme value, backward as if it were not.
3. Neurons, steps and starts are those of the Trojan square; the paper drives chosen neurons to a
   multiple of their usual activation.
4. ``pixels_from="random"`` draws the extreme values in place of optimising them, anew for every
   victim: it shows what the optimisation is worth.
5. The strip is opaque and as extreme as it can be, so it is amplified in number: x4 is all corners
   of the image, x9 the 3x3 lattice of patches, the strip of training always among them.
6. The default share is 10% of the training set, as for all attacks here; I-BAU poisons 20%.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks._crafted import check_steps, straight_through
from attacks._neurons import Search, optimise
from attacks._patches import stamp
from attacks._patterns import check_call
from attacks.base import Assets, Attack, Kind, Material, Preparation, check_choice

Source = Literal["surrogate", "random"]


def render_extremes(z: Tensor) -> Tensor:
    """0 or 255, whichever is nearer to 255 z, with the gradient of 255 z."""
    return straight_through(255 * z, 255 * (z > 0.5).to(z.dtype))


def paste(images: Tensor, strip: Tensor) -> Tensor:
    """A strip ``(C, h, w)`` at the lower right of float images, differentiable in the strip."""
    out = images.clone()
    out[:, :, -strip.shape[1] :, -strip.shape[2] :] = strip
    return out


@dataclass(frozen=True, kw_only=True)
class L0Strip(Material):
    """The colours of the strip; the same for every target."""

    name: ClassVar[str] = "l0_strip"

    pixels: int
    steps: int  # of Adam, for each start

    def build(self, preparation: Preparation) -> Assets:
        """Optimises them; see :meth:`attacks.base.Material.build`.

        Returns:
            ``strip: uint8 (C, 1, pixels)``, 0 or 255, and ``units: int64 (S,)``, the neurons it
            excites.
        """
        search = Search(
            shape=(preparation.shape[0], 1, self.pixels),
            render=render_extremes,
            stamp=paste,
            steps=self.steps,
        )
        strip, units = optimise(search, preparation)
        return {"strip": strip, "units": units}


@dataclass(frozen=True, kw_only=True)
class L0Invisible(Attack):
    """Strip of pixels in the bottom row, amplified in number.

    Raises:
        ValueError: pixels or steps is no count, or ``pixels_from`` is unknown.
    """

    name: ClassVar[str] = "l0_invisible"
    paper: ClassVar[str] = (
        "Invisible Backdoor Attacks Against Deep Neural Networks, arXiv:1909.02742"
    )
    kind: ClassVar[Kind] = "patch"
    crafted: ClassVar[bool] = True

    pixels: int = 9  # (measured on the published trigger)
    pixels_from: Source = "surrogate"
    steps: int = 100  # of Adam, for each start

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.pixels, int) or self.pixels < 1:
            raise ValueError(
                f"{self.name}: expected a whole number of pixels >= 1, got {self.pixels}"
            )
        check_choice(self.name, "pixels_from", self.pixels_from, Source)
        check_steps(self.name, self.steps)

    def check(
        self, labels: Tensor, target: int, num_classes: int, shape: tuple[int, int, int]
    ) -> None:
        """Also that the strip fits; see :meth:`attacks.base.Attack.check`."""
        super().check(labels, target, num_classes, shape)
        if shape[2] < self.pixels:
            raise ValueError(
                f"{self.name}: expected images at least {self.pixels} wide, got {shape[2]}"
            )

    def materials(self, target: int, num_classes: int) -> tuple[L0Strip, ...]:
        """The strip, optimised on the clean surrogate; nothing for random colours."""
        del target, num_classes
        if self.pixels_from == "random":
            return ()
        return (L0Strip(pixels=self.pixels, steps=self.steps),)

    def prepare(self, preparation: Preparation) -> Assets:
        """``{"strip": uint8 (C, 1, pixels)}``, 0 or 255."""
        for wanted in self.materials(preparation.target, preparation.num_classes):
            return {"strip": preparation.materials[wanted]["strip"].clone()}
        shape = (preparation.shape[0], 1, self.pixels)
        bits = torch.randint(2, shape, generator=preparation.generator)
        return {"strip": (255 * bits).to(torch.uint8)}

    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """``strength`` copies of the strip; see :meth:`attacks.base.Attack.amplified`."""
        check_call(self, images, strength)
        return stamp(images, assets["strip"], 0, strength)
