"""Fine-tuning: continue supervised training on clean images and hope the backdoor is forgotten.

Paper: no single one; the baseline of I-BAU (arXiv:2110.03735), BCU ("Backdoor Cleansing
with Unlabeled Data", CVPR 2023, arXiv:2211.12044) and DHBE, in the settings of BCU's: SGD 0.01,
momentum 0.9, weight decay 5e-4, cosine.

Differences from BCU's fine-tuning:

1. 400 steps of 64 images instead of 100 epochs of batches of 256 (1,000 steps at 2,500 images):
   the same cost at every budget and for every defense.
2. The last iterate is returned. BCU's code reports the epoch with the best *test* accuracy.
3. Batch normalisation keeps the victim's statistics when a batch has fewer than 16 images, where
   batch statistics destroy the model.
4. The data set's own augmentation: BCU flips CIFAR-10 only, and so do we (flips turn signs around).
"""

from __future__ import annotations

from defenses._training import Tuning, train_on_budget
from defenses.base import DefenderView, defense
from zoo.models import Classifier


@defense("ft", paper="arXiv:2211.12044", needs="labels")
def ft(
    model: Classifier,
    view: DefenderView,
    *,
    lr: float = 0.01,  # initial rate of SGD, cosine to zero (BCU, section 4.1)
    steps: int = 400,  # optimiser steps (our matched cost; BCU: 100 epochs)
    batch_size: int = 64,  # images per step, at most (DHBE, appendix C)
    momentum: float = 0.9,  # of SGD (BCU, section 4.1)
    weight_decay: float = 5e-4,  # of SGD, per step and unit of rate (BCU, section 4.1)
) -> Classifier:
    """Fine-tunes all weights on labelled images; see the module."""
    tuning = Tuning(
        lr=lr, steps=steps, batch_size=batch_size, momentum=momentum, weight_decay=weight_decay
    )
    images, labels = view.require_labelled()
    train_on_budget(model, view, images, labels, tuning)
    return model
