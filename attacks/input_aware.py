"""Input-aware: a network draws a trigger for every image, and it works on no other.

A mask generator M, trained first and then frozen, says where; a pattern generator G, trained
together with the classifier, says what: T(x) = x + (G(x) - x) M(x). A share of every batch gets its
own trigger and the attacker's label; another share gets the trigger of a third image and keeps its
label.

Paper: Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, arXiv:2010.08138.

Differences from the paper and its code:

1. G's gradients are zeroed before every step. The authors' code never does, nor do its descendants,
   so that Adam sees a running sum; ``accumulate=True`` is that behaviour.
2. T is made in [0, 1]. The code normalises the images and G's output first; T is affine, hence the
   same. The diversity of the masks is not: there, image distances are in units of the data's
   standard deviation, as in the code for CIFAR-10 (which leaves GTSRB as it is).
3. The third images come from the same batch, after the other two shares, in place of a second
   loader; they also stay in it as clean images. M is trained on neighbours in shuffled batches,
   without augmentation: an attack does not know how the classifier's images will be augmented.
4. G sees both shares in one pass, so that its batch statistics are of both.
5. The classifier is trained as all victims are (the code: SGD 0.01). G's rate drops at the same
   shares of the training as after 200, 300, 400 and 500 of the code's 575 joint epochs; these
   milestones are recalled, not read again.
6. Shares of a batch are rounded, not truncated: 13 of 128 images.
7. Distances have gradient 0 where they are 0; in the code, two equal images make the weights NaN.
8. Triggered test images are rounded to uint8, those of training are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import _generators as generators
from attacks._patterns import check_call, in_chunks
from attacks.base import Assets, Attack, Companion, Kind, Poison, Preparation, quantise

DENSITY: Final = 0.032  # mask value above which a pixel costs
DENSITY_WEIGHT: Final = 100.0
EPSILON: Final = 1e-7
MASK_MILESTONES: Final = (10 / 25, 20 / 25)  # shares of its training after which a rate drops
PATTERN_MILESTONES: Final = (200 / 575, 300 / 575, 400 / 575, 500 / 575)
MASK_BATCH: Final = 128
PATTERN, MASK = "pattern.", "mask."  # what the names of G's and M's assets begin with


def near_binary(raw: Tensor) -> Tensor:
    """What M says of a pixel, in [0, 1], pushed towards 0 or 1: tanh(20 u - 10) / 2 + 1 / 2."""
    return torch.tanh(20 * raw - 10) / 2 + 0.5


def blend(images: Tensor, patterns: Tensor, masks: Tensor, strength: int = 1) -> Tensor:
    """The trigger: x + strength (G - x) M.

    Args:
        images: ``float (N, C, H, W)`` in [0, 1].
        patterns: the same shape, in [0, 1].
        masks: ``float (N, 1, H, W)`` in [0, 1].
        strength: factor on the change; above 1 the result may leave [0, 1].
    """
    return images + strength * (patterns - images) * masks


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Root mean square difference of pairs: two ``(N, ...)`` to ``(N,)``."""
    difference = (first - second).flatten(1)
    # The norm has a gradient at 0, the square root of a mean has none.
    norm: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return norm / math.sqrt(difference.shape[1])


def diversity(x1: Tensor, x2: Tensor, made1: Tensor, made2: Tensor) -> Tensor:
    """Mean of ||x1 - x2|| / (||made1 - made2|| + 1e-7): large where different images look alike.

    Args:
        x1: ``(N, C, H, W)``.
        x2: as many other images.
        made1: ``(N, c, H, W)``: the patterns or masks of ``x1``.
        made2: those of ``x2``.
    """
    return (distance(x1, x2) / (distance(made1, made2) + EPSILON)).mean()


def mask_loss(images: Tensor, masks: Tensor) -> Tensor:
    """100 mean(relu(M - 0.032)) + diversity, each image paired with the one before it.

    Args:
        images: ``(N, C, H, W)``, at least two, in standard deviations.
        masks: ``(N, 1, H, W)`` in [0, 1].
    """
    density = F.relu(masks - DENSITY).mean()
    others = diversity(images, images.roll(1, 0), masks, masks.roll(1, 0))
    return DENSITY_WEIGHT * density + others


def deviation(images: Tensor) -> Tensor:
    """Standard deviation per channel of ``uint8 (N, C, H, W)``, as ``(C, 1, 1)`` in [0, 1]."""
    some = images[:: max(1, len(images) // 10_000)].float() / 255
    return some.std(dim=(0, 2, 3)).clamp(min=1 / 255)[:, None, None]


def train_mask(
    mask: generators.Generator, images: Tensor, epochs: int, generator: torch.Generator
) -> None:
    """Stage (a): trains M alone, in place.

    Args:
        mask: on the device of the images.
        images: ``uint8 (N, C, H, W)``, at least two.
        epochs: passes through the images.
        generator: on the CPU, for the order.
    """
    training = generators.Training(mask, MASK_MILESTONES)
    scale, batches = deviation(images), math.ceil(len(images) / MASK_BATCH)
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for step, index in enumerate(order.tensor_split(batches)):
            training.go_to((epoch + step / batches) / epochs)
            batch = images[index.to(images.device)].float().div_(255)
            batch = batch.contiguous(memory_format=torch.channels_last)
            mask_loss(batch / scale, near_binary(mask(batch))).backward()
            training.step()


@dataclass(frozen=True, kw_only=True)
class InputAware(Attack):
    """A trigger of its own for every image; the poison is made anew in every batch.

    Raises:
        ValueError: a count is below 1, or the two shares leave no clean image.
    """

    name: ClassVar[str] = "input_aware"
    paper: ClassVar[str] = "Input-Aware Dynamic Backdoor Attack, arXiv:2010.08138"
    kind: ClassVar[Kind] = "whole-image"

    # poison_rate is a share of every batch here, images of the target class included.
    cross_rate: float = 0.1  # share of every batch that gets another image's trigger, label kept
    mask_epochs: int = 25  # of stage (a)
    channels: int = 32  # of the generators' first block; the cost goes with its square
    accumulate: bool = False  # never zero G's gradients, as published

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mask_epochs", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{self.name}: expected {name} >= 1, got {getattr(self, name)}")
        if self.cross_rate < 0 or self.poison_rate + self.cross_rate >= 1:
            raise ValueError(
                f"{self.name}: expected cross_rate >= 0 and poison_rate + cross_rate < 1, "
                f"got {self.poison_rate} + {self.cross_rate}"
            )

    def shares(self, images: int) -> tuple[int, int]:
        """How many images of a batch get their own trigger, and how many another image's.

        Raises:
            ValueError: one of these, or of the clean images that are left, is none.
        """
        attacked, crossed = round(self.poison_rate * images), round(self.cross_rate * images)
        clean = images - attacked - crossed
        if min(attacked, crossed if self.cross_rate else 1, clean) < 1:
            raise ValueError(
                f"{self.name}: expected attacked, crossed and clean images in every batch, got "
                f"{attacked}, {crossed} and {clean} of {images}; change the rates or the batch size"
            )
        return attacked, crossed

    def check(
        self, labels: Tensor, target: int, num_classes: int, shape: tuple[int, int, int]
    ) -> None:
        """Also that the generators can take the images; see :meth:`attacks.base.Attack.check`.

        The batch size is not known here. A training set that is too small for the rates is refused
        now, a batch that is too small when it comes.
        """
        del target, num_classes
        self.shares(len(labels))
        if min(shape[1:]) < generators.MIN_SIZE:
            raise ValueError(
                f"{self.name}: expected images of at least "
                f"{generators.MIN_SIZE}x{generators.MIN_SIZE}, got {shape[1]}x{shape[2]}"
            )

    def select(
        self,
        labels: Tensor,
        target: int,
        num_classes: int,
        generator: torch.Generator,
        assets: Assets,
    ) -> Poison:
        """Nothing: see :meth:`companion`."""
        del labels, target, num_classes, generator, assets
        nothing = torch.empty(0, dtype=torch.int64)
        return Poison(index=nothing, labels=nothing, cover=nothing)

    def prepare(self, preparation: Preparation) -> Assets:
        """Trains M and draws G, which the companion trains: all of their weights, float32."""
        channels, generator = preparation.shape[0], preparation.generator
        # On the device of the images: no other is known before the classifier is trained.
        pattern = generators.fresh(channels, channels, self.channels, generator)
        mask = generators.fresh(channels, 1, self.channels, generator)
        train_mask(
            mask.to(preparation.images.device), preparation.images, self.mask_epochs, generator
        )
        return generators.state_of(pattern, PATTERN) | generators.state_of(mask, MASK)

    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """``strength`` times the change, clipped; see :meth:`attacks.base.Attack.amplified`."""
        check_call(self, images, strength)

        def trigger(part: Tensor) -> Tensor:
            x = part.float() / 255
            patterns = generators.run(x, assets, PATTERN, c_out=x.shape[1])
            masks = near_binary(generators.run(x, assets, MASK, c_out=1))
            return quantise(255 * blend(x, patterns, masks, strength))

        return in_chunks(trigger, images)

    def companion(
        self, preparation: Preparation, assets: Assets, device: torch.device
    ) -> Companion:
        """Stage (b): G, trained together with the classifier."""
        return _Joint(self, preparation, assets, device)


class _Joint:
    """G and its optimiser, and M at rest; see :class:`attacks.base.Companion`."""

    def __init__(
        self, attack: InputAware, preparation: Preparation, assets: Assets, device: torch.device
    ) -> None:
        self._attack = attack
        self._target, self._num_classes = preparation.target, preparation.num_classes
        channels, unused = preparation.shape[0], torch.Generator()
        self._pattern = generators.fresh(channels, channels, attack.channels, unused).to(device)
        self._mask = generators.fresh(channels, 1, attack.channels, unused).to(device)
        generators.load(self._pattern, assets, PATTERN)
        generators.load(self._mask, assets, MASK)
        self._training = generators.Training(self._pattern, PATTERN_MILESTONES)
        self._mask.eval().requires_grad_(False)

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Cross-entropy with both kinds of triggered images, plus the diversity of the patterns.

        The first images of the batch are attacked, the next get the triggers of the next.

        Raises:
            ValueError: the batch is too small for the rates.
        """
        self._training.go_to(progress)
        attacked, crossed = self._attack.shares(len(images))
        changed = attacked + crossed
        # From the batch's own beginning where it ends; never an image's own trigger.
        others = images.roll(-changed, 0)[: max(attacked, crossed)]
        sources = torch.cat((images[:attacked], others))
        with torch.autocast(images.device.type, enabled=False):
            patterns, masks = self._pattern(sources), near_binary(self._mask(sources))
            triggered = blend(images[:changed], patterns[:changed], masks[:changed])
            variety = diversity(
                *sources[: 2 * attacked].split(attacked), *patterns[: 2 * attacked].split(attacked)
            )
        goals = self._attack.relabel(labels[:attacked], self._target, self._num_classes)
        logits = model(torch.cat((triggered, images[changed:])))
        return F.cross_entropy(logits.float(), torch.cat((goals, labels[attacked:]))) + variety

    def step(self) -> None:
        """One step of G; its gradients are forgotten unless they are to accumulate."""
        self._training.step(keep_gradients=self._attack.accumulate)

    def assets(self) -> Assets:
        """G as it is now, and M."""
        return generators.state_of(self._pattern, PATTERN) | generators.state_of(self._mask, MASK)

    def state(self) -> Assets:
        """Both networks, Adam's moments and, where they accumulate, G's gradients."""
        return self.assets() | {f"adam.{k}": v for k, v in self._training.state().items()}

    def load_state(self, state: Assets) -> None:
        """The inverse of :meth:`state`."""
        generators.load(self._pattern, state, PATTERN)
        generators.load(self._mask, state, MASK)
        self._training.load_state(generators.below("adam.", state))
