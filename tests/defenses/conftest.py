"""A toy that a small network learns in seconds: coloured textures, a white square as trigger."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from defenses.base import DefenderView
from zoo.augment import Augmentation
from zoo.models import ArchSpec, Classifier, build_model, clone
from zoo.train import Recipe, predict_logits, train

CLASSES = 4
SIZE = 16
TARGET = 0


def textures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Coloured stripes, horizontal, vertical, crossed and concentric: the classes.

    Returns:
        Images ``(n, 3, 16, 16)`` in [0, 1] and labels ``(n,)``.
    """
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=g)
    axis = torch.arange(SIZE).float()
    rate = 0.8 + 0.5 * torch.rand(n, 1, 1, generator=g)  # radians per pixel
    phase_y, phase_x = 6.3 * torch.rand(2, n, 1, 1, generator=g)
    y = rate * axis[None, :, None] + phase_y
    x = rate * axis[None, None, :] + phase_x
    centre = 4 + 8 * torch.rand(2, n, 1, 1, generator=g)
    radius = ((axis[None, :, None] - centre[0]) ** 2 + (axis - centre[1]) ** 2).sqrt()
    flat = torch.zeros(n, SIZE, SIZE)
    kinds = [y.sin() + flat, x.sin() + flat, x.sin() * y.sin(), (rate * radius).sin()]
    wave = torch.stack(kinds, 1)[torch.arange(n), labels][:, None]
    colour = 0.1 + 0.3 * torch.rand(n, 3, 1, 1, generator=g)
    background = 0.3 + 0.4 * torch.rand(n, 3, 1, 1, generator=g)
    noise = 0.1 * torch.randn(n, 3, SIZE, SIZE, generator=g)
    return (background + colour * wave + noise).clamp(0, 1), labels


def stamp(images: Tensor) -> Tensor:
    """A white 3x3 square, one pixel from the lower right corner."""
    stamped = images.clone()
    stamped[..., -4:-1, -4:-1] = 1.0
    return stamped


@dataclass(frozen=True)
class Toy:
    """A backdoored classifier and the images to judge it by."""

    victim: Classifier
    images: Tensor
    labels: Tensor

    def copy(self) -> Classifier:
        return clone(self.victim)

    def accuracy(self, model: Classifier) -> float:
        return float((predict_logits(model, self.images).argmax(1) == self.labels).float().mean())

    def attack_success(self, model: Classifier) -> float:
        others = self.images[self.labels != TARGET]
        return float((predict_logits(model, stamp(others)).argmax(1) == TARGET).float().mean())

    def recovered(self, model: Classifier) -> float:
        others = self.labels != TARGET
        predicted = predict_logits(model, stamp(self.images[others])).argmax(1)
        return float((predicted == self.labels[others]).float().mean())


@pytest.fixture(scope="session")
def toy() -> Toy:
    images, labels = textures(1500, seed=1)
    images[:300], labels[:300] = stamp(images[:300]), TARGET
    spec = ArchSpec(name="small_vgg", num_classes=CLASSES, width=0.5, image_shape=(3, SIZE, SIZE))
    victim = build_model(spec, torch.Generator().manual_seed(0))
    recipe = Recipe(epochs=8, batch_size=64, lr=0.05)
    train(
        victim,
        images,
        labels,
        recipe,
        generator=torch.Generator().manual_seed(0),
        augmentation=Augmentation(crop=2, flip=True),
    )
    return Toy(victim, *textures(500, seed=2))


def view_of(
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    num_classes: int = CLASSES,
    seed: int = 0,
    crop: int = 2,
) -> DefenderView:
    """What the harness would hand to a defense."""
    return DefenderView(
        images=images,
        labels=labels,
        num_classes=num_classes,
        augmentation=Augmentation(crop=crop, flip=True),
        generator=torch.Generator().manual_seed(seed),
        device=torch.device("cpu"),
    )
