"""One file per defense, the decorator that marks them, and the view they get."""

from __future__ import annotations

from defenses._evasion import Robustifier, robustifier
from defenses.advft import advft
from defenses.anp import anp, anp_oracle
from defenses.base import (
    BaseSet,
    DefenderView,
    Defense,
    Finding,
    NotApplicableError,
    NotDetectedError,
    base_set,
    defense,
)
from defenses.bcu import bcu
from defenses.clp import clp
from defenses.deepinspect import deepinspect
from defenses.dhbe import dhbe
from defenses.dp import dp
from defenses.fp import fp
from defenses.fred import fred
from defenses.ft import ft
from defenses.gdm import gdm, gdm_oracle
from defenses.gmi import gmi
from defenses.ibau import ibau
from defenses.identity import identity
from defenses.mcr import mcr
from defenses.nad import nad
from defenses.naive import naive
from defenses.nc import nc, nc_oracle
from defenses.scramble import scramble
from defenses.tabor import tabor

ALL: tuple[Defense, ...] = tuple(
    f.defense  # type: ignore[union-attr]
    for f in (
        identity,
        scramble,
        ft,
        clp,
        ibau,
        bcu,
        fp,
        mcr,
        nad,
        anp,
        anp_oracle,
        nc,
        nc_oracle,
        tabor,
        deepinspect,
        gdm,
        gdm_oracle,
        dhbe,
        dp,
        advft,
    )
)

BASE_SETS: tuple[BaseSet, ...] = tuple(
    f.base_set  # type: ignore[union-attr]
    for f in (naive, gmi, fred)
)

__all__ = [
    "ALL",
    "BASE_SETS",
    "BaseSet",
    "DefenderView",
    "Defense",
    "Finding",
    "NotApplicableError",
    "NotDetectedError",
    "Robustifier",
    "base_set",
    "defense",
    "robustifier",
]
