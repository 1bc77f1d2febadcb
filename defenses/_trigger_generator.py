"""DeepInspect's conditional generator: one network that makes triggers for every class."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.models import initialise

NOISE: Final = 64  # Z, dimensions of the noise
HIDDEN: Final = 256  # units of the hidden layer


class TriggerGenerator(nn.Module):
    """G: noise ``(N, Z)`` and classes ``(N,)`` to changes of pixels ``(N, C, H, W)``."""

    def __init__(
        self, num_classes: int, image_shape: tuple[int, int, int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.noise = nn.Linear(NOISE, HIDDEN)
        self.classes = nn.Embedding(num_classes, HIDDEN)
        self.outer = nn.Linear(HIDDEN, math.prod(image_shape))
        initialise(self, generator)
        with torch.no_grad():
            self.classes.weight.normal_(generator=generator)
            self.outer.weight.zero_()

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        """The triggers; zero before the first step."""
        h = F.relu(self.noise(z) + self.classes(classes))
        triggers: Tensor = self.outer(h).unflatten(1, self.image_shape)
        return triggers

    def sample(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Triggers for classes ``(N,)`` from fresh noise, drawn on the CPU."""
        device = self.outer.weight.device
        z = torch.randn(len(classes), NOISE, generator=generator)
        triggers: Tensor = self(z.to(device), classes.to(device))
        return triggers
