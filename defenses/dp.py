"""Train anew from the poisoned set, so that no image can teach the classifier much by itself.

DP-SGD: the gradient of every image is clipped before it is summed, and noise hides what is left of
any single one. What few images have in common, a trigger, is meant to drown; what many share is
meant to stay. This happens at training time: of the victim, only the architecture is used.

Paper: Du, Jia and Song, "Robust Anomaly Detection and Backdoor Attack Detection via Differential
Privacy", arXiv:1911.07116, as I-BAU compares it (arXiv:2110.03735, A.3.2); the algorithm is that of
Abadi et al., "Deep Learning with Differential Privacy", arXiv:1607.00133.

Differences from the paper (from I-BAU's experiment, which states the noise multiplier only):

1. The classifier has group in place of batch normalisation, which mixes the images of a batch. It
   is another architecture than the victim's; the harness allows it to differ in that alone.
2. The noise multiplier is 1.5, I-BAU's for GTSRB. Its value for CIFAR-10 is ``dp[sigma=50]``.
   Clipping norm, rate, batch and length are ours.
3. 300 steps of 256 images, a few passes through GTSRB. They come from the whole training set: a
   subset would cost as much, and each of its images would weigh more.
4. No augmentation, dropout, momentum or weight decay. Most of these are against overfitting, and
   this underfits.
5. Batches are Poisson samples, as the accountant assumes. The sum is divided by the expected size.
6. The curve tells epsilon, as spent so far, at delta = 1 / N. It is a promise about one image in a
   set; poisoned images come in hundreds.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from defenses._checks import check_not_negative, check_positive
from defenses.base import DefenderView, NotApplicableError, defense
from zoo.layers import ByteDropout
from zoo.models import Classifier, build_model, clone
from zoo.train import DivergedError

CURVE_POINTS: Final = 20
GRADIENTS_IN_MEMORY: Final = 2**25  # numbers; more images than that are taken in parts
# Orders of the Renyi divergence; larger ones than Opacus takes, for much noise.
ORDERS: Final = [*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 128, 256, 512, 1024]


def clip_factors(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """min(1, c / ||g_i||) of every image, ``(B,)``; the norm goes over all parameters together.

    Args:
        gradients: one ``(B, *shape)`` for each parameter.
        max_norm: c.
    """
    squares = [g.flatten(1).square().sum(1) for g in gradients]
    return (max_norm / torch.stack(squares).sum(0).sqrt()).clamp(max=1)


def clipped_sum(gradients: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Sum over the images of their gradients, each clipped to c: one ``shape`` per parameter."""
    factors = clip_factors(gradients, max_norm)
    return [torch.einsum("b,b...->...", factors, g) for g in gradients]


def noisy_mean(
    total: Tensor, sigma: float, max_norm: float, batch_size: float, generator: torch.Generator
) -> Tensor:
    """(total + N(0, sigma^2 c^2)) / B: any shape to the same; the noise is drawn on the CPU."""
    if sigma == 0:
        return total / batch_size
    noise = sigma * max_norm * torch.randn(total.shape, generator=generator)
    return (total + noise.to(total.device)) / batch_size


def poisson_sample(n: int, rate: float, generator: torch.Generator) -> Tensor:
    """Indices of the images that take part, each with the same chance on its own; may be none."""
    return (torch.rand(n, generator=generator) < rate).nonzero().flatten()


def epsilons(sigma: float, rate: float, delta: float, steps: Sequence[int]) -> list[float]:
    """Privacy spent after each of some numbers of steps, by Opacus' Renyi accountant."""
    if sigma == 0:
        return [math.inf] * len(steps)
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    once = compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=ORDERS)
    with warnings.catch_warnings():  # of an order at the end of the list: a bound nevertheless
        warnings.simplefilter("ignore")
        spent = [get_privacy_spent(orders=ORDERS, rdp=n * once, delta=delta) for n in steps]
    return [max(0.0, float(epsilon)) for epsilon, _ in spent]


def require_opacus() -> Any:  # noqa: ANN401 (untyped, and perhaps not there)
    """The class that makes gradients per image.

    Raises:
        NotApplicableError: it is not installed.
    """
    try:
        from opacus import GradSampleModule
    except ImportError as error:
        raise NotApplicableError("needs Opacus: pip install 'unbackdoor[dp]'") from error
    return GradSampleModule


@contextmanager
def per_image(model: Classifier) -> Iterator[Any]:
    """The model with hooks that leave ``grad_sample`` at its parameters, as long as it is open."""
    model.train()  # Opacus looks at layers in train mode only
    for module in model.modules():
        if isinstance(module, ByteDropout):
            module.eval()
    hooked = require_opacus()(model, loss_reduction="sum")
    with warnings.catch_warnings():
        # The first layer has hooks, and its input, an image, no gradient.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield hooked
    hooked.to_standard_module()


def gradients_of(
    hooked: Any,  # noqa: ANN401 (Opacus has no types)
    images: Tensor,
    labels: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of the cross-entropy of every image, and its values.

    Args:
        hooked: the model, see :func:`per_image`.
        images: ``(B, C, H, W)`` in [0, 1].
        labels: ``int64 (B,)``.

    Returns:
        One ``(B, *shape)`` for each parameter, and ``(B,)``.
    """
    losses = F.cross_entropy(hooked(images), labels, reduction="none")
    losses.sum().backward()
    gradients = [p.grad_sample for p in hooked.parameters()]
    hooked.zero_grad(set_to_none=True)  # grad_sample, too
    return gradients, losses.detach()


def clipped_total(
    hooked: Any,  # noqa: ANN401 (Opacus has no types)
    images: Tensor,
    labels: Tensor,
    max_norm: float,
) -> tuple[list[Tensor], float]:
    """Clipped gradients and losses, summed over a batch that may be large, or empty.

    Returns:
        One ``shape`` for each parameter, and a number.
    """
    parameters = list(hooked.parameters())
    part = max(1, GRADIENTS_IN_MEMORY // sum(p.numel() for p in parameters))
    totals, loss = [torch.zeros_like(p) for p in parameters], 0.0
    for start in range(0, len(images), part):
        some = slice(start, start + part)
        gradients, losses = gradients_of(hooked, images[some], labels[some])
        for total, more in zip(totals, clipped_sum(gradients, max_norm), strict=True):
            total += more
        loss += float(losses.sum())
    return totals, loss


@defense("dp", paper="arXiv:1911.07116", needs="poisoned-train")
def dp(
    model: Classifier,
    view: DefenderView,
    *,
    sigma: float = 1.5,  # noise multiplier (I-BAU, A.3.2: 1.5 on GTSRB, 50 on CIFAR-10)
    max_norm: float = 1.0,  # c, to which the gradient of an image is clipped (our choice)
    lr: float = 0.5,  # constant rate of SGD (our choice)
    steps: int = 300,  # optimiser steps (our matched cost; I-BAU does not say)
    batch_size: int = 256,  # expected images per step (our choice)
) -> Classifier:
    """Trains a new classifier by DP-SGD; see the module."""
    check_not_negative(sigma=sigma, lr=lr)
    check_positive(max_norm=max_norm, steps=steps, batch_size=batch_size)
    require_opacus()
    images, labels = view.require_labelled()
    n = len(images)
    student = build_model(dataclasses.replace(model.spec, norm="group"), view.generator)
    student.to(view.device)
    rate = min(1.0, batch_size / n)
    shown = sorted({math.ceil(steps * (i + 1) / CURVE_POINTS) for i in range(CURVE_POINTS)})
    spent = dict(zip(shown, epsilons(sigma, rate, 1 / n, shown), strict=True))

    with per_image(student) as hooked:
        for step in range(1, steps + 1):
            index = poisson_sample(n, rate, view.generator).to(view.device)
            totals, loss = clipped_total(hooked, images[index], labels[index], max_norm)
            if not math.isfinite(loss):
                raise DivergedError(f"the loss is {loss} after {step - 1} of {steps} steps")
            with torch.no_grad():
                for weight, total in zip(student.parameters(), totals, strict=True):
                    mean = noisy_mean(total, sigma, max_norm, rate * n, view.generator)
                    weight.sub_(lr * mean)
            if step in spent and len(index):
                view.log(step, loss=loss / len(index), epsilon=spent[step], delta=1 / n)
    return clone(student).eval()
