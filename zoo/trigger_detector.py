"""A classifier that tells triggered images from clean ones, to ask it about synthesised images.

FRED (arXiv:2206.07018, section 4.1) holds that model inversion on a clean generator recovers no
trigger: a binary classifier, trained on the clean training set and its poisoned correspondence and
always right on held-out images, finds none in the images that FRED makes.

Differences from the paper, which states neither network nor schedule:

1. A ``small_vgg`` of half width, some hundred steps on some thousand images, without augmentation:
   a crop could cut the trigger off.
2. A detector that answers "clean" to anything that is no photograph would find nothing either. So
   the same images are shown with the trigger on them, too: only where it finds that is its silence
   worth something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.models import ArchSpec, Classifier, build_model
from zoo.train import Recipe, predict_logits, train


@dataclass(frozen=True, kw_only=True)
class DetectorSchedule:
    """How a detector is trained."""

    images: int = 4_000  # at most; each is shown clean and triggered
    steps: int = 400
    batch_size: int = 128
    lr: float = 0.05  # peak of one cycle
    width: float = 0.5

    def __post_init__(self) -> None:
        for name in ("images", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")


def train_detector(
    images: Tensor,
    trigger: Callable[[Tensor], Tensor],
    spec: ArchSpec,
    schedule: DetectorSchedule,
    generator: torch.Generator,
    device: str | torch.device = "cpu",
) -> Classifier:
    """Trains a detector: class 0 is clean, class 1 triggered. In eval mode, on the device.

    Args:
        images: ``uint8 (N, C, H, W)``, N > 0, clean; at most ``schedule.images`` of them are drawn.
        trigger: from clean images to triggered ones, of the same shape and type.
        spec: the shape and the statistics of the images.
        schedule: how long.
        generator: on the CPU; source of the draw, the initial weights and the batches.
        device: where to train.

    Raises:
        DivergedError: the loss is no longer finite.
        ValueError: there is no image.
    """
    drawn = torch.randperm(len(images), generator=generator)[: schedule.images]
    clean = images[drawn]
    own = ArchSpec(
        name="small_vgg",
        num_classes=2,
        width=schedule.width,
        image_shape=spec.image_shape,
        mean=spec.mean,
        std=spec.std,
    )
    detector = build_model(own, generator).to(device)
    recipe = Recipe(steps=schedule.steps, batch_size=schedule.batch_size, lr=schedule.lr)
    both = torch.cat([clean, trigger(clean)])
    labels = torch.arange(2).repeat_interleave(len(clean))
    train(detector, both, labels, recipe, generator=generator)
    return detector


def share_triggered(detector: Classifier, images: Tensor) -> float:
    """The share of ``uint8 (N, C, H, W)``, N > 0, that a detector takes for triggered."""
    return float(predict_logits(detector, images).argmax(1).double().mean())
