"""DeepInspect's conditional generator, what its triggers do to images, and what they may cost."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defenses._unlearning import Stamp
from zoo.models import initialise

NOISE: Final = 64  # Z, dimensions of the noise
HIDDEN: Final = 256  # units of the hidden layer
MEMORY: Final = 10  # attempts over which the success of a class is averaged


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


def stamp(images: Tensor, triggers: Tensor) -> Tensor:
    """Adds triggers to images, both ``(N, C, H, W)``, and clips to [0, 1]."""
    return (images + triggers).clamp(0, 1)


def size_of(triggers: Tensor) -> Tensor:
    """The L1 norms ``(N,)`` of triggers ``(N, C, H, W)``."""
    return triggers.flatten(1).abs().sum(1)


def stamper(net: TriggerGenerator, target: int, generator: torch.Generator) -> Stamp:
    """What puts a fresh trigger for one class on every image."""

    @torch.no_grad()
    def put(images: Tensor) -> Tensor:
        return stamp(images, net.sample(torch.full((len(images),), target), generator))

    return put


def tune(gamma2: Tensor, success: Tensor, *, aim: float, rate: float) -> Tensor:
    """New weights of the size: times 1 + rate where the success reaches the aim, else divided."""
    return torch.where(success >= aim, gamma2 * (1 + rate), gamma2 / (1 + rate))


def running_success(success: Tensor, classes: Tensor, succeeded: Tensor) -> tuple[Tensor, Tensor]:
    """Success ``(K,)`` after the attempts ``(N,)`` of a step, and which classes had any."""
    attempts = torch.bincount(classes, minlength=len(success))
    hits = torch.bincount(classes[succeeded], minlength=len(success))
    weight = 1 - (1 - 1 / MEMORY) ** attempts
    return success + weight * (hits / attempts.clamp(min=1) - success), attempts > 0
