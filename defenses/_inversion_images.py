"""Images made from a classifier alone: naive model inversion, for defenders who have none.

Pixels are optimised until the classifier is sure of a class. What comes out looks like noise and is
as good as the classifier's own idea of the class; it needs no prior, no generator and no data.

Source: FRED (section 2) describes it as the first step of DeepInspect (IJCAI 2019,
doi:10.24963/ijcai.2019/647), which minimises 1 - f_y(x) + AuxInfo(x). That form has no gradient
where the classifier is sure of another class, and AuxInfo is not explained: here it
is cross-entropy, as in FRED.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.models import Classifier
from zoo.train import DivergedError


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of vertical plus that of horizontal neighbours: ``(N,)``."""
    rows = (images[:, :, 1:] - images[:, :, :-1]).abs().flatten(1).mean(1)
    columns = (images[..., 1:] - images[..., :-1]).abs().flatten(1).mean(1)
    return rows + columns


def invert(
    model: Classifier,
    labels: Tensor,
    generator: torch.Generator,
    *,
    steps: int = 200,
    lr: float = 0.05,
    smoothness: float = 0.0,
    batch_size: int = 128,
) -> Tensor:
    """One image per label, from uniform noise by Adam, clipped to [0, 1] after every step.

    Args:
        model: in eval mode; neither its weights nor its statistics change.
        labels: ``int64 (N,)``, the classes wanted, one restart each.
        generator: on the CPU; source of the initial noise.
        steps: of Adam.
        lr: of Adam, pixels in [0, 1].
        smoothness: weight of the total variation beside the cross-entropy.
        batch_size: images at a time; images do not influence each other.

    Returns:
        ``float32 (N, C, H, W)`` in [0, 1], on the device of the model.

    Raises:
        DivergedError: the model's gradients are not finite.
    """
    device = next(model.parameters()).device
    labels = labels.to(device)
    images = torch.rand(len(labels), *model.spec.image_shape, generator=generator).to(device)
    for start in range(0, len(labels), batch_size):
        wanted = labels[start : start + batch_size]
        part = images[start : start + batch_size].clone().requires_grad_()
        optimizer = torch.optim.Adam([part], lr=lr)
        for _ in range(steps):
            loss = F.cross_entropy(model(part), wanted, reduction="sum")
            loss = loss + smoothness * total_variation(part).sum()
            (part.grad,) = torch.autograd.grad(loss, part)
            optimizer.step()
            with torch.no_grad():
                part.clamp_(0, 1)
        images[start : start + batch_size] = part.detach()
    if not images.isfinite().all():
        raise DivergedError("the inverted images are not finite")
    return images
