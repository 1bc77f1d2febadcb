"""All metrics of the protocol, from one pass over the evaluation images per trigger strength.

``METRIC_VERSION`` is part of every cell's key. A test holds a hash of this file's code against it,
so that a change of meaning cannot leave old numbers looking fresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypedDict

import torch
from torch import Tensor

from attacks import Assets, Attack
from zoo.models import Classifier
from zoo.train import predict_logits

METRIC_VERSION: Final = 1


class AttackedDict(TypedDict):
    """JSON form of ``bench.records.Attacked``; fractions in [0, 1]."""

    asr: float
    ra: float
    asr_conditional: float | None
    asr_including_target: float


class MetricsDict(TypedDict):
    """JSON form of ``bench.records.Metrics``."""

    acc: float
    images: int
    strengths: dict[str, AttackedDict]


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """The evaluation images of one victim, clean and at every trigger strength.

    Attributes:
        clean: ``uint8 (N, C, H, W)``.
        labels: ``int64 (N,)``.
        counted: ``bool (N,)``: which images count for ASR and RA.
        goals: ``int64 (N,)``: what a triggered image is meant to be taken for.
        triggered: strength ("x1", ...) to ``uint8 (N, C, H, W)``; empty for a clean twin alone.
    """

    clean: Tensor
    labels: Tensor
    counted: Tensor
    goals: Tensor
    triggered: dict[str, Tensor]


def clean_set(images: Tensor, labels: Tensor) -> EvaluationSet:
    """Evaluation without a trigger."""
    nothing = torch.zeros_like(labels)
    return EvaluationSet(
        clean=images, labels=labels, counted=nothing.bool(), goals=nothing, triggered={}
    )


def attacked_set(
    images: Tensor, labels: Tensor, attack: Attack, assets: Assets, target: int, num_classes: int
) -> EvaluationSet:
    """Stamps every evaluation image at every strength of the attack, once per victim."""
    goals = attack.relabel(labels, target, num_classes)
    return EvaluationSet(
        clean=images,
        labels=labels,
        counted=labels != goals,
        goals=goals,
        triggered={f"x{s}": attack.amplified(images, s, assets) for s in attack.strengths},
    )


def evaluate(model: Classifier, judge: EvaluationSet) -> MetricsDict:
    """Clean accuracy, and ASR and RA at every strength, in eval mode.

    Raises:
        ValueError: there are no images to count.
    """
    if len(judge.labels) == 0:
        raise ValueError("expected at least one evaluation image, got 0")
    correct = predict(model, judge.clean) == judge.labels
    strengths: dict[str, AttackedDict] = {}
    for name, images in judge.triggered.items():
        predicted = predict(model, images)
        strengths[name] = attacked_metrics(
            hit=predicted == judge.goals,
            recovered=predicted == judge.labels,
            correct=correct,
            counted=judge.counted,
        )
    return {"acc": share(correct), "images": len(correct), "strengths": strengths}


def asr_by_part(model: Classifier, judge: EvaluationSet, parts: Sequence[str]) -> dict[str, float]:
    """Attack success of each trigger of an attack that has several, at x1; empty for the others.

    Image n carries trigger n modulo their number, so each is measured on its share of the images.
    """
    if not parts:
        return {}
    hit = predict(model, judge.triggered["x1"]) == judge.goals
    of = torch.arange(len(hit)) % len(parts)
    return {name: share(hit[judge.counted & (of == part)]) for part, name in enumerate(parts)}


def attacked_metrics(
    *, hit: Tensor, recovered: Tensor, correct: Tensor, counted: Tensor
) -> AttackedDict:
    """The four figures at one strength; all arguments ``bool (N,)``.

    ``asr`` and ``ra`` are over the counted images (BackdoorBench, BCU); ``asr_conditional`` over
    those of them that the evaluated model gets right when clean (DHBE's code); None where there are
    none; ``asr_including_target`` over all images (I-BAU's code).
    """
    conditional = counted & correct
    return {
        "asr": share(hit[counted]),
        "ra": share(recovered[counted]),
        "asr_conditional": share(hit[conditional]) if bool(conditional.any()) else None,
        "asr_including_target": share(hit),
    }


def predict(model: Classifier, images: Tensor) -> Tensor:
    """Predicted classes ``int64 (N,)`` on the CPU."""
    return predict_logits(model, images).argmax(dim=1).cpu()


def share(mask: Tensor) -> float:
    """Share of True; an empty mask is an error of the caller and gives 0."""
    return float(mask.double().mean().item()) if len(mask) else 0.0


def score(after: MetricsDict, twin: MetricsDict) -> float:
    """The primary figure, 0 to 100.

    ``100 * min(1, acc / acc_twin) * min over strengths of min(1, ra / ra_twin)``. Doing nothing
    scores about 0, destroying the model about 1, a perfect cure 100. A strength at which the twin
    itself recovers nothing says nothing and counts as 1.
    """
    accuracy = ratio(after["acc"], twin["acc"])
    recovered = [
        ratio(after["strengths"][name]["ra"], twin["strengths"][name]["ra"])
        for name in twin["strengths"]
    ]
    return 100 * accuracy * min(recovered, default=1.0)


def ratio(value: float, reference: float) -> float:
    """``min(1, value / reference)``, 1 where the reference is 0."""
    return 1.0 if reference <= 0 else min(1.0, value / reference)


def der(before: MetricsDict, after: MetricsDict) -> float:
    """Defense effectiveness rating: ``(max(0, dASR) - max(0, dACC) + 1) / 2`` at strength x1."""
    drop_asr = before["strengths"]["x1"]["asr"] - after["strengths"]["x1"]["asr"]
    drop_acc = before["acc"] - after["acc"]
    return (max(0.0, drop_asr) - max(0.0, drop_acc) + 1) / 2
