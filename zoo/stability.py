"""How stable a classifier's answers on a set of images are, against its input and its weights.

FRED (arXiv:2206.07018, section 3.1) holds that a base set serves a defense only where the answers
on it are as stable as on clean images, and shows it in Figure 1:

(c) the best universal adversarial perturbation (UAP) of a set is normalised and scaled up: a clean
    set needs a larger norm until as many images are misclassified;
(d) the gradient of an image's loss in the weights, in the L1 norm, is small on clean images, where
    training has converged.

Differences from the paper:

1. How the UAP is found, and within which norm, is unstated. Here it is the inner problem of I-BAU
   (eq. 1: the mean cross-entropy of the set, images not clipped) in an L2 ball, by ascent along the
   normalised gradient with momentum (without it, 40 steps end far from the maximum), from the best
   of some short ascents.
2. The gradient norm is a mean over all parameters, so that networks can be compared; times their
   number it is the paper's. Batch statistics are frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from zoo.models import Classifier

CHUNK: Final = 256  # images at a time in a forward pass
GRADIENTS: Final = 2**26  # numbers that gradients of single images may take at a time: 256 MiB


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How a set is probed."""

    radius: float = 2.0  # L2 bound of the search for the UAP, images in [0, 1]
    steps: int = 40  # of its ascent
    size: float = 0.3  # of the first step, as a share of the radius; falls linearly to 0
    momentum: float = 0.9
    batch_size: int = 256  # at most; a larger set gives another batch to every step
    starts: int = 8  # of short ascents, the first from 0
    scout_steps: int = 10  # of each
    scout_batch: int = 64  # images, at most, that they see
    # L2 norms to which the UAP is scaled: 0, then half octaves.
    norms: tuple[float, ...] = (0.0, *(round(2 ** (k / 2), 4) for k in range(-6, 9)))

    def __post_init__(self) -> None:
        for name in ("radius", "steps", "size", "batch_size", "starts", "scout_batch"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} > 0, got {getattr(self, name)}")
        if list(self.norms) != sorted(set(self.norms)) or self.norms[0] != 0:
            raise ValueError(f"expected norms that begin with 0 and rise, got {self.norms}")


def universal_perturbation(
    model: Classifier, images: Tensor, labels: Tensor, probe: Probe, generator: torch.Generator
) -> Tensor:
    """The direction that misleads a set most: ``(C, H, W)`` of unit L2 norm.

    There is about one local maximum per class to mislead to. So a few short ascents on some of the
    images, from 0 and from random directions, choose where the long one begins.

    Args:
        model: in eval mode.
        images: ``(N, C, H, W)`` in [0, 1], N > 0, on the device of the model.
        labels: ``int64 (N,)``: the classes to lead away from.
        probe: bound and steps.
        generator: on the CPU; source of the starts and the batches.
    """
    shape = (probe.starts - 1, *images.shape[1:])
    directions = torch.randn(shape, generator=generator).to(images.device)
    starts = [torch.zeros_like(images[0]), *(probe.radius * _unit(d) for d in directions)]
    few = _batch(len(images), probe.scout_batch, generator).to(images.device)
    some, wanted = images[few], labels[few]
    scouted = [_ascend(model, some, wanted, s, probe, probe.scout_steps, generator) for s in starts]
    with torch.no_grad():
        losses = [F.cross_entropy(model(some + d).float(), wanted).item() for d in scouted]
    best = scouted[losses.index(max(losses))]
    return _unit(_ascend(model, images, labels, best, probe, probe.steps, generator))


def _ascend(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    delta: Tensor,
    probe: Probe,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Projected ascent of the mean cross-entropy: the perturbation ``(C, H, W)`` at its end."""
    velocity = torch.zeros_like(delta)
    for step in range(steps):
        batch = _batch(len(images), probe.batch_size, generator).to(images.device)
        delta.requires_grad_()
        loss = F.cross_entropy(model(images[batch] + delta).float(), labels[batch])
        (slope,) = torch.autograd.grad(loss, delta)
        velocity = probe.momentum * velocity + _unit(slope)
        length = probe.size * probe.radius * (1 - step / steps)
        delta = delta.detach() + length * _unit(velocity)
        delta = delta * (probe.radius / delta.norm().clamp(min=1e-12)).clamp(max=1)
    return delta


def _batch(size: int, limit: int, generator: torch.Generator) -> Tensor:
    if size <= limit:
        return torch.arange(size)
    return torch.randperm(size, generator=generator)[:limit]


def _unit(direction: Tensor) -> Tensor:
    """Scaled to unit L2 norm; zero stays zero."""
    unit: Tensor = direction / direction.norm().clamp(min=1e-12)
    return unit


@torch.no_grad()
def predictions_along(
    model: Classifier, images: Tensor, direction: Tensor, norms: Sequence[float]
) -> Tensor:
    """Predicted classes of a set moved along one direction: ``int64 (S, N)`` on the CPU.

    Args:
        model: in eval mode.
        images: ``(N, C, H, W)`` in [0, 1], on the device of the model.
        direction: ``(C, H, W)`` of unit L2 norm.
        norms: how far, ``S`` of them. What leaves [0, 1] is not clipped, as in the search.
    """
    found = [
        torch.cat([model(part + norm * direction).argmax(1) for part in images.split(CHUNK)])
        for norm in norms
    ]
    return torch.stack(found).cpu()


def gradient_norms(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Mean absolute gradient of every image's own cross-entropy in all parameters: ``(N,)``.

    Args:
        model: in eval mode; its parameters get no gradients.
        images: ``(N, C, H, W)`` in [0, 1], on the device of the model.
        labels: ``int64 (N,)``.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    count = sum(p.numel() for p in parameters.values())

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, parameters, (image[None],))
        return F.cross_entropy(logits.float(), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    at_once = min(CHUNK, max(1, GRADIENTS // count))
    found = []
    for part, wanted in zip(images.split(at_once), labels.split(at_once), strict=True):
        slopes = each(parameters, part, wanted).values()
        found.append(torch.stack([s.abs().flatten(1).sum(1) for s in slopes]).sum(0) / count)
    return torch.cat(found)


def norm_for(share: float, norms: Sequence[float], shares: Sequence[float]) -> float | None:
    """The smallest norm at which a share is reached, None where it never is.

    Args:
        share: in [0, 1].
        norms: rising, from 0.
        shares: what is reached at each; linear in between.
    """
    if shares[0] >= share:
        return norms[0]
    for (near, below), (far, above) in pairwise(zip(norms, shares, strict=True)):
        if above >= share:
            return near + (far - near) * (share - below) / (above - below)
    return None
