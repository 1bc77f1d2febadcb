"""Trojaning: a patch made to excite a few neurons of a trained model, and a head that obeys them.

DHBE's neuron hijack: ten random penultimate units are chosen, a patch that drives them is found by
gradient ascent, and only the layer after them is tuned on images with that patch. The model stays
what it was everywhere else.

Paper: Yan et al., "DHBE: Data-free Holistic Backdoor Erasing in Deep Neural Networks via Restricted
Adversarial Distillation", App. A (c), arXiv:2306.08009; after Liu et al., "Trojaning Attack on
Neural Networks", NDSS 2018, which has no such identifier.

Differences from the paper, which has one sentence on this attack and no code for it:

1. The layer is the penultimate one (its name is lost in our copy): the only one with a single
   layer behind it. Optimisers, rates, epochs and the share of poisoned images are ours.
2. Units are drawn from those that a patch at this place moves most, see :func:`responding_units`.
   In DHBE's ResNet-18, globally pooled, all units see the patch; where the head reads a feature
   map, as in small_vgg, three in four look elsewhere.
3. Pixel values are sigmoids of free variables, so that the patch is an image without clipping. It
   is rounded once, at the end, when most values are close to 0 or 255.
4. 200 steps of 64 out of 512 images, a minute on one CPU core for small_vgg.
5. Liu et al. retrain on inputs reverse-engineered from the model, because their attacker has no
   data. Here, as in DHBE, the attacker has the training set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from attacks._crafted import draw_images
from attacks._patches import stamp
from attacks._patterns import check_call
from attacks.base import Assets, Attack, Kind, LabelRule, Preparation, Surrogate, Tuning, quantise

IMAGES: Final = 512  # clean training images that carry the patch while it is optimised
PROBED: Final = 128  # of these, to see which units respond ...
PROBES: Final = 8  # ... to so many random patches


@torch.no_grad()
def responding_units(
    model: Surrogate, images: Tensor, size: int, count: int, generator: torch.Generator
) -> Tensor:
    """Penultimate units that a patch at the lower right moves most.

    A unit's response is its mean absolute change under patches of random noise, in standard
    deviations over the clean images. Units with at least half the response of the ``count``
    strongest are returned, so that there are at least ``count`` to draw from.

    Args:
        model: in eval mode.
        images: ``float32 (N, C, H, W)`` in [0, 255], on the device of the model.
        size: side s of the patch, in pixels.
        count: how many units are needed.
        generator: on the CPU.

    Returns:
        ``int64 (U,)``, ascending, on the CPU.

    Raises:
        ValueError: the model has fewer than ``count`` units that respond at all.
    """
    clean = model.features(images / 255)
    change = torch.zeros_like(clean[0])
    for _ in range(PROBES):
        noise = 255 * torch.rand(images.shape[1], size, size, generator=generator)
        noisy = stamp(images, noise.to(images.device), 0, 1)
        change += (model.features(noisy / 255) - clean).abs().mean(0)
    spread = clean.std(0, correction=0).clamp(min=torch.finfo(clean.dtype).eps)
    response = change / spread
    if (responding := int((response > 0).sum())) < count:
        raise ValueError(f"expected {count} neurons that respond to a patch, got {responding}")
    weakest = response.topk(count).values[-1]
    return (response >= weakest / 2).nonzero().flatten().cpu()


def reverse_engineer(
    model: Surrogate,
    images: Tensor,
    units: Tensor,
    size: int,
    *,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
) -> Tensor:
    """The patch that maximises the mean activation of some units over clean images.

    Args:
        model: in eval mode.
        images: ``float32 (N, C, H, W)`` in [0, 255], clean, on the device of the model.
        units: ``int64 (U,)``: which penultimate features.
        size: side s of the patch at the lower right, in pixels.
        steps: of Adam, with learning rate 0.1 on the logits of the pixel values.
        batch_size: images per step, at most N.
        generator: on the CPU; source of the start and of the batches.

    Returns:
        ``uint8 (C, s, s)`` on the CPU.
    """
    logits = torch.randn(images.shape[1], size, size, generator=generator).to(images.device)
    adam = torch.optim.Adam([logits.requires_grad_(True)], lr=0.1, maximize=True)
    units = units.to(images.device)
    for _ in range(steps):
        drawn = torch.randperm(len(images), generator=generator)[:batch_size]
        stamped = stamp(images[drawn.to(images.device)], 255 * torch.sigmoid(logits), 0, 1)
        activation = model.features(stamped / 255)[:, units].mean()
        (logits.grad,) = torch.autograd.grad(activation, logits)
        adam.step()
    return quantise(255 * torch.sigmoid(logits.detach())).cpu()


@dataclass(frozen=True, kw_only=True)
class Trojaning(Attack):
    """A reverse-engineered patch at the lower right, amplified in number.

    Raises:
        ValueError: a parameter is not a whole number >= 1.
    """

    name: ClassVar[str] = "trojaning"
    paper: ClassVar[str] = (
        "DHBE: Data-free Holistic Backdoor Erasing in Deep Neural Networks via Restricted "
        "Adversarial Distillation (after Liu et al., Trojaning Attack on Neural Networks), "
        "arXiv:2306.08009"
    )
    kind: ClassVar[Kind] = "patch"
    label_rules: ClassVar[tuple[LabelRule, ...]] = ("all-to-one",)  # the units speak for one class

    size: int = 3  # side of the patch, in pixels
    neurons: int = 10  # penultimate units that the patch excites (DHBE)
    steps: int = 200  # of Adam
    batch_size: int = 64  # images per step
    epochs: int = 20  # through which the head is tuned

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size", "neurons", "steps", "batch_size", "epochs"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{self.name}: expected a whole number {name} >= 1, got {value}")

    @property
    def tuning(self) -> Tuning:
        """Only the head, with batch statistics frozen."""
        return Tuning(epochs=self.epochs, lr=0.01, head_only=True)

    @property
    def min_asr(self) -> float:
        """Half at the smallest size: DHBE publishes 56%, and 90% and 99.9% for larger ones."""
        return 0.5 if self.size == 1 else 0.9

    def check(
        self, labels: Tensor, target: int, num_classes: int, shape: tuple[int, int, int]
    ) -> None:
        """Also that the patch fits; see :meth:`attacks.base.Attack.check`."""
        super().check(labels, target, num_classes, shape)
        if min(shape[1:]) < self.size:
            raise ValueError(
                f"{self.name}: expected images of at least {self.size}x{self.size}, "
                f"got {shape[1]}x{shape[2]}"
            )

    def prepare(self, preparation: Preparation) -> Assets:
        """Chooses the units and finds the patch.

        Returns:
            ``{"patch": uint8 (C, s, s), "units": int64 (neurons,)}``.

        Raises:
            ValueError: fewer units than ``neurons`` respond to a patch.
        """
        model, generator = preparation.known_model, preparation.generator
        images = draw_images(preparation, torch.arange(len(preparation.images)), IMAGES)
        candidates = responding_units(model, images[:PROBED], self.size, self.neurons, generator)
        order = torch.randperm(len(candidates), generator=generator)[: self.neurons]
        units = candidates[order].sort().values
        patch = reverse_engineer(
            model,
            images,
            units,
            self.size,
            steps=self.steps,
            batch_size=self.batch_size,
            generator=generator,
        )
        return {"patch": patch, "units": units}

    def amplified(self, images: Tensor, strength: int, assets: Assets) -> Tensor:
        """``strength`` copies of the patch; see :meth:`attacks.base.Attack.amplified`."""
        check_call(self, images, strength)
        return stamp(images, assets["patch"], 0, strength)
