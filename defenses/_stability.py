"""How little a classifier's answer changes: with its weights, and with a perturbation of its input.

The two losses that FRED adds to model inversion (arXiv:2206.07018, section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from zoo.models import Classifier


def model_perturbation(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """L_mp: mean absolute gradient of the cross-entropy in the parameters, per image: ``(N,)``.

    The parameters are those of the last stage and the head. The norm is of every image's own
    gradient (that of the batch's mean loss would be another quantity), differentiable in the
    images, and divided by the number of parameters, so that its weight is not tied to a network.
    """
    x = model.normalise(images)
    for stage in model.stage_modules()[:-1]:
        x = stage(x)
    last = model.stage_modules()[-1]
    parameters = {
        "stage": {name: p.detach() for name, p in last.named_parameters()},
        "head": {name: p.detach() for name, p in model.head.named_parameters()},
    }

    def loss(parameters: dict[str, dict[str, Tensor]], x: Tensor, label: Tensor) -> Tensor:
        top = functional_call(last, parameters["stage"], (x[None],))
        logits = functional_call(model.head, parameters["head"], (model.flatten(top),))
        return F.cross_entropy(logits.float(), label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, labels)
    found = [g.abs().flatten(1) for group in gradients.values() for g in group.values()]
    return torch.cat(found, 1).mean(1)


def data_perturbation(model: Classifier, images: Tensor, delta: Tensor) -> Tensor:
    """L_dp: minus the cosine similarity of the logits of x and x + delta: ``(N,)`` in [-1, 1].

    Its gradients in images and delta vanish at delta = 0, where the cosine is at its maximum.
    """
    return -F.cosine_similarity(model(images).float(), model(images + delta).float(), dim=1)
