"""Fine-tuning on images of which some carry a recovered trigger and keep their true label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from defenses._checks import check_positive, check_share
from defenses._training import Tuning, train_on_budget
from defenses.base import DefenderView
from zoo.models import Classifier

Stamp = Callable[[Tensor], Tensor]  # images (N, C, H, W) in [0, 1] to the same, triggered


@dataclass(frozen=True, kw_only=True)
class Unlearning(Tuning):
    """How a trigger is unlearnt: fine-tuning, with a share of every batch triggered.

    Raises:
        ValueError: a value out of its range.
    """

    share: float  # of a batch, in (0, 1]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(share=self.share)
        check_share(share=self.share)


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
    how: Unlearning,
) -> None:
    """Fine-tunes in place as :func:`train_on_budget` does, with a share of every batch triggered.

    ``stamps`` are the recovered triggers, at least one.
    """
    first = 0  # whose turn it is: a small batch has fewer triggered images than there are triggers

    def loss(model: Classifier, batch: Tensor, labels: Tensor, progress: float) -> Tensor:
        nonlocal first
        del progress
        stamped = stamp_share(batch, stamps, how.share, first)
        first += stamped_count(len(batch), how.share)
        return F.cross_entropy(model(stamped).float(), labels)

    train_on_budget(model, view, images, labels, how, loss)
