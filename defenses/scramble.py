"""Destroy the model: the control with the lowest attack success rate and no use at all.

A measure of removal that ranks it well is a wrong measure.

Differences from the paper: there is no paper.
"""

from __future__ import annotations

from defenses.base import DefenderView, defense
from zoo.models import Classifier, build_model


@defense("scramble", paper="control", needs="nothing")
def scramble(model: Classifier, view: DefenderView) -> Classifier:
    """Returns an untrained model: fresh weights, fresh running statistics."""
    # Drawn on the CPU, where the generator lives, so that every device gets the same weights.
    return build_model(model.spec, view.generator).to(view.device)
