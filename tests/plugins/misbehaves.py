"""Defenses that break one rule each of what `bench check` looks at."""

from pathlib import Path

import torch

from defenses import base_set, defense
from zoo.models import clone


@defense("says-nothing", paper=" ", needs="nothing")
def says_nothing(model, view):
    return model


@defense("returns-weights", paper="test", needs="nothing")
def returns_weights(model, view):
    """Gives back a dictionary."""
    return model.state_dict()


@defense("reads-labels", paper="test", needs="images")
def reads_labels(model, view):
    """Looks for labels that it did not ask for."""
    if view.labels is not None:
        model.head.bias.data.add_(1)
    return model


@defense("asks-for-too-much", paper="test", needs="labels")
def asks_for_too_much(model, view):
    """Declares labels and reads images."""
    model.head.bias.data += view.require_images().mean()
    return model


@defense("draws-at-large", paper="test", needs="nothing")
def draws_at_large(model, view):
    """Draws from torch's global generator."""
    model.head.bias.data += torch.rand(len(model.head.bias))
    return model


@defense("scribbles", paper="test", needs="images")
def scribbles(model, view):
    """Normalises the shared images in place."""
    view.require_images().sub_(0.5)
    return model


@defense("repairs-the-wrong-one", paper="test", needs="nothing")
def repairs_the_wrong_one(model, view):
    """Changes the model it was given and returns a copy from before."""
    before = clone(model)
    model.head.bias.data.add_(1)
    return before


@defense("leaves-a-hook", paper="test", needs="nothing")
def leaves_a_hook(model, view):
    """Forgets a hook."""
    model.head.register_forward_hook(lambda *_: None)
    return model


@defense("freezes", paper="test", needs="nothing")
def freezes(model, view):
    """Leaves the body frozen and gradients off."""
    model.requires_grad_(False)
    torch.set_grad_enabled(False)
    return model


@defense("chatters", paper="test", needs="nothing")
def chatters(model, view):
    """Logs without end."""
    for step in range(5000):
        view.log(step, x=0.0)
    return model


@defense("takes-notes", paper="test", needs="nothing")
def takes_notes(model, view):
    """Opens a file of its user for writing."""
    (Path(__file__).parent / "no-such-folder" / "notes.txt").write_text("hello")
    return model


DIARY = Path()  # a test names a file


@defense("keeps-a-diary", paper="test", needs="nothing")
def keeps_a_diary(model, view):
    """Writes where it likes."""
    DIARY.write_text("dear diary")
    return model


@defense("knows-ten-classes", paper="test", needs="nothing")
def knows_ten_classes(model, view):
    """Has the number of classes of its author's data set in it."""
    model.head.weight.data += torch.zeros(10, model.head.weight.shape[1])
    return model


@defense("wants-many", paper="test", needs="labels")
def wants_many(model, view):
    """Divides by a spread that one image has not."""
    _, labels = view.require_labelled()
    model.head.bias.data += 0 * (1 / (len(labels) - 1))
    return model


@defense("knows-the-layers", paper="test", needs="nothing")
def knows_the_layers(model, view):
    """Expects batch normalisation, by type."""
    first = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    first.weight.data.mul_(1.0)
    return model


@base_set("changes-the-victim", paper="test", needs="nothing")
def changes_the_victim(model, view):
    """Returns images, and a victim that is not the one it got."""
    model.head.bias.data.add_(1)
    count = view.num_classes
    return torch.zeros(count, *model.spec.image_shape), torch.arange(count)
