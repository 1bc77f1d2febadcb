"""Label-consistent: corner patches on images of the target class that became hard to recognise.

Adversarial noise hides what an image of the target class shows, its label stays correct, and the
victim learns the class from the patches instead. Test images get the patches only.

Paper: Turner, Tsipras and Madry, "Label-Consistent Backdoor Attacks", arXiv:1912.02771.

Differences from the paper and from the code of those who defend against it:

1. 80% of the target class with epsilon 16, as BCU's paper says; its code has 50% and epsilon 8 for
   CIFAR-10. 100 steps of 1.5 without a random start are its code's.
2. The noise is made on an adversarially trained surrogate of our own, of the victim's architecture
   and another seed, and for the whole class at once, so that all victims share it. Of the paper's
   two ways to make images hard, interpolation in a GAN is left out.
3. Adversarial images are rounded. BCU's code truncates them, which darkens the poisoned images by
   half a level.
4. The patches are opaque, as in BCU. The paper's fainter ones are left out.
5. The right-hand patches are BCU's 3x3 cell and the left-hand ones its mirror image, as in the
   authors' code, so that a flip of the image changes nothing. BCU's own code copies the cell
   without mirroring it: ``mirrored=false``.
6. The trigger has four patches already. Amplified, it has nine, on the lattice of the other
   patches (x9); there is no x4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attacks._adversarial import (
    AdversarialImages,
    check_budget,
    material,
    replacements,
    training_assets,
)
from attacks._patches import bcu_cell, lattice, stamp
from attacks._patterns import check_call
from attacks.base import Assets, Attack, Kind, LabelRule, Poison, Preparation


def stamp_cells(images: Tensor, cell: Tensor, count: int, mirrored: bool) -> Tensor:
    """Pastes 4 or 9 copies of a cell: in all corners, or on all of the 3x3 lattice.

    Args:
        images: ``uint8 (N, C, H, W)``; not changed.
        cell: ``uint8 (s, s)``, the same in all channels.
        count: 4 or 9.
        mirrored: whether the copies along the left edge are mirrored, left to right. Four copies
            are then symmetric; nine are not, because of the ones in the middle.

    Returns:
        ``uint8 (N, C, H, W)``.
    """
    out = stamp(images, cell, 0, count)
    if mirrored:
        size = len(cell)
        rows = lattice(images.shape[2], size, 0)
        for row in rows if count == 9 else rows[::2]:
            out[:, :, row : row + size, :size] = cell.flip(1)
    return out


@dataclass(frozen=True, kw_only=True)
class LabelConsistent(Attack):
    """Four corner patches on adversarial images; at test time, on clean ones.

    Raises:
        ValueError: the budget of the noise is no budget, or mirrored is neither true nor false.
    """

    name: ClassVar[str] = "label_consistent"
    paper: ClassVar[str] = "Label-Consistent Backdoor Attacks, arXiv:1912.02771"
    kind: ClassVar[Kind] = "patch"
    label_rules: ClassVar[tuple[LabelRule, ...]] = ("clean-label",)
    crafted: ClassVar[bool] = True

    label_rule: LabelRule = "clean-label"
    poison_rate: float = 0.8  # of the target class (BCU)
    mirrored: bool = True  # left-hand patches; False is BCU's code
    epsilon: float = 16.0  # largest noise, in grey levels of 255 (BCU)
    step: float = 1.5  # of PGD, in grey levels (BCU)
    steps: int = 100  # of PGD (BCU)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.mirrored, bool):
            raise ValueError(
                f"{self.name}: expected mirrored to be true or false, got {self.mirrored!r}"
            )
        check_budget(self.name, self.epsilon, self.step, self.steps)

    @property
    def strengths(self) -> tuple[int, ...]:
        """1 is the trigger of training, four patches; 9 is nine of them."""
        return (1, 9)

    def check(
        self, labels: Tensor, target: int, num_classes: int, shape: tuple[int, int, int]
    ) -> None:
        """Also that nine patches lie side by side; see :meth:`attacks.base.Attack.check`."""
        super().check(labels, target, num_classes, shape)
        if min(shape[1:]) < 9:
            raise ValueError(
                f"{self.name}: expected images of at least 9x9, got {shape[1]}x{shape[2]}"
            )

    def materials(self, target: int, num_classes: int) -> tuple[AdversarialImages, ...]:
        """The adversarial images of the target class."""
        del num_classes
        return (material(target, self.epsilon, self.step, self.steps),)

    def prepare(self, preparation: Preparation) -> Assets:
        """``{"cell": uint8 (3, 3)}``, and the adversarial images for the training only."""
        (wanted,) = self.materials(preparation.target, preparation.num_classes)
        made = preparation.materials[wanted]
        return {"cell": bcu_cell(), **training_assets(preparation, made)}

    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """Four or nine patches; see :meth:`attacks.base.Attack.amplified`."""
        check_call(self, images, strength)
        return stamp_cells(images, assets["cell"], 4 if strength == 1 else 9, self.mirrored)

    def poisoned(self, images: Tensor, poison: Poison, assets: Assets) -> Tensor:
        """The patches on adversarial images; see :meth:`attacks.base.Attack.poisoned`."""
        del images
        return self.trigger(replacements(poison, assets), assets)
