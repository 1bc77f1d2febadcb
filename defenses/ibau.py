"""Find one perturbation that fools the model on all images, then unlearn it: a minimax game.

min over theta, max over ||delta|| <= C of the mean loss of f_theta(x + delta) on the true labels.
The gradient for theta accounts for the dependence of the (suboptimal) delta on theta.

Paper: "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022,
arXiv:2110.03735. ``mode="paper"`` is its Algorithm 1; ``mode="repository"`` what its code does.

Where paper and code disagree:

1. Projection onto the ball of radius C: paper yes, code no (commented out).
2. The ascent: paper T steps on the true labels; code one pass over the images, a step per batch,
   on the model's own labels, with a penalty of 0.001 ||delta||^2.
3. The outer loss: paper perturbs all images; code 1 % of each batch.
4. The loss that the indirect gradient differentiates: paper the outer one; code that of the first
   batch, with the penalty.
5. Steps: paper 0.1 for both problems; code SGD 10 for delta and Adam 1e-3 for theta. Both modes
   take the code's: from delta = 0, steps of 0.1 hardly leave it.

Differences from both:

6. Line 7 of Algorithm 1 has a plus sign where its equation 4 has a minus; minus is right.
7. The inverse Hessian is applied by K fixed-point iterations in both modes, as in the code; the
   paper leaves the solver open. An exact solve is no improvement: the inner problem is not concave.
8. At least one image per batch is perturbed in repository mode. The code takes int(0.01 n), which
   is nobody below 100 images and then silently plain fine-tuning.
9. theta takes one step per batch, and the number of batches per round is capped, because cost is
   proportional to it. Batches are redrawn every round (the code cuts them once), so that a cap does
   not hide images, and are of equal size.
10. C = 10 refers to 3x32x32 images in [0, 1]; other sizes get C sqrt(d / 3072).
11. All of it runs in eval mode and float32: dropout off, running statistics untouched, no autocast.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from defenses._checks import check_positive
from defenses._hypergradient import hypergradient
from defenses.base import DefenderView, defense
from zoo.models import Classifier

MODES: Final = ("paper", "repository")
REFERENCE_PIXELS: Final = 3 * 32 * 32  # the image that the radius refers to
PENALTY: Final = 1e-3  # of ||delta||^2 in the repository's inner loss
PERTURBED_SHARE: Final = 0.01  # of a batch in the repository's outer loss

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W), labels (B,)


def project(delta: Tensor, radius: float) -> Tensor:
    """The nearest point in the L2 ball: delta * min(1, radius / ||delta||)."""
    shrink: Tensor = (radius / delta.norm().clamp(min=1e-12)).clamp(max=1.0)
    return delta * shrink


def perturbed_loss(model: Classifier, batch: Batch, delta: Tensor) -> Tensor:
    """H(delta, theta): mean cross-entropy of f(x + delta), with one delta ``(1, C, H, W)``."""
    images, labels = batch
    return F.cross_entropy(model(images + delta), labels)


def repository_inner_loss(model: Classifier, batch: Batch, delta: Tensor) -> Tensor:
    """What the code's delta minimises: -H + 0.001 ||delta||^2."""
    return PENALTY * delta.square().sum() - perturbed_loss(model, batch, delta)


def choose_perturbed(n: int, generator: torch.Generator) -> Tensor:
    """Which images of a batch of n the repository mode perturbs, ``bool (n,)``: at least one."""
    count = max(1, math.ceil(PERTURBED_SHARE * n))
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[torch.randperm(n, generator=generator)[:count]] = True
    return chosen


def ascend_paper(
    model: Classifier, batches: list[Batch], *, steps: int, lr: float, radius: float
) -> Tensor:
    """Lines 2-6: T projected steps of gradient ascent on H from zero, batch after batch."""
    delta = torch.zeros_like(batches[0][0][:1]).requires_grad_()
    for t in range(steps):
        loss = perturbed_loss(model, batches[t % len(batches)], delta)
        (slope,) = torch.autograd.grad(loss, delta)
        delta = project(delta.detach() + lr * slope, radius).requires_grad_()
    return delta


def ascend_repository(model: Classifier, batches: list[Batch], *, lr: float) -> Tensor:
    """One pass of gradient descent on the repository's inner loss, on the model's own labels."""
    delta = torch.zeros_like(batches[0][0][:1]).requires_grad_()
    for images, _ in batches:
        with torch.no_grad():
            own = model(images).argmax(1)
        (slope,) = torch.autograd.grad(repository_inner_loss(model, (images, own), delta), delta)
        delta = (delta.detach() - lr * slope).requires_grad_()
    return delta


def draw_batches(
    images: Tensor, labels: Tensor, size: int, most: int, generator: torch.Generator
) -> list[Batch]:
    """At most ``most`` equal batches of at most ``size`` images of a fresh shuffle."""
    order = torch.randperm(len(images), generator=generator)
    parts = order.tensor_split(math.ceil(len(order) / size))[:most]
    return [(images[part], labels[part]) for part in (p.to(images.device) for p in parts)]


@defense("ibau", paper="arXiv:2110.03735", needs="labels")
def ibau(
    model: Classifier,
    view: DefenderView,
    *,
    mode: str = "paper",  # "paper" or "repository"; see the module
    rounds: int = 5,  # searches for delta, each followed by a pass over the batches (code)
    ascent_steps: int = 25,  # T, paper mode only (unstated there; the code's pass at 2,500 images)
    ascent_lr: float = 10.0,  # step of delta, in [0, 1] pixel units per unit of gradient (code)
    radius: float = 10.0,  # C, L2 norm for 3x32x32 images in [0, 1] (paper, section 6)
    fixed_point_steps: int = 5,  # iterations of the truncated solve (code)
    fixed_point_lr: float = 0.1,  # step of the fixed-point map (code)
    lr: float = 1e-3,  # of Adam on theta (code)
    batch_size: int = 100,  # images per step, at most (code)
    max_batches: int = 25,  # steps per round, at most (ours; 25 of 100 is all of 2,500)
) -> Classifier:
    """Unlearns universal perturbations, in place; see the module."""
    if mode not in MODES:
        raise ValueError(f"expected mode in {', '.join(MODES)}, got {mode!r}")
    check_positive(rounds=rounds, ascent_steps=ascent_steps, ascent_lr=ascent_lr, radius=radius)
    check_positive(fixed_point_steps=fixed_point_steps, fixed_point_lr=fixed_point_lr, lr=lr)
    check_positive(batch_size=batch_size, max_batches=max_batches)
    images, labels = view.require_labelled()
    radius *= math.sqrt(images[0].numel() / REFERENCE_PIXELS)
    model.eval()
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr)

    for r in range(rounds):
        batches = draw_batches(images, labels, batch_size, max_batches, view.generator)
        if mode == "paper":
            delta = ascend_paper(model, batches, steps=ascent_steps, lr=ascent_lr, radius=radius)
        else:
            delta = ascend_repository(model, batches, lr=ascent_lr)
        total = torch.zeros((), device=images.device)
        for batch in batches:
            if mode == "paper":
                outer = perturbed_loss(model, batch, delta)
                inner = -outer
            else:
                chosen = choose_perturbed(len(batch[0]), view.generator).to(images.device)
                outer = perturbed_loss(model, batch, delta * chosen[:, None, None, None])
                inner = repository_inner_loss(model, batches[0], delta)
            gradients = hypergradient(
                inner, outer, delta, parameters, step=fixed_point_lr, iterations=fixed_point_steps
            )
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            total += outer.detach()
        view.log(r, loss=total.item() / len(batches), delta_norm=delta.norm().item())
    model.zero_grad(set_to_none=True)
    return model
