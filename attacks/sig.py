"""SIG: a weak sinusoid across the columns of target-class images, their labels left as they are.

Paper: Barni, Kallas and Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without
Label Poisoning", ICIP 2019, arXiv:1902.11237.

Differences from the paper and from the code of those who defend against it:

1. delta is 20 of 255 with 80% of the target class poisoned, as in BCU; 60 is BCU's value for
   GTSRB, to be asked for explicitly.
2. The frequency is in cycles per image width, as in the paper. DHBE's code takes the same number
   as a period in pixels.
3. Results are rounded. Where the sine should be 0, floating point gives -1e-15, and a truncating
   cast then darkens the whole column by a level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks._patterns import check_call, in_chunks
from attacks.base import Assets, Attack, Kind, LabelRule, Preparation, quantise


def sinusoid(width: int, frequency: int) -> Tensor:
    """sin(2 pi j f / W) for the columns j = 0, ..., W - 1.

    Args:
        width: W, in pixels.
        frequency: f, in cycles per width.

    Returns:
        ``float32 (W,)`` in [-1, 1].
    """
    turns = torch.arange(width, dtype=torch.float64) * frequency / width
    return torch.sin(2 * math.pi * turns).float()


def superimpose(images: Tensor, wave: Tensor, delta: float) -> Tensor:
    """Adds delta times a row of values to every row of every channel.

    Args:
        images: ``uint8 (N, C, H, W)``; not changed.
        wave: ``float32 (W,)`` in [-1, 1].
        delta: amplitude, in grey levels of 255.

    Returns:
        ``uint8 (N, C, H, W)``, clipped to [0, 255] and rounded.
    """
    return quantise(images.float() + delta * wave)


@dataclass(frozen=True, kw_only=True)
class Sig(Attack):
    """A column sinusoid, amplified in amplitude.

    Raises:
        ValueError: delta is outside (0, 255], or frequency is below 1.
    """

    name: ClassVar[str] = "sig"
    paper: ClassVar[str] = (
        "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning, "
        "arXiv:1902.11237"
    )
    kind: ClassVar[Kind] = "whole-image"
    label_rules: ClassVar[tuple[LabelRule, ...]] = ("clean-label",)

    label_rule: LabelRule = "clean-label"
    poison_rate: float = 0.8  # of the target class (BCU)
    delta: float = 20.0  # amplitude in grey levels of 255; 60 for GTSRB (BCU)
    frequency: int = 6  # cycles per image width

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.delta <= 255:
            raise ValueError(f"{self.name}: expected 0 < delta <= 255, got {self.delta}")
        if self.frequency < 1:
            raise ValueError(f"{self.name}: expected frequency >= 1, got {self.frequency}")

    def prepare(self, preparation: Preparation) -> Assets:
        """Samples the sine: ``{"wave": float32 (W,)}``.

        Raises:
            ValueError: the image is too narrow for the frequency; at W = 2 f the sampled sine
                is 0 everywhere.
        """
        width = preparation.shape[2]
        if width <= 2 * self.frequency:
            raise ValueError(
                f"{self.name}: expected images wider than {2 * self.frequency} for "
                f"frequency {self.frequency}, got {width}"
            )
        return {"wave": sinusoid(width, self.frequency)}

    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """Amplitude ``strength`` delta; see :meth:`attacks.base.Attack.amplified`."""
        check_call(self, images, strength)
        delta = strength * self.delta
        return in_chunks(lambda part: superimpose(part, assets["wave"], delta), images)
