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
from attacks.hidden_trigger import HiddenTrigger
from attacks.input_aware import InputAware
from attacks.l0_invisible import L0Invisible, L0Strip
from attacks.l2_invisible import L2Invisible, L2Perturbation
from attacks.label_consistent import LabelConsistent
from attacks.multi_trigger import MultiTrigger
from attacks.sig import Sig
from attacks.smooth import Smooth, SmoothPattern
from attacks.trojan_square import SquarePattern, TrojanSquare
from attacks.trojan_watermark import TrojanWatermark, WatermarkPattern
from attacks.trojaning import Trojaning
from attacks.wanet import WaNet

ALL: tuple[type[Attack], ...] = (
    BadNets,
    Blended,
    CleanLabel,
    HiddenTrigger,
    InputAware,
    L0Invisible,
    L2Invisible,
    LabelConsistent,
    MultiTrigger,
    Sig,
    Smooth,
    TrojanSquare,
    TrojanWatermark,
    Trojaning,
    WaNet,
)
MATERIALS: tuple[type[Material], ...] = (
    AdversarialImages,
    L0Strip,
    L2Perturbation,
    SmoothPattern,
    SquarePattern,
    WatermarkPattern,
)

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
    "HiddenTrigger",
    "InputAware",
    "L0Invisible",
    "L0Strip",
    "L2Invisible",
    "L2Perturbation",
    "LabelConsistent",
    "Material",
    "MultiTrigger",
    "Poison",
    "Preparation",
    "Sig",
    "Smooth",
    "SmoothPattern",
    "SquarePattern",
    "Surrogate",
    "SurrogateKind",
    "TrojanSquare",
    "TrojanWatermark",
    "Trojaning",
    "Tuning",
    "WaNet",
    "WatermarkPattern",
]
