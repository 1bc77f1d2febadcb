"""Randomise weights, more of them in deeper layers, then distil the suspicious model on images.

The images need no labels. Triggers never fire on clean ones, so what the student relearns is the
clean behaviour only.

Paper: "Backdoor Cleansing with Unlabeled Data", CVPR 2023, arXiv:2211.12044.

Differences from the paper:

1. The temperature, absent from the paper, follows the authors' code (1 + 3 (e + 1) / E, without the
   factor of its square), but rises with every step instead of every epoch.
2. 600 steps instead of 100 epochs of up to 10 steps: the cost does not depend on the budget.
3. The paper lists ratios for ResNet-18 only. On it ours are the same; on other networks they rise
   geometrically from 0.01 to 0.27 over the stages.
4. Stages are declared by the classifier. The authors' code matches names: it re-initialises the
   batch normalisation of some networks, and gives a head not called "fc" the ratio of the stem.
5. The masks are Bernoulli draws, as in the paper's Algorithm 1 and the code; the paper's equation
   fixes the exact number of ones instead. Biases of convolutions and of the head are randomised
   like weights, as in the code; the paper speaks of weights.
6. Random weights have this project's initialisation (He), as freshly trained victims had.
7. The last iterate is returned. The authors' logs report the epoch with the best *test* accuracy.
8. The paper's networks have no dropout. Where there is some, the student trains with it and its
   teacher, the victim, answers without, as in fine-tuning.
9. Batch normalisation keeps the victim's statistics when a batch has fewer than 16 images.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defenses._checks import check_positive, check_share
from defenses._training import Tuning, train_on_budget
from defenses.base import DefenderView, defense
from zoo.models import Classifier, build_model, clone

FIRST_TEMPERATURE: Final = 1.0
LAST_TEMPERATURE: Final = 4.0


def stage_ratios(names: list[str], shallow: float, deep: float, head: float) -> dict[str, float]:
    """Shares of weights to randomise, by stage name; the last name is the head.

    The stages in between rise geometrically from ``shallow`` to ``deep``; a stem gets ``shallow``.
    """
    stages = [name for name in names[:-1] if name != "stem"]
    growth = (deep / shallow) ** (1 / max(1, len(stages) - 1))
    ratios = {name: shallow * growth**i for i, name in enumerate(stages)}
    return {"stem": shallow, **ratios, names[-1]: head}


@torch.no_grad()
def randomise(
    model: Classifier, ratios: dict[str, float], generator: torch.Generator
) -> Classifier:
    """A copy in which each weight is replaced by a fresh one with the ratio of its stage.

    Only convolutions and linear layers; batch normalisation is copied. Drawn on the CPU.
    """
    fresh = build_model(model.spec, generator)
    student = clone(model)
    pairs = zip(student.named_modules(), fresh.modules(), strict=True)
    for (module_name, module), random_module in pairs:
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        replacements = dict(random_module.named_parameters(recurse=False))
        for name, weight in module.named_parameters(recurse=False):
            ratio = ratios[model.stage_of(f"{module_name}.{name}")]
            mask = torch.rand(weight.shape, generator=generator) < ratio
            weight[mask] = replacements[name][mask].to(weight.device)
    return student


def temperature(step: int, steps: int) -> float:
    """Rises linearly from 1 + 3 / E at the first of E steps to 4 at the last."""
    rise = LAST_TEMPERATURE - FIRST_TEMPERATURE
    return FIRST_TEMPERATURE + rise * (step + 1) / steps


def distillation_loss(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """KL(softmax(teacher / tau) || softmax(student / tau)), mean over images, of logits (N, K)."""
    return F.kl_div(
        F.log_softmax(student.float() / tau, dim=1),
        F.log_softmax(teacher.float() / tau, dim=1),
        reduction="batchmean",
        log_target=True,
    )


@defense("bcu", paper="arXiv:2211.12044", needs="images")
def bcu(
    model: Classifier,
    view: DefenderView,
    *,
    shallow_ratio: float = 0.01,  # share of weights randomised in stem and first stage (paper, 4.1)
    deep_ratio: float = 0.27,  # share randomised in the last stage (paper, 4.1)
    head_ratio: float = 0.1,  # share randomised in the head (paper, 4.1)
    lr: float = 0.01,  # initial rate of SGD, cosine to zero (authors' code)
    steps: int = 600,  # optimiser steps (our matched cost; paper: 100 epochs)
    batch_size: int = 256,  # images per step, at most (paper, 4.1)
    momentum: float = 0.9,  # of SGD (paper, 4.1)
    weight_decay: float = 5e-4,  # of SGD, per step and unit of rate (paper, 4.1)
) -> Classifier:
    """Distils the model into a partly randomised copy of itself; see the module."""
    check_share(shallow_ratio=shallow_ratio, deep_ratio=deep_ratio, head_ratio=head_ratio)
    check_positive(shallow_ratio=shallow_ratio, deep_ratio=deep_ratio)
    tuning = Tuning(
        lr=lr, steps=steps, batch_size=batch_size, momentum=momentum, weight_decay=weight_decay
    )
    images = view.require_images()
    # Lines 1-5 of Algorithm 1: adaptive layer-wise initialisation.
    ratios = stage_ratios(model.stage_names(), shallow_ratio, deep_ratio, head_ratio)
    teacher, student = model.eval(), randomise(model, ratios, view.generator)

    # Lines 6-13: knowledge distillation.
    def loss(student: Classifier, batch: Tensor, _: Tensor, progress: float) -> Tensor:
        with torch.no_grad():
            targets = teacher(batch)
        tau = temperature(round(progress * steps), steps)
        return distillation_loss(targets, student(batch), tau)

    nobody_looks = torch.zeros(len(images), dtype=torch.long)
    train_on_budget(student, view, images, nobody_looks, tuning, loss)
    return student
