"""Triggers and poisoning as pure functions of tensors; one file per attack."""

from __future__ import annotations

from attacks.badnets import BadNets
from attacks.base import Assets, Attack, Poison, Preparation
from attacks.blended import Blended
from attacks.sig import Sig
from attacks.wanet import WaNet

ALL: tuple[type[Attack], ...] = (BadNets, Blended, Sig, WaNet)

__all__ = [
    "ALL",
    "Assets",
    "Attack",
    "BadNets",
    "Blended",
    "Poison",
    "Preparation",
    "Sig",
    "WaNet",
]
