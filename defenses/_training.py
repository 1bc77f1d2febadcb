"""Training a model on a defender's few images: what fine-tuning and distillation share."""

from __future__ import annotations

import math
from typing import Final

from torch import Tensor

from defenses.base import MIN_BATCH_FOR_STATISTICS, DefenderView
from zoo.models import Classifier
from zoo.train import EpochReport, LossHook, Recipe, Schedule, train

CURVE_POINTS: Final = 20  # points of the loss curve to keep; an epoch may be a single step here


def too_few_for_statistics(n: int, batch_size: int) -> bool:
    """Whether n images in equal batches of at most batch_size make a batch that BN cannot use."""
    return n // math.ceil(n / batch_size) < MIN_BATCH_FOR_STATISTICS


def train_on_budget(
    model: Classifier,
    view: DefenderView,
    images: Tensor,
    labels: Tensor,
    *,
    lr: float,
    steps: int,
    batch_size: int,
    momentum: float,
    weight_decay: float,
    schedule: Schedule = "cosine",
    loss: LossHook | None = None,
    freeze_bn: bool = False,
) -> None:
    """SGD on augmented batches, in place; leaves the last iterate.

    Batch normalisation keeps the victim's statistics where a batch is too small to estimate them.

    Args:
        model: trained in place, left in eval mode.
        view: source of augmentation and randomness; gets the loss curve.
        images: ``float32 (N, C, H, W)`` in [0, 1].
        labels: ``int64 (N,)``; ignored by loss hooks that need none.
        lr: initial rate.
        steps: optimiser steps.
        batch_size: images per step, at most.
        momentum: of SGD.
        weight_decay: of SGD.
        schedule: of the rate.
        loss: replaces cross-entropy.
        freeze_bn: keep the victim's statistics however many images there are.
    """
    recipe = Recipe(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        freeze_bn=freeze_bn or too_few_for_statistics(len(images), batch_size),
    )
    logged = 0

    def report(epoch: EpochReport) -> None:
        nonlocal logged
        if epoch.step * CURVE_POINTS >= (logged + 1) * epoch.steps:
            logged = epoch.step * CURVE_POINTS // epoch.steps
            view.log(epoch.step, loss=epoch.loss, lr=epoch.lr)

    train(
        model,
        images,
        labels,
        recipe,
        generator=view.generator,
        augmentation=view.augmentation,
        loss=loss,
        report=report,
    )
