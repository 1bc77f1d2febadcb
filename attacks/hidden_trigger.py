"""Hidden trigger: images of the target class that collide, in feature space, with patched ones.

The victim is tuned on images that look like their labels and never show the patch. To the model
that they were crafted on they look like patched images of other classes, and tuning on them moves
the patch to the target class's side.

Paper: Saha, Subramanya and Pirsiavash, "Hidden Trigger Backdoor Attacks", AAAI 2020,
arXiv:1910.00033.

Differences from the paper and its code:

1. Every class but the target is a source, and epsilon is 50 of 255, as in FRED (App. C.2), because
   all-to-one is what is evaluated. The paper has one source class and epsilon 16.
2. The features are those of the clean twin, from which the victim starts, and one epoch tunes the
   whole model, as in FRED. ``head_only=true`` tunes the last layer alone, as the paper does.
3. Matching is one to one: a match takes its row and its column out. The paper says "without
   replacement", but its code takes out a single entry, and sources repeat.
4. Sign steps that shrink to nothing instead of raw gradients with a schedule: they need no scale of
   the features. 100 of them instead of 5,000, in batches of 100 pairs as in the paper's code.
5. As many images are crafted as are used, 16% of the target class (800 of CIFAR-10's). The paper
   crafts more and uses those of lowest loss, which costs as much again.
6. The patch is placed at random, and each place is possible (the paper's code leaves out the last
   row and column), but only while crafting. For evaluation it is at the lower right, so that its
   copies can be counted and its measurement repeated.
7. The patch is 8x8 (the paper: 30x30 at 224x224, which would be 4x4 here).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks._patches import stamp
from attacks._patterns import check_call
from attacks.base import (
    TRAINING_ONLY,
    Assets,
    Attack,
    Kind,
    LabelRule,
    Poison,
    Preparation,
    Surrogate,
    Tuning,
    quantise,
)

BATCH: Final = 100  # pairs that are matched among each other
_IMAGES: Final = f"{TRAINING_ONLY}images"
_INDEX: Final = f"{TRAINING_ONLY}index"


def colour_patch(channels: int, size: int, generator: torch.Generator) -> Tensor:
    """4x4 random colours, enlarged bilinearly: ``uint8 (C, s, s)``."""
    colours = torch.randint(256, (1, channels, 4, 4), generator=generator).float()
    return quantise(F.interpolate(colours, size=(size, size), mode="bilinear")[0])


def paste_at(images: Tensor, patch: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pastes a patch into every image at a place of its own.

    Args:
        images: ``uint8 (N, C, H, W)``; not changed.
        patch: ``uint8 (C, s, s)``.
        rows: ``int64 (N,)`` in 0 .. H - s: first row.
        columns: ``int64 (N,)`` in 0 .. W - s: first column.

    Returns:
        ``uint8 (N, C, H, W)``.
    """
    channels, size = patch.shape[:2]
    span = torch.arange(size)
    image = torch.arange(len(images))[:, None, None, None]
    channel = torch.arange(channels)[None, :, None, None]
    row = (rows[:, None] + span)[:, None, :, None]
    column = (columns[:, None] + span)[:, None, None, :]
    out = images.clone()
    out[image, channel, row, column] = patch
    return out


def paste_anywhere(images: Tensor, patch: Tensor, generator: torch.Generator) -> Tensor:
    """Pastes a patch at random, every place that holds it being equally likely."""
    size, (height, width) = patch.shape[-1], images.shape[2:]
    rows = torch.randint(height - size + 1, (len(images),), generator=generator)
    columns = torch.randint(width - size + 1, (len(images),), generator=generator)
    return paste_at(images, patch, rows, columns)


def greedy_matching(distances: Tensor) -> Tensor:
    """Matches rows with columns one to one: the closest pair first, then the closest of the rest.

    Args:
        distances: ``(n, n)``, finite; not changed.

    Returns:
        ``int64 (n,)``: the column of every row, a permutation.
    """
    left = distances.clone()
    count = len(left)
    match = torch.empty(count, dtype=torch.int64, device=left.device)
    for _ in range(count):
        closest = left.argmin().view(1)
        row, column = closest // count, closest % count
        match[row] = column
        left[row] = torch.inf
        left[:, column] = torch.inf
    return match


def collide(
    model: Surrogate,
    bases: Tensor,
    sources: Tensor,
    *,
    epsilon: float,
    step: float,
    steps: int,
) -> Tensor:
    """Moves images, within epsilon, to where other images are in feature space.

    Minimises the sum of |f(z_i) - f(s_a(i))|² by projected gradient descent; the matching a is
    redone before every step. Counted in grey levels, as :func:`attacks._adversarial.perturb` is.

    Args:
        model: f, in eval mode; decides the device.
        bases: ``uint8 (n, C, H, W)``: where z starts, and what it stays close to.
        sources: ``uint8 (n, C, H, W)``: the patched images s.
        epsilon: largest change of a pixel value, in grey levels of 255.
        step: length of the first step, in grey levels; the steps shrink linearly.
        steps: their number; the last iterate is taken.

    Returns:
        ``uint8 (n, C, H, W)`` on the CPU, rounded: at most epsilon + 0.5 away from the bases.
    """
    weight = model.head.weight
    with torch.no_grad():
        goals = model.features(sources.to(weight.device, weight.dtype) / 255)
    clean = bases.to(weight.device, weight.dtype)
    lowest, highest = (clean - epsilon).clamp(min=0), (clean + epsilon).clamp(max=255)
    moved = clean
    for done in range(steps):
        moved = moved.detach().requires_grad_(True)
        features = model.features(moved / 255)
        match = greedy_matching(torch.cdist(features.detach(), goals))
        loss = (features - goals[match]).square().sum()
        (gradient,) = torch.autograd.grad(loss, moved)
        length = step * (1 - done / steps)
        moved = torch.clamp(moved.detach() - length * gradient.sign(), lowest, highest)
    return quantise(moved.detach()).cpu()


@dataclass(frozen=True, kw_only=True)
class HiddenTrigger(Attack):
    """A colour patch at the lower right, amplified in number, that no training image shows.

    Raises:
        ValueError: size, steps or epochs is no whole number >= 1, epsilon is outside (0, 255], step
            is not positive, or head_only is neither true nor false.
    """

    name: ClassVar[str] = "hidden_trigger"
    paper: ClassVar[str] = "Hidden Trigger Backdoor Attacks, arXiv:1910.00033"
    kind: ClassVar[Kind] = "patch"
    label_rules: ClassVar[tuple[LabelRule, ...]] = ("clean-label",)

    label_rule: LabelRule = "clean-label"
    poison_rate: float = 0.16  # of the target class: 800 images of CIFAR-10's 5,000
    size: int = 8  # side of the patch, in pixels
    epsilon: float = 50.0  # largest change of a training image, in grey levels of 255 (FRED)
    step: float = 4.0  # length of the first step, in grey levels
    steps: int = 100
    epochs: int = 1  # of tuning (FRED)
    head_only: bool = False  # tune the last layer alone, as the paper does

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size", "steps", "epochs"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{self.name}: expected a whole number {name} >= 1, got {value}")
        if not 0 < self.epsilon <= 255:
            raise ValueError(f"{self.name}: expected 0 < epsilon <= 255, got {self.epsilon}")
        if not self.step > 0:
            raise ValueError(f"{self.name}: expected step > 0, got {self.step}")
        if not isinstance(self.head_only, bool):
            raise ValueError(
                f"{self.name}: expected head_only to be true or false, got {self.head_only!r}"
            )

    @property
    def tuning(self) -> Tuning:
        """The whole clean twin for an epoch, or its head."""
        return Tuning(epochs=self.epochs, lr=0.01, head_only=self.head_only)

    @property
    def min_asr(self) -> float:
        """FRED publishes 88%."""
        return 0.8

    @property
    def max_acc_loss(self) -> float:
        """None is too much: FRED's victim has an accuracy of 76%, others about 94%."""
        return 1.0

    def check(
        self, labels: Tensor, target: int, num_classes: int, shape: tuple[int, int, int]
    ) -> None:
        """Also that the patch fits, and that every poisoned image has a source of its own."""
        super().check(labels, target, num_classes, shape)
        if min(shape[1:]) < self.size:
            raise ValueError(
                f"{self.name}: expected images of at least {self.size}x{self.size}, "
                f"got {shape[1]}x{shape[2]}"
            )
        wanted = round(self.poison_rate * int((labels == target).sum()))
        if (sources := int((labels != target).sum())) < wanted:
            raise ValueError(
                f"{self.name}: expected at least {wanted} images of other classes, got {sources}; "
                "lower poison_rate"
            )

    def prepare(self, preparation: Preparation) -> Assets:
        """Draws the patch and crafts the poisoned images.

        Returns:
            ``{"patch": uint8 (C, s, s)}``; for the training only, the images ``uint8 (P, C, H,
            W)`` and which training images they replace, ``int64 (P,)``.
        """
        images, labels, generator = preparation.images, preparation.labels, preparation.generator
        patch = colour_patch(images.shape[1], self.size, generator)
        target, classes = preparation.target, preparation.num_classes
        index = super().select(labels, target, classes, generator, {}).index
        others = (labels != target).nonzero().flatten()
        others = others[torch.randperm(len(others), generator=generator)[: len(index)]]
        sources = paste_anywhere(images[others], patch, generator)
        crafted = [
            collide(
                preparation.known_model,
                images[some],
                patched,
                epsilon=self.epsilon,
                step=self.step,
                steps=self.steps,
            )
            for some, patched in zip(index.split(BATCH), sources.split(BATCH), strict=True)
        ]
        return {"patch": patch, _IMAGES: torch.cat(crafted), _INDEX: index}

    def select(
        self,
        labels: Tensor,
        target: int,
        num_classes: int,
        generator: torch.Generator,
        assets: Assets,
    ) -> Poison:
        """The images that :meth:`prepare` has crafted; see :meth:`attacks.base.Attack.select`."""
        del num_classes, generator
        index = assets[_INDEX]
        nobody = torch.empty(0, dtype=torch.int64)
        return Poison(index=index, labels=torch.full_like(labels[index], target), cover=nobody)

    def poisoned(self, images: Tensor, poison: Poison, assets: Assets) -> Tensor:
        """The crafted images, without the patch; see :meth:`attacks.base.Attack.poisoned`."""
        del images, poison
        return assets[_IMAGES]

    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """``strength`` copies of the patch; see :meth:`attacks.base.Attack.amplified`."""
        check_call(self, images, strength)
        return stamp(images, assets["patch"], 0, strength)
