"""Robust accuracy in the harness: which cells are measured by it, and what is recorded.

Only cells whose defense is a :class:`defenses.Robustifier`. Their keys cover the attacks and the
number of images; no other key does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from bench.config import Evasion
from bench.records import RobustAccuracy, Robustness
from bench.registry import Broken, Entry
from defenses import Robustifier
from zoo.autoattack import autoattack_version
from zoo.evaluate import EvaluationSet
from zoo.models import Classifier
from zoo.robustness import ROBUST_VERSION, EvasionSet, evasion_set, robust_accuracy
from zoo.store import Stored

PANEL: Final = "adversarial"


def panel_of(entry: Entry | Broken) -> str:
    """The panel that a defense stands on in place of the boards; empty for most."""
    against_evasion = isinstance(entry, Entry) and isinstance(entry.defense, Robustifier)
    return PANEL if against_evasion else ""


def inputs_of(panel: str, sizes: Evasion) -> dict[str, Any]:
    """What a key covers beside the inputs that all cells have; nothing without a panel."""
    return {"robust": {"version": ROBUST_VERSION, **sizes.model_dump()}} if panel else {}


@dataclass(frozen=True, kw_only=True)
class Siege:
    """What all models made of one victim are attacked with, and how the victim itself fares."""

    given: EvasionSet
    before: RobustAccuracy

    def robustness(self, repaired: Classifier | None) -> Robustness:
        """The record's entry.

        Args:
            repaired: on the device to attack it on, and not to be trained any more; None where no
                model came back.
        """
        chosen = int(self.given.chosen.sum())
        return Robustness(
            images=len(self.given.labels),
            autoattack_images=chosen,
            autoattack=autoattack_version() if chosen else "",
            before=self.before,
            after=None if repaired is None else _measured(repaired, self.given),
        )


def siege_of(victim: Stored, judge: EvaluationSet, sizes: Evasion, device: str) -> Siege:
    """Draws the images of a victim (or twin) and attacks it, undefended.

    Victims of the same data set and seed share their images and random starts.
    """
    given = evasion_set(
        judge.clean,
        judge.labels,
        pgd=sizes.pgd_images,
        autoattack=sizes.autoattack_images,
        axes=(victim.meta["dataset"], victim.meta["seed"]),
    )
    return Siege(given=given, before=_measured(victim.model().to(device), given))


def _measured(model: Classifier, given: EvasionSet) -> RobustAccuracy:
    return RobustAccuracy(**robust_accuracy(model, given))
