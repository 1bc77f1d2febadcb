"""Distil the model without data, and make the student indifferent to patches, by two adversaries.

One generator makes the images on which student and teacher disagree most, the other the patches
that change most what the student says; the student learns to agree and to stay unmoved.

Paper: "DHBE: Data-free Holistic Backdoor Erasing in Deep Neural Networks via Restricted Adversarial
Distillation", AsiaCCS 2023, arXiv:2306.08009. Of the victim's data it takes the size of the images
and the constants that normalise them.

The student's statistics come out of generated images, nearly half of them stamped. The paper
credits this with a part of the effect: batch normalisation is not frozen, and plain and stamped
images never share a batch. Patches are added to pixels, before the classifier normalises them.

Where paper and code disagree:

1. Paper: 3 steps of the student per iteration (5.1.3), or as many as Fang et al. (4.4). Code: 5.
2. Paper: lambda is the only weight. Code: also 1e-4 times the total variation of the images, a norm
   over the batch and so dependent on its size; here it is scaled to a batch of 256.
3. Paper: patches times a constant, which is not given. Code: no such factor; nor is there one here.

Differences from both:

4. A fifth of the iterations, smaller batches, generators of a quarter of the width, half the
   student's rate: the published schedule takes six hours of a GPU. All rates still drop twice.
   Where there are minutes only, the profile ``cpu`` has a rate of 2e-4: at 5e-3 a student of GTSRB
   was at 13 % ACC after 150 steps. At 2e-4 the statistics were all of the effect on the one victim
   that was looked into: in 180 steps ASR of a Trojan square fell from 100 % to 1 %, and with the
   teacher's statistics put back into the same student it was 100 % again.
5. ``lam=0`` is pure adversarial distillation: there is no trigger generator. The paper's own
   lambda = 0 still feeds stamped images to the student, whose statistics suffer them.
6. The student's dropout is off. The paper's network has none, and two masks would make the student
   respond to no patch at all.
7. The tables of the generators' layers are lost in the text we have; these follow its prose: leaky
   ReLU of slope 0.2, batch normalisation throughout, at the end of the one and tanh at the end of
   the other. They use batch statistics only, because nobody evaluates them.
8. float32 everywhere: the differences of logits that are fought over vanish in bfloat16.
9. A student without batch normalisation is distilled all the same; the curve's ``bn_layers`` says
   that the statistics cannot have contributed.
10. A generator that makes one image only is an end (diverged), not a result.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from defenses._checks import check_not_negative, check_positive
from defenses._generators import NoiseDecoder, Tail
from defenses.base import MIN_BATCH_FOR_STATISTICS, DefenderView, defense
from zoo.models import Classifier
from zoo.train import DivergedError

CURVE_POINTS: Final = 20
MILESTONES: Final = (0.6, 0.8)  # shares of the iterations after which all rates drop (paper, 5.1.3)
SMOOTHNESS: Final = 1e-4  # weight of the total variation (code)
REFERENCE_BATCH: Final = 256  # images, that this weight refers to (code)
COLLAPSED: Final = 1e-4  # share of the variance between images, below which they are all one


def set_student_mode(student: Classifier) -> int:
    """Batch normalisation in train mode, all else (dropout) in eval mode; how many layers of it."""
    student.eval()
    layers = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in layers:
        layer.train()
    return len(layers)


def to_pixels(samples: Tensor, model: Classifier) -> Tensor:
    """From unit variance to the [0, 1] scale of the classifier's input, without clipping."""
    return samples * model.std + model.mean


def place(patches: Tensor, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Patches ``(N, C, p, p)`` in zeros ``(N, C, H, W)``, all at one random offset."""
    size, (_, height, width) = patches.shape[-1], shape
    top = int(torch.randint(height - size + 1, (1,), generator=generator))
    left = int(torch.randint(width - size + 1, (1,), generator=generator))
    return F.pad(patches, (left, width - size - left, top, height - size - top))


def student_losses(
    student: Classifier, teacher: Classifier, images: Tensor, triggers: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean |S(x) - T(x)| and mean |S(x + p) - S(x)| over logits; the latter 0 without triggers.

    The second draws the stamped images to where the plain ones are, never the other way round.
    """
    with torch.no_grad():
        targets = teacher(images)
    plain = student(images)
    gap = F.l1_loss(plain, targets)
    if triggers is None:
        return gap, torch.zeros_like(gap)
    return gap, F.l1_loss(student(images + triggers), plain.detach())


def trigger_response(student: Classifier, images: Tensor, triggers: Tensor) -> Tensor:
    """Mean |S(x + p) - S(x)| over logits, to be maximised over p."""
    with torch.no_grad():
        plain = student(images)
    return F.l1_loss(student(images + triggers), plain)


def total_variation(samples: Tensor) -> Tensor:
    """L2 norm of the differences between neighbours, down plus across, for a batch of 256."""
    norms: Tensor = samples.diff(dim=2).norm() + samples.diff(dim=3).norm()
    return norms * math.sqrt(REFERENCE_BATCH / len(samples))


def diversity(samples: Tensor) -> float:
    """Share of the unit variance that lies between the images of a batch: 0 where all are alike."""
    return float(samples.detach().var(0, correction=0).mean())


def descend(optimizer: Optimizer, loss: Tensor) -> None:
    """One step on the optimiser's own parameters; no other network gets a gradient."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = slope
    optimizer.step()


@dataclass(frozen=True)
class Game:
    """The four networks, and one step of each that learns.

    Attributes:
        teacher: in eval mode.
        student: in the mode of :func:`set_student_mode`.
        sampler: makes normalised images.
        stamper: makes patches; None leaves pure adversarial distillation.
        batch_size: images per step.
        generator: source of noise and offsets, on the CPU.
    """

    teacher: Classifier
    student: Classifier
    sampler: NoiseDecoder
    stamper: NoiseDecoder | None
    batch_size: int
    generator: torch.Generator

    def draw(self, network: NoiseDecoder) -> Tensor:
        """What a generator makes of fresh noise."""
        noise = torch.randn(self.batch_size, network.noise_size, generator=self.generator)
        output: Tensor = network(noise.to(self.teacher.mean.device))
        return output

    def draw_triggers(self, stamper: NoiseDecoder) -> Tensor:
        """Placed patches ``(N, C, H, W)`` in pixel units."""
        return place(self.draw(stamper), self.teacher.spec.image_shape, self.generator)

    def train_student(self, optimizer: Optimizer, lam: float) -> tuple[Tensor, Tensor]:
        """Step A: agree, stay unmoved; returns both losses before the step."""
        triggers = None
        with torch.no_grad():
            images = to_pixels(self.draw(self.sampler), self.teacher)
            if self.stamper is not None:
                triggers = self.draw_triggers(self.stamper)
        gap, response = student_losses(self.student, self.teacher, images, triggers)
        descend(optimizer, gap + lam * response)
        return gap.detach(), response.detach()

    def train_sampler(self, optimizer: Optimizer) -> Tensor:
        """Step B: images on which the two disagree; returns those before the step, normalised."""
        samples = self.draw(self.sampler)
        images = to_pixels(samples, self.teacher)
        gap = F.l1_loss(self.student(images), self.teacher(images))
        descend(optimizer, SMOOTHNESS * total_variation(samples) - gap)
        return samples.detach()

    def train_stamper(self, optimizer: Optimizer, stamper: NoiseDecoder) -> None:
        """Step C: patches that the student responds to."""
        with torch.no_grad():
            images = to_pixels(self.draw(self.sampler), self.teacher)
        response = trigger_response(self.student, images, self.draw_triggers(stamper))
        descend(optimizer, -response)


def check_alive(samples: Tensor, losses: float, iteration: int) -> None:
    """Raises DivergedError where losses are not finite, or all samples are one image."""
    if not math.isfinite(losses):
        raise DivergedError(f"the student's losses are {losses} in iteration {iteration}")
    if not diversity(samples) > COLLAPSED:
        raise DivergedError(
            f"the sample generator has collapsed to one image in iteration {iteration}: "
            f"{diversity(samples):.1e} of the variance is between images"
        )


@defense("dhbe", paper="arXiv:2306.08009", needs="nothing")
def dhbe(
    model: Classifier,
    view: DefenderView,
    *,
    lam: float = 0.1,  # lambda, weight of the response to triggers; 0: no triggers (paper, 5.1.3)
    patch_size: int = 5,  # side of the generated patches in pixels (authors' code)
    iterations: int = 3000,  # rounds of the three steps (our matched cost; paper: 15,000)
    student_steps: int = 5,  # k, steps of the student per iteration (authors' code)
    batch_size: int = 64,  # images per step (our matched cost; paper: 128)
    lr: float = 0.05,  # initial rate of SGD for the student (our matched cost; paper: 0.1)
    momentum: float = 0.9,  # of SGD (paper, 5.1.3)
    weight_decay: float = 5e-4,  # of SGD, per step and unit of rate (paper, 5.1.3)
    generator_lr: float = 1e-3,  # initial rate of Adam for both generators (paper, 5.1.3)
    generator_width: int = 16,  # their channels (our matched cost: a quarter of the usual 64)
    noise_size: int = 256,  # dimensions of their noise (paper, appendix B)
) -> Classifier:
    """Distils the model into a copy of itself that patches do not move; see the module."""
    check_not_negative(lam=lam, momentum=momentum, weight_decay=weight_decay)
    check_positive(iterations=iterations, student_steps=student_steps, noise_size=noise_size)
    check_positive(lr=lr, generator_lr=generator_lr, generator_width=generator_width)
    if batch_size < MIN_BATCH_FOR_STATISTICS:
        raise ValueError(f"expected batch_size >= {MIN_BATCH_FOR_STATISTICS}, got {batch_size}")
    shape = model.spec.image_shape
    if not 1 <= patch_size <= min(shape[1:]):
        raise ValueError(f"expected 1 <= patch_size <= {min(shape[1:])}, got {patch_size}")
    model.eval().to(memory_format=torch.channels_last)  # faster on a CPU
    student = copy.deepcopy(model)
    view.log(0, bn_layers=set_student_mode(student))

    def build(size: tuple[int, int, int], tail: Tail) -> NoiseDecoder:
        network = NoiseDecoder(size, tail, noise_size, generator_width, view.generator)
        return network.to(view.device).to(memory_format=torch.channels_last)

    sampler = build(shape, "sample")
    stamper = build((shape[0], patch_size, patch_size), "trigger") if lam > 0 else None
    game = Game(model, student, sampler, stamper, batch_size, view.generator)
    sgd = torch.optim.SGD(student.parameters(), lr, momentum, weight_decay=weight_decay)
    adams = [torch.optim.Adam(g.parameters(), generator_lr) for g in (sampler, stamper) if g]
    milestones = [math.ceil(share * iterations) for share in MILESTONES]
    schedules = [MultiStepLR(optimizer, milestones) for optimizer in (sgd, *adams)]

    for i in range(iterations):
        for _ in range(student_steps):
            gap, response = game.train_student(sgd, lam)
        samples = game.train_sampler(adams[0])
        if stamper is not None:
            game.train_stamper(adams[1], stamper)
        for schedule in schedules:
            schedule.step()
        if (i + 1) * CURVE_POINTS // iterations > i * CURVE_POINTS // iterations:
            check_alive(samples, (gap + response).item(), i + 1)
            view.log(i + 1, gap=gap.item(), response=response.item(), diversity=diversity(samples))
    student.zero_grad(set_to_none=True)
    return student.eval()
