"""Learn the distribution of all patches that trigger a class, step by step; unlearn samples of it.

MESA, max-entropy staircase approximation: one generator for every level beta of success, whose
triggers need not be better than beta but should be as diverse as mutual information can make them.

Paper: "Defending Neural Backdoors via Generative Distribution Modeling", NeurIPS 2019,
arXiv:1910.04749. What it leaves open follows its authors' code. ``gdm-oracle`` is told the target
class, as in DHBE's comparison.

Differences from the paper and its code:

1. The target is not given. Single patches are searched for all classes first, and the classes that
   these reach on at least ``reach_threshold`` of the images of other classes are modelled, two at
   most, highest reach first, of equals any. Where there is none, this is reported as not detected.
   Reach is measured on images that the patch may have been fitted to.
2. The code pastes anywhere. A trigger that was always in one corner works around it only, on about
   6 % of the positions for a BadNets victim on `signs`: the search finds a cell of a 6 x 6 grid
   for every patch, and triggers are pasted anywhere in it. The oracle is told the class, not the
   place.
3. Every image has a position of its own; the code draws one for a batch. The last row and column
   of positions, which the code never draws, are included.
4. Patches of 3 and of 5 pixels are both modelled; the size is a guess, 3 x 3 in the code.
5. Generators start around the patch that the search found, not around grey: where no image is
   moved at first, min(p, beta) has next to no gradient. So 300 steps of 64 images do for a
   sub-model; the code has 10 epochs of CIFAR-10's test images. The hidden layers have 512 units on
   every data set; the code has 2,048 for CIFAR-100.
6. A sub-model sees images of other classes only, where there are any.
7. Unlearning: 200 steps of SGD 0.01 and 10 % stamped, as in DHBE, not 10 epochs at 1e-3 and 1 %.
   Sub-models take turns within a batch, not by epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from defenses._checks import check_positive, check_share
from defenses._mesa import PatchGenerator, Staircase, learn_submodel
from defenses._patch_screen import (
    Place,
    Spot,
    best_of,
    best_of_each_size,
    highest,
    paste_somewhere,
    picture,
    screen,
)
from defenses._unlearning import Stamp, Unlearning, unlearn
from defenses.base import DefenderView, Finding, NotApplicableError, NotDetectedError, defense
from zoo.models import Classifier

SIZES: Final = (3, 5)  # sides of the patches, pixels
LEVELS: Final = (0.5, 0.8, 0.9)  # beta, the staircase (code)
MOST_CLASSES: Final = 2  # that are modelled


def stamper(net: PatchGenerator, place: Place, generator: torch.Generator) -> Stamp:
    """What pastes a fresh sample on every image, somewhere in the cell."""

    @torch.no_grad()
    def put(images: Tensor) -> Tensor:
        _, patches = net.sample(len(images), generator)
        return paste_somewhere(images, patches, [place] * len(images), generator)

    return put


def learn_distribution(
    model: Classifier,
    view: DefenderView,
    images: Tensor,
    labels: Tensor,
    spots: Sequence[Spot],
    staircase: Staircase,
) -> list[Stamp]:
    """Sub-models of every level, around each of some patches; and what stamps samples of them."""
    return [
        stamper(
            learn_submodel(model, view, images, labels, spot, beta, staircase),
            spot.place,
            view.generator,
        )
        for spot in spots
        for beta in LEVELS
    ]


def find(
    spots: Sequence[Spot],
    num_classes: int,
    shape: tuple[int, int, int],
    threshold: float,
    generator: torch.Generator,
) -> Finding:
    """The reach of every class's best patch; flagged are the few of highest reach above a bar."""
    best = [best_of(spots, target) for target in range(num_classes)]
    reach = torch.tensor([spot.reach for spot in best])
    order = highest(reach, MOST_CLASSES, generator)
    return Finding(
        statistic="share of images that the best patch sends to the class",
        values=reach,
        index=reach,
        threshold=threshold,
        flagged=tuple(t for t in order if reach[t] >= threshold),
        triggers=torch.stack([picture(spot, shape) for spot in best]),
    )


def why_nothing(finding: Finding) -> str:
    """The reason for the record where no class is flagged."""
    top = int(finding.index.argmax())
    return (
        f"no patch of up to {max(SIZES)} pixels sends {finding.threshold:.0%} of the images of "
        f"other classes to its own; the best sends {finding.values[top]:.0%} to class {top}"
    )


@defense("gdm", paper="arXiv:1910.04749", needs="labels")
def gdm(
    model: Classifier,
    view: DefenderView,
    *,
    screen_steps: int = 30,  # of Adam per coarse patch, twice as many per fine one (ours)
    screen_lr: float = 0.3,  # of Adam on the logits of pixels (ours)
    screen_kept: int = 16,  # coarse places that are searched again, finer (ours)
    screen_probes: int = 10,  # images that judge a coarse patch; 4 times as many, a fine one (ours)
    reach_threshold: float = 0.8,  # share of images; the middle level of the staircase (ours)
    alpha: float = 0.1,  # weight of the mutual information, nats (code)
    submodel_steps: int = 300,  # of Adam per sub-model (our matched cost; code: 10 epochs)
    submodel_batch: int = 64,  # images per step (ours; code: 128)
    submodel_lr: float = 1e-3,  # of Adam on generator and critic (ours, for few steps; code: 2e-4)
    share: float = 0.1,  # of each batch that is stamped to unlearn (DHBE, appendix D; code: 0.01)
    lr: float = 0.01,  # initial rate of SGD, cosine to zero (that of ft)
    steps: int = 200,  # of unlearning (our matched cost; code: 10 epochs)
    batch_size: int = 64,  # images per step of unlearning, at most (that of ft)
    momentum: float = 0.9,  # of SGD (code)
    weight_decay: float = 5e-4,  # of SGD, per step and unit of rate (that of ft; code: 0)
) -> Classifier:
    """Unlearns the patches of classes that patches reach, in place; see the module."""
    check_share(reach_threshold=reach_threshold)
    check_positive(screen_steps=screen_steps, screen_lr=screen_lr)
    check_positive(screen_kept=screen_kept, screen_probes=screen_probes)
    staircase = Staircase(
        alpha=alpha, steps=submodel_steps, batch_size=submodel_batch, lr=submodel_lr
    )
    how = Unlearning(
        share=share,
        lr=lr,
        steps=steps,
        batch_size=batch_size,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    images, labels = view.require_labelled()
    classes = range(view.num_classes)
    spots = screen(
        model,
        view,
        images,
        labels,
        classes,
        sizes=SIZES,
        steps=screen_steps,
        lr=screen_lr,
        kept=screen_kept,
        probes=screen_probes,
    )
    shape = model.spec.image_shape
    view.finding = find(spots, view.num_classes, shape, reach_threshold, view.generator)
    if not view.finding.flagged:
        raise NotDetectedError(why_nothing(view.finding))
    likely = [s for target in view.finding.flagged for s in best_of_each_size(spots, target)]
    stamps = learn_distribution(model, view, images, labels, likely, staircase)
    unlearn(model, view, images, labels, stamps, how)
    return model


@defense("gdm-oracle", paper="arXiv:1910.04749", needs="target", oracle=True)
def gdm_oracle(
    model: Classifier,
    view: DefenderView,
    *,
    screen_steps: int = 30,  # of Adam per coarse patch, twice as many per fine one (as gdm)
    screen_lr: float = 0.3,  # of Adam on the logits of pixels (as gdm)
    screen_kept: int = 9,  # coarse places that are searched again, finer: all (ours)
    screen_probes: int = 10,  # images that judge a coarse patch (as gdm)
    alpha: float = 0.1,  # weight of the mutual information, nats (as gdm)
    submodel_steps: int = 300,  # of Adam per sub-model (as gdm)
    submodel_batch: int = 64,  # images per step (as gdm)
    submodel_lr: float = 1e-3,  # of Adam on generator and critic (as gdm)
    share: float = 0.1,  # of each batch that is stamped to unlearn (as gdm)
    lr: float = 0.01,  # initial rate of SGD, cosine to zero (as gdm)
    steps: int = 200,  # of unlearning (as gdm)
    batch_size: int = 64,  # images per step of unlearning, at most (as gdm)
    momentum: float = 0.9,  # of SGD (as gdm)
    weight_decay: float = 5e-4,  # of SGD, per step and unit of rate (as gdm)
) -> Classifier:
    """Unlearns the patches of the class that it is told, in place; see the module."""
    check_positive(screen_steps=screen_steps, screen_lr=screen_lr)
    check_positive(screen_kept=screen_kept, screen_probes=screen_probes)
    staircase = Staircase(
        alpha=alpha, steps=submodel_steps, batch_size=submodel_batch, lr=submodel_lr
    )
    how = Unlearning(
        share=share,
        lr=lr,
        steps=steps,
        batch_size=batch_size,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    images, labels = view.require_labelled()
    if view.target is None:
        raise NotApplicableError("needs the target class; there is none")
    spots = screen(
        model,
        view,
        images,
        labels,
        [view.target],
        sizes=SIZES,
        steps=screen_steps,
        lr=screen_lr,
        kept=screen_kept,
        probes=screen_probes,
    )
    likely = best_of_each_size(spots, view.target)
    stamps = learn_distribution(model, view, images, labels, likely, staircase)
    unlearn(model, view, images, labels, stamps, how)
    return model
