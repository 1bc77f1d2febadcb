"""Learn to generate a trigger for every class; one that is abnormally small is the backdoor's.

Where there are no images, it first makes its own by inverting the model.

Paper: "DeepInspect: A Black-box Trojan Detection and Mitigation Framework for Deep Neural
Networks", IJCAI 2019, doi:10.24963/ijcai.2019/647. Known to us at second hand: from FRED, I-BAU,
trojanzoo's code and a summary of its formulas. "Unstated" means not stated there.

Differences from the paper:

1. Real images replace the inverted ones where the budget has any, as in I-BAU's comparison. The
   inversion minimises cross-entropy instead of 1 - f_y(x) plus a prior, which is unstated.
2. The weight gamma2 of the size is tuned by rule and per class: it rises where triggers succeed
   often enough and falls where they do not. The paper tunes one for all by hand until 95 % succeed;
   sizes can only be compared between classes at equal success.
3. A class whose triggers miss that success by more than 15 points is not flagged, however small
   they are: they are no triggers.
4. Triggers for class t are learnt on images of other classes. The share of images that are t
   anyway differs between classes, and would make common classes look attacked.
5. The generator is a perceptron with an embedding of the class; the paper's is unstated. Its
   last layer starts at zero and is linear: a saturated output would not shrink again.
6. 500 steps of 64 images for all classes together: the cost does not grow with their number.
7. Unlearning stamps 20 % of each batch for 200 steps, as nc does; both are unstated. Batch
   normalisation keeps the victim's statistics on inverted images, whose own are those of noise.
8. With four classes or fewer nothing can be flagged, unless sizes are equal: two at most are at or
   below the median, and an index among two cannot exceed 2 / 1.4826 = 1.35. The reason says so.

I-BAU's comparison judged by the average loss of the generator. trojanzoo's code sets gamma1 to 0,
does not hinge the size, and lets the trigger replace the image that the paper adds it to.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from defenses._checks import check_not_negative, check_positive, check_share
from defenses._inversion_images import invert
from defenses._others import Others
from defenses._outliers import CONSISTENCY, flag_small, left_anomaly_index
from defenses._trigger_generator import (
    TriggerGenerator,
    running_success,
    size_of,
    stamp,
    stamper,
    tune,
)
from defenses._unlearning import Unlearning, unlearn
from defenses.base import DefenderView, Finding, NotDetectedError, defense
from zoo.models import Classifier
from zoo.train import DivergedError, predict_logits

PROBES: Final = 40  # triggers per class that are measured in the end
SLACK: Final = 0.15  # by which measured success may miss the aim
LARGEST_INDEX_OF_FOUR: Final = 2 / CONSISTENCY
CURVE_POINTS: Final = 20


def trigger_loss(
    logits: Tensor,
    classes: Tensor,
    sizes: Tensor,
    *,
    gamma1: float,
    gamma2: Tensor,
    limit: float,
) -> Tensor:
    """Mean of NLL + gamma1 (f_t - 1)^2 + gamma2 max(0, size - limit) over ``(N,)`` triggers."""
    certainty = logits.softmax(1).gather(1, classes[:, None])[:, 0]
    fooling = F.cross_entropy(logits, classes, reduction="none") + gamma1 * (certainty - 1) ** 2
    return (fooling + gamma2 * (sizes - limit).clamp(min=0)).mean()


def learn_triggers(
    model: Classifier,
    view: DefenderView,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    gamma1: float,
    gamma2: float,
    limit: float,
    success: float,
    tuning_rate: float,
) -> TriggerGenerator:
    """Step 2: one conditional generator for all classes, which take turns in every batch.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    k, g = view.num_classes, view.generator
    net = TriggerGenerator(k, model.spec.image_shape, g).to(view.device)
    parameters = list(net.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    others, turns = Others(labels, k), torch.randperm(k, generator=g)
    weights = torch.full((k,), gamma2, device=view.device)
    rates = torch.zeros_like(weights)
    for step in range(steps):
        classes = turns[torch.arange(step * batch_size, (step + 1) * batch_size) % k]
        batch = images[others.draw(classes, g).to(view.device)]
        classes = classes.to(view.device)
        triggers = net.sample(classes, g)
        logits, sizes = model(stamp(batch, triggers)), size_of(triggers)
        loss = trigger_loss(
            logits, classes, sizes, gamma1=gamma1, gamma2=weights[classes], limit=limit
        )
        # Not backward(): the classifier's weights must not collect gradients.
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = slope
        optimizer.step()
        schedule.step()
        rates, seen = running_success(rates, classes, logits.argmax(1) == classes)
        tuned = tune(weights, rates, aim=success, rate=tuning_rate)
        weights = torch.where(seen, tuned, weights)
        if not loss.isfinite():
            raise DivergedError(f"the loss of the generator is {loss.item()} after {step} steps")
        if (step + 1) % max(1, steps // CURVE_POINTS) == 0:
            view.log(step, loss=loss.item(), success=rates.mean().item(), size=sizes.mean().item())
    return net


@torch.no_grad()
def measure(
    model: Classifier,
    net: TriggerGenerator,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Step 3: mean sizes ``(K,)``, success ``(K,)`` and mean triggers ``(K, C, H, W)``.

    On images of other classes and with fresh noise.
    """
    k = model.spec.num_classes
    others = Others(labels, k)
    sizes, success, pictures = [], [], []
    for t in range(k):
        classes = torch.full((PROBES,), t)
        batch = images[others.draw(classes, generator).to(images.device)]
        triggers = net.sample(classes, generator)
        sizes.append(size_of(triggers).mean())
        moved = predict_logits(model, stamp(batch, triggers)).argmax(1) == t
        success.append(moved.float().mean())
        pictures.append(triggers.mean(0))
    return torch.stack(sizes), torch.stack(success), torch.stack(pictures)


def find(
    sizes: Tensor, success: Tensor, triggers: Tensor, *, threshold: float, required: float
) -> Finding:
    """Step 4: classes with abnormally small triggers that work; a picture is grey where G is 0."""
    index = left_anomaly_index(sizes)
    small = flag_small(sizes, index, threshold)
    return Finding(
        statistic="L1 norm of the generated triggers",
        values=sizes,
        index=index,
        threshold=threshold,
        flagged=tuple(t for t in small if success[t] >= required),
        triggers=(0.5 + triggers / 2).clamp(0, 1),
    )


def why_nothing(finding: Finding) -> str:
    """The reason for the record where no class is flagged."""
    k, top = len(finding.index), int(finding.index.argmax())
    if k <= 4 and finding.threshold >= LARGEST_INDEX_OF_FOUR:
        return f"a double median absolute deviation cannot single out one of {k} classes"
    return (
        "no class has triggers that work and are abnormally small with an index above "
        f"{finding.threshold:g}; the largest index is {finding.index[top]:.2f}, of class {top}"
    )


@defense("deepinspect", paper="doi:10.24963/ijcai.2019/647", needs="optional")
def deepinspect(
    model: Classifier,
    view: DefenderView,
    *,
    inverted: int = 200,  # images to invert where the budget has none, about (ours)
    inversion_steps: int = 200,  # of Adam per inverted image (ours; unstated)
    inversion_lr: float = 0.05,  # of Adam on pixels in [0, 1] (ours; unstated)
    search_steps: int = 500,  # of Adam on the generator (our matched cost)
    search_batch: int = 64,  # images per step of the generator (ours)
    search_lr: float = 1e-3,  # of Adam on the generator, cosine to zero (ours; unstated)
    gamma1: float = 1.0,  # weight of (f_t - 1)^2 (ours; unstated)
    gamma2: float = 1e-3,  # initial weight per unit of L1 norm above the limit (that of NC's mask)
    limit: float = 1.0,  # L1 norm, pixels in [0, 1], below which smaller is no better (ours)
    success: float = 0.95,  # share of images that triggers have to move (paper)
    tuning_rate: float = 0.1,  # relative change of gamma2 per step (ours)
    index_threshold: float = 2.0,  # double MADs below the median (paper)
    share: float = 0.2,  # of each batch that is stamped to unlearn (as nc)
    lr: float = 0.01,  # initial rate of SGD, cosine to zero (that of ft)
    steps: int = 200,  # of unlearning (our matched cost)
    batch_size: int = 64,  # images per step of unlearning, at most (that of ft)
    momentum: float = 0.9,  # of SGD (that of ft)
    weight_decay: float = 5e-4,  # of SGD, per step and unit of rate (that of ft)
) -> Classifier:
    """Unlearns generated triggers of suspicious classes, in place; see the module."""
    check_positive(inverted=inverted, inversion_steps=inversion_steps, inversion_lr=inversion_lr)
    check_positive(search_steps=search_steps, search_batch=search_batch, search_lr=search_lr)
    check_positive(gamma2=gamma2, tuning_rate=tuning_rate)
    check_share(success=success)
    check_not_negative(gamma1=gamma1, limit=limit, index_threshold=index_threshold)
    data_free = view.images is None
    how = Unlearning(
        share=share,
        lr=lr,
        steps=steps,
        batch_size=batch_size,
        momentum=momentum,
        weight_decay=weight_decay,
        freeze_bn=data_free,
    )
    # Step 1: a substitute data set, where there is no real one.
    k = view.num_classes
    if data_free:
        labels = torch.arange(k).repeat(math.ceil(inverted / k)).to(view.device)
        images = invert(model, labels, view.generator, steps=inversion_steps, lr=inversion_lr)
    else:
        images, labels = view.require_labelled()
    net = learn_triggers(
        model,
        view,
        images,
        labels,
        steps=search_steps,
        batch_size=search_batch,
        lr=search_lr,
        gamma1=gamma1,
        gamma2=gamma2,
        limit=limit,
        success=success,
        tuning_rate=tuning_rate,
    )
    sizes, works, triggers = measure(model, net, images, labels, view.generator)
    view.finding = find(sizes, works, triggers, threshold=index_threshold, required=success - SLACK)
    if not view.finding.flagged:
        raise NotDetectedError(why_nothing(view.finding))
    # Step 5: model patching.
    stamps = [stamper(net, t, view.generator) for t in view.finding.flagged]
    unlearn(model, view, images, labels, stamps, how)
    return model
