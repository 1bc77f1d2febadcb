"""One file per defense, the decorator that marks them, and the view they get."""

from __future__ import annotations

from defenses.anp import anp, anp_oracle
from defenses.base import (
    DefenderView,
    Defense,
    Finding,
    NotApplicableError,
    NotDetectedError,
    defense,
)
from defenses.bcu import bcu
from defenses.clp import clp
from defenses.fp import fp
from defenses.ft import ft
from defenses.ibau import ibau
from defenses.identity import identity
from defenses.mcr import mcr
from defenses.nad import nad
from defenses.scramble import scramble

ALL: tuple[Defense, ...] = tuple(
    f.defense  # type: ignore[union-attr]
    for f in (identity, scramble, ft, clp, ibau, bcu, fp, mcr, nad, anp, anp_oracle)
)

__all__ = [
    "ALL",
    "DefenderView",
    "Defense",
    "Finding",
    "NotApplicableError",
    "NotDetectedError",
    "defense",
]
