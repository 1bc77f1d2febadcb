"""Naive inversion: pixels changed until the classifier is sure of a class, without any prior.

Paper: the base set called "Naive" in Chen et al., "Turning a Curse into a Blessing: Enabling
Data-Free Backdoor Unlearning via Stabilized Model Inversion" (FRED), arXiv:2206.07018; the
inversion is DeepInspect's (doi:10.24963/ijcai.2019/647).

Differences from the paper, which states neither steps nor rate nor prior:

1. 200 steps of Adam at 0.05, no smoothness; ``smoothness=0.001`` is a total variation prior.
2. Cross-entropy, as FRED describes it; DeepInspect's 1 - f_y(x) has no gradient where the
   classifier is sure of another class.
3. An image whose class the classifier does not see at the end is kept: it is what the method made.
   The curve has the share of such failures.
"""

from __future__ import annotations

from torch import Tensor

from defenses._checks import check_not_negative, check_positive
from defenses._inversion_images import invert
from defenses._latent import balanced_labels, reached
from defenses.base import DefenderView, base_set
from zoo.models import Classifier


@base_set("naive", paper="arXiv:2206.07018", needs="nothing")
def naive(
    model: Classifier,
    view: DefenderView,
    *,
    per_class: int = 20,  # images per class (FRED, section 5.1: 20, for CIFAR-10 40)
    steps: int = 200,  # of Adam (ours)
    lr: float = 0.05,  # of Adam, pixels in [0, 1] (ours)
    smoothness: float = 0.0,  # weight of the total variation (ours: none)
) -> tuple[Tensor, Tensor]:
    """Images ``(K per_class, C, H, W)`` in [0, 1] and their labels; see the module."""
    check_positive(per_class=per_class, steps=steps, lr=lr)
    check_not_negative(smoothness=smoothness)
    labels = balanced_labels(view.num_classes, per_class, view.device)
    images = invert(model, labels, view.generator, steps=steps, lr=lr, smoothness=smoothness)
    view.log(steps, reached=reached(model, images, labels))
    return images, labels
