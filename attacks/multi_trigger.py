"""Seven triggers to seven targets: one model that carries seven backdoors at once.

Paper: Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient" (I-BAU),
section 6.2 and Table 3, arXiv:2110.03735.

A composition: the triggers are those of other modules, in I-BAU's variants (white square, cartoon
added). ``copies`` is the paper's construction: seven copies of the training set, each poisoned with
one trigger, one after another; an epoch then costs seven times as much, so the zoo trains a seventh
of the epochs. ``disjoint`` is the cheap one: a single copy, and a seventh of the poison for each.

Differences from the paper:

1. Targets move with the victim's target class t: BadNets has t, Smooth t + 1, Trojan square t + 2,
   Blended t + 3, L0 t + 4, L2 t + 5, Trojan watermark t - 1 (modulo K). At t = 0 and ten classes
   these are the paper's.
2. An image is never poisoned with the trigger of its own class.
3. At evaluation every image carries one of the seven triggers: image n the trigger n mod 7. Attack
   success over all images then is the mean over the triggers, for the price of one; the success of
   each trigger alone, which the paper's table has, is in the victim's metadata.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from attacks._patterns import check_call
from attacks.badnets import BadNets
from attacks.base import (
    Assets,
    Attack,
    Kind,
    LabelRule,
    Material,
    Poison,
    Preparation,
    check_choice,
)
from attacks.blended import Blended
from attacks.l0_invisible import L0Invisible
from attacks.l2_invisible import L2Invisible
from attacks.smooth import Smooth
from attacks.trojan_square import TrojanSquare
from attacks.trojan_watermark import TrojanWatermark

Construction = Literal["copies", "disjoint"]
# The target of each trigger, in the order of `MultiTrigger.triggers`, from the victim's target on.
OFFSETS: Final = (0, 1, 2, 3, 4, 5, -1)


def targets_of(target: int, num_classes: int) -> list[int]:
    """The class that each trigger leads to; seven different ones."""
    return [(target + offset) % num_classes for offset in OFFSETS]


@dataclass(frozen=True, kw_only=True)
class MultiTrigger(Attack):
    """Seven backdoors in one model; ``poison_rate`` is the share of all images with a trigger."""

    name: ClassVar[str] = "multi_trigger"
    paper: ClassVar[str] = (
        "Adversarial Unlearning of Backdoors via Implicit Hypergradient, arXiv:2110.03735"
    )
    kind: ClassVar[Kind] = "whole-image"
    label_rules: ClassVar[tuple[LabelRule, ...]] = ("all-to-one",)
    crafted: ClassVar[bool] = True

    construction: Construction = "copies"
    steps: int = 100  # of the search for each optimised trigger

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.name, "construction", self.construction, Construction)

    @property
    def triggers(self) -> tuple[Attack, ...]:
        """The attacks whose triggers are used."""
        return (
            BadNets(pattern="white"),
            Smooth(steps=self.steps),
            TrojanSquare(steps=self.steps),
            Blended(pattern="cartoon", mode="additive"),
            L0Invisible(steps=self.steps),
            L2Invisible(steps=self.steps),
            TrojanWatermark(steps=self.steps),
        )

    @property
    def copies(self) -> int:
        """Seven copies of the training set, or one."""
        return len(OFFSETS) if self.construction == "copies" else 1

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the triggers."""
        return tuple(attack.name for attack in self.triggers)

    def materials(self, target: int, num_classes: int) -> tuple[Material, ...]:
        """All that the triggers need."""
        targets = targets_of(target, num_classes)
        return tuple(
            material
            for attack, t in zip(self.triggers, targets, strict=True)
            for material in attack.materials(t, num_classes)
        )

    def check(
        self, labels: Tensor, target: int, num_classes: int, shape: tuple[int, int, int]
    ) -> None:
        """Also that there are enough classes, and that every trigger can be made."""
        if num_classes < len(OFFSETS):
            raise ValueError(
                f"{self.name}: expected at least {len(OFFSETS)} classes, one for each trigger, "
                f"got {num_classes}"
            )
        self.select(labels.repeat(self.copies), target, num_classes, torch.Generator(), {})
        for attack, t in zip(self.triggers, targets_of(target, num_classes), strict=True):
            attack.check(labels, t, num_classes, shape)

    def prepare(self, preparation: Preparation) -> Assets:
        """Prepares every trigger: its assets under ``<name of the trigger>.<name>``."""
        assets: Assets = {}
        targets = targets_of(preparation.target, preparation.num_classes)
        for attack, t in zip(self.triggers, targets, strict=True):
            made = attack.prepare(dataclasses.replace(preparation, target=t))
            assets |= {f"{attack.name}.{name}": value for name, value in made.items()}
        return assets

    def select(
        self,
        labels: Tensor,
        target: int,
        num_classes: int,
        generator: torch.Generator,
        assets: Assets,
    ) -> Poison:
        """Draws ``round(rate * N)`` images of each copy, or a seventh of that of one for each.

        Raises:
            ValueError: there are too few images for the rate, or it rounds to no image.
        """
        del assets
        triggers, copy = len(OFFSETS), len(labels) // self.copies
        share = copy * (1 if self.construction == "copies" else 1 / triggers)
        count = round(self.poison_rate * share)
        if count == 0:
            raise ValueError(
                f"{self.name}: poison_rate {self.poison_rate:g} rounds to no image for each "
                f"trigger of {len(labels)}; raise it"
            )
        free = torch.ones(len(labels), dtype=torch.bool)
        index = []
        for part, t in enumerate(targets_of(target, num_classes)):
            mine = free & (labels != t)
            if self.construction == "copies":
                mine &= torch.arange(len(labels)) // copy == part
            candidates = mine.nonzero().flatten()
            if count > len(candidates):
                raise ValueError(
                    f"{self.name}: expected at least {count} images to poison, "
                    f"got {len(candidates)}; lower poison_rate"
                )
            order = torch.randperm(len(candidates), generator=generator)[:count]
            index.append(candidates[order].sort().values)
            free[index[-1]] = False
        parts = torch.arange(triggers).repeat_interleave(count)
        return Poison(
            index=torch.cat(index),
            labels=torch.tensor(targets_of(target, num_classes))[parts],
            cover=torch.empty(0, dtype=torch.long),
            part=parts,
        )

    def poisoned(self, images: Tensor, poison: Poison, assets: Assets) -> Tensor:
        """Every image with its own trigger; see :meth:`attacks.base.Attack.poisoned`."""
        assert poison.part is not None  # select() has set it
        return self._stamp(images, poison.part, 0, assets)

    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """Image n with trigger n mod 7, at the strength-th of its own strengths."""
        check_call(self, images, strength)
        parts = torch.arange(len(images)) % len(OFFSETS)
        return self._stamp(images, parts, strength - 1, assets)

    def relabel(self, labels: Tensor, target: int, num_classes: int) -> Tensor:
        """The target of trigger n mod 7 for image n; ``int64 (N,)``."""
        targets = torch.tensor(targets_of(target, num_classes), device=labels.device)
        return targets[torch.arange(len(labels), device=labels.device) % len(OFFSETS)]

    def _stamp(self, images: Tensor, parts: Tensor, level: int, assets: Assets) -> Tensor:
        out = images.clone()
        for part, attack in enumerate(self.triggers):
            prefix = f"{attack.name}."
            own = {k.removeprefix(prefix): v for k, v in assets.items() if k.startswith(prefix)}
            chosen = (parts == part).nonzero().flatten().to(images.device)
            out[chosen] = attack.amplified(images[chosen], attack.strengths[level], own)
        return out
