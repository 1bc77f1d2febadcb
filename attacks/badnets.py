"""BadNets: a fixed opaque patch becomes a shortcut to the attacker's label.

Paper: Gu, Dolan-Gavitt and Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning
Model Supply Chain", arXiv:1708.06733.

Differences from the paper and from the code of those who defend against it:

1. The patch is one that a removal paper used, not the paper's own. ``bcu`` (BCU, "Backdoor
   Cleansing with Unlabeled Data") calls itself a checkerboard but has 4 white and 5 black pixels;
   it is kept as it is in their file. ``white`` is I-BAU's 4x4 square, 1 px from the edges.
   ``tile`` is DHBE's alternating tile, for triggers of different sizes.
2. Tiles start with a black corner (DHBE's ``tri1``), but the 1x1 tile is white (``tri2``):
   RandomCrop's zero padding paints the lower right pixel of most *clean* crops black, so a single
   black pixel would be a trigger that contradicts itself.
3. The default share is 10% of the training set, drawn from classes other than the target (BCU's
   code draws from all of them; see :meth:`attacks.base.Attack.select`).
4. ``clean-label`` is a plain patch on images of the target class, without the adversarial noise
   of label-consistent attacks. It is weaker, and a baseline for them.
5. Amplification follows DHBE's text (x4 corners, x9 lattice); their code stamps five patches.
   The lattice keeps the margin of the pattern, so that x1 is the trigger of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks._patches import TILE_SIZES, bcu_cell, stamp, tile
from attacks._patterns import check_call
from attacks.base import Assets, Attack, Kind, LabelRule, Preparation, check_choice

Pattern = Literal["bcu", "white", "tile"]


@dataclass(frozen=True, kw_only=True)
class BadNets(Attack):
    """Opaque patch at the lower right, amplified in number.

    Raises:
        ValueError: ``size`` is missing or not one of ``TILE_SIZES`` for a tile, or given for a
            pattern that has a size of its own.
    """

    name: ClassVar[str] = "badnets"
    paper: ClassVar[str] = (
        "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain, "
        "arXiv:1708.06733"
    )
    kind: ClassVar[Kind] = "patch"
    label_rules: ClassVar[tuple[LabelRule, ...]] = ("all-to-one", "all-to-all", "clean-label")

    pattern: Pattern = "bcu"  # bcu: 3x3, flush; white: 4x4, 1 px from the edges; tile: flush
    size: int | None = None  # pixels; for a tile only, and required there

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.name, "pattern", self.pattern, Pattern)
        if self.pattern == "tile" and self.size not in TILE_SIZES:
            sizes = ", ".join(str(s) for s in TILE_SIZES)
            raise ValueError(f"{self.name}: expected size in {sizes} for a tile, got {self.size}")
        if self.pattern != "tile" and self.size is not None:
            raise ValueError(
                f"{self.name}: size goes with pattern=tile only, got size {self.size} and pattern "
                f"{self.pattern!r}"
            )

    @property
    def margin(self) -> int:
        """Free pixels between the patch and the edges of the image."""
        return 1 if self.pattern == "white" else 0

    def check(
        self, labels: Tensor, target: int, num_classes: int, shape: tuple[int, int, int]
    ) -> None:
        """Also that the patch fits; see :meth:`attacks.base.Attack.check`."""
        super().check(labels, target, num_classes, shape)
        needed = len(self._patch()) + 2 * self.margin
        if min(shape[1:]) < needed:
            raise ValueError(
                f"{self.name}: expected images of at least {needed}x{needed}, "
                f"got {shape[1]}x{shape[2]}"
            )

    def prepare(self, preparation: Preparation) -> Assets:
        """Builds the patch: ``{"patch": uint8 (s, s)}``."""
        del preparation
        return {"patch": self._patch()}

    def _patch(self) -> Tensor:
        if self.pattern == "bcu":
            return bcu_cell()
        if self.pattern == "white":
            return torch.full((4, 4), 255, dtype=torch.uint8)
        assert self.size is not None  # checked by __post_init__
        return tile(self.size)

    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """``strength`` copies of the patch; see :meth:`attacks.base.Attack.amplified`."""
        check_call(self, images, strength)
        return stamp(images, assets["patch"], self.margin, strength)
