"""Do nothing: the control that every defense must beat.

Differences from the paper: there is no paper.
"""

from __future__ import annotations

from defenses.base import DefenderView, defense
from zoo.models import Classifier


@defense("identity", paper="control", needs="nothing")
def identity(model: Classifier, view: DefenderView) -> Classifier:
    """Returns the suspicious model as it is."""
    del view
    return model
