"""Surrogates whose best triggers are known."""

import torch
from torch import nn

from attacks import Preparation
from tests.preparations import seeded


class LinearSurrogate(nn.Module):
    """One unit for every given weight image, its activation the inner product with the input.

    Logits are what ``head`` makes of the units; by default every unit is a class of its own.
    """

    def __init__(self, *weights, head=None):
        super().__init__()
        self.weights = torch.stack(weights).flatten(1)  # (D, C H W)
        units = len(weights)
        head = torch.eye(units) if head is None else head
        self.head = nn.Linear(units, len(head), bias=False).requires_grad_(False)
        self.head.weight.copy_(head)

    def features(self, images):
        return images.flatten(1) @ self.weights.T

    def forward(self, images):
        return self.head(self.features(images))


def dark_images(n, shape, seed=3):
    """Noise in [0, 9]: dark enough that adding is not clipped until the very end."""
    return torch.randint(10, (n, *shape), generator=seeded(seed)).to(torch.uint8)


def preparation_for(model, images, labels=None, seed=0):
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    return Preparation(
        images=images, labels=labels, rows=torch.arange(len(images)), target=-1,
        num_classes=model.head.out_features, generator=seeded(seed), model=model,
    )  # fmt: skip


def activations(model, images, units):
    """Mean activation of some units on uint8 images."""
    with torch.no_grad():
        return float(model.features(images.float() / 255)[:, units].mean())
