"""Defenses against adversarial examples, for the harness's tests."""

from defenses import DefenderView, robustifier
from zoo.models import Classifier


@robustifier("hardens", paper="", needs="nothing")
def hardens(model: Classifier, view: DefenderView, *, by: float = 0.0) -> Classifier:
    """Adds something to every weight of the head; nothing to start with."""
    model.head.weight.data.add_(by * model.head.weight.data.sign())
    return model


@robustifier("shatters", paper="", needs="nothing")
def shatters(model: Classifier, view: DefenderView) -> Classifier:
    """Comes to nothing."""
    raise RuntimeError("too brittle")
