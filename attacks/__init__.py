"""Triggers and poisoning as pure functions of tensors; one file per attack."""

from __future__ import annotations

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
from attacks.sig import Sig
from attacks.wanet import WaNet

ALL: tuple[type[Attack], ...] = (BadNets, Blended, Sig, WaNet)
MATERIALS: tuple[type[Material], ...] = ()

__all__ = [
    "ALL",
    "MATERIALS",
    "TRAINING_ONLY",
    "Assets",
    "Attack",
    "BadNets",
    "Blended",
    "Companion",
    "Material",
    "Poison",
    "Preparation",
    "Sig",
    "Surrogate",
    "SurrogateKind",
    "Tuning",
    "WaNet",
]
