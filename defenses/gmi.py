"""Generative model inversion: the most realistic images that the classifier puts into a class.

The latents of a generator that was trained on other images are optimised, so that the critic finds
the images real and the classifier is sure of their class.

Paper: Zhang et al., "The Secret Revealer: Generative Model-Inversion Attacks Against Deep Neural
Networks", CVPR 2020, arXiv:1911.07135; as a base set for backdoor removal, FRED (arXiv:2206.07018).

Differences from the paper and its code:

1. 100 steps instead of 1,500, and the best of five random latents to start from instead of the
   best of five whole runs: a run costs a passage through the classifier per image and step. The
   best start is judged for its own label; the code judges by the position in the batch.
2. The prior is a WGAN-GP of the benchmark's own, trained on the data set's out-of-distribution
   images (the record of the base set names it); the paper's sees images of the victim's domain.
3. An image whose class the classifier does not see at the end is kept. The curve has the share.
4. The code's rate of 0.02 is one for the mean over a batch (as we remember it; FRED's Algorithm 1
   has that mean in print). Here losses are summed, so that no image influences another, and the
   rate is that of 20 images, 0.001. With 0.02 on the sum, most latents lie on the faces of the box
   within five steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from defenses._checks import check_not_negative, check_positive
from defenses._latent import (
    balanced_labels,
    class_chunks,
    descend,
    draw_latents,
    optimizer_of,
    reached,
    realism_and_class_loss,
)
from defenses.base import DefenderView, base_set
from zoo.models import Classifier
from zoo.train import DivergedError


@base_set("gmi", paper="arXiv:1911.07135", needs="auxiliary")
def gmi(
    model: Classifier,
    view: DefenderView,
    *,
    per_class: int = 20,  # images per class (FRED, section 5.1: 20, for CIFAR-10 40)
    steps: int = 100,  # of the search (ours; code: 1500)
    draws: int = 5,  # random latents to choose the start from (code: 5 restarts)
    lr: float = 1e-3,  # of Nesterov's method, latents in [-1, 1], for a sum (code: 0.02, see 4)
    class_weight: float = 100.0,  # lambda_1 of the cross-entropy (code)
) -> tuple[Tensor, Tensor]:
    """Images ``(K per_class, C, H, W)`` in [0, 1] and their labels; see the module."""
    check_positive(per_class=per_class, steps=steps, draws=draws, lr=lr)
    check_not_negative(class_weight=class_weight)
    prior = view.require_prior()
    labels = balanced_labels(view.num_classes, per_class, view.device)
    start = draw_latents(model, prior, labels, draws, view.generator)
    made = []
    for number, chunk in enumerate(class_chunks(labels)):
        latents = start[chunk].requires_grad_()
        optimizer = optimizer_of(latents, lr)
        loss = torch.zeros(())
        for _ in range(steps):
            images = prior.generate(latents)
            loss = realism_and_class_loss(prior, model, images, labels[chunk], class_weight)
            descend(optimizer, latents, loss)
        view.log(number, loss=loss.item() / len(chunk))
        with torch.no_grad():
            made.append(prior.generate(latents))
    images = torch.cat(made)
    if not images.isfinite().all():
        raise DivergedError("the images are not finite")
    view.log(number + 1, reached=reached(model, images, labels))
    return images, labels
