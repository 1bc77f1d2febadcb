"""Fine-tuning on images of which some carry a recovered trigger and keep their true label."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from defenses._training import train_on_budget
from defenses.base import DefenderView
from zoo.models import Classifier

Stamp = Callable[[Tensor], Tensor]  # images (N, C, H, W) in [0, 1] to the same, triggered


def stamp_share(images: Tensor, stamps: Sequence[Stamp], share: float, first: int = 0) -> Tensor:
    """The first ``share`` of a batch triggered, at least one image of it; out of place.

    Several triggers take turns: image i gets number ``first`` + i modulo their count.
    """
    count = stamped_count(len(images), share)
    stamped = images.clone()
    for i in range(min(count, len(stamps))):
        chosen = torch.arange(i, count, len(stamps), device=images.device)
        stamped[chosen] = stamps[(first + i) % len(stamps)](images[chosen]).to(stamped.dtype)
    return stamped


def stamped_count(n: int, share: float) -> int:
    """How many of n images are triggered."""
    return min(n, max(1, round(share * n)))


def unlearn(
    model: Classifier,
    view: DefenderView,
    images: Tensor,
    labels: Tensor,
    stamps: Sequence[Stamp],
    *,
    share: float,
    lr: float,
    steps: int,
    batch_size: int,
    momentum: float,
    weight_decay: float,
    freeze_bn: bool = False,
) -> None:
    """Fine-tunes in place as :func:`train_on_budget` does, with a share of every batch triggered.

    ``stamps`` are the recovered triggers, at least one; ``share`` is in (0, 1].
    """
    first = 0  # whose turn it is: a small batch has fewer triggered images than there are triggers

    def loss(model: Classifier, batch: Tensor, labels: Tensor, progress: float) -> Tensor:
        nonlocal first
        del progress
        stamped = stamp_share(batch, stamps, share, first)
        first += stamped_count(len(batch), share)
        return F.cross_entropy(model(stamped).float(), labels)

    train_on_budget(
        model,
        view,
        images,
        labels,
        lr=lr,
        steps=steps,
        batch_size=batch_size,
        momentum=momentum,
        weight_decay=weight_decay,
        loss=loss,
        freeze_bn=freeze_bn,
    )
