"""Stabilised model inversion: images that are sure of their class, and stay so under perturbation.

GMI's objective with two more losses: the answer must hardly depend on small changes of the weights
(L_mp: images of the training set are where the model has converged) nor on a universal perturbation
of the images (L_dp: else trigger synthesis finds that perturbation and not the trigger). The
perturbation is shared by the images of a class and found along with them. Clean images, where there
are any, pull the features of their class (L_con) and join the set: FRED-Booster.

Paper: Chen et al., "Turning a Curse into a Blessing: Enabling Data-Free Backdoor Unlearning via
Stabilized Model Inversion", arXiv:2206.07018.

Differences from the paper:

1. delta starts from small noise and is kept in an L2 ball. The printed algorithm starts it at 0,
   where both gradients of L_dp vanish, so that it never moves; and nothing bounds it.
2. L_mp is over the parameters of the last stage and the head, not all: the second derivative
   through all layers costs more than the rest together. It is divided by the root of their number,
   so that its weight, which is ours for that reason, means the same on any network.
3. The rates a1 and a2, the number of iterations and the generator are unstated. The step of the
   latents is GMI's (Nesterov, box, best of five starts), with its rate for the mean over the images
   of a class. Class 100, consistency 100 and data 0.1 are a tenth of the paper's 1000, 1000 and 1,
   in which that rate fits; realism, whose weight is 1 there and here, is ten times as heavy beside
   them as in the paper. L_dp has little weight beside the others, as in the paper's ratios.
4. Eq. 4 maximises over "theta" and sums to "D"; read as delta and B.
5. L_con takes the mean over the clean images of a class. The paper's sum makes it grow with the
   budget.
6. At labelled budgets the clean images are appended. The paper's Booster has 20 synthetic and one
   clean image per class.
"""

from __future__ import annotations

from typing import Final

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
from defenses._stability import data_perturbation, model_perturbation
from defenses.base import DefenderView, Prior, base_set
from zoo.models import Classifier
from zoo.train import DivergedError

JITTER: Final = 1e-2  # standard deviation of delta's start, pixels in [0, 1]


def project(delta: Tensor, radius: float) -> Tensor:
    """Every perturbation ``(K, C, H, W)`` to the nearest point of the L2 ball."""
    norms = delta.flatten(1).norm(dim=1).clamp(min=1e-12)
    shrink: Tensor = (radius / norms).clamp(max=1.0)
    return delta * shrink[:, None, None, None]


def ascend(
    model: Classifier,
    prior: Prior,
    latents: Tensor,
    delta: Tensor,
    labels: Tensor,
    *,
    latent_lr: float,
    lr: float,
    radius: float,
) -> Tensor:
    """Lines 4 and 5: delta goes up L_dp as it will be after a step of the latents down it.

    Args:
        model: in eval mode.
        prior: the generator.
        latents: ``(N, Z)``.
        delta: ``(K, C, H, W)``, one perturbation per class.
        labels: ``int64 (N,)``, which of them is whose.
        latent_lr: a1 of the look-ahead step of the latents.
        lr: a2 of the step of delta, along its normalised gradient.
        radius: L2 bound.
    """
    here = latents.detach().requires_grad_()
    loss = data_perturbation(model, prior.generate(here), delta[labels])
    (slope,) = torch.autograd.grad(loss.sum(), here)
    with torch.no_grad():
        images = prior.generate(here - latent_lr * slope)
    moved = delta.detach().requires_grad_()
    loss = data_perturbation(model, images, moved[labels])
    (slope,) = torch.autograd.grad(loss.sum(), moved)
    norms = slope.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
    return project(delta + lr * slope / norms, radius)


def class_centres(model: Classifier, view: DefenderView) -> tuple[Tensor, Tensor] | None:
    """Penultimate features of the clean images and their labels; None where there are none."""
    if view.images is None or view.labels is None:
        return None
    with torch.no_grad():
        return torch.cat([model.features(x) for x in view.images.split(256)]), view.labels


def consistency(features: Tensor, labels: Tensor, clean: tuple[Tensor, Tensor]) -> Tensor:
    """L_con: mean distance from the features of the clean images of the same class: ``(N,)``.

    0 for a class of which there is no clean image.
    """
    distances = torch.cdist(features.float(), clean[0].float())
    same = labels[:, None] == clean[1][None]
    return (distances * same).sum(1) / same.sum(1).clamp(min=1)


@base_set("fred", paper="arXiv:2206.07018", needs="auxiliary", booster=True)
def fred(
    model: Classifier,
    view: DefenderView,
    *,
    per_class: int = 20,  # images per class (section 5.1: 20, for CIFAR-10 40)
    steps: int = 100,  # N, iterations (unstated)
    draws: int = 5,  # random latents to choose the start from (ours)
    lr: float = 1e-3,  # a1, of Nesterov's method, latents in [-1, 1], for a sum (as gmi)
    delta_lr: float = 0.1,  # a2, L2 length of a step of delta, pixels in [0, 1] (unstated)
    radius: float = 2.0,  # L2 bound of delta for any image (ours)
    class_weight: float = 100.0,  # lambda_1 (paper: 1000, see 3)
    model_weight: float = 30.0,  # lambda_2, of the sum over root P (paper: 10 or 100, of the sum)
    consistency_weight: float = 100.0,  # lambda_3 (paper: 1000, see 3)
    data_weight: float = 0.1,  # lambda_4 (paper: 1, see 3)
) -> tuple[Tensor, Tensor]:
    """Synthetic images, then the clean ones of the budget, if any, and labels; see the module."""
    check_positive(per_class=per_class, steps=steps, draws=draws, lr=lr, radius=radius)
    check_not_negative(class_weight=class_weight, model_weight=model_weight, delta_lr=delta_lr)
    check_not_negative(consistency_weight=consistency_weight, data_weight=data_weight)
    prior = view.require_prior()
    clean = class_centres(model, view) if consistency_weight else None
    labels = balanced_labels(view.num_classes, per_class, view.device)
    start = draw_latents(model, prior, labels, draws, view.generator)
    noise = torch.randn(view.num_classes, *model.spec.image_shape, generator=view.generator)
    delta = project(JITTER * noise.to(view.device), radius)

    def objective(images: Tensor, wanted: Tensor) -> Tensor:
        loss = realism_and_class_loss(prior, model, images, wanted, class_weight)
        if model_weight:
            loss = loss + model_weight * model_perturbation(model, images, wanted).sum()
        if clean is not None:
            near = consistency(model.features(images), wanted, clean)
            loss = loss + consistency_weight * near.sum()
        if data_weight:
            loss = loss + data_weight * data_perturbation(model, images, delta[wanted]).sum()
        return loss

    made = []
    for number, chunk in enumerate(class_chunks(labels)):
        latents, wanted = start[chunk].requires_grad_(), labels[chunk]
        optimizer = optimizer_of(latents, lr)
        loss = torch.zeros(())
        for _ in range(steps):
            if data_weight:
                rates = {"latent_lr": lr, "lr": delta_lr, "radius": radius}
                delta = ascend(model, prior, latents, delta, wanted, **rates)
            loss = objective(prior.generate(latents), wanted)
            descend(optimizer, latents, loss)
        view.log(number, loss=loss.item() / len(chunk))
        with torch.no_grad():
            made.append(prior.generate(latents))
    images = torch.cat(made)
    if not images.isfinite().all():
        raise DivergedError("the images are not finite")
    view.log(number + 1, reached=reached(model, images, labels))
    if view.images is not None and view.labels is not None:
        return torch.cat([images, view.images]), torch.cat([labels, view.labels])
    return images, labels
