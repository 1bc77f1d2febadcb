"""What an attack is: facts, a pure trigger, a label rule, and which images it poisons.

An attack never trains; it is trained with. Everything random or optimised about a trigger (a
noise pattern, a warp grid, pixels found on a surrogate) is made once by :meth:`Attack.prepare`, is
a plain dictionary of tensors called *assets*, and is stored with the victim, so that the victim can
be attacked again anywhere.

What is expensive and the same for many victims is a :class:`Material`: optimised once on a
surrogate (a clean model of its own seed, never a victim), stored, and shared.

Images are ``uint8 (N, C, H, W)`` everywhere here. Poison is stamped on the un-augmented image and
rounded, never truncated: truncation alone darkens an image by half a level and is a trigger itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

Assets = dict[str, Tensor]
Kind = Literal["patch", "whole-image"]
LabelRule = Literal["all-to-one", "all-to-all", "clean-label"]
SurrogateKind = Literal["clean", "robust"]
# Assets under this prefix serve the training only and are not stored with the victim.
TRAINING_ONLY: Final = "train."


class Surrogate(Protocol):
    """A trained classifier as attacks see one; in eval mode, its parameters need no gradient."""

    head: nn.Linear

    def __call__(self, images: Tensor) -> Tensor:
        """``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``; differentiable in the images."""

    def features(self, images: Tensor) -> Tensor:
        """``(N, C, H, W)`` in [0, 1] to the input of the head, ``(N, D)``."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What an attacker works from: training images, never an evaluation image.

    Attributes:
        images: ``uint8 (N, C, H, W)``, clean, on the CPU.
        labels: ``int64 (N,)``.
        rows: ``int64 (N,)``: the row of every image in the data set's whole training part.
        target: the class that triggered images are meant to be taken for; meaningless to a
            :class:`Material`, which names its target itself where it has one.
        num_classes: K.
        generator: on the CPU; one per victim or material.
        model: the surrogate for a :class:`Material`; the clean twin for an attack that starts from
            it; otherwise None. In eval mode, on the device to work on.
        materials: what was built of :meth:`Attack.materials`; empty where there are none.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    target: int
    num_classes: int
    generator: torch.Generator
    model: Surrogate | None = None
    materials: Mapping[Material, Assets] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    @property
    def known_model(self) -> Surrogate:
        """The model; its absence is an error of the caller."""
        assert self.model is not None, "this attack needs a model"
        return self.model


@dataclass(frozen=True, kw_only=True)
class Material(ABC):
    """Something optimised on a surrogate, built once and shared by the victims that need it.

    Subclasses are frozen dataclasses whose fields, JSON values, are all that decides the result
    beside the surrogate. One that depends on the target class has a field for it.
    """

    name: ClassVar[str]
    surrogate: ClassVar[SurrogateKind] = "clean"

    @abstractmethod
    def build(self, preparation: Preparation) -> Assets:
        """Optimises it; ``preparation.model`` is the surrogate, on the device to work on.

        Returns:
            Tensors on the CPU.
        """

    def params(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Poison:
    """Which training images an attack changes, as indices; the images themselves are not stored.

    With :attr:`Attack.copies` > 1, indices go through that many copies of the training set.
    """

    index: Tensor  # int64 (P,): get the trigger
    labels: Tensor  # int64 (P,): their labels from then on
    cover: Tensor  # int64 (C,): get :meth:`Attack.cover` and keep their labels; often empty
    part: Tensor | None = None  # int64 (P,): which of :attr:`Attack.parts`, where there are any


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How an attack that starts from the clean twin goes on training it."""

    epochs: int
    lr: float
    head_only: bool  # everything but the head stays bit-identical
    momentum: float = 0.9
    batch_size: int = 128


class Companion(Protocol):
    """Something that is trained together with the classifier (input-aware generators)."""

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Replaces cross-entropy; images ``(B, C, H, W)`` augmented, in [0, 1]."""

    def step(self) -> None:
        """Called after the backward pass and the classifier's own step."""

    def assets(self) -> Assets:
        """The trigger as trained, on the CPU; replaces what :meth:`Attack.prepare` returned."""

    def state(self) -> Assets:
        """Everything needed to go on after an interruption."""

    def load_state(self, state: Assets) -> None:
        """The inverse of :meth:`state`."""


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
    crafted: ClassVar[bool] = False  # whether :meth:`materials` returns any

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

    def materials(self, target: int, num_classes: int) -> tuple[Material, ...]:
        """What must be optimised on a surrogate before :meth:`prepare` can be called."""
        del target, num_classes
        return ()

    @property
    def tuning(self) -> Tuning | None:
        """For attacks that edit a trained model: how the clean twin is trained further."""
        return None

    @property
    def copies(self) -> int:
        """How many copies of the training set the poisoned one consists of."""
        return 1

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the triggers of an attack that has several; empty for most.

        Image n of a call of :meth:`amplified` or :meth:`relabel` belongs to part n modulo their
        number.
        """
        return ()

    def check(
        self, labels: Tensor, target: int, num_classes: int, shape: tuple[int, int, int]
    ) -> None:
        """Whether a training set can be attacked; called before anything is trained.

        Args:
            labels: ``int64 (N,)`` of the training images.
            target: the target class.
            num_classes: K.
            shape: (C, H, W) of the images.

        Raises:
            ValueError: it cannot; the message says why.
        """
        del shape
        Attack.select(self, labels, target, num_classes, torch.Generator(), {})

    @abstractmethod
    def prepare(self, preparation: Preparation) -> Assets:
        """Draws or builds whatever the trigger needs, once per victim.

        Assets whose name starts with :data:`TRAINING_ONLY` are not stored with the victim.
        """

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

    def poisoned(self, images: Tensor, poison: Poison, assets: Assets) -> Tensor:
        """The images that are trained on in place of ``images``.

        Args:
            images: ``uint8 (P, C, H, W)``: the training images at ``poison.index``.
            poison: what :meth:`select` returned.
            assets: what :meth:`prepare` returned.

        Returns:
            ``uint8 (P, C, H, W)``; the triggered images, unless an attack says otherwise.
        """
        del poison
        return self.trigger(images, assets)

    def cover(self, images: Tensor, assets: Assets, generator: torch.Generator) -> Tensor:
        """Cover images: they carry a near-trigger and keep their labels; redrawn every epoch."""
        raise TypeError(f"{self.name} has no cover images")

    def companion(
        self, preparation: Preparation, assets: Assets, device: torch.device
    ) -> Companion | None:
        """What is trained together with the classifier, None for most attacks."""
        del preparation, assets, device
        return None

    @property
    def cover_rate(self) -> float:
        """Share of the training set that gets :meth:`cover`."""
        return 0.0

    @property
    def strengths(self) -> tuple[int, ...]:
        """Strengths of the evaluation: x1, x4, x9 for a single patch, the others x1, x2, x3."""
        return (1, 4, 9) if self.kind == "patch" else (1, 2, 3)

    @property
    def min_asr(self) -> float:
        """Attack success below which a victim is not admitted; all-to-all: as a share of ACC."""
        return 0.9

    @property
    def max_acc_loss(self) -> float:
        """Accuracy below the clean twin's, above which a victim is not admitted."""
        return 0.02

    def relabel(self, labels: Tensor, target: int, num_classes: int) -> Tensor:
        """What a triggered image of each class is meant to be taken for; ``int64 (N,)``.

        Where that is the image's own class, it does not count for attack success.
        """
        if self.label_rule == "all-to-all":
            return (labels + 1) % num_classes
        return torch.full_like(labels, target)

    def select(
        self,
        labels: Tensor,
        target: int,
        num_classes: int,
        generator: torch.Generator,
        assets: Assets,
    ) -> Poison:
        """Chooses the training images to poison.

        All-to-one draws ``round(rate * N)`` images with y != t; all-to-all draws
        ``round(rate * n_c)`` of every class; clean-label draws ``round(rate * n_t)`` of class t.
        Cover images are drawn from what is left.

        Raises:
            ValueError: there are too few images for the rate, or it rounds to no image.
        """
        del assets
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
        if len(index) == 0:
            raise ValueError(
                f"{self.name}: poison_rate {rate:g} rounds to no image of {len(labels)}; raise it"
            )
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
        """Name with the parameters that differ from their defaults: ``blended[alpha=0.1]``.

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
