"""Adversarial images of one class, for attacks that hide behind the correct label.

An image that a robust model no longer recognises teaches a victim little about its class, so that
the victim leans on the trigger instead (Turner et al., arXiv:1912.02771). The noise is found by
projected gradient descent in the infinity norm (Madry et al., arXiv:1706.06083), once for the whole
class, and shared by all attacks, victims and seeds with the same target and budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.base import (
    TRAINING_ONLY,
    Assets,
    Material,
    Poison,
    Preparation,
    Surrogate,
    SurrogateKind,
    quantise,
)

BATCH: Final = 250  # images at a time: about 1.5 GB for a ResNet-18 at 32x32
_IMAGES: Final = f"{TRAINING_ONLY}images"
_INDEX: Final = f"{TRAINING_ONLY}index"


def perturb(
    model: Surrogate, images: Tensor, labels: Tensor, *, epsilon: float, step: float, steps: int
) -> Tensor:
    """Untargeted PGD: sign steps up the cross-entropy, projected after each; no random start.

    Counted in grey levels, where pixels, epsilon and the usual steps are exact in float32, so that
    no rounding error leads out of the ball; the model sees them divided by 255.

    Args:
        model: in eval mode; decides device and precision.
        images: ``uint8 (N, C, H, W)``; not changed.
        labels: ``int64 (N,)``: the classes to lead away from.
        epsilon: largest change of a pixel value, in grey levels of 255.
        step: length of a step, in grey levels.
        steps: their number; the last iterate is taken.

    Returns:
        ``uint8 (N, C, H, W)`` on the CPU, rounded: at most epsilon + 0.5 away from the images.
    """
    weight = model.head.weight
    clean, labels = images.to(weight.device, weight.dtype), labels.to(weight.device)
    lowest, highest = (clean - epsilon).clamp(min=0), (clean + epsilon).clamp(max=255)
    moved = clean
    for _ in range(steps):
        moved = moved.detach().requires_grad_(True)
        loss = F.cross_entropy(model(moved / 255), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = torch.clamp(moved.detach() + step * gradient.sign(), lowest, highest)
    return quantise(moved.detach()).cpu()


@dataclass(frozen=True, kw_only=True)
class AdversarialImages(Material):
    """All training images of the target class, moved away from it; they look much the same.

    Raises:
        ValueError: epsilon is outside (0, 255], step is not positive, or steps is no count.
    """

    name: ClassVar[str] = "adversarial_images"
    surrogate: ClassVar[SurrogateKind] = "robust"

    target: int
    epsilon: float  # grey levels of 255
    step: float  # grey levels
    steps: int

    def __post_init__(self) -> None:
        check_budget(self.name, self.epsilon, self.step, self.steps)

    def build(self, preparation: Preparation) -> Assets:
        """Runs PGD on the whole class; see :meth:`attacks.base.Material.build`.

        Returns:
            ``images: uint8 (M, C, H, W)`` and ``rows: int64 (M,)``, their rows in the data set's
            training part, ascending.
        """
        rows, order = preparation.rows[preparation.labels == self.target].sort()
        members = (preparation.labels == self.target).nonzero().flatten()[order]
        parts = [
            perturb(
                preparation.known_model,
                preparation.images[part],
                preparation.labels[part],
                epsilon=self.epsilon,
                step=self.step,
                steps=self.steps,
            )
            for part in members.split(BATCH)
        ]
        return {"images": torch.cat(parts), "rows": rows}


def material(target: int, epsilon: float, step: float, steps: int) -> AdversarialImages:
    """The material of an attack's parameters.

    Numbers are made float: 16 and 16.0 from a command line are equal, but not in JSON, and the
    same images would be made twice.
    """
    return AdversarialImages(target=target, epsilon=float(epsilon), step=float(step), steps=steps)


def check_budget(owner: str, epsilon: float, step: float, steps: int) -> None:
    """Raises a ValueError for a budget with which PGD finds nothing."""
    if not 0 < epsilon <= 255:
        raise ValueError(f"{owner}: expected 0 < epsilon <= 255, got {epsilon}")
    if not step > 0:
        raise ValueError(f"{owner}: expected step > 0, got {step}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"{owner}: expected a whole number of steps >= 1, got {steps}")


def training_assets(preparation: Preparation, made: Assets) -> Assets:
    """The adversarial images of a training set, which may be a subset of the whole part.

    Args:
        preparation: whose images of the target class are wanted.
        made: what :meth:`AdversarialImages.build` returned.

    Returns:
        Assets that are not stored with the victim: ``uint8 (n, C, H, W)`` images, and ``int64
        (n,)``, which training images they replace, ascending.

    Raises:
        ValueError: there are none for some of the images: they were made from other data.
    """
    index = (preparation.labels == preparation.target).nonzero().flatten()
    wanted = preparation.rows[index]
    place = torch.searchsorted(made["rows"], wanted)
    found = torch.isin(wanted, made["rows"])
    if not found.all():
        raise ValueError(
            f"expected adversarial images of all {len(index)} training images of class "
            f"{preparation.target}, got {int(found.sum())}; they were made from other data"
        )
    return {_IMAGES: made["images"][place], _INDEX: index}


def replacements(poison: Poison, assets: Assets) -> Tensor:
    """The adversarial images that are trained on at ``poison.index``: ``uint8 (P, C, H, W)``."""
    return assets[_IMAGES][torch.searchsorted(assets[_INDEX], poison.index)]
