"""How little a classifier's answer changes: with its weights, and with a perturbation of its input.

The two losses that FRED adds to model inversion (arXiv:2206.07018, section 3.2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from zoo.models import Classifier


@torch.enable_grad()
def model_perturbation(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """L_mp: L1 norm of the gradient of the cross-entropy in P parameters, over root P: ``(N,)``.

    The parameters are those of the last stage and the head. The norm is of every image's own
    gradient (that of the batch's mean loss would be another quantity), differentiable in the
    images, and divided by the root of the number of parameters, so that one weight fits all
    networks: on untrained small VGGs and ResNets of any width, its gradient in the images is then
    1.5 to 2.7 times as long as that of the cross-entropy (6 on VGG-16); of the mean over parameters
    that share differs by a factor of 16, of the sum by one of 32.

    Args:
        model: in eval mode; its last stage and head hold no other layers than
            :func:`gradient_norm` knows.
        images: ``(N, C, H, W)``.
        labels: ``int64 (N,)``.
    """
    calls: list[tuple[nn.Module, Tensor, GradientEdge]] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        # The edge and not the output, which an activation may overwrite.
        calls.append((layer, inputs[0], get_gradient_edge(output)))

    tops = (model.stage_modules()[-1], model.head)
    layers = [m for top in tops for m in top.modules() if list(m.parameters(recurse=False))]
    if not images.requires_grad:
        images = images.detach().requires_grad_()  # its gradient is not wanted, those behind it are
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        logits = model(images).float()
    finally:
        for hook in hooks:
            hook.remove()
    loss = F.cross_entropy(logits, labels, reduction="sum")  # of images that do not know each other
    slopes = torch.autograd.grad(loss, [edge for _, _, edge in calls], create_graph=True)
    norms = [gradient_norm(layer, x, g) for (layer, x, _), g in zip(calls, slopes, strict=True)]
    size = sum(p.numel() for layer in layers for p in layer.parameters(recurse=False))
    return torch.stack(norms).sum(0) / math.sqrt(size)


def gradient_norm(layer: nn.Module, x: Tensor, slope: Tensor) -> Tensor:
    """L1 norm of the gradient in a layer's own parameters, per image: ``(N,)``.

    Twice as fast on a ResNet as differentiating image by image (``vmap``).

    Args:
        layer: convolution, linear, or a normalisation that does not mix images.
        x: its input ``(N, ...)``.
        slope: the gradient of the loss in its output.

    Raises:
        TypeError: another kind of layer.
    """
    if isinstance(layer, nn.Linear):  # the L1 norm of an outer product
        weight, bias = slope.abs().sum(1) * x.abs().sum(1), slope
    elif isinstance(layer, nn.Conv2d):
        assert layer.groups == 1
        assert not isinstance(layer.padding, str)
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        weight = (slope.flatten(2) @ patches.mT).abs().sum((1, 2))
        bias = slope.sum((2, 3))
    elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
        if isinstance(layer, nn.BatchNorm2d):
            inner = F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)
        else:
            inner = F.group_norm(x, layer.num_groups, eps=layer.eps)
        weight, bias = (slope * inner).sum((2, 3)).abs().sum(1), slope.sum((2, 3))
    else:
        raise TypeError(
            f"expected convolution, linear or normalisation, got {type(layer).__name__}"
        )
    return weight if layer.bias is None else weight + bias.abs().sum(1)


def data_perturbation(model: Classifier, images: Tensor, delta: Tensor) -> Tensor:
    """L_dp: minus the cosine similarity of the logits of x and x + delta: ``(N,)`` in [-1, 1].

    Its gradients in images and delta vanish at delta = 0, where the cosine is at its maximum.
    """
    return -F.cosine_similarity(model(images).float(), model(images + delta).float(), dim=1)
