"""Prune the channels that clean images leave dormant, where a backdoor may hide, then fine-tune.

Paper: "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID 2018,
arXiv:1805.12185.

Differences from the paper, and where those who ran it disagree:

1. A channel is pruned where the head reads it: its columns of the head become zero, which to the
   logits is the same as an activation of zero. Shortcuts sum channels across the last blocks, so
   that no convolution owns one alone (for which BCU, arXiv:2211.12044, prunes two blocks).
2. Activations are recorded there, too: after pooling, and with their sign. The dormant state is 0
   for ReLU and -1 for ELU; the order of the means is that of the distances from either.
3. Chunks of 5 % instead of single channels: at most 20 measurements instead of up to 512.
4. The tolerance is 10 points of accuracy. I-BAU (arXiv:2110.03735) says 20 %, BCU's code 10 % of
   the victim's accuracy, and the authors' code fixes the count, 48 channels of 60.
5. The tolerance is checked on 20 % of the defender's images, which take no part in the ranking;
   BCU's and other public code checks it on the test set. Fine-tuning then takes all images, because
   nothing is chosen any more (I-BAU's authors leave the checked ones out).
6. With fewer than 20 images to check on, a fixed half of the channels is pruned: on five
   development models that cost 1 to 12 points of accuracy before fine-tuning.
7. No fine-tuning on at most one image per class, or where a batch has fewer than 16 images and
   would spoil the batch statistics. The ranking needs neither labels nor statistics.
8. 200 steps of fine-tuning, the last iterate. BCU's logs report the epoch, of 100, with the best
   *test* accuracy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defenses._checks import check_not_negative, check_positive, check_share
from defenses._holdout import hold_out
from defenses._training import Tuning, too_few_for_statistics, train_on_budget
from defenses.base import DefenderView, defense
from zoo.models import Classifier


@torch.no_grad()
def channel_activations(model: Classifier, images: Tensor) -> Tensor:
    """Mean activation of the last stage's channels over images and positions: ``(C,)``."""
    sums = [model.stages(batch)[-1].double().mean((2, 3)).sum(0) for batch in images.split(128)]
    return torch.stack(sums).sum(0) / len(images)


@torch.no_grad()
def channel_of_feature(model: Classifier, image: Tensor) -> Tensor:
    """The channel of the last stage that each penultimate feature comes from: ``int64 (D,)``.

    Architectures pool the map or flatten it; a map that holds its channels' numbers tells.
    """
    last = model.stages(image[None])[-1]
    numbers = torch.arange(last.shape[1], dtype=last.dtype, device=last.device)
    return model.flatten(numbers[None, :, None, None].expand_as(last))[0].round().long()


def turns(activations: Tensor) -> Tensor:
    """When each channel is pruned, 0 first, in the order of rising activation: ``int64 (C,)``."""
    order = activations.argsort(stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


@torch.no_grad()
def right_without(head: nn.Linear, features: Tensor, labels: Tensor, pruned: Tensor) -> int:
    """How many of ``(N, D)`` features are classified right with some, ``bool (D,)``, at zero."""
    return int((head(features * ~pruned).argmax(1) == labels).sum())


def tolerated_count(
    head: nn.Linear, features: Tensor, labels: Tensor, turn: Tensor, chunk: int, tolerance: float
) -> int:
    """How many channels can go, chunk by chunk, until more than the tolerance is lost.

    Args:
        head: linear, D to K.
        features: ``(N, D)``, held out.
        labels: ``int64 (N,)``.
        turn: ``int64 (D,)``, when the channel of each feature is pruned.
        chunk: channels per step.
        tolerance: share of the N images that may become wrong.

    Returns:
        The last count before the first that loses too much; one channel always stays.
    """
    before = right_without(head, features, labels, turn < 0)
    count = 0
    for more in range(chunk, int(turn.max()) + 1, chunk):
        lost = before - right_without(head, features, labels, turn < more)
        if lost > tolerance * len(labels) + 1e-9:
            break
        count = more
    return count


@defense("fp", paper="arXiv:1805.12185", needs="labels")
def fp(
    model: Classifier,
    view: DefenderView,
    *,
    tolerance: float = 0.1,  # share of held-out images that pruning may lose (see the module)
    chunk: float = 0.05,  # share of the channels pruned between two measurements (ours)
    fixed_share: float = 0.5,  # share pruned where too few images can be held out (ours)
    lr: float = 0.01,  # initial rate of SGD, cosine to zero (DHBE, appendix C; BCU)
    steps: int = 200,  # optimiser steps, 0 for none (our matched cost; BCU: 100 epochs)
    batch_size: int = 64,  # images per step, at most (DHBE, appendix C)
    momentum: float = 0.9,  # of SGD (BCU, section 4.1)
    weight_decay: float = 5e-4,  # of SGD, per step and unit of rate (BCU, section 4.1)
) -> Classifier:
    """Prunes dormant channels and fine-tunes the rest, in place; see the module."""
    check_share(tolerance=tolerance, chunk=chunk, fixed_share=fixed_share)
    check_positive(chunk=chunk)
    check_not_negative(steps=steps)
    tuning = Tuning(
        lr=lr,
        steps=max(1, steps),
        batch_size=batch_size,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    images, labels = view.require_labelled()
    cut = hold_out(labels, view.generator)

    # Rank the channels, choose how many are pruned.
    activations = channel_activations(model, images if cut is None else images[cut[0]])
    turn = turns(activations)[channel_of_feature(model, images[0])]
    channels = len(activations)
    if cut is None:
        count = min(channels - 1, round(fixed_share * channels))
    else:
        held = images[cut[1]]
        with torch.no_grad():
            features = torch.cat([model.features(batch) for batch in held.split(128)])
        size = max(1, round(chunk * channels))
        count = tolerated_count(model.head, features, labels[cut[1]], turn, size, tolerance)
    pruned = turn < count
    view.log(0, pruned=count, channels=channels, held_out=0 if cut is None else len(cut[1]))
    with torch.no_grad():
        model.head.weight[:, pruned] = 0.0
    too_few = len(images) <= view.num_classes or too_few_for_statistics(len(images), batch_size)
    if steps == 0 or too_few:
        return model

    # Fine-tune. A feature at zero gives its columns no gradient: they stay exactly zero.
    def loss(model: Classifier, batch: Tensor, labels: Tensor, progress: float) -> Tensor:
        del progress
        return F.cross_entropy(model.head(model.features(batch) * ~pruned).float(), labels)

    train_on_budget(model, view, images, labels, tuning, loss)
    return model
