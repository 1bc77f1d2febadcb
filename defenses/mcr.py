"""Walk along a curve of low clean loss from the victim to a fine-tuned copy, and stop on the way.

A quadratic Bezier curve in weight space, its bend trained on clean images only: every point of it
is accurate, but between the ends nobody has taught the backdoor.

Paper: "Bridging Mode Connectivity in Loss Landscapes and Adversarial Robustness", ICLR 2020,
arXiv:2005.00060.

Differences from the paper, and where those who ran it disagree:

1. The ends. The authors connect two backdoored models, of which a defender has one. The second is a
   fine-tuned copy, as in BCU (arXiv:2211.12044); DHBE takes the victim twice.
2. The point. The authors sweep t and look at the test set, BCU stops at 0.3, DHBE at 0.5 and
   BackdoorBench at 0.1, counted from the victim. Here 0.3 at every budget: the clean loss is low
   all along the curve, so that no hold-out of clean images can choose.
3. 200 steps for the copy and 600 for the curve, instead of 10 and 100 epochs (BCU). The last
   iterate; BCU's logs report the epoch with the best *test* accuracy.
4. The rate of the bend drops tenfold after 1/2 and 3/4 of the steps, as in DHBE. The authors hold
   it for the first half, too, and then lower it linearly, to 1 % at 90 %.
5. Batch statistics depend on t, so they are estimated at the point that is kept: reset, then
   averaged over the defender's images, with dropout off and no augmentation, as at test time.
   DHBE averages over the test set; BCU's code keeps what has piled up over random t.
6. Where a batch has fewer than 16 images, batch normalisation keeps the victim's statistics
   throughout: in the copy, along the curve and at the point that is kept.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from defenses._checks import check_positive, check_share
from defenses._training import Tuning, too_few_for_statistics, train_on_budget
from defenses.base import DefenderView, defense
from zoo.models import Classifier, clone

Weights = dict[str, Tensor]  # parameters by name; batch statistics are no part of the curve


def coefficients(t: float) -> tuple[float, float, float]:
    """Weights of start, bend and end in a quadratic Bezier curve at t in [0, 1]; their sum is 1."""
    return (1 - t) ** 2, 2 * t * (1 - t), t**2


def point(start: Weights, bend: Weights, end: Weights, t: float) -> Weights:
    """phi(t) = (1 - t)^2 start + 2 t (1 - t) bend + t^2 end; differentiable in all three."""
    a, b, c = coefficients(t)
    return {name: a * start[name] + b * bend[name] + c * end[name] for name in start}


def curve_loss(
    model: Classifier, weights: Weights, images: Tensor, labels: Tensor, weight_decay: float
) -> Tensor:
    """Cross-entropy of a point on the curve + weight_decay / 2 ||phi(t)||^2.

    The decay belongs to the point, not to the bend: there it would pull the curve off its ends.
    """
    logits = functional_call(model, weights, (images,))
    squares = torch.stack([w.square().sum() for w in weights.values()]).sum()
    return F.cross_entropy(logits.float(), labels) + 0.5 * weight_decay * squares


@torch.no_grad()
def refresh_statistics(
    model: Classifier, images: Tensor, batch_size: int, generator: torch.Generator
) -> None:
    """Replaces all batch statistics by their averages over one pass, in place; dropout is off."""
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average
        layer.train()
    order = torch.randperm(len(images), generator=generator).to(images.device)
    for part in order.tensor_split(math.ceil(len(images) / batch_size)):
        model.stages(images[part])
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


def parameters_of(model: Classifier) -> Weights:
    """All parameters, without a graph; they share memory with the model."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@torch.no_grad()
def put(model: Classifier, weights: Weights) -> None:
    """Copies values into the parameters."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


@defense("mcr", paper="arXiv:2005.00060", needs="labels")
def mcr(
    model: Classifier,
    view: DefenderView,
    *,
    t: float = 0.3,  # the point to stop at, 0 the victim, 1 its fine-tuned copy (BCU, table 1)
    endpoint_steps: int = 200,  # optimiser steps of the copy (our matched cost; BCU: 10 epochs)
    steps: int = 600,  # optimiser steps of the bend (our matched cost; BCU: 100 epochs)
    lr: float = 0.01,  # initial rate of SGD for copy and bend (authors' code; BCU)
    batch_size: int = 64,  # images per step, at most (ours; BCU: 256)
    momentum: float = 0.9,  # of SGD (BCU, section 4.1)
    weight_decay: float = 5e-4,  # per step and unit of rate (BCU, section 4.1; authors' code: 1e-4)
) -> Classifier:
    """Returns a new model on a trained curve between the victim and its copy; see the module."""
    check_share(t=t)
    check_positive(endpoint_steps=endpoint_steps)
    tuning = Tuning(
        lr=lr, steps=steps, batch_size=batch_size, momentum=momentum, weight_decay=weight_decay
    )
    towards = replace(tuning, steps=endpoint_steps)
    bending = replace(tuning, weight_decay=0.0, schedule="multi-step")  # decay is in the loss
    images, labels = view.require_labelled()

    # 1. The ends.
    copy = clone(model)
    train_on_budget(copy, view, images, labels, towards)
    start, end = parameters_of(model), parameters_of(copy)

    # 2. The bend, at first halfway: the curve is the straight line.
    bend = clone(model)
    put(bend, {name: (start[name] + end[name]) / 2 for name in start})

    # 3. Train it at a random point of the curve per batch.
    def loss(bend: Classifier, batch: Tensor, labels: Tensor, progress: float) -> Tensor:
        del progress
        drawn = float(torch.rand((), generator=view.generator))
        weights = point(start, dict(bend.named_parameters()), end, drawn)
        return curve_loss(bend, weights, batch, labels, weight_decay)

    train_on_budget(bend, view, images, labels, bending, loss)

    # 4. The point that is kept, with statistics of its own.
    put(bend, point(start, parameters_of(bend), end, t))
    if not too_few_for_statistics(len(images), batch_size):
        refresh_statistics(bend, images, batch_size, view.generator)
    return bend
