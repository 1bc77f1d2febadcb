"""Projected gradient descent in the infinity norm (Madry et al., arXiv:1706.06083).

For training on adversarial images and for attacking with them: both take the same step. A leaf that
knows no data set and no trigger, so that a defense may hold it. With one step, training is fast
adversarial training (Wong et al., arXiv:2001.03994).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.models import Classifier
from zoo.seeds import generator_of
from zoo.train import LossHook

LEVELS: Final = 255  # grey levels: what epsilons are counted in


def pgd_step(
    model: Classifier, images: Tensor, delta: Tensor, labels: Tensor, *, epsilon: float, size: float
) -> tuple[Tensor, Tensor]:
    """One step of every pixel up the cross-entropy, projected into the ball.

    The gradient is taken where the perturbed image is an image: a clamp inside the graph would hide
    it at saturated pixels.

    Args:
        model: in eval mode, or the images would share statistics.
        images: ``float32 (N, C, H, W)`` in [0, 1].
        delta: the same shape; added to the images and cut to [0, 1] it is where the step begins.
        labels: ``int64 (N,)``: the classes to lead away from.
        epsilon: the largest change of a pixel, in [0, 1].
        size: of the step, in [0, 1].

    Returns:
        The new delta, within epsilon; and the logits ``(N, K)`` where the step began.
    """
    delta = (perturbed(images, delta) - images).detach().requires_grad_(True)
    logits = model(images + delta).float()
    (gradient,) = torch.autograd.grad(_cross_entropy(logits, labels), delta)
    moved = (delta.detach() + size * gradient.sign()).clamp(-epsilon, epsilon)
    return moved, logits.detach()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """log(1 + sum over j != y of exp(z_j - z_y)), the mean over the batch.

    The usual form loses the gradient at z_y where a model is so sure that its softmax rounds to 1,
    and the model would look robust.
    """
    lead = logits - logits.gather(1, labels[:, None])
    others = lead.scatter(1, labels[:, None], -torch.inf)
    return F.softplus(others.logsumexp(dim=1)).mean()


def perturbed(images: Tensor, delta: Tensor) -> Tensor:
    """Images with a perturbation, cut to [0, 1]."""
    return (images + delta).clamp(0, 1)


def adversarial_loss(*, epsilon: float, steps: int, seed: int) -> LossHook:
    """Cross-entropy on the images that PGD finds within epsilon, from a random start.

    Steps have size min(1.25, 2.5 / steps) epsilon: 2/255 for ten steps within 8/255. The inner
    attack runs in eval mode, so that it neither moves batch statistics nor meets dropout.

    Args:
        epsilon: the largest change of a pixel value, in grey levels of 255.
        steps: of the inner attack, at least one.
        seed: of the random starts; the start of step n depends on it and on the images' order.
    """
    bound = epsilon / LEVELS
    size = min(1.25, 2.5 / steps) * bound

    def loss(model: Classifier, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        generator = generator_of(seed, progress, device=images.device)
        noise = torch.rand(images.shape, generator=generator, device=images.device)
        delta = bound * (2 * noise - 1)
        was_training = [m for m in model.modules() if m.training]
        model.eval()
        for _ in range(steps):
            delta, _ = pgd_step(model, images, delta, labels, epsilon=bound, size=size)
        for module in was_training:
            module.training = True
        return F.cross_entropy(model(perturbed(images, delta)).float(), labels)

    return loss


def withstands(
    model: Classifier, images: Tensor, labels: Tensor, noise: Tensor, *, epsilon: float, steps: int
) -> Tensor:
    """Which images PGD never gets misclassified: neither at its start nor at any step.

    Steps of a quarter of epsilon. An image that is found out is left alone, which saves most of the
    work on a model that is not robust.

    Args:
        model: in eval mode.
        images: ``float32 (N, C, H, W)`` in [0, 1].
        labels: ``int64 (N,)``.
        noise: the same shape as the images, in [-1, 1]: the start, in units of epsilon.
        epsilon: the largest change of a pixel value, in grey levels of 255.
        steps: how many.

    Returns:
        ``bool (N,)``.
    """
    bound = epsilon / LEVELS
    left = torch.arange(len(labels), device=labels.device)
    delta = bound * noise
    for _ in range(steps):
        if not len(left):
            break
        delta, logits = pgd_step(
            model, images[left], delta, labels[left], epsilon=bound, size=bound / 4
        )
        right = logits.argmax(dim=1) == labels[left]
        left, delta = left[right], delta[right]
    found = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    if len(left):
        with torch.no_grad():
            last = model(perturbed(images[left], delta)).argmax(dim=1)
        found[left[last == labels[left]]] = True
    return found
