"""A briefly fine-tuned copy of the model teaches the model itself where to look.

Fine-tuning alone moves the attention of a backdoored network only a little; matching the spatial
attention of the student to that of the fine-tuned teacher moves it further, layer by layer.

Paper: "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks", ICLR
2021, arXiv:2101.05930; the settings are those of its code unless stated. I-BAU (arXiv:2110.03735),
BCU (arXiv:2211.12044) and DHBE compare with it.

Differences from the paper:

1. The distance between two attention maps is the mean squared error of the code, not the L2 norm of
   the equation: beta belongs to the former.
2. Unit maps of H x W positions differ by at most 2 / (H W), so the same beta weighs maps of 4x4
   sixteen times as heavily as those of 16x16. Beta is scaled by H W / 64 here: what it can add to
   the loss is the same at any size. It is the code's for maps of 8x8, the deepest of its network;
   the shallower ones of that network, 32x32 and 16x16, weigh 16 and 4 times as much as there.
3. Attention is taken after the last three stages, as in BCU; a map of one position is always 1 and
   teaches nothing, so such stages are passed over.
4. 400 steps instead of 20 epochs, and 150 instead of 5-10 epochs for the teacher: the same cost at
   every budget and for every defense.
5. The rate falls along a cosine from 0.1; the code has 0.1 in the first two of its epochs and 0.01
   in the others. It decides: on a GTSRB BadNets victim (half-width small VGG, 2,500 images) ASR
   stays at 99.7 % from 0.01 on, and falls to 2.8 % from 0.1 on. Plain fine-tuning at 0.1 reaches
   0.7 % there: ``ft[lr=0.1]`` is the row to compare this one with. With few images the rate is
   costly (100 on GTSRB: ACC falls from 96 to between 83 and 88 %), and one per class can end as
   diverged. Weight decay is BCU's 5e-4, not 1e-4, and there is no Nesterov momentum.
6. The data set's own augmentation. The code crops, flips and cuts out; flips turn signs around,
   which is where the low accuracies on GTSRB in I-BAU's Table 2 seem to come from.
7. Batch normalisation keeps the victim's statistics when a batch has fewer than 16 images.
8. The paper's networks have no dropout. Where there is some, the student keeps it, as it does in
   fine-tuning, and the teacher drops the same activations. Against a teacher without dropout even
   equal networks are apart, and the loss drives the student off: after 20 steps on the toy of the
   tests its attention was six times as far from the teacher's as without the loss; with the same
   dropout, it is a quarter nearer.
9. The last iterate is returned. BCU's logs report the epoch with the best *test* accuracy.

The curve holds the teacher's points, then the student's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from defenses._checks import check_not_negative, check_positive
from defenses._training import Tuning, train_on_budget
from defenses.base import DefenderView, NotApplicableError, defense
from zoo.models import Classifier, clone
from zoo.train import set_training_mode

REFERENCE_POSITIONS: Final = 8 * 8  # of the map that beta refers to
EPSILON: Final = 1e-6  # keeps the map of a dead stage finite (code)


def attention(maps: Tensor, p: float) -> Tensor:
    """Where a stage looks: sum over channels of |F|^p, of unit L2 norm; (N, C, H, W) to (N, HW)."""
    energy = maps.float().abs().pow(p).sum(dim=1).flatten(1)
    unit: Tensor = energy / (energy.norm(dim=1, keepdim=True) + EPSILON)
    return unit


def attention_distance(student: Tensor, teacher: Tensor, p: float) -> Tensor:
    """Mean squared difference of the attention of two ``(N, C, H, W)``: in [0, 2 / (H W)]."""
    return F.mse_loss(attention(student, p), attention(teacher, p))


def stage_weights(maps: Sequence[Tensor], betas: Sequence[float]) -> dict[int, float]:
    """What the distance at each stage is multiplied by: beta * H W / 64, by position of the stage.

    The last beta goes to the deepest of the ``(N, C, H, W)`` maps that have more than one position;
    where there are fewer such maps than betas, the first betas go to none.
    """
    positions = {i: m.shape[2] * m.shape[3] for i, m in enumerate(maps)}
    deepest_first = [i for i in reversed(positions) if positions[i] > 1]
    pairs = zip(deepest_first, reversed(betas), strict=False)
    return {i: beta * positions[i] / REFERENCE_POSITIONS for i, beta in pairs}


def nad_loss(
    student: Classifier,
    teacher: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    weights: dict[int, float],
    p: float,
) -> Tensor:
    """Cross-entropy of the student plus the weighted attention distances to the teacher.

    What dropout drops in the student it drops in the teacher, where it is on in both.
    """
    state = _random_state(images.device)
    maps = student.stages(images)  # once: a second pass would update batch statistics twice
    logits = student.head(student.flatten(maps[-1]))
    with torch.no_grad(), _replay(state, images.device):
        targets = teacher.stages(images)
    loss = F.cross_entropy(logits.float(), labels)
    for stage, weight in weights.items():
        loss = loss + weight * attention_distance(maps[stage], targets[stage], p)
    return loss


def _random_state(device: torch.device) -> Tensor:
    """Of the generator that dropout draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def _replay(state: Tensor, device: torch.device) -> Iterator[None]:
    """Draws as they were drawn from that state; afterwards everything goes on as if it were not."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        if on_gpu:
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
        yield


@defense("nad", paper="arXiv:2101.05930", needs="labels")
def nad(
    model: Classifier,
    view: DefenderView,
    *,
    beta1: float = 500.0,  # weight of the shallowest of three stages, for 8x8 maps (code)
    beta2: float = 1000.0,  # of the middle one (code)
    beta3: float = 1000.0,  # of the deepest (code)
    p: float = 2.0,  # exponent of activations in the attention (code)
    teacher_steps: int = 150,  # optimiser steps of the teacher (our matched cost; 5-10 epochs)
    steps: int = 400,  # optimiser steps of the student (our matched cost; code: 20 epochs)
    lr: float = 0.1,  # initial rate of SGD for both, cosine to zero (code)
    batch_size: int = 64,  # images per step, at most (code)
    momentum: float = 0.9,  # of SGD (code)
    weight_decay: float = 5e-4,  # of SGD, per step and unit of rate (BCU, section 4.1)
) -> Classifier:
    """Fine-tunes a copy, then the model under its attention; see the module."""
    check_not_negative(beta1=beta1, beta2=beta2, beta3=beta3)
    check_positive(teacher_steps=teacher_steps)
    tuning = Tuning(
        lr=lr, steps=steps, batch_size=batch_size, momentum=momentum, weight_decay=weight_decay
    )
    teaching = replace(tuning, steps=teacher_steps)
    if not p >= 1:  # below, the attention has no slope at an activation of zero
        raise ValueError(f"expected p >= 1, got {p}")
    images, labels = view.require_labelled()
    with torch.no_grad():
        weights = stage_weights(model.stages(images[:1]), (beta1, beta2, beta3))
    if not weights:
        raise NotApplicableError("no stage has a feature map larger than 1x1: nothing to attend to")
    teacher = clone(model)
    train_on_budget(teacher, view, images, labels, teaching)

    set_training_mode(teacher, freeze_bn=True)  # that is: dropout, and the teacher's statistics

    def loss(student: Classifier, batch: Tensor, labels: Tensor, progress: float) -> Tensor:
        del progress
        return nad_loss(student, teacher, batch, labels, weights=weights, p=p)

    train_on_budget(model, view, images, labels, tuning, loss)
    return model
