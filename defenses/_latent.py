"""Searching the latent space of a generative prior: what GMI and FRED share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from defenses.base import Prior
from zoo.models import Classifier
from zoo.train import predict_logits

CHUNK: Final = 128  # images at a time, about: whole classes, which do not influence each other
MOMENTUM: Final = 0.9  # Nesterov's, as in GMI's code
BOX: Final = 1.0  # latents stay in [-1, 1]^Z, as in GMI's code


def balanced_labels(num_classes: int, per_class: int, device: torch.device) -> Tensor:
    """``int64 (K per_class,)``: every class as often, class by class."""
    return torch.arange(num_classes, device=device).repeat_interleave(per_class)


@torch.no_grad()
def reached(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of images that the model takes for what they were made to be."""
    return float((predict_logits(model, images).argmax(1) == labels).float().mean())


def class_chunks(labels: Tensor) -> Iterator[Tensor]:
    """Index sets of whole classes, of about :data:`CHUNK` images each; labels are sorted."""
    counts = torch.bincount(labels).tolist()
    begin = end = 0
    for count in counts:
        if end > begin and end - begin + count > CHUNK:
            yield torch.arange(begin, end, device=labels.device)
            begin = end
        end += count
    if end > begin:
        yield torch.arange(begin, end, device=labels.device)


@torch.no_grad()
def draw_latents(
    model: Classifier, prior: Prior, labels: Tensor, draws: int, generator: torch.Generator
) -> Tensor:
    """Where to start: for every label the most probable of ``draws`` random latents.

    Args:
        model: in eval mode.
        prior: its generator is asked ``draws`` times per label.
        labels: ``int64 (N,)``.
        draws: candidates for every label.
        generator: on the CPU.

    Returns:
        ``float32 (N, Z)`` in [-1, 1].
    """
    n = len(labels)
    drawn = torch.randn(draws, n, prior.latent_size, generator=generator).to(labels.device)
    drawn = drawn.clamp(-BOX, BOX)
    best, lowest = drawn[0], torch.full((n,), float("inf"), device=labels.device)
    for candidate in drawn:
        parts = candidate.split(CHUNK)
        logits = torch.cat([model(prior.generate(part)).float() for part in parts])
        loss = F.cross_entropy(logits, labels, reduction="none")
        best = torch.where((loss < lowest)[:, None], candidate, best)
        lowest = torch.minimum(loss, lowest)
    return best.clone()


def optimizer_of(latents: Tensor, lr: float) -> torch.optim.SGD:
    """Stochastic gradient descent with Nesterov's momentum, as in GMI's code."""
    return torch.optim.SGD([latents], lr=lr, momentum=MOMENTUM, nesterov=True)


def descend(optimizer: torch.optim.SGD, latents: Tensor, loss: Tensor) -> None:
    """One step down the sum of independent losses, and back into the box; in place."""
    (latents.grad,) = torch.autograd.grad(loss, latents)
    optimizer.step()
    with torch.no_grad():
        latents.clamp_(-BOX, BOX)


def realism_and_class_loss(
    prior: Prior, model: Classifier, images: Tensor, labels: Tensor, class_weight: float
) -> Tensor:
    """GMI's objective, summed over the images: -D(x) + class_weight CE(f(x), y)."""
    wanted = F.cross_entropy(model(images).float(), labels, reduction="sum")
    return class_weight * wanted - prior.criticise(images).sum()
