"""What is measured of a model, as records and the zoo store it; fractions in [0, 1]."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def stored(kind: type[T]) -> type[T]:
    """Marks a class of stored records: reading one refuses what no writer of ours leaves there.

    Fields that the class does not have, and numbers that are not finite.
    """
    kind.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[attr-defined]
    return kind


@stored
@dataclass(frozen=True, kw_only=True)
class Attacked:
    """How a model answers triggered images at one trigger strength; fractions in [0, 1]."""

    asr: float  # y != t predicted t (all-to-all: all images, predicted (y + 1) mod K)
    ra: float  # the same images, still predicted y
    asr_conditional: float | None  # among those that the model gets right when clean (DHBE)
    asr_including_target: float  # over all images, those of class t too (I-BAU)


@stored
@dataclass(frozen=True, kw_only=True)
class Metrics:
    """A model on the evaluation split: clean accuracy, and one entry per trigger strength."""

    acc: float
    images: int  # size of the evaluation split
    strengths: dict[str, Attacked] = field(default_factory=dict)  # "x1", "x4", "x9" or "x1".."x3"

    @property
    def asr(self) -> float | None:
        """ASR at the strength used in training, None for a model without a trigger."""
        first = self.strengths.get("x1")
        return None if first is None else first.asr

    @property
    def ra(self) -> float | None:
        """Recovered accuracy at the strength used in training."""
        first = self.strengths.get("x1")
        return None if first is None else first.ra

    @property
    def worst_asr(self) -> float | None:
        """The highest ASR over all strengths."""
        return max((s.asr for s in self.strengths.values()), default=None)


@stored
@dataclass(frozen=True, kw_only=True)
class RobustAccuracy:
    """A model on some attacked evaluation images: the share that no attack gets misclassified.

    By the largest change of a pixel value, in grey levels of 255; fractions in [0, 1].
    """

    acc: float  # the same images, not attacked
    pgd: dict[str, float]  # "8", "10", "16"
    autoattack: dict[str, float]  # "8", "10"; fewer images; empty where it was not run


@stored
@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Robust accuracy of the victim and of what a defense made of it."""

    images: int  # attacked by PGD, class-stratified, the same for every defense
    autoattack_images: int  # of those, attacked by AutoAttack, too; 0 where it was not run
    autoattack: str  # "pyautoattack 0.2.0"; empty where it was not run
    before: RobustAccuracy
    after: RobustAccuracy | None  # None where no model came back


def checked_metrics(payload: object) -> Metrics | None:
    """Metrics from a JSON value of others; None stays None.

    Raises:
        ValueError: not of that form.
    """
    return _reader().validate_json(json.dumps(payload), strict=True)


@cache
def _reader() -> TypeAdapter[Metrics | None]:
    """Parses and checks; JSON is where strictness lets a dictionary stand for an object."""
    from pydantic import TypeAdapter

    return TypeAdapter(Metrics | None)


def metrics_from_dict(payload: Mapping[str, Any] | None) -> Metrics | None:
    """Builds metrics from their JSON form; None stays None."""
    if payload is None:
        return None
    strengths = {name: Attacked(**entry) for name, entry in payload["strengths"].items()}
    return Metrics(acc=payload["acc"], images=payload["images"], strengths=strengths)
