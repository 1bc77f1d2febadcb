"""Adversarial fine-tuning: continue training, on the worst image near each clean one.

Against adversarial examples, not against backdoors: with few epochs on labelled images a trained
classifier learns to withstand small changes. FRED asks whether images made from the model alone can
stand in for clean ones (its Tables 2 and 8): that is ``advft@fred`` beside ``advft``.

Paper: Jeddi, Shafiee and Wong, "A Simple Fine-tuning Is All You Need: Towards Robust Deep Learning
Via Adversarial Fine-tuning", arXiv:2012.13628, as FRED (arXiv:2206.07018, C.3) uses it.

Differences from FRED's experiment, which states neither rates, length nor inner attack:

1. The rate rises in a line for a quarter of the steps and falls in a line to zero. FRED changes the
   schedule of Jeddi et al. (a slow start, then a fast decay), and does not say into what.
2. 400 steps of 64 images, as plain fine-tuning has here: the same number of updates at every
   budget. Each costs as much as ``pgd_steps + 1`` of plain fine-tuning.
3. The inner attack is PGD as in Madry et al. (arXiv:1706.06083), from a random start, on the
   augmented image, with batch statistics at rest.
4. Batch normalisation keeps the victim's statistics when a batch has fewer than 16 images.
5. Backdoored victims are tuned as well as clean models. FRED tunes clean ones.
"""

from __future__ import annotations

from defenses._checks import check_not_negative, check_positive
from defenses._evasion import robustifier
from defenses._training import Tuning, train_on_budget
from defenses.base import DefenderView
from zoo.models import Classifier
from zoo.pgd import adversarial_loss


@robustifier("advft", paper="arXiv:2012.13628", needs="labels")
def advft(
    model: Classifier,
    view: DefenderView,
    *,
    epsilon: float = 8.0,  # largest change of a pixel, in grey levels of 255 (Madry et al.)
    pgd_steps: int = 10,  # of 2.5 / pgd_steps epsilon: here 2/255 (Madry et al.: 7 of 2/255)
    lr: float = 0.01,  # highest rate of SGD (plain fine-tuning's; FRED states none)
    steps: int = 400,  # optimiser steps (our matched cost)
    batch_size: int = 64,  # images per step, at most (plain fine-tuning's)
    momentum: float = 0.9,  # of SGD (plain fine-tuning's)
    weight_decay: float = 5e-4,  # of SGD, per step and unit of rate (plain fine-tuning's)
) -> Classifier:
    """Fine-tunes all weights on adversarial images; see the module."""
    check_not_negative(epsilon=epsilon)
    check_positive(pgd_steps=pgd_steps)
    images, labels = view.require_labelled()
    tuning = Tuning(
        lr=lr,
        steps=steps,
        batch_size=batch_size,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule="one-cycle",
    )
    # A seed that takes nothing from the view's generator: with epsilon = 0 this is fine-tuning.
    worst = adversarial_loss(epsilon=epsilon, steps=pgd_steps, seed=view.generator.initial_seed())
    train_on_budget(model, view, images, labels, tuning, worst)
    return model
