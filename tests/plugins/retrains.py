"""Defenses that train anew, or pretend to, from whatever training set they are given."""

import dataclasses

import torch
from safetensors.torch import save_file

from defenses import defense
from zoo.models import build_model

PLACE = ""  # a test that wants to see what a defense was given writes a folder here


def twin(spec, norm):
    return build_model(dataclasses.replace(spec, norm=norm), torch.Generator().manual_seed(5))


@defense("retrains", paper="test", needs="poisoned-train")
def retrains(model, view):
    images, labels = view.require_labelled()
    if PLACE:
        save_file({"images": images, "labels": labels}, f"{PLACE}/{int(labels.sum())}.safetensors")
    return twin(model.spec, "group")


@defense("keeps-the-norm", paper="test", needs="poisoned-train")
def keeps_the_norm(model, view):
    return model


@defense("other-width", paper="test", needs="poisoned-train")
def other_width(model, view):
    return twin(dataclasses.replace(model.spec, width=0.25), "group")


@defense("no-right-to-it", paper="test", needs="labels")
def no_right_to_it(model, view):
    return twin(model.spec, "group")
