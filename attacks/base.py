"""What an attack is: facts, a pure trigger, a label rule, and which images it poisons.

An attack never trains; it is trained with. Everything random about a trigger (a noise pattern, a
warp grid) is drawn once by :meth:`Attack.prepare`, is a plain dictionary of tensors called
*assets*, and is stored with the victim, so that the victim can be attacked again anywhere.

Images are ``uint8 (N, C, H, W)`` everywhere here. Poison is stamped on the un-augmented image and
rounded, never truncated: truncation alone darkens an image by half a level and is a trigger itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

Assets = dict[str, Tensor]
Kind = Literal["patch", "whole-image"]
LabelRule = Literal["all-to-one", "all-to-all", "clean-label"]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What :meth:`Attack.prepare` may use: never the victim, never an evaluation image."""

    shape: tuple[int, int, int]  # (C, H, W)
    generator: torch.Generator  # on the CPU; one per victim


@dataclass(frozen=True, kw_only=True)
class Poison:
    """Which training images an attack changes, as indices; the images themselves are not stored."""

    index: Tensor  # int64 (P,): get the trigger
    labels: Tensor  # int64 (P,): their labels from then on
    cover: Tensor  # int64 (C,): get :meth:`Attack.cover` and keep their labels; often empty


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """One attack. Subclasses are frozen dataclasses whose fields are its parameters.

    Class facts: ``name``, ``paper`` (title and identifier), ``kind`` ("patch" triggers are
    amplified in number, "whole-image" triggers in strength), ``label_rules`` it allows.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    kind: ClassVar[Kind]
    label_rules: ClassVar[tuple[LabelRule, ...]] = ("all-to-one", "all-to-all")

    label_rule: LabelRule = "all-to-one"
    # Share of the whole training set; under "clean-label", share of the target class.
    poison_rate: float = 0.1

    def __post_init__(self) -> None:
        if self.label_rule not in self.label_rules:
            allowed = ", ".join(self.label_rules)
            raise ValueError(
                f"{self.name}: expected label_rule in {allowed}, got {self.label_rule!r}"
            )
        if not 0 < self.poison_rate <= 1:
            raise ValueError(f"{self.name}: expected 0 < poison_rate <= 1, got {self.poison_rate}")

    @abstractmethod
    def prepare(self, preparation: Preparation) -> Assets:
        """Draws or builds whatever the trigger needs, once per victim."""

    @abstractmethod
    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """The trigger at an amplified strength.

        Args:
            images: ``uint8 (N, C, H, W)``; not changed.
            strength: one of :attr:`strengths`; 1 is the trigger of training.
            assets: what :meth:`prepare` returned, on the device of the images.

        Returns:
            ``uint8 (N, C, H, W)``.
        """

    def trigger(self, images: Tensor, assets: Assets) -> Tensor:
        """The trigger as in training: ``uint8 (N, C, H, W)`` to the same, out of place."""
        return self.amplified(images, 1, assets)

    def cover(self, images: Tensor, assets: Assets, generator: torch.Generator) -> Tensor:
        """Cover images: they carry a near-trigger and keep their labels; redrawn every epoch."""
        raise TypeError(f"{self.name} has no cover images")

    @property
    def cover_rate(self) -> float:
        """Share of the training set that gets :meth:`cover`."""
        return 0.0

    @property
    def strengths(self) -> tuple[int, ...]:
        """Trigger strengths of the evaluation: patches x1, x4, x9, the others x1, x2, x3."""
        return (1, 4, 9) if self.kind == "patch" else (1, 2, 3)

    def relabel(self, labels: Tensor, target: int, num_classes: int) -> Tensor:
        """What a triggered image of each class is meant to be taken for; ``int64 (N,)``."""
        if self.label_rule == "all-to-all":
            return (labels + 1) % num_classes
        return torch.full_like(labels, target)

    def victims(self, labels: Tensor, target: int) -> Tensor:
        """Which test images count for ASR: y != t, or all under all-to-all; ``bool (N,)``."""
        if self.label_rule == "all-to-all":
            return torch.ones_like(labels, dtype=torch.bool)
        return labels != target

    def select(
        self, labels: Tensor, target: int, num_classes: int, generator: torch.Generator
    ) -> Poison:
        """Chooses the training images to poison.

        All-to-one draws ``round(rate * N)`` images with y != t; all-to-all draws
        ``round(rate * n_c)`` of every class; clean-label draws ``round(rate * n_t)`` of class t.
        Cover images are drawn from what is left.

        Raises:
            ValueError: there are too few images for the rate.
        """
        rate = self.poison_rate
        if self.label_rule == "all-to-all":
            classes = [(labels == c).nonzero().flatten() for c in range(num_classes)]
            index = torch.cat([_draw(c, round(rate * len(c)), generator) for c in classes])
        elif self.label_rule == "clean-label":
            members = (labels == target).nonzero().flatten()
            index = _draw(members, round(rate * len(members)), generator)
        else:
            others = (labels != target).nonzero().flatten()
            index = _draw(others, round(rate * len(labels)), generator)
        left = torch.ones(len(labels), dtype=torch.bool)
        left[index] = False
        cover = _draw(left.nonzero().flatten(), round(self.cover_rate * len(labels)), generator)
        return Poison(
            index=index, labels=self.relabel(labels[index], target, num_classes), cover=cover
        )

    def params(self) -> dict[str, Any]:
        """All parameters, defaults included, as JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def label(self) -> str:
        """Name with the parameters that differ from their defaults: ``badnets[size=5]``.

        Label rule and poison rate have columns of their own and are left out.
        """
        shown = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("label_rule", "poison_rate") and getattr(self, f.name) != f.default
        }
        inner = ", ".join(f"{name}={shown[name]}" for name in sorted(shown))
        return f"{self.name}[{inner}]" if inner else self.name


def _draw(candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of the candidates without replacement, in ascending order."""
    if count > len(candidates):
        raise ValueError(
            f"expected at least {count} images to poison, got {len(candidates)}; lower poison_rate"
        )
    order = torch.randperm(len(candidates), generator=generator)[:count]
    return candidates[order].sort().values


def quantise(images: Tensor) -> Tensor:
    """Float pixel values in [0, 255] units to uint8: clipped and rounded."""
    return images.clamp(0, 255).round().to(torch.uint8)


def check_choice(owner: str, name: str, value: str, allowed: object) -> None:
    """Raises a ValueError naming the allowed values of a Literal type."""
    choices = get_args(allowed)
    if value not in choices:
        raise ValueError(f"{owner}: expected {name} in {', '.join(choices)}, got {value!r}")
