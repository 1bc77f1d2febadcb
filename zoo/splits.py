"""Cutting sets: the defender's pool and the evaluation images, test parts, training subsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from zoo.seeds import generator_of
from zoo.sources import ImageSet

POOL_SIZE: Final = 5_000
UNLABELLED_IMAGES: Final = 2_500  # of the budgets `unlabeled` and `ood`


@dataclass(frozen=True, kw_only=True)
class Split:
    """The test part cut in two: indices into it, ascending, disjoint, together everything."""

    pool: Tensor  # the defender's
    eval: Tensor  # the judge's


def split_test(labels: Tensor, dataset: str, seed: int, pool_size: int = POOL_SIZE) -> Split:
    """Class-stratified cut of a test part into pool and evaluation images.

    Args:
        labels: ``int64 (N,)``.
        dataset: name, an axis of the random numbers.
        seed: the victim's seed.
        pool_size: at most this many, and never more than half.
    """
    size = min(pool_size, len(labels) // 2)
    chosen = stratified(labels, size, generator_of("split", dataset, seed))
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[chosen] = True
    return Split(pool=mask.nonzero().flatten(), eval=(~mask).nonzero().flatten())


def draw_ood(dataset: str, ood: str, size: int, seed: int) -> Tensor:
    """Which images of an out-of-distribution set the budget `ood` holds: ``int64 (n,)`` rows.

    Args:
        dataset: of the victims; an axis of the random numbers, as are the next and the last.
        ood: the out-of-distribution set.
        size: how many images that set has.
        seed: the victim's seed.
    """
    order = torch.randperm(size, generator=generator_of("ood", dataset, ood, seed))
    return order[:UNLABELLED_IMAGES]


def stratified(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """``size`` random indices with the class shares of the whole, ascending."""
    classes, counts = labels.unique(return_counts=True)
    exact = counts.double() * size / len(labels)
    take = exact.floor().long()
    rest = (exact - take).argsort(descending=True, stable=True)[: size - int(take.sum())]
    take[rest] += 1
    picked = []
    for c, k in zip(classes.tolist(), take.tolist(), strict=True):
        members = (labels == c).nonzero().flatten()
        picked.append(members[torch.randperm(len(members), generator=generator)[:k]])
    return torch.cat(picked).sort().values


def subset(part: ImageSet, size: int, generator: torch.Generator) -> Tensor:
    """Indices of about ``size`` images in whole groups, class by class; ascending.

    Where every image is a group of its own, exactly ``size``; where groups are tracks, each class
    gets whole tracks until its share is reached. All of them where there are no more than that.
    """
    if size >= len(part):
        return torch.arange(len(part))
    if len(part.groups.unique()) == len(part):
        return stratified(part.labels, size, generator)
    return _whole_groups(part, size / len(part), generator)


def carve(part: ImageSet, share: float = 0.3) -> tuple[ImageSet, ImageSet]:
    """Cuts a test part off a set that has none: (train, test), whole groups, always the same."""
    generator = generator_of("carve", len(part))
    if len(part.groups.unique()) == len(part):
        test = stratified(part.labels, round(share * len(part)), generator)
    else:
        test = _whole_groups(part, share, generator)
    mask = torch.zeros(len(part), dtype=torch.bool)
    mask[test] = True
    return part.take((~mask).nonzero().flatten()), part.take(mask.nonzero().flatten())


def _whole_groups(part: ImageSet, share: float, generator: torch.Generator) -> Tensor:
    picked = []
    for c in part.labels.unique().tolist():
        members = (part.labels == c).nonzero().flatten()
        groups = part.groups[members].unique()
        groups = groups[torch.randperm(len(groups), generator=generator)]
        sizes = torch.stack([(part.groups[members] == g).sum() for g in groups])
        wanted = max(1, round(share * len(members)))
        count = int((sizes.cumsum(0) < wanted).sum()) + 1
        picked.append(members[torch.isin(part.groups[members], groups[:count])])
    return torch.cat(picked).sort().values
