"""Neural Cleanse's search, with penalties on triggers that scatter, sprawl, block or overlay.

For the trigger (M, D) of each class t, D' = (1 - M) D, minimise CE(f((1 - M) x + M D), t) plus

    R1 = lambda1 (|M|_1 + |M|^2) + lambda2 (|D'|_1 + |D'|^2)        no large triggers
    R2 = lambda3 s(M) + lambda4 s(D'), s: squared differences       no scattered ones
    R3 = lambda5 CE(f((1 - M) x), y)                                none that block the object
    R4 = lambda6 CE(f(M D), t)                                      none that need the image

Classes are then compared by a quality that counts size, smoothness and three success rates; those
with an abnormally small one are unlearned.

Paper: "TABOR: A Highly Accurate Approach to Inspecting and Restoring Trojan Backdoors in AI
Systems", arXiv:1908.01763.

Differences from the paper and from public code (UsmannK's, trojanzoo's):

1. The six weights start at 0 and then grow and shrink together, by Neural Cleanse's schedule for
   the cost of its mask, but from 1. Public code keeps them fixed.
2. The weights are ours, for pixels in [0, 1]; lambda1 is Neural Cleanse's initial cost. Public ones
   are 1e-6, 1e-5, 1e-7, 1e-8, 0 and 1e-2. The second and fourth depend on the range of the pattern,
   which is [0, 255] in one code and [0, 1] in the other; the fifth turns R3 off.
3. R2 takes differences along both axes of each image. UsmannK's code slices the batch axis, so that
   only vertical ones count; its R3 and R4 look at the first label of a batch only.
4. Black is 0 in pixel space in R3 and R4, before the model's own normalisation.
5. The quality is log |M|_1 + log s(M) - log attack - log crop - log explanation, after a secondary
   description of the paper. Its normalisers by size are left out: a constant moves no anomaly
   index. The rates are taken on at most 100 images and are at least 0.01. A single picture has no
   rate: that of the explanation is the probability of t for M D.
6. The trigger of a class is, as Neural Cleanse's, the one with the smallest mask that worked.
7. Schedule, early end, outliers, unlearning and the treatment of two classes are those of ``nc``.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from defenses._checks import check_not_negative
from defenses._inversion import (
    Candidates,
    Penalty,
    Search,
    Triggers,
    attack_loss,
    flag,
    frozen,
    invert,
    success_share,
)
from defenses._unlearning import Unlearning, unlearn
from defenses.base import DefenderView, defense
from zoo.models import Classifier

STATISTIC: Final = "quality of the trigger (log)"
JUDGED: Final = 100  # images, at most, on which the success rates are taken
LEAST_RATE: Final = 0.01  # keeps the logarithm of a rate of 0 finite
TINY: Final = 1e-6  # likewise for an empty or even mask


def elastic(z: Tensor) -> Tensor:
    """|z|_1 + |z|^2 of ``(k, C, H, W)``: ``(k,)``."""
    return (z.abs() + z.square()).sum((1, 2, 3))


def roughness(z: Tensor) -> Tensor:
    """s(z), squared differences of neighbours on both axes of ``(k, C, H, W)``: ``(k,)``."""
    down, across = z.diff(dim=2), z.diff(dim=3)
    return down.square().sum((1, 2, 3)) + across.square().sum((1, 2, 3))


def cropped(candidates: Candidates) -> Tensor:
    """Logits of (1 - M) x, ``(k, b, K)``: the images without what each mask covers."""
    return candidates.logits((1 - candidates.masks[:, None]) * candidates.images[None])


def alone(candidates: Candidates) -> Tensor:
    """Logits of M D, ``(k, 1, K)``: each trigger on black."""
    return candidates.logits((candidates.masks * candidates.patterns)[:, None])


def crop_loss(candidates: Candidates) -> Tensor:
    """R3 without its weight, ``(k,)``."""
    logits = cropped(candidates)
    labels = candidates.labels.expand(logits.shape[:2])
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return loss.view(labels.shape).mean(1)


def explanation_loss(candidates: Candidates) -> Tensor:
    """R4 without its weight, ``(k,)``."""
    return attack_loss(alone(candidates), candidates.classes)


def weighted(weights: tuple[float, ...]) -> Penalty:
    """R1 + R2 + R3 + R4 with lambda1 to lambda6."""

    def penalty(candidates: Candidates) -> Tensor:
        mask, outside = candidates.masks, (1 - candidates.masks) * candidates.patterns
        terms = [
            elastic(mask),
            elastic(outside),
            roughness(mask),
            roughness(outside),
            crop_loss(candidates),
            explanation_loss(candidates),
        ]
        return (torch.tensor(weights, device=mask.device)[:, None] * torch.stack(terms)).sum(0)

    return penalty


def quality(size: Tensor, rough: Tensor, rates: Tensor) -> Tensor:
    """Logs of size and roughness ``(k,)`` less those of the rates ``(3, k)``; small is bad."""
    described = size.clamp(min=TINY).log() + rough.clamp(min=TINY).log()
    return described - rates.clamp(min=LEAST_RATE).log().sum(0)


@torch.no_grad()
def success_rates(model: Classifier, images: Tensor, labels: Tensor, triggers: Triggers) -> Tensor:
    """How often each class's trigger works, its removal leaves the label, and it works alone.

    Returns:
        ``(3, K)``: attack, crop, explanation.
    """
    rates = []
    for t in range(len(triggers.masks)):
        candidates = Candidates(
            model=model,
            classes=torch.tensor([t], device=images.device),
            masks=triggers.masks[t : t + 1],
            patterns=triggers.patterns[t : t + 1],
            images=images,
            labels=labels,
        )
        attack = success_share(candidates.logits(candidates.stamped()), candidates.classes)[0]
        crop = (cropped(candidates)[0].argmax(1) == labels).float().mean()
        rates.append(torch.stack([attack, crop, alone(candidates)[0, 0].softmax(0)[t]]))
    return torch.stack(rates, dim=1)


@defense("tabor", paper="arXiv:1908.01763", needs="labels")
def tabor(
    model: Classifier,
    view: DefenderView,
    *,
    lambda1: float = 1e-3,  # of the mask's size, loss per pixel (ours; see the module)
    lambda2: float = 1e-4,  # of the size of the pattern outside (ours)
    lambda3: float = 1e-4,  # of the mask's roughness (ours)
    lambda4: float = 1e-5,  # of the roughness of the pattern outside (ours)
    lambda5: float = 1e-2,  # of the loss of images without what the mask covers (ours)
    lambda6: float = 1e-2,  # of the loss of the trigger alone (public code)
    rounds: int = 100,  # of the search, at most (our matched cost, as nc)
    round_steps: int = 4,  # steps of Adam per round (our matched cost, as nc)
    search_batch: int = 32,  # images per step and class, at most (as nc)
    search_lr: float = 0.1,  # of Adam on masks and patterns (trojanzoo)
    patience: int = 5,  # rounds of success or failure that change the weights (as nc)
    index_threshold: float = 2.0,  # anomaly index above which a class is suspicious (paper)
    share: float = 0.2,  # of each batch that is stamped to unlearn (as nc)
    lr: float = 0.01,  # initial rate of SGD, cosine to zero (as nc)
    steps: int = 200,  # of unlearning (our matched cost, as nc)
    batch_size: int = 64,  # images per step of unlearning, at most (as nc)
    momentum: float = 0.9,  # of SGD (as nc)
    weight_decay: float = 5e-4,  # of SGD, per step and unit of rate (as nc)
) -> Classifier:
    """Unlearns the triggers of suspicious classes, in place; see the module."""
    search = Search(
        rounds=rounds,
        round_steps=round_steps,
        search_batch=search_batch,
        search_lr=search_lr,
        patience=patience,
        initial_cost=1.0,
    )
    check_not_negative(lambda1=lambda1, lambda2=lambda2, lambda3=lambda3, lambda4=lambda4)
    check_not_negative(lambda5=lambda5, lambda6=lambda6, index_threshold=index_threshold)
    how = Unlearning(
        share=share,
        lr=lr,
        steps=steps,
        batch_size=batch_size,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    images, labels = view.require_labelled()
    penalty = weighted((lambda1, lambda2, lambda3, lambda4, lambda5, lambda6))
    classes = range(view.num_classes)
    triggers = invert(model, view, images, labels, classes, penalty, search)
    index = torch.randperm(len(images), generator=view.generator)[:JUDGED].to(images.device)
    with frozen(model):
        rates = success_rates(model, images[index], labels[index], triggers)
    values = quality(triggers.norms(), roughness(triggers.masks), rates)
    flagged = flag(view, STATISTIC, values, index_threshold, triggers)
    unlearn(model, view, images, labels, triggers.stamps(flagged), how)
    return model
