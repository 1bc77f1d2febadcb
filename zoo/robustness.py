"""Robust accuracy: how many evaluation images no attack can get misclassified.

A measure of its own, beside that of a backdoor: for defenses against adversarial examples, as in
FRED's Tables 2 and 8 (arXiv:2206.07018). ``ROBUST_VERSION`` is part of the key of every cell that
is measured so, and of no other; a test holds a hash of this code against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypedDict

import torch
from torch import Tensor

from zoo.autoattack import LEAST_CLASSES, autoattack_version, withstands_autoattack
from zoo.models import Classifier
from zoo.pgd import withstands
from zoo.seeds import generator_of, seed_of
from zoo.splits import stratified
from zoo.train import to_unit

ROBUST_VERSION: Final = 1
PGD_EPSILONS: Final = (8, 10, 16)  # grey levels of 255, ascending (FRED, Table 2)
AUTOATTACK_EPSILONS: Final = (8, 10)  # each of them one of PGD's (FRED, Table 2)
PGD_STEPS: Final = 20


class RobustDict(TypedDict):
    """JSON form of ``bench.records.RobustAccuracy``; fractions in [0, 1], by epsilon."""

    acc: float
    pgd: dict[str, float]
    autoattack: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class EvasionSet:
    """The images of one victim that are attacked, the same for every model made of it.

    Attributes:
        images: ``uint8 (N, C, H, W)``.
        labels: ``int64 (N,)``.
        noise: ``float32 (N, C, H, W)`` in [-1, 1], where PGD starts, in units of epsilon.
        chosen: ``bool (N,)``: which of them AutoAttack gets; all False where it is not run.
        seed: of AutoAttack.
    """

    images: Tensor
    labels: Tensor
    noise: Tensor
    chosen: Tensor
    seed: int


def evasion_set(
    images: Tensor, labels: Tensor, *, pgd: int, autoattack: int, axes: tuple[object, ...]
) -> EvasionSet:
    """Draws with the class shares of the whole; all images where there are no more.

    Args:
        images: ``uint8 (N, C, H, W)``: the evaluation images.
        labels: ``int64 (N,)``.
        pgd: how many for PGD.
        autoattack: how many of those for AutoAttack; none where it is not installed, or where there
            are too few classes for it.
        axes: of the random numbers: what the images belong to.
    """
    generator = generator_of("evasion", *axes)
    rows = stratified(labels, min(pgd, len(labels)), generator)
    chosen = torch.zeros(len(rows), dtype=torch.bool)
    if autoattack_version() and len(labels.unique()) >= LEAST_CLASSES:
        chosen[stratified(labels[rows], min(autoattack, len(rows)), generator)] = True
    noise = 2 * torch.rand(images[rows].shape, generator=generator) - 1
    return EvasionSet(
        images=images[rows],
        labels=labels[rows],
        noise=noise,
        chosen=chosen,
        seed=seed_of("autoattack", *axes),
    )


def robust_accuracy(model: Classifier, given: EvasionSet) -> RobustDict:
    """Accuracy without an attack, under PGD and under AutoAttack, in float32.

    A change within 8 levels is one within 16: what is found out at one epsilon counts as found out
    at all larger ones. AutoAttack is tried on what PGD leaves, so that its figure is the worst of
    both, over its own images.

    Args:
        model: decides the device; left in eval mode, its parameters without gradients.
        given: what to attack.
    """
    model.requires_grad_(False).eval()
    device = next(model.parameters()).device
    images, labels = to_unit(given.images.to(device)), given.labels.to(device)
    chosen = given.chosen.to(device)
    right = _right(model, images, labels)
    result: RobustDict = {"acc": _share(right), "pgd": {}, "autoattack": {}}
    left, stronger = right, right & chosen
    for epsilon in PGD_EPSILONS:
        left = _after_pgd(model, images, labels, given.noise, left, epsilon)
        result["pgd"][str(epsilon)] = _share(left)
        if epsilon in AUTOATTACK_EPSILONS and bool(chosen.any()):
            stronger = _after_autoattack(
                model, images, labels, stronger & left, epsilon, given.seed
            )
            result["autoattack"][str(epsilon)] = _share(stronger[chosen])
    return result


def _after_pgd(
    model: Classifier, images: Tensor, labels: Tensor, noise: Tensor, left: Tensor, epsilon: int
) -> Tensor:
    """Which of the images that are left withstand PGD within epsilon: ``bool (N,)``."""
    found = torch.zeros_like(left)
    size = 1024 if images.is_cuda else 128  # a CPU's caches hold no more
    for part in left.nonzero().flatten().split(size):
        start = noise[part.cpu()].to(images.device)
        found[part] = withstands(
            model, images[part], labels[part], start, epsilon=epsilon, steps=PGD_STEPS
        )
    return found


def _after_autoattack(
    model: Classifier, images: Tensor, labels: Tensor, left: Tensor, epsilon: int, seed: int
) -> Tensor:
    """Which of the images that are left withstand AutoAttack within epsilon: ``bool (N,)``."""
    found = torch.zeros_like(left)
    rows = left.nonzero().flatten()
    if len(rows):
        found[rows] = withstands_autoattack(
            model, images[rows], labels[rows], epsilon=epsilon, seed=seed
        )
    return found


@torch.no_grad()
def _right(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Which images are classified rightly without an attack: ``bool (N,)``."""
    guesses = [model(part).argmax(dim=1) for part in images.split(128)]
    right: Tensor = torch.cat(guesses) == labels
    return right


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())
