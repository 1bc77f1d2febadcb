"""Find one perturbation that fools the model on all images, then unlearn it: a minimax game.

min over theta, max over ||delta|| <= C of H, the mean loss of f_theta(x + delta) on true labels.
The gradient for theta accounts for the dependence of the (suboptimal) delta on theta.

Paper: "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022,
arXiv:2110.03735. ``mode="repository"`` is what its code does, and with it the
published figures; ``mode="paper"`` is Algorithm 1 as printed.

Where paper and code disagree:

1. Paper: delta starts from zero before every step of theta. Code: once per round, for all batches.
2. Paper: T steps on the true labels, projected onto the ball of radius C. Code: a pass over the
   images, one step per batch, on the model's own labels, with a penalty of 0.001 ||delta||^2, and
   no projection (it is commented out).
3. Paper: the outer loss perturbs all images. Code: 1 % of each batch.
4. Paper: the indirect gradient differentiates H. Code: the penalised loss of the first batch.
5. Paper: 0.1 for both step sizes, "SGD or Adam". Code: SGD 10 for delta and Adam 1e-3 for theta,
   which both modes take: with SGD 0.1 delta hardly leaves zero and nothing is unlearned, and 0.1
   wrecks theta. This was judged on development victims (BadNets on `signs`), by their ASR.

Differences from both:

6. Line 7 of Algorithm 1 has a plus sign where its equation 4 has a minus; minus is right.
7. The inverse Hessian is applied by K fixed-point iterations in both modes, as in the code; the
   paper leaves the solver open. An exact solve is no improvement: the inner problem is not concave.
8. H is estimated on a batch (the paper sums over all images; the code has batches, too).
9. A round has the same number of steps at every budget, because cost is proportional to it: a
   large budget is sampled, a small one passed through repeatedly. Batches are redrawn every round
   (the code cuts them once) and of equal size.
10. At least one image per batch is perturbed in repository mode. The code takes int(0.01 n), which
    is nobody below 100 images and then silently plain fine-tuning.
11. C = 10 refers to 3x32x32 images in [0, 1]; other sizes get C sqrt(d / 3072).
12. Where delta lies on the ball of radius C, the indirect gradient of paper mode takes the ascent
    for one without projection, as the paper's equations do.
13. All of it runs in eval mode and float32: dropout off, running statistics untouched, no autocast.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from defenses._checks import check_positive
from defenses._hypergradient import hypergradient
from defenses.base import DefenderView, defense
from zoo.models import Classifier
from zoo.train import DivergedError

MODES: Final = ("paper", "repository")
REFERENCE_PIXELS: Final = 3 * 32 * 32  # the image that the radius refers to
PENALTY: Final = 1e-3  # of ||delta||^2 in the repository's inner loss
PERTURBED_SHARE: Final = 0.01  # of a batch in the repository's outer loss

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W), labels (B,)
Problem = tuple[Tensor, Tensor, Tensor]  # delta (1, C, H, W), inner loss, outer loss


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
    model: Classifier, batch: Batch, *, steps: int, lr: float, radius: float
) -> Tensor:
    """Lines 2-6: T projected steps of gradient ascent on H from zero; ``(1, C, H, W)``."""
    delta = torch.zeros_like(batch[0][:1]).requires_grad_()
    for _ in range(steps):
        (slope,) = torch.autograd.grad(perturbed_loss(model, batch, delta), delta)
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


def paper_round(
    model: Classifier, batches: list[Batch], *, steps: int, lr: float, radius: float
) -> Iterator[Problem]:
    """What each step of theta differentiates; computed with the weights of that moment."""
    for batch in batches:
        delta = ascend_paper(model, batch, steps=steps, lr=lr, radius=radius)
        loss = perturbed_loss(model, batch, delta)
        yield delta, -loss, loss


def repository_round(
    model: Classifier, batches: list[Batch], *, lr: float, generator: torch.Generator
) -> Iterator[Problem]:
    """The same for the authors' code."""
    delta = ascend_repository(model, batches, lr=lr)
    for batch in batches:
        chosen = choose_perturbed(len(batch[0]), generator).to(delta.device)
        outer = perturbed_loss(model, batch, delta * chosen[:, None, None, None])
        yield delta, repository_inner_loss(model, batches[0], delta), outer


def draw_batches(
    images: Tensor, labels: Tensor, size: int, count: int, generator: torch.Generator
) -> list[Batch]:
    """Batches of at most ``size`` images, equal ones within a shuffle, from as many as it takes."""
    parts: list[Tensor] = []
    while len(parts) < count:
        order = torch.randperm(len(images), generator=generator)
        parts += order.tensor_split(math.ceil(len(order) / size))
    return [(images[part], labels[part]) for part in (p.to(images.device) for p in parts[:count])]


@defense("ibau", paper="arXiv:2110.03735", needs="labels")
def ibau(
    model: Classifier,
    view: DefenderView,
    *,
    mode: str = "repository",  # or "paper"; see the module
    rounds: int = 5,  # passes with batches of their own (code)
    round_steps: int = 10,  # steps of theta per round (ours; code: a pass, 50 for 5,000 images)
    ascent_steps: int = 5,  # T of paper mode, steps of delta per step of theta (unstated there)
    ascent_lr: float = 10.0,  # step of delta, pixels in [0, 1] per gradient (code)
    radius: float = 10.0,  # C of paper mode, L2 norm for 3x32x32 images in [0, 1] (paper, sec. 6)
    fixed_point_steps: int = 5,  # K, iterations of the truncated solve (code)
    fixed_point_lr: float = 0.1,  # step of the fixed-point map (code)
    lr: float = 1e-3,  # of Adam on theta (code)
    batch_size: int = 100,  # images per step, at most (code)
) -> Classifier:
    """Unlearns universal perturbations, in place; see the module."""
    if mode not in MODES:
        raise ValueError(f"expected mode in {', '.join(MODES)}, got {mode!r}")
    check_positive(rounds=rounds, round_steps=round_steps, batch_size=batch_size, lr=lr)
    check_positive(ascent_steps=ascent_steps, ascent_lr=ascent_lr, radius=radius)
    check_positive(fixed_point_steps=fixed_point_steps, fixed_point_lr=fixed_point_lr)
    images, labels = view.require_labelled()
    radius *= math.sqrt(images[0].numel() / REFERENCE_PIXELS)
    model.eval()
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr)

    for r in range(rounds):
        batches = draw_batches(images, labels, batch_size, round_steps, view.generator)
        if mode == "paper":
            problems = paper_round(model, batches, steps=ascent_steps, lr=ascent_lr, radius=radius)
        else:
            problems = repository_round(model, batches, lr=ascent_lr, generator=view.generator)
        loss = norm = torch.zeros((), device=images.device)
        for delta, inner, outer in problems:
            gradients = hypergradient(
                inner, outer, delta, parameters, step=fixed_point_lr, iterations=fixed_point_steps
            )
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            loss = loss + outer.detach() / round_steps
            norm = norm + delta.detach().norm() / round_steps
        if not loss.isfinite():
            raise DivergedError(f"the loss is {loss.item()} in round {r + 1} of {rounds}")
        view.log(r, loss=loss.item(), delta_norm=norm.item())
    model.zero_grad(set_to_none=True)
    return model
