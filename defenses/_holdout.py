"""A hold-out of the defender's own budget: the only images a threshold may be chosen on."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

MIN_HELD: Final = 20  # with fewer, an accuracy says nothing: use fixed defaults


def hold_out(
    labels: Tensor, generator: torch.Generator, share: float = 0.2
) -> tuple[Tensor, Tensor] | None:
    """Cuts a budget in two, class by class.

    Args:
        labels: ``int64 (N,)``.
        generator: on the CPU.
        share: of every class that is held out, rounded: with few images in a class, another share
            of the whole (of 300 images of 43 classes, 14 %; of two images in each, none).

    Returns:
        (index to fit on, index held out), ``int64`` on the device of the labels; None where fewer
        than 20 images would be held out.
    """
    held = []
    for label in labels.unique().tolist():
        members = (labels.cpu() == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        held.append(members[order[: round(share * len(members))]])
    chosen = torch.cat(held).sort().values
    if len(chosen) < MIN_HELD:
        return None
    fit = torch.ones(len(labels), dtype=torch.bool)
    fit[chosen] = False
    return fit.nonzero().flatten().to(labels.device), chosen.to(labels.device)
