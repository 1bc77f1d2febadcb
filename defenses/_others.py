"""Drawing images that are not of a class: what a trigger towards it has to move."""

from __future__ import annotations

import torch
from torch import Tensor


class Others:
    """Draws images of other classes than a given one; any image where there is no other.

    The share of images that are of a class anyway differs between the classes of a small or
    unlabelled budget, and a common class must not look attacked for it.
    """

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        labels = labels.cpu()
        self._order = labels.argsort(stable=True)
        counts = torch.bincount(labels, minlength=num_classes)
        self._own = torch.where(counts < len(labels), counts, 0)  # how many must not be drawn
        self._first = counts.cumsum(0) - counts  # where they begin in that order

    def draw(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """One index for each class of ``(N,)``, with replacement; all on the CPU."""
        first, own = self._first[classes], self._own[classes]
        share = torch.rand(len(classes), generator=generator, dtype=torch.float64)
        rank = (share * (len(self._order) - own)).long()
        return self._order[rank + own * (rank >= first)]
