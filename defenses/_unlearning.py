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


def stamp_share(images: Tensor, stamps: Sequence[Stamp], share: float) -> Tensor:
    """The first ``share`` of a batch triggered, at least one image of it; out of place.

    Several triggers take turns: image i gets number i modulo their count.
    """
    count = min(len(images), max(1, round(share * len(images))))
    stamped = images.clone()
    for number, stamp in enumerate(stamps):
        chosen = torch.arange(number, count, len(stamps), device=images.device)
        if len(chosen):
            stamped[chosen] = stamp(images[chosen]).to(stamped.dtype)
    return stamped


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
) -> None:
    """Fine-tunes in place as :func:`train_on_budget` does, with a share of every batch triggered.

    ``stamps`` are the recovered triggers, at least one; ``share`` is in (0, 1].
    """

    def loss(model: Classifier, batch: Tensor, labels: Tensor, progress: float) -> Tensor:
        del progress
        return F.cross_entropy(model(stamp_share(batch, stamps, share)).float(), labels)

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
    )
