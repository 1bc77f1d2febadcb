"""Triggers and poisoning as pure functions of tensors; one file per attack."""

from __future__ import annotations

from attacks._adversarial import AdversarialImages
from attacks.badnets import BadNets
from attacks.base import (
    TRAINING_ONLY,
    Assets,
    Attack,
    Companion,
    Material,
    Poison,
    Preparation,
    Surrogate,
    SurrogateKind,
    Tuning,
)
from attacks.blended import Blended
from attacks.clean_label import CleanLabel
from attacks.label_consistent import LabelConsistent
from attacks.sig import Sig
from attacks.wanet import WaNet

ALL: tuple[type[Attack], ...] = (BadNets, Blended, CleanLabel, LabelConsistent, Sig, WaNet)
MATERIALS: tuple[type[Material], ...] = (AdversarialImages,)

__all__ = [
    "ALL",
    "MATERIALS",
    "TRAINING_ONLY",
    "AdversarialImages",
    "Assets",
    "Attack",
    "BadNets",
    "Blended",
    "CleanLabel",
    "Companion",
    "LabelConsistent",
    "Material",
    "Poison",
    "Preparation",
    "Sig",
    "Surrogate",
    "SurrogateKind",
    "Tuning",
    "WaNet",
]
