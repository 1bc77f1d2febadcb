"""Prune channels with a large Lipschitz constant, visible in the weights: triggers go through them.

Paper: "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022, arXiv:2208.03111.

Differences from the paper:

1. The epsilon of batch normalisation is part of the variance. The authors' code omits it and
   divides by zero on dead channels.
2. Pairs of convolution and batch normalisation are declared by the classifier. The authors' code
   pairs them in order of registration, which fails on some networks.
3. Narrow layers are reported, not pruned by another rule: among n channels no z-score can exceed
   (n - 1) / sqrt(n), so u = 3 prunes nothing in layers of at most 10 channels. The curve has, per
   layer, its width, that bound and the largest z-score found, to be read before a "no effect".
   A model that loses no channel at all is reported as not detected.
4. A layer of one channel has no standard deviation and is left alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from defenses._checks import check_positive
from defenses.base import DefenderView, NotApplicableError, NotDetectedError, defense
from zoo.models import Classifier


def channel_lipschitz(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
    """Upper bounds of the Lipschitz constants of the channels of bn(conv(x)): ``(C_out,)``.

    Per channel: the largest singular value of the kernel as a ``(C_in, k_h * k_w)`` matrix, times
    the factor |gamma| / sqrt(variance + eps) of the normalisation.
    """
    assert bn.running_var is not None
    kernels = conv.weight.detach().double().flatten(2)  # (C_out, C_in, k_h * k_w)
    scale = bn.weight.detach().double().abs() / (bn.running_var.double() + bn.eps).sqrt()
    spectral: Tensor = torch.linalg.matrix_norm(kernels, ord=2)
    return spectral * scale


def z_scores(lipschitz: Tensor) -> Tensor:
    """Distances from the layer's mean in (unbiased) standard deviations: ``(C,)``.

    Zeros where all channels are alike, or where there is only one.
    """
    if len(lipschitz) < 2:
        return torch.zeros_like(lipschitz)
    spread = lipschitz.std()
    return torch.where(spread > 0, (lipschitz - lipschitz.mean()) / spread, 0.0)


def largest_z_score(n: int) -> float:
    """The largest z-score that one of n values can have: (n - 1) / sqrt(n)."""
    return float((n - 1) / n**0.5)


@defense("clp", paper="arXiv:2208.03111", needs="nothing")
@torch.no_grad()
def clp(
    model: Classifier,
    view: DefenderView,
    *,
    u: float = 3.0,  # prune channels above mean + u standard deviations of their layer (paper, 5.1)
) -> Classifier:
    """Prunes the outliers of every layer, in place; uses no data and no randomness."""
    check_positive(u=u)
    pairs = model.conv_bn_pairs()
    if not pairs:
        raise NotApplicableError("needs batch normalisation; this model has none")
    total = 0
    for layer, (conv, bn) in enumerate(pairs):
        z = z_scores(channel_lipschitz(conv, bn))
        pruned = z > u
        bn.weight[pruned] = 0.0
        bn.bias[pruned] = 0.0
        view.log(
            layer,
            width=conv.out_channels,
            attainable_z=largest_z_score(conv.out_channels),
            largest_z=float(z.max()),
            pruned=int(pruned.sum()),
        )
        total += int(pruned.sum())
    if not total:
        raise NotDetectedError(f"no channel is {u:g} standard deviations above its layer's mean")
    return model
