"""Blended: one fixed picture is faintly mixed into the whole input.

Paper: Chen, Liu, Li, Lu and Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data
Poisoning", arXiv:1712.05526.

Differences from the paper and from the code of those who defend against it:

1. ``noise`` is lossless uniform noise. BCU describes the same, but its file is a JPEG, whose
   compression makes the noise narrower and correlated across channels.
2. ``cartoon`` is drawn by our code in place of Hello Kitty: no third-party picture is shipped.
3. ``additive`` is the form found in the code around I-BAU: x + alpha p without the factor
   (1 - alpha), which brightens every image. ``convex`` is the paper's.
4. Results are rounded. A truncating cast darkens poisoned images by 0.4 levels on average at
   alpha 0.2, which is a trigger of its own.
5. alpha is the same at training and test time, and 10% of the training set is poisoned, as in
   BCU; the paper poisons far fewer images and strengthens the test trigger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks._patterns import cartoon, check_call, in_chunks
from attacks.base import Assets, Attack, Kind, Preparation, check_choice, quantise

Pattern = Literal["noise", "cartoon"]
Mode = Literal["convex", "additive"]


def blend(images: Tensor, picture: Tensor, alpha: float, mode: Mode) -> Tensor:
    """Mixes a picture into images: (1 - alpha) x + alpha p, or x + alpha p.

    Args:
        images: ``uint8 (N, C, H, W)``; not changed.
        picture: ``uint8 (C, H, W)``.
        alpha: weight of the picture, in [0, 1].
        mode: "convex" or "additive".

    Returns:
        ``uint8 (N, C, H, W)``, clipped to [0, 255] and rounded.
    """
    x, p = images.float(), picture.float()
    # Convex as x + alpha (p - x): exact where x = p, at alpha 0 and at alpha 1.
    return quantise(x + alpha * (p - x) if mode == "convex" else x + alpha * p)


@dataclass(frozen=True, kw_only=True)
class Blended(Attack):
    """A picture over the whole image, amplified in opacity.

    Raises:
        ValueError: alpha is outside (0, 1], or pattern or mode is unknown.
    """

    name: ClassVar[str] = "blended"
    paper: ClassVar[str] = (
        "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning, arXiv:1712.05526"
    )
    kind: ClassVar[Kind] = "whole-image"

    pattern: Pattern = "noise"
    mode: Mode = "convex"
    alpha: float = 0.2  # weight of the picture, in (0, 1] (BCU)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.name, "pattern", self.pattern, Pattern)
        check_choice(self.name, "mode", self.mode, Mode)
        if not 0 < self.alpha <= 1:
            raise ValueError(f"{self.name}: expected 0 < alpha <= 1, got {self.alpha}")

    def check(
        self, labels: Tensor, target: int, num_classes: int, shape: tuple[int, int, int]
    ) -> None:
        """Also that a cartoon can be drawn; see :meth:`attacks.base.Attack.check`."""
        super().check(labels, target, num_classes, shape)
        if self.pattern == "cartoon":
            cartoon(shape)

    def prepare(self, preparation: Preparation) -> Assets:
        """Draws the picture: ``{"picture": uint8 (C, H, W)}``."""
        if self.pattern == "cartoon":
            return {"picture": cartoon(preparation.shape)}
        noise = torch.randint(256, preparation.shape, generator=preparation.generator)
        return {"picture": noise.to(torch.uint8)}

    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """Opacity min(1, strength alpha); see :meth:`attacks.base.Attack.amplified`."""
        check_call(self, images, strength)
        alpha = min(1.0, strength * self.alpha)
        return in_chunks(lambda part: blend(part, assets["picture"], alpha, self.mode), images)
