"""Training a model on a defender's few images: what fine-tuning and distillation share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from defenses._checks import check_not_negative, check_positive
from defenses.base import MIN_BATCH_FOR_STATISTICS, DefenderView
from zoo.models import Classifier
from zoo.train import EpochReport, LossHook, Recipe, Schedule, train

CURVE_POINTS: Final = 20  # points of the loss curve to keep; an epoch may be a single step here


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How weights are trained on a budget: SGD on augmented batches, for a number of steps.

    Raises:
        ValueError: a value out of its range.
    """

    lr: float  # initial rate
    steps: int  # of the optimiser
    batch_size: int  # images per step, at most
    momentum: float
    weight_decay: float  # per step and unit of rate
    schedule: Schedule = "cosine"  # of the rate
    freeze_bn: bool = False  # keep the victim's statistics however many images there are

    def __post_init__(self) -> None:
        check_positive(steps=self.steps, batch_size=self.batch_size)
        check_not_negative(lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


def too_few_for_statistics(n: int, batch_size: int) -> bool:
    """Whether n images in equal batches of at most batch_size make a batch that BN cannot use."""
    return n // math.ceil(n / batch_size) < MIN_BATCH_FOR_STATISTICS


def train_on_budget(
    model: Classifier,
    view: DefenderView,
    images: Tensor,
    labels: Tensor,
    tuning: Tuning,
    loss: LossHook | None = None,
) -> None:
    """Trains in place; leaves the last iterate.

    Batch normalisation keeps the victim's statistics where a batch is too small to estimate them.

    Args:
        model: trained in place, left in eval mode.
        view: source of augmentation and randomness; gets the loss curve.
        images: ``float32 (N, C, H, W)`` in [0, 1].
        labels: ``int64 (N,)``; ignored by loss hooks that need none.
        tuning: how.
        loss: replaces cross-entropy.
    """
    recipe = Recipe(
        steps=tuning.steps,
        batch_size=tuning.batch_size,
        lr=tuning.lr,
        momentum=tuning.momentum,
        weight_decay=tuning.weight_decay,
        schedule=tuning.schedule,
        freeze_bn=tuning.freeze_bn or too_few_for_statistics(len(images), tuning.batch_size),
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
